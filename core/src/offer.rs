//! What we ask for: offers, and the challenge that carries them.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Amount, Network, Refusal, ports::TokenBill};

/// Which rail an offer, credential or payment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RailName {
    /// x402.
    X402,
    /// An ordinary on-chain transfer, claimed by its hash.
    Transfer,
    /// Bitcoin Lightning, with a token that buys calls.
    L402,
}

impl RailName {
    /// As config, books and logs spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X402 => "x402",
            Self::Transfer => "transfer",
            Self::L402 => "l402",
        }
    }

    /// Every rail, in the order in which they are offered unless the config says otherwise.
    pub const ALL: [Self; 3] = [Self::X402, Self::L402, Self::Transfer];
}

impl fmt::Display for RailName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One way to pay one price: so much, of this asset, to this account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The rail that takes it.
    pub rail: RailName,
    /// x402's scheme, such as `exact`.
    pub scheme: Arc<str>,
    /// How much of what. The asset names the network too.
    pub amount: Amount,
    /// The asset as the wire writes it: for ERC-20 the EIP-55 address.
    pub asset_on_wire: Arc<str>,
    /// The recipient as the wire writes it: for EVM the EIP-55 address.
    pub pay_to: Arc<str>,
    /// How long the payer has, seconds, 1 or more.
    pub max_timeout_s: u64,
    /// Scheme data, a JSON object: for EIP-3009 {name, version} of the token's EIP-712 domain, read from the chain; for a transfer
    /// {symbol, decimals}.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// What makes a payment of this offer final.
    #[serde(default)]
    pub finality: Finality,
    /// What part the network's fee has in it. Says nothing of what is owed, so two offers that differ in it alone are one offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_fee: Option<NetworkFee>,
}

/// The network's fee, as a bill tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkFee {
    /// The seller pays the gas: so many of the amount's units are for that.
    Included(u128),
    /// The seller pays the gas out of the amount, and has not added it: about so many of the amount's units.
    Absorbed(u128),
    /// The payer pays the gas, beside the amount: about so many wei.
    OnTop(u128),
}

/// When a payment counts: so many blocks, the one with the transfer included, or the chain's own word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "FinalityLiteral", into = "FinalityLiteral")]
pub enum Finality {
    /// Head minus block plus one is at least this; 1 or more.
    Blocks(u64),
    /// The block is at or below the one that the node calls `safe`.
    Safe,
    /// The block is at or below the one that the node calls `finalized`.
    Finalized,
}

impl Default for Finality {
    fn default() -> Self {
        Self::Blocks(1)
    }
}

impl fmt::Display for Finality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks(blocks) => blocks.fmt(f),
            Self::Safe => f.write_str("safe"),
            Self::Finalized => f.write_str("finalized"),
        }
    }
}

/// A number, or one of the words `safe` and `finalized`: as configs, bills and books spell it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum FinalityLiteral {
    Blocks(u64),
    Tag(FinalityTag),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FinalityTag {
    Safe,
    Finalized,
}

impl From<Finality> for FinalityLiteral {
    fn from(finality: Finality) -> Self {
        match finality {
            Finality::Blocks(blocks) => Self::Blocks(blocks),
            Finality::Safe => Self::Tag(FinalityTag::Safe),
            Finality::Finalized => Self::Tag(FinalityTag::Finalized),
        }
    }
}

impl TryFrom<FinalityLiteral> for Finality {
    type Error = &'static str;

    fn try_from(literal: FinalityLiteral) -> Result<Self, Self::Error> {
        match literal {
            FinalityLiteral::Blocks(0) => Err("expected 1 block or more"),
            FinalityLiteral::Blocks(blocks) => Ok(Self::Blocks(blocks)),
            FinalityLiteral::Tag(FinalityTag::Safe) => Ok(Self::Safe),
            FinalityLiteral::Tag(FinalityTag::Finalized) => Ok(Self::Finalized),
        }
    }
}

impl Offer {
    /// Whether both ask for the same. What they tell of the network's fee does not matter.
    #[must_use]
    pub fn same_terms(&self, other: &Self) -> bool {
        Self { network_fee: None, ..self.clone() } == Self { network_fee: None, ..other.clone() }
    }

    /// The network it is paid on.
    #[must_use]
    pub const fn network(&self) -> &Network {
        self.amount.asset.network()
    }
}

/// Who paid: a CAIP-10 account such as `eip155:8453:0xAb16a96D359eC26a11e2C2b3d8f8B8942d5Bfcdb` (EIP-55 on EVM).
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Payer(Arc<str>);

impl Payer {
    /// The account `address` on `network`.
    #[must_use]
    pub fn new(network: &Network, address: &str) -> Self {
        Self(format!("{network}:{address}").into())
    }

    /// The CAIP-10 name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address alone, without its network.
    #[must_use]
    pub fn address(&self) -> &str {
        self.0.rsplit_once(':').map_or(&*self.0, |(_, address)| address)
    }
}

impl fmt::Display for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is for sale, as the bill names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Absolute public URL with path and query, no fragment.
    pub url: String,
    /// For people; may be empty.
    pub description: Arc<str>,
    /// The answer's media type if the seller said; may be empty.
    pub mime_type: Arc<str>,
}

/// The answer to an unpaid request: every way to pay, and why we ask (again).
#[derive(Clone, Debug)]
pub struct Challenge {
    /// What is for sale.
    pub resource: Resource,
    /// Every way to pay, in the seller's order of preference; never empty.
    pub offers: Arc<[Offer]>,
    /// The bill made for this buyer, if the L402 rail is among the offers and made one.
    pub token: Option<Arc<TokenBill>>,
    /// Rails that the route takes and that cannot be paid now.
    pub unavailable: Vec<UnavailableRail>,
    /// Why: `payment_required`, or what was wrong with the credential that came.
    pub refusal: Refusal,
}

/// A rail that the route takes, and that cannot be paid now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnavailableRail {
    /// Which.
    pub rail: RailName,
    /// Stable, snake_case: `node_unavailable`, `too_many_invoices`.
    pub code: Cow<'static, str>,
    /// For people; safe to send.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_finality() -> impl Strategy<Value = Finality> {
        prop_oneof![(1..=u64::MAX).prop_map(Finality::Blocks), Just(Finality::Safe), Just(Finality::Finalized)]
    }

    proptest! {
        #[test]
        fn a_finality_has_one_spelling(finality in any_finality()) {
            let text = serde_json::to_string(&finality).unwrap();
            prop_assert_eq!(text.trim_matches('"'), finality.to_string());
            prop_assert_eq!(serde_json::from_str::<Finality>(&text).unwrap(), finality);
        }
    }

    #[test]
    fn no_block_at_all_is_no_finality() {
        for wrong in ["0", "-1", "1.5", "\"3\"", "\"Safe\"", "\"latest\"", "null", "true", "{}", "18446744073709551616"]
        {
            assert!(serde_json::from_str::<Finality>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn offers_from_before_finality_was_kept_are_read() {
        let text = r#"{"rail":"x402","scheme":"exact","amount":{"units":"1","asset":"eip155:1/slip44:60"},
            "asset_on_wire":"a","pay_to":"b","max_timeout_s":60,"extra":{}}"#;
        let offer: Offer = serde_json::from_str(text).unwrap();
        assert_eq!((offer.finality, offer.network_fee), (Finality::Blocks(1), None));
        let dearer = Offer { network_fee: Some(NetworkFee::Absorbed(5)), ..offer.clone() };
        assert!(offer != dearer && offer.same_terms(&dearer));
        assert!(!offer.same_terms(&Offer { finality: Finality::Safe, ..offer.clone() }));
    }
}
