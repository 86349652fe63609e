//! lnd's payments: one for a hash, by lnd's own books, which are asked whenever an answer did not come.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use farebox_core::{
    PaymentHash, Untrusted,
    ports::{Outgoing, PaidOut, PayOrder, PayOutcome},
};
use serde_json::json;

use super::wire::{OwnPayment, Status};
use crate::node::{
    lines::Lines,
    rest::{Rest, RestError, boxed, within},
};

/// gRPC's NotFound.
const NOT_FOUND: i64 = 5;
/// How much longer than lnd tries its last word is waited for.
const GRACE: Duration = Duration::from_secs(3);

/// The longest that a payment may be held on its way: a week of blocks. lnd's own limit is two, and invoices and channels ask for what they like.
const CLTV_BLOCKS_MAX: u32 = 1008;

pub(super) async fn pay(rest: &Rest, order: &PayOrder) -> PayOutcome {
    let hash = order.invoice.payment_hash;
    let wanted = json!({
        "payment_request": &*order.invoice.bolt11,
        "fee_limit_msat": order.fee_max_msat.to_string(),
        "timeout_seconds": order.timeout.as_secs().clamp(1, 86_400),
        "cltv_limit": CLTV_BLOCKS_MAX,
        "no_inflight_updates": true,
    });
    let mut lines = Lines::of(rest.post("v2/router/send", &wanted));
    let last = within(order.timeout.saturating_add(GRACE), last_word(&mut lines, hash)).await;
    match last.map(|payment| (payment.outgoing(), payment)) {
        Ok((Ok(Outgoing::Paid(paid)), _)) => PayOutcome::Paid(paid),
        Ok((Ok(Outgoing::Failed), payment)) => payment.failure(),
        Ok((Ok(Outgoing::Never | Outgoing::InFlight), _)) => {
            unknown(rest, RestError::Wrong("it ended while the payment is under way".to_owned()))
        }
        Ok((Err(error), _)) | Err(error) => after(rest, hash, error).await,
    }
}

pub(super) async fn outgoing(rest: &Rest, hash: PaymentHash) -> Result<Outgoing, RestError> {
    let path = format!("v2/router/track/{}", URL_SAFE.encode(hash.0));
    let mut lines = Lines::of(rest.get(&path));
    let payment = within(rest.timeout(), async { lines.next::<OwnPayment>().await }).await;
    match payment {
        Err(RestError::Said(said)) if said.code == NOT_FOUND => Ok(Outgoing::Never),
        Ok(None) => Err(RestError::Wrong("it ended the stream without a word".to_owned())),
        Ok(Some(payment)) => payment.of(hash)?.outgoing(),
        Err(error) => Err(error),
    }
}

/// Nothing that ends the payment was heard; lnd's books are asked, once.
async fn after(rest: &Rest, hash: PaymentHash, error: RestError) -> PayOutcome {
    match (outgoing(rest, hash).await, error.refusal()) {
        // Also when it says that this invoice is already paid: by an earlier wish, whose preimage is as good.
        (Ok(Outgoing::Paid(paid)), _) => PayOutcome::Paid(paid),
        // It took the question up, and answered that it did not begin.
        (Ok(Outgoing::Never | Outgoing::Failed), Some(said)) => {
            let code = if said.message.contains("invoice expired") { "invoice_expired" } else { "refused" };
            PayOutcome::Failed { code, detail: Untrusted::new(&*said.message).to_string() }
        }
        // The question itself may still be on its way to lnd: that it knows of no payment says nothing yet.
        (Ok(Outgoing::Never | Outgoing::InFlight | Outgoing::Failed) | Err(_), _) => unknown(rest, error),
    }
}

async fn last_word(lines: &mut Lines, hash: PaymentHash) -> Result<OwnPayment, RestError> {
    loop {
        let payment: OwnPayment = match lines.next().await? {
            Some(payment) => payment,
            None => return Err(RestError::Wrong("it ended the stream without a last word".to_owned())),
        };
        let payment = payment.of(hash)?;
        if matches!(payment.status, Status::Succeeded | Status::Failed) {
            return Ok(payment);
        }
    }
}

fn unknown(rest: &Rest, error: RestError) -> PayOutcome {
    PayOutcome::Unknown { source: boxed(rest.error(error)) }
}

impl OwnPayment {
    fn of(self, hash: PaymentHash) -> Result<Self, RestError> {
        if self.payment_hash == hash.to_string() {
            return Ok(self);
        }
        let detail = format!("asked for payment {hash}, it answers with {}", Untrusted::new(self.payment_hash));
        Err(RestError::Wrong(detail))
    }

    fn outgoing(&self) -> Result<Outgoing, RestError> {
        Ok(match self.status {
            Status::Succeeded => {
                let preimage = self.preimage().filter(|preimage| preimage.hash().to_string() == self.payment_hash);
                // A payment that was made without one is none that lnd knows of.
                let preimage =
                    preimage.ok_or_else(|| RestError::Wrong("its preimage is not that of the payment".to_owned()))?;
                Outgoing::Paid(PaidOut { preimage: Some(preimage), fee_msat: Some(self.fee_msat) })
            }
            Status::Initiated | Status::InFlight => Outgoing::InFlight,
            Status::Failed => Outgoing::Failed,
            Status::Unknown => return Err(RestError::Wrong("it does not know the payment's state".to_owned())),
        })
    }

    fn failure(&self) -> PayOutcome {
        let code = match &*self.failure_reason {
            "FAILURE_REASON_TIMEOUT" => "timeout",
            "FAILURE_REASON_NO_ROUTE" => "no_route",
            "FAILURE_REASON_INSUFFICIENT_BALANCE" => "insufficient_balance",
            _ => "refused",
        };
        PayOutcome::Failed { code, detail: format!("lnd says {}", Untrusted::new(&*self.failure_reason)) }
    }
}
