//! L402: a 402 that asks for a Lightning payment and sells a macaroon. Written and read as its clients and servers do, which differs from the
//! published specification. Source: <https://github.com/lightninglabs/L402>; Aperture 0.5.0.

mod caveats;
mod challenge;
mod credential;
mod grpc;
mod identifier;
mod macaroon;

use http::HeaderName;

pub use caveats::{CaveatProblem, SERVICE_CHARS_MAX, caveats, judge, service_name};
pub use challenge::{
    CHALLENGE_LINE_BYTES_MAX, CHALLENGE_LINES_MAX, CHALLENGES_MAX, L402Challenge, L402Scheme, authorization,
    challenges, encode_challenge,
};
pub(crate) use credential::token;
pub use credential::{TOKEN_HEADERS, TokenProblem, is_token_authorization};
pub use grpc::{grpc_refusal, is_grpc};
pub use identifier::{Identifier, IdentifierError};
pub use macaroon::{
    CAVEATS_MAX, MACAROON_BYTES_MAX, MacaroonError, add_caveat, decode_macaroon, encode_macaroon, mint,
    verify_signature,
};

/// The macaroon in hex, its preimage in a caveat; what gRPC clients send.
pub const MACAROON: HeaderName = HeaderName::from_static("macaroon");
/// The same, as a gRPC gateway names it.
pub const GRPC_METADATA_MACAROON: HeaderName = HeaderName::from_static("grpc-metadata-macaroon");
