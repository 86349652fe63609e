//! Paying by a transfer that the wallet makes itself: choose, sign, note, send, wait until it counts, claim.
//!
//! What keeps it from paying twice: every transaction is in the journal before it is sent; all that are signed for one payment
//! share one nonce, so that the chain takes one of them at most; and no other payment is made for a request until that one is
//! known to be void.

mod claim;
mod confirm;
mod send;
mod terms;
mod verdict;

use std::sync::Arc;

use farebox_core::{
    EvmAddress, TransactionId,
    ports::{MinedTransfer, TransferWallet},
};
use tokio::time::Instant;

pub use self::send::NotSent;
pub(crate) use self::{
    send::{NoTransfer, SignedNow},
    terms::Terms,
};
use crate::{
    agent::{Agent, Fetched, Note, Started},
    entry::{Entry, Proof, Standing, Transfer},
    error::FetchError,
    journal::{Held, JournalError, Lock},
    request::Replayable,
};

/// A transfer made for a request, as its receipt tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferMade {
    /// The transaction that was mined.
    pub transaction: TransactionId,
    /// How many confirmations it had when it was claimed. `None`: it was claimed again without a look at the chain.
    pub confirmations: Option<u64>,
    /// What its gas cost, wei. `None` as above.
    pub gas_wei: Option<u128>,
    /// What the seller keeps as credit, smallest units of the asset, by its word.
    pub credit_units: Option<u128>,
}

/// What a run has done before it brings a transfer to its end.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    /// The lock under which the transfer was signed, if it was signed just now: held until it is sent.
    pub(crate) account: Option<Lock>,
    pub(crate) signatures: u32,
    pub(crate) notes: Vec<Note>,
}

/// One run's work on one transfer.
struct Run<'a> {
    agent: &'a Agent,
    wallet: &'a dyn TransferWallet,
    request: &'a Replayable,
    held: Arc<Held>,
    entry: Entry,
    /// The entry's.
    transfer: Transfer,
    until: Instant,
}

impl Agent {
    /// Brings a transfer that is in the journal to its end. A crash at any point leaves the entry as it is, and the next run goes
    /// on with the same transaction.
    pub(crate) async fn finish_transfer(
        &self,
        request: &Replayable,
        held: &Arc<Held>,
        entry: Entry,
        transfer: Transfer,
        begun: Begun,
        started: Started,
    ) -> Result<Fetched, FetchError> {
        let (payer, transaction) = (entry.current.payer, transfer.newest().transaction.clone());
        let ours = self.parts.wallet.as_ref().filter(|wallet| payer == Some(wallet.evm_address()));
        let payer = payer.unwrap_or(EvmAddress([0; 20]));
        let wallet =
            ours.and_then(|wallet| wallet.transfers()).ok_or(FetchError::OtherWallet { payer, transaction })?;
        let until = started.transfer_until(&self.parts.retry);
        let mut run = Run { agent: self, wallet, request, held: Arc::clone(held), entry, transfer, until };
        run.finish(begun).await
    }
}

impl Run<'_> {
    async fn finish(&mut self, begun: Begun) -> Result<Fetched, FetchError> {
        let Begun { account, signatures, notes } = begun;
        // What was answered as paid before is asked for again, whatever the nodes say now.
        let answered_before = self.entry.charged_at();
        if answered_before.is_none() {
            self.broadcast().await;
        }
        drop(account);
        let mut claims = claim::Claims::new(self);
        let mut mined: Option<MinedTransfer> = None;
        loop {
            if answered_before.is_none() {
                mined = Some(self.confirmed(mined).await?);
            }
            if let Some(answer) = claims.present(self, mined.as_ref()).await? {
                return Ok(self.answered(answer, mined, signatures, notes).await);
            }
        }
    }

    /// The transaction to claim: the one that is mined, or that was when the seller answered.
    fn claimed(&self, mined: Option<&MinedTransfer>) -> TransactionId {
        let charged = match &self.entry.current.standing {
            Standing::Charged { transaction, .. } => transaction.clone(),
            Standing::Open | Standing::Declined { .. } | Standing::Void { .. } => None,
        };
        let newest = || self.transfer.newest().transaction.clone();
        mined.map(|mined| mined.transaction.clone()).or(charged).unwrap_or_else(newest)
    }

    async fn store(&mut self) -> Result<(), JournalError> {
        self.entry.current.proof = Proof::Transfer(Box::new(self.transfer.clone()));
        self.held.store(&self.entry).await
    }
}
