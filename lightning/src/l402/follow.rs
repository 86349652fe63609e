//! What becomes of the invoices: news from the node as they come, and a question for each invoice whose time is over without any.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use farebox_core::{
    Invoice, InvoiceNews, PaymentHash, PaymentId,
    ports::{InvoiceStatus, LedgerUnavailable, NewsCursor, NewsRead, NodeError, NotedNews},
};
use tokio::time::Instant;

use super::{L402, elsewhere::Elsewhere};

/// How long the node may wait for news before it says that there are none.
const LONG_POLL: Duration = Duration::from_secs(30);
/// Between two reads, so that news that come close together are written together.
const NEWS_PAUSE: Duration = Duration::from_millis(100);
/// Before the next read if this one told nothing new and did not take the time it had.
const IDLE_PAUSE: Duration = Duration::from_secs(1);
/// The most news in one commit.
const NEWS_AT_ONCE_MAX: usize = 500;
/// How often the node is asked for invoices whose time is over.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// So long after its end an invoice is first asked for: clocks differ, and a payment may be on its last hop.
const SWEEP_AFTER: Duration = Duration::from_secs(30);
/// The most invoices asked for at a time, beside those that were no further the last time.
const SWEEP_MAX: u32 = 100;
/// The most of those.
const STUCK_MAX: u32 = 2_000;
/// A node that says for so long after its end that an invoice is open has forgotten to end it.
const OPEN_MAX: Duration = Duration::from_secs(3600);
/// Waits after failures double from the first to the last, each lengthened at random.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(30);

impl L402 {
    /// Reads the node's news into the books, for ever. Nothing is lost when it is dropped, nor while it, the node or the books are down: the
    /// next one reads on from where the books say.
    pub async fn follow(self: Arc<Self>) {
        let mut follower = Follower { read_to: None, sweep_at: Instant::now(), stuck: 0, elsewhere: Elsewhere::new() };
        let mut retries = self.retries();
        loop {
            let pause = match follower.round(&self).await {
                Ok(pause) => {
                    retries = self.retries();
                    pause
                }
                Err(error) => {
                    let wait = retries.next().unwrap_or(RETRY_LAST);
                    let (node, error) = (self.maker.link.label(), &error as &dyn std::error::Error);
                    tracing::warn!(node, error, wait_ms = wait.as_millis(), "news of invoices were not read");
                    wait
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn retries(&self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(RETRY_FIRST)
            .with_max_delay(RETRY_LAST)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(u64::from_le_bytes(self.maker.random()))
            .build()
    }
}

struct Follower {
    /// The node, and up to where its news are in the books.
    read_to: Option<(Arc<str>, Option<NewsCursor>)>,
    sweep_at: Instant,
    /// Invoices that were no further after the last sweep, and will be the first of the next.
    stuck: u32,
    elsewhere: Elsewhere,
}

/// Why a round was not finished. The next one begins where the books are.
#[derive(Debug, thiserror::Error)]
pub(super) enum RoundError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Books(#[from] LedgerUnavailable),
}

impl Follower {
    /// One read and, if it is time, one sweep. Tells how long to wait before the next.
    async fn round(&mut self, rail: &L402) -> Result<Duration, RoundError> {
        let node = rail.maker.link.id().await?;
        let cursor = self.cursor(rail, &node).await?;
        let next_at = self.sweep_at.min(self.elsewhere.next_at);
        let wait = LONG_POLL.min(next_at.saturating_duration_since(Instant::now()));
        let asked_at = Instant::now();
        let read = match rail.maker.link.settlements(cursor.as_ref(), wait).await {
            Ok(read) => read,
            // A wallet that tells no news may still tell what it is asked.
            Err(error @ NodeError::Refused { .. }) => {
                self.tidy(rail, &node).await?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        };
        let (any, moved) = (!read.news.is_empty(), read.cursor != cursor);
        self.note(rail, &node, &read.news, read.cursor.filter(|_| moved)).await?;
        self.tidy(rail, &node).await?;
        let waited = asked_at.elapsed() >= wait && !wait.is_zero();
        Ok(match (any, moved) {
            (true, true) => NEWS_PAUSE,
            (false, _) if waited => Duration::ZERO,
            (true, false) | (false, _) => IDLE_PAUSE,
        })
    }

    async fn tidy(&mut self, rail: &L402, node: &Arc<str>) -> Result<(), RoundError> {
        let now = rail.maker.clock.now();
        rail.bills.forget_expired(now);
        rail.limits.forget_quiet(now);
        if Instant::now() >= self.sweep_at {
            self.sweep(rail, node).await?;
        }
        self.elsewhere.ask(rail, node).await
    }

    async fn cursor(&mut self, rail: &L402, node: &Arc<str>) -> Result<Option<NewsCursor>, LedgerUnavailable> {
        if let Some((known, cursor)) = &self.read_to
            && known == node
        {
            return Ok(cursor.clone());
        }
        let cursor = rail.maker.books.news_cursor(node).await?;
        self.read_to = Some((node.clone(), cursor.clone()));
        Ok(cursor)
    }

    /// Writes the news and then, with the last of them, how far they were read: after a crash some are read twice and none is lost.
    async fn note(
        &mut self,
        rail: &L402,
        node: &Arc<str>,
        news: &[(PaymentHash, InvoiceNews)],
        cursor: Option<NewsCursor>,
    ) -> Result<(), LedgerUnavailable> {
        let whole = news.len() - news.len() % NEWS_AT_ONCE_MAX;
        for chunk in news[..whole].chunks(NEWS_AT_ONCE_MAX) {
            rail.note(chunk, None).await?;
        }
        let read = cursor.clone().map(|cursor| NewsRead { node: node.clone(), cursor });
        rail.note(&news[whole..], read).await?;
        if cursor.is_some() {
            self.read_to = Some((node.clone(), cursor));
        }
        Ok(())
    }

    async fn sweep(&mut self, rail: &L402, node: &Arc<str>) -> Result<(), RoundError> {
        let link = &rail.maker.link;
        let before = rail.maker.clock.now().minus(SWEEP_AFTER);
        let limit = SWEEP_MAX + self.stuck.min(STUCK_MAX);
        let overdue = rail.maker.books.unsettled_invoices(node, before, limit).await?;
        let mut ended = Vec::new();
        let mut stuck = 0;
        for invoice in &overdue {
            let status = match link.invoice_news(invoice.payment_hash).await {
                Err(error @ NodeError::Refused { .. }) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(node = link.label(), error, hash = %invoice.payment_hash, "an invoice's end is not known");
                    stuck += 1;
                    continue;
                }
                Err(error) => {
                    rail.note(&ended, None).await?;
                    return Err(error.into());
                }
                Ok(status) => status,
            };
            let news = rail.overdue_news(invoice, status);
            stuck += u32::from(matches!(news, None | Some(InvoiceNews::Held)));
            ended.extend(news.map(|news| (invoice.payment_hash, news)));
        }
        rail.note(&ended, None).await?;
        let more = u32::try_from(overdue.len()).unwrap_or(u32::MAX) >= limit && stuck < limit;
        self.stuck = stuck;
        self.sweep_at = Instant::now() + if more { Duration::ZERO } else { SWEEP_EVERY };
        Ok(())
    }
}

impl L402 {
    pub(super) async fn note(
        &self,
        news: &[(PaymentHash, InvoiceNews)],
        read: Option<NewsRead>,
    ) -> Result<(), LedgerUnavailable> {
        if news.is_empty() && read.is_none() {
            return Ok(());
        }
        let now = self.maker.clock.now();
        let noted = news.iter().map(|(hash, news)| {
            let payment = PaymentId::new(now, self.maker.random());
            NotedNews { hash: *hash, news: *news, payment }
        });
        let paid = self.maker.books.note_news(noted.collect(), read, now).await?;
        for (hash, _) in news {
            self.bills.withdraw(*hash);
        }
        for pass in paid {
            farebox_core::ports::TokenRail::bought(self, pass);
        }
        Ok(())
    }

    /// What is noted of an invoice whose time is over. Money that comes later counts all the same, so that it is no harm to call it expired.
    pub(super) fn overdue_news(&self, invoice: &Invoice, status: Option<InvoiceStatus>) -> Option<InvoiceNews> {
        let (node, hash) = (self.maker.link.label(), invoice.payment_hash);
        match status {
            Some(InvoiceStatus::News(news)) => Some(news),
            Some(InvoiceStatus::Open) if self.maker.clock.now().since(invoice.expires_at) < OPEN_MAX => None,
            Some(InvoiceStatus::Open) => {
                tracing::warn!(node, %hash, "the node still has an invoice open whose time is long over");
                Some(InvoiceNews::Expired)
            }
            None => {
                tracing::warn!(node, %hash, "the node does not know an invoice that it made");
                Some(InvoiceNews::Expired)
            }
        }
    }
}
