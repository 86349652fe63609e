//! Bytes to core types and back: payment credentials, bills, receipts and problems as they travel in HTTP. Pure: no IO, no
//! clock. Everything that decodes takes hostile bytes, ends in bounded time and memory, and never panics.

mod base64_text;
pub mod bolt11;
mod credential_error;
mod json;
pub mod l402;
pub mod page;
pub mod problem;
pub mod transfer;
pub mod x402;

use farebox_core::{Credential, L402Token};
use http::{HeaderMap, HeaderName};

pub use base64_text::Base64TextError;
pub use credential_error::{CredentialError, CredentialProblem};
pub use json::{JsonError, MemberError, MemberProblem};

/// Every header that may carry a proof of one payment: stripped before the upstream, named in `Vary`.
pub static CREDENTIAL_HEADERS: [HeaderName; 4] =
    [x402::PAYMENT_SIGNATURE, x402::X_PAYMENT, transfer::X_PAYMENT_HASH, transfer::X_PAYMENT_CODE];

/// The longest credential header we read, bytes. A plain payment is under 1.5 KiB; a contract wallet's signature may take 8 KiB of
/// hex digits.
pub const CREDENTIAL_BYTES_MAX: usize = 16 * 1024;

/// What a request presents to pay with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one a request, and it is taken apart at once")]
pub enum PresentedCredential {
    /// A proof of one payment.
    Proof(Credential),
    /// A token that was paid before.
    Token(L402Token),
}

/// Whether a route takes L402 tokens. If not, `Authorization`, `Macaroon` and `Grpc-Metadata-Macaroon` are the upstream's, and not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// It does.
    Taken,
    /// It does not.
    NotTaken,
}

/// The credential among a request's headers, if there is one.
///
/// # Errors
/// [`CredentialError`] if one is there and malformed, or if there is more than one: which of two payments was meant is not ours to
/// guess.
pub fn credentials(headers: &HeaderMap, tokens: Tokens) -> Result<Option<PresentedCredential>, CredentialError> {
    let token = match tokens {
        Tokens::Taken => l402::token(headers)?,
        Tokens::NotTaken => None,
    };
    let Some((first, token)) = token else {
        return Ok(proof(headers)?.map(PresentedCredential::Proof));
    };
    let Some(second) = CREDENTIAL_HEADERS.iter().find(|name| headers.contains_key(*name)).cloned() else {
        return Ok(Some(PresentedCredential::Token(token)));
    };
    // Told of the one that money may have moved for.
    let is_transfer = [transfer::X_PAYMENT_HASH, transfer::X_PAYMENT_CODE].contains(&second);
    let (header, first) = if is_transfer { (second, first) } else { (first, second) };
    Err(CredentialError { header, problem: CredentialProblem::SecondCredential { first } })
}

/// The proof of one payment among a request's headers, if there is one. Tokens are not looked at.
///
/// # Errors
/// As [`credentials`].
pub fn proof(headers: &HeaderMap) -> Result<Option<Credential>, CredentialError> {
    use transfer::{X_PAYMENT_CODE, X_PAYMENT_HASH};
    let found = [
        single(headers, x402::PAYMENT_SIGNATURE)?,
        single(headers, x402::X_PAYMENT)?,
        single(headers, X_PAYMENT_HASH)?,
        single(headers, X_PAYMENT_CODE)?,
    ];
    let absent = |header, with| Err(CredentialError { header, problem: CredentialProblem::Absent { with } });
    let second =
        |header, first| Err(CredentialError { header, problem: CredentialProblem::SecondCredential { first } });
    match found {
        [None, None, None, None] => Ok(None),
        [Some(v2), None, None, None] => {
            x402::decode_credential(x402::X402Version::V2, v2).map(|read| Some(Credential::X402(read)))
        }
        [None, Some(v1), None, None] => {
            x402::decode_credential(x402::X402Version::V1, v1).map(|read| Some(Credential::X402(read)))
        }
        [None, None, Some(hash), Some(code)] => {
            transfer::decode_code(hash, code).map(|read| Some(Credential::Transfer(read)))
        }
        [None, None, Some(_), None] => absent(X_PAYMENT_CODE, X_PAYMENT_HASH),
        [None, None, None, Some(_)] => absent(X_PAYMENT_HASH, X_PAYMENT_CODE),
        [Some(_), Some(_), ..] => second(x402::X_PAYMENT, x402::PAYMENT_SIGNATURE),
        [Some(_), None, hash, _] => {
            second(if hash.is_some() { X_PAYMENT_HASH } else { X_PAYMENT_CODE }, x402::PAYMENT_SIGNATURE)
        }
        [None, Some(_), hash, _] => {
            second(if hash.is_some() { X_PAYMENT_HASH } else { X_PAYMENT_CODE }, x402::X_PAYMENT)
        }
    }
}

fn single(headers: &HeaderMap, name: HeaderName) -> Result<Option<&[u8]>, CredentialError> {
    let mut values = headers.get_all(&name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => Ok(Some(value.as_bytes())),
        (Some(_), Some(_)) => Err(CredentialError { header: name, problem: CredentialProblem::Repeated }),
    }
}
