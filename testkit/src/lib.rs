//! Stand-ins for everything a test must have in hand: the clock, randomness, the chain behind a rail, and the store
//! behind the books; and the suite that every real ledger has to pass.
//!
//! Only tests depend on this crate.

mod clock;
mod entropy;
mod memory;
mod payer;
mod rail;

pub use clock::ManualClock;
pub use entropy::SeededEntropy;
pub use memory::{Fault, MemoryLedger};
pub use payer::{TEST_ASSET_DECIMALS, TestPayer, proof_of, test_asset, test_network};
pub use rail::{Call, ScriptedRail, SettleStep, SettleWith};
