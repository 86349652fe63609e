//! Core Lightning's invoices: made, looked up, and followed by the number that it gives each payment.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use farebox_core::{
    Invoice, InvoiceNews, PaymentHash, Timestamp,
    ports::{InvoiceOrder, InvoiceStatus, NewsCursor, NodeError, Settlements},
};
use serde_json::json;

use super::{
    call,
    wire::{InvoiceState, Invoices, Made, OwnInvoice},
};
use crate::node::rest::{Rest, RestError};

/// `invoice`: a label that is taken; nothing was made.
const LABEL_TAKEN: i64 = 900;
/// How many labels are tried.
const LABELS_MAX: usize = 5;
/// `waitanyinvoice`: nothing was paid in time.
const TIMED_OUT: i64 = 904;
/// The most settlements that one answer brings.
const BATCH_MAX: usize = 200;

pub(super) async fn create(
    rest: &Rest,
    made: &AtomicU64,
    order: &InvoiceOrder,
    now: Timestamp,
) -> Result<Invoice, NodeError> {
    // The parameters take no \u escape, which is how JSON writes control characters.
    let description = order.description.replace(char::is_control, " ");
    let mut tried = 1;
    let answer = loop {
        // Another gateway on this node may have come upon the same.
        let label = format!("farebox-{}-{}", now.unix_ms(), made.fetch_add(1, Ordering::Relaxed));
        let wanted = json!({
            "amount_msat": order.amount_msat, "label": label, "description": description, "expiry": order.expiry.as_secs(),
        });
        match call::<Made>(rest, "invoice", wanted).await {
            Err(RestError::Said(said)) if said.code == LABEL_TAKEN && tried < LABELS_MAX => tried += 1,
            answer => break answer.map_err(|e| rest.error(e))?,
        }
    };
    let invoice = rest.read_invoice(&answer.bolt11)?;
    if invoice.payment_hash != answer.payment_hash {
        let detail = format!("its invoice is for {}, and it says {}", invoice.payment_hash, answer.payment_hash);
        return Err(rest.wrong(detail));
    }
    Ok(invoice)
}

pub(super) async fn news(rest: &Rest, hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
    let answer: Invoices =
        call(rest, "listinvoices", json!({ "payment_hash": hash })).await.map_err(|e| rest.error(e))?;
    let Some(own) = answer.invoices.first() else { return Ok(None) };
    if own.payment_hash != hash {
        return Err(rest.wrong(format!("asked for invoice {hash}, it answers with {}", own.payment_hash)));
    }
    Ok(Some(match own.status {
        InvoiceState::Unpaid => InvoiceStatus::Open,
        InvoiceState::Expired => InvoiceStatus::News(InvoiceNews::Expired),
        InvoiceState::Paid => InvoiceStatus::News(own.settled().map_err(|e| rest.error(e))?),
    }))
}

pub(super) async fn settlements(
    rest: &Rest,
    after: Option<&NewsCursor>,
    wait: Duration,
) -> Result<Settlements, NodeError> {
    let position = after.map_or(Ok(0), |cursor| cursor.0.parse());
    let mut position: u64 =
        position.map_err(|_| rest.wrong("the cursor in the ledger is not one of Core Lightning's"))?;
    let mut news = Vec::new();
    while news.len() < BATCH_MAX {
        // 0 is answered at once.
        let wait = if news.is_empty() { wait } else { Duration::ZERO };
        match next(rest, position, wait).await {
            Ok(Some((index, own))) => {
                position = index;
                news.push(own);
            }
            Ok(None) => break,
            // What had come before is handed out; the next question tells what became of the node.
            Err(_) if !news.is_empty() => break,
            Err(error) => return Err(rest.error(error)),
        }
    }
    Ok(Settlements { news, cursor: Some(NewsCursor(position.to_string())) })
}

/// The first payment after `position`, with its number.
async fn next(
    rest: &Rest,
    position: u64,
    wait: Duration,
) -> Result<Option<(u64, (PaymentHash, InvoiceNews))>, RestError> {
    let question = json!({ "lastpay_index": position, "timeout": wait.as_secs() });
    let asked = rest.ask_within(rest.timeout() + wait, rest.post("v1/waitanyinvoice", &question));
    let own: OwnInvoice = match asked.await {
        Err(RestError::Said(said)) if said.code == TIMED_OUT => return Ok(None),
        answer => answer?,
    };
    let index = own.pay_index.filter(|index| own.status == InvoiceState::Paid && *index > position);
    let index =
        index.ok_or_else(|| RestError::Wrong(format!("it tells of a payment that is not after number {position}")))?;
    Ok(Some((index, (own.payment_hash, own.settled()?))))
}

impl OwnInvoice {
    fn settled(&self) -> Result<InvoiceNews, RestError> {
        let received =
            self.amount_received_msat.ok_or_else(|| RestError::Wrong("it does not say with how much".to_owned()))?;
        Ok(InvoiceNews::Settled { received_msat: received.0 })
    }
}
