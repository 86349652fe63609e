//! Wallets over Nostr Wallet Connect on either side of a sale: Alby's wallet service before a real lnd.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::process::{Output, Stdio};

use farebox_e2e::{
    Tool, books,
    lightning::{Buyer, InvoiceState, LightningPair, NwcWallet, Preimages, Stall, Wanted, table},
    tool,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

const SOON: std::time::Duration = std::time::Duration::from_secs(60);
const TWO_CALLS: &str = "[[route]]\nmatch = \"GET /v1/*\"\nupstream = \"$UPSTREAM\"\nprice = \"10 sat\"\ncalls = 2\n";

#[tokio::test]
async fn a_seller_is_paid_into_a_wallet_and_goes_on_when_it_was_away() {
    let pair = LightningPair::start().await.unwrap();
    let mut wallet = NwcWallet::start(&pair.seller, Preimages::Told).await.unwrap();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), wallet.url()).unwrap();
    let head = table(&format!("nwc = \"file:{}\"", secret.path().display()));
    let stall = Stall::open_at(pair, &head, TWO_CALLS).await.unwrap();
    for sale in 1..=2 {
        stall.wait_for("/v1/report", 402, SOON).await.unwrap();
        let url = stall.farebox.url("/v1/report");
        let bought = Buyer::L402Requests.buy(&stall.pair.payer, &[Wanted::get(&url), Wanted::get(&url)]).await.unwrap();
        assert_eq!((bought.statuses(), bought.paid.len()), (vec![Some(200); 2], 1), "{bought:?}");
        let rows = books(stall.farebox.setup()).await.unwrap();
        assert_eq!(rows.len(), sale, "{rows:?}");
        let paid = stall.pair.payer.decode(&bought.paid[0]).await.unwrap();
        assert_eq!(stall.pair.seller.invoice_state(&paid.payment_hash).await.unwrap(), InvoiceState::Settled);
        wallet.restart().await.unwrap();
    }
}

#[tokio::test]
async fn an_agent_without_a_node_pays_from_its_wallet() {
    let stall = Stall::open("", TWO_CALLS).await.unwrap();
    let wallet = NwcWallet::start(&stall.pair.payer, Preimages::Told).await.unwrap();
    let journal = tempfile::tempdir().unwrap();
    for held in [false, true] {
        let output = pay(&wallet, &journal, &stall.farebox.url("/v1/report")).await;
        assert!(output.status.success(), "{}", text(&output));
        let bought: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&bought["status"], &bought["payment"]["held_token"]), (&json!(200), &json!(held)), "{bought}");
    }
    assert_eq!(stall.pair.payer.payments_made().await.unwrap(), 1);
}

#[tokio::test]
async fn a_custodial_wallet_that_keeps_the_preimage_is_told_of_and_never_pays_twice() {
    let stall = Stall::open("", TWO_CALLS).await.unwrap();
    let wallet = NwcWallet::start(&stall.pair.payer, Preimages::Withheld).await.unwrap();
    let journal = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let output = pay(&wallet, &journal, &stall.farebox.url("/v1/report")).await;
        assert_eq!(output.status.code(), Some(13), "{}", text(&output));
    }
    assert_eq!(stall.echo.hits(), 0);
    assert_eq!(stall.pair.payer.payments_made().await.unwrap(), 1);
}

/// `farebox pay`, with the wallet out of sight of the command line.
async fn pay(wallet: &NwcWallet, journal: &TempDir, url: &str) -> Output {
    let mut command = Command::new(tool(Tool::Farebox).unwrap());
    command.args(["pay", url, "--json"]).env("FAREBOX_LIGHTNING", wallet.url()).env("FAREBOX_JOURNAL", journal.path());
    command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    format!("{}\n{out}\n{err}", output.status)
}
