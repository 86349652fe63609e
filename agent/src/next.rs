//! What to do next for a request: go on with what was begun, use a token that is held, or pay the bill in the first way that works.

use std::{collections::BTreeSet, sync::Arc};

use farebox_core::{PaymentHash, RailName};
use http::Method;
use tokio::time::Instant;

use crate::{
    agent::{Agent, Fetched, Hop, Started},
    bill::Billed,
    entry::Entry,
    error::{FetchError, RefusedOffer, RequestError},
    journal::Held,
    l402::{Finished, L402Bill, LightningError},
    pay::{Made, after_refusal, declined_reason},
    request::Replayable,
    sign::{NotSigned, Signed},
};

/// What a fetch has tried for a request and need not try again.
#[derive(Default)]
pub(crate) struct Tried {
    /// Held tokens that the seller does not take for it.
    pub(crate) tokens: BTreeSet<PaymentHash>,
    /// Why the wallet did not pay by Lightning: then another way is looked for.
    pub(crate) lightning: Option<LightningError>,
}

impl Agent {
    /// Goes on with a payment that is open in the journal, or with a token that is held; `None` if there is neither.
    pub(crate) async fn resume(&self, request: &Replayable, started: Started) -> Result<Option<Fetched>, FetchError> {
        if !self.parts.journal.has_open(&request.fingerprint()) && !self.may_draw(request).await? {
            return Ok(None);
        }
        let held = self.hold(request, started).await?;
        let mut tried = Tried::default();
        let finished = match self.unfinished(&held, started).await? {
            Some(entry) if self.is_set_aside(&entry) => return Ok(None),
            Some(entry) => self.finish_again(request, &held, entry, started).await?,
            None => match self.begin_draw(request, &held, None, &tried).await? {
                Some(entry) => self.finish(request, &held, entry, Made::default(), started).await?,
                None => return Ok(None),
            },
        };
        match finished {
            Finished::Answer(fetched) => Ok(Some(*fetched)),
            Finished::Refused { token, billed: Some(billed) } => {
                tried.tokens.insert(token);
                Box::pin(self.pay_bill(request, &held, *billed, None, tried, started)).await.map(Some)
            }
            Finished::Refused { billed: None, .. } | Finished::NotPaid(_) => Ok(None),
        }
    }

    /// Pays the bill, unless a payment for this request has been signed meanwhile: then that one is sent.
    pub(crate) async fn pay(
        &self,
        request: &Replayable,
        billed: Billed,
        started: Started,
    ) -> Result<Fetched, FetchError> {
        let held = self.hold(request, started).await?;
        let (mut tried, mut billed) = (Tried::default(), billed);
        let before = match self.unfinished(&held, started).await? {
            Some(entry) if !self.is_set_aside(&entry) => {
                match self.finish_again(request, &held, entry, started).await? {
                    Finished::Answer(fetched) => return Ok(*fetched),
                    Finished::Refused { token, billed: newer } => {
                        tried.tokens.insert(token);
                        billed = newer.map_or(billed, |newer| *newer);
                    }
                    Finished::NotPaid(_) => {}
                }
                None
            }
            before => before,
        };
        Box::pin(self.pay_bill(request, &held, billed, before, tried, started)).await
    }

    /// Pays a bill in the first way that works: a held token, then the rails in their order. What came before is refused by the seller, and counts
    /// as outstanding.
    async fn pay_bill(
        &self,
        request: &Replayable,
        held: &Arc<Held>,
        mut billed: Billed,
        mut before: Option<Entry>,
        mut tried: Tried,
        started: Started,
    ) -> Result<Fetched, FetchError> {
        let mut asks = self.waits();
        let mut taken = None;
        loop {
            let (entry, made) = match self.begin(request, held, &mut billed, before.take(), &tried, started).await? {
                Begins::With(entry, made) => (*entry, made),
                Begins::Taken { entry, rule } => {
                    before = entry.map(|entry| *entry);
                    // Another bill, another row of waits: many requests of one agent may be shown one invoice, and pay in turn.
                    let hash = billed.l402.as_deref().map(L402Bill::payment_hash);
                    if std::mem::replace(&mut taken, hash) != hash {
                        asks = self.waits();
                    }
                    let left = started.until.saturating_duration_since(Instant::now());
                    let Some(wait) = asks.next().filter(|wait| *wait < left) else {
                        return Err(FetchError::Policy(vec![rule]));
                    };
                    tokio::time::sleep(wait).await;
                    match self.ask_again(request, started).await? {
                        Ok(newer) => billed = newer,
                        Err(fetched) => return Ok(fetched),
                    }
                    continue;
                }
            };
            match self.finish(request, held, entry, made, started).await? {
                Finished::Answer(fetched) => return Ok(*fetched),
                Finished::Refused { token, billed: newer } => {
                    tried.tokens.insert(token);
                    billed = match newer {
                        Some(newer) => *newer,
                        None => match self.ask_again(request, started).await? {
                            Ok(newer) => newer,
                            Err(fetched) => return Ok(fetched),
                        },
                    };
                }
                Finished::NotPaid(error) => tried.lightning = Some(error),
            }
            before = held.load().await?;
        }
    }

    /// Notes the next thing to try for a bill: a held token, or a payment.
    async fn begin(
        &self,
        request: &Replayable,
        held: &Arc<Held>,
        billed: &mut Billed,
        before: Option<Entry>,
        tried: &Tried,
        started: Started,
    ) -> Result<Begins, FetchError> {
        if before.is_none()
            && let Some(entry) = self.begin_draw(request, held, billed.l402.as_deref(), tried).await?
        {
            return Ok(Begins::With(Box::new(entry), Made::default()));
        }
        let now = self.parts.clock.now();
        let outstanding = before.as_ref().map(|entry| entry.outstanding(now, started.at)).unwrap_or_default();
        let signed = match self.sign(request, billed, outstanding, tried, started).await {
            Ok(signed) => signed,
            Err(NotSigned::Taken(rule)) => return Ok(Begins::Taken { entry: before.map(Box::new), rule }),
            Err(NotSigned::Failed(error)) => match &before {
                None => return Err(error),
                Some(entry) => {
                    let reason = declined_reason(entry).unwrap_or_default();
                    return Err(after_refusal(error, reason, entry.valid_until(now)));
                }
            },
        };
        let Signed { authorization, account, begun } = signed;
        let entry = match before {
            Some(mut entry) => {
                entry.supersede(authorization);
                entry
            }
            None => Entry::new(request.fingerprint(), &request.method, &request.url, authorization),
        };
        held.store(&entry).await?;
        let (signatures, notes) = (1, std::mem::take(&mut billed.notes));
        Ok(Begins::With(Box::new(entry), Made { signatures, notes, account, begun }))
    }

    /// Whether a held token may be good for the request. Only a hint, as it is looked at without the request's lock.
    async fn may_draw(&self, request: &Replayable) -> Result<bool, FetchError> {
        Ok(self.draws(request) && self.held_token(request, None, &BTreeSet::new()).await?.is_some())
    }

    /// Notes the use of a held token, if there is one that may be good.
    async fn begin_draw(
        &self,
        request: &Replayable,
        held: &Arc<Held>,
        bill: Option<&L402Bill>,
        tried: &Tried,
    ) -> Result<Option<Entry>, FetchError> {
        if !self.draws(request) {
            return Ok(None);
        }
        let Some(token) = self.held_token(request, bill, &tried.tokens).await? else { return Ok(None) };
        let authorization = self.draw(&token, self.idempotency_key(request)?);
        let entry = Entry::new(request.fingerprint(), &request.method, &request.url, authorization);
        held.store(&entry).await?;
        Ok(Some(entry))
    }

    fn draws(&self, request: &Replayable) -> bool {
        let wanted = self.parts.policy.rails.contains(&RailName::L402) && request.method != Method::HEAD;
        wanted && self.barrier(request).is_none()
    }

    /// Asks for another bill; the inner error is an answer that needs none.
    async fn ask_again(&self, request: &Replayable, started: Started) -> Result<Result<Billed, Fetched>, FetchError> {
        match self.ask(request, started, &mut 0).await? {
            Hop::Bill(billed) => Ok(Ok(billed)),
            Hop::Answer(response) => Ok(Err(Fetched { response, payment: None })),
            // No redirect is left to follow.
            Hop::Moved(_) => Err(RequestError::Redirect { reason: "redirected after a bill".to_owned() }.into()),
        }
    }
}

/// What is to be tried next for a bill.
enum Begins {
    With(Box<Entry>, Made),
    /// The bill's invoice is paid for another request: another bill is needed. With the entry as it was.
    Taken {
        entry: Option<Box<Entry>>,
        rule: RefusedOffer,
    },
}
