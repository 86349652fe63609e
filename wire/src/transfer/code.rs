//! `X-Payment-Hash` and `X-Payment-Code`: the claim on a transfer. Source: the docs' page on transfers.

use std::ops::RangeInclusive;

use farebox_core::{AssetId, EvmAddress, Network, PaymentCode, TransferCredential, Untrusted};
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{NATIVE, X_PAYMENT_CODE, X_PAYMENT_HASH, address, base64url, hash};
use crate::{
    CredentialError, CredentialProblem,
    json::{self, MemberError},
};

/// The longest `X-Payment-Code` we read, bytes.
pub const CODE_BYTES_MAX: usize = 12 * 1024;

/// How many bytes a signature may have: 65 for a key's, more for a contract wallet's, which may hold many owners'.
pub const SIGNATURE_BYTES: RangeInclusive<usize> = 65..=4096;

const VERSION: u64 = 1;

/// Reads the values of `X-Payment-Hash` and `X-Payment-Code`. Whether the two name one transaction is for the rail to say.
///
/// # Errors
/// [`CredentialError`] says which header, what is wrong and what was expected.
pub fn decode_code(announced: &[u8], code: &[u8]) -> Result<TransferCredential, CredentialError> {
    let announced = std::str::from_utf8(announced).ok().and_then(hash).ok_or_else(|| CredentialError {
        header: X_PAYMENT_HASH,
        problem: CredentialProblem::NotAHash { found: Untrusted::from_bytes(announced) },
    })?;
    let code = payment_code(code).map_err(|problem| CredentialError { header: X_PAYMENT_CODE, problem })?;
    Ok(TransferCredential::new(code, announced))
}

/// The two headers that claim a transfer. The code is read again only if it is at most [`CODE_BYTES_MAX`] long.
#[must_use]
pub fn encode_code(credential: &TransferCredential) -> [(HeaderName, HeaderValue); 2] {
    let code = &credential.code;
    let on_wire = OnWire {
        version: VERSION,
        quote: &code.quote,
        network: code.asset.network().as_str(),
        asset: code.asset.erc20_address().map_or_else(|| NATIVE.to_owned(), |token| format!("{token:x}")),
        transaction: format!("0x{}", hex::encode(code.transaction)),
        payer: code.payer,
        pay_to: code.pay_to,
        amount: code.amount.to_string(),
        resource: &code.resource,
        method: &code.method,
        expires_at: code.expires_at,
        signature: format!("0x{}", hex::encode(&code.signature)),
    };
    let value = |text: String| match HeaderValue::try_from(text) {
        Ok(value) => value,
        Err(error) => unreachable!("hex digits and base64url are header text: {error}"),
    };
    [
        (X_PAYMENT_HASH, value(format!("0x{}", hex::encode(credential.announced)))),
        (X_PAYMENT_CODE, value(base64url::encode(&json::bytes(&on_wire, 1024)))),
    ]
}

fn payment_code(encoded: &[u8]) -> Result<PaymentCode, CredentialProblem> {
    let text = base64url::decode_text(encoded, CODE_BYTES_MAX).map_err(CredentialProblem::UrlEncoding)?;
    let object = json::object(&text).map_err(CredentialProblem::Json)?;
    version(&object)?;
    let named =
        |path| json::parsed_member(&object, path, "an address in lower case or with its EIP-55 checksum", address);
    let network = network(&object)?;
    Ok(PaymentCode {
        quote: text_member(&object, "quote", "the bill's quote")?.into(),
        asset: asset(&object, network)?,
        transaction: json::parsed_member(&object, "transaction", "0x and 64 hex digits", hash)?,
        payer: named("payer")?,
        pay_to: named("payTo")?,
        amount: amount(&object)?,
        resource: text_member(&object, "resource", "the URL that the bill names")?.into(),
        method: text_member(&object, "method", "the request's method")?.into(),
        expires_at: json::integer_member(&object, "expiresAt")?,
        signature: signature(&object)?,
    })
}

fn version(object: &Map<String, Value>) -> Result<(), CredentialProblem> {
    match json::integer_member(object, "version")? {
        VERSION => Ok(()),
        other => Err(CredentialProblem::CodeVersion { found: other }),
    }
}

fn network(object: &Map<String, Value>) -> Result<Network, MemberError> {
    json::parsed_member(object, "network", "an EVM network such as eip155:8453", |text| {
        text.parse().ok().filter(|network: &Network| network.evm_chain_id().is_some())
    })
}

fn asset(object: &Map<String, Value>, network: Network) -> Result<AssetId, MemberError> {
    let expected = "\"native\", or a token's address in lower case or with its EIP-55 checksum";
    json::parsed_member(object, "asset", expected, |text| match text {
        NATIVE => Some(AssetId::native(network)),
        token => Some(AssetId::erc20(network, address(token)?)),
    })
}

/// Smallest units, 1 or more.
fn amount(object: &Map<String, Value>) -> Result<u128, MemberError> {
    match json::units_member(object, "amount")? {
        0 => Err(json::wrong_form("amount", "smallest units, 1 or more", "0")),
        units => Ok(units),
    }
}

fn text_member<'a>(
    object: &'a Map<String, Value>,
    path: &'static str,
    expected: &'static str,
) -> Result<&'a str, MemberError> {
    match json::text_member(object, path, expected)? {
        "" => Err(json::wrong_form(path, expected, "")),
        text => Ok(text),
    }
}

fn signature(object: &Map<String, Value>) -> Result<Vec<u8>, MemberError> {
    let expected = "0x and the hex digits of 65 bytes, or of up to 4096 for a contract wallet";
    json::parsed_member(object, "signature", expected, |text| {
        let digits = text.strip_prefix("0x")?;
        SIGNATURE_BYTES.contains(&digits.len().div_ceil(2)).then(|| hex::decode(digits).ok())?
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OnWire<'a> {
    version: u64,
    quote: &'a str,
    network: &'a str,
    asset: String,
    transaction: String,
    payer: EvmAddress,
    pay_to: EvmAddress,
    amount: String,
    resource: &'a str,
    method: &'a str,
    expires_at: u64,
    signature: String,
}
