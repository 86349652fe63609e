//! Paid calls, end to end on anvil with instant blocks, beside the official npm server with its facilitator.
//!
//! Payments are signed beforehand, so that the payer's cost is in no figure; each is sent once.

use std::{io::Write as _, path::Path};

use alloy::primitives::Address;
use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use farebox_core::Offer;
use farebox_e2e::{Account, Authorization, ExpressPeer, Usdc, now_s};
use serde_json::{Value, json};

use crate::{
    Args,
    contender::{Nginx, farebox, node, pay_to},
    host,
    report::{Report, Round},
    wrk::{self, Drive, THREADS},
};

/// More payments than any contender gets through in a second; a load that runs out is an error, not a figure.
const PAYMENTS_PER_S_MAX: u64 = 1_500;
/// The express server's own bound is far lower; signing is not free.
const EXPRESS_PAYMENTS_PER_S_MAX: u64 = 400;
/// How long the signed payments are good.
const VALID_S: u64 = 280;

const SCRIPT: &str = r#"
local threads = 0
function setup(thread) thread:set("id", threads) threads = threads + 1 end
function init(args)
  payments, at = {}, 0
  local n = 0
  for line in io.lines(args[1]) do
    if n % tonumber(args[2]) == id then payments[#payments + 1] = line end
    n = n + 1
  end
end
function request()
  at = at + 1
  return wrk.format("GET", nil, { ["PAYMENT-SIGNATURE"] = payments[at] or "ran out" })
end
"#;

/// The paid load. Every measurement has a node of its own: anvil copies its state for every block, so that whoever came later on a
/// shared one would pay for the blocks of whoever came before.
pub(crate) async fn run(args: &Args, report: &mut Report) -> Result<()> {
    for round in 0..args.rounds {
        let mut turn = [Contender::Express, Contender::Farebox];
        if round % 2 == 1 {
            turn.reverse();
        }
        for contender in turn {
            let measured = contender.measured(args).await.with_context(|| contender.name().to_owned())?;
            report.round("paid", contender.name(), measured);
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Contender {
    Express,
    Farebox,
}

impl Contender {
    const fn name(self) -> &'static str {
        match self {
            Self::Express => "@x402/express",
            Self::Farebox => "farebox",
        }
    }

    async fn measured(self, args: &Args) -> Result<Round> {
        let (anvil, usdc) = node().await?;
        let payers: Vec<Account> =
            (0..args.payers).map(|n| Account::named(&format!("payer {n}"))).collect::<Result<_>>()?;
        for payer in &payers {
            usdc.mint(payer.address(), 10u128.pow(15)).await?;
        }
        match self {
            Self::Express => {
                let relayer = Account::named("express relayer")?;
                anvil.set_balance(relayer.address(), 10u128.pow(20)).await?;
                let express = ExpressPeer::start(anvil.url(), pay_to()?, &relayer).await?;
                measure(args, &usdc, &payers, express.id(), &express.url("/paid"), EXPRESS_PAYMENTS_PER_S_MAX).await
            }
            Self::Farebox => {
                let origin = Nginx::origin().await?;
                let mut gateway = farebox(&anvil, &origin.url("")).await?;
                let (pid, url) = (gateway.process().id(), gateway.url("/paid"));
                measure(args, &usdc, &payers, pid, &url, PAYMENTS_PER_S_MAX).await
            }
        }
    }
}

async fn measure(args: &Args, usdc: &Usdc, payers: &[Account], pid: u32, url: &str, per_s_max: u64) -> Result<Round> {
    let dir = tempfile::tempdir()?;
    let (script, payments) = (dir.path().join("paid.lua"), dir.path().join("payments"));
    std::fs::write(&script, SCRIPT)?;
    let count = per_s_max * args.seconds;
    let price = sign(url, payers, count, &payments).await?;
    let (balance, cpu) = (usdc.balance_of(pay_to()?).await?, host::cpu_s(pid)?);
    let arguments = vec![payments.display().to_string(), THREADS.to_string()];
    let drive =
        Drive { url, connections: args.payers, seconds: args.seconds, script: Some((Path::new(&script), arguments)) };
    let load = wrk::drive(&drive)?;
    let cpu = host::cpu_s(pid)? - cpu;
    ensure!(load.requests < count, "all {count} payments were used up; raise the bound");
    if load.refused > 0 {
        let why = tried_again(url, payers, dir.path()).await?;
        anyhow::bail!("{} of {} paid requests were refused; one more gets: {why}", load.refused, load.requests);
    }
    // What was answered with 200 must have been charged. wrk leaves its last requests in flight: those may be more.
    let charged = (usdc.balance_of(pay_to()?).await? - balance) / price;
    let (least, most) = (u128::from(load.requests), u128::from(load.requests) + args.payers as u128);
    ensure!((least..=most).contains(&charged), "{} answers and {charged} charges", load.requests);
    Ok(Round::new(&load, load.requests, cpu, host::memory_mib(pid)?))
}

/// What one more payment gets, for the error message.
async fn tried_again(url: &str, payers: &[Account], dir: &Path) -> Result<String> {
    let file = dir.join("one");
    sign(url, payers, 1, &file).await?;
    let header = std::fs::read_to_string(&file)?;
    let answer = reqwest::Client::new().get(url).header("PAYMENT-SIGNATURE", header.trim()).send().await?;
    Ok(format!("{} {}", answer.status(), answer.text().await?))
}

/// Signs `count` payments of the first offer at `url`, a header value a line. Returns the price in smallest units.
async fn sign(url: &str, payers: &[Account], count: u64, file: &Path) -> Result<u128> {
    let unpaid = reqwest::get(url).await?;
    let bill = unpaid.headers().get("payment-required").context("the 402 has no PAYMENT-REQUIRED")?;
    let bill: Value = serde_json::from_slice(&BASE64_STANDARD.decode(bill.as_bytes())?)?;
    let accepted = &bill["accepts"][0];
    let text = |key: &str| accepted[key].as_str().with_context(|| format!("the offer has no {key}"));
    let (value, to): (u128, Address) = (text("amount")?.parse()?, text("payTo")?.parse()?);
    let salt = format!("{}{url}{}", now_s(), std::process::id());
    let mut out = std::io::BufWriter::new(std::fs::File::create(file)?);
    for (n, payer) in (0..count).zip(payers.iter().cycle()) {
        let mut authorization = Authorization::new(payer, to, value, &format!("{salt}{n}"));
        authorization.valid_before = now_s() + VALID_S;
        let signature = authorization.sign(payer).await?;
        writeln!(out, "{}", header(accepted, &authorization, &signature))?;
    }
    out.flush()?;
    Ok(value)
}

/// A requirement as a version 2 client echoes it.
pub(crate) fn accepted(offer: &Offer) -> Value {
    json!({
        "scheme": &*offer.scheme, "network": offer.network().as_str(), "amount": offer.amount.units.to_string(),
        "asset": &*offer.asset_on_wire, "payTo": &*offer.pay_to, "maxTimeoutSeconds": offer.max_timeout_s, "extra": offer.extra,
    })
}

/// The value of PAYMENT-SIGNATURE.
pub(crate) fn header(accepted: &Value, authorization: &Authorization, signature: &[u8]) -> String {
    let payload = json!({
        "x402Version": 2,
        "accepted": accepted,
        "payload": {
            "signature": alloy::hex::encode_prefixed(signature),
            "authorization": {
                "from": authorization.from, "to": authorization.to, "value": authorization.value.to_string(),
                "validAfter": authorization.valid_after.to_string(), "validBefore": authorization.valid_before.to_string(),
                "nonce": authorization.nonce,
            },
        },
    });
    BASE64_STANDARD.encode(payload.to_string())
}
