//! HTTP to a node: bounded in time and size, without redirects or proxies, with errors that hold no secret.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use farebox_core::{
    Invoice, Untrusted,
    ports::{BoxError, NodeError},
};
use farebox_wire::bolt11::{self, Bolt11Error};
use reqwest::{RequestBuilder, Response, StatusCode, header::HeaderValue};
use serde::{Serialize, de::DeserializeOwned};
use url::{Host, Url};

use super::{ConnectError, Trust, tls};

/// The longest answer that is read: a page of invoices, or the channels of a large node.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The longest refusal that is read.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// How often a connection that says nothing is asked whether it still lives, so that a subscription does not wait on a dead one.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A node's REST interface.
pub(super) struct Rest {
    client: reqwest::Client,
    base: Url,
    label: Arc<str>,
    auth: (&'static str, HeaderValue),
    timeout: Duration,
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestError {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the exchange failed")]
    Exchange(#[source] reqwest::Error),
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("the answer cannot be understood")]
    Garbage(#[source] serde_json::Error),
    #[error("HTTP status {0} without a reason")]
    Status(u16),
    #[error("its invoice cannot be read")]
    Invoice(#[source] Bolt11Error),
    #[error("{0}")]
    Said(Said),
    #[error("{0}")]
    Wrong(String),
}

/// What a node says when it says no.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Said {
    /// The number of its interface: a gRPC status for lnd, a JSON-RPC code for Core Lightning.
    pub(super) code: i64,
    /// For people; not safe to print.
    pub(super) message: String,
    /// Which HTTP status it came under; 0 in a stream that had begun.
    #[serde(skip)]
    pub(super) status: u16,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {}, HTTP status {})", Untrusted::new(&*self.message), self.code, self.status)
    }
}

impl From<reqwest::Error> for RestError {
    fn from(error: reqwest::Error) -> Self {
        Self::Exchange(error.without_url())
    }
}

impl Rest {
    pub(super) fn new(
        kind: &str,
        url: &Url,
        trust: &Trust,
        auth: (&'static str, HeaderValue),
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        let wrong = |detail: &str| ConnectError::Url { found: shown(url), detail: detail.to_owned() };
        if !(url.scheme() == "https" || url.scheme() == "http" && is_loopback(url)) {
            return Err(wrong("expected https: the credential travels in every request"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("expected scheme, host, port and path alone"));
        }
        let mut base = url.clone();
        base.set_path(&format!("{}/", url.path().trim_end_matches('/')));
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(trust).map_err(|e| ConnectError::Client(Box::new(e)))?)
            .connect_timeout(timeout)
            .tcp_keepalive(KEEPALIVE)
            .http2_keep_alive_interval(KEEPALIVE)
            .http2_keep_alive_timeout(KEEPALIVE)
            .http2_keep_alive_while_idle(true)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build();
        let client = client.map_err(|e| ConnectError::Client(Box::new(e.without_url())))?;
        Ok(Self { client, base, label: format!("{kind} at {}", shown(url)).into(), auth, timeout })
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A `GET` of `path`, which is relative to the node's URL.
    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.signed(self.client.get(self.at(path)))
    }

    /// A `POST` of `body` as JSON.
    pub(super) fn post(&self, path: &str, body: &impl Serialize) -> RequestBuilder {
        self.signed(self.client.post(self.at(path)).json(body))
    }

    /// Sends a request and reads its answer, within the node's timeout.
    pub(super) async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, RestError> {
        self.ask_within(self.timeout, request).await
    }

    /// [`Rest::ask`] of a question that the node takes its time over.
    pub(super) async fn ask_within<T: DeserializeOwned>(
        &self,
        timeout: Duration,
        request: RequestBuilder,
    ) -> Result<T, RestError> {
        within(timeout, async {
            let answer = bounded(good(request.send().await?).await?, ANSWER_BYTES_MAX).await?;
            serde_json::from_slice(&answer).map_err(RestError::Garbage)
        })
        .await
    }

    /// As the port tells it.
    pub(super) fn error(&self, error: RestError) -> NodeError {
        let label = self.label.to_string();
        match error {
            RestError::Said(said) if !said.passing() => NodeError::Refused { label, detail: said.to_string() },
            RestError::Exchange(error) => match tls::impostor(&error) {
                Some(detail) => NodeError::Impostor { label, detail },
                None => NodeError::Unavailable { label, source: Box::new(RestError::Exchange(error)) },
            },
            error => NodeError::Unavailable { label, source: Box::new(error) },
        }
    }

    /// An answer that cannot be true.
    pub(super) fn wrong(&self, detail: impl Into<String>) -> NodeError {
        self.error(RestError::Wrong(detail.into()))
    }

    /// The terms that its invoice states; what it says beside the invoice is nothing to a payer.
    pub(super) fn read_invoice(&self, bolt11: &str) -> Result<Invoice, NodeError> {
        let read = bolt11::decode(bolt11).map_err(|e| self.error(RestError::Invoice(e)))?;
        Ok(read.invoice)
    }

    fn at(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(&format!("{}{path}", self.base.path()));
        url.set_query(query);
        url
    }

    fn signed(&self, request: RequestBuilder) -> RequestBuilder {
        request.header(self.auth.0, self.auth.1.clone())
    }
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rest({})", self.label)
    }
}

impl RestError {
    /// What the node says against the question itself; nothing if it only cannot answer now.
    pub(super) fn refusal(&self) -> Option<&Said> {
        match self {
            Self::Said(said) => (!said.passing()).then_some(said),
            _ => None,
        }
    }
}

impl Said {
    /// Whether it only says that the node cannot answer now: gRPC's deadline and unavailable, what lnd says of itself before its wallet
    /// is open or its server is up, what ends a stream that had begun, and Core Lightning's plugin or daemon that is going down.
    fn passing(&self) -> bool {
        let starting = ["wallet locked", "in the process of starting up", "waiting to start"];
        let ended = self.status == 0;
        ended || matches!(self.code, 4 | 14 | -4 | -5) || starting.iter().any(|text| self.message.contains(text))
    }
}

/// The response if it is one of success, what it says against it otherwise.
pub(super) async fn good(response: Response) -> Result<Response, RestError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let refusal = bounded(response, REFUSAL_BYTES_MAX).await?;
    Err(said(&refusal, status).map_or(RestError::Status(status.as_u16()), RestError::Said))
}

/// gRPC's gateway puts what ends a stream into a member `error`, and what refuses a question at the top.
fn said(refusal: &[u8], status: StatusCode) -> Option<Said> {
    #[derive(serde::Deserialize)]
    struct Wrapped {
        error: Said,
    }
    let said =
        serde_json::from_slice(refusal).or_else(|_| serde_json::from_slice(refusal).map(|Wrapped { error }| error));
    said.ok().map(|said| Said { status: status.as_u16(), ..said })
}

async fn bounded(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, RestError> {
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if answer.len() + chunk.len() > bytes_max {
            return Err(RestError::TooLong(bytes_max));
        }
        answer.extend_from_slice(&chunk);
    }
    Ok(answer)
}

pub(super) async fn within<T>(
    timeout: Duration,
    asked: impl Future<Output = Result<T, RestError>>,
) -> Result<T, RestError> {
    tokio::time::timeout(timeout, asked).await.unwrap_or(Err(RestError::Late(timeout)))
}

/// The source of a [`NodeError`] as the one of a payment that is not known.
pub(super) fn boxed(error: NodeError) -> BoxError {
    Box::new(error)
}

/// Without user, password, query or fragment.
fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path().trim_end_matches('/'))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
