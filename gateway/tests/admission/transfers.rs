//! The way of a transfer that is claimed by its hash.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use farebox_core::{
    AuditOutcome, Charged, Delivery, InstanceId, PaymentState, Refusal, SettleWhen,
    ports::{Rejected, Timely, VerifyError},
};
use farebox_gateway::GatewayConfig;
use farebox_ledger::{SqliteLedger, SqliteOptions};
use farebox_testkit::{ManualClock, ScriptedTransfers, TestPayer, TransferCall, Verdict};
use farebox_wire::transfer::{Quote, Quoter, TransferOption, encode_code};
use http::HeaderMap;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    shop::{Got, LOOKUPS_BURST, NOW, ORIGIN, Parts, Shop, claim, code, counting, eventually, saying, send},
    support::{client, serve_with},
};

const PAYER: TestPayer = TestPayer(1);

async fn shop() -> (Shop, Arc<std::sync::atomic::AtomicUsize>) {
    let (url, calls) = counting().await;
    (Shop::open(SettleWhen::BeforeResponse, url).await, calls)
}

fn verifications(shop: &Shop) -> usize {
    shop.transfers.calls().iter().filter(|call| matches!(call, TransferCall::Verify(_))).count()
}

fn rejected(code: &'static str) -> Rejected {
    Rejected { code: code.into(), detail: format!("scripted: {code}") }
}

#[tokio::test]
async fn a_bill_by_transfer_is_sealed_for_this_very_request() {
    let (shop, _) = shop().await;
    let bill = shop.bill("/paid/x?q=1").await;
    assert_eq!((bill.resource.as_str(), bill.method.as_str()), ("https://shop.example/paid/x?q=1", "GET"));
    let keys = vec![farebox_core::ports::QuoteKey { id: 1, secret: [7; 32], since: NOW }];
    let quote = Quoter::new(keys).unwrap().open(&bill.quote).unwrap();
    assert_eq!(quote.target, Quote::target(&farebox_core::RouteId::new("paid"), "GET", &bill.resource));
    assert_eq!(quote.options, bill.options.iter().map(TransferOption::quoted).collect::<Vec<_>>());
    assert_eq!((quote.issued_at, quote.pay_by, quote.claim_by), (NOW, bill.pay_by, bill.claim_by));
    // The offer is for 60 s, which is less than the 10 minutes that the gateway would give.
    assert_eq!(bill.pay_by, NOW.plus(Duration::from_secs(60)));
    assert_eq!(bill.claim_by, NOW.plus(Duration::from_secs(3600)));
    assert_ne!(shop.bill("/paid/x?q=1").await.quote, bill.quote, "no two bills are alike");
    let page = [("accept", "text/html"), ("user-agent", "Mozilla/5.0")];
    let page = page.into_iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
    let page = shop.send(Method::GET, "/paid/x", page).await;
    assert!(page.body.contains("0.01 USDC (10000 smallest units)"), "{}", page.body);
}

#[tokio::test]
async fn a_transfer_is_served_once_whatever_the_route_settles_by() {
    for settle in [SettleWhen::BeforeResponse, SettleWhen::BeforeUpstream] {
        let (url, calls) = counting().await;
        let shop = Shop::open(settle, url).await;
        let claim = shop.pay("/paid/x", PAYER, &[10_000]).await;
        let got = shop.send(Method::GET, "/paid/x", claim.clone()).await;
        assert_eq!((got.status, got.body.as_str()), (200, "ok 1"), "{got:?}");
        let told = got.settlement();
        assert!(told.success);
        assert_eq!((told.amount, told.log_index, told.credit), (Some(10_000), Some(0), None));
        assert_eq!(told.asset.as_deref(), Some("0x5c5c5C5c5C5C5C5c5c5C5c5c5C5C5c5C5C5C5c5C"));
        assert_eq!(shop.state(), (PaymentState::Settled, Delivery::Delivered));
        let again = shop.send(Method::GET, "/paid/x", claim).await;
        assert_eq!((again.body, again.headers["idempotent-replayed"].to_str().unwrap()), (got.body, "true"));
        assert_eq!((calls.load(Ordering::SeqCst), verifications(&shop)), (1, 1));
        assert!(!shop.transfers.calls().iter().any(|call| matches!(call, TransferCall::Settle(_))));
    }
}

#[tokio::test]
async fn the_payer_is_the_caller_wherever_from_and_however_often_signed() {
    let (shop, calls) = shop().await;
    let bill = shop.bill("/paid/x").await;
    let hash = shop.transfers.transfer(PAYER, &[10_000]);
    let mut from_home = claim(PAYER, &bill, hash, NOW);
    from_home.insert("x-forwarded-for", "192.0.2.1".parse().unwrap());
    from_home.insert("idempotency-key", "mine".parse().unwrap());
    assert_eq!(shop.send(Method::GET, "/paid/x", from_home).await.body, "ok 1");
    // Signed anew, from elsewhere.
    let mut signed_again = code(PAYER, &bill, hash, NOW);
    signed_again.code.expires_at += 1;
    let from_elsewhere: HeaderMap = encode_code(&signed_again).into_iter().collect();
    assert_eq!(shop.send(Method::GET, "/paid/x", from_elsewhere).await.body, "ok 1");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn whoever_is_not_proven_to_be_the_payer_learns_nothing_of_the_payment() {
    let (shop, calls) = shop().await;
    let claim = shop.pay("/paid/x", PAYER, &[10_000]).await;
    assert_eq!(shop.send(Method::GET, "/paid/x", claim.clone()).await.body, "ok 1");
    let operations = shop.ledger.operations();
    shop.transfers.fail_next_authenticate(VerifyError::Rejected(rejected("bad_signature")));
    let stranger = shop.send(Method::GET, "/paid/x", claim.clone()).await;
    stranger.check(402, "bad_signature", "never", "unknown");
    assert!(!stranger.has_bill() && stranger.body.contains("do not pay again"), "{stranger:?}");
    assert!(!stranger.headers.contains_key("payment-response"));
    shop.transfers.fail_next_authenticate(VerifyError::Unavailable { source: "no node".into() });
    shop.send(Method::GET, "/paid/x", claim).await.check(503, "payment_unverifiable", "same_proof", "unknown");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    // The reconciler asks too; but no credential was looked up.
    assert!(shop.ledger.operations() - operations < 100);
    assert_eq!(shop.ledger.payments().len(), 1);
}

#[tokio::test]
async fn a_stored_result_wins_over_every_end_of_time() {
    let (shop, calls) = shop().await;
    let claim = shop.pay("/paid/x", PAYER, &[10_000]).await;
    let first = shop.send(Method::GET, "/paid/x", claim.clone()).await;
    for late in [Timely::No(rejected("payment_code_expired")), Timely::ForCredit(rejected("quote_expired"))] {
        shop.transfers.time_next(late);
        let again = shop.send(Method::GET, "/paid/x", claim.clone()).await;
        assert_eq!((again.status, &again.body), (200, &first.body));
    }
    assert_eq!((calls.load(Ordering::SeqCst), verifications(&shop)), (1, 1));
}

#[tokio::test]
async fn a_code_that_has_ended_is_no_reason_to_pay_again() {
    let (shop, calls) = shop().await;
    let claim = shop.pay("/paid/x", PAYER, &[10_000]).await;
    shop.transfers.time_next(Timely::No(rejected("payment_code_expired")));
    let got = shop.send(Method::GET, "/paid/x", claim).await;
    got.check(402, "payment_code_expired", "never", "unknown");
    assert!(!got.has_bill());
    assert_eq!((calls.load(Ordering::SeqCst), verifications(&shop)), (0, 0), "refused before any look-up");
}

#[tokio::test]
async fn what_is_not_there_yet_is_asked_for_again_and_never_billed() {
    let (shop, _) = shop().await;
    let claim = shop.pay("/paid/x", PAYER, &[10_000]).await;
    shop.transfers.hold_next_verify(1, 3);
    let pending = shop.send(Method::GET, "/paid/x", claim.clone()).await;
    pending.check(402, "payment_pending", "same_proof", "unknown");
    assert_eq!((&pending.problem()["have"], &pending.problem()["need"]), (&json!(1), &json!(3)));
    shop.transfers.lose_chain_on_next_verify();
    let unknown = shop.send(Method::GET, "/paid/x", claim.clone()).await;
    unknown.check(503, "payment_unverifiable", "same_proof", "unknown");
    let nowhere = crate::shop::claim(PAYER, &shop.bill("/paid/x").await, [0x77; 32], NOW);
    let not_found = shop.send(Method::GET, "/paid/x", nowhere).await;
    not_found.check(402, "payment_not_found", "same_proof", "unknown");
    for got in [pending, unknown, not_found] {
        assert!(!got.has_bill() && got.headers.contains_key("retry-after"), "{got:?}");
    }
    assert_eq!(shop.send(Method::GET, "/paid/x", claim).await.body, "ok 1");
}

#[tokio::test]
async fn each_transfer_of_one_transaction_is_good_for_one_bill() {
    let (shop, calls) = shop().await;
    let hash = shop.transfers.transfer(PAYER, &[10_000, 9_999, 12_000]);
    let mut positions = vec![];
    for n in 1..=2 {
        let claim = claim(PAYER, &shop.bill("/paid/x").await, hash, NOW);
        let got = shop.send(Method::GET, "/paid/x", claim).await;
        assert_eq!(got.body, format!("ok {n}"), "{got:?}");
        positions.push((got.settlement().log_index, got.settlement().credit));
    }
    assert_eq!(positions, [(Some(0), None), (Some(2), Some(2_000))]);
    let third = claim(PAYER, &shop.bill("/paid/x").await, hash, NOW);
    let got = shop.send(Method::GET, "/paid/x", third).await;
    got.check(409, "already_claimed", "never", "true");
    assert!(!got.has_bill());
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_transaction_of_two_hundred_transfers_is_claimed_once_for_each() {
    let (shop, calls) = shop().await;
    let hash = shop.transfers.transfer(PAYER, &[10_000; 200]);
    for n in 1..=201 {
        let claim = claim(PAYER, &shop.bill("/paid/x").await, hash, NOW);
        let got = shop.send(Method::GET, "/paid/x", claim).await;
        assert_eq!(got.status, if n <= 200 { 200 } else { 409 }, "{n}: {got:?}");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 200);
}

#[tokio::test]
async fn money_that_came_too_late_is_credit_and_is_told() {
    let (shop, calls) = shop().await;
    let in_time = shop.pay("/paid/x", PAYER, &[10_700]).await;
    let served = shop.send(Method::GET, "/paid/x", in_time).await;
    assert_eq!(served.settlement().credit, Some(700), "what is over the price is credit");
    let late = shop.pay("/paid/x", PAYER, &[300]).await;
    shop.transfers.verify_next(Ok(Verdict::ForCredit("paid_too_late")));
    let expired = shop.pay("/paid/x", PAYER, &[4]).await;
    let mut answers = vec![];
    for (claim, code, amount, total) in
        [(late, "paid_too_late", "300", "1000"), (expired, "quote_expired", "4", "1004")]
    {
        if code == "quote_expired" {
            shop.transfers.time_next(Timely::ForCredit(rejected(code)));
        }
        let got = shop.send(Method::GET, "/paid/x", claim.clone()).await;
        got.check(402, code, "after_payment", "true");
        assert!(got.has_bill());
        let credit = &got.problem()["credit"];
        let expected = json!({
            "network": "eip155:84532", "asset": "0x5c5c5C5c5C5C5C5c5c5C5c5c5C5C5c5C5C5C5c5C", "symbol": "USDC",
            "amount": amount, "total": total,
        });
        assert_eq!(credit, &expected);
        let told = got.settlement();
        assert_eq!((told.success, told.error_reason.as_deref()), (false, Some(code)));
        assert_eq!((told.amount, told.credit), (told.credit, Some(amount.parse().unwrap())));
        assert_eq!(shop.state(), (PaymentState::Settled, Delivery::Credited));
        answers.push((claim, credit.clone()));
    }
    // Asked for again it is the same credit, not another.
    for (claim, first) in answers {
        let again = shop.send(Method::GET, "/paid/x", claim).await;
        assert_eq!((again.status, &again.problem()["credit"]["amount"]), (402, &first["amount"]));
        assert_eq!(again.problem()["credit"]["total"], "1004");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_claim_that_cannot_be_read_costs_nothing_and_asks_for_no_money() {
    let (shop, calls) = shop().await;
    let claim = shop.pay("/paid/x", PAYER, &[10_000]).await;
    let mut without = claim.clone();
    without.remove("x-payment-code");
    let mut padded = claim.clone();
    padded.insert("x-payment-code", "e30=".parse().unwrap());
    let mut both = claim.clone();
    both.insert("payment-signature", "e30=".parse().unwrap());
    for (headers, code) in
        [(without, "malformed_payment_code"), (padded, "malformed_payment_code"), (both, "credential_repeated")]
    {
        let got = shop.send(Method::GET, "/paid/x", headers).await;
        got.check(400, code, "never", "unknown");
        assert!(!got.has_bill() && got.headers.contains_key("farebox-request-id"));
    }
    assert_eq!((calls.load(Ordering::SeqCst), shop.transfers.calls().len()), (0, 0));
}

#[tokio::test]
async fn answers_of_the_rails_own_go_out_as_they_are() {
    let (shop, _) = shop().await;
    let claim = shop.pay("/paid/x", PAYER, &[9_999]).await;
    let underpaid = Refusal { charged: Charged::Yes, ..Refusal::payment("underpaid", "too little") };
    let underpaid = underpaid.with_fact("required", "10000").with_fact("received", "9999");
    shop.transfers.verify_next(Err(VerifyError::Refused(Box::new(underpaid))));
    let got = shop.send(Method::GET, "/paid/x", claim.clone()).await;
    got.check(402, "underpaid", "after_payment", "true");
    assert_eq!((&got.problem()["received"], got.has_bill()), (&json!("9999"), true));
    let mismatch = Refusal { charged: Charged::Unknown, ..Refusal::new(400, "transaction_mismatch", "two hashes") };
    shop.transfers.fail_next_authenticate(VerifyError::Refused(Box::new(mismatch)));
    let got = shop.send(Method::GET, "/paid/x", claim).await;
    got.check(400, "transaction_mismatch", "never", "unknown");
    assert!(!got.has_bill());
}

#[tokio::test]
async fn a_callers_look_ups_come_to_an_end() {
    let (url, _) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let bill = shop.bill("/paid/x").await;
    let mut last = None;
    for n in 0..LOOKUPS_BURST + 200 {
        let hash = farebox_testkit::test_hash(n.into());
        let got = shop.send(Method::GET, "/paid/x", claim(PAYER, &bill, hash, NOW)).await;
        if got.status != 402 {
            last = Some(got);
            break;
        }
    }
    let got = last.expect("so many look-ups at once were let through");
    got.check(429, "too_many_claims", "same_proof", "unknown");
    assert!(!got.has_bill() && got.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_marked_payer_waits_for_the_deepest_block() {
    let (shop, _) = shop().await;
    let first = shop.pay("/paid/x", PAYER, &[10_000]).await;
    assert_eq!(shop.send(Method::GET, "/paid/x", first).await.status, 200);
    assert_eq!(shop.last().finality, farebox_core::Finality::Blocks(1));
    let undone = shop.last();
    shop.transfers.reorganise(undone.transaction.as_ref().unwrap());
    eventually(|| shop.ledger.payments()[0].reversed).await;
    // Marked in the books, and a round later here.
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Payments are told apart by when they were claimed.
    shop.clock.advance(Duration::from_secs(1));
    let second = shop.pay("/paid/x", PAYER, &[10_000]).await;
    assert_eq!(shop.send(Method::GET, "/paid/x", second).await.status, 200);
    assert_eq!(shop.last().finality, farebox_core::Finality::Finalized);
    shop.clock.advance(Duration::from_secs(1));
    let other = shop.pay("/paid/x", TestPayer(2), &[10_000]).await;
    assert_eq!(shop.send(Method::GET, "/paid/x", other).await.status, 200);
    assert_eq!(shop.last().finality, farebox_core::Finality::Blocks(1));
    // The next process knows it from its first request on.
    let shop = shop.restart("2").await;
    shop.clock.advance(Duration::from_secs(1));
    let third = shop.pay("/paid/x", PAYER, &[10_000]).await;
    assert_eq!(shop.send(Method::GET, "/paid/x", third).await.status, 200);
    assert_eq!(shop.last().finality, farebox_core::Finality::Finalized);
}

#[tokio::test]
async fn an_upstream_that_fails_leaves_a_transfer_to_redeem_and_a_4xx_is_its_answer() {
    let (url, _) = saying("HTTP/1.1 500 no\r\ncontent-length: 4\r\n\r\noops").await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let claim = shop.pay("/paid/x", PAYER, &[10_000]).await;
    let got = shop.send(Method::GET, "/paid/x", claim.clone()).await;
    got.check(502, "upstream_error", "same_proof", "true");
    let (missing, _) = saying("HTTP/1.1 404 no\r\ncontent-length: 4\r\n\r\nnone").await;
    let shop = Shop { upstream: missing, ..shop }.restart("2").await;
    for _ in 0..2 {
        let got = shop.send(Method::GET, "/paid/x", claim.clone()).await;
        assert_eq!((got.status, got.body.as_str(), got.settlement().success), (404, "none", true));
    }
    assert_eq!(shop.state(), (PaymentState::Settled, Delivery::Delivered));
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_not_told_as_nothing_charged_once_the_money_has_come() {
    let shop = Shop::open(SettleWhen::BeforeResponse, "http://127.0.0.1:9".into()).await;
    let claim = shop.pay("/paid/x", PAYER, &[10_000]).await;
    let got = shop.send(Method::GET, "/paid/x", claim).await;
    got.check(502, "upstream_unreachable", "same_proof", "true");
    assert!(!got.body.contains("nothing was charged") && got.body.contains("the payment stands"), "{got:?}");
}

#[tokio::test]
async fn a_request_with_a_credential_has_a_name_everywhere() {
    let seen = Arc::new(parking_lot::Mutex::new(None));
    let note = seen.clone();
    let address = crate::support::upstream(move |request| {
        *note.lock() = request.headers().get("farebox-request-id").cloned();
        assert!(!request.headers().contains_key("x-payment-code") && !request.headers().contains_key("x-payment-hash"));
        async {
            let mut answer = crate::support::text("ok");
            answer.headers_mut().insert("farebox-request-id", "req_forged".parse().unwrap());
            answer
        }
    })
    .await;
    let shop = Shop::open(SettleWhen::BeforeResponse, format!("http://{address}")).await;
    let claim = shop.pay("/paid/x", PAYER, &[10_000]).await;
    let got = shop.send(Method::GET, "/paid/x", claim.clone()).await;
    let name = &got.headers["farebox-request-id"];
    assert!(name.to_str().unwrap().starts_with("req_") && name.len() == 30, "{name:?}");
    assert_eq!(seen.lock().as_ref(), Some(name));
    assert_eq!(shop.last().request.as_str(), name.to_str().unwrap());
    let again = shop.send(Method::GET, "/paid/x", claim).await;
    assert_ne!(&again.headers["farebox-request-id"], name, "a repeat is another request");
    assert!(!shop.get("/paid/x", None).await.headers.contains_key("farebox-request-id"));
    assert!(got.headers["access-control-expose-headers"].to_str().unwrap().contains("farebox-request-id"));
    assert!(got.headers["vary"].to_str().unwrap().contains("x-payment-code"));
}

#[tokio::test]
async fn refusals_of_proven_payers_are_in_the_audit_log() {
    let (shop, _) = shop().await;
    let claim = shop.pay("/paid/x", PAYER, &[9_999]).await;
    for _ in 0..3 {
        assert_eq!(shop.send(Method::GET, "/paid/x", claim.clone()).await.status, 402);
    }
    // Nobody knows who that is.
    shop.transfers.fail_next_authenticate(VerifyError::Rejected(rejected("bad_signature")));
    shop.send(Method::GET, "/paid/x", claim.clone()).await;
    let x402 = shop.sign("/paid/x", 1).await;
    shop.rail.reject_next_verify("insufficient_funds");
    assert_eq!(shop.get("/paid/x", Some(&x402)).await.status, 402);
    let ledger = shop.ledger.clone();
    shop.gateway.ended().await;
    let lines: Vec<Value> = ledger.audit_log().iter().map(|line| serde_json::from_str(&line.text).unwrap()).collect();
    let rejected = serde_json::to_value(AuditOutcome::Rejected).unwrap();
    let of = |reason: &str| lines.iter().filter(|line| line["reason"] == reason).collect::<Vec<_>>();
    assert!(lines.iter().all(|line| line["outcome"] == rejected), "{lines:#?}");
    let underpaid = of("underpaid");
    assert_eq!(underpaid.len(), 2, "{lines:#?}");
    assert_eq!((&underpaid[0]["count"], &underpaid[1]["count"]), (&Value::Null, &json!(2)));
    assert!(underpaid[0]["transaction"].as_str().unwrap().starts_with("0xdddd"));
    assert_eq!((of("insufficient_funds").len(), of("bad_signature").len()), (1, 0));
}

#[tokio::test]
async fn transfers_need_keys_times_and_a_public_url() {
    let (url, _) = counting().await;
    let ledger = Arc::new(farebox_testkit::MemoryLedger::new(InstanceId::new("1"), Duration::ZERO));
    let parts = Parts {
        rails: vec![Arc::new(ScriptedTransfers::new())],
        ledger,
        clock: Arc::new(ManualClock::at(NOW)),
        instance: InstanceId::new("1"),
        upstream: url,
        settle: SettleWhen::BeforeResponse,
    };
    let refused = async |config: GatewayConfig, ports| {
        let error = farebox_gateway::Gateway::bind(config, ports).await.unwrap_err();
        assert_eq!(error.code(), "transfers_incomplete");
        error.to_string()
    };
    let without_keys = farebox_gateway::Ports { quoter: None, ..parts.ports() };
    assert!(refused(parts.config(), without_keys).await.contains("keys"));
    assert!(refused(GatewayConfig { transfer: None, ..parts.config() }, parts.ports()).await.contains("times"));
    assert!(refused(GatewayConfig { public_url: None, ..parts.config() }, parts.ports()).await.contains("public URL"));
    // Nothing but transfers: no x402 bill at all.
    let gateway = serve_with(parts.config(), parts.ports()).await;
    let got = send(&client(), gateway.url("/paid/x"), Method::GET, HeaderMap::new()).await;
    assert_eq!((got.status, got.headers.contains_key("payment-required")), (402, false));
    assert!(got.problem().get("accepts").is_none() && got.problem()["transfer"]["quote"].is_string());
    let x402 = [("payment-signature".parse().unwrap(), "e30=".parse().unwrap())].into_iter().collect();
    assert_eq!(send(&client(), gateway.url("/paid/x"), Method::GET, x402).await.status, 400);
}

/// The gateway on the real books.
fn on_sqlite(ledger: Arc<SqliteLedger>, transfers: &ScriptedTransfers, upstream: &str, instance: &str) -> Parts {
    Parts {
        rails: vec![Arc::new(transfers.clone())],
        ledger,
        clock: Arc::new(ManualClock::at(NOW)),
        instance: InstanceId::new(instance),
        upstream: upstream.to_owned(),
        settle: SettleWhen::BeforeResponse,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_identical_claims_at_once_on_two_gateways_are_one_delivery() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        SqliteOptions { instance: InstanceId::new("1"), answers_kept_for: Duration::from_secs(600), audit_file: None };
    let ledger = Arc::new(SqliteLedger::open(&folder.path().join("books.db"), options, NOW).unwrap());
    let (url, calls) = counting().await;
    let transfers = ScriptedTransfers::new();
    let (one, two) = (
        on_sqlite(ledger.clone(), &transfers, &url, "1").serve().await,
        on_sqlite(ledger.clone(), &transfers, &url, "1").serve().await,
    );
    let client = client();
    let unpaid = send(&client, one.url("/paid/x"), Method::GET, HeaderMap::new()).await;
    let bill = farebox_wire::transfer::decode_bill(unpaid.body.as_bytes()).unwrap().unwrap().bill;
    assert_eq!(bill.resource, format!("{ORIGIN}/paid/x"));
    let hash = transfers.transfer(PAYER, &[10_000, 10_000]);
    let claim = claim(PAYER, &bill, hash, NOW);
    let all = (0..100).map(|n| {
        let url = if n % 2 == 0 { one.url("/paid/x") } else { two.url("/paid/x") };
        send(&client, url, Method::GET, claim.clone())
    });
    for got in futures_util::future::join_all(all).await {
        assert_eq!((got.status, got.body.as_str()), (200, "ok 1"), "{got:?}");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let looked = transfers.calls().iter().filter(|call| matches!(call, TransferCall::Verify(_))).count();
    assert!(looked <= 2, "one look-up a gateway, not {looked}");
    // The other half of the transaction is still good for another bill.
    let unpaid = send(&client, one.url("/paid/x"), Method::GET, HeaderMap::new()).await;
    let bill = farebox_wire::transfer::decode_bill(unpaid.body.as_bytes()).unwrap().unwrap().bill;
    let second = send(&client, two.url("/paid/x"), Method::GET, crate::shop::claim(PAYER, &bill, hash, NOW)).await;
    assert_eq!(second.body, "ok 2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_bills_that_race_for_one_transfer_get_one_answer() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let twin = shop.twin("2").await;
    let hash = shop.transfers.transfer(PAYER, &[10_000]);
    let mut claims = vec![];
    for _ in 0..20 {
        claims.push(claim(PAYER, &shop.bill("/paid/x").await, hash, NOW));
    }
    let all = claims.into_iter().enumerate().map(|(n, claim)| {
        let shop = if n % 2 == 0 { &shop } else { &twin };
        shop.send(Method::GET, "/paid/x", claim)
    });
    let got: Vec<Got> = futures_util::future::join_all(all).await;
    assert_eq!(got.iter().filter(|got| got.status == 200).count(), 1);
    for refused in got.iter().filter(|got| got.status != 200) {
        refused.check(409, "already_claimed", "never", "true");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}
