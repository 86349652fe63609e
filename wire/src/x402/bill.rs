//! The payer's reading of a 402: `PAYMENT-REQUIRED`, or the terms in a JSON body. The seller is a stranger: sizes are bounded, what
//! cannot be paid is skipped and said, and nothing of it is trusted but what the payer's policy then checks.

use farebox_core::{
    Amount, AssetId, EvmAddress, Finality, Network, NetworkFee, Offer, RailName, Untrusted, X402Version,
};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::{
    base64_text::{self, Base64TextError},
    json::{self, JsonError, MemberError},
    x402::{EXACT, from_v1_name, terms::NETWORK_FEE},
};

/// The longest `PAYMENT-REQUIRED` we read, bytes.
pub const BILL_HEADER_BYTES_MAX: usize = 64 * 1024;
/// The longest 402 body we read, bytes.
pub const BILL_BODY_BYTES_MAX: usize = 256 * 1024;
/// The most requirements of one bill that we look at; the rest is skipped.
pub const ACCEPTS_MAX: usize = 32;

/// What a seller asks for.
#[derive(Clone, Debug)]
pub struct Bill {
    /// The version it is written in, and so the version to answer in.
    pub version: X402Version,
    /// Why the seller asks, if it says.
    pub error: Option<Untrusted>,
    /// The URL that the seller says it sells. The seller's word: compare it with what was asked for.
    pub resource_url: Option<Untrusted>,
    /// What the seller says it is.
    pub description: Option<Untrusted>,
    /// The requirements that can be paid by EIP-3009, in the seller's order.
    pub requirements: Vec<Requirement>,
    /// The others.
    pub skipped: Vec<Skipped>,
    /// Echoed in the credential, version 2.
    pub(crate) raw_resource: Option<Box<RawValue>>,
    /// Echoed in the credential, version 2.
    pub(crate) raw_extensions: Option<Box<RawValue>>,
}

/// One way to pay that we understand.
#[derive(Clone, Debug)]
pub struct Requirement {
    /// The seller's terms as an offer. Its asset and recipient are addresses on an EVM network, its amount is below 2^128; nothing
    /// else is checked.
    pub offer: Offer,
    /// The network as the bill writes it.
    pub(crate) network_on_wire: String,
    /// The JSON as it came.
    pub(crate) raw: Box<RawValue>,
}

impl Requirement {
    /// The JSON as it came, to be echoed.
    #[must_use]
    pub fn raw_json(&self) -> &str {
        self.raw.get()
    }
}

/// A requirement that we cannot pay.
#[derive(Debug, Clone, thiserror::Error)]
#[error("accepts[{index}] {reason}")]
pub struct Skipped {
    /// Its place in `accepts`, from 0.
    pub index: usize,
    /// Why.
    pub reason: SkipReason,
}

/// Why a requirement cannot be paid.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SkipReason {
    /// Not `exact`.
    #[error("has the scheme {found}; only \"exact\" can be paid")]
    Scheme {
        /// Which.
        found: Untrusted,
    },
    /// Not an EVM network, or a version 1 name we do not know.
    #[error("is on the network {found}; only EVM networks can be paid on")]
    Network {
        /// Which.
        found: Untrusted,
    },
    /// Not by EIP-3009.
    #[error("wants the asset transferred by {found}; only eip3009 can be paid")]
    TransferMethod {
        /// How.
        found: Untrusted,
    },
    /// Malformed.
    #[error("is malformed: {0}")]
    Malformed(String),
    /// This and all after it are beyond [`ACCEPTS_MAX`].
    #[error("and {} more are beyond the {ACCEPTS_MAX} that are looked at", .more - 1)]
    BeyondLimit {
        /// How many, this one included.
        more: usize,
    },
}

/// Why a 402 has no bill that we can read. Nothing was paid.
#[derive(Debug, thiserror::Error)]
#[error("{source_name}{problem}", source_name = .place.as_str())]
pub struct BillError {
    place: Place,
    /// What is wrong.
    #[source]
    pub problem: BillProblem,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Header,
    Body,
    Nowhere,
}

/// What can be wrong with a bill.
#[derive(Debug, thiserror::Error)]
pub enum BillProblem {
    /// Neither header nor body.
    #[error(
        "the 402 has no PAYMENT-REQUIRED header and no x402 terms in its body; this seller takes no payment by x402"
    )]
    Absent,
    /// Longer than we read.
    #[error("is {length} bytes long; at most {max} are read")]
    TooLong {
        /// How long.
        length: usize,
        /// How much is read.
        max: usize,
    },
    /// Not padded standard base64 of UTF-8.
    #[error(transparent)]
    Encoding(Base64TextError),
    /// Not UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
    /// Not JSON that we read.
    #[error(transparent)]
    Json(JsonError),
    /// A version we do not speak.
    #[error("is written in x402Version {found}; expected {expected}")]
    Version {
        /// `2` or `1 or 2`.
        expected: &'static str,
        /// Which.
        found: Untrusted,
    },
    /// A member is missing or wrong.
    #[error("{0}")]
    Member(#[from] MemberError),
}

impl BillError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self.problem {
            BillProblem::Absent => "bill_absent",
            BillProblem::TooLong { .. } => "bill_too_large",
            BillProblem::Version { .. } => "bill_version_unsupported",
            _ => "bill_malformed",
        }
    }
}

impl Place {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Header => "PAYMENT-REQUIRED ",
            Self::Body => "the body of the 402 ",
            Self::Nowhere => "",
        }
    }
}

/// Reads the bill of a 402: the value of `PAYMENT-REQUIRED` if there is one, else the terms in a JSON body, version 2 or 1.
///
/// A header that is there and malformed is an error, not a reason to read the body: two sets of terms, one unreadable, are not
/// clear terms.
///
/// # Errors
/// [`BillError`]. A bill whose every requirement is skipped is no error: see [`Bill::skipped`].
pub fn decode_payment_required(header: Option<&[u8]>, body: Option<&[u8]>) -> Result<Bill, BillError> {
    if let Some(header) = header {
        return from_header(header).map_err(|problem| BillError { place: Place::Header, problem });
    }
    match body {
        Some(body) if !body.is_empty() => from_body(body).map_err(|problem| BillError { place: Place::Body, problem }),
        _ => Err(BillError { place: Place::Nowhere, problem: BillProblem::Absent }),
    }
}

fn from_header(header: &[u8]) -> Result<Bill, BillProblem> {
    let text = base64_text::decode(header, BILL_HEADER_BYTES_MAX).map_err(|error| match error {
        Base64TextError::TooLong { length, max } => BillProblem::TooLong { length, max },
        other => BillProblem::Encoding(other),
    })?;
    let root = json::object(&text).map_err(BillProblem::Json)?;
    match version(&root)? {
        Some(2) => bill(X402Version::V2, &root, &text),
        _ => Err(wrong_version("2", &root)),
    }
}

fn from_body(body: &[u8]) -> Result<Bill, BillProblem> {
    if body.len() > BILL_BODY_BYTES_MAX {
        return Err(BillProblem::TooLong { length: body.len(), max: BILL_BODY_BYTES_MAX });
    }
    let text = std::str::from_utf8(body).map_err(|_| BillProblem::NotUtf8)?;
    let root = json::object(text).map_err(BillProblem::Json)?;
    match version(&root)? {
        Some(2) => bill(X402Version::V2, &root, text),
        Some(1) => bill(X402Version::V1, &root, text),
        Some(_) => Err(wrong_version("1 or 2", &root)),
        None => Err(BillProblem::Absent),
    }
}

fn version(root: &Map<String, Value>) -> Result<Option<u64>, MemberError> {
    json::optional(root, "x402Version").map(|_| json::integer_member(root, "x402Version")).transpose()
}

fn wrong_version(expected: &'static str, root: &Map<String, Value>) -> BillProblem {
    let found = root.get("x402Version").map_or_else(|| "absent".to_owned(), Value::to_string);
    BillProblem::Version { expected, found: Untrusted::new(found) }
}

/// The parts of a bill that are echoed as they came.
#[derive(Deserialize)]
struct RawParts {
    #[serde(default)]
    resource: Option<Box<RawValue>>,
    #[serde(default)]
    accepts: Vec<Box<RawValue>>,
    #[serde(default)]
    extensions: Option<Box<RawValue>>,
}

fn bill(version: X402Version, root: &Map<String, Value>, text: &str) -> Result<Bill, BillProblem> {
    let expected = "a list of requirements";
    let accepts = json::required(root, "accepts", expected)?;
    let accepts = accepts.as_array().ok_or_else(|| json::wrong_type("accepts", expected, accepts))?;
    let raw: RawParts = serde_json::from_str(text).map_err(|error| BillProblem::Json(JsonError::Syntax(error)))?;
    let (mut requirements, mut skipped) = (Vec::new(), Vec::new());
    for (index, (value, raw)) in accepts.iter().zip(raw.accepts).take(ACCEPTS_MAX).enumerate() {
        match requirement(version, value, raw) {
            Ok(requirement) => requirements.push(requirement),
            Err(reason) => skipped.push(Skipped { index, reason }),
        }
    }
    if let Some(more) = accepts.len().checked_sub(ACCEPTS_MAX).filter(|more| *more > 0) {
        skipped.push(Skipped { index: ACCEPTS_MAX, reason: SkipReason::BeyondLimit { more } });
    }
    let about = match version {
        X402Version::V2 => root.get("resource").and_then(Value::as_object),
        X402Version::V1 => accepts.first().and_then(Value::as_object),
    };
    let said = |name: &str| about.and_then(|about| about.get(name)).and_then(Value::as_str).map(Untrusted::new);
    Ok(Bill {
        version,
        error: root.get("error").and_then(Value::as_str).map(Untrusted::new),
        resource_url: said(if version == X402Version::V2 { "url" } else { "resource" }),
        description: said("description"),
        requirements,
        skipped,
        raw_resource: raw.resource,
        raw_extensions: raw.extensions,
    })
}

fn requirement(version: X402Version, value: &Value, raw: Box<RawValue>) -> Result<Requirement, SkipReason> {
    let object = value.as_object().ok_or_else(|| SkipReason::Malformed("it is no object".to_owned()))?;
    let scheme = json::text_member(object, "scheme", "a string")?;
    if scheme != EXACT {
        return Err(SkipReason::Scheme { found: Untrusted::new(scheme) });
    }
    let network_on_wire = json::text_member(object, "network", "a string")?;
    let network = match version {
        X402Version::V1 => from_v1_name(network_on_wire),
        X402Version::V2 => network_on_wire.parse().ok().filter(|network: &Network| network.evm_chain_id().is_some()),
    };
    let network = network.ok_or_else(|| SkipReason::Network { found: Untrusted::new(network_on_wire) })?;
    let mut extra = match json::optional(object, "extra") {
        None => Map::new(),
        Some(_) => json::object_member(object, "extra")?.clone(),
    };
    check_transfer_method(&extra)?;
    let address = "an address of 0x and 40 hex digits";
    let asset: EvmAddress = json::parsed_member(object, "asset", address, |s| s.parse().ok())?;
    json::parsed_member(object, "payTo", address, |s| s.parse::<EvmAddress>().ok())?;
    let amount = if version == X402Version::V2 { "amount" } else { "maxAmountRequired" };
    let max_timeout_s = json::integer_member(object, "maxTimeoutSeconds")?;
    if max_timeout_s == 0 {
        return Err(SkipReason::Malformed("maxTimeoutSeconds is 0; expected 1 or more".to_owned()));
    }
    Ok(Requirement {
        offer: Offer {
            rail: RailName::X402,
            scheme: EXACT.into(),
            amount: Amount { units: json::units_member(object, amount)?, asset: AssetId::erc20(network, asset) },
            asset_on_wire: json::text_member(object, "asset", address)?.into(),
            pay_to: json::text_member(object, "payTo", address)?.into(),
            max_timeout_s,
            network_fee: network_fee(&mut extra),
            extra,
            finality: Finality::default(),
        },
        network_on_wire: network_on_wire.to_owned(),
        raw,
    })
}

/// Takes what the seller says of the network's fee out of `extra`; anything else there is not ours to understand.
fn network_fee(extra: &mut Map<String, Value>) -> Option<NetworkFee> {
    let fee = extra.get(NETWORK_FEE)?.as_object()?;
    let units = |name| fee.get(name).and_then(Value::as_str).and_then(|units| units.parse().ok());
    let fee = units("included").map(NetworkFee::Included).or_else(|| units("absorbed").map(NetworkFee::Absorbed))?;
    extra.remove(NETWORK_FEE);
    Some(fee)
}

/// An EIP-3009 authorization sent where Permit2 is wanted would be refused, and could still be used by whoever saw it.
fn check_transfer_method(extra: &Map<String, Value>) -> Result<(), SkipReason> {
    match extra.get("assetTransferMethod") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(method)) if method == "eip3009" => Ok(()),
        Some(other) => Err(SkipReason::TransferMethod { found: Untrusted::new(other.to_string()) }),
    }
}

impl From<MemberError> for SkipReason {
    fn from(error: MemberError) -> Self {
        Self::Malformed(error.to_string())
    }
}
