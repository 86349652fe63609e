//! What an agent may spend, decided from its own table of assets and never from what a seller says about them.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use farebox_core::{Amount, AssetId, Decimal, EvmAddress, Network, Offer, RailName, Timestamp, Untrusted};
use farebox_wire::x402::Requirement;
use serde::{Deserialize, Serialize};

use crate::{
    bill::{Bill, Billed},
    error::RefusedOffer,
};

/// The decimals in which [`Usd`] counts.
const USD_DECIMALS: u8 = 18;

/// What one call may cost unless the policy says otherwise. The official clients' own cap.
const MAX_PER_CALL_DEFAULT: Usd = Usd(100_000_000_000_000_000);

/// What the gas of one transfer may cost unless the policy says otherwise, wei: a thousandth of a coin. A transfer on a rollup
/// takes a thousandth of that.
const MAX_GAS_DEFAULT_WEI: u128 = 1_000_000_000_000_000;

/// How long an authorization may stay usable, whatever time the bill asks for: a bill of ten years must not leave a signature
/// that can be cashed for ten years.
pub const VALID_FOR_MAX: Duration = Duration::from_secs(15 * 60);

/// US dollars, exact to 10^-18, below 2^128 * 10^-18.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Usd(u128);

impl Usd {
    /// # Errors
    /// More than 10^20 dollars.
    pub fn new(dollars: Decimal) -> Result<Self, farebox_core::ToUnitsError> {
        dollars.to_units(USD_DECIMALS).map(Self)
    }

    /// The sum, or the largest value there is: an overflow must read as too much, never as little.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}", Decimal::from_units(self.0, USD_DECIMALS))
    }
}

impl fmt::Debug for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The decimals in which the worth of one whole token is kept.
const EACH_DECIMALS: u8 = 6;

/// A token or coin and what one of it is worth in US dollars, as the agent's owner knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DollarAsset {
    id: AssetId,
    symbol: Arc<str>,
    decimals: u8,
    /// Millionths of a dollar for one whole token.
    #[serde(default = "one_dollar", skip_serializing_if = "is_one_dollar")]
    each_micros: u64,
}

const fn one_dollar() -> u64 {
    1_000_000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_one_dollar(micros: &u64) -> bool {
    *micros == one_dollar()
}

/// Why there is no such [`DollarAsset`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DollarAssetError {
    /// More than 18 decimals.
    #[error("expected 0 to 18 decimals, found {found}")]
    Decimals {
        /// What was found instead.
        found: u8,
    },
    /// Not a symbol.
    #[error("expected a symbol of 1 to 16 letters, digits or points, found {found}")]
    Symbol {
        /// What was found instead.
        found: Untrusted,
    },
    /// Not a worth.
    #[error(
        "expected what one of it is worth: more than $0, with at most {EACH_DECIMALS} digits after the point, found {found}"
    )]
    Worth {
        /// What was found instead.
        found: Decimal,
    },
}

impl DollarAsset {
    /// A token that is worth one dollar.
    ///
    /// # Errors
    /// More than 18 decimals, or a symbol that is not 1 to 16 of `[A-Za-z0-9.]`.
    pub fn new(id: AssetId, symbol: &str, decimals: u8) -> Result<Self, DollarAssetError> {
        if decimals > USD_DECIMALS {
            return Err(DollarAssetError::Decimals { found: decimals });
        }
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'.';
        if !(1..=16).contains(&symbol.len()) || !symbol.bytes().all(fits) {
            return Err(DollarAssetError::Symbol { found: Untrusted::new(symbol) });
        }
        Ok(Self { id, symbol: symbol.into(), decimals, each_micros: one_dollar() })
    }

    /// The same, worth so many dollars each: for a coin, the most that its owner would say it is worth.
    ///
    /// # Errors
    /// No dollars, more than 6 digits after the point, or more than 10^12 dollars.
    pub fn worth_each(self, dollars: Decimal) -> Result<Self, DollarAssetError> {
        let micros = dollars.to_units(EACH_DECIMALS).ok().and_then(|micros| u64::try_from(micros).ok());
        match micros {
            Some(each_micros @ 1..=1_000_000_000_000_000_000) => Ok(Self { each_micros, ..self }),
            _ => Err(DollarAssetError::Worth { found: dollars }),
        }
    }

    /// Which token.
    #[must_use]
    pub const fn id(&self) -> &AssetId {
        &self.id
    }

    /// Such as `USDC`.
    #[must_use]
    pub fn symbol(&self) -> &str {
        &self.symbol
    }

    /// Of one whole token.
    #[must_use]
    pub const fn decimals(&self) -> u8 {
        self.decimals
    }

    /// `units` as a number of whole tokens.
    #[must_use]
    pub const fn tokens(&self, units: u128) -> Decimal {
        Decimal::from_units(units, self.decimals)
    }

    /// The worth of `units`, rounded up; what does not fit is the most there is.
    #[must_use]
    pub fn worth(&self, units: u128) -> Usd {
        let micros = units.saturating_mul(self.each_micros.into());
        let shift = USD_DECIMALS - EACH_DECIMALS;
        let power = |exponent: u8| 10u128.saturating_pow(exponent.into());
        Usd(match shift.checked_sub(self.decimals) {
            Some(up) => micros.saturating_mul(power(up)),
            // A product that has saturated must not be made small again.
            None if micros == u128::MAX => micros,
            None => micros.div_ceil(power(self.decimals - shift)),
        })
    }
}

/// Circle's USDC where x402 is commonly paid: network and token. Source: Circle's list of USDC contract addresses. All have
/// 6 decimals.
const USDC: [(u64, [u8; 20]); 7] = [
    (1, address("A0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48")),
    (137, address("3c499c542cEF5E3811e1192ce70d8cC03d5c3359")),
    (8453, address("833589fCD6eDb6E08f4c7C32D4f71b54bdA02913")),
    (42161, address("af88d065e77c8cC2239327C5EDb3A432268e5831")),
    (43114, address("B97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E")),
    (84532, address("036CbD53842c5426634e7929541eC2318f3dCF7e")),
    (421_614, address("75faf114eafb1BDbe2F0316DF893fd58CE46AA4d")),
];

/// The USDC of the networks on which x402 is commonly paid, test networks among them.
#[must_use]
pub fn well_known_assets() -> Vec<DollarAsset> {
    let usdc = |(chain, address)| DollarAsset {
        id: AssetId::erc20(Network::evm(chain), EvmAddress(address)),
        symbol: "USDC".into(),
        decimals: 6,
        each_micros: one_dollar(),
    };
    USDC.into_iter().map(usdc).collect()
}

/// What an agent may pay. Every rule is checked before anything is signed.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The most that one call may cost, counting every signature of that call which could still be charged.
    pub max_per_call: Usd,
    /// Tokens it may pay in. Amounts are judged by the decimals given here.
    pub assets: Vec<DollarAsset>,
    /// Networks it may pay on; `None`: wherever an allowed asset lives.
    pub networks: Option<BTreeSet<Network>>,
    /// Accounts it may pay; `None`: any.
    pub payees: Option<BTreeSet<EvmAddress>>,
    /// See [`VALID_FOR_MAX`].
    pub valid_for_max: Duration,
    /// The ways to pay, the preferred one first; a later one is taken if none before it can be paid.
    pub rails: Vec<RailName>,
    /// The most that the gas of one transfer may cost, wei, raised fees included.
    pub max_gas_wei: u128,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_per_call: MAX_PER_CALL_DEFAULT,
            assets: well_known_assets(),
            networks: None,
            payees: None,
            valid_for_max: VALID_FOR_MAX,
            rails: RailName::ALL.to_vec(),
            max_gas_wei: MAX_GAS_DEFAULT_WEI,
        }
    }
}

/// The rule that forbids an offer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyRule {
    /// Not a way of paying that this agent knows.
    #[error("scheme {scheme} is not one this agent can pay; it pays exact")]
    Scheme {
        /// What is asked for.
        scheme: Untrusted,
    },
    /// The owner does not want to pay in this way.
    #[error("paying by {rail} is not among the allowed ways to pay")]
    Rail {
        /// Which.
        rail: RailName,
    },
    /// A transfer's bill is not for the request that was made: its quote could not be redeemed for that.
    #[error("the transfer is billed for the {field} {billed}, and {asked} was asked for")]
    OtherRequest {
        /// `resource` or `method`.
        field: &'static str,
        /// Ours.
        asked: String,
        /// The bill's.
        billed: Untrusted,
    },
    /// A transfer to the wallet itself pays nobody.
    #[error("the bill wants a transfer to the wallet itself, {pay_to:x}")]
    ToItself {
        /// The recipient.
        pay_to: EvmAddress,
    },
    /// The bill gives the asset other decimals than it has.
    #[error("the bill says that {symbol} has {billed} decimals, and it has {known}")]
    Decimals {
        /// By our table.
        symbol: String,
        /// The bill's.
        billed: u8,
        /// Ours.
        known: u8,
    },
    /// A transfer would not be mined and confirmed in the time that the bill gives for it.
    #[error("the time for a transfer is too short: {needed_s} s are needed until {what} at {ends}")]
    TooShort {
        /// `payBy` or `claimBy`.
        what: &'static str,
        /// By what we know of chains.
        needed_s: u64,
        /// When it ends.
        ends: String,
    },
    /// The seller wants more confirmations than anybody waits for.
    #[error("{blocks} confirmations are wanted; at most {max} are waited for")]
    TooDeep {
        /// How many.
        blocks: u64,
        /// What is waited for.
        max: u64,
    },
    /// The network is not allowed.
    #[error("network {network} is not among the allowed networks")]
    Network {
        /// Which.
        network: Network,
    },
    /// The asset is not in the table.
    #[error("asset {asset} is not among the allowed assets")]
    Asset {
        /// Which.
        asset: AssetId,
    },
    /// The recipient is not allowed.
    #[error("recipient {pay_to} is not among the allowed payees")]
    Payee {
        /// Which.
        pay_to: Untrusted,
    },
    /// Dearer than one call may be.
    #[error("{price} is over the limit of {max} a call")]
    OverMax {
        /// What is asked for.
        price: Usd,
        /// What is allowed.
        max: Usd,
    },
    /// Together with what was already signed for this request, dearer than one call may be.
    #[error(
        "{price} more would be over the limit of {max} a call: {outstanding} is already signed for this request and could still be charged{}",
        until_text(*until)
    )]
    Outstanding {
        /// What is asked for.
        price: Usd,
        /// What is signed and may yet be, or was, charged.
        outstanding: Usd,
        /// When the last of it ends, if it ends by itself.
        until: Option<Timestamp>,
        /// What is allowed.
        max: Usd,
    },
}

pub(crate) fn until_text(until: Option<Timestamp>) -> String {
    until.map_or_else(String::new, |until| format!(" until {}", date(until)))
}

/// As HTTP writes it. A year that HTTP cannot write reads as the last one that it can.
pub(crate) fn date(at: Timestamp) -> String {
    const LAST_S: u64 = 253_402_300_799;
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(at.unix_s().min(LAST_S)))
}

impl PolicyRule {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Scheme { .. } => "scheme_not_supported",
            Self::Rail { .. } => "rail_not_allowed",
            Self::OtherRequest { .. } => "bill_for_another_request",
            Self::ToItself { .. } => "transfer_to_itself",
            Self::Decimals { .. } => "decimals_differ",
            Self::TooShort { .. } => "time_too_short",
            Self::TooDeep { .. } => "too_many_confirmations",
            Self::Network { .. } => "network_not_allowed",
            Self::Asset { .. } => "asset_not_allowed",
            Self::Payee { .. } => "payee_not_allowed",
            Self::OverMax { .. } => "over_max",
            Self::Outstanding { .. } => "over_max_with_outstanding",
        }
    }
}

/// What is already signed for a request and may be, or was, charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outstanding {
    pub(crate) worth: Usd,
    pub(crate) until: Option<Timestamp>,
}

/// An offer that may be paid.
#[derive(Clone, Debug)]
pub struct Acceptable {
    /// The token, as the policy knows it.
    pub asset: DollarAsset,
    /// What the offer costs.
    pub price: Usd,
}

impl Policy {
    /// Judges one offer, before anything is signed.
    ///
    /// # Errors
    /// The first rule that forbids it.
    pub fn judge(&self, offer: &Offer) -> Result<Acceptable, PolicyRule> {
        self.judge_with(offer, Outstanding::default())
    }

    pub(crate) fn judge_with(&self, offer: &Offer, outstanding: Outstanding) -> Result<Acceptable, PolicyRule> {
        if !self.rails.contains(&offer.rail) {
            return Err(PolicyRule::Rail { rail: offer.rail });
        }
        if offer.rail == RailName::X402 && &*offer.scheme != "exact" {
            return Err(PolicyRule::Scheme { scheme: Untrusted::new(&*offer.scheme) });
        }
        if self.networks.as_ref().is_some_and(|allowed| !allowed.contains(offer.network())) {
            return Err(PolicyRule::Network { network: offer.network().clone() });
        }
        let Some(asset) = self.assets.iter().find(|known| known.id == offer.amount.asset) else {
            return Err(PolicyRule::Asset { asset: offer.amount.asset.clone() });
        };
        let payee_allowed = |allowed: &BTreeSet<EvmAddress>| offer.pay_to.parse().is_ok_and(|to| allowed.contains(&to));
        if self.payees.as_ref().is_some_and(|allowed| !payee_allowed(allowed)) {
            return Err(PolicyRule::Payee { pay_to: Untrusted::new(&*offer.pay_to) });
        }
        let (price, max) = (asset.worth(offer.amount.units), self.max_per_call);
        if price > max {
            return Err(PolicyRule::OverMax { price, max });
        }
        if outstanding.worth.saturating_add(price) > max {
            let Outstanding { worth, until } = outstanding;
            return Err(PolicyRule::Outstanding { price, outstanding: worth, until, max });
        }
        Ok(Acceptable { asset: asset.clone(), price })
    }

    /// What the cheapest offer in a known token costs, whether or not it may be paid.
    pub(crate) fn cheapest(&self, billed: &Billed) -> Option<Usd> {
        let x402 = billed.x402.iter().flat_map(|bill| &bill.requirements).map(|asked| &asked.offer.amount);
        let transfers = billed.transfer.iter().flat_map(|read| &read.bill.options).map(|option| &option.amount);
        let worth =
            |amount: &Amount| Some(self.assets.iter().find(|known| known.id == amount.asset)?.worth(amount.units));
        x402.chain(transfers).filter_map(worth).min()
    }

    /// The cheapest offer that may be paid; of equals, the seller's first.
    pub(crate) fn choose<'b>(&self, bill: &'b Bill, outstanding: Outstanding) -> Result<Choice<'b>, Vec<RefusedOffer>> {
        let mut refused = Vec::new();
        let mut best: Option<Choice<'b>> = None;
        for (index, asked) in bill.requirements.iter().enumerate() {
            let offer = &asked.offer;
            match self.judge_with(offer, outstanding) {
                Ok(acceptable) if best.as_ref().is_none_or(|best| acceptable.price < best.acceptable.price) => {
                    best = Some(Choice { index, asked, acceptable });
                }
                Ok(_) => {}
                Err(rule) => {
                    let (network, asset) = (offer.network().clone(), offer.amount.asset.clone());
                    refused.push(RefusedOffer { network, asset, rule });
                }
            }
        }
        best.ok_or(refused)
    }
}

/// The offer to be paid.
#[derive(Clone, Debug)]
pub(crate) struct Choice<'b> {
    /// Its place among the bill's requirements.
    pub(crate) index: usize,
    pub(crate) asked: &'b Requirement,
    pub(crate) acceptable: Acceptable,
}

const fn address(hex: &str) -> [u8; 20] {
    const fn digit(byte: u8) -> u8 {
        match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => panic!("not a hex digit"),
        }
    }
    let (text, mut bytes, mut i) = (hex.as_bytes(), [0; 20], 0);
    assert!(text.len() == 40, "an address has 40 digits");
    while i < 20 {
        bytes[i] = digit(text[2 * i]) << 4 | digit(text[2 * i + 1]);
        i += 1;
    }
    bytes
}
