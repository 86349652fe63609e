//! HTTP to nodes, explorers and rate sources: bounded, without redirects or proxies, and with errors that never hold a URL.

use std::{sync::Arc, time::Duration};

use farebox_core::{Timestamp, ports::BoxError};
use reqwest::{
    RequestBuilder, StatusCode,
    header::{DATE, RETRY_AFTER},
};
use url::Url;

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

/// What the server behind `url` says the time is, in whole seconds. Its root is asked, for which no API key is needed, and whatever it
/// answers will do. `None` if it does not answer in time, or tells no time.
pub(super) async fn date(url: &Url, timeout: Duration) -> Option<Timestamp> {
    let mut root = url.clone();
    let scheme = if matches!(url.scheme(), "https" | "wss") { "https" } else { "http" };
    // From ws to http and back, which the type allows between these four alone.
    root.set_scheme(scheme).ok()?;
    root.set_path("/");
    root.set_query(None);
    root.set_username("").ok()?;
    root.set_password(None).ok()?;
    let asked = client(timeout).ok()?.get(root).timeout(timeout).send().await.ok()?;
    let date = httpdate::parse_http_date(asked.headers().get(DATE)?.to_str().ok()?).ok()?;
    let since_epoch = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Timestamp::from_unix_s(since_epoch.as_secs()))
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
