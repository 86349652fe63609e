//! What is read when somebody asks: the gateway's counters, and how chains do.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use farebox_core::{Network, Timestamp, ports::Clock};
use farebox_evm::{ChainStatus, ETHER, EvmChains, Standing};
use farebox_gateway::Watch;
use farebox_lightning::{L402, NodeTrouble};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::LightningMeter;

#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) watch: Watch,
    pub(super) chains: Option<EvmChains>,
    pub(super) lightning: Option<(Arc<L402>, LightningMeter)>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) unverifiable: Arc<[(Network, AtomicU64)]>,
    pub(super) balances: Arc<Mutex<Vec<(Network, u128)>>>,
}

impl Collector for Snapshot {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        self.requests(&mut out)?;
        self.audit(&mut out)?;
        if let Some((rail, meter)) = &self.lightning {
            node(rail.node_trouble(), meter.news_read_at(), self.clock.now(), &mut out)?;
            let help =
                "Open invoices of a Lightning node that was there before, which the one that is there does not know";
            let lost = out.encode_descriptor("lightning_unknown_invoices", help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::from(rail.unknown_of_other_nodes())).encode(lost)?;
        }
        let chains: Vec<ChainStatus> = self.chains.iter().flat_map(EvmChains::status).collect();
        if chains.is_empty() {
            return Ok(());
        }
        heads(&chains, self.clock.now(), &mut out)?;
        sources(&chains, &mut out)?;
        self.relayers(&chains, &mut out)
    }
}

impl Snapshot {
    fn requests(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests by route and what became of them";
        let mut family = out.encode_descriptor("requests", help, None, MetricType::Counter)?;
        for (route, outcome, count) in self.watch.routes() {
            counter(&mut family, &[("route", route.as_str()), ("outcome", outcome.code())], count)?;
        }
        let help =
            "Bills (payment_required) and refusals by their code; too_many_claims are look-ups that were not made";
        let mut family = out.encode_descriptor("answers", help, None, MetricType::Counter)?;
        for (code, count) in self.watch.codes() {
            counter(&mut family, &[("code", code)], count)?;
        }
        Ok(())
    }

    fn audit(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Refusals that wait to be written into the audit log";
        let waiting = i64::try_from(self.watch.audit_waiting()).unwrap_or(i64::MAX);
        ConstGauge::new(waiting).encode(out.encode_descriptor("audit_queue", help, None, MetricType::Gauge)?)?;
        let help = "Refusals that the audit log had no room for";
        let dropped = out.encode_descriptor("audit_dropped", help, None, MetricType::Counter)?;
        ConstCounter::new(self.watch.audit_dropped()).encode(dropped)
    }

    fn relayers(&self, chains: &[ChainStatus], out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Credentials that could not be checked, by network";
        let mut family = out.encode_descriptor("unverifiable", help, None, MetricType::Counter)?;
        for (network, count) in self.unverifiable.iter() {
            counter(&mut family, &[("network", network.as_str())], count.load(Ordering::Relaxed))?;
        }
        let help = "Transactions of the relayer that are not mined yet";
        let mut family = out.encode_descriptor("relayer_in_flight", help, None, MetricType::Gauge)?;
        for chain in chains {
            if let Some(relayer) = &chain.relayer {
                gauge(&mut family, &[("network", chain.network.as_str())], relayer.in_flight as f64)?;
            }
        }
        let help = "What the relayer has for gas, in the network's own coin";
        let mut family = out.encode_descriptor("relayer_balance", help, None, MetricType::Gauge)?;
        for (network, wei) in self.balances.lock().iter() {
            // A gauge is no account: what a float rounds off is nothing to anybody who watches it.
            gauge(&mut family, &[("network", network.as_str())], *wei as f64 / ETHER as f64)?;
        }
        Ok(())
    }
}

fn node(
    trouble: Option<NodeTrouble>,
    news_read_at: Option<Timestamp>,
    now: Timestamp,
    out: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let help = "1 while the Lightning node answers, as far as is known; else 0, and no invoices are made";
    let up = out.encode_descriptor("lightning_node_up", help, None, MetricType::Gauge)?;
    ConstGauge::new(i64::from(trouble.is_none())).encode(up)?;
    if let Some(at) = news_read_at {
        let help = "Since the Lightning node last said what its news are; half a minute is usual, as long as it may wait for some";
        let unit = Some(&prometheus_client::registry::Unit::Seconds);
        let age = out.encode_descriptor("lightning_news_age", help, unit, MetricType::Gauge)?;
        ConstGauge::new(now.since(at).as_secs_f64()).encode(age)?;
    }
    Ok(())
}

fn heads(chains: &[ChainStatus], now: Timestamp, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Height of the newest block known";
    let mut family = out.encode_descriptor("chain_height", help, None, MetricType::Gauge)?;
    for chain in chains {
        if let Some((number, _)) = chain.head {
            gauge(&mut family, &[("network", chain.network.as_str())], number as f64)?;
        }
    }
    let help = "Age of the newest block known; none while no source tells of one";
    let unit = Some(&prometheus_client::registry::Unit::Seconds);
    let mut family = out.encode_descriptor("chain_head_age", help, unit, MetricType::Gauge)?;
    for chain in chains {
        if let Some((_, at)) = chain.head {
            gauge(&mut family, &[("network", chain.network.as_str())], now.since(at).as_secs_f64())?;
        }
    }
    let help = "Reorganisations seen";
    let mut family = out.encode_descriptor("chain_reorganisations", help, None, MetricType::Counter)?;
    for chain in chains {
        counter(&mut family, &[("network", chain.network.as_str())], chain.reorganisations)?;
    }
    Ok(())
}

fn sources(chains: &[ChainStatus], out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let sources = || chains.iter().flat_map(|chain| chain.sources.iter().map(move |source| (chain, source)));
    let help = "1 for the standing that a source has: good, behind, resting or limited";
    let mut family = out.encode_descriptor("source_standing", help, None, MetricType::Gauge)?;
    for (chain, source) in sources() {
        for standing in [Standing::Good, Standing::Behind, Standing::Resting, Standing::Limited] {
            let network = ("network", chain.network.as_str());
            let labels = [network, ("source", source.label.as_str()), ("standing", standing.code())];
            gauge(&mut family, &labels, f64::from(u8::from(standing == source.standing)))?;
        }
    }
    let help = "Height of the newest block that a source told of in the last minute";
    let mut family = out.encode_descriptor("source_height", help, None, MetricType::Gauge)?;
    for (chain, source) in sources() {
        if let Some((number, _)) = source.head {
            gauge(&mut family, &labels(chain, &source.label), number as f64)?;
        }
    }
    let help = "Moving average of the time of a source's answers";
    let unit = Some(&prometheus_client::registry::Unit::Seconds);
    let mut family = out.encode_descriptor("source_latency", help, unit, MetricType::Gauge)?;
    for (chain, source) in sources() {
        if let Some(latency) = source.latency {
            gauge(&mut family, &labels(chain, &source.label), latency.as_secs_f64())?;
        }
    }
    Ok(())
}

fn labels<'a>(chain: &'a ChainStatus, source: &'a str) -> [(&'static str, &'a str); 2] {
    [("network", chain.network.as_str()), ("source", source)]
}

fn counter<const N: usize>(family: &mut MetricEncoder<'_>, labels: &[(&str, &str); N], count: u64) -> fmt::Result {
    ConstCounter::new(count).encode(family.encode_family(labels)?)
}

fn gauge<const N: usize>(family: &mut MetricEncoder<'_>, labels: &[(&str, &str); N], value: f64) -> fmt::Result {
    ConstGauge::new(value).encode(family.encode_family(labels)?)
}
