//! A rail of transfers without a chain: payers move money first, and it finds what they moved.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use async_trait::async_trait;
use farebox_core::{
    ArrivedFor, BlockRef, Charged, Credential, FeeTerms, Finality, Network, Offer, Payer, Payment, PaymentId, Permit,
    Price, ProofId, RailName, Refusal, Retry, Timestamp, TransactionId, TransferCredential,
    ports::{
        Arrival, BoxError, Canonical, ChainWindow, Checked, Lookups, OfferError, Offering, Paid, Presented, Rail,
        Rejected, Settlement, SignatureCheck, Timely, Verified, VerifyError,
    },
};
use parking_lot::Mutex;

use crate::{
    SettleWith, TestPayer,
    chain::ScriptedChain,
    rail::{in_doubt, offer_for, rejected},
    test_network, transaction_of,
};

/// How far ahead a code may end, seconds.
const CODE_S_MAX: u64 = 630;

/// A rail whose chain is a map of transfers. Without a script every honest claim of a transfer that was made is good.
///
/// It does not open quotes: any text is one. Clones share chain and script, as two processes do.
#[derive(Clone, Debug, Default)]
pub struct ScriptedTransfers {
    script: Arc<Mutex<Script>>,
}

#[derive(Debug, Default)]
struct Script {
    proofs: VecDeque<VerifyError>,
    late: VecDeque<Timely>,
    verdicts: VecDeque<Result<Verdict, VerifyError>>,
    resolutions: VecDeque<SettleWith>,
    calls: Vec<TransferCall>,
    chain: ScriptedChain,
    mined: BTreeMap<TransactionId, Mined>,
    transfers: u64,
}

#[derive(Clone, Debug)]
struct Mined {
    block: BlockRef,
    payer: Payer,
    units: Vec<u128>,
}

/// What a scripted verification finds beside the transfers themselves.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The money is for the request.
    ForDelivery,
    /// The money came too late, and is credit with this code.
    ForCredit(&'static str),
}

/// One question that the rail was asked, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferCall {
    /// [`Rail::authenticate`].
    Authenticate(TransactionId),
    /// [`Rail::verify`].
    Verify(TransactionId),
    /// [`Rail::settle`].
    Settle(PaymentId),
    /// [`Rail::resolve`].
    Resolve(PaymentId),
}

impl ScriptedTransfers {
    /// A rail with an empty chain.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `payer` moves so many units to the seller, once for each number, in one transaction. Gives its hash.
    pub fn transfer(&self, payer: TestPayer, units: &[u128]) -> [u8; 32] {
        let mut script = self.script.lock();
        script.transfers += 1;
        let hash = crate::test_hash(script.transfers);
        let block = script.chain.mine();
        let mined = Mined { block, payer: payer.account(&test_network()), units: units.to_vec() };
        script.mined.insert(transaction_of(&hash), mined);
        hash
    }

    /// The next proof of who the caller is fails like this. Several calls queue up, here and below.
    pub fn fail_next_authenticate(&self, error: VerifyError) {
        self.script.lock().proofs.push_back(error);
    }

    /// The next credential is late like this, by its quote alone.
    pub fn time_next(&self, timely: Timely) {
        self.script.lock().late.push_back(timely);
    }

    /// The next verification ends like this.
    pub fn verify_next(&self, verdict: Result<Verdict, VerifyError>) {
        self.script.lock().verdicts.push_back(verdict);
    }

    /// The next verification finds the transfer too young.
    pub fn hold_next_verify(&self, have: u64, need: u64) {
        let pending = not_yet("payment_pending", "the transfer is too young").with_fact("have", have);
        self.verify_next(Err(VerifyError::Refused(Box::new(pending.with_fact("need", need)))));
    }

    /// The next verification finds no chain.
    pub fn lose_chain_on_next_verify(&self) {
        self.verify_next(Err(VerifyError::Unavailable { source: "scripted: no node answers".into() }));
    }

    /// The next resolution ends like this; without a script it tells the truth, and a transfer that is gone is in doubt.
    pub fn resolve_next(&self, with: SettleWith) {
        self.script.lock().resolutions.push_back(with);
    }

    /// Another block takes the place of the one with this transaction, which is gone from the chain.
    pub fn reorganise(&self, transaction: &TransactionId) {
        let mut script = self.script.lock();
        if let Some(mined) = script.mined.remove(transaction) {
            script.chain.replace(mined.block.number);
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

    /// Undoes [`ScriptedTransfers::lose_chain`].
    pub fn find_chain(&self) {
        self.script.lock().chain.is_lost = false;
    }

    /// Every question so far.
    #[must_use]
    pub fn calls(&self) -> Vec<TransferCall> {
        self.script.lock().calls.clone()
    }
}

impl Offering for ScriptedTransfers {
    fn name(&self) -> RailName {
        RailName::Transfer
    }

    fn offers(&self, price: &Price, _fee: FeeTerms) -> Result<Vec<Offer>, OfferError> {
        offer_for(RailName::Transfer, price)
    }
}

#[async_trait]
impl Rail for ScriptedTransfers {
    async fn authenticate(&self, presented: &Presented<'_>) -> Result<Option<Checked>, VerifyError> {
        let failure = {
            let mut script = self.script.lock();
            script.calls.push(TransferCall::Authenticate(transaction(presented.credential)));
            script.proofs.pop_front()
        };
        match failure {
            Some(error) => Err(error),
            None => self.check(presented).map(Some).map_err(VerifyError::Rejected),
        }
    }

    fn check(&self, presented: &Presented<'_>) -> Result<Checked, Rejected> {
        let Credential::Transfer(TransferCredential { code, .. }) = presented.credential else {
            return Err(rejected("unsupported_scheme"));
        };
        if (&*code.method, &*code.resource) != (presented.method, presented.url) {
            return Err(rejected("resource_mismatch"));
        }
        let now_s = presented.now.unix_s();
        if code.expires_at + 30 < now_s || code.expires_at > now_s + CODE_S_MAX {
            return Err(rejected("payment_code_expired"));
        }
        let meets = |o: &&Offer| {
            o.rail == RailName::Transfer
                && o.amount.asset == code.asset
                && o.amount.units == code.amount
                && o.pay_to.parse() == Ok(code.pay_to)
        };
        let offer = presented.offers.iter().find(meets).ok_or_else(|| rejected("terms_mismatch"))?;
        if code.signature != TestPayer(code.payer.0[19]).signature() {
            return Err(rejected("bad_signature"));
        }
        Ok(Checked {
            credential: Arc::new(presented.credential.clone()),
            offer: offer.clone(),
            payer: Payer::new(code.asset.network(), &format!("{:x}", code.payer)),
            valid_until: Timestamp::from_unix_s(code.expires_at),
            signature: SignatureCheck::Recovered,
            timely: self.script.lock().late.pop_front().unwrap_or(Timely::Yes),
        })
    }

    async fn verify(&self, checked: &Checked, lookups: &dyn Lookups) -> Result<Verified, VerifyError> {
        let id = transaction(&checked.credential);
        let mut script = self.script.lock();
        script.calls.push(TransferCall::Verify(id.clone()));
        lookups.take().map_err(|no| too_many(no.retry_after_s))?;
        let verdict = script.verdicts.pop_front().unwrap_or(Ok(Verdict::ForDelivery))?;
        let found = script.mined.get(&id).cloned();
        let Some(mined) = found else {
            return Err(VerifyError::Refused(Box::new(not_yet("payment_not_found", "there is no such transaction"))));
        };
        if mined.payer != checked.payer {
            return Err(VerifyError::Rejected(rejected("wrong_payer")));
        }
        let (purpose, least) = match (verdict, &checked.timely) {
            (Verdict::ForCredit(code), _) => (ArrivedFor::Credit { code: code.into() }, 1),
            (Verdict::ForDelivery, Timely::ForCredit(why)) => (ArrivedFor::Credit { code: why.code.clone() }, 1),
            (Verdict::ForDelivery, Timely::Yes | Timely::No(_)) => (ArrivedFor::Delivery, checked.offer.amount.units),
        };
        let arrivals: Vec<_> = (0..)
            .zip(mined.units)
            .filter(|(_, units)| *units >= least)
            .map(|(position, units)| Arrival {
                proof: ProofId::transfer(checked.offer.network(), &id, Some(position)),
                units,
            })
            .collect();
        match arrivals.is_empty() {
            true => Err(VerifyError::Rejected(rejected("underpaid"))),
            false => Ok(Verified::Paid(Paid { transaction: id, block: mined.block, arrivals, purpose })),
        }
    }

    /// There is nothing to move: it tells what the row says.
    async fn settle(&self, permit: &Permit) -> Settlement {
        let payment = permit.payment();
        self.script.lock().calls.push(TransferCall::Settle(payment.id));
        match (payment.transaction.clone(), payment.block) {
            (Some(transaction), Some(block)) => Settlement::Final { transaction, block },
            (transaction, _) => in_doubt(transaction, "scripted: no transfer has come"),
        }
    }

    async fn resolve(&self, payment: &Payment) -> Settlement {
        let (scripted, mined) = {
            let mut script = self.script.lock();
            script.calls.push(TransferCall::Resolve(payment.id));
            let mined = payment.transaction.as_ref().and_then(|id| script.mined.get(id)).cloned();
            (script.resolutions.pop_front(), mined)
        };
        let transaction = payment.transaction.clone();
        match (scripted.unwrap_or(SettleWith::Final), mined, transaction) {
            (SettleWith::Refused(code), _, _) => Settlement::Refused(rejected(code)),
            (SettleWith::Hang, _, _) => std::future::pending().await,
            (SettleWith::Final, Some(mined), Some(transaction)) => {
                Settlement::Final { transaction, block: mined.block }
            }
            (_, _, transaction) => in_doubt(transaction, "scripted: the transfer is not on the chain"),
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

fn transaction(credential: &Credential) -> TransactionId {
    match credential {
        Credential::Transfer(transfer) => transaction_of(&transfer.code.transaction),
        Credential::X402(_) | Credential::L402(_) => TransactionId::new("none"),
    }
}

/// A no that may become a yes: send the same again.
fn not_yet(code: &'static str, detail: &str) -> Refusal {
    Refusal {
        status: 402,
        retry: Retry::SameProof,
        charged: Charged::Unknown,
        retry_after_s: Some(1),
        ..Refusal::payment(code, detail)
    }
}

fn too_many(retry_after_s: u32) -> VerifyError {
    let refusal = Refusal::new(429, "too_many_claims", "too many claims from this address");
    VerifyError::Refused(Box::new(Refusal {
        retry: Retry::SameProof,
        charged: Charged::Unknown,
        retry_after_s: Some(retry_after_s),
        ..refusal
    }))
}

/// Look-ups without end, or none at all.
#[derive(Clone, Copy, Debug)]
pub enum TestLookups {
    /// There is always one left.
    Enough,
    /// There is none for 7 s.
    None,
}

impl Lookups for TestLookups {
    fn take(&self) -> Result<(), farebox_core::ports::NoLookup> {
        match self {
            Self::Enough => Ok(()),
            Self::None => Err(farebox_core::ports::NoLookup { retry_after_s: 7 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use farebox_core::{Decimal, RouteId};

    use super::*;
    use crate::Purchase;

    const NOW: Timestamp = Timestamp::from_unix_s(1_800_000_000);
    const URL: &str = "https://api.example.com/v1/x";

    /// What a gateway learns of a claim of `hash` by `payer`, changed by `change` before it is sent.
    async fn told(
        rail: &ScriptedTransfers,
        payer: TestPayer,
        hash: [u8; 32],
        change: impl FnOnce(&mut TransferCredential),
    ) -> Result<Verified, VerifyError> {
        let price = Price::Usd("0.01".parse::<Decimal>().unwrap());
        let offers = rail.offers(&price, FeeTerms::default()).unwrap();
        let purchase = Purchase { quote: "q", method: "GET", url: URL, code_expires_at: NOW };
        let mut credential = payer.claim_transfer(&offers[0], hash, purchase);
        if let Credential::Transfer(transfer) = &mut credential {
            change(transfer);
        }
        let presented = Presented {
            credential: &credential,
            route: &RouteId::new("r"),
            method: "GET",
            url: URL,
            offers: &offers,
            now: NOW,
            lookups: &TestLookups::Enough,
        };
        let checked = rail.authenticate(&presented).await?.unwrap();
        rail.verify(&checked, &TestLookups::Enough).await
    }

    fn code(error: VerifyError) -> String {
        match error {
            VerifyError::Rejected(rejected) => rejected.code.into_owned(),
            VerifyError::Refused(refusal) => refusal.code.into_owned(),
            VerifyError::Unavailable { .. } => "unavailable".into(),
        }
    }

    #[tokio::test]
    async fn what_was_paid_is_found_and_what_was_not_is_refused_by_name() {
        let rail = ScriptedTransfers::new();
        let hash = rail.transfer(TestPayer(1), &[9_999, 10_000, 10_001]);
        let Verified::Paid(paid) = told(&rail, TestPayer(1), hash, |_| {}).await.unwrap() else { panic!("not paid") };
        let found: Vec<_> = paid.arrivals.iter().map(|a| (a.proof.transfer_position(), a.units)).collect();
        assert_eq!(found, [(Some(1), 10_000), (Some(2), 10_001)], "by position, without the short one");
        let dust = rail.transfer(TestPayer(1), &[9_999]);
        for (payer, hash, change, expected) in [
            (TestPayer(2), hash, (|_| {}) as fn(&mut TransferCredential), "wrong_payer"),
            (TestPayer(1), hash, |t| t.code.signature[0] ^= 1, "bad_signature"),
            (TestPayer(1), hash, |t| t.code.method = "POST".into(), "resource_mismatch"),
            (TestPayer(1), hash, |t| t.code.amount += 1, "terms_mismatch"),
            (TestPayer(1), hash, |t| t.code.expires_at -= 31, "payment_code_expired"),
            (TestPayer(1), dust, |_| {}, "underpaid"),
            (TestPayer(1), [7; 32], |_| {}, "payment_not_found"),
        ] {
            assert_eq!(code(told(&rail, payer, hash, change).await.unwrap_err()), expected);
        }
    }

    #[tokio::test]
    async fn a_reorganisation_takes_the_block_and_the_transfer() {
        let rail = ScriptedTransfers::new();
        let hash = rail.transfer(TestPayer(1), &[10_000]);
        let Verified::Paid(paid) = told(&rail, TestPayer(1), hash, |_| {}).await.unwrap() else { panic!("not paid") };
        let network = test_network();
        assert!(rail.windows().await[0].blocks.contains(&paid.block));
        assert_eq!(rail.is_canonical(&network, &paid.block).await.unwrap(), Canonical::Holds);
        rail.reorganise(&paid.transaction);
        assert!(!rail.windows().await[0].blocks.contains(&paid.block));
        assert_eq!(rail.is_canonical(&network, &paid.block).await.unwrap(), Canonical::Gone);
        assert_eq!(code(told(&rail, TestPayer(1), hash, |_| {}).await.unwrap_err()), "payment_not_found");
        rail.lose_chain();
        assert!(rail.windows().await.is_empty() && rail.is_canonical(&network, &paid.block).await.is_err());
    }
}
