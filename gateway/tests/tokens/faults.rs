//! Upstreams that fail, books that do not listen, and processes that die.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use farebox_testkit::Fault;
use tokio::io::AsyncWriteExt as _;

use crate::{
    kiosk::{Got, Kiosk, Plan, counting, keyed},
    support::{patiently, raw_upstream, read_head},
};

/// An upstream that says these bytes on its first connections, each once, and then `ok`.
async fn failing(answers: Vec<&'static str>) -> (String, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let address = raw_upstream(move |mut tcp| {
        let (counter, answers) = (counter.clone(), answers.clone());
        async move {
            read_head(&mut tcp).await;
            let call = counter.fetch_add(1, Ordering::SeqCst);
            let ok = "HTTP/1.1 200 ok\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
            tcp.write_all(answers.get(call).copied().unwrap_or(ok).as_bytes()).await.unwrap();
        }
    })
    .await;
    (format!("http://{address}"), calls)
}

#[tokio::test]
async fn an_upstream_that_fails_for_long_costs_no_call() {
    let broken = vec![
        "HTTP/1.1 500 no\r\ncontent-length: 4\r\n\r\noops",
        "HTTP/1.1 503 no\r\ntransfer-encoding: chunked\r\n\r\n4\r\noops\r\n0\r\n\r\n",
        "",
        "HTTP/1.1 200 ok\r\ncontent-length: 10\r\n\r\nhalf",
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 ok\r\ncontent-type: application/grpc\r\ngrpc-status: 14\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 500 no\r\ncontent-length: 4\r\n\r\noops",
    ];
    let (url, calls) = failing(broken.clone()).await;
    let kiosk = Plan::calls(1, url).open().await;
    let token = kiosk.buy("/paid/x").await;
    for answer in &broken {
        let got = kiosk.get("/paid/x", &token).await;
        assert_eq!((got.status, got.has_bill()), (502, false), "{answer:?}: {got:?}");
        assert_eq!((&got.problem()["retry"], &got.problem()["charged"]), (&"same_proof".into(), &false.into()));
    }
    assert_eq!(kiosk.get("/paid/x", &token).await.body, "ok");
    assert_eq!(calls.load(Ordering::SeqCst), broken.len() + 1);
    kiosk.get("/paid/x", &token).await.check(402, "token_spent", "after_payment", "false");
}

#[tokio::test]
async fn an_upstreams_own_refusal_is_a_call() {
    let (url, _) = failing(vec!["HTTP/1.1 404 no\r\ncontent-length: 4\r\n\r\nnope"]).await;
    let kiosk = Plan::calls(1, url).open().await;
    let token = kiosk.buy("/paid/x").await;
    let got = kiosk.get("/paid/x", &token).await;
    assert_eq!((got.status, got.body.as_str(), got.header("farebox-pass-remaining")), (404, "nope", Some("0")));
    assert_eq!(kiosk.get("/paid/x", &token).await.status, 402);
}

/// Without a bound, an upstream that can be made to break off just before its end would be had for nothing.
#[tokio::test]
async fn answers_that_break_off_are_forgiven_three_times() {
    let half = "HTTP/1.1 200 ok\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let (url, calls) = failing(vec![half; 9]).await;
    let kiosk = Plan::calls(1, url).open().await;
    let token = kiosk.buy("/paid/x").await;
    for _ in 0..4 {
        let got = kiosk.get("/paid/x", &token).await;
        assert!(got.status == 200 && got.body.starts_with("broken"), "{got:?}");
    }
    kiosk.get("/paid/x", &token).await.check(402, "token_spent", "after_payment", "false");
    assert_eq!(calls.load(Ordering::SeqCst), 4);
}

/// Sends the same until it is known what became of it; each answer is one that an honest client can act on.
async fn insist(kiosk: &Kiosk, token: &http::HeaderMap) -> Got {
    for _ in 0..50 {
        let got = kiosk.get("/paid/x", token).await;
        match got.status {
            503 => {
                assert!(!got.has_bill() && got.problem()["retry"] == "same_proof", "{got:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            _ => return got,
        }
    }
    panic!("never told");
}

#[tokio::test]
async fn books_that_fail_at_any_moment_neither_give_a_call_away_nor_lose_one() {
    let operations = {
        let (url, _) = counting().await;
        let kiosk = Plan::calls(1, url).open().await;
        let token = kiosk.buy("/paid/x").await;
        let before = kiosk.ledger.operations();
        kiosk.get("/paid/x", &token).await;
        kiosk.ledger.operations() - before
    };
    assert!(operations >= 3, "a look, a draw and its end, and were {operations}");
    for nth in 0..operations {
        for fault in [Fault::FailBefore, Fault::FailAfter] {
            let (url, calls) = counting().await;
            let kiosk = Plan::calls(1, url).open().await;
            let token = kiosk.buy("/paid/x").await;
            kiosk.ledger.plan(nth, fault);
            let got = insist(&kiosk, &token).await;
            assert_eq!((got.status, got.body.as_str()), (200, "ok 1"), "{fault:?} at {nth}: {got:?}");
            assert_eq!(kiosk.get("/paid/x", &token).await.status, 402, "{fault:?} at {nth}");
            assert_eq!(calls.load(Ordering::SeqCst), 1, "{fault:?} at {nth}");
        }
    }
}

/// Sends a request and closes the connection after `patience`, whatever has come by then.
async fn hang_up_in(kiosk: &Kiosk, token: &http::HeaderMap, patience: Duration) {
    let mut tcp = tokio::net::TcpStream::connect(kiosk.gateway.address).await.unwrap();
    let lines = token.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()));
    let head = format!("GET /paid/x HTTP/1.1\r\nhost: x\r\n{}\r\n", lines.collect::<String>());
    tcp.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(patience).await;
}

#[tokio::test]
async fn a_caller_who_hangs_up_at_any_moment_leaves_the_call_or_its_answer() {
    let whole = "HTTP/1.1 200 ok\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
    let stream = "HTTP/1.1 200 ok\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    for answer in [whole, stream] {
        let (url, calls) = failing(vec![answer; 999]).await;
        let kiosk = Plan { slow: Duration::from_millis(15), ..Plan::calls(1, url) }.open().await;
        for patience in (0..100).step_by(5).map(Duration::from_millis) {
            let token = keyed(&kiosk.buy("/paid/x").await, "mine");
            let before = calls.load(Ordering::SeqCst);
            hang_up_in(&kiosk, &token, patience).await;
            let got = insist(&kiosk, &token).await;
            let is_begun_stream = answer == stream && got.status == 409;
            assert!(got.body == "ok" || is_begun_stream, "after {patience:?}: {got:?}");
            let other = kiosk.get("/paid/x", &keyed(&token, "other")).await;
            other.check(402, "token_spent", "after_payment", "false");
            assert!(calls.load(Ordering::SeqCst) - before <= 2, "after {patience:?}");
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_moment_leaves_the_call_or_its_answer_and_never_both_twice() {
    for nth in 0..3 {
        for fault in [Fault::DieBefore, Fault::DieAfter] {
            let (url, calls) = counting().await;
            let kiosk = Plan { busy_wait: Duration::from_millis(50), ..Plan::calls(1, url) }.open().await;
            let token = keyed(&kiosk.buy("/paid/x").await, "mine");
            kiosk.ledger.plan(nth, fault);
            let got = kiosk.get("/paid/x", &token).await;
            assert!(got.status == 503 && !got.has_bill(), "{fault:?} at {nth}: {got:?}");
            let kiosk = kiosk.restart("2").await;
            let got = insist(&kiosk, &token).await;
            assert_eq!(got.status, 200, "{fault:?} at {nth}: {got:?}");
            assert_eq!(kiosk.get("/paid/x", &token).await.body, got.body, "the key has its answer");
            assert_eq!(kiosk.get("/paid/x", &keyed(&token, "other")).await.status, 402, "{fault:?} at {nth}");
            assert!(calls.load(Ordering::SeqCst) <= 2, "{fault:?} at {nth}");
            assert_eq!(kiosk.ledger.payments().len(), 1);
        }
    }
}

/// Else whoever holds streams open would have them again after every deployment.
#[tokio::test]
async fn a_stream_that_a_stopping_gateway_cuts_off_is_in_the_books_before_it_ends() {
    let (url, calls) = half_a_stream().await;
    let kiosk = Plan { slow: Duration::from_millis(200), ..Plan::calls(1, url) }.open().await;
    let token = kiosk.buy("/paid/x").await;
    let request = kiosk.client.get(kiosk.gateway.url("/paid/x")).headers(token.clone());
    let mut stream = patiently(request.send()).await.unwrap();
    assert_eq!(patiently(stream.chunk()).await.unwrap().unwrap(), "half");
    let kiosk = kiosk.stop_and_start("2").await;
    assert!(patiently(stream.chunk()).await.is_err());
    kiosk.get("/paid/x", &token).await.check(402, "token_spent", "after_payment", "false");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn books_that_never_listen_do_not_keep_a_gateway_from_its_end() {
    let (url, _) = half_a_stream().await;
    let kiosk = Plan::calls(1, url).open().await;
    let token = kiosk.buy("/paid/x").await;
    let mut stream = patiently(kiosk.client.get(kiosk.gateway.url("/paid/x")).headers(token).send()).await.unwrap();
    assert_eq!(patiently(stream.chunk()).await.unwrap().unwrap(), "half");
    for nth in 0..100 {
        kiosk.ledger.plan(nth, Fault::FailBefore);
    }
    kiosk.gateway.ended().await;
}

/// An upstream that begins a stream, and says nothing more.
async fn half_a_stream() -> (String, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let address = raw_upstream(move |mut tcp| {
        let counter = counter.clone();
        async move {
            read_head(&mut tcp).await;
            counter.fetch_add(1, Ordering::SeqCst);
            let head = "HTTP/1.1 200 ok\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
            tcp.write_all(head.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
    })
    .await;
    (format!("http://{address}"), calls)
}
