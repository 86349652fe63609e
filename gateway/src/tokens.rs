//! The way of a request that brings a token, from its head to the permit that lets it run. What happens after the draw is in `draws.rs`.

use std::sync::Arc;

use farebox_core::{
    Answer, AuditSubject, Binding, CallerId, Charged, Draw, DrawId, DrawPermit, Drawn, L402Token, PaidBefore, PassId,
    PassPayment, Payer, PaymentId, RailName, Refusal, RequestId, Retry, Tariff, TokenTerms,
    ports::{HeldToken, LedgerUnavailable, Rejected, TokenError, TokenRequest},
};
use http::Response;
use tracing::warn;

use crate::{
    admission::{Pauses, idempotency_key},
    answer::{self, books_unavailable},
    body::Body,
    challenge::Desk,
    draws::{self, DrawnFare},
    hold::{DrawnCall, Hold, RunOf},
    proxy::Inbound,
    ride,
    server::Tokens,
    till::Till,
    worker::Worker,
};

/// How a route sells tokens, and who stands behind that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenSale<'a> {
    pub(crate) tokens: &'a Tokens,
    pub(crate) terms: &'a TokenTerms,
}

impl<'a> TokenSale<'a> {
    /// `None` for a route that takes no tokens. One whose price cannot be told now still takes those that it has sold.
    pub(crate) fn of(till: &'a Till, tariff: &'a Tariff) -> Option<Self> {
        let pricing = &tariff.pricing;
        let (tokens, terms) = (till.tokens.as_ref()?, pricing.token.as_ref()?);
        pricing.rails.contains(&RailName::L402).then_some(Self { tokens, terms })
    }
}

/// A token, and the request that brought it.
pub(crate) struct TokenBid {
    pub(crate) request: RequestId,
    pub(crate) token: L402Token,
}

/// Answers a request that brings a token to a route that takes them.
pub(crate) async fn serve(
    worker: &Worker,
    desk: Desk,
    sale: TokenSale<'_>,
    bid: TokenBid,
    inbound: Inbound,
) -> Response<Body> {
    let till = &worker.shared.till;
    let key = idempotency_key(inbound.request.headers());
    let ask = Ask { till, sale, desk: &desk, bid: &bid, key };
    let permitted = ask.permit().await;
    if let Err(turned) = &permitted {
        ask.note(turned);
    }
    match permitted {
        Ok((permit, hold)) => {
            let (till, upstreams, desk) = (till.clone(), worker.upstreams.clone(), Arc::new(desk));
            ride::run(DrawnFare { till, upstreams, desk, request: bid.request, permit, hold }, inbound).await
        }
        Err(turned) => turned.answer(&desk).await,
    }
}

/// Why a request with a token gets no permit.
enum Turned {
    /// The token is not good, or could not be checked.
    Token(TokenError),
    /// The books know the pass, and it buys nothing more: 402 and a fresh bill.
    Over(PassId, Over),
    /// The key has had its answer before.
    Replayed(PassPayment, Option<Answer>),
    /// The key is another request's: 409.
    Foreign(PassId),
    /// The pass's last calls are under way, for longer than we wait: 503.
    Busy,
    /// Too many calls are under way, of this pass or in all: 503.
    Full,
    /// The books did not answer: 503.
    Books(LedgerUnavailable),
}

/// Why a pass buys nothing more.
#[derive(Clone, Copy)]
enum Over {
    Spent,
    Expired,
    Revoked,
    Underpaid,
    Unknown,
}

impl Over {
    const fn code(self) -> &'static str {
        match self {
            Self::Spent => "token_spent",
            Self::Expired => "token_expired",
            Self::Revoked => "token_revoked",
            Self::Underpaid => "underpaid",
            Self::Unknown => "token_unknown",
        }
    }

    const fn detail(self) -> &'static str {
        match self {
            Self::Spent => "every call of this token was made; pay again for another",
            Self::Expired => "the time of this token is over; pay again for another",
            Self::Revoked => "the seller has revoked this token; pay again for another",
            Self::Underpaid => {
                "less was paid for this token than its invoice asks; the money is booked as its payer's credit"
            }
            Self::Unknown => "this gateway has not sold this token; pay again for another",
        }
    }
}

/// One request's wish for a call.
struct Ask<'a> {
    till: &'a Arc<Till>,
    sale: TokenSale<'a>,
    desk: &'a Desk,
    bid: &'a TokenBid,
    key: Option<CallerId>,
}

impl Ask<'_> {
    /// The permit, and what ends its draw in the books whatever happens. Waits, for a bounded time, while other requests are at the pass's last
    /// calls.
    async fn permit(&self) -> Result<(DrawPermit, Hold), Turned> {
        let held = self.check().await?;
        let (id, payment) = (self.till.new_draw(), self.till.new_payment());
        let hold = self.open(held.pass, id)?;
        let mut pauses = Pauses::of(self.till);
        loop {
            let drawn = self.sale.tokens.books.draw(self.draw(held, id, payment)).await;
            let turned = match drawn {
                Ok(Drawn::Granted(permit)) => {
                    if permit.paid_before() == PaidBefore::Unheard {
                        self.sale.tokens.rail.bought(held.pass);
                    }
                    return Ok((permit, hold));
                }
                Ok(Drawn::Busy) => match pauses.wait().await {
                    Ok(()) => continue,
                    Err(_) => Turned::Busy,
                },
                Ok(Drawn::Replayed { payment, answer }) => Turned::Replayed(payment, answer),
                Ok(Drawn::Foreign) => Turned::Foreign(held.pass),
                Ok(Drawn::Spent) => Turned::Over(held.pass, Over::Spent),
                Ok(Drawn::Expired) => Turned::Over(held.pass, Over::Expired),
                Ok(Drawn::Revoked) => Turned::Over(held.pass, Over::Revoked),
                Ok(Drawn::Underpaid) => Turned::Over(held.pass, Over::Underpaid),
                Ok(Drawn::Unknown) => Turned::Over(held.pass, Over::Unknown),
                // The call may be taken all the same: the hold is dropped, and gives it back.
                Err(error) => return Err(Turned::Books(error)),
            };
            hold.done();
            // Its invoice must not be shown again, whatever else is to be paid now.
            self.sale.tokens.rail.bought(held.pass);
            return Err(turned);
        }
    }

    async fn check(&self) -> Result<HeldToken, Turned> {
        let request = TokenRequest {
            terms: self.sale.terms,
            method: self.desk.method().as_str(),
            resource: self.desk.resource(),
            now: self.till.clock.now(),
        };
        self.sale.tokens.rail.check(&self.bid.token, &request).await.map_err(Turned::Token)
    }

    /// What ends the draw. A caller who hangs up while it is made drops this, which gives the call back.
    fn open(&self, pass: PassId, id: DrawId) -> Result<Hold, Turned> {
        let call = DrawnCall {
            books: self.sale.tokens.books.clone(),
            pass,
            id,
            kept: self.key.is_some(),
            _open: self.till.open_draws.open(pass).ok_or(Turned::Full)?,
        };
        Ok(Hold::new(self.till, RunOf::Draw(Arc::new(call))))
    }

    fn draw(&self, held: HeldToken, id: DrawId, payment: PaymentId) -> Draw {
        Draw {
            pass: held.pass,
            id,
            proved: held.payment_hash,
            payment,
            binding: Binding {
                route: self.desk.tariff().route.clone(),
                method: self.desk.method().as_str().to_owned(),
                resource: self.desk.resource().to_owned(),
                caller: self.key.clone().unwrap_or_else(|| CallerId::from_pass(held.pass)),
            },
            key: self.key.clone(),
            request: self.bid.request.clone(),
            holder: self.till.instance.clone(),
            lease: draws::LEASE,
            now: self.till.clock.now(),
        }
    }

    /// Tells the audit log of a no to a pass that is known. What anybody can make up is not told.
    fn note(&self, turned: &Turned) {
        let (pass, reason) = match turned {
            Turned::Over(pass, over) => (*pass, over.code()),
            Turned::Foreign(pass) => (*pass, FOREIGN_KEY),
            _ => return,
        };
        let subject = AuditSubject {
            payment: None,
            request: self.bid.request.clone(),
            rail: RailName::L402,
            route: self.desk.tariff().route.clone(),
            method: self.desk.method().as_str().to_owned(),
            resource: self.desk.resource().to_owned(),
            payer: self.desk.token_network().map(|network| Payer::new(network, &pass.to_string())),
            amount: None,
            credit: None,
            transaction: None,
        };
        self.till.refused.note(subject, reason.into(), self.till.clock.now());
    }
}

const FOREIGN_KEY: &str = "idempotency_key_reused";

impl Turned {
    async fn answer(self, desk: &Desk) -> Response<Body> {
        match self {
            Self::Token(error) => not_good(desk, error).await,
            Self::Over(_, over) => {
                let charged = if matches!(over, Over::Underpaid) { Charged::Yes } else { Charged::No };
                let refusal = Refusal { charged, ..Refusal::payment(over.code(), over.detail()) };
                desk.rebill(&refusal, None).await
            }
            Self::Replayed(payment, answer) => answer::replayed_call(desk, &payment, answer),
            Self::Foreign(_) => {
                let detail = "this Idempotency-Key was first sent with another request of this token; send another key";
                desk.refuse(&Refusal::new(409, FOREIGN_KEY, detail), None)
            }
            Self::Busy => {
                let detail = "the last calls of this token are being served; send the identical request again";
                desk.refuse(&Refusal::could_not_tell("payment_in_progress", detail, Charged::Unknown), None)
            }
            Self::Full => {
                let detail = "too many calls are being served; send the identical request again";
                desk.refuse(&Refusal::could_not_tell("too_many_calls", detail, Charged::No), None)
            }
            Self::Books(error) => {
                warn!(error = &error as &dyn std::error::Error, "books unavailable");
                desk.refuse(&books_unavailable(), None)
            }
        }
    }
}

async fn not_good(desk: &Desk, error: TokenError) -> Response<Body> {
    match error {
        TokenError::Rejected(Rejected { code, detail }) => desk.rebill(&Refusal::payment(code, detail), None).await,
        TokenError::Malformed(Rejected { code, detail }) => {
            desk.refuse(&Refusal { code, ..Refusal::new(400, "malformed_l402_token", detail) }, None)
        }
        TokenError::Unsettled => {
            let detail =
                "the invoice of this token is not settled yet; do not pay again: send the identical request again";
            let refusal = Refusal {
                retry: Retry::SameProof,
                charged: Charged::Unknown,
                retry_after_s: Some(1),
                ..Refusal::payment("invoice_unsettled", detail)
            };
            desk.refuse(&refusal, None)
        }
        TokenError::Unavailable { source } => {
            warn!(error = &*source, "token could not be checked");
            let detail = "the token could not be checked now; do not pay again: send the identical request again";
            desk.refuse(&Refusal::could_not_tell("payment_unverifiable", detail, Charged::Unknown), None)
        }
    }
}
