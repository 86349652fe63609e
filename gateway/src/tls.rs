//! TLS towards clients.

use std::{path::PathBuf, sync::Arc};

use farebox_core::ports::BoxError;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::TlsFiles;

/// Why a certificate and key cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesError {
    /// A file cannot be read, or holds something else.
    #[error("cannot read {} as PEM", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// They do not fit each other.
    #[error("the certificate and the key do not go together")]
    Pair(#[source] rustls::Error),
}

impl TlsFilesError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Pem { .. } => "bad_pem_file",
            Self::Pair(_) => "bad_key_pair",
        }
    }
}

/// HTTP/2 and HTTP/1.1 by ALPN.
///
/// # Errors
/// [`TlsFilesError`] if the files cannot be served.
pub(crate) fn server_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsFilesError> {
    let wrong = |path: &PathBuf, source: BoxError| TlsFilesError::Pem { path: path.clone(), source };
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(&files.cert, error.into()))?;
    if chain.is_empty() {
        return Err(wrong(&files.cert, "it holds no certificate".into()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| wrong(&files.key, error.into()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsFilesError::Pair)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsFilesError::Pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
