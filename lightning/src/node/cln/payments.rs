//! Core Lightning's payments: looked up in its books before and after, since two of them for one hash would both be tried.

use std::time::Duration;

use farebox_core::{
    PaymentHash, Preimage, Untrusted,
    ports::{Outgoing, PaidOut, PayOrder, PayOutcome},
};
use serde_json::json;

use super::{
    RUNE_REFUSED, call,
    wire::{Paid, PayState, Pays},
};
use crate::node::{
    once::Paying,
    rest::{Rest, RestError, Said, boxed},
};

/// JSON-RPC: no such method.
const NO_METHOD: i64 = -32601;
/// How much longer than the node tries its last word is waited for.
const GRACE: Duration = Duration::from_secs(3);

pub(super) async fn pay(rest: &Rest, paying: &Paying, order: &PayOrder) -> PayOutcome {
    let hash = order.invoice.payment_hash;
    let Some(_turn) = paying.begin(hash) else {
        return unknown(rest, RestError::Wrong("the invoice is being paid already".to_owned()));
    };
    match outgoing(rest, hash).await {
        Ok(Outgoing::Never | Outgoing::Failed) => {}
        Ok(Outgoing::Paid(paid)) => return PayOutcome::Paid(paid),
        Ok(Outgoing::InFlight) => {
            return unknown(rest, RestError::Wrong("the invoice is being paid already".to_owned()));
        }
        // Nothing was asked for yet by this wish; by an earlier one it may have been.
        Err(error) => return unknown(rest, error),
    }
    match send(rest, order).await {
        Ok(paid) if paid.payment_preimage.hash() == hash => PayOutcome::Paid(PaidOut {
            preimage: Some(paid.payment_preimage),
            fee_msat: paid.amount_sent_msat.0.checked_sub(paid.amount_msat.0),
        }),
        Ok(_) => unknown(rest, RestError::Wrong("its preimage is not that of the payment".to_owned())),
        Err(error) => after(rest, hash, error).await,
    }
}

pub(super) async fn outgoing(rest: &Rest, hash: PaymentHash) -> Result<Outgoing, RestError> {
    let Pays { pays } = call(rest, "listpays", json!({ "payment_hash": hash })).await?;
    if let Some(other) = pays.iter().find(|pay| pay.payment_hash != hash) {
        return Err(RestError::Wrong(format!("asked for payment {hash}, it answers with {}", other.payment_hash)));
    }
    // One entry an attempt.
    let of = |status: PayState| pays.iter().find(|pay| pay.status == status);
    if let Some(paid) = of(PayState::Complete) {
        let preimage = paid.preimage.as_deref().and_then(Preimage::from_hex).filter(|preimage| preimage.hash() == hash);
        let preimage =
            preimage.ok_or_else(|| RestError::Wrong("its preimage is not that of the payment".to_owned()))?;
        let fee_msat = paid.amount_sent_msat.zip(paid.amount_msat).and_then(|(sent, of)| sent.0.checked_sub(of.0));
        return Ok(Outgoing::Paid(PaidOut { preimage: Some(preimage), fee_msat }));
    }
    Ok(match (of(PayState::Pending), of(PayState::Failed)) {
        (Some(_), _) => Outgoing::InFlight,
        (None, Some(_)) => Outgoing::Failed,
        (None, None) => Outgoing::Never,
    })
}

/// By `xpay`, and by `pay` where that is missing (before v24.11) or the rune allows only this one: neither has then begun.
async fn send(rest: &Rest, order: &PayOrder) -> Result<Paid, RestError> {
    let tries_s = order.timeout.as_secs().clamp(1, u64::from(u16::MAX));
    let ask = async |method: &str, invoice: &str| {
        let wanted = json!({ invoice: &*order.invoice.bolt11, "maxfee": order.fee_max_msat, "retry_for": tries_s });
        let timeout = order.timeout.saturating_add(GRACE);
        rest.ask_within(timeout, rest.post(&format!("v1/{method}"), &wanted)).await
    };
    match ask("xpay", "invstring").await {
        Err(RestError::Said(said)) if said.code == NO_METHOD || RUNE_REFUSED.contains(&said.code) => {
            ask("pay", "bolt11").await
        }
        answer => answer,
    }
}

/// It was not paid as far as was heard; the node's books are asked, once.
async fn after(rest: &Rest, hash: PaymentHash, error: RestError) -> PayOutcome {
    match (outgoing(rest, hash).await, error.refusal()) {
        (Ok(Outgoing::Paid(paid)), _) => PayOutcome::Paid(paid),
        (Ok(Outgoing::Never | Outgoing::Failed), Some(said)) => {
            PayOutcome::Failed { code: code(said), detail: Untrusted::new(&*said.message).to_string() }
        }
        // The question itself may still be on its way: that the node knows of no payment says nothing yet.
        (Ok(Outgoing::Never | Outgoing::InFlight | Outgoing::Failed) | Err(_), _) => unknown(rest, error),
    }
}

/// Source: `common/jsonrpc_errors.h`.
const fn code(said: &Said) -> &'static str {
    match said.code {
        205 | 206 | 216 | 220 => "no_route",
        207 => "invoice_expired",
        210 => "timeout",
        215 => "insufficient_balance",
        _ => "refused",
    }
}

fn unknown(rest: &Rest, error: RestError) -> PayOutcome {
    PayOutcome::Unknown { source: boxed(rest.error(error)) }
}
