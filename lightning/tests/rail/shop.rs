//! A seller of one route, and what its buyers do.

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use farebox_core::{
    BitcoinNetwork, Decimal, Draw, DrawId, Drawn, FeeTerms, Grant, InstanceId, L402Token, Macaroon, Offer, PassId,
    Payment, PaymentId, Price, RequestId, RouteId, Timestamp, Token, TokenScope, TokenTerms,
    ports::{
        BillAsk, BoxError, Clock as _, DollarRates, HeldToken, LightningNode, NoBill, Offering as _, TokenBill,
        TokenBooks as _, TokenError, TokenRail as _, TokenRequest,
    },
};
use farebox_lightning::{L402, L402Config, L402Parts, PaidBy};
use farebox_testkit::{ManualClock, MemoryLedger, SeededEntropy};
use farebox_wire::l402::{decode_macaroon, service_name};

use crate::node::ScriptedNode;

pub(crate) const START: Timestamp = Timestamp::from_unix_s(1_900_000_000);
pub(crate) const BUYER: &str = "192.0.2.7";

/// One process of a gateway, as far as L402 goes.
pub(crate) struct Shop<N = ScriptedNode> {
    pub(crate) rail: Arc<L402>,
    pub(crate) node: Arc<N>,
    pub(crate) books: Arc<MemoryLedger>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) config: L402Config,
}

#[derive(Debug)]
struct NoRates;

impl DollarRates for NoRates {
    fn dollars(&self, _symbol: &str) -> Result<Decimal, BoxError> {
        Err("no rate is configured".into())
    }
}

/// A route and how it sells.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) id: RouteId,
    pub(crate) terms: TokenTerms,
}

impl Route {
    pub(crate) fn of(name: &str) -> Self {
        let id = RouteId::new(name);
        let terms = TokenTerms {
            grant: Grant::Calls(NonZeroU32::MIN),
            price: "10 sat".parse().unwrap(),
            service: service_name(&id),
            tier: 0,
            scope: TokenScope::Route,
            valid_for: Duration::from_secs(3_600),
        };
        Self { id, terms }
    }

    pub(crate) fn bound(mut self) -> Self {
        self.terms.scope = TokenScope::Request;
        self
    }

    pub(crate) fn granting(mut self, grant: Grant) -> Self {
        self.terms.grant = grant;
        self
    }

    pub(crate) fn at(mut self, price: &str) -> Self {
        self.terms.price = price.parse().unwrap();
        self
    }
}

impl Shop {
    pub(crate) fn open() -> Self {
        Self::with(|_| ())
    }

    pub(crate) fn strict() -> Self {
        Self::with(|config| config.paid_by = PaidBy::Settlement)
    }

    pub(crate) fn with(change: impl FnOnce(&mut L402Config)) -> Self {
        let mut config = L402Config::on(BitcoinNetwork::Regtest);
        change(&mut config);
        let books = MemoryLedger::new(InstanceId::new("one"), Duration::from_secs(600));
        Self::of(config, Arc::default(), Arc::new(books), Arc::new(ManualClock::at(START)))
    }

    /// The next process, with the same books and node.
    pub(crate) fn restarted(&self) -> Self {
        self.clock.advance(Duration::from_millis(1));
        let books = self.books.restarted(InstanceId::new(format!("at {}", self.clock.now().unix_ms())));
        Self::of(self.config.clone(), self.node.clone(), Arc::new(books), self.clock.clone())
    }

    /// Pays a bill and gives the token.
    pub(crate) fn buy(&self, bill: &TokenBill) -> L402Token {
        L402Token { macaroon: macaroon(bill), preimage: self.node.pay(&bill.invoice) }
    }

    /// A paid token of the route.
    pub(crate) async fn token(&self, route: &Route) -> L402Token {
        let bill = self.bill(route).await;
        self.buy(&bill)
    }
}

impl<N: LightningNode + 'static> Shop<N> {
    pub(crate) fn of(config: L402Config, node: Arc<N>, books: Arc<MemoryLedger>, clock: Arc<ManualClock>) -> Self {
        let parts = L402Parts {
            node: node.clone(),
            books: books.clone(),
            rates: Arc::new(NoRates),
            entropy: Arc::new(SeededEntropy::new(clock.now().unix_ms())),
            clock: clock.clone(),
        };
        let rail = L402::new(config.clone(), parts).unwrap();
        Self { rail, node, books, clock, config }
    }

    pub(crate) fn offer(&self, price: &Price) -> Offer {
        self.rail.offers(price, FeeTerms::default()).unwrap().remove(0)
    }

    /// The client at `address` asks for `resource` of the route without paying.
    pub(crate) async fn ask(&self, address: &str, route: &Route, resource: &str) -> Result<Arc<TokenBill>, NoBill> {
        self.ask_behind(address, "", route, resource).await
    }

    /// The client of which the proxy at `address` says `forwarded` asks for it.
    pub(crate) async fn ask_behind(
        &self,
        address: &str,
        forwarded: &str,
        route: &Route,
        resource: &str,
    ) -> Result<Arc<TokenBill>, NoBill> {
        let client = address.parse::<IpAddr>().unwrap();
        let ask = BillAsk {
            client,
            caller: &farebox_core::CallerId::from_address(client, forwarded.as_bytes()),
            route: &route.id,
            method: "GET",
            resource,
            url: &format!("https://shop.example{resource}"),
            offer: &self.offer(&route.terms.price),
            terms: &route.terms,
            request: &RequestId::new("req_test"),
            now: self.clock.now(),
        };
        self.rail.bill(&ask).await
    }

    pub(crate) async fn bill(&self, route: &Route) -> Arc<TokenBill> {
        self.ask(BUYER, route, "/x").await.unwrap()
    }

    pub(crate) async fn check(&self, token: &L402Token, route: &Route) -> Result<HeldToken, TokenError> {
        self.check_for(token, route, "GET", "/x").await
    }

    pub(crate) async fn check_for(
        &self,
        token: &L402Token,
        route: &Route,
        method: &str,
        resource: &str,
    ) -> Result<HeldToken, TokenError> {
        let request = TokenRequest { terms: &route.terms, method, resource, now: self.clock.now() };
        self.rail.check(token, &request).await
    }

    /// Takes a call, as the gateway does after a check.
    pub(crate) async fn draw(&self, held: HeldToken, number: u8) -> Drawn {
        let now = self.clock.now();
        let mut random = [0; 10];
        random[0] = number;
        let draw = Draw {
            pass: held.pass,
            id: DrawId([number; 16]),
            proved: held.payment_hash,
            payment: PaymentId::new(now, random),
            binding: farebox_core::Binding {
                route: RouteId::new("route"),
                method: "GET".to_owned(),
                resource: "/x".to_owned(),
                caller: farebox_core::CallerId::from_pass(held.pass),
            },
            key: None,
            request: RequestId::new("req_draw"),
            holder: InstanceId::new("one"),
            lease: Duration::from_secs(60),
            now,
        };
        self.books.draw(draw).await.unwrap()
    }

    pub(crate) fn in_books(&self, pass: PassId) -> Token {
        self.books.sold_tokens().into_iter().find(|token| token.sold.pass == pass).unwrap()
    }

    /// The payment that the pass made, if it is paid.
    pub(crate) fn payment(&self, pass: PassId) -> Option<Payment> {
        let id = self.in_books(pass).payment?;
        self.books.payments().into_iter().find(|payment| payment.id == id)
    }
}

pub(crate) fn macaroon(bill: &TokenBill) -> Macaroon {
    decode_macaroon(&BASE64_STANDARD.decode(&*bill.macaroon).unwrap()).unwrap()
}

/// The stable code of a rejection.
#[track_caller]
pub(crate) fn rejected(result: Result<HeldToken, TokenError>) -> String {
    match result {
        Err(TokenError::Rejected(rejected)) => rejected.code.into_owned(),
        other => panic!("expected a rejection, found {other:?}"),
    }
}
