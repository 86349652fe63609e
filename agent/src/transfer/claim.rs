//! Claiming a transfer that counts: a signed code for its hash, sent until the seller gives an answer that is one.

use std::time::Duration;

use backon::ExponentialBackoff;
use farebox_core::{PaymentCode, PaymentId, TransactionId, TransferCredential, Untrusted, ports::MinedTransfer};
use farebox_wire::transfer::{CODE_LIFETIME_MAX_S, encode_code};
use http::header;
use reqwest::Response;
use tokio::time::Instant;

use super::{
    Run, TransferMade,
    verdict::{Unserved, judge},
};
use crate::{
    agent::{Charge, Fetched, Note, PaymentMade},
    bill::{BILL_BODY_BYTES_MAX, SettlementWord},
    delivery,
    entry::{SecretHeader, Standing},
    error::{FetchError, TransportError},
    journal::JournalError,
    pay::{chain, payment_id, receipt_notes, speaks_of_money},
    verdict::{Problem, retry_after},
};

/// A code is signed anew when it has less than this to live: the claim has to reach the seller.
const CODE_LEFT_MIN_S: u64 = 60;
/// How often a seller may call a fresh code too old: then its clock or ours is wrong, and one more would not help.
const EXPIRED_MAX: u32 = 5;

/// A seller's answer that is the caller's.
pub(super) struct Answer {
    response: Response,
    settlement: Option<SettlementWord>,
}

/// What one claim came to.
enum Claimed {
    Answer(Box<Answer>),
    Unserved {
        unserved: Unserved,
        why: String,
        credit: Option<String>,
        after: Option<Duration>,
        payment: Option<PaymentId>,
    },
}

/// The claims that one run makes for one transfer.
pub(super) struct Claims {
    waits: ExponentialBackoff,
    /// The transaction claimed, when the code for it ends, and the headers with it.
    code: Option<(TransactionId, u64, [SecretHeader; 2])>,
    /// How often the seller gave no answer, or none that says anything.
    unanswered: u32,
    expired: u32,
}

impl Claims {
    pub(super) fn new(run: &Run<'_>) -> Self {
        Self { waits: run.agent.claim_waits(), code: None, unanswered: 0, expired: 0 }
    }

    /// Claims once. `None`: to be claimed again after a look at the chain; the wait for it is over.
    pub(super) async fn present(
        &mut self,
        run: &mut Run<'_>,
        mined: Option<&MinedTransfer>,
    ) -> Result<Option<Answer>, FetchError> {
        let transaction = run.claimed(mined);
        let headers = self.headers(run, &transaction)?;
        let (why, after, payment) = match run.claim(&headers).await {
            Ok(Claimed::Answer(answer)) => return Ok(Some(*answer)),
            Ok(Claimed::Unserved { unserved, why, credit, after, payment }) => {
                match unserved {
                    Unserved::NotSeen => {}
                    Unserved::Again => self.unanswered += 1,
                    Unserved::CodeExpired => (self.code, self.expired) = (None, self.expired + 1),
                    Unserved::Credit => {
                        run.note_charged(&transaction).await?;
                        return Err(FetchError::Credited { reason: why, transaction, credit });
                    }
                    Unserved::Spent => {
                        run.note_charged(&transaction).await?;
                        let transaction = Some(transaction);
                        return Err(FetchError::ChargedNotDelivered { reason: why, transaction });
                    }
                }
                (why, after, payment)
            }
            Err(error) => {
                self.unanswered += 1;
                (chain(&error), None, None)
            }
        };
        tracing::debug!(%transaction, why, "a transfer is not answered for yet");
        let enough = self.unanswered >= run.agent.parts.retry.attempts_max || self.expired >= EXPIRED_MAX;
        let left = run.until.saturating_duration_since(Instant::now());
        let wait = self.waits.next().map(|wait| wait.max(after.unwrap_or_default()));
        match wait.filter(|wait| *wait < left && !enough) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => {
                let transaction = Some(transaction);
                return Err(FetchError::ChargedNotServed { reason: why, transaction, payment });
            }
        }
        Ok(None)
    }

    /// The two headers with a code that is good for some time yet: the same ones until it is nearly over.
    fn headers(&mut self, run: &Run<'_>, transaction: &TransactionId) -> Result<[SecretHeader; 2], FetchError> {
        let now_s = run.agent.parts.clock.now().unix_s();
        if let Some((of, expires_at, headers)) = &self.code
            && of == transaction
            && *expires_at > now_s.saturating_add(CODE_LEFT_MIN_S)
        {
            return Ok(headers.clone());
        }
        let expires_at = now_s.saturating_add(CODE_LIFETIME_MAX_S);
        let credential = run.credential(transaction, expires_at)?;
        let headers = encode_code(&credential).map(|(name, value)| SecretHeader::new(name, value));
        self.code = Some((transaction.clone(), expires_at, headers.clone()));
        Ok(headers)
    }
}

impl Run<'_> {
    /// The claim on `transaction`, signed.
    fn credential(&self, transaction: &TransactionId, expires_at: u64) -> Result<TransferCredential, FetchError> {
        let made = &self.entry.current;
        let corrupt = |field: &'static str, found: &str| FetchError::WalletStrayed {
            field,
            expected: "what the journal's entry was made with".to_owned(),
            found: Untrusted::new(found).to_string(),
        };
        let mut hash = [0; 32];
        let digits = transaction.as_str().strip_prefix("0x").unwrap_or_default();
        hex::decode_to_slice(digits, &mut hash).map_err(|_| corrupt("transaction", transaction.as_str()))?;
        let code = PaymentCode {
            quote: self.transfer.quote.as_str().into(),
            asset: made.offer.amount.asset.clone(),
            transaction: hash,
            payer: made.payer.ok_or_else(|| corrupt("payer", "none"))?,
            pay_to: made.offer.pay_to.parse().map_err(|_| corrupt("recipient", &made.offer.pay_to))?,
            amount: made.offer.amount.units,
            resource: self.transfer.resource.as_str().into(),
            method: self.request.method.as_str().into(),
            expires_at,
            signature: Vec::new(),
        };
        Ok(TransferCredential::new(self.wallet.sign_code(code)?, hash))
    }

    async fn claim(&self, headers: &[SecretHeader; 2]) -> Result<Claimed, TransportError> {
        let [hash, code] = headers;
        let request = self.request.to_request(&[hash, code, &self.entry.current.idempotency_key]);
        let response = self.agent.send_until(request, self.until).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let settlement = SettlementWord::read(&headers);
        if status.is_success() || !(speaks_of_money(status, &headers)) {
            return Ok(Claimed::Answer(Box::new(Answer { response, settlement })));
        }
        let peeked = delivery::peek(response, BILL_BODY_BYTES_MAX, self.until).await?;
        let problem = peeked.whole().map(Problem::read).unwrap_or_default();
        let Some(unserved) = judge(status, &problem) else {
            return Ok(Claimed::Answer(Box::new(Answer { response: peeked.into_response(), settlement })));
        };
        let after = headers.get(header::RETRY_AFTER);
        let after = after.and_then(|value| retry_after(value.as_bytes(), self.agent.parts.clock.now()));
        let why = problem.reason().unwrap_or_else(|| format!("the seller answered {status}"));
        let (credit, payment) = (problem.credit(), payment_id(&headers));
        Ok(Claimed::Unserved { unserved, why, credit, after, payment })
    }

    /// Notes that the money is the seller's. The time in which the same request claims it again begins; after that, the same request
    /// can be bought anew.
    async fn note_charged(&mut self, transaction: &TransactionId) -> Result<(), JournalError> {
        if self.entry.charged_at().is_some() {
            return Ok(());
        }
        let at = self.agent.parts.clock.now();
        self.entry.current.standing = Standing::Charged { at, transaction: Some(transaction.clone()), payment: None };
        self.store().await
    }

    /// Notes the answer and hands it over. One of 500 or more leaves the entry as it is: the same claim may yet get a better one.
    pub(super) async fn answered(
        &mut self,
        answer: Answer,
        mined: Option<MinedTransfer>,
        signatures: u32,
        mut notes: Vec<Note>,
    ) -> Fetched {
        let Answer { mut response, settlement } = answer;
        let transaction = self.claimed(mined.as_ref());
        let payment = payment_id(response.headers());
        let receipt = settlement.filter(|word| word.success);
        if let Some(word) = &receipt {
            notes.extend(receipt_notes(word, &self.entry.current));
        }
        if response.status().is_redirection() {
            notes.push(Note::RedirectNotFollowed);
        }
        if response.status().as_u16() < 500 {
            let at = self.entry.charged_at().unwrap_or_else(|| self.agent.parts.clock.now());
            self.entry.current.standing = Standing::Charged { at, transaction: Some(transaction.clone()), payment };
            // The answer is there and must reach the caller. An entry that could not be updated stays open, which costs one more
            // claim for the same transaction at most.
            if let Err(error) = self.store().await {
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
        let transfer = TransferMade {
            transaction: transaction.clone(),
            confirmations: mined.as_ref().map(|mined| mined.confirmations),
            gas_wei: mined.as_ref().map(|mined| mined.gas_wei),
            credit_units: receipt.and_then(|word| word.credit),
        };
        let payment = PaymentMade {
            offer: made.offer.clone(),
            asset: made.asset.clone(),
            price: made.worth(),
            charge: Charge::Charged { transaction: Some(transaction) },
            payment,
            signatures,
            notes,
            transfer: Some(transfer),
            lightning: None,
        };
        Fetched { response, payment: Some(payment) }
    }
}
