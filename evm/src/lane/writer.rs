//! The one task that numbers and signs a lane's transactions.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use alloy::{
    consensus::{SignableTransaction, TxEip1559, TxEnvelope},
    eips::{Decodable2718, Encodable2718},
    primitives::{B256, Bytes, TxKind, U256},
};
use farebox_core::{
    LaneKey, PaymentId, StoredTransaction, TransactionFate, TransactionId,
    ports::{Clock, RecordError, TransactionStore},
};
use futures_util::future::join_all;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, MissedTickBehavior},
};

use super::{
    Job,
    courier::{Courier, Letter, Report},
    fees::{Fee, Fees},
    lane_key,
    slot::{Ended, Slot, Unsent},
};
use crate::{
    ChainConfig, ChainLimits, ConnectError, EvmKey,
    check::{code, rejected},
    node::Node,
};

/// Settlements signed at once, so that one commit of the store serves them all.
const BATCH_MAX: usize = 32;
/// How often the lane looks after what is in flight.
const TICK: Duration = Duration::from_secs(1);
/// What is in flight for longer makes the lane compare itself with the chain.
const SURVEY_AFTER: Duration = Duration::from_secs(2);
/// What a nonce that was used by nobody we know of is given: a node's receipts may lag behind its count of transactions.
const DISPLACED_MAX: u8 = 10;
/// After so many looks at a count that went back it is a reorganisation and not a node that lags.
const REGRESSED_MAX: u8 = 4;
/// Mined transactions kept, in case a reorganisation drops them.
const RECENT_MAX: usize = 256;

pub(super) struct Writer {
    chain_id: u64,
    key: EvmKey,
    lane: LaneKey,
    limits: ChainLimits,
    node: Node,
    store: Arc<dyn TransactionStore>,
    clock: Arc<dyn Clock>,
    courier: Arc<Courier>,
    fees: Fees,
    /// The lowest nonce never given out.
    next: u64,
    /// Nonces below `next` that no transaction has.
    holes: BTreeSet<u64>,
    unmined: BTreeMap<u64, Entry>,
    /// Stored or not, the store did not say. Nothing is signed until it does.
    unsure: BTreeMap<u64, Entry>,
    /// Every nonce below is mined, as far as we have seen.
    mined_below: u64,
    regressed: u8,
    surveying: bool,
    recent: VecDeque<(u64, Entry)>,
}

/// A nonce in use.
struct Entry {
    tx: TxEip1559,
    /// `None` for one that only fills its nonce.
    payment: Option<PaymentId>,
    /// All that were signed for this nonce; any of them may be mined.
    hashes: Vec<B256>,
    /// The newest.
    raw: Bytes,
    slot: Option<Arc<Slot>>,
    place: Option<OwnedSemaphorePermit>,
    sent_at: Instant,
    displaced: u8,
    over_cap_told: bool,
}

impl Entry {
    fn newest(&self) -> B256 {
        self.hashes.last().copied().unwrap_or_default()
    }

    fn letter(&self) -> Letter {
        Letter { hash: self.newest(), raw: self.raw.clone(), slot: self.slot.clone() }
    }

    fn cost_max(&self) -> u128 {
        u128::from(self.tx.gas_limit).saturating_mul(self.tx.max_fee_per_gas)
    }
}

impl Writer {
    /// Takes up what an earlier run left: what is stored and unmined goes out again.
    pub(super) async fn restore(
        config: &ChainConfig,
        relayer: &EvmKey,
        chain_id: u64,
        node: &Node,
        courier: Arc<Courier>,
        store: Arc<dyn TransactionStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConnectError> {
        let network = &config.network;
        let lane = lane_key(network, relayer.address());
        let ledger = |source| ConnectError::Ledger { network: network.clone(), source: Box::new(source) };
        let open = store.open_transactions(&lane).await.map_err(ledger)?;
        let last = store.last_nonce(&lane).await.map_err(ledger)?;
        let mined =
            node.mined_nonce(relayer.alloy_address()).await.map_err(|source| node.unreachable(network, source))?;
        let mut writer = Self {
            chain_id,
            key: relayer.clone(),
            lane,
            limits: config.limits.clone(),
            node: node.clone(),
            store,
            clock,
            courier,
            fees: Fees::new(),
            next: last.map_or(mined, |last| mined.max(last.saturating_add(1))),
            holes: BTreeSet::new(),
            unmined: BTreeMap::new(),
            unsure: BTreeMap::new(),
            mined_below: mined,
            regressed: 0,
            surveying: false,
            recent: VecDeque::new(),
        };
        for transaction in open {
            writer.take_up(transaction);
        }
        writer.find_holes(mined);
        for entry in writer.unmined.values() {
            writer.fees.exchange(0, entry.cost_max());
        }
        writer.courier.post(writer.unmined.iter().map(|(nonce, entry)| (*nonce, entry.letter())));
        Ok(writer)
    }

    fn take_up(&mut self, stored: StoredTransaction) {
        let decoded = TxEnvelope::decode_2718(&mut stored.raw.as_slice());
        let Some(signed) = decoded.ok().as_ref().and_then(|tx| tx.as_eip1559().cloned()) else {
            tracing::error!(hash = %stored.hash, "a stored transaction does not decode; it is left alone");
            return;
        };
        let (hash, raw) = (*signed.hash(), Bytes::from(stored.raw));
        let entry = self.unmined.entry(stored.nonce).or_insert_with(|| Entry {
            tx: signed.tx().clone(),
            payment: stored.payment,
            hashes: Vec::new(),
            raw: raw.clone(),
            slot: None,
            place: None,
            sent_at: Instant::now(),
            displaced: 0,
            over_cap_told: false,
        });
        entry.hashes.push(hash);
        if signed.tx().max_fee_per_gas >= entry.tx.max_fee_per_gas {
            (entry.tx, entry.raw, entry.payment) = (signed.tx().clone(), raw, stored.payment);
        }
        self.courier.watch(stored.nonce, hash, None);
    }

    /// Works until the lane's handle is dropped.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>, mut reports: mpsc::Receiver<Report>) {
        let mut tick = tokio::time::interval(TICK.min(self.limits.bump_after));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            tokio::select! {
                Some(report) = reports.recv() => self.note(report).await,
                count = jobs.recv_many(&mut batch, BATCH_MAX) => {
                    if count == 0 {
                        return;
                    }
                    self.launch(std::mem::take(&mut batch)).await;
                }
                _ = tick.tick() => self.tend().await,
            }
        }
    }

    /// Numbers, signs, stores, broadcasts, in this order.
    async fn launch(&mut self, jobs: Vec<Job>) {
        let fee = match self.ready().await {
            Ok(fee) => fee,
            Err(unsent) => return jobs.iter().for_each(|job| job.slot.end(Ended::Unsent(unsent.clone()))),
        };
        let mut signed: Vec<(u64, Entry)> = Vec::with_capacity(jobs.len());
        for job in jobs {
            signed.extend(self.sign_job(job, fee, &signed));
        }
        let stored = join_all(signed.iter().map(|(nonce, entry)| self.store(*nonce, entry))).await;
        let mut letters = Vec::with_capacity(stored.len());
        for ((nonce, mut entry), stored) in signed.into_iter().zip(stored) {
            match stored {
                Ok(()) => {
                    entry.sent_at = Instant::now();
                    letters.push((nonce, entry.letter()));
                    self.unmined.insert(nonce, entry);
                }
                Err(RecordError::Unavailable(error)) => {
                    tracing::error!(
                        nonce,
                        error = &error as &dyn std::error::Error,
                        "it is not known whether a transaction is stored"
                    );
                    if let Some(slot) = entry.slot.take() {
                        slot.end(Ended::Unclear { hash: entry.newest(), source: Box::new(error) });
                    }
                    self.unsure.insert(nonce, entry);
                }
                Err(error) => {
                    self.fees.release(entry.cost_max(), 0);
                    self.holes.insert(nonce);
                    if let Some(slot) = entry.slot {
                        slot.end(Ended::Unsent(Unsent::NotStored(Arc::new(error))));
                    }
                }
            }
        }
        self.courier.post(letters);
    }

    /// The fee, if anything may be signed now.
    async fn ready(&mut self) -> Result<Fee, Unsent> {
        self.look_up_unsure().await;
        if !self.unsure.is_empty() {
            return Err(Unsent::NotStored(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(
                "the store does not say what it has of an earlier transaction",
            ))));
        }
        self.fees.current(&self.node, self.key.alloy_address(), &self.limits).await
    }

    /// A job's transaction, or nothing if it must not or need not be sent; its slot then knows.
    fn sign_job(&mut self, job: Job, fee: Fee, batch: &[(u64, Entry)]) -> Option<(u64, Entry)> {
        let Job { order, slot, place } = job;
        let now = self.clock.now();
        let refuse = |ended| {
            slot.end(ended);
            None
        };
        if !slot.wanted() {
            return None;
        }
        if order.valid_until < now.plus(self.limits.settle_margin) {
            let left_ms = order.valid_until.since(now).as_millis();
            let margin_ms = self.limits.settle_margin.as_millis();
            let detail = format!(
                "the authorization ends in {left_ms} ms, too late for a settlement, which needs {margin_ms} ms"
            );
            return refuse(Ended::TooLate(rejected(code::VALID_BEFORE, detail)));
        }
        let same = |entry: &Entry| entry.payment == Some(order.payment);
        if self.unmined.values().any(same) || batch.iter().any(|(_, entry)| same(entry)) {
            return refuse(Ended::Unsent(Unsent::Twice));
        }
        let cost_max = u128::from(self.limits.gas_limit_max).saturating_mul(fee.max);
        if let Err(unsent) = self.fees.reserve(cost_max, now, &self.limits) {
            return refuse(Ended::Unsent(unsent));
        }
        let nonce = self.holes.first().copied().unwrap_or(self.next);
        let tx = self.transaction(nonce, TxKind::Call(order.token), order.calldata, fee);
        let (hash, raw) = sign(&self.key, &tx);
        if !slot.sign(hash) {
            self.fees.release(cost_max, 0);
            return None;
        }
        if !self.holes.remove(&nonce) {
            self.next = nonce.saturating_add(1);
        }
        let entry = Entry {
            tx,
            payment: Some(order.payment),
            hashes: vec![hash],
            raw,
            slot: Some(slot),
            place: Some(place),
            sent_at: Instant::now(),
            displaced: 0,
            over_cap_told: false,
        };
        Some((nonce, entry))
    }

    /// No access list and no value, ever: what a payer could have us pay gas for is the calldata we encoded ourselves.
    fn transaction(&self, nonce: u64, to: TxKind, input: Bytes, fee: Fee) -> TxEip1559 {
        TxEip1559 {
            chain_id: self.chain_id,
            nonce,
            gas_limit: self.limits.gas_limit_max,
            max_fee_per_gas: fee.max,
            max_priority_fee_per_gas: fee.tip,
            to,
            value: U256::ZERO,
            access_list: Default::default(),
            input,
        }
    }

    async fn store(&self, nonce: u64, entry: &Entry) -> Result<(), RecordError> {
        self.store
            .store_transaction(StoredTransaction {
                hash: TransactionId::new(entry.newest().to_string()),
                lane: self.lane.clone(),
                nonce,
                raw: entry.raw.to_vec(),
                payment: entry.payment,
                fate: TransactionFate::Open,
                stored_at: self.clock.now(),
            })
            .await
    }

    /// Asks the store for what it did not say when it was told.
    async fn look_up_unsure(&mut self) {
        while let Some((nonce, entry)) = self.unsure.pop_first() {
            let id = TransactionId::new(entry.newest().to_string());
            let open = self.store.open_transactions(&self.lane).await;
            match open.map(|open| open.iter().any(|stored| stored.hash == id)) {
                Ok(true) => {
                    self.courier.post([(nonce, entry.letter())]);
                    self.unmined.insert(nonce, entry);
                }
                Ok(false) => {
                    self.fees.release(entry.cost_max(), 0);
                    self.holes.insert(nonce);
                }
                Err(error) => {
                    tracing::error!(nonce, error = &error as &dyn std::error::Error, "the lane waits for the store");
                    self.unsure.insert(nonce, entry);
                    return;
                }
            }
        }
    }

    /// For what has been sent before, or takes the place of what has.
    fn send_again(&self, nonce: u64, entry: &Entry) {
        let (courier, hash, raw) = (self.courier.clone(), entry.newest(), entry.raw.clone());
        courier.watch(nonce, hash, entry.slot.clone());
        tokio::spawn(async move { courier.broadcast_again(nonce, hash, &raw).await });
    }

    async fn note(&mut self, report: Report) {
        match report {
            Report::Mined { nonce, hash, cost } => self.mined(nonce, hash, cost),
            Report::Underpriced { nonce, hash } => {
                if self.unmined.get(&nonce).is_some_and(|entry| entry.newest() == hash) {
                    self.bump(nonce).await;
                }
            }
            Report::Surveyed { mined } => {
                self.surveying = false;
                if let Some(mined) = mined {
                    self.surveyed(mined).await;
                }
            }
            Report::Displaced { nonce } => self.displaced(nonce),
        }
    }

    fn mined(&mut self, nonce: u64, hash: B256, cost: u128) {
        self.mined_below = self.mined_below.max(nonce.saturating_add(1));
        self.courier.forget(nonce);
        let Some(mut entry) = self.unmined.remove(&nonce) else { return };
        self.fees.release(entry.cost_max(), cost);
        self.close_replaced(&entry, Some(hash));
        (entry.slot, entry.place) = (None, None);
        self.recent.push_back((nonce, entry));
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
    }

    /// The nonce was used by a transaction that is none of ours: the key is in use elsewhere.
    fn displaced(&mut self, nonce: u64) {
        let Some(entry) = self.unmined.get_mut(&nonce) else { return };
        entry.displaced = entry.displaced.saturating_add(1);
        if entry.displaced < DISPLACED_MAX {
            return;
        }
        tracing::error!(lane = %self.lane, nonce, "another transaction used this nonce; is the relayer's key used elsewhere?");
        self.courier.forget(nonce);
        if let Some(entry) = self.unmined.remove(&nonce) {
            self.fees.release(entry.cost_max(), 0);
            self.close_replaced(&entry, None);
            if let Some(slot) = &entry.slot {
                slot.end(Ended::Unclear { hash: entry.newest(), source: "another transaction used its nonce".into() });
            }
        }
    }

    fn close_replaced(&self, entry: &Entry, mined: Option<B256>) {
        let replaced: Vec<B256> = entry.hashes.iter().copied().filter(|hash| Some(*hash) != mined).collect();
        if !replaced.is_empty() {
            let courier = self.courier.clone();
            tokio::spawn(async move {
                for hash in replaced {
                    courier.close(hash, TransactionFate::Replaced).await;
                }
            });
        }
    }

    /// Looks after what has been in flight for long.
    async fn tend(&mut self) {
        self.look_up_unsure().await;
        let patience = SURVEY_AFTER.min(self.limits.bump_after);
        let late = self.unmined.values().any(|entry| entry.sent_at.elapsed() >= patience);
        if late && !self.surveying {
            self.surveying = true;
            tokio::spawn(self.courier.clone().survey(self.key.alloy_address()));
        }
    }

    async fn surveyed(&mut self, mined: u64) {
        if mined >= self.mined_below {
            self.mined_below = mined;
            self.regressed = 0;
        } else {
            self.regressed = self.regressed.saturating_add(1);
            if self.regressed < REGRESSED_MAX {
                return;
            }
            tracing::warn!(lane = %self.lane, from = self.mined_below, to = mined, "the chain took transactions back");
            self.mined_below = mined;
            self.regressed = 0;
        }
        self.next = self.next.max(mined);
        self.find_holes(mined);
        self.fill_holes().await;
        self.push_late().await;
    }

    /// Every nonce from `mined` on that nothing of ours has.
    fn find_holes(&mut self, mined: u64) {
        let free = |nonce: &u64| !self.unmined.contains_key(nonce) && !self.unsure.contains_key(nonce);
        self.holes = (mined..self.next).filter(free).collect();
    }

    /// Fills the holes that others wait behind: with what was mined there before a reorganisation, or with nothing at all.
    async fn fill_holes(&mut self) {
        let Some(last) = self.unmined.last_key_value().map(|(nonce, _)| *nonce) else { return };
        let holes: Vec<u64> = self.holes.range(..last).copied().collect();
        for nonce in holes {
            let again = self.recent.iter().position(|(known, _)| *known == nonce);
            let entry = match again.and_then(|at| self.recent.remove(at)) {
                Some((_, mut entry)) => {
                    entry.sent_at = Instant::now();
                    entry
                }
                None => match self.filler(nonce).await {
                    Some(entry) => entry,
                    None => return,
                },
            };
            self.holes.remove(&nonce);
            self.fees.exchange(0, entry.cost_max());
            self.courier.post([(nonce, entry.letter())]);
            self.unmined.insert(nonce, entry);
        }
    }

    /// A stored transaction that does nothing but use its nonce.
    async fn filler(&mut self, nonce: u64) -> Option<Entry> {
        let fee = match self.fees.current(&self.node, self.key.alloy_address(), &self.limits).await {
            Ok(fee) => fee,
            Err(error) => {
                tracing::warn!(nonce, error = &error as &dyn std::error::Error, "a gap in the lane waits for a fee");
                return None;
            }
        };
        let tx = self.transaction(nonce, TxKind::Call(self.key.alloy_address()), Bytes::new(), fee);
        let (hash, raw) = sign(&self.key, &tx);
        let entry = Entry {
            tx,
            payment: None,
            hashes: vec![hash],
            raw,
            slot: None,
            place: None,
            sent_at: Instant::now(),
            displaced: 0,
            over_cap_told: false,
        };
        match self.store(nonce, &entry).await {
            Ok(()) => {
                tracing::info!(lane = %self.lane, nonce, "a gap in the lane is filled");
                Some(entry)
            }
            Err(error) => {
                tracing::error!(
                    nonce,
                    error = &error as &dyn std::error::Error,
                    "a gap in the lane could not be filled"
                );
                None
            }
        }
    }

    /// The first in line is late because of its fee, the others perhaps because of the first.
    async fn push_late(&mut self) {
        let market = self.fees.current(&self.node, self.key.alloy_address(), &self.limits).await.ok();
        let first = self.unmined.first_key_value().map(|(nonce, _)| *nonce);
        let late: Vec<u64> = self
            .unmined
            .iter()
            .filter(|(_, entry)| entry.sent_at.elapsed() >= self.limits.bump_after)
            .map(|(nonce, _)| *nonce)
            .collect();
        for nonce in late {
            let cheap = |entry: &Entry| market.is_some_and(|fee| entry.tx.max_fee_per_gas < fee.max / 2);
            if Some(nonce) == first || self.unmined.get(&nonce).is_some_and(cheap) {
                self.bump(nonce).await;
            } else if let Some(mut entry) = self.unmined.remove(&nonce) {
                entry.sent_at = Instant::now();
                self.send_again(nonce, &entry);
                self.unmined.insert(nonce, entry);
            }
        }
    }

    /// Replaces a transaction by one with the same nonce and call and a higher fee.
    async fn bump(&mut self, nonce: u64) {
        let fee = self.fees.current(&self.node, self.key.alloy_address(), &self.limits).await;
        let Some(mut entry) = self.unmined.remove(&nonce) else { return };
        entry.sent_at = Instant::now();
        let old = Fee { max: entry.tx.max_fee_per_gas, tip: entry.tx.max_priority_fee_per_gas };
        let market = fee.unwrap_or(old);
        match old.bumped(market, self.limits.fee_per_gas_max) {
            Some(fee) => self.replace(nonce, &mut entry, fee).await,
            None if !entry.over_cap_told => {
                entry.over_cap_told = true;
                tracing::warn!(lane = %self.lane, nonce, hash = %entry.newest(), "stuck at fee_per_gas_max; waiting for fees to fall");
            }
            None => {}
        }
        self.send_again(nonce, &entry);
        self.unmined.insert(nonce, entry);
    }

    async fn replace(&mut self, nonce: u64, entry: &mut Entry, fee: Fee) {
        let tx = TxEip1559 { max_fee_per_gas: fee.max, max_priority_fee_per_gas: fee.tip, ..entry.tx.clone() };
        let (hash, raw) = sign(&self.key, &tx);
        let replacement = Entry {
            tx,
            payment: entry.payment,
            hashes: vec![hash],
            raw,
            slot: None,
            place: None,
            sent_at: Instant::now(),
            displaced: 0,
            over_cap_told: false,
        };
        let replacement = match self.store(nonce, &replacement).await {
            Ok(()) => replacement,
            // Its payment has come to an end without it: all that is left to do is to free the lane.
            Err(RecordError::Illegal(_)) => match self.filler(nonce).await {
                Some(filler) => filler,
                None => return,
            },
            Err(error) => {
                tracing::error!(nonce, error = &error as &dyn std::error::Error, "a replacement was not stored");
                // Stored or not, it is never broadcast; if it is stored its payment's resolution may do so.
                self.courier.watch(nonce, hash, entry.slot.clone());
                return;
            }
        };
        tracing::info!(lane = %self.lane, nonce, old = %entry.newest(), new = %replacement.newest(), fee = fee.max, "a late transaction is replaced");
        let (old_cost, new_cost) = (entry.cost_max(), replacement.cost_max());
        entry.hashes.extend(&replacement.hashes);
        (entry.tx, entry.raw, entry.payment) = (replacement.tx, replacement.raw, replacement.payment);
        self.fees.exchange(old_cost, new_cost);
        if let Some(slot) = &entry.slot {
            slot.sign(entry.newest());
        }
    }
}

fn sign(key: &EvmKey, tx: &TxEip1559) -> (B256, Bytes) {
    let signed = tx.clone().into_signed(key.sign(tx.signature_hash()));
    (*signed.hash(), signed.encoded_2718().into())
}
