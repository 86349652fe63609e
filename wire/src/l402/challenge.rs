//! The challenge lines of a 402.

use farebox_core::ports::TokenBill;
use http::{HeaderName, HeaderValue, header::WWW_AUTHENTICATE};

/// The two `WWW-Authenticate` lines of a bill, in the order in which they have to stand, before any other scheme's: clients of old read the
/// first, others the second.
#[must_use]
pub fn encode_challenge(bill: &TokenBill) -> [(HeaderName, HeaderValue); 2] {
    let TokenBill { macaroon, invoice, .. } = bill;
    let invoice = &invoice.bolt11;
    [
        line(format!("LSAT macaroon=\"{macaroon}\", invoice=\"{invoice}\"")),
        line(format!("L402 macaroon=\"{macaroon}\", invoice=\"{invoice}\", version=\"0\", token=\"{macaroon}\"")),
    ]
}

fn line(text: String) -> (HeaderName, HeaderValue) {
    match HeaderValue::try_from(text) {
        Ok(value) => (WWW_AUTHENTICATE, value),
        Err(error) => unreachable!("base64 and bech32 are header text: {error}"),
    }
}
