//! Refusals for gRPC clients, which read no HTTP status: trailers alone, in the head of a 200. Source: gRPC over HTTP/2, "Responses".

use farebox_core::{Refusal, ports::TokenBill};
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};

use super::encode_challenge;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const APPLICATION_GRPC: &str = "application/grpc";
/// What Aperture's interceptor looks for to pay.
const PAYMENT_REQUIRED: HeaderValue = HeaderValue::from_static("payment required");
const INTERNAL: u16 = 13;

/// Whether a request is gRPC's, by its `content-type`: `application/grpc`, `application/grpc+proto` and so on, but not gRPC-Web.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return false };
    let name = APPLICATION_GRPC.as_bytes();
    let begins = value.as_bytes().get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name));
    begins && matches!(value.as_bytes()[name.len()..].first(), None | Some(b'+' | b';' | b' '))
}

/// The head of the answer, whose HTTP status is 200 and whose body is empty. Only a 402 with a bill asks to be paid.
#[must_use]
pub fn grpc_refusal(refusal: &Refusal, bill: Option<&TokenBill>) -> HeaderMap {
    let mut head = HeaderMap::with_capacity(6);
    head.insert(CONTENT_TYPE, HeaderValue::from_static(APPLICATION_GRPC));
    match bill.filter(|_| refusal.status == 402) {
        Some(bill) => {
            head.insert(GRPC_STATUS, HeaderValue::from(INTERNAL));
            head.insert(GRPC_MESSAGE, PAYMENT_REQUIRED);
            encode_challenge(bill).into_iter().for_each(|(name, value)| {
                head.append(name, value);
            });
        }
        None => {
            head.insert(GRPC_STATUS, HeaderValue::from(status(refusal.status)));
            head.insert(GRPC_MESSAGE, message(&format!("{}: {}", refusal.code, refusal.detail)));
        }
    }
    head
}

/// Source: gRPC `doc/http-grpc-status-mapping.md`, but for 402: FAILED_PRECONDITION, since nobody should try that again as it is; INTERNAL and
/// UNKNOWN are what some clients take for a bill.
const fn status(http: u16) -> u16 {
    match http {
        400 | 413 => 3,
        402 | 409 => 9,
        404 => 12,
        429 => 8,
        502..=504 => 14,
        _ => INTERNAL,
    }
}

/// Percent-encoded. Source: gRPC over HTTP/2, `Percent-Encoded`.
fn message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => {
                encoded.push('%');
                encoded.push_str(&hex::encode_upper([byte]));
            }
            plain => encoded.push(char::from(plain)),
        }
    }
    match HeaderValue::try_from(encoded) {
        Ok(value) => value,
        Err(error) => unreachable!("it is printable ASCII: {error}"),
    }
}
