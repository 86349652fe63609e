//! The rail that sells tokens, with what it says counted and timed.

use std::{collections::HashSet, sync::Arc};

use async_trait::async_trait;
use farebox_core::{
    FeeTerms, L402Token, Offer, PassId, Price, RailName,
    ports::{BillAsk, HeldToken, NoBill, OfferError, Offering, TokenBill, TokenError, TokenRail, TokenRequest},
};
use parking_lot::Mutex;
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};
use tokio::time::Instant;

use super::{Metrics, found, rail_label, timer};

#[derive(Debug)]
pub(super) struct MeteredTokenRail {
    rail: Arc<dyn TokenRail>,
    good: Counter,
    rejected: Counter,
    refused: Counter,
    unavailable: Counter,
    verify_time: Histogram,
    made: Counter,
    reused: Counter,
    limited: Counter,
    no_node: Counter,
    no_books: Counter,
    bill_time: Histogram,
    shown: Mutex<HashSet<PassId>>,
}

/// Bills remembered as shown. Past so many all are forgotten, and those of them that are still open are counted as made once more.
const SHOWN_MAX: usize = 20_000;

impl MeteredTokenRail {
    pub(super) fn new(rail: Arc<dyn TokenRail>, metrics: &Metrics) -> Self {
        let name = rail_label(rail.name());
        let verdict = |verdict| found(&metrics.verdicts, [name, ("verdict", verdict)]);
        let bill = |outcome| found(&metrics.bills, [("outcome", outcome)]);
        Self {
            good: verdict("good"),
            rejected: verdict("rejected"),
            refused: verdict("refused"),
            unavailable: verdict("unavailable"),
            verify_time: timer(&metrics.verify_time, [name]),
            made: bill("made"),
            reused: bill("reused"),
            limited: bill("limited"),
            no_node: bill("node_failed"),
            no_books: bill("books_failed"),
            bill_time: timer(&metrics.bill_time, [name]),
            shown: Mutex::default(),
            rail,
        }
    }

    /// Whether this bill was shown to nobody before.
    fn is_new(&self, bill: &TokenBill) -> bool {
        let mut shown = self.shown.lock();
        if shown.len() >= SHOWN_MAX {
            shown.clear();
        }
        shown.insert(bill.pass)
    }
}

impl Offering for MeteredTokenRail {
    fn name(&self) -> RailName {
        self.rail.name()
    }

    fn offers(&self, price: &Price, fee: FeeTerms) -> Result<Vec<Offer>, OfferError> {
        self.rail.offers(price, fee)
    }
}

#[async_trait]
impl TokenRail for MeteredTokenRail {
    async fn bill(&self, ask: &BillAsk<'_>) -> Result<Arc<TokenBill>, NoBill> {
        let started = Instant::now();
        let bill = self.rail.bill(ask).await;
        self.bill_time.observe(started.elapsed().as_secs_f64());
        match &bill {
            Ok(bill) if self.is_new(bill) => &self.made,
            Ok(_) => &self.reused,
            Err(NoBill::Limited { .. }) => &self.limited,
            Err(NoBill::Node { .. }) => &self.no_node,
            Err(NoBill::Books(_)) => &self.no_books,
        }
        .inc();
        bill
    }

    async fn check(&self, token: &L402Token, request: &TokenRequest<'_>) -> Result<HeldToken, TokenError> {
        let started = Instant::now();
        let verdict = self.rail.check(token, request).await;
        self.verify_time.observe(started.elapsed().as_secs_f64());
        match &verdict {
            Ok(_) => &self.good,
            Err(TokenError::Rejected(_) | TokenError::Malformed(_)) => &self.rejected,
            Err(TokenError::Unsettled) => &self.refused,
            Err(TokenError::Unavailable { .. }) => &self.unavailable,
        }
        .inc();
        verdict
    }

    fn bought(&self, pass: PassId) {
        self.rail.bought(pass);
    }
}
