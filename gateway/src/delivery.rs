//! A paid answer on its way out: its end is held back until the books know that it was delivered.
//!
//! Without that, a crash just after the last byte would leave a payment that looks undelivered and is good for a second call.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use farebox_core::{
    Answer, AnswerHeader, PaymentEvent, PaymentId,
    ports::{BoxError, RecordError},
};
use http::{HeaderMap, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;
use tracing::{debug, error};

use crate::{challenge::is_end_to_end, till::Till, upstream::UpstreamBody};

/// Between two tries to tell books that do not listen.
const END_PAUSE: Duration = Duration::from_secs(1);

/// How long a caller may leave the answer unread and still blame the upstream for what comes after. An upstream gives up on whoever does
/// not read, so that its error is a caller's to make.
const UNREAD_MAX: Duration = Duration::from_secs(3);

/// One run of the upstream for a payment. Dropped before it is done, it tells the books that the run ended without a delivery.
#[derive(Debug)]
pub(crate) struct Hold {
    open: Option<(Arc<Till>, PaymentId)>,
    /// Whether the caller has had any of the answer.
    begun: bool,
}

impl Hold {
    pub(crate) fn new(till: &Arc<Till>, payment: PaymentId) -> Self {
        Self { open: Some((till.clone(), payment)), begun: false }
    }

    /// The books have the end already.
    pub(crate) fn done(mut self) {
        self.open = None;
    }

    /// The caller left with a part of the answer, which counts as delivered.
    fn left(mut self) {
        let (Some((till, payment)), Ok(runtime)) = (self.open.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let delivered = PaymentEvent::Delivered { answer: None };
        runtime.spawn(async move { end_in_books(&till, payment, delivered).await });
    }

    /// Records the delivery; when the future is ready with `Ok`, that is durable.
    async fn deliver(mut self, answer: Option<Answer>) -> Result<(), RecordError> {
        let Some((till, payment)) = self.open.take() else { return Ok(()) };
        let events = vec![PaymentEvent::Delivered { answer }];
        let recorded = till.ledger.record(payment, events, till.clock.now()).await;
        if let Err(error) = &recorded {
            error!(%payment, error = error as &dyn std::error::Error, "delivery not recorded; the answer is cut short");
            // What was sent is not the whole answer, so the payment stays good for one.
            self.open = Some((till, payment));
        }
        recorded.map(|_| ())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let (Some((till, payment)), Ok(runtime)) = (self.open.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let ended = if self.begun { PaymentEvent::BrokeOff } else { PaymentEvent::RunEnded };
        runtime.spawn(async move { end_in_books(&till, payment, ended).await });
    }
}

/// Tells the books that nobody works on a payment any more, until they listen, or until its lease ends by itself anyway: a payer
/// waits no longer for books that failed than until they answer again.
pub(crate) async fn end_in_books(till: &Till, payment: PaymentId, event: PaymentEvent) {
    let give_up = Instant::now() + till.limits.lease;
    loop {
        match till.ledger.record(payment, vec![event.clone()], till.clock.now()).await {
            Ok(_) => return,
            Err(error @ RecordError::Unavailable(_)) if Instant::now() < give_up => {
                debug!(%payment, error = &error as &dyn std::error::Error, "the end of a run is told again");
                tokio::select! {
                    () = tokio::time::sleep(END_PAUSE) => {}
                    // The next start ends this process's leases.
                    () = till.stopping.cancelled() => return,
                }
            }
            Err(error) => {
                debug!(%payment, error = &error as &dyn std::error::Error, "run not ended in the books; its lease will be");
                return;
            }
        }
    }
}

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

type Recording = Pin<Box<dyn Future<Output = Result<(), RecordError>> + Send>>;

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
        let bytes_max = hold.open.as_ref().map_or(0, |(till, _)| till.answer_bytes_max);
        let remaining = upstream.size_hint().exact();
        let small_enough = remaining.is_none_or(|size| size <= bytes_max);
        Self {
            remaining,
            kept: Kept {
                status: head.status,
                headers: answer_headers(&head.headers),
                body: small_enough.then(BytesMut::new),
                bytes_max,
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
            self.stage = Stage::Recording(Box::pin(hold.deliver(self.kept.take())), last);
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
                            hold.begun = true;
                        }
                        this.handed_at = Some(Instant::now());
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Some(Err(error)) => {
                        if let Stage::Streaming(hold) = std::mem::replace(&mut this.stage, Stage::Over)
                            && this.unread
                        {
                            hold.left();
                        }
                        return Poll::Ready(Some(Err(error.into())));
                    }
                    None => this.record(None),
                },
                Stage::Recording(recording, last) => {
                    let recorded = ready!(recording.as_mut().poll(context));
                    let last = last.take();
                    this.stage = Stage::Over;
                    return Poll::Ready(match recorded {
                        Ok(()) => last.map(Ok),
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

/// A caller who leaves in mid-stream has had what was sent. Were the payment good for another run, one charge would buy as many
/// streams as a caller likes to cut off just before the end.
impl Drop for DeliveryBody {
    fn drop(&mut self) {
        if let Stage::Streaming(hold) = std::mem::replace(&mut self.stage, Stage::Over)
            && hold.begun
        {
            hold.left();
        }
    }
}

impl std::fmt::Debug for DeliveryBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeliveryBody").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}
