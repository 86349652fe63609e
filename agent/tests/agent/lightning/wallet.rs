//! A Lightning network in memory, and wallets on it that do as they are told.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bitcoin::{
    hashes::{Hash as _, sha256},
    secp256k1::{Secp256k1, SecretKey},
};
use farebox_agent::{Agent, AgentBuilder, Journal, Policy};
use farebox_core::{
    BitcoinNetwork, PaymentHash, Preimage, RailName, Timestamp,
    ports::{Clock, Entropy as _, LightningWallet, NodeError, Outgoing, PaidOut, PayOrder, PayOutcome},
};
use lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};

use crate::support::*;

/// Every invoice of a test, and how often it was paid.
#[derive(Debug, Default)]
pub(crate) struct Lightning {
    invoices: Mutex<BTreeMap<PaymentHash, (Preimage, u32)>>,
}

/// What an invoice of a test says.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) msat: Option<u64>,
    pub(crate) currency: Currency,
    pub(crate) made_at: Timestamp,
    pub(crate) expiry: Duration,
    pub(crate) final_blocks: u64,
}

impl Wanted {
    pub(crate) fn sats(sats: u64) -> Self {
        let made_at = TestClock::default().now();
        let (currency, expiry) = (Currency::Regtest, Duration::from_secs(600));
        Self { msat: Some(sats * 1000), currency, made_at, expiry, final_blocks: 80 }
    }
}

impl Lightning {
    pub(crate) fn invoice(&self, wanted: &Wanted) -> (PaymentHash, String) {
        let mut preimage = [0; 32];
        OsEntropy.fill(&mut preimage);
        let preimage = Preimage(preimage);
        let hash = preimage.hash();
        self.invoices.lock().unwrap().insert(hash, (preimage, 0));
        let builder = InvoiceBuilder::new(wanted.currency.clone())
            .description("a call".to_owned())
            .payment_hash(sha256::Hash::from_byte_array(hash.0))
            .payment_secret(PaymentSecret([7; 32]))
            .duration_since_epoch(Duration::from_millis(wanted.made_at.unix_ms()))
            .expiry_time(wanted.expiry)
            .min_final_cltv_expiry_delta(wanted.final_blocks);
        let builder = match wanted.msat {
            Some(msat) => builder.amount_milli_satoshis(msat),
            None => builder,
        };
        let key = SecretKey::from_slice(&[0x42; 32]).unwrap();
        let text = builder.build_signed(|hash| Secp256k1::new().sign_ecdsa_recoverable(hash, &key)).unwrap();
        (hash, text.to_string())
    }

    fn pay(&self, hash: PaymentHash) -> Preimage {
        let mut invoices = self.invoices.lock().unwrap();
        let (preimage, times) = invoices.get_mut(&hash).unwrap();
        *times += 1;
        *preimage
    }

    /// How many payments were made, all invoices together; never two of one.
    pub(crate) fn paid(&self) -> usize {
        let invoices = self.invoices.lock().unwrap();
        assert!(invoices.values().all(|(_, times)| *times <= 1), "{invoices:?}");
        invoices.values().filter(|(_, times)| *times == 1).count()
    }
}

/// How a wallet answers to a wish to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Pays,
    /// Says no, and nothing moves.
    Fails,
    /// Says no for this reason, and knows of nothing.
    Refuses(&'static str),
    /// Says no, and pays.
    FailsAndPays,
    /// Says no, and pays when it has been asked about it once.
    FailsAndPaysLater,
    /// Pays, and never answers.
    PaysAndHangs,
    /// Pays, and its answer is lost.
    PaysAndLosesTheAnswer,
    /// Its answer is lost, and nothing moves.
    LosesTheWish,
    /// The payment is on its way for so many looks, and then arrives.
    IsSlow(usize),
    /// Pays and has no preimage to give.
    PaysBlind,
    /// Pays and gives its preimage only when asked again.
    PaysBlindAtFirst,
    /// Pays and gives another preimage.
    PaysWrong,
    /// Pays, and takes more for the way than it may.
    PaysDear,
}

#[derive(Debug)]
pub(crate) struct Purse {
    network: Arc<Lightning>,
    pub(crate) mood: Mutex<Mood>,
    pub(crate) on: Option<BitcoinNetwork>,
    pub(crate) label: String,
    pub(crate) key: &'static str,
    payments: Mutex<BTreeMap<PaymentHash, Outgoing>>,
    pub(crate) orders: Mutex<Vec<PayOrder>>,
    looks: AtomicUsize,
    pub(crate) is_down: AtomicBool,
}

impl Purse {
    pub(crate) fn of(network: &Arc<Lightning>, mood: Mood) -> Arc<Self> {
        Arc::new(Self::new(network, mood))
    }

    pub(crate) fn new(network: &Arc<Lightning>, mood: Mood) -> Self {
        Self {
            network: Arc::clone(network),
            mood: Mutex::new(mood),
            on: Some(BitcoinNetwork::Regtest),
            label: "a purse".to_owned(),
            key: "02aa",
            payments: Mutex::default(),
            orders: Mutex::default(),
            looks: AtomicUsize::default(),
            is_down: AtomicBool::default(),
        }
    }

    /// How often it was asked to pay.
    pub(crate) fn asked(&self) -> usize {
        self.orders.lock().unwrap().len()
    }

    pub(crate) fn is_now(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn note(&self, hash: PaymentHash, preimage: Option<Preimage>) -> PaidOut {
        let paid = PaidOut { preimage, fee_msat: Some(7) };
        self.payments.lock().unwrap().insert(hash, Outgoing::Paid(paid.clone()));
        paid
    }

    fn error(&self) -> NodeError {
        NodeError::Unavailable { label: self.label.clone(), source: "it is down".into() }
    }
}

#[async_trait]
impl LightningWallet for Purse {
    fn label(&self) -> &str {
        &self.label
    }

    async fn id(&self) -> Result<Arc<str>, NodeError> {
        Ok(self.key.into())
    }

    async fn network(&self) -> Result<Option<BitcoinNetwork>, NodeError> {
        if self.is_down.load(Ordering::SeqCst) { Err(self.error()) } else { Ok(self.on) }
    }

    async fn spendable_msat(&self) -> Result<u64, NodeError> {
        Ok(1_000_000)
    }

    async fn pay(&self, order: &PayOrder) -> PayOutcome {
        let hash = order.invoice.payment_hash;
        self.orders.lock().unwrap().push(order.clone());
        if let Some(Outgoing::Paid(paid)) = self.payments.lock().unwrap().get(&hash) {
            return PayOutcome::Paid(paid.clone());
        }
        let mood = *self.mood.lock().unwrap();
        let failed = || PayOutcome::Failed { code: "no_route", detail: "no way there".to_owned() };
        let moves = !matches!(
            mood,
            Mood::Fails | Mood::Refuses(_) | Mood::FailsAndPaysLater | Mood::LosesTheWish | Mood::IsSlow(_)
        );
        let preimage = moves.then(|| self.network.pay(hash));
        match mood {
            Mood::Pays => PayOutcome::Paid(self.note(hash, preimage)),
            Mood::Fails | Mood::FailsAndPaysLater => {
                self.payments.lock().unwrap().insert(hash, Outgoing::Failed);
                failed()
            }
            Mood::Refuses(code) => PayOutcome::Failed { code, detail: "no".to_owned() },
            Mood::FailsAndPays => {
                self.note(hash, preimage);
                failed()
            }
            Mood::PaysAndHangs => {
                self.note(hash, preimage);
                std::future::pending().await
            }
            Mood::PaysAndLosesTheAnswer => {
                self.note(hash, preimage);
                PayOutcome::Unknown { source: "the line broke".into() }
            }
            Mood::LosesTheWish => PayOutcome::Unknown { source: "the line broke".into() },
            Mood::IsSlow(_) => {
                self.payments.lock().unwrap().insert(hash, Outgoing::InFlight);
                PayOutcome::Unknown { source: "it takes long".into() }
            }
            Mood::PaysBlind => PayOutcome::Paid(self.note(hash, None)),
            Mood::PaysBlindAtFirst => PayOutcome::Paid(PaidOut { preimage: None, ..self.note(hash, preimage) }),
            Mood::PaysWrong => PayOutcome::Paid(self.note(hash, Some(Preimage([9; 32])))),
            Mood::PaysDear => PayOutcome::Paid(PaidOut { fee_msat: Some(50_000), ..self.note(hash, preimage) }),
        }
    }

    async fn outgoing(&self, hash: PaymentHash) -> Result<Outgoing, NodeError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(self.error());
        }
        let found = self.payments.lock().unwrap().get(&hash).cloned().unwrap_or(Outgoing::Never);
        let looks = self.looks.fetch_add(1, Ordering::SeqCst) + 1;
        let mood = *self.mood.lock().unwrap();
        match (mood, &found) {
            (Mood::IsSlow(until), Outgoing::InFlight) if looks >= until => {
                let preimage = self.network.pay(hash);
                Ok(Outgoing::Paid(self.note(hash, Some(preimage))))
            }
            (Mood::FailsAndPaysLater, Outgoing::Failed) => {
                let preimage = self.network.pay(hash);
                self.note(hash, Some(preimage));
                Ok(found)
            }
            _ => Ok(found),
        }
    }
}

/// 1,000 sats a call at most.
pub(crate) fn policy() -> Policy {
    Policy { max_msat_per_call: Some(1_000_000), ..Policy::default() }
}

/// Somebody with sats alone.
pub(crate) struct Satoshi {
    pub(crate) lightning: Arc<Lightning>,
    pub(crate) purse: Arc<Purse>,
    pub(crate) payer: Payer,
}

impl Satoshi {
    pub(crate) fn new(mood: Mood) -> Self {
        let lightning = Arc::<Lightning>::default();
        Self { purse: Purse::of(&lightning, mood), lightning, payer: Payer::new() }
    }

    pub(crate) fn builder_of(&self, wallet: Arc<dyn LightningWallet>) -> AgentBuilder {
        let journal = Journal::open(self.payer.folder.path(), self.payer.clock.now()).unwrap();
        Agent::builder()
            .lightning(wallet)
            .journal(journal)
            .clock(Arc::clone(&self.payer.clock) as Arc<dyn Clock>)
            .entropy(Arc::new(OsEntropy))
            .policy(policy())
            .retry(quick())
            .client(reqwest::Client::builder().no_proxy())
    }

    pub(crate) fn builder(&self) -> AgentBuilder {
        self.builder_of(Arc::clone(&self.purse) as Arc<dyn LightningWallet>)
    }

    pub(crate) fn agent(&self) -> Agent {
        self.builder().build().unwrap()
    }

    pub(crate) fn only_lightning() -> Policy {
        Policy { rails: vec![RailName::L402], ..policy() }
    }
}
