//! What may stand to the right of a `=` where chains are asked and prices are made: sources, finality, rates and fees.

use farebox_core::{Decimal, Finality, Network, Price};
use farebox_evm::SourceKind;
use toml::{Spanned, de::DeValue};
use url::Url;

use super::{
    read::{
        Absent::{Default, Means, Refused},
        At, Literal, Located, Notes, found, keys, read_text,
    },
    secret::{RpcTemplate, SecretRef},
    values::{Address, Count, Many, Millis, Symbol, parsed, whole_number, words},
};

words!(SourceKind, "rpc" => Self::JsonRpc, "explorer" => Self::Explorer);

keys! {
    /// A source of what a chain says, where a URL alone does not tell enough.
    SourceLiteral = "rpc = [{ .. }]" {
        /// Where it is.
        "url" url: RpcTemplate, Refused;
        /// A node's JSON-RPC, or a block explorer's API in Etherscan's form (version 2, such as `https://api.etherscan.io/v2/api`).
        "kind" kind: SourceKind, Default("\"rpc\"");
        /// The explorer's API key.
        "key" key: SecretRef, Means("none is sent");
    }
}

/// A node by its URL, or any source by a table.
#[derive(Clone, Debug)]
pub(crate) enum RpcSource {
    /// A node.
    Node(RpcTemplate),
    /// As written.
    Table(Box<SourceLiteral>),
}

impl Literal for RpcSource {
    fn expected() -> String {
        format!("{}; or {{ url = \"..\", kind = \"explorer\", key = \"${{NAME}}\" }}", RpcTemplate::expected())
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        match value.get_ref() {
            DeValue::Table(_) => SourceLiteral::read(value, at, notes).map(|source| Self::Table(Box::new(source))),
            _ => RpcTemplate::read(value, at, notes).map(Self::Node),
        }
    }
}

/// A sum of dollars, more than nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dollars(pub(crate) Decimal);

parsed!(Dollars, "a sum such as \"$1\" or \"$0.50\"", |text| match text.parse() {
    Ok(Price::Usd(dollars)) => Ok(Self(dollars)),
    _ => Err(None),
});

/// A decimal number above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number(pub(crate) Decimal);

parsed!(Number, "a number above 0 as a text, such as \"3150.25\"", |text| {
    text.parse().ok().filter(|number: &Decimal| !number.is_zero()).map(Self).ok_or(None)
});

/// A whole number of percent, 0 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Percent(pub(crate) u32);

parsed!(Percent, "a whole number of percent such as \"25%\", \"0%\" to \"1000%\"", |text| {
    let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit())).ok_or(None)?;
    digits.parse().ok().filter(|percent| *percent <= 1_000).map(Self).ok_or(None)
});

/// The most blocks that a config may ask for.
const BLOCKS_MAX: u64 = 1_000;

/// A number of blocks, or the chain's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FinalityLiteral(pub(crate) Finality);

impl Literal for FinalityLiteral {
    fn expected() -> String {
        format!("a number of blocks, 1 to {BLOCKS_MAX}, or \"safe\" or \"finalized\"")
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(word) if word == "safe" => Some(Self(Finality::Safe)),
            DeValue::String(word) if word == "finalized" => Some(Self(Finality::Finalized)),
            _ => blocks(value).or_else(|| {
                notes.wrong(value.span(), at.path(), format!("expected {}, found {}", Self::expected(), found(value)))
            }),
        }
    }
}

fn blocks(value: &Spanned<DeValue<'_>>) -> Option<FinalityLiteral> {
    let number = whole_number(value).filter(|number| (1..=BLOCKS_MAX).contains(number))?;
    Some(FinalityLiteral(Finality::Blocks(number)))
}

keys! {
    /// What payments up to an amount must wait for. The last tier has no `up_to` and is for all others.
    TierLiteral = "confirmations = [{ .. }]" {
        /// Payments of at most so much.
        "up_to" up_to: Dollars, Means("this is the last tier, for all others");
        /// What they wait for: blocks, the one with the payment included, or a word of the chain.
        "blocks" blocks: FinalityLiteral, Refused;
    }
}

/// One finality for all amounts, or tiers.
#[derive(Clone, Debug)]
pub(crate) enum Confirmations {
    /// For all amounts.
    All(FinalityLiteral),
    /// By amount.
    Tiers(Vec<Located<TierLiteral>>),
}

impl Literal for Confirmations {
    fn expected() -> String {
        format!(
            "{}; or tiers such as [{{ up_to = \"$1\", blocks = 1 }}, {{ blocks = 6 }}]",
            FinalityLiteral::expected()
        )
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        if value.get_ref().is_array() {
            return Many::<TierLiteral, 1, 8>::read(value, at, notes).map(|tiers| Self::Tiers(tiers.0));
        }
        // Else the mistake would be told as if tiers were not known.
        if blocks(value).is_none() && value.get_ref().as_str().is_none() {
            let what = format!("expected {}, found {}", Self::expected(), found(value));
            return notes.wrong(value.span(), at.path(), what);
        }
        FinalityLiteral::read(value, at, notes).map(Self::All)
    }
}

keys! {
    /// How many sources must say the same before a payment above an amount is believed.
    QuorumLiteral = "quorum" {
        /// How many sources must agree on receipt, log and block hash.
        "agree" agree: Count<2, 16>, Default("2");
        /// For payments above this.
        "above" above: Dollars, Refused;
    }
}

keys! {
    /// `network_fee = { include = true, buffer = "25%" }`: what the settlement's gas has to do with the price, where we pay it (x402).
    NetworkFeeLiteral = "network_fee" {
        /// The expected fee is added to the price.
        "include" include: bool, Refused;
        /// And so much of the fee on top, for it moves until the payment is settled.
        "buffer" buffer: Percent, Default("\"25%\"");
    }
}

keys! {
    /// Transfers claimed by their hash. Without this table they are not taken. Needs `public_url`: quotes name it.
    TransferLiteral = "[transfer]" {
        /// How long after the bill the transfer may be mined. What comes later is the payer's credit.
        "pay_within" pay_within: Millis<60_000, 86_400_000>, Default("\"15m\"");
        /// How long after the bill the transfer may be claimed.
        "claim_within" claim_within: Millis<120_000, 604_800_000>, Default("\"24h\"");
    }
}

keys! {
    /// How prices follow rates and network fees.
    PricingLiteral = "[pricing]" {
        /// How often prices that depend on them are made again.
        "refresh" refresh: Millis<1_000, 3_600_000>, Default("\"5s\"");
    }
}

keys! {
    /// What one of something is worth in dollars: for prices in dollars charged in what is no dollar token, and for network fees in prices.
    RateLiteral = "[[rate]]" {
        /// Of what, such as `ETH`.
        "symbol" symbol: Symbol, Refused;
        /// Always this many dollars.
        "fixed" fixed: Number, Means("`chainlink` or `http` says it");
        /// A Chainlink aggregator, read on chain.
        "chainlink" chainlink: ChainlinkLiteral, Means("`fixed` or `http` says it");
        /// A JSON document over HTTP.
        "http" http: HttpRateLiteral, Means("`fixed` or `chainlink` says it");
        /// A rate below this is not believed.
        "min" min: Number, Means("any above 0");
        /// A rate above this is not believed.
        "max" max: Number, Means("any");
        /// A rate older than this is not used: what depends on it is then not offered.
        "stale_after" stale_after: Millis<10_000, 604_800_000>, Default("\"1h\"");
        /// How often it is asked for.
        "refresh" refresh: Millis<1_000, 86_400_000>, Default("\"1m\"");
    }
}

keys! {
    /// `chainlink = { network = "eip155:8453", address = "0x.." }`
    ChainlinkLiteral = "chainlink" {
        /// One of the `[[chain]]`s.
        "network" network: Network, Refused;
        /// The aggregator's address.
        "address" address: Address, Refused;
    }
}

keys! {
    /// `http = { url = "https://..", pointer = "/ethereum/usd" }`
    HttpRateLiteral = "http" {
        /// Where the document is.
        "url" url: RateUrl, Refused;
        /// Where in it the rate is, as a JSON Pointer (RFC 6901): a number, or a text that is one.
        "pointer" pointer: JsonPointer, Refused;
    }
}

/// Where a rate is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RateUrl(pub(crate) Url);

parsed!(RateUrl, "an http or https URL", |text| {
    let url = Url::parse(text).map_err(|_| None)?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() { Ok(Self(url)) } else { Err(None) }
});

/// A JSON Pointer. Source: RFC 6901.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JsonPointer(pub(crate) String);

parsed!(JsonPointer, "a JSON Pointer such as \"/ethereum/usd\"", |text| {
    if text.starts_with('/') && text.len() <= 200 { Ok(Self(text.to_owned())) } else { Err(None) }
});
