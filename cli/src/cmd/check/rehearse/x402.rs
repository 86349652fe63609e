//! A payment by x402, and what must not pass for one.

use anyhow::{Context as _, ensure};
use farebox_core::{
    Offer, Timestamp,
    ports::{Clock as _, Wallet as _},
};
use farebox_wire::x402::{Bill, Requirement, decode_payment_required, decode_settlement, encode_credential};
use http::{HeaderName, HeaderValue};

use super::stage::{Line, Stage};
use crate::{cmd::check::finding::Findings, system::SystemClock};

/// How long ago an authorization ended that comes too late, seconds.
const LATE_S: u64 = 120;

pub(super) async fn play(stage: &Stage, line: &Line, subject: &str, findings: &mut Findings) -> anyhow::Result<()> {
    let now = SystemClock.now();
    let bill = bill(stage, line).await?;
    let requirement = bill.requirements.first().context("the bill has no offer that can be paid")?;
    let offer = &requirement.offer;

    let good = sign(stage, &bill, requirement, offer, now).await?;
    let before = stage.calls();
    let answer = stage.send(line, &line.target, std::slice::from_ref(&good)).await?;
    let receipt = answer.receipt.as_deref().map(decode_settlement).transpose()?;
    let charged = receipt.as_ref().is_some_and(|receipt| receipt.success);
    let served = answer.status == 200 && stage.calls() == before + 1 && charged;
    let message = format!("a paid {} {} is served once for {} units", line.method, line.target, offer.amount.units);
    told(findings, served, "rehearsal_paid", subject, &message, &answer.told());
    ensure!(served, "without a payment there is nothing to repeat");

    let again = stage.send(line, &line.target, std::slice::from_ref(&good)).await?;
    let kept = matches!(again.status, 200 | 409) && stage.calls() == before + 1;
    told(findings, kept, "rehearsal_replay", subject, "the same payment again is not served again", &again.told());

    let elsewhere = line.target.replace("rehearsal=1", "rehearsal=2");
    let other = stage.send(line, &elsewhere, std::slice::from_ref(&good)).await?;
    told(
        findings,
        other.status == 409,
        "rehearsal_wrong_route",
        subject,
        "for another URL it is refused",
        &other.told(),
    );

    let long_ago = Timestamp::from_unix_s(now.unix_s().saturating_sub(offer.max_timeout_s + LATE_S));
    let late = sign(stage, &bill, requirement, offer, long_ago).await?;
    let late = stage.send(line, &line.target, &[late]).await?;
    told(
        findings,
        late.status == 402,
        "rehearsal_expired",
        subject,
        "an authorization that has ended is refused",
        &late.told(),
    );

    let mut less = offer.clone();
    less.amount.units = if less.amount.units > 1 { less.amount.units - 1 } else { 2 };
    let less = sign(stage, &bill, requirement, &less, now).await?;
    let less = stage.send(line, &line.target, &[less]).await?;
    told(findings, less.status == 402, "rehearsal_amount", subject, "a wrong amount is refused", &less.told());
    let message = "nothing that was refused reached the upstream";
    let calls = stage.calls() - before;
    told(findings, calls == 1, "rehearsal_upstream", subject, message, &format!("{calls} call"));
    Ok(())
}

async fn bill(stage: &Stage, line: &Line) -> anyhow::Result<Bill> {
    let unpaid = stage.send(line, &line.target, &[]).await?;
    Ok(decode_payment_required(unpaid.bill.as_deref(), None)?)
}

async fn sign(
    stage: &Stage,
    bill: &Bill,
    requirement: &Requirement,
    offer: &Offer,
    at: Timestamp,
) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let credential = stage.wallet.authorize(offer, at).await?;
    Ok(encode_credential(&credential, requirement, bill))
}

/// What was expected, and what was found.
pub(super) fn told(
    findings: &mut Findings,
    good: bool,
    code: &'static str,
    subject: &str,
    expected: &str,
    found: &str,
) {
    let message = if good { format!("{expected} ({found})") } else { format!("expected: {expected}; found {found}") };
    findings.expect(good, code, subject, message);
}
