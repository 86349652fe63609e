//! Bodies of our answers. One concrete type, so that a pass-through allocates nothing for it.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::upstream::{UpstreamBody, UpstreamBodyError};

/// What we answer with.
#[derive(Debug, Default)]
pub(crate) enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// Our own words, sent in one piece.
    Full(Bytes),
    /// An upstream's, streamed; trailers included.
    Upstream(UpstreamBody),
    /// An upstream's to a paid request.
    Tracked(TrackedBody),
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes.into()) }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            full @ Self::Full(_) => {
                let Self::Full(bytes) = std::mem::take(full) else { return Poll::Ready(None) };
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Upstream(body) => Pin::new(body).poll_frame(context),
            Self::Tracked(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(_) => false,
            Self::Upstream(body) => body.is_end_stream(),
            Self::Tracked(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Upstream(body) => body.size_hint(),
            Self::Tracked(body) => body.size_hint(),
        }
    }
}

/// An upstream's body that says how it ended.
///
/// A body without a byte counts as complete as soon as the connection took the response; a connection that is gone before it
/// took the response drops the request's future instead.
pub(crate) struct TrackedBody {
    inner: UpstreamBody,
    /// `None` once it outgrew `captured_max`, or trailers came, which a kept answer has no place for.
    captured: Option<Vec<u8>>,
    captured_max: usize,
    /// Called once, at the end or on drop.
    sink: Option<Box<dyn FnOnce(BodyEnd) + Send>>,
}

/// How a body ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    /// Its end was handed to the client's connection. `captured`: the whole body, if it was short enough and had no
    /// trailers.
    Complete {
        /// See above.
        captured: Option<Vec<u8>>,
    },
    /// The upstream broke off, or the client went away.
    Broken,
}

impl TrackedBody {
    /// Streams `inner`; keeps a copy of up to `captured_max` bytes; calls `sink` exactly once, on the worker's thread, where
    /// it must not block.
    pub(crate) fn new(inner: UpstreamBody, captured_max: usize, sink: impl FnOnce(BodyEnd) + Send + 'static) -> Self {
        Self { inner, captured: Some(Vec::new()), captured_max, sink: Some(Box::new(sink)) }
    }

    fn note(&mut self, frame: &Frame<Bytes>) {
        match (frame.data_ref(), &mut self.captured) {
            (Some(data), Some(kept)) if kept.len() + data.len() <= self.captured_max => kept.extend_from_slice(data),
            (_, captured) => *captured = None,
        }
    }

    fn end(&mut self, complete: bool) {
        if let Some(sink) = self.sink.take() {
            let captured = self.captured.take();
            sink(if complete { BodyEnd::Complete { captured } } else { BodyEnd::Broken });
        }
    }
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let this = self.get_mut();
        let item = ready!(Pin::new(&mut this.inner).poll_frame(context));
        match &item {
            Some(Ok(frame)) => {
                this.note(frame);
                // hyper does not poll again once this is true.
                if this.inner.is_end_stream() || frame.is_trailers() {
                    this.end(true);
                }
            }
            Some(Err(_)) => this.end(false),
            None => this.end(true),
        }
        Poll::Ready(item)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        let complete = self.inner.is_end_stream();
        self.end(complete);
    }
}

impl fmt::Debug for TrackedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}
