//! Claims on transfers: what a good one costs, and how many bad ones a second are turned away.

use std::{path::Path, sync::Arc};

use alloy::primitives::Address;
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

/// Claims that are presented again and again, in turn.
const PRESENTED: usize = 200;

/// Headers from the lines of a file, in turn: hash and code.
const SCRIPT: &str = r#"
function init(args)
  claims, at = {}, 0
  for line in io.lines(args[1]) do
    local hash, code = line:match("(%S+) (%S+)")
    claims[#claims + 1] = wrk.format("GET", nil, { ["X-Payment-Hash"] = hash, ["X-Payment-Code"] = code })
  end
end
function request()
  at = at % #claims + 1
  return claims[at]
end
"#;

pub(crate) async fn run(args: &Args, report: &mut Report) -> Result<()> {
    let origin = Nginx::origin().await?;
    let (anvil, usdc) = node().await?;
    let mut gateway = gateway(&anvil, &origin.url("")).await?;
    let (pid, url) = (gateway.process().id(), gateway.url("/paid"));
    let quoted = quote(&url).await?;
    let claims = pay(&anvil, &usdc, &quoted).await?;

    let client = reqwest::Client::new();
    let before = host::cpu_s(pid)?;
    let sent = stream::iter(&claims).map(|claim| send(&client, &url, claim)).buffer_unordered(AT_ONCE);
    sent.try_for_each(|status| async move {
        ensure!(status == 200, "a good claim was answered {status}");
        Ok(())
    })
    .await?;
    let us = (host::cpu_s(pid)? - before) * 1e6 / CLAIMS as f64;
    report.fact("a good claim: HTTP, RPC, upstream and books included", format!("{us:.0} us of CPU"), "");

    let dir = tempfile::tempdir()?;
    let script = dir.path().join("claim.lua");
    std::fs::write(&script, SCRIPT)?;
    let lines = |claims: &[Claim]| -> Vec<String> {
        claims.iter().map(|claim| format!("{} {}", claim.announced, claim.encoded())).collect()
    };
    let replayed = lines(&claims[..PRESENTED]);
    let malformed = replayed.iter().map(|line| line[..line.len() - 3].to_owned()).collect();
    let others = lines(&under_other_quotes(&url, &claims[..PRESENTED]).await?);
    let loads = [
        ("claim replayed", replayed, Expected::Served),
        ("claim under another quote", others, Expected::Refused),
        ("claim malformed", malformed, Expected::Refused),
    ];
    for (n, (_, lines, _)) in loads.iter().enumerate() {
        std::fs::write(dir.path().join(n.to_string()), lines.join("\n"))?;
    }
    for _ in 0..args.rounds {
        for (n, (load, _, expected)) in loads.iter().enumerate() {
            let arguments = vec![dir.path().join(n.to_string()).display().to_string()];
            let script = Some((Path::new(&script), arguments));
            let drive = Drive { url: &url, connections: args.connections, seconds: args.seconds, script };
            report.round(load, "farebox", measure(pid, &drive, *expected)?);
        }
    }
    Ok(())
}

/// The same transactions, claimed for quotes that were given out after they were claimed.
async fn under_other_quotes(url: &str, claims: &[Claim]) -> Result<Vec<Claim>> {
    let mut others = Vec::new();
    for claim in claims {
        let payer: Address = claim.code.get("payer").and_then(Value::as_str).context("no payer")?.parse()?;
        let account = (0..PAYERS)
            .map(|n| Account::named(&format!("payer {n}")))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .find(|account| account.address() == payer)
            .context("a claim of nobody's")?;
        let quoted = quote(url).await?;
        let again = quoted.claim(&quoted.option("USDC")?, claim.announced.parse()?, payer);
        others.push(again.signed(&account).await?);
    }
    Ok(others)
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

async fn send(client: &reqwest::Client, url: &str, claim: &Claim) -> Result<u16> {
    let request = client.get(url).header("X-Payment-Hash", &claim.announced).header("X-Payment-Code", claim.encoded());
    Ok(request.send().await?.status().as_u16())
}
