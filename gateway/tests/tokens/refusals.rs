//! Tokens that buy nothing, or not now.

use std::{sync::atomic::Ordering, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use farebox_core::{
    PassId, RailName,
    ports::{Rejected, TokenBooks, TokenError, TokenFilter},
};
use farebox_wire::l402;
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use serde_json::Value;

use crate::{
    kiosk::{Kiosk, NOW, Plan, authorization, counting, eventually, keyed, one},
    support::{text, upstream},
};

async fn pass(kiosk: &Kiosk) -> PassId {
    kiosk.ledger.tokens(&TokenFilter::default()).await.unwrap()[0].sold.pass
}

#[tokio::test]
async fn a_malformed_token_is_400_without_an_invoice_and_costs_nothing() {
    let (url, calls) = counting().await;
    let kiosk = Plan::calls(9, url).open().await;
    let credential = kiosk.credential(&kiosk.unpaid("/paid/x").await);
    let (macaroon, preimage) = credential.split_once(':').unwrap();
    let cut = STANDARD.encode(&STANDARD.decode(macaroon).unwrap()[..100]);
    let long = "A".repeat(12_000);
    for wrong in [
        "L402".to_owned(),
        "L402 nonsense".into(),
        format!("L402 {macaroon}"),
        format!("L402 {macaroon}:"),
        format!("L402 {macaroon}:{}", &preimage[2..]),
        format!("L402 {macaroon}:{}", preimage.replace('0', "A")),
        format!("L402 {cut}:{preimage}"),
        format!("L402 {long}:{preimage}"),
        format!("L402 {credential}, L402 {credential}"),
    ] {
        let got = kiosk.get("/paid/x", &one(AUTHORIZATION, &wrong)).await;
        assert!(got.status == 400 && !got.has_bill(), "{wrong}: {got:?}");
        assert_eq!(got.problem()["charged"], false);
    }
    let two: HeaderMap = ["Bearer x".to_owned(), format!("L402 {credential}")]
        .map(|value| (AUTHORIZATION, HeaderValue::from_str(&value).unwrap()))
        .into_iter()
        .collect();
    assert_eq!(kiosk.get("/paid/x", &two).await.status, 400);
    let mut both = authorization(&credential);
    both.insert("x-payment", HeaderValue::from_static("e30="));
    assert_eq!(kiosk.get("/paid/x", &both).await.status, 400, "which of two payments was meant is not ours to guess");
    assert_eq!((calls.load(Ordering::SeqCst), kiosk.ledger.payments().len()), (0, 0));
}

#[tokio::test]
async fn a_token_that_we_did_not_sell_or_that_was_altered_is_402_with_an_invoice() {
    let (url, calls) = counting().await;
    let kiosk = Plan::calls(9, &url).open().await;
    let foreign = Plan::calls(9, &url).open().await;
    // Both scripted nodes make the same invoices; the second of one is no token of the other.
    foreign.buy("/paid/x").await;
    let foreign = foreign.buy("/other/x").await;
    let credential = kiosk.credential(&kiosk.unpaid("/paid/x").await);
    let (macaroon, preimage) = credential.split_once(':').unwrap();
    let honest = l402::decode_macaroon(&STANDARD.decode(macaroon).unwrap()).unwrap();
    let mut wider = honest.clone();
    wider.caveats[0] = wider.caveats[0].replace("paid", "other");
    let narrower = l402::add_caveat(&honest, "color=red");
    let sent = |macaroon| authorization(&format!("{}:{preimage}", STANDARD.encode(l402::encode_macaroon(macaroon))));
    let guess = authorization(&format!("{macaroon}:{}", "00".repeat(32)));
    for token in [foreign, sent(&wider), sent(&narrower), guess] {
        let got = kiosk.get("/paid/x", &token).await;
        assert_eq!((got.status, got.lines().len()), (402, 2), "{got:?}");
        assert_eq!(got.problem()["retry"], "after_payment");
    }
    assert_eq!((calls.load(Ordering::SeqCst), kiosk.ledger.payments().len()), (0, 0));
    assert!(kiosk.ledger.audit_log().is_empty(), "what strangers make up is not in the audit log");
}

#[tokio::test]
async fn a_revoked_token_is_402_and_a_spent_one_is_told_to_the_audit_log() {
    let (url, _) = counting().await;
    let kiosk = Plan::calls(1, url).open().await;
    let token = kiosk.buy("/paid/x").await;
    assert_eq!(kiosk.get("/paid/x", &token).await.status, 200);
    kiosk.get("/paid/x", &token).await.check(402, "token_spent", "after_payment", "false");
    let rejected = || {
        let lines = kiosk.ledger.audit_log().into_iter();
        let lines = lines.map(|line| serde_json::from_str::<Value>(&line.text).unwrap());
        lines.filter(|line| line["outcome"] == "rejected").collect::<Vec<_>>()
    };
    eventually(|| !rejected().is_empty()).await;
    let line = &rejected()[0];
    assert_eq!((line["reason"].as_str(), line["rail"].as_str()), (Some("token_spent"), Some("l402")));
    assert_eq!(line["payer"].as_str(), Some(kiosk.ledger.payments()[0].payer.as_str()));
    let fresh = kiosk.buy("/paid/x").await;
    kiosk.ledger.revoke(pass(&kiosk).await, NOW).await.unwrap().unwrap();
    let got = kiosk.get("/paid/x", &fresh).await;
    assert_eq!((got.status, got.lines().len()), (402, 2), "{got:?}");
}

#[tokio::test]
async fn what_is_not_known_of_a_token_is_never_a_reason_to_pay_again() {
    let (url, calls) = counting().await;
    let plan = Plan { rails: vec![RailName::X402, RailName::L402], ..Plan::calls(1, url) };
    let kiosk = plan.open().await;
    let token = kiosk.buy("/paid/x").await;
    kiosk.rail.fail_next_check(TokenError::Unsettled);
    kiosk.rail.fail_next_check(TokenError::Unavailable { source: "scripted: no node".into() });
    let unsettled = kiosk.get("/paid/x", &token).await;
    unsettled.check(402, "invoice_unsettled", "same_proof", "unknown");
    let unknown = kiosk.get("/paid/x", &token).await;
    unknown.check(503, "payment_unverifiable", "same_proof", "unknown");
    assert!(!unsettled.has_bill() && !unknown.has_bill());
    let malformed = Rejected { code: "token_version".into(), detail: "scripted".into() };
    kiosk.rail.fail_next_check(TokenError::Malformed(malformed));
    kiosk.get("/paid/x", &token).await.check(400, "token_version", "never", "false");
    assert_eq!(kiosk.get("/paid/x", &token).await.body, "ok 1");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_call_under_way_is_waited_for_and_then_503() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let address = upstream(move |_| {
        let mut gate = gate.clone();
        async move {
            drop(gate.wait_for(|open| *open).await);
            text("ok")
        }
    })
    .await;
    let plan = Plan { busy_wait: Duration::from_millis(300), ..Plan::calls(1, format!("http://{address}")) };
    let kiosk = plan.open().await;
    let token = kiosk.buy("/paid/x").await;
    let (served, busy) = tokio::join!(kiosk.get("/paid/x", &token), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let busy = kiosk.get("/paid/x", &token).await;
        let keyed = kiosk.get("/paid/x", &keyed(&token, "k")).await;
        go.send(true).unwrap();
        [busy, keyed]
    });
    assert_eq!(served.body, "ok");
    for busy in busy {
        busy.check(503, "payment_in_progress", "same_proof", "unknown");
        assert!(!busy.has_bill());
    }
}

#[tokio::test]
async fn a_route_that_sells_no_tokens_leaves_authorization_to_its_upstream() {
    let (url, _) = counting().await;
    let kiosk = Plan { rails: vec![RailName::X402], ..Plan::calls(1, url) }.open().await;
    let got = kiosk.get("/paid/x", &one(AUTHORIZATION, "L402 nonsense")).await;
    got.check(402, "payment_required", "after_payment", "false");
    assert!(got.lines().is_empty() && got.problem().get("unavailable").is_none());
    let got = kiosk.get("/paid/x", &one(HeaderName::from_static("macaroon"), "nonsense")).await;
    assert_eq!(got.status, 402);
}
