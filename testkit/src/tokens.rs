//! A rail that sells tokens without a Lightning node: invoices are lines of text, and to pay one is to ask for its preimage.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::pending,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use farebox_core::{
    Amount, BitcoinNetwork, FeeTerms, Grant, Invoice, L402Token, Macaroon, NewToken, Offer, PassId, PaymentHash,
    Preimage, Price, RailName, RootKey, TokenScope,
    ports::{
        BillAsk, HeldToken, NoBill, OfferError, Offering, TokenBill, TokenBooks, TokenError, TokenRail, TokenRequest,
    },
};
use farebox_wire::l402::{self, Identifier};
use parking_lot::Mutex;

use crate::{rail::rejected, test_offer};

/// How long its invoices can be paid.
const INVOICE_EXPIRY: Duration = Duration::from_secs(600);

/// A rail whose node is a map. Without a script every bill is made at once, one for each client, route and price, and every token that it sold
/// is good.
///
/// Its macaroons are real. Clones share node and script, as two gateways with one node do.
#[derive(Clone, Debug)]
pub struct ScriptedTokens {
    books: Arc<dyn TokenBooks>,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug, Default)]
struct Script {
    bills: VecDeque<BillStep>,
    checks: VecDeque<TokenError>,
    is_priceless: bool,
    preimages: BTreeMap<PaymentHash, Preimage>,
    open: BTreeMap<(String, String, u64), Arc<TokenBill>>,
    clients: BTreeSet<IpAddr>,
    bought: Vec<PassId>,
    asked: usize,
    made: u8,
}

/// How one bill goes.
#[derive(Debug)]
pub enum BillStep {
    /// There is none.
    Fail(NoBill),
    /// No answer ever comes.
    Hang,
}

impl ScriptedTokens {
    /// The millisatoshis that a price of one cent is.
    pub const CENT_MSAT: u128 = 10_000;

    /// A rail that stores what it sells in `books`.
    #[must_use]
    pub fn new(books: Arc<dyn TokenBooks>) -> Self {
        Self { books, script: Arc::default() }
    }

    /// The same node and script in the hands of the next process, whose tokens go to `books`.
    #[must_use]
    pub fn restarted(&self, books: Arc<dyn TokenBooks>) -> Self {
        Self { books, script: self.script.clone() }
    }

    /// The next bill that is not open already goes like this. Several calls queue up, here and below.
    pub fn bill_next(&self, step: BillStep) {
        self.script.lock().bills.push_back(step);
    }

    /// The next check ends like this.
    pub fn fail_next_check(&self, error: TokenError) {
        self.script.lock().checks.push_back(error);
    }

    /// The next check is a no with `code`.
    pub fn reject_next_check(&self, code: &'static str) {
        self.fail_next_check(TokenError::Rejected(rejected(code)));
    }

    /// From now on it can price nothing.
    pub fn lose_rate(&self) {
        self.script.lock().is_priceless = true;
    }

    /// What whoever pays the invoice with this hash gets.
    ///
    /// # Panics
    /// If it never made one.
    #[must_use]
    pub fn pay(&self, hash: PaymentHash) -> Preimage {
        match self.script.lock().preimages.get(&hash) {
            Some(preimage) => *preimage,
            None => panic!("no invoice has the hash {hash}"),
        }
    }

    /// How often it was asked for a bill.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.script.lock().asked
    }

    /// At how many addresses they were who asked.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.script.lock().clients.len()
    }

    /// How many invoices it made.
    #[must_use]
    pub fn invoices(&self) -> usize {
        self.script.lock().preimages.len()
    }

    /// Every pass that it was told is bought.
    #[must_use]
    pub fn bought_passes(&self) -> Vec<PassId> {
        self.script.lock().bought.clone()
    }

    fn invoice(&self, ask: &BillAsk<'_>) -> (Invoice, Identifier, RootKey) {
        let mut script = self.script.lock();
        script.made += 1;
        let made = script.made;
        let preimage = Preimage([made; 32]);
        let payment_hash = preimage.hash();
        script.preimages.insert(payment_hash, preimage);
        let amount_msat = u64::try_from(ask.offer.amount.units).unwrap_or(u64::MAX);
        let invoice = Invoice {
            payment_hash,
            bolt11: format!("lnbcrt{amount_msat}p1scripted{made}").into(),
            amount_msat,
            created_at: ask.now,
            expires_at: ask.now.plus(INVOICE_EXPIRY),
        };
        (invoice, Identifier { payment_hash, token_id: [!made; 32] }, RootKey::new([made ^ 0x5a; 32]))
    }

    async fn sell(&self, ask: &BillAsk<'_>) -> Result<TokenBill, NoBill> {
        let (invoice, identifier, root_key) = self.invoice(ask);
        let lives = match ask.terms.grant {
            Grant::Calls(_) => ask.terms.valid_for,
            Grant::For(time) => time,
        };
        let valid_until = invoice.expires_at.plus(lives);
        let request = TokenRequest { terms: ask.terms, method: ask.method, resource: ask.resource, now: ask.now };
        let macaroon = l402::mint(&root_key, &identifier.encode(), l402::caveats(&request, valid_until));
        let pass = identifier.pass();
        let token = NewToken {
            pass,
            root_key,
            invoice: invoice.clone(),
            network: BitcoinNetwork::Regtest.network(),
            node: "scripted".into(),
            route: ask.route.clone(),
            method: ask.method.to_owned(),
            resource: ask.resource.to_owned(),
            request: ask.request.clone(),
            grant: ask.terms.grant,
            valid_until,
        };
        self.books.sell(token).await?;
        Ok(TokenBill { pass, macaroon: STANDARD.encode(l402::encode_macaroon(&macaroon)).into(), invoice })
    }
}

impl Offering for ScriptedTokens {
    fn name(&self) -> RailName {
        RailName::L402
    }

    fn offers(&self, price: &Price, _fee: FeeTerms) -> Result<Vec<Offer>, OfferError> {
        let no_rate = |source: &'static str| OfferError::NoRate {
            price: Box::new(price.clone()),
            symbol: "sat".into(),
            network: BitcoinNetwork::Regtest.network(),
            source: source.into(),
        };
        if self.script.lock().is_priceless {
            return Err(no_rate("scripted: nobody knows a rate"));
        }
        let Price::Usd(amount) = price else { return Err(OfferError::NoAsset { price: Box::new(price.clone()) }) };
        let cents = amount.to_units(2).map_err(|_| no_rate("scripted: whole cents alone have a rate"))?;
        let amount = Amount { units: cents * Self::CENT_MSAT, asset: BitcoinNetwork::Regtest.asset() };
        Ok(vec![Offer { amount, max_timeout_s: INVOICE_EXPIRY.as_secs(), ..test_offer(RailName::L402) }])
    }
}

#[async_trait]
impl TokenRail for ScriptedTokens {
    async fn bill(&self, ask: &BillAsk<'_>) -> Result<Arc<TokenBill>, NoBill> {
        let bound = match ask.terms.scope {
            TokenScope::Route => ask.route.to_string(),
            TokenScope::Request => format!("{} {} {}", ask.route, ask.method, ask.resource),
        };
        let key = (ask.caller.as_str().to_owned(), bound, u64::try_from(ask.offer.amount.units).unwrap_or(u64::MAX));
        let step = {
            let mut script = self.script.lock();
            script.asked += 1;
            script.clients.insert(ask.client);
            match script.open.get(&key) {
                Some(open) if ask.now < open.invoice.expires_at => return Ok(open.clone()),
                _ => script.bills.pop_front(),
            }
        };
        match step {
            Some(BillStep::Fail(no)) => return Err(no),
            Some(BillStep::Hang) => pending::<()>().await,
            None => {}
        }
        let bill = Arc::new(self.sell(ask).await?);
        self.script.lock().open.insert(key, bill.clone());
        Ok(bill)
    }

    async fn check(&self, token: &L402Token, request: &TokenRequest<'_>) -> Result<HeldToken, TokenError> {
        if let Some(error) = self.script.lock().checks.pop_front() {
            return Err(error);
        }
        let no = |code| TokenError::Rejected(rejected(code));
        let Macaroon { identifier, .. } = &token.macaroon;
        let identifier = Identifier::decode(identifier).map_err(|_| no("token_unknown"))?;
        if token.preimage.hash() != identifier.payment_hash {
            return Err(no("wrong_preimage"));
        }
        let pass = identifier.pass();
        let known = self.books.token(pass).await.map_err(|error| TokenError::Unavailable { source: error.into() })?;
        let root_key = known.and_then(|token| token.sold.root_key).ok_or_else(|| no("token_unknown"))?;
        if !l402::verify_signature(&root_key, &token.macaroon) {
            return Err(no("token_signature"));
        }
        l402::judge(token, request).map_err(|problem| TokenError::Rejected(problem.rejected()))?;
        Ok(HeldToken { pass, payment_hash: identifier.payment_hash })
    }

    fn bought(&self, pass: PassId) {
        let mut script = self.script.lock();
        script.open.retain(|_, bill| bill.pass != pass);
        script.bought.push(pass);
    }
}
