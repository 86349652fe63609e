//! The public side: the URL that bills name, its certificate, and the proxies in front.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use farebox_core::ports::Clock as _;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{ServerName, UnixTime},
    time_provider::TimeProvider,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::{cmd::check::finding::Findings, config::Config, system::SystemClock};

/// A certificate that ends sooner needs to be looked after.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// How long the public address may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The URL as bills show it, its certificate if it can be reached, and the trusted proxies.
pub(super) async fn look(config: &Config, findings: &mut Findings) {
    let Some(url) = &config.public_url else {
        let message =
            "not set: bills name the Host that each caller sends; add public_url = \"https://..\" (transfers need it)";
        findings.warn("public_url", "public_url", message);
        return proxies(config, None, findings);
    };
    let shown = url.as_str().trim_end_matches('/');
    let local = is_loopback(url);
    match (url.scheme(), local) {
        ("https", _) => {
            findings.pass("public_url", "public_url", format!("bills name {shown}"));
            certificate(url, findings).await;
        }
        (_, true) => findings.pass("public_url", "public_url", format!("bills name {shown}, on this machine alone")),
        (_, false) => {
            let message = format!(
                "bills name {shown}: over plain http anybody on the way reads the answers and changes where payments go; serve https"
            );
            findings.warn("public_url_http", "public_url", message);
        }
    }
    proxies(config, Some(url), findings);
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn proxies(config: &Config, public: Option<&Url>, findings: &mut Findings) {
    let everybody = config.trusted_proxies.iter().find(|net| net.prefix_len() == 0);
    let behind_one = config.tls.is_none() && public.is_some_and(|url| url.scheme() == "https");
    match () {
        () if everybody.is_some() => findings.fail(
            "trusted_proxies",
            "trusted_proxies",
            "everybody is believed, so every caller can claim any address; name your proxies alone",
        ),
        () if config.trusted_proxies.is_empty() && behind_one => findings.warn(
            "trusted_proxies",
            "trusted_proxies",
            "a proxy must be in front, for public_url is https and there is no [tls], and none is listed: all callers share the proxy's address and its limits; list it",
        ),
        () if config.trusted_proxies.is_empty() => {
            findings.pass("trusted_proxies", "trusted_proxies", "none: addresses of callers are those of their connections");
        }
        () => {
            let listed: Vec<String> = config.trusted_proxies.iter().map(ToString::to_string).collect();
            let public = config.trusted_proxies.iter().any(|net| !is_private(net.addr()));
            let message = format!("{} may say whom they speak for", listed.join(", "));
            if public && config.trusted_proxies.iter().any(|net| net.prefix_len() < 16) {
                findings.warn("trusted_proxies", "trusted_proxies", format!("{message}; that is much of the internet"));
            } else {
                findings.pass("trusted_proxies", "trusted_proxies", message);
            }
        }
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// The certificate as a caller would check it, now and two weeks from now.
async fn certificate(url: &Url, findings: &mut Findings) {
    let subject = format!("certificate of {}", url.host_str().unwrap_or_default());
    let now = Duration::from_secs(SystemClock.now().unix_s());
    match shake_hands(url, now).await {
        Err(Unshaken::Unreachable(why)) => {
            findings.warn(
                "certificate",
                subject,
                format!("was not looked at, for it cannot be reached from here: {why}"),
            );
        }
        Err(Unshaken::Tls(why)) => {
            findings.fail(
                "certificate",
                subject,
                format!("callers will refuse it: {why}; renew it, or correct public_url"),
            );
        }
        Ok(()) => match shake_hands(url, now + EXPIRES_SOON).await {
            Ok(()) => findings.pass("certificate", subject, "is good for this host, and for 14 days more"),
            Err(Unshaken::Tls(_)) => {
                findings.warn("certificate", subject, "is good now and ends within 14 days; see that it is renewed");
            }
            Err(Unshaken::Unreachable(why)) => {
                findings.warn(
                    "certificate",
                    subject,
                    format!("is good now; whether it ends soon was not to be seen: {why}"),
                );
            }
        },
    }
}

enum Unshaken {
    Unreachable(String),
    Tls(String),
}

/// A TLS handshake at a time of our choice, with the roots that callers have.
async fn shake_hands(url: &Url, at: Duration) -> Result<(), Unshaken> {
    let unreachable = |why: &dyn std::fmt::Display| Unshaken::Unreachable(why.to_string());
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(Unshaken::Unreachable("it has no host".to_owned()));
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((bare, port))).await;
    let tcp = connecting.map_err(|late| unreachable(&late))?.map_err(|error| unreachable(&error))?;
    let tls = client_at(at).map_err(|error| Unshaken::Tls(error.to_string()))?;
    let name = ServerName::try_from(bare.to_owned()).map_err(|error| Unshaken::Tls(error.to_string()))?;
    let shaking = TlsConnector::from(Arc::new(tls)).connect(name, tcp);
    match tokio::time::timeout(CONNECT_TIMEOUT, shaking).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Unshaken::Tls(error.to_string())),
        Err(late) => Err(unreachable(&late)),
    }
}

fn client_at(at: Duration) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    // Whoever checks a site of their own certificate authority says so as other programs are told.
    if let Some(path) = crate::system::environment("SSL_CERT_FILE") {
        use rustls::pki_types::{CertificateDer, pem::PemObject as _};
        let read = CertificateDer::pem_file_iter(Path::new(&path)).with_context(|| format!("SSL_CERT_FILE {path}"))?;
        roots.add_parsable_certificates(read.filter_map(Result::ok));
    }
    let config =
        ClientConfig::builder_with_details(provider, Arc::new(At(at))).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// A clock that stands.
#[derive(Debug)]
struct At(Duration);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::check::finding::Outcome;

    fn of_proxies(head: &str) -> Outcome {
        let route = "[[route]]\nmatch = \"GET /x\"\nupstream = \"http://127.0.0.1:1\"\nfree = true\n";
        let config = crate::config::parse(Path::new("farebox.toml"), &format!("{head}\n{route}")).unwrap();
        let mut findings = Findings::default();
        proxies(&config, config.public_url.as_ref(), &mut findings);
        findings.worst()
    }

    #[test]
    fn proxies_that_are_everybody_fail_and_one_that_must_be_there_and_is_not_listed_warns() {
        for (head, expected) in [
            ("", Outcome::Pass),
            ("public_url = \"http://api.example\"", Outcome::Pass),
            ("public_url = \"https://api.example\"", Outcome::Warn),
            ("public_url = \"https://api.example\"\ntrusted_proxies = [\"10.0.0.0/8\"]", Outcome::Pass),
            ("trusted_proxies = [\"8.0.0.0/8\"]", Outcome::Warn),
            ("trusted_proxies = [\"203.0.113.7/32\"]", Outcome::Pass),
            ("trusted_proxies = [\"0.0.0.0/0\"]", Outcome::Fail),
            ("trusted_proxies = [\"127.0.0.1/32\", \"::/0\"]", Outcome::Fail),
        ] {
            assert_eq!(of_proxies(head), expected, "{head}");
        }
    }

    #[test]
    fn this_machine_is_known_by_name_and_address() {
        for (url, expected) in [
            ("http://localhost:8402", true),
            ("http://shop.localhost", true),
            ("http://127.0.0.9", true),
            ("http://[::1]:1", true),
            ("http://localhost.example", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
    }

    #[tokio::test]
    async fn a_certificate_that_nobody_vouches_for_is_no_certificate_and_silence_is_no_verdict() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let now = Duration::from_secs(SystemClock.now().unix_s());
        let url: Url = format!("https://localhost:{}", address.port()).parse().unwrap();
        // Whoever speaks no TLS there.
        let served = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        });
        assert!(matches!(shake_hands(&url, now).await, Err(Unshaken::Tls(_))));
        served.await.unwrap();
        assert!(matches!(shake_hands(&url, now).await, Err(Unshaken::Unreachable(_))));
    }
}
