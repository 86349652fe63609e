//! Spending a token: it is sent with the request until the seller gives an answer that is one, and what the seller says of it is noted.

use std::time::Duration;

use farebox_core::{Charged, PaymentId, Retry, TransactionId};
use farebox_wire::l402;
use http::{StatusCode, header};
use reqwest::Response;

use super::{
    Finished, L402BillError, LightningMade, Run,
    purchase::{Purchase, TokenStanding},
    verdict::{Unserved, judge},
};
use crate::{
    agent::{Charge, Fetched, Note, PaymentMade},
    bill::{self, BILL_BODY_BYTES_MAX, Billed},
    delivery,
    entry::{SecretHeader, Standing},
    error::{FetchError, TransportError, UnreadableBill},
    pay::{chain, payment_id, speaks_of_money},
    verdict::{Problem, retry_after},
};

/// How often a seller may bill again, without a word on why: its node may be slower than the payer's, and one 402 too many must not take the calls
/// away that are paid for.
const BILLED_MAX: u32 = 4;

/// What one attempt came to.
enum Attempt {
    Answer(Response),
    Unserved(Refusal),
}

/// An answer that is not the caller's.
struct Refusal {
    unserved: Unserved,
    /// Whether the seller wants the same again, so that it did nothing yet.
    is_invited: bool,
    why: String,
    charged: Option<Charged>,
    after: Option<Duration>,
    payment: Option<PaymentId>,
    billed: Option<Box<Billed>>,
}

impl Run<'_> {
    /// Sends the token until its fate is clear, the deadline, or the last attempt.
    pub(super) async fn spend(&mut self) -> Result<Finished, FetchError> {
        let headers = self.headers()?;
        let (mut waits, mut billed) = (self.agent.waits(), 0);
        loop {
            let (why, after, payment, is_harmless) = match self.attempt(&headers).await {
                Ok(Attempt::Answer(response)) => return Ok(Finished::Answer(Box::new(self.answered(response).await))),
                Ok(Attempt::Unserved(refusal)) => {
                    let is_billed = refusal.unserved == Unserved::Billed;
                    billed += u32::from(is_billed);
                    let is_billed_again = is_billed && self.is_trusted() && billed < BILLED_MAX;
                    if refusal.unserved != Unserved::Again && !is_billed_again {
                        return self.refused(refusal).await;
                    }
                    (refusal.why, refusal.after, refusal.payment, refusal.is_invited || is_billed)
                }
                Err(error) => (chain(&error), None, None, error.is_before_sending()),
            };
            tracing::debug!(payment_hash = %self.purchase.payment_hash(), why, "a token is not answered for yet");
            let wait = waits.next().map(|wait| wait.max(after.unwrap_or_default()));
            // What can be done twice is sent twice only if it was not done: few sellers know our key.
            let may_repeat = is_harmless || self.request.is_idempotent();
            match wait.filter(|wait| may_repeat && *wait < self.left()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => {
                    let transaction = Some(self.transaction());
                    return Err(FetchError::ChargedNotServed { reason: why, transaction, payment });
                }
            }
        }
    }

    /// Whether a bill in answer to the token is likely a mistake.
    fn is_trusted(&self) -> bool {
        !self.is_held || (self.purchase.is_of_path(self.request) && !self.purchase.is_doubted())
    }

    fn headers(&self) -> Result<[SecretHeader; 2], FetchError> {
        let Some(token) = self.purchase.paid() else {
            let last = "the journal has no preimage".to_owned();
            return Err(super::LightningError::Unclear { payment_hash: self.purchase.payment_hash(), last }.into());
        };
        let Purchase { scheme, macaroon, .. } = &self.purchase;
        let (name, value) = l402::authorization(*scheme, &macaroon.0, &token.preimage.0)
            .map_err(|_| UnreadableBill::L402(L402BillError::Macaroon))?;
        Ok([SecretHeader::new(name, value), self.entry.current.idempotency_key.clone()])
    }

    async fn attempt(&self, headers: &[SecretHeader; 2]) -> Result<Attempt, TransportError> {
        let [token, key] = headers;
        let request = self.request.to_request(&[token, key]);
        let response = self.agent.send_until(request, self.until).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let may_be_ours = speaks_of_money(status, &headers) || status == StatusCode::BAD_REQUEST;
        if status.is_success() || !may_be_ours {
            return Ok(Attempt::Answer(response));
        }
        let peeked = delivery::peek(response, BILL_BODY_BYTES_MAX, self.until).await?;
        let problem = peeked.whole().map(Problem::read).unwrap_or_default();
        let Some(unserved) = judge(status, &problem) else {
            return Ok(Attempt::Answer(peeked.into_response()));
        };
        let after = headers.get(header::RETRY_AFTER);
        let after = after.and_then(|value| retry_after(value.as_bytes(), self.agent.parts.clock.now()));
        let why = problem.reason().unwrap_or_else(|| format!("the seller answered {status}"));
        let billed = match status {
            StatusCode::PAYMENT_REQUIRED => bill::read(&headers, peeked.whole()).ok().map(Box::new),
            _ => None,
        };
        let is_invited = problem.retry() == Some(Retry::SameProof);
        let (charged, payment) = (problem.charged(), payment_id(&headers));
        Ok(Attempt::Unserved(Refusal { unserved, is_invited, why, charged, after, payment, billed }))
    }

    /// Notes what the seller says of the token. A held one costs nothing by it, and the request may be paid for anew; for one that was bought for this very
    /// request the money is gone.
    async fn refused(&mut self, refusal: Refusal) -> Result<Finished, FetchError> {
        let Refusal { unserved, why, charged, mut billed, .. } = refusal;
        let now = self.agent.parts.clock.now();
        let is_of_path = self.purchase.is_of_path(self.request);
        let is_promised = self.purchase.calls_left() > Some(0) || self.purchase.facts.valid_until.is_some();
        match unserved {
            Unserved::Over if is_of_path => self.purchase.mark_spent(now, &why),
            Unserved::Billed if is_of_path && !is_promised => self.purchase.mark_spent(now, &why),
            // Who answers at another path may be another than who sold it, and has no say in its end.
            Unserved::Over | Unserved::Billed => self.purchase.doubt(now),
            Unserved::Again | Unserved::OtherRequest | Unserved::Gone => {}
        }
        self.store_purchase().await;
        let token = self.purchase.payment_hash();
        if let Some(billed) = billed.as_mut().filter(|_| unserved == Unserved::Billed && self.purchase.is_doubted()) {
            let calls_left = self.purchase.calls_left();
            billed.notes.push(Note::TokenNotTaken { payment_hash: token, calls_left });
        }
        if self.is_held && unserved != Unserved::Gone {
            self.held.take_back(&mut self.entry).await?;
            return Ok(Finished::Refused { token, billed });
        }
        if self.is_held && charged == Some(Charged::No) {
            self.held.take_back(&mut self.entry).await?;
            return Err(FetchError::Refused { reason: why, then: None, valid_until: None });
        }
        if self.entry.charged_at().is_none() {
            let (at, transaction) = (self.agent.parts.clock.now(), Some(self.transaction()));
            self.entry.current.standing = Standing::Charged { at, transaction, payment: None };
            self.held.store(&self.entry).await?;
        }
        Err(FetchError::ChargedNotDelivered { reason: why, transaction: Some(self.transaction()) })
    }

    /// Notes the answer and hands it over. One of 500 or more leaves the entry as it is: the same token may yet get a better one.
    async fn answered(&mut self, mut response: Response) -> Fetched {
        let payment = payment_id(response.headers());
        let calls_left = calls_left(&response);
        let mut notes = std::mem::take(&mut self.notes);
        if response.status().is_redirection() {
            notes.push(Note::RedirectNotFollowed);
        }
        if response.status().as_u16() < 500 {
            let now = self.agent.parts.clock.now();
            match calls_left {
                // Who answers at another path may be another than who sold it, and has no say in its end.
                Some(0) if !self.purchase.is_of_path(self.request) => self.purchase.doubt(now),
                Some(0) => self.purchase.mark_spent(now, "no call is left"),
                calls_left => self.purchase.set_standing(TokenStanding::Good { calls_left }),
            }
            self.store_purchase().await;
            let at = self.entry.charged_at().unwrap_or(now);
            self.entry.current.standing = Standing::Charged { at, transaction: Some(self.transaction()), payment };
            // The answer is there and must reach the caller. An entry that could not be updated stays open, which costs one more use of the
            // same token with the same key at most.
            if let Err(error) = self.held.store(&self.entry).await {
                tracing::warn!(error = chain(&error), "a paid answer could not be noted in the journal");
            }
            let (journal, fingerprint) = (self.agent.parts.journal.clone(), self.entry.fingerprint.clone());
            let signed_at = self.entry.signed_at();
            response = delivery::watched(response, &self.request.method, move || {
                if let Err(error) = journal.file(&fingerprint, signed_at) {
                    tracing::warn!(error = chain(&error), "a delivered payment could not be filed in the journal");
                }
            });
        }
        let made = &self.entry.current;
        let charge =
            if self.is_held { Charge::Prepaid } else { Charge::Charged { transaction: Some(self.transaction()) } };
        let lightning = LightningMade {
            payment_hash: self.purchase.payment_hash(),
            fee_msat: self.purchase.paid().and_then(|token| token.fee_msat),
            held: self.is_held,
            calls_left,
            valid_until: self.purchase.facts.valid_until,
        };
        let payment = PaymentMade {
            offer: made.offer.clone(),
            asset: made.asset.clone(),
            price: made.worth(),
            charge,
            payment,
            signatures: self.payments,
            notes,
            transfer: None,
            lightning: Some(lightning),
        };
        Fetched { response, payment: Some(payment) }
    }

    /// The payment hash, which is what the books of a seller name the payment by.
    fn transaction(&self) -> TransactionId {
        TransactionId::new(self.purchase.payment_hash().to_string())
    }
}

/// How many calls are left in the token, by the seller's word.
fn calls_left(response: &Response) -> Option<u32> {
    let value = response.headers().get("farebox-pass-remaining")?;
    std::str::from_utf8(value.as_bytes()).ok()?.parse().ok()
}
