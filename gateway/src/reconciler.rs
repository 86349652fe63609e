//! Ends every doubt: asks the chain about payments that a crash, a dropped connection or a slow node left open, and looks again at
//! payments that a reorganisation could still undo.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    Payment, PaymentEvent, PaymentState,
    ports::{Canonical, LedgerUnavailable, Rail, RecordError, Settlement},
};
use tracing::{info, warn};

use crate::admission::Till;

/// How the reconciler works.
#[derive(Clone, Copy, Debug)]
pub struct ReconcilerLimits {
    /// Pause between two rounds.
    pub interval: Duration,
    /// Most payments looked at in one round, of each kind.
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
    loop {
        if let Err(error) = round(&till, &limits).await {
            warn!(error = &error as &dyn std::error::Error, "reconciler could not read the books; trying again");
        }
        tokio::time::sleep(limits.interval).await;
    }
}

/// One look at everything open.
pub(crate) async fn round(till: &Till, limits: &ReconcilerLimits) -> Result<(), LedgerUnavailable> {
    for rail in &till.rails {
        look_for_reorganisations(till, rail, limits).await?;
    }
    for payment in till.ledger.unresolved(till.clock.now(), limits.batch).await? {
        resolve(till, &payment, limits).await;
    }
    Ok(())
}

async fn resolve(till: &Till, payment: &Payment, limits: &ReconcilerLimits) {
    let event = if payment.state == PaymentState::Claimed {
        PaymentEvent::LeaseExpired
    } else {
        let Some(rail) = till.rails.iter().find(|rail| rail.name() == payment.rail) else {
            warn!(payment = %payment.id, rail = %payment.rail, "in doubt, and its rail is not configured any more");
            return;
        };
        match tokio::time::timeout(limits.question_timeout, rail.resolve(payment)).await {
            Ok(Settlement::Final { transaction, block }) => PaymentEvent::Settled { transaction, block },
            Ok(Settlement::Refused(rejected)) => PaymentEvent::Refused { code: rejected.code },
            Ok(Settlement::InDoubt { source, .. }) => {
                warn!(payment = %payment.id, error = &*source, "still in doubt");
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
            warn!(payment = %payment.id, event = name, error = &error as &dyn std::error::Error, "not reconciled")
        }
    }
}

/// Puts in doubt what was settled in a block that the chain no longer has.
async fn look_for_reorganisations(
    till: &Till,
    rail: &Arc<dyn Rail>,
    limits: &ReconcilerLimits,
) -> Result<(), LedgerUnavailable> {
    for (network, floor) in rail.revocable().await {
        for block in till.ledger.settled_blocks(&network, floor).await? {
            match rail.is_canonical(&network, &block).await {
                Ok(Canonical::Holds) => {}
                Ok(Canonical::Gone) => {
                    doubt(till, block.number, &till.ledger.settled_in(&network, &block, limits.batch).await?).await;
                }
                Err(error) => {
                    warn!(%network, number = block.number, error = &*error, "block could not be looked at again")
                }
            }
        }
    }
    Ok(())
}

async fn doubt(till: &Till, number: u64, payments: &[Payment]) {
    for payment in payments {
        warn!(payment = %payment.id, block = number, "reorganisation: revenue is in doubt");
        if let Err(error) = till.ledger.record(payment.id, vec![PaymentEvent::Doubted], till.clock.now()).await {
            warn!(payment = %payment.id, error = &error as &dyn std::error::Error, "doubt not recorded");
        }
    }
}
