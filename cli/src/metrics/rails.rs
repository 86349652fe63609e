//! A rail, with what it says counted and timed.

use std::sync::{Arc, atomic::AtomicU64};

use async_trait::async_trait;
use farebox_core::{
    BlockRef, Credential, FeeTerms, Finality, Network, Offer, Payment, Permit, Price, RailName,
    ports::{
        BoxError, Canonical, ChainWindow, Checked, Lookups, OfferError, Offering, Presented, Rail, Rejected,
        Settlement, Verified, VerifyError,
    },
};
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};
use tokio::time::Instant;

use super::{Metrics, count, found, rail_label, timer};

#[derive(Debug)]
pub(super) struct MeteredRail {
    rail: Arc<dyn Rail>,
    good: Counter,
    rejected: Counter,
    refused: Counter,
    unavailable: Counter,
    verify_time: Histogram,
    settled: Counter,
    not_settled: Counter,
    in_doubt: Counter,
    settle_time: Histogram,
    unverifiable: Arc<[(Network, AtomicU64)]>,
}

impl MeteredRail {
    pub(super) fn new(rail: Arc<dyn Rail>, metrics: &Metrics) -> Self {
        let name = rail_label(rail.name());
        let verdict = |verdict| found(&metrics.verdicts, [name, ("verdict", verdict)]);
        let outcome = |outcome| found(&metrics.settlements, [name, ("outcome", outcome)]);
        Self {
            good: verdict("good"),
            rejected: verdict("rejected"),
            refused: verdict("refused"),
            unavailable: verdict("unavailable"),
            verify_time: timer(&metrics.verify_time, [name]),
            settled: outcome("final"),
            not_settled: outcome("refused"),
            in_doubt: outcome("in_doubt"),
            settle_time: timer(&metrics.settle_time, [name]),
            unverifiable: metrics.unverifiable.clone(),
            rail,
        }
    }

    fn not_good(&self, error: &VerifyError, network: &Network) {
        match error {
            VerifyError::Rejected(_) => self.rejected.inc(),
            VerifyError::Refused(_) => self.refused.inc(),
            VerifyError::Unavailable { .. } => {
                if let Some((_, counter)) = self.unverifiable.iter().find(|(of, _)| of == network) {
                    count(counter);
                }
                self.unavailable.inc()
            }
        };
    }
}

impl Offering for MeteredRail {
    fn name(&self) -> RailName {
        self.rail.name()
    }

    fn offers(&self, price: &Price, fee: FeeTerms) -> Result<Vec<Offer>, OfferError> {
        self.rail.offers(price, fee)
    }
}

#[async_trait]
impl Rail for MeteredRail {
    async fn authenticate(&self, presented: &Presented<'_>) -> Result<Option<Checked>, VerifyError> {
        self.rail.authenticate(presented).await.inspect_err(|error| {
            let network = match presented.credential {
                Credential::X402(x402) => &x402.accepted.network,
                Credential::Transfer(transfer) => transfer.code.asset.network(),
                // No rail's: what is presented of L402 is a token.
                Credential::L402(_) => return,
            };
            self.not_good(error, network);
        })
    }

    fn check(&self, presented: &Presented<'_>) -> Result<Checked, Rejected> {
        self.rail.check(presented).inspect_err(|_| {
            self.rejected.inc();
        })
    }

    async fn verify(&self, checked: &Checked, lookups: &dyn Lookups) -> Result<Verified, VerifyError> {
        let started = Instant::now();
        let verdict = self.rail.verify(checked, lookups).await;
        self.verify_time.observe(started.elapsed().as_secs_f64());
        match &verdict {
            Ok(_) => {
                self.good.inc();
            }
            Err(error) => self.not_good(error, checked.offer.network()),
        }
        verdict
    }

    async fn settle(&self, permit: &Permit) -> Settlement {
        let started = Instant::now();
        let settlement = self.rail.settle(permit).await;
        self.settle_time.observe(started.elapsed().as_secs_f64());
        match &settlement {
            Settlement::Final { .. } => self.settled.inc(),
            Settlement::Refused(_) => self.not_settled.inc(),
            Settlement::InDoubt { .. } => self.in_doubt.inc(),
        };
        settlement
    }

    async fn resolve(&self, payment: &Payment) -> Settlement {
        self.rail.resolve(payment).await
    }

    async fn windows(&self) -> Vec<ChainWindow> {
        self.rail.windows().await
    }

    async fn is_canonical(&self, network: &Network, block: &BlockRef) -> Result<Canonical, BoxError> {
        self.rail.is_canonical(network, block).await
    }

    fn deepest(&self, network: &Network) -> Finality {
        self.rail.deepest(network)
    }
}
