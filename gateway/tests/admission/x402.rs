//! The way of an x402 payment.

use std::{sync::atomic::Ordering, time::Duration};

use farebox_core::{Delivery, PaymentState, SettleWhen};
use farebox_testkit::SettleWith;
use reqwest::Method;

use crate::{
    shop::{ORIGIN, Shop, counting},
    support::{patiently, text, upstream},
};

#[tokio::test]
async fn an_unpaid_request_gets_a_bill_and_never_reaches_the_upstream() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    for method in [Method::GET, Method::POST, Method::HEAD, Method::DELETE] {
        let got = shop.send(method.clone(), "/paid/x?q=1", http::HeaderMap::new()).await;
        assert_eq!((got.status, got.has_bill()), (402, true), "{method}");
        assert_eq!(got.headers["cache-control"], "no-store");
        assert!(got.headers["vary"].to_str().unwrap().contains("payment-signature"));
    }
    let got = shop.get("/paid/x?q=1", None).await;
    got.check(402, "payment_required", "after_payment", "false");
    assert_eq!(got.problem()["accepts"][0]["resource"], format!("{ORIGIN}/paid/x?q=1"));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    assert_eq!(shop.ledger.payments().len(), 0);
}

#[tokio::test]
async fn a_preflight_is_free_and_exposes_the_payment_headers() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let headers = [
        ("origin", "https://shop.example"),
        ("access-control-request-method", "GET"),
        ("access-control-request-headers", "payment-signature"),
    ];
    let headers = headers.into_iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
    let got = shop.send(Method::OPTIONS, "/paid/x", headers).await;
    assert_eq!((got.status, got.headers["access-control-allow-headers"].to_str().unwrap()), (204, "payment-signature"));
    let bill = shop.get("/paid/x", None).await;
    assert!(bill.headers["access-control-expose-headers"].to_str().unwrap().contains("payment-required"));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_paid_request_is_served_once_with_a_receipt() {
    for settle in [SettleWhen::BeforeResponse, SettleWhen::BeforeUpstream] {
        let (url, calls) = counting().await;
        let shop = Shop::open(settle, url).await;
        let credential = shop.sign("/paid/x", 1).await;
        let got = shop.get("/paid/x", Some(&credential)).await;
        assert_eq!((got.status, got.body.as_str()), (200, "ok 1"), "{got:?}");
        assert!(got.settlement().success);
        assert_eq!(got.settlement().amount, Some(10_000));
        assert_eq!(got.headers["cache-control"], "private");
        assert_eq!(shop.state(), (PaymentState::Settled, Delivery::Delivered));
        assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (1, 1));
    }
}

#[tokio::test]
async fn the_same_credential_gets_the_same_answer_again_and_costs_nothing() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    let first = shop.get("/paid/x", Some(&credential)).await;
    let shop = shop.restart("2").await;
    let again = shop.get("/paid/x", Some(&credential)).await;
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.settlement(), first.settlement());
    // Long after the authorization has run out, and even after the answer is no longer kept.
    shop.clock.advance(Duration::from_secs(500));
    assert_eq!(shop.get("/paid/x", Some(&credential)).await.body, first.body);
    shop.clock.advance(Duration::from_secs(101));
    let late = shop.get("/paid/x", Some(&credential)).await;
    late.check(409, "already_delivered", "never", "true");
    assert!(late.settlement().success && !late.has_bill());
    assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (1, 1));
}

#[tokio::test]
async fn a_credential_is_good_for_its_own_request_only() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/cheap", 1).await;
    assert_eq!(shop.get("/paid/cheap", Some(&credential)).await.status, 200);
    for (method, path) in [(Method::GET, "/paid/dear"), (Method::POST, "/paid/cheap"), (Method::GET, "/paid/cheap?n=2")]
    {
        let got = shop.send(method, path, [credential.clone()].into_iter().collect()).await;
        got.check(409, "proof_already_used", "never", "true");
        assert!(!got.has_bill());
    }
    assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (1, 1));
}

/// A settled authorization stands on the chain for everybody to read: with it alone nobody gets the payer's answer.
#[tokio::test]
async fn a_stranger_with_the_same_credential_gets_nothing() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    let keyed = |key: &str| {
        let key = (http::HeaderName::from_static("idempotency-key"), key.parse().unwrap());
        [credential.clone(), key].into_iter().collect()
    };
    assert_eq!(shop.send(Method::GET, "/paid/x", keyed("secret")).await.body, "ok 1");
    let stranger = shop.get("/paid/x", Some(&credential)).await;
    stranger.check(409, "proof_already_used", "never", "true");
    assert_eq!(shop.send(Method::GET, "/paid/x", keyed("guess")).await.status, 409);
    assert_eq!(shop.send(Method::GET, "/paid/x", keyed("secret")).await.body, "ok 1");
    assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (1, 1));
}

#[tokio::test]
async fn an_authorization_that_ends_before_it_can_be_settled_buys_no_work() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    // It lives for 60 s; the upstream may take 33, the settlement 5.
    shop.clock.advance(Duration::from_secs(23));
    let got = shop.get("/paid/x", Some(&credential)).await;
    got.check(402, "invalid_exact_evm_payload_authorization_valid_before", "after_payment", "false");
    assert_eq!((calls.load(Ordering::SeqCst), shop.ledger.payments().len()), (0, 0));
}

#[tokio::test]
async fn one_payer_has_only_so_much_claimed_and_not_settled() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let address = upstream(move |_| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|open| *open).await.unwrap();
            text("ok")
        }
    })
    .await;
    let shop = Shop::open(SettleWhen::BeforeResponse, format!("http://{address}")).await;
    let mut credentials = vec![];
    for nonce in 0..33 {
        credentials.push(shop.sign("/paid/x", nonce).await);
    }
    let last = credentials.pop().unwrap();
    let waiting =
        futures_util::future::join_all(credentials.iter().map(|credential| shop.get("/paid/x", Some(credential))));
    let refused = async {
        while shop.ledger.payments().len() < 32 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let got = shop.get("/paid/x", Some(&last)).await;
        go.send(true).unwrap();
        got
    };
    let (served, refused) = patiently(futures_util::future::join(waiting, refused)).await;
    refused.check(429, "too_many_unsettled", "same_proof", "false");
    assert!(served.iter().all(|got| got.status == 200));
    assert_eq!(shop.get("/paid/x", Some(&last)).await.status, 200);
}

#[tokio::test]
async fn a_hundred_identical_requests_at_once_on_two_gateways_are_one_delivery() {
    let (url, calls) = counting().await;
    let one = Shop::open(SettleWhen::BeforeResponse, url).await;
    let two = one.twin("2").await;
    let credential = one.sign("/paid/x", 1).await;
    one.rail.settle_next(farebox_testkit::SettleStep { after: Duration::from_millis(50), with: SettleWith::Final });
    let all = (0..100).map(|n| {
        let shop = if n % 2 == 0 { &one } else { &two };
        let credential = credential.clone();
        async move { shop.get("/paid/x", Some(&credential)).await }
    });
    for got in futures_util::future::join_all(all).await {
        assert_eq!((got.status, got.body.as_str()), (200, "ok 1"), "{got:?}");
    }
    assert_eq!((calls.load(Ordering::SeqCst), one.rail.charged().len()), (1, 1));
}

#[tokio::test]
async fn a_doubtful_settlement_is_never_billed_anew_and_ends_in_one_charge() {
    for doubt in [SettleWith::DoubtfulButMoved, SettleWith::DoubtfulAndUnmoved] {
        let (url, calls) = counting().await;
        let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
        let credential = shop.sign("/paid/x", 1).await;
        shop.rail.settle_next(doubt);
        let got = shop.get("/paid/x", Some(&credential)).await;
        got.check(503, "settlement_pending", "same_proof", "unknown");
        assert!(!got.has_bill());
        assert!(got.settlement().transaction.starts_with("0x") && !got.settlement().success);
        // The reconciler ends the doubt; the retry waits for it.
        let again = shop.get("/paid/x", Some(&credential)).await;
        assert_eq!((again.status, again.body.as_str()), (200, "ok 2"), "{again:?}");
        assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (2, 1));
        assert_eq!(shop.state(), (PaymentState::Settled, Delivery::Delivered));
    }
}

#[tokio::test]
async fn a_refused_settlement_delivers_nothing_and_says_so() {
    let (url, _) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    shop.rail.settle_next(SettleWith::Refused("invalid_exact_evm_insufficient_balance"));
    for _ in 0..2 {
        let got = shop.get("/paid/x", Some(&credential)).await;
        got.check(402, "invalid_exact_evm_insufficient_balance", "after_payment", "false");
        assert!(got.has_bill() && !got.settlement().success);
    }
    assert_eq!((shop.state().0, shop.rail.charged().len()), (PaymentState::Refused, 0));
}

#[tokio::test]
async fn a_settlement_that_could_not_start_is_not_charged_and_may_be_sent_again() {
    let (url, _) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    shop.rail.settle_next(SettleWith::NothingStored);
    shop.get("/paid/x", Some(&credential)).await.check(503, "settlement_unavailable", "same_proof", "false");
    assert_eq!(shop.get("/paid/x", Some(&credential)).await.status, 200);
    assert_eq!(shop.rail.charged().len(), 1);
}

#[tokio::test]
async fn a_chain_that_cannot_be_asked_is_a_503_and_never_a_bill() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    shop.rail.lose_chain_on_next_verify();
    let got = shop.get("/paid/x", Some(&credential)).await;
    got.check(503, "payment_unverifiable", "same_proof", "false");
    assert!(!got.has_bill() && got.headers.contains_key("retry-after"));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn garbage_is_a_400_with_a_fresh_bill_and_nothing_is_claimed() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    for value in ["", "!", "e30=", "bm90IGpzb24=", "eyJ4NDAyVmVyc2lvbiI6Mn0="] {
        let headers =
            [(http::HeaderName::from_static("payment-signature"), value.parse().unwrap())].into_iter().collect();
        let got = shop.send(Method::GET, "/paid/x", headers).await;
        assert_eq!(
            (got.status, got.has_bill(), got.problem()["charged"].as_bool()),
            (400, true, Some(false)),
            "{value}"
        );
    }
    let credential = shop.sign("/paid/x", 1).await;
    let twice =
        [credential.clone(), credential].into_iter().fold(http::HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        });
    shop.send(Method::GET, "/paid/x", twice).await.check(400, "credential_repeated", "after_payment", "false");
    assert_eq!((calls.load(Ordering::SeqCst), shop.ledger.payments().len()), (0, 0));
}

#[tokio::test]
async fn a_method_in_small_letters_is_no_way_around_the_till() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    for method in ["get", "Get", "gET"] {
        let got = shop.send(Method::from_bytes(method.as_bytes()).unwrap(), "/paid/x", http::HeaderMap::new()).await;
        assert_eq!((got.status, got.problem()["code"].as_str()), (501, Some("method_not_supported")));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}
