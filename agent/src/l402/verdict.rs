//! What a seller's answer to a token means. The token is paid for whatever it says, so the question is only what to do with it.

use farebox_core::{Charged, Retry};
use http::StatusCode;

use crate::verdict::Problem;

/// What an answer to a token means that is not the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unserved {
    /// It may yet be answered: send it again, a limited number of times.
    Again,
    /// The seller takes the token no more, for anything.
    Over,
    /// The token is not for this request, and may be good for others.
    OtherRequest,
    /// A bill as if there was no token, and no word on why.
    Billed,
    /// This call was made before, and its answer is not to be had again.
    Gone,
}

/// Judges the answer to a token; `None`: it is the caller's.
pub(super) fn judge(status: StatusCode, problem: &Problem) -> Option<Unserved> {
    let code = problem.code.as_deref().unwrap_or_default();
    let open = problem.retry() == Some(Retry::SameProof) || problem.charged() == Some(Charged::Unknown);
    Some(match (status.as_u16(), code) {
        (200..=299, _) => return None,
        (402, _) if open => Unserved::Again,
        (402, "token_spent" | "token_expired" | "token_revoked" | "token_unknown") | (400, "malformed_l402_token") => {
            Unserved::Over
        }
        (402, code) if code.starts_with("token_") => Unserved::OtherRequest,
        (402, _) => Unserved::Billed,
        (409, _) if problem.retry() == Some(Retry::Never) => Unserved::Gone,
        (408 | 409 | 425 | 429 | 502..=504, _) => Unserved::Again,
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
            Some(Unserved::Again) => "again",
            Some(Unserved::Over) => "over",
            Some(Unserved::OtherRequest) => "other request",
            Some(Unserved::Billed) => "billed",
            Some(Unserved::Gone) => "gone",
        };
        assert_eq!(found, expected, "{status} {body}");
    }

    fn said(code: &str, retry: &str, charged: &str) -> String {
        format!(r#"{{"code":"{code}","retry":"{retry}","charged":{charged}}}"#)
    }

    #[test]
    fn a_passing_fault_is_no_word_on_the_token() {
        for status in [408, 409, 425, 429, 502, 503, 504] {
            check(status, "", "again");
        }
        check(402, &said("invoice_unsettled", "same_proof", "\"unknown\""), "again");
        check(402, &said("token_spent", "same_proof", "false"), "again");
        check(500, &said("store_down", "same_proof", "\"unknown\""), "again");
    }

    #[test]
    fn what_the_seller_says_of_the_token_is_told_apart() {
        for code in ["token_spent", "token_expired", "token_revoked", "token_unknown"] {
            check(402, &said(code, "after_payment", "false"), "over");
        }
        for code in ["token_other_route", "token_other_method", "token_other_path", "token_caveat_unknown"] {
            check(402, &said(code, "after_payment", "false"), "other request");
        }
        check(402, "payment required\n", "billed");
        check(402, &said("payment_required", "after_payment", "false"), "billed");
        check(400, &said("malformed_l402_token", "never", "false"), "over");
        check(409, &said("answer_not_kept", "never", "true"), "gone");
    }

    #[test]
    fn the_upstreams_own_answers_are_the_callers() {
        check(200, "", "deliver");
        check(404, "{}", "deliver");
        check(400, r#"{"code":"no_such_report"}"#, "deliver");
        check(500, "boom", "deliver");
    }
}
