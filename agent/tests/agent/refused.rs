//! What a seller refused, or could not serve, without a charge: when the same bytes go out again, and when others.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use farebox_agent::{Charge, FetchError, Policy, Quote, Stake, Usd};
use farebox_core::ports::{Clock as _, Wallet};
use serde_json::json;

use crate::support::*;

const BALANCE: &str = "invalid_exact_evm_insufficient_balance";

/// Refuses the first credential it sees for its balance, and sells for every other.
async fn refuses_the_first(code: &'static str) -> Seller {
    let first = std::sync::OnceLock::new();
    Seller::start(move |_, seen| match seen.credential() {
        None => bill(&[cent()]),
        Some(credential) if *first.get_or_init(|| credential.clone()) == credential => {
            refusal(&[cent()], code, json!(false))
        }
        Some(_) => goods(),
    })
    .await
}

fn dollars(text: &str) -> Usd {
    Usd::new(text.parse().unwrap()).unwrap()
}

static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[tokio::test]
async fn another_wallet_pays_once_the_first_ones_payment_is_refused_again() {
    let (seller, payer) = (refuses_the_first(BALANCE).await, Payer::new());
    for _ in 0..2 {
        let error = payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
        assert!(matches!(error, FetchError::InsufficientBalance { .. }), "{error}");
        assert_eq!((error.stake(), error.declined_valid_until().is_some()), (Stake::Declined, true));
        assert!(error.to_string().contains("0x0707"), "{error}");
    }
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials(), seller.credentials().len()), (1, 1, 2));

    let other = Arc::new(CountingWallet::of([8; 20]));
    let tell = |entry: &farebox_agent::Entry| TOLD.lock().unwrap().push(format!("{:x}", entry.current.payer.unwrap()));
    let agent = payer.builder().wallet(Arc::clone(&other) as Arc<dyn Wallet>).on_foreign_resend(tell).build().unwrap();
    let fetched = agent.fetch(get(seller.url("/"))).await.unwrap();
    assert_eq!(fetched.payment.as_ref().unwrap().signatures, 1);
    assert_eq!(read(Ok(fetched)).await.0, 200);
    assert_eq!((other.signed(), seller.distinct_credentials(), seller.credentials().len()), (1, 2, 4));
    assert_eq!(*TOLD.lock().unwrap(), [format!("0x{}", "07".repeat(20))]);
}

#[tokio::test]
async fn what_was_refused_counts_against_the_limit_until_it_expires() {
    let (seller, payer) = (refuses_the_first("no_reason").await, Payer::new());
    let policy = || Policy { max_per_call: dollars("0.019"), ..Policy::default() };
    for _ in 0..3 {
        let agent = payer.builder().policy(policy()).build().unwrap();
        let error = agent.fetch(get(seller.url("/"))).await.unwrap_err();
        assert_eq!(error.code(), "payment_refused", "{error}");
    }
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (1, 1));
    let wider = Policy { max_per_call: dollars("0.02"), ..Policy::default() };
    let agent = payer.builder().policy(wider).build().unwrap();
    assert_eq!(read(agent.fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (2, 2));
}

#[tokio::test]
async fn what_was_refused_is_not_sent_again_against_the_present_policy() {
    let (seller, payer) = (refuses_the_first("no_reason").await, Payer::new());
    assert_eq!(payer.agent().fetch(get(seller.url("/"))).await.unwrap_err().code(), "payment_refused");
    let elsewhere = || Policy { networks: Some(["eip155:8453".parse().unwrap()].into()), ..Policy::default() };
    let agent = payer.builder().policy(elsewhere()).build().unwrap();
    let error = agent.fetch(get(seller.url("/"))).await.unwrap_err();
    assert!(matches!(&error, FetchError::Refused { then: Some(rules), .. } if rules.len() == 1), "{error}");
    assert!(error.to_string().contains("eip155:84532"), "{error}");
    assert_eq!((payer.wallet.signed(), seller.credentials().len()), (1, 1), "not even sent again");
}

#[tokio::test]
async fn a_cheaper_bill_is_paid_beside_what_was_refused_over_the_present_limit() {
    let dear = Arc::new(AtomicBool::new(true));
    let seen_dear = Arc::clone(&dear);
    let seller = Seller::start(move |_, seen| match (seen.credential(), seen_dear.load(Ordering::SeqCst)) {
        (None, true) => bill(&[offer(20_000)]),
        (None, false) => bill(&[offer(5_000)]),
        (Some(_), true) => refusal(&[offer(20_000)], "no_reason", json!(false)),
        (Some(_), false) => goods(),
    })
    .await;
    let payer = Payer::new();
    assert_eq!(payer.agent().fetch(get(seller.url("/"))).await.unwrap_err().code(), "payment_refused");
    dear.store(false, Ordering::SeqCst);
    let fetch = async |max: &str| {
        let policy = Policy { max_per_call: dollars(max), ..Policy::default() };
        payer.builder().policy(policy).build().unwrap().fetch(get(seller.url("/"))).await
    };
    // $0.02 is outstanding: it is over the limit alone, so nothing may be added to it.
    assert_eq!(fetch("0.019").await.unwrap_err().code(), "payment_refused");
    assert_eq!((payer.wallet.signed(), seller.credentials().len()), (1, 1));
    // Once it has expired, it counts no more.
    payer.clock.advance(farebox_agent::EXPIRY_GRACE + std::time::Duration::from_secs(61));
    assert_eq!(read(fetch("0.019").await).await.0, 200);
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (2, 2));
}

#[tokio::test]
async fn an_unclear_payment_is_sent_again_whatever_the_policy_says_now() {
    let down = Arc::new(AtomicBool::new(true));
    let switch = Arc::clone(&down);
    let seller = Seller::start(move |attempt, _| match attempt {
        0 => bill(&[cent()]),
        _ if switch.load(Ordering::SeqCst) => respond(503, &[], ""),
        _ => goods(),
    })
    .await;
    let payer = Payer::new();
    assert_eq!(payer.agent().fetch(get(seller.url("/"))).await.unwrap_err().code(), "outcome_unclear");
    down.store(false, Ordering::SeqCst);
    let nothing = Policy { max_per_call: dollars("0"), ..Policy::default() };
    let agent = payer.builder().policy(nothing).build().unwrap();
    assert_eq!(read(agent.fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (1, 1));
}

#[tokio::test]
async fn a_refused_payment_that_is_sent_again_and_lost_is_unclear_and_nothing_else_is_signed() {
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill(&[cent()]),
        1 => refusal(&[cent()], "no_reason", json!(false)),
        _ => respond(503, &[], ""),
    })
    .await;
    let payer = Payer::new();
    assert_eq!(payer.agent().fetch(get(seller.url("/"))).await.unwrap_err().code(), "payment_refused");
    for _ in 0..2 {
        assert_eq!(payer.agent().fetch(get(seller.url("/"))).await.unwrap_err().code(), "outcome_unclear");
        payer.clock.advance(farebox_agent::EXPIRY_GRACE + std::time::Duration::from_secs(61));
    }
    assert_eq!(payer.wallet.signed(), 1, "it may have been charged the second time");
}

fn same_proof(status: u16, charged: bool, receipt: &str) -> axum::response::Response {
    let body = json!({"code": "upstream_unreachable", "detail": "no", "retry": "same_proof", "charged": charged});
    let id = "pay_01hzxk3vd4s0q7r2m9n8b5c6e1";
    let headers =
        [("content-type", "application/problem+json"), ("payment-response", receipt), ("farebox-payment-id", id)];
    respond(status, &headers, body.to_string())
}

#[tokio::test]
async fn a_seller_that_could_not_serve_and_did_not_charge_is_believed_and_asked_again() {
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill(&[cent()]),
        1..=5 => same_proof(502, false, &settlement(false, "", Some("upstream_unreachable"))),
        _ => goods(),
    })
    .await;
    let payer = Payer::new();
    let error = payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), error.stake(), error.retryable()), ("not_served", Stake::Declined, true));
    assert!(error.declined_valid_until().unwrap() > payer.clock.now());
    let text = error.to_string();
    assert!(text.contains("says it was not charged") && text.contains("the signature stays valid until"), "{text}");
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (1, 1));
}

#[tokio::test]
async fn a_seller_that_charged_and_could_not_serve_is_redeemed_by_the_same_call() {
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill(&[cent()]),
        1 => same_proof(502, true, &settlement(true, HASH, None)),
        2..=5 => respond(503, &[], ""),
        _ => goods(),
    })
    .await;
    let payer = Payer::new();
    let error = payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), error.stake(), error.retryable()), ("charged_not_served", Stake::Charged, true));
    let text = error.to_string();
    assert!(text.contains(HASH) && text.contains("pay_01hzxk3vd4s0q7r2m9n8b5c6e1"), "{text}");
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (1, 1));
}

#[tokio::test]
async fn an_upstream_error_is_uncharged_only_by_a_clear_word() {
    let check = async |receipt: String, expected: bool| {
        let seller = Seller::start(move |attempt, _| match attempt {
            0 => bill(&[cent()]),
            1 => respond(404, &[("payment-response", &receipt)], "gone"),
            _ => goods(),
        })
        .await;
        let payer = Payer::new();
        let fetched = payer.agent().fetch(get(seller.url("/"))).await.unwrap();
        let charge = fetched.payment.as_ref().unwrap().charge.clone();
        assert_eq!(matches!(charge, Charge::NotCharged { .. }), expected, "{charge:?}");
        assert_eq!(read(Ok(fetched)).await, (404, "gone".to_owned()));
        assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);
        assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (1, 1));
    };
    check(settlement(false, "", Some("not_delivered")), true).await;
    check(settlement(false, "", None), true).await;
    check(settlement(false, HASH, None), false).await;
    check(settlement(false, "", Some("settlement_pending")), false).await;
    check("not base64".to_owned(), false).await;
}

#[tokio::test]
async fn a_quote_shows_what_is_open() {
    let (seller, payer) = (refuses_the_first(BALANCE).await, Payer::new());
    let open = async |label: &str| match payer.agent().quote_distinct(get(seller.url("/")), label).await.unwrap() {
        Quote::Bill { open, .. } => open,
        Quote::Free(_) => panic!("expected a bill"),
    };
    assert_eq!(open("").await, None);
    payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    let entry = open("").await.unwrap();
    assert_eq!(entry.current.payer, Some(payer.wallet.evm_address()));
    assert!(entry.valid_until(payer.clock.now()).is_some());
    assert_eq!(open("another").await, None);
}
