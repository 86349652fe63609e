//! The way of one paid request, from its head to the permit that lets it run. What happens after the claim is in `fare.rs`.

use std::{borrow::Cow, sync::Arc, time::Duration};

use farebox_core::{
    Amount, Arrived, AuditSubject, Binding, CallerId, Claim, Claimed, Credential, Delivery, Offer, Payer, Payment,
    PaymentEvent, PaymentState, Permit, RailName, Refusal, RequestId, Retry, SettleWhen, Tariff, TransactionId,
    ports::{
        BoxError, Checked, Claimant, LedgerUnavailable, Paid, Presented, Rail, Rejected, SignatureCheck, Timely,
        Verified, VerifyError, claim_of,
    },
};
use farebox_wire::PresentedCredential;
use http::{HeaderMap, HeaderName, Method, Response, header::FORWARDED};
use tracing::{Instrument as _, debug, info_span};

use crate::{
    answer,
    body::Body,
    challenge::Desk,
    fare::Fare,
    lookups::CallerLookups,
    places::{NoPlace, Place},
    proxy::Inbound,
    ride,
    till::Till,
    tokens::{self, TokenBid, TokenSale},
    worker::Worker,
};

/// draft-ietf-httpapi-idempotency-key-header.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How often a request that waits for another's outcome looks again: first and longest pause.
const BUSY_PAUSE: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(250)];

/// Of one transaction, the most transfers whose claims are looked up. Each is a read of the books.
const ARRIVALS_MAX: usize = 512;

/// The pauses of a request that waits for the outcome of another.
pub(crate) struct Pauses {
    until: tokio::time::Instant,
    next: Duration,
}

/// The wait has taken as long as it may.
pub(crate) struct WaitedEnough;

impl Pauses {
    pub(crate) fn of(till: &Till) -> Self {
        Self { until: tokio::time::Instant::now() + till.limits.busy_wait, next: BUSY_PAUSE[0] }
    }

    pub(crate) async fn wait(&mut self) -> Result<(), WaitedEnough> {
        if tokio::time::Instant::now() >= self.until {
            return Err(WaitedEnough);
        }
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(BUSY_PAUSE[1]);
        Ok(())
    }
}

/// Why a request with a credential gets no permit.
pub(crate) enum Turned {
    /// A definite no, before any claim: 402 and a fresh bill.
    Rejected(Rejected),
    /// The credential came too late to be believed, and the books do not know it: 402, and no bill, for what it claims may be there.
    Late(Rejected),
    /// A no, or not yet, with an answer of its own.
    Refused(Box<Refusal>),
    /// The money has come, and is the payer's credit: 402 and a fresh bill. With the rail's words for it, if they are known.
    Credited(Box<Payment>, Option<Rejected>),
    /// Everything that came by this transaction is claimed already: 409. One of those who did.
    AlreadyClaimed(Box<Payment>),
    /// The rail could not ask its chain: 503.
    Unverifiable(BoxError),
    /// The books did not answer: 503.
    Books(LedgerUnavailable),
    /// The proof had its outcome before.
    Replayed(Box<Payment>),
    /// The payer has too much under way: 429.
    TooMany,
    /// Somebody is at it, for longer than we wait: 503. No payment as long as it is not claimed.
    Busy(Option<Box<Payment>>),
    /// The proof is another request's: 409.
    Foreign(Box<Payment>),
}

impl From<LedgerUnavailable> for Turned {
    fn from(error: LedgerUnavailable) -> Self {
        Self::Books(error)
    }
}

impl From<VerifyError> for Turned {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Rejected(rejected) => Self::Rejected(rejected),
            VerifyError::Refused(refusal) => Self::Refused(refusal),
            VerifyError::Unavailable { source } => Self::Unverifiable(source),
        }
    }
}

/// Answers a request to a paid route.
pub(crate) async fn admit(worker: &Worker, tariff: &Arc<Tariff>, inbound: Inbound) -> Response<Body> {
    let till = &worker.shared.till;
    let desk = Desk::new(till, tariff, &inbound);
    // Neither spends anything: a HEAD that ran the upstream would sell the answer's head for nothing, or the call twice.
    match *inbound.request.method() {
        Method::OPTIONS => return desk.options(),
        Method::HEAD => return desk.unpaid().await,
        _ => {}
    }
    let sale = TokenSale::of(till, tariff);
    let taken = if sale.is_some() { farebox_wire::Tokens::Taken } else { farebox_wire::Tokens::NotTaken };
    let presented = match farebox_wire::credentials(inbound.request.headers(), taken) {
        Ok(None) => return desk.unpaid().await,
        Ok(Some(presented)) => presented,
        Err(malformed) => return desk.of_request(&till.new_request()).malformed(&malformed).await,
    };
    let request = till.new_request();
    let span = info_span!("request", id = %request);
    let desk = desk.of_request(&request);
    match (presented, sale) {
        (PresentedCredential::Proof(credential), _) => {
            serve(worker, desk, Bid { request, credential }, inbound).instrument(span).await
        }
        (PresentedCredential::Token(token), Some(sale)) => {
            tokens::serve(worker, desk, sale, TokenBid { request, token }, inbound).instrument(span).await
        }
        // Tokens of a route that takes none are not looked at.
        (PresentedCredential::Token(_), None) => desk.unpaid().await,
    }
}

/// A credential, and the request that brought it.
struct Bid {
    request: RequestId,
    credential: Credential,
}

async fn serve(worker: &Worker, desk: Desk, bid: Bid, inbound: Inbound) -> Response<Body> {
    let till = &worker.shared.till;
    let Some(rail) = till.rail(&bid.credential) else { return desk.no_rail(&bid.credential).await };
    let settle = desk.tariff().settle;
    let admitted = {
        let mut ask = Ask::new(till, rail, &desk, &bid, &inbound);
        match ask.permit().await {
            Ok(permit) => Ok((permit, ask.place)),
            Err(turned) => {
                ask.note(&turned);
                Err(turned)
            }
        }
    };
    match admitted {
        Ok((permit, place)) => {
            let (till, upstreams, rail) = (till.clone(), worker.upstreams.clone(), rail.clone());
            ride::run(Fare { till, upstreams, rail, settle, desk: Arc::new(desk), permit, _place: place }, inbound)
                .await
        }
        Err(turned) => answer::turned(till, &desk, turned).await,
    }
}

/// What proxies say of the caller. Not believed, only compared: behind a proxy that is not listed all callers have its address, and
/// this tells them apart, for it adds each caller's own.
pub(crate) fn forwarded(headers: &HeaderMap) -> Vec<u8> {
    let claims = [X_FORWARDED_FOR, FORWARDED].into_iter().flat_map(|name| headers.get_all(name).iter());
    claims.flat_map(|value| [value.as_bytes(), b"\n"].concat()).collect()
}

/// The caller's own name for the call, if they sent one.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Option<CallerId> {
    headers.get(IDEMPOTENCY_KEY).map(|key| CallerId::from_key(key.as_bytes()))
}

/// Who may have the outcome, by a secret of theirs if they sent one.
fn caller(inbound: &Inbound) -> CallerId {
    let headers = inbound.request.headers();
    idempotency_key(headers).unwrap_or_else(|| CallerId::from_address(inbound.client.addr, &forwarded(headers)))
}

/// One request's wish for a permit.
struct Ask<'a> {
    till: &'a Till,
    rail: &'a Arc<dyn Rail>,
    credential: &'a Credential,
    request: RequestId,
    binding: Binding,
    url: &'a str,
    offers: Cow<'a, [Offer]>,
    lookups: CallerLookups<'a>,
    /// How long an authorization must still live, so that no work is done for one that ends before it can be settled.
    time_needed: Duration,
    /// What the rail checked before it let the books be asked.
    authenticated: Option<Checked>,
    /// Who pays, once that is proven.
    payer: Option<Payer>,
    /// What they would pay.
    amount: Option<Amount>,
    /// Taken before the first cost that the payer can cause.
    place: Option<Place>,
}

impl<'a> Ask<'a> {
    fn new(till: &'a Till, rail: &'a Arc<dyn Rail>, desk: &'a Desk, bid: &'a Bid, inbound: &Inbound) -> Self {
        let tariff = desk.tariff();
        let time_needed = match tariff.settle {
            SettleWhen::BeforeUpstream => till.limits.settle_margin,
            SettleWhen::BeforeResponse => inbound.upstream_timeout() + till.limits.settle_margin,
        };
        Self {
            till,
            rail,
            credential: &bid.credential,
            request: bid.request.clone(),
            binding: Binding {
                route: tariff.route.clone(),
                method: inbound.request.method().as_str().to_owned(),
                resource: inbound.path_and_query(),
                caller: caller(inbound),
            },
            url: desk.url(),
            offers: desk.board().honoured(till.clock.now()),
            lookups: till.lookups.of_caller(inbound.client.addr),
            time_needed,
            authenticated: None,
            payer: None,
            amount: None,
            place: None,
        }
    }

    /// The permit. Waits, for a bounded time, while another request is at the same proof.
    async fn permit(&mut self) -> Result<Permit, Turned> {
        self.authenticate().await?;
        let mut pauses = Pauses::of(self.till);
        loop {
            let busy = match self.try_permit().await? {
                Some(Claimed::Granted(permit)) => return Ok(permit),
                Some(Claimed::Replayed(payment)) => return Err(Turned::Replayed(payment.into())),
                Some(Claimed::Foreign(payment)) => return Err(Turned::Foreign(payment.into())),
                Some(Claimed::Busy(payment)) => Some(payment.into()),
                None => None,
            };
            if pauses.wait().await.is_err() {
                return Err(Turned::Busy(busy));
            }
        }
    }

    /// Lets the rail find out who calls, if its credentials are found by less than what authorises them. Then the payer is the caller,
    /// wherever from.
    async fn authenticate(&mut self) -> Result<(), Turned> {
        let authenticated = self.rail.authenticate(&self.presented()).await?;
        self.authenticated = authenticated;
        if let Some(checked) = &self.authenticated {
            self.binding.caller = CallerId::from_payer(&checked.payer);
            self.payer = Some(checked.payer.clone());
        }
        Ok(())
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
        let checked = self.check()?;
        if let Some(stop) = self.payer.is_some().then(|| self.take_place(&checked.payer)).flatten() {
            return stop;
        }
        match self.rail.verify(&checked, &self.lookups).await {
            Ok(Verified::Authorised(proof)) => {
                self.payer = Some(checked.payer.clone());
                if let Some(stop) = self.take_place(&checked.payer) {
                    return stop;
                }
                self.claim(claim_of(&checked, proof, None, self.claimant())).await.map(Some)
            }
            Ok(Verified::Paid(paid)) => {
                let claimed = self.claim_arrival(&checked, paid).await;
                // The money is there: what comes now costs no gas, and another payment of this payer need not wait for it.
                self.place = None;
                claimed.map(Some)
            }
            Err(VerifyError::Rejected(rejected)) => {
                // Perhaps because this very credential was settled while we asked: then the books know it, and the next
                // look finds what became of it.
                match self.till.ledger.find(self.credential.digest()).await? {
                    Some(known) if known.state != PaymentState::Claimed => Ok(Some(Claimed::Busy(known))),
                    _ => Err(Turned::Rejected(rejected)),
                }
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Takes a place for this credential, once; `Some` if there is none to have.
    fn take_place(&mut self, payer: &Payer) -> Option<Result<Option<Claimed>, Turned>> {
        if self.place.is_some() {
            return None;
        }
        let max = self.till.limits.unsettled_per_payer_max;
        match self.till.places.take(payer, self.credential.digest(), max) {
            Ok(place) => self.place = Some(place),
            Err(NoPlace::Taken) => return Some(Ok(None)),
            Err(NoPlace::Full) => return Some(Err(Turned::TooMany)),
        }
        None
    }

    /// All that needs no IO.
    fn check(&mut self) -> Result<Checked, Turned> {
        let mut checked = match &self.authenticated {
            Some(checked) => checked.clone(),
            None => self.rail.check(&self.presented()).map_err(Turned::Rejected)?,
        };
        // Anybody can write a signature that only a contract could accept: until the chain has accepted it, it takes none of
        // that payer's places, and says nothing of that payer in the audit log.
        if checked.signature == SignatureCheck::Recovered {
            self.payer = Some(checked.payer.clone());
        }
        self.amount = Some(checked.offer.amount.clone());
        if let Timely::No(late) = checked.timely {
            return Err(Turned::Late(late));
        }
        if self.credential.rail() == RailName::X402 {
            self.check_time_left(&checked).map_err(Turned::Rejected)?;
        }
        if self.till.marked.contains(&checked.payer) {
            checked.offer.finality = self.rail.deepest(checked.offer.network());
        }
        Ok(checked)
    }

    fn check_time_left(&self, checked: &Checked) -> Result<(), Rejected> {
        let left = checked.valid_until.since(self.till.clock.now());
        if left >= self.time_needed {
            return Ok(());
        }
        Err(Rejected {
            code: "invalid_exact_evm_payload_authorization_valid_before".into(),
            detail: format!(
                "authorization ends in {} s, and serving and settling this request may take {} s; sign one that lasts longer",
                left.as_secs(),
                self.time_needed.as_secs()
            ),
        })
    }

    /// Claims the first of what came that nobody has claimed. Of what others have, the books are only read.
    async fn claim_arrival(&self, checked: &Checked, paid: Paid) -> Result<Claimed, Turned> {
        let Paid { transaction, block, arrivals, purpose } = paid;
        let digest = self.credential.digest();
        let mut taken = None;
        for arrival in arrivals.into_iter().take(ARRIVALS_MAX) {
            if let Some(holder) = self.till.ledger.find_proof(&arrival.proof).await?
                && holder.digest() != digest
            {
                taken = Some(holder);
                continue;
            }
            let (transaction, units, purpose) = (transaction.clone(), arrival.units, purpose.clone());
            let arrived = Arrived { transaction, block, units, purpose };
            match self.claim(claim_of(checked, arrival.proof, Some(arrived), self.claimant())).await? {
                // Somebody was first between the two questions.
                Claimed::Foreign(holder) if holder.digest() != digest => taken = Some(holder),
                Claimed::Granted(permit) if permit.payment().delivery == Delivery::Credited => {
                    let why = match &checked.timely {
                        Timely::ForCredit(why) => Some(why.clone()),
                        Timely::Yes | Timely::No(_) => None,
                    };
                    return Err(Turned::Credited(permit.into_payment().into(), why));
                }
                claimed => return Ok(claimed),
            }
        }
        match taken {
            Some(holder) => Err(Turned::AlreadyClaimed(holder.into())),
            None => Err(Turned::Unverifiable("the rail found a payment without any money".into())),
        }
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

    fn claimant(&self) -> Claimant {
        Claimant {
            id: self.till.new_payment(),
            request: self.request.clone(),
            binding: self.binding.clone(),
            holder: self.till.instance.clone(),
            lease: self.till.limits.lease,
            now: self.till.clock.now(),
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
            finality: known.finality,
            arrived: None,
            request: self.request.clone(),
            holder: self.till.instance.clone(),
            lease: self.till.limits.lease,
            now: self.till.clock.now(),
        }
    }

    /// Tells the audit log of a definite no to a payer who is known.
    fn note(&self, turned: &Turned) {
        let (reason, payer) = match turned {
            Turned::Rejected(no) | Turned::Late(no) => (no.code.clone(), self.payer.as_ref()),
            Turned::Refused(no) if no.retry != Retry::SameProof => (no.code.clone(), self.payer.as_ref()),
            Turned::AlreadyClaimed(_) => (answer::ALREADY_CLAIMED.into(), self.payer.as_ref()),
            // The books know the very signature.
            Turned::Foreign(known) => (answer::foreign_code(known).into(), Some(&known.payer)),
            _ => return,
        };
        let Some(payer) = payer else { return };
        let subject = AuditSubject {
            payment: None,
            request: self.request.clone(),
            rail: self.credential.rail(),
            route: self.binding.route.clone(),
            method: self.binding.method.clone(),
            resource: self.binding.resource.clone(),
            payer: Some(payer.clone()),
            amount: self.amount.clone(),
            credit: None,
            transaction: match self.credential {
                Credential::Transfer(transfer) => {
                    Some(TransactionId::new(format!("0x{}", hex::encode(transfer.code.transaction))))
                }
                Credential::X402(_) | Credential::L402(_) => None,
            },
        };
        self.till.refused.note(subject, reason, self.till.clock.now());
    }

    fn presented(&self) -> Presented<'_> {
        Presented {
            credential: self.credential,
            route: &self.binding.route,
            method: &self.binding.method,
            url: self.url,
            offers: &self.offers,
            now: self.till.clock.now(),
            lookups: &self.lookups,
        }
    }
}
