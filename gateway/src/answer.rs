//! What a caller is told whose proof is known to the books, or whose payment did not come to a plain end.

use std::borrow::Cow;

use farebox_core::{
    Answer, Charged, Delivery, PassPayment, Payment, PaymentState, RailName, Receipt, Refusal, Retry, ports::Rejected,
};
use farebox_wire::{transfer::asset_name, x402::SettlementResponse};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use tracing::warn;

use crate::{
    admission::Turned,
    body::Body,
    challenge::{Desk, Told},
    till::Till,
};

/// The code of a transfer whose money is another claim's.
pub(crate) const ALREADY_CLAIMED: &str = "already_claimed";

/// Codes of transfers that no claim can make good: too little came, or nothing. To pay anew is right.
const BOUGHT_NOTHING: [&str; 2] = ["underpaid", "payment_reverted"];

/// Marks an answer that comes from the books and not from the upstream.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Answers a request that got no permit.
pub(crate) async fn turned(till: &Till, desk: &Desk, turned: Turned) -> Response<Body> {
    match turned {
        Turned::Rejected(rejected) => rejection(desk, rejected).await,
        Turned::Late(late) => {
            let refusal = Refusal { retry: Retry::Never, charged: desk.charged_before(), ..no(late) };
            desk.refuse(&refusal, None)
        }
        Turned::Refused(refusal) => refused(desk, *refusal).await,
        Turned::Credited(payment, why) => credited(till, desk, &payment, why).await,
        Turned::AlreadyClaimed(holder) => already_claimed(desk, &holder),
        Turned::Unverifiable(source) => {
            warn!(error = &*source, "payment could not be verified");
            desk.refuse(&unverifiable(desk.charged_before()), None)
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
                charged: desk.charged_before(),
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

/// An answer of the rail's own. What it does not call charged may be so all the same, if it was paid before it was claimed.
async fn refused(desk: &Desk, refusal: Refusal) -> Response<Body> {
    let charged = match refusal.charged {
        Charged::No => desk.charged_before(),
        known => known,
    };
    let refusal = Refusal { charged, ..refusal };
    match refusal.retry {
        Retry::AfterPayment => desk.rebill(&refusal, None).await,
        Retry::SameProof | Retry::Never => desk.refuse(&refusal, None),
    }
}

fn no(rejected: Rejected) -> Refusal {
    Refusal::payment(rejected.code, rejected.detail)
}

/// A definite no. Whoever claims a transfer has paid something already, and must not pay again because the claim is wrong.
async fn rejection(desk: &Desk, rejected: Rejected) -> Response<Body> {
    let charged = desk.charged_before();
    if charged == Charged::No || BOUGHT_NOTHING.contains(&&*rejected.code) {
        return desk.rebill(&Refusal { charged, ..no(rejected) }, None).await;
    }
    let detail = format!("{}; correct the claim and do not pay again for this", rejected.detail);
    let refusal = Refusal { retry: Retry::Never, charged, ..Refusal::payment(rejected.code, detail) };
    desk.refuse(&refusal, None)
}

fn unverifiable(charged: Charged) -> Refusal {
    let detail = match charged {
        Charged::No => {
            "the payment could not be checked on its network now; nothing was charged; send the identical request again"
        }
        Charged::Yes | Charged::Unknown => {
            "the payment could not be looked up on its network now; do not pay again: send the identical request again"
        }
    };
    Refusal::could_not_tell("payment_unverifiable", detail, charged)
}

/// The money has come and buys nothing any more.
async fn credited(till: &Till, desk: &Desk, payment: &Payment, why: Option<Rejected>) -> Response<Body> {
    let code = payment.reason.clone().unwrap_or("credited".into());
    let detail = why.map_or_else(|| "this transfer came too late for its bill".to_owned(), |why| why.detail);
    let asset = &payment.amount.asset;
    let total = match till.ledger.credits(&payment.payer).await {
        Ok(credits) => credits.into_iter().find(|credit| credit.asset == *asset).map(|credit| credit.units.to_string()),
        Err(error) => {
            // The credit is in the books all the same.
            warn!(error = &error as &dyn std::error::Error, "a payer's credits could not be summed");
            None
        }
    };
    let credit = serde_json::json!({
        "network": asset.network(),
        "asset": asset_name(asset),
        "symbol": desk.symbol(asset),
        "amount": payment.credit.to_string(),
        "total": total,
    });
    let refusal = Refusal {
        charged: Charged::Yes,
        ..Refusal::payment(code.clone(), format!("{detail}; the money is booked as this payer's credit"))
    }
    .with_fact("credit", credit);
    // Not a success: it bought nothing, and a client that looks at `success` alone must not take this 402 for what it wanted.
    let told = SettlementResponse {
        asset: Some(asset_name(asset)),
        amount: Some(payment.amount.units),
        log_index: payment.proof.transfer_position(),
        credit: Some(payment.credit),
        ..not_charged(payment, &code)
    };
    desk.rebill(&refusal, Some(&told)).await
}

async fn replayed(till: &Till, desk: &Desk, payment: &Payment) -> Response<Body> {
    if payment.delivery == Delivery::Credited {
        return credited(till, desk, payment, None).await;
    }
    let Some(receipt) = payment.receipt() else {
        let code = payment.reason.clone().unwrap_or("payment_refused".into());
        let refusal = Refusal::payment(code.clone(), "this payment was refused on its network; make a new one");
        return desk.rebill(&refusal, Some(&not_charged(payment, &code))).await;
    };
    if payment.delivery == Delivery::Pending {
        let detail =
            "this payment was charged and the upstream failed it too often; it is in the books as owed: ask the seller";
        let refusal = Refusal { charged: Charged::Yes, ..Refusal::new(409, "delivery_owed", detail) };
        return desk.refuse(&refusal, Some(&charged(&receipt)));
    }
    match till.ledger.answer(payment.id, till.clock.now()).await {
        Ok(Some(answer)) => match kept(answer) {
            Ok(response) => desk.replayed(response, receipt.payment, &Told::Charge(charged(&receipt))),
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

/// A call whose key has had its answer.
pub(crate) fn replayed_call(desk: &Desk, payment: &PassPayment, answer: Option<Answer>) -> Response<Body> {
    let again = answer.map(kept).transpose().unwrap_or_else(|error| {
        warn!(payment = %payment.id, error = &error as &dyn std::error::Error, "a kept answer cannot be sent");
        None
    });
    match again {
        Some(response) => desk.replayed(response, payment.id, &Told::Pass { left: None }),
        None => {
            let detail = "the call with this Idempotency-Key has had its answer, which was not kept; send another key for another call";
            desk.refuse(&Refusal { charged: Charged::Yes, ..Refusal::new(409, "already_delivered", detail) }, None)
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
    if payment.rail == RailName::Transfer {
        return already_claimed(desk, payment);
    }
    let detail = "this authorization was first used for another request and is good for that one only; sign a new one for this request";
    taken(desk, payment, Refusal::new(409, foreign_code(payment), detail))
}

/// What [`foreign`] says.
pub(crate) fn foreign_code(payment: &Payment) -> &'static str {
    match payment.rail {
        RailName::X402 | RailName::L402 => "proof_already_used",
        RailName::Transfer => ALREADY_CLAIMED,
    }
}

fn already_claimed(desk: &Desk, holder: &Payment) -> Response<Body> {
    let detail = "what came by this transaction was claimed for another bill, and is good for that one only; pay anew for this one";
    taken(desk, holder, Refusal::new(409, ALREADY_CLAIMED, detail))
}

fn taken(desk: &Desk, holder: &Payment, refusal: Refusal) -> Response<Body> {
    let charged = match holder.state {
        PaymentState::Settled => Charged::Yes,
        PaymentState::Refused | PaymentState::Void => Charged::No,
        PaymentState::Claimed | PaymentState::Settling | PaymentState::InDoubt => Charged::Unknown,
    };
    desk.refuse(&Refusal { charged, ..refusal }, None)
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
        facts: serde_json::Map::new(),
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
        asset: is_transfer(receipt).then(|| asset_name(&receipt.amount.asset)),
        amount: Some(receipt.amount.units),
        log_index: receipt.position,
        credit: (receipt.credit > 0).then_some(receipt.credit),
        error_reason: None,
    }
}

/// Only a transfer has a position, or pays in the network's own coin.
fn is_transfer(receipt: &Receipt) -> bool {
    receipt.position.is_some() || receipt.amount.asset.is_native()
}

/// PAYMENT-RESPONSE of a payment that is not charged, or not known to be; with the hash of a transaction if there is one.
pub(crate) fn not_charged(payment: &Payment, code: &str) -> SettlementResponse {
    SettlementResponse {
        success: false,
        transaction: payment.transaction.as_ref().map_or_else(String::new, |hash| hash.as_str().to_owned()),
        network: payment.amount.asset.network().clone(),
        payer: Some(payment.payer.address().to_owned()),
        asset: None,
        amount: None,
        log_index: None,
        credit: None,
        error_reason: Some(code.to_owned()),
    }
}

/// A refusal for books that did not answer.
pub(crate) fn books_unavailable() -> Refusal {
    Refusal::could_not_tell(
        "ledger_unavailable",
        "the books could not be read or written; send the identical request again",
        Charged::Unknown,
    )
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
