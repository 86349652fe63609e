//! A gateway that only passes through, for measuring: `passthrough LISTEN UPSTREAM WORKERS`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use farebox_core::{Access, InstanceId, RouteId, Timestamp};
use farebox_gateway::{
    Gateway, GatewayConfig, Limits, ListenerConfig, Ports, ReplayLimits, Route, UpstreamConfig, UpstreamUrl,
    parse_match,
};
use farebox_testkit::{ManualClock, MemoryLedger, SeededEntropy};

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or_else(|| format!("{what} is missing"));
    let address: SocketAddr = next("LISTEN")?.parse()?;
    let origin: UpstreamUrl = next("UPSTREAM")?.parse()?;
    let workers: usize = next("WORKERS")?.parse()?;
    let (methods, pattern) = parse_match("ANY /*")?;
    let config = GatewayConfig {
        listeners: vec![ListenerConfig { address, tls: None }],
        public_url: None,
        trusted_proxies: Vec::new(),
        limits: Limits::default(),
        workers,
        routes: vec![Route {
            id: RouteId::new("all"),
            methods,
            pattern,
            upstream: UpstreamConfig::new(origin),
            access: Access::Free,
            request_body_bytes_max: None,
        }],
        replay: ReplayLimits::default(),
        admission: farebox_gateway::AdmissionLimits::default(),
        reconciler: farebox_gateway::ReconcilerLimits::default(),
        transfer: None,
        reprice_every: std::time::Duration::from_secs(3600),
    };
    let instance = InstanceId::new("bench");
    let ports = Ports {
        tokens: None,
        rails: Vec::new(),
        ledger: Arc::new(MemoryLedger::new(instance.clone(), Duration::ZERO)),
        clock: Arc::new(ManualClock::at(Timestamp::from_unix_s(0))),
        entropy: Arc::new(SeededEntropy::new(1)),
        instance,
        quoter: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let gateway = Gateway::bind(config, ports).await?;
        gateway.serve(async { drop(tokio::signal::ctrl_c().await) }).await?;
        Ok(())
    })
}
