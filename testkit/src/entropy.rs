//! Randomness that repeats.

use std::fmt;

use farebox_core::ports::Entropy;
use parking_lot::Mutex;
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};

/// The same bytes for the same seed. Never for keys.
pub struct SeededEntropy {
    seed: u64,
    rng: Mutex<StdRng>,
}

impl SeededEntropy {
    /// From a seed, which a failing test should print.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, rng: Mutex::new(StdRng::seed_from_u64(seed)) }
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.rng.lock().fill_bytes(bytes);
    }
}

impl fmt::Debug for SeededEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeededEntropy").field("seed", &self.seed).finish_non_exhaustive()
    }
}
