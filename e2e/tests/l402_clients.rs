//! Clients of L402 that others wrote buy from our gateway, with real payments from node to node.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use farebox_e2e::{
    Counter, ForeignClient, Job, books,
    lightning::{Bought, Buyer, GrpcBuyer, GrpcService, InvoiceState, LightningPair, Stall, Wanted, lnd_node, table},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const DOLLAR: u128 = 1_000_000;
const QUESTION: &str = r#"{"question":"Was kostet das?","bytes":"äöü"}"#;
const TWO_CALLS: &str =
    "[[route]]\nmatch = \"GET,POST /v1/*\"\nupstream = \"$UPSTREAM\"\nprice = \"10 sat\"\ncalls = 2\n";
const TWO_ROUTES: &str = "[[route]]\nmatch = \"GET /api/v1/cheap\"\nupstream = \"$UPSTREAM\"\nprice = \"1 sat\"\n\
    [[route]]\nmatch = \"GET /api/v1/dear\"\nupstream = \"$UPSTREAM\"\nprice = \"2 sat\"\n";

#[tokio::test]
async fn every_client_buys_two_calls_with_one_invoice_and_pays_again_for_the_third() {
    let stall = Stall::open("", TWO_CALLS).await.unwrap();
    let mut invoices = 0;
    for buyer in Buyer::ALL {
        let url = stall.farebox.url(&format!("/v1/{buyer:?}?q=1"));
        let bought =
            buyer.buy(&stall.pair.payer, &[Wanted::get(&url), Wanted::get(&url), Wanted::get(&url)]).await.unwrap();
        // Alby's hands credentials to its caller, and never pays for a request that it was given some for.
        let (third, paid) = if keeps_tokens(buyer) { (200, 2) } else { (402, 1) };
        assert_eq!(bought.statuses(), [Some(200), Some(200), Some(third)], "{buyer:?}: {bought:?}");
        assert_eq!(bought.paid.len(), paid, "{buyer:?}: {bought:?}");
        was_served(&bought, buyer, "GET");
        invoices += paid;
    }
    accounts_agree(&stall, invoices, Buyer::ALL.len() * 2 + 3).await;
}

#[tokio::test]
async fn every_client_buys_a_post_where_the_node_is_asked_for_each_token() {
    let stall = Stall::open("strict = true", TWO_CALLS).await.unwrap();
    for buyer in Buyer::ALL {
        let url = stall.farebox.url(&format!("/v1/{buyer:?}"));
        let bought =
            buyer.buy(&stall.pair.payer, &[Wanted::post(&url, QUESTION), Wanted::post(&url, QUESTION)]).await.unwrap();
        assert_eq!((bought.statuses(), bought.paid.len()), (vec![Some(200); 2], 1), "{buyer:?}: {bought:?}");
        was_served(&bought, buyer, "POST");
    }
    assert!(stall.echo.seen().iter().all(|seen| seen.body == QUESTION), "a body was changed");
    accounts_agree(&stall, Buyer::ALL.len(), Buyer::ALL.len() * 2).await;
}

#[tokio::test]
async fn a_client_that_sends_its_token_to_another_route_is_billed_there_and_not_stuck() {
    let stall = Stall::open("", TWO_ROUTES).await.unwrap();
    // It keeps one token for all paths that begin alike.
    let wanted = ["/api/v1/cheap", "/api/v1/dear", "/api/v1/cheap"].map(|path| Wanted::get(stall.farebox.url(path)));
    let bought = Buyer::L402Requests.buy(&stall.pair.payer, &wanted).await.unwrap();
    assert_eq!((bought.statuses(), bought.paid.len()), (vec![Some(200); 3], 3), "{bought:?}");
    accounts_agree(&stall, 3, 3).await;
}

#[tokio::test]
async fn while_the_node_is_down_nobody_pays_and_once_it_is_back_they_do() {
    let mut stall = Stall::open("", TWO_CALLS).await.unwrap();
    let url = stall.farebox.url("/v1/report");
    stall.pair.seller.kill_9().unwrap();
    stall.wait_for("/v1/report", 503, SOON).await.unwrap();
    for buyer in Buyer::ALL {
        let bought = buyer.buy(&stall.pair.payer, &[Wanted::get(&url)]).await.unwrap();
        assert_eq!((bought.statuses(), bought.paid.len()), (vec![Some(503)], 0), "{buyer:?}: {bought:?}");
    }
    stall.pair.restart_seller().await.unwrap();
    stall.wait_for("/v1/report", 402, SOON).await.unwrap();
    let bought = Buyer::AlbyFetch402.buy(&stall.pair.payer, &[Wanted::get(&url)]).await.unwrap();
    assert_eq!((bought.statuses(), bought.paid.len()), (vec![Some(200)], 1), "{bought:?}");
    accounts_agree(&stall, 1, 1).await;
}

#[tokio::test]
async fn apertures_own_client_buys_calls_over_grpc_and_pays_once() {
    let service = GrpcService::start().await.unwrap();
    let routes = format!(
        "[upstream]\nhttp2 = true\n[[route]]\nmatch = \"POST /grpc.health.v1.Health/*\"\nupstream = \"{}\"\nprice = \"10 sat\"\n\
         calls = 5\n",
        service.url()
    );
    let stall = Stall::open("", &routes).await.unwrap();
    let buyer = GrpcBuyer::new().unwrap();
    for _ in 0..2 {
        let bought = buyer.buy(&stall.pair.payer, &stall.farebox.url(""), 2).await.unwrap();
        assert_eq!(bought.error, "", "{bought:?}");
        assert_eq!(bought.answers, Some(vec!["SERVING".to_owned(); 2]));
    }
    assert_eq!(service.calls(), [json!([]), json!([]), json!([]), json!([])]);
    accounts_agree(&stall, 1, 0).await;
}

#[tokio::test]
async fn one_bill_has_every_rail_and_each_client_takes_its_own() {
    let pair = LightningPair::start().await.unwrap();
    let counter = Counter::open(&["--hardfork", "cancun", "--prune-history", "200"]).await.unwrap();
    let rates = "[[rate]]\nsymbol = \"BTC\"\nfixed = \"50000\"\n[[rate]]\nsymbol = \"ETH\"\nfixed = \"2500\"\n";
    let config = format!(
        "public_url = \"$ORIGIN\"\ntransfer = {{}}\n{}{rates}{}{}",
        table(&lnd_node(&pair.seller)),
        counter.chain(counter.anvil.url()),
        counter.route("GET /v1/*", r#"price = "$0.01""#)
    );
    let farebox = farebox_e2e::Farebox::start(counter.setup(&config).unwrap()).await.unwrap();
    let url = farebox.url("/v1/report");

    let lightning = [Buyer::AlbyFetch402, Buyer::L402Kit, Buyer::Pyl402];
    for buyer in lightning {
        let bought = buyer.buy(&pair.payer, &[Wanted::get(&url)]).await.unwrap();
        assert_eq!((bought.statuses(), bought.paid.len()), (vec![Some(200)], 1), "{buyer:?}: {bought:?}");
        let invoice = pair.payer.decode(&bought.paid[0]).await.unwrap();
        // A cent where a bitcoin is 50,000 dollars.
        assert_eq!(invoice.amount_msat, 20_000, "{buyer:?}");
    }
    let stablecoin = [ForeignClient::X402Fetch, ForeignClient::PypiHttpx];
    for client in stablecoin {
        let payer = counter.payer(&format!("{client:?}"), DOLLAR).await.unwrap();
        let outcome = client.pay(&Job::get(&url, &payer)).await.unwrap();
        assert_eq!(outcome.status, Some(200), "{client:?}: {outcome:?}");
    }
    let rows = books(farebox.setup()).await.unwrap();
    let of = |rail: &str| rows.iter().filter(|row| row["rail"] == rail).count();
    assert_eq!((of("l402"), of("x402")), (lightning.len(), stablecoin.len()), "{rows:?}");
}

/// Whether the client keeps tokens by itself.
fn keeps_tokens(buyer: Buyer) -> bool {
    !matches!(buyer, Buyer::AlbyFetch402 | Buyer::AlbyFetchWithL402)
}

/// Each good answer is the upstream's to this client's own request.
fn was_served(bought: &Bought, buyer: Buyer, method: &str) {
    for answer in bought.answers.iter().filter(|answer| answer.status == Some(200)) {
        let echo: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(echo["method"], method, "{buyer:?}");
        assert!(echo["path"].as_str().unwrap().starts_with(&format!("/v1/{buyer:?}")), "{buyer:?}: {echo}");
    }
}

/// The seller's node was paid so many invoices, the books have as many payments, each settled, and the upstream was called so often and
/// never with anything that could be spent.
async fn accounts_agree(stall: &Stall, invoices: usize, calls: usize) {
    let rows = books(stall.farebox.setup()).await.unwrap();
    assert_eq!(rows.len(), invoices, "{rows:?}");
    for row in &rows {
        assert_eq!((row["rail"].as_str(), row["state"].as_str()), (Some("l402"), Some("settled")), "{row}");
        let hash = row["transaction"].as_str().unwrap().trim_start_matches("0x");
        assert_eq!(stall.pair.seller.invoice_state(hash).await.unwrap(), InvoiceState::Settled, "{row}");
    }
    assert_eq!(stall.echo.hits(), calls);
    for seen in stall.echo.seen() {
        for name in ["authorization", "macaroon", "grpc-metadata-macaroon"] {
            assert_eq!(seen.header(name), None, "the upstream was shown {name}");
        }
    }
}
