//! Bytes to core types and back: payment credentials, bills, receipts and problems as they travel in HTTP. Pure: no IO, no
//! clock. Everything that decodes takes hostile bytes, ends in bounded time and memory, and never panics.

mod base64_text;
mod credential_error;
mod json;
pub mod page;
pub mod problem;
pub mod x402;

use farebox_core::Credential;
use http::{HeaderMap, HeaderName};

pub use base64_text::Base64TextError;
pub use credential_error::{CredentialError, CredentialProblem};
pub use json::{JsonError, MemberError, MemberProblem};

/// Every header that may carry a credential: stripped before the upstream, named in `Vary`.
pub static CREDENTIAL_HEADERS: [HeaderName; 2] = [x402::PAYMENT_SIGNATURE, x402::X_PAYMENT];

/// The longest credential header we read, bytes. A plain payment is under 1.5 KiB; a contract wallet's signature may take 8 KiB of
/// hex digits.
pub const CREDENTIAL_BYTES_MAX: usize = 16 * 1024;

/// The credential among a request's headers, if there is one.
///
/// # Errors
/// [`CredentialError`] if one is there and malformed, or if there is more than one: which of two payments was meant is not ours to
/// guess.
pub fn credentials(headers: &HeaderMap) -> Result<Option<Credential>, CredentialError> {
    let mut found = None;
    for name in &CREDENTIAL_HEADERS {
        let mut values = headers.get_all(name).iter();
        let Some(value) = values.next() else { continue };
        let wrong = |problem| CredentialError { header: name.clone(), problem };
        if values.next().is_some() {
            return Err(wrong(CredentialProblem::Repeated));
        }
        if let Some((first, _)) = found.replace((name, value)) {
            return Err(wrong(CredentialProblem::SecondCredential { first: first.clone() }));
        }
    }
    let Some((name, value)) = found else { return Ok(None) };
    let version = if *name == x402::PAYMENT_SIGNATURE { x402::X402Version::V2 } else { x402::X402Version::V1 };
    let credential = x402::decode_credential(version, value.as_bytes())?;
    Ok(Some(Credential::X402(credential)))
}
