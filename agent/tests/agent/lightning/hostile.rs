//! Sellers that want more than they should get.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::response::Response;
use farebox_agent::{FetchError, Policy, Stake};
use farebox_core::BitcoinNetwork;
use lightning_invoice::Currency;
use serde_json::{Value, json};

use super::{shop::*, wallet::*};
use crate::support::*;

/// What the agent says of a bill; nothing is asked of the wallet, and nothing is noted.
async fn refused(
    on: Option<BitcoinNetwork>,
    request: impl Fn(url::Url) -> reqwest::Request,
    bill: impl Fn(&Till) -> Response + Send + Sync + 'static,
) -> FetchError {
    let mut me = Satoshi::new(Mood::Pays);
    let mut purse = Purse::new(&me.lightning, Mood::Pays);
    purse.on = on;
    me.purse = Arc::new(purse);
    let till = Till::new(&me.lightning);
    let seller = Seller::start(move |_, _| bill(&till)).await;
    let error = me.agent().fetch(request(seller.url("/"))).await.unwrap_err();
    assert_eq!((error.stake(), me.purse.asked()), (Stake::Nothing, 0), "{error:?}");
    assert!(me.payer.files("open").is_empty() && me.payer.files("tokens").is_empty(), "{error:?}");
    error
}

async fn check(expected: &str, bill: impl Fn(&Till) -> Response + Send + Sync + 'static) {
    let error = refused(Some(BitcoinNetwork::Regtest), get, bill).await;
    let found = match &error {
        FetchError::Policy(rules) => rules[0].rule.code(),
        other => other.code(),
    };
    assert_eq!(found, expected, "{error}");
}

fn of(till: &Till, change: impl Fn(&mut Wanted), body: &Value) -> Response {
    let mut wanted = Wanted::sats(10);
    change(&mut wanted);
    *till.wanted.lock().unwrap() = wanted;
    let (macaroon, invoice) = till.terms();
    bill_of(&macaroon, &invoice, body)
}

#[tokio::test]
async fn bills_that_are_not_what_they_seem_are_refused_before_the_wallet_is_asked() {
    check("invoice_amountless", |till| of(till, |wanted| wanted.msat = None, &json!({}))).await;
    check("over_max_sat", |till| of(till, |wanted| wanted.msat = Some(1_000_001), &json!({}))).await;
    check("over_max_sat", |till| of(till, |wanted| wanted.msat = Some(1_000_000_000_000), &json!({}))).await;
    check("invoice_ends", |till| {
        of(till, |wanted| wanted.made_at = wanted.made_at.minus(Duration::from_secs(601)), &json!({}))
    })
    .await;
    check("invoice_ends", |till| {
        of(till, |wanted| wanted.made_at = wanted.made_at.minus(Duration::from_secs(590)), &json!({}))
    })
    .await;
    check("other_bitcoin_network", |till| of(till, |wanted| wanted.currency = Currency::Bitcoin, &json!({}))).await;
    // The price that is shown is not the one that is asked.
    check("invoice_differs", |till| of(till, |wanted| wanted.msat = Some(999_000), &json!({"amountSats": 10}))).await;
    check("invoice_differs", |till| of(till, |wanted| wanted.msat = Some(10_001), &json!({"priceSats": 10}))).await;
    check("invoice_differs", |till| of(till, |_| {}, &json!({"amountSats": 10, "invoice": till.terms().1}))).await;
    check("several_invoices", |till| {
        let (mut first, _) = till.bill().into_parts();
        let (second, body) = till.bill().into_parts();
        first.headers.append("www-authenticate", second.headers["www-authenticate"].clone());
        Response::from_parts(first, body)
    })
    .await;
    check("token_of_another_invoice", |till| {
        let ((macaroon, _), (_, invoice)) = (till.terms(), till.terms());
        bill_of(&macaroon, &invoice, &json!({}))
    })
    .await;
    check("invoice_malformed", |till| bill_of(&till.terms().0, "lnbcrt1nonsense", &json!({}))).await;
    check("network", |till| {
        let (macaroon, invoice) = till.terms();
        bill_of(&macaroon.repeat(10_000), &invoice, &json!({}))
    })
    .await;
}

#[tokio::test]
async fn a_token_that_is_over_is_not_bought() {
    let error = refused(Some(BitcoinNetwork::Regtest), get, |till| {
        let mut over = Till::new(&Arc::default());
        over.caveats = vec!["services=shop:0".into(), "shop_valid_until=1600000000".into()];
        let (_, invoice) = till.terms();
        let hash = *till.shown.lock().unwrap().last().unwrap();
        bill_of(&over.macaroon(hash), &invoice, &json!({}))
    })
    .await;
    let FetchError::Policy(rules) = &error else { panic!("{error:?}") };
    assert_eq!(rules[0].rule.code(), "token_ends", "{error}");
}

#[tokio::test]
async fn a_request_with_an_authorization_of_its_own_is_not_paid_for_by_a_token() {
    let with = |value: &'static str| {
        move |url| {
            let mut request = get(url);
            request.headers_mut().insert("authorization", value.parse().unwrap());
            request
        }
    };
    let error = refused(Some(BitcoinNetwork::Regtest), with("Bearer mine"), Till::bill).await;
    let FetchError::Policy(rules) = &error else { panic!("{error:?}") };
    assert_eq!(rules[0].rule.code(), "authorization_taken", "{error}");
    let error = refused(Some(BitcoinNetwork::Regtest), with("LSAT abc:def"), Till::bill).await;
    assert_eq!(error.code(), "credential_present");
}

#[tokio::test]
async fn a_wallet_that_does_not_know_its_network_refuses_by_itself() {
    let me = Satoshi::new(Mood::Pays);
    let mut purse = Purse::new(&me.lightning, Mood::Pays);
    purse.on = None;
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    let agent = me.builder_of(Arc::new(purse)).build().unwrap();
    assert_eq!(read(agent.fetch(get(seller.url("/"))).await).await.0, 200);
}

#[tokio::test]
async fn a_seller_that_bills_for_ever_is_paid_once() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.bill()).await;
    for _ in 0..3 {
        let error = me.agent().fetch(get(seller.url("/"))).await.unwrap_err();
        assert_eq!((error.code(), error.stake()), ("charged_not_delivered", Stake::Charged), "{error}");
    }
    assert_eq!((me.lightning.paid(), seller.distinct_credentials()), (1, 1));
}

#[tokio::test]
async fn a_seller_that_refuses_what_it_just_sold_is_not_paid_again() {
    for code in ["token_unknown", "token_spent", "token_other_route"] {
        let me = Satoshi::new(Mood::Pays);
        let till = Arc::new(Till::new(&me.lightning));
        let seller = Seller::of_tokens(&till, move |_, _, till| till.refuse(code)).await;
        for _ in 0..2 {
            let error = me.agent().fetch(get(seller.url("/"))).await.unwrap_err();
            assert_eq!((error.code(), error.stake()), ("charged_not_delivered", Stake::Charged), "{error}");
        }
        assert_eq!(me.lightning.paid(), 1);
    }
}

#[tokio::test]
async fn an_invoice_that_is_paid_is_not_paid_again_for_another_request_or_another_seller() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let terms = Arc::new(till.terms());
    let same = Arc::clone(&terms);
    let honest = Arc::clone(&till);
    let seller = Seller::start(move |attempt, _| match attempt {
        1 => honest.serve(Some(0)),
        _ => bill_of(&same.0, &same.1, &json!({})),
    })
    .await;
    assert_eq!(read(me.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    let thief_sees = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&thief_sees);
    let thief = Seller::start(move |attempt, _| {
        *seen.lock().unwrap() += attempt;
        bill_of(&terms.0, &terms.1, &json!({}))
    })
    .await;
    for url in [seller.url("/"), seller.url("/other"), thief.url("/")] {
        let error = me.agent().fetch(get(url)).await.unwrap_err();
        let FetchError::Policy(rules) = &error else { panic!("{error:?}") };
        assert_eq!((rules[0].rule.code(), error.stake()), ("invoice_paid_before", Stake::Nothing), "{error}");
    }
    assert_eq!((me.lightning.paid(), me.purse.asked(), *thief_sees.lock().unwrap()), (1, 1, 0));
}

#[tokio::test]
async fn head_is_never_paid_for_and_sends_no_token() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    read(me.agent().fetch(get(seller.url("/"))).await).await;
    let head = reqwest::Request::new(http::Method::HEAD, seller.url("/"));
    assert_eq!(me.agent().fetch(head).await.unwrap_err().code(), "head_not_sold");
    assert!(seller.seen().iter().all(|seen| seen.method != http::Method::HEAD || seen.credential().is_none()));
    assert_eq!(me.lightning.paid(), 1);
}

#[tokio::test]
async fn a_policy_without_lightning_pays_none_and_uses_no_token() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    read(me.agent().fetch(get(seller.url("/"))).await).await;
    let policy = Policy { rails: vec![farebox_core::RailName::X402], ..policy() };
    let error = me.builder().policy(policy).build().unwrap().fetch(get(seller.url("/"))).await.unwrap_err();
    let FetchError::Policy(rules) = &error else { panic!("{error:?}") };
    assert_eq!((rules[0].rule.code(), till.served()), ("rail_not_allowed", 1));
}
