//! Paying: hold the request, note, send, send again, and sign anew only where no money can be lost by it.

use std::{error::Error, sync::Arc, time::Duration};

use farebox_core::{Credential, PaymentId, Timestamp, TransactionId};
use http::{HeaderMap, StatusCode, header};
use reqwest::Response;
use tokio::time::Instant;

use crate::{
    agent::{Agent, Charge, Fetched, Note, PaymentMade, Started},
    bill::{self, BILL_BODY_BYTES_MAX, Bill, SettlementWord},
    delivery,
    entry::{Authorization, Entry, Standing},
    error::{FetchError, TransportError},
    journal::{Held, JournalError},
    policy::Outstanding,
    request::Replayable,
    verdict::{Cure, Problem, Verdict, judge, retry_after},
};

/// How often one fetch signs: once, and once more if the first is refused without a charge. A seller that keeps asking for fresh
/// signatures is collecting them.
const SIGNATURES_MAX: u32 = 2;

/// What presenting one authorization came to, all attempts together.
enum Presented {
    Answer { response: Response, settlement: Option<SettlementWord> },
    Declined { reason: String, cure: Cure, bill: Option<Bill> },
    Spent { reason: String, transaction: Option<TransactionId> },
    Unclear { attempts: u32, last: String },
}

/// What one attempt came to.
enum Attempt {
    Done(Presented),
    Again { why: String, after: Option<Duration> },
}

impl Agent {
    /// Goes on with a payment that is open in the journal; `None` if there is none any more.
    pub(crate) async fn resume(&self, request: &Replayable, started: Started) -> Result<Option<Fetched>, FetchError> {
        let held = self.hold(request, started).await?;
        let Some(entry) = self.unfinished(&held, started).await? else { return Ok(None) };
        self.finish(request, &held, entry, 0, started).await.map(Some)
    }

    /// Pays the bill, unless a payment for this request has been signed meanwhile: then that one is sent.
    pub(crate) async fn pay(&self, request: &Replayable, bill: &Bill, started: Started) -> Result<Fetched, FetchError> {
        let held = self.hold(request, started).await?;
        if let Some(entry) = self.unfinished(&held, started).await? {
            return self.finish(request, &held, entry, 0, started).await;
        }
        let authorization = self.sign(bill, Outstanding::default()).await?;
        let entry = Entry::new(request.fingerprint(), &request.method, &request.url, authorization);
        held.store(&entry).await?;
        self.finish(request, &held, entry, 1, started).await
    }

    async fn hold(&self, request: &Replayable, started: Started) -> Result<Arc<Held>, JournalError> {
        let wait = started.until.saturating_duration_since(Instant::now());
        Ok(Arc::new(self.parts.journal.hold(&request.fingerprint(), wait).await?))
    }

    /// What is signed for this request and not over: left by a crash or a lost answer, or finished by another agent while this
    /// call was under way, whose payment is this call's too.
    async fn unfinished(&self, held: &Arc<Held>, started: Started) -> Result<Option<Entry>, JournalError> {
        let now = self.parts.clock.now();
        match held.load().await? {
            Some(entry) if entry.is_over(now) || entry.is_past_redelivery(now) => held.file(&entry).await?,
            Some(entry) => return Ok(Some(entry)),
            None => {}
        }
        held.paid_after(started.at).await
    }

    /// Presents the entry's authorization until its outcome is clear. A crash at any point leaves the entry open, and its bytes
    /// are sent again.
    async fn finish(
        &self,
        request: &Replayable,
        held: &Arc<Held>,
        mut entry: Entry,
        mut signatures: u32,
        started: Started,
    ) -> Result<Fetched, FetchError> {
        let mut notes = Vec::new();
        loop {
            match self.present(request, &entry.current, started).await? {
                Presented::Answer { response, settlement } => {
                    let made = Made { signatures, notes };
                    return Ok(self.answered(request, held, entry, response, settlement, made).await);
                }
                Presented::Unclear { attempts, last } => return Err(FetchError::OutcomeUnclear { attempts, last }),
                Presented::Spent { reason, transaction } => {
                    return Err(FetchError::ChargedNotDelivered { reason, transaction });
                }
                // "Not charged" of something that was answered as charged before: the money is gone all the same.
                Presented::Declined { reason, .. } if matches!(entry.current.standing, Standing::Charged { .. }) => {
                    let transaction = charged_transaction(&entry);
                    return Err(FetchError::ChargedNotDelivered { reason, transaction });
                }
                Presented::Declined { reason, cure, bill } => {
                    entry.current.standing = Standing::Declined { reason: reason.clone() };
                    held.store(&entry).await?;
                    let next = self.sign_again(&entry, bill, cure, signatures, started, &mut notes);
                    let Some(next) = next.await.map_err(|error| after_refusal(error, &reason))? else {
                        return Err(FetchError::Refused { reason, then: None });
                    };
                    entry.supersede(next);
                    held.store(&entry).await?;
                    signatures += 1;
                }
            }
        }
    }

    /// Sends the identical bytes with growing waits until the outcome is clear, the deadline, or the last attempt.
    async fn present(
        &self,
        request: &Replayable,
        authorization: &Authorization,
        started: Started,
    ) -> Result<Presented, FetchError> {
        let mut seed = [0; 8];
        self.parts.entropy.fill(&mut seed);
        let mut waits = self.parts.retry.waits(u64::from_ne_bytes(seed));
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (last, after) = match self.attempt(request, authorization, started).await {
                Ok(Attempt::Done(presented)) => return Ok(presented),
                Ok(Attempt::Again { why, after }) => (why, after),
                Err(error) => (chain(&error), None),
            };
            tracing::debug!(attempts, last, "the outcome of a payment is unclear");
            let Some(wait) = waits.next() else { return Ok(Presented::Unclear { attempts, last }) };
            let wait = wait.max(after.unwrap_or_default());
            if started.until.saturating_duration_since(Instant::now()) <= wait {
                return Ok(Presented::Unclear { attempts, last });
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(
        &self,
        request: &Replayable,
        authorization: &Authorization,
        started: Started,
    ) -> Result<Attempt, TransportError> {
        let response = self.send(request.to_request(Some(&authorization.header)), started).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let settlement = SettlementWord::read(&headers);
        if status.is_success() {
            return Ok(Attempt::Done(Presented::Answer { response, settlement }));
        }
        let peeked = if speaks_of_money(status, &headers) {
            delivery::peek(response, BILL_BODY_BYTES_MAX, started.until).await?
        } else {
            return Ok(Attempt::Done(Presented::Answer { response, settlement }));
        };
        let problem = peeked.whole().map(Problem::read).unwrap_or_default();
        Ok(match judge(status, &problem, settlement.as_ref()) {
            Verdict::Deliver => Attempt::Done(Presented::Answer { response: peeked.into_response(), settlement }),
            Verdict::Resend { why } => {
                let after = headers.get(header::RETRY_AFTER);
                let after = after.and_then(|value| retry_after(value.as_bytes(), self.parts.clock.now()));
                Attempt::Again { why, after }
            }
            Verdict::Spent { reason } => {
                let transaction = settlement.and_then(|word| word.transaction_id());
                Attempt::Done(Presented::Spent { reason, transaction })
            }
            Verdict::Declined { reason, cure } => {
                let billed = status == StatusCode::PAYMENT_REQUIRED;
                let bill = billed.then(|| bill::read(&headers, peeked.whole()).ok()).flatten();
                Attempt::Done(Presented::Declined { reason, cure, bill })
            }
        })
    }

    async fn sign(&self, bill: &Bill, outstanding: Outstanding) -> Result<Authorization, FetchError> {
        let parts = &self.parts;
        let choice = parts.policy.choose(bill, outstanding).map_err(FetchError::Policy)?;
        let offer = choice.asked.offer.clone();
        let mut signed_for = offer.clone();
        signed_for.max_timeout_s = signed_for.max_timeout_s.clamp(1, parts.policy.valid_for_max.as_secs().max(1));
        let now = parts.clock.now();
        let Credential::X402(credential) = parts.wallet.authorize(&signed_for, now).await?;
        let expires_at = Timestamp::from_unix_s(credential.authorization.valid_before);
        let header = bill::credential_header(bill, choice.asked, &credential);
        let asset = choice.acceptable.asset;
        Ok(Authorization { header, offer, asset, signed_at: now, expires_at, standing: Standing::Open })
    }

    /// A new authorization in place of one the seller refused, or `None` if a new one would not help or is one too many.
    async fn sign_again(
        &self,
        entry: &Entry,
        bill: Option<Bill>,
        cure: Cure,
        signatures: u32,
        started: Started,
        notes: &mut Vec<Note>,
    ) -> Result<Option<Authorization>, FetchError> {
        let Some(bill) = bill else { return Ok(None) };
        let refused = &entry.current;
        let still_offered = bill.requirements.iter().any(|asked| asked.offer == refused.offer);
        let may_help = match cure {
            Cure::Renew => true,
            Cure::IfTermsChanged => !still_offered,
            Cure::None => false,
        };
        if !may_help || signatures >= SIGNATURES_MAX {
            return Ok(None);
        }
        let outstanding = entry.outstanding(self.parts.clock.now(), started.at);
        let next = self.sign(&bill, outstanding).await?;
        if next.offer.pay_to != refused.offer.pay_to {
            notes.push(Note::PayToChanged { was: refused.offer.pay_to.clone(), now: next.offer.pay_to.clone() });
        }
        if next.worth() != refused.worth() {
            notes.push(Note::PriceChanged { was: refused.worth(), now: next.worth() });
        }
        Ok(Some(next))
    }

    /// Notes what the answer says of the money, and hands the answer over.
    async fn answered(
        &self,
        request: &Replayable,
        held: &Arc<Held>,
        mut entry: Entry,
        response: Response,
        settlement: Option<SettlementWord>,
        made: Made,
    ) -> Fetched {
        let Made { signatures, mut notes } = made;
        let receipt = settlement.filter(|word| word.success);
        let payment = payment_id(response.headers());
        let until = entry.current.expires_at;
        let charge = match &receipt {
            Some(word) => Charge::Charged { transaction: word.transaction_id() },
            None if response.status().is_success() => Charge::NoReceipt { until },
            None => Charge::NotSettled { until },
        };
        if response.status().is_redirection() {
            notes.push(Note::RedirectNotFollowed);
        }
        let mut response = response;
        if !matches!(charge, Charge::NotSettled { .. }) {
            let transaction = receipt.and_then(|word| word.transaction_id()).or_else(|| charged_transaction(&entry));
            let at = entry.charged_at().unwrap_or_else(|| self.parts.clock.now());
            entry.current.standing = Standing::Charged { at, transaction, payment };
            // The answer is there and must reach the caller. An entry that could not be updated stays open, which costs a resend of
            // the same bytes at most.
            if let Err(error) = held.store(&entry).await {
                tracing::warn!(error = chain(&error), "a paid answer could not be noted in the journal");
            }
            let (journal, fingerprint, signed_at) =
                (self.parts.journal.clone(), entry.fingerprint.clone(), entry.signed_at());
            response = delivery::watched(response, &request.method, move || {
                if let Err(error) = journal.file(&fingerprint, signed_at) {
                    tracing::warn!(error = chain(&error), "a delivered payment could not be filed in the journal");
                }
            });
        }
        let Authorization { offer, asset, .. } = &entry.current;
        let (offer, asset, price) = (offer.clone(), asset.clone(), entry.current.worth());
        Fetched { response, payment: Some(PaymentMade { offer, asset, price, charge, payment, signatures, notes }) }
    }
}

struct Made {
    signatures: u32,
    notes: Vec<Note>,
}

/// The body of a refusal says what became of the money; an upstream's own error page, which may be long, does not.
fn speaks_of_money(status: StatusCode, headers: &HeaderMap) -> bool {
    let type_of = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let problem = type_of.trim().to_ascii_lowercase().starts_with("application/problem+json");
    problem || matches!(status.as_u16(), 402 | 408 | 409 | 425 | 429 | 502 | 503 | 504)
}

/// A second signature that the policy forbids is told as a refusal by the seller, with the policy's reasons.
fn after_refusal(error: FetchError, reason: &str) -> FetchError {
    match error {
        FetchError::Policy(rules) => FetchError::Refused { reason: reason.to_owned(), then: Some(rules) },
        other => other,
    }
}

fn charged_transaction(entry: &Entry) -> Option<TransactionId> {
    match &entry.current.standing {
        Standing::Charged { transaction, .. } => transaction.clone(),
        _ => None,
    }
}

/// Our gateway's name for the payment.
fn payment_id(headers: &HeaderMap) -> Option<PaymentId> {
    headers.get("farebox-payment-id")?.to_str().ok()?.parse().ok()
}

/// An error and its sources in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
