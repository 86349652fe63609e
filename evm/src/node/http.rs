//! HTTP to nodes, explorers and rate sources: bounded, without redirects or proxies, and with errors that never hold a URL.

use std::{sync::Arc, time::Duration};

use farebox_core::ports::BoxError;
use reqwest::{RequestBuilder, StatusCode, header::RETRY_AFTER};

use super::SourceError;

/// Connections kept open to one host.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// What an HTTP exchange failed of. Never holds the URL, which may hold an API key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("the exchange failed")]
    Exchange(#[source] reqwest::Error),
    #[error("HTTP status {0}")]
    Status(u16),
    #[error("HTTP status 429: asked too often")]
    Limited { retry_after: Option<Duration> },
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

impl From<reqwest::Error> for HttpError {
    fn from(error: reqwest::Error) -> Self {
        Self::Exchange(error.without_url())
    }
}

impl From<HttpError> for SourceError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Limited { retry_after } => Self::Limited { retry_after },
            error => Self::Transport(Box::new(error)),
        }
    }
}

pub(crate) fn client(connect_timeout: Duration) -> Result<reqwest::Client, BoxError> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls()?)
        .connect_timeout(connect_timeout)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()?;
    Ok(client)
}

/// Sends a request and reads an answer of at most `bytes_max`.
pub(crate) async fn fetch(request: RequestBuilder, bytes_max: usize) -> Result<Vec<u8>, HttpError> {
    let mut response = request.send().await?;
    let status = response.status();
    if status == StatusCode::TOO_MANY_REQUESTS {
        // Seconds; the other form, a date, is not worth a clock here.
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        return Err(HttpError::Limited { retry_after: seconds.map(Duration::from_secs) });
    }
    // Some nodes put a JSON-RPC error under a status of 4xx or 5xx. What does not say 200 is never an answer about money.
    if !status.is_success() {
        return Err(HttpError::Status(status.as_u16()));
    }
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if answer.len() + chunk.len() > bytes_max {
            return Err(HttpError::TooLong(bytes_max));
        }
        answer.extend_from_slice(&chunk);
    }
    Ok(answer)
}

/// TLS by ring and Mozilla's roots, whatever else the process has installed.
fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
