//! `farebox serve`: the gateway, until it is told to stop.

use std::process::ExitCode;

use anyhow::Context as _;
use farebox_core::Access;
use farebox_evm::{NativeRole, is_test_network};
use tracing::{info, warn};

use super::Globals;
use crate::{
    admin,
    config::{self, Config, Secrets},
    logging, system,
    wiring::{self, Bound, Listening},
};

/// Serve the routes of the config, until SIGTERM or SIGINT; running requests are then finished. A second signal stops at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Serves. Returns after the drain.
///
/// # Errors
/// Whatever is not as the config says: nothing is served then.
pub(crate) fn run(_args: &Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let config = config::load(&globals.config)?;
    logging::start(&config.log)?;
    let secrets = config.secrets(&system::environment)?;
    runtime()?.block_on(serve(&config, secrets))?;
    Ok(ExitCode::SUCCESS)
}

/// One thread for accepting, the relayer and the reconciler; requests run on the gateway's own workers.
///
/// # Errors
/// The system gives no more.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime could not be started")
}

async fn serve(config: &Config, secrets: Secrets) -> anyhow::Result<()> {
    // Before anything else: a signal during the start must not leave a half-started gateway.
    let mut stop = Stop::new()?;
    let start = async {
        let mut shop = wiring::open(config, &config.ledger, secrets).await?;
        tell_chains(config);
        let lightning = shop.lightning.clone();
        if let Some(lightning) = &lightning {
            tokio::spawn(lightning.rail.clone().follow());
        }
        if let Some(keys) = shop.quote_keys(config) {
            tokio::spawn(wiring::keep_quote_keys_young(keys));
        }
        let listening = Listening { addresses: config.listen.clone(), tls: config.tls.clone() };
        let watched = shop.metered(config);
        let Bound { gateway, accesses, unpriced } = wiring::bind(config, shop, listening).await?;
        if let (Some(address), Some(watched)) = (config.admin, watched) {
            let address = admin::start(address, watched.by(gateway.watch())).await?;
            info!(%address, "metrics and health");
        }
        for later in &unpriced {
            let error = &later.why as &dyn std::error::Error;
            warn!(route = %later.route, rail = %later.rail, error, hint = later.hint(), "not offered yet");
        }
        anyhow::Ok((gateway, accesses, lightning))
    };
    let (gateway, accesses, lightning) = tokio::select! {
        started = Box::pin(start) => started?,
        () = stop.asked() => anyhow::bail!("told to stop before the gateway had started"),
    };
    tell_routes(config, &accesses);
    for address in gateway.addresses() {
        info!(%address, tls = config.tls.is_some(), ledger = %config.ledger.display(), "listening");
    }
    let shutdown = async {
        stop.asked().await;
        info!(drain_timeout = ?config.limits.drain_timeout, "stopping; finishing what runs, a second signal stops at once");
        tokio::spawn(async move {
            stop.asked().await;
            warn!("stopped at once; what was running is looked into at the next start");
            std::process::exit(1);
        });
    };
    Box::pin(gateway.serve(shutdown)).await.context("the gateway ended")?;
    if let Some(lightning) = lightning {
        lightning.stop().await;
    }
    info!("stopped");
    Ok(())
}

fn tell_chains(config: &Config) {
    for chain in &config.chains {
        let mut assets: Vec<&str> = chain.assets.iter().map(|asset| asset.symbol.as_str()).collect();
        let native = chain.native.as_ref().filter(|native| native.role == NativeRole::Payment);
        assets.extend(native.map(|native| native.symbol.as_str()));
        let (network, assets) = (&chain.network, assets.join(", "));
        info!(%network, %assets, sources = chain.sources.len(), pay_to = %chain.pay_to.get_ref(), "chain");
        if is_test_network(network) && config.routes.iter().any(|route| route.paid.is_some()) {
            warn!(%network, "this is a test network: what is paid here is worth nothing");
        }
    }
    if let Some(lightning) = config.lightning.as_ref().filter(|lightning| lightning.network.is_test()) {
        warn!(network = %lightning.network, "this is a test network of Bitcoin's: what is paid here is worth nothing");
    }
    for told in config::never_offered(config) {
        warn!("{told}");
    }
}

fn tell_routes(config: &Config, accesses: &[Access]) {
    for (route, access) in config.routes.iter().zip(accesses) {
        let (id, upstream) = (&route.id, &route.upstream.origin);
        match access {
            Access::Free => info!(route = %id, %upstream, price = "free", "route"),
            Access::Paid(tariff) => {
                info!(route = %id, %upstream, price = %tariff.pricing.price, offers = tariff.board.now().offers.len(), "route");
                if let Some(bytes) = wiring::oversized_headers(config, route, tariff) {
                    warn!(route = %id, bytes, "the 402's headers are larger than the 8 KiB that many proxies pass on; offer fewer tokens or a shorter description");
                }
            }
        }
    }
}

/// SIGTERM and SIGINT.
pub(super) struct Stop {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    /// From now on the signals no longer end the process by themselves.
    #[cfg(unix)]
    pub(super) fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).context("signals cannot be listened for");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    #[cfg(unix)]
    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    pub(super) async fn asked(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
