//! `PAYMENT-SIGNATURE` and `X-PAYMENT`. Source: x402 v2 §5.2, v1 §5.2; scheme `exact` on EVM.

use farebox_core::{
    AcceptedTerms, EchoedRequirement, EvmAddress, Network, TransferAuthorization, Untrusted, X402Credential,
    X402Version,
};
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};

use crate::{
    CREDENTIAL_BYTES_MAX, CredentialError, CredentialProblem, base64_text, json,
    json::MemberError,
    x402::{Bill, EXACT, PAYMENT_SIGNATURE, Requirement, X_PAYMENT, from_v1_name},
};

/// The longest signature we read, bytes: a contract wallet's may hold many owners' signatures.
pub const SIGNATURE_BYTES_MAX: usize = 4096;

/// Reads the value of the credential header of `version`, at most [`CREDENTIAL_BYTES_MAX`] bytes.
///
/// # Errors
/// [`CredentialError`] says which header, what is wrong and what was expected.
pub fn decode_credential(version: X402Version, value: &[u8]) -> Result<X402Credential, CredentialError> {
    decode(version, value).map_err(|problem| CredentialError { header: header_of(version), problem })
}

/// The header with which `credential` answers `bill`, in the bill's version. The requirement's JSON is echoed byte for byte.
#[must_use]
pub fn encode_credential(
    credential: &X402Credential,
    requirement: &Requirement,
    bill: &Bill,
) -> (HeaderName, HeaderValue) {
    let payload = Payload::of(credential, &requirement.offer.pay_to);
    let text = match bill.version {
        X402Version::V2 => json::bytes(
            &PayloadV2 {
                x402_version: 2,
                resource: bill.raw_resource.as_deref(),
                accepted: &requirement.raw,
                payload,
                extensions: bill.raw_extensions.as_deref(),
            },
            2048,
        ),
        X402Version::V1 => json::bytes(
            &PayloadV1 {
                x402_version: 1,
                scheme: &requirement.offer.scheme,
                network: &requirement.network_on_wire,
                payload,
            },
            1024,
        ),
    };
    (header_of(bill.version), base64_text::header_value(&text))
}

const fn header_of(version: X402Version) -> HeaderName {
    match version {
        X402Version::V1 => X_PAYMENT,
        X402Version::V2 => PAYMENT_SIGNATURE,
    }
}

fn decode(version: X402Version, value: &[u8]) -> Result<X402Credential, CredentialProblem> {
    let text = base64_text::decode(value, CREDENTIAL_BYTES_MAX).map_err(CredentialProblem::Encoding)?;
    let root = json::object(&text).map_err(CredentialProblem::Json)?;
    check_version(&root, version)?;
    let accepted = match version {
        X402Version::V1 => accepted_v1(&root)?,
        X402Version::V2 => accepted_v2(json::object_member(&root, "accepted")?)?,
    };
    let payload = json::object_member(&root, "payload")?;
    check_payload_type(payload)?;
    let authorization = authorization(json::object_member(payload, "payload.authorization")?)?;
    let signature = signature(payload)?;
    Ok(X402Credential::new(version, accepted, authorization, signature))
}

fn check_version(root: &Map<String, Value>, version: X402Version) -> Result<(), CredentialProblem> {
    let expected = match version {
        X402Version::V1 => 1u8,
        X402Version::V2 => 2,
    };
    let found = json::required(root, "x402Version", "the number 1 or 2")?;
    if found.as_u64() == Some(u64::from(expected)) {
        return Ok(());
    }
    Err(CredentialProblem::Version { expected, found: Untrusted::new(found.to_string()) })
}

fn accepted_v1(root: &Map<String, Value>) -> Result<AcceptedTerms, CredentialProblem> {
    let scheme = scheme(root, "scheme")?;
    let expected = "a version 1 network name such as \"base\"";
    let name = json::text_member(root, "network", expected)?;
    let network =
        from_v1_name(name).ok_or_else(|| CredentialProblem::Network { expected, found: Untrusted::new(name) })?;
    Ok(AcceptedTerms { scheme: scheme.into(), network, requirement: None })
}

fn accepted_v2(accepted: &Map<String, Value>) -> Result<AcceptedTerms, CredentialProblem> {
    let scheme = scheme(accepted, "accepted.scheme")?;
    let expected = "a CAIP-2 network such as \"eip155:8453\"";
    let name = json::text_member(accepted, "accepted.network", expected)?;
    let network: Network =
        name.parse().map_err(|_| CredentialProblem::Network { expected, found: Untrusted::new(name) })?;
    json::units_member(accepted, "accepted.amount")?;
    let requirement = EchoedRequirement {
        amount: json::text_member(accepted, "accepted.amount", "smallest units")?.into(),
        asset: json::text_member(accepted, "accepted.asset", "the token's address as a string")?.into(),
        pay_to: json::text_member(accepted, "accepted.payTo", "the recipient's address as a string")?.into(),
        max_timeout_s: json::integer_member(accepted, "accepted.maxTimeoutSeconds")?,
        extra: accepted.get("extra").cloned().unwrap_or(Value::Null),
    };
    Ok(AcceptedTerms { scheme: scheme.into(), network, requirement: Some(requirement) })
}

fn scheme<'a>(object: &'a Map<String, Value>, path: &'static str) -> Result<&'a str, CredentialProblem> {
    match json::text_member(object, path, "\"exact\"")? {
        EXACT => Ok(EXACT),
        other => Err(CredentialProblem::Scheme { found: Untrusted::new(other) }),
    }
}

/// Other ways to pay have members of their own; to call theirs "authorization is missing" would send the author looking for a typo.
fn check_payload_type(payload: &Map<String, Value>) -> Result<(), CredentialProblem> {
    let found = if payload.contains_key("permit2Authorization") {
        "a Permit2 payload"
    } else if payload.contains_key("delegationManager") || payload.contains_key("permissionContext") {
        "an ERC-7710 payload"
    } else if payload.contains_key("transaction") && !payload.contains_key("authorization") {
        "a signed transaction"
    } else {
        return Ok(());
    };
    Err(CredentialProblem::PayloadType { found })
}

fn authorization(object: &Map<String, Value>) -> Result<TransferAuthorization, MemberError> {
    let address = |path| json::parsed_member(object, path, "an address of 0x and 40 hex digits", |s| s.parse().ok());
    Ok(TransferAuthorization {
        from: address("payload.authorization.from")?,
        to: address("payload.authorization.to")?,
        value: json::units_member(object, "payload.authorization.value")?,
        valid_after: json::seconds_member(object, "payload.authorization.validAfter")?,
        valid_before: json::seconds_member(object, "payload.authorization.validBefore")?,
        nonce: json::parsed_member(object, "payload.authorization.nonce", "0x and 64 hex digits", nonce)?,
    })
}

fn nonce(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text.strip_prefix("0x")?, &mut bytes).ok()?;
    Some(bytes)
}

fn signature(payload: &Map<String, Value>) -> Result<Vec<u8>, MemberError> {
    let expected = "0x and the hex digits of 1 to 4096 bytes";
    json::parsed_member(payload, "payload.signature", expected, |text| {
        let digits = text.strip_prefix("0x")?;
        if digits.is_empty() || digits.len() > 2 * SIGNATURE_BYTES_MAX {
            return None;
        }
        hex::decode(digits).ok()
    })
}

#[derive(Serialize)]
struct PayloadV2<'a> {
    #[serde(rename = "x402Version")]
    x402_version: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a RawValue>,
    accepted: &'a RawValue,
    payload: Payload<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extensions: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct PayloadV1<'a> {
    #[serde(rename = "x402Version")]
    x402_version: u8,
    scheme: &'a str,
    network: &'a str,
    payload: Payload<'a>,
}

#[derive(Serialize)]
struct Payload<'a> {
    signature: String,
    authorization: Authorization<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Authorization<'a> {
    from: EvmAddress,
    to: WireAddress<'a>,
    value: String,
    valid_after: String,
    valid_before: String,
    nonce: String,
}

/// A recipient in the bill's own spelling: some sellers compare text.
#[derive(Serialize)]
#[serde(untagged)]
enum WireAddress<'a> {
    AsBilled(&'a str),
    Lower(EvmAddress),
}

impl<'a> Payload<'a> {
    fn of(credential: &X402Credential, pay_to: &'a str) -> Self {
        let signed = &credential.authorization;
        let same = pay_to.parse() == Ok(signed.to);
        Self {
            signature: format!("0x{}", hex::encode(&credential.signature)),
            authorization: Authorization {
                from: signed.from,
                to: if same { WireAddress::AsBilled(pay_to) } else { WireAddress::Lower(signed.to) },
                value: signed.value.to_string(),
                valid_after: signed.valid_after.to_string(),
                valid_before: signed.valid_before.to_string(),
                nonce: format!("0x{}", hex::encode(signed.nonce)),
            },
        }
    }
}
