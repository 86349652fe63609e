//! L402: tokens sold by Lightning invoices.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use farebox_core::{
    FeeTerms, L402Token, Offer, PassId, Price, RailName,
    ports::{
        BillAsk, Clock, DollarRates, Entropy, HeldToken, LightningNode, NoBill, OfferError, Offering, TokenBill,
        TokenBooks, TokenError, TokenRail, TokenRequest,
    },
};
use futures_util::FutureExt as _;

use super::{
    L402Config, L402ConfigError, NodeTrouble,
    bills::{BillKey, Bills, Flight, Found},
    check::Tokens,
    limits::{InvoiceLimits, NoneLeft},
    link::Link,
    make::{BillOrder, Maker, Unmade},
    price,
};

/// The rail: sells tokens through one node, and knows them when they come back. [`L402::follow`] has to run beside it.
#[derive(Debug)]
pub struct L402 {
    pub(crate) config: L402Config,
    pub(crate) maker: Arc<Maker>,
    pub(crate) bills: Arc<Bills>,
    pub(crate) limits: InvoiceLimits,
    pub(crate) unknown_elsewhere: AtomicU32,
    rates: Arc<dyn DollarRates>,
    tokens: Tokens,
}

/// What the rail stands on.
#[derive(Clone, Debug)]
pub struct L402Parts {
    /// The node that is paid.
    pub node: Arc<dyn LightningNode>,
    /// Where tokens are kept.
    pub books: Arc<dyn TokenBooks>,
    /// What a bitcoin is worth.
    pub rates: Arc<dyn DollarRates>,
    /// Of root keys and ids.
    pub entropy: Arc<dyn Entropy>,
    /// Of invoices and news.
    pub clock: Arc<dyn Clock>,
}

impl L402 {
    /// Asks nothing of anybody: a node that is down now may be up when the first buyer comes.
    ///
    /// # Errors
    /// A value of the config is out of its bounds.
    pub fn new(config: L402Config, parts: L402Parts) -> Result<Arc<Self>, L402ConfigError> {
        let config = config.checked()?;
        let L402Parts { node, books, rates, entropy, clock } = parts;
        let link = Link::new(node, config.network, config.node_timeout, clock.clone());
        let maker =
            Maker { network: config.network, invoice_expiry: config.invoice_expiry, link, books, entropy, clock };
        Ok(Arc::new(Self {
            bills: Arc::new(Bills::new(config.reuse_left_min)),
            limits: InvoiceLimits::new(config.unpaid_per_client_per_minute, config.unpaid_per_minute),
            unknown_elsewhere: AtomicU32::new(0),
            tokens: Tokens::new(config.paid_by),
            maker: Arc::new(maker),
            rates,
            config,
        }))
    }

    /// Since when and why the node makes no invoices; `None` while it does, as far as is known.
    #[must_use]
    pub fn node_trouble(&self) -> Option<NodeTrouble> {
        self.maker.link.trouble()
    }

    /// Invoices that another node made before this one and that this one does not know, by the last look: whether they were paid cannot be
    /// told without their node.
    #[must_use]
    pub fn unknown_of_other_nodes(&self) -> u32 {
        self.unknown_elsewhere.load(Ordering::Relaxed)
    }

    /// Begins to make a bill. Nobody's hanging up ends it: else a stranger could have the node make invoices that nobody can be shown again.
    fn start(&self, key: &Arc<BillKey>, ask: &BillAsk<'_>, amount_msat: u64) -> Result<Flight, NoBill> {
        self.maker.link.admit(ask.now).map_err(|source| NoBill::Node { source: source.into() })?;
        self.limits.take(key.client(), ask.now)?;
        let (maker, landing) = (self.maker.clone(), self.bills.landing(key.clone()));
        let order = BillOrder::of(ask, amount_msat);
        let making = tokio::spawn(async move {
            let made = maker.make(order).await;
            landing.with(&made, maker.clock.now());
            made
        });
        let ended = making.map(|ended| ended.unwrap_or_else(|died| Err(Unmade::by_node(died))));
        Ok(ended.boxed().shared())
    }
}

impl Offering for L402 {
    fn name(&self) -> RailName {
        RailName::L402
    }

    /// Routing fees are the payer's, so the seller's terms on network fees change nothing.
    fn offers(&self, price: &Price, _fee: FeeTerms) -> Result<Vec<Offer>, OfferError> {
        let expiry_s = self.config.invoice_expiry.as_secs();
        price::offer(price, self.config.network, expiry_s, &*self.rates).map(|offer| vec![offer])
    }
}

#[async_trait]
impl TokenRail for L402 {
    async fn bill(&self, ask: &BillAsk<'_>) -> Result<Arc<TokenBill>, NoBill> {
        let amount_msat = self.amount_msat(ask.offer)?;
        let key = Arc::new(BillKey::of(ask, amount_msat));
        match self.bills.open_or_start(&key, ask.now, || self.start(&key, ask, amount_msat))? {
            Found::Open(bill) => Ok(bill),
            Found::Making(flight) => flight.await.map_err(NoBill::from),
        }
    }

    async fn check(&self, token: &L402Token, request: &TokenRequest<'_>) -> Result<HeldToken, TokenError> {
        let held = self.tokens.check(token, request, &self.maker).await?;
        self.bought(held.pass);
        Ok(held)
    }

    fn bought(&self, pass: PassId) {
        if let Some(client) = self.bills.bought(pass) {
            self.limits.give_back(client);
        }
    }
}

impl L402 {
    fn amount_msat(&self, offer: &Offer) -> Result<u64, NoBill> {
        let ours = offer.amount.asset == self.config.network.asset();
        let msat = u64::try_from(offer.amount.units).ok().filter(|msat| ours && *msat > 0);
        let foreign = || format!("{} {} is no offer of this rail", offer.amount.units, offer.amount.asset);
        msat.ok_or_else(|| NoBill::Node { source: foreign().into() })
    }
}

impl From<NoneLeft> for NoBill {
    fn from(left: NoneLeft) -> Self {
        Self::Limited { retry_after_s: left.retry_after_s }
    }
}
