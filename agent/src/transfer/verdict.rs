//! What a seller's answer to a claim means. The money has moved whatever it says, so the question is only what to do about it.

use farebox_core::{Charged, Retry};
use http::StatusCode;

use crate::verdict::Problem;

/// What an answer to a claim means that is not the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unserved {
    /// The seller does not see the transfer confirmed yet, or cannot look: look at the chain, and claim again until the deadline.
    NotSeen,
    /// The claim may yet be answered: send it again, a limited number of times.
    Again,
    /// The code is too old: sign another for the same transaction.
    CodeExpired,
    /// Too late for the bill: the seller keeps it as credit.
    Credit,
    /// The seller will not serve it for this transfer.
    Spent,
}

/// Judges the answer to a claim; `None`: it is the caller's.
pub(super) fn judge(status: StatusCode, problem: &Problem) -> Option<Unserved> {
    let code = problem.code.as_deref().unwrap_or_default();
    let open = problem.retry() == Some(Retry::SameProof) || problem.charged() == Some(Charged::Unknown);
    Some(match (status.as_u16(), code) {
        (200..=299, _) => return None,
        (402, "payment_pending" | "payment_not_found") | (429, _) | (503, "payment_unverifiable") => Unserved::NotSeen,
        (402, "payment_code_expired") => Unserved::CodeExpired,
        (402, "paid_too_late" | "quote_expired") => Unserved::Credit,
        // A bill as if no payment had been seen. That the seller is confused is likelier than that it is a no.
        (402, "" | "payment_required") => Unserved::Again,
        (402, _) if open => Unserved::Again,
        (402, _) | (400, "malformed_payment_code" | "transaction_mismatch") => Unserved::Spent,
        (409, _) if problem.retry() == Some(Retry::Never) => Unserved::Spent,
        (408 | 409 | 425 | 502..=504, _) => Unserved::Again,
        _ if open => Unserved::Again,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, body: &str, expected: &str) {
        let found = match judge(StatusCode::from_u16(status).unwrap(), &Problem::read(body.as_bytes())) {
            None => "deliver",
            Some(Unserved::NotSeen) => "not seen",
            Some(Unserved::Again) => "again",
            Some(Unserved::CodeExpired) => "sign again",
            Some(Unserved::Credit) => "credit",
            Some(Unserved::Spent) => "spent",
        };
        assert_eq!(found, expected, "{status} {body}");
    }

    fn said(code: &str, retry: &str, charged: &str) -> String {
        format!(r#"{{"code":"{code}","retry":"{retry}","charged":{charged}}}"#)
    }

    #[test]
    fn what_the_seller_has_not_seen_yet_is_waited_for() {
        check(402, &said("payment_pending", "same_proof", "\"unknown\""), "not seen");
        check(402, &said("payment_not_found", "same_proof", "\"unknown\""), "not seen");
        check(503, &said("payment_unverifiable", "same_proof", "\"unknown\""), "not seen");
        check(429, &said("too_many_claims", "same_proof", "\"unknown\""), "not seen");
    }

    #[test]
    fn unclear_answers_are_asked_again_and_clear_ones_are_not() {
        for status in [408, 409, 425, 502, 503, 504] {
            check(status, "", "again");
        }
        check(402, "{}", "again");
        check(402, &said("payment_required", "after_payment", "false"), "again");
        check(402, &said("doubt", "after_payment", "\"unknown\""), "again");
        check(500, &said("store_down", "same_proof", "\"unknown\""), "again");
        check(402, &said("payment_code_expired", "after_payment", "false"), "sign again");
        for code in ["paid_too_late", "quote_expired"] {
            check(402, &said(code, "after_payment", "true"), "credit");
        }
        for code in
            ["unknown_quote", "terms_mismatch", "bad_signature", "underpaid", "wrong_recipient", "payment_reverted"]
        {
            check(402, &said(code, "after_payment", "false"), "spent");
        }
        check(409, &said("already_claimed", "never", "false"), "spent");
        check(400, &said("malformed_payment_code", "never", "false"), "spent");
    }

    #[test]
    fn the_upstreams_own_answers_are_the_callers() {
        check(200, "", "deliver");
        check(404, "{}", "deliver");
        check(400, r#"{"code":"no_such_report"}"#, "deliver");
        check(500, "boom", "deliver");
    }
}
