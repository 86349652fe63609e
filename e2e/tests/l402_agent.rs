//! `farebox pay` with a real Lightning wallet: against Aperture, and against the gateway.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use farebox_e2e::{
    Echo, Farebox, Setup, Tool,
    lightning::{Aperture, Goods, LightningPair, Lnd, Macaroon, NwcWallet, Preimages},
    tool,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

/// Far above what anything here takes, for a machine with ten other things to do.
const SOON: Duration = Duration::from_secs(60);

/// The wallet as `--lightning` names it.
fn wallet(lnd: &Lnd) -> String {
    let at = lnd.rest_url().replacen("https://", "lnd+https://", 1);
    let (macaroon, cert) = (lnd.macaroon_file(Macaroon::Admin), lnd.tls_cert());
    format!("{at}?macaroon={}&cert={}", macaroon.display(), cert.display())
}

/// A payer with sats, and a journal.
struct Satoshi {
    pair: LightningPair,
    journal: TempDir,
}

impl Satoshi {
    async fn new() -> Self {
        Self { pair: LightningPair::start().await.unwrap(), journal: tempfile::tempdir().unwrap() }
    }

    /// `farebox pay`, with the wallet out of sight of the command line.
    fn pay(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(tool(Tool::Farebox).unwrap());
        command.arg("pay").args(arguments).env("FAREBOX_LIGHTNING", wallet(&self.pair.payer));
        command
            .env("FAREBOX_JOURNAL", self.journal.path())
            .env_remove("FAREBOX_WALLET_KEY")
            .env("no_proxy", "127.0.0.1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        tokio::time::timeout(SOON, self.pay(arguments).output()).await.unwrap().unwrap()
    }

    /// What the run says of its payment, once it has the answer.
    async fn bought(&self, url: &str) -> Value {
        let output = self.run(&["--json", "--max-sat", "50", url]).await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{told} {}", String::from_utf8_lossy(&output.stdout));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["status"], 200, "{told}");
        told["payment"].clone()
    }

    /// Payments that the wallet made, all of them.
    async fn payments(&self) -> usize {
        let made = self.pair.payer.rest(http::Method::GET, "/v1/payments?include_incomplete=true", None).await.unwrap();
        made["payments"].as_array().unwrap().iter().filter(|payment| payment["status"] == "SUCCEEDED").count()
    }
}

#[tokio::test]
async fn a_token_of_aperture_is_bought_once_and_used_until_its_time_is_over() {
    let me = Satoshi::new().await;
    let upstream = Echo::start().await.unwrap();
    let goods = Goods { upstream: upstream.url(), price_sat: 21, good_for: Duration::from_secs(8) };
    let aperture = Aperture::start(&me.pair.seller, &goods).await.unwrap();

    let shown = me.run(&["--json", "--dry-run", &aperture.url("/a")]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let offer = &shown["offers"][0];
    assert_eq!(
        json!([offer["rail"], offer["amount"], offer["symbol"], offer["chosen"]]),
        json!(["l402", "21", "sat", true]),
        "{shown}"
    );
    assert_eq!(
        (&shown["invoice"]["payee"], &shown["invoice"]["services"]),
        (&json!(me.pair.seller.node_id()), &json!([Aperture::SERVICE]))
    );
    assert_eq!(me.payments().await, 0);

    let first = me.bought(&aperture.url("/a")).await;
    assert_eq!(
        json!([first["rail"], first["amount"], first["charged"], first["held_token"]]),
        json!(["l402", "21", true, false]),
        "{first}"
    );
    // Its own path at once, another path of the same service after its bill.
    for path in ["/a", "/b"] {
        let again = me.bought(&aperture.url(path)).await;
        assert_eq!(
            json!([again["charged"], again["held_token"], again["payment_hash"]]),
            json!([false, true, first["payment_hash"]])
        );
    }
    assert_eq!(me.payments().await, 1);

    let output = me.run(&["--max-sat", "20", "--label", "dear", &aperture.url("/c")]).await;
    assert_eq!(output.status.code(), Some(0), "the token is paid for: {}", String::from_utf8_lossy(&output.stderr));
    tokio::time::sleep(goods.good_for).await;
    let output = me.run(&["--max-sat", "20", &aperture.url("/a")]).await;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(4) && told.contains("21 sat is over the limit of 20 sat"), "{told}");
    let later = me.bought(&aperture.url("/a")).await;
    assert_eq!(later["held_token"], false, "{later}");
    assert_eq!(me.payments().await, 2);
}

#[tokio::test]
async fn a_run_that_is_killed_pays_one_invoice_and_the_next_run_gets_the_goods() {
    let me = Satoshi::new().await;
    let upstream = Echo::start().await.unwrap();
    let goods = Goods { upstream: upstream.url(), price_sat: 21, good_for: Duration::from_secs(3600) };
    let aperture = Aperture::start(&me.pair.seller, &goods).await.unwrap();
    for (nth, after_ms) in [10_u64, 60, 120, 200, 300, 450].into_iter().enumerate() {
        let url = aperture.url(&format!("/{nth}"));
        // Each purchase for itself.
        let journal = me.journal.path().join(nth.to_string());
        let arguments = ["--max-sat", "50", "--journal", journal.to_str().unwrap(), &url];
        let mut killed = me.pay(&arguments).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        killed.kill().await.unwrap();
        let output = me.run(&arguments).await;
        assert_eq!(output.status.code(), Some(0), "{after_ms} ms: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(me.payments().await, nth + 1, "killed after {after_ms} ms");
    }
}

/// A gateway that is paid by the seller's lnd.
async fn gateway(me: &Satoshi, upstream: &Echo) -> Farebox {
    let seller = &me.pair.seller;
    let (url, macaroon, cert) = (seller.rest_url(), seller.macaroon_file(Macaroon::Admin), seller.tls_cert());
    let config = format!(
        r#"
ledger = "farebox.db"
[lightning]
network = "regtest"
node = {{ lnd = {{ url = "{url}", macaroon = "file:{}", cert = "{}" }} }}
[[route]]
match = "GET /one/*"
upstream = "{upstream}"
price = "10 sat"
[[route]]
match = "GET /many/*"
upstream = "{upstream}"
price = "2 sat"
calls = 3
"#,
        macaroon.display(),
        cert.display(),
        upstream = upstream.url()
    );
    Farebox::start(Setup::new(&config).unwrap()).await.unwrap()
}

#[tokio::test]
async fn calls_of_the_gateway_are_bought_with_sats_alone() {
    let me = Satoshi::new().await;
    let upstream = Echo::start().await.unwrap();
    let gateway = gateway(&me, &upstream).await;
    let told = |made: &Value| json!([made["amount"], made["charged"], made["held_token"], made["calls_left"]]);
    for _ in 0..2 {
        let made = me.bought(&gateway.url("/one/a?b=c")).await;
        assert_eq!(told(&made), json!(["10", true, false, 0]), "{made}");
    }
    assert_eq!(me.payments().await, 2);
    // What one invoice buys is good for the whole route.
    for (path, charged, left) in
        [("/many/a", true, 2), ("/many/a", false, 1), ("/many/b", false, 0), ("/many/b", true, 2)]
    {
        let made = me.bought(&gateway.url(path)).await;
        assert_eq!(told(&made), json!(["6", charged, !charged, left]), "{path}: {made}");
    }
    assert_eq!(me.payments().await, 4);
}

#[tokio::test]
async fn commands_at_once_that_are_shown_one_invoice_pay_one_each() {
    let me = Satoshi::new().await;
    let upstream = Echo::start().await.unwrap();
    let gateway = gateway(&me, &upstream).await;
    let urls: Vec<_> = (0..4).map(|n| gateway.url(&format!("/one/{n}"))).collect();
    let made = futures_util::future::join_all(urls.iter().map(|url| me.bought(url))).await;
    assert!(made.iter().all(|made| made["charged"] == true), "{made:?}");
    assert_eq!(me.payments().await, 4);
}

#[tokio::test]
async fn a_run_that_is_killed_at_the_gateway_pays_once_and_gets_the_goods() {
    let me = Satoshi::new().await;
    let upstream = Echo::start().await.unwrap();
    let gateway = gateway(&me, &upstream).await;
    for (nth, after_ms) in [30_u64, 90, 150, 220, 300].into_iter().enumerate() {
        let url = gateway.url(&format!("/one/{nth}"));
        let mut killed = me.pay(&["--max-sat", "50", &url]).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        killed.kill().await.unwrap();
        let output = me.run(&["--max-sat", "50", &url]).await;
        assert_eq!(output.status.code(), Some(0), "{after_ms} ms: {}", String::from_utf8_lossy(&output.stderr));
        let (paid, runs) = (me.payments().await, upstream.seen().len());
        // One that was killed after its answer has been served is a purchase of its own.
        assert!(
            paid == runs && (nth < paid && paid <= 2 * nth + 2),
            "killed after {after_ms} ms: {paid} paid, {runs} served"
        );
    }
}

#[tokio::test]
async fn a_wallet_over_nostr_pays_and_one_that_withholds_the_preimage_is_told_of_and_pays_once() {
    let me = Satoshi::new().await;
    let upstream = Echo::start().await.unwrap();
    let gateway = gateway(&me, &upstream).await;
    let pay = async |wallet: &NwcWallet, path: &str| {
        let url = gateway.url(path);
        let mut command = me.pay(&["--json", "--max-sat", "50", "--timeout", "20", &url]);
        let output = command.env("FAREBOX_LIGHTNING", wallet.url()).output();
        let output = tokio::time::timeout(SOON, output).await.unwrap().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), told)
    };
    let wallet = NwcWallet::start(&me.pair.payer, Preimages::Told).await.unwrap();
    let (code, told) = pay(&wallet, "/one/a").await;
    assert_eq!((code, &told["payment"]["charged"]), (Some(0), &json!(true)), "{told}");
    drop(wallet);
    let blind = NwcWallet::start(&me.pair.payer, Preimages::Withheld).await.unwrap();
    for _ in 0..2 {
        let (code, told) = pay(&blind, "/one/b").await;
        let error = json!([told["error"]["code"], told["error"]["charged"]]);
        assert_eq!((code, error), (Some(13), json!(["wallet_gave_no_preimage", true])), "{told}");
    }
    assert_eq!((me.payments().await, upstream.seen().len()), (2, 1));
}
