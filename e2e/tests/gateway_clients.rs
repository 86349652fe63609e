//! Other people's clients, and ours, pay through the gateway as its users run it.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::process::Output;

use farebox_e2e::{Account, Counter, Echo, Farebox, ForeignClient, Job, Outcome, Seen, books, http_client};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::process::Command;

const DOLLAR: u128 = 1_000_000;
const CENT: u128 = 10_000;
const QUESTION: &str = r#"{"question":"Was kostet das?","bytes":"äöü"}"#;
/// Node.js and Python starting all at once would keep two cores from everything else.
const CLIENTS_AT_ONCE: usize = 3;

#[tokio::test]
async fn every_official_client_pays_once_and_gets_what_it_paid_for() {
    let counter = Counter::open(&["--hardfork", "cancun", "--prune-history", "200"]).await.unwrap();
    let route = counter.route("GET,POST /v1/*", r#"price = "$0.01""#);
    let farebox = counter.serve(&route).await.unwrap();
    each_pays_once(&counter, farebox).await;
}

#[tokio::test]
async fn every_official_client_pays_where_transfers_are_offered_too() {
    let counter = Counter::open(&["--hardfork", "cancun", "--prune-history", "200"]).await.unwrap();
    let transfers = "public_url = \"$ORIGIN\"\ntransfer = {}\n[[rate]]\nsymbol = \"ETH\"\nfixed = \"2500\"\n";
    let chain = counter.chain(counter.anvil.url()).replace("[\"USDC\"]", "[\"USDC\", \"native\"]");
    let route = counter.route("GET,POST /v1/*", r#"price = "$0.01""#);
    let farebox = Farebox::start(counter.setup(&format!("{transfers}{chain}{route}")).unwrap()).await.unwrap();
    let problem: Value = http_client().unwrap().get(farebox.url("/v1/x")).send().await.unwrap().json().await.unwrap();
    assert_eq!(problem["transfer"]["options"].as_array().map(Vec::len), Some(2), "{problem}");
    each_pays_once(&counter, farebox).await;
}

async fn each_pays_once(counter: &Counter, farebox: Farebox) {
    let gets = ForeignClient::ALL.map(|client| (client, "GET"));
    let posts = [ForeignClient::X402Axios, ForeignClient::X402FetchV1, ForeignClient::PypiHttpx];
    let jobs: Vec<_> = gets.into_iter().chain(posts.map(|client| (client, "POST"))).collect();

    let mut payers = vec![];
    for (client, method) in &jobs {
        payers.push(counter.payer(&format!("{client:?} {method}"), DOLLAR).await.unwrap());
    }
    let calls = stream::iter(jobs.iter().zip(payers));
    let calls = calls.map(|((client, method), payer)| pay(&farebox, *client, method, payer));
    let calls: Vec<Call> = calls.buffer_unordered(CLIENTS_AT_ONCE).collect().await;
    let rows = books(farebox.setup()).await.unwrap();
    assert_eq!(rows.len(), jobs.len());
    assert_eq!(counter.echo.hits(), jobs.len(), "an unpaid request reached the upstream");
    for call in &calls {
        call.was_served();
        let row = rows.iter().find(|row| row["payer"] == json!(format!("eip155:84532:{}", call.payer.address())));
        call.was_charged_once(counter, row.unwrap()).await;
        call.was_told_upstream(&counter.echo, row.unwrap());
    }
    let sold = CENT * calls.len() as u128;
    assert_eq!(counter.usdc.balance_of(Counter::SELLER).await.unwrap(), sold);
    assert_eq!(counter.anvil.transaction_count(counter.relayer.address()).await.unwrap(), calls.len() as u64);
}

/// One client's call.
struct Call {
    name: String,
    method: &'static str,
    path: String,
    payer: Account,
    outcome: Outcome,
}

async fn pay(farebox: &Farebox, client: ForeignClient, method: &'static str, payer: Account) -> Call {
    let name = format!("{client:?} {method}");
    let path = format!("/v1/{client:?}?q={method}");
    let job = match method {
        "GET" => Job::get(farebox.url(&path), &payer),
        _ => Job::post(farebox.url(&path), QUESTION, &payer),
    };
    let outcome = client.pay(&job.header("x-trace", &name)).await.unwrap();
    Call { name, method, path, payer, outcome }
}

impl Call {
    /// 200, the upstream's own answer to this very request, and a receipt of success.
    fn was_served(&self) {
        let Self { name, outcome, .. } = self;
        assert_eq!(outcome.status, Some(200), "{name}: {outcome:?}");
        let echo: Value = serde_json::from_str(&outcome.body).unwrap();
        assert_eq!((&echo["method"], &echo["path"]), (&json!(self.method), &json!(self.path)), "{name}");
        assert_eq!(outcome.headers["cache-control"], "private", "{name}");
        assert_eq!(self.receipt()["success"], true, "{name}");
    }

    fn receipt(&self) -> &Value {
        self.outcome.payment_response.as_ref().unwrap_or_else(|| panic!("{} got no receipt", self.name))
    }

    /// The receipt, the chain and the books say the same.
    async fn was_charged_once(&self, counter: &Counter, row: &Value) {
        let Self { name, payer, .. } = self;
        let transfers = counter.usdc.transfers(payer.address(), Counter::SELLER).await.unwrap();
        assert_eq!(transfers.len(), 1, "{name}");
        let (transaction, units) = transfers[0];
        assert_eq!(units, CENT, "{name}");
        assert_eq!(counter.usdc.balance_of(payer.address()).await.unwrap(), DOLLAR - CENT, "{name}");
        assert_eq!(self.receipt()["transaction"], json!(transaction), "{name}");
        let told = ["transaction", "state", "delivery", "method", "resource", "amount", "units", "network", "runs"];
        let told: Vec<_> = told.map(|key| row[key].clone()).into();
        let due =
            json!([transaction, "settled", "delivered", self.method, self.path, "0.01", "10000", "eip155:84532", 1]);
        assert_eq!(Value::Array(told), due, "{name}");
        assert_eq!(row["id"], self.outcome.headers["farebox-payment-id"], "{name}");
    }

    /// Who paid and for which payment, the body, and no credential that could be spent or replayed.
    fn was_told_upstream(&self, echo: &Echo, row: &Value) {
        let seen = echo.seen();
        let seen: Vec<&Seen> = seen.iter().filter(|seen| seen.header("x-trace") == Some(&self.name)).collect();
        let [seen] = seen[..] else { panic!("{}: the upstream was called {} times", self.name, seen.len()) };
        assert_eq!(seen.header("farebox-payer"), row["payer"].as_str(), "{}", self.name);
        assert_eq!(seen.header("farebox-payment-id"), row["id"].as_str(), "{}", self.name);
        for secret in ["payment-signature", "x-payment"] {
            assert_eq!(seen.header(secret), None, "{}", self.name);
        }
        let body = if self.method == "POST" { QUESTION } else { "" };
        assert_eq!(seen.body, body, "{}", self.name);
    }
}

#[tokio::test]
async fn our_own_command_pays_each_time_it_is_asked_to() {
    let counter = Counter::open(&[]).await.unwrap();
    let farebox = counter.serve(&counter.route("GET,POST /v1/*", r#"price = "$0.01""#)).await.unwrap();
    let payer = counter.payer("command", DOLLAR).await.unwrap();
    let url = farebox.url("/v1/report");

    for bought in 1..=2 {
        let output = farebox_pay(&farebox, &payer, &["-d", QUESTION, &url]).await;
        let (out, told) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{told}");
        let echo: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&echo["method"], &echo["path"]), (&json!("POST"), &json!("/v1/report")));
        let transfers = counter.usdc.transfers(payer.address(), Counter::SELLER).await.unwrap();
        assert_eq!(transfers.len(), bought);
        assert!(told.starts_with("paid 0.01 USDC on eip155:84532"), "{told}");
        assert!(told.contains(&transfers[bought - 1].0.to_string()), "{told}");
    }
    assert!(counter.echo.seen().iter().all(|seen| seen.body == QUESTION));
    let rows = books(farebox.setup()).await.unwrap();
    let ends: Vec<_> = rows.iter().map(|row| (row["state"].as_str(), row["delivery"].as_str())).collect();
    assert_eq!(ends, [(Some("settled"), Some("delivered")); 2]);
    assert_ne!(rows[0]["transaction"], rows[1]["transaction"]);
}

#[tokio::test]
async fn our_own_command_signs_nothing_when_told_not_to_or_not_to_pay_so_much() {
    let counter = Counter::open(&[]).await.unwrap();
    let routes = counter.route("GET /cheap", r#"price = "$0.01""#) + &counter.route("GET /dear", r#"price = "$0.11""#);
    let farebox = counter.serve(&routes).await.unwrap();
    let payer = counter.payer("careful", DOLLAR).await.unwrap();
    let (cheap, dear) = (farebox.url("/cheap"), farebox.url("/dear"));

    let dry = farebox_pay(&farebox, &payer, &["--dry-run", &cheap]).await;
    let (bill, told) = texts(&dry);
    assert_eq!(dry.status.code(), Some(0), "{told}");
    assert!(bill.contains("0.01 USDC") && bill.contains("nothing was signed"), "{bill}");
    for too_much in [&["--max", "0.009999", &cheap][..], &["--dry-run", "--max", "0.009999", &cheap], &[&dear]] {
        let refused = farebox_pay(&farebox, &payer, too_much).await;
        assert_eq!(refused.status.code(), Some(4), "{too_much:?}: {:?}", texts(&refused));
    }
    assert_eq!((counter.echo.hits(), counter.paid_by(payer.address()).await.unwrap()), (0, vec![]));
    assert_eq!(books(farebox.setup()).await.unwrap(), Vec::<Value>::new());

    let allowed = farebox_pay(&farebox, &payer, &["--max", "0.11", "--json", &dear]).await;
    let (object, told) = texts(&allowed);
    assert_eq!(allowed.status.code(), Some(0), "{object} {told}");
    assert_eq!(counter.paid_by(payer.address()).await.unwrap(), [11 * CENT]);
}

async fn farebox_pay(farebox: &Farebox, payer: &Account, arguments: &[&str]) -> Output {
    let mut command = Command::from(farebox.setup().command(&["pay"]).unwrap());
    let journal = farebox.setup().dir().join("journal");
    command.args(arguments).env("FAREBOX_WALLET_KEY", payer.key()).env("FAREBOX_JOURNAL", journal);
    command.kill_on_drop(true).output().await.unwrap()
}

/// What was printed and what was told.
fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}
