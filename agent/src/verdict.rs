//! What a seller's answer to a paid request means for the money: the one place that decides whether the same bytes go out again,
//! a new signature may be asked for, or the answer is the caller's.

use std::time::Duration;

use farebox_core::{Charged, Retry, Untrusted};
use http::StatusCode;
use serde::Deserialize;

use crate::bill::SettlementWord;

/// What to do with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the caller's. Whether money moved, the settlement says.
    Deliver,
    /// The identical bytes may yet be answered: send them again. `charged` is the seller's word so far.
    Resend { why: String, charged: Charged },
    /// The seller says that this authorization was not and will not be charged.
    Declined { reason: String, cure: Cure },
    /// Charged, or used up, and the seller does not answer for it again.
    Spent { reason: String },
}

/// Whether another signature could help after a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cure {
    /// The authorization's time was at fault.
    Renew,
    /// The payer has not enough: only another wallet's.
    OtherPayer,
    /// Only if the bill changed: the same terms would be refused again.
    IfTermsChanged,
    /// The seller says never.
    None,
}

/// The members of a problem body that speak of money. Source: RFC 9457 §3.2 extension members.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Problem {
    pub(crate) code: Option<String>,
    pub(crate) detail: Option<String>,
    retry: Option<RetryWord>,
    charged: Option<ChargedWord>,
    credit: Option<serde_json::Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RetryWord {
    AfterPayment,
    SameProof,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum ChargedWord {
    Known(bool),
    Said(Unknown),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Unknown {
    Unknown,
}

impl Problem {
    /// Reads the body if it is a problem in form; a stranger's JSON of another shape says nothing.
    pub(crate) fn read(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    pub(crate) fn retry(&self) -> Option<Retry> {
        self.retry.map(|word| match word {
            RetryWord::AfterPayment => Retry::AfterPayment,
            RetryWord::SameProof => Retry::SameProof,
            RetryWord::Never => Retry::Never,
        })
    }

    pub(crate) fn charged(&self) -> Option<Charged> {
        self.charged.map(|word| match word {
            ChargedWord::Known(true) => Charged::Yes,
            ChargedWord::Known(false) => Charged::No,
            ChargedWord::Said(Unknown::Unknown) => Charged::Unknown,
        })
    }

    /// What the seller says that it keeps for the payer, cut and escaped.
    pub(crate) fn credit(&self) -> Option<String> {
        self.credit.as_ref().filter(|credit| !credit.is_null()).map(|credit| {
            let text = credit.as_str().map_or_else(|| credit.to_string(), str::to_owned);
            Untrusted::new(text).to_string()
        })
    }

    pub(crate) fn reason(&self) -> Option<String> {
        let code = self.code.as_ref().map(|code| Untrusted::new(code.as_str()).to_string());
        let detail = self.detail.as_ref().map(|detail| Untrusted::new(detail.as_str()).to_string());
        match (code, detail) {
            (Some(code), Some(detail)) => Some(format!("{code}: {detail}")),
            (one, other) => one.or(other),
        }
    }
}

/// Judges the answer to a request that carried a credential.
pub(crate) fn judge(status: StatusCode, problem: &Problem, settlement: Option<&SettlementWord>) -> Verdict {
    let why = || problem.reason().unwrap_or_else(|| format!("the seller answered {status}"));
    let charged = match settlement {
        Some(word) if word.success => Charged::Yes,
        Some(word) if word.is_uncharged() => Charged::No,
        _ => Charged::Unknown,
    };
    match status.as_u16() {
        200..=299 => Verdict::Deliver,
        402 => judge_402(problem, settlement),
        408 | 409 | 425 | 429 | 502 | 503 | 504 => {
            by_problem(problem, settlement).unwrap_or_else(|| Verdict::Resend { why: why(), charged })
        }
        // Any other status is the upstream's own answer, unless it says in our words that the money is not settled.
        _ if problem.retry() == Some(Retry::SameProof) || problem.charged() == Some(Charged::Unknown) => {
            Verdict::Resend { why: why(), charged: charged_so_far(problem, settlement) }
        }
        _ => Verdict::Deliver,
    }
}

/// The problem's word, unless the settlement tells of a transaction that it denies.
fn charged_so_far(problem: &Problem, settlement: Option<&SettlementWord>) -> Charged {
    let may_have_moved = settlement.is_some_and(|word| word.success || word.transaction.is_some());
    match problem.charged() {
        Some(Charged::No) if may_have_moved => Charged::Unknown,
        word => word.unwrap_or(Charged::Unknown),
    }
}

fn judge_402(problem: &Problem, settlement: Option<&SettlementWord>) -> Verdict {
    let charged = Charged::Unknown;
    if let Some(verdict) = by_problem(problem, settlement) {
        // A transaction outweighs "not charged": money that may move on chain is never "not paid".
        let may_move = settlement.is_some_and(|s| s.success || s.transaction.is_some());
        return match verdict {
            Verdict::Declined { reason, .. } if may_move => Verdict::Resend { why: reason, charged },
            verdict => verdict,
        };
    }
    let Some(settlement) = settlement else {
        return match problem.reason() {
            Some(why) => Verdict::Resend { why, charged },
            // The seller asks for money as if it had seen none. It may have: nothing new is signed on that.
            None => Verdict::Resend { why: "the seller billed again as if it had seen no payment".to_owned(), charged },
        };
    };
    let code = settlement.reason.as_deref().unwrap_or("no reason given");
    let reason = Untrusted::new(code).to_string();
    if settlement.success || settlement.transaction.is_some() {
        return Verdict::Resend { why: reason, charged };
    }
    by_code(code, reason)
}

/// What the seller says in the members `retry` and `charged`, if it says enough.
fn by_problem(problem: &Problem, settlement: Option<&SettlementWord>) -> Option<Verdict> {
    let reason = problem.reason().unwrap_or_else(|| "no reason given".to_owned());
    Some(match (problem.charged()?, problem.retry()) {
        (Charged::Unknown, _) | (_, Some(Retry::SameProof)) => {
            Verdict::Resend { why: reason, charged: charged_so_far(problem, settlement) }
        }
        (Charged::Yes, _) => Verdict::Spent { reason },
        (Charged::No, Some(Retry::Never)) => Verdict::Declined { reason, cure: Cure::None },
        (Charged::No, _) => {
            let cure = cure_of(problem.code.as_deref().unwrap_or_default());
            Verdict::Declined { reason, cure }
        }
    })
}

/// What the official servers' reasons mean. They say no more than the reason.
fn by_code(code: &str, reason: String) -> Verdict {
    if code.contains("nonce_already_used") || code.contains("nonce_used") {
        return Verdict::Spent { reason };
    }
    // Refused before anything was broadcast. A failed transaction or an unknown word proves nothing.
    let checked_first = ["invalid_", "insufficient_", "unsupported_", "permit2_", "asset_not_", "eip6492_"];
    let broadcast = ["transaction_failed", "transfer_event_mismatch", "pending"];
    if checked_first.iter().any(|prefix| code.starts_with(prefix)) && !broadcast.iter().any(|part| code.contains(part))
    {
        return Verdict::Declined { reason, cure: cure_of(code) };
    }
    Verdict::Resend { why: reason, charged: Charged::Unknown }
}

fn cure_of(code: &str) -> Cure {
    let time = ["valid_before", "valid_after", "expired"];
    let balance = ["insufficient_balance", "insufficient_funds"];
    let has = |parts: &[&str]| parts.iter().any(|part| code.contains(part));
    match () {
        () if has(&time) => Cure::Renew,
        () if has(&balance) => Cure::OtherPayer,
        () => Cure::IfTermsChanged,
    }
}

/// The wait that `Retry-After` asks for, from `now` if it is a date. Source: RFC 9110 §10.2.3.
pub(crate) fn retry_after(value: &[u8], now: farebox_core::Timestamp) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let at = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(at.saturating_sub(Duration::from_millis(now.unix_ms())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, body: &str, settlement: Option<(bool, Option<&str>, Option<&str>)>, expected: &str) {
        let settlement = settlement.map(|(success, transaction, reason)| SettlementWord {
            success,
            transaction: transaction.map(str::to_owned),
            reason: reason.map(str::to_owned),
            network: Some("eip155:84532".parse().unwrap()),
            ..SettlementWord::default()
        });
        let verdict =
            judge(StatusCode::from_u16(status).unwrap(), &Problem::read(body.as_bytes()), settlement.as_ref());
        let found = match verdict {
            Verdict::Deliver => "deliver",
            Verdict::Resend { charged: Charged::Unknown, .. } => "resend",
            Verdict::Resend { charged: Charged::No, .. } => "resend, not charged",
            Verdict::Resend { charged: Charged::Yes, .. } => "resend, charged",
            Verdict::Declined { cure: Cure::OtherPayer, .. } => "declined, other payer",
            Verdict::Declined { cure: Cure::Renew, .. } => "declined, renew",
            Verdict::Declined { cure: Cure::IfTermsChanged, .. } => "declined, other terms",
            Verdict::Declined { cure: Cure::None, .. } => "declined, never",
            Verdict::Spent { .. } => "spent",
        };
        assert_eq!(found, expected, "{status} {body} {settlement:?}");
    }

    #[test]
    fn unclear_words_mean_the_same_bytes_again() {
        for status in [408, 409, 425, 429, 502, 503, 504] {
            check(status, "", None, "resend");
        }
        check(402, "{}", None, "resend");
        check(402, r#"{"error":"Payment required"}"#, None, "resend");
        check(402, r#"{"charged":"unknown","retry":"after_payment"}"#, None, "resend");
        check(500, r#"{"charged":"unknown"}"#, None, "resend");
        check(402, "{}", Some((false, None, Some("settlement_pending"))), "resend");
        check(402, "{}", Some((false, None, Some("unexpected_settle_error"))), "resend");
        check(402, "{}", Some((false, None, Some("invalid_exact_evm_transaction_failed"))), "resend");
    }

    #[test]
    fn a_seller_that_could_not_serve_says_whether_it_charged() {
        for status in [402, 500, 502, 503] {
            check(status, r#"{"charged":false,"retry":"same_proof"}"#, None, "resend, not charged");
            check(status, r#"{"charged":true,"retry":"same_proof"}"#, None, "resend, charged");
            check(status, r#"{"charged":false,"retry":"same_proof"}"#, Some((true, Some("0xabc"), None)), "resend");
            check(status, r#"{"charged":false,"retry":"same_proof"}"#, Some((false, Some("0xabc"), None)), "resend");
        }
        check(502, "down", Some((false, None, None)), "resend, not charged");
        check(502, "down", Some((true, Some("0xabc"), None)), "resend, charged");
        check(502, "down", Some((false, None, Some("settlement_pending"))), "resend");
    }

    #[test]
    fn a_transaction_outweighs_not_charged() {
        let hash = Some("0xabc");
        check(402, r#"{"charged":false,"retry":"after_payment"}"#, Some((false, hash, None)), "resend");
        check(402, "{}", Some((false, hash, Some("invalid_exact_evm_signature"))), "resend");
        check(402, "{}", Some((true, None, None)), "resend");
    }

    #[test]
    fn definite_words_are_told_apart() {
        check(
            402,
            r#"{"charged":false,"retry":"after_payment","code":"authorization_expired"}"#,
            None,
            "declined, renew",
        );
        check(402, r#"{"charged":false,"retry":"after_payment","code":"no_funds"}"#, None, "declined, other terms");
        check(409, r#"{"charged":false,"retry":"never","code":"other_request"}"#, None, "declined, never");
        check(402, r#"{"charged":true,"retry":"never"}"#, None, "spent");
        check(402, "{}", Some((false, None, Some("insufficient_funds"))), "declined, other payer");
        let late = "invalid_exact_evm_payload_authorization_valid_before";
        check(402, "{}", Some((false, None, Some(late))), "declined, renew");
        check(402, "{}", Some((false, None, Some("invalid_exact_evm_nonce_already_used"))), "spent");
    }

    #[test]
    fn the_upstreams_own_answers_are_the_callers() {
        check(200, r#"{"charged":"unknown"}"#, None, "deliver");
        check(404, "{}", None, "deliver");
        check(500, r#"{"code":"boom","charged":false}"#, None, "deliver");
        check(500, r#"{"charged":5,"retry":[]}"#, None, "deliver");
    }

    #[test]
    fn retry_after_reads_seconds_and_dates() {
        let now = farebox_core::Timestamp::from_unix_s(784_111_770);
        assert_eq!(retry_after(b" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(b"Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(b"Sat, 06 Nov 1993 08:49:37 GMT", now), Some(Duration::ZERO));
        for wrong in [&b"-1"[..], b"soon", b"\xff", b""] {
            assert_eq!(retry_after(wrong, now), None);
        }
    }
}
