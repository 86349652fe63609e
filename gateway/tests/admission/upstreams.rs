//! Upstreams that fail, stream and break off, and callers who leave.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use farebox_core::{Delivery, PaymentState, SettleWhen};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::AsyncWriteExt as _;

use crate::{
    shop::{Shop, counting, eventually, saying},
    support::{self, patiently, raw_upstream, read_head, text, upstream},
};

#[tokio::test]
async fn an_upstream_that_fails_before_settlement_is_not_charged() {
    for (answer, status) in [
        ("HTTP/1.1 500 no\r\ncontent-length: 4\r\n\r\noops", 500),
        ("HTTP/1.1 404 no\r\ncontent-length: 4\r\n\r\noops", 404),
        ("", 502),
        ("HTTP/1.1 200 ok\r\ncontent-length: 10\r\n\r\nhalf", 502),
        ("nonsense\r\n\r\n", 502),
    ] {
        let (url, _) = saying(answer).await;
        let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
        let credential = shop.sign("/paid/x", 1).await;
        let got = shop.get("/paid/x", Some(&credential)).await;
        assert_eq!(got.status, status, "{answer:?}: {got:?}");
        if status < 502 {
            assert_eq!((got.settlement().success, got.settlement().transaction.as_str()), (false, ""));
        }
        assert_eq!((shop.state().0, shop.rail.charged().len()), (PaymentState::Void, 0), "{answer:?}");
    }
}

#[tokio::test]
async fn an_upstream_that_fails_after_settlement_leaves_a_payment_to_redeem() {
    for broken in
        ["HTTP/1.1 500 no\r\ncontent-length: 4\r\n\r\noops", "", "HTTP/1.1 200 ok\r\ncontent-length: 10\r\n\r\nhalf"]
    {
        let (url, _) = saying(broken).await;
        let shop = Shop::open(SettleWhen::BeforeUpstream, url).await;
        let credential = shop.sign("/paid/x", 1).await;
        let got = shop.get("/paid/x", Some(&credential)).await;
        assert_eq!(
            (got.status, got.problem()["retry"].as_str(), got.problem()["charged"].as_bool()),
            (502, Some("same_proof"), Some(true))
        );
        assert!(got.settlement().success && !got.has_bill());
        assert_eq!(shop.state(), (PaymentState::Settled, Delivery::Pending));
        let (better, calls) = counting().await;
        let shop = Shop { upstream: better, ..shop }.restart("2").await;
        assert_eq!(shop.get("/paid/x", Some(&credential)).await.body, "ok 1");
        assert_eq!(shop.get("/paid/x", Some(&credential)).await.body, "ok 1");
        assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (1, 1));
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_after_settlement_can_be_redeemed() {
    let (url, _) = saying("HTTP/1.1 200 ok\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    let got = shop.get("/paid/x", Some(&credential)).await;
    assert!(got.body.starts_with("broken"), "{got:?}");
    assert_eq!(shop.state(), (PaymentState::Settled, Delivery::Pending));
    let (better, calls) = counting().await;
    let shop = Shop { upstream: better, ..shop }.restart("2").await;
    assert_eq!(shop.get("/paid/x", Some(&credential)).await.body, "ok 1");
    assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (1, 1));
}

#[tokio::test]
async fn the_first_event_of_a_stream_is_not_held_back() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let address = upstream(move |_| {
        let gate = gate.clone();
        async move {
            let events = async_stream(move |n| {
                let mut gate = gate.clone();
                async move {
                    match n {
                        0 => Some("data: 1\n\n"),
                        1 => {
                            gate.wait_for(|open| *open).await.ok()?;
                            Some("data: 2\n\n")
                        }
                        _ => None,
                    }
                }
            });
            http::Response::new(events)
        }
    })
    .await;
    let shop = Shop::open(SettleWhen::BeforeResponse, format!("http://{address}")).await;
    let (name, value) = shop.sign("/paid/x", 1).await;
    let mut response = shop.client.get(shop.gateway.url("/paid/x")).header(name, value).send().await.unwrap();
    assert_eq!(patiently(response.chunk()).await.unwrap().unwrap(), "data: 1\n\n");
    assert_eq!(shop.state(), (PaymentState::Settled, Delivery::Pending));
    go.send(true).unwrap();
    assert_eq!(patiently(response.chunk()).await.unwrap().unwrap(), "data: 2\n\n");
    assert_eq!(patiently(response.chunk()).await.unwrap(), None);
    // The end mark came, so the books know.
    assert_eq!(shop.state(), (PaymentState::Settled, Delivery::Delivered));
}

fn async_stream<F, A>(next: F) -> support::TestBody
where
    F: Fn(usize) -> A + Send + Sync + 'static,
    A: Future<Output = Option<&'static str>> + Send + Sync + 'static,
{
    let stream = futures_util::stream::unfold((0, next), |(n, next)| async move {
        let part = next(n).await?;
        Some((Ok(Frame::data(bytes::Bytes::from_static(part.as_bytes()))), (n + 1, next)))
    });
    StreamBody::new(stream).boxed()
}

#[tokio::test]
async fn a_caller_who_hangs_up_just_before_the_answer_gets_it_by_sending_the_same_again() {
    let (reached, mut at_upstream) = tokio::sync::mpsc::channel(1);
    let (go, gate) = tokio::sync::watch::channel(false);
    let address = upstream(move |_| {
        let (reached, mut gate) = (reached.clone(), gate.clone());
        async move {
            reached.send(()).await.unwrap();
            gate.wait_for(|open| *open).await.unwrap();
            text("late")
        }
    })
    .await;
    let shop = Shop::open(SettleWhen::BeforeResponse, format!("http://{address}")).await;
    let credential = shop.sign("/paid/x", 1).await;
    let (name, value) = credential.clone();
    let request = tokio::spawn(shop.client.get(shop.gateway.url("/paid/x")).header(name, value).send());
    patiently(at_upstream.recv()).await.unwrap();
    request.abort();
    drop(request.await);
    // The gateway sees the closed connection before it sees the upstream's answer.
    tokio::time::sleep(Duration::from_millis(100)).await;
    go.send(true).unwrap();
    shop.until(PaymentState::Settled).await;
    let (name, value) = credential;
    let again = shop.get("/paid/x", Some(&(name, value))).await;
    assert_eq!((again.status, again.body.as_str()), (200, "late"));
    assert_eq!(shop.rail.charged().len(), 1);
}

/// A caller who cuts a stream off just before its end has had the stream, and gets no second one for the same money.
#[tokio::test]
async fn a_stream_cut_off_by_its_caller_is_not_run_again() {
    let (_go, gate) = tokio::sync::watch::channel(false);
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let address = upstream(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        let gate = gate.clone();
        async move {
            http::Response::new(async_stream(move |n| {
                let mut gate = gate.clone();
                async move {
                    if n > 0 {
                        gate.wait_for(|open| *open).await.ok()?;
                    }
                    Some("data: all there is\n\n")
                }
            }))
        }
    })
    .await;
    let shop = Shop::open(SettleWhen::BeforeResponse, format!("http://{address}")).await;
    let credential = shop.sign("/paid/x", 1).await;
    let request = shop.client.get(shop.gateway.url("/paid/x")).header(credential.0.clone(), credential.1.clone());
    let mut response = request.send().await.unwrap();
    patiently(response.chunk()).await.unwrap().unwrap();
    drop(response);
    patiently(async {
        while shop.state() != (PaymentState::Settled, Delivery::Delivered) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    shop.get("/paid/x", Some(&credential)).await.check(409, "already_delivered", "never", "true");
    assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (1, 1));
}

/// An outage of the upstream uses no payment up.
#[tokio::test]
async fn a_charged_payment_outlives_many_failures_of_the_upstream() {
    let (url, _) = saying("HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n").await;
    let shop = Shop::open(SettleWhen::BeforeUpstream, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    for _ in 0..20 {
        let got = shop.get("/paid/x", Some(&credential)).await;
        assert_eq!((got.status, got.problem()["retry"].as_str()), (502, Some("same_proof")), "{got:?}");
    }
    let (better, _) = counting().await;
    let shop = Shop { upstream: better, ..shop }.restart("2").await;
    assert_eq!(shop.get("/paid/x", Some(&credential)).await.body, "ok 1");
    assert_eq!(shop.rail.charged().len(), 1);
}

/// An upstream gives up on whoever does not read, and a caller could make its error, again and again, just before the end.
#[tokio::test]
async fn a_caller_who_stops_reading_until_the_upstream_gives_up_has_had_the_stream() {
    const CHUNK: &[u8] = &[b'x'; 65_536];
    let address = raw_upstream(|mut tcp| async move {
        read_head(&mut tcp).await;
        tcp.write_all(b"HTTP/1.1 200 ok\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let chunk = [b"10000\r\n", CHUNK, b"\r\n"].concat();
        while matches!(tokio::time::timeout(Duration::from_secs(4), tcp.write_all(&chunk)).await, Ok(Ok(()))) {}
    })
    .await;
    let shop = Shop::open(SettleWhen::BeforeResponse, format!("http://{address}")).await;
    let credential = shop.sign("/paid/x", 1).await;
    let request = shop.client.get(shop.gateway.url("/paid/x")).header(credential.0.clone(), credential.1.clone());
    let mut response = patiently(request.send()).await.unwrap();
    patiently(response.chunk()).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    while let Ok(Some(_)) = patiently(response.chunk()).await {}
    eventually(|| shop.state() == (PaymentState::Settled, Delivery::Delivered)).await;
    shop.get("/paid/x", Some(&credential)).await.check(409, "already_delivered", "never", "true");
}

#[tokio::test]
async fn a_stream_that_always_breaks_off_is_left_to_a_person_soon() {
    let (url, calls) = saying("HTTP/1.1 200 ok\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    for _ in 0..3 {
        assert!(shop.get("/paid/x", Some(&credential)).await.body.starts_with("broken"));
    }
    shop.get("/paid/x", Some(&credential)).await.check(409, "delivery_owed", "never", "true");
    assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (3, 1));
}
