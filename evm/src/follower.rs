//! The end of a chain, followed block by block: with one question a block, however many payments wait for finality.
//!
//! Sources lag and are exchanged for one another, so a lower head is no reorganisation, and another block at a known height is
//! believed only once every source that answers says so.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use alloy::primitives::{B256, U256};
use farebox_core::{
    BlockRef, Finality,
    ports::{BoxError, Canonical},
};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    ChainConfig,
    chain::Chain,
    node::{FeeHistory, Header, Node, ask},
};

/// Whoever asks again within this time gets the answer of before.
const POLL_MIN: Duration = Duration::from_millis(200);
/// The most blocks that are kept, for a chain whose `finalized` lags far behind.
const BLOCKS_MAX: u64 = 2_048;
/// Blocks in one batch; nodes that take batches take this many.
const BATCH_MAX: usize = 50;
/// How long a fee is told to payers.
const FEE_FRESH: Duration = Duration::from_secs(30);
/// How long an old one is told if there is no newer.
const FEE_STALE_MAX: Duration = Duration::from_secs(600);
/// Blocks that a usual tip is taken from.
const FEE_BLOCKS: u64 = 5;

/// What is known of the end of one chain.
#[derive(Debug)]
pub(crate) struct Follower {
    /// The blocks that may still be undone, lowest first, each the parent of the next.
    blocks: Mutex<Arc<[Link]>>,
    polled: Mutex<Option<Instant>>,
    fee: Mutex<Option<(Instant, u128)>>,
    /// One poll at a time: the others wait for its answer.
    turn: Semaphore,
    reorganisations: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    block: BlockRef,
    parent: B256,
}

impl From<&Header> for Link {
    fn from(header: &Header) -> Self {
        Self { block: header.block(), parent: header.parent_hash }
    }
}

impl Default for Follower {
    fn default() -> Self {
        Self {
            blocks: Mutex::new(Arc::default()),
            polled: Mutex::default(),
            fee: Mutex::default(),
            turn: Semaphore::new(1),
            reorganisations: AtomicU64::new(0),
        }
    }
}

impl Follower {
    /// What a unit of gas costs a payer about now, wei; nothing if that was not to be found out for a while.
    pub(crate) fn fee_per_gas(&self) -> Option<u128> {
        self.fee.lock().filter(|(since, _)| since.elapsed() < FEE_STALE_MAX).map(|(_, fee)| fee)
    }

    /// How many reorganisations were seen.
    pub(crate) fn reorganisations(&self) -> u64 {
        self.reorganisations.load(Ordering::Relaxed)
    }

    /// The blocks that may still be undone, up to the newest; never empty.
    ///
    /// # Errors
    /// The head could not be read, or the sources disagree about it.
    pub(crate) async fn window(&self, chain: &Chain) -> Result<Vec<BlockRef>, BoxError> {
        let _turn = self.turn.acquire().await?;
        let fresh = self.polled.lock().is_some_and(|at| at.elapsed() < POLL_MIN);
        if !fresh {
            self.poll(chain).await?;
            *self.polled.lock() = Some(Instant::now());
        }
        Ok(self.blocks.lock().iter().map(|link| link.block).collect())
    }

    async fn poll(&self, chain: &Chain) -> Result<(), BoxError> {
        let (head, finalized, ()) =
            futures_util::join!(chain.node.head(), finalized(chain), self.refresh_fee(&chain.node));
        let head = head?;
        let lowest = lowest(&chain.config, head.number.to(), finalized);
        let known = self.blocks.lock().clone();
        let mut blocks = follow(chain, &known, &head, lowest).await?;
        blocks.retain(|link| link.block.number >= lowest);
        *self.blocks.lock() = blocks.into();
        Ok(())
    }

    /// For bills alone, so that a node that does not say leaves them without.
    pub(crate) async fn refresh_fee(&self, node: &Node) {
        if self.fee.lock().is_some_and(|(since, _)| since.elapsed() < FEE_FRESH) {
            return;
        }
        match node.batch(ask::fee_history(FEE_BLOCKS)).await {
            Ok(history) => *self.fee.lock() = usual_fee(&history).map(|fee| (Instant::now(), fee)),
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "the network's fee is not known"),
        }
    }
}

/// The next block's base fee and the middle of the tips of late, wei.
fn usual_fee(history: &FeeHistory) -> Option<u128> {
    let small = |wei: &U256| u128::try_from(*wei).unwrap_or(u128::MAX);
    let base = history.base_fee_per_gas.last().map(small)?;
    let mut tips: Vec<u128> = history.reward.iter().flatten().filter_map(|block| block.first().map(small)).collect();
    tips.sort_unstable();
    Some(base.saturating_add(tips.get(tips.len() / 2).copied().unwrap_or(0)))
}

/// The height of the newest finalized block, if the chain's payments are watched down to it.
async fn finalized(chain: &Chain) -> Option<u64> {
    let config = &chain.config;
    let by_tag = config.confirmations.iter().any(|tier| tier.finality == Finality::Finalized);
    if !by_tag && config.marked_finality != Finality::Finalized {
        return None;
    }
    let found = chain.node.tagged("finalized").await;
    found.ok().map(|header| header.number.to())
}

/// The lowest block that may still be undone.
fn lowest(config: &ChainConfig, head: u64, finalized: Option<u64>) -> u64 {
    let depth = head.saturating_sub(config.limits.watch_depth.min(BLOCKS_MAX));
    finalized.map_or(depth, |finalized| finalized.clamp(head.saturating_sub(BLOCKS_MAX), head))
}

/// The blocks up to `head`, on what is known.
async fn follow(chain: &Chain, known: &[Link], head: &Header, lowest: u64) -> Result<Vec<Link>, BoxError> {
    let Some(top) = known.last() else { return anew(chain, head, lowest).await };
    let number: u64 = head.number.to();
    if number <= top.block.number {
        let same = known.iter().find(|link| link.block.number == number);
        return match same {
            Some(link) if link.block.hash != head.hash.0 => undone(chain, known, link, head, lowest).await,
            // Not a new block: the head of before, or a source that lags.
            Some(_) | None => Ok(known.to_vec()),
        };
    }
    if top.block.number < lowest {
        return anew(chain, head, lowest).await;
    }
    let mut new = links(chain, top.block.number + 1..number).await?;
    new.push(Link::from(head));
    if !linked(&new) {
        return Err("the chain changed while it was read".into());
    }
    if new.first().is_some_and(|link| link.parent.0 == top.block.hash) {
        return Ok([known, &new].concat());
    }
    undone(chain, known, top, head, lowest).await
}

/// A source says that another block is where `link` was.
async fn undone(chain: &Chain, known: &[Link], link: &Link, head: &Header, lowest: u64) -> Result<Vec<Link>, BoxError> {
    match chain.is_canonical(&link.block).await? {
        Canonical::Holds if link.block.number == head.number.to::<u64>() => Ok(known.to_vec()),
        Canonical::Holds => Err("a source is on another branch of the chain".into()),
        Canonical::Gone => {
            tracing::warn!(network = %chain.config.network, number = link.block.number, "a reorganisation");
            chain.follower.reorganisations.fetch_add(1, Ordering::Relaxed);
            anew(chain, head, lowest).await
        }
    }
}

async fn anew(chain: &Chain, head: &Header, lowest: u64) -> Result<Vec<Link>, BoxError> {
    let mut blocks = links(chain, lowest..head.number.to()).await?;
    blocks.push(Link::from(head));
    if linked(&blocks) { Ok(blocks) } else { Err("the chain changed while it was read".into()) }
}

async fn links(chain: &Chain, numbers: Range<u64>) -> Result<Vec<Link>, BoxError> {
    let numbers: Vec<u64> = numbers.collect();
    let mut found = Vec::with_capacity(numbers.len());
    for chunk in numbers.chunks(BATCH_MAX) {
        let asked: Vec<_> = chunk.iter().map(|number| ask::block(*number)).collect();
        for header in chain.node.batch(asked).await? {
            found.push(Link::from(&header.ok_or("a source lacks a block below the head")?));
        }
    }
    Ok(found)
}

fn linked(blocks: &[Link]) -> bool {
    blocks
        .windows(2)
        .all(|pair| pair[1].parent.0 == pair[0].block.hash && pair[1].block.number == pair[0].block.number + 1)
}
