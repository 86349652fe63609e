//! The way of a paid request, with a scripted chain and books that fail on demand.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails is a test that fails")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use farebox_core::{
    Access, Delivery, InstanceId, PaymentState, RouteId, SettleWhen, Tariff, Timestamp, ports::Rail as _,
};
use farebox_gateway::{AdmissionLimits, GatewayConfig, Ports, ReconcilerLimits};
use farebox_testkit::{Fault, ManualClock, MemoryLedger, ScriptedRail, SeededEntropy, SettleWith, TestPayer};
use farebox_wire::x402::{decode_payment_required, decode_settlement, encode_credential};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use reqwest::{Client, Method};
use serde_json::Value;
use support::{PATIENCE, Running, client, patiently, raw_upstream, read_head, route, serve_with, text, upstream};
use tokio::io::AsyncWriteExt as _;

const NOW: Timestamp = Timestamp::from_unix_s(1_700_000_000);

/// A gateway with one paid route `ANY /paid/*` at $0.01, and all that is behind it.
struct Shop {
    gateway: Running,
    ledger: Arc<MemoryLedger>,
    rail: Arc<ScriptedRail>,
    clock: Arc<ManualClock>,
    upstream: String,
    settle: SettleWhen,
    client: Client,
}

/// What a caller got.
#[derive(Debug)]
struct Got {
    status: u16,
    headers: http::HeaderMap,
    body: String,
}

impl Got {
    fn problem(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    /// Code, retry, charged.
    #[track_caller]
    fn check(&self, status: u16, code: &str, retry: &str, charged: &str) {
        let problem = self.problem();
        let found = (self.status, problem["code"].as_str(), problem["retry"].as_str(), problem["charged"].to_string());
        assert_eq!(found, (status, Some(code), Some(retry), charged.to_owned()), "{self:?}");
    }

    #[track_caller]
    fn settlement(&self) -> farebox_wire::x402::SettlementResponse {
        decode_settlement(self.headers["payment-response"].as_bytes()).unwrap()
    }

    fn has_bill(&self) -> bool {
        self.headers.contains_key("payment-required")
    }
}

impl Shop {
    async fn open(settle: SettleWhen, upstream: String) -> Self {
        let ledger = Arc::new(MemoryLedger::new(InstanceId::new("1"), Duration::from_secs(600)));
        let clock = Arc::new(ManualClock::at(NOW));
        let rail = Arc::new(ScriptedRail::new(ledger.clone(), clock.clone()));
        Self::with(settle, upstream, ledger, rail, clock, "1").await
    }

    async fn with(
        settle: SettleWhen,
        upstream: String,
        ledger: Arc<MemoryLedger>,
        rail: Arc<ScriptedRail>,
        clock: Arc<ManualClock>,
        instance: &str,
    ) -> Self {
        let offers: Arc<[_]> = rail.offers(&"$0.01".parse().unwrap()).unwrap().into();
        let mut paid = route("ANY /paid/*", &upstream);
        paid.access = Access::Paid(Arc::new(Tariff {
            route: RouteId::new("paid"),
            price: "$0.01".parse().unwrap(),
            offers,
            earlier_offers: Arc::new([]),
            earlier_until: NOW,
            settle,
            description: "".into(),
            mime_type: "".into(),
        }));
        let config = GatewayConfig {
            routes: vec![paid],
            admission: AdmissionLimits {
                busy_wait: Duration::from_secs(3),
                lease: Duration::from_secs(30),
                ..AdmissionLimits::default()
            },
            reconciler: ReconcilerLimits { interval: Duration::from_millis(20), ..ReconcilerLimits::default() },
            ..support::config(&[])
        };
        let ports = Ports {
            rails: vec![rail.clone()],
            ledger: ledger.clone(),
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(7)),
            instance: InstanceId::new(instance),
        };
        let gateway = serve_with(config, ports).await;
        Self { gateway, ledger, rail, clock, upstream, settle, client: client() }
    }

    /// The next process on the same books and chain, as after a kill -9.
    async fn restart(self, instance: &str) -> Self {
        let ledger = Arc::new(self.ledger.restarted(InstanceId::new(instance)));
        let rail = Arc::new(self.rail.restarted(ledger.clone()));
        Self::with(self.settle, self.upstream.clone(), ledger, rail, self.clock.clone(), instance).await
    }

    async fn get(&self, path: &str, credential: Option<&(http::HeaderName, http::HeaderValue)>) -> Got {
        self.send(Method::GET, path, credential.cloned().into_iter().collect()).await
    }

    async fn send(&self, method: Method, path: &str, headers: http::HeaderMap) -> Got {
        let request = self.client.request(method, self.gateway.url(path)).headers(headers);
        let response = patiently(request.send()).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Got { status, headers, body: patiently(response.text()).await.unwrap_or_else(|e| format!("broken: {e}")) }
    }

    /// Reads the bill at `path` and signs it.
    async fn sign(&self, path: &str, nonce: u64) -> (http::HeaderName, http::HeaderValue) {
        let unpaid = self.get(path, None).await;
        assert_eq!(unpaid.status, 402, "{unpaid:?}");
        let header = unpaid.headers["payment-required"].as_bytes();
        let bill = decode_payment_required(Some(header), Some(unpaid.body.as_bytes())).unwrap();
        let requirement = &bill.requirements[0];
        let until = NOW.plus(Duration::from_secs(60));
        let farebox_core::Credential::X402(credential) = TestPayer(1).pay(&requirement.offer, nonce, until);
        encode_credential(&credential, requirement, &bill)
    }

    fn state(&self) -> (PaymentState, Delivery) {
        let payments = self.ledger.payments();
        let last = payments.last().expect("no payment");
        (last.state, last.delivery)
    }

    async fn until(&self, state: PaymentState) {
        patiently(async {
            while self.state().0 != state {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// An upstream that counts its calls and answers `ok <call>`.
async fn counting() -> (String, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let address = upstream(move |_| {
        let call = counter.fetch_add(1, Ordering::SeqCst) + 1;
        async move { text(format!("ok {call}")) }
    })
    .await;
    (format!("http://{address}"), calls)
}

/// An upstream that answers each connection's first request with these bytes and closes.
async fn saying(bytes: &'static str) -> (String, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let address = raw_upstream(move |mut tcp| {
        let counter = counter.clone();
        async move {
            if read_head(&mut tcp).await.is_empty() {
                return;
            }
            counter.fetch_add(1, Ordering::SeqCst);
            tcp.write_all(bytes.as_bytes()).await.unwrap();
        }
    })
    .await;
    (format!("http://{address}"), calls)
}

#[tokio::test]
async fn an_unpaid_request_gets_a_bill_and_never_reaches_the_upstream() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    for method in [Method::GET, Method::POST, Method::HEAD, Method::DELETE] {
        let got = shop.send(method.clone(), "/paid/x?q=1", http::HeaderMap::new()).await;
        assert_eq!((got.status, got.has_bill()), (402, true), "{method}");
        assert_eq!(got.headers["cache-control"], "no-store");
        assert!(got.headers["vary"].to_str().unwrap().contains("payment-signature"));
    }
    let got = shop.get("/paid/x?q=1", None).await;
    got.check(402, "payment_required", "after_payment", "false");
    assert_eq!(got.problem()["accepts"][0]["resource"], shop.gateway.url("/paid/x?q=1"));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    assert_eq!(shop.ledger.payments().len(), 0);
}

#[tokio::test]
async fn a_preflight_is_free_and_exposes_the_payment_headers() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let headers = [
        ("origin", "https://shop.example"),
        ("access-control-request-method", "GET"),
        ("access-control-request-headers", "payment-signature"),
    ];
    let headers = headers.into_iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
    let got = shop.send(Method::OPTIONS, "/paid/x", headers).await;
    assert_eq!((got.status, got.headers["access-control-allow-headers"].to_str().unwrap()), (204, "payment-signature"));
    let bill = shop.get("/paid/x", None).await;
    assert!(bill.headers["access-control-expose-headers"].to_str().unwrap().contains("payment-required"));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_paid_request_is_served_once_with_a_receipt() {
    for settle in [SettleWhen::BeforeResponse, SettleWhen::BeforeUpstream] {
        let (url, calls) = counting().await;
        let shop = Shop::open(settle, url).await;
        let credential = shop.sign("/paid/x", 1).await;
        let got = shop.get("/paid/x", Some(&credential)).await;
        assert_eq!((got.status, got.body.as_str()), (200, "ok 1"), "{got:?}");
        assert!(got.settlement().success);
        assert_eq!(got.settlement().amount, Some(10_000));
        assert_eq!(got.headers["cache-control"], "private");
        assert_eq!(shop.state(), (PaymentState::Settled, Delivery::Delivered));
        assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (1, 1));
    }
}

#[tokio::test]
async fn the_same_credential_gets_the_same_answer_again_and_costs_nothing() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    let first = shop.get("/paid/x", Some(&credential)).await;
    let shop = shop.restart("2").await;
    let again = shop.get("/paid/x", Some(&credential)).await;
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.settlement(), first.settlement());
    // Long after the authorization has run out, and even after the answer is no longer kept.
    shop.clock.advance(Duration::from_secs(500));
    assert_eq!(shop.get("/paid/x", Some(&credential)).await.body, first.body);
    shop.clock.advance(Duration::from_secs(101));
    let late = shop.get("/paid/x", Some(&credential)).await;
    late.check(409, "already_delivered", "never", "true");
    assert!(late.settlement().success && !late.has_bill());
    assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (1, 1));
}

#[tokio::test]
async fn a_credential_is_good_for_its_own_request_only() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/cheap", 1).await;
    assert_eq!(shop.get("/paid/cheap", Some(&credential)).await.status, 200);
    for (method, path) in [(Method::GET, "/paid/dear"), (Method::POST, "/paid/cheap"), (Method::GET, "/paid/cheap?n=2")]
    {
        let got = shop.send(method, path, [credential.clone()].into_iter().collect()).await;
        got.check(409, "proof_already_used", "never", "true");
        assert!(!got.has_bill());
    }
    assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (1, 1));
}

/// A settled authorization stands on the chain for everybody to read: with it alone nobody gets the payer's answer.
#[tokio::test]
async fn a_stranger_with_the_same_credential_gets_nothing() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    let keyed = |key: &str| {
        let key = (http::HeaderName::from_static("idempotency-key"), key.parse().unwrap());
        [credential.clone(), key].into_iter().collect()
    };
    assert_eq!(shop.send(Method::GET, "/paid/x", keyed("secret")).await.body, "ok 1");
    let stranger = shop.get("/paid/x", Some(&credential)).await;
    stranger.check(409, "proof_already_used", "never", "true");
    assert_eq!(shop.send(Method::GET, "/paid/x", keyed("guess")).await.status, 409);
    assert_eq!(shop.send(Method::GET, "/paid/x", keyed("secret")).await.body, "ok 1");
    assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (1, 1));
}

#[tokio::test]
async fn an_authorization_that_ends_before_it_can_be_settled_buys_no_work() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    // It lives for 60 s; the upstream may take 33, the settlement 5.
    shop.clock.advance(Duration::from_secs(23));
    let got = shop.get("/paid/x", Some(&credential)).await;
    got.check(402, "invalid_exact_evm_payload_authorization_valid_before", "after_payment", "false");
    assert_eq!((calls.load(Ordering::SeqCst), shop.ledger.payments().len()), (0, 0));
}

#[tokio::test]
async fn one_payer_has_only_so_much_claimed_and_not_settled() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let address = upstream(move |_| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|open| *open).await.unwrap();
            text("ok")
        }
    })
    .await;
    let shop = Shop::open(SettleWhen::BeforeResponse, format!("http://{address}")).await;
    let mut credentials = vec![];
    for nonce in 0..33 {
        credentials.push(shop.sign("/paid/x", nonce).await);
    }
    let last = credentials.pop().unwrap();
    let waiting =
        futures_util::future::join_all(credentials.iter().map(|credential| shop.get("/paid/x", Some(credential))));
    let refused = async {
        while shop.ledger.payments().len() < 32 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let got = shop.get("/paid/x", Some(&last)).await;
        go.send(true).unwrap();
        got
    };
    let (served, refused) = patiently(futures_util::future::join(waiting, refused)).await;
    refused.check(429, "too_many_unsettled", "same_proof", "false");
    assert!(served.iter().all(|got| got.status == 200));
    assert_eq!(shop.get("/paid/x", Some(&last)).await.status, 200);
}

#[tokio::test]
async fn a_hundred_identical_requests_at_once_on_two_gateways_are_one_delivery() {
    let (url, calls) = counting().await;
    let one = Shop::open(SettleWhen::BeforeResponse, url.clone()).await;
    let rail = Arc::new(one.rail.restarted(one.ledger.clone()));
    let two = Shop::with(one.settle, url, one.ledger.clone(), rail, one.clock.clone(), "2").await;
    let credential = one.sign("/paid/x", 1).await;
    one.rail.settle_next(farebox_testkit::SettleStep { after: Duration::from_millis(50), with: SettleWith::Final });
    let all = (0..100).map(|n| {
        let shop = if n % 2 == 0 { &one } else { &two };
        let credential = credential.clone();
        async move { shop.get("/paid/x", Some(&credential)).await }
    });
    for got in futures_util::future::join_all(all).await {
        assert_eq!((got.status, got.body.as_str()), (200, "ok 1"), "{got:?}");
    }
    assert_eq!((calls.load(Ordering::SeqCst), one.rail.charged().len()), (1, 1));
}

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
async fn a_doubtful_settlement_is_never_billed_anew_and_ends_in_one_charge() {
    for doubt in [SettleWith::DoubtfulButMoved, SettleWith::DoubtfulAndUnmoved] {
        let (url, calls) = counting().await;
        let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
        let credential = shop.sign("/paid/x", 1).await;
        shop.rail.settle_next(doubt);
        let got = shop.get("/paid/x", Some(&credential)).await;
        got.check(503, "settlement_pending", "same_proof", "\"unknown\"");
        assert!(!got.has_bill());
        assert!(got.settlement().transaction.starts_with("0x") && !got.settlement().success);
        // The reconciler ends the doubt; the retry waits for it.
        let again = shop.get("/paid/x", Some(&credential)).await;
        assert_eq!((again.status, again.body.as_str()), (200, "ok 2"), "{again:?}");
        assert_eq!((calls.load(Ordering::SeqCst), shop.rail.charged().len()), (2, 1));
        assert_eq!(shop.state(), (PaymentState::Settled, Delivery::Delivered));
    }
}

#[tokio::test]
async fn a_refused_settlement_delivers_nothing_and_says_so() {
    let (url, _) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    shop.rail.settle_next(SettleWith::Refused("invalid_exact_evm_insufficient_balance"));
    for _ in 0..2 {
        let got = shop.get("/paid/x", Some(&credential)).await;
        got.check(402, "invalid_exact_evm_insufficient_balance", "after_payment", "false");
        assert!(got.has_bill() && !got.settlement().success);
    }
    assert_eq!((shop.state().0, shop.rail.charged().len()), (PaymentState::Refused, 0));
}

#[tokio::test]
async fn a_settlement_that_could_not_start_is_not_charged_and_may_be_sent_again() {
    let (url, _) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    shop.rail.settle_next(SettleWith::NothingStored);
    shop.get("/paid/x", Some(&credential)).await.check(503, "settlement_unavailable", "same_proof", "false");
    assert_eq!(shop.get("/paid/x", Some(&credential)).await.status, 200);
    assert_eq!(shop.rail.charged().len(), 1);
}

#[tokio::test]
async fn a_chain_that_cannot_be_asked_is_a_503_and_never_a_bill() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    shop.rail.lose_chain_on_next_verify();
    let got = shop.get("/paid/x", Some(&credential)).await;
    got.check(503, "payment_unverifiable", "same_proof", "false");
    assert!(!got.has_bill() && got.headers.contains_key("retry-after"));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn garbage_is_a_400_with_a_fresh_bill_and_nothing_is_claimed() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    for value in ["", "!", "e30=", "bm90IGpzb24=", "eyJ4NDAyVmVyc2lvbiI6Mn0="] {
        let headers =
            [(http::HeaderName::from_static("payment-signature"), value.parse().unwrap())].into_iter().collect();
        let got = shop.send(Method::GET, "/paid/x", headers).await;
        assert_eq!(
            (got.status, got.has_bill(), got.problem()["charged"].as_bool()),
            (400, true, Some(false)),
            "{value}"
        );
    }
    let credential = shop.sign("/paid/x", 1).await;
    let twice =
        [credential.clone(), credential].into_iter().fold(http::HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        });
    shop.send(Method::GET, "/paid/x", twice).await.check(400, "credential_repeated", "after_payment", "false");
    assert_eq!((calls.load(Ordering::SeqCst), shop.ledger.payments().len()), (0, 0));
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

#[tokio::test]
async fn a_reorganisation_puts_revenue_in_doubt_until_it_is_mined_again() {
    let (url, _) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    assert_eq!(shop.get("/paid/x", Some(&credential)).await.status, 200);
    let payment = shop.ledger.payments().pop().unwrap();
    shop.rail.resolve_next(SettleWith::Refused("invalid_exact_evm_transaction_failed"));
    shop.rail.reorganise(&payment.proof);
    shop.until(PaymentState::Refused).await;
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

#[tokio::test]
async fn a_method_in_small_letters_is_no_way_around_the_till() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    for method in ["get", "Get", "gET"] {
        let got = shop.send(Method::from_bytes(method.as_bytes()).unwrap(), "/paid/x", http::HeaderMap::new()).await;
        assert_eq!((got.status, got.problem()["code"].as_str()), (501, Some("method_not_supported")));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

/// The whole way with the books failing, or the process dying, at every single operation: whatever happens, the same bytes sent
/// again end in one charge and one delivery.
#[tokio::test]
async fn a_fault_at_any_step_ends_in_one_charge_and_one_delivery() {
    for settle in [SettleWhen::BeforeResponse, SettleWhen::BeforeUpstream] {
        let (url, _) = counting().await;
        let smooth = Shop::open(settle, url).await;
        let credential = smooth.sign("/paid/x", 1).await;
        let before = smooth.ledger.operations();
        assert_eq!(smooth.get("/paid/x", Some(&credential)).await.status, 200);
        // The reconciler asks too; a few more places than needed do no harm.
        let operations = smooth.ledger.operations() - before;
        assert!(operations >= 4);
        for nth in 0..operations + 2 {
            for fault in [Fault::FailBefore, Fault::FailAfter, Fault::DieBefore, Fault::DieAfter] {
                one_life(settle, nth, fault).await;
            }
        }
    }
}

async fn one_life(settle: SettleWhen, nth: u64, fault: Fault) {
    let (url, calls) = counting().await;
    let mut shop = Shop::open(settle, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    shop.ledger.plan(nth, fault);
    let mut delivered = vec![];
    let case = format!("{settle:?} {fault:?} at operation {nth}");
    for attempt in 0..40 {
        let got = shop.get("/paid/x", Some(&credential)).await;
        match got.status {
            200 if !got.body.starts_with("broken") => delivered.push(got.body.clone()),
            200 | 502 | 503 => {
                assert!(!got.has_bill(), "{case}: a new bill for a payment that may be charged: {got:?}");
            }
            _ => panic!("{case}: {got:?}"),
        }
        if delivered.len() == 2 {
            break;
        }
        if attempt == 0 && matches!(fault, Fault::DieBefore | Fault::DieAfter) {
            shop = shop.restart(&format!("{}", attempt + 2)).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        // Leases of failed operations end with time alone.
        shop.clock.advance(Duration::from_secs(1));
        if attempt == 5 {
            shop.clock.advance(Duration::from_secs(40));
        }
    }
    assert_eq!(shop.rail.charged().len(), 1, "{case}: charges; {:?}", shop.ledger.payments());
    assert_eq!(delivered.len(), 2, "{case}: not delivered; {:?}", shop.ledger.payments());
    assert_eq!(delivered[0], delivered[1], "{case}: delivered twice");
    let settled = shop.ledger.payments().into_iter().filter(|payment| payment.state == PaymentState::Settled).count();
    assert_eq!(settled, 1, "{case}");
    assert!(calls.load(Ordering::SeqCst) >= 1 && PATIENCE > Duration::ZERO);
}
