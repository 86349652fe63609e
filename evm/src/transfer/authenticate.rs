//! Checks 2 to 8 of a claim: whose quote, for what, in time, on which terms, and signed by the payer.

use std::sync::Arc;

use alloy::primitives::B256;
use farebox_core::{
    Amount, Credential, Offer, Payer, PaymentCode, RailName, Retry, Timestamp, TransferCredential,
    ports::{Checked, Presented, Rejected, SignatureCheck, Timely, VerifyError},
};
use farebox_wire::transfer::{CLOCK_SKEW_S, CODE_LIFETIME_MAX_S, Quote, QuoteOption, Quoter, eip55};

use super::{
    SCHEME, asset_on_wire,
    code::digest,
    refusal::{code, no, rejected, transaction_mismatch},
    signers::Signers,
};
use crate::address;

/// A claim that passed every check without a question, but perhaps the signature's.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) checked: Checked,
    /// What was signed.
    pub(super) digest: B256,
}

/// What `presented` carries, if it is a claim on a transfer.
pub(super) fn transfer_of(credential: &Credential) -> Result<&TransferCredential, VerifyError> {
    match credential {
        Credential::Transfer(transfer) => Ok(transfer),
        Credential::X402(_) | Credential::L402(_) => Err(no(code::TERMS, "this is no claim on a transfer")),
    }
}

/// Checks 2 to 7, and 8 as far as a key's signature goes. A claim that comes late is looked at to the end all the same, since the
/// books may know it; if anything else is wrong with it, being late was wrong first.
///
/// # Errors
/// The first check in the table's order that fails.
pub(super) fn see(presented: &Presented<'_>, quoter: &Quoter, signers: &Signers) -> Result<Seen, VerifyError> {
    let transfer = transfer_of(presented.credential)?;
    let code = &transfer.code;
    let quote = quoter.open(&code.quote).map_err(|error| no(code::UNKNOWN_QUOTE, error.to_string()))?;
    resource(code, &quote, presented)?;
    let timely = timely(code, &quote, presented.now);
    terms(transfer, &quote)
        .map(|(option, digest)| {
            let recovered = signers.of(digest, &code.signature) == Some(address::alloy(code.payer));
            Seen { checked: checked(presented, code, option, &quote, timely.clone(), recovered), digest }
        })
        .map_err(|error| late_first(&timely, error))
}

/// What to say of a claim that is wrong in two ways, of which one is its time. What could not be found out, or must wait, stays.
pub(super) fn late_first(timely: &Timely, error: VerifyError) -> VerifyError {
    let a_no = match &error {
        VerifyError::Rejected(_) => true,
        VerifyError::Refused(refusal) => refusal.status == 400 || refusal.retry == Retry::AfterPayment,
        VerifyError::Unavailable { .. } => false,
    };
    match timely {
        Timely::No(late) | Timely::ForCredit(late) if a_no => VerifyError::Rejected(late.clone()),
        Timely::Yes | Timely::No(_) | Timely::ForCredit(_) => error,
    }
}

/// Check 3. The code's own words count too: they are what the payer saw when signing.
fn resource(code: &PaymentCode, quote: &Quote, presented: &Presented<'_>) -> Result<(), VerifyError> {
    let Presented { route, method, url, .. } = *presented;
    if &*code.method != method || &*code.resource != url || quote.target != Quote::target(route, method, url) {
        let detail = format!("the quote and the payment code are for another request than {method} {url}");
        return Err(no(code::RESOURCE, detail));
    }
    Ok(())
}

/// Checks 4 and 5.
fn timely(code: &PaymentCode, quote: &Quote, now: Timestamp) -> Timely {
    let now_s = now.unix_s();
    if code.expires_at < now_s.saturating_sub(CLOCK_SKEW_S) {
        let ago_s = now_s - code.expires_at;
        return Timely::No(expired(format!(
            "the payment code expired {ago_s} s ago; sign a new one for the same transaction, and do not pay again"
        )));
    }
    if code.expires_at > now_s.saturating_add(CODE_LIFETIME_MAX_S + CLOCK_SKEW_S) {
        return Timely::No(expired(format!(
            "the payment code lives until {}, more than {CODE_LIFETIME_MAX_S} s ahead; sign one that ends sooner",
            code.expires_at
        )));
    }
    if now > quote.claim_by {
        let ago_s = now.since(quote.claim_by).as_secs();
        let detail = format!(
            "the quote could be claimed until {ago_s} s ago; money that was sent for it is kept as the payer's credit"
        );
        return Timely::ForCredit(rejected(code::QUOTE_EXPIRED, detail));
    }
    Timely::Yes
}

fn expired(detail: String) -> Rejected {
    rejected(code::CODE_EXPIRED, detail)
}

/// Checks 6 and 7.
fn terms<'a>(transfer: &TransferCredential, quote: &'a Quote) -> Result<(&'a QuoteOption, B256), VerifyError> {
    let code = &transfer.code;
    if transfer.announced != code.transaction {
        return Err(transaction_mismatch());
    }
    let fits = |option: &&QuoteOption| {
        (&option.asset, option.pay_to, option.units) == (&code.asset, code.pay_to, code.amount) && option.units > 0
    };
    let mismatch = || {
        no(code::TERMS, "network, asset, payTo and amount are not those of one option of the quote; copy one option")
    };
    let option = quote.options.iter().find(fits).ok_or_else(mismatch)?;
    Ok((option, digest(code).ok_or_else(mismatch)?))
}

fn checked(
    presented: &Presented<'_>,
    code: &PaymentCode,
    option: &QuoteOption,
    quote: &Quote,
    timely: Timely,
    recovered: bool,
) -> Checked {
    let offer = Offer {
        rail: RailName::Transfer,
        scheme: SCHEME.into(),
        amount: Amount { units: option.units, asset: option.asset.clone() },
        asset_on_wire: asset_on_wire(&option.asset),
        pay_to: eip55(option.pay_to).into(),
        max_timeout_s: quote.pay_by.since(quote.issued_at).as_secs().max(1),
        extra: serde_json::Map::new(),
        finality: option.finality,
        network_fee: None,
    };
    Checked {
        payer: Payer::new(option.asset.network(), &eip55(code.payer)),
        credential: Arc::new(presented.credential.clone()),
        offer,
        valid_until: quote.claim_by,
        signature: if recovered { SignatureCheck::Recovered } else { SignatureCheck::NeedsContract },
        timely,
    }
}
