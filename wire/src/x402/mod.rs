//! x402, versions 1 and 2, scheme `exact` on EVM by EIP-3009. Source: the x402 specification, and what its official clients send.

mod bill;
mod credential;
mod matching;
mod network;
mod settlement;
mod terms;

use http::HeaderName;

pub use farebox_core::X402Version;

pub use bill::{
    ACCEPTS_MAX, BILL_BODY_BYTES_MAX, BILL_HEADER_BYTES_MAX, Bill, BillError, BillProblem, Requirement, SkipReason,
    Skipped, decode_payment_required,
};
pub use credential::{SIGNATURE_BYTES_MAX, decode_credential, encode_credential};
pub use matching::{MatchError, MatchField, match_offer};
pub use network::{from_v1_name, v1_name};
pub use settlement::{SETTLEMENT_BYTES_MAX, SettlementError, SettlementResponse, decode_settlement};
pub(crate) use terms::BodyTerms;
pub use terms::{encode_payment_required, payment_required_v1_members};

/// Version 2: the bill, on a 402.
pub const PAYMENT_REQUIRED: HeaderName = HeaderName::from_static("payment-required");
/// Version 2: the credential, on a request.
pub const PAYMENT_SIGNATURE: HeaderName = HeaderName::from_static("payment-signature");
/// Version 2: what became of the payment, on the answer.
pub const PAYMENT_RESPONSE: HeaderName = HeaderName::from_static("payment-response");
/// Version 1: the credential, on a request.
pub const X_PAYMENT: HeaderName = HeaderName::from_static("x-payment");
/// Version 1: what became of the payment, on the answer.
pub const X_PAYMENT_RESPONSE: HeaderName = HeaderName::from_static("x-payment-response");

/// The only scheme we speak.
pub(crate) const EXACT: &str = "exact";
