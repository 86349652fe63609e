//! A node without channels: real invoices, and payments, faults and lies on demand.

use std::{collections::VecDeque, time::Duration};

use async_trait::async_trait;
use bitcoin::{
    hashes::{Hash as _, sha256},
    secp256k1::{Secp256k1, SecretKey},
};
use farebox_core::{
    BitcoinNetwork, Invoice, InvoiceNews, PaymentHash, Preimage,
    ports::{InvoiceOrder, InvoiceStatus, LightningNode, NewsCursor, NodeError, NodeInfo, Settlements},
};
use farebox_wire::bolt11;
use lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The id it gives itself.
pub(crate) const NODE_ID: &str = "020202020202020202020202020202020202020202020202020202020202020202";

/// How one wish for an invoice ends.
#[derive(Clone, Debug)]
pub(crate) enum Create {
    /// No answer ever.
    Hang,
    /// The invoice is there, and the answer is lost.
    LoseAnswer,
    /// A definite no.
    Refuse,
    /// It takes so long.
    Slowly(Duration),
    /// Over another amount.
    Amount(u64),
    /// On another network.
    Network(Currency),
    /// Good for another time.
    Expiry(Duration),
    /// The one before, again.
    Repeat,
    /// What it says beside the invoice is not what the invoice says.
    TellHash([u8; 32]),
}

/// What it says when asked for one invoice.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Look {
    /// The truth.
    Honest,
    /// No answer ever.
    Hang,
    /// That it does not know it.
    Deny,
    /// A definite no.
    Refuse,
}

/// How it tells its news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tell {
    /// Each once, by cursor.
    Once,
    /// Everything, whatever the cursor says, and the same cursor again.
    Everything,
    /// No answer ever.
    Hang,
    /// Each once, but with the cursor of the one before.
    OneBehind,
    /// A definite no.
    Refuse,
}

#[derive(Debug)]
pub(crate) struct ScriptedNode {
    state: Mutex<State>,
    told: Notify,
}

#[derive(Debug)]
struct State {
    id: String,
    network: BitcoinNetwork,
    up: bool,
    script: VecDeque<Create>,
    look: Look,
    tell: Tell,
    made: Vec<Made>,
    news: Vec<(PaymentHash, InvoiceNews)>,
    looks: u32,
    reads: Vec<Option<String>>,
    orders: Vec<InvoiceOrder>,
}

#[derive(Clone, Debug)]
struct Made {
    invoice: Invoice,
    preimage: Preimage,
    status: InvoiceStatus,
}

impl Default for ScriptedNode {
    fn default() -> Self {
        let state = State {
            id: NODE_ID.to_owned(),
            network: BitcoinNetwork::Regtest,
            up: true,
            script: VecDeque::new(),
            look: Look::Honest,
            tell: Tell::Once,
            made: Vec::new(),
            news: Vec::new(),
            looks: 0,
            reads: Vec::new(),
            orders: Vec::new(),
        };
        Self { state: Mutex::new(state), told: Notify::new() }
    }
}

impl ScriptedNode {
    pub(crate) fn next_create(&self, step: Create) {
        self.state.lock().script.push_back(step);
    }

    pub(crate) fn look(&self, look: Look) {
        self.state.lock().look = look;
    }

    pub(crate) fn tell(&self, tell: Tell) {
        self.state.lock().tell = tell;
        self.told.notify_waiters();
    }

    pub(crate) fn become_another(&self, id: &str, network: BitcoinNetwork) {
        let mut state = self.state.lock();
        state.id = id.to_owned();
        state.network = network;
    }

    /// It no longer knows the invoice.
    pub(crate) fn forget(&self, hash: PaymentHash) {
        self.state.lock().made.retain(|made| made.invoice.payment_hash != hash);
    }

    pub(crate) fn go_down(&self) {
        self.state.lock().up = false;
        self.told.notify_waiters();
    }

    pub(crate) fn come_up(&self) {
        self.state.lock().up = true;
    }

    /// How many invoices it made.
    pub(crate) fn invoices(&self) -> usize {
        self.state.lock().made.len()
    }

    /// How often it was asked for one invoice.
    pub(crate) fn looks(&self) -> u32 {
        self.state.lock().looks
    }

    /// The cursors that its news were read from.
    pub(crate) fn reads(&self) -> Vec<Option<String>> {
        self.state.lock().reads.clone()
    }

    pub(crate) fn orders(&self) -> Vec<InvoiceOrder> {
        self.state.lock().orders.clone()
    }

    pub(crate) fn preimage(&self, hash: PaymentHash) -> Preimage {
        self.state.lock().made.iter().find(|made| made.invoice.payment_hash == hash).unwrap().preimage
    }

    /// Somebody pays the invoice in full.
    pub(crate) fn pay(&self, invoice: &Invoice) -> Preimage {
        self.happen(invoice.payment_hash, InvoiceNews::Settled { received_msat: invoice.amount_msat });
        self.preimage(invoice.payment_hash)
    }

    /// Something becomes of an invoice, and is told to whoever reads its news.
    pub(crate) fn happen(&self, hash: PaymentHash, news: InvoiceNews) {
        self.become_quietly(hash, InvoiceStatus::News(news));
        self.state.lock().news.push((hash, news));
        self.told.notify_waiters();
    }

    /// Something becomes of an invoice, and is told only to who asks for it.
    pub(crate) fn become_quietly(&self, hash: PaymentHash, status: InvoiceStatus) {
        for made in &mut self.state.lock().made {
            if made.invoice.payment_hash == hash {
                made.status = status;
            }
        }
    }

    fn unavailable(&self) -> NodeError {
        NodeError::Unavailable { label: self.label().to_owned(), source: "scripted: connection refused".into() }
    }

    fn refused(&self) -> NodeError {
        NodeError::Refused { label: self.label().to_owned(), detail: "scripted".to_owned() }
    }

    fn up(&self) -> Result<(), NodeError> {
        if self.state.lock().up { Ok(()) } else { Err(self.unavailable()) }
    }

    fn make(&self, order: &InvoiceOrder, currency: Currency) -> Invoice {
        let mut state = self.state.lock();
        let number = u8::try_from(state.made.len() % 256).unwrap();
        let mut preimage = [number; 32];
        preimage[..8].copy_from_slice(&(state.made.len() as u64 + 1).to_be_bytes());
        let preimage = Preimage(preimage);
        let invoice = written(order, currency, preimage);
        state.made.push(Made { invoice: invoice.clone(), preimage, status: InvoiceStatus::Open });
        invoice
    }
}

/// A signed invoice.
pub(crate) fn written(order: &InvoiceOrder, currency: Currency, preimage: Preimage) -> Invoice {
    let key = SecretKey::from_slice(&[0x42; 32]).unwrap();
    let built = InvoiceBuilder::new(currency)
        .description(order.description.clone())
        .payment_hash(sha256::Hash::from_byte_array(preimage.hash().0))
        .payment_secret(PaymentSecret([7; 32]))
        .duration_since_epoch(Duration::from_secs(order.now.unix_s()))
        .expiry_time(order.expiry)
        .min_final_cltv_expiry_delta(80)
        .amount_milli_satoshis(order.amount_msat)
        .build_signed(|hash| Secp256k1::new().sign_ecdsa_recoverable(hash, &key))
        .unwrap();
    bolt11::decode(&built.to_string()).unwrap().invoice
}

#[async_trait]
impl LightningNode for ScriptedNode {
    fn label(&self) -> &str {
        "a scripted node"
    }

    async fn info(&self) -> Result<NodeInfo, NodeError> {
        self.up()?;
        let state = self.state.lock();
        Ok(NodeInfo {
            id: state.id.as_str().into(),
            alias: "scripted".to_owned(),
            network: Some(state.network),
            synced: true,
            receivable_msat: None,
            channels: None,
        })
    }

    async fn create_invoice(&self, order: &InvoiceOrder) -> Result<Invoice, NodeError> {
        self.up()?;
        let step = {
            let mut state = self.state.lock();
            state.orders.push(order.clone());
            state.script.pop_front()
        };
        let honest = |order: &InvoiceOrder| self.make(order, Currency::Regtest);
        Ok(match step {
            None => honest(order),
            Some(Create::Hang) => std::future::pending().await,
            Some(Create::LoseAnswer) => {
                honest(order);
                return Err(self.unavailable());
            }
            Some(Create::Refuse) => return Err(self.refused()),
            Some(Create::Slowly(time)) => {
                tokio::time::sleep(time).await;
                honest(order)
            }
            Some(Create::Amount(amount_msat)) => honest(&InvoiceOrder { amount_msat, ..order.clone() }),
            Some(Create::Network(currency)) => self.make(order, currency),
            Some(Create::Expiry(expiry)) => honest(&InvoiceOrder { expiry, ..order.clone() }),
            Some(Create::Repeat) => self.state.lock().made.last().unwrap().invoice.clone(),
            Some(Create::TellHash(hash)) => Invoice { payment_hash: PaymentHash(hash), ..honest(order) },
        })
    }

    async fn invoice_news(&self, hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
        self.up()?;
        let look = {
            let mut state = self.state.lock();
            state.looks += 1;
            state.look
        };
        match look {
            Look::Hang => std::future::pending().await,
            Look::Deny => Ok(None),
            Look::Refuse => Err(self.refused()),
            Look::Honest => {
                let state = self.state.lock();
                Ok(state.made.iter().find(|made| made.invoice.payment_hash == hash).map(|made| made.status))
            }
        }
    }

    async fn settlements(&self, after: Option<&NewsCursor>, wait: Duration) -> Result<Settlements, NodeError> {
        self.state.lock().reads.push(after.map(|cursor| cursor.0.clone()));
        let from: usize = after.map_or(0, |cursor| cursor.0.parse().unwrap());
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let told = self.told.notified();
            self.up()?;
            let (tell, news) = {
                let state = self.state.lock();
                (state.tell, state.news.clone())
            };
            let fresh = match tell {
                Tell::Hang => std::future::pending().await,
                Tell::Refuse => return Err(self.refused()),
                Tell::Everything => Some((news.clone(), 0)),
                Tell::Once => (news.len() > from).then(|| (news[from..].to_vec(), news.len())),
                Tell::OneBehind => (news.len() > from).then(|| (news[from..].to_vec(), news.len() - 1)),
            };
            if let Some((news, cursor)) = fresh.filter(|(news, _)| !news.is_empty()) {
                return Ok(Settlements { news, cursor: Some(NewsCursor(cursor.to_string())) });
            }
            if tokio::time::timeout_at(deadline, told).await.is_err() {
                return Ok(Settlements { news: Vec::new(), cursor: after.cloned() });
            }
        }
    }
}
