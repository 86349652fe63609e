//! Calling upstreams: connections kept by worker, headers by RFC 9110 §7.6, bodies streamed.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::client::ClientInfo;

/// The upstream connections of one worker.
#[derive(Debug)]
pub(crate) struct Upstreams {}

impl Upstreams {
    /// Sends a request to the upstream of the route with this index and returns its head; the body streams. Hop-by-hop headers, credentials of payment
    /// and `farebox-*` are taken out both of the request and of what `Connection` names; `extra` is added
    /// after that. An upgrade (101) is tunnelled in the background once the answer is passed on.
    ///
    /// Dropping the future or the body closes the upstream's connection if its answer was not read to the end.
    ///
    /// # Errors
    /// [`UpstreamError`]; nothing is sent twice unless nothing had been sent, or the request is safe to repeat.
    pub(crate) async fn call(
        &self,
        route: usize,
        request: http::Request<Incoming>,
        client: &ClientInfo,
        extra: &[(HeaderName, HeaderValue)],
    ) -> Result<http::Response<UpstreamBody>, UpstreamError> {
        let _ = (route, request, client, extra);
        Err(UpstreamError::Connect { source: "not yet".into() })
    }
}

/// Why there is no answer from an upstream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// It could not be reached: name, TCP, TLS, or `connect_timeout`. Nothing was sent.
    #[error("the upstream could not be reached")]
    Connect {
        #[source]
        source: farebox_core::ports::BoxError,
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
        source: farebox_core::ports::BoxError,
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

/// An upstream's body. Gives its connection back to the pool at the end.
#[derive(Debug)]
pub(crate) struct UpstreamBody {
    inner: Incoming,
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

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        Pin::new(&mut self.get_mut().inner).poll_frame(context).map_err(UpstreamBodyError::Broken)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
