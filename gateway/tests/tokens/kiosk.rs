//! A gateway that sells calls, and all that is behind it.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use farebox_core::{
    Access, Draw, DrawEnd, DrawId, Drawn, FeeTerms, Grant, InstanceId, Invoice, LiveOffers, NewToken, OfferBoard,
    PassId, PaymentHash, Pricing, RailName, RouteId, SettleWhen, Tariff, Timestamp, Token, TokenScope, TokenTerms,
    ports::{LedgerUnavailable, NewsCursor, NewsRead, NotedNews, Offering, TokenBooks, TokenFilter, offers_by},
};
use farebox_gateway::{AdmissionLimits, GatewayConfig, Limits, Ports, Tokens};
use farebox_testkit::{ManualClock, MemoryLedger, ScriptedRail, ScriptedTokens, SeededEntropy};
use farebox_wire::l402::{self, Identifier};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use reqwest::{Client, Method};
use serde_json::Value;

use crate::support::{self, Running, client, patiently, route, serve_with, text, upstream};

pub(crate) const NOW: Timestamp = Timestamp::from_unix_s(1_700_000_000);

/// What its paid routes take of a request's body.
pub(crate) const REQUEST_BYTES_MAX: u64 = 64;

/// How its paid route sells.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) grant: Grant,
    pub(crate) scope: TokenScope,
    pub(crate) rails: Vec<RailName>,
    pub(crate) upstream: String,
    pub(crate) busy_wait: Duration,
    /// How long its upstream may be silent.
    pub(crate) response_timeout: Duration,
    /// How long its books take before a draw and its end, and after.
    pub(crate) slow: Duration,
}

impl Plan {
    /// So many calls for a cent, over Lightning alone.
    pub(crate) fn calls(calls: u32, upstream: impl Into<String>) -> Self {
        Self {
            grant: Grant::Calls(NonZeroU32::new(calls).unwrap()),
            scope: TokenScope::Route,
            rails: vec![RailName::L402],
            upstream: upstream.into(),
            busy_wait: Duration::from_secs(3),
            response_timeout: support::PATIENCE,
            slow: Duration::ZERO,
        }
    }

    pub(crate) async fn open(self) -> Kiosk {
        let ledger = Arc::new(MemoryLedger::new(InstanceId::new("1"), Duration::from_secs(600)));
        let rail = ScriptedTokens::new(ledger.clone());
        Kiosk::serve(self, ledger, rail, Arc::new(ManualClock::at(NOW)), "1").await
    }

    fn tariff(&self, id: &str, rails: &[Arc<dyn Offering>]) -> Tariff {
        let route = RouteId::new(id);
        let terms = TokenTerms {
            grant: self.grant,
            price: "$0.01".parse().unwrap(),
            service: l402::service_name(&route),
            tier: 0,
            scope: self.scope,
            valid_for: Duration::from_secs(3600),
        };
        let pricing = Pricing {
            price: "$0.01".parse().unwrap(),
            network_fee: FeeTerms::default(),
            rails: self.rails.clone(),
            token: Some(terms),
        };
        let (offers, _) = offers_by(&pricing, rails);
        Tariff {
            route,
            pricing,
            board: LiveOffers::new(OfferBoard::since(NOW, offers, Vec::new())),
            settle: SettleWhen::BeforeResponse,
            description: "".into(),
            mime_type: "".into(),
        }
    }
}

/// A gateway whose routes `ANY /paid/*` and `ANY /other/*` sell tokens, and whose `ANY /free/*` is free.
pub(crate) struct Kiosk {
    pub(crate) gateway: Running,
    pub(crate) ledger: Arc<MemoryLedger>,
    pub(crate) rail: ScriptedTokens,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) client: Client,
    pub(crate) plan: Plan,
    pub(crate) tariff: Arc<Tariff>,
}

impl Kiosk {
    async fn serve(
        plan: Plan,
        ledger: Arc<MemoryLedger>,
        rail: ScriptedTokens,
        clock: Arc<ManualClock>,
        instance: &str,
    ) -> Self {
        let x402 = Arc::new(ScriptedRail::new(ledger.clone(), clock.clone()));
        let offerings: Vec<Arc<dyn Offering>> = vec![x402.clone(), Arc::new(rail.clone())];
        let tariff = Arc::new(plan.tariff("paid", &offerings));
        let paid = |matches: &str, tariff: &Arc<Tariff>| {
            let mut paid = route(matches, &plan.upstream);
            paid.access = Access::Paid(tariff.clone());
            paid.upstream.response_timeout = plan.response_timeout;
            paid.request_body_bytes_max = Some(REQUEST_BYTES_MAX);
            paid
        };
        let other = Arc::new(plan.tariff("other", &offerings));
        let config = GatewayConfig {
            routes: vec![
                paid("ANY /paid/*", &tariff),
                paid("ANY /other/*", &other),
                route("ANY /free/*", &plan.upstream),
            ],
            admission: AdmissionLimits {
                busy_wait: plan.busy_wait,
                invoice_timeout: Duration::from_millis(200),
                ..AdmissionLimits::default()
            },
            limits: Limits { drain_timeout: Duration::from_millis(100), ..Limits::default() },
            ..support::config(&[])
        };
        let ports = Ports {
            rails: vec![x402],
            tokens: Some(Tokens {
                rail: Arc::new(rail.clone()),
                books: Arc::new(SlowBooks { ledger: ledger.clone(), slow: plan.slow }),
            }),
            ledger: ledger.clone(),
            clock: clock.clone(),
            // Each process has its own.
            entropy: Arc::new(SeededEntropy::new(instance.bytes().map(u64::from).sum())),
            instance: InstanceId::new(instance),
            quoter: None,
        };
        Self { gateway: serve_with(config, ports).await, ledger, rail, clock, client: client(), plan, tariff }
    }

    /// The next process on the same books, as after a kill -9.
    pub(crate) async fn restart(self, instance: &str) -> Self {
        let ledger = Arc::new(self.ledger.restarted(InstanceId::new(instance)));
        let rail = self.rail.restarted(ledger.clone());
        Self::serve(self.plan, ledger, rail, self.clock, instance).await
    }

    /// The next process on the same books, after this one was told to stop and did.
    pub(crate) async fn stop_and_start(self, instance: &str) -> Self {
        self.gateway.ended().await;
        let ledger = Arc::new(self.ledger.restarted(InstanceId::new(instance)));
        let rail = self.rail.restarted(ledger.clone());
        Self::serve(self.plan, ledger, rail, self.clock, instance).await
    }

    /// Another gateway on the same books and node.
    pub(crate) async fn twin(&self, instance: &str) -> Self {
        let (ledger, rail, clock) = (self.ledger.clone(), self.rail.clone(), self.clock.clone());
        Self::serve(self.plan.clone(), ledger, rail, clock, instance).await
    }

    pub(crate) async fn get(&self, path: &str, token: &HeaderMap) -> Got {
        self.send(Method::GET, path, token.clone()).await
    }

    pub(crate) async fn unpaid(&self, path: &str) -> Got {
        self.get(path, &HeaderMap::new()).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, headers: HeaderMap) -> Got {
        let request = self.client.request(method, self.gateway.url(path)).headers(headers);
        let response = patiently(request.send()).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Got { status, headers, body: patiently(response.text()).await.unwrap_or_else(|e| format!("broken: {e}")) }
    }

    /// Pays the bill at `path`: the token, as `Authorization`.
    pub(crate) async fn buy(&self, path: &str) -> HeaderMap {
        self.pay(&self.unpaid(path).await)
    }

    /// Pays this bill.
    pub(crate) fn pay(&self, bill: &Got) -> HeaderMap {
        authorization(&self.credential(bill))
    }

    /// `<macaroon>:<preimage>` of this bill, once it is paid.
    pub(crate) fn credential(&self, bill: &Got) -> String {
        let macaroon = bill.macaroon();
        let bytes = STANDARD.decode(&macaroon).unwrap();
        let identifier = Identifier::decode(&l402::decode_macaroon(&bytes).unwrap().identifier).unwrap();
        format!("{macaroon}:{}", self.rail.pay(identifier.payment_hash).reveal())
    }
}

/// Books that take their time for what is done for each call.
#[derive(Debug)]
struct SlowBooks {
    ledger: Arc<MemoryLedger>,
    slow: Duration,
}

#[async_trait]
impl TokenBooks for SlowBooks {
    async fn sell(&self, token: NewToken) -> Result<(), LedgerUnavailable> {
        self.ledger.sell(token).await
    }

    async fn token(&self, pass: PassId) -> Result<Option<Token>, LedgerUnavailable> {
        self.ledger.token(pass).await
    }

    async fn draw(&self, draw: Draw) -> Result<Drawn, LedgerUnavailable> {
        tokio::time::sleep(self.slow).await;
        let drawn = self.ledger.draw(draw).await;
        tokio::time::sleep(self.slow).await;
        drawn
    }

    async fn end_draw(&self, pass: PassId, id: DrawId, end: DrawEnd, now: Timestamp) -> Result<(), LedgerUnavailable> {
        tokio::time::sleep(self.slow).await;
        let ended = self.ledger.end_draw(pass, id, end, now).await;
        tokio::time::sleep(self.slow).await;
        ended
    }

    async fn note_news(
        &self,
        news: Vec<NotedNews>,
        read: Option<NewsRead>,
        now: Timestamp,
    ) -> Result<Vec<PassId>, LedgerUnavailable> {
        self.ledger.note_news(news, read, now).await
    }

    async fn news_cursor(&self, node: &str) -> Result<Option<NewsCursor>, LedgerUnavailable> {
        self.ledger.news_cursor(node).await
    }

    async fn unsettled_invoices(
        &self,
        node: &str,
        expired_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<Invoice>, LedgerUnavailable> {
        self.ledger.unsettled_invoices(node, expired_before, limit).await
    }

    async fn unsettled_elsewhere(
        &self,
        node: &str,
        after: Option<(Timestamp, PaymentHash)>,
        limit: u32,
    ) -> Result<Vec<Invoice>, LedgerUnavailable> {
        self.ledger.unsettled_elsewhere(node, after, limit).await
    }

    async fn tokens(&self, filter: &TokenFilter) -> Result<Vec<Token>, LedgerUnavailable> {
        self.ledger.tokens(filter).await
    }

    async fn revoke(&self, pass: PassId, now: Timestamp) -> Result<Option<Token>, LedgerUnavailable> {
        self.ledger.revoke(pass, now).await
    }
}

/// What a caller got.
#[derive(Clone, Debug)]
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

    /// Its `WWW-Authenticate` lines.
    pub(crate) fn lines(&self) -> Vec<&str> {
        self.headers.get_all("www-authenticate").iter().map(|line| line.to_str().unwrap()).collect()
    }

    /// Whether anybody could pay by what it says.
    pub(crate) fn has_bill(&self) -> bool {
        let members = ["accepts", "invoice", "macaroon", "transfer"];
        let in_body = serde_json::from_str::<Value>(&self.body)
            .is_ok_and(|body| members.iter().any(|member| body.get(member).is_some()));
        !self.lines().is_empty() || self.headers.contains_key("payment-required") || in_body
    }

    /// The macaroon of its challenge.
    #[track_caller]
    pub(crate) fn macaroon(&self) -> String {
        assert_eq!(self.status, 402, "{self:?}");
        let line = self.lines().into_iter().next().unwrap_or_else(|| panic!("no challenge in {self:?}"));
        line.split('"').nth(1).unwrap().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

pub(crate) fn authorization(credential: &str) -> HeaderMap {
    one(AUTHORIZATION, &format!("L402 {credential}"))
}

pub(crate) fn one(name: HeaderName, value: &str) -> HeaderMap {
    [(name, HeaderValue::from_str(value).unwrap())].into_iter().collect()
}

/// These headers, with an `Idempotency-Key`.
pub(crate) fn keyed(token: &HeaderMap, key: &str) -> HeaderMap {
    let mut headers = token.clone();
    headers.insert("idempotency-key", HeaderValue::from_str(key).unwrap());
    headers
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

/// Waits until it is so.
pub(crate) async fn eventually(so: impl Fn() -> bool) {
    patiently(async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
