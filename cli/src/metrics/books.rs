//! The books, with what is written into them counted and timed.

use std::sync::Arc;

use async_trait::async_trait;
use farebox_core::{
    Amount, Answer, AuditEntry, AuditLine, BlockRef, Claim, Claimed, CredentialDigest, Network, Offer, Payer, Payment,
    PaymentEvent, PaymentId, ProofId, RailName, RouteId, Timestamp,
    ports::{Ledger, LedgerUnavailable, PaymentFilter, QuoteKey, QuoteKeyRotation, RecordError},
};
use prometheus_client::metrics::{counter::Counter, family::Family, histogram::Histogram};
use tokio::time::Instant;

use super::{Labels, Metrics, found, rail_label, timer};

#[derive(Debug)]
pub(super) struct MeteredLedger {
    ledger: Arc<dyn Ledger>,
    claims: Family<Labels<2>, Counter>,
    events: Family<Labels<2>, Counter>,
    find_time: Histogram,
    claim_time: Histogram,
    record_time: Histogram,
    audit_time: Histogram,
    unavailable: Counter,
}

impl MeteredLedger {
    pub(super) fn new(ledger: Arc<dyn Ledger>, metrics: &Metrics) -> Self {
        let time = |operation, kind| timer(&metrics.ledger_time, [("operation", operation), ("kind", kind)]);
        Self {
            ledger,
            claims: metrics.claims.clone(),
            events: metrics.transitions.clone(),
            find_time: time("find", "read"),
            claim_time: time("claim", "write"),
            record_time: time("record", "write"),
            audit_time: time("audit", "write"),
            unavailable: found(&metrics.claims, [("rail", "any"), ("outcome", "unavailable")]),
        }
    }
}

/// Every event by its own name, for the metric.
const fn event_name(event: &PaymentEvent) -> &'static str {
    match event {
        PaymentEvent::Released { .. } => "released",
        PaymentEvent::LeaseExpired => "lease_expired",
        PaymentEvent::SettlementStarted { .. } => "settlement_started",
        PaymentEvent::Doubted => "in_doubt",
        PaymentEvent::Reversed => "reversed",
        PaymentEvent::Settled { .. } => "settled",
        PaymentEvent::Refused { .. } => "refused",
        PaymentEvent::Delivered { .. } => "delivered",
        PaymentEvent::RunEnded => "run_ended",
        PaymentEvent::BrokeOff => "broke_off",
    }
}

const fn outcome_name(claimed: &Claimed) -> &'static str {
    match claimed {
        Claimed::Granted(_) => "granted",
        Claimed::Replayed(_) => "replayed",
        Claimed::Busy(_) => "busy",
        Claimed::Foreign(_) => "foreign",
    }
}

#[async_trait]
impl Ledger for MeteredLedger {
    async fn find(&self, credential: CredentialDigest) -> Result<Option<Payment>, LedgerUnavailable> {
        let started = Instant::now();
        let known = self.ledger.find(credential).await;
        self.find_time.observe(started.elapsed().as_secs_f64());
        known
    }

    async fn find_proof(&self, proof: &ProofId) -> Result<Option<Payment>, LedgerUnavailable> {
        self.ledger.find_proof(proof).await
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerUnavailable> {
        let (rail, started): (RailName, _) = (claim.rail, Instant::now());
        let claimed = self.ledger.claim(claim).await;
        self.claim_time.observe(started.elapsed().as_secs_f64());
        match &claimed {
            Ok(claimed) => {
                let labels = [rail_label(rail), ("outcome", outcome_name(claimed))];
                self.claims.get_or_create(&labels).inc()
            }
            Err(_) => self.unavailable.inc(),
        };
        claimed
    }

    async fn record(&self, id: PaymentId, events: Vec<PaymentEvent>, now: Timestamp) -> Result<Payment, RecordError> {
        // At most three go together.
        let names: [Option<&'static str>; 4] = std::array::from_fn(|at| events.get(at).map(event_name));
        let started = Instant::now();
        let recorded = self.ledger.record(id, events, now).await;
        self.record_time.observe(started.elapsed().as_secs_f64());
        if let Ok(payment) = &recorded {
            for name in names.into_iter().flatten() {
                self.events.get_or_create(&[rail_label(payment.rail), ("event", name)]).inc();
            }
        }
        recorded
    }

    async fn answer(&self, id: PaymentId, now: Timestamp) -> Result<Option<Answer>, LedgerUnavailable> {
        self.ledger.answer(id, now).await
    }

    async fn unresolved(&self, now: Timestamp, limit: u32) -> Result<Vec<Payment>, LedgerUnavailable> {
        self.ledger.unresolved(now, limit).await
    }

    async fn settled_blocks(
        &self,
        network: &Network,
        from: u64,
        limit: u32,
    ) -> Result<Vec<BlockRef>, LedgerUnavailable> {
        self.ledger.settled_blocks(network, from, limit).await
    }

    async fn compared_below(&self, network: &Network) -> Result<u64, LedgerUnavailable> {
        self.ledger.compared_below(network).await
    }

    async fn set_compared_below(&self, network: &Network, height: u64) -> Result<(), LedgerUnavailable> {
        self.ledger.set_compared_below(network, height).await
    }

    async fn settled_in(
        &self,
        network: &Network,
        block: &BlockRef,
        limit: u32,
    ) -> Result<Vec<Payment>, LedgerUnavailable> {
        self.ledger.settled_in(network, block, limit).await
    }

    async fn list(&self, filter: &PaymentFilter) -> Result<Vec<Payment>, LedgerUnavailable> {
        self.ledger.list(filter).await
    }

    async fn exchange_offers(
        &self,
        route: &RouteId,
        current: &[Offer],
        now: Timestamp,
    ) -> Result<Vec<Offer>, LedgerUnavailable> {
        self.ledger.exchange_offers(route, current, now).await
    }

    async fn marked_payers(&self, limit: u32) -> Result<Vec<Payer>, LedgerUnavailable> {
        self.ledger.marked_payers(limit).await
    }

    async fn credits(&self, payer: &Payer) -> Result<Vec<Amount>, LedgerUnavailable> {
        self.ledger.credits(payer).await
    }

    async fn quote_keys(&self, rotation: QuoteKeyRotation, now: Timestamp) -> Result<Vec<QuoteKey>, LedgerUnavailable> {
        self.ledger.quote_keys(rotation, now).await
    }

    async fn audit(&self, entries: Vec<AuditEntry>) -> Result<(), LedgerUnavailable> {
        let started = Instant::now();
        let written = self.ledger.audit(entries).await;
        self.audit_time.observe(started.elapsed().as_secs_f64());
        written
    }

    async fn audit_lines(&self, after: u64, limit: u32) -> Result<Vec<AuditLine>, LedgerUnavailable> {
        self.ledger.audit_lines(after, limit).await
    }
}
