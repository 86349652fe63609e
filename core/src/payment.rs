//! A payment's life: how a proof is claimed, which states follow one another, and what each event does.
//!
//! Every ledger stores rows and calls the two pure functions here, [`Payment::decide`] and [`Payment::apply`], inside one
//! transaction; no ledger has rules of its own. ARCHITECTURE.md has the same states as a table.

use std::{borrow::Cow, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Amount, Answer, CallerId, Credential, CredentialDigest, Finality, InstanceId, LaneKey, Payer, PaymentId, ProofId,
    RailName, Receipt, RequestId, RouteId, Timestamp, TransactionId,
};

/// How often one settled payment may run the upstream before it is left to a person. A run that delivers is the last one; others are
/// the upstream's failures, and an outage must not use a payment up.
const RUNS_MAX: u32 = 1_000;

/// How often one payment may run the upstream when a part of the answer has gone out each time. Whoever brings an upstream to break off
/// just before the end has had nearly all of it.
const BROKEN_RUNS_MAX: u32 = 3;

/// Where a payment stands. The order is the usual order of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentState {
    /// The proof is ours alone; nothing irreversible has happened.
    Claimed,
    /// A signed transaction is stored, and may have been broadcast.
    Settling,
    /// Whether the money moved is not known, and somebody is finding out.
    InDoubt,
    /// The money moved, with the confirmations the chain's config asks for.
    Settled,
    /// The chain said no, for good. Keeps the proof, so that nothing is ever settled for it again.
    Refused,
    /// Given back before anything irreversible: no transaction ever existed. Does not hold the proof.
    Void,
}

impl PaymentState {
    /// As books and logs spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Settling => "settling",
            Self::InDoubt => "in_doubt",
            Self::Settled => "settled",
            Self::Refused => "refused",
            Self::Void => "void",
        }
    }

    /// Every state, in the usual order.
    pub const ALL: [Self; 6] = [Self::Claimed, Self::Settling, Self::InDoubt, Self::Settled, Self::Refused, Self::Void];
}

/// Whether the payer has had the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Not yet, as far as we know. A settled payment in this state is redeemed by its own credential.
    Pending,
    /// The last byte was handed to the connection.
    Delivered,
    /// Nothing is to be delivered: the money came too late for its bill, and the whole of it is the payer's credit.
    Credited,
}

/// What a proof was first used for, and so the only thing it is good for. Source: wire page x402, "resource is optional and
/// never compared by the official stack".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The route.
    pub route: RouteId,
    /// The method as sent.
    pub method: String,
    /// Canonical path, and the query as sent.
    pub resource: String,
    /// Who may have the outcome. A settled authorization is public with its transaction: whoever watches the chain can send the
    /// very same credential, and must not get the payer's answer for it.
    pub caller: CallerId,
}

/// A block by number and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRef {
    /// Height.
    pub number: u64,
    /// 32 bytes; what tells a reorganisation.
    pub hash: [u8; 32],
}

/// A payment as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Our name for it.
    pub id: PaymentId,
    /// What it consumed.
    pub proof: ProofId,
    /// What authorised it.
    pub credential: Arc<Credential>,
    /// Which rail.
    pub rail: RailName,
    /// What it is good for.
    pub binding: Binding,
    /// Who paid.
    pub payer: Payer,
    /// How much of what.
    pub amount: Amount,
    /// To whom, as the wire writes it.
    pub pay_to: Arc<str>,
    /// Where it stands.
    pub state: PaymentState,
    /// Why it is refused or void: a stable code.
    pub reason: Option<Cow<'static, str>>,
    /// The newest transaction that settles it.
    pub transaction: Option<TransactionId>,
    /// Where that was mined.
    pub block: Option<BlockRef>,
    /// Whether the payer has had the answer.
    pub delivery: Delivery,
    /// Units of the amount's asset that are the payer's credit while this is settled: what came beside the price, or all of it.
    pub credit: u128,
    /// What makes it final.
    pub finality: Finality,
    /// A reorganisation undid it after it was settled, and it is not settled again.
    pub reversed: bool,
    /// The request that claimed it last.
    pub request: RequestId,
    /// How many times the upstream was let run for it.
    pub runs: u32,
    /// How many of them broke off after the payer had a part of the answer.
    pub broken_runs: u32,
    /// When the payer's authorization ends by itself.
    pub valid_until: Timestamp,
    /// When it was claimed.
    pub created_at: Timestamp,
    /// When the row last changed.
    pub updated_at: Timestamp,
    /// Which process works on it, if any.
    pub holder: Option<InstanceId>,
    /// Until when that process is believed to be alive.
    pub lease_until: Timestamp,
}

/// A wish to use a proof, with all that a new row needs.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The id a new row gets.
    pub id: PaymentId,
    /// What is to be consumed.
    pub proof: ProofId,
    /// What authorises it.
    pub credential: Arc<Credential>,
    /// The rail.
    pub rail: RailName,
    /// What for.
    pub binding: Binding,
    /// Who pays.
    pub payer: Payer,
    /// How much: our offer's amount, not the caller's word.
    pub amount: Amount,
    /// To whom.
    pub pay_to: Arc<str>,
    /// When the authorization ends by itself.
    pub valid_until: Timestamp,
    /// What makes it final.
    pub finality: Finality,
    /// The money, if it is there already.
    pub arrived: Option<Arrived>,
    /// The request that claims.
    pub request: RequestId,
    /// The claiming process.
    pub holder: InstanceId,
    /// How long the claim is held without a sign of life: longer than the longest request.
    pub lease: Duration,
    /// Now.
    pub now: Timestamp,
}

/// Money that was there before the claim: a transfer that the payer made, mined with the finality asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The transaction that moved it.
    pub transaction: TransactionId,
    /// Where that was mined.
    pub block: BlockRef,
    /// How many units came; at least the claim's amount unless it is for credit.
    pub units: u128,
    /// What it is for.
    pub purpose: ArrivedFor,
}

/// What money that arrived is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArrivedFor {
    /// The request; what is over the amount is credit.
    Delivery,
    /// The payer's credit, all of it.
    Credit {
        /// Why, as a stable code: `paid_too_late`, `quote_expired`.
        code: Cow<'static, str>,
    },
}

/// The right to run the upstream once for a payment. Only a ledger gives it; it cannot be copied.
#[derive(Debug)]
#[must_use = "a claim that is not used must be released"]
pub struct Permit {
    payment: Payment,
}

impl Permit {
    /// For ledgers, once the claim is durable.
    pub const fn granted(payment: Payment) -> Self {
        Self { payment }
    }

    /// The payment as it was when the permit was given.
    #[must_use]
    pub const fn payment(&self) -> &Payment {
        &self.payment
    }

    /// Ends the permit, keeping what it was for.
    #[must_use]
    pub fn into_payment(self) -> Payment {
        self.payment
    }
}

/// What became of a claim.
#[derive(Debug)]
pub enum Claimed {
    /// Run the upstream. First use, or a payment that was settled (or orphaned by a crash) and never delivered.
    Granted(Permit),
    /// This very proof had its outcome before: refused, or delivered (or given up after too many broken runs).
    Replayed(Payment),
    /// Somebody is at it, or is finding out. Ask again later.
    Busy(Payment),
    /// The proof belongs to another request or another authorization.
    Foreign(Payment),
}

/// What [`Payment::decide`] tells a ledger to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    TakeOver,
    Replayed,
    Busy,
    Foreign,
}

/// Something that happened to a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentEvent {
    /// The holder gives the proof back; nothing was charged. `Claimed -> Void`.
    Released {
        /// Why, as a stable code.
        code: Cow<'static, str>,
    },
    /// The holder died before anything irreversible. `Claimed -> Void`, once the lease has ended.
    LeaseExpired,
    /// A signed transaction is being stored. `Claimed (by the holder) | Settling | InDoubt -> Settling`.
    SettlementStarted {
        /// Its hash.
        transaction: TransactionId,
    },
    /// Nobody knows. `Settling | Settled -> InDoubt`.
    Doubted,
    /// A reorganisation removed the block: the revenue is taken back until the money is there again. `Settled -> InDoubt`.
    Reversed,
    /// The money moved. `Settling | InDoubt | Settled -> Settled`.
    Settled {
        /// The transaction that moved it, which need not be ours.
        transaction: TransactionId,
        /// Where it was mined.
        block: BlockRef,
    },
    /// The chain said no for good. `Settling | InDoubt -> Refused`; `Claimed (by the holder) -> Void`, since no transaction exists.
    Refused {
        /// Why, as a stable code.
        code: Cow<'static, str>,
    },
    /// The payer has the answer. `Settled`, or whatever came of a reorganisation since; once.
    Delivered {
        /// The answer, if it was small enough to keep.
        answer: Option<Answer>,
    },
    /// The holder stopped without delivering: the upstream or the client broke off. `Settled | InDoubt | Settling | Refused`.
    RunEnded,
    /// As `RunEnded`, after a part of the answer was handed out.
    BrokeOff,
}

/// An event that does not fit the state: a lost race or a bug, never applied.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("payment {id} is {} and cannot take the event {event}", state.as_str())]
pub struct IllegalEvent {
    /// Which payment.
    pub id: PaymentId,
    /// Its state.
    pub state: PaymentState,
    /// The event's name.
    pub event: &'static str,
}

impl Payment {
    /// The row a first claim makes.
    #[must_use]
    pub fn first(claim: Claim) -> Self {
        let mut payment = Self {
            id: claim.id,
            proof: claim.proof,
            credential: claim.credential,
            rail: claim.rail,
            binding: claim.binding,
            payer: claim.payer,
            amount: claim.amount,
            pay_to: claim.pay_to,
            state: PaymentState::Claimed,
            reason: None,
            transaction: None,
            block: None,
            delivery: Delivery::Pending,
            credit: 0,
            finality: claim.finality,
            reversed: false,
            request: claim.request,
            runs: 1,
            broken_runs: 0,
            valid_until: claim.valid_until,
            created_at: claim.now,
            updated_at: claim.now,
            lease_until: claim.now.plus(claim.lease),
            holder: Some(claim.holder),
        };
        if let Some(arrived) = claim.arrived {
            payment.arrive(arrived);
        }
        payment
    }

    fn arrive(&mut self, arrived: Arrived) {
        self.state = PaymentState::Settled;
        self.transaction = Some(arrived.transaction);
        self.block = Some(arrived.block);
        match arrived.purpose {
            ArrivedFor::Delivery => self.credit = arrived.units.saturating_sub(self.amount.units),
            ArrivedFor::Credit { code } => {
                self.credit = arrived.units;
                self.amount.units = arrived.units;
                self.delivery = Delivery::Credited;
                self.reason = Some(code);
                self.holder = None;
            }
        }
    }

    /// What authorised it, as a digest.
    #[must_use]
    pub fn digest(&self) -> CredentialDigest {
        self.credential.digest()
    }

    /// The receipt, once the money moved.
    #[must_use]
    pub fn receipt(&self) -> Option<Receipt> {
        (self.state == PaymentState::Settled).then_some(())?;
        Some(Receipt {
            payment: self.id,
            transaction: self.transaction.clone()?,
            network: self.amount.asset.network().clone(),
            payer: self.payer.clone(),
            amount: self.amount.clone(),
            position: self.proof.transfer_position(),
            credit: self.credit,
        })
    }

    /// Whether its payer is marked: a reorganisation took the money back and it has not come again, though the answer may be had.
    #[must_use]
    pub fn marks_payer(&self) -> bool {
        let open = matches!(self.state, PaymentState::Settling | PaymentState::InDoubt);
        self.reversed && (open || (self.state == PaymentState::Refused && self.delivery == Delivery::Delivered))
    }

    /// How a claim on a proof that this row already holds is answered. For ledgers: on a grant, store the row it carries
    /// durably before answering. Void rows do not hold their proof and must not be passed.
    #[must_use]
    pub fn contest(self, claim: &Claim) -> Contest {
        match self.decide(&claim.binding, claim.credential.digest(), claim.now) {
            Decision::TakeOver => Contest::Grant(self.taken_over(claim)),
            Decision::Replayed => Contest::Answer(Claimed::Replayed(self)),
            Decision::Busy => Contest::Answer(Claimed::Busy(self)),
            Decision::Foreign => Contest::Answer(Claimed::Foreign(self)),
        }
    }

    /// How a known proof is answered before the chain is asked: the same as a claim, without taking anything. A grantable row
    /// is `None`: go on and claim it.
    #[must_use]
    pub fn peek(self, binding: &Binding, digest: CredentialDigest, now: Timestamp) -> Option<Claimed> {
        match self.decide(binding, digest, now) {
            Decision::TakeOver => None,
            Decision::Replayed => Some(Claimed::Replayed(self)),
            Decision::Busy => Some(Claimed::Busy(self)),
            Decision::Foreign => Some(Claimed::Foreign(self)),
        }
    }

    fn decide(&self, binding: &Binding, digest: CredentialDigest, now: Timestamp) -> Decision {
        use PaymentState as S;
        // Another signature over the same nonce is another credential: its signer was perhaps never checked, so it gets
        // nothing of the first one's outcome.
        if self.binding != *binding || self.digest() != digest {
            return Decision::Foreign;
        }
        let held = self.holder.is_some() && now < self.lease_until;
        match (self.state, self.delivery) {
            (S::Refused, _) | (S::Settled, Delivery::Delivered | Delivery::Credited) => Decision::Replayed,
            (S::Settled, Delivery::Pending) if held => Decision::Busy,
            (S::Settled, Delivery::Pending) if self.run_out() => Decision::Replayed,
            // Claimed by a process that died: no transaction was stored, so starting over charges once.
            (S::Claimed | S::Settled, Delivery::Pending) if !held => Decision::TakeOver,
            (S::Claimed | S::Settling | S::InDoubt | S::Settled | S::Void, _) => Decision::Busy,
        }
    }

    const fn run_out(&self) -> bool {
        self.runs >= RUNS_MAX || self.broken_runs >= BROKEN_RUNS_MAX
    }

    /// The row after a take-over.
    fn taken_over(mut self, claim: &Claim) -> Self {
        self.holder = Some(claim.holder.clone());
        self.lease_until = claim.now.plus(claim.lease);
        self.updated_at = claim.now;
        self.runs = self.runs.saturating_add(1);
        self.request = claim.request.clone();
        self
    }

    /// The row after `event`, told by process `by` at `now`.
    ///
    /// # Errors
    /// [`IllegalEvent`] if the event does not fit; the row is as it was.
    pub fn apply(&mut self, event: &PaymentEvent, by: &InstanceId, now: Timestamp) -> Result<(), IllegalEvent> {
        use {PaymentEvent as E, PaymentState as S};
        let ours = self.holder.as_ref() == Some(by);
        let expired = self.holder.is_none() || now >= self.lease_until;
        match (self.state, event) {
            (S::Claimed, E::Released { code } | E::Refused { code }) if ours => self.end(S::Void, Some(code.clone())),
            (S::Claimed, E::LeaseExpired) if expired => self.end(S::Void, Some(Cow::Borrowed("lease_expired"))),
            (S::Claimed, E::SettlementStarted { transaction }) if ours => self.settling(transaction),
            (S::Settling | S::InDoubt, E::SettlementStarted { transaction }) => self.settling(transaction),
            (S::Settling | S::Settled, E::Doubted) => self.state = S::InDoubt,
            (S::Settled, E::Reversed) => {
                self.state = S::InDoubt;
                self.reversed = true;
            }
            // A late `Doubted` of a row already in doubt says nothing new.
            (S::InDoubt, E::Doubted) => {}
            (S::Settling | S::InDoubt | S::Settled, E::Settled { transaction, block }) => {
                self.state = S::Settled;
                self.reversed = false;
                // Why a credit is one stays true.
                if self.delivery != Delivery::Credited {
                    self.reason = None;
                }
                self.transaction = Some(transaction.clone());
                self.block = Some(*block);
            }
            (S::Settling | S::InDoubt, E::Refused { code }) => self.end(S::Refused, Some(code.clone())),
            // A reorganisation may have taken the money back while the answer was on its way, and it may be on its way again: delivered
            // is delivered. A block says that the money had come; a paid invoice has none.
            (S::Settled | S::InDoubt | S::Settling | S::Refused, E::Delivered { .. })
                if self.delivery == Delivery::Pending && (self.block.is_some() || self.rail == RailName::L402) =>
            {
                self.delivery = Delivery::Delivered;
                self.holder = None;
            }
            (S::Settling | S::InDoubt | S::Settled | S::Refused, E::RunEnded | E::BrokeOff) => {
                if ours {
                    self.holder = None;
                }
                if *event == E::BrokeOff {
                    self.broken_runs = self.broken_runs.saturating_add(1);
                }
            }
            (state, event) => return Err(IllegalEvent { id: self.id, state, event: event.name() }),
        }
        self.updated_at = now;
        Ok(())
    }

    fn settling(&mut self, transaction: &TransactionId) {
        self.state = PaymentState::Settling;
        self.transaction = Some(transaction.clone());
    }

    fn end(&mut self, state: PaymentState, reason: Option<Cow<'static, str>>) {
        self.state = state;
        self.reason = reason;
        self.holder = None;
    }
}

/// What a ledger does with a claim on a proof that is held.
#[derive(Debug)]
pub enum Contest {
    /// Store this row, then answer [`Claimed::Granted`].
    Grant(Payment),
    /// Store nothing, answer this.
    Answer(Claimed),
}

impl PaymentEvent {
    /// The event's name, for logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Released { .. } => "released",
            Self::LeaseExpired => "lease_expired",
            Self::SettlementStarted { .. } => "settlement_started",
            Self::Doubted => "doubted",
            Self::Reversed => "reversed",
            Self::Settled { .. } => "settled",
            Self::Refused { .. } => "refused",
            Self::Delivered { .. } => "delivered",
            Self::RunEnded => "run_ended",
            Self::BrokeOff => "broke_off",
        }
    }
}

/// A signed transaction, stored before it is broadcast and kept until its fate is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTransaction {
    /// Its hash.
    pub hash: TransactionId,
    /// The key's lane.
    pub lane: LaneKey,
    /// Its nonce in the lane.
    pub nonce: u64,
    /// The signed bytes, ready to broadcast again.
    pub raw: Vec<u8>,
    /// What it settles; `None` for one that only fills its nonce.
    pub payment: Option<PaymentId>,
    /// Whether it still may be mined.
    pub fate: TransactionFate,
    /// When it was stored.
    pub stored_at: Timestamp,
}

/// What became of a stored transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransactionFate {
    /// Not known to be mined.
    Open,
    /// Mined, with success.
    Succeeded,
    /// Mined, reverted.
    Reverted,
    /// Another transaction was mined at its nonce, so it never will be.
    Replaced,
}

#[cfg(test)]
mod tests;
