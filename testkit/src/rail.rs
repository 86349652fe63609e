//! A rail without a chain: it does what its script says, and remembers what it was asked.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    future::pending,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use farebox_core::{
    Amount, BlockRef, Credential, FeeTerms, Finality, LaneKey, Network, Offer, Payment, PaymentId, Permit, Price,
    ProofId, RailName, StoredTransaction, Timestamp, TransactionFate, TransactionId,
    ports::{
        BoxError, Canonical, ChainWindow, Checked, Clock, Lookups, OfferError, Offering, Presented, Rail, Rejected,
        Settlement, SignatureCheck, Timely, TransactionStore, Verified, VerifyError,
    },
};
use parking_lot::Mutex;

use crate::{TEST_ASSET_DECIMALS, chain::ScriptedChain, proof_of, test_asset, test_network, test_offer};

/// A rail whose chain is a map. Without a script every honest credential is accepted and settled at once.
///
/// Like a real rail it stores a transaction before the money can move, and money moves at most once for a proof.
#[derive(Debug)]
pub struct ScriptedRail {
    store: Arc<dyn TransactionStore>,
    clock: Arc<dyn Clock>,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug, Default)]
struct Script {
    checks: VecDeque<Rejected>,
    verdicts: VecDeque<Result<(), VerifyError>>,
    settlements: VecDeque<SettleStep>,
    resolutions: VecDeque<SettleWith>,
    calls: Vec<Call>,
    mined: BTreeMap<ProofId, (TransactionId, BlockRef)>,
    chain: ScriptedChain,
    nonce: u64,
}

/// One question that a rail was asked, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Rail::check`].
    Check(ProofId),
    /// [`Rail::verify`].
    Verify(ProofId),
    /// [`Rail::settle`].
    Settle(PaymentId),
    /// [`Rail::resolve`].
    Resolve(PaymentId),
}

/// How one settlement goes.
#[derive(Clone, Debug)]
pub struct SettleStep {
    /// How long the chain takes.
    pub after: Duration,
    /// How it ends.
    pub with: SettleWith,
}

/// How a settlement or a resolution ends.
#[derive(Clone, Debug)]
pub enum SettleWith {
    /// The transaction is stored and mined.
    Final,
    /// The transaction is stored, and reverts with this code.
    Refused(&'static str),
    /// The transaction is stored, mined, and we are not told.
    DoubtfulButMoved,
    /// The transaction is stored and lost; sending it again would move the money.
    DoubtfulAndUnmoved,
    /// No transaction could be stored or signed.
    NothingStored,
    /// The transaction is stored, and no answer ever comes.
    Hang,
}

impl From<SettleWith> for SettleStep {
    fn from(with: SettleWith) -> Self {
        Self { after: Duration::ZERO, with }
    }
}

impl ScriptedRail {
    /// The recipient that its offers name, in the wire's spelling.
    pub const PAY_TO: &str = "0x00000000000000000000000000000000000000f1";

    /// A rail that stores its transactions in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn TransactionStore>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, script: Arc::default() }
    }

    /// The same chain and script in the hands of the next process, whose transactions go to `store`.
    #[must_use]
    pub fn restarted(&self, store: Arc<dyn TransactionStore>) -> Self {
        Self { store, clock: self.clock.clone(), script: self.script.clone() }
    }

    /// The next check that would pass is rejected with `code`. Several calls queue up, here and below.
    pub fn reject_next_check(&self, code: &'static str) {
        self.script.lock().checks.push_back(rejected(code));
    }

    /// The next verification ends like this.
    pub fn verify_next(&self, verdict: Result<(), VerifyError>) {
        self.script.lock().verdicts.push_back(verdict);
    }

    /// The next verification is a no of the chain with `code`.
    pub fn reject_next_verify(&self, code: &'static str) {
        self.verify_next(Err(VerifyError::Rejected(rejected(code))));
    }

    /// The next verification finds no chain.
    pub fn lose_chain_on_next_verify(&self) {
        self.verify_next(Err(VerifyError::Unavailable { source: "scripted: no node answers".into() }));
    }

    /// The next settlement goes like this.
    pub fn settle_next(&self, step: impl Into<SettleStep>) {
        self.script.lock().settlements.push_back(step.into());
    }

    /// The next resolution ends like this; without a script it tells the truth, sending a lost transaction again.
    pub fn resolve_next(&self, with: SettleWith) {
        self.script.lock().resolutions.push_back(with);
    }

    /// Another block takes the place of the one with the transaction of `proof`, as in a reorganisation.
    pub fn reorganise(&self, proof: &ProofId) {
        let mut script = self.script.lock();
        if let Some((_, block)) = script.mined.remove(proof) {
            script.chain.replace(block.number);
        }
    }

    /// Blocks below `height` can no longer be undone. At first every block can.
    pub fn finalise_below(&self, height: u64) {
        self.script.lock().chain.finalise_below(height);
    }

    /// From now on no node answers [`Rail::windows`] and [`Rail::is_canonical`].
    pub fn lose_chain(&self) {
        self.script.lock().chain.is_lost = true;
    }

    /// Undoes [`ScriptedRail::lose_chain`].
    pub fn find_chain(&self) {
        self.script.lock().chain.is_lost = false;
    }

    /// Every question so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.script.lock().calls.clone()
    }

    /// Every proof for which money moved.
    #[must_use]
    pub fn charged(&self) -> Vec<ProofId> {
        self.script.lock().mined.keys().cloned().collect()
    }

    async fn settle_as(&self, payment: &Payment, step: SettleStep) -> Settlement {
        if matches!(step.with, SettleWith::NothingStored) {
            return in_doubt(None, "scripted: the relayer could not sign");
        }
        let stored = self.transaction_for(payment.id);
        let hash = stored.hash.clone();
        if let Err(error) = self.store.store_transaction(stored).await {
            return Settlement::InDoubt { transaction: None, source: error.into() };
        }
        if !step.after.is_zero() {
            tokio::time::sleep(step.after).await;
        }
        self.end(payment, hash, step.with).await
    }

    async fn end(&self, payment: &Payment, hash: TransactionId, with: SettleWith) -> Settlement {
        match with {
            SettleWith::Final => self.mine(&payment.proof, hash),
            SettleWith::Refused(code) => Settlement::Refused(rejected(code)),
            SettleWith::DoubtfulButMoved => {
                self.mine(&payment.proof, hash.clone());
                in_doubt(Some(hash), "scripted: the node went away after the transaction was sent")
            }
            SettleWith::DoubtfulAndUnmoved => in_doubt(Some(hash), "scripted: the transaction was lost"),
            // A transaction exists already: whatever could not be done now, it may still move the money.
            SettleWith::NothingStored => in_doubt(Some(hash), "scripted: no node answers"),
            SettleWith::Hang => pending().await,
        }
    }

    /// The first transaction mined for a proof is the only one: the token refuses a used nonce.
    fn mine(&self, proof: &ProofId, hash: TransactionId) -> Settlement {
        let mut script = self.script.lock();
        if let Some((transaction, block)) = script.mined.get(proof).cloned() {
            return Settlement::Final { transaction, block };
        }
        let block = script.chain.mine();
        script.mined.insert(proof.clone(), (hash.clone(), block));
        Settlement::Final { transaction: hash, block }
    }

    fn transaction_for(&self, payment: PaymentId) -> StoredTransaction {
        let mut script = self.script.lock();
        script.nonce += 1;
        StoredTransaction {
            hash: TransactionId::new(format!("0x{:064x}", script.nonce)),
            lane: LaneKey::new(format!("{}:0x{}", test_network(), "e1".repeat(20))),
            nonce: script.nonce,
            raw: script.nonce.to_be_bytes().to_vec(),
            payment: Some(payment),
            fate: TransactionFate::Open,
            stored_at: self.clock.now(),
        }
    }
}

impl Offering for ScriptedRail {
    fn name(&self) -> RailName {
        RailName::X402
    }

    fn offers(&self, price: &Price, _fee: FeeTerms) -> Result<Vec<Offer>, OfferError> {
        offer_for(RailName::X402, price)
    }
}

#[async_trait]
impl Rail for ScriptedRail {
    fn check(&self, presented: &Presented<'_>) -> Result<Checked, Rejected> {
        let Credential::X402(x402) = presented.credential else { return Err(rejected("unsupported_scheme")) };
        let signed = &x402.authorization;
        let mut script = self.script.lock();
        script.calls.push(Call::Check(proof_of(presented.credential, &test_asset())));
        let offer = presented
            .offers
            .iter()
            .find(|o| {
                o.rail == RailName::X402
                    && o.scheme == x402.accepted.scheme
                    && *o.network() == x402.accepted.network
                    && o.amount.units == signed.value
                    && o.pay_to.parse() == Ok(signed.to)
            })
            .ok_or_else(|| rejected("invalid_payment_requirements"))?;
        if presented.now.unix_s() >= signed.valid_before {
            return Err(rejected("invalid_exact_evm_payload_authorization_valid_before"));
        }
        if let Some(no) = script.checks.pop_front() {
            return Err(no);
        }
        Ok(Checked {
            credential: Arc::new(presented.credential.clone()),
            offer: offer.clone(),
            payer: farebox_core::Payer::new(offer.network(), &format!("{:x}", signed.from)),
            valid_until: Timestamp::from_unix_s(signed.valid_before),
            signature: SignatureCheck::Recovered,
            timely: Timely::Yes,
        })
    }

    async fn verify(&self, checked: &Checked, _lookups: &dyn Lookups) -> Result<Verified, VerifyError> {
        let proof = proof_of(&checked.credential, &test_asset());
        let mut script = self.script.lock();
        script.calls.push(Call::Verify(proof.clone()));
        if let Some(verdict) = script.verdicts.pop_front() {
            return verdict.map(|()| Verified::Authorised(proof));
        }
        // What a token says of a nonce it has seen.
        match script.mined.contains_key(&proof) {
            true => Err(VerifyError::Rejected(rejected("invalid_exact_evm_nonce_already_used"))),
            false => Ok(Verified::Authorised(proof)),
        }
    }

    async fn settle(&self, permit: &Permit) -> Settlement {
        let step = {
            let mut script = self.script.lock();
            script.calls.push(Call::Settle(permit.payment().id));
            script.settlements.pop_front().unwrap_or_else(|| SettleWith::Final.into())
        };
        self.settle_as(permit.payment(), step).await
    }

    async fn resolve(&self, payment: &Payment) -> Settlement {
        let scripted = {
            let mut script = self.script.lock();
            script.calls.push(Call::Resolve(payment.id));
            script.resolutions.pop_front()
        };
        match (scripted, payment.transaction.clone()) {
            (Some(with), Some(hash)) => self.end(payment, hash, with).await,
            (None, Some(hash)) => self.mine(&payment.proof, hash),
            (Some(SettleWith::Refused(code)), None) => Settlement::Refused(rejected(code)),
            (_, None) => in_doubt(None, "scripted: there is no transaction to look for"),
        }
    }

    async fn windows(&self) -> Vec<ChainWindow> {
        self.script.lock().chain.windows()
    }

    async fn is_canonical(&self, _network: &Network, block: &BlockRef) -> Result<Canonical, BoxError> {
        self.script.lock().chain.is_canonical(block)
    }

    fn deepest(&self, _network: &Network) -> Finality {
        Finality::Finalized
    }
}

/// The one offer of a scripted rail: dollars and `USDC` at par.
pub(crate) fn offer_for(rail: RailName, price: &Price) -> Result<Vec<Offer>, OfferError> {
    let amount = match price {
        Price::Usd(amount) => *amount,
        Price::Token { amount, symbol } if symbol == "USDC" => *amount,
        Price::Token { .. } => return Err(OfferError::NoAsset { price: Box::new(price.clone()) }),
    };
    let units = amount.to_units(TEST_ASSET_DECIMALS).map_err(|source| OfferError::NotExact {
        price: Box::new(price.clone()),
        symbol: "USDC".into(),
        network: test_network(),
        source: Box::new(source),
    })?;
    Ok(vec![Offer { amount: Amount { units, asset: test_asset() }, ..test_offer(rail) }])
}

pub(crate) fn rejected(code: &'static str) -> Rejected {
    Rejected { code: Cow::Borrowed(code), detail: format!("scripted: {code}") }
}

pub(crate) fn in_doubt(transaction: Option<TransactionId>, why: &'static str) -> Settlement {
    Settlement::InDoubt { transaction, source: why.into() }
}
