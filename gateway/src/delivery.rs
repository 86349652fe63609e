//! A paid answer on its way out: its end is held back until the books know that it was delivered.
//!
//! Without that, a crash just after the last byte would leave a payment that looks undelivered and is good for a second call.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use farebox_core::{
    Answer, AnswerHeader,
    ports::{BoxError, RecordError},
};
use http::{HeaderMap, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    challenge::is_end_to_end,
    hold::Hold,
    upstream::{BrokenBy, UpstreamBody},
};

/// How long a caller may leave the answer unread and still blame the upstream for what comes after. An upstream gives up on whoever does
/// not read, so that its error is a caller's to make.
const UNREAD_MAX: Duration = Duration::from_secs(3);

/// The body of a streamed paid answer.
pub(crate) struct DeliveryBody {
    upstream: UpstreamBody,
    /// Bytes still to come, if the upstream said how many.
    remaining: Option<u64>,
    kept: Kept,
    stage: Stage,
    /// When the caller was given the newest frame, until they ask for the next.
    handed_at: Option<Instant>,
    /// Whether the caller ever took longer than [`UNREAD_MAX`] to ask for the next.
    unread: bool,
}

/// In a task of its own: a caller who leaves just now cannot stop it half-way.
type Recording = JoinHandle<Result<(), RecordError>>;

enum Stage {
    Streaming(Hold),
    /// The last frame (or the bare end) waits for the books.
    Recording(Recording, Option<Frame<Bytes>>),
    Over,
}

/// What is kept of the answer so far.
struct Kept {
    status: StatusCode,
    headers: Vec<AnswerHeader>,
    /// `None` once it is too long, or trailers came, which a kept answer has no place for.
    body: Option<BytesMut>,
    bytes_max: u64,
}

impl DeliveryBody {
    pub(crate) fn new(head: &http::response::Parts, upstream: UpstreamBody, hold: Hold) -> Self {
        let bytes_max = hold.keeps_bytes_max();
        let remaining = upstream.size_hint().exact();
        let small_enough = bytes_max.is_some_and(|max| remaining.is_none_or(|size| size <= max));
        Self {
            remaining,
            kept: Kept {
                status: head.status,
                headers: answer_headers(&head.headers),
                body: small_enough.then(BytesMut::new),
                bytes_max: bytes_max.unwrap_or(0),
            },
            upstream,
            stage: Stage::Streaming(hold),
            handed_at: None,
            unread: false,
        }
    }

    /// Starts to record the delivery; `last` waits for it.
    fn record(&mut self, last: Option<Frame<Bytes>>) {
        if let Stage::Streaming(hold) = std::mem::replace(&mut self.stage, Stage::Over) {
            self.stage = Stage::Recording(tokio::spawn(hold.deliver(self.kept.take())), last);
        }
    }

    /// Whether this frame is the last.
    fn note(&mut self, frame: &Frame<Bytes>) -> bool {
        let Some(data) = frame.data_ref() else {
            self.kept.body = None;
            return true;
        };
        self.kept.push(data);
        match &mut self.remaining {
            Some(remaining) => {
                *remaining = remaining.saturating_sub(data.len() as u64);
                *remaining == 0
            }
            None => false,
        }
    }
}

impl Kept {
    fn push(&mut self, data: &Bytes) {
        let Some(body) = &mut self.body else { return };
        if (body.len() + data.len()) as u64 > self.bytes_max {
            self.body = None;
        } else {
            body.extend_from_slice(data);
        }
    }

    fn take(&mut self) -> Option<Answer> {
        let body = self.body.take()?;
        let headers = std::mem::take(&mut self.headers);
        Some(Answer { status: self.status.as_u16(), headers, body: body.into() })
    }
}

/// The headers of an answer that are kept with it.
pub(crate) fn answer_headers(headers: &HeaderMap) -> Vec<AnswerHeader> {
    headers
        .iter()
        .filter(|(name, _)| is_end_to_end(name))
        .map(|(name, value)| AnswerHeader { name: name.as_str().to_owned(), value: value.as_bytes().to_vec() })
        .collect()
}

impl http_body::Body for DeliveryBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        this.unread |= this.handed_at.take().is_some_and(|at| at.elapsed() > UNREAD_MAX);
        loop {
            match &mut this.stage {
                Stage::Streaming(_) => match ready!(Pin::new(&mut this.upstream).poll_frame(context)) {
                    Some(Ok(frame)) if this.note(&frame) => this.record(Some(frame)),
                    Some(Ok(frame)) => {
                        if let Stage::Streaming(hold) = &mut this.stage {
                            hold.begin();
                        }
                        this.handed_at = Some(Instant::now());
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Some(Err(error)) => {
                        if let Stage::Streaming(hold) = std::mem::replace(&mut this.stage, Stage::Over) {
                            match BrokenBy::of(this.upstream.request().map(|request| &**request)) {
                                _ if this.unread => hold.left(),
                                BrokenBy::Caller => hold.request_broke_off(),
                                BrokenBy::Upstream => drop(hold),
                            }
                        }
                        return Poll::Ready(Some(Err(error.into())));
                    }
                    None => this.record(None),
                },
                Stage::Recording(recording, last) => {
                    let recorded = ready!(Pin::new(recording).poll(context));
                    let last = last.take();
                    this.stage = Stage::Over;
                    return Poll::Ready(match recorded {
                        Ok(Ok(())) => last.map(Ok),
                        Ok(Err(source)) => Some(Err(source.into())),
                        Err(source) => Some(Err(source.into())),
                    });
                }
                Stage::Over => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    fn size_hint(&self) -> SizeHint {
        let held = match &self.stage {
            Stage::Recording(_, Some(last)) => last.data_ref().map_or(0, |data| data.len() as u64),
            _ => 0,
        };
        self.remaining.map_or_else(SizeHint::default, |remaining| SizeHint::with_exact(remaining + held))
    }
}

/// A caller who leaves in mid-stream has had what was sent. Were the payment or the call good for another run, one charge would buy as
/// many streams as a caller likes to cut off just before the end.
impl Drop for DeliveryBody {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Streaming(hold) if hold.has_begun() => hold.left(),
            Stage::Streaming(hold) => hold.abandoned(),
            Stage::Recording(..) | Stage::Over => {}
        }
    }
}

impl std::fmt::Debug for DeliveryBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeliveryBody").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}
