//! lnd's invoices: made, looked up, and followed by the number that lnd gives each settlement.

use std::time::Duration;

use farebox_core::{
    Invoice, InvoiceNews, PaymentHash, Timestamp,
    ports::{InvoiceOrder, InvoiceStatus, NewsCursor, NodeError, Settlements},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::wire::{Added, InvoicePage, OwnInvoice, State};
use crate::node::{
    lines::Lines,
    rest::{Rest, RestError},
};

/// gRPC's NotFound.
const NOT_FOUND: i64 = 5;
/// The most settlements that one answer brings.
const BATCH_MAX: usize = 500;
/// Invoices a page, where they are read page by page.
const PAGE: usize = 500;
/// The most pages: half a million invoices.
const PAGES_MAX: usize = 1000;
/// For how long a subscription is kept: what a broken one kept to itself is told by the next, which begins at the last that was heard of.
const SUBSCRIPTION_AGE_MAX: Duration = Duration::from_secs(600);

/// lnd's stream of what happens to its invoices.
#[derive(Debug)]
pub(super) struct Subscription {
    lines: Lines,
    /// The last settlement that was handed out.
    position: u64,
    since: Instant,
    /// Whether a settlement came: from then on each has the next number.
    begun: bool,
}

pub(super) async fn create(rest: &Rest, order: &InvoiceOrder) -> Result<Invoice, NodeError> {
    let wanted = json!({
        "memo": order.description,
        "value_msat": order.amount_msat.to_string(),
        "expiry": order.expiry.as_secs().to_string(),
        // With hints of unannounced channels: a node that has no others cannot be paid without.
        "private": true,
    });
    let added: Added = rest.ask(rest.post("v1/invoices", &wanted)).await.map_err(|e| rest.error(e))?;
    let invoice = rest.read_invoice(&added.payment_request)?;
    if invoice.payment_hash != added.r_hash {
        return Err(rest.wrong(format!("its invoice is for {}, and it says {}", invoice.payment_hash, added.r_hash)));
    }
    Ok(invoice)
}

pub(super) async fn news(rest: &Rest, hash: PaymentHash, now: Timestamp) -> Result<Option<InvoiceStatus>, NodeError> {
    let own: OwnInvoice = match rest.ask(rest.get(&format!("v1/invoice/{hash}"))).await {
        Err(RestError::Said(said)) if said.code == NOT_FOUND => return Ok(None),
        answer => answer.map_err(|e| rest.error(e))?,
    };
    if own.r_hash != hash {
        return Err(rest.wrong(format!("asked for invoice {hash}, it answers with {}", own.r_hash)));
    }
    Ok(Some(match own.state {
        State::Open => InvoiceStatus::Open,
        State::Accepted => InvoiceStatus::News(InvoiceNews::Held),
        State::Settled => InvoiceStatus::News(own.settled()),
        // lnd takes back by itself what was not paid in time.
        State::Canceled if now.unix_s() >= own.creation_date.saturating_add(own.expiry) => {
            InvoiceStatus::News(InvoiceNews::Expired)
        }
        State::Canceled => InvoiceStatus::News(InvoiceNews::Cancelled),
    }))
}

pub(super) async fn settlements(
    rest: &Rest,
    kept: &Mutex<Option<Subscription>>,
    after: Option<&NewsCursor>,
    wait: Duration,
) -> Result<Settlements, NodeError> {
    let position = after.map_or(Ok(0), |cursor| cursor.0.parse());
    let position = position.map_err(|_| rest.wrong("the cursor in the ledger is not one of lnd's"))?;
    if position == 0
        && let Some(first) = first_settlements(rest).await?
    {
        return Ok(first);
    }
    let good = |kept: &Subscription| kept.position == position && kept.since.elapsed() < SUBSCRIPTION_AGE_MAX;
    // Taken out while it is read: whoever asks at the same time, or after this future was dropped, subscribes anew and misses nothing.
    let subscription = kept.lock().take().filter(good);
    let mut subscription = subscription.unwrap_or_else(|| Subscription::at(rest, position));
    let news = subscription.read(wait).await;
    let position = subscription.position;
    let news = match news {
        Ok(news) => {
            *kept.lock() = Some(subscription);
            news
        }
        // What had come before the stream broke is handed out; the next question tells what became of the node.
        Err((_, news)) if !news.is_empty() => news,
        Err((error, _)) => return Err(rest.error(error)),
    };
    Ok(Settlements { news, cursor: Some(NewsCursor(position.to_string())) })
}

/// A subscription from 0 brings only what happens from then on, and one from 1 leaves out the first settlement of all. So as long as
/// none is known, the invoices themselves are read through.
async fn first_settlements(rest: &Rest) -> Result<Option<Settlements>, NodeError> {
    let mut offset = 0;
    let mut news = Vec::new();
    for _ in 0..PAGES_MAX {
        let path = format!("v1/invoices?index_offset={offset}&num_max_invoices={PAGE}");
        let page: InvoicePage = rest.ask(rest.get(&path)).await.map_err(|e| rest.error(e))?;
        let settled = page.invoices.iter().filter(|own| own.state == State::Settled);
        news.extend(settled.map(|own| (own.r_hash, own.settled())));
        let first = page.invoices.iter().any(|own| own.settle_index == 1);
        if first || page.invoices.len() < PAGE || page.last_index_offset <= offset {
            break;
        }
        offset = page.last_index_offset;
    }
    Ok((!news.is_empty()).then(|| Settlements { news, cursor: Some(NewsCursor("1".to_owned())) }))
}

impl Subscription {
    fn at(rest: &Rest, position: u64) -> Self {
        let lines = Lines::of(rest.get(&format!("v1/invoices/subscribe?settle_index={position}")));
        Self { lines, position, since: Instant::now(), begun: false }
    }

    /// Waits for the first settlement for at most `wait`, and takes those that are there with it. With an error comes what was read before.
    async fn read(
        &mut self,
        wait: Duration,
    ) -> Result<Vec<(PaymentHash, InvoiceNews)>, (RestError, Vec<(PaymentHash, InvoiceNews)>)> {
        let mut news = Vec::new();
        let deadline = Instant::now() + wait;
        while news.len() < BATCH_MAX {
            let wait_until = if news.is_empty() { deadline } else { Instant::now() };
            let own = match tokio::time::timeout_at(wait_until, self.lines.next::<OwnInvoice>()).await {
                Err(_nothing_more) => return Ok(news),
                Ok(Ok(Some(own))) => own,
                Ok(Ok(None)) => return Err((RestError::Wrong("it ended the subscription".to_owned()), news)),
                Ok(Err(error)) => return Err((error, news)),
            };
            // Also told: invoices that were made.
            if own.state != State::Settled || own.settle_index <= self.position {
                continue;
            }
            // lnd leaves out a settlement that it tells of after a later one. From its books it tells all of them, in order.
            if self.begun && own.settle_index != self.position + 1 {
                return Err((RestError::Wrong("a settlement is missing".to_owned()), news));
            }
            self.begun = true;
            self.position = own.settle_index;
            news.push((own.r_hash, own.settled()));
        }
        Ok(news)
    }
}

impl OwnInvoice {
    const fn settled(&self) -> InvoiceNews {
        InvoiceNews::Settled { received_msat: self.amt_paid_msat }
    }
}
