//! What gas costs now, what the relayer has, and what it may spend in a day.

use std::{sync::Arc, time::Duration};

use alloy::primitives::{Address, U256};
use farebox_core::Timestamp;
use tokio::time::Instant;

use super::slot::Unsent;
use crate::{
    ChainLimits,
    node::{NoAnswer, Node, ask},
};

/// For how long a quote is good: about one block.
const FRESH: Duration = Duration::from_secs(2);
/// For how long an old quote is used if the node does not give a new one.
const STALE_MAX: Duration = Duration::from_secs(30);
/// Tip when recent blocks tell none: 0.001 gwei.
pub(super) const TIP_MIN: u128 = 1_000_000;

/// What a transaction offers per gas, wei.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fee {
    pub(crate) max: u128,
    pub(crate) tip: u128,
}

impl Fee {
    /// A fee that replaces this one at the same nonce: at least an eighth more of both, and what the market asks. `None` if
    /// that is over the cap. Nodes want 10 to 12.5 per cent.
    pub(crate) fn bumped(self, market: Self, cap: u128) -> Option<Self> {
        let more = |fee: u128| fee.saturating_add(fee / 8).saturating_add(1);
        if more(self.max) > cap {
            return None;
        }
        let max = more(self.max).max(market.max).min(cap);
        Some(Self { max, tip: more(self.tip).max(market.tip).min(max) })
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Quote {
    base: u128,
    tip: u128,
    balance: u128,
}

impl Quote {
    /// A node's answers as a quote.
    pub(crate) async fn ask(node: &Node, relayer: Address) -> Result<Self, NoAnswer> {
        // The head goes along so that a balance from a source that lags is known for one.
        let (history, balance, _) = node.batch((ask::fee_history(1), ask::balance(relayer), ask::head())).await?;
        let small = |wei: &U256| u128::try_from(*wei).unwrap_or(u128::MAX);
        let base = history.base_fee_per_gas.last().map_or(0, small);
        let tip = history.reward.iter().flatten().flatten().next().map_or(0, small).max(TIP_MIN);
        Ok(Self { base, tip, balance: small(&balance) })
    }

    /// Twice the base fee, which carries a transaction over six full blocks, and a usual tip; never over the cap.
    pub(crate) fn fee(&self, cap: u128) -> Result<Fee, Unsent> {
        if self.base.saturating_add(TIP_MIN) > cap {
            return Err(Unsent::FeeOverCap { base_fee: self.base, cap });
        }
        let max = self.base.saturating_mul(2).saturating_add(self.tip).min(cap);
        Ok(Fee { max, tip: self.tip.min(max) })
    }

    pub(crate) const fn balance(&self) -> u128 {
        self.balance
    }
}

/// Fees and spending of one lane.
#[derive(Debug)]
pub(super) struct Fees {
    quote: Option<(Instant, Quote)>,
    day: u64,
    /// Spent today, wei.
    spent: u128,
    /// What is in flight may spend, wei.
    reserved: u128,
}

impl Fees {
    pub(super) const fn new() -> Self {
        Self { quote: None, day: 0, spent: 0, reserved: 0 }
    }

    /// The fee of now.
    pub(super) async fn current(&mut self, node: &Node, relayer: Address, limits: &ChainLimits) -> Result<Fee, Unsent> {
        let age = self.quote.map(|(at, _)| at.elapsed());
        if age.is_none_or(|age| age >= FRESH) {
            match Quote::ask(node, relayer).await {
                Ok(quote) => self.quote = Some((Instant::now(), quote)),
                Err(error) if age.is_none_or(|age| age >= STALE_MAX) => {
                    return Err(Unsent::FeeUnknown(Arc::new(error)));
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the fee of up to 30 s ago is used")
                }
            }
        }
        match self.quote {
            Some((_, quote)) => quote.fee(limits.fee_per_gas_max),
            None => Err(Unsent::Stopped),
        }
    }

    /// Sets aside what one settlement may cost at most.
    pub(super) fn reserve(&mut self, cost_max: u128, now: Timestamp, limits: &ChainLimits) -> Result<(), Unsent> {
        let day = now.unix_s() / 86_400;
        if day != self.day {
            (self.day, self.spent) = (day, 0);
        }
        let reserved = self.reserved.saturating_add(cost_max);
        if self.spent.saturating_add(reserved) > limits.gas_per_day_max {
            return Err(Unsent::DayOverCap { cap: limits.gas_per_day_max });
        }
        let balance = self.quote.map_or(0, |(_, quote)| quote.balance());
        if reserved > balance {
            return Err(Unsent::NoGas { balance, needed: reserved });
        }
        self.reserved = reserved;
        Ok(())
    }

    /// A replacement may cost more than what it replaces; it is let through, or its lane would stand still.
    pub(super) fn exchange(&mut self, old_cost_max: u128, new_cost_max: u128) {
        self.reserved = self.reserved.saturating_sub(old_cost_max).saturating_add(new_cost_max);
    }

    /// A transaction's end: its reserve is free, its cost is spent.
    pub(super) fn release(&mut self, cost_max: u128, spent: u128) {
        self.reserved = self.reserved.saturating_sub(cost_max);
        self.spent = self.spent.saturating_add(spent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bump_is_at_least_an_eighth_and_never_over_the_cap() {
        let old = Fee { max: 80, tip: 8 };
        assert_eq!(old.bumped(Fee { max: 10, tip: 1 }, 1000), Some(Fee { max: 91, tip: 10 }));
        assert_eq!(old.bumped(Fee { max: 500, tip: 60 }, 1000), Some(Fee { max: 500, tip: 60 }));
        assert_eq!(old.bumped(Fee { max: 500, tip: 60 }, 91), Some(Fee { max: 91, tip: 60 }));
        assert_eq!(old.bumped(Fee { max: 500, tip: 60 }, 90), None);
    }

    #[test]
    fn a_day_has_its_cap_and_the_next_day_begins_anew() {
        let limits = ChainLimits { gas_per_day_max: 100, ..ChainLimits::default() };
        let mut fees = Fees::new();
        fees.quote = Some((Instant::now(), Quote { base: 1, tip: 1, balance: 1000 }));
        let day = Timestamp::from_unix_s(86_400 * 9);
        assert!(fees.reserve(60, day, &limits).is_ok());
        assert!(matches!(fees.reserve(60, day, &limits), Err(Unsent::DayOverCap { cap: 100 })));
        fees.release(60, 30);
        assert!(fees.reserve(60, day, &limits).is_ok());
        fees.release(60, 50);
        assert!(matches!(fees.reserve(60, day, &limits), Err(Unsent::DayOverCap { .. })));
        assert!(fees.reserve(60, Timestamp::from_unix_s(86_400 * 10), &limits).is_ok());
    }

    #[test]
    fn a_relayer_without_gas_signs_nothing() {
        let limits = ChainLimits::default();
        let mut fees = Fees::new();
        fees.quote = Some((Instant::now(), Quote { base: 1, tip: 1, balance: 99 }));
        let now = Timestamp::from_unix_s(1);
        assert!(fees.reserve(50, now, &limits).is_ok());
        assert!(matches!(fees.reserve(50, now, &limits), Err(Unsent::NoGas { balance: 99, needed: 100 })));
    }
}
