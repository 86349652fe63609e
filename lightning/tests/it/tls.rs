//! Whom a connection is trusted to reach.

use std::{path::Path, sync::Arc, time::Duration};

use farebox_core::ports::{LightningNode, NodeError};
use farebox_lightning::node::{ConnectError, NodeConfig, NodeUriError, SecretSource};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{WallClock, connected, lnd_config};

struct Identity {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

/// As lnd signs its own: CA:TRUE.
fn identity(years: std::ops::Range<i32>) -> Identity {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
    params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
    let key = KeyPair::generate().unwrap();
    Identity { certificate: params.self_signed(&key).unwrap(), key }
}

/// A server that says `{}` to whoever trusts it. Its URL.
async fn serve(identity: &Identity) -> String {
    let chain = vec![CertificateDer::from(identity.certificate.der().to_vec())];
    let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(mut client) = acceptor.accept(client).await else { continue };
            let mut asked = [0; 4096];
            if client.read(&mut asked).await.is_err() {
                continue;
            }
            let said = r#"{"code":5,"message":"unable to locate invoice"}"#;
            let head = format!("HTTP/1.1 404 X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", said.len());
            client.write_all(format!("{head}{said}").as_bytes()).await.ok();
            client.shutdown().await.ok();
        }
    });
    url
}

fn node(url: &str, folder: &Path, pin: Option<&[u8]>) -> Arc<dyn LightningNode> {
    let macaroon = folder.join("invoice.macaroon");
    std::fs::write(&macaroon, [2, 1, 3, b'l', b'n', b'd']).unwrap();
    let certificate = pin.map(|bytes| {
        let path = folder.join("tls.cert");
        std::fs::write(&path, bytes).unwrap();
        path
    });
    connected(&lnd_config(url, macaroon, certificate)).node
}

#[tokio::test]
async fn the_pinned_certificate_and_no_other_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = (identity(2020..2100), identity(2020..2100));
    let url = serve(&own).await;
    let hash = farebox_core::PaymentHash([1; 32]);

    let pem = own.certificate.pem();
    let several = format!("{}{pem}", other.certificate.pem());
    for pin in [pem.as_bytes(), own.certificate.der(), several.as_bytes()] {
        assert_eq!(node(&url, folder.path(), Some(pin)).invoice_news(hash).await.unwrap(), None);
    }
    // Expired, and pinned all the same: RFC 7671 §5.1.
    let expired = identity(2020..2021);
    let at = serve(&expired).await;
    assert_eq!(node(&at, folder.path(), Some(expired.certificate.der())).invoice_news(hash).await.unwrap(), None);

    // Another one, and one that no authority of the web vouches for.
    for pin in [Some(other.certificate.pem().into_bytes()), None] {
        let refused = node(&url, folder.path(), pin.as_deref()).invoice_news(hash).await.unwrap_err();
        assert!(matches!(refused, NodeError::Impostor { .. }), "{refused:?}");
    }
}

#[tokio::test]
async fn a_peer_that_shows_the_pinned_certificate_without_its_key_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let own = identity(2020..2100);
    let thief = Identity { certificate: own.certificate.clone(), key: KeyPair::generate().unwrap() };
    // rustls refuses to serve with a key that is not the certificate's, so the thief signs by hand.
    let url = serve_stolen(&thief).await;
    let news =
        node(&url, folder.path(), Some(own.certificate.der())).invoice_news(farebox_core::PaymentHash([1; 32])).await;
    assert!(matches!(news, Err(NodeError::Impostor { .. } | NodeError::Unavailable { .. })), "{news:?}");
}

async fn serve_stolen(thief: &Identity) -> String {
    #[derive(Debug)]
    struct Stolen(Arc<rustls::sign::CertifiedKey>);
    impl rustls::server::ResolvesServerCert for Stolen {
        fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }
    let chain = vec![CertificateDer::from(thief.certificate.der().to_vec())];
    let key = PrivateKeyDer::try_from(thief.key.serialize_der()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let stolen = Arc::new(Stolen(Arc::new(rustls::sign::CertifiedKey::new(chain, key))));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_cert_resolver(stolen)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            if let Ok(mut client) = acceptor.accept(client).await {
                let said = "HTTP/1.1 404 X\r\ncontent-length: 27\r\n\r\n{\"code\":5,\"message\":\"none\"}";
                client.write_all(said.as_bytes()).await.ok();
            }
        }
    });
    url
}

#[test]
fn what_a_config_cannot_mean_is_told_before_anybody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let (macaroon, pin) = (file("m", &[2, 1]), file("c", identity(2020..2100).certificate.pem().as_bytes()));
    let clock: Arc<dyn farebox_core::ports::Clock> = Arc::new(WallClock);
    let check = |config: &NodeConfig, code: &str| {
        let error = farebox_lightning::node::connect(config, &clock).map(drop).unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
    };
    let at = |url: &str| lnd_config(url, macaroon.clone(), Some(pin.clone()));
    check(&at("http://node.example:8080"), "node_url");
    check(&at("https://user:secret@node.example"), "node_url");
    check(&at("ftp://127.0.0.1"), "node_url");
    check(&lnd_config("https://n.example", folder.path().join("none"), None), "node_file");
    check(&lnd_config("https://n.example", file("big", &vec![2; 1 << 20]), None), "node_file");
    check(&lnd_config("https://n.example", file("text", b"not hex"), None), "node_credential");
    check(&lnd_config("https://n.example", file("empty", b""), None), "node_credential");
    check(&lnd_config("https://n.example", macaroon.clone(), Some(file("none.pem", b"hello"))), "node_certificate");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    check(
        &lnd_config("https://n.example", macaroon.clone(), Some(file("bad.pem", broken.as_bytes()))),
        "node_certificate",
    );

    let error = farebox_lightning::node::connect(&at("https://user:secret@node.example"), &clock).unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
    assert!(matches!(error, ConnectError::Url { .. }));
}

#[test]
fn an_agents_line_names_a_node() {
    let line = "lnd+https://127.0.0.1:8080/lnd?macaroon=%2Fhome%2Fa+b%2Fadmin.macaroon&cert=tls.cert";
    let NodeConfig::Lnd(config) = line.parse().unwrap() else { panic!("an lnd") };
    assert_eq!(config.url.as_str(), "https://127.0.0.1:8080/lnd");
    assert!(matches!(&config.macaroon, SecretSource::File(path) if path == Path::new("/home/a b/admin.macaroon")));
    assert_eq!(config.certificate.as_deref(), Some(Path::new("tls.cert")));
    assert_eq!(config.timeout, Duration::from_secs(10));

    let NodeConfig::Cln(config) = "cln+http://[::1]:3010?rune=rune.txt".parse().unwrap() else { panic!("a cln") };
    assert_eq!((config.url.as_str(), config.certificate), ("http://[::1]:3010/", None));
    assert!(matches!(&config.rune, SecretSource::File(path) if path == Path::new("rune.txt")));

    let check = |text: &str, code: &str| {
        let error: NodeUriError = text.parse::<NodeConfig>().map(drop).unwrap_err();
        assert_eq!(error.code(), code, "{text}");
    };
    check("https://127.0.0.1:8080", "node_uri_scheme");
    check("lnd", "node_uri_scheme");
    check("lnd+https://127.0.0.1:8080", "node_uri_missing");
    check("lnd+https://127.0.0.1:8080?macaroon=a&macaroon=b", "node_uri_twice");
    check("lnd+https://127.0.0.1:8080?macaroon=a&rune=b", "node_uri_unknown");
    check("lnd+https://[::1?macaroon=a", "node_uri_form");
}
