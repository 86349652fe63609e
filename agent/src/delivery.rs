//! Sending a request, looking into its answer, and knowing when its body has been read to the end.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream};
use http::{Method, StatusCode, header};
use reqwest::{Body, Client, Request, Response, ResponseBuilderExt as _};
use tokio::time::{Instant, timeout_at};

use crate::error::TransportError;

/// Sends once; the head must come within `attempt_timeout` and before `until`.
pub(crate) async fn send(
    client: &Client,
    request: Request,
    attempt_timeout: Duration,
    until: Instant,
) -> Result<Response, TransportError> {
    let now = Instant::now();
    let limit = until.min(now + attempt_timeout);
    let timed_out = |_| TransportError::Timeout { after_ms: (limit - now).as_millis() };
    Ok(timeout_at(limit, client.execute(request)).await.map_err(timed_out)??)
}

/// The beginning of a body.
pub(crate) struct Peeked {
    prefix: Bytes,
    complete: bool,
    response: Response,
}

impl Peeked {
    /// The body if it is no longer than the limit.
    pub(crate) fn whole(&self) -> Option<&[u8]> {
        self.complete.then_some(&self.prefix[..])
    }

    /// The answer with its body as it came.
    pub(crate) fn into_response(self) -> Response {
        let Self { prefix, response, .. } = self;
        rebuilt(response, |rest| stream::iter([Ok(prefix)]).chain(rest))
    }
}

/// Reads at most `max` bytes of the body, and no longer than `until`.
pub(crate) async fn peek(mut response: Response, max: usize, until: Instant) -> Result<Peeked, TransportError> {
    let now = Instant::now();
    let mut prefix = BytesMut::new();
    let complete = loop {
        let timed_out = |_| TransportError::Timeout { after_ms: (until - now).as_millis() };
        match timeout_at(until, response.chunk()).await.map_err(timed_out)?? {
            None => break true,
            Some(chunk) => prefix.extend_from_slice(&chunk),
        }
        if prefix.len() > max {
            break false;
        }
    };
    Ok(Peeked { prefix: prefix.freeze(), complete, response })
}

/// The answer, whose last byte calls `at_end`; at once if it has no body. A body dropped or broken before its end never does.
pub(crate) fn watched(response: Response, method: &Method, at_end: impl FnOnce() + Send + 'static) -> Response {
    let length = response.headers().get(header::CONTENT_LENGTH);
    let empty = method == Method::HEAD
        || response.status() == StatusCode::NO_CONTENT
        || length.is_some_and(|length| length.as_bytes() == b"0");
    if empty {
        at_end();
        return response;
    }
    rebuilt(response, |rest| Watched { rest, at_end: Some(at_end) })
}

fn rebuilt<S>(response: Response, body: impl FnOnce(BodyStream) -> S) -> Response
where
    S: Stream<Item = Result<Bytes, reqwest::Error>> + Send + 'static,
{
    let (status, version, url) = (response.status(), response.version(), response.url().clone());
    let headers = response.headers().clone();
    let mut built = http::Response::new(Body::wrap_stream(body(Box::pin(response.bytes_stream()))));
    *built.status_mut() = status;
    *built.version_mut() = version;
    *built.headers_mut() = headers;
    let (mut parts, body) = built.into_parts();
    if let Ok(with_url) = http::Response::builder().url(url).body(()) {
        parts.extensions = with_url.into_parts().0.extensions;
    }
    Response::from(http::Response::from_parts(parts, body))
}

type BodyStream = Pin<Box<dyn Stream<Item = Result<Bytes, reqwest::Error>> + Send>>;

struct Watched<F> {
    rest: BodyStream,
    at_end: Option<F>,
}

impl<F> Unpin for Watched<F> {}

impl<F: FnOnce()> Stream for Watched<F> {
    type Item = Result<Bytes, reqwest::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.rest.as_mut().poll_next(context);
        match &polled {
            Poll::Ready(None) => {
                if let Some(at_end) = self.at_end.take() {
                    at_end();
                }
            }
            Poll::Ready(Some(Err(_))) => self.at_end = None,
            _ => {}
        }
        polled
    }
}
