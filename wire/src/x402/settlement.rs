//! `PAYMENT-RESPONSE` and `X-PAYMENT-RESPONSE`: what became of a payment. Source: x402 v2 §5.3, v1 §5.3.

use farebox_core::{Network, Untrusted, X402Version};
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    base64_text::{self, Base64TextError},
    json::{self, JsonError, MemberError},
    x402::{PAYMENT_RESPONSE, X_PAYMENT_RESPONSE, from_v1_name, v1_name},
};

/// The longest settlement header we read, bytes.
pub const SETTLEMENT_BYTES_MAX: usize = 16 * 1024;

/// The most characters of a seller's error reason that we keep.
const ERROR_REASON_CHARS_MAX: usize = 200;

/// What became of a payment, as the payer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettlementResponse {
    /// Whether the money moved. With `false` it need not have stayed: see `error_reason` (`settlement_pending`).
    pub success: bool,
    /// The transaction: `0x` and 64 hex digits on EVM; empty if there is none. At most 128 of `[0-9A-Za-z]` when decoded.
    pub transaction: String,
    /// Where.
    pub network: Network,
    /// Who paid, as the network writes addresses.
    pub payer: Option<String>,
    /// For a transfer, of what: `native`, or the token's address.
    pub asset: Option<String>,
    /// How much moved, smallest units.
    pub amount: Option<u128>,
    /// For a transfer of a token, which log of the transaction's own receipt, counted from 0.
    pub log_index: Option<u32>,
    /// How many units are the payer's credit.
    pub credit: Option<u128>,
    /// Why not, if not; snake_case from most sellers. When decoded: printable ASCII, at most 200 characters.
    pub error_reason: Option<String>,
}

/// Why a settlement header was not understood. That says nothing of whether the money moved.
#[derive(Debug, thiserror::Error)]
pub enum SettlementError {
    /// Not padded standard base64 of UTF-8.
    #[error("PAYMENT-RESPONSE {0}")]
    Encoding(#[source] Base64TextError),
    /// Not JSON that we read.
    #[error("PAYMENT-RESPONSE {0}")]
    Json(#[source] JsonError),
    /// A member is missing or wrong.
    #[error("PAYMENT-RESPONSE: {0}")]
    Member(#[from] MemberError),
    /// Neither a CAIP-2 network nor a version 1 name.
    #[error(
        "PAYMENT-RESPONSE names the network {found}; expected a CAIP-2 network such as eip155:8453 or a version 1 name"
    )]
    Network {
        /// What it says.
        found: Untrusted,
    },
}

impl SettlementError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "settlement_response_malformed"
    }
}

impl SettlementResponse {
    /// The header that tells it to a payer of `version`.
    #[must_use]
    pub fn encode(&self, version: X402Version) -> (HeaderName, HeaderValue) {
        let (name, network) = match version {
            X402Version::V2 => (PAYMENT_RESPONSE, self.network.as_str()),
            X402Version::V1 => (X_PAYMENT_RESPONSE, v1_name(&self.network).unwrap_or(self.network.as_str())),
        };
        let wire = OnWire {
            success: self.success,
            transaction: &self.transaction,
            network,
            payer: self.payer.as_deref(),
            asset: self.asset.as_deref(),
            amount: self.amount.map(|units| units.to_string()),
            log_index: self.log_index,
            credit: self.credit.map(|units| units.to_string()),
            error_reason: self.error_reason.as_deref(),
        };
        (name, base64_text::header_value(&json::bytes(&wire, 512)))
    }
}

/// Reads the value of `PAYMENT-RESPONSE` or `X-PAYMENT-RESPONSE`, at most [`SETTLEMENT_BYTES_MAX`] bytes.
///
/// # Errors
/// [`SettlementError`] if it is not one.
pub fn decode_settlement(value: &[u8]) -> Result<SettlementResponse, SettlementError> {
    let text = base64_text::decode(value, SETTLEMENT_BYTES_MAX).map_err(SettlementError::Encoding)?;
    let root = json::object(&text).map_err(SettlementError::Json)?;
    let expected = "true or false";
    let success = json::required(&root, "success", expected)?;
    let success = success.as_bool().ok_or_else(|| json::wrong_type("success", expected, success))?;
    Ok(SettlementResponse {
        success,
        transaction: short_name(&root, "transaction")?.unwrap_or_default(),
        network: network(&root)?,
        payer: short_name(&root, "payer")?,
        asset: short_name(&root, "asset")?,
        amount: units(&root, "amount")?,
        log_index: log_index(&root)?,
        credit: units(&root, "credit")?,
        error_reason: error_reason(&root)?,
    })
}

fn units(root: &Map<String, Value>, path: &'static str) -> Result<Option<u128>, MemberError> {
    json::optional(root, path).map(|_| json::units_member(root, path)).transpose()
}

fn log_index(root: &Map<String, Value>) -> Result<Option<u32>, MemberError> {
    if json::optional(root, "logIndex").is_none() {
        return Ok(None);
    }
    let index = json::integer_member(root, "logIndex")?;
    u32::try_from(index).map(Some).map_err(|_| json::wrong_form("logIndex", "below 2^32", &index.to_string()))
}

/// A transaction or address of any network; never text that could move a terminal's cursor.
fn short_name(root: &Map<String, Value>, path: &'static str) -> Result<Option<String>, MemberError> {
    let expected = "at most 128 letters and digits";
    json::optional(root, path)
        .map(|_| {
            json::parsed_member(root, path, expected, |text| {
                (text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| text.to_owned())
            })
        })
        .transpose()
}

fn network(root: &Map<String, Value>) -> Result<Network, SettlementError> {
    let name = json::text_member(root, "network", "a CAIP-2 network such as \"eip155:8453\"")?;
    let network = if name.contains(':') { name.parse().ok() } else { from_v1_name(name) };
    network.ok_or_else(|| SettlementError::Network { found: Untrusted::new(name) })
}

fn error_reason(root: &Map<String, Value>) -> Result<Option<String>, MemberError> {
    if json::optional(root, "errorReason").is_none() {
        return Ok(None);
    }
    let text = json::text_member(root, "errorReason", "a string")?;
    let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    Ok(Some(text.chars().take(ERROR_REASON_CHARS_MAX).map(printable).collect()))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OnWire<'a> {
    success: bool,
    transaction: &'a str,
    network: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    asset: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_reason: Option<&'a str>,
}
