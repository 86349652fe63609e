//! What the hot paths cost beside the books and the node. Not a test of speed: run it by hand.

use std::time::Instant;

use farebox_core::ports::{BillAsk, Clock as _, TokenRail as _};

use crate::shop::{BUYER, Route, Shop};

const ROUNDS: u32 = 20_000;

#[tokio::test]
#[ignore = "a measurement: cargo test --release -p farebox-lightning --test rail -- --ignored --nocapture"]
async fn cost_of_the_hot_paths() {
    let shop = Shop::with(|config| config.unpaid_per_minute = 60_000);
    let route = Route::of("GET /v1/weather/{city}");
    let token = shop.token(&route).await;
    let start = now();
    for _ in 0..ROUNDS {
        std::hint::black_box(shop.check(&token, &route).await.unwrap());
    }
    told("check a held token", start, ROUNDS);

    let (offer, request) = (shop.offer(&route.terms.price), farebox_core::RequestId::new("req_test"));
    let caller = farebox_core::CallerId::new("caller");
    let ask = |address: &str| BillAsk {
        caller: &caller,
        client: address.parse().unwrap(),
        route: &route.id,
        method: "GET",
        resource: "/v1/weather/berlin",
        url: "https://shop.example/v1/weather/berlin",
        offer: &offer,
        terms: &route.terms,
        request: &request,
        now: shop.clock.now(),
    };
    shop.rail.bill(&ask(BUYER)).await.unwrap();
    let start = now();
    for _ in 0..ROUNDS {
        std::hint::black_box(shop.rail.bill(&ask(BUYER)).await.unwrap());
    }
    told("show an open bill", start, ROUNDS);

    // The scripted node signs each invoice, which a real one does elsewhere.
    let start = now();
    let fresh = 200;
    for host in 0..fresh {
        std::hint::black_box(shop.rail.bill(&ask(&format!("198.51.100.{host}"))).await.unwrap());
    }
    told("make a bill, the node's signature included", start, fresh);
}

#[expect(clippy::disallowed_methods, reason = "measures real time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "a measurement tells what it found")]
fn told(what: &str, start: Instant, rounds: u32) {
    println!("{what}: {:.2} us", start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds));
}
