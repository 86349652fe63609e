//! Why a credential header is refused as malformed, told so that a client's author can mend it.

use farebox_core::{Charged, Refusal, Retry, Untrusted};
use http::{HeaderName, header::AUTHORIZATION};

use crate::{
    base64_text::Base64TextError,
    json::{JsonError, MemberError, MemberProblem},
    l402::{TOKEN_HEADERS, TokenProblem},
    transfer::{Base64UrlError, X_PAYMENT_CODE, X_PAYMENT_HASH},
};

/// A credential header that we cannot read. Nothing was charged.
#[derive(Debug, thiserror::Error)]
#[error("{} {problem}", shown(.header))]
pub struct CredentialError {
    /// The header.
    pub header: HeaderName,
    /// What is wrong with it.
    #[source]
    pub problem: CredentialProblem,
}

/// What can be wrong with a credential header.
#[derive(Debug, thiserror::Error)]
pub enum CredentialProblem {
    /// The header came twice.
    #[error("came more than once; send one payment in one header")]
    Repeated,
    /// Another credential came as well.
    #[error("came together with {}; send one of them", shown(.first))]
    SecondCredential {
        /// The other.
        first: HeaderName,
    },
    /// Not padded standard base64 of UTF-8.
    #[error(transparent)]
    Encoding(Base64TextError),
    /// Not JSON that we read.
    #[error(transparent)]
    Json(JsonError),
    /// Another version than the header is for.
    #[error(
        "carries x402Version {found}; expected {expected} (version 2 goes in PAYMENT-SIGNATURE, version 1 in X-PAYMENT)"
    )]
    Version {
        /// What this header is for.
        expected: u8,
        /// What it says.
        found: Untrusted,
    },
    /// A member is missing or wrong.
    #[error("{0}")]
    Member(#[from] MemberError),
    /// A scheme that we do not take.
    #[error("names the scheme {found}; expected \"exact\"; choose one of the offered requirements")]
    Scheme {
        /// What it says.
        found: Untrusted,
    },
    /// A network name that we do not know, or that clients use for different networks.
    #[error("names the network {found}; expected {expected}; choose one of the offered requirements")]
    Network {
        /// What would be right.
        expected: &'static str,
        /// What it says.
        found: Untrusted,
    },
    /// A payload of another way to pay.
    #[error("carries {found}; expected an EIP-3009 payload with authorization and signature")]
    PayloadType {
        /// What it is.
        found: &'static str,
    },
    /// One header of a pair came without the other.
    #[error("is missing; send it together with {}", shown(.with))]
    Absent {
        /// The one that came.
        with: HeaderName,
    },
    /// Not a transaction's hash.
    #[error("is {found}; expected a transaction hash of 0x and 64 hex digits")]
    NotAHash {
        /// What it is.
        found: Untrusted,
    },
    /// Not unpadded base64url of UTF-8.
    #[error(transparent)]
    UrlEncoding(Base64UrlError),
    /// Another version of payment code than we read.
    #[error("carries version {found}; expected 1")]
    CodeVersion {
        /// What it says.
        found: u64,
    },
    /// No L402 token that we read.
    #[error(transparent)]
    Token(#[from] TokenProblem),
}

impl CredentialError {
    /// Stable, snake_case; x402's own reason where it has one.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match &self.problem {
            CredentialProblem::SecondCredential { .. } => "credential_repeated",
            _ if self.claims_a_transfer() => "malformed_payment_code",
            CredentialProblem::Token(_) => "malformed_l402_token",
            CredentialProblem::Repeated => "credential_repeated",
            CredentialProblem::Encoding(Base64TextError::TooLong { .. }) => "credential_too_large",
            CredentialProblem::Encoding(_) => "credential_not_base64",
            CredentialProblem::Json(JsonError::RepeatedKey { .. }) => "credential_json_key_repeated",
            CredentialProblem::Json(JsonError::TooDeep) => "credential_json_too_deep",
            CredentialProblem::Json(_) => "credential_not_json",
            CredentialProblem::Version { .. } => "invalid_x402_version",
            CredentialProblem::Member(MemberError { problem, .. }) => match problem {
                MemberProblem::Missing { .. } => "credential_member_missing",
                MemberProblem::Type { .. } => "credential_member_type",
                MemberProblem::Form { .. } => "credential_member_invalid",
                MemberProblem::Range { .. } => "credential_number_out_of_range",
            },
            CredentialProblem::Scheme { .. } => "invalid_exact_evm_scheme",
            CredentialProblem::Network { .. } => "invalid_network",
            CredentialProblem::PayloadType { .. } => "unsupported_payload_type",
            CredentialProblem::Absent { .. }
            | CredentialProblem::NotAHash { .. }
            | CredentialProblem::UrlEncoding(_)
            | CredentialProblem::CodeVersion { .. } => "malformed_payment_code",
        }
    }

    /// The outside of it, a 400: what cannot be read has not been charged and is to be paid anew. But a transfer was made, or not, before
    /// its claim was written: then only a claim that can be read helps, never a second transfer. A token was paid before, and keeps its calls.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (retry, charged) = match () {
            () if self.claims_a_transfer() => (Retry::Never, Charged::Unknown),
            () if self.carries_a_token() => (Retry::Never, Charged::No),
            () => (Retry::AfterPayment, Charged::No),
        };
        Refusal { retry, charged, ..Refusal::new(400, self.code(), self.to_string()) }
    }

    fn claims_a_transfer(&self) -> bool {
        [X_PAYMENT_HASH, X_PAYMENT_CODE].contains(&self.header)
    }

    fn carries_a_token(&self) -> bool {
        self.header == AUTHORIZATION || TOKEN_HEADERS.contains(&self.header)
    }
}

/// Header names as documents write them.
fn shown(name: &HeaderName) -> String {
    name.as_str().to_ascii_uppercase()
}
