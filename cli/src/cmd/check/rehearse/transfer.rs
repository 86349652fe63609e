//! A payment by transfer, and what must not pass for one.

use anyhow::{Context as _, ensure};
use farebox_core::{
    Amount, PaymentCode, TransactionId, TransferCredential,
    ports::{BroadcastAnswer, Clock as _, TransferGas, TransferOrder, TransferWallet, Wallet as _},
};
use farebox_wire::transfer::{TransferBill, TransferOption, decode_bill, encode_code};
use http::{HeaderName, HeaderValue};

use super::{
    stage::{Answer, Line, Stage},
    x402::told,
};
use crate::{cmd::check::finding::Findings, system::SystemClock};

/// How long a good code lives, seconds.
const LIVES_S: u64 = 300;
/// How long ago one ended that comes too late, seconds: more than clocks may be apart.
const LATE_S: u64 = 120;

pub(super) async fn play(stage: &Stage, line: &Line, subject: &str, findings: &mut Findings) -> anyhow::Result<()> {
    let now_s = SystemClock.now().unix_s();
    let before = stage.calls();
    let (bill, option) = bill(stage, line).await?;
    let units = option.amount.units;
    let paid = send(stage, &option, units).await?;

    // Before the good one: what the books know is answered whenever it comes.
    let late =
        claim(stage, line, &line.target, &code(stage, &bill, &option, &paid, now_s.saturating_sub(LATE_S))?).await?;
    let refused = late.code == "payment_code_expired";
    told(findings, refused, "rehearsal_expired", subject, "a code that has ended is refused", &late.told());

    let good = code(stage, &bill, &option, &paid, now_s + LIVES_S)?;
    let elsewhere = line.target.replace("rehearsal=1", "rehearsal=2");
    let other = claim(stage, line, &elsewhere, &good).await?;
    let refused = other.code == "resource_mismatch";
    told(findings, refused, "rehearsal_wrong_route", subject, "for another URL it is refused", &other.told());

    let answer = claim(stage, line, &line.target, &good).await?;
    let served = answer.status == 200 && stage.calls() == before + 1;
    let message =
        format!("a paid {} {} is served once for {units} units of {}", line.method, line.target, option.symbol);
    told(findings, served, "rehearsal_paid", subject, &message, &answer.told());
    ensure!(served, "without a payment there is nothing to repeat");

    let again = claim(stage, line, &line.target, &good).await?;
    let kept = matches!(again.status, 200 | 409) && stage.calls() == before + 1;
    told(findings, kept, "rehearsal_replay", subject, "the same payment again is not served again", &again.told());

    if units > 1 {
        let (bill, option) = self::bill(stage, line).await?;
        let less = send(stage, &option, units - 1).await?;
        let less = claim(stage, line, &line.target, &code(stage, &bill, &option, &less, now_s + LIVES_S)?).await?;
        told(
            findings,
            less.code == "underpaid",
            "rehearsal_amount",
            subject,
            "too small an amount is refused",
            &less.told(),
        );
    }
    let message = "nothing that was refused reached the upstream";
    let calls = stage.calls() - before;
    told(findings, calls == 1, "rehearsal_upstream", subject, message, &format!("{calls} call"));
    Ok(())
}

async fn bill(stage: &Stage, line: &Line) -> anyhow::Result<(TransferBill, TransferOption)> {
    let unpaid = stage.send(line, &line.target, &[]).await?;
    let bill = decode_bill(&unpaid.body)?.context("the 402 has no bill by transfer")?.bill;
    let expected = stage.resource(&line.target);
    ensure!(bill.resource == expected, "the bill is for {}, expected {expected}", bill.resource);
    let option = bill.options.first().context("the bill has no option")?.clone();
    Ok((bill, option))
}

/// Sends so many units as any wallet would.
async fn send(stage: &Stage, option: &TransferOption, units: u128) -> anyhow::Result<TransactionId> {
    let wallet = transfers(stage)?;
    let amount = Amount { units, asset: option.amount.asset.clone() };
    let order = TransferOrder { amount, pay_to: option.pay_to };
    let outlook = wallet.outlook(&order).await?;
    let limit = outlook.gas.context("the transfer would fail")?;
    // Half as much again: an estimate is of the state before.
    let gas = TransferGas { nonce: outlook.next_nonce, limit: limit + limit / 2, fee: outlook.fee };
    let signed = wallet.sign_transfer(&order, gas)?;
    let answer = wallet.broadcast(option.amount.asset.network(), &signed.raw).await?;
    ensure!(answer == BroadcastAnswer::Taken, "the embedded chain did not take the transfer: {answer:?}");
    Ok(signed.transaction)
}

fn transfers(stage: &Stage) -> anyhow::Result<&dyn TransferWallet> {
    stage.wallet.transfers().context("the wallet sends no transfers")
}

fn code(
    stage: &Stage,
    bill: &TransferBill,
    option: &TransferOption,
    paid: &TransactionId,
    expires_at: u64,
) -> anyhow::Result<TransferCredential> {
    let mut transaction = [0; 32];
    hex::decode_to_slice(paid.as_str().trim_start_matches("0x"), &mut transaction)?;
    let code = PaymentCode {
        quote: bill.quote.as_str().into(),
        asset: option.amount.asset.clone(),
        transaction,
        payer: stage.wallet.evm_address(),
        pay_to: option.pay_to,
        amount: option.amount.units,
        resource: bill.resource.as_str().into(),
        method: bill.method.as_str().into(),
        expires_at,
        signature: Vec::new(),
    };
    Ok(TransferCredential::new(transfers(stage)?.sign_code(code)?, transaction))
}

async fn claim(stage: &Stage, line: &Line, target: &str, credential: &TransferCredential) -> anyhow::Result<Answer> {
    let headers: [(HeaderName, HeaderValue); 2] = encode_code(credential);
    stage.send(line, target, &headers).await
}
