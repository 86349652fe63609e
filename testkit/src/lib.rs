//! Stand-ins for everything a test must have in hand: the clock, randomness, the chain behind a rail, and the store
//! behind the books; and the suite that every real ledger has to pass.
//!
//! Only tests depend on this crate.

mod chain;
mod clock;
pub mod conformance;
mod entropy;
mod memory;
mod passes;
mod payer;
mod rail;
mod tokens;
mod transfers;

pub use clock::ManualClock;
pub use entropy::SeededEntropy;
pub use memory::{Fault, MemoryLedger};
pub use passes::{TEST_TOKEN_MSAT, test_draw, test_draw_id, test_pass, test_preimage, test_token};
pub use payer::{
    Purchase, TEST_ASSET_DECIMALS, TestPayer, proof_of, test_asset, test_claim, test_hash, test_network, test_offer,
    test_request, test_transfer_claim, transaction_of,
};
pub use rail::{Call, ScriptedRail, SettleStep, SettleWith};
pub use tokens::{BillStep, ScriptedTokens};
pub use transfers::{ScriptedTransfers, TestLookups, TransferCall, Verdict};

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use farebox_core::{InstanceId, Timestamp};
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct InMemory(Mutex<Option<MemoryLedger>>);

    impl conformance::Books for InMemory {
        fn open(&self, instance: InstanceId, kept: Duration, now: Timestamp) -> Arc<dyn conformance::LedgerStore> {
            let mut last = self.0.lock();
            let next = last.as_ref().map_or_else(
                || MemoryLedger::new(instance.clone(), kept),
                |ledger| ledger.restarted_at(instance.clone(), now),
            );
            *last = Some(next.restarted_at(instance, now));
            Arc::new(next)
        }
    }

    #[test]
    fn the_model_passes_its_own_suite() {
        conformance::passes_everything(InMemory::default);
    }
}
