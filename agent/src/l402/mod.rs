//! Paying by Lightning: choose, note, pay once, keep the token, spend it.
//!
//! What keeps it from paying twice: the invoice is in the journal by its payment hash before the wallet is asked; a wallet pays one hash once;
//! what a wallet did not say is looked up and never guessed; and no other invoice is paid for a request until this one is known to be
//! dead. A token is money: it is on disk as soon as there is a preimage, goes only to the origin that sold it, and no fault on the way takes
//! it out of the store, only the seller's word.

mod buy;
mod error;
mod purchase;
mod spend;
mod store;
mod terms;
mod verdict;

use std::{collections::BTreeSet, sync::Arc};

use farebox_core::{PaymentHash, Timestamp};
use tokio::time::Instant;

pub(crate) use self::{
    buy::{NoToken, Ordered},
    store::{SPENT, TOKENS},
    terms::{L402Bill, read},
};
pub use self::{
    error::{LightningError, LightningRule},
    purchase::{PaidToken, Purchase, Stage, TokenStanding},
    terms::{L402BillError, TokenFacts},
};
use crate::{
    agent::{Agent, Fetched, Note, Started},
    bill::Billed,
    entry::{Authorization, Entry, Proof, SecretHeader, Standing, TokenProof},
    error::FetchError,
    journal::{Held, JournalError, Lock},
    request::Replayable,
};

/// How many held tokens are tried for one request, one after the other.
const TOKENS_TRIED_MAX: usize = 3;

/// A token bought or used for a request, as its receipt tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LightningMade {
    /// The invoice's.
    pub payment_hash: PaymentHash,
    /// What forwarding nodes took, millisatoshis, if the wallet told.
    pub fee_msat: Option<u64>,
    /// Whether the token was held already, so that nothing was paid now.
    pub held: bool,
    /// How many calls are left in it, by the seller's word.
    pub calls_left: Option<u32>,
    /// When it ends, by its own word.
    pub valid_until: Option<Timestamp>,
}

/// How a payment that may yet be made in another way ended.
pub(crate) enum Finished {
    Answer(Box<Fetched>),
    /// The seller does not take a held token for this request. Nothing was paid; this is its bill, if it sent one.
    Refused {
        token: PaymentHash,
        billed: Option<Box<Billed>>,
    },
    /// The invoice was not paid and will not be.
    NotPaid(LightningError),
}

/// What a run begins with.
pub(crate) struct Begun {
    pub(crate) purchase: Box<Purchase>,
    /// The lock under which the invoice was chosen, held until it is paid.
    pub(crate) lock: Lock,
    /// Whether the wallet has not been asked yet.
    pub(crate) is_fresh: bool,
}

/// One run's work on one token.
struct Run<'a> {
    agent: &'a Agent,
    request: &'a Replayable,
    held: Arc<Held>,
    entry: Entry,
    purchase: Purchase,
    /// Whether the token was paid for an earlier request.
    is_held: bool,
    /// How many invoices this fetch has paid, or tried to.
    payments: u32,
    notes: Vec<Note>,
    until: Instant,
}

impl Agent {
    /// A token that may be good for the request and was paid before: by what it was bought for, or by the services that a bill names.
    pub(crate) async fn held_token(
        &self,
        request: &Replayable,
        bill: Option<&L402Bill>,
        tried: &BTreeSet<PaymentHash>,
    ) -> Result<Option<Purchase>, JournalError> {
        if tried.len() >= TOKENS_TRIED_MAX || request.has_authorization() {
            return Ok(None);
        }
        let (now, journal) = (self.parts.clock.now(), &self.parts.journal);
        let services = bill.map_or(&[][..], |bill| &bill.facts.services[..]);
        let is_usable = |purchase: &Purchase| match purchase.paid().map(|token| &token.standing) {
            Some(TokenStanding::Good { calls_left }) => *calls_left != Some(0),
            // Left so by a crash, unless that request is still to be answered.
            Some(TokenStanding::Reserved) => !journal.has_open(&purchase.fingerprint),
            Some(TokenStanding::Spent { .. }) | None => false,
        };
        let mut found = journal.purchases_of(request.origin()).await?;
        found.retain(|purchase| {
            is_usable(purchase)
                && !purchase.is_over(now)
                && !tried.contains(&purchase.payment_hash())
                && purchase.fits(request, services)
        });
        Ok(found.into_iter().max_by_key(|purchase| (!purchase.is_doubted(), purchase.noted_at)))
    }

    /// The use of a held token, to be noted.
    pub(crate) fn draw(&self, purchase: &Purchase, idempotency_key: SecretHeader) -> Authorization {
        let now = self.parts.clock.now();
        Authorization {
            proof: Proof::Token(TokenProof { payment_hash: purchase.payment_hash(), is_held: true }),
            idempotency_key,
            payer: None,
            offer: purchase.offer.clone(),
            asset: purchase.asset.clone(),
            signed_at: now,
            expires_at: now,
            standing: Standing::Open,
        }
    }

    /// Brings a token that is in the journal to its end: paid for, presented, answered. A crash at any point leaves the entry as it is, and
    /// the next run goes on with the same invoice.
    #[expect(clippy::too_many_arguments, reason = "the state of one fetch, used once")]
    pub(crate) async fn finish_token(
        &self,
        request: &Replayable,
        held: &Arc<Held>,
        entry: Entry,
        proof: TokenProof,
        begun: Option<Begun>,
        notes: Vec<Note>,
        started: Started,
    ) -> Result<Finished, FetchError> {
        let TokenProof { payment_hash, is_held } = proof;
        let (journal, held) = (&self.parts.journal, Arc::clone(held));
        let (purchase, lock, is_fresh) = match begun {
            Some(Begun { purchase, lock, is_fresh }) => {
                journal.put(&purchase, self.parts.clock.now()).await?;
                (Some(*purchase), Some(lock), is_fresh)
            }
            None => (journal.purchase(payment_hash).await?, None, false),
        };
        // Another request may have taken the invoice over, after this one had found that the wallet never heard of it.
        let purchase = purchase.filter(|purchase| is_held || purchase.fingerprint == entry.fingerprint);
        let Some(purchase) = purchase else {
            // The process died before it noted the invoice, and so before it asked the wallet; or a held token is gone from the folder.
            let mut entry = entry;
            held.take_back(&mut entry).await?;
            return Ok(Finished::Refused { token: payment_hash, billed: None });
        };
        let (agent, until, payments) = (self, started.until, u32::from(is_fresh));
        let mut run = Run { agent, request, held, entry, purchase, is_held, payments, notes, until };
        if run.purchase.paid().is_none()
            && let Err(error) = run.settle(lock, is_fresh).await?
        {
            return Ok(Finished::NotPaid(error));
        }
        run.spend().await
    }
}
