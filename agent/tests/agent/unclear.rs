//! Outcomes that are not clear: the same bytes again, and never a second signature while the first may be charged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use farebox_agent::{FetchError, Journal, RetryPolicy, Stake};
use farebox_core::{
    Amount, AssetId, EvmAddress, Offer, Timestamp, X402Credential,
    ports::{Clock as _, Wallet, WalletError},
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
    check(|_| refusal(&[cent()], "no_funds", json!(false)), Err("payment_refused"), 1, 1).await;
    check(|_| refusal(&[cent()], "insufficient_balance", json!(false)), Err("insufficient_balance"), 1, 1).await;
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

/// Signs once.
#[derive(Debug, Default)]
struct OneShot(CountingWallet);

#[async_trait::async_trait]
impl Wallet for OneShot {
    fn evm_address(&self) -> EvmAddress {
        self.0.evm_address()
    }

    async fn authorize(&self, offer: &Offer, now: Timestamp) -> Result<X402Credential, WalletError> {
        if self.0.signed() > 0 {
            return Err(WalletError::Unsupported { reason: "once only".to_owned() });
        }
        self.0.authorize(offer, now).await
    }

    async fn balance(&self, asset: &AssetId) -> Result<Amount, WalletError> {
        self.0.balance(asset).await
    }
}

#[tokio::test]
async fn a_wallet_or_journal_that_fails_after_a_refusal_leaves_a_declined_payment_at_stake() {
    let payer = Payer::new();
    let folder = payer.folder.path().to_owned();
    let seller = Seller::start(move |attempt, seen| {
        if attempt > 0 && seen.path == "/journal" {
            // The next entry cannot be written.
            std::fs::remove_dir_all(folder.join("open")).unwrap();
        }
        if attempt == 0 { bill(&[cent()]) } else { refusal(&[cent()], "authorization_expired", json!(false)) }
    })
    .await;
    for (path, code) in [("/wallet", "wallet_cannot_pay"), ("/journal", "journal_unavailable")] {
        let agent = payer.builder().wallet(Arc::new(OneShot::default())).build().unwrap();
        let error = agent.fetch(get(seller.url(path))).await.unwrap_err();
        assert_eq!((error.code(), error.stake()), (code, Stake::Declined), "{error:?}");
        let until = error.declined_valid_until().unwrap();
        let left = until.since(payer.clock.now()).as_secs();
        assert!((50..=60).contains(&left), "{left} s");
    }
}

#[tokio::test]
async fn a_refusal_says_how_long_the_seller_could_break_its_word() {
    let payer = Payer::new();
    let clock = Arc::clone(&payer.clock);
    let seller = Seller::start(move |attempt, seen| {
        if attempt > 0 && seen.path == "/late" {
            clock.advance(Duration::from_secs(61));
        }
        if attempt == 0 { bill(&[cent()]) } else { refusal(&[cent()], "no_funds", json!(false)) }
    })
    .await;
    let refused = async |path| payer.agent().fetch(get(seller.url(path))).await.unwrap_err().declined_valid_until();
    assert!(refused("/soon").await.is_some_and(|until| until > payer.clock.now()));
    assert_eq!(refused("/late").await, None);
}

#[tokio::test]
async fn an_open_payment_that_cannot_be_read_is_never_nothing() {
    let seller = Seller::start(|attempt, _| if attempt == 0 { bill(&[cent()]) } else { respond(503, &[], "") }).await;
    let payer = Payer::new();
    payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    std::fs::write(payer.open_file(), "{").unwrap();
    let error = payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), error.stake()), ("journal_corrupt", Stake::Unclear));
}

/// A server that drops the first connection once it has read something, and answers the second.
async fn drops_the_first() -> (url::Url, Arc<AtomicU32>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let connections = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let nth = counted.fetch_add(1, Ordering::SeqCst);
            let mut head = [0; 1024];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            if nth > 0 {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    });
    (url, connections)
}

#[tokio::test]
async fn an_unpaid_request_is_repeated_unless_it_may_have_done_something() {
    let (url, connections) = drops_the_first().await;
    let payer = Payer::new();
    assert_eq!(read(payer.agent().fetch(get(url)).await).await, (200, "ok".to_owned()));
    assert_eq!(connections.load(Ordering::SeqCst), 2);

    let (url, connections) = drops_the_first().await;
    let error = payer.agent().fetch(reqwest::Request::new(http::Method::POST, url)).await.unwrap_err();
    assert_eq!((error.code(), connections.load(Ordering::SeqCst)), ("network", 1));

    // Refused before a byte was sent: even a POST is tried again.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let policy = RetryPolicy { first_wait: Duration::from_millis(200), ..quick() };
    let agent = payer.builder().retry(RetryPolicy { wait_max: Duration::from_secs(1), ..policy }).build().unwrap();
    let late = tokio::spawn(async move {
        let request = reqwest::Request::new(http::Method::POST, format!("http://{address}/").parse().unwrap());
        read(agent.fetch(request).await).await
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let app = axum::Router::new().fallback(|| async { "late" });
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    assert_eq!(late.await.unwrap(), (200, "late".to_owned()));
}

#[tokio::test]
async fn a_journal_only_named_pays_nothing_and_leaves_no_folder() {
    let seller = Seller::start(|attempt, _| if attempt == 0 { bill(&[cent()]) } else { goods() }).await;
    let payer = Payer::new();
    let folder = payer.folder.path().join("unmade");
    let agent = payer.builder().journal(Journal::unopened(&folder)).build().unwrap();
    agent.quote(get(seller.url("/"))).await.unwrap();
    assert_eq!(agent.fetch(get(seller.url("/"))).await.unwrap_err().code(), "journal_unavailable");
    assert_eq!((payer.wallet.signed(), folder.exists()), (0, false));
}
