//! Carries signed and stored transactions to the nodes and brings their receipts back.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use alloy::primitives::{B256, Bytes};
use farebox_core::{TransactionFate, TransactionId, ports::TransactionStore};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    market::Market,
    slot::{Ended, Slot},
};
use crate::{
    ChainLimits,
    node::{Broadcast, NoAnswer, Node, Receipt, ask},
};

/// How long a node is let hold a request open until the transaction is mined.
const SYNC_WAIT: Duration = Duration::from_secs(2);

/// The most transactions that are handed over at once.
const PARCEL_MAX: usize = 64;
/// How many requests with transactions are underway at once.
const PARCELS_MAX: usize = 4;
/// For how long a request is waited for before the next one goes out behind it: waiting gathers more into one request, and a node that
/// takes longer than this is far away, or holds the request open until a block comes.
const PARCEL_PATIENCE: Duration = Duration::from_millis(100);

/// When transactions go out again that no node took an answer for.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How many nonces one survey asks about, the lowest first: those behind them wait for these.
const SURVEYED_MAX: usize = 16;

/// What the writer is told.
#[derive(Debug)]
pub(super) enum Report {
    /// One of the nonce's transactions was mined.
    Mined { nonce: u64, hash: B256, cost: u128 },
    /// A node wants more for it.
    Underpriced { nonce: u64, hash: B256 },
    /// How many transactions the chain has of the relayer.
    Surveyed { mined: Option<u64> },
    /// The nonce was used, and by none of these transactions as far as the node says.
    Displaced { nonce: u64 },
}

/// A signed and stored transaction on its way to the nodes.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) hash: B256,
    pub(super) raw: Bytes,
    pub(super) slot: Option<Arc<Slot>>,
}

/// What is handed to the nodes, by nonce. A node shelves or drops what comes before its predecessor, and two requests over HTTP overtake
/// one another; so no parcel goes out whose first transaction has a predecessor that no node has acknowledged: it is put before it
/// once more. The same bytes twice do no harm.
#[derive(Debug, Default)]
struct Outbox {
    waiting: BTreeMap<u64, Letter>,
    unacknowledged: BTreeMap<u64, Letter>,
    underway: usize,
    sent_at: Option<Instant>,
    /// After a parcel that no node answered.
    retry_at: Option<Instant>,
}

impl Outbox {
    /// The next parcel, or how long to wait for the one underway before another goes out behind it.
    fn next(&mut self) -> Result<Parcel, Option<Instant>> {
        let due = !self.waiting.is_empty() || (self.retry_at.is_some() && !self.unacknowledged.is_empty());
        if !due || self.underway >= PARCELS_MAX {
            return Err(None);
        }
        let patience_ends = self.sent_at.filter(|_| self.underway > 0).map(|at| at + PARCEL_PATIENCE);
        if let Some(until) = patience_ends.max(self.retry_at).filter(|until| Instant::now() < *until) {
            return Err(Some(until));
        }
        self.retry_at = None;
        let behind = !self.unacknowledged.is_empty();
        while self.unacknowledged.len() < PARCEL_MAX
            && let Some((nonce, letter)) = self.waiting.pop_first()
        {
            self.unacknowledged.insert(nonce, letter);
        }
        self.underway += 1;
        self.sent_at = Some(Instant::now());
        Ok(Parcel { behind, letters: self.unacknowledged.clone() })
    }
}

struct Parcel {
    /// Whether another one is not acknowledged yet.
    behind: bool,
    letters: BTreeMap<u64, Letter>,
}

#[derive(Debug)]
struct Watched {
    hashes: Vec<B256>,
    slot: Option<Arc<Slot>>,
    due: Instant,
    wait: Duration,
}

/// Shared by all tasks of a lane.
#[derive(Debug)]
pub(super) struct Courier {
    node: Node,
    store: Arc<dyn TransactionStore>,
    outbox: Mutex<Outbox>,
    posted: Notify,
    watched: Mutex<BTreeMap<u64, Watched>>,
    added: Notify,
    reports: mpsc::Sender<Report>,
    market: Arc<Market>,
    poll_min: Duration,
    poll_max: Duration,
}

impl Courier {
    pub(super) fn new(
        node: Node,
        store: Arc<dyn TransactionStore>,
        reports: mpsc::Sender<Report>,
        market: Arc<Market>,
        limits: &ChainLimits,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            store,
            outbox: Mutex::default(),
            posted: Notify::new(),
            watched: Mutex::default(),
            added: Notify::new(),
            reports,
            market,
            poll_min: limits.poll_min,
            poll_max: limits.poll_max,
        })
    }

    /// Takes stored transactions to the nodes, in order, and sees to it that their receipts are found.
    pub(super) fn post(&self, letters: impl IntoIterator<Item = (u64, Letter)>) {
        self.outbox.lock().waiting.extend(letters);
        self.posted.notify_one();
    }

    /// Carries what is posted, until the lane is gone.
    pub(super) async fn carry_outbox(self: Arc<Self>) {
        while !self.reports.is_closed() {
            let next = self.outbox.lock().next();
            match next {
                Ok(parcel) => {
                    let courier = self.clone();
                    tokio::spawn(async move { courier.carry(parcel).await });
                }
                Err(until) => {
                    // A second at most, so that a lane that is gone is noticed.
                    let until = until.unwrap_or_else(|| Instant::now() + Duration::from_secs(1));
                    let _ = tokio::time::timeout_at(until, self.posted.notified()).await;
                }
            }
        }
    }

    async fn carry(&self, parcel: Parcel) {
        let handed_over = self.hand_over(parcel).await;
        {
            let mut outbox = self.outbox.lock();
            outbox.underway -= 1;
            if handed_over.is_err() {
                outbox.retry_at = Some(Instant::now() + RETRY_AFTER);
            }
        }
        self.posted.notify_one();
    }

    async fn hand_over(&self, Parcel { behind, mut letters }: Parcel) -> Result<(), NoAnswer> {
        // A node that waits for the receipts saves asking for them. Not behind another parcel, which may be waiting there for a block.
        if !behind {
            let group: Vec<_> = letters.values().map(|letter| (letter.hash, letter.raw.clone())).collect();
            let receipts = self.node.broadcast_sync(&group, SYNC_WAIT).await.unwrap_or_default();
            for receipt in receipts.into_iter().flatten() {
                let found = letters.iter().find(|(_, letter)| letter.hash == receipt.transaction_hash);
                if let Some(nonce) = found.map(|(nonce, _)| *nonce)
                    && let Some(letter) = letters.remove(&nonce)
                {
                    self.acknowledged(nonce, letter.hash);
                    self.mined(nonce, receipt, letter.slot).await;
                }
            }
        }
        if letters.is_empty() {
            return Ok(());
        }
        for (nonce, letter) in &letters {
            self.watch(*nonce, letter.hash, letter.slot.clone());
        }
        let group: Vec<_> = letters.values().map(|letter| letter.raw.clone()).collect();
        // Without an answer they may have arrived all the same, and go along with the next parcel.
        let answers = self.node.broadcast_group(&group).await.inspect_err(|error| {
            let count = group.len();
            tracing::warn!(count, error = error as &dyn std::error::Error, "a broadcast got no answer");
        })?;
        for ((nonce, letter), answer) in letters.into_iter().zip(answers) {
            self.acknowledged(nonce, letter.hash);
            self.heard(nonce, letter.hash, answer).await;
        }
        Ok(())
    }

    fn acknowledged(&self, nonce: u64, hash: B256) {
        let mut outbox = self.outbox.lock();
        if outbox.unacknowledged.get(&nonce).is_some_and(|letter| letter.hash == hash) {
            outbox.unacknowledged.remove(&nonce);
        }
    }

    /// Sends to every node what is watched already: the one that took it may have lost it, or keep it to itself.
    pub(super) async fn broadcast_again(&self, nonce: u64, hash: B256, raw: &Bytes) {
        match self.node.broadcast(raw).await {
            Ok(answer) => self.heard(nonce, hash, answer).await,
            Err(error) => {
                tracing::warn!(%hash, nonce, error = &error as &dyn std::error::Error, "a broadcast got no answer");
            }
        }
    }

    async fn heard(&self, nonce: u64, hash: B256, answer: Broadcast) {
        match answer {
            Broadcast::Taken | Broadcast::Unclear => {}
            Broadcast::Underpriced => self.report(Report::Underpriced { nonce, hash }).await,
            // Whether it was this one that used the nonce, its receipt tells.
            Broadcast::NonceTooLow => self.hurry(nonce),
        }
    }

    /// Asks for the receipts of what is watched, until the lane is gone.
    pub(super) async fn watch_receipts(self: Arc<Self>) {
        while !self.reports.is_closed() {
            let (due, next) = self.due();
            if due.is_empty() {
                // A second at most, so that a lane that is gone is noticed.
                let next = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(1));
                let _ = tokio::time::timeout_at(next, self.added.notified()).await;
                continue;
            }
            match self.node.receipts(&due).await {
                Ok(receipts) => self.found(receipts).await,
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "receipts could not be asked for");
                }
            }
        }
    }

    /// Asks how far the chain is, and what became of transactions whose nonces are used.
    ///
    /// Count and receipts come from one source, in one batch: a count from one that is ahead and receipts from one that lags would
    /// make our own mined transactions look like a stranger's. The count itself is believed only of a source that keeps up with the
    /// others' heads: an old one would have nonces given out again that are used.
    pub(super) async fn survey(self: Arc<Self>, relayer: alloy::primitives::Address) {
        let watched: Vec<(u64, Vec<B256>)> = {
            let watched = self.watched.lock();
            watched.iter().take(SURVEYED_MAX).map(|(nonce, one)| (*nonce, one.hashes.clone())).collect()
        };
        let hashes = watched.iter().flat_map(|(_, hashes)| hashes);
        let receipts: Vec<_> = hashes.map(|hash| ask::polled_receipt(*hash)).collect();
        let asked = self.node.batch((ask::mined_nonce(relayer), receipts, ask::head())).await;
        // Told on every way out: the lane starts no second survey before it hears of the first.
        let Ok((mined, receipts, _)) = asked.inspect_err(|error| {
            tracing::debug!(error = error as &dyn std::error::Error, "the lane could not be surveyed");
        }) else {
            return self.report(Report::Surveyed { mined: None }).await;
        };
        let mined: u64 = mined.to();
        let receipts: Vec<Receipt> = receipts.into_iter().flatten().collect();
        let known: Vec<B256> = receipts.iter().map(|receipt| receipt.transaction_hash).collect();
        self.found(receipts).await;
        for (nonce, hashes) in watched {
            if nonce < mined && !hashes.iter().any(|hash| known.contains(hash)) {
                self.report(Report::Displaced { nonce }).await;
            }
        }
        self.report(Report::Surveyed { mined: Some(mined) }).await;
    }

    pub(super) fn watch(&self, nonce: u64, hash: B256, slot: Option<Arc<Slot>>) {
        let mut watched = self.watched.lock();
        let entry = watched.entry(nonce).or_insert_with(|| Watched {
            hashes: Vec::new(),
            slot,
            due: Instant::now() + self.poll_min,
            wait: self.poll_min,
        });
        if !entry.hashes.contains(&hash) {
            entry.hashes.push(hash);
        }
        drop(watched);
        self.added.notify_one();
    }

    pub(super) fn forget(&self, nonce: u64) {
        self.watched.lock().remove(&nonce);
        self.outbox.lock().unacknowledged.remove(&nonce);
    }

    fn hurry(&self, nonce: u64) {
        if let Some(watched) = self.watched.lock().get_mut(&nonce) {
            watched.due = Instant::now();
        }
        self.added.notify_one();
    }

    /// The hashes to ask for now, and when the next ones are due. Each waits half as long again each time, so that an instant
    /// chain is answered in milliseconds and a slow one is asked once in `poll_max`, whatever the number in flight.
    fn due(&self) -> (Vec<B256>, Option<Instant>) {
        let now = Instant::now();
        let mut watched = self.watched.lock();
        let mut due = Vec::new();
        for one in watched.values_mut().filter(|one| one.due <= now) {
            due.extend_from_slice(&one.hashes);
            one.wait = (one.wait * 3 / 2).min(self.poll_max);
            one.due = now + one.wait;
        }
        (due, watched.values().map(|one| one.due).min())
    }

    async fn found(&self, receipts: Vec<Receipt>) {
        for receipt in receipts {
            let hash = receipt.transaction_hash;
            let entry = {
                let mut watched = self.watched.lock();
                let nonce = watched.iter().find(|(_, one)| one.hashes.contains(&hash)).map(|(nonce, _)| *nonce);
                nonce.and_then(|nonce| watched.remove(&nonce).map(|one| (nonce, one)))
            };
            if let Some((nonce, one)) = entry {
                self.mined(nonce, receipt, one.slot).await;
            }
        }
    }

    /// Tells whoever waits first, then the lane, then the store.
    async fn mined(&self, nonce: u64, receipt: Receipt, slot: Option<Arc<Slot>>) {
        let (hash, cost) = (receipt.transaction_hash, receipt.gas_cost());
        self.market.note(&receipt);
        let fate = if receipt.succeeded() { TransactionFate::Succeeded } else { TransactionFate::Reverted };
        if let Some(slot) = slot {
            slot.end(Ended::Mined(Box::new(receipt)));
        }
        self.report(Report::Mined { nonce, hash, cost }).await;
        self.close(hash, fate).await;
    }

    /// Notes a fate. If the store does not take it the transaction stays open there, and the next start asks the chain again.
    pub(super) async fn close(&self, hash: B256, fate: TransactionFate) {
        if let Err(error) = self.store.close_transaction(&TransactionId::new(hash.to_string()), fate).await {
            tracing::warn!(%hash, error = &error as &dyn std::error::Error, "a transaction's fate was not noted");
        }
    }

    async fn report(&self, report: Report) {
        // The lane is gone only when the process stops: what it knew is in the store.
        if self.reports.send(report).await.is_err() {
            tracing::debug!("a report came after its lane had stopped");
        }
    }
}
