//! Payers whose settlement reverted. A contract wallet can accept its signature in a simulation, which costs nothing, and refuse it in
//! the transaction, which costs us gas: without a pause it would do so until the day's gas is spent.

use std::{collections::HashMap, time::Duration};

use farebox_core::EvmAddress;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long such a payer is turned away.
const PAUSE: Duration = Duration::from_secs(600);

/// How many are remembered; the oldest make room.
const PAYERS_MAX: usize = 10_000;

/// Who bounced, and when.
#[derive(Debug, Default)]
pub(crate) struct Bounced(Mutex<HashMap<EvmAddress, Instant>>);

impl Bounced {
    /// A settlement of this payer reverted.
    pub(crate) fn note(&self, payer: EvmAddress) {
        let mut payers = self.0.lock();
        if payers.len() >= PAYERS_MAX {
            payers.retain(|_, since| since.elapsed() < PAUSE);
        }
        if payers.len() >= PAYERS_MAX
            && let Some(oldest) = payers.iter().min_by_key(|(_, since)| **since).map(|(payer, _)| *payer)
        {
            payers.remove(&oldest);
        }
        payers.insert(payer, Instant::now());
    }

    /// How much longer this payer is turned away.
    pub(crate) fn left(&self, payer: EvmAddress) -> Option<Duration> {
        let since = *self.0.lock().get(&payer)?;
        PAUSE.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_payer_who_bounced_is_turned_away_for_a_while() {
        let (bounced, payer) = (Bounced::default(), EvmAddress([1; 20]));
        assert_eq!(bounced.left(payer), None);
        bounced.note(payer);
        assert!(bounced.left(payer).is_some() && bounced.left(EvmAddress([2; 20])).is_none());
        tokio::time::advance(PAUSE).await;
        assert_eq!(bounced.left(payer), None);
    }
}
