//! Presenting what was signed: send it, send it again, and say what became of it.

use std::{error::Error, sync::Arc, time::Duration};

use farebox_core::{Charged, EvmAddress, PaymentId, Timestamp, TransactionId, Untrusted};
use http::{HeaderMap, StatusCode, header};
use reqwest::Response;
use tokio::time::Instant;

use crate::{
    agent::{Agent, Charge, Fetched, Note, PaymentMade, Started},
    bill::{self, BILL_BODY_BYTES_MAX, Billed, SettlementWord},
    delivery,
    entry::{Authorization, Entry, Proof, SecretHeader, Standing},
    error::{FetchError, TransportError},
    journal::{Held, JournalError, Lock},
    l402::{Begun as TokenBegun, Finished},
    request::Replayable,
    transfer::Begun,
    verdict::{Cure, Problem, Verdict, judge, retry_after},
};

/// What presenting one authorization came to, all attempts together.
enum Presented {
    Answer {
        response: Response,
        settlement: Option<SettlementWord>,
    },
    Declined {
        reason: String,
        cure: Cure,
        billed: Option<Billed>,
    },
    Spent {
        reason: String,
        transaction: Option<TransactionId>,
    },
    /// The seller would take the bytes again; its last word on the money, and what it said of a charge.
    Unserved {
        attempts: u32,
        last: String,
        charged: Charged,
        receipt: Receipt,
    },
}

/// What a seller named of a charge.
#[derive(Clone, Default)]
struct Receipt {
    transaction: Option<TransactionId>,
    payment: Option<PaymentId>,
}

/// What one attempt came to.
enum Attempt {
    Done(Box<Presented>),
    Again(Again),
}

/// Why the same bytes go out again.
struct Again {
    why: String,
    after: Option<Duration>,
    charged: Charged,
    receipt: Receipt,
}

impl Agent {
    /// Whether the seller refused it and the present policy would not pay it: it is not sent again, and counts as outstanding.
    pub(crate) fn is_set_aside(&self, entry: &Entry) -> bool {
        declined_reason(entry).is_some() && self.parts.policy.judge(&entry.current.offer).is_err()
    }

    /// Goes on with what an earlier call signed.
    pub(crate) async fn finish_again(
        &self,
        request: &Replayable,
        held: &Arc<Held>,
        mut entry: Entry,
        started: Started,
    ) -> Result<Finished, FetchError> {
        if declined_reason(&entry).is_some() {
            // Once sent again it may be charged, and a crash must not leave the seller's older word to be believed.
            entry.current.standing = Standing::Open;
            held.store(&entry).await?;
        }
        // A transfer is claimed by the wallet that made it or not at all.
        if matches!(entry.current.proof, Proof::Header(_))
            && entry.current.payer != self.payer()
            && let Some(tell) = self.parts.on_foreign_resend
        {
            tell(&entry);
        }
        self.finish(request, held, entry, Made::default(), started).await
    }

    /// The EVM wallet's address, if there is one.
    pub(crate) fn payer(&self) -> Option<EvmAddress> {
        self.parts.wallet.as_ref().map(|wallet| wallet.evm_address())
    }

    pub(crate) async fn hold(&self, request: &Replayable, started: Started) -> Result<Arc<Held>, JournalError> {
        let wait = started.until.saturating_duration_since(Instant::now());
        Ok(Arc::new(self.parts.journal.hold(&request.fingerprint(), wait).await?))
    }

    /// What is signed for this request and not over: left by a crash or a lost answer, or finished by another agent while this
    /// call was under way, whose payment is this call's too.
    pub(crate) async fn unfinished(&self, held: &Arc<Held>, started: Started) -> Result<Option<Entry>, JournalError> {
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
    pub(crate) async fn finish(
        &self,
        request: &Replayable,
        held: &Arc<Held>,
        mut entry: Entry,
        mut made: Made,
        started: Started,
    ) -> Result<Finished, FetchError> {
        loop {
            let header = match &entry.current.proof {
                Proof::Header(header) => header,
                Proof::Transfer(transfer) => {
                    let transfer = (**transfer).clone();
                    let begun = Begun { account: made.account, signatures: made.signatures, notes: made.notes };
                    let finished = Box::pin(self.finish_transfer(request, held, entry, transfer, begun, started)).await;
                    return finished.map(|fetched| Finished::Answer(Box::new(fetched)));
                }
                Proof::Token(proof) => {
                    let (proof, begun, notes) = (*proof, made.begun, made.notes);
                    return Box::pin(self.finish_token(request, held, entry, proof, begun, notes, started)).await;
                }
            };
            match self.present(request, &entry.current, header, started).await {
                Presented::Answer { response, settlement } => {
                    let answered = self.answered(request, held, entry, response, settlement, made).await;
                    return Ok(Finished::Answer(Box::new(answered)));
                }
                Presented::Unserved { attempts, last, charged, receipt } => {
                    return Err(self.unserved(held, entry, attempts, last, charged, receipt).await?);
                }
                Presented::Spent { reason, transaction } => {
                    // Noted as charged now, so that the time for another delivery runs out and the same request can be bought anew.
                    if !matches!(entry.current.standing, Standing::Charged { .. }) {
                        let (at, transaction) = (self.parts.clock.now(), transaction.clone());
                        entry.current.standing = Standing::Charged { at, transaction, payment: None };
                        held.store(&entry).await?;
                    }
                    return Err(FetchError::ChargedNotDelivered { reason, transaction });
                }
                // "Not charged" of something that was answered as charged before: the money is gone all the same.
                Presented::Declined { reason, .. } if matches!(entry.current.standing, Standing::Charged { .. }) => {
                    let transaction = charged_transaction(&entry);
                    return Err(FetchError::ChargedNotDelivered { reason, transaction });
                }
                Presented::Declined { reason, cure, billed } => {
                    let valid_until = entry.valid_until(self.parts.clock.now());
                    entry.current.standing = Standing::Declined { reason: reason.clone() };
                    if cure == Cure::OtherPayer
                        && let Some(payer) = entry.current.payer.filter(|payer| Some(*payer) == self.payer())
                    {
                        held.store(&entry).await?;
                        return Err(FetchError::InsufficientBalance { payer, reason, valid_until });
                    }
                    let renewed = self.renew(request, held, &mut entry, billed, cure, &mut made, started).await;
                    match renewed.map_err(|error| after_refusal(error, &reason, valid_until))? {
                        Renewed::Yes => {}
                        Renewed::No => return Err(FetchError::Refused { reason, then: None, valid_until }),
                    }
                }
            }
        }
    }

    /// What to tell of a payment that the seller would take again but did not answer for.
    async fn unserved(
        &self,
        held: &Arc<Held>,
        mut entry: Entry,
        attempts: u32,
        reason: String,
        charged: Charged,
        receipt: Receipt,
    ) -> Result<FetchError, JournalError> {
        let was_charged = entry.charged_at().is_some();
        Ok(match charged {
            Charged::Unknown if !was_charged => FetchError::OutcomeUnclear { attempts, last: reason },
            Charged::No if !was_charged => {
                let valid_until = entry.valid_until(self.parts.clock.now());
                entry.current.standing = Standing::Declined { reason: reason.clone() };
                held.store(&entry).await?;
                FetchError::NotServed { reason, valid_until }
            }
            Charged::Yes | Charged::No | Charged::Unknown => {
                let Receipt { transaction, payment } = receipt;
                let transaction = transaction.or_else(|| charged_transaction(&entry));
                FetchError::ChargedNotServed {
                    reason,
                    transaction,
                    payment: payment.or_else(|| charged_payment(&entry)),
                }
            }
        })
    }

    /// Notes the refusal, and puts a new authorization in use if one may help.
    #[expect(clippy::too_many_arguments, reason = "the state of one fetch, used once")]
    async fn renew(
        &self,
        request: &Replayable,
        held: &Arc<Held>,
        entry: &mut Entry,
        billed: Option<Billed>,
        cure: Cure,
        made: &mut Made,
        started: Started,
    ) -> Result<Renewed, FetchError> {
        held.store(entry).await?;
        let Some(next) = self.sign_again(request, entry, billed, cure, made, started).await? else {
            return Ok(Renewed::No);
        };
        entry.supersede(next);
        held.store(entry).await?;
        made.signatures += 1;
        Ok(Renewed::Yes)
    }

    /// Sends the identical bytes with growing waits until the outcome is clear, the deadline, or the last attempt.
    async fn present(
        &self,
        request: &Replayable,
        authorization: &Authorization,
        header: &SecretHeader,
        started: Started,
    ) -> Presented {
        let mut waits = self.waits();
        let (mut attempts, mut charged, mut receipt) = (0, Charged::Unknown, Receipt::default());
        loop {
            attempts += 1;
            let again = match self.attempt(request, authorization, header, started).await {
                Ok(Attempt::Done(presented)) => return *presented,
                Ok(Attempt::Again(again)) => again,
                Err(error) => {
                    Again { why: chain(&error), after: None, charged: Charged::Unknown, receipt: Receipt::default() }
                }
            };
            let Again { why: last, after, charged: word, receipt: named } = again;
            // The last word counts; but what was charged once stays so.
            if charged != Charged::Yes || word == Charged::Yes {
                (charged, receipt) = (word, named);
            }
            tracing::debug!(attempts, last, ?charged, "a payment is not answered for yet");
            let left = started.until.saturating_duration_since(Instant::now());
            let wait = waits.next().map(|wait| wait.max(after.unwrap_or_default())).filter(|wait| *wait < left);
            let Some(wait) = wait else { return Presented::Unserved { attempts, last, charged, receipt } };
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(
        &self,
        request: &Replayable,
        authorization: &Authorization,
        header: &SecretHeader,
        started: Started,
    ) -> Result<Attempt, TransportError> {
        let response = self.send(request.to_request(&[header, &authorization.idempotency_key]), started).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let settlement = SettlementWord::read(&headers);
        if status.is_success() {
            return Ok(Attempt::Done(Box::new(Presented::Answer { response, settlement })));
        }
        let peeked = if speaks_of_money(status, &headers) {
            delivery::peek(response, BILL_BODY_BYTES_MAX, started.until).await?
        } else {
            return Ok(Attempt::Done(Box::new(Presented::Answer { response, settlement })));
        };
        let problem = peeked.whole().map(Problem::read).unwrap_or_default();
        Ok(match judge(status, &problem, settlement.as_ref()) {
            Verdict::Deliver => {
                Attempt::Done(Box::new(Presented::Answer { response: peeked.into_response(), settlement }))
            }
            Verdict::Resend { why, charged } => {
                let after = headers.get(header::RETRY_AFTER);
                let after = after.and_then(|value| retry_after(value.as_bytes(), self.parts.clock.now()));
                let transaction = settlement.and_then(|word| word.transaction_id());
                let receipt = Receipt { transaction, payment: payment_id(&headers) };
                Attempt::Again(Again { why, after, charged, receipt })
            }
            Verdict::Spent { reason } => {
                let transaction = settlement.and_then(|word| word.transaction_id());
                Attempt::Done(Box::new(Presented::Spent { reason, transaction }))
            }
            Verdict::Declined { reason, cure } => {
                let is_402 = status == StatusCode::PAYMENT_REQUIRED;
                let billed = is_402.then(|| bill::read(&headers, peeked.whole()).ok()).flatten();
                Attempt::Done(Box::new(Presented::Declined { reason, cure, billed }))
            }
        })
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
        let Made { signatures, mut notes, .. } = made;
        let is_error = response.status().as_u16() >= 400;
        let uncharged = is_error && settlement.as_ref().is_some_and(SettlementWord::is_uncharged);
        let receipt = settlement.filter(|word| word.success);
        let payment = payment_id(response.headers());
        let until = entry.current.expires_at;
        let charge = match &receipt {
            Some(word) => Charge::Charged { transaction: word.transaction_id() },
            None if response.status().is_success() => Charge::NoReceipt { until },
            None if uncharged && entry.charged_at().is_none() => Charge::NotCharged { until },
            None => Charge::NotSettled { until },
        };
        notes.extend(receipt.iter().flat_map(|word| receipt_notes(word, &entry.current)));
        if response.status().is_redirection() {
            notes.push(Note::RedirectNotFollowed);
        }
        let mut response = response;
        if matches!(charge, Charge::NotCharged { .. }) {
            let reason = format!("the seller answered {} and did not charge", response.status());
            entry.current.standing = Standing::Declined { reason };
            if let Err(error) = held.store(&entry).await {
                tracing::warn!(error = chain(&error), "an answer that cost nothing could not be noted in the journal");
            }
        }
        if matches!(charge, Charge::Charged { .. } | Charge::NoReceipt { .. }) {
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
        let (transfer, lightning) = (None, None);
        let made = PaymentMade { offer, asset, price, charge, payment, signatures, notes, transfer, lightning };
        Fetched { response, payment: Some(made) }
    }
}

/// What a fetch has done so far.
#[derive(Default)]
pub(crate) struct Made {
    pub(crate) signatures: u32,
    pub(crate) notes: Vec<Note>,
    /// See [`Begun::account`].
    pub(crate) account: Option<Lock>,
    /// The invoice that was chosen just now.
    pub(crate) begun: Option<TokenBegun>,
}

enum Renewed {
    Yes,
    No,
}

/// Where a receipt tells of another payment than was made. What it leaves out it does not contradict.
pub(crate) fn receipt_notes(word: &SettlementWord, made: &Authorization) -> Vec<Note> {
    let differs = |field, signed: String, receipt: Option<String>| {
        let receipt = receipt.filter(|receipt| *receipt != signed)?;
        Some(Note::ReceiptDiffers { field, signed, receipt: Untrusted::new(receipt).to_string() })
    };
    let notes = [
        differs("amount", made.offer.amount.units.to_string(), word.amount.map(|units| units.to_string())),
        differs("network", made.offer.network().to_string(), word.network.as_ref().map(ToString::to_string)),
        differs(
            "payer",
            made.payer.map(|payer| format!("{payer:x}")).unwrap_or_default(),
            word.payer.as_ref().map(|payer| payer.to_ascii_lowercase()),
        ),
    ];
    notes.into_iter().flatten().collect()
}

/// The body of a refusal says what became of the money; an upstream's own error page, which may be long, does not.
pub(crate) fn speaks_of_money(status: StatusCode, headers: &HeaderMap) -> bool {
    let type_of = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let problem = type_of.trim().to_ascii_lowercase().starts_with("application/problem+json");
    problem || matches!(status.as_u16(), 402 | 408 | 409 | 425 | 429 | 502 | 503 | 504)
}

/// What kept a second signature from being made is told together with the seller's refusal of the first, which it may yet
/// charge.
pub(crate) fn after_refusal(error: FetchError, reason: &str, valid_until: Option<Timestamp>) -> FetchError {
    let reason = reason.to_owned();
    match error {
        FetchError::Policy(rules) => FetchError::Refused { reason, then: Some(rules), valid_until },
        other => FetchError::StoppedAfterRefusal { reason, valid_until, source: Box::new(other) },
    }
}

fn charged_transaction(entry: &Entry) -> Option<TransactionId> {
    match &entry.current.standing {
        Standing::Charged { transaction, .. } => transaction.clone(),
        _ => None,
    }
}

fn charged_payment(entry: &Entry) -> Option<PaymentId> {
    match &entry.current.standing {
        Standing::Charged { payment, .. } => *payment,
        _ => None,
    }
}

pub(crate) fn declined_reason(entry: &Entry) -> Option<&str> {
    match &entry.current.standing {
        Standing::Declined { reason } => Some(reason),
        _ => None,
    }
}

/// Our gateway's name for the payment.
pub(crate) fn payment_id(headers: &HeaderMap) -> Option<PaymentId> {
    headers.get("farebox-payment-id")?.to_str().ok()?.parse().ok()
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
