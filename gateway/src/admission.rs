//! The way of one paid request, from its head to the permit that lets it run. What happens after the claim is in `fare.rs`.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    Binding, Claim, Claimed, Credential, InstanceId, Payment, PaymentEvent, PaymentId, PaymentState, Permit, RailName,
    Refusal, Tariff,
    ports::{Checked, Clock, Entropy, Ledger, LedgerUnavailable, Rail, Rejected, VerifyError, claim_of},
};
use http::{Method, Response};
use tracing::debug;

use crate::{
    answer,
    body::Body,
    challenge::Desk,
    fare::{self, Fare},
    proxy::Inbound,
    worker::Worker,
};

/// How often a request that waits for another's outcome looks again: first and longest pause.
const BUSY_PAUSE: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(250)];

/// Bounds of a paid request's way.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    /// How long a request waits for the outcome of another with the same proof. \[10 s\]
    pub busy_wait: Duration,
    /// How long a claim is held without a sign of life. Longer than the longest upstream and settlement together. \[10 min\]
    pub lease: Duration,
    /// How long the body of an answer that is small enough to be kept may take; after it the payment is not charged. \[60 s\]
    pub answer_timeout: Duration,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self {
            busy_wait: Duration::from_secs(10),
            lease: Duration::from_secs(600),
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
    /// Somebody is at it, for longer than we wait: 503.
    Busy(Payment),
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
    let binding = Binding {
        route: tariff.route.clone(),
        method: inbound.request.method().as_str().to_owned(),
        resource: inbound.path_and_query(),
    };
    let Some(rail) = till.rail(&credential) else { return desk.no_rail(&credential) };
    match till.permit(rail, &credential, tariff, &binding).await {
        Ok(permit) => {
            let (till, upstreams, rail) = (till.clone(), worker.upstreams.clone(), rail.clone());
            fare::run(Fare { till, upstreams, rail, settle: tariff.settle, desk, permit }, inbound).await
        }
        Err(turned) => answer::turned(till, &desk, turned).await,
    }
}

impl Till {
    fn rail(&self, credential: &Credential) -> Option<&Arc<dyn Rail>> {
        let name = match credential {
            Credential::X402(_) => RailName::X402,
        };
        self.rails.iter().find(|rail| rail.name() == name)
    }

    /// The permit for a credential. Waits, for a bounded time, while another request is at the same proof.
    async fn permit(
        &self,
        rail: &Arc<dyn Rail>,
        credential: &Credential,
        tariff: &Tariff,
        binding: &Binding,
    ) -> Result<Permit, Turned> {
        let deadline = tokio::time::Instant::now() + self.limits.busy_wait;
        let mut pause = BUSY_PAUSE[0];
        loop {
            let busy = match self.try_permit(rail, credential, tariff, binding).await? {
                Claimed::Granted(permit) => return Ok(permit),
                Claimed::Replayed(payment) => return Err(Turned::Replayed(payment)),
                Claimed::Foreign(payment) => return Err(Turned::Foreign(payment)),
                Claimed::Busy(payment) => payment,
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
    async fn try_permit(
        &self,
        rail: &Arc<dyn Rail>,
        credential: &Credential,
        tariff: &Tariff,
        binding: &Binding,
    ) -> Result<Claimed, Turned> {
        match self.ledger.find(credential.digest()).await? {
            None => {
                let checked = self.check(rail, credential, tariff).map_err(Turned::Rejected)?;
                self.verify_and_claim(rail, &checked, binding).await
            }
            Some(known) => match known.clone().peek(binding, credential.digest(), self.clock.now()) {
                Some(outcome) => Ok(outcome),
                // Settled, and its delivery broke off: the chain need not be asked.
                None if known.state == PaymentState::Settled => self.claim(self.again(known)).await,
                // Claimed by a process that died: as good as new, if it is still good.
                None => {
                    let checked = self.check(rail, credential, tariff).map_err(Turned::Rejected)?;
                    self.verify_and_claim(rail, &checked, binding).await
                }
            },
        }
    }

    /// A bill from before a price change is good until it ends.
    fn check(&self, rail: &Arc<dyn Rail>, credential: &Credential, tariff: &Tariff) -> Result<Checked, Rejected> {
        let now = self.clock.now();
        rail.check(credential, &tariff.offers, now).or_else(|rejected| {
            if tariff.earlier_offers.is_empty() || now >= tariff.earlier_until {
                return Err(rejected);
            }
            rail.check(credential, &tariff.earlier_offers, now).map_err(|_| rejected)
        })
    }

    async fn verify_and_claim(
        &self,
        rail: &Arc<dyn Rail>,
        checked: &Checked,
        binding: &Binding,
    ) -> Result<Claimed, Turned> {
        match rail.verify(checked).await {
            Ok(()) => {}
            Err(VerifyError::Unavailable { source }) => return Err(Turned::Unverifiable(source)),
            Err(VerifyError::Rejected(rejected)) => {
                // Perhaps because this very credential was settled while we asked: then the books know it, and the next
                // look finds what became of it.
                return match self.ledger.find(checked.credential.digest()).await? {
                    Some(known) if known.state != PaymentState::Claimed => Ok(Claimed::Busy(known)),
                    _ => Err(Turned::Rejected(rejected)),
                };
            }
        }
        let now = self.clock.now();
        let mut random = [0; 10];
        self.entropy.fill(&mut random);
        let id = PaymentId::new(now, random);
        self.claim(claim_of(checked, binding.clone(), id, self.instance.clone(), self.limits.lease, now)).await
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, Turned> {
        let id = claim.id;
        match self.ledger.claim(claim).await {
            Ok(claimed) => Ok(claimed),
            Err(error) => {
                // It may have been made all the same. Nobody works on it, so give it back; failing that, its lease ends.
                let released = PaymentEvent::Released { code: "claim_unconfirmed".into() };
                if let Err(second) = self.ledger.record(id, vec![released], self.clock.now()).await {
                    debug!(payment = %id, error = &second as &dyn std::error::Error, "unconfirmed claim not released");
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
            holder: self.instance.clone(),
            lease: self.limits.lease,
            now: self.clock.now(),
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
