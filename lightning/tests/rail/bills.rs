//! Invoices: one for each client, route and price, as long as it can be paid; and what stands in the way of one.

use std::{error::Error as _, num::NonZeroU32, sync::Arc, time::Duration};

use farebox_core::{
    BitcoinNetwork, Grant, InvoiceNews, InvoiceState,
    ports::{NoBill, TokenRail as _},
};
use farebox_lightning::WrongInvoice;
use farebox_testkit::Fault;
use lightning_invoice::Currency;

use crate::{
    node::{Create, NODE_ID},
    shop::{BUYER, Route, START, Shop, macaroon},
};

const S: Duration = Duration::from_secs(1);

fn route() -> Route {
    Route::of("GET /x")
}

#[tokio::test]
async fn a_bill_is_in_the_books_before_anybody_is_shown_it() {
    let shop = Shop::open();
    let route = route().granting(Grant::Calls(NonZeroU32::new(100).unwrap()));
    let bill = shop.bill(&route).await;
    let token = shop.in_books(bill.pass);
    assert_eq!((token.state, token.payment), (InvoiceState::Open, None));
    assert_eq!((&token.sold.invoice, &*token.sold.node), (&bill.invoice, NODE_ID));
    assert_eq!((token.sold.grant, token.sold.valid_until), (route.terms.grant, START.plus(600 * S + 3_600 * S)));
    assert_eq!(bill.invoice.amount_msat, 10_000);
    assert_eq!(bill.invoice.expires_at, START.plus(600 * S));
    let until = token.sold.valid_until.unix_s();
    let caveats = macaroon(&bill).caveats;
    assert_eq!(
        caveats,
        [
            "services=GET%20%2Fx:0".to_owned(),
            "GET%20%2Fx_capabilities=".to_owned(),
            format!("GET%20%2Fx_valid_until={until}"),
        ]
    );
}

#[tokio::test]
async fn time_is_counted_from_the_end_of_the_invoice() {
    let shop = Shop::open();
    let bill = shop.bill(&route().granting(Grant::For(7_200 * S))).await;
    assert_eq!(shop.in_books(bill.pass).sold.valid_until, START.plus(600 * S + 7_200 * S));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_unpaid_requests_of_one_client_make_one_invoice() {
    let shop = Arc::new(Shop::open());
    shop.node.next_create(Create::Slowly(Duration::from_millis(50)));
    let asked = (0..1_000).map(|_| {
        let shop = shop.clone();
        tokio::spawn(async move { shop.bill(&route()).await })
    });
    let bills = futures_util::future::join_all(asked.collect::<Vec<_>>()).await;
    let first = bills[0].as_ref().unwrap();
    assert!(bills.iter().all(|bill| bill.as_ref().unwrap() == first));
    assert_eq!(shop.node.invoices(), 1);
    for _ in 0..1_000 {
        assert_eq!(shop.bill(&route()).await, *first);
    }
    assert_eq!((shop.node.invoices(), shop.books.sold_tokens().len()), (1, 1));
}

#[tokio::test]
async fn an_ipv6_network_is_one_client_and_others_are_others() {
    let shop = Shop::open();
    let route = route();
    let one = shop.ask("2001:db8::1", &route, "/x").await.unwrap();
    assert_eq!(shop.ask("2001:db8::2:3:4:5", &route, "/y").await.unwrap(), one);
    assert_ne!(shop.ask("2001:db8:0:1::1", &route, "/x").await.unwrap(), one);
    assert_ne!(shop.ask(BUYER, &route, "/x").await.unwrap(), one);
    assert_eq!(shop.node.invoices(), 3);
}

#[tokio::test]
async fn callers_behind_one_proxy_are_shown_their_own_bills_within_the_limit_of_its_address() {
    let shop = Shop::with(|config| config.unpaid_per_client_per_minute = 20);
    let route = route();
    let ask = async |caller: &str| shop.ask_behind(BUYER, caller, &route, "/x").await;
    let one = ask("203.0.113.1").await.unwrap();
    let other = ask("203.0.113.2").await.unwrap();
    assert!(one.macaroon != other.macaroon && one.invoice.bolt11 != other.invoice.bolt11);
    assert_eq!(ask("203.0.113.1").await.unwrap(), one);
    let mut made = 2;
    while ask(&format!("made up {made}")).await.is_ok() {
        made += 1;
    }
    assert_eq!(made, 5, "anybody can make up callers");
}

#[tokio::test]
async fn another_route_price_tier_grant_or_bound_request_has_another_invoice() {
    let shop = Shop::open();
    let ask = async |route: &Route, resource: &str| shop.ask(BUYER, route, resource).await.unwrap().pass;
    let mut other_tier = route();
    other_tier.terms.tier = 1;
    let mut other_time = route();
    other_time.terms.valid_for = 60 * S;
    let mut passes = vec![
        ask(&route(), "/x").await,
        ask(&Route::of("POST /x"), "/x").await,
        ask(&route().at("11 sat"), "/x").await,
        ask(&other_tier, "/x").await,
        ask(&other_time, "/x").await,
        ask(&route().granting(Grant::For(60 * S)), "/x").await,
    ];
    assert_eq!(ask(&route(), "/another?path").await, passes[0], "a route's token is good for all of it");
    shop.clock.advance(60 * S);
    passes.push(ask(&route().bound(), "/x").await);
    passes.push(ask(&route().bound(), "/x?y").await);
    passes.sort_unstable();
    passes.dedup();
    assert_eq!((passes.len(), shop.node.invoices()), (8, 8));
}

#[tokio::test]
async fn a_bill_with_too_little_time_left_is_not_shown_again() {
    let shop = Shop::open();
    let first = shop.bill(&route()).await;
    shop.clock.advance(480 * S);
    assert_eq!(shop.bill(&route()).await, first, "120 s are left, which is enough");
    shop.clock.advance(S);
    let second = shop.bill(&route()).await;
    assert_ne!(second.invoice.payment_hash, first.invoice.payment_hash);
    assert_eq!(shop.bill(&route()).await, second);
    // The first can still be paid, and is good.
    assert!(shop.check(&shop.buy(&first), &route()).await.is_ok());
    assert_eq!(shop.bill(&route()).await, second, "what was bought was the other");
}

#[tokio::test]
async fn a_bill_that_was_paid_is_not_shown_again() {
    let shop = Shop::open();
    let first = shop.bill(&route()).await;
    shop.rail.bought(first.pass);
    let second = shop.bill(&route()).await;
    assert_ne!(second, first);
    // A good token says that its invoice is paid.
    shop.check(&shop.buy(&second), &route()).await.unwrap();
    assert_ne!(shop.bill(&route()).await, second);
    shop.rail.bought(first.pass);
    assert_eq!(shop.node.invoices(), 3);
}

#[tokio::test]
async fn an_invoice_is_made_though_everybody_who_asked_has_hung_up() {
    let shop = Shop::open();
    shop.node.next_create(Create::Slowly(Duration::from_millis(50)));
    let impatient = tokio::time::timeout(Duration::from_millis(5), shop.bill(&route())).await;
    assert!(impatient.is_err());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let bill = shop.bill(&route()).await;
    assert_eq!((shop.node.invoices(), shop.in_books(bill.pass).state), (1, InvoiceState::Open));
}

#[tokio::test]
async fn who_does_not_pay_is_limited_and_who_pays_is_not() {
    let shop = Shop::with(|config| config.unpaid_per_client_per_minute = 20);
    let bound = route().bound();
    let ask = async |n: u32| shop.ask(BUYER, &bound, &format!("/{n}")).await;
    let mut made = 0;
    let limited = loop {
        match ask(made).await {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(made, 5);
    assert!(matches!(limited, NoBill::Limited { retry_after_s: 3 }), "{limited:?}");
    assert!(ask(0).await.is_ok(), "the open ones are still shown");
    assert!(shop.ask("192.0.2.8", &bound, "/").await.is_ok(), "and others are served");
    shop.clock.advance(3 * S);
    for n in 100..1_100 {
        let bill = ask(n).await.unwrap();
        shop.check_for(&shop.buy(&bill), &bound, "GET", &format!("/{n}")).await.unwrap();
    }
}

#[tokio::test]
async fn all_clients_together_are_limited() {
    let shop = Shop::with(|config| config.unpaid_per_minute = 40);
    let mut made = 0;
    for host in 0..200 {
        match shop.ask(&format!("198.51.100.{host}"), &route(), "/x").await {
            Ok(_) => made += 1,
            Err(error) => assert!(matches!(error, NoBill::Limited { retry_after_s: 2 }), "{error:?}"),
        }
    }
    assert_eq!((made, shop.node.invoices()), (10, 10));
}

#[tokio::test(start_paused = true)]
async fn only_so_many_bills_are_made_at_once() {
    let shop = Shop::open();
    for _ in 0..64 {
        shop.node.next_create(Create::Hang);
    }
    let route = route();
    let addresses: Vec<String> = (0..65).map(|host| format!("198.51.100.{host}")).collect();
    let bills = futures_util::future::join_all(addresses.iter().map(|address| shop.ask(address, &route, "/x"))).await;
    assert!(matches!(bills[64], Err(NoBill::Limited { retry_after_s: 1 })), "{:?}", bills[64]);
    assert!(bills[..64].iter().all(|bill| matches!(bill, Err(NoBill::Node { .. }))));
    // Nothing is left of them.
    shop.clock.advance(10 * S);
    assert!(shop.ask(&addresses[0], &route, "/x").await.is_ok());
}

#[tokio::test]
async fn a_node_that_is_down_is_told_of_at_once_and_open_bills_are_still_shown() {
    let shop = Shop::open();
    let open = shop.bill(&route()).await;
    shop.node.go_down();
    let other = Route::of("GET /other");
    let down = async || {
        let error = shop.ask(BUYER, &other, "/x").await.unwrap_err();
        assert!(matches!(error, NoBill::Node { .. }), "{error:?}");
    };
    down().await;
    assert_eq!(
        shop.rail.node_trouble().map(|trouble| (trouble.since, trouble.code)),
        Some((START, "node_unavailable"))
    );
    assert_eq!(shop.bill(&route()).await, open);
    shop.node.come_up();
    down().await;
    assert_eq!(shop.node.orders().len(), 1, "nobody asked the node meanwhile");
    shop.clock.advance(5 * S);
    assert!(shop.ask(BUYER, &other, "/x").await.is_ok());
    assert_eq!(shop.rail.node_trouble(), None);
}

#[tokio::test]
async fn a_clock_that_is_set_back_does_not_keep_the_node_off() {
    let shop = Shop::open();
    shop.node.go_down();
    assert!(shop.ask(BUYER, &route(), "/x").await.is_err());
    shop.node.come_up();
    shop.clock.set(START.minus(86_400 * S));
    assert!(shop.ask(BUYER, &route(), "/x").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_hangs_is_waited_for_so_long_and_no_longer() {
    let shop = Shop::open();
    shop.node.next_create(Create::Hang);
    let asked = tokio::time::Instant::now();
    let error = shop.ask(BUYER, &route(), "/x").await.unwrap_err();
    assert!(matches!(error, NoBill::Node { .. }), "{error:?}");
    assert_eq!(asked.elapsed(), shop.config.node_timeout);
    shop.clock.advance(10 * S);
    assert!(shop.ask(BUYER, &route(), "/x").await.is_ok());
}

#[tokio::test]
async fn an_invoice_whose_answer_was_lost_is_shown_to_nobody() {
    let shop = Shop::open();
    shop.node.next_create(Create::LoseAnswer);
    assert!(matches!(shop.ask(BUYER, &route(), "/x").await, Err(NoBill::Node { .. })));
    assert_eq!((shop.node.invoices(), shop.books.sold_tokens().len()), (1, 0));
    shop.clock.advance(5 * S);
    let bill = shop.bill(&route()).await;
    assert_eq!((shop.node.invoices(), shop.books.sold_tokens().len()), (2, 1));
    assert!(shop.check(&shop.buy(&bill), &route()).await.is_ok());
}

#[tokio::test]
async fn what_one_route_is_refused_takes_no_other_off() {
    let shop = Shop::open();
    shop.node.next_create(Create::Refuse);
    assert!(matches!(shop.ask(BUYER, &route(), "/x").await, Err(NoBill::Node { .. })));
    assert_eq!(shop.rail.node_trouble(), None);
    assert!(shop.ask(BUYER, &route(), "/x").await.is_ok());
}

#[tokio::test]
async fn an_invoice_that_is_not_what_was_asked_for_is_shown_to_nobody() {
    let check = async |step: Create, what: &str| {
        let shop = Shop::open();
        shop.node.next_create(step);
        let error = shop.ask(BUYER, &route(), "/x").await.unwrap_err();
        let NoBill::Node { source } = &error else { panic!("{error:?}") };
        assert!(source.to_string().contains(what), "{source}");
        assert_eq!(shop.books.sold_tokens(), []);
        assert!(shop.ask(BUYER, &route(), "/x").await.is_ok(), "the next one is");
    };
    check(Create::Amount(9_999), "amount 9999 msat; asked for 10000 msat").await;
    check(Create::Amount(10_001), "amount").await;
    check(Create::Network(Currency::Bitcoin), "network bitcoin; asked for regtest").await;
    check(Create::TellHash([9; 32]), "payment hash").await;
    check(Create::Expiry(86_400 * S), "time left").await;
    check(Create::Expiry(60 * S), "time left").await;
}

#[test]
fn a_wrong_invoice_says_what_is_wrong() {
    let wrong = WrongInvoice { what: "amount", found: "1 msat".to_owned(), asked: "2 msat".to_owned() };
    assert_eq!(wrong.to_string(), "the node's invoice has amount 1 msat; asked for 2 msat");
    assert!(wrong.source().is_none());
}

#[tokio::test]
async fn an_invoice_is_sold_once() {
    let shop = Shop::open();
    let first = shop.bill(&route()).await;
    shop.node.next_create(Create::Repeat);
    let error = shop.ask("192.0.2.99", &route(), "/x").await.unwrap_err();
    assert!(matches!(error, NoBill::Books(_)), "two tokens of one payment: {error:?}");
    assert_eq!(shop.books.sold_tokens().len(), 1);
    assert!(shop.check(&shop.buy(&first), &route()).await.is_ok());
}

#[tokio::test]
async fn a_bill_that_the_books_did_not_take_is_not_shown() {
    let shop = Shop::open();
    for fault in [Fault::FailBefore, Fault::FailAfter] {
        shop.books.plan(0, fault);
        let error = shop.ask(BUYER, &route(), "/x").await.unwrap_err();
        assert!(matches!(error, NoBill::Books(_)), "{error:?}");
    }
    assert_eq!(shop.node.invoices(), 2);
    let shown = shop.bill(&route()).await;
    assert_eq!(shop.node.invoices(), 3);
    assert!(shop.check(&shop.buy(&shown), &route()).await.is_ok());
}

#[tokio::test]
async fn a_node_of_another_network_or_in_anothers_place_sells_nothing() {
    let shop = Shop::open();
    shop.node.become_another(NODE_ID, BitcoinNetwork::Bitcoin);
    assert!(shop.ask(BUYER, &route(), "/x").await.is_err());
    assert_eq!(shop.rail.node_trouble().unwrap().code, "node_impostor");
    shop.node.become_another(NODE_ID, BitcoinNetwork::Regtest);
    shop.clock.advance(5 * S);
    shop.bill(&route()).await;
    let other = Route::of("GET /other");
    shop.node.go_down();
    assert!(shop.ask(BUYER, &other, "/x").await.is_err());
    shop.node.come_up();
    shop.node.become_another("03", BitcoinNetwork::Regtest);
    for _ in 0..3 {
        shop.clock.advance(5 * S);
        assert!(shop.ask(BUYER, &other, "/x").await.is_err());
        assert_eq!(shop.rail.node_trouble().unwrap().code, "node_impostor");
    }
    assert_eq!(shop.node.invoices(), 1);
}

#[tokio::test]
async fn wallets_are_told_what_is_bought_and_never_the_query() {
    let shop = Shop::open();
    let calls = route().granting(Grant::Calls(NonZeroU32::new(100).unwrap()));
    shop.ask(BUYER, &calls, "/x?secret=1").await.unwrap();
    shop.ask(BUYER, &route().bound(), "/x?secret=1").await.unwrap();
    shop.ask(BUYER, &route().granting(Grant::For(3_600 * S)), "/x").await.unwrap();
    let long = Route::of(&format!("GET /{}", "ü".repeat(400)));
    shop.ask(BUYER, &long, "/x").await.unwrap();
    let told: Vec<String> = shop.node.orders().into_iter().map(|order| order.description).collect();
    assert_eq!(
        told[..3],
        [
            "100 calls: GET /x at https://shop.example",
            "1 call: GET https://shop.example/x",
            "3600 s of calls: GET /x at https://shop.example",
        ]
    );
    assert!(told[3].len() <= 200, "{}", told[3].len());
}

#[tokio::test(start_paused = true)]
async fn a_held_or_cancelled_bill_is_not_shown_again() {
    for news in [InvoiceNews::Held, InvoiceNews::Cancelled] {
        let shop = Shop::open();
        let _following = crate::news::Following::of(&shop.rail);
        let first = shop.bill(&route()).await;
        shop.node.happen(first.invoice.payment_hash, news);
        crate::news::until(|| shop.in_books(first.pass).state != InvoiceState::Open).await;
        let second = shop.bill(&route()).await;
        assert_ne!(second, first, "{news:?}");
    }
}
