//! Draws: calls that are made with a pass. A ledger stores rows and calls [`PassAccount`]'s rules inside one transaction; no ledger
//! has rules of its own.

use std::time::Duration;

use crate::{
    Answer, Binding, CallerId, Grant, InstanceId, InvoiceState, PassId, Payer, PaymentHash, PaymentId, RequestId,
    Timestamp,
};

/// How often an answer of one pass may break off after the caller had a part of it before its calls count as made. Whoever brings an
/// upstream to break off just before the end has had nearly all of it.
pub const BROKEN_DRAWS_MAX: u32 = 3;

/// Answers of one pass that are kept at a time. Who bought time has as many calls as he can make in it, each with a key of its own: without a
/// limit their answers would fill the disk.
pub const KEPT_ANSWERS_MAX: u64 = 128;

/// Bytes of the bodies of all answers of one pass that are kept at a time: 1 MiB.
pub const KEPT_BODY_BYTES_MAX: u64 = 1024 * 1024;

/// A wish to make a call with a pass.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Which pass.
    pub pass: PassId,
    /// Names this draw; random, so that ending it twice ends it once.
    pub id: DrawId,
    /// The invoice whose preimage the caller showed: if the books do not have it as paid yet, it is from now on.
    pub proved: PaymentHash,
    /// The id that the payment of the invoice gets, if this is the first news of it.
    pub payment: PaymentId,
    /// What is called. Its caller is that of the `Idempotency-Key`, or the pass itself.
    pub binding: Binding,
    /// The digest of the `Idempotency-Key`, under which the answer is kept. Without one nothing is kept.
    pub key: Option<CallerId>,
    /// The request.
    pub request: RequestId,
    /// The drawing process.
    pub holder: InstanceId,
    /// For how long other processes believe that it is at it, from `now` on: longer than the longest request. A draw that is not ended by then
    /// is returned when another process wants its call. The process itself knows what it is at, and ends its draws itself: a stream may be
    /// held for longer than any lease, and its caller has had the call.
    pub lease: Duration,
    /// Now.
    pub now: Timestamp,
}

/// One draw: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DrawId(pub [u8; 16]);

/// What a call needs to know of the payment that bought its pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassPayment {
    /// Its id.
    pub id: PaymentId,
    /// Who paid: the pass, on its network.
    pub payer: Payer,
}

/// The right to run the upstream once for a pass. Only a ledger gives it; it cannot be copied.
#[derive(Debug)]
#[must_use = "a call that is not made must be returned"]
pub struct DrawPermit {
    pass: PassId,
    id: DrawId,
    payment: PassPayment,
    left: Option<u32>,
    paid_before: PaidBefore,
}

/// Whether the books knew that a pass was paid before it was drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaidBefore {
    /// They did.
    Known,
    /// The draw was the first they heard of it, and made the payment.
    Unheard,
}

impl DrawPermit {
    /// For ledgers, once the draw is durable. `left` is how many calls remain, for a grant of calls.
    pub const fn granted(
        pass: PassId,
        id: DrawId,
        payment: PassPayment,
        left: Option<u32>,
        paid_before: PaidBefore,
    ) -> Self {
        Self { pass, id, payment, left, paid_before }
    }

    /// Which pass.
    #[must_use]
    pub const fn pass(&self) -> PassId {
        self.pass
    }

    /// Which draw.
    #[must_use]
    pub const fn id(&self) -> DrawId {
        self.id
    }

    /// The payment that bought the pass.
    #[must_use]
    pub const fn payment(&self) -> &PassPayment {
        &self.payment
    }

    /// Calls that remain after this one, for a grant of calls.
    #[must_use]
    pub const fn left(&self) -> Option<u32> {
        self.left
    }

    /// Whether this draw made the payment.
    #[must_use]
    pub const fn paid_before(&self) -> PaidBefore {
        self.paid_before
    }
}

/// What became of a wish to draw.
#[derive(Debug)]
pub enum Drawn {
    /// Run the upstream.
    Granted(DrawPermit),
    /// This `Idempotency-Key` has had its answer, and here it is again; `None` if it was not kept: too large, or one too many.
    Replayed {
        /// The payment that bought the pass.
        payment: PassPayment,
        /// What was answered.
        answer: Option<Answer>,
    },
    /// No call is left, but one is still under way and may come back; or the one with this key is. Ask again later, and do not pay anew.
    Busy,
    /// The key was first used for another request.
    Foreign,
    /// Every call was made.
    Spent,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
    /// Less was paid than was asked.
    Underpaid,
    /// The books know of no such pass.
    Unknown,
}

/// How a draw ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrawEnd {
    /// The caller has the answer; durable before its last byte goes out.
    Delivered {
        /// The answer, if there was a key and it was small enough to keep. It is kept as [`KeptAnswers`] says.
        answer: Option<Answer>,
    },
    /// The call was not made, or its answer broke off before anything went out: it is the holder's again.
    Returned,
    /// The answer broke off after the caller had a part of it. Returned [`BROKEN_DRAWS_MAX`] times in a pass's life, then counted.
    BrokeOff,
}

/// What of a pass its draws depend on, and change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassAccount {
    /// What it bought.
    pub grant: Grant,
    /// Where its invoice stands, after what the caller showed.
    pub invoice: InvoiceState,
    /// When it ends by itself.
    pub valid_until: Timestamp,
    /// Since when it is revoked.
    pub revoked_at: Option<Timestamp>,
    /// Calls taken, those under way included.
    pub used: u32,
    /// Calls that came back after their answers had broken off.
    pub broken: u32,
}

/// What the books have under a draw's `Idempotency-Key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyUse {
    /// There is no key.
    NoKey,
    /// Nothing.
    New,
    /// Another request's.
    Foreign,
    /// A draw for this request that has not ended.
    UnderWay,
    /// A draw for this request that was delivered.
    Delivered,
}

/// The answers of one pass that are kept now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptAnswers {
    /// How many; keys whose answers were not kept do not count.
    pub answers: u64,
    /// What their bodies hold together, bytes.
    pub body_bytes: u64,
}

impl KeptAnswers {
    /// What is stored under the key of a delivered call: its answer while there is room, and else nothing but that the key was used.
    #[must_use]
    pub fn room_for<'a>(&self, answer: Option<&'a Answer>) -> Option<&'a Answer> {
        answer.filter(|answer| {
            let body_bytes = u64::try_from(answer.body.len()).unwrap_or(u64::MAX);
            self.answers < KEPT_ANSWERS_MAX && self.body_bytes.saturating_add(body_bytes) <= KEPT_BODY_BYTES_MAX
        })
    }
}

/// What a ledger does with a wish to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrawRuling {
    /// Count one more call, store the draw, and grant it with `left` calls remaining.
    Take {
        /// For a grant of calls.
        left: Option<u32>,
    },
    /// Grant it and store nothing: time was bought, and there is no key to keep an answer under.
    Look,
    /// [`Drawn::Replayed`].
    Replay,
    /// No call is left, or the key's call is under way. Return the draws of this pass that other processes hold and whose lease is over; if
    /// there were any, ask again. If not, it is [`Drawn::Busy`] while any is under way, and else [`Drawn::Spent`].
    NoneLeft,
    /// [`Drawn::Foreign`].
    Foreign,
    /// [`Drawn::Expired`].
    Expired,
    /// [`Drawn::Revoked`].
    Revoked,
    /// [`Drawn::Underpaid`].
    Underpaid,
}

impl PassAccount {
    /// How a wish to draw is answered. A revoked pass gives nothing any more, not even an answer that it had; one that has ended still gives
    /// those.
    #[must_use]
    pub fn rule(&self, key: KeyUse, now: Timestamp) -> DrawRuling {
        if self.revoked_at.is_some() {
            return DrawRuling::Revoked;
        }
        if self.invoice == InvoiceState::Underpaid {
            return DrawRuling::Underpaid;
        }
        match key {
            KeyUse::Foreign => return DrawRuling::Foreign,
            KeyUse::Delivered => return DrawRuling::Replay,
            KeyUse::UnderWay => return DrawRuling::NoneLeft,
            KeyUse::NoKey | KeyUse::New => {}
        }
        match self.grant {
            _ if now >= self.valid_until => DrawRuling::Expired,
            Grant::Calls(calls) => match calls.get().checked_sub(self.used) {
                None | Some(0) => DrawRuling::NoneLeft,
                Some(left) => DrawRuling::Take { left: Some(left - 1) },
            },
            Grant::For(_) if key == KeyUse::NoKey => DrawRuling::Look,
            Grant::For(_) => DrawRuling::Take { left: None },
        }
    }

    /// One more call is taken.
    pub const fn take(&mut self) {
        self.used = self.used.saturating_add(1);
    }

    /// A call that was taken has ended.
    pub const fn end(&mut self, end: &DrawEnd) {
        match end {
            DrawEnd::Delivered { .. } => {}
            DrawEnd::BrokeOff if self.broken >= BROKEN_DRAWS_MAX => {}
            DrawEnd::BrokeOff => {
                self.broken += 1;
                self.used = self.used.saturating_sub(1);
            }
            DrawEnd::Returned => self.used = self.used.saturating_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_s(1_800_000_000);

    /// Paid, good for two calls of which one is made, and for another minute.
    fn account() -> PassAccount {
        PassAccount {
            grant: Grant::Calls(NonZeroU32::MIN.saturating_add(1)),
            invoice: InvoiceState::Settled,
            valid_until: NOW.plus(Duration::from_secs(60)),
            revoked_at: None,
            used: 1,
            broken: 0,
        }
    }

    #[test]
    fn a_revoked_pass_gives_nothing_and_an_ended_one_only_answers_that_it_had() {
        let keys = [KeyUse::NoKey, KeyUse::New, KeyUse::Foreign, KeyUse::UnderWay, KeyUse::Delivered];
        let revoked = PassAccount { revoked_at: Some(NOW), ..account() };
        let ended = PassAccount { valid_until: NOW, ..account() };
        let hour = PassAccount { grant: Grant::For(Duration::from_secs(3600)), valid_until: NOW, ..account() };
        for key in keys {
            assert_eq!(revoked.rule(key, NOW), DrawRuling::Revoked, "{key:?}");
            let expected = match key {
                KeyUse::NoKey | KeyUse::New => DrawRuling::Expired,
                KeyUse::Foreign => DrawRuling::Foreign,
                KeyUse::UnderWay => DrawRuling::NoneLeft,
                KeyUse::Delivered => DrawRuling::Replay,
            };
            assert_eq!((ended.rule(key, NOW), hour.rule(key, NOW)), (expected, expected), "{key:?}");
        }
        let underpaid = PassAccount { invoice: InvoiceState::Underpaid, ..account() };
        assert_eq!(underpaid.rule(KeyUse::Delivered, NOW), DrawRuling::Underpaid);
    }

    #[test]
    fn calls_are_taken_until_there_are_none_and_time_is_only_looked_at() {
        let mut pass = account();
        assert_eq!(pass.rule(KeyUse::NoKey, NOW), DrawRuling::Take { left: Some(0) });
        pass.take();
        assert_eq!(pass.rule(KeyUse::New, NOW), DrawRuling::NoneLeft);
        pass.end(&DrawEnd::Delivered { answer: None });
        assert_eq!(pass.rule(KeyUse::NoKey, NOW), DrawRuling::NoneLeft);
        // A seller's books that count more than was sold, by whatever mistake, sell no more.
        assert_eq!(PassAccount { used: u32::MAX, ..account() }.rule(KeyUse::NoKey, NOW), DrawRuling::NoneLeft);
        let hour = PassAccount { grant: Grant::For(Duration::from_secs(3600)), used: u32::MAX, ..account() };
        assert_eq!(hour.rule(KeyUse::NoKey, NOW), DrawRuling::Look);
        assert_eq!(hour.rule(KeyUse::New, NOW), DrawRuling::Take { left: None }, "its answer is kept, so it is noted");
    }

    #[test]
    fn an_answer_is_kept_while_its_pass_has_room() {
        let answer = |bytes| Answer { status: 200, headers: Vec::new(), body: vec![b'x'; bytes] };
        let room =
            |answers, body_bytes, bytes| KeptAnswers { answers, body_bytes }.room_for(Some(&answer(bytes))).is_some();
        assert!(room(0, 0, 1024 * 1024) && room(127, 1024 * 1024, 0) && room(127, 1024 * 1024 - 5, 5));
        assert!(!room(128, 0, 0) && !room(0, 1, 1024 * 1024) && !room(1, u64::MAX, 5));
        assert_eq!(KeptAnswers::default().room_for(None), None);
    }

    #[test]
    fn broken_answers_come_back_a_few_times_and_then_count() {
        let mut pass = account();
        for round in 1..=BROKEN_DRAWS_MAX {
            pass.take();
            pass.end(&DrawEnd::BrokeOff);
            assert_eq!((pass.used, pass.broken), (1, round));
        }
        pass.take();
        pass.end(&DrawEnd::Returned);
        assert_eq!(pass.used, 1, "a call that was not made comes back all the same");
        pass.take();
        pass.end(&DrawEnd::BrokeOff);
        assert_eq!((pass.used, pass.broken), (2, BROKEN_DRAWS_MAX));
    }
}
