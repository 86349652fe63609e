//! The answers to a claim that is not granted. Source: the docs' page on transfers, table of checks.

use farebox_core::{
    Charged, Finality, Refusal, Retry,
    ports::{BoxError, NoLookup, Rejected, VerifyError},
};

/// When a transaction that nobody has seen may be asked for again, seconds: about the time it takes to reach every node.
const NOT_FOUND_RETRY_S: u32 = 5;
/// The longest wait for blocks that is told, seconds.
const PENDING_RETRY_MAX_S: u32 = 30;
/// What a block takes, as far as a wait is told by it, seconds.
const BLOCK_S: u64 = 2;

pub(super) mod code {
    //! Stable codes.
    pub(in crate::transfer) const UNKNOWN_QUOTE: &str = "unknown_quote";
    pub(in crate::transfer) const RESOURCE: &str = "resource_mismatch";
    pub(in crate::transfer) const CODE_EXPIRED: &str = "payment_code_expired";
    pub(in crate::transfer) const QUOTE_EXPIRED: &str = "quote_expired";
    pub(in crate::transfer) const TRANSACTION: &str = "transaction_mismatch";
    pub(in crate::transfer) const TERMS: &str = "terms_mismatch";
    pub(in crate::transfer) const SIGNATURE: &str = "bad_signature";
    pub(in crate::transfer) const CLAIMED: &str = "already_claimed";
    pub(in crate::transfer) const NOT_FOUND: &str = "payment_not_found";
    pub(in crate::transfer) const REVERTED: &str = "payment_reverted";
    pub(in crate::transfer) const WRONG_ASSET: &str = "wrong_asset";
    pub(in crate::transfer) const WRONG_PAYER: &str = "wrong_payer";
    pub(in crate::transfer) const WRONG_RECIPIENT: &str = "wrong_recipient";
    pub(in crate::transfer) const UNDERPAID: &str = "underpaid";
    pub(in crate::transfer) const EARLY: &str = "paid_before_quote";
    pub(in crate::transfer) const LATE: &str = "paid_too_late";
    pub(in crate::transfer) const PENDING: &str = "payment_pending";
    pub(in crate::transfer) const TOO_MANY: &str = "too_many_claims";
    pub(in crate::transfer) const REORGANISED: &str = "reorganised";
}

pub(super) fn rejected(code: &'static str, detail: impl Into<String>) -> Rejected {
    Rejected { code: code.into(), detail: detail.into() }
}

/// A plain no: a fresh bill is right.
pub(super) fn no(code: &'static str, detail: impl Into<String>) -> VerifyError {
    VerifyError::Rejected(rejected(code, detail))
}

/// Could not tell.
pub(super) fn unavailable(source: impl Into<BoxError>) -> VerifyError {
    VerifyError::Unavailable { source: source.into() }
}

/// The two headers do not name one transaction.
pub(super) fn transaction_mismatch() -> VerifyError {
    let detail =
        "X-Payment-Hash names another transaction than X-Payment-Code; send the hash that the code was signed for";
    VerifyError::Refused(Box::new(Refusal::new(400, code::TRANSACTION, detail)))
}

/// The transaction has paid for something else.
pub(super) fn already_claimed(detail: impl Into<String>) -> VerifyError {
    VerifyError::Refused(Box::new(Refusal::new(409, code::CLAIMED, detail)))
}

/// The caller has made us ask too much.
pub(super) fn too_many_claims(none: NoLookup) -> VerifyError {
    let detail = format!(
        "too many claims from this address had to be looked up; send the same headers again in {} s",
        none.retry_after_s
    );
    VerifyError::Refused(Box::new(again(429, code::TOO_MANY, detail, none.retry_after_s)))
}

/// Nobody knows the transaction, yet.
pub(super) fn not_found() -> VerifyError {
    let detail = "the network does not know this transaction; if it was sent, send the same headers again in a while, and do not pay twice";
    VerifyError::Refused(Box::new(again(402, code::NOT_FOUND, detail.to_owned(), NOT_FOUND_RETRY_S)))
}

/// It is known, and not final.
pub(super) fn pending(have: u64, need: Finality) -> VerifyError {
    let (wait_s, wanted) = match need {
        Finality::Blocks(blocks) => (blocks.saturating_sub(have).saturating_mul(BLOCK_S), format!("{blocks} blocks")),
        Finality::Safe | Finality::Finalized => (u64::from(PENDING_RETRY_MAX_S), format!("a {need} block")),
    };
    let wait_s = u32::try_from(wait_s).unwrap_or(u32::MAX).clamp(1, PENDING_RETRY_MAX_S);
    let detail =
        format!("the transfer has {have} confirmations, expected {wanted}; send the same headers again in {wait_s} s");
    let mut refusal = again(402, code::PENDING, detail, wait_s).with_fact("have", have);
    // A number, or one of two words: there is nothing in it that JSON cannot say.
    if let Ok(need) = serde_json::to_value(need) {
        refusal = refusal.with_fact("need", need);
    }
    VerifyError::Refused(Box::new(refusal))
}

/// It moved less than was asked for.
pub(super) fn underpaid(required: u128, received: impl ToString) -> VerifyError {
    let received = received.to_string();
    let detail = format!(
        "the transfer moved {received} units, expected {required} in one transfer; several are never added up, so pay the full amount in one"
    );
    let refusal = Refusal::payment(code::UNDERPAID, detail)
        .with_fact("required", required.to_string())
        .with_fact("received", received);
    VerifyError::Refused(Box::new(refusal))
}

/// Not yet: the same headers may do later, and a new bill could make somebody pay twice.
fn again(status: u16, code: &'static str, detail: String, retry_after_s: u32) -> Refusal {
    Refusal {
        retry: Retry::SameProof,
        charged: Charged::Unknown,
        retry_after_s: Some(retry_after_s),
        ..Refusal::new(status, code, detail)
    }
}
