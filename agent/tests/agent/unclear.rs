//! Outcomes that are not clear: the same bytes again, and never a second signature while the first may be charged.

use std::time::{Duration, Instant};

use farebox_agent::{FetchError, Stake};
use serde_json::json;

use crate::support::*;

/// Runs one fetch against a script of paid answers and says what it came to, how many attempts it took and how many signatures.
async fn check(
    paid: impl Fn(usize) -> axum::response::Response + Send + Sync + 'static,
    expected: Result<u16, &str>,
    attempts: usize,
    signatures: u32,
) {
    let seller = Seller::start(move |attempt, _| if attempt == 0 { bill(&[cent()]) } else { paid(attempt) }).await;
    let payer = Payer::new();
    let found = match payer.agent().fetch(get(seller.url("/"))).await {
        Ok(fetched) => Ok(fetched.response.status().as_u16()),
        Err(error) => Err(error.code()),
    };
    assert_eq!(found, expected);
    assert_eq!(seller.credentials().len(), attempts, "attempts");
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (signatures, signatures as usize));
}

fn pending() -> axum::response::Response {
    respond(402, &[("payment-response", &settlement(false, "", Some("settlement_pending")))], "{}")
}

fn reverted_maybe() -> axum::response::Response {
    respond(402, &[("payment-response", &settlement(false, HASH, Some("invalid_exact_evm_signature")))], "{}")
}

#[tokio::test]
async fn an_unclear_answer_is_asked_again_with_identical_bytes() {
    let until_third = |answer: fn() -> axum::response::Response| move |n| if n < 3 { answer() } else { goods() };
    check(until_third(|| respond(502, &[], "")), Ok(200), 3, 1).await;
    check(until_third(|| respond(503, &[], "{}")), Ok(200), 3, 1).await;
    check(until_third(|| respond(409, &[], "in progress")), Ok(200), 3, 1).await;
    check(until_third(pending), Ok(200), 3, 1).await;
    check(until_third(reverted_maybe), Ok(200), 3, 1).await;
    check(until_third(|| refusal(&[cent()], "doubt", json!("unknown"))), Ok(200), 3, 1).await;
}

#[tokio::test]
async fn a_lost_answer_is_asked_again_with_identical_bytes() {
    let lost = || {
        let broken = futures_util::stream::iter([Err::<bytes::Bytes, _>(std::io::Error::other("gone"))]);
        respond(402, &[], axum::body::Body::from_stream(broken))
    };
    check(move |n| if n == 1 { lost() } else { goods() }, Ok(200), 2, 1).await;
    let late = |n| {
        if n == 1 {
            std::thread::sleep(Duration::from_millis(600));
        }
        goods()
    };
    check(late, Ok(200), 2, 1).await;
}

#[tokio::test]
async fn an_endless_402_ends_without_a_second_signature() {
    check(|_| bill(&[cent()]), Err("outcome_unclear"), 5, 1).await;
    check(|_| pending(), Err("outcome_unclear"), 5, 1).await;
}

#[tokio::test]
async fn a_clear_no_is_not_asked_again() {
    check(|_| refusal(&[cent()], "insufficient_balance", json!(false)), Err("payment_refused"), 1, 1).await;
    let used = || settlement(false, "", Some("invalid_exact_evm_nonce_already_used"));
    check(move |_| respond(402, &[("payment-response", &used())], "{}"), Err("charged_not_delivered"), 1, 1).await;
    check(|_| refusal(&[cent()], "spent", json!(true)), Err("charged_not_delivered"), 1, 1).await;
    check(|_| respond(404, &[], "no such thing"), Ok(404), 1, 1).await;
}

#[tokio::test]
async fn a_moved_price_or_an_expired_authorization_is_signed_once_more() {
    let moved = |n| if n == 1 { refusal(&[offer(20_000)], "price_changed", json!(false)) } else { goods() };
    check(moved, Ok(200), 2, 2).await;
    let expired = |n| if n == 1 { refusal(&[cent()], "authorization_expired", json!(false)) } else { goods() };
    check(expired, Ok(200), 2, 2).await;
    check(|_| refusal(&[cent()], "authorization_expired", json!(false)), Err("payment_refused"), 2, 2).await;
}

#[tokio::test]
async fn retry_after_is_honoured_as_far_as_the_deadline_allows() {
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill(&[cent()]),
        1 => respond(503, &[("retry-after", "1")], ""),
        2 => goods(),
        _ => respond(503, &[("retry-after", "3600")], ""),
    })
    .await;
    let payer = Payer::new();
    #[expect(clippy::disallowed_methods, reason = "measures the wait itself")]
    let began = Instant::now();
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert!(began.elapsed() >= Duration::from_secs(1));
    let error = payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert!(matches!(error, FetchError::OutcomeUnclear { attempts: 1, .. }), "{error}");
    assert_eq!((error.stake(), error.retryable()), (Stake::Unclear, true));
    assert!(began.elapsed() < Duration::from_secs(4), "an hour is not waited for");
}

#[tokio::test]
async fn a_network_that_never_answered_leaves_nothing_at_stake() {
    let payer = Payer::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: url::Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let error = payer.agent().fetch(get(url)).await.unwrap_err();
    assert_eq!((error.code(), error.stake()), ("network", Stake::Nothing));
    assert_eq!(payer.wallet.signed(), 0);
}
