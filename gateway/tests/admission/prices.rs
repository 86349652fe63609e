//! Prices that move while the gateway runs.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use farebox_core::{
    Amount, BlockRef, FeeTerms, Finality, InstanceId, Network, NetworkFee, Offer, Payment, Permit, Price, RailName,
    SettleWhen,
    ports::{
        BoxError, Canonical, ChainWindow, Checked, Lookups, OfferError, Offering, Presented, Rail, Rejected,
        Settlement, Verified, VerifyError,
    },
};
use farebox_gateway::GatewayConfig;
use farebox_testkit::{Fault, ManualClock, MemoryLedger, ScriptedRail, TestPayer};
use farebox_wire::x402::{decode_payment_required, encode_credential};
use http::HeaderMap;
use parking_lot::Mutex;
use reqwest::Method;

use crate::{
    shop::{Got, NOW, Parts, counting, send},
    support::{Running, client, patiently, serve_with},
};

/// A rail whose price moves.
#[derive(Debug)]
struct Moving {
    rail: ScriptedRail,
    /// Units and the part that is the network's fee; `None` while there is no rate.
    price: Mutex<Option<(u128, u128)>>,
}

struct Market {
    gateway: Running,
    rail: Arc<Moving>,
    ledger: Arc<MemoryLedger>,
    clock: Arc<ManualClock>,
}

impl Market {
    async fn open() -> Self {
        let ledger = Arc::new(MemoryLedger::new(InstanceId::new("1"), Duration::from_secs(600)));
        let clock = Arc::new(ManualClock::at(NOW));
        let rail = ScriptedRail::new(ledger.clone(), clock.clone());
        let rail = Arc::new(Moving { rail, price: Mutex::new(Some((10_000, 0))) });
        let (upstream, _) = counting().await;
        let parts = Parts {
            rails: vec![rail.clone()],
            ledger: ledger.clone(),
            clock: clock.clone(),
            instance: InstanceId::new("1"),
            upstream,
            settle: SettleWhen::BeforeResponse,
        };
        let config = GatewayConfig { reprice_every: Duration::from_millis(10), ..parts.config() };
        // As whoever makes the tariffs does at the start.
        let offers = rail.offers(&"$0.01".parse().unwrap(), FeeTerms::default()).unwrap();
        farebox_core::ports::Ledger::exchange_offers(&*ledger, &parts.tariff().route, &offers, NOW).await.unwrap();
        let gateway = serve_with(config, parts.ports()).await;
        Self { gateway, rail, ledger, clock }
    }

    fn price(&self, price: Option<(u128, u128)>) {
        *self.rail.price.lock() = price;
    }

    async fn get(&self, headers: HeaderMap) -> Got {
        send(&client(), self.gateway.url("/paid/x"), Method::GET, headers).await
    }

    /// Waits until a bill asks for so many units, and gives what pays it.
    async fn bill_of(&self, units: u128, nonce: u64) -> HeaderMap {
        patiently(async {
            loop {
                let unpaid = self.get(HeaderMap::new()).await;
                if let Some(header) = unpaid.headers.get("payment-required") {
                    let bill = decode_payment_required(Some(header.as_bytes()), None).unwrap();
                    let requirement = &bill.requirements[0];
                    if requirement.offer.amount.units == units {
                        let until = NOW.plus(Duration::from_secs(60));
                        let farebox_core::Credential::X402(credential) =
                            TestPayer(1).pay(&requirement.offer, nonce, until)
                        else {
                            unreachable!("x402 is paid by an x402 credential")
                        };
                        return [encode_credential(&credential, requirement, &bill)].into_iter().collect();
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    async fn until_status(&self, status: u16) -> Got {
        patiently(async {
            loop {
                let got = self.get(HeaderMap::new()).await;
                if got.status == status {
                    return got;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

#[tokio::test]
async fn a_price_that_moves_is_billed_and_the_earlier_bill_is_honoured_until_it_ends() {
    let market = Market::open().await;
    let (early, late) = (market.bill_of(10_000, 1).await, market.bill_of(10_000, 2).await);
    market.price(Some((12_000, 0)));
    let dear = market.bill_of(12_000, 3).await;
    for credential in [early, dear] {
        assert_eq!(market.get(credential).await.status, 200);
    }
    market.clock.advance(Duration::from_secs(60));
    let got = market.get(late).await;
    assert_eq!((got.status, got.has_bill()), (402, true), "{got:?}");
    assert_eq!(market.rail.rail.charged().len(), 2);
}

#[tokio::test]
async fn without_a_price_nothing_is_sold_and_nothing_is_free_until_there_is_one_again() {
    let market = Market::open().await;
    let billed = market.bill_of(10_000, 1).await;
    market.price(None);
    let got = market.until_status(503).await;
    got.check(503, "price_unavailable", "same_proof", "false");
    assert!(!got.has_bill() && got.headers.contains_key("retry-after"));
    assert_eq!(market.get(billed).await.status, 200, "a bill from before is honoured");
    let garbage = [("payment-signature".parse().unwrap(), "!".parse().unwrap())].into_iter().collect();
    let got = market.get(garbage).await;
    assert_eq!((got.status, got.has_bill()), (400, false), "an empty bill is no bill");
    market.price(Some((11_000, 0)));
    let credential = market.bill_of(11_000, 2).await;
    assert_eq!(market.get(credential).await.status, 200);
}

#[tokio::test]
async fn a_price_that_the_books_have_not_heard_of_is_not_billed() {
    let market = Market::open().await;
    // Some hundreds of operations, of the repricer and the reconciler, fail before the books are back.
    for nth in 0..300 {
        market.ledger.plan(nth, Fault::FailBefore);
    }
    let failing_until = market.ledger.operations() + 300;
    market.price(Some((12_000, 0)));
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(market.bill_of(10_000, 1).await);
    assert!(market.ledger.operations() < failing_until, "the books were back too early for this test");
    drop(market.bill_of(12_000, 2).await);
    assert!(market.ledger.operations() >= failing_until);
}

#[tokio::test]
async fn a_fee_that_moves_within_the_same_amount_changes_no_offer() {
    let market = Market::open().await;
    market.price(Some((10_000, 77)));
    let told = patiently(async {
        loop {
            let got = market.get(HeaderMap::new()).await;
            let fee = got.problem()["accepts"][0]["extra"]["networkFee"].clone();
            if !fee.is_null() {
                return fee;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(told, serde_json::json!({ "included": "77" }));
    let route = farebox_core::RouteId::new("paid");
    let earlier = farebox_core::ports::Ledger::exchange_offers(&*market.ledger, &route, &[], NOW).await.unwrap();
    assert_eq!(earlier.len(), 1, "the books know one offer: {earlier:?}");
}

impl Offering for Moving {
    fn name(&self) -> RailName {
        self.rail.name()
    }

    fn offers(&self, price: &Price, fee: FeeTerms) -> Result<Vec<Offer>, OfferError> {
        let offers = self.rail.offers(price, fee)?;
        let Some((units, fee)) = *self.price.lock() else {
            let (symbol, network) = ("USDC".to_owned(), offers[0].network().clone());
            return Err(OfferError::NoRate {
                price: Box::new(price.clone()),
                symbol,
                network,
                source: "no rate".into(),
            });
        };
        let network_fee = (fee > 0).then_some(NetworkFee::Included(fee));
        let moved = |offer: Offer| {
            let asset = offer.amount.asset.clone();
            Offer { amount: Amount { units, asset }, network_fee, ..offer }
        };
        Ok(offers.into_iter().map(moved).collect())
    }
}

#[async_trait]
impl Rail for Moving {
    fn check(&self, presented: &Presented<'_>) -> Result<Checked, Rejected> {
        self.rail.check(presented)
    }

    async fn verify(&self, checked: &Checked, lookups: &dyn Lookups) -> Result<Verified, VerifyError> {
        self.rail.verify(checked, lookups).await
    }

    async fn settle(&self, permit: &Permit) -> Settlement {
        self.rail.settle(permit).await
    }

    async fn resolve(&self, payment: &Payment) -> Settlement {
        self.rail.resolve(payment).await
    }

    async fn windows(&self) -> Vec<ChainWindow> {
        self.rail.windows().await
    }

    async fn is_canonical(&self, network: &Network, block: &BlockRef) -> Result<Canonical, BoxError> {
        self.rail.is_canonical(network, block).await
    }

    fn deepest(&self, network: &Network) -> Finality {
        self.rail.deepest(network)
    }
}
