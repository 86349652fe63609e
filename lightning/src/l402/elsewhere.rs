//! Invoices of a node that was here before. The operator may have put another in its place, or the same may have another name now: it is
//! asked all the same, for a buyer may have paid.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use farebox_core::{PaymentHash, Timestamp, ports::NodeError};
use tokio::time::Instant;

use super::{L402, follow::RoundError};

/// Between two passes through all of them.
const PASS_EVERY: Duration = Duration::from_secs(3600);
/// The most asked for between two reads of the news.
const AT_ONCE_MAX: u32 = 100;

/// A pass through all of them, a few at a time.
pub(super) struct Elsewhere {
    pub(super) next_at: Instant,
    /// The last that was asked for.
    after: Option<(Timestamp, PaymentHash)>,
    unknown: u32,
}

impl Elsewhere {
    pub(super) fn new() -> Self {
        Self { next_at: Instant::now(), after: None, unknown: 0 }
    }

    /// Asks for the next few if it is time. What the node does not know stays as it is: that it was not paid only its own node can say.
    pub(super) async fn ask(&mut self, rail: &L402, node: &Arc<str>) -> Result<(), RoundError> {
        if Instant::now() < self.next_at {
            return Ok(());
        }
        let invoices = rail.maker.books.unsettled_elsewhere(node, self.after, AT_ONCE_MAX).await?;
        let (mut after, mut unknown, mut failed) = (self.after, self.unknown, None);
        let mut heard = Vec::new();
        for invoice in &invoices {
            // Also if the node fails at it: it must not keep the others from being asked for.
            after = Some((invoice.expires_at, invoice.payment_hash));
            match rail.maker.link.invoice_news(invoice.payment_hash).await {
                Ok(Some(status)) => {
                    let news = rail.overdue_news(invoice, Some(status));
                    heard.extend(news.map(|news| (invoice.payment_hash, news)));
                }
                Ok(None) | Err(NodeError::Refused { .. }) => unknown += 1,
                Err(error) => {
                    unknown += 1;
                    failed = Some(error);
                    break;
                }
            }
        }
        rail.note(&heard, None).await?;
        (self.after, self.unknown) = (after, unknown);
        if let Some(error) = failed {
            return Err(error.into());
        }
        if u32::try_from(invoices.len()).is_ok_and(|asked| asked < AT_ONCE_MAX) {
            self.end_pass(rail);
        }
        Ok(())
    }

    fn end_pass(&mut self, rail: &L402) {
        if self.unknown > 0 {
            tracing::error!(
                node = rail.maker.link.label(),
                invoices = self.unknown,
                "invoices of another node may have been paid, and this one does not know them: only theirs can tell"
            );
        }
        rail.unknown_elsewhere.store(self.unknown, Ordering::Relaxed);
        *self = Self { next_at: Instant::now() + PASS_EVERY, after: None, unknown: 0 };
    }
}
