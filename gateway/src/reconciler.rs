//! Ends every doubt: asks the chain about payments that a crash, a dropped connection or a slow node left open, and takes back what a
//! reorganisation undid.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use farebox_core::{
    BlockRef, Network, Payment, PaymentEvent, PaymentState,
    ports::{Canonical, ChainWindow, LedgerUnavailable, Rail, RecordError, Settlement},
};
use futures_util::{StreamExt as _, stream};
use tracing::{debug, error, info, warn};

use crate::till::Till;

/// How many payments' questions to the chain are under way at once.
const RESOLVED_AT_ONCE: usize = 8;

/// How many blocks below a window are looked at in one round, after an outage.
const LOOKED_BACK_AT_ONCE: u32 = 64;

/// By how many blocks a window moves before the books are told how far they were compared. So many are looked at again after a restart.
const NOTED_EVERY: u64 = 16;

/// How the reconciler works.
#[derive(Clone, Copy, Debug)]
pub struct ReconcilerLimits {
    /// Pause between two rounds.
    pub interval: Duration,
    /// Most payments looked at in one round, and of an undone block taken back in one step.
    pub batch: u32,
    /// How long one payment's question to the chain may take.
    pub question_timeout: Duration,
}

impl Default for ReconcilerLimits {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), batch: 256, question_timeout: Duration::from_secs(20) }
    }
}

/// Works until it is dropped. A dropped round leaves nothing half done: every step is one record.
pub(crate) async fn run(till: Arc<Till>, limits: ReconcilerLimits) {
    let mut reconciler = Reconciler { till, limits, compared: HashMap::new(), below: HashMap::new() };
    loop {
        if let Err(error) = reconciler.round().await {
            warn!(error = &error as &dyn std::error::Error, "reconciler could not read the books; trying again");
        }
        tokio::time::sleep(limits.interval).await;
    }
}

struct Reconciler {
    till: Arc<Till>,
    limits: ReconcilerLimits,
    /// The window of each network that the books were last compared with.
    compared: HashMap<Network, ChainWindow>,
    /// The height below which nothing of a network need be looked at again, and what the books say it is.
    below: HashMap<Network, (u64, u64)>,
}

impl Reconciler {
    /// One look at everything open.
    async fn round(&mut self) -> Result<(), LedgerUnavailable> {
        let mut followed = HashSet::new();
        for rail in self.till.rails.clone() {
            for window in rail.windows().await {
                // Rails of one chain see one window.
                if followed.insert(window.network.clone()) {
                    self.compare(&rail, window).await?;
                }
            }
        }
        // After the comparison: who was marked by it waits longer from now on, not from the next round.
        self.till.marked.refresh(&*self.till.ledger).await?;
        let open = self.till.ledger.unresolved(self.till.clock.now(), self.limits.batch).await?;
        stream::iter(&open).for_each_concurrent(RESOLVED_AT_ONCE, |payment| self.resolve(payment)).await;
        Ok(())
    }

    /// Takes back what was settled in blocks that the chain no longer has. However many payments are settled in it, a window that has
    /// moved costs one question to the books, and one that has not costs none.
    async fn compare(&mut self, rail: &Arc<dyn Rail>, window: ChainWindow) -> Result<(), LedgerUnavailable> {
        let (Some(lowest), Some(head)) = (window.blocks.first().copied(), window.blocks.last().copied()) else {
            return Ok(());
        };
        // Blocks name their parents, so that windows with the same ends are the same.
        let same = |before: &ChainWindow| before.blocks.first() == Some(&lowest) && before.blocks.last() == Some(&head);
        if self.compared.get(&window.network).is_some_and(same) {
            return Ok(());
        }
        let mut certain = self.look_back(rail, &window.network, &lowest).await?;
        for block in self.till.ledger.settled_blocks(&window.network, lowest.number, u32::MAX).await? {
            // One above the head is seen when the window has come to it.
            if block.number > head.number || is_in(&window, &block) {
                continue;
            }
            certain &= self.look_again(rail, &window.network, &block).await?;
        }
        // What could not be found out, or done, is tried again although no block has come.
        if certain {
            self.compared.insert(window.network.clone(), window);
        }
        Ok(())
    }

    /// Looks at what was settled below the window and not compared since it was in one: while the gateway was down, or no node answered,
    /// the window may have moved over blocks that were undone. `false` if something is left.
    async fn look_back(
        &mut self,
        rail: &Arc<dyn Rail>,
        network: &Network,
        lowest: &BlockRef,
    ) -> Result<bool, LedgerUnavailable> {
        let (from, noted) = match self.below.get(network) {
            Some(known) => *known,
            None => {
                let noted = self.till.ledger.compared_below(network).await?;
                (noted, noted)
            }
        };
        let mut reached = lowest.number.max(from);
        // The window's lowest block names those below it, and so they are what they were.
        let joined = self.compared.get(network).is_some_and(|before| is_in(before, lowest));
        if from < lowest.number && !joined {
            let blocks = self.till.ledger.settled_blocks(network, from, LOOKED_BACK_AT_ONCE).await?;
            if blocks.len() >= LOOKED_BACK_AT_ONCE as usize {
                reached = blocks.last().map_or(reached, |last| last.number.min(reached));
            }
            for block in blocks.iter().filter(|block| block.number < lowest.number) {
                if !self.look_again(rail, network, block).await? {
                    return Ok(false);
                }
            }
        }
        let mut noted = noted;
        if reached >= noted.saturating_add(NOTED_EVERY) {
            self.till.ledger.set_compared_below(network, reached).await?;
            noted = reached;
        }
        self.below.insert(network.clone(), (reached, noted));
        Ok(reached >= lowest.number)
    }

    /// Asks the chain for a block, and takes back what was settled in it if it is gone; `false` if that is not certain, or not done.
    async fn look_again(
        &self,
        rail: &Arc<dyn Rail>,
        network: &Network,
        block: &BlockRef,
    ) -> Result<bool, LedgerUnavailable> {
        match rail.is_canonical(network, block).await {
            Ok(Canonical::Holds) => Ok(true),
            Ok(Canonical::Gone) => self.take_back(network, block).await,
            Err(error) => {
                warn!(%network, number = block.number, error = &*error, "block could not be looked at again");
                Ok(false)
            }
        }
    }

    /// Takes back everything that was settled in a block; `false` if something is left.
    async fn take_back(&self, network: &Network, block: &BlockRef) -> Result<bool, LedgerUnavailable> {
        loop {
            let payments = self.till.ledger.settled_in(network, block, self.limits.batch).await?;
            let mut taken_back = 0;
            for payment in &payments {
                error!(payment = %payment.id, payer = %payment.payer, block = block.number, "reorganisation: revenue is taken back");
                let event = vec![PaymentEvent::Reversed];
                match self.till.ledger.record(payment.id, event, self.till.clock.now()).await {
                    Ok(_) => taken_back += 1,
                    Err(error) => {
                        warn!(payment = %payment.id, error = &error as &dyn std::error::Error, "not taken back yet");
                    }
                }
            }
            if payments.is_empty() {
                return Ok(true);
            }
            if taken_back == 0 {
                return Ok(false);
            }
        }
    }

    async fn resolve(&self, payment: &Payment) {
        let till = &self.till;
        let event = if payment.state == PaymentState::Claimed {
            PaymentEvent::LeaseExpired
        } else {
            let Some(rail) = till.rails.iter().find(|rail| rail.name() == payment.rail) else {
                warn!(payment = %payment.id, rail = %payment.rail, "in doubt, and its rail is not configured any more");
                return;
            };
            match tokio::time::timeout(self.limits.question_timeout, rail.resolve(payment)).await {
                Ok(Settlement::Final { transaction, block }) => PaymentEvent::Settled { transaction, block },
                Ok(Settlement::Refused(rejected)) => PaymentEvent::Refused { code: rejected.code },
                Ok(Settlement::InDoubt { source, .. }) => {
                    // Once, and not every round.
                    if payment.state == PaymentState::InDoubt {
                        debug!(payment = %payment.id, error = &*source, "still in doubt");
                    } else {
                        warn!(payment = %payment.id, error = &*source, "in doubt");
                    }
                    PaymentEvent::Doubted
                }
                Err(_) => PaymentEvent::Doubted,
            }
        };
        let name = event.name();
        match till.ledger.record(payment.id, vec![event], till.clock.now()).await {
            Ok(now) if now.state != payment.state => {
                info!(payment = %payment.id, from = payment.state.as_str(), to = now.state.as_str(), "reconciled");
            }
            // The holder was only slow and got there first.
            Ok(_) | Err(RecordError::Illegal(_)) => {}
            Err(error) => {
                warn!(payment = %payment.id, event = name, error = &error as &dyn std::error::Error, "not reconciled");
            }
        }
    }
}

/// Whether the window's chain has this block; it has no gap.
fn is_in(window: &ChainWindow, block: &BlockRef) -> bool {
    let lowest = window.blocks.first().map_or(0, |lowest| lowest.number);
    let place = block.number.checked_sub(lowest).and_then(|place| usize::try_from(place).ok());
    place.and_then(|place| window.blocks.get(place)) == Some(block)
}
