//! What a caller is told whose proof is known to the books, or whose payment did not come to a plain end.

use std::borrow::Cow;

use farebox_core::{Answer, Charged, Delivery, Payment, PaymentState, Receipt, Refusal, Retry};
use farebox_wire::x402::SettlementResponse;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use tracing::warn;

use crate::{
    admission::{Till, Turned, books_unavailable},
    body::Body,
    challenge::Desk,
};

/// Marks an answer that comes from the books and not from the upstream.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Answers a request that got no permit.
pub(crate) async fn turned(till: &Till, desk: &Desk, turned: Turned) -> Response<Body> {
    match turned {
        Turned::Rejected(rejected) => desk.rebill(&Refusal::payment(rejected.code, rejected.detail), None),
        Turned::Unverifiable(source) => {
            warn!(error = &*source, "payment could not be verified");
            let refusal = Refusal::could_not_tell(
                "payment_unverifiable",
                "the payment could not be checked on its network now; nothing was charged; send the identical request again",
                Charged::No,
            );
            desk.refuse(&refusal, None)
        }
        Turned::Books(error) => {
            warn!(error = &error as &dyn std::error::Error, "books unavailable");
            desk.refuse(&books_unavailable(), None)
        }
        Turned::TooMany => {
            let detail =
                "this payer has too many payments under way that are not settled yet; send the identical request again";
            let refusal = Refusal {
                retry: Retry::SameProof,
                retry_after_s: Some(1),
                ..Refusal::new(429, "too_many_unsettled", detail)
            };
            desk.refuse(&refusal, None)
        }
        Turned::Busy(Some(payment)) => pending(desk, &payment),
        Turned::Busy(None) => desk.refuse(&in_progress(), None),
        Turned::Foreign(payment) => foreign(desk, &payment),
        Turned::Replayed(payment) => replayed(till, desk, &payment).await,
    }
}

async fn replayed(till: &Till, desk: &Desk, payment: &Payment) -> Response<Body> {
    let Some(receipt) = payment.receipt() else {
        let code = payment.reason.clone().unwrap_or("payment_refused".into());
        let refusal = Refusal::payment(code.clone(), "this authorization was refused on its network; sign a new one");
        return desk.rebill(&refusal, Some(&not_charged(payment, &code)));
    };
    if payment.delivery == Delivery::Pending {
        let detail =
            "this payment was charged and the upstream failed it too often; it is in the books as owed: ask the seller";
        let refusal = Refusal { charged: Charged::Yes, ..Refusal::new(409, "delivery_owed", detail) };
        return desk.refuse(&refusal, Some(&charged(&receipt)));
    }
    match till.ledger.answer(payment.id, till.clock.now()).await {
        Ok(Some(answer)) => match kept(answer) {
            Ok(response) => desk.paid(response, receipt.payment, &charged(&receipt)),
            Err(error) => {
                warn!(payment = %payment.id, error = &error as &dyn std::error::Error, "a kept answer cannot be sent");
                desk.refuse(&spent(), Some(&charged(&receipt)))
            }
        },
        Ok(None) => desk.refuse(&spent(), Some(&charged(&receipt))),
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "books unavailable");
            desk.refuse(&books_unavailable(), None)
        }
    }
}

fn spent() -> Refusal {
    Refusal {
        charged: Charged::Yes,
        ..Refusal::new(
            409,
            "already_delivered",
            "this payment has had its answer, which is not kept any more; pay again for another",
        )
    }
}

/// A proof that another request, or another signature, was first with.
fn foreign(desk: &Desk, payment: &Payment) -> Response<Body> {
    let charged = match payment.state {
        PaymentState::Settled => Charged::Yes,
        PaymentState::Refused | PaymentState::Void => Charged::No,
        PaymentState::Claimed | PaymentState::Settling | PaymentState::InDoubt => Charged::Unknown,
    };
    let detail = "this authorization was first used for another request and is good for that one only; sign a new one for this request";
    desk.refuse(&Refusal { charged, ..Refusal::new(409, "proof_already_used", detail) }, None)
}

/// The outcome is not known yet: the hash is told, a new bill is not.
pub(crate) fn pending(desk: &Desk, payment: &Payment) -> Response<Body> {
    let refusal = if payment.transaction.is_some() {
        let detail = "the payment is on its way to the chain; send the identical request again, never a new payment";
        Refusal::could_not_tell("settlement_pending", detail, Charged::Unknown)
    } else {
        in_progress()
    };
    desk.refuse(&refusal, Some(&not_charged(payment, &refusal.code)))
}

fn in_progress() -> Refusal {
    let detail = "another request with this payment is being served; send the identical request again";
    Refusal::could_not_tell("payment_in_progress", detail, Charged::Unknown)
}

/// The money moved and the upstream failed: the same credential is good again.
pub(crate) fn owed(desk: &Desk, receipt: &Receipt, code: Cow<'static, str>, detail: &str) -> Response<Body> {
    let refusal = Refusal {
        status: 502,
        code,
        detail: format!("{detail}; the payment stands and is good for this request: send the identical request again"),
        retry: Retry::SameProof,
        charged: Charged::Yes,
        retry_after_s: Some(1),
    };
    desk.refuse(&refusal, Some(&charged(receipt)))
}

/// PAYMENT-RESPONSE of a charge.
pub(crate) fn charged(receipt: &Receipt) -> SettlementResponse {
    SettlementResponse {
        success: true,
        transaction: receipt.transaction.as_str().to_owned(),
        network: receipt.network.clone(),
        payer: Some(receipt.payer.address().to_owned()),
        amount: Some(receipt.amount.units),
        error_reason: None,
    }
}

/// PAYMENT-RESPONSE of a payment that is not charged, or not known to be; with the hash of a transaction if there is one.
pub(crate) fn not_charged(payment: &Payment, code: &str) -> SettlementResponse {
    SettlementResponse {
        success: false,
        transaction: payment.transaction.as_ref().map_or_else(String::new, |hash| hash.as_str().to_owned()),
        network: payment.amount.asset.network().clone(),
        payer: Some(payment.payer.address().to_owned()),
        amount: None,
        error_reason: Some(code.to_owned()),
    }
}

/// A kept answer as a response.
fn kept(answer: Answer) -> Result<Response<Body>, http::Error> {
    let mut response =
        Response::builder().status(StatusCode::from_u16(answer.status)?).body(Body::full(answer.body))?;
    for header in answer.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes())?;
        response.headers_mut().append(name, HeaderValue::from_bytes(&header.value)?);
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}
