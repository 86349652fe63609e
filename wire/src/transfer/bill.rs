//! The `transfer` member of a 402's body: enough to pay from with an ordinary wallet, and to claim what was paid.

use std::sync::Arc;

use farebox_core::{Amount, AssetId, EvmAddress, Finality, Network, NetworkFee, Offer, RailName, Timestamp};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::{
    CODE_LIFETIME_MAX_S, CODE_TYPE, DOMAIN_NAME, DOMAIN_VERSION, NATIVE, NATIVE_PLACEHOLDER, QUOTE_CHARS_MAX,
    QuoteOption, address, asset_name, calendar, eip55,
};
use crate::json::{self, JsonError, MemberError};

/// The longest 402 body we read, bytes.
pub const BILL_BODY_BYTES_MAX: usize = 256 * 1024;
/// The most options of one bill.
pub const OPTIONS_MAX: usize = 32;

const URL_BYTES_MAX: usize = 8 * 1024;
const METHOD_BYTES_MAX: usize = 32;
const SYMBOL_CHARS_MAX: usize = 32;
/// More decimals than the digits of 2^128 have no meaning for an amount.
const DECIMALS_MAX: u64 = 38;

/// What a seller asks for by transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferBill {
    /// Opaque; goes back in the payment code as it is. At most [`QUOTE_CHARS_MAX`] printable ASCII characters.
    pub quote: String,
    /// Public URL of what is for sale, with path and query. When decoded the seller's word: compare it with what was asked for.
    pub resource: String,
    /// The request's method.
    pub method: String,
    /// Until when the transfer has to be mined, whole seconds.
    pub pay_by: Timestamp,
    /// Until when it has to be claimed, whole seconds.
    pub claim_by: Timestamp,
    /// Every way to pay, in the seller's order; at most [`OPTIONS_MAX`].
    pub options: Vec<TransferOption>,
}

/// One way to pay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferOption {
    /// How much of what, smallest units; 1 or more. The asset names the network, an EVM one.
    pub amount: Amount,
    /// Such as `USDC`. Letters, digits and `._-+$₮`, at most 32: for people, and the seller's word.
    pub symbol: Arc<str>,
    /// How many decimals the asset has, at most 38. The seller's word.
    pub decimals: u8,
    /// The recipient.
    pub pay_to: EvmAddress,
    /// What makes the transfer count.
    pub finality: Finality,
    /// What the payer's own transaction is expected to cost beside, wei.
    pub network_fee_wei: Option<u128>,
}

impl TransferOption {
    /// The option that an offer of the transfer rail is. `None` for another rail's, and for one that lacks what a bill says: an
    /// address to pay to, `extra.symbol` or `extra.decimals`.
    #[must_use]
    pub fn of(offer: &Offer) -> Option<Self> {
        if offer.rail != RailName::Transfer {
            return None;
        }
        let decimals =
            offer.extra.get("decimals").and_then(Value::as_u64).filter(|decimals| *decimals <= DECIMALS_MAX)?;
        Some(Self {
            amount: offer.amount.clone(),
            symbol: offer.extra.get("symbol").and_then(Value::as_str)?.into(),
            decimals: u8::try_from(decimals).ok()?,
            pay_to: offer.pay_to.parse().ok()?,
            finality: offer.finality,
            network_fee_wei: match offer.network_fee {
                Some(NetworkFee::OnTop(wei)) => Some(wei),
                Some(NetworkFee::Included(_) | NetworkFee::Absorbed(_)) | None => None,
            },
        })
    }

    /// What a quote keeps of it.
    #[must_use]
    pub fn quoted(&self) -> QuoteOption {
        QuoteOption {
            asset: self.amount.asset.clone(),
            pay_to: self.pay_to,
            units: self.amount.units,
            finality: self.finality,
        }
    }
}

/// A bill as it was read.
#[derive(Clone, Debug)]
pub struct ReadBill {
    /// The bill, with the options that can be paid.
    pub bill: TransferBill,
    /// The others.
    pub skipped: Vec<SkippedOption>,
}

/// An option that we do not understand.
#[derive(Clone, Debug, thiserror::Error)]
#[error("transfer.options[{index}] {reason}")]
pub struct SkippedOption {
    /// Its place, from 0.
    pub index: usize,
    /// Why.
    pub reason: String,
}

/// Why a 402's `transfer` member is not one that we read. Nothing was paid.
#[derive(Debug, thiserror::Error)]
#[error("the body of the 402 {problem}")]
pub struct TransferBillError {
    /// What is wrong.
    #[source]
    pub problem: TransferBillProblem,
}

/// What can be wrong with a bill.
#[derive(Debug, thiserror::Error)]
pub enum TransferBillProblem {
    /// Longer than we read.
    #[error("is {length} bytes long; at most {BILL_BODY_BYTES_MAX} are read")]
    TooLong {
        /// How long.
        length: usize,
    },
    /// Not UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
    /// Not JSON that we read.
    #[error(transparent)]
    Json(JsonError),
    /// A member is missing or wrong.
    #[error("{0}")]
    Member(#[from] MemberError),
}

impl TransferBillError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self.problem {
            TransferBillProblem::TooLong { .. } => "bill_too_large",
            TransferBillProblem::NotUtf8 | TransferBillProblem::Json(_) | TransferBillProblem::Member(_) => {
                "bill_malformed"
            }
        }
    }
}

/// Reads the `transfer` member of a 402's JSON body; `None` if it has none. Members that we do not know are ignored.
///
/// # Errors
/// [`TransferBillError`]. A bill whose every option is skipped is no error: see [`ReadBill::skipped`].
pub fn decode_bill(body: &[u8]) -> Result<Option<ReadBill>, TransferBillError> {
    read(body).map_err(|problem| TransferBillError { problem })
}

fn read(body: &[u8]) -> Result<Option<ReadBill>, TransferBillProblem> {
    if body.len() > BILL_BODY_BYTES_MAX {
        return Err(TransferBillProblem::TooLong { length: body.len() });
    }
    let text = std::str::from_utf8(body).map_err(|_| TransferBillProblem::NotUtf8)?;
    let root = json::object(text).map_err(TransferBillProblem::Json)?;
    if json::optional(&root, "transfer").is_none() {
        return Ok(None);
    }
    let transfer = json::object_member(&root, "transfer")?;
    let expected = "a list of options";
    let listed = json::required(transfer, "transfer.options", expected)?;
    let listed = listed.as_array().ok_or_else(|| json::wrong_type("transfer.options", expected, listed))?;
    let (mut options, mut skipped) = (Vec::new(), Vec::new());
    for (index, value) in listed.iter().take(OPTIONS_MAX).enumerate() {
        match option(value) {
            Ok(option) => options.push(option),
            Err(reason) => skipped.push(SkippedOption { index, reason }),
        }
    }
    if let Some(more) = listed.len().checked_sub(OPTIONS_MAX).filter(|more| *more > 0) {
        let reason = format!("and all after it are beyond the {OPTIONS_MAX} that are looked at: {more} in all");
        skipped.push(SkippedOption { index: OPTIONS_MAX, reason });
    }
    let bill = TransferBill {
        quote: printable(transfer, "transfer.quote", QUOTE_CHARS_MAX)?,
        resource: printable(transfer, "transfer.resource", URL_BYTES_MAX)?,
        method: printable(transfer, "transfer.method", METHOD_BYTES_MAX)?,
        pay_by: time(transfer, "transfer.payBy")?,
        claim_by: time(transfer, "transfer.claimBy")?,
        options,
    };
    Ok(Some(ReadBill { bill, skipped }))
}

fn printable(object: &Map<String, Value>, path: &'static str, bytes_max: usize) -> Result<String, MemberError> {
    json::parsed_member(object, path, "printable ASCII text of a bounded length", |text| {
        let good = !text.is_empty() && text.len() <= bytes_max && text.bytes().all(|b| b.is_ascii_graphic());
        good.then(|| text.to_owned())
    })
}

fn time(object: &Map<String, Value>, path: &'static str) -> Result<Timestamp, MemberError> {
    json::parsed_member(object, path, "a time such as 2026-11-22T15:10:00Z", |text| {
        let time: jiff::Timestamp = text.parse().ok()?;
        u64::try_from(time.as_second()).ok().map(Timestamp::from_unix_s)
    })
}

fn option(value: &Value) -> Result<TransferOption, String> {
    let object = value.as_object().ok_or("is no object")?;
    read_option(object).map_err(|error| error.to_string())
}

fn read_option(object: &Map<String, Value>) -> Result<TransferOption, MemberError> {
    let an_address = "an address in lower case or with its EIP-55 checksum";
    let network: Network = json::parsed_member(object, "network", "an EVM network such as eip155:8453", |text| {
        text.parse().ok().filter(|network: &Network| network.evm_chain_id().is_some())
    })?;
    let asset = json::parsed_member(object, "asset", "\"native\" or a token's address", |text| match text {
        NATIVE => Some(AssetId::native(network)),
        token => Some(AssetId::erc20(network, address(token)?)),
    })?;
    let units = match json::units_member(object, "amount")? {
        0 => return Err(json::wrong_form("amount", "smallest units, 1 or more", "0")),
        units => units,
    };
    Ok(TransferOption {
        amount: Amount { units, asset },
        symbol: json::parsed_member(object, "symbol", "a short name of letters and digits", symbol)?,
        decimals: decimals(object)?,
        pay_to: json::parsed_member(object, "payTo", an_address, address)?,
        finality: finality(object)?,
        network_fee_wei: network_fee(object)?,
    })
}

fn symbol(text: &str) -> Option<Arc<str>> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-+$₮".contains(c);
    (!text.is_empty() && text.chars().count() <= SYMBOL_CHARS_MAX && text.chars().all(good)).then(|| text.into())
}

fn decimals(object: &Map<String, Value>) -> Result<u8, MemberError> {
    let decimals = json::integer_member(object, "decimals")?;
    match u8::try_from(decimals) {
        Ok(small) if decimals <= DECIMALS_MAX => Ok(small),
        _ => Err(json::wrong_form("decimals", "0 to 38", &decimals.to_string())),
    }
}

fn finality(object: &Map<String, Value>) -> Result<Finality, MemberError> {
    let expected = "a number of blocks, 1 or more, or \"safe\" or \"finalized\"";
    let value = json::required(object, "confirmations", expected)?;
    let known: Option<Finality> = serde_json::from_value(value.clone()).ok();
    known.ok_or_else(|| json::wrong_form("confirmations", expected, &value.to_string()))
}

/// A fee in anything but wei is left to the payer's own estimate.
fn network_fee(object: &Map<String, Value>) -> Result<Option<u128>, MemberError> {
    if json::optional(object, "networkFee").is_none() {
        return Ok(None);
    }
    let fee = json::object_member(object, "networkFee")?;
    if fee.get("unit").and_then(Value::as_str) != Some("wei") {
        return Ok(None);
    }
    json::units_member(fee, "networkFee.estimate").map(Some)
}

impl Serialize for TransferBill {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        BillOnWire {
            quote: &self.quote,
            resource: &self.resource,
            method: &self.method,
            pay_by: self.pay_by,
            claim_by: self.claim_by,
            options: &self.options,
            claim: HowToClaim,
        }
        .serialize(serializer)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BillOnWire<'a> {
    quote: &'a str,
    resource: &'a str,
    method: &'a str,
    #[serde(serialize_with = "rfc3339")]
    pay_by: Timestamp,
    #[serde(serialize_with = "rfc3339")]
    claim_by: Timestamp,
    options: &'a [TransferOption],
    claim: HowToClaim,
}

impl Serialize for TransferOption {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let asset = &self.amount.asset;
        OptionOnWire {
            network: asset.network().as_str(),
            asset: asset_name(asset),
            symbol: &self.symbol,
            decimals: self.decimals,
            pay_to: eip55(self.pay_to),
            amount: self.amount.units,
            confirmations: self.finality,
            network_fee: self.network_fee_wei.map(|estimate| FeeOnWire { asset: NATIVE, estimate, unit: "wei" }),
        }
        .serialize(serializer)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OptionOnWire<'a> {
    network: &'a str,
    asset: String,
    symbol: &'a str,
    decimals: u8,
    pay_to: String,
    #[serde(serialize_with = "as_text")]
    amount: u128,
    confirmations: Finality,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_fee: Option<FeeOnWire>,
}

#[derive(Serialize)]
struct FeeOnWire {
    asset: &'static str,
    #[serde(serialize_with = "as_text")]
    estimate: u128,
    unit: &'static str,
}

/// How a transfer is claimed, for whoever has no more than the bill: a person, or a program that reads.
struct HowToClaim;

impl Serialize for HowToClaim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::json!({
            "headers": {
                "X-Payment-Hash": "the transaction's hash: 0x and 64 hex digits",
                "X-Payment-Code": "base64url without padding of the JSON object {\"version\":1,\"quote\",\"network\",\"asset\",\
                    \"transaction\",\"payer\",\"payTo\",\"amount\",\"resource\",\"method\",\"expiresAt\",\"signature\"}: all strings, but \
                    version and expiresAt (seconds since 1970)",
            },
            "signature": {
                "standard": "EIP-712, by the payer; a contract wallet's by EIP-1271",
                "domain": {"name": DOMAIN_NAME, "version": DOMAIN_VERSION, "chainId": "the option's network, after eip155:"},
                "type": CODE_TYPE,
                "nativeAsset": eip55(NATIVE_PLACEHOLDER),
            },
            "expiresWithinSeconds": CODE_LIFETIME_MAX_S,
        })
        .serialize(serializer)
    }
}

fn rfc3339<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&calendar(*time))
}

fn as_text<S: Serializer>(units: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(units)
}
