//! The way of one paid request, from its head to the permit that lets it run. What happens after the claim is in `fare.rs`.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    Binding, Claimed, Credential, InstanceId, Payment, PaymentId, PaymentState, Permit, Refusal, Tariff,
    ports::{Checked, Clock, Entropy, Ledger, LedgerUnavailable, Rail, Rejected, VerifyError, claim_of},
};
use http::{Method, Response};

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
    let Some((rail, checked)) = till.check(&credential, tariff) else { return desk.no_rail(&credential) };
    let permit = match checked {
        Ok(checked) => till.permit(rail, &checked, &binding).await,
        Err(rejected) => Err(Turned::Rejected(rejected)),
    };
    match permit {
        Ok(permit) => {
            fare::run(
                Fare {
                    till: till.clone(),
                    upstreams: worker.upstreams.clone(),
                    rail: rail.clone(),
                    settle: tariff.settle,
                    desk,
                    permit,
                },
                inbound,
            )
            .await
        }
        Err(turned) => answer::turned(till, &desk, turned).await,
    }
}

impl Till {
    /// The rail of a credential, and what its check without IO says. A bill from before a price change is good until it ends.
    fn check(&self, credential: &Credential, tariff: &Tariff) -> Option<(&Arc<dyn Rail>, Result<Checked, Rejected>)> {
        let name = match credential {
            Credential::X402(_) => farebox_core::RailName::X402,
        };
        let rail = self.rails.iter().find(|rail| rail.name() == name)?;
        let now = self.clock.now();
        let checked = rail.check(credential, &tariff.offers, now).or_else(|rejected| {
            if tariff.earlier_offers.is_empty() || now >= tariff.earlier_until {
                return Err(rejected);
            }
            rail.check(credential, &tariff.earlier_offers, now).map_err(|_| rejected)
        });
        Some((rail, checked))
    }

    /// The permit for a checked credential. The books are asked before the chain: a settled authorization fails there, and a
    /// payer who lost the answer must get it, not a new bill.
    async fn permit(&self, rail: &Arc<dyn Rail>, checked: &Checked, binding: &Binding) -> Result<Permit, Turned> {
        let deadline = tokio::time::Instant::now() + self.limits.busy_wait;
        let mut pause = BUSY_PAUSE[0];
        loop {
            let busy = match self.try_permit(rail, checked, binding).await? {
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

    async fn try_permit(&self, rail: &Arc<dyn Rail>, checked: &Checked, binding: &Binding) -> Result<Claimed, Turned> {
        let known = self.ledger.find(&checked.proof).await?;
        let settled = known.as_ref().is_some_and(|payment| payment.state == PaymentState::Settled);
        if let Some(outcome) =
            known.and_then(|known| known.peek(binding, checked.credential.digest(), self.clock.now()))
        {
            return Ok(outcome);
        }
        // A settled payment whose delivery broke: its nonce is used, by us, and the chain would say no.
        if !settled {
            match rail.verify(checked).await {
                Ok(()) => {}
                Err(VerifyError::Unavailable { source }) => return Err(Turned::Unverifiable(source)),
                Err(VerifyError::Rejected(rejected)) => return self.rejected(checked, binding, rejected).await,
            }
        }
        let now = self.clock.now();
        let mut random = [0; 10];
        self.entropy.fill(&mut random);
        let id = PaymentId::new(now, random);
        let claim = claim_of(checked, binding.clone(), id, self.instance.clone(), self.limits.lease, now);
        Ok(self.ledger.claim(claim).await?)
    }

    /// The chain said no. Perhaps because the same proof was settled while we asked: the books decide.
    async fn rejected(&self, checked: &Checked, binding: &Binding, rejected: Rejected) -> Result<Claimed, Turned> {
        let Some(known) = self.ledger.find(&checked.proof).await? else { return Err(Turned::Rejected(rejected)) };
        match known.clone().peek(binding, checked.credential.digest(), self.clock.now()) {
            Some(outcome) => Ok(outcome),
            None if known.state == PaymentState::Settled => Ok(Claimed::Busy(known)),
            None => Err(Turned::Rejected(rejected)),
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
