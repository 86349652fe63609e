//! Whom a node's TLS connection is trusted to reach: exactly the certificate that the operator pinned, or whoever Mozilla's authorities vouch for.
//!
//! lnd signs its own certificate and says CA:TRUE in it, which every verifier of chains refuses as a server's. So a pinned certificate is compared
//! byte by byte, and the handshake still proves that the peer holds its key. Its name and its dates are not looked at: the pin says more than
//! either. Source: RFC 7671 §5.1, on the same kind of pin.

use std::{error::Error, io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};

/// The most certificates that one file pins.
const PINS_MAX: usize = 8;

/// Who a node's certificate may be from.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Mozilla's authorities, for nodes that are hosted under a name.
    WebPki,
    /// One of these certificates and no other.
    Pinned(Pins),
}

/// One or more certificates, to be found again byte by byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins(Arc<[CertificateDer<'static>]>);

/// Why a file pins nothing.
#[derive(Debug, thiserror::Error)]
#[error("expected 1 to {PINS_MAX} certificates in PEM, or one in DER, found {found}")]
pub struct PinError {
    found: String,
}

impl Pins {
    /// From the bytes of a PEM file (lnd's `tls.cert`, Core Lightning's `server.pem`) or of one certificate in DER.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, PinError> {
        // Every certificate is a SEQUENCE of more than 255 bytes.
        if bytes.starts_with(&[0x30, 0x82]) {
            return Self::of(vec![CertificateDer::from(bytes.to_vec())]);
        }
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        Self::of(certificates.map_err(|e| PinError { found: format!("broken PEM: {e}") })?)
    }

    fn of(certificates: Vec<CertificateDer<'static>>) -> Result<Self, PinError> {
        if certificates.is_empty() || certificates.len() > PINS_MAX {
            return Err(PinError { found: certificates.len().to_string() });
        }
        for certificate in &certificates {
            // Read as the handshake will read it, so that a broken file is told of at the start.
            let read = rustls::server::ParsedCertificate::try_from(certificate);
            read.map_err(|e| PinError { found: format!("one that cannot be read: {e}") })?;
        }
        Ok(Self(certificates.into()))
    }
}

/// TLS by ring, whatever else the process has installed.
pub(super) fn client_config(trust: &Trust) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder =
        ClientConfig::builder_with_provider(provider as Arc<CryptoProvider>).with_safe_default_protocol_versions()?;
    Ok(match trust {
        Trust::WebPki => {
            let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        Trust::Pinned(pins) => {
            let verifier = Arc::new(PinVerifier { pins: pins.clone(), algorithms });
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
    })
}

/// Why the peer of a failed connection is not the node that was configured; `None` if the connection failed of something else.
pub(super) fn impostor(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An io::Error does not name what it holds as its source, only that one's source.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = held.and_then(|held| held.downcast_ref()).or_else(|| error.downcast_ref());
        match found {
            Some(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
                return Some(
                    "it shows another certificate than the pinned one; if it was renewed, pin the new one".to_owned(),
                );
            }
            Some(rustls::Error::InvalidCertificate(problem)) => {
                return Some(format!("its certificate is not good: {problem}"));
            }
            _ => next = held.map(|held| held as &(dyn Error + 'static)).or_else(|| error.source()),
        }
    }
    None
}

#[derive(Debug)]
struct PinVerifier {
    pins: Pins,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pins.0.iter().any(|pin| pin.as_ref() == end_entity.as_ref()) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
