//! What an agent may spend, decided from its own table of assets and never from what a seller says about them.

use std::{collections::BTreeSet, time::Duration};

use farebox_core::{Amount, AssetId, EvmAddress, Network, Offer, RailName, Timestamp, Untrusted};
use farebox_wire::x402::Requirement;

use crate::{
    asset::{DollarAsset, Usd, well_known_assets},
    bill::{Bill, Billed},
    error::RefusedOffer,
    l402::LightningRule,
};

/// What one call may cost unless the policy says otherwise. The official clients' own cap.
const MAX_PER_CALL_DEFAULT: Usd = Usd::TEN_CENTS;

/// What the gas of one transfer may cost unless the policy says otherwise, wei: a thousandth of a coin. A transfer on a rollup
/// takes a thousandth of that.
const MAX_GAS_DEFAULT_WEI: u128 = 1_000_000_000_000_000;

/// What forwarding nodes may take of one payment unless the policy says otherwise. Ten sats is what a few hops take of the smallest
/// payment.
const ROUTING_FEE_DEFAULT: RoutingFee = RoutingFee { percent: 5, floor_msat: 10_000 };

/// How long an authorization may stay usable, whatever time the bill asks for: a bill of ten years must not leave a signature
/// that can be cashed for ten years.
pub const VALID_FOR_MAX: Duration = Duration::from_secs(15 * 60);

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
    /// The most millisatoshis that one call may cost over Lightning, routing fees and all. `None`: `max_per_call` alone decides, and `assets` must then say
    /// what sats are worth.
    pub max_msat_per_call: Option<u64>,
    /// The most that forwarding nodes may take of one Lightning payment.
    pub routing_fee: RoutingFee,
}

/// A limit on what forwarding nodes take: a part of the amount, or `floor_msat` where that is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutingFee {
    /// Of the amount.
    pub percent: u32,
    /// Millisatoshis.
    pub floor_msat: u64,
}

impl RoutingFee {
    /// The most for one payment, millisatoshis, rounded down.
    #[must_use]
    pub const fn max_msat(self, amount_msat: u64) -> u64 {
        let part = amount_msat as u128 * self.percent as u128 / 100;
        let part = if part > u64::MAX as u128 { u64::MAX } else { part as u64 };
        if part > self.floor_msat { part } else { self.floor_msat }
    }
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
            max_msat_per_call: None,
            routing_fee: ROUTING_FEE_DEFAULT,
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
    /// There is nothing to pay with in this way.
    #[error("there is no wallet for {rail}")]
    NoWallet {
        /// Which.
        rail: RailName,
    },
    /// The bill came without TLS: anybody on the way may have written it.
    #[error(
        "{host} is asked over plain http, where anybody on the way can change who is paid and read what was bought; ask it over https"
    )]
    PlainHttp {
        /// The seller's.
        host: String,
    },
    /// A redirect led to another origin than the one that was asked.
    #[error("a redirect led to {origin}, and only the origin that was asked is paid")]
    Elsewhere {
        /// Where it led.
        origin: String,
    },
    /// A rule of Lightning's own.
    #[error(transparent)]
    Lightning(#[from] LightningRule),
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
            Self::NoWallet { .. } => "no_wallet",
            Self::PlainHttp { .. } => "plain_http",
            Self::Elsewhere { .. } => "redirected_elsewhere",
            Self::Lightning(rule) => rule.code(),
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
    /// What the offer costs. `None`: what a sat is worth is not known, and the limit in sats alone was held.
    pub price: Option<Usd>,
}

impl Acceptable {
    fn is_cheaper_than(&self, other: &Self) -> bool {
        matches!((self.price, other.price), (Some(ours), Some(theirs)) if ours < theirs)
    }
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
        let asset = self.asset_of(offer)?;
        let payee_allowed = |allowed: &BTreeSet<EvmAddress>| offer.pay_to.parse().is_ok_and(|to| allowed.contains(&to));
        if self.payees.as_ref().is_some_and(|allowed| !payee_allowed(allowed)) {
            return Err(PolicyRule::Payee { pay_to: Untrusted::new(&*offer.pay_to) });
        }
        let (price, max) = (asset.worth(offer.amount.units), self.max_per_call);
        let Outstanding { worth, until } = outstanding;
        match price {
            Some(price) if price > max => return Err(PolicyRule::OverMax { price, max }),
            Some(price) if worth.saturating_add(price) > max => {
                return Err(PolicyRule::Outstanding { price, outstanding: worth, until, max });
            }
            None if worth > Usd::default() => return Err(LightningRule::CannotSum { outstanding: worth }.into()),
            _ => {}
        }
        Ok(Acceptable { asset, price })
    }

    /// The most that forwarding nodes may take for an invoice, so that both together stay within the limit in sats, millisatoshis.
    pub(crate) fn fee_max_msat(&self, amount_msat: u64) -> u64 {
        let left = self.max_msat_per_call.map_or(u64::MAX, |max| max.saturating_sub(amount_msat));
        self.routing_fee.max_msat(amount_msat).min(left)
    }

    /// The offer's asset as the owner knows it. Sats need no entry in the table where there is a limit in sats.
    fn asset_of(&self, offer: &Offer) -> Result<DollarAsset, PolicyRule> {
        let (id, units) = (&offer.amount.asset, offer.amount.units);
        let known = self.assets.iter().find(|known| known.id() == id).cloned();
        if !id.is_lightning() {
            return known.ok_or_else(|| PolicyRule::Asset { asset: id.clone() });
        }
        match self.max_msat_per_call {
            Some(max_msat) if units > max_msat.into() => {
                Err(LightningRule::OverMax { amount_msat: units, max_msat }.into())
            }
            Some(_) => Ok(known.unwrap_or_else(|| DollarAsset::sats(id.network()))),
            None => known.ok_or_else(|| LightningRule::NoLimit.into()),
        }
    }

    /// What the cheapest offer in a known token costs, whether or not it may be paid.
    pub(crate) fn cheapest(&self, billed: &Billed) -> Option<Usd> {
        let x402 = billed.x402.iter().flat_map(|bill| &bill.requirements).map(|asked| &asked.offer.amount);
        let transfers = billed.transfer.iter().flat_map(|read| &read.bill.options).map(|option| &option.amount);
        let worth = |amount: &Amount| self.assets.iter().find(|known| *known.id() == amount.asset)?.worth(amount.units);
        let sats = billed.l402.iter().map(|bill| &bill.offer.amount);
        x402.chain(transfers).chain(sats).filter_map(worth).min()
    }

    /// The cheapest offer that may be paid; of equals, the seller's first.
    pub(crate) fn choose<'b>(&self, bill: &'b Bill, outstanding: Outstanding) -> Result<Choice<'b>, Vec<RefusedOffer>> {
        let mut refused = Vec::new();
        let mut best: Option<Choice<'b>> = None;
        for (index, asked) in bill.requirements.iter().enumerate() {
            let offer = &asked.offer;
            match self.judge_with(offer, outstanding) {
                Ok(acceptable) if best.as_ref().is_none_or(|best| acceptable.is_cheaper_than(&best.acceptable)) => {
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
