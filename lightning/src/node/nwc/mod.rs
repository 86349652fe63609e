//! A wallet over Nostr Wallet Connect. Source: NIP-47 as of July 2026; run against Alby's wallet service and a relay.
//!
//! NIP-47 knows no limit for routing fees: what a payment took is told afterwards, and what it may take the wallet decides.

mod crypt;
mod payments;
mod relay;
mod settlements;
mod uri;
mod wire;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use farebox_core::{
    BitcoinNetwork, Invoice, PaymentHash, Untrusted,
    ports::{
        BoxError, Clock, InvoiceOrder, InvoiceStatus, LightningNode, LightningWallet, NewsCursor, NodeError, NodeInfo,
        Outgoing, PayOrder, PayOutcome, Settlements,
    },
};
use nostr::{Event, Timestamp};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use self::uri::NwcUri;
use self::{
    crypt::{Encryption, words},
    relay::Relay,
    wire::{Answer, Balance, Direction, GetInfo, Made, Said, Transaction},
};
use super::{ConnectError, NwcConfig, network, once::Paying};

/// A wallet that is reached through a relay.
pub(super) struct Nwc {
    uri: NwcUri,
    label: Arc<str>,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    /// Made when it is first needed, and again after it is lost.
    session: Mutex<Option<Arc<Session>>>,
    /// Which of the relays is tried next.
    turn: AtomicUsize,
    paying: Paying,
}

/// A connection and what the wallet said of itself over it.
#[derive(Debug)]
struct Session {
    relay: Relay,
    encryption: Encryption,
    /// Whether what was paid before this connection has been read.
    caught_up: Mutex<bool>,
}

/// Why a wallet did not answer.
#[derive(Debug, thiserror::Error)]
enum NwcError {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the relay failed")]
    Relay(#[source] BoxError),
    #[error("the connection to the relay is gone")]
    Gone,
    #[error("a message cannot be closed or opened")]
    Crypt(#[source] BoxError),
    #[error("the answer cannot be understood")]
    Garbage(#[source] serde_json::Error),
    #[error("the wallet does not know the payment and shows no list of its payments; look for it in the wallet itself")]
    NoList,
    #[error("the payment is not among the wallet's newest; look for it in the wallet itself")]
    LongList,
    #[error("{0}")]
    Wrong(String),
    #[error("{0}")]
    Said(Said),
}

impl Nwc {
    pub(super) fn new(config: &NwcConfig, clock: Arc<dyn Clock>) -> Result<Self, ConnectError> {
        let uri = config.uri.clone();
        let hosts: Vec<&str> = uri.relays.iter().filter_map(url::Url::host_str).collect();
        let label = format!("nwc wallet {} over {}", uri.wallet.to_hex(), hosts.join(", ")).into();
        Ok(Self {
            label,
            timeout: config.timeout,
            clock,
            session: Mutex::new(None),
            turn: AtomicUsize::new(0),
            paying: Paying::default(),
            uri,
        })
    }

    /// Asks the wallet, within its timeout.
    async fn ask<T: DeserializeOwned>(&self, method: &str, parameters: Value) -> Result<T, NwcError> {
        self.ask_within(self.timeout, None, method, parameters).await
    }

    /// Asks the wallet something that it takes its time over, or that it must not do late.
    async fn ask_within<T: DeserializeOwned>(
        &self,
        timeout: Duration,
        good_for: Option<Duration>,
        method: &str,
        parameters: Value,
    ) -> Result<T, NwcError> {
        let asked = async {
            let session = self.session().await?;
            let request = session.encryption.request(&self.uri, (method, &parameters), self.now(), good_for)?;
            let answer = session.relay.ask(&request).await?;
            self.opened(session.encryption, method, &answer)
        };
        tokio::time::timeout(timeout, asked).await.unwrap_or(Err(NwcError::Late(timeout)))
    }

    fn opened<T: DeserializeOwned>(&self, encryption: Encryption, method: &str, answer: &Event) -> Result<T, NwcError> {
        let answer: Answer = serde_json::from_str(&encryption.open(&self.uri, answer)?).map_err(NwcError::Garbage)?;
        if answer.result_type != method {
            let found = Untrusted::new(answer.result_type);
            return Err(NwcError::Wrong(format!("asked for {method}, it answers with {found}")));
        }
        match (answer.error, answer.result) {
            (Some(said), _) => Err(NwcError::Said(said)),
            (None, Some(result)) => serde_json::from_value(result).map_err(NwcError::Garbage),
            (None, None) => Err(NwcError::Wrong("the answer holds neither a result nor an error".to_owned())),
        }
    }

    /// The connection that there is, or a new one, over the next relay if the last could not be reached.
    async fn session(&self) -> Result<Arc<Session>, NwcError> {
        let open = self.session.lock().clone().filter(|session| session.relay.is_open());
        if let Some(session) = open {
            return Ok(session);
        }
        // The next one has its turn unless this one is reached: whoever waits may give up before this fails.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let url = self.uri.relays.get(turn % self.uri.relays.len()).ok_or(NwcError::Gone)?;
        let connected = tokio::time::timeout(self.timeout, Relay::connect(url, &self.uri, self.now())).await;
        let relay = connected.unwrap_or(Err(NwcError::Late(self.timeout)))?;
        self.turn.store(turn, Ordering::Relaxed);
        let encryption = Encryption::of(relay.info.as_ref());
        let session = Arc::new(Session { relay, encryption, caught_up: Mutex::new(false) });
        // Of two made at the same time the first stays, so that both who wait for news wait on one.
        let mut current = self.session.lock();
        if let Some(other) = current.as_ref().filter(|other| other.relay.is_open()) {
            return Ok(Arc::clone(other));
        }
        *current = Some(Arc::clone(&session));
        Ok(session)
    }

    /// What the wallet says of an invoice or a payment of its own; `None` if it does not know it.
    async fn transaction(&self, hash: PaymentHash) -> Result<Option<Transaction>, NwcError> {
        let found: Transaction = match self.ask("lookup_invoice", json!({ "payment_hash": hash })).await {
            Err(NwcError::Said(said)) if said.code == "NOT_FOUND" => return Ok(None),
            answer => answer?,
        };
        if found.payment_hash != hash {
            return Err(NwcError::Wrong(format!("asked for {hash}, it answers with {}", found.payment_hash)));
        }
        Ok(Some(found))
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_secs(self.clock.now().unix_s())
    }

    fn error(&self, error: NwcError) -> NodeError {
        let label = self.label.to_string();
        match error {
            NwcError::Said(said) if said.is_final() => {
                NodeError::Refused { label, detail: NwcError::Said(said).to_string() }
            }
            error => NodeError::Unavailable { label, source: Box::new(error) },
        }
    }
}

#[async_trait]
impl LightningNode for Nwc {
    fn label(&self) -> &str {
        &self.label
    }

    async fn info(&self) -> Result<NodeInfo, NodeError> {
        let told = match self.ask::<GetInfo>("get_info", json!({})).await {
            // A connection that may only make invoices.
            Err(NwcError::Said(said)) if matches!(&*said.code, "NOT_IMPLEMENTED" | "RESTRICTED") => None,
            answer => Some(answer.map_err(|e| self.error(e))?),
        };
        let network = told.as_ref().and_then(|told| network(told.network.as_deref()?));
        let alias = told.and_then(|told| told.alias).unwrap_or_default();
        // The wallet's key, which the URI binds; behind it there may be a node, and another one tomorrow.
        let id = format!("nwc:{}", self.uri.wallet.to_hex()).into();
        Ok(NodeInfo { id, alias, network, synced: true, receivable_msat: None, channels: None })
    }

    async fn create_invoice(&self, order: &InvoiceOrder) -> Result<Invoice, NodeError> {
        let wanted = json!({
            "amount": order.amount_msat, "description": order.description, "expiry": order.expiry.as_secs(),
        });
        let made: Made = self.ask("make_invoice", wanted).await.map_err(|e| self.error(e))?;
        let read = farebox_wire::bolt11::decode(&made.invoice)
            .map_err(|source| NodeError::Unavailable { label: self.label.to_string(), source: Box::new(source) })?;
        match made.payment_hash {
            Some(said) if said != read.invoice.payment_hash => {
                let detail = format!("its invoice is for {}, and it says {said}", read.invoice.payment_hash);
                Err(self.error(NwcError::Wrong(detail)))
            }
            _ => Ok(read.invoice),
        }
    }

    async fn invoice_news(&self, hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
        let found = self.transaction(hash).await.map_err(|e| self.error(e))?;
        // A payment that it made for this hash is no invoice of its own.
        let own = found.filter(|found| found.direction == Direction::Incoming);
        Ok(own.map(|own| own.status(self.clock.now())))
    }

    async fn settlements(&self, after: Option<&NewsCursor>, wait: Duration) -> Result<Settlements, NodeError> {
        self.settled_after(after, wait).await.map_err(|e| self.error(e))
    }
}

#[async_trait]
impl LightningWallet for Nwc {
    fn label(&self) -> &str {
        &self.label
    }

    /// The wallet's key, which the URI binds and its answers are signed with.
    async fn id(&self) -> Result<Arc<str>, NodeError> {
        Ok(self.uri.wallet.to_hex().into())
    }

    async fn network(&self) -> Result<Option<BitcoinNetwork>, NodeError> {
        Ok(self.info().await?.network)
    }

    async fn spendable_msat(&self) -> Result<u64, NodeError> {
        let told: Balance = self.ask("get_balance", json!({})).await.map_err(|e| self.error(e))?;
        Ok(told.balance)
    }

    async fn pay(&self, order: &PayOrder) -> PayOutcome {
        self.pay_once(order).await
    }

    async fn outgoing(&self, hash: PaymentHash) -> Result<Outgoing, NodeError> {
        self.paid_out(hash).await.map_err(|e| self.error(e))
    }
}

impl Session {
    /// Whether the wallet's info names a method, or it has published none.
    fn offers(&self, method: &str) -> bool {
        self.relay.info.as_ref().is_none_or(|info| info.content.split_whitespace().any(|word| word == method))
    }

    /// Whether the wallet tells of payments that come in.
    fn notifies(&self) -> bool {
        let info = self.relay.info.as_ref();
        info.is_some_and(|info| words(info, "notifications").any(|word| word == "payment_received"))
    }
}

impl Said {
    /// Whether asking again will be answered the same way.
    fn is_final(&self) -> bool {
        !matches!(&*self.code, "RATE_LIMITED" | "INTERNAL" | "OTHER")
    }
}

impl fmt::Debug for Nwc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nwc").field("uri", &self.uri).finish_non_exhaustive()
    }
}
