//! What a chain needs to be configured with, resolved: no environment, no files, no defaults left open.

use std::{fmt, time::Duration};

use alloy::primitives::Address;
use farebox_core::{Decimal, EvmAddress, Finality, Network};
use url::Url;

use crate::{EvmKey, SourceConfig, node::Agreement};

/// One chain on which we are paid.
#[derive(Clone, Debug)]
pub struct ChainConfig {
    /// Its CAIP-2 name; the nodes must say the same chain id.
    pub network: Network,
    /// Whom to ask about it, the preferred one first; at least one. A relayer needs a node among them: explorers do not simulate.
    pub rpc: Vec<SourceConfig>,
    /// What makes a payment final, by what it is worth: tiers with rising bounds, the last one without.
    pub confirmations: Vec<FinalityTier>,
    /// What a payment must wait for whose payer has had one undone by a reorganisation.
    pub marked_finality: Finality,
    /// The tokens we take, in order of preference. May be empty if the native coin is taken.
    pub assets: Vec<AssetConfig>,
    /// The coin that pays for gas. Without it no rate is known for gas, and it is not taken.
    pub native: Option<NativeCoin>,
    /// Who is paid.
    pub pay_to: EvmAddress,
    /// Who sends the transactions and pays their gas. Without one we take no x402 payments on this chain.
    pub relayer: Option<EvmKey>,
    /// A head older than this is of a node that lags or a chain that stands still: what is said of a transfer then is no verdict.
    pub head_age_max: Duration,
    /// How many sources must agree on a transfer that is worth more than so much. Without it one is believed.
    pub quorum: Option<Quorum>,
    /// Every limit, by name.
    pub limits: ChainLimits,
}

/// What makes payments up to some worth final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinalityTier {
    /// For payments worth at most so many US dollars; `None` for whatever is worth more than the tiers before, and for what nobody
    /// knows the worth of.
    pub up_to: Option<Decimal>,
    /// What they wait for.
    pub finality: Finality,
}

/// The coin that pays for gas. It has 18 decimals on every EVM chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeCoin {
    /// As prices and rates name it, such as `ETH`.
    pub symbol: String,
    /// Whether we are paid in it.
    pub role: NativeRole,
}

/// What a chain's own coin is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NativeRole {
    /// Gas alone.
    Gas,
    /// Gas, and payment by transfer.
    Payment,
}

/// How many sources must say the same before money is believed to have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// So many, 2 or more.
    pub agree: usize,
    /// For transfers worth more than so many US dollars, and those nobody knows the worth of.
    pub above: Decimal,
}

impl ChainConfig {
    /// What a payment waits for that is worth so many US dollars; `None` if nobody knows what it is worth.
    #[must_use]
    pub fn finality(&self, worth: Option<Decimal>) -> Finality {
        let enough = |tier: &&FinalityTier| match (tier.up_to, worth) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(up_to), Some(worth)) => worth <= up_to,
        };
        self.confirmations.iter().find(enough).map_or_else(Finality::default, |tier| tier.finality)
    }

    /// How many sources must say what decides more than one payment: what a token is, what a coin is worth, whom a wallet obeys.
    pub(crate) fn agreement(&self) -> Agreement {
        self.quorum.map_or(Agreement::ONE, |quorum| Agreement(quorum.agree))
    }

    /// Whether payments in the native coin are taken.
    pub(crate) fn takes_native(&self) -> bool {
        self.native.as_ref().is_some_and(|native| native.role == NativeRole::Payment)
    }

    pub(crate) fn relayer_address(&self) -> Option<Address> {
        self.relayer.as_ref().map(EvmKey::alloy_address)
    }
}

/// A token by address. Its name, version and decimals are read from the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssetConfig {
    /// The contract.
    pub address: EvmAddress,
    /// As prices name it, such as `USDC`.
    pub symbol: String,
    /// Whether `$` prices may be charged in it.
    pub pegged: Pegged,
}

/// What one whole token is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pegged {
    /// One US dollar, by the seller's own decision.
    UsDollar,
    /// Nothing we know: only prices in its own symbol are charged in it.
    No,
}

/// Every wait, size and sum that bounds work on a chain.
#[derive(Clone, Debug)]
pub struct ChainLimits {
    /// How long a settlement is waited for before it is in doubt (and goes on in the background).
    pub settle_timeout: Duration,
    /// How long one question to the chain may take, however many sources are asked.
    pub rpc_timeout: Duration,
    /// Gas limit of a settlement, of its simulation, and of a contract wallet's signature check.
    pub gas_limit_max: u64,
    /// The most that is ever paid for one unit of gas, wei; base fee and tip together.
    pub fee_per_gas_max: u128,
    /// The most that the relayer spends on gas in one UTC day, wei. Counted by this process: a restart begins anew.
    pub gas_per_day_max: u128,
    /// The bill's `maxTimeoutSeconds`: how long an authorization lives.
    pub max_timeout_s: u64,
    /// An authorization that ends sooner is refused at the door; 6 s or more (x402's own minimum).
    pub valid_for_min: Duration,
    /// An authorization that ends sooner is not broadcast: it would be mined too late, for gas and nothing.
    pub settle_margin: Duration,
    /// The first wait before a receipt is asked for again; waits grow from here.
    pub poll_min: Duration,
    /// The longest wait between two questions for a receipt.
    pub poll_max: Duration,
    /// How many blocks below the head a reorganisation is believed possible.
    pub watch_depth: u64,
    /// How many transactions of the relayer may be unmined at once. geth keeps 64 of an account beyond its 16 assured slots.
    pub in_flight_max: usize,
    /// How many settlements may wait for a place among those in flight.
    pub lane_queue_max: usize,
    /// How long a settlement waits for a place among those in flight.
    pub lane_wait: Duration,
    /// A transaction unmined for so long is sent again with a higher fee, at the same nonce.
    pub bump_after: Duration,
    /// How far back the authorization's use by somebody else is looked for, in blocks a question.
    pub log_range: u64,
}

impl Default for ChainLimits {
    fn default() -> Self {
        Self {
            settle_timeout: Duration::from_secs(30),
            rpc_timeout: Duration::from_secs(5),
            gas_limit_max: 200_000,
            fee_per_gas_max: 200 * GWEI,
            gas_per_day_max: ETHER / 10,
            // The longest upstream of the defaults, the settlement, and 30 s of a payer's slow clock.
            max_timeout_s: 120,
            valid_for_min: Duration::from_secs(6),
            settle_margin: Duration::from_secs(3),
            poll_min: Duration::from_millis(5),
            poll_max: Duration::from_secs(1),
            watch_depth: 64,
            in_flight_max: 64,
            lane_queue_max: 1024,
            lane_wait: Duration::from_secs(5),
            bump_after: Duration::from_secs(10),
            log_range: 500,
        }
    }
}

/// Wei in a gwei.
pub const GWEI: u128 = 1_000_000_000;
/// Wei in an ether, or in one unit of another chain's native coin.
pub const ETHER: u128 = 1_000_000_000_000_000_000;

/// The address of a node. Its path, query and user may hold an API key, so it prints as scheme and host alone.
#[derive(Clone, PartialEq, Eq)]
pub struct RpcUrl(Url);

/// Why a text is no address of a node. The text is not repeated: it may hold an API key.
#[derive(Debug, thiserror::Error)]
pub enum RpcUrlError {
    /// Not a URL.
    #[error("expected a URL such as https://mainnet.base.org, found something else")]
    Form(#[source] url::ParseError),
    /// Another scheme, or no host.
    #[error("expected an http, https, ws or wss URL with a host, found the scheme {scheme}")]
    Scheme {
        /// What was found.
        scheme: String,
    },
}

impl RpcUrl {
    /// Reads an http, https, ws or wss URL.
    ///
    /// # Errors
    /// [`RpcUrlError`].
    pub fn parse(text: &str) -> Result<Self, RpcUrlError> {
        let url = Url::parse(text).map_err(RpcUrlError::Form)?;
        if !matches!(url.scheme(), "http" | "https" | "ws" | "wss") || url.host().is_none() {
            return Err(RpcUrlError::Scheme { scheme: url.scheme().to_owned() });
        }
        Ok(Self(url))
    }

    /// The whole URL, secrets included: for connecting, never for printing.
    pub(crate) const fn expose(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for RpcUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())?;
        self.0.port().map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Debug for RpcUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RpcUrl({self}/…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_the_worth_of_waits_for_the_deepest_tier() {
        let dollars = |text: &str| text.parse::<Decimal>().unwrap();
        let tier = |up_to, finality| FinalityTier { up_to, finality };
        let config = ChainConfig {
            confirmations: vec![
                tier(Some(dollars("1")), Finality::Blocks(1)),
                tier(Some(dollars("100")), Finality::Safe),
                tier(None, Finality::Finalized),
            ],
            ..crate::testing::chain()
        };
        for (worth, expected) in [
            (Some("0.000001"), Finality::Blocks(1)),
            (Some("1"), Finality::Blocks(1)),
            (Some("1.000001"), Finality::Safe),
            (Some("100"), Finality::Safe),
            (Some("100.01"), Finality::Finalized),
            (None, Finality::Finalized),
        ] {
            assert_eq!(config.finality(worth.map(dollars)), expected, "{worth:?}");
        }
    }

    #[test]
    fn a_node_address_never_prints_its_key() {
        let url = RpcUrl::parse("https://user:pass@node.example:444/v2/SECRET?key=SECRET").unwrap();
        assert_eq!(url.to_string(), "https://node.example:444");
        assert!(!format!("{url:?}").contains("SECRET") && !format!("{url:?}").contains("pass"));
        for wrong in ["file:///etc/passwd", "node.example", "ftp://a/"] {
            assert!(RpcUrl::parse(wrong).is_err(), "{wrong}");
        }
    }
}
