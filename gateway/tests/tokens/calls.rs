//! What a token buys.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use farebox_core::{Delivery, Grant, PaymentState, RailName, TokenScope};
use farebox_wire::l402;
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use reqwest::Method;

use crate::{
    kiosk::{Kiosk, Plan, REQUEST_BYTES_MAX, authorization, counting, eventually, keyed, one},
    support::{Upstream, patiently, raw_upstream, read_head, text, upstream},
};

#[tokio::test]
async fn a_token_buys_its_calls_and_then_a_fresh_invoice() {
    let (url, calls) = counting().await;
    let kiosk = Plan::calls(2, url).open().await;
    let bill = kiosk.unpaid("/paid/x").await;
    let token = kiosk.pay(&bill);
    for (call, left) in [("ok 1", "1"), ("ok 2", "0")] {
        let got = kiosk.get("/paid/x", &token).await;
        assert_eq!((got.status, got.body.as_str()), (200, call), "{got:?}");
        assert_eq!(got.header("farebox-pass-remaining"), Some(left));
        assert_eq!(got.header("farebox-payment-id").unwrap(), kiosk.ledger.payments()[0].id.to_string());
        assert_eq!((got.header("payment-response"), got.header("cache-control")), (None, Some("private")));
        assert!(got.header("farebox-request-id").unwrap().starts_with("req_"), "{got:?}");
    }
    let spent = kiosk.get("/paid/x", &token).await;
    spent.check(402, "token_spent", "after_payment", "false");
    assert_ne!(spent.macaroon(), bill.macaroon(), "a new invoice, with a token of its own");
    let again = kiosk.pay(&spent);
    assert_eq!(kiosk.get("/paid/x", &again).await.body, "ok 3");
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let payments = kiosk.ledger.payments();
    assert_eq!(payments.len(), 2, "one row for each invoice");
    for payment in payments {
        assert_eq!((payment.rail, payment.state), (RailName::L402, PaymentState::Settled));
        assert_eq!((payment.delivery, payment.amount.units), (Delivery::Delivered, 10_000));
    }
}

#[tokio::test]
async fn every_form_in_which_clients_send_a_token_is_good() {
    let (url, _) = counting().await;
    let kiosk = Plan::calls(9, url).open().await;
    let credential = kiosk.credential(&kiosk.unpaid("/paid/x").await);
    let (macaroon, preimage) = credential.split_once(':').unwrap();
    let macaroon = l402::decode_macaroon(&STANDARD.decode(macaroon).unwrap()).unwrap();
    let alone = hex::encode(l402::encode_macaroon(&l402::add_caveat(&macaroon, &format!("preimage={preimage}"))));
    let both: HeaderMap = ["L402", "LSAT"]
        .map(|scheme| (AUTHORIZATION, HeaderValue::from_str(&format!("{scheme} {credential}")).unwrap()))
        .into_iter()
        .collect();
    for headers in [
        authorization(&credential),
        one(AUTHORIZATION, &format!("lsat {credential}")),
        one(AUTHORIZATION, &format!("L402 LSAT {credential}")),
        one(HeaderName::from_static("macaroon"), &alone),
        one(HeaderName::from_static("grpc-metadata-macaroon"), &alone),
        both,
    ] {
        assert_eq!(kiosk.get("/paid/x", &headers).await.status, 200, "{headers:?}");
    }
    assert_eq!(kiosk.ledger.payments().len(), 1, "all of them are one token");
}

#[tokio::test]
async fn a_hundred_parallel_uses_of_one_call_over_two_gateways_are_served_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let address = upstream(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            text("ok")
        }
    })
    .await;
    let kiosk = Plan::calls(1, format!("http://{address}")).open().await;
    let twin = kiosk.twin("2").await;
    let token = kiosk.buy("/paid/x").await;
    let uses = (0..100).map(|n| if n % 2 == 0 { kiosk.get("/paid/x", &token) } else { twin.get("/paid/x", &token) });
    let answers = futures_util::future::join_all(uses).await;
    let served = answers.iter().filter(|got| got.status == 200).count();
    assert_eq!((served, calls.load(Ordering::SeqCst)), (1, 1));
    for got in answers.iter().filter(|got| got.status != 200) {
        got.check(402, "token_spent", "after_payment", "false");
    }
}

#[tokio::test]
async fn a_token_of_time_is_good_until_it_ends() {
    let (url, _) = counting().await;
    let plan = Plan { grant: Grant::For(Duration::from_secs(3600)), ..Plan::calls(1, url) };
    let kiosk = plan.open().await;
    let token = kiosk.buy("/paid/x").await;
    for _ in 0..5 {
        let got = kiosk.get("/paid/y", &token).await;
        assert_eq!((got.status, got.header("farebox-pass-remaining")), (200, None));
    }
    kiosk.clock.advance(Duration::from_secs(3600 + 600));
    let ended = kiosk.get("/paid/x", &token).await;
    assert_eq!((ended.status, ended.problem()["retry"].as_str(), ended.lines().len()), (402, Some("after_payment"), 2));
    assert_eq!(kiosk.ledger.payments()[0].delivery, Delivery::Delivered);
}

#[tokio::test]
async fn a_lost_answer_is_had_again_by_its_key_alone() {
    let (url, calls) = counting().await;
    let kiosk = Plan::calls(1, url).open().await;
    let token = kiosk.buy("/paid/x").await;
    let first = kiosk.get("/paid/x", &keyed(&token, "mine")).await;
    assert_eq!(first.body, "ok 1");
    let kiosk = kiosk.restart("2").await;
    let again = kiosk.get("/paid/x", &keyed(&token, "mine")).await;
    assert_eq!((again.status, again.body.as_str(), again.header("idempotent-replayed")), (200, "ok 1", Some("true")));
    assert_eq!(again.header("farebox-payment-id"), first.header("farebox-payment-id"));
    kiosk.get("/paid/y", &keyed(&token, "mine")).await.check(409, "idempotency_key_reused", "never", "false");
    kiosk.get("/paid/x", &keyed(&token, "other")).await.check(402, "token_spent", "after_payment", "false");
    kiosk.get("/paid/x", &token).await.check(402, "token_spent", "after_payment", "false");
    // The key is another token's, too: it names a call of that one.
    let stranger = kiosk.buy("/paid/x").await;
    assert_eq!(kiosk.get("/paid/x", &keyed(&stranger, "mine")).await.body, "ok 2");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_token_is_for_its_route_and_where_it_says_so_for_its_request() {
    let (url, calls) = counting().await;
    let kiosk = Plan::calls(9, &url).open().await;
    let token = kiosk.buy("/paid/x").await;
    let other = kiosk.get("/other/x", &token).await;
    assert_eq!((other.status, other.lines().len()), (402, 2), "clients keep one token for a host: {other:?}");
    assert_eq!(kiosk.send(Method::POST, "/paid/y?q", token).await.status, 200);
    let kiosk = Plan { scope: TokenScope::Request, ..Plan::calls(9, &url) }.open().await;
    let token = kiosk.buy("/paid/x?q=1").await;
    for (method, path) in [(Method::GET, "/paid/x"), (Method::GET, "/paid/x?q=2"), (Method::POST, "/paid/x?q=1")] {
        let got = kiosk.send(method.clone(), path, token.clone()).await;
        assert_eq!((got.status, got.lines().len()), (402, 2), "{method} {path}: {got:?}");
    }
    assert_eq!(kiosk.get("/paid/x?q=1", &token).await.status, 200);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_repriced_route_honours_the_tokens_it_sold() {
    let (url, _) = counting().await;
    let kiosk = Plan::calls(2, url).open().await;
    let token = kiosk.buy("/paid/x").await;
    let mut board = (*kiosk.tariff.board.now()).clone();
    let mut dearer = board.offers[0].clone();
    dearer.amount.units *= 2;
    board.offers = [dearer].into();
    kiosk.tariff.board.exchange(board.clone());
    assert_eq!(kiosk.get("/paid/x", &token).await.status, 200);
    // Not even when nobody can tell the price.
    board.offers = [].into();
    kiosk.tariff.board.exchange(board);
    assert_eq!(kiosk.get("/paid/x", &token).await.status, 200);
    kiosk.unpaid("/paid/x").await.check(503, "price_unavailable", "same_proof", "false");
}

#[tokio::test]
async fn no_upstream_ever_sees_a_token() {
    let upstream = Upstream::echo().await;
    let kiosk = Plan::calls(9, upstream.url()).open().await;
    let credential = kiosk.credential(&kiosk.unpaid("/paid/x").await);
    let (macaroon, preimage) = credential.split_once(':').unwrap();
    let bytes = STANDARD.decode(macaroon).unwrap();
    let macaroon = l402::add_caveat(&l402::decode_macaroon(&bytes).unwrap(), &format!("preimage={preimage}"));
    let alone = hex::encode_upper(l402::encode_macaroon(&macaroon));
    let forms = [
        (AUTHORIZATION, format!("L402 {credential}")),
        (AUTHORIZATION, format!("lsat  {credential}")),
        (AUTHORIZATION, format!("Bearer x, L402 {credential}")),
        (AUTHORIZATION, format!("Bearer x L402 {credential}")),
        (AUTHORIZATION, format!("Bearer x;lsat\t{credential}")),
        (HeaderName::from_static("macaroon"), alone.clone()),
        (HeaderName::from_static("grpc-metadata-macaroon"), alone.clone()),
        (HeaderName::from_static("grpc_metadata_macaroon"), alone.clone()),
        (HeaderName::from_static("grpc-metadata_macaroon"), alone),
    ];
    for path in ["/free/x", "/paid/x"] {
        for (name, value) in &forms {
            let got = kiosk.get(path, &one(name.clone(), value)).await;
            if got.status == 200 {
                let seen = upstream.last().headers;
                assert!(!seen.contains_key(name), "{path} {name}: {seen:?}");
            } else {
                let is_ours = !value.starts_with("Bearer") && !name.as_str().contains('_');
                assert!(path == "/paid/x" && !is_ours, "{name} {got:?}");
            }
        }
    }
    let seen = upstream.last().headers;
    assert!(seen["farebox-payer"].to_str().unwrap().starts_with("bip122:"));
    assert!(seen.contains_key("farebox-payment-id") && seen.contains_key("farebox-request-id"));
    // What is not ours is the upstream's.
    for (name, value) in [(AUTHORIZATION, "Bearer x"), (HeaderName::from_static("macaroon"), "0201036c6e64")] {
        assert_eq!(kiosk.get("/free/x", &one(name.clone(), value)).await.status, 200);
        assert_eq!(upstream.last().headers[name], value);
    }
}

/// One request on a connection of its own, which is closed once it has had `until`.
async fn hang_up_after(kiosk: &Kiosk, path: &str, token: &HeaderMap, until: &str) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut tcp = tokio::net::TcpStream::connect(kiosk.gateway.address).await.unwrap();
    let token = token[AUTHORIZATION].to_str().unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\n\r\n");
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut had = Vec::new();
    while !String::from_utf8_lossy(&had).contains(until) {
        had.push(patiently(tcp.read_u8()).await.unwrap_or_else(|e| panic!("{e} after {had:?}")));
    }
    tokio::time::sleep(Duration::from_millis(30)).await;
}

#[tokio::test]
async fn a_caller_who_cuts_a_stream_off_has_had_the_call() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let address = raw_upstream(move |mut tcp| {
        let counter = counter.clone();
        async move {
            use tokio::io::AsyncWriteExt as _;
            read_head(&mut tcp).await;
            counter.fetch_add(1, Ordering::SeqCst);
            let head = "HTTP/1.1 200 ok\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
            tcp.write_all(head.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
    })
    .await;
    let kiosk = Plan::calls(3, format!("http://{address}")).open().await;
    let token = kiosk.buy("/paid/x").await;
    for call in 1..=3 {
        hang_up_after(&kiosk, "/paid/x", &token, "half").await;
        eventually(|| calls.load(Ordering::SeqCst) == call).await;
    }
    let spent = kiosk.get("/paid/x", &token).await;
    spent.check(402, "token_spent", "after_payment", "false");
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

/// Whoever hangs up before each answer would have the upstream work for nothing.
#[tokio::test]
async fn a_caller_who_does_not_wait_for_the_answer_has_had_the_call() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let address = upstream(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            text("ok")
        }
    })
    .await;
    let kiosk = Plan::calls(1, format!("http://{address}")).open().await;
    let token = kiosk.buy("/paid/x").await;
    hang_up_after(&kiosk, "/paid/x", &token, "").await;
    eventually(|| calls.load(Ordering::SeqCst) == 1).await;
    kiosk.get("/paid/x", &token).await.check(402, "token_spent", "after_payment", "false");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// What becomes of a request's body after its first part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    HangsUp,
    TooLong,
    Silent,
}

/// Nor does it help to break the request off, once the upstream has begun to work on it.
#[tokio::test]
async fn a_caller_who_never_sends_the_whole_request_runs_out_of_calls() {
    use tokio::io::AsyncWriteExt as _;
    // How long the upstream waits for the rest before it hangs up itself.
    let (short, long) = (Duration::from_millis(50), Duration::from_secs(30));
    for (rest, upstream_waits) in
        [(Rest::HangsUp, long), (Rest::TooLong, long), (Rest::Silent, long), (Rest::Silent, short)]
    {
        let (url, calls) = reading_heads(upstream_waits).await;
        let plan = Plan { response_timeout: Duration::from_millis(200), ..Plan::calls(1, url) };
        let kiosk = plan.open().await;
        let token = kiosk.buy("/paid/x").await;
        let sent = token[AUTHORIZATION].to_str().unwrap();
        let part = format!(
            "POST /paid/x HTTP/1.1\r\nhost: x\r\nauthorization: {sent}\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"
        );
        for call in 1..=4 {
            let mut tcp = tokio::net::TcpStream::connect(kiosk.gateway.address).await.unwrap();
            tcp.write_all(part.as_bytes()).await.unwrap();
            eventually(|| calls.load(Ordering::SeqCst) == call).await;
            if rest == Rest::TooLong {
                let size = usize::try_from(REQUEST_BYTES_MAX).unwrap();
                tcp.write_all(format!("{size:x}\r\n{}\r\n", "x".repeat(size)).as_bytes()).await.unwrap();
            }
            if rest != Rest::HangsUp {
                let head = patiently(read_head(&mut tcp)).await;
                assert!(head.starts_with("HTTP/1.1 4") || head.starts_with("HTTP/1.1 5"), "{rest:?}: {head}");
            }
        }
        kiosk.get("/paid/x", &token).await.check(402, "token_spent", "after_payment", "false");
        assert_eq!(calls.load(Ordering::SeqCst), 4, "three are forgiven: {rest:?}");
    }
}

#[tokio::test]
async fn a_request_that_says_beforehand_that_it_is_too_long_costs_no_call() {
    let (url, calls) = counting().await;
    let kiosk = Plan::calls(1, url).open().await;
    let token = kiosk.buy("/paid/x").await;
    for _ in 0..5 {
        let body = "x".repeat(usize::try_from(REQUEST_BYTES_MAX).unwrap() + 1);
        let request = kiosk.client.post(kiosk.gateway.url("/paid/x")).headers(token.clone()).body(body);
        assert_eq!(patiently(request.send()).await.unwrap().status(), 413);
    }
    assert_eq!((kiosk.get("/paid/x", &token).await.status, calls.load(Ordering::SeqCst)), (200, 1));
}

/// An upstream that reads heads alone, counts them, and hangs up after `patience`.
async fn reading_heads(patience: Duration) -> (String, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let address = raw_upstream(move |mut tcp| {
        let counter = counter.clone();
        async move {
            read_head(&mut tcp).await;
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(patience).await;
        }
    })
    .await;
    (format!("http://{address}"), calls)
}

#[tokio::test]
async fn a_switch_of_protocols_is_one_call() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};
    let address = raw_upstream(|tcp| async move {
        let mut socket = tokio_tungstenite::accept_async(tcp).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() {
                socket.send(message).await.unwrap();
            }
        }
    })
    .await;
    let kiosk = Plan::calls(1, format!("http://{address}")).open().await;
    let token = kiosk.buy("/paid/ws").await;
    let connect = || {
        let mut request = format!("ws://{}/paid/ws", kiosk.gateway.address).into_client_request().unwrap();
        request.headers_mut().extend(token.clone());
        tokio_tungstenite::connect_async(request)
    };
    let (mut socket, head) = connect().await.unwrap();
    assert_eq!(head.headers()["farebox-pass-remaining"], "0");
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap(), "hello");
    let refused = connect().await.unwrap_err();
    assert!(refused.to_string().contains("402"), "{refused}");
}
