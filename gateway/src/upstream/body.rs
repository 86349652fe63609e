//! An upstream's body, whose connection goes back to the pool at its end.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http1::SendRequest};
use tokio::time::Sleep;

use super::pool::Origin;
use crate::request_body::{Progress, RequestBody};

/// An upstream's body. Dropped before its end, it closes its connection.
pub(crate) struct UpstreamBody {
    inner: Incoming,
    lease: Option<Lease>,
    idle_timeout: Duration,
    /// Armed only while the upstream keeps us waiting.
    idle: Option<Pin<Box<Sleep>>>,
    /// The body of the request that it answers, if that had one.
    request: Option<Arc<Progress>>,
}

struct Lease {
    origin: Arc<Origin>,
    sender: SendRequest<RequestBody>,
}

/// Why an upstream's body ended early. The client's connection is aborted, so that it never reads a clean end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamBodyError {
    /// The connection broke off.
    #[error("the upstream's answer broke off")]
    Broken(#[source] hyper::Error),
    /// No frame within `idle_timeout`.
    #[error("the upstream's answer stalled")]
    Stalled,
}

impl UpstreamBody {
    pub(super) fn new(
        inner: Incoming,
        origin: &Arc<Origin>,
        sender: Option<SendRequest<RequestBody>>,
        status: StatusCode,
    ) -> Self {
        // A connection that switches protocols is no connection of the pool any more.
        let sender = sender.filter(|_| status != StatusCode::SWITCHING_PROTOCOLS);
        let lease = sender.map(|sender| Lease { origin: origin.clone(), sender });
        let mut body = Self { inner, lease, idle_timeout: origin.config.idle_timeout, idle: None, request: None };
        if body.inner.is_end_stream() {
            body.end();
        }
        body
    }

    /// Watches the body of the request that it answers: an upstream may answer before it has read that.
    pub(super) fn answers(&mut self, request: Option<Arc<Progress>>) {
        self.request = request;
    }

    pub(crate) const fn request(&self) -> Option<&Arc<Progress>> {
        self.request.as_ref()
    }

    fn end(&mut self) {
        self.idle = None;
        if let Some(Lease { origin, sender }) = self.lease.take() {
            origin.give_back(sender);
        }
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let this = self.get_mut();
        let item = match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(item) => item,
            Poll::Pending => {
                let timeout = this.idle_timeout;
                let idle = this.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                return match idle.as_mut().poll(context) {
                    Poll::Ready(()) => {
                        this.lease = None;
                        Poll::Ready(Some(Err(UpstreamBodyError::Stalled)))
                    }
                    Poll::Pending => Poll::Pending,
                };
            }
        };
        this.idle = None;
        match &item {
            Some(Ok(frame)) if frame.is_trailers() || this.inner.is_end_stream() => this.end(),
            Some(Ok(_)) => {}
            Some(Err(_)) => this.lease = None,
            None => this.end(),
        }
        Poll::Ready(item.map(|frame| frame.map_err(UpstreamBodyError::Broken)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl std::fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}
