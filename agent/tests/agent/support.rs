//! A seller that answers as a script says, a wallet that counts, and an agent that is quick to try again.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use farebox_agent::{Agent, AgentBuilder, FetchError, Fetched, Journal, RetryPolicy};
use farebox_core::{
    AcceptedTerms, Amount, AssetId, Challenge, EvmAddress, Finality, Offer, RailName, Refusal, Resource, Timestamp,
    TransferAuthorization, X402Credential, X402Version,
    ports::{Clock, Entropy, Wallet, WalletError},
};
use farebox_wire::x402;
use http::Method;
use serde_json::json;

pub(crate) const USDC: &str = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
pub(crate) const SELLER: &str = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C";
pub(crate) const HASH: &str = "0x89c91c789e57059b17285e7ba1716a1f5ff4c5dace0ea5a5135f26158d0421b9";
const CENT: u128 = 10_000;

/// Tells the time of the machine, and moves forward when told to.
#[derive(Debug, Default)]
pub(crate) struct TestClock(AtomicU32);

impl TestClock {
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(u32::try_from(by.as_secs()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    #[expect(clippy::disallowed_methods, reason = "the test is the binary here")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Timestamp::from_unix_ms(u64::try_from(since.as_millis()).unwrap())
            .plus(Duration::from_secs(self.0.load(Ordering::SeqCst).into()))
    }
}

#[derive(Debug)]
pub(crate) struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).unwrap();
    }
}

/// Signs anything with a nonce of its own, and counts.
#[derive(Debug)]
pub(crate) struct CountingWallet {
    address: EvmAddress,
    signed: AtomicU32,
    pub(crate) longest_s: AtomicU32,
}

impl Default for CountingWallet {
    fn default() -> Self {
        Self::of([7; 20])
    }
}

impl CountingWallet {
    pub(crate) fn of(address: [u8; 20]) -> Self {
        Self { address: EvmAddress(address), signed: AtomicU32::new(0), longest_s: AtomicU32::new(0) }
    }

    pub(crate) fn signed(&self) -> u32 {
        self.signed.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Wallet for CountingWallet {
    fn evm_address(&self) -> EvmAddress {
        self.address
    }

    async fn authorize(&self, offer: &Offer, now: Timestamp) -> Result<X402Credential, WalletError> {
        self.signed.fetch_add(1, Ordering::SeqCst);
        self.longest_s.fetch_max(u32::try_from(offer.max_timeout_s).unwrap(), Ordering::SeqCst);
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).unwrap();
        let authorization = TransferAuthorization {
            from: self.evm_address(),
            to: offer.pay_to.parse().unwrap(),
            value: offer.amount.units,
            valid_after: 0,
            valid_before: now.unix_s() + offer.max_timeout_s,
            nonce,
        };
        let accepted =
            AcceptedTerms { scheme: offer.scheme.clone(), network: offer.network().clone(), requirement: None };
        Ok(X402Credential::new(X402Version::V2, accepted, authorization, vec![9; 65]))
    }

    async fn balance(&self, asset: &AssetId) -> Result<Amount, WalletError> {
        Ok(Amount { units: 0, asset: asset.clone() })
    }
}

/// What a seller saw of a request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// The credential header's name and bytes.
    pub(crate) fn credential(&self) -> Option<(String, String)> {
        let value = |name| Some(self.headers.get(name)?.to_str().unwrap().to_owned());
        let token = || value("authorization").filter(|text| text.starts_with("L402 ") || text.starts_with("LSAT "));
        ["payment-signature", "x-payment", "x-payment-code"]
            .into_iter()
            .find_map(|name| Some((name.to_owned(), value(name)?)))
            .or_else(|| Some(("authorization".to_owned(), token()?)))
    }
}

type Script = dyn Fn(usize, &Seen) -> Response + Send + Sync;

/// An HTTP server on loopback that answers by script: the function gets the number of the paid attempt (from 1; 0 if the request
/// carries no credential) and the request.
pub(crate) struct Seller {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Seller {
    pub(crate) async fn start(script: impl Fn(usize, &Seen) -> Response + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = (Arc::clone(&seen), Arc::new(script) as Arc<Script>);
        let app = Router::new().fallback(answer).with_state(state);
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, seen, task }
    }

    pub(crate) fn url(&self, path: &str) -> url::Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The credentials that came, in order.
    pub(crate) fn credentials(&self) -> Vec<(String, String)> {
        self.seen().iter().filter_map(Seen::credential).collect()
    }

    /// How many of them differ.
    pub(crate) fn distinct_credentials(&self) -> usize {
        self.credentials().into_iter().collect::<std::collections::BTreeSet<_>>().len()
    }
}

impl Drop for Seller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Shared = (Arc<Mutex<Vec<Seen>>>, Arc<Script>);

async fn answer(State((seen, script)): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
    let path = parts.uri.to_string();
    let now = Seen { method: parts.method, path, headers: parts.headers, body };
    let attempt = {
        let mut seen = seen.lock().unwrap();
        seen.push(now.clone());
        if now.credential().is_some() { seen.iter().filter(|s| s.credential().is_some()).count() } else { 0 }
    };
    script(attempt, &now)
}

pub(crate) fn offer(units: u128) -> Offer {
    Offer {
        rail: RailName::X402,
        scheme: "exact".into(),
        amount: Amount { units, asset: format!("eip155:84532/erc20:{USDC}").parse().unwrap() },
        asset_on_wire: USDC.into(),
        pay_to: SELLER.into(),
        max_timeout_s: 60,
        extra: json!({"name": "USDC", "version": "2"}).as_object().unwrap().clone(),
        finality: Finality::default(),
        network_fee: None,
    }
}

pub(crate) fn cent() -> Offer {
    offer(CENT)
}

fn challenge(offers: &[Offer]) -> Challenge {
    let resource = Resource { url: "http://x.test/".to_owned(), description: "".into(), mime_type: "".into() };
    let refusal = Refusal::payment("payment_required", "pay");
    Challenge { resource, offers: offers.into(), token: None, unavailable: Vec::new(), refusal }
}

/// A 402 with a version 2 header and the given body.
pub(crate) fn bill_with(offers: &[Offer], body: impl Into<Body>) -> Response {
    let header = x402::encode_payment_required(&challenge(offers)).unwrap();
    respond(402, &[("payment-required", &header), ("content-type", "application/problem+json")], body)
}

pub(crate) fn bill(offers: &[Offer]) -> Response {
    bill_with(offers, "{}")
}

/// A version 1 body.
pub(crate) fn v1_terms(offers: &[Offer]) -> String {
    x402::payment_required_v1_members(&challenge(offers)).unwrap().to_string()
}

/// A 402 with version 1 terms in the body alone.
pub(crate) fn bill_v1(offers: &[Offer]) -> Response {
    respond(402, &[], v1_terms(offers))
}

pub(crate) fn respond(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let builder = Response::builder().status(status);
    headers.iter().fold(builder, |b, (name, value)| b.header(*name, *value)).body(body.into()).unwrap()
}

pub(crate) fn settlement(success: bool, transaction: &str, reason: Option<&str>) -> String {
    BASE64_STANDARD.encode(
        json!({"success": success, "transaction": transaction, "network": "eip155:84532", "errorReason": reason})
            .to_string(),
    )
}

/// The paid answer: a receipt and `goods`.
pub(crate) fn goods() -> Response {
    let receipt = settlement(true, HASH, None);
    let id = "pay_01hzxk3vd4s0q7r2m9n8b5c6e1";
    respond(200, &[("payment-response", &receipt), ("farebox-payment-id", id)], "goods")
}

/// A 402 that says in our own words why not.
pub(crate) fn refusal(offers: &[Offer], code: &str, charged: serde_json::Value) -> Response {
    bill_with(offers, json!({"code": code, "detail": "no", "retry": "after_payment", "charged": charged}).to_string())
}

pub(crate) fn quick() -> RetryPolicy {
    RetryPolicy {
        deadline: Duration::from_secs(5),
        attempt_timeout: Duration::from_millis(400),
        read_timeout: Duration::from_millis(400),
        connect_timeout: Duration::from_secs(1),
        first_wait: Duration::from_millis(5),
        wait_max: Duration::from_millis(40),
        attempts_max: 5,
        transfer_deadline: Duration::from_secs(20),
        bump_after: Duration::from_secs(1),
        poll_max: Duration::from_millis(100),
        pay_timeout: Duration::from_millis(600),
    }
}

/// A wallet, a clock and a journal folder, from which agents are made.
pub(crate) struct Payer {
    pub(crate) wallet: Arc<CountingWallet>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) folder: tempfile::TempDir,
}

impl Payer {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { wallet: Arc::default(), clock: Arc::default(), folder }
    }

    pub(crate) fn builder(&self) -> AgentBuilder {
        let journal = Journal::open(self.folder.path(), self.clock.now()).unwrap();
        Agent::builder()
            .wallet(Arc::clone(&self.wallet) as Arc<dyn Wallet>)
            .journal(journal)
            .clock(Arc::clone(&self.clock) as Arc<dyn Clock>)
            .entropy(Arc::new(OsEntropy))
            .retry(quick())
            .client(reqwest::Client::builder().no_proxy())
    }

    pub(crate) fn agent(&self) -> Agent {
        self.builder().build().unwrap()
    }

    /// The only file in `open/`.
    pub(crate) fn open_file(&self) -> std::path::PathBuf {
        let mut files = self.files("open");
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }

    pub(crate) fn files(&self, part: &str) -> Vec<std::path::PathBuf> {
        let folder: &Path = self.folder.path();
        std::fs::read_dir(folder.join(part)).unwrap().map(|item| item.unwrap().path()).collect()
    }
}

pub(crate) fn get(url: url::Url) -> reqwest::Request {
    reqwest::Request::new(Method::GET, url)
}

/// Reads the whole answer: status and body.
pub(crate) async fn read(fetched: Result<Fetched, FetchError>) -> (u16, String) {
    let response = fetched.unwrap().response;
    (response.status().as_u16(), response.text().await.unwrap())
}
