//! How chains in service do, for whoever watches. Read from memory: nobody is asked.

use std::time::Duration;

use farebox_core::{EvmAddress, Network, Timestamp, ports::BoxError};

use crate::{EvmChains, EvmKey, SourceKind, address};

/// How one chain does.
#[derive(Clone, Debug)]
pub struct ChainStatus {
    /// Which.
    pub network: Network,
    /// Height and time of the newest block that a source has told of in the last minute.
    pub head: Option<(u64, Timestamp)>,
    /// How old the head may be before what is said of the chain is no verdict.
    pub head_age_max: Duration,
    /// How many reorganisations this process has seen.
    pub reorganisations: u64,
    /// Its sources, in the configured order.
    pub sources: Vec<SourceStatus>,
    /// Its relayer; none where x402 is not taken.
    pub relayer: Option<RelayerStatus>,
}

/// How one source does.
#[derive(Clone, Debug)]
pub struct SourceStatus {
    /// Scheme and host.
    pub label: String,
    /// What it speaks.
    pub kind: SourceKind,
    /// Whether it is asked.
    pub standing: Standing,
    /// Height and time of its newest block, if it has told of one in the last minute.
    pub head: Option<(u64, Timestamp)>,
    /// Moving average of the time of an answer; none before the first.
    pub latency: Option<Duration>,
}

/// Whether a source is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As any other.
    Good,
    /// Last, for it is behind the others.
    Behind,
    /// Not for a while, for it failed.
    Resting,
    /// Not for a while, for it asked us to ask less.
    Limited,
}

impl Standing {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Behind => "behind",
            Self::Resting => "resting",
            Self::Limited => "limited",
        }
    }
}

/// How a relayer does.
#[derive(Clone, Debug)]
pub struct RelayerStatus {
    /// Who it is.
    pub address: EvmAddress,
    /// Transactions of it that are not mined yet.
    pub in_flight: usize,
}

impl EvmChains {
    /// How each chain does, in the configured order.
    #[must_use]
    pub fn status(&self) -> Vec<ChainStatus> {
        let of_chain = |chain: &crate::chain::Chain| {
            let sources: Vec<SourceStatus> = chain.node.sources().iter().map(crate::node::Source::status).collect();
            let relayer = chain.config.relayer.as_ref().zip(chain.lane.as_ref());
            ChainStatus {
                network: chain.config.network.clone(),
                head: sources.iter().filter_map(|source| source.head).max(),
                head_age_max: chain.config.head_age_max,
                reorganisations: chain.follower.reorganisations(),
                relayer: relayer
                    .map(|(key, lane)| RelayerStatus { address: key.address(), in_flight: lane.in_flight() }),
                sources,
            }
        };
        self.iter().map(of_chain).collect()
    }

    /// What each relayer has of its chain's coin, wei: one question a chain.
    pub async fn relayer_balances(&self) -> Vec<(Network, Result<u128, BoxError>)> {
        let asked = self.iter().filter_map(|chain| {
            let relayer = address::alloy(chain.config.relayer.as_ref().map(EvmKey::address)?);
            Some(async move {
                let wei = chain.node.balance(relayer).await;
                // More than 2^128 wei of anything is more than there is.
                let wei = wei.map(|wei| u128::try_from(wei).unwrap_or(u128::MAX)).map_err(Into::into);
                (chain.config.network.clone(), wei)
            })
        });
        futures_util::future::join_all(asked).await
    }
}
