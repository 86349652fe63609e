//! The books of tokens and the Lightning node, with what they are asked and told counted and timed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use farebox_core::{
    Draw, DrawEnd, DrawId, Drawn, Invoice, NewToken, PaidBefore, PassId, PaymentHash, Timestamp, Token,
    ports::{
        Clock, InvoiceOrder, InvoiceStatus, LedgerUnavailable, LightningNode, NewsCursor, NewsRead, NodeError,
        NodeInfo, NotedNews, Settlements, TokenBooks, TokenFilter,
    },
};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::time::Instant;

use super::{Labels, timer, times};

/// What is counted of one node and the tokens that it is paid for. There before the rest of the metrics is, for node and books are in the rail's
/// hands from the start.
#[derive(Clone, Debug)]
pub(crate) struct LightningMeter {
    tokens: Family<Labels<1>, Counter>,
    draws: Family<Labels<1>, Counter>,
    ends: Family<Labels<1>, Counter>,
    calls: Family<Labels<2>, Counter>,
    call_time: Family<Labels<1>, Histogram>,
    /// Goes into the metric of the other books.
    pub(super) ledger_time: Family<Labels<2>, Histogram>,
    /// When the node last answered what the news are, Unix milliseconds; 0: never.
    news_read_at: Arc<AtomicU64>,
}

impl LightningMeter {
    pub(crate) fn new() -> Self {
        Self {
            tokens: Family::default(),
            draws: Family::default(),
            ends: Family::default(),
            calls: Family::default(),
            call_time: times(),
            ledger_time: times(),
            news_read_at: Arc::default(),
        }
    }

    /// The same node, with every call counted.
    pub(crate) fn node(&self, node: Arc<dyn LightningNode>, clock: Arc<dyn Clock>) -> Arc<dyn LightningNode> {
        Arc::new(MeteredNode { node, clock, meter: self.clone() })
    }

    /// The same books, with every call counted.
    pub(crate) fn books(&self, books: Arc<dyn TokenBooks>) -> Arc<dyn TokenBooks> {
        let time = |operation| timer(&self.ledger_time, [("operation", operation), ("kind", "write")]);
        let (sell_time, draw_time, end_time) = (time("sell"), time("draw"), time("end_draw"));
        Arc::new(MeteredTokenBooks { books, meter: self.clone(), sell_time, draw_time, end_time })
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "tokens",
            "Tokens sold with an invoice that may be paid, and those of them that were paid",
            self.tokens.clone(),
        );
        registry.register("token_draws", "Calls wanted of tokens, by what became of the wish", self.draws.clone());
        registry.register("token_calls", "Calls made with tokens, by how they ended", self.ends.clone());
        registry.register("lightning_node_calls", "Questions to the Lightning node, by outcome", self.calls.clone());
        let (about, time) =
            ("Answers of the Lightning node; those to long polls are not timed", self.call_time.clone());
        registry.register_with_unit("lightning_node_time", about, Unit::Seconds, time);
    }

    /// When the node last said what the news are, if it ever did.
    pub(super) fn news_read_at(&self) -> Option<Timestamp> {
        let ms = self.news_read_at.load(Ordering::Relaxed);
        (ms > 0).then_some(Timestamp::from_unix_ms(ms))
    }

    fn add(&self, family: &Family<Labels<1>, Counter>, name: &'static str, value: &'static str) {
        family.get_or_create(&[(name, value)]).inc();
    }
}

#[derive(Debug)]
struct MeteredTokenBooks {
    books: Arc<dyn TokenBooks>,
    meter: LightningMeter,
    sell_time: Histogram,
    draw_time: Histogram,
    end_time: Histogram,
}

const fn draw_outcome(drawn: &Drawn) -> &'static str {
    match drawn {
        Drawn::Granted(_) => "granted",
        Drawn::Replayed { .. } => "replayed",
        Drawn::Busy => "busy",
        Drawn::Foreign => "foreign",
        Drawn::Spent => "spent",
        Drawn::Expired => "expired",
        Drawn::Revoked => "revoked",
        Drawn::Underpaid => "underpaid",
        Drawn::Unknown => "unknown",
    }
}

const fn end_outcome(end: &DrawEnd) -> &'static str {
    match end {
        DrawEnd::Delivered { .. } => "delivered",
        DrawEnd::Returned => "returned",
        DrawEnd::BrokeOff => "broke_off",
    }
}

#[async_trait]
impl TokenBooks for MeteredTokenBooks {
    async fn sell(&self, token: NewToken) -> Result<(), LedgerUnavailable> {
        let started = Instant::now();
        let sold = self.books.sell(token).await;
        self.sell_time.observe(started.elapsed().as_secs_f64());
        let event = if sold.is_ok() { "sold" } else { "not_stored" };
        self.meter.add(&self.meter.tokens, "event", event);
        sold
    }

    async fn token(&self, pass: PassId) -> Result<Option<Token>, LedgerUnavailable> {
        self.books.token(pass).await
    }

    async fn draw(&self, draw: Draw) -> Result<Drawn, LedgerUnavailable> {
        let started = Instant::now();
        let drawn = self.books.draw(draw).await;
        self.draw_time.observe(started.elapsed().as_secs_f64());
        self.meter.add(&self.meter.draws, "outcome", drawn.as_ref().map_or("unavailable", draw_outcome));
        if let Ok(Drawn::Granted(permit)) = &drawn
            && permit.paid_before() == PaidBefore::Unheard
        {
            self.meter.add(&self.meter.tokens, "event", "paid");
        }
        drawn
    }

    async fn end_draw(
        &self,
        pass: PassId,
        draw: DrawId,
        end: DrawEnd,
        now: Timestamp,
    ) -> Result<(), LedgerUnavailable> {
        let (outcome, started) = (end_outcome(&end), Instant::now());
        let ended = self.books.end_draw(pass, draw, end, now).await;
        self.end_time.observe(started.elapsed().as_secs_f64());
        self.meter.add(&self.meter.ends, "outcome", if ended.is_ok() { outcome } else { "unavailable" });
        ended
    }

    async fn note_news(
        &self,
        news: Vec<NotedNews>,
        read: Option<NewsRead>,
        now: Timestamp,
    ) -> Result<Vec<PassId>, LedgerUnavailable> {
        let paid = self.books.note_news(news, read, now).await?;
        for _ in &paid {
            self.meter.add(&self.meter.tokens, "event", "paid");
        }
        Ok(paid)
    }

    async fn news_cursor(&self, node: &str) -> Result<Option<NewsCursor>, LedgerUnavailable> {
        self.books.news_cursor(node).await
    }

    async fn unsettled_invoices(
        &self,
        node: &str,
        expired_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<Invoice>, LedgerUnavailable> {
        self.books.unsettled_invoices(node, expired_before, limit).await
    }

    async fn unsettled_elsewhere(
        &self,
        node: &str,
        after: Option<(Timestamp, PaymentHash)>,
        limit: u32,
    ) -> Result<Vec<Invoice>, LedgerUnavailable> {
        self.books.unsettled_elsewhere(node, after, limit).await
    }

    async fn tokens(&self, filter: &TokenFilter) -> Result<Vec<Token>, LedgerUnavailable> {
        self.books.tokens(filter).await
    }

    async fn revoke(&self, pass: PassId, now: Timestamp) -> Result<Option<Token>, LedgerUnavailable> {
        self.books.revoke(pass, now).await
    }
}

#[derive(Debug)]
struct MeteredNode {
    node: Arc<dyn LightningNode>,
    clock: Arc<dyn Clock>,
    meter: LightningMeter,
}

impl MeteredNode {
    fn told<T>(&self, operation: &'static str, answer: Result<T, NodeError>) -> Result<T, NodeError> {
        let outcome = answer.as_ref().map_or_else(NodeError::code, |_| "answered");
        self.meter.calls.get_or_create(&[("operation", operation), ("outcome", outcome)]).inc();
        answer
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        asked: impl Future<Output = Result<T, NodeError>>,
    ) -> Result<T, NodeError> {
        let started = Instant::now();
        let answer = asked.await;
        let time = timer(&self.meter.call_time, [("operation", operation)]);
        time.observe(started.elapsed().as_secs_f64());
        self.told(operation, answer)
    }
}

#[async_trait]
impl LightningNode for MeteredNode {
    fn label(&self) -> &str {
        self.node.label()
    }

    async fn info(&self) -> Result<NodeInfo, NodeError> {
        self.timed("info", self.node.info()).await
    }

    async fn create_invoice(&self, order: &InvoiceOrder) -> Result<Invoice, NodeError> {
        self.timed("create_invoice", self.node.create_invoice(order)).await
    }

    async fn invoice_news(&self, hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
        self.timed("invoice_news", self.node.invoice_news(hash)).await
    }

    async fn settlements(&self, after: Option<&NewsCursor>, wait: Duration) -> Result<Settlements, NodeError> {
        let read = self.told("settlements", self.node.settlements(after, wait).await)?;
        self.meter.news_read_at.store(self.clock.now().unix_ms(), Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use farebox_core::{BitcoinNetwork, Grant, InstanceId, InvoiceNews, PaymentId};
    use farebox_testkit::{
        ManualClock, MemoryLedger, TEST_TOKEN_MSAT, test_draw, test_draw_id, test_pass, test_preimage, test_token,
    };
    use parking_lot::Mutex;
    use prometheus_client::encoding::text::encode;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);

    /// A node that is there or not.
    #[derive(Debug)]
    struct Switched(Mutex<bool>);

    impl Switched {
        fn answer<T>(&self, answer: T) -> Result<T, NodeError> {
            let down = || NodeError::Unavailable { label: "a node".into(), source: "down".into() };
            self.0.lock().then_some(answer).ok_or_else(down)
        }
    }

    #[async_trait]
    impl LightningNode for Switched {
        fn label(&self) -> &str {
            "a node"
        }

        async fn info(&self) -> Result<NodeInfo, NodeError> {
            self.answer(NodeInfo {
                id: "id".into(),
                alias: String::new(),
                network: Some(BitcoinNetwork::Regtest),
                synced: true,
                receivable_msat: None,
                channels: None,
            })
        }

        async fn create_invoice(&self, order: &InvoiceOrder) -> Result<Invoice, NodeError> {
            self.answer(test_token(1, Grant::default(), order.now).invoice)
        }

        async fn invoice_news(&self, _hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
            self.answer(None)
        }

        async fn settlements(&self, _after: Option<&NewsCursor>, _wait: Duration) -> Result<Settlements, NodeError> {
            self.answer(Settlements { news: Vec::new(), cursor: None })
        }
    }

    fn text(meter: &LightningMeter) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        meter.register(&mut registry);
        encode(&mut text, &registry).unwrap();
        text
    }

    #[tokio::test]
    async fn what_tokens_bought_is_counted_once() {
        let meter = LightningMeter::new();
        let ledger = Arc::new(MemoryLedger::new(InstanceId::new("i"), Duration::ZERO));
        let books = meter.books(ledger.clone());
        for number in [1, 2] {
            books.sell(test_token(number, Grant::default(), NOW)).await.unwrap();
        }
        let mut taken = test_token(3, Grant::default(), NOW);
        taken.pass = test_pass(1);
        books.sell(taken).await.unwrap_err();
        let draw = |number, id| test_draw(number, id, InstanceId::new("i"), NOW);
        // The first is paid by its draw, and the node says so afterwards; of the second the node tells.
        books.draw(draw(1, 1)).await.unwrap();
        let news = InvoiceNews::Settled { received_msat: TEST_TOKEN_MSAT };
        let payment = |byte| PaymentId::new(NOW, [byte; 10]);
        let noted = |number, byte| NotedNews { hash: test_preimage(number).hash(), news, payment: payment(byte) };
        books.note_news(vec![noted(1, 8), noted(2, 9)], None, NOW).await.unwrap();
        books.draw(draw(1, 2)).await.unwrap();
        books.end_draw(test_pass(1), test_draw_id(1), DrawEnd::Returned, NOW).await.unwrap();
        books.draw(draw(1, 3)).await.unwrap();
        books.end_draw(test_pass(1), test_draw_id(3), DrawEnd::Delivered { answer: None }, NOW).await.unwrap();
        books.draw(draw(1, 4)).await.unwrap();
        books.draw(draw(9, 5)).await.unwrap();
        ledger.plan(0, farebox_testkit::Fault::FailBefore);
        books.draw(draw(2, 6)).await.unwrap_err();
        let text = text(&meter);
        for line in [
            "tokens_total{event=\"sold\"} 2",
            "tokens_total{event=\"not_stored\"} 1",
            "tokens_total{event=\"paid\"} 2",
            "token_draws_total{outcome=\"granted\"} 2",
            "token_draws_total{outcome=\"busy\"} 1",
            "token_draws_total{outcome=\"spent\"} 1",
            "token_draws_total{outcome=\"unknown\"} 1",
            "token_draws_total{outcome=\"unavailable\"} 1",
            "token_calls_total{outcome=\"returned\"} 1",
            "token_calls_total{outcome=\"delivered\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
    }

    #[tokio::test]
    async fn a_node_that_is_away_is_counted_and_its_news_grow_old() {
        let meter = LightningMeter::new();
        let clock = Arc::new(ManualClock::at(NOW));
        let switch = Arc::new(Switched(Mutex::new(true)));
        let node = meter.node(switch.clone(), clock.clone());
        assert_eq!(meter.news_read_at(), None);
        node.settlements(None, Duration::ZERO).await.unwrap();
        node.info().await.unwrap();
        assert_eq!(meter.news_read_at(), Some(NOW));
        *switch.0.lock() = false;
        clock.advance(Duration::from_secs(60));
        node.settlements(None, Duration::ZERO).await.unwrap_err();
        node.invoice_news(test_preimage(1).hash()).await.unwrap_err();
        assert_eq!(meter.news_read_at(), Some(NOW));
        let text = text(&meter);
        for line in [
            "lightning_node_calls_total{operation=\"settlements\",outcome=\"answered\"} 1",
            "lightning_node_calls_total{operation=\"settlements\",outcome=\"node_unavailable\"} 1",
            "lightning_node_calls_total{operation=\"invoice_news\",outcome=\"node_unavailable\"} 1",
            "lightning_node_time_seconds_count{operation=\"info\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
    }
}
