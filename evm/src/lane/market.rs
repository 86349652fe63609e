//! What a settlement is expected to cost, for prices that carry it.
//!
//! Gas is what our own settlements of that token used of late; its price is what the last blocks say. Both are cached, so that a price
//! is told without asking anybody.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use alloy::primitives::{Address, U256};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    ChainConfig, address,
    node::{FeeHistory, NoAnswer, Node, Receipt, ask},
};

/// What one settlement uses until one was measured: FiatTokenV2_2 with a first transfer to a new recipient, on anvil.
pub(crate) const SETTLEMENT_GAS: u64 = 104_000;
/// Less is no settlement: 21,000 for a transaction, a signature to recover, and three words of storage. A source that says so lies, and
/// would have us settle below cost.
const GAS_MIN: u64 = 45_000;
/// How many blocks tell what gas costs.
const BLOCKS: u64 = 5;
/// How often they are asked.
const REFRESH: Duration = Duration::from_secs(15);
/// What gas cost longer ago than this is not known now.
const STALE: Duration = Duration::from_secs(300);
/// The cost in use moves once the expected one differs from it by more than so many per cent. Every move is a new bill for every route,
/// whose old one has to be honoured for as long as it lives, and gas moves with every block; a seller's buffer is wider than this.
const STEP_PERCENT: u128 = 10;

/// The cost of settlements is not known now.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no source has told what gas costs for {} s", STALE.as_secs())]
pub(crate) struct CostUnknown;

#[derive(Debug)]
pub(crate) struct Market {
    gas_limit_max: u64,
    fee_per_gas_max: u128,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Wei for a unit of gas, and when the chain said so.
    per_gas: Option<(Instant, u128)>,
    tokens: HashMap<Address, Measured>,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Moving average.
    gas: u64,
    /// Moving average of what a rollup charges for its own chain's data, wei.
    data_fee: u128,
    /// In use, wei.
    quoted: Option<u128>,
}

impl Market {
    pub(super) fn new(config: &ChainConfig) -> Arc<Self> {
        let gas = SETTLEMENT_GAS.min(config.limits.gas_limit_max);
        let fresh = Measured { gas, data_fee: 0, quoted: None };
        let tokens = config.assets.iter().map(|asset| (address::alloy(asset.address), fresh)).collect();
        Arc::new(Self {
            gas_limit_max: config.limits.gas_limit_max,
            fee_per_gas_max: config.limits.fee_per_gas_max,
            state: Mutex::new(State { per_gas: None, tokens }),
        })
    }

    /// Asks what gas costs, once.
    pub(super) async fn refresh(&self, node: &Node) -> Result<(), NoAnswer> {
        let history = node.batch(ask::fee_history(BLOCKS)).await?;
        self.state.lock().per_gas = Some((Instant::now(), expected(&history).min(self.fee_per_gas_max)));
        Ok(())
    }

    /// Asks again and again, until the lane is gone.
    pub(super) async fn keep(market: Weak<Self>, node: Node) {
        loop {
            tokio::time::sleep(REFRESH).await;
            let Some(market) = market.upgrade() else { return };
            if let Err(error) = market.refresh(&node).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "what gas costs could not be read");
            }
        }
    }

    /// Learns from a settlement of ours.
    pub(super) fn note(&self, receipt: &Receipt) {
        let (used, data_fee) = (receipt.gas_used.to::<u64>(), receipt.data_fee());
        let mut state = self.state.lock();
        if let Some(measured) = receipt.to.filter(|_| receipt.succeeded()).and_then(|to| state.tokens.get_mut(&to)) {
            let gas = measured.gas.saturating_mul(7).saturating_add(used).div_ceil(8);
            measured.gas = gas.clamp(GAS_MIN.min(self.gas_limit_max), self.gas_limit_max);
            measured.data_fee = measured.data_fee.saturating_mul(7).saturating_add(data_fee).div_ceil(8);
        }
    }

    /// What a settlement of this token costs, wei.
    ///
    /// # Errors
    /// The chain has not told for too long.
    pub(crate) fn settlement_cost(&self, token: Address) -> Result<u128, CostUnknown> {
        let mut state = self.state.lock();
        let fresh = state.per_gas.filter(|(at, _)| at.elapsed() < STALE);
        let (_, per_gas) = fresh.ok_or(CostUnknown)?;
        let measured = state.tokens.get_mut(&token).ok_or(CostUnknown)?;
        let now = u128::from(measured.gas).saturating_mul(per_gas).saturating_add(measured.data_fee);
        let moved = |quoted: u128| now.abs_diff(quoted).saturating_mul(100) > quoted.saturating_mul(STEP_PERCENT);
        match measured.quoted {
            Some(quoted) if !moved(quoted) => Ok(quoted),
            _ => {
                measured.quoted = Some(now);
                Ok(now)
            }
        }
    }
}

/// Base fee and tip of a transaction that is sent soon: the next block's base fee or the average of the last ones, whichever is more,
/// so that a lull does not make a price that the next busy minute makes too low.
fn expected(history: &FeeHistory) -> u128 {
    let small = |wei: &U256| u128::try_from(*wei).unwrap_or(u128::MAX);
    let bases: Vec<u128> = history.base_fee_per_gas.iter().map(small).collect();
    let sum = bases.iter().fold(0u128, |sum, base| sum.saturating_add(*base));
    let average = sum / u128::try_from(bases.len().max(1)).unwrap_or(1);
    let base = bases.last().copied().unwrap_or(0).max(average);
    let mut tips: Vec<u128> = history.reward.iter().flatten().filter_map(|block| block.first()).map(small).collect();
    tips.sort_unstable();
    let tip = tips.get(tips.len() / 2).copied().unwrap_or(0).max(super::fees::TIP_MIN);
    base.saturating_add(tip)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GWEI: u64 = 1_000_000_000;

    fn history(bases: &[u64], tips: &[u64]) -> FeeHistory {
        FeeHistory {
            base_fee_per_gas: bases.iter().map(|base| U256::from(*base)).collect(),
            reward: Some(tips.iter().map(|tip| vec![U256::from(*tip)]).collect()),
        }
    }

    fn market() -> (Arc<Market>, Address) {
        let config = crate::testing::chain();
        (Market::new(&config), address::alloy(config.assets[0].address))
    }

    fn told(market: &Market, per_gas: u128) {
        market.state.lock().per_gas = Some((Instant::now(), per_gas));
    }

    #[test]
    fn a_lull_does_not_lower_the_price_of_gas_and_a_rise_raises_it() {
        assert_eq!(expected(&history(&[9, 9, 9, 9, 9, GWEI * 3], &[GWEI; 5])), u128::from(4 * GWEI));
        assert_eq!(expected(&history(&[GWEI * 3, GWEI * 3, 0], &[GWEI; 2])), u128::from(3 * GWEI));
        assert_eq!(expected(&history(&[], &[])), super::super::fees::TIP_MIN);
        assert_eq!(expected(&history(&[0], &[1, GWEI * 2, u64::MAX])), u128::from(2 * GWEI));
    }

    #[tokio::test(start_paused = true)]
    async fn the_cost_stays_until_it_has_moved_by_a_tenth() {
        let (market, token) = market();
        assert!(market.settlement_cost(token).is_err());
        told(&market, 1_000);
        assert_eq!(market.settlement_cost(token).unwrap(), 104_000_000);
        for (per_gas, expected) in [(1_099, 1_000), (901, 1_000), (1_101, 1_101), (1_000, 1_101), (990, 990)] {
            told(&market, per_gas);
            assert_eq!(market.settlement_cost(token).unwrap(), 104_000 * expected, "{per_gas}");
        }
        tokio::time::advance(STALE).await;
        assert!(market.settlement_cost(token).is_err(), "what is old is not known");
    }

    #[tokio::test(start_paused = true)]
    async fn gas_is_what_settlements_used_within_bounds() {
        let (market, token) = market();
        told(&market, 1);
        let receipt = |used: u64, to| crate::testing::receipt(to, used);
        (0..100).for_each(|_| market.note(&receipt(60_000, token)));
        assert!((60_000..60_010).contains(&market.settlement_cost(token).unwrap()));
        (0..100).for_each(|_| market.note(&receipt(1, token)));
        assert_eq!(market.settlement_cost(token).unwrap(), u128::from(GAS_MIN));
        (0..100).for_each(|_| market.note(&receipt(u64::MAX, token)));
        assert_eq!(market.settlement_cost(token).unwrap(), 200_000);
        (0..100).for_each(|_| market.note(&receipt(60_000, Address::ZERO)));
        assert_eq!(market.settlement_cost(token).unwrap(), 200_000, "another contract's gas is not this token's");
    }
}
