//! A client's body on its way upstream: counted, watched, streamed.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

/// Bounds of one request's body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestBodyLimits {
    pub(crate) bytes_max: u64,
    /// Between frames.
    pub(crate) idle_timeout: Duration,
}

/// See the module.
pub(crate) struct RequestBody {
    /// `None`: no body, or one that failed.
    inner: Option<Incoming>,
    remaining: u64,
    idle_timeout: Duration,
    /// Armed only while a client keeps us waiting.
    idle: Option<Pin<Box<Sleep>>>,
    progress: Option<Arc<Progress>>,
}

/// How far a body has come, for whoever waits for the answer.
#[derive(Debug)]
pub(crate) struct Progress {
    last_frame: Mutex<Instant>,
    failure: AtomicU8,
    /// The upstream would read on, and the client sends nothing.
    waits: AtomicBool,
}

/// Why a request's body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestBodyError {
    /// More bytes than allowed.
    #[error("the request's body is too long")]
    TooLarge,
    /// The client broke off or stalled.
    #[error("the request's body broke off")]
    Aborted,
}

impl RequestBody {
    /// Wraps a body, and gives what watches over it unless it is empty.
    ///
    /// # Errors
    /// [`RequestBodyError::TooLarge`] if it says beforehand that it will be.
    pub(crate) fn new(
        inner: Incoming,
        limits: RequestBodyLimits,
    ) -> Result<(Self, Option<Arc<Progress>>), RequestBodyError> {
        if inner.is_end_stream() {
            return Ok((Self::empty(), None));
        }
        if inner.size_hint().lower() > limits.bytes_max {
            return Err(RequestBodyError::TooLarge);
        }
        let progress = Arc::new(Progress {
            last_frame: Mutex::new(Instant::now()),
            failure: AtomicU8::new(0),
            waits: AtomicBool::new(false),
        });
        let body = Self {
            inner: Some(inner),
            remaining: limits.bytes_max,
            idle_timeout: limits.idle_timeout,
            idle: None,
            progress: Some(progress.clone()),
        };
        Ok((body, Some(progress)))
    }

    pub(crate) const fn empty() -> Self {
        Self { inner: None, remaining: 0, idle_timeout: Duration::ZERO, idle: None, progress: None }
    }

    fn fail(&mut self, error: RequestBodyError) -> RequestBodyError {
        self.inner = None;
        if let Some(progress) = &self.progress {
            progress.failure.store(error as u8 + 1, Ordering::Release);
        }
        error
    }

    fn waits(&self, waits: bool) {
        if let Some(progress) = &self.progress {
            progress.waits.store(waits, Ordering::Release);
        }
    }

    fn is_stalled(&mut self, context: &mut Context<'_>) -> bool {
        let timeout = self.idle_timeout;
        let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        idle.as_mut().poll(context).is_ready()
    }
}

impl Progress {
    pub(crate) fn last_frame(&self) -> Instant {
        *self.last_frame.lock()
    }

    /// Whether it is for the client's part that the request is not whole: a body that broke off, or is waited for.
    pub(crate) fn is_broken_by_client(&self) -> bool {
        self.failure().is_some() || self.waits.load(Ordering::Acquire)
    }

    pub(crate) fn failure(&self) -> Option<RequestBodyError> {
        match self.failure.load(Ordering::Acquire) {
            0 => None,
            1 => Some(RequestBodyError::TooLarge),
            _ => Some(RequestBodyError::Aborted),
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let frame = match Pin::new(inner).poll_frame(context) {
            Poll::Pending if this.is_stalled(context) => {
                return Poll::Ready(Some(Err(this.fail(RequestBodyError::Aborted))));
            }
            Poll::Pending => {
                this.waits(true);
                return Poll::Pending;
            }
            Poll::Ready(None) => {
                this.inner = None;
                this.waits(false);
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "request body broke off");
                return Poll::Ready(Some(Err(this.fail(RequestBodyError::Aborted))));
            }
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        if let Some(data) = frame.data_ref() {
            match this.remaining.checked_sub(data.len() as u64) {
                Some(remaining) => this.remaining = remaining,
                None => return Poll::Ready(Some(Err(this.fail(RequestBodyError::TooLarge)))),
            }
        }
        this.idle = None;
        this.waits(false);
        if let Some(progress) = &this.progress {
            *progress.last_frame.lock() = Instant::now();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl std::fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestBody").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}
