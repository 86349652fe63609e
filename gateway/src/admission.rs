//! The way of one paid request, from its head to the permit that lets it run. What happens after the claim is in `fare.rs`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use farebox_core::{
    Binding, CallerId, Claim, Claimed, Credential, CredentialDigest, InstanceId, Payer, Payment, PaymentEvent,
    PaymentId, PaymentState, Permit, RailName, Refusal, SettleWhen, Tariff,
    ports::{
        Checked, Clock, Entropy, Ledger, LedgerUnavailable, Rail, Rejected, SignatureCheck, VerifyError, claim_of,
    },
};
use http::{HeaderMap, HeaderName, Method, Response, header::FORWARDED};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    answer,
    body::Body,
    challenge::Desk,
    fare::{self, Fare},
    proxy::Inbound,
    worker::Worker,
};

/// draft-ietf-httpapi-idempotency-key-header.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How often a request that waits for another's outcome looks again: first and longest pause.
const BUSY_PAUSE: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(250)];

/// Bounds of a paid request's way.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    /// How long a request waits for the outcome of another with the same proof. \[10 s\]
    pub busy_wait: Duration,
    /// How long a claim is held without a sign of life. Longer than the longest upstream and settlement together. \[10 min\]
    pub lease: Duration,
    /// How many payments of one payer may be claimed and not yet settled. Each may cost us an upstream call and the gas of a
    /// transaction that reverts, if the payer's balance is gone by then. \[32\]
    pub unsettled_per_payer_max: usize,
    /// How much longer than its upstream may take an authorization must live, for the settlement that follows. \[5 s\]
    pub settle_margin: Duration,
    /// How long the body of an answer that is small enough to be kept may take; after it the payment is not charged. \[60 s\]
    pub answer_timeout: Duration,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self {
            busy_wait: Duration::from_secs(10),
            lease: Duration::from_secs(600),
            unsettled_per_payer_max: 32,
            settle_margin: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(60),
        }
    }
}

/// All that admission works with.
#[derive(Debug)]
pub(crate) struct Till {
    pub(crate) rails: Vec<Arc<dyn Rail>>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) instance: InstanceId,
    pub(crate) limits: AdmissionLimits,
    /// Answers up to this size are kept for a payer who lost theirs; bytes.
    pub(crate) answer_bytes_max: u64,
    /// Payments claimed and not yet settled, by payer.
    pub(crate) unsettled: Unsettled,
    /// Cancelled when the gateway begins to stop: what is only tidied up is left to the next start.
    pub(crate) stopping: CancellationToken,
}

/// The credentials of each payer that are being verified, or are claimed and not settled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unsettled(Arc<Mutex<HashMap<Payer, HashSet<CredentialDigest>>>>);

/// A place among a payer's unsettled payments, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    unsettled: Unsettled,
    payer: Payer,
    credential: CredentialDigest,
}

/// Why there is no place.
enum NoPlace {
    /// Another request with the same credential has it: copies of one payment are verified once, and count as one.
    Taken,
    /// The payer has too many.
    Full,
}

impl Unsettled {
    fn take(&self, payer: &Payer, credential: CredentialDigest, max: usize) -> Result<Place, NoPlace> {
        let mut places = self.0.lock();
        let of_payer = places.entry(payer.clone()).or_default();
        if of_payer.contains(&credential) {
            return Err(NoPlace::Taken);
        }
        if of_payer.len() >= max {
            return Err(NoPlace::Full);
        }
        of_payer.insert(credential);
        Ok(Place { unsettled: self.clone(), payer: payer.clone(), credential })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.unsettled.0.lock();
        if let Some(of_payer) = places.get_mut(&self.payer) {
            of_payer.remove(&self.credential);
            if of_payer.is_empty() {
                places.remove(&self.payer);
            }
        }
    }
}

/// Why a request with a credential gets no permit.
pub(crate) enum Turned {
    /// A rail's definite no, before any claim: 402 and a fresh bill.
    Rejected(Rejected),
    /// The rail could not ask its chain: 503.
    Unverifiable(farebox_core::ports::BoxError),
    /// The books did not answer: 503.
    Books(LedgerUnavailable),
    /// The proof had its outcome before.
    Replayed(Payment),
    /// The payer has too much claimed and not settled: 429.
    TooMany,
    /// Somebody is at it, for longer than we wait: 503. No payment as long as it is not claimed.
    Busy(Option<Payment>),
    /// The proof is another request's: 409.
    Foreign(Payment),
}

impl From<LedgerUnavailable> for Turned {
    fn from(error: LedgerUnavailable) -> Self {
        Self::Books(error)
    }
}

/// Answers a request to a paid route.
pub(crate) async fn admit(worker: &Worker, tariff: &Arc<Tariff>, inbound: Inbound) -> Response<Body> {
    let till = &worker.shared.till;
    let desk = Desk::new(tariff, &inbound);
    // Neither spends anything: a HEAD that ran the upstream would sell the answer's head for nothing, or the call twice.
    match *inbound.request.method() {
        Method::OPTIONS => return desk.options(),
        Method::HEAD => return desk.unpaid(),
        _ => {}
    }
    let credential = match farebox_wire::credentials(inbound.request.headers()) {
        Ok(Some(credential)) => credential,
        Ok(None) => return desk.unpaid(),
        Err(malformed) => return desk.malformed(&malformed),
    };
    let time_needed = match tariff.settle {
        SettleWhen::BeforeUpstream => till.limits.settle_margin,
        SettleWhen::BeforeResponse => inbound.upstream_timeout() + till.limits.settle_margin,
    };
    let binding = Binding {
        route: tariff.route.clone(),
        method: inbound.request.method().as_str().to_owned(),
        resource: inbound.path_and_query(),
        caller: caller(&inbound),
    };
    let Some(rail) = till.rail(&credential) else { return desk.no_rail(&credential) };
    let ask = Ask { till, rail, credential: &credential, tariff, binding, time_needed, place: None };
    match ask.permit().await {
        Ok((permit, place)) => {
            let (till, upstreams, rail) = (till.clone(), worker.upstreams.clone(), rail.clone());
            fare::run(Fare { till, upstreams, rail, settle: tariff.settle, desk, permit, _place: place }, inbound).await
        }
        Err(turned) => answer::turned(till, &desk, turned).await,
    }
}

/// What proxies say of the caller. Not believed, only compared: behind a proxy that is not listed all callers have its address, and
/// this tells them apart, for it adds each caller's own.
fn forwarded(headers: &HeaderMap) -> Vec<u8> {
    let claims = [X_FORWARDED_FOR, FORWARDED].into_iter().flat_map(|name| headers.get_all(name).iter());
    claims.flat_map(|value| [value.as_bytes(), b"\n"].concat()).collect()
}

/// Who may have the outcome, by a secret of theirs if they sent one.
fn caller(inbound: &Inbound) -> CallerId {
    match inbound.request.headers().get(IDEMPOTENCY_KEY) {
        Some(key) => CallerId::from_key(key.as_bytes()),
        None => CallerId::from_address(inbound.client.addr, &forwarded(inbound.request.headers())),
    }
}

impl Till {
    fn rail(&self, credential: &Credential) -> Option<&Arc<dyn Rail>> {
        let name = match credential {
            Credential::X402(_) => RailName::X402,
        };
        self.rails.iter().find(|rail| rail.name() == name)
    }
}

/// One request's wish for a permit.
struct Ask<'a> {
    till: &'a Till,
    rail: &'a Arc<dyn Rail>,
    credential: &'a Credential,
    tariff: &'a Tariff,
    binding: Binding,
    /// How long the authorization must still live, so that no work is done for one that ends before it can be settled.
    time_needed: Duration,
    /// Taken before the first cost that the payer can cause.
    place: Option<Place>,
}

impl Ask<'_> {
    /// The permit. Waits, for a bounded time, while another request is at the same proof.
    async fn permit(mut self) -> Result<(Permit, Option<Place>), Turned> {
        let deadline = tokio::time::Instant::now() + self.till.limits.busy_wait;
        let mut pause = BUSY_PAUSE[0];
        loop {
            let busy = match self.try_permit().await? {
                Some(Claimed::Granted(permit)) => return Ok((permit, self.place)),
                Some(Claimed::Replayed(payment)) => return Err(Turned::Replayed(payment)),
                Some(Claimed::Foreign(payment)) => return Err(Turned::Foreign(payment)),
                Some(Claimed::Busy(payment)) => Some(payment),
                None => None,
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(Turned::Busy(busy));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BUSY_PAUSE[1]);
        }
    }

    /// The books are asked first, before the credential's time, price and chain: a payer who lost the answer must get it, or its
    /// payment's state, even when the authorization has run out, the price has moved, and the nonce is used, by us.
    ///
    /// `None` while another request is at the same credential and has not claimed it.
    async fn try_permit(&mut self) -> Result<Option<Claimed>, Turned> {
        let digest = self.credential.digest();
        let Some(known) = self.till.ledger.find(digest).await? else { return self.verify_and_claim().await };
        match known.clone().peek(&self.binding, digest, self.till.clock.now()) {
            Some(outcome) => Ok(Some(outcome)),
            // Settled, and its delivery broke off: the chain need not be asked.
            None if known.state == PaymentState::Settled => self.claim(self.again(known)).await.map(Some),
            // Claimed by a process that died: as good as new, if it is still good.
            None => self.verify_and_claim().await,
        }
    }

    async fn verify_and_claim(&mut self) -> Result<Option<Claimed>, Turned> {
        let checked = self.check().map_err(Turned::Rejected)?;
        // Anybody can write a signature that only a contract could accept: until the chain has accepted it, it takes none of
        // that payer's places.
        let proven = checked.signature == SignatureCheck::Recovered;
        if proven && let Some(stop) = self.take_place(&checked.payer) {
            return stop;
        }
        match self.rail.verify(&checked).await {
            Ok(()) => {}
            Err(VerifyError::Unavailable { source }) => return Err(Turned::Unverifiable(source)),
            Err(VerifyError::Rejected(rejected)) => {
                // Perhaps because this very credential was settled while we asked: then the books know it, and the next
                // look finds what became of it.
                return match self.till.ledger.find(self.credential.digest()).await? {
                    Some(known) if known.state != PaymentState::Claimed => Ok(Some(Claimed::Busy(known))),
                    _ => Err(Turned::Rejected(rejected)),
                };
            }
        }
        if let Some(stop) = self.take_place(&checked.payer) {
            return stop;
        }
        let now = self.till.clock.now();
        let mut random = [0; 10];
        self.till.entropy.fill(&mut random);
        let (id, lease) = (PaymentId::new(now, random), self.till.limits.lease);
        let claim = claim_of(&checked, self.binding.clone(), id, self.till.instance.clone(), lease, now);
        self.claim(claim).await.map(Some)
    }

    /// Takes a place for this credential, once; `Some` if there is none to have.
    fn take_place(&mut self, payer: &Payer) -> Option<Result<Option<Claimed>, Turned>> {
        if self.place.is_some() {
            return None;
        }
        let max = self.till.limits.unsettled_per_payer_max;
        match self.till.unsettled.take(payer, self.credential.digest(), max) {
            Ok(place) => self.place = Some(place),
            Err(NoPlace::Taken) => return Some(Ok(None)),
            Err(NoPlace::Full) => return Some(Err(Turned::TooMany)),
        }
        None
    }

    /// All that needs no IO. A bill from before a price change is good until it ends.
    fn check(&self) -> Result<Checked, Rejected> {
        let (tariff, now) = (self.tariff, self.till.clock.now());
        let checked = self.rail.check(self.credential, &tariff.offers, now).or_else(|rejected| {
            if tariff.earlier_offers.is_empty() || now >= tariff.earlier_until {
                return Err(rejected);
            }
            self.rail.check(self.credential, &tariff.earlier_offers, now).map_err(|_| rejected)
        })?;
        let left = checked.valid_until.since(now);
        if left < self.time_needed {
            return Err(Rejected {
                code: "invalid_exact_evm_payload_authorization_valid_before".into(),
                detail: format!(
                    "authorization ends in {} s, and serving and settling this request may take {} s; sign one that lasts longer",
                    left.as_secs(),
                    self.time_needed.as_secs()
                ),
            });
        }
        Ok(checked)
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, Turned> {
        let id = claim.id;
        match self.till.ledger.claim(claim).await {
            Ok(claimed) => Ok(claimed),
            Err(error) => {
                // It may have been made all the same. Nobody works on it, so give it back; failing that, its lease ends.
                for undo in [PaymentEvent::Released { code: "claim_unconfirmed".into() }, PaymentEvent::RunEnded] {
                    if let Err(second) = self.till.ledger.record(id, vec![undo], self.till.clock.now()).await {
                        debug!(payment = %id, error = &second as &dyn std::error::Error, "unconfirmed claim not given back");
                    }
                }
                Err(Turned::Books(error))
            }
        }
    }

    /// The claim that redeems a settled payment.
    fn again(&self, known: Payment) -> Claim {
        Claim {
            id: known.id,
            proof: known.proof,
            credential: known.credential,
            rail: known.rail,
            binding: known.binding,
            payer: known.payer,
            amount: known.amount,
            pay_to: known.pay_to,
            valid_until: known.valid_until,
            holder: self.till.instance.clone(),
            lease: self.till.limits.lease,
            now: self.till.clock.now(),
        }
    }
}

/// A refusal for books that did not answer.
pub(crate) fn books_unavailable() -> Refusal {
    Refusal::could_not_tell(
        "ledger_unavailable",
        "the books could not be read or written; send the identical request again",
        farebox_core::Charged::Unknown,
    )
}
