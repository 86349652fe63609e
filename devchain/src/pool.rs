//! Signed transactions that wait for a block.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use alloy::consensus::transaction::Recovered;
use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::primitives::map::{AddressMap, B256Map};
use alloy::primitives::{Address, B256, U256};

use crate::limits::{POOL_TRANSACTIONS_MAX, PRICE_BUMP_PERCENT, SENDER_TRANSACTIONS_MAX};
use crate::send::SendError;

/// A signed transaction and who signed it.
pub(crate) type SignedTransaction = Arc<Recovered<TxEnvelope>>;

/// At most one transaction a nonce and sender; those after a nonce gap wait until it is filled.
#[derive(Default)]
pub(crate) struct Pool {
    senders: AddressMap<BTreeMap<u64, Waiting>>,
    places: B256Map<(Address, u64)>,
    arrivals: u64,
}

struct Waiting {
    tx: SignedTransaction,
    arrival: u64,
}

impl Pool {
    pub(crate) fn get(&self, hash: &B256) -> Option<&SignedTransaction> {
        let (sender, nonce) = self.places.get(hash)?;
        Some(&self.senders.get(sender)?.get(nonce)?.tx)
    }

    /// Adds a transaction that is valid by itself, or puts it in the place of one with the same nonce that pays less.
    ///
    /// # Errors
    /// `ReplacementUnderpriced`, `PoolFull` and `SenderLimit`; the pool is then as it was.
    pub(crate) fn add(&mut self, tx: SignedTransaction) -> Result<(), SendError> {
        let (sender, nonce) = (tx.signer(), tx.nonce());
        let waiting = self.senders.get(&sender);
        match waiting.and_then(|waiting| waiting.get(&nonce)) {
            Some(old) if !outbids(&tx, &old.tx) => return Err(SendError::ReplacementUnderpriced),
            Some(old) => {
                self.places.remove(old.tx.tx_hash());
            }
            None if self.places.len() >= POOL_TRANSACTIONS_MAX => return Err(SendError::PoolFull),
            None if waiting.is_some_and(|waiting| waiting.len() >= SENDER_TRANSACTIONS_MAX) => {
                return Err(SendError::SenderLimit);
            }
            None => {}
        }
        self.arrivals += 1;
        self.places.insert(*tx.tx_hash(), (sender, nonce));
        self.senders.entry(sender).or_default().insert(nonce, Waiting { tx, arrival: self.arrivals });
        Ok(())
    }

    /// What the sender's transactions before `nonce` may cost at most, in wei; saturates.
    pub(crate) fn cost_before(&self, sender: Address, nonce: u64) -> U256 {
        let waiting = self.senders.get(&sender).into_iter().flat_map(|waiting| waiting.range(..nonce));
        waiting.fold(U256::ZERO, |sum, (_, waiting)| sum.saturating_add(cost(&waiting.tx)))
    }

    /// The nonce after the sender's last transaction that is next to `account_nonce` without a gap.
    pub(crate) fn next_nonce(&self, sender: Address, account_nonce: u64) -> u64 {
        let waiting = self.senders.get(&sender);
        (account_nonce..).find(|nonce| waiting.is_none_or(|waiting| !waiting.contains_key(nonce))).unwrap_or(u64::MAX)
    }

    /// The transactions that could go into a block with `base_fee`: the best tip first, the first arrived among equals,
    /// nonces of one sender in order. `account_nonce` tells each sender's nonce on chain.
    pub(crate) fn ready(&self, base_fee: u64, account_nonce: impl Fn(Address) -> u64) -> Ready<'_> {
        let mut ready = Ready { pool: self, base_fee, heap: BinaryHeap::new() };
        for sender in self.senders.keys() {
            ready.offer(*sender, account_nonce(*sender));
        }
        ready
    }

    pub(crate) fn remove(&mut self, hash: &B256) {
        let Some((sender, nonce)) = self.places.remove(hash) else { return };
        if let Some(waiting) = self.senders.get_mut(&sender) {
            waiting.remove(&nonce);
            if waiting.is_empty() {
                self.senders.remove(&sender);
            }
        }
    }
}

/// Walks the pool in the order of a block. After an item is used, [`Ready::used`] brings its successor in;
/// without it, the sender's later transactions stay out.
pub(crate) struct Ready<'a> {
    pool: &'a Pool,
    base_fee: u64,
    heap: BinaryHeap<(u128, Reverse<u64>, Address, u64)>,
}

impl<'a> Ready<'a> {
    pub(crate) fn next(&mut self) -> Option<&'a SignedTransaction> {
        let (_, _, sender, nonce) = self.heap.pop()?;
        self.pool.senders.get(&sender)?.get(&nonce).map(|waiting| &waiting.tx)
    }

    pub(crate) fn used(&mut self, tx: &SignedTransaction) {
        self.offer(tx.signer(), tx.nonce() + 1);
    }

    fn offer(&mut self, sender: Address, nonce: u64) {
        let waiting = self.pool.senders.get(&sender).and_then(|waiting| waiting.get(&nonce));
        if let Some(Waiting { tx, arrival }) = waiting
            && let Some(tip) = tx.effective_tip_per_gas(self.base_fee)
        {
            self.heap.push((tip, Reverse(*arrival), sender, nonce));
        }
    }
}

/// The most a transaction may cost its sender, in wei: `gas limit * fee + value`; saturates.
pub(crate) fn cost(tx: &TxEnvelope) -> U256 {
    U256::from(tx.gas_limit()).saturating_mul(U256::from(tx.max_fee_per_gas())).saturating_add(tx.value())
}

fn outbids(new: &TxEnvelope, old: &TxEnvelope) -> bool {
    let bumped =
        |fee: u128| fee.saturating_add(fee.saturating_mul(PRICE_BUMP_PERCENT).div_ceil(100)).max(fee.saturating_add(1));
    let tip = |tx: &TxEnvelope| tx.max_priority_fee_per_gas().unwrap_or_else(|| tx.max_fee_per_gas());
    new.max_fee_per_gas() >= bumped(old.max_fee_per_gas()) && tip(new) >= bumped(tip(old))
}
