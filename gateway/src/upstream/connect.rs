//! Opening a connection to an upstream: TCP, and TLS for https.

use std::{path::PathBuf, sync::Arc};

use farebox_core::ports::BoxError;
use http::uri::Scheme;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{UpstreamConfig, UpstreamUrl};

/// Why an https upstream cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamTlsError {
    /// The CA file cannot be read, or holds no certificate.
    #[error("cannot read certificates from {}", path.display())]
    Ca {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The host is no name that a certificate could have.
    #[error("the upstream's host is no name that a certificate could have")]
    Name(#[source] rustls::pki_types::InvalidDnsNameError),
    /// The TLS library does not take the settings.
    #[error("TLS cannot be set up")]
    Settings(#[source] rustls::Error),
}

impl UpstreamTlsError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Ca { .. } => "bad_ca_file",
            Self::Name(_) => "bad_upstream_name",
            Self::Settings(_) => "bad_tls_settings",
        }
    }
}

/// An open connection.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// How connections are opened.
pub(super) struct Connector {
    tls: Option<(TlsConnector, ServerName<'static>)>,
    wants_h2: bool,
}

impl Connector {
    pub(super) fn new(config: &UpstreamConfig) -> Result<Self, UpstreamTlsError> {
        if config.origin.scheme != Scheme::HTTPS {
            return Ok(Self { tls: None, wants_h2: false });
        }
        let name = ServerName::try_from(config.origin.host.clone()).map_err(UpstreamTlsError::Name)?;
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(path) = &config.ca {
            let wrong = |source: BoxError| UpstreamTlsError::Ca { path: path.clone(), source };
            let before = roots.len();
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.into()))? {
                let certificate = certificate.map_err(|error| wrong(error.into()))?;
                roots.add(certificate).map_err(|error| wrong(error.into()))?;
            }
            if roots.len() == before {
                return Err(wrong("it holds no certificate".into()));
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(UpstreamTlsError::Settings)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![if config.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        Ok(Self { tls: Some((TlsConnector::from(Arc::new(tls)), name)), wants_h2: config.http2 })
    }

    pub(super) async fn connect(&self, origin: &UpstreamUrl) -> Result<Stream, BoxError> {
        let tcp = TcpStream::connect((origin.host.as_str(), origin.port)).await?;
        tcp.set_nodelay(true)?;
        let Some((connector, name)) = &self.tls else { return Ok(Stream::Plain(tcp)) };
        let tls = connector.connect(name.clone(), tcp).await?;
        if self.wants_h2 && tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err("it does not speak HTTP/2 (ALPN)".into());
        }
        Ok(Stream::Tls(Box::new(tls)))
    }
}
