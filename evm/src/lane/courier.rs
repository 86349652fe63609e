//! Carries signed and stored transactions to the nodes and brings their receipts back.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use alloy::primitives::{B256, Bytes};
use farebox_core::{TransactionFate, TransactionId, ports::TransactionStore};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::slot::{Ended, Slot};
use crate::{
    ChainLimits,
    node::{Broadcast, Node, Receipt},
};

/// How long a node is let hold a request open until the transaction is mined.
const SYNC_WAIT: Duration = Duration::from_secs(2);

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
    watched: Mutex<BTreeMap<u64, Watched>>,
    added: Notify,
    reports: mpsc::Sender<Report>,
    poll_min: Duration,
    poll_max: Duration,
}

impl Courier {
    pub(super) fn new(
        node: Node,
        store: Arc<dyn TransactionStore>,
        reports: mpsc::Sender<Report>,
        limits: &ChainLimits,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            store,
            watched: Mutex::default(),
            added: Notify::new(),
            reports,
            poll_min: limits.poll_min,
            poll_max: limits.poll_max,
        })
    }

    /// Broadcasts a stored transaction and sees to it that its receipt is found.
    pub(super) async fn deliver(self: Arc<Self>, nonce: u64, hash: B256, raw: Bytes, slot: Option<Arc<Slot>>) {
        if let Some(receipt) = self.node.broadcast_sync(&raw, SYNC_WAIT).await
            && receipt.transaction_hash == hash
        {
            return self.mined(nonce, receipt, slot).await;
        }
        self.watch(nonce, hash, slot);
        self.broadcast(nonce, hash, &raw).await;
    }

    /// Broadcasts once more what is watched already.
    pub(super) async fn broadcast(&self, nonce: u64, hash: B256, raw: &Bytes) {
        match self.node.broadcast(raw).await {
            Ok(Broadcast::Taken | Broadcast::Unclear) => {}
            Ok(Broadcast::Underpriced) => self.report(Report::Underpriced { nonce, hash }).await,
            // Whether it was this one that used the nonce, its receipt tells.
            Ok(Broadcast::NonceTooLow) => self.hurry(nonce),
            // It may have arrived all the same; the lane broadcasts it again until its nonce is used.
            Err(error) => {
                tracing::warn!(%hash, nonce, error = &error as &dyn std::error::Error, "a broadcast got no answer");
            }
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
    pub(super) async fn survey(self: Arc<Self>, relayer: alloy::primitives::Address) {
        // Told on every way out: the lane starts no second survey before it hears of the first.
        let Ok(mined) = self.node.mined_nonce(relayer).await else {
            return self.report(Report::Surveyed { mined: None }).await;
        };
        let past: Vec<(u64, Vec<B256>)> =
            self.watched.lock().range(..mined).map(|(nonce, watched)| (*nonce, watched.hashes.clone())).collect();
        let hashes: Vec<B256> = past.iter().flat_map(|(_, hashes)| hashes.iter().copied()).collect();
        if let Ok(receipts) = self.node.receipts(&hashes).await {
            let known: Vec<B256> = receipts.iter().map(|r| r.transaction_hash).collect();
            self.found(receipts).await;
            for (nonce, hashes) in past {
                if !hashes.iter().any(|hash| known.contains(hash)) {
                    self.report(Report::Displaced { nonce }).await;
                }
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
