//! `application/problem+json`: a refusal for programs, with the terms in it for those that read only bodies. Source: RFC 9457.

use farebox_core::{Challenge, Charged, Refusal, Retry, UnavailableRail, ports::TokenBill};
use serde::{Serialize, Serializer};

use crate::{json, transfer::TransferBill, x402::BodyTerms};

/// The media type of [`problem_json`].
pub const CONTENT_TYPE: &str = "application/problem+json";

/// The body: `type`, `title`, `status`, `detail`, `code`, `retry`, `charged`, and `retryAfter` (seconds) where there is a best time;
/// then the refusal's facts; with a challenge that has x402 offers also the x402 members, whose `error` is the refusal's code; and
/// with a transfer bill `transfer`; with a token's bill `invoice`, `macaroon`, `amountSats` and `priceSats` (whole satoshis, rounded up);
/// and `unavailable` if rails that the route takes cannot be paid now.
///
/// `type` is `urn:farebox:problem:<code>` and as stable as the code.
#[must_use]
pub fn problem_json(refusal: &Refusal, challenge: Option<&Challenge>, transfer: Option<&TransferBill>) -> Vec<u8> {
    let problem = Problem {
        uri: Urn(&refusal.code),
        title: Title(&refusal.code),
        status: refusal.status,
        detail: &refusal.detail,
        code: &refusal.code,
        retry: refusal.retry,
        charged: refusal.charged,
        retry_after: refusal.retry_after_s,
        facts: &refusal.facts,
        terms: challenge.and_then(|challenge| BodyTerms::new(challenge, &refusal.code)),
        transfer,
        token: challenge.and_then(|challenge| challenge.token.as_deref()).map(TokenMembers::new),
        unavailable: challenge.map_or(&[], |challenge| &challenge.unavailable),
    };
    let size_hint = 512
        + challenge.map_or(0, |challenge| 512 * challenge.offers.len())
        + transfer.map_or(0, |bill| 1536 + 384 * bill.options.len())
        + problem.token.as_ref().map_or(0, |token| 128 + token.invoice.len() + token.macaroon.len());
    json::bytes(&problem, size_hint)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem<'a> {
    #[serde(rename = "type")]
    uri: Urn<'a>,
    title: Title<'a>,
    status: u16,
    detail: &'a str,
    code: &'a str,
    retry: Retry,
    charged: Charged,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u32>,
    #[serde(flatten)]
    facts: &'a serde_json::Map<String, serde_json::Value>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    terms: Option<BodyTerms<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transfer: Option<&'a TransferBill>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    token: Option<TokenMembers<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    unavailable: &'a [UnavailableRail],
}

/// For clients that read only bodies. npm lightning-toll reads `amountSats`, PyPI l402kit holds `priceSats` against its budget.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenMembers<'a> {
    invoice: &'a str,
    macaroon: &'a str,
    amount_sats: u64,
    price_sats: u64,
}

impl<'a> TokenMembers<'a> {
    fn new(bill: &'a TokenBill) -> Self {
        let sats = bill.invoice.amount_msat.div_ceil(1000);
        Self { invoice: &bill.invoice.bolt11, macaroon: &bill.macaroon, amount_sats: sats, price_sats: sats }
    }
}

struct Urn<'a>(&'a str);

impl Serialize for Urn<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("urn:farebox:problem:{}", self.0))
    }
}

/// The code in words: a title belongs to the type and does not change from case to case.
pub(crate) struct Title<'a>(pub(crate) &'a str);

impl std::fmt::Display for Title<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut words = self.0.split('_');
        let first = words.next().unwrap_or_default();
        let (initial, rest) = first.split_at(first.chars().next().map_or(0, char::len_utf8));
        write!(f, "{}{rest}", initial.to_uppercase())?;
        words.try_for_each(|word| write!(f, " {word}"))
    }
}

impl Serialize for Title<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
