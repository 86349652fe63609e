//! A paid request after its claim: upstream, settlement, delivery, in the order its tariff says.
//!
//! Runs in a task of its own, so that a caller who hangs up cannot stop it between the signature and the books.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use farebox_core::{
    Answer, Charged, Payment, PaymentEvent, PaymentId, Permit, Receipt, Refusal, Retry, SettleWhen,
    ports::{Rail, RecordError, Rejected, Settlement},
};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tracing::{Instrument as _, error, warn};

use crate::{
    answer::{self, books_unavailable},
    body::Body,
    challenge::{Desk, PAYMENT_ID, REQUEST_ID},
    delivery::{DeliveryBody, Hold, answer_headers, end_in_books},
    places::Place,
    proxy::Inbound,
    till::Till,
    upstream::{UpstreamBody, Upstreams},
};

const PAYER: HeaderName = HeaderName::from_static("farebox-payer");

/// What a paid request needs after its claim.
pub(crate) struct Fare {
    pub(crate) till: Arc<Till>,
    pub(crate) upstreams: Arc<Upstreams>,
    pub(crate) rail: Arc<dyn Rail>,
    pub(crate) settle: SettleWhen,
    pub(crate) desk: Desk,
    pub(crate) permit: Permit,
    /// Given back with the fare, whose settlement is over by then.
    pub(crate) _place: Option<Place>,
}

/// Runs the fare and waits for its answer.
pub(crate) async fn run(fare: Fare, inbound: Inbound) -> Response<Body> {
    let (reply, answer) = oneshot::channel();
    let lost = fare.desk.clone();
    let ride = async move {
        let response = fare.ride(inbound, &reply).await;
        // Nobody there: the response is dropped, and with it the delivery, which leaves a payment that can be redeemed.
        drop(reply.send(response));
    };
    tokio::spawn(ride.in_current_span());
    match answer.await {
        Ok(response) => response,
        // The task panicked or the runtime is going down; what it left is the reconciler's.
        Err(_) => lost.refuse(&in_doubt(), None),
    }
}

/// The upstream's answer: whole if it is small, else its stream.
enum Served {
    Whole(http::response::Parts, Bytes),
    Streaming(Response<UpstreamBody>),
}

impl Served {
    fn status(&self) -> StatusCode {
        match self {
            Self::Whole(head, _) => head.status,
            Self::Streaming(response) => response.status(),
        }
    }

    /// The delivery of a whole answer, to be recorded before it goes out. A switch of protocols is delivered, and cannot be kept.
    fn last_words(&self) -> Option<PaymentEvent> {
        let Self::Whole(head, body) = self else { return None };
        let answer = (head.status != StatusCode::SWITCHING_PROTOCOLS).then(|| Answer {
            status: head.status.as_u16(),
            headers: answer_headers(&head.headers),
            body: body.to_vec(),
        });
        Some(PaymentEvent::Delivered { answer })
    }

    fn into_response(self) -> Response<Body> {
        match self {
            Self::Whole(head, body) => Response::from_parts(head, Body::full(body)),
            Self::Streaming(response) => response.map(Body::Upstream),
        }
    }
}

impl Fare {
    async fn ride(self, inbound: Inbound, caller: &oneshot::Sender<Response<Body>>) -> Response<Body> {
        // Dropped on any way out that did not end the run in the books: then a settled payment is free to be redeemed.
        let hold = Hold::new(&self.till, self.id());
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

    async fn serve_then_charge(
        &self,
        inbound: Inbound,
        caller: &oneshot::Sender<Response<Body>>,
        hold: Hold,
    ) -> Response<Body> {
        let served = match self.call(inbound).await {
            Ok(served) if served.status().as_u16() < 400 => served,
            Ok(uncharged) => {
                self.release("upstream_error").await;
                let told = answer::not_charged(self.permit.payment(), "upstream_error");
                return self.desk.uncharged(uncharged.into_response(), &told);
            }
            Err(broken) => {
                self.release(broken.code).await;
                return self.desk.refuse(&broken.before_charge(), None);
            }
        };
        let last_words = served.last_words();
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
            Ok(served) if served.status().as_u16() < 500 => served,
            Ok(_) => return answer::owed(&self.desk, &receipt, "upstream_error".into(), "the upstream failed"),
            Err(broken) => return answer::owed(&self.desk, &receipt, broken.code.into(), &broken.detail),
        };
        let Some(last_words) = served.last_words() else { return self.deliver(served, &receipt, hold, true) };
        match self.till.ledger.record(receipt.payment, vec![last_words], self.till.clock.now()).await {
            Ok(_) => self.deliver(served, &receipt, hold, false),
            Err(error) => {
                error!(payment = %receipt.payment, error = &error as &dyn std::error::Error, "delivery not recorded");
                self.desk.refuse(&unbooked(), Some(&answer::charged(&receipt)))
            }
        }
    }

    /// Calls the upstream once. An answer that is small enough to keep is read whole, so that a break in it costs nothing.
    async fn call(&self, inbound: Inbound) -> Result<Served, Broken> {
        let payment = self.permit.payment();
        let Inbound { request, client, route, .. } = inbound;
        let called = self.upstreams.call(route, request, &client, &named(payment)).await;
        let response = called.map_err(|error| {
            let (route, code) = (&payment.binding.route, error.code());
            warn!(payment = %payment.id, %route, code, error = &error as &dyn std::error::Error, "upstream failed");
            Broken { status: error.status(), code: error.code(), detail: error.to_string() }
        })?;
        let small = response.body().size_hint().exact().is_some_and(|size| size <= self.till.answer_bytes_max);
        if !small {
            return Ok(Served::Streaming(response));
        }
        let (head, body) = response.into_parts();
        match tokio::time::timeout(self.till.limits.answer_timeout, body.collect()).await {
            Ok(Ok(whole)) => Ok(Served::Whole(head, whole.to_bytes())),
            Ok(Err(error)) => {
                warn!(payment = %payment.id, route = %payment.binding.route, error = &error as &dyn std::error::Error, "upstream broke off");
                Err(Broken::new(502, "upstream_reset", "the upstream broke off in mid-answer"))
            }
            Err(_) => Err(Broken::new(504, "upstream_timeout", "the upstream's answer took too long")),
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
                self.desk.rebill(&refusal, Some(&answer::not_charged(&payment, &refusal.code)))
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
        let released = PaymentEvent::Released { code: code.into() };
        if let Err(error) = self.till.ledger.record(self.id(), vec![released.clone()], self.till.clock.now()).await {
            warn!(payment = %self.id(), error = &error as &dyn std::error::Error, "claim not released yet");
            let (till, payment) = (self.till.clone(), self.id());
            tokio::spawn(async move { end_in_books(&till, payment, released).await });
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
        self.desk.paid(response, receipt.payment, &answer::charged(receipt))
    }

    fn id(&self) -> PaymentId {
        self.permit.payment().id
    }
}

/// What the upstream is told of the payment. It may run twice for one payment after a crash; the id is how it can tell.
fn named(payment: &Payment) -> Vec<(HeaderName, HeaderValue)> {
    let text = [
        (PAYER, payment.payer.as_str().to_owned()),
        (PAYMENT_ID, payment.id.to_string()),
        (REQUEST_ID, payment.request.as_str().to_owned()),
    ];
    text.into_iter().filter_map(|(name, text)| Some((name, HeaderValue::try_from(text).ok()?))).collect()
}

/// Why the upstream gave no answer. Whether anything was charged is not said here.
struct Broken {
    status: u16,
    code: &'static str,
    detail: String,
}

impl Broken {
    fn new(status: u16, code: &'static str, detail: &str) -> Self {
        Self { status, code, detail: detail.to_owned() }
    }

    /// Nothing was charged: the same authorization is good for another try.
    fn before_charge(self) -> Refusal {
        let detail = format!("{}; nothing was charged", self.detail);
        Refusal { retry: Retry::SameProof, ..Refusal::new(self.status, self.code, detail) }
    }
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
