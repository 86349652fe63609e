//! Sellers that want more than they should get.

use std::sync::atomic::Ordering;

use farebox_agent::{BILL_BODY_BYTES_MAX, FetchError, Note, PolicyRule};
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn a_seller_that_says_not_charged_cannot_collect_more_than_the_limit() {
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill(&[offer(60_000)]),
        _ => refusal(&[offer(70_000)], "price_changed", json!(false)),
    })
    .await;
    let payer = Payer::new();
    for _ in 0..3 {
        let error = payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
        let FetchError::Refused { then: Some(refused), .. } = &error else { panic!("{error:?}") };
        assert!(matches!(refused[0].rule, PolicyRule::Outstanding { .. }), "{error}");
    }
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (1, 1));
}

#[tokio::test]
async fn small_prices_do_not_buy_many_signatures() {
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill(&[offer(1)]),
        n => refusal(&[offer(1 + n as u128)], "price_changed", json!(false)),
    })
    .await;
    let payer = Payer::new();
    assert_eq!(payer.agent().fetch(get(seller.url("/"))).await.unwrap_err().code(), "payment_refused");
    assert_eq!(payer.wallet.signed(), 2);
}

#[tokio::test]
async fn another_recipient_in_a_second_bill_is_told() {
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill(&[cent()]),
        1 => {
            let mut other = cent();
            other.pay_to = "0x0000000000000000000000000000000000000bad".into();
            refusal(&[other], "moved", json!(false))
        }
        _ => goods(),
    })
    .await;
    let payer = Payer::new();
    let made = payer.agent().fetch(get(seller.url("/"))).await.unwrap().payment.unwrap();
    assert!(matches!(&made.notes[..], [Note::PayToChanged { was, .. }] if **was == *SELLER), "{:?}", made.notes);
}

#[tokio::test]
async fn a_bill_of_ten_years_is_signed_for_minutes() {
    let mut long = cent();
    long.max_timeout_s = 315_360_000;
    let seller = Seller::start(move |attempt, _| if attempt == 0 { bill(&[long.clone()]) } else { goods() }).await;
    let payer = Payer::new();
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!(payer.wallet.longest_s.load(Ordering::SeqCst), 900);
}

#[tokio::test]
async fn a_402_that_is_no_bill_is_told_and_not_paid() {
    let huge = "x".repeat(BILL_BODY_BYTES_MAX + 1);
    let bodies = ["", "{}", "not json", "[1]", "{\"x402Version\":1,\"accepts\":5}", huge.as_str()];
    for body in bodies.map(str::to_owned) {
        let seller = Seller::start(move |_, _| respond(402, &[], body.clone())).await;
        let payer = Payer::new();
        let error = payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
        assert!(error.code().starts_with("bill_"), "{error:?}");
        assert_eq!((payer.wallet.signed(), seller.seen().len()), (0, 1));
    }
}

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    let seller = Seller::start(|attempt, _| {
        let endless =
            futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b'x'; 65_536])));
        let body = axum::body::Body::from_stream(endless);
        if attempt == 0 { bill_with(&[cent()], body) } else { respond(503, &[], body) }
    })
    .await;
    let payer = Payer::new();
    let error = payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), payer.wallet.signed()), ("outcome_unclear", 1), "{error}");
}

#[tokio::test]
async fn a_caller_cannot_slip_in_a_payment_of_its_own() {
    let seller = Seller::start(|_, _| goods()).await;
    let payer = Payer::new();
    let mut request = get(seller.url("/"));
    request.headers_mut().insert("x-payment", "e30=".parse().unwrap());
    assert_eq!(payer.agent().fetch(request).await.unwrap_err().code(), "credential_present");
    assert!(seller.seen().is_empty());
}

#[tokio::test]
async fn what_a_seller_says_cannot_forge_a_line() {
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill(&[cent()]),
        _ => refusal(&[cent()], "no\r\npaid 0 USDC\u{1b}[2J", json!(false)),
    })
    .await;
    let payer = Payer::new();
    let error = payer.agent().fetch(get(seller.url("/"))).await.unwrap_err().to_string();
    assert!(!error.contains(|c: char| c.is_control()), "{error}");
}
