//! One payment for a hash at a time, for wallets whose own books do not see to it.

use std::collections::HashSet;

use farebox_core::PaymentHash;
use parking_lot::Mutex;

/// Which hashes are being paid by this process.
#[derive(Debug, Default)]
pub(super) struct Paying(Mutex<HashSet<PaymentHash>>);

/// While it lives nobody else pays its hash.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    paying: &'a Paying,
    hash: PaymentHash,
}

impl Paying {
    /// `None` while another one is under way.
    pub(super) fn begin(&self, hash: PaymentHash) -> Option<Turn<'_>> {
        let free = self.0.lock().insert(hash);
        // Not made where it is not given out: dropped, it would end the other's turn.
        free.then(|| Turn { paying: self, hash })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.paying.0.lock().remove(&self.hash);
    }
}
