//! One run of the upstream, and how the books are told of its end.

use std::{borrow::Cow, sync::Arc, time::Duration};

use farebox_core::{
    Answer, DrawEnd, DrawId, PassId, PaymentEvent, PaymentId,
    ports::{RecordError, TokenBooks},
};
use tokio::time::Instant;
use tracing::{debug, error};

use crate::{draws::OpenDraw, till::Till};

/// Between two tries to tell books that do not listen.
const END_PAUSE: Duration = Duration::from_secs(1);

/// How often the delivery of a call is told while its caller waits, and the pause between: a commit that may or may not have been made
/// must not cost the call and the answer too.
const DELIVERY_TRIES: u32 = 5;
const DELIVERY_PAUSE: Duration = Duration::from_millis(200);

/// What gives the right to a run.
#[derive(Clone, Debug)]
pub(crate) enum RunOf {
    /// A payment that is claimed.
    Payment(PaymentId),
    /// A call that is drawn.
    Draw(Arc<DrawnCall>),
}

/// A call of a pass that is taken, or is being taken.
#[derive(Debug)]
pub(crate) struct DrawnCall {
    pub(crate) books: Arc<dyn TokenBooks>,
    pub(crate) pass: PassId,
    pub(crate) id: DrawId,
    /// Whether its answer is kept, under the caller's key.
    pub(crate) kept: bool,
    pub(crate) _open: OpenDraw,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub(crate) enum RunEnd {
    /// The caller has the answer, or a part of it and left.
    Delivered(Option<Answer>),
    /// The caller has had nothing, and the right to the run stands.
    Unserved,
    /// It broke off after the caller, or the upstream for the caller, had done their part.
    BrokeOff,
    /// Nothing was charged for it: the claim is given back.
    Released(Cow<'static, str>),
}

impl RunOf {
    /// Whether an answer is kept for callers who lost theirs.
    pub(crate) fn keeps_answers(&self) -> bool {
        match self {
            Self::Payment(_) => true,
            Self::Draw(call) => call.kept,
        }
    }

    /// Tells the books once; durable when the future is ready with `Ok`.
    async fn end(&self, till: &Till, end: RunEnd) -> Result<(), RecordError> {
        let now = till.clock.now();
        match self {
            Self::Payment(id) => {
                let event = match end {
                    RunEnd::Delivered(answer) => PaymentEvent::Delivered { answer },
                    RunEnd::Unserved => PaymentEvent::RunEnded,
                    RunEnd::BrokeOff => PaymentEvent::BrokeOff,
                    RunEnd::Released(code) => PaymentEvent::Released { code },
                };
                till.ledger.record(*id, vec![event], now).await.map(|_| ())
            }
            Self::Draw(call) => {
                let end = match end {
                    RunEnd::Delivered(answer) => DrawEnd::Delivered { answer },
                    RunEnd::Unserved | RunEnd::Released(_) => DrawEnd::Returned,
                    RunEnd::BrokeOff => DrawEnd::BrokeOff,
                };
                Ok(call.books.end_draw(call.pass, call.id, end, now).await?)
            }
        }
    }

    /// Tells the books of a delivery. Of a call more than once, for to end it twice ends it once.
    async fn deliver(&self, till: &Till, answer: Option<Answer>) -> Result<(), RecordError> {
        let mut tries = match self {
            Self::Payment(_) => 1,
            Self::Draw(_) => DELIVERY_TRIES,
        };
        while tries > 1 {
            match self.end(till, RunEnd::Delivered(answer.clone())).await {
                Err(RecordError::Unavailable(_)) => tokio::time::sleep(DELIVERY_PAUSE).await,
                ended => return ended,
            }
            tries -= 1;
        }
        self.end(till, RunEnd::Delivered(answer)).await
    }

    /// Tells the books until they listen: a payer waits no longer for books that failed than until they answer again. Gives up on a payment
    /// when its lease has ended it anyway; a call has nobody else, but the next start of this process, which gives it back.
    pub(crate) async fn end_in_books(self, till: Arc<Till>, end: RunEnd) {
        let give_up = Instant::now() + till.limits.lease;
        loop {
            let in_time = match &self {
                Self::Payment(_) => Instant::now() < give_up,
                Self::Draw(_) => true,
            };
            match self.end(&till, end.clone()).await {
                Ok(()) => return,
                Err(error @ RecordError::Unavailable(_)) if in_time => {
                    debug!(run = %self, error = &error as &dyn std::error::Error, "the end of a run is told again");
                    tokio::time::sleep(END_PAUSE).await;
                }
                Err(error) => {
                    debug!(run = %self, error = &error as &dyn std::error::Error, "run not ended in the books; its lease will be");
                    return;
                }
            }
        }
    }
}

impl std::fmt::Display for RunOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Payment(id) => id.fmt(f),
            Self::Draw(call) => call.pass.fmt(f),
        }
    }
}

/// One run of the upstream. Dropped before it is done, it tells the books that the run ended without a delivery.
#[derive(Debug)]
pub(crate) struct Hold {
    open: Option<(Arc<Till>, RunOf)>,
    /// Whether the caller has had any of the answer.
    begun: bool,
}

impl Hold {
    pub(crate) fn new(till: &Arc<Till>, run: RunOf) -> Self {
        Self { open: Some((till.clone(), run)), begun: false }
    }

    /// How large an answer may be that is kept; bytes.
    pub(crate) fn keeps_bytes_max(&self) -> Option<u64> {
        self.open.as_ref().filter(|(_, run)| run.keeps_answers()).map(|(till, _)| till.answer_bytes_max)
    }

    /// Whether an answer is kept for callers who lost theirs.
    pub(crate) fn keeps_answers(&self) -> bool {
        self.open.as_ref().is_some_and(|(_, run)| run.keeps_answers())
    }

    /// The caller gets the first of the answer now.
    pub(crate) fn begin(&mut self) {
        self.begun = true;
    }

    /// Whether the caller has had any of the answer.
    pub(crate) const fn has_begun(&self) -> bool {
        self.begun
    }

    /// The books have the end already, or there is nothing to be ended.
    pub(crate) fn done(mut self) {
        self.open = None;
    }

    /// The caller left with a part of the answer, which counts as delivered.
    pub(crate) fn left(self) {
        self.end(RunEnd::Delivered(None));
    }

    /// The caller left before the answer, which is kept for them.
    pub(crate) fn keep(self, answer: Answer) {
        self.end(RunEnd::Delivered(Some(answer)));
    }

    /// The caller left before any of the answer, and the upstream has done its work. A payment is good for another answer and is charged
    /// once; a call that came back would have made that work free. Once this gateway stops, it may be we who left.
    pub(crate) fn abandoned(self) {
        let end = match &self.open {
            Some((till, RunOf::Draw(_))) if !till.stopping.is_cancelled() => RunEnd::Delivered(None),
            Some(_) | None => RunEnd::Unserved,
        };
        self.end(end);
    }

    /// The caller sent a part of their request, on which the upstream may have worked. A pass has few of these.
    pub(crate) fn request_broke_off(self) {
        match &self.open {
            Some((_, RunOf::Draw(_))) => self.end(RunEnd::BrokeOff),
            Some((_, RunOf::Payment(_))) | None => drop(self),
        }
    }

    /// Tells the books in the background.
    pub(crate) fn end(mut self, end: RunEnd) {
        self.tell(end);
    }

    /// Tells the books, and waits for them once; if they do not listen now, they are told again meanwhile.
    pub(crate) async fn give_back(mut self) {
        let Some((till, run)) = &self.open else { return };
        match run.end(till, RunEnd::Unserved).await {
            Ok(()) => self.open = None,
            Err(error) => debug!(%run, error = &error as &dyn std::error::Error, "run not ended yet"),
        }
    }

    /// Records the delivery; when the future is ready with `Ok`, that is durable.
    pub(crate) async fn deliver(mut self, answer: Option<Answer>) -> Result<(), RecordError> {
        let Some((till, run)) = &self.open else { return Ok(()) };
        let recorded = run.deliver(till, answer).await;
        match &recorded {
            Ok(()) => self.open = None,
            // What was sent is not the whole answer, so the right to one stands.
            Err(error) => {
                error!(%run, error = error as &dyn std::error::Error, "delivery not recorded; the answer is cut short")
            }
        }
        recorded
    }

    fn tell(&mut self, end: RunEnd) {
        if let Some((till, run)) = self.open.take() {
            till.clone().ends.tell(run.end_in_books(till, end));
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.tell(if self.begun { RunEnd::BrokeOff } else { RunEnd::Unserved });
    }
}
