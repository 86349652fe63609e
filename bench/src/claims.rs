//! Claims on transfers: what a good one costs, and how many bad ones a second are turned away.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use farebox_e2e::{Account, Anvil, Claim, Farebox, Quoted, Setup, Usdc};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;

use crate::{
    Args,
    contender::{Expected, Nginx, WORKERS, measure, node, pay_to},
    host,
    report::Report,
    wrk::Drive,
};

/// Transfers that are made and claimed once each.
const CLAIMS: usize = 600;
/// Payers who make them, each one after the other.
const PAYERS: usize = 12;
/// Claims under way at once.
const AT_ONCE: usize = 16;
/// Never resolved: the public URL is what quotes name, and nothing that is connected to.
const PUBLIC: &str = "http://bench.example";

/// Headers from its arguments, the same with every request.
const SCRIPT: &str = r#"
function init(args)
  wrk.headers["X-Payment-Hash"] = args[1]
  wrk.headers["X-Payment-Code"] = args[2]
end
"#;

pub(crate) async fn run(args: &Args, report: &mut Report) -> Result<()> {
    let origin = Nginx::origin().await?;
    let (anvil, usdc) = node().await?;
    let mut gateway = gateway(&anvil, &origin.url("")).await?;
    let (pid, url) = (gateway.process().id(), gateway.url("/paid"));
    let quoted = quote(&url).await?;
    let claims = pay(&anvil, &usdc, &quoted).await?;

    let before = host::cpu_s(pid)?;
    let sent = stream::iter(&claims).map(|claim| send(&url, claim)).buffer_unordered(AT_ONCE);
    sent.try_for_each(|status| async move {
        ensure!(status == 200, "a good claim was answered {status}");
        Ok(())
    })
    .await?;
    let us = (host::cpu_s(pid)? - before) * 1e6 / CLAIMS as f64;
    report.fact("a good claim, HTTP and books included", format!("{us:.0} us of CPU"), "<= 300 us");

    let first = claims.first().context("no claim")?;
    let again = quote(&url).await?.claim(&again_option(&quoted)?, transaction(first)?, payer_of(first)?);
    let again = again.signed(&Account::named("payer 0")?).await?;
    let dir = tempfile::tempdir()?;
    let script = dir.path().join("claim.lua");
    std::fs::write(&script, SCRIPT)?;
    let code = first.encoded();
    let loads = [
        ("claim replayed", first.announced.clone(), code.clone(), Expected::Served),
        ("claim under another quote", again.announced.clone(), again.encoded(), Expected::Refused),
        ("claim malformed", first.announced.clone(), code[..code.len() - 3].to_owned(), Expected::Refused),
    ];
    for _ in 0..args.rounds {
        for (load, hash, code, expected) in &loads {
            let arguments = vec![hash.clone(), code.clone()];
            let script = Some((Path::new(&script), arguments));
            let drive = Drive { url: &url, connections: args.connections, seconds: args.seconds, script };
            report.round(load, "farebox", measure(pid, &drive, *expected)?);
        }
    }
    Ok(())
}

async fn gateway(anvil: &Anvil, upstream: &str) -> Result<Farebox> {
    let config = format!(
        "public_url = \"{PUBLIC}\"\n\n[server]\nworkers = {WORKERS}\n\n[log]\nlevel = \"warn\"\n\n[admission]\nlookups_per_minute = 1000000\n\n\
         [transfer]\n\n[[chain]]\nnetwork = \"{}\"\nrpc = [\"{}\"]\nassets = [\"USDC\"]\npay_to = \"{}\"\n\n\
         [[route]]\nmatch = \"GET /paid\"\nupstream = \"{upstream}\"\nprice = \"$0.01\"\n",
        farebox_e2e::NETWORK,
        anvil.url(),
        pay_to()?,
    );
    Farebox::start(Setup::new(&config)?).await
}

async fn quote(url: &str) -> Result<Quoted> {
    let body: Value = reqwest::get(url).await?.json().await?;
    let transfer = body.get("transfer").context("the 402 has no transfer")?;
    Ok(Quoted { json: transfer.clone(), path: "/paid".to_owned() })
}

fn again_option(quoted: &Quoted) -> Result<farebox_e2e::Asked> {
    quoted.option("USDC")
}

/// Makes the transfers and signs a claim on each.
async fn pay(anvil: &Arc<Anvil>, usdc: &Usdc, quoted: &Quoted) -> Result<Vec<Claim>> {
    let option = quoted.option("USDC")?;
    let mut paying = Vec::new();
    for n in 0..PAYERS {
        let payer = Account::named(&format!("payer {n}"))?;
        usdc.mint(payer.address(), 10u128.pow(12)).await?;
        anvil.set_balance(payer.address(), 10u128.pow(20)).await?;
        let (anvil, option, quoted) = (anvil.clone(), option.clone(), quoted.clone());
        let request = usdc.transfer(option.pay_to, option.units);
        paying.push(tokio::spawn(async move {
            let mut claims = Vec::new();
            for _ in 0..CLAIMS / PAYERS {
                let transaction = anvil.send(&payer, request.clone()).await?;
                claims.push(quoted.claim(&option, transaction, payer.address()).signed(&payer).await?);
            }
            anyhow::Ok(claims)
        }));
    }
    let mut claims = Vec::new();
    for payer in paying {
        claims.extend(payer.await??);
    }
    Ok(claims)
}

async fn send(url: &str, claim: &Claim) -> Result<u16> {
    let request = reqwest::Client::new().get(url);
    let request = request.header("X-Payment-Hash", &claim.announced).header("X-Payment-Code", claim.encoded());
    Ok(request.send().await?.status().as_u16())
}

fn transaction(claim: &Claim) -> Result<alloy::primitives::B256> {
    Ok(claim.announced.parse()?)
}

fn payer_of(claim: &Claim) -> Result<alloy::primitives::Address> {
    Ok(claim.code.get("payer").and_then(Value::as_str).context("no payer")?.parse()?)
}
