//! Payers of payments that a reorganisation undid: theirs wait for more than others'.

use std::collections::HashSet;

use arc_swap::ArcSwap;
use farebox_core::{
    Payer,
    ports::{Ledger, LedgerUnavailable},
};

/// The most payers that are remembered; the ledger gives the newest.
const PAYERS_MAX: u32 = 10_000;

/// The marked payers, as the books last told.
#[derive(Debug, Default)]
pub(crate) struct MarkedPayers(ArcSwap<HashSet<String>>);

impl MarkedPayers {
    /// Whether this payer is one. Addresses are compared by value.
    pub(crate) fn contains(&self, payer: &Payer) -> bool {
        let marked = self.0.load();
        !marked.is_empty() && marked.contains(&payer.as_str().to_ascii_lowercase())
    }

    /// Asks the books again.
    ///
    /// # Errors
    /// Unavailable; it goes on with what it knew.
    pub(crate) async fn refresh(&self, ledger: &dyn Ledger) -> Result<(), LedgerUnavailable> {
        let marked = ledger.marked_payers(PAYERS_MAX).await?;
        self.0.store(marked.iter().map(|payer| payer.as_str().to_ascii_lowercase()).collect::<HashSet<_>>().into());
        Ok(())
    }
}
