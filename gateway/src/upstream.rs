//! Calling upstreams: connections kept by worker, headers by RFC 9110 §7.6, bodies streamed.

mod body;
mod connect;
mod pool;
mod tunnel;

use std::{sync::Arc, time::Duration};

use farebox_core::ports::BoxError;
use farebox_wire::Tokens;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header::HOST, uri::Scheme};
use hyper::body::Incoming;
use tokio::time::Instant;

pub(crate) use self::body::UpstreamBody;
pub use self::connect::UpstreamTlsError;
use self::pool::{NotSent, Origin};
use crate::{
    Route, UpstreamConfig, UpstreamHost,
    client::ClientInfo,
    forward,
    request_body::{Progress, RequestBody, RequestBodyError, RequestBodyLimits},
};

/// A kept connection unused for so long may be one that the upstream closes just now; a request that is safe to repeat is then
/// copied, so that it can be.
const DOUBTFUL_IDLE: Duration = Duration::from_millis(500);

/// The upstream connections of one worker.
#[derive(Debug)]
pub(crate) struct Upstreams {
    /// By index of route; routes with equal settings share one.
    by_route: Vec<Arc<Origin>>,
    request_limits: Vec<RequestBodyLimits>,
    tunnel_idle_timeout: Duration,
    /// Whether the gateway sells tokens, which are then no upstream's.
    tokens: Tokens,
}

/// Why there is no answer from an upstream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// It could not be reached: name, TCP, TLS, or `connect_timeout`. Nothing was sent.
    #[error("the upstream could not be reached")]
    Connect {
        #[source]
        source: BoxError,
    },
    /// No head within `response_timeout`. It may have done the work.
    #[error("the upstream did not answer in time")]
    Timeout,
    /// It closed the connection before a whole head. It may have done the work.
    #[error("the upstream closed the connection before it answered")]
    Reset {
        #[source]
        source: hyper::Error,
    },
    /// What it answered is not HTTP as we asked for it.
    #[error("the upstream's answer is malformed")]
    BadResponse {
        #[source]
        source: BoxError,
    },
    /// The client's body is longer than the route allows.
    #[error("the request's body is longer than {bytes_max} bytes")]
    RequestTooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// The client's body broke off or stalled.
    #[error("the request's body broke off before its end")]
    RequestAborted,
}

/// A call without an answer.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub(crate) error: UpstreamError,
    pub(crate) by: BrokenBy,
}

/// Who broke a call off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BrokenBy {
    /// It failed, or nothing was sent to it.
    Upstream,
    /// They sent a part of their request, and not the rest.
    Caller,
}

impl BrokenBy {
    /// Of a request that went out, as far as its body came.
    pub(crate) fn of(request: Option<&Progress>) -> Self {
        if request.is_some_and(Progress::is_broken_by_client) { Self::Caller } else { Self::Upstream }
    }
}

impl From<UpstreamError> for Unanswered {
    /// Before anything was sent.
    fn from(error: UpstreamError) -> Self {
        Self { error, by: BrokenBy::Upstream }
    }
}

impl UpstreamError {
    /// Stable, snake_case.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "upstream_unreachable",
            Self::Timeout => "upstream_timeout",
            Self::Reset { .. } => "upstream_reset",
            Self::BadResponse { .. } => "upstream_bad_response",
            Self::RequestTooLarge { .. } => "request_too_large",
            Self::RequestAborted => "request_aborted",
        }
    }

    /// 502, 504, 413 or 400.
    pub(crate) const fn status(&self) -> u16 {
        match self {
            Self::Connect { .. } | Self::Reset { .. } | Self::BadResponse { .. } => 502,
            Self::Timeout => 504,
            Self::RequestTooLarge { .. } => 413,
            Self::RequestAborted => 400,
        }
    }
}

impl Upstreams {
    /// Prepares what needs no connection. Called once for each worker.
    ///
    /// # Errors
    /// [`UpstreamTlsError`] if a CA file cannot be used.
    pub(crate) fn new(
        routes: &[Route],
        request_defaults: RequestBodyLimits,
        tunnel_idle_timeout: Duration,
        tokens: Tokens,
    ) -> Result<Self, UpstreamTlsError> {
        let mut origins: Vec<(&UpstreamConfig, Arc<Origin>)> = Vec::new();
        let mut by_route = Vec::with_capacity(routes.len());
        for route in routes {
            let known = origins.iter().find(|(config, _)| **config == route.upstream).map(|(_, origin)| origin.clone());
            let origin = match known {
                Some(origin) => origin,
                None => {
                    let origin = Arc::new(Origin::new(route.upstream.clone())?);
                    origins.push((&route.upstream, origin.clone()));
                    origin
                }
            };
            by_route.push(origin);
        }
        let limits_of = |route: &Route| RequestBodyLimits {
            bytes_max: route.request_body_bytes_max.unwrap_or(request_defaults.bytes_max),
            ..request_defaults
        };
        Ok(Self { by_route, request_limits: routes.iter().map(limits_of).collect(), tunnel_idle_timeout, tokens })
    }

    /// Sends a request to the upstream of the route with this index and returns its head; the body streams. Hop-by-hop headers, credentials
    /// of payment and `farebox-*` are taken out; `extra` is added after that. An upgrade (101) is tunnelled in the background
    /// once the answer is passed on.
    ///
    /// Dropping the future or the body closes the upstream's connection if its answer was not read to the end.
    ///
    /// # Errors
    /// [`UpstreamError`], and whose fault it is. Nothing is sent twice unless nothing had been sent, or the method is safe (RFC 9110 §9.2.1), there is no body,
    /// and a kept connection was closed before it answered.
    pub(crate) async fn call(
        &self,
        route: usize,
        mut request: Request<Incoming>,
        client: &ClientInfo,
        extra: &[(HeaderName, HeaderValue)],
    ) -> Result<Response<UpstreamBody>, Unanswered> {
        let origin = &self.by_route[route];
        let version = request.version();
        let upgrade = forward::request_headers(request.headers_mut(), version, client, self.tokens, extra)
            .filter(|_| !origin.config.http2)
            .map(|_| hyper::upgrade::on(&mut request));
        let limits = self.request_limits[route];
        let (request, progress) = origin.prepare(request, client, limits)?;
        let answered = if origin.config.http2 {
            // Boxed, as everything rare on this way: the future is kept, and moved, for every request of every connection.
            Box::pin(send_h2(origin, request, progress.as_deref(), limits)).await
        } else {
            send_h1(origin, request, progress.as_deref(), limits).await
        };
        let mut response = answered.map_err(|error| match error {
            UpstreamError::Connect { .. } => error.into(),
            error => Unanswered { by: BrokenBy::of(progress.as_deref()), error },
        })?;
        response.body_mut().answers(progress);
        let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        match upgrade {
            Some(client_side) if switching => {
                tunnel::open(&mut response, client_side, self.tunnel_idle_timeout, client)
            }
            None if switching => {
                let source = "it switched protocols without being asked".into();
                return Err(UpstreamError::BadResponse { source }.into());
            }
            _ => forward::response_headers(response.headers_mut()),
        }
        Ok(response)
    }

    /// Closes kept connections that are unused for too long. Called every now and then.
    pub(crate) fn reap(&self) {
        self.by_route.iter().for_each(|origin| origin.reap());
    }

    /// Closes all kept connections; those in use close when they are done.
    pub(crate) fn close(&self) {
        self.by_route.iter().for_each(|origin| origin.close());
    }
}

impl Origin {
    /// Puts our authority, target and body limit in place.
    fn prepare(
        &self,
        request: Request<Incoming>,
        client: &ClientInfo,
        limits: RequestBodyLimits,
    ) -> Result<(Request<RequestBody>, Option<Arc<Progress>>), UpstreamError> {
        let (mut head, body) = request.into_parts();
        let too_large = |_| UpstreamError::RequestTooLarge { bytes_max: limits.bytes_max };
        let (body, progress) = RequestBody::new(body, limits).map_err(too_large)?;
        let preserved = match (self.config.host, &client.authority) {
            (UpstreamHost::Preserve, Some(authority)) => HeaderValue::from_str(authority.as_str()).ok(),
            _ => None,
        };
        let host = preserved.unwrap_or_else(|| self.config.origin.authority.clone());
        let bad_target = |source: http::Error| UpstreamError::Connect { source: source.into() };
        if self.config.http2 {
            head.uri = self.absolute_uri(&head.uri, &host).map_err(bad_target)?;
            head.version = Version::HTTP_2;
            head.headers.remove(HOST);
            head.headers.remove(http::header::CONNECTION);
            head.headers.remove(http::header::UPGRADE);
        } else {
            if head.uri.authority().is_some() || !self.config.origin.base_path.is_empty() {
                head.uri = Uri::builder().path_and_query(self.target(&head.uri)).build().map_err(bad_target)?;
            }
            head.version = Version::HTTP_11;
            head.headers.insert(HOST, host);
        }
        head.extensions.clear();
        Ok((Request::from_parts(head, body), progress))
    }

    fn absolute_uri(&self, uri: &Uri, host: &HeaderValue) -> Result<Uri, http::Error> {
        let scheme = if self.config.origin.scheme == Scheme::HTTPS { Scheme::HTTPS } else { Scheme::HTTP };
        Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(self.target(uri)).build()
    }

    fn target(&self, uri: &Uri) -> String {
        let path_and_query = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        [&self.config.origin.base_path, path_and_query].concat()
    }
}

async fn send_h1(
    origin: &Arc<Origin>,
    mut request: Request<RequestBody>,
    progress: Option<&Progress>,
    limits: RequestBodyLimits,
) -> Result<Response<UpstreamBody>, UpstreamError> {
    let mut spare = None;
    loop {
        let now = Instant::now();
        let (mut sender, idle) = match origin.checkout(now) {
            Some((sender, idle)) => (sender, Some(idle)),
            None => (Box::pin(origin.connect_h1()).await?, None),
        };
        let repeatable = request.method().is_safe() && progress.is_none();
        if idle.is_some_and(|idle| idle >= DOUBTFUL_IDLE) && repeatable {
            spare = Some(Box::new(copy_of(&request)));
        }
        let sent = sender.try_send_request(request);
        match deadline(sent, now + origin.config.response_timeout, origin.config.response_timeout, progress).await? {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let body = UpstreamBody::new(body, origin, Some(sender), head.status);
                return Ok(Response::from_parts(head, body));
            }
            Err(mut failed) => {
                // Nothing of it was sent: hyper gives it back.
                if let (Some(unsent), true) = (failed.take_message(), idle.is_some()) {
                    request = unsent;
                    continue;
                }
                let error = failed.into_error();
                match spare.take() {
                    Some(copy) if is_reset(&error) => request = *copy,
                    _ => return Err(failure(error, progress, limits)),
                }
            }
        }
    }
}

async fn send_h2(
    origin: &Arc<Origin>,
    mut request: Request<RequestBody>,
    progress: Option<&Progress>,
    limits: RequestBodyLimits,
) -> Result<Response<UpstreamBody>, UpstreamError> {
    for attempt in [NotSent::TryAgain, NotSent::GiveUp] {
        let mut sender = origin.connect_h2().await?;
        let sent = sender.try_send_request(request);
        let timeout = origin.config.response_timeout;
        match deadline(sent, Instant::now() + timeout, timeout, progress).await? {
            Ok(response) => {
                let (head, body) = response.into_parts();
                return Ok(Response::from_parts(head, UpstreamBody::new(body, origin, None, StatusCode::OK)));
            }
            Err(mut failed) => match (failed.take_message(), attempt) {
                (Some(unsent), NotSent::TryAgain) => request = unsent,
                _ => return Err(failure(failed.into_error(), progress, limits)),
            },
        }
    }
    Err(UpstreamError::Connect { source: "the connection closed before the request was sent".into() })
}

/// Waits for a head until `timeout` after the last frame of the request's body.
async fn deadline<T>(
    sent: impl Future<Output = T>,
    mut at: Instant,
    timeout: Duration,
    progress: Option<&Progress>,
) -> Result<T, UpstreamError> {
    let mut sent = std::pin::pin!(sent);
    loop {
        match tokio::time::timeout_at(at, sent.as_mut()).await {
            Ok(done) => return Ok(done),
            Err(_) => match progress.map(|progress| progress.last_frame() + timeout) {
                Some(later) if later > at => at = later,
                _ => return Err(UpstreamError::Timeout),
            },
        }
    }
}

fn failure(error: hyper::Error, progress: Option<&Progress>, limits: RequestBodyLimits) -> UpstreamError {
    match progress.and_then(Progress::failure) {
        Some(RequestBodyError::TooLarge) => UpstreamError::RequestTooLarge { bytes_max: limits.bytes_max },
        Some(RequestBodyError::Aborted) => UpstreamError::RequestAborted,
        None if error.is_parse() => UpstreamError::BadResponse { source: error.into() },
        None => UpstreamError::Reset { source: error },
    }
}

fn is_reset(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_io(error)
}

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

fn copy_of(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = Method::clone(request.method());
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}
