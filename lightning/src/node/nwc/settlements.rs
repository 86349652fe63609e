//! What a wallet was paid: told by itself where it does so, and read from its list after every new connection.

use std::time::Duration;

use farebox_core::{
    InvoiceNews, PaymentHash,
    ports::{NewsCursor, Settlements},
};
use nostr::Event;
use serde_json::json;
use tokio::time::Instant;

use super::{
    Nwc, NwcError, Session,
    relay::Noticed,
    wire::{Direction, Notice, Transaction, Transactions},
};

/// The list is sorted by when invoices were made, and is read from so long before the cursor: what was made earlier and is paid later is
/// found by asking for it.
const LOOK_BACK: Duration = Duration::from_secs(24 * 3600);
/// Transactions a page. Source: NIP-47, "Metadata": at most 20.
pub(super) const PAGE: usize = 20;
/// The most pages that are read at once.
const PAGES_MAX: usize = 200;
/// How often the list of a wallet that does not tell by itself is read.
const POLL: Duration = Duration::from_secs(10);

impl Nwc {
    /// The cursor is the time, in Unix seconds, up to which the list was read.
    pub(super) async fn settled_after(
        &self,
        after: Option<&NewsCursor>,
        wait: Duration,
    ) -> Result<Settlements, NwcError> {
        let deadline = Instant::now() + wait;
        let read_to: u64 = match after {
            Some(cursor) => {
                cursor.0.parse().map_err(|_| NwcError::Wrong("the cursor in the ledger is not a time".to_owned()))?
            }
            None => 0,
        };
        let session = self.session().await?;
        if !session.offers("list_transactions") {
            // Then there is what it tells, and what is asked for one by one.
            return self.told(&session, deadline, NewsCursor(read_to.to_string())).await;
        }
        let started = self.now().as_secs();
        if !*session.caught_up.lock() {
            let news = self.listed(read_to.saturating_sub(LOOK_BACK.as_secs())).await?;
            *session.caught_up.lock() = true;
            if !news.is_empty() {
                return Ok(Settlements { news, cursor: Some(NewsCursor(started.to_string())) });
            }
            return self.told(&session, deadline, NewsCursor(started.to_string())).await;
        }
        self.told(&session, deadline, NewsCursor(read_to.to_string())).await
    }

    /// Waits for what the wallet tells by itself; and where it does not, or too much came, has the list read again by the next question.
    async fn told(&self, session: &Session, deadline: Instant, cursor: NewsCursor) -> Result<Settlements, NwcError> {
        let nothing = |cursor| Ok(Settlements { news: Vec::new(), cursor: Some(cursor) });
        if !session.notifies() {
            tokio::time::sleep_until(deadline.min(Instant::now() + POLL)).await;
            *session.caught_up.lock() = false;
            return nothing(cursor);
        }
        loop {
            match tokio::time::timeout_at(deadline, session.relay.noticed()).await {
                Err(_in_time) => return nothing(cursor),
                Ok(Noticed::Closed) => return Err(NwcError::Gone),
                Ok(Noticed::Lost) => {
                    *session.caught_up.lock() = false;
                    return nothing(cursor);
                }
                Ok(Noticed::Event(event)) => {
                    if let Some(news) = self.news(session, &event) {
                        return Ok(Settlements { news: vec![news], cursor: Some(cursor) });
                    }
                }
            }
        }
    }

    /// What a notice tells of a payment that came in. One that cannot be read tells nothing: the invoice is asked for at its end.
    fn news(&self, session: &Session, event: &Event) -> Option<(PaymentHash, InvoiceNews)> {
        if !session.encryption.is_of(event) {
            return None;
        }
        let text = session.encryption.open(&self.uri, event).ok()?;
        let notice: Notice = serde_json::from_str(&text).ok()?;
        let told: Transaction = serde_json::from_value(notice.notification).ok()?;
        let news = match &*notice.notification_type {
            "payment_received" => told.settled(),
            "hold_invoice_accepted" => InvoiceNews::Held,
            _ => return None,
        };
        (told.direction == Direction::Incoming).then_some((told.payment_hash, news))
    }

    /// Every invoice made since `from`, Unix seconds, that is paid.
    async fn listed(&self, from: u64) -> Result<Vec<(PaymentHash, InvoiceNews)>, NwcError> {
        let (mut news, mut seen) = (Vec::new(), 0);
        for _ in 0..PAGES_MAX {
            let wanted = json!({ "from": from, "limit": PAGE, "offset": seen, "unpaid": false, "type": "incoming" });
            let Transactions { transactions } = self.ask("list_transactions", wanted).await?;
            let paid = transactions.iter().filter(|one| one.direction == Direction::Incoming && one.is_settled());
            news.extend(paid.map(|one| (one.payment_hash, one.settled())));
            // A wallet may give fewer a page than it was asked for, and still have more.
            if transactions.is_empty() {
                return Ok(news);
            }
            seen += transactions.len();
        }
        tracing::warn!(wallet = &*self.label, from, pages = PAGES_MAX, "the wallet's list is longer than is read");
        Ok(news)
    }
}
