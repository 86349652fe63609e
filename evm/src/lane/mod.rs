//! The relayer's lane on one chain: one task alone numbers, signs, stores and only then broadcasts its transactions.
//!
//! What a crash leaves: a transaction that was stored is broadcast again at the next start, one that was not never existed.

mod courier;
mod fees;
mod market;
mod slot;
mod writer;

use std::{sync::Arc, time::Duration};

use alloy::primitives::{Address, Bytes};
use farebox_core::{
    LaneKey, Network, PaymentId, Timestamp,
    ports::{Clock, TransactionStore},
};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};

use self::{courier::Courier, slot::Slot, writer::Writer};
pub(crate) use self::{
    fees::Quote,
    market::{CostUnknown, Market, SETTLEMENT_GAS},
    slot::{Ended, Unsent},
};
use crate::{ChainConfig, ChainLimits, ConnectError, EvmKey, node::Node};

/// Reports from couriers that wait for the lane; couriers wait when it is full.
const REPORTS_MAX: usize = 256;

/// How long a lane that could send nothing is believed to be able to send nothing.
const STALL_BELIEVED: Duration = Duration::from_secs(5);

/// The way into a lane. The lane ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Lane {
    jobs: mpsc::Sender<Job>,
    places: Arc<Semaphore>,
    waiting: Semaphore,
    limits: ChainLimits,
    market: Arc<Market>,
    /// When and why the last settlement found that nothing can be sent.
    stalled: Mutex<Option<(Instant, Unsent)>>,
}

/// A settlement to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) payment: PaymentId,
    pub(crate) token: Address,
    pub(crate) calldata: Bytes,
    pub(crate) valid_until: Timestamp,
}

#[derive(Debug)]
struct Job {
    order: Order,
    slot: Arc<Slot>,
    place: OwnedSemaphorePermit,
}

impl Lane {
    /// Learns what is in flight, from the ledger and the chain, and starts the lane's tasks.
    ///
    /// # Errors
    /// The node or the ledger did not say.
    pub(crate) async fn start(
        config: &ChainConfig,
        relayer: &EvmKey,
        chain_id: u64,
        node: &Node,
        store: Arc<dyn TransactionStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConnectError> {
        let (jobs, jobs_in) = mpsc::channel(config.limits.in_flight_max);
        let (reports, reports_in) = mpsc::channel(REPORTS_MAX);
        let market = Market::new(config);
        if let Err(error) = market.refresh(node).await {
            tracing::warn!(network = %config.network, error = &error as &dyn std::error::Error, "what gas costs could not be read");
        }
        tokio::spawn(Market::keep(Arc::downgrade(&market), node.clone()));
        let courier = Courier::new(node.clone(), store.clone(), reports, market.clone(), &config.limits);
        let writer = Writer::restore(config, relayer, chain_id, node, courier.clone(), store, clock).await?;
        tokio::spawn(courier.clone().carry_outbox());
        tokio::spawn(courier.watch_receipts());
        tokio::spawn(writer.run(jobs_in, reports_in));
        Ok(Self {
            jobs,
            places: Arc::new(Semaphore::new(config.limits.in_flight_max)),
            waiting: Semaphore::new(config.limits.lane_queue_max),
            limits: config.limits.clone(),
            market,
            stalled: Mutex::default(),
        })
    }

    /// Sends a settlement and waits until it is mined, but no longer than `deadline`. A dropped future leaves no transaction, or
    /// one that the lane goes on with.
    pub(crate) async fn send(&self, order: Order, deadline: Instant) -> Ended {
        let ended = self.try_send(order, deadline).await;
        *self.stalled.lock() = match &ended {
            Ended::Unsent(unsent) if unsent.holds_for_others() => Some((Instant::now(), unsent.clone())),
            _ => None,
        };
        ended
    }

    /// What a settlement of this token is expected to cost, wei; told without asking anybody.
    ///
    /// # Errors
    /// The chain has not told for too long.
    pub(crate) fn settlement_cost(&self, token: Address) -> Result<u128, CostUnknown> {
        self.market.settlement_cost(token)
    }

    /// Why nothing could be sent a moment ago, such as a relayer without gas. Whoever asks before work is done saves the work; now
    /// and then one is let through, to find out.
    pub(crate) fn stalled(&self) -> Option<Unsent> {
        let stalled = self.stalled.lock();
        stalled.as_ref().filter(|(since, _)| since.elapsed() < STALL_BELIEVED).map(|(_, unsent)| unsent.clone())
    }

    /// How many transactions are on their way.
    pub(crate) fn in_flight(&self) -> usize {
        self.limits.in_flight_max.saturating_sub(self.places.available_permits())
    }

    async fn try_send(&self, order: Order, deadline: Instant) -> Ended {
        let Some(place) = self.place().await else { return Ended::Unsent(Unsent::NoPlace) };
        let slot = Slot::new();
        let _leaving = Leaving(slot.clone());
        let job = Job { order, slot: slot.clone(), place };
        if self.jobs.send(job).await.is_err() {
            return Ended::Unsent(Unsent::Stopped);
        }
        slot.wait(deadline).await
    }

    /// A place among those in flight: waited for a while, and only by so many.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        let _waiting = self.waiting.try_acquire().ok()?;
        tokio::time::timeout(self.limits.lane_wait, self.places.clone().acquire_owned()).await.ok()?.ok()
    }
}

struct Leaving(Arc<Slot>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

/// The name of a key's lane on a network.
pub(crate) fn lane_key(network: &Network, relayer: farebox_core::EvmAddress) -> LaneKey {
    LaneKey::new(format!("{network}:{relayer:x}"))
}
