//! The 402 of a route that sells tokens, and what it says while there is no invoice to be had.

use std::sync::{Arc, atomic::Ordering};

use farebox_core::{
    Access, RailName,
    ports::{LedgerUnavailable, NoBill, TokenError},
};
use farebox_gateway::{Gateway, GatewayConfig, Ports, Tokens};
use farebox_testkit::BillStep;
use http::HeaderMap;
use reqwest::Method;

use crate::{
    kiosk::{Got, Kiosk, Plan, counting, one},
    support,
};

async fn beside_x402() -> Kiosk {
    let plan = Plan::calls(1, "http://127.0.0.1:9");
    Plan { rails: vec![RailName::X402, RailName::L402], ..plan }.open().await
}

#[tokio::test]
async fn a_bill_has_both_lines_in_their_order_and_the_same_in_its_body() {
    let kiosk = beside_x402().await;
    let bill = kiosk.unpaid("/paid/x").await;
    bill.check(402, "payment_required", "after_payment", "false");
    let macaroon = bill.macaroon();
    let body = bill.problem();
    let invoice = body["invoice"].as_str().unwrap();
    let lines = [
        format!("LSAT macaroon=\"{macaroon}\", invoice=\"{invoice}\""),
        format!("L402 macaroon=\"{macaroon}\", invoice=\"{invoice}\", version=\"0\", token=\"{macaroon}\""),
    ];
    assert_eq!(bill.lines(), lines);
    assert_eq!((body["macaroon"].as_str(), body["amountSats"].as_u64()), (Some(macaroon.as_str()), Some(10)));
    assert_eq!(body["accepts"].as_array().unwrap().len(), 1, "x402 offers its own alone: {body}");
    assert!(bill.headers.contains_key("payment-required"));
    for (header, word) in [
        ("vary", "authorization"),
        ("vary", "macaroon"),
        ("access-control-expose-headers", "www-authenticate"),
        ("access-control-expose-headers", "farebox-pass-remaining"),
        ("cache-control", "no-store"),
    ] {
        assert!(bill.header(header).unwrap().contains(word), "{header}: {bill:?}");
    }
}

#[tokio::test]
async fn a_client_that_asks_twice_is_shown_one_invoice_and_a_buyer_another() {
    let (url, _) = counting().await;
    let kiosk = Plan::calls(1, url).open().await;
    let [first, second] = [kiosk.unpaid("/paid/x").await, kiosk.unpaid("/paid/y").await];
    assert_eq!((first.lines(), kiosk.rail.invoices()), (second.lines(), 1));
    let token = kiosk.pay(&first);
    assert_eq!(kiosk.get("/paid/x", &token).await.status, 200);
    assert_eq!(kiosk.rail.bought_passes().len(), 1);
    assert_ne!(kiosk.unpaid("/paid/x").await.lines(), first.lines(), "what is paid is not asked for again");
}

#[tokio::test]
async fn neither_head_nor_options_costs_an_invoice_or_a_call() {
    let (url, calls) = counting().await;
    let kiosk = Plan::calls(1, url).open().await;
    for token in [HeaderMap::new(), kiosk.buy("/paid/x").await] {
        let asked = kiosk.rail.asked();
        let head = kiosk.send(Method::HEAD, "/paid/x", token.clone()).await;
        assert_eq!((head.status, head.lines().len()), (402, 0), "{head:?}");
        let options = kiosk.send(Method::OPTIONS, "/paid/x", token).await;
        assert!(options.status == 204 && !options.has_bill());
        assert!(options.header("access-control-allow-headers").unwrap().contains("authorization"));
        assert_eq!(kiosk.rail.asked(), asked);
    }
    assert_eq!((calls.load(Ordering::SeqCst), kiosk.ledger.payments().len()), (0, 0));
}

/// One of them would read from the macaroon what another one bought, or pay for it.
#[tokio::test]
async fn callers_behind_one_proxy_are_shown_invoices_of_their_own_out_of_one_allowance() {
    let kiosk = Plan::calls(1, "http://127.0.0.1:9").open().await;
    for (header, claimed) in [
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-for", "5.6.7.8"),
        ("forwarded", "for=1.2.3.4"),
        ("x-forwarded-for", "1.2.3.4"),
    ] {
        assert_eq!(kiosk.get("/paid/x", &one(header.parse().unwrap(), claimed)).await.status, 402);
    }
    assert_eq!((kiosk.rail.invoices(), kiosk.rail.clients()), (3, 1));
}

#[tokio::test]
async fn a_gateway_that_could_not_sell_what_it_offers_does_not_start() {
    let kiosk = Plan::calls(1, "http://127.0.0.1:9").open().await;
    let paid = |matches: &str| farebox_gateway::Route {
        access: Access::Paid(kiosk.tariff.clone()),
        ..support::route(matches, "http://127.0.0.1:9")
    };
    let config = |routes| GatewayConfig { routes, ..support::config(&[]) };
    let tokens = Some(Tokens { rail: Arc::new(kiosk.rail.clone()), books: kiosk.ledger.clone() });
    for (routes, tokens) in [(vec![paid("GET /a")], None), (vec![paid("GET /a"), paid("GET /b")], tokens)] {
        let bound = Gateway::bind(config(routes), Ports { tokens, ..support::ports() }).await;
        assert_eq!(bound.map(drop).unwrap_err().code(), "tokens_incomplete");
    }
}

fn no_bills() -> [(BillStep, u16, &'static str); 4] {
    let books = LedgerUnavailable { operation: "sell a token", source: "scripted".into() };
    [
        (BillStep::Fail(NoBill::Node { source: "scripted".into() }), 503, "node_unavailable"),
        (BillStep::Hang, 503, "node_unavailable"),
        (BillStep::Fail(NoBill::Limited { retry_after_s: 7 }), 429, "too_many_invoices"),
        (BillStep::Fail(NoBill::Books(books)), 503, "ledger_unavailable"),
    ]
}

#[tokio::test]
async fn without_an_invoice_the_other_rails_remain_and_the_body_says_why() {
    let kiosk = beside_x402().await;
    for (step, _, code) in no_bills() {
        kiosk.rail.bill_next(step);
        let bill = kiosk.unpaid("/paid/x").await;
        bill.check(402, "payment_required", "after_payment", "false");
        assert_eq!((bill.lines().len(), bill.headers.contains_key("payment-required")), (0, true));
        let off = &bill.problem()["unavailable"][0];
        assert_eq!((off["rail"].as_str(), off["code"].as_str()), (Some("l402"), Some(code)));
        assert!(bill.problem().get("invoice").is_none());
    }
    assert_eq!(kiosk.unpaid("/paid/x").await.lines().len(), 2, "and is back with the node");
}

#[tokio::test]
async fn without_an_invoice_and_without_another_rail_nobody_is_billed() {
    let kiosk = Plan::calls(1, "http://127.0.0.1:9").open().await;
    for (step, status, code) in no_bills() {
        kiosk.rail.bill_next(step);
        let got = kiosk.unpaid("/paid/x").await;
        got.check(status, code, "same_proof", "false");
        assert!(!got.has_bill());
        assert_eq!(got.header("retry-after"), Some(if status == 429 { "7" } else { "1" }));
    }
}

#[tokio::test]
async fn an_open_invoice_is_still_offered_while_the_node_is_down() {
    let kiosk = Plan::calls(1, "http://127.0.0.1:9").open().await;
    let bill = kiosk.unpaid("/paid/x").await;
    kiosk.rail.bill_next(BillStep::Hang);
    assert_eq!(kiosk.unpaid("/paid/x").await.lines(), bill.lines());
}

#[tokio::test]
async fn a_rail_without_a_rate_is_off_and_the_others_are_not() {
    let kiosk = beside_x402().await;
    let mut board = (*kiosk.tariff.board.now()).clone();
    board.offers = board.offers.iter().filter(|offer| offer.rail == RailName::X402).cloned().collect();
    kiosk.tariff.board.exchange(board);
    let bill = kiosk.unpaid("/paid/x").await;
    assert_eq!((bill.status, bill.lines().len(), kiosk.rail.asked()), (402, 0, 0));
    assert_eq!(bill.problem()["unavailable"][0]["code"], "price_unavailable");
}

/// npm lightning-tools pays whatever invoice a `WWW-Authenticate` has, under any status.
#[tokio::test]
async fn nothing_but_a_402_has_an_invoice() {
    let kiosk = beside_x402().await;
    let malformed = kiosk.get("/paid/x", &one("payment-signature".parse().unwrap(), "nonsense")).await;
    assert!(malformed.status == 400 && malformed.lines().is_empty(), "{malformed:?}");
    assert!(malformed.problem().get("invoice").is_none() && kiosk.rail.asked() == 0);
}

#[tokio::test]
async fn a_browser_is_shown_the_page() {
    let kiosk = beside_x402().await;
    let headers = [("accept", "text/html"), ("user-agent", "Mozilla/5.0")];
    let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).into_iter().collect();
    let page = kiosk.get("/paid/x", &headers).await;
    assert_eq!((page.status, page.lines().len()), (402, 2));
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
}

/// Aperture's interceptor pays on status 13 (or 2) with `payment required` in its message; trailers alone, in the head of a 200.
#[tokio::test]
async fn a_grpc_client_is_answered_in_its_own_language() {
    let (url, calls) = counting().await;
    let plan = Plan { rails: vec![RailName::X402, RailName::L402], ..Plan::calls(1, url) };
    let kiosk = plan.open().await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let call = |headers: HeaderMap, content_type: &'static str| {
        let request = client.post(kiosk.gateway.url("/paid/x")).headers(headers);
        async move {
            let response = request.header("content-type", content_type).send().await.unwrap();
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Got { status, headers, body: response.text().await.unwrap() }
        }
    };
    let grpc = |got: &Got| (got.status, got.header("grpc-status").unwrap().to_owned(), got.body.clone());
    for content_type in ["application/grpc", "application/grpc+proto"] {
        let bill = call(HeaderMap::new(), content_type).await;
        assert_eq!(grpc(&bill), (200, "13".into(), String::new()));
        assert_eq!((bill.header("grpc-message"), bill.lines().len()), (Some("payment required"), 2));
        assert_eq!(bill.header("content-type"), Some("application/grpc"));
    }
    let malformed = call(one("authorization".parse().unwrap(), "L402 x"), "application/grpc").await;
    assert_eq!((grpc(&malformed).1.as_str(), malformed.lines().len()), ("3", 0), "{malformed:?}");
    kiosk.rail.fail_next_check(TokenError::Unavailable { source: "scripted".into() });
    let token = kiosk.buy("/paid/x").await;
    let unknown = call(token.clone(), "application/grpc").await;
    assert_eq!((grpc(&unknown).1.as_str(), unknown.lines().len()), ("14", 0), "{unknown:?}");
    let paid = call(token, "application/grpc").await;
    assert_eq!((paid.status, paid.body.as_str(), paid.header("farebox-pass-remaining")), (200, "ok 1", Some("0")));
    assert_eq!(call(HeaderMap::new(), "application/json").await.status, 402);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}
