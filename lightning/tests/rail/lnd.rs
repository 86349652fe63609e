//! The rail with a real lnd, paid by another over a channel.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use farebox_core::{
    BitcoinNetwork, Drawn, InstanceId, Invoice, InvoiceState, L402Token, PaymentHash, Preimage, Timestamp,
    ports::{
        InvoiceOrder, InvoiceStatus, LightningNode, NewsCursor, NoBill, NodeError, NodeInfo, Settlements, TokenBill,
        TokenError,
    },
};
use farebox_e2e::lightning::{LightningPair, Lnd, Macaroon};
use farebox_lightning::{
    L402Config, PaidBy,
    node::{LndConfig, NodeConfig, SecretSource, connect},
};
use farebox_testkit::{ManualClock, MemoryLedger};
use farebox_wire::bolt11;
use reqwest::Method;
use serde_json::json;

use crate::{
    news::Following,
    shop::{Route, Shop, macaroon, rejected},
};

type LndShop = Shop<OfLnd>;

/// lnd by our own client, with invoices of another kind on demand.
#[derive(Debug)]
pub(crate) struct OfLnd {
    client: Arc<dyn LightningNode>,
    invoices: Kind,
    hold: Option<HoldApi>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// As asked for.
    Usual,
    /// Good for a second.
    Short,
    /// The payment is held until somebody says what to do with it.
    Held,
}

/// lnd's own REST, for what our client never asks for.
#[derive(Clone, Debug)]
struct HoldApi {
    url: String,
    macaroon: String,
}

fn route() -> Route {
    Route::of("GET /x")
}

#[expect(clippy::disallowed_methods, reason = "a real node keeps real time")]
fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_unix_ms(since.as_millis().try_into().unwrap())
}

fn shop_of(lnd: &Lnd, invoices: Kind, paid_by: PaidBy, books: Option<&MemoryLedger>) -> LndShop {
    let clock = Arc::new(ManualClock::at(wall_clock()));
    let config = NodeConfig::Lnd(LndConfig {
        url: lnd.rest_url().parse().unwrap(),
        macaroon: SecretSource::File(lnd.macaroon_file(Macaroon::Admin)),
        certificate: Some(lnd.tls_cert()),
        timeout: Duration::from_secs(5),
    });
    let nodes_clock: Arc<dyn farebox_core::ports::Clock> = clock.clone();
    let client = connect(&config, &nodes_clock).unwrap().node;
    let hold = HoldApi { url: lnd.rest_url(), macaroon: lnd.macaroon(Macaroon::Admin).unwrap() };
    let node = Arc::new(OfLnd { client, invoices, hold: (invoices == Kind::Held).then_some(hold) });
    let instance = InstanceId::new(format!("at {}", wall_clock().unix_ms()));
    let books = match books {
        Some(books) => books.restarted(instance),
        None => MemoryLedger::new(instance, Duration::from_secs(600)),
    };
    let mut config = L402Config::on(BitcoinNetwork::Regtest);
    config.paid_by = paid_by;
    if invoices == Kind::Short {
        (config.invoice_expiry, config.reuse_left_min) = (Duration::from_secs(30), Duration::ZERO);
    }
    Shop::of(config, node, Arc::new(books), clock)
}

async fn soon(what: &str, reached: impl Fn() -> bool) {
    for _ in 0..600 {
        if reached() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s: {what}");
}

async fn paid_by(payer: &Lnd, bill: &TokenBill) -> L402Token {
    let paid = payer.pay(&bill.invoice.bolt11).await.unwrap();
    L402Token { macaroon: macaroon(bill), preimage: Preimage::from_hex(&paid.preimage).unwrap() }
}

#[tokio::test]
async fn what_is_paid_is_learnt_also_when_the_gateway_or_the_node_was_away() {
    let mut pair = LightningPair::start().await.unwrap();
    let shop = shop_of(&pair.seller, Kind::Usual, PaidBy::Preimage, None);
    let following = Following::of(&shop.rail);

    // Learnt by subscription, and the token is good.
    let bill = shop.bill(&route()).await;
    assert_eq!(shop.bill(&route()).await, bill);
    let token = paid_by(&pair.payer, &bill).await;
    soon("the first settlement", || shop.payment(bill.pass).is_some()).await;
    assert_eq!(shop.payment(bill.pass).unwrap().amount.units, 10_000);
    let held = shop.check(&token, &route()).await.unwrap();
    assert!(matches!(shop.draw(held, 1).await, Drawn::Granted(_)));
    let next = shop.bill(&route()).await;
    assert_ne!(next, bill, "what was paid is not shown again");

    // Paid while the gateway is down.
    drop(following);
    paid_by(&pair.payer, &next).await;
    let shop = shop_of(&pair.seller, Kind::Usual, PaidBy::Preimage, Some(&shop.books));
    let following = Following::of(&shop.rail);
    soon("what was paid meanwhile", || shop.payment(next.pass).is_some()).await;

    // Paid while the gateway is down, and the node down when it comes back.
    let third = shop.bill(&route()).await;
    drop(following);
    let token = paid_by(&pair.payer, &third).await;
    pair.seller.kill_9().unwrap();
    let shop = shop_of(&pair.seller, Kind::Usual, PaidBy::Preimage, Some(&shop.books));
    let _following = Following::of(&shop.rail);
    let error = shop.ask("192.0.2.1", &route(), "/x").await.unwrap_err();
    assert!(matches!(error, NoBill::Node { .. }), "{error:?}");
    assert_eq!(shop.rail.node_trouble().unwrap().code, "node_unavailable");
    let held = shop.check(&token, &route()).await.unwrap();
    assert_eq!(held.pass, third.pass, "no good token is bad because the node is down");
    pair.restart_seller().await.unwrap();
    soon("what was paid before the node died", || shop.payment(third.pass).is_some()).await;
    assert_eq!(shop.rail.node_trouble(), None);
    let fourth = shop.bill(&route()).await;
    paid_by(&pair.payer, &fourth).await;
    soon("what was paid after the node came back", || shop.payment(fourth.pass).is_some()).await;
    assert_eq!(shop.books.payments().len(), 4);
}

#[tokio::test]
async fn expired_cancelled_and_held_invoices_end_in_the_books() {
    let pair = LightningPair::start().await.unwrap();
    let held_shop = shop_of(&pair.seller, Kind::Held, PaidBy::Settlement, None);
    let books = &held_shop.books;
    let [held, given_back, cancelled] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
    let held = held_shop.ask(held, &route(), "/x").await.unwrap();
    let given_back = held_shop.ask(given_back, &route(), "/x").await.unwrap();
    let cancelled = held_shop.ask(cancelled, &route(), "/x").await.unwrap();
    let short_shop = shop_of(&pair.seller, Kind::Short, PaidBy::Preimage, Some(books));
    let short = short_shop.bill(&route()).await;
    let strict = shop_of(&pair.seller, Kind::Usual, PaidBy::Settlement, Some(books));
    let state = |bill: &TokenBill| strict.in_books(bill.pass).state;

    pair.seller.cancel(&cancelled.invoice.payment_hash.to_string()).await.unwrap();
    let (payer, seller) = (&pair.payer, &pair.seller);
    let pays = async |bill: &TokenBill| payer.try_to_pay(&bill.invoice.bolt11).await.unwrap();
    let seen = async {
        let accepted = farebox_e2e::lightning::InvoiceState::Accepted;
        for bill in [&held, &given_back] {
            seller.wait_for_invoice(&bill.invoice.payment_hash.to_string(), accepted).await.unwrap();
        }
        // Held money is not ours: a strict seller does not deliver for it, and does not ask for more.
        let token = L402Token { macaroon: macaroon(&held), preimage: preimage_of(&held) };
        assert!(matches!(strict.check(&token, &route()).await, Err(TokenError::Unsettled)));
        assert_eq!(state(&held), InvoiceState::Held);

        seller
            .wait_for_invoice(&short.invoice.payment_hash.to_string(), farebox_e2e::lightning::InvoiceState::Canceled)
            .await
            .unwrap();
        strict.clock.advance(Duration::from_secs(700));
        let following = Following::of(&strict.rail);
        soon("the expired one", || state(&short) == InvoiceState::Expired).await;
        soon("the cancelled one", || matches!(state(&cancelled), InvoiceState::Cancelled | InvoiceState::Expired))
            .await;
        soon("those held", || state(&held) == InvoiceState::Held && state(&given_back) == InvoiceState::Held).await;
        assert_eq!(strict.books.payments(), []);

        seller.cancel(&given_back.invoice.payment_hash.to_string()).await.unwrap();
        seller.settle(&preimage_of(&held).reveal()).await.unwrap();
        soon("the money", || state(&held) == InvoiceState::Settled).await;
        drop(following);
        let following = Following::of(&strict.rail);
        soon("what was given back", || matches!(state(&given_back), InvoiceState::Cancelled | InvoiceState::Expired))
            .await;
        drop(following);
        token
    };
    let (token, first, second) = tokio::join!(seen, pays(&held), pays(&given_back));
    assert!(matches!(first, farebox_e2e::lightning::Payment::Succeeded(_)), "{first:?}");
    assert!(matches!(second, farebox_e2e::lightning::Payment::Failed(_)), "{second:?}");
    assert_eq!(strict.books.payments().len(), 1);
    assert_eq!(strict.check(&token, &route()).await.unwrap().pass, held.pass);
    let of_given_back = L402Token { macaroon: macaroon(&given_back), preimage: preimage_of(&given_back) };
    let code = rejected(strict.check(&of_given_back, &route()).await);
    assert!(["invoice_cancelled", "invoice_expired"].contains(&&*code), "{code}");
}

/// What a hold invoice of these tests is settled by: told by its own description, so that the test and the node agree.
fn preimage_of(bill: &TokenBill) -> Preimage {
    let read = bolt11::decode(&bill.invoice.bolt11).unwrap();
    Preimage::from_hex(read.description.unwrap().as_raw()).unwrap()
}

impl OfLnd {
    async fn hold(&self, api: &HoldApi, order: &InvoiceOrder) -> Invoice {
        let mut random = [0; 32];
        random[..8].copy_from_slice(&wall_clock().unix_ms().to_be_bytes());
        random[8..16].copy_from_slice(&order.now.unix_ms().to_be_bytes());
        let preimage = Preimage(random);
        let ask = json!({
            "value_msat": order.amount_msat.to_string(),
            "hash": BASE64_STANDARD.encode(preimage.hash().0),
            "expiry": order.expiry.as_secs().to_string(),
            "memo": preimage.reveal(),
        });
        let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build().unwrap();
        let asked = client
            .request(Method::POST, format!("{}/v2/invoices/hodl", api.url))
            .header("Grpc-Metadata-macaroon", &api.macaroon)
            .json(&ask);
        let made: serde_json::Value = asked.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
        bolt11::decode(made["payment_request"].as_str().unwrap()).unwrap().invoice
    }
}

#[async_trait]
impl LightningNode for OfLnd {
    fn label(&self) -> &str {
        self.client.label()
    }

    async fn info(&self) -> Result<NodeInfo, NodeError> {
        self.client.info().await
    }

    async fn create_invoice(&self, order: &InvoiceOrder) -> Result<Invoice, NodeError> {
        match (self.invoices, &self.hold) {
            (_, Some(api)) => Ok(self.hold(api, order).await),
            (Kind::Short, None) => {
                let expiry = Duration::from_secs(1);
                self.client.create_invoice(&InvoiceOrder { expiry, ..order.clone() }).await
            }
            (Kind::Usual | Kind::Held, None) => self.client.create_invoice(order).await,
        }
    }

    async fn invoice_news(&self, hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
        self.client.invoice_news(hash).await
    }

    async fn settlements(&self, after: Option<&NewsCursor>, wait: Duration) -> Result<Settlements, NodeError> {
        self.client.settlements(after, wait).await
    }
}
