//! A paid request after its claim: upstream, settlement, delivery, in the order its tariff says.

use std::{borrow::Cow, sync::Arc};

use farebox_core::{
    Charged, PaymentEvent, PaymentId, Permit, Receipt, Refusal, SettleWhen,
    ports::{Rail, RecordError, Rejected, Settlement},
};
use http::Response;
use tracing::{error, warn};

use crate::{
    answer::{self, books_unavailable},
    body::Body,
    challenge::{Desk, Told},
    delivery::DeliveryBody,
    hold::{Hold, RunEnd, RunOf},
    places::Place,
    proxy::Inbound,
    ride::{self, Broken, Caller, Named, Ride, Served},
    till::Till,
    upstream::Upstreams,
};

/// What a paid request needs after its claim.
pub(crate) struct Fare {
    pub(crate) till: Arc<Till>,
    pub(crate) upstreams: Arc<Upstreams>,
    pub(crate) rail: Arc<dyn Rail>,
    pub(crate) settle: SettleWhen,
    pub(crate) desk: Arc<Desk>,
    pub(crate) permit: Permit,
    /// Given back with the fare, whose settlement is over by then.
    pub(crate) _place: Option<Place>,
}

impl Ride for Fare {
    fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    async fn ride(self, inbound: Inbound, caller: &Caller) -> Response<Body> {
        // Dropped on any way out that did not end the run in the books: then a settled payment is free to be redeemed.
        let hold = Hold::new(&self.till, RunOf::Payment(self.id()));
        if let Some(receipt) = self.permit.payment().receipt() {
            return self.serve_settled(inbound, receipt, hold).await;
        }
        match self.settle {
            SettleWhen::BeforeUpstream => match self.charge(None).await {
                Ok(receipt) => self.serve_settled(inbound, receipt, hold).await,
                Err(response) => response,
            },
            SettleWhen::BeforeResponse => self.serve_then_charge(inbound, caller, hold).await,
        }
    }

    /// What the crash, or the end of the runtime, left is the reconciler's.
    fn lost(desk: &Desk) -> Response<Body> {
        desk.refuse(&in_doubt(), None)
    }
}

impl Fare {
    async fn serve_then_charge(&self, inbound: Inbound, caller: &Caller, hold: Hold) -> Response<Body> {
        let served = match self.call(inbound).await {
            Ok(served) if served.status() < 400 => served,
            Ok(uncharged) => {
                self.release("upstream_error").await;
                let told = answer::not_charged(self.permit.payment(), "upstream_error");
                return self.desk.uncharged(uncharged.into_response(), &told);
            }
            Err(broken) => {
                self.release(broken.code).await;
                return self.desk.refuse(&broken.uncharged("nothing was charged"), None);
            }
        };
        let last_words = last_words(&served);
        let held = last_words.is_none();
        // A whole answer is charged and kept: whoever hangs up just before it comes has had the upstream's work, and gets the answer
        // by sending the same again. A stream could not be had again.
        if held && caller.is_closed() {
            self.release("caller_gone").await;
            return Response::default();
        }
        match self.charge(last_words).await {
            Ok(receipt) => self.deliver(served, &receipt, hold, held),
            Err(response) => response,
        }
    }

    /// Serves a payment whose money has moved: what the upstream says below 500 is delivered, a failure can be redeemed.
    async fn serve_settled(&self, inbound: Inbound, receipt: Receipt, hold: Hold) -> Response<Body> {
        let served = match self.call(inbound).await {
            Ok(served) if served.status() < 500 => served,
            Ok(_) => return answer::owed(&self.desk, &receipt, "upstream_error".into(), "the upstream failed"),
            Err(broken) => return answer::owed(&self.desk, &receipt, broken.code.into(), &broken.detail),
        };
        let Some(last_words) = last_words(&served) else { return self.deliver(served, &receipt, hold, true) };
        match self.till.ledger.record(receipt.payment, vec![last_words], self.till.clock.now()).await {
            Ok(_) => self.deliver(served, &receipt, hold, false),
            Err(error) => {
                error!(payment = %receipt.payment, error = &error as &dyn std::error::Error, "delivery not recorded");
                self.desk.refuse(&unbooked(), Some(&answer::charged(&receipt)))
            }
        }
    }

    /// Moves the money and records it, together with `then`, in one commit.
    async fn charge(&self, then: Option<PaymentEvent>) -> Result<Receipt, Response<Body>> {
        match self.rail.settle(&self.permit).await {
            Settlement::Final { transaction, block } => {
                let mut events = vec![PaymentEvent::Settled { transaction, block }];
                events.extend(then);
                self.record(events).await
            }
            Settlement::Refused(rejected) => Err(self.refused(rejected).await),
            Settlement::InDoubt { transaction: Some(_), source } => {
                warn!(payment = %self.id(), error = &*source, "settlement in doubt");
                Err(self.doubted().await)
            }
            Settlement::InDoubt { transaction: None, source } => {
                warn!(payment = %self.id(), error = &*source, "settlement could not be started");
                Err(self.not_started().await)
            }
        }
    }

    async fn record(&self, events: Vec<PaymentEvent>) -> Result<Receipt, Response<Body>> {
        match self.till.ledger.record(self.id(), events, self.till.clock.now()).await {
            Ok(payment) => payment.receipt().ok_or_else(|| self.desk.refuse(&in_doubt(), None)),
            Err(error) => {
                // The money moved and the books do not know yet. The transaction is stored: the reconciler will find it.
                error!(payment = %self.id(), error = &error as &dyn std::error::Error, "settled, but not recorded");
                Err(self.desk.refuse(&unbooked(), None))
            }
        }
    }

    async fn refused(&self, rejected: Rejected) -> Response<Body> {
        let event = PaymentEvent::Refused { code: rejected.code.clone() };
        match self.till.ledger.record(self.id(), vec![event], self.till.clock.now()).await {
            Ok(payment) => {
                let refusal = Refusal::payment(rejected.code, rejected.detail);
                self.desk.rebill(&refusal, Some(&answer::not_charged(&payment, &refusal.code))).await
            }
            Err(error) => {
                error!(payment = %self.id(), error = &error as &dyn std::error::Error, "refusal not recorded");
                self.desk.refuse(&books_unavailable(), None)
            }
        }
    }

    async fn doubted(&self) -> Response<Body> {
        let events = vec![PaymentEvent::Doubted];
        let payment = match self.till.ledger.record(self.id(), events, self.till.clock.now()).await {
            Ok(payment) => payment,
            Err(error) => {
                error!(payment = %self.id(), error = &error as &dyn std::error::Error, "doubt not recorded");
                return self.desk.refuse(&in_doubt(), None);
            }
        };
        answer::pending(&self.desk, &payment)
    }

    /// Nothing was broadcast. If the claim is still bare it is given back; if a transaction was stored after all, it is in doubt.
    async fn not_started(&self) -> Response<Body> {
        let released = PaymentEvent::Released { code: Cow::Borrowed("settlement_unavailable") };
        match self.till.ledger.record(self.id(), vec![released], self.till.clock.now()).await {
            Ok(_) => self.desk.refuse(
                &Refusal::could_not_tell(
                    "settlement_unavailable",
                    "the payment could not be settled now and was not charged; send the identical request again",
                    Charged::No,
                ),
                None,
            ),
            Err(RecordError::Illegal(_)) => self.doubted().await,
            Err(error) => {
                error!(payment = %self.id(), error = &error as &dyn std::error::Error, "claim not released");
                self.desk.refuse(&books_unavailable(), None)
            }
        }
    }

    /// Gives the claim back; nothing was charged. If the books do not take it now, they are told again meanwhile.
    async fn release(&self, code: impl Into<Cow<'static, str>>) {
        let code = code.into();
        let released = PaymentEvent::Released { code: code.clone() };
        if let Err(error) = self.till.ledger.record(self.id(), vec![released], self.till.clock.now()).await {
            warn!(payment = %self.id(), error = &error as &dyn std::error::Error, "claim not released yet");
            tokio::spawn(RunOf::Payment(self.id()).end_in_books(self.till.clone(), RunEnd::Released(code)));
        }
    }

    /// Hands the answer over. If the delivery is not in the books yet, the body's end waits for it.
    fn deliver(&self, served: Served, receipt: &Receipt, hold: Hold, held: bool) -> Response<Body> {
        let response = match served {
            Served::Streaming(response) if held => {
                let (head, body) = response.into_parts();
                let body = DeliveryBody::new(&head, body, hold);
                Response::from_parts(head, Body::Delivery(Box::new(body)))
            }
            booked => {
                hold.done();
                booked.into_response()
            }
        };
        self.desk.paid(response, receipt.payment, &Told::Charge(answer::charged(receipt)))
    }

    async fn call(&self, inbound: Inbound) -> Result<Served, Broken> {
        let payment = self.permit.payment();
        let named = Named { payer: &payment.payer, payment: payment.id, request: &payment.request };
        ride::call_upstream(&self.till, &self.upstreams, named, inbound).await
    }

    fn id(&self) -> PaymentId {
        self.permit.payment().id
    }
}

/// The delivery of a whole answer, to be recorded before it goes out.
fn last_words(served: &Served) -> Option<PaymentEvent> {
    served.is_whole().then(|| PaymentEvent::Delivered { answer: served.to_be_kept() })
}

fn in_doubt() -> Refusal {
    Refusal::could_not_tell(
        "settlement_pending",
        "the payment may have been made; send the identical request again, never a new payment",
        Charged::Unknown,
    )
}

/// The money moved, and the books could not be told.
fn unbooked() -> Refusal {
    Refusal { charged: Charged::Yes, ..books_unavailable() }
}
