//! A Chainlink aggregator, read on its chain. Source: `AggregatorV3Interface`.

use std::sync::OnceLock;

use alloy::{
    primitives::{Address, U64, U256},
    sol,
    sol_types::SolCall,
};
use farebox_core::{Decimal, EvmAddress, Timestamp, ports::BoxError};

use super::Rate;
use crate::{
    address,
    node::{Agreement, Call, Called, Node, ask},
};

sol! {
    function latestRoundData() external view returns (uint80 roundId, int256 answer, uint256 startedAt, uint256 updatedAt, uint80 answeredInRound);
    function decimals() external view returns (uint8);
}

/// Gas of one question to the feed.
const VIEW_GAS_MAX: u64 = 1_000_000;
/// The most decimals that a rate can have.
const DECIMALS_MAX: u8 = 18;

#[derive(Debug)]
pub(super) struct Feed {
    /// The chain's sources and how many must say the same, once it is connected.
    sources: OnceLock<(Node, Agreement)>,
    aggregator: Address,
}

impl Feed {
    pub(super) fn new(aggregator: EvmAddress) -> Self {
        Self { sources: OnceLock::new(), aggregator: address::alloy(aggregator) }
    }

    /// From the first call on.
    pub(super) fn ask_at(&self, node: Node, agreement: Agreement) {
        self.sources.get_or_init(|| (node, agreement));
    }

    /// The last round's answer, with the time at which it was given.
    pub(super) async fn read(&self) -> Result<Rate, BoxError> {
        let call = |data: Vec<u8>| Call {
            from: None,
            to: self.aggregator,
            gas: Some(U64::from(VIEW_GAS_MAX)),
            data: data.into(),
        };
        let round = ask::call(&call(latestRoundDataCall {}.abi_encode()), None);
        let decimals = ask::call(&call(decimalsCall {}.abi_encode()), None);
        let (node, agreement) = self.sources.get().ok_or("the chain of the feed is not connected")?;
        let (round, decimals) = node.agreed((round, decimals), *agreement).await?;
        let round = latestRoundDataCall::abi_decode_returns_validate(&returned(round)?)?;
        let decimals = decimalsCall::abi_decode_returns_validate(&returned(decimals)?)?;
        if decimals > DECIMALS_MAX {
            return Err(format!("the feed has {decimals} decimals, expected at most {DECIMALS_MAX}").into());
        }
        if !round.answer.is_positive() {
            return Err(format!("the feed answers {}, expected more than 0", round.answer).into());
        }
        // An answer carried over from an earlier round is one that this round's oracles did not give.
        if round.answeredInRound < round.roundId {
            return Err(format!("round {} of the feed was answered in {}", round.roundId, round.answeredInRound).into());
        }
        if round.updatedAt.is_zero() {
            return Err("the feed's round is not complete".into());
        }
        let answer = u128::try_from(round.answer.into_raw()).map_err(|_| "the feed's answer is out of range")?;
        let at = u64::try_from(round.updatedAt.min(U256::from(u64::MAX / 1000)))?;
        Ok(Rate { dollars: Decimal::from_units(answer, decimals), at: Timestamp::from_unix_s(at) })
    }
}

fn returned(called: Called) -> Result<alloy::primitives::Bytes, BoxError> {
    match called {
        Called::Returned(bytes) => Ok(bytes),
        Called::Reverted(answer) => Err(Box::new(answer)),
    }
}
