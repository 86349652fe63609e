//! A seller without a Lightning node: the gateway's own one, made, funded and looked after on the command line while it serves.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use farebox_e2e::{
    Echo, Farebox, Setup,
    lightning::{Lnd, Paid, Payment, Regtest},
};
use serde_json::{Value, json};

const CHANNEL_SAT: u64 = 1_000_000;
const WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

/// What a command of the seller's prints.
fn run(setup: &Setup, arguments: &[&str]) -> Result<Value, String> {
    let output = setup.command(arguments).unwrap().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(serde_json::from_slice(&output.stdout).unwrap_or_default()) } else { Err(said) }
}

fn lightning(setup: &Setup, arguments: &[&str]) -> Result<Value, String> {
    run(setup, &[&["lightning", "--json"], arguments].concat())
}

async fn until(setup: &Setup, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + WITHIN;
    loop {
        let status = lightning(setup, &["status"]).unwrap();
        if is(&status) {
            return status;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited {WITHIN:?} for {what}: {status:#}");
        tokio::time::sleep(LOOK).await;
    }
}

async fn opens_a_channel(lnd: &Lnd, regtest: &Regtest, node_id: &str) {
    let open = json!({
        "node_pubkey": BASE64_STANDARD.encode(hex::decode(node_id).unwrap()),
        "local_funding_amount": CHANNEL_SAT.to_string(), "sat_per_vbyte": "2", "spend_unconfirmed": true, "private": true,
    });
    lnd.rest(http::Method::POST, "/v1/channels", Some(open)).await.unwrap();
    regtest.mine(6).await.unwrap();
}

/// lnd's side of a channel may be ready a moment later.
async fn pays(lnd: &Lnd, bolt11: &str) -> Paid {
    let deadline = tokio::time::Instant::now() + WITHIN;
    loop {
        match lnd.try_to_pay(bolt11).await.unwrap() {
            Payment::Succeeded(paid) => return paid,
            Payment::Failed(reason) => assert!(tokio::time::Instant::now() < deadline, "{reason}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test]
async fn a_seller_without_a_node_is_paid_by_lnd_also_when_killed_before_the_payment_was_noted() {
    let regtest = Regtest::start().await.unwrap();
    let lnd = Lnd::start(&regtest, "payer").await.unwrap();
    lnd.fund(&regtest, 5 * CHANNEL_SAT).await.unwrap();
    let upstream = Echo::start().await.unwrap();
    let login = regtest.login();
    let config = format!(
        r#"
ledger = "farebox.db"
[lightning]
network = "regtest"
node = {{ ldk = {{ dir = "node", chain = "bitcoind://{}:{}@{}:{}" }} }}
[[route]]
match = "GET /one/*"
upstream = "{}"
price = "10 sat"
"#,
        login.user,
        login.password,
        login.host,
        login.port,
        upstream.url()
    );
    let setup = Setup::new(&config).unwrap();
    let made = lightning(&setup, &["init", "--network", "regtest", "--yes-i-wrote-it-down"]).unwrap();
    assert_eq!(made["words"].as_array().map(Vec::len), Some(24), "{made}");

    let mut gateway = Farebox::start(setup).await.unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    // Nobody could pay: no channel. The answer says what is off, and is no invoice.
    let off = client.get(gateway.url("/one/a")).send().await.unwrap();
    assert_eq!(off.status(), 503, "{}", off.text().await.unwrap());

    let address = lightning(gateway.setup(), &["address"]).unwrap();
    regtest.send(address["address"].as_str().unwrap(), 200_000).await.unwrap();
    regtest.mine(1).await.unwrap();
    let status = until(gateway.setup(), "its coins", |status| status["on_chain"]["spendable_sat"] == 200_000).await;
    assert!(status["advice"].to_string().contains("Nothing can be received"), "{status:#}");
    let peer = format!("{}@{}", lnd.peer().node_id, lnd.peer().address);
    lightning(gateway.setup(), &["connect", &peer]).unwrap();
    opens_a_channel(&lnd, &regtest, status["node_id"].as_str().unwrap()).await;
    until(gateway.setup(), "the channel", |status| status["receivable_msat"].as_u64() > Some(500_000_000)).await;

    let bill: Value = client.get(gateway.url("/one/a")).send().await.unwrap().json().await.unwrap();
    assert_eq!(bill["amountSats"], 10, "{bill}");
    let paid = pays(&lnd, bill["invoice"].as_str().unwrap()).await;
    gateway.kill_9().unwrap();
    gateway.restart().await.unwrap();

    // Known without the token: from the node.
    let deadline = tokio::time::Instant::now() + WITHIN;
    while run(gateway.setup(), &["payments", "--json"]).unwrap()["state"] != "settled" {
        assert!(tokio::time::Instant::now() < deadline, "the settlement was not told");
        tokio::time::sleep(LOOK).await;
    }
    let token = format!("L402 {}:{}", bill["macaroon"].as_str().unwrap(), paid.preimage);
    let call = async || client.get(gateway.url("/one/a")).header("authorization", &token).send().await.unwrap();
    assert_eq!(call().await.status(), 200);
    assert_eq!(call().await.status(), 402, "one invoice, one call");
    assert_eq!(upstream.seen().len(), 1);

    // The gateway has the node: commands go through it, and nobody starts a second one.
    let channel = until(gateway.setup(), "its peer", |status| status["channels"][0]["state"]["is"] == "ready").await;
    let channel = channel["channels"][0]["id"].as_str().unwrap().to_owned();
    let held = run(gateway.setup(), &["lightning", "run"]).unwrap_err();
    assert!(held.contains("is held by process"), "{held}");
    let refused = lightning(gateway.setup(), &["open", &peer, "--sat", "10000000"]).unwrap_err();
    assert!(refused.contains("10025000 sat"), "{refused}");
    lightning(gateway.setup(), &["close", &channel[..8]]).unwrap();
    until(gateway.setup(), "the closing", |status| status["channels"].as_array().is_some_and(Vec::is_empty)).await;
}
