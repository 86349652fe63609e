//! JSON-RPC over HTTP by our own reqwest client. alloy's own transport puts the whole URL, API key included, into its spans, and
//! reads an answer of any size.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use alloy::{
    rpc::{
        client::RpcClient,
        json_rpc::{RequestPacket, ResponsePacket},
    },
    transports::{TransportError, TransportErrorKind, TransportFut},
};
use farebox_core::ports::BoxError;
use reqwest::header::CONTENT_TYPE;
use tower::Service;
use url::Url;

/// The longest answer of a node that is read: a full page of logs is below it.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Connections kept open to one node.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// A client for `url`, which is http or https.
pub(super) fn http(url: &Url, timeout: Duration) -> Result<RpcClient, BoxError> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls()?)
        .connect_timeout(timeout)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()?;
    Ok(RpcClient::new(HttpTransport { client, url: url.clone() }, true))
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

#[derive(Clone)]
struct HttpTransport {
    client: reqwest::Client,
    url: Url,
}

/// What an HTTP exchange failed of. Never holds the URL.
#[derive(Debug, thiserror::Error)]
enum HttpError {
    #[error("the exchange with the node failed")]
    Exchange(#[source] reqwest::Error),
    #[error("the node answered with HTTP status {0}")]
    Status(u16),
    #[error("the node's answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
}

impl From<reqwest::Error> for HttpError {
    fn from(error: reqwest::Error) -> Self {
        Self::Exchange(error.without_url())
    }
}

impl HttpTransport {
    async fn exchange(self, packet: RequestPacket) -> Result<ResponsePacket, TransportError> {
        let body = serde_json::to_vec(&packet).map_err(TransportError::ser_err)?;
        let answer = self.fetch(body).await.map_err(TransportErrorKind::custom)?;
        // The text of an odd answer is a stranger's and may be huge: the parser's own message says where it broke.
        serde_json::from_slice(&answer).map_err(|e| TransportError::deser_err(e, ""))
    }

    async fn fetch(self, body: Vec<u8>) -> Result<Vec<u8>, HttpError> {
        let request = self.client.post(self.url).header(CONTENT_TYPE, "application/json").body(body);
        let mut response = request.send().await?;
        // Some nodes put a JSON-RPC error under a status of 4xx or 5xx. What does not say 200 is never an answer about money.
        if !response.status().is_success() {
            return Err(HttpError::Status(response.status().as_u16()));
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(HttpError::TooLong);
            }
            answer.extend_from_slice(&chunk);
        }
        Ok(answer)
    }
}

impl Service<RequestPacket> for HttpTransport {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> TransportFut<'static> {
        Box::pin(self.clone().exchange(packet))
    }
}
