//! What Prometheus sees of a gateway: counted where rails and books are called, and read from the gateway and the chains when asked.

mod books;
mod lightning;
mod rails;
mod snapshot;
mod tokens;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use farebox_core::{
    Network, RailName,
    ports::{Clock, Ledger, Rail, TokenRail},
};
use farebox_evm::EvmChains;
use farebox_gateway::Watch;
use farebox_lightning::L402;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

pub(crate) use self::lightning::LightningMeter;
use self::{books::MeteredLedger, rails::MeteredRail, snapshot::Snapshot, tokens::MeteredTokenRail};

/// The content type of [`Metrics::text`]. Source: OpenMetrics 1.0.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds; the books take a millisecond or so, a node tens of them, a settlement up to a block or two.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// Names and their values; all of them known when the program was written, or at the start.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics of one gateway.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    verdicts: Family<Labels<2>, Counter>,
    verify_time: Family<Labels<1>, Histogram>,
    settlements: Family<Labels<2>, Counter>,
    settle_time: Family<Labels<1>, Histogram>,
    bills: Family<Labels<1>, Counter>,
    bill_time: Family<Labels<1>, Histogram>,
    /// By network, in the config's order.
    unverifiable: Arc<[(Network, AtomicU64)]>,
    claims: Family<Labels<2>, Counter>,
    transitions: Family<Labels<2>, Counter>,
    ledger_time: Family<Labels<2>, Histogram>,
    /// The coins of relayers, wei, when last asked.
    balances: Arc<Mutex<Vec<(Network, u128)>>>,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn times<const N: usize>() -> Family<Labels<N>, Histogram> {
    Family::new_with_constructor(seconds)
}

/// For metrics of these chains, and of this node.
impl Metrics {
    pub(crate) fn new(chains: Option<&EvmChains>, lightning: Option<&LightningMeter>) -> Self {
        let networks = chains.iter().flat_map(|chains| chains.status()).map(|chain| (chain.network, AtomicU64::new(0)));
        let mut metrics = Self {
            registry: Registry::with_prefix("farebox"),
            verdicts: Family::default(),
            verify_time: times(),
            settlements: Family::default(),
            settle_time: times(),
            bills: Family::default(),
            bill_time: times(),
            unverifiable: networks.collect(),
            claims: Family::default(),
            transitions: Family::default(),
            ledger_time: lightning.map_or_else(times, |meter| meter.ledger_time.clone()),
            balances: Arc::default(),
        };
        let registry = &mut metrics.registry;
        if let Some(meter) = lightning {
            meter.register(registry);
            let about = "Bills by Lightning: made or reused; limited; or none, for the node or the books failed";
            registry.register("lightning_bills", about, metrics.bills.clone());
            let (about, time) = ("From a wish for a bill by Lightning to the bill", metrics.bill_time.clone());
            registry.register_with_unit("lightning_bill_time", about, Unit::Seconds, time);
        }
        registry.register("verifications", "Credentials looked at, by rail and verdict", metrics.verdicts.clone());
        let (verify, settle) = (metrics.verify_time.clone(), metrics.settle_time.clone());
        registry.register_with_unit("verification_time", "Looking at a credential on its chain", Unit::Seconds, verify);
        registry.register("settlements", "Settlements and what became of them", metrics.settlements.clone());
        registry.register_with_unit("settlement_time", "From a claimed payment to its outcome", Unit::Seconds, settle);
        registry.register("claims", "Claims in the books, by rail and outcome", metrics.claims.clone());
        registry.register(
            "payment_events",
            "What happened to payments, by rail; `reversed` is a reorganisation that took one back",
            metrics.transitions.clone(),
        );
        let ledger = metrics.ledger_time.clone();
        registry.register_with_unit("ledger_time", "Reads and writes of the books", Unit::Seconds, ledger);
        metrics
    }

    /// Adds what is read from the gateway, the chains and the Lightning node whenever somebody asks.
    pub(crate) fn watching(
        mut self,
        watch: Watch,
        chains: Option<EvmChains>,
        lightning: Option<(Arc<L402>, LightningMeter)>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (unverifiable, balances) = (self.unverifiable.clone(), self.balances.clone());
        let snapshot = Snapshot { watch, chains, lightning, clock, unverifiable, balances };
        self.registry.register_collector(Box::new(snapshot));
        self
    }

    /// Text for Prometheus.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Where balances of relayers are put.
    pub(crate) fn balances(&self) -> Arc<Mutex<Vec<(Network, u128)>>> {
        self.balances.clone()
    }

    /// The same rail, with every call counted.
    pub(crate) fn rail(&self, rail: Arc<dyn Rail>) -> Arc<dyn Rail> {
        Arc::new(MeteredRail::new(rail, self))
    }

    /// The same rail, with every look at a token counted.
    pub(crate) fn token_rail(&self, rail: Arc<dyn TokenRail>) -> Arc<dyn TokenRail> {
        Arc::new(MeteredTokenRail::new(rail, self))
    }

    /// The same books, with every call counted.
    pub(crate) fn ledger(&self, ledger: Arc<dyn Ledger>) -> Arc<dyn Ledger> {
        Arc::new(MeteredLedger::new(ledger, self))
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Found once, so that counting is one addition.
fn found<const N: usize>(family: &Family<Labels<N>, Counter>, labels: Labels<N>) -> Counter {
    family.get_or_create(&labels).clone()
}

fn timer<const N: usize>(family: &Family<Labels<N>, Histogram>, labels: Labels<N>) -> Histogram {
    family.get_or_create(&labels).clone()
}

const fn rail_label(rail: RailName) -> (&'static str, &'static str) {
    ("rail", rail.as_str())
}
