//! What is bought, by whom, and for how much.

use std::sync::{Arc, atomic::Ordering};

use farebox_agent::{Charge, Note, Policy, Quote, TokenStanding};
use farebox_core::RailName;
use serde_json::json;

use super::{shop::*, wallet::*};
use crate::support::*;

#[tokio::test]
async fn an_agent_with_only_sats_buys_a_token_and_uses_its_calls_before_it_pays_again() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |attempt, _, till| till.serve(Some(u32::from(attempt % 2 == 1)))).await;
    let fetched = me.agent().fetch(get(seller.url("/x"))).await.unwrap();
    let made = fetched.payment.unwrap();
    assert_eq!((made.offer.rail, made.price, made.signatures), (RailName::L402, None, 1));
    assert_eq!(made.asset.tokens(made.offer.amount.units).to_string(), "10");
    assert!(matches!(&made.charge, Charge::Charged { transaction: Some(_) }), "{:?}", made.charge);
    let lightning = made.lightning.unwrap();
    assert_eq!((lightning.held, lightning.fee_msat, lightning.calls_left), (false, Some(7), Some(1)));
    assert_eq!(fetched.response.text().await.unwrap(), "goods");

    // Another process, later.
    let fetched = me.agent().fetch(get(seller.url("/x"))).await.unwrap();
    let made = fetched.payment.unwrap();
    assert_eq!((&made.charge, made.signatures), (&Charge::Prepaid, 0));
    assert_eq!(made.lightning.unwrap().calls_left, Some(0));
    assert_eq!(fetched.response.text().await.unwrap(), "goods");
    assert_eq!((me.lightning.paid(), seller.distinct_credentials(), seller.seen().len()), (1, 1, 3));

    assert_eq!(read(me.agent().fetch(get(seller.url("/x"))).await).await.0, 200);
    assert_eq!((me.lightning.paid(), seller.distinct_credentials()), (2, 2));
    assert!(me.payer.files("open").is_empty() && me.payer.files("closed").len() == 3);
}

#[tokio::test]
async fn the_token_is_on_disk_for_its_owner_alone_and_prints_nothing_secret() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    read(me.agent().fetch(get(seller.url("/x?y"))).await).await;
    let file = me.payer.files("tokens").pop().unwrap();
    #[cfg(unix)]
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions()) & 0o777,
        0o600
    );
    let journal = farebox_agent::Journal::unopened(me.payer.folder.path());
    let token = journal.purchases().unwrap().pop().unwrap();
    assert_eq!(token.paid().unwrap().standing, TokenStanding::Good { calls_left: None });
    assert_eq!((token.facts.services.clone(), token.method.as_str()), (vec!["shop".to_owned()], "GET"));
    assert_eq!(token.facts.valid_until.unwrap().unix_s(), 4_000_000_000);
    let (_, sent) = seller.credentials().pop().unwrap();
    let printed = format!("{token:?}");
    assert!(sent.split([' ', ':']).skip(1).all(|secret| !printed.contains(secret)), "{printed}");
    assert!(sent.starts_with("L402 "));
}

#[tokio::test]
async fn the_order_of_rails_chooses_and_the_next_that_can_pay_is_taken() {
    let both = |till: &Till| {
        let (macaroon, invoice) = till.terms();
        let (lightning, x402) = (bill_of(&macaroon, &invoice, &json!({})), bill(&[cent()]));
        let (mut parts, body) = lightning.into_parts();
        parts.headers.insert("payment-required", x402.headers()["payment-required"].clone());
        axum::response::Response::from_parts(parts, body)
    };
    let check = async |mood, order: &[RailName], evm, expected: Result<RailName, &str>| {
        let me = Satoshi::new(mood);
        let till = Arc::new(Till::new(&me.lightning));
        let bills = Arc::clone(&till);
        let seller = Seller::start(move |attempt, _| if attempt == 0 { both(&bills) } else { goods() }).await;
        let policy = Policy { rails: order.to_vec(), ..policy() };
        let builder = me.builder().policy(policy);
        let builder = if evm { builder.wallet(me.payer.wallet.clone()) } else { builder };
        let found = builder.build().unwrap().fetch(get(seller.url("/"))).await;
        let found = found.map(|fetched| fetched.payment.unwrap().offer.rail).map_err(|error| error.code());
        assert_eq!(found, expected, "{mood:?} {order:?} {evm}");
        let moved = me.lightning.paid() + usize::try_from(me.payer.wallet.signed()).unwrap();
        assert_eq!(moved, usize::from(expected.is_ok()));
    };
    use RailName::{L402, X402};
    check(Mood::Pays, &[X402, L402], true, Ok(X402)).await;
    check(Mood::Pays, &[L402, X402], true, Ok(L402)).await;
    check(Mood::Pays, &[X402, L402], false, Ok(L402)).await;
    check(Mood::Pays, &[X402], false, Err("wallet_cannot_pay")).await;
    check(Mood::Fails, &[L402, X402], true, Ok(X402)).await;
    check(Mood::Fails, &[L402, X402], false, Err("lightning_not_paid")).await;
    // What may be paid by one rail is not paid by another as well.
    check(Mood::FailsAndPays, &[L402, X402], true, Ok(L402)).await;
}

#[tokio::test]
async fn a_node_that_is_down_leaves_the_other_rails() {
    let me = Satoshi::new(Mood::Pays);
    me.purse.is_down.store(true, Ordering::SeqCst);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    let error = me.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), error.stake(), me.purse.asked()), ("node_unavailable", farebox_agent::Stake::Nothing, 0));
    assert!(me.payer.files("open").is_empty() && me.payer.files("tokens").is_empty());
}

#[tokio::test]
async fn the_fee_for_the_way_is_capped_and_more_is_told() {
    let me = Satoshi::new(Mood::PaysDear);
    let till = Arc::new(Till::new(&me.lightning));
    *till.wanted.lock().unwrap() = Wanted::sats(900);
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    let made = me.agent().fetch(get(seller.url("/"))).await.unwrap().payment.unwrap();
    assert_eq!(me.purse.orders.lock().unwrap()[0].fee_max_msat, 45_000);
    assert_eq!(made.notes, [Note::RoutingFeeOverLimit { fee_msat: 50_000, max_msat: 45_000 }]);
}

#[tokio::test]
async fn a_quote_shows_the_invoice_and_pays_nothing() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(Some(3))).await;
    let quote = async || match me.agent().quote(get(seller.url("/"))).await.unwrap() {
        Quote::Bill { offers, invoice, token, .. } => (offers, invoice.unwrap(), token),
        Quote::Free(_) => panic!("it is sold"),
    };
    let (offers, invoice, token) = quote().await;
    assert!(offers.len() == 1 && offers[0].chosen && token.is_none(), "{offers:?}");
    assert_eq!((offers[0].offer.amount.units, invoice.description.unwrap().as_raw()), (10_000, "a call"));
    assert_eq!(
        (invoice.payee.len(), &*invoice.payee, invoice.services),
        (66, &*offers[0].offer.pay_to, vec!["shop".to_owned()])
    );
    assert_eq!((me.purse.asked(), me.payer.files("tokens").len()), (0, 0));
    read(me.agent().fetch(get(seller.url("/"))).await).await;
    assert!(quote().await.2.is_some(), "a token is held now");
    assert_eq!(seller.seen().iter().filter(|seen| seen.credential().is_some()).count(), 1);
}

#[tokio::test]
async fn a_rate_makes_the_limit_in_dollars_count() {
    let check = async |sats: u64, max_msat, rate: Option<&str>, expected: Result<&str, &str>| {
        let me = Satoshi::new(Mood::Pays);
        let till = Arc::new(Till::new(&me.lightning));
        *till.wanted.lock().unwrap() = Wanted::sats(sats);
        let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
        let network = farebox_core::BitcoinNetwork::Regtest.network();
        let rated = |rate: &str| farebox_agent::DollarAsset::sats(&network).worth_each(rate.parse().unwrap()).unwrap();
        let policy = Policy { max_msat_per_call: max_msat, assets: rate.map(rated).into_iter().collect(), ..policy() };
        let found = me.builder().policy(policy).build().unwrap().fetch(get(seller.url("/"))).await;
        let price = |fetched: farebox_agent::Fetched| {
            fetched.payment.unwrap().price.map_or("none".to_owned(), |p| p.to_string())
        };
        let found = found.map(price).map_err(|error| match error {
            farebox_agent::FetchError::Policy(rules) => rules[0].rule.code(),
            other => other.code(),
        });
        assert_eq!(found, expected.map(str::to_owned), "{sats} {max_msat:?} {rate:?}");
        assert_eq!(me.lightning.paid(), usize::from(expected.is_ok()));
    };
    check(100, None, None, Err("no_sat_limit")).await;
    check(100, Some(100_000), None, Ok("none")).await;
    check(101, Some(100_000), None, Err("over_max_sat")).await;
    check(100, None, Some("100000"), Ok("$0.1")).await;
    check(101, None, Some("100000"), Err("over_max")).await;
    check(101, Some(200_000), Some("100000"), Err("over_max")).await;
    check(99, Some(90_000), Some("100000"), Err("over_max_sat")).await;
}
