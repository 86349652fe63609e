//! Lightning tokens: a held one beside the free route, the 402 with a reused invoice beside nginx's canned answer, and what unpaid requests
//! cost the node. The node is a real lnd on regtest.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use farebox_e2e::{
    Farebox, Setup,
    lightning::{LightningPair, Lnd, Macaroon},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    Args,
    contender::{Expected, Nginx, WORKERS, canned, measure},
    report::Report,
    wrk::Drive,
};

/// Unpaid requests of one client, all at once.
const UNPAID: usize = 1_000;
/// The most invoices that they may cost.
const INVOICES_MAX: usize = 2;
/// First challenges and bare invoices that are timed beside one another.
const COLD: usize = 40;

/// Sends the token with every request.
const SCRIPT: &str = r#"
function init(args)
  wrk.headers["Authorization"] = args[1]
end
"#;

pub(crate) async fn run(args: &Args, report: &mut Report) -> Result<()> {
    let origin = Nginx::origin().await?;
    let lightning = LightningPair::start().await?;
    let gateway = gateway(&lightning.seller, &origin.url("")).await?;

    let made = lightning.seller.invoices_made().await?;
    let bill = flood(&gateway.url("/held")).await?;
    let made = lightning.seller.invoices_made().await? - made;
    report.fact(
        "invoices that 1,000 unpaid requests of one client cost",
        made.to_string(),
        &format!("<= {INVOICES_MAX}"),
    );

    let body = bill.to_string();
    let text = |name: &str| bill.get(name).and_then(Value::as_str).with_context(|| format!("the bill has no {name}"));
    let paid = lightning.payer.pay(text("invoice")?).await?;
    let token = format!("L402 {}:{}", text("macaroon")?, paid.preimage);
    loads(args, report, gateway, &body, token).await?;
    cold(&lightning.seller, &origin.url(""), report).await
}

/// One token of a million calls at `/held`; `/bill` is never paid.
async fn gateway(node: &Lnd, upstream: &str) -> Result<Farebox> {
    let routes = format!(
        "[[route]]\nmatch = \"GET /free\"\nupstream = \"{upstream}\"\nfree = true\n\n\
         [[route]]\nmatch = \"GET /held\"\nupstream = \"{upstream}\"\nprice = \"0.001 sat\"\ncalls = 1000000\n\n\
         [[route]]\nmatch = \"GET /bill\"\nupstream = \"{upstream}\"\nprice = \"10 sat\"\n"
    );
    Farebox::start(Setup::new(&config(node, "", &routes)?)?).await
}

fn config(node: &Lnd, keys: &str, routes: &str) -> Result<String> {
    Ok(format!(
        "[server]\nworkers = {WORKERS}\n\n[log]\nlevel = \"warn\"\n\n[lightning]\nnetwork = \"regtest\"\n{keys}\
         node = {{ lnd = {{ url = \"{}\", macaroon = \"{}\", cert = \"{}\" }} }}\n\n{routes}",
        node.rest_url(),
        node.macaroon(Macaroon::Admin)?,
        node.tls_cert().display(),
    ))
}

/// Asks for the same bill very often at once, and gives it.
async fn flood(url: &str) -> Result<Value> {
    let client = Client::new();
    let asked = stream::iter(0..UNPAID).map(|_| bill(&client, url)).buffer_unordered(64);
    let bills: Vec<Value> = asked.try_collect().await?;
    bills.into_iter().next().context("no bill")
}

async fn bill(client: &Client, url: &str) -> Result<Value> {
    let answer = client.get(url).send().await?;
    ensure!(answer.status() == StatusCode::PAYMENT_REQUIRED, "asked for a bill, got {}", answer.status());
    Ok(answer.json().await?)
}

async fn loads(args: &Args, report: &mut Report, mut gateway: Farebox, body: &str, token: String) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let script = dir.path().join("token.lua");
    std::fs::write(&script, SCRIPT)?;
    let canned = canned(dir.path(), body).await?;
    let pid = gateway.process().id();
    // Its invoice is made before it is timed.
    bill(&Client::new(), &gateway.url("/bill")).await?;
    let with_token = || Some((Path::new(&script), vec![token.clone()]));
    for round in 0..args.rounds {
        let mut loads = vec![
            ("token", "free route", pid, gateway.url("/free"), Expected::Served, None),
            ("token", "farebox, held", pid, gateway.url("/held"), Expected::Served, with_token()),
            ("402 l402", "nginx, canned", canned.process().id(), canned.url("/bill"), Expected::Refused, None),
            ("402 l402", "farebox", pid, gateway.url("/bill"), Expected::Refused, None),
        ];
        if round % 2 == 1 {
            loads.reverse();
        }
        for (load, contender, pid, url, expected, script) in loads {
            let drive = Drive { url: &url, connections: args.connections, seconds: args.seconds, script };
            report.round(load, contender, measure(pid, &drive, expected)?);
        }
    }
    Ok(())
}

/// A first challenge beside the node's own time for an invoice, in turn. A token of one request has an invoice for each path.
async fn cold(node: &Lnd, upstream: &str, report: &mut Report) -> Result<()> {
    let routes = format!(
        "[[route]]\nmatch = \"GET /cold/*\"\nupstream = \"{upstream}\"\nprice = \"10 sat\"\nl402 = {{ bind = \"request\" }}\n"
    );
    let keys = "invoices_per_client = 60000\ninvoices = 60000\n";
    let gateway = Farebox::start(Setup::new(&config(node, keys, &routes)?)?).await?;
    let client = Client::new();
    bill(&client, &gateway.url("/cold/first")).await?;
    let (mut challenges, mut invoices) = (Vec::new(), Vec::new());
    for n in 0..COLD {
        let started = Instant::now();
        bill(&client, &gateway.url(&format!("/cold/{n}"))).await?;
        challenges.push(started.elapsed());
        let started = Instant::now();
        node.invoice(10_000, Duration::from_secs(600)).await?;
        invoices.push(started.elapsed());
    }
    let (challenge, invoice) = (median_ms(challenges), median_ms(invoices));
    let found = format!("{:.1} ms ({challenge:.1} ms, of which lnd alone {invoice:.1} ms)", challenge - invoice);
    report.fact("what a first challenge adds to the node's own time", found, "<= 2 ms");
    Ok(())
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
