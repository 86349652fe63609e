//! A gateway with one paid route, and all that is behind it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use farebox_core::{
    Access, Delivery, FeeTerms, InstanceId, LiveOffers, OfferBoard, Payment, PaymentState, Pricing, RailName, RouteId,
    SettleWhen, Tariff, Timestamp, TransferCredential,
    ports::{Ledger, QuoteKey, Rail},
};
use farebox_gateway::{AdmissionLimits, GatewayConfig, Ports, ReconcilerLimits};
use farebox_testkit::{
    ManualClock, MemoryLedger, Purchase, ScriptedRail, ScriptedTransfers, SeededEntropy, TestPayer, test_offer,
};
use farebox_wire::{
    transfer::{Quoter, TransferBill, TransferTimes, decode_bill, encode_code},
    x402::{SettlementResponse, decode_payment_required, decode_settlement, encode_credential},
};
use http::HeaderMap;
use reqwest::{Client, Method};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::support::{self, Running, client, patiently, raw_upstream, read_head, route, serve_with, text, upstream};

pub(crate) const NOW: Timestamp = Timestamp::from_unix_s(1_700_000_000);

/// What bills name as the origin.
pub(crate) const ORIGIN: &str = "https://shop.example";

/// How many look-ups one address may cause at once.
pub(crate) const LOOKUPS_BURST: u32 = 250;

/// A gateway with one paid route `ANY /paid/*` at $0.01, to be paid by x402 or by transfer.
pub(crate) struct Shop {
    pub(crate) gateway: Running,
    pub(crate) ledger: Arc<MemoryLedger>,
    pub(crate) rail: Arc<ScriptedRail>,
    pub(crate) transfers: ScriptedTransfers,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) upstream: String,
    pub(crate) settle: SettleWhen,
    pub(crate) client: Client,
}

/// What a caller got.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Got {
    pub(crate) fn problem(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    /// Code, retry, charged.
    #[track_caller]
    pub(crate) fn check(&self, status: u16, code: &str, retry: &str, charged: &str) {
        let problem = self.problem();
        let charge = problem["charged"].as_str().map_or_else(|| problem["charged"].to_string(), str::to_owned);
        let found = (self.status, problem["code"].as_str(), problem["retry"].as_str(), charge.as_str());
        assert_eq!(found, (status, Some(code), Some(retry), charged), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn settlement(&self) -> SettlementResponse {
        decode_settlement(self.headers["payment-response"].as_bytes()).unwrap()
    }

    pub(crate) fn has_bill(&self) -> bool {
        self.headers.contains_key("payment-required") || self.body.contains("\"transfer\":{")
    }
}

/// What a gateway is made of, in a test.
pub(crate) struct Parts {
    pub(crate) rails: Vec<Arc<dyn Rail>>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) instance: InstanceId,
    pub(crate) upstream: String,
    pub(crate) settle: SettleWhen,
}

impl Parts {
    /// The one route's tariff, with what the rails offer now.
    pub(crate) fn tariff(&self) -> Tariff {
        let price = "$0.01".parse().unwrap();
        let offers: Vec<_> =
            self.rails.iter().flat_map(|rail| rail.offers(&price, FeeTerms::default()).unwrap()).collect();
        Tariff {
            route: RouteId::new("paid"),
            pricing: Pricing {
                price,
                network_fee: FeeTerms::default(),
                rails: self.rails.iter().map(|rail| rail.name()).collect(),
                token: None,
            },
            board: LiveOffers::new(OfferBoard {
                offers: offers.into(),
                earlier_offers: Arc::new([]),
                earlier_until: NOW,
            }),
            settle: self.settle,
            description: "".into(),
            mime_type: "".into(),
        }
    }

    pub(crate) fn config(&self) -> GatewayConfig {
        let mut paid = route("ANY /paid/*", &self.upstream);
        paid.access = Access::Paid(Arc::new(self.tariff()));
        GatewayConfig {
            routes: vec![paid],
            public_url: Some(ORIGIN.parse().unwrap()),
            admission: AdmissionLimits {
                busy_wait: Duration::from_secs(3),
                lease: Duration::from_secs(30),
                lookups_per_minute: 4 * LOOKUPS_BURST,
                ..AdmissionLimits::default()
            },
            reconciler: ReconcilerLimits { interval: Duration::from_millis(20), ..ReconcilerLimits::default() },
            transfer: Some(TransferTimes {
                pay_within: Duration::from_secs(600),
                claim_within: Duration::from_secs(3600),
            }),
            ..support::config(&[])
        }
    }

    pub(crate) fn ports(&self) -> Ports {
        let key = QuoteKey { id: 1, secret: [7; 32], since: NOW };
        Ports {
            tokens: None,
            rails: self.rails.clone(),
            ledger: self.ledger.clone(),
            clock: self.clock.clone(),
            entropy: Arc::new(SeededEntropy::new(7)),
            instance: self.instance.clone(),
            quoter: Some(Arc::new(Quoter::new(vec![key]).unwrap())),
        }
    }

    pub(crate) async fn serve(&self) -> Running {
        serve_with(self.config(), self.ports()).await
    }
}

impl Shop {
    pub(crate) async fn open(settle: SettleWhen, upstream: String) -> Self {
        let ledger = Arc::new(MemoryLedger::new(InstanceId::new("1"), Duration::from_secs(600)));
        let clock = Arc::new(ManualClock::at(NOW));
        let rail = Arc::new(ScriptedRail::new(ledger.clone(), clock.clone()));
        let unserved = Unserved { ledger, rail, transfers: ScriptedTransfers::new(), clock, upstream, settle };
        unserved.serve("1").await
    }

    /// The next process on the same books and chains, as after a kill -9.
    pub(crate) async fn restart(self, instance: &str) -> Self {
        let ledger = Arc::new(self.ledger.restarted(InstanceId::new(instance)));
        let rail = Arc::new(self.rail.restarted(ledger.clone()));
        let Self { transfers, clock, upstream, settle, .. } = self;
        Unserved { ledger, rail, transfers, clock, upstream, settle }.serve(instance).await
    }

    /// Another gateway on the same books and chains.
    pub(crate) async fn twin(&self, instance: &str) -> Self {
        let unserved = Unserved {
            ledger: self.ledger.clone(),
            rail: Arc::new(self.rail.restarted(self.ledger.clone())),
            transfers: self.transfers.clone(),
            clock: self.clock.clone(),
            upstream: self.upstream.clone(),
            settle: self.settle,
        };
        unserved.serve(instance).await
    }

    pub(crate) async fn get(&self, path: &str, credential: Option<&(http::HeaderName, http::HeaderValue)>) -> Got {
        self.send(Method::GET, path, credential.cloned().into_iter().collect()).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, headers: HeaderMap) -> Got {
        send(&self.client, self.gateway.url(path), method, headers).await
    }

    /// Reads the bill at `path` and signs it.
    pub(crate) async fn sign(&self, path: &str, nonce: u64) -> (http::HeaderName, http::HeaderValue) {
        let unpaid = self.get(path, None).await;
        assert_eq!(unpaid.status, 402, "{unpaid:?}");
        let header = unpaid.headers["payment-required"].as_bytes();
        let bill = decode_payment_required(Some(header), Some(unpaid.body.as_bytes())).unwrap();
        let requirement = &bill.requirements[0];
        let until = NOW.plus(Duration::from_secs(60));
        let farebox_core::Credential::X402(credential) = TestPayer(1).pay(&requirement.offer, nonce, until) else {
            unreachable!("x402 is signed by an x402 credential")
        };
        encode_credential(&credential, requirement, &bill)
    }

    /// The bill by transfer at `path`.
    pub(crate) async fn bill(&self, path: &str) -> TransferBill {
        let unpaid = self.get(path, None).await;
        assert_eq!(unpaid.status, 402, "{unpaid:?}");
        decode_bill(unpaid.body.as_bytes()).unwrap().unwrap().bill
    }

    /// Reads the bill at `path`, sends so many units once for each number, and gives the claim.
    pub(crate) async fn pay(&self, path: &str, payer: TestPayer, units: &[u128]) -> HeaderMap {
        let bill = self.bill(path).await;
        self.follow_transfers();
        let hash = self.transfers.transfer(payer, units);
        claim(payer, &bill, hash, self.now())
    }

    /// Both scripted rails say that their chain is the one network there is: from now on it is that of the transfers.
    pub(crate) fn follow_transfers(&self) {
        self.rail.lose_chain();
    }

    pub(crate) fn now(&self) -> Timestamp {
        farebox_core::ports::Clock::now(&*self.clock)
    }

    pub(crate) fn last(&self) -> Payment {
        self.ledger.payments().pop().expect("no payment")
    }

    pub(crate) fn state(&self) -> (PaymentState, Delivery) {
        (self.last().state, self.last().delivery)
    }

    pub(crate) async fn until(&self, state: PaymentState) {
        eventually(|| self.state().0 == state).await;
    }
}

/// A shop before its gateway listens.
struct Unserved {
    ledger: Arc<MemoryLedger>,
    rail: Arc<ScriptedRail>,
    transfers: ScriptedTransfers,
    clock: Arc<ManualClock>,
    upstream: String,
    settle: SettleWhen,
}

impl Unserved {
    async fn serve(self, instance: &str) -> Shop {
        let Self { ledger, rail, transfers, clock, upstream, settle } = self;
        let parts = Parts {
            rails: vec![rail.clone(), Arc::new(transfers.clone())],
            ledger: ledger.clone(),
            clock: clock.clone(),
            instance: InstanceId::new(instance),
            upstream: upstream.clone(),
            settle,
        };
        Shop { gateway: parts.serve().await, ledger, rail, transfers, clock, upstream, settle, client: client() }
    }
}

pub(crate) async fn send(client: &Client, url: String, method: Method, headers: HeaderMap) -> Got {
    let request = client.request(method, url).headers(headers);
    let response = patiently(request.send()).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Got { status, headers, body: patiently(response.text()).await.unwrap_or_else(|e| format!("broken: {e}")) }
}

/// The headers by which `payer` claims the transfer `hash` for `bill`.
pub(crate) fn claim(payer: TestPayer, bill: &TransferBill, hash: [u8; 32], now: Timestamp) -> HeaderMap {
    encode_code(&code(payer, bill, hash, now)).into_iter().collect()
}

/// The credential that [`claim`] sends; the code lives for 5 minutes.
pub(crate) fn code(payer: TestPayer, bill: &TransferBill, hash: [u8; 32], now: Timestamp) -> TransferCredential {
    let purchase = Purchase {
        quote: &bill.quote,
        method: &bill.method,
        url: &bill.resource,
        code_expires_at: now.plus(Duration::from_secs(300)),
    };
    match payer.claim_transfer(&test_offer(RailName::Transfer), hash, purchase) {
        farebox_core::Credential::Transfer(credential) => credential,
        other => panic!("{other:?} is no transfer"),
    }
}

/// Waits until it is so.
pub(crate) async fn eventually(so: impl Fn() -> bool) {
    patiently(async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// An upstream that counts its calls and answers `ok <call>`.
pub(crate) async fn counting() -> (String, Arc<AtomicUsize>) {
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
pub(crate) async fn saying(bytes: &'static str) -> (String, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let address = raw_upstream(move |mut tcp| {
        let counter = counter.clone();
        async move {
            read_head(&mut tcp).await;
            counter.fetch_add(1, Ordering::SeqCst);
            tcp.write_all(bytes.as_bytes()).await.unwrap();
        }
    })
    .await;
    (format!("http://{address}"), calls)
}
