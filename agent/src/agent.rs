//! The agent: what it is made of, and what a caller gets from it.

use std::{collections::BTreeSet, sync::Arc};

use backon::ExponentialBackoff;
use farebox_core::{
    Offer, PaymentHash, PaymentId, RailName, Timestamp, TransactionId, Untrusted,
    ports::{Clock, Entropy, LightningWallet, Wallet},
};
use farebox_wire::x402::Requirement;
use http::{HeaderMap, Method, StatusCode};
use reqwest::{Request, Response};
use tokio::time::Instant;

use crate::{
    asset::{DollarAsset, Usd},
    bill::{self, BILL_BODY_BYTES_MAX, Billed},
    delivery::{self, Peeked},
    entry::Entry,
    error::{BuildError, FetchError, RequestError, TransportError},
    journal::Journal,
    l402::{L402Bill, LightningMade, Purchase},
    policy::{Acceptable, Outstanding, Policy, PolicyRule},
    request::Replayable,
    retry::{PlainHttp, Redirects, RetryPolicy},
    transfer::TransferMade,
};

/// How often an unpaid request is sent again. Few: nothing is at stake, and the caller wants to know of a wrong address soon.
const UNPAID_RETRIES_MAX: usize = 3;

/// A client that can pay. Cheap to clone; clones share connections, wallet and journal.
#[derive(Clone, Debug)]
pub struct Agent {
    pub(crate) parts: Arc<Parts>,
}

#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) wallet: Option<Arc<dyn Wallet>>,
    pub(crate) lightning: Option<Arc<dyn LightningWallet>>,
    pub(crate) journal: Journal,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) policy: Policy,
    pub(crate) retry: RetryPolicy,
    pub(crate) on_foreign_resend: Option<fn(&Entry)>,
    redirects: Redirects,
    plain_http: PlainHttp,
    client: reqwest::Client,
}

/// Puts an [`Agent`] together. A wallet of either kind, journal, clock and entropy must be given; the rest has defaults.
#[derive(Debug, Default)]
pub struct AgentBuilder {
    wallet: Option<Arc<dyn Wallet>>,
    lightning: Option<Arc<dyn LightningWallet>>,
    journal: Option<Journal>,
    clock: Option<Arc<dyn Clock>>,
    entropy: Option<Arc<dyn Entropy>>,
    policy: Policy,
    retry: RetryPolicy,
    on_foreign_resend: Option<fn(&Entry)>,
    redirects: Redirects,
    plain_http: PlainHttp,
    client: Option<reqwest::ClientBuilder>,
}

impl AgentBuilder {
    /// Who pays by x402 and by transfers.
    #[must_use]
    pub fn wallet(mut self, wallet: Arc<dyn Wallet>) -> Self {
        self.wallet = Some(wallet);
        self
    }

    /// Who pays by Lightning.
    #[must_use]
    pub fn lightning(mut self, wallet: Arc<dyn LightningWallet>) -> Self {
        self.lightning = Some(wallet);
        self
    }

    /// Where payments are noted before they are sent.
    #[must_use]
    pub fn journal(mut self, journal: Journal) -> Self {
        self.journal = Some(journal);
        self
    }

    /// What time it is.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Where randomness comes from.
    #[must_use]
    pub fn entropy(mut self, entropy: Arc<dyn Entropy>) -> Self {
        self.entropy = Some(entropy);
        self
    }

    /// What may be paid.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// How long to try.
    #[must_use]
    pub const fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// Called before a payment that another wallet signed is sent again.
    #[must_use]
    pub const fn on_foreign_resend(mut self, tell: fn(&Entry)) -> Self {
        self.on_foreign_resend = Some(tell);
        self
    }

    /// Whether redirects of unpaid requests are followed.
    #[must_use]
    pub const fn redirects(mut self, redirects: Redirects) -> Self {
        self.redirects = redirects;
        self
    }

    /// Whether payments travel without TLS.
    #[must_use]
    pub const fn plain_http(mut self, plain_http: PlainHttp) -> Self {
        self.plain_http = plain_http;
        self
    }

    /// The HTTP client's own settings: proxies, roots, user agent. Its redirect policy, retries and timeouts are replaced, for
    /// a client that follows a redirect by itself would hand the payment to whoever it leads to.
    #[must_use]
    pub fn client(mut self, client: reqwest::ClientBuilder) -> Self {
        self.client = Some(client);
        self
    }

    /// Installs ring as the process's TLS provider if none is installed yet.
    ///
    /// # Errors
    /// A part is missing, or the HTTP client's settings are wrong.
    pub fn build(self) -> Result<Agent, BuildError> {
        let missing = |part| BuildError::Missing { part };
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Another thread may have been quicker, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let client = self
            .client
            .unwrap_or_default()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(self.retry.connect_timeout)
            .read_timeout(self.retry.read_timeout)
            .build()?;
        if self.wallet.is_none() && self.lightning.is_none() {
            return Err(missing("wallet"));
        }
        let parts = Parts {
            wallet: self.wallet,
            lightning: self.lightning,
            journal: self.journal.ok_or(missing("journal"))?,
            clock: self.clock.ok_or(missing("clock"))?,
            entropy: self.entropy.ok_or(missing("source of randomness"))?,
            policy: self.policy,
            retry: self.retry,
            on_foreign_resend: self.on_foreign_resend,
            redirects: self.redirects,
            plain_http: self.plain_http,
            client,
        };
        Ok(Agent { parts: Arc::new(parts) })
    }
}

/// An answer, and what was paid for it.
#[derive(Debug)]
pub struct Fetched {
    /// The seller's answer, of any status; its body streams. Read it to the end: until then the payment counts as undelivered, and
    /// the same request sends the same payment again, which a good seller answers without a second charge.
    pub response: Response,
    /// What was signed for it, or `None` if it was free.
    pub payment: Option<PaymentMade>,
}

/// A payment presented with a request.
#[derive(Clone, Debug)]
pub struct PaymentMade {
    /// What was signed.
    pub offer: Offer,
    /// The token, as the policy knows it.
    pub asset: DollarAsset,
    /// Its worth; `None` for sats of which it is not known.
    pub price: Option<Usd>,
    /// What became of it, by the seller's word.
    pub charge: Charge,
    /// The seller's name for it, if it gave one.
    pub payment: Option<PaymentId>,
    /// How many signatures this fetch made, or invoices it paid; 0 if an earlier payment was sent again, or a held token used.
    pub signatures: u32,
    /// What the caller should know of it.
    pub notes: Vec<Note>,
    /// How it was paid, if by a transfer.
    pub transfer: Option<TransferMade>,
    /// How it was paid, if by Lightning.
    pub lightning: Option<LightningMade>,
}

/// What became of a payment, by the seller's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Charge {
    /// The answer carries a receipt.
    Charged {
        /// The transaction, if the receipt names one in a form we know.
        transaction: Option<TransactionId>,
    },
    /// Nothing now: it was a call of a token that was paid for earlier.
    Prepaid,
    /// The answer is a success without a receipt: it may be charged until then.
    NoReceipt {
        /// When the authorization ends by itself.
        until: Timestamp,
    },
    /// The answer is an error with the seller's word that it did not charge.
    NotCharged {
        /// When the authorization ends by itself; until then the seller could break its word.
        until: Timestamp,
    },
    /// The answer is an error without a receipt: by custom not charged, but it may be until then. The same request sends the same
    /// payment again.
    NotSettled {
        /// When the authorization ends by itself.
        until: Timestamp,
    },
}

/// Something odd about a payment that was none the less within the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A second bill for the same request named another recipient.
    PayToChanged {
        /// In the bill before.
        was: Arc<str>,
        /// In the bill that was paid.
        now: Arc<str>,
    },
    /// A second bill for the same request named another price.
    PriceChanged {
        /// In the bill before.
        was: Usd,
        /// In the bill that was paid.
        now: Usd,
    },
    /// The answer to a payment is a redirect, which was not followed.
    RedirectNotFollowed,
    /// The wallet paid forwarding nodes more than it was told to.
    RoutingFeeOverLimit {
        /// Millisatoshis.
        fee_msat: u64,
        /// Millisatoshis.
        max_msat: u64,
    },
    /// The seller billed for a request in spite of a token that should be good for it, which is kept. This is what was paid instead.
    TokenNotTaken {
        /// The token's invoice.
        payment_hash: PaymentHash,
        /// How many calls it has, by the seller's earlier word.
        calls_left: Option<u32>,
    },
    /// The body of the 402 asks for other terms than its header. The header's were taken.
    BodyDisagrees,
    /// The terms for one way to pay could not be read.
    TermsUnreadable {
        /// Which way.
        rail: RailName,
        /// Why, safe to print.
        reason: String,
    },
    /// The receipt tells of another payment than the one that was made.
    ReceiptDiffers {
        /// `amount`, `network` or `payer`.
        field: &'static str,
        /// As it was signed.
        signed: String,
        /// As the receipt has it, cut and escaped.
        receipt: String,
    },
}

/// What a request would cost. Nothing is signed for it.
#[derive(Debug)]
pub enum Quote {
    /// The server answered without a bill.
    Free(Box<Response>),
    /// It wants to be paid.
    Bill {
        /// The URL that bills, after redirects.
        url: url::Url,
        /// What the seller says that it sells.
        description: Option<Untrusted>,
        /// Its offers, judged: x402's in the bill's order, then those for transfers in theirs, then Lightning's.
        offers: Vec<QuotedOffer>,
        /// The Lightning invoice of the bill, if it has one.
        invoice: Option<Box<QuotedInvoice>>,
        /// A token that is held and may be good for this request: a fetch uses it first.
        token: Option<Box<Purchase>>,
        /// What of it this agent does not understand.
        skipped: Vec<String>,
        /// What is odd about it.
        notes: Vec<Note>,
        /// An earlier payment for this request that is not known to be over. A fetch sends it again unless it was refused and
        /// the present policy forbids it.
        open: Option<Box<Entry>>,
    },
}

/// What a Lightning invoice says beside its offer.
#[derive(Clone, Debug)]
pub struct QuotedInvoice {
    /// BOLT 11.
    pub bolt11: Arc<str>,
    /// What paying it proves.
    pub payment_hash: PaymentHash,
    /// What for, by the seller's word.
    pub description: Option<Untrusted>,
    /// The public key of the node that is paid, hex.
    pub payee: String,
    /// Until when it can be paid.
    pub expires_at: Timestamp,
    /// What the token says that it is for.
    pub services: Vec<String>,
    /// When the token ends, by its own word.
    pub token_valid_until: Option<Timestamp>,
}

impl QuotedInvoice {
    fn of(bill: &L402Bill) -> Self {
        let invoice = &bill.bolt11.invoice;
        Self {
            bolt11: Arc::clone(&invoice.bolt11),
            payment_hash: invoice.payment_hash,
            description: bill.bolt11.description.clone(),
            payee: hex::encode(bill.bolt11.payee),
            expires_at: invoice.expires_at,
            services: bill.facts.services.clone(),
            token_valid_until: bill.facts.valid_until,
        }
    }
}

/// An offer and what the policy says of it.
#[derive(Clone, Debug)]
pub struct QuotedOffer {
    /// The offer.
    pub offer: Offer,
    /// Payable, at a known price, or the rule that forbids it.
    pub judgement: Result<Acceptable, PolicyRule>,
    /// Whether it is the one that would be paid.
    pub chosen: bool,
}

impl QuotedOffer {
    fn new(offer: &Offer, judgement: Result<Acceptable, PolicyRule>) -> Self {
        Self { offer: offer.clone(), judgement, chosen: false }
    }
}

/// What one unpaid attempt came to.
enum Asked {
    Answer(Response),
    Bill(HeaderMap, Peeked),
}

/// What an unpaid request came to.
pub(crate) enum Hop {
    Answer(Response),
    Bill(Billed),
    Moved(Replayable),
}

impl Agent {
    /// Starts with defaults.
    #[must_use]
    pub fn builder() -> AgentBuilder {
        AgentBuilder::default()
    }

    /// Sends the request and pays for it if it must and may. Two calls of the same method, URL and body at one time share one
    /// payment; see [`Agent::fetch_distinct`].
    ///
    /// A payment that the seller refused before is sent again if the policy still allows it; refused once more, another may be
    /// signed in its place. Both count against the limit until the first has expired. Nothing is ever signed for HEAD.
    ///
    /// A dropped future leaves at most one open payment in the journal, whose bytes the next call for the same request sends again.
    ///
    /// # Errors
    /// [`FetchError`]; its [`stake`](FetchError::stake) says whether money may have moved.
    pub async fn fetch(&self, request: Request) -> Result<Fetched, FetchError> {
        self.fetch_distinct(request, "").await
    }

    /// As [`Agent::fetch`], for one of several purchases of the same thing: only calls with the same `label` share a payment.
    ///
    /// # Errors
    /// As [`Agent::fetch`].
    pub async fn fetch_distinct(&self, request: Request, label: &str) -> Result<Fetched, FetchError> {
        let started = self.start();
        let mut request = Replayable::new(request, label)?;
        let mut hops_left = self.hops_max();
        loop {
            // What was signed or bought before comes first: asking for a bill now could end in a second payment.
            if let Some(fetched) = Box::pin(self.resume(&request, started)).await? {
                return Ok(fetched);
            }
            match self.ask(&request, started, &mut hops_left).await? {
                Hop::Answer(response) => return Ok(Fetched { response, payment: None }),
                Hop::Bill(billed) => return Box::pin(self.pay(&request, billed, started)).await,
                Hop::Moved(next) => request = next,
            }
        }
    }

    /// Asks for the bill and judges it. Signs nothing and leaves the journal alone.
    ///
    /// # Errors
    /// The request cannot be sent or the bill cannot be read.
    pub async fn quote(&self, request: Request) -> Result<Quote, FetchError> {
        self.quote_distinct(request, "").await
    }

    /// As [`Agent::quote`], for what [`Agent::fetch_distinct`] would do.
    ///
    /// # Errors
    /// As [`Agent::quote`], or an open payment of this request cannot be read.
    pub async fn quote_distinct(&self, request: Request, label: &str) -> Result<Quote, FetchError> {
        let started = self.start();
        let mut request = Replayable::new(request, label)?;
        let mut hops_left = self.hops_max();
        loop {
            match self.ask(&request, started, &mut hops_left).await? {
                Hop::Answer(response) => return Ok(Quote::Free(Box::new(response))),
                Hop::Bill(billed) => return self.quoted(request, billed).await,
                Hop::Moved(next) => request = next,
            }
        }
    }

    async fn quoted(&self, request: Replayable, billed: Billed) -> Result<Quote, FetchError> {
        let now = self.parts.clock.now();
        let open = self.parts.journal.peek(&request.fingerprint())?.filter(|entry| !entry.is_long_over(now));
        let policy = &self.parts.policy;
        let Billed { x402, transfer, l402, notes } = billed;
        let (mut offers, mut skipped, mut description) = (Vec::new(), Vec::new(), None);
        if let Some(bill) = &x402 {
            let judged = |asked: &Requirement| QuotedOffer::new(&asked.offer, policy.judge(&asked.offer));
            offers.extend(bill.requirements.iter().map(judged));
            skipped.extend(bill.skipped.iter().map(ToString::to_string));
            description.clone_from(&bill.description);
        }
        let of_x402 = offers.len();
        let terms = transfer.as_ref().map(|read| self.terms(read, &request));
        if let Some(terms) = &terms {
            let judged = terms.offers().into_iter().zip(terms.judgements());
            offers.extend(judged.map(|(offer, judgement)| QuotedOffer::new(&offer, judgement)));
            skipped.extend(terms.read.skipped.iter().map(ToString::to_string));
        }
        let of_transfers = offers.len();
        if let Some(bill) = &l402 {
            let no_wallet = PolicyRule::NoWallet { rail: RailName::L402 };
            let judged = bill.judge(policy, &request, Outstanding::default(), now);
            let judged = judged.and_then(|fine| if self.parts.lightning.is_some() { Ok(fine) } else { Err(no_wallet) });
            offers.push(QuotedOffer::new(&bill.offer, judged));
        }
        let barrier = self.barrier(&request);
        if let Some(rule) = &barrier {
            offers.iter_mut().for_each(|offer| offer.judgement = Err(rule.clone()));
        }
        let evm = self.parts.wallet.as_ref();
        let chosen = policy.rails.iter().find_map(|rail| match rail {
            RailName::X402 => Some(evm.and(policy.choose(x402.as_ref()?, Outstanding::default()).ok())?.index),
            RailName::L402 => offers.get(of_transfers)?.judgement.is_ok().then_some(of_transfers),
            RailName::Transfer => {
                Some(of_x402 + evm.and(terms.as_ref())?.choices(Outstanding::default()).0.first()?.index)
            }
        });
        if let Some(offer) = chosen.filter(|_| barrier.is_none()).and_then(|index| offers.get_mut(index)) {
            offer.chosen = true;
        }
        let token = match barrier {
            Some(_) => None,
            None => self.held_token(&request, l402.as_deref(), &BTreeSet::new()).await?.map(Box::new),
        };
        let invoice = l402.as_deref().map(|bill| Box::new(QuotedInvoice::of(bill)));
        let open = open.map(Box::new);
        Ok(Quote::Bill { url: request.url, description, offers, invoice, token, skipped, notes, open })
    }

    /// Sends the request without a payment, and again while no answer comes and nothing can be done twice by it.
    pub(crate) async fn ask(
        &self,
        request: &Replayable,
        started: Started,
        hops_left: &mut u32,
    ) -> Result<Hop, FetchError> {
        let mut waits = self.waits().take(UNPAID_RETRIES_MAX);
        let asked = loop {
            let error = match self.ask_once(request, started).await {
                Ok(asked) => break asked,
                Err(error) => error,
            };
            let harmless = error.is_before_sending() || request.is_idempotent();
            let left = started.until.saturating_duration_since(Instant::now());
            match waits.next().filter(|wait| harmless && *wait < left) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(FetchError::Network { host: request.host(), source: error }),
            }
        };
        let response = match asked {
            Asked::Answer(response) => response,
            Asked::Bill(headers, peeked) if request.method == Method::HEAD => {
                let billed = bill::read(&headers, peeked.whole()).ok();
                let price = billed.and_then(|billed| self.parts.policy.cheapest(&billed));
                return Err(FetchError::HeadNotSold { price });
            }
            Asked::Bill(headers, peeked) => return Ok(Hop::Bill(bill::read(&headers, peeked.whole())?)),
        };
        if self.parts.redirects == Redirects::Return {
            return Ok(Hop::Answer(response));
        }
        let Some(next) = request.redirected(response.status(), response.headers())? else {
            return Ok(Hop::Answer(response));
        };
        let too_many = || RequestError::Redirect { reason: format!("more than {} redirects", self.hops_max()) };
        *hops_left = hops_left.checked_sub(1).ok_or_else(too_many)?;
        Ok(Hop::Moved(next))
    }

    async fn ask_once(&self, request: &Replayable, started: Started) -> Result<Asked, TransportError> {
        let response = self.send(request.to_request(&[]), started).await?;
        if response.status() != StatusCode::PAYMENT_REQUIRED {
            return Ok(Asked::Answer(response));
        }
        let headers = response.headers().clone();
        Ok(Asked::Bill(headers, delivery::peek(response, BILL_BODY_BYTES_MAX, started.until).await?))
    }

    /// The waits between attempts, as the retry policy has them.
    pub(crate) fn waits(&self) -> ExponentialBackoff {
        self.parts.retry.waits(self.seed())
    }

    /// The waits between looks at the chain.
    pub(crate) fn looks(&self) -> ExponentialBackoff {
        self.parts.retry.looks(self.seed())
    }

    /// The waits between claims on a transfer.
    pub(crate) fn claim_waits(&self) -> ExponentialBackoff {
        self.parts.retry.claims(self.seed())
    }

    fn seed(&self) -> u64 {
        let mut seed = [0; 8];
        self.parts.entropy.fill(&mut seed);
        u64::from_ne_bytes(seed)
    }

    pub(crate) async fn send(&self, request: Request, started: Started) -> Result<Response, TransportError> {
        self.send_until(request, started.until).await
    }

    pub(crate) async fn send_until(&self, request: Request, until: Instant) -> Result<Response, TransportError> {
        delivery::send(&self.parts.client, request, self.parts.retry.attempt_timeout, until).await
    }

    fn start(&self) -> Started {
        let began = Instant::now();
        Started { at: self.parts.clock.now(), began, until: began + self.parts.retry.deadline }
    }

    fn hops_max(&self) -> u32 {
        match self.parts.redirects {
            Redirects::Return => 0,
            Redirects::Follow { hops_max } | Redirects::FollowAndPay { hops_max } => hops_max,
        }
    }

    /// Why nothing is paid for this request and no token sent with it, whatever the bill says.
    pub(crate) fn barrier(&self, request: &Replayable) -> Option<PolicyRule> {
        if request.is_plain() && self.parts.plain_http == PlainHttp::Unpaid {
            return Some(PolicyRule::PlainHttp { host: request.host() });
        }
        let stays = !request.is_elsewhere() || matches!(self.parts.redirects, Redirects::FollowAndPay { .. });
        (!stays).then(|| PolicyRule::Elsewhere { origin: request.origin() })
    }
}

/// When a fetch began, and when it must be over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub(crate) at: Timestamp,
    began: Instant,
    pub(crate) until: Instant,
}

impl Started {
    /// When it must be over if it pays by a transfer.
    pub(crate) fn transfer_until(&self, retry: &RetryPolicy) -> Instant {
        self.began + retry.transfer_deadline
    }
}
