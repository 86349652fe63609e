//! The gateway of this config, started to be asked: on a free port of loopback, with books of its own, so that it finds no payment to
//! go on with and writes nothing into the real ones.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use farebox_core::{Access, ports::OfferError};
use farebox_evm::ChainConfig;
use farebox_gateway::ServeError;
#[cfg(feature = "demo")]
use farebox_ledger::SqliteLedger;
use farebox_wire::transfer::Quoter;
use tokio::sync::oneshot;

use super::{
    finding::{Findings, Outcome},
    world,
};
use crate::{
    admin,
    config::{Config, NodeSource, Route, Secrets},
    wiring::{self, Bound, Listening, Unpriced},
};

/// Port 0 of loopback.
const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

pub(super) struct Trial {
    /// Where it listens, such as `http://127.0.0.1:41234`.
    pub(super) base: String,
    /// What every route costs, in the order of the config.
    pub(super) accesses: Vec<Access>,
    /// What is not offered yet.
    unpriced: Vec<Unpriced>,
    /// What seals its quotes.
    pub(super) quoter: Option<Arc<Quoter>>,
    /// Its books.
    #[cfg(feature = "demo")]
    pub(super) ledger: Arc<SqliteLedger>,
    /// Where its metrics are told, if the config wants any.
    pub(super) admin: Option<SocketAddr>,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<Result<(), ServeError>>,
    _books: tempfile::TempDir,
}

impl Trial {
    pub(super) async fn start(config: &Config, chains: Vec<ChainConfig>) -> anyhow::Result<Self> {
        let books = tempfile::tempdir().context("a folder for the trial's books cannot be made")?;
        // What is tried is no decision about anybody's money.
        let config = &Config { audit_file: None, workers: Some(1), ..config.clone() };
        let secrets = Secrets { chains, node: config.lightning.as_ref().map(|_| NodeSource::Idle) };
        let mut shop = wiring::open(config, &books.path().join("check.db"), secrets).await?;
        let (quoter, watched) = (shop.quoter.clone(), shop.metered(config));
        #[cfg(feature = "demo")]
        let ledger = shop.ledger.clone();
        let listening = Listening { addresses: vec![SocketAddr::from(ANY_PORT)], tls: None };
        let Bound { gateway, accesses, unpriced } = wiring::bind(config, shop, listening).await?;
        let address = *gateway.addresses().first().context("it listens nowhere")?;
        let admin = match watched {
            Some(watched) => Some(admin::start(SocketAddr::from(ANY_PORT), watched.by(gateway.watch())).await?),
            None => None,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            // Dropped or sent: both mean stop.
            let stopped = async { drop(stopped.await) };
            gateway.serve(stopped).await
        });
        Ok(Self {
            base: format!("http://{address}"),
            accesses,
            unpriced,
            quoter,
            #[cfg(feature = "demo")]
            ledger,
            admin,
            stop,
            served,
            _books: books,
        })
    }

    /// Whether it has anything to charge for a route with.
    pub(super) fn offers(&self, config: &Config, route: &Route) -> bool {
        let paid = config.routes.iter().zip(&self.accesses).find(|(configured, _)| configured.id == route.id);
        paid.is_some_and(|(_, access)| match access {
            Access::Free => false,
            Access::Paid(tariff) => !tariff.board.now().offers.is_empty(),
        })
    }

    /// Tells of every route that a rail does not offer now. A route that none offers is answered 503: a fault if a rate is not known, for
    /// nothing is sold until it is.
    pub(super) fn unpriced(&self, config: &Config, findings: &mut Findings) {
        for later in &self.unpriced {
            let Unpriced { route, rail, why } = later;
            let offered =
                config.routes.iter().any(|configured| configured.id == *route && self.offers(config, configured));
            let answered = if offered { "" } else { ", and nothing else is, so it is answered 503" };
            let told = world::chain_of(why);
            let message = format!("is not offered by {rail} now{answered}: {told}; {}", later.hint());
            let (code, outcome) = match why {
                OfferError::FeeShare { .. } => ("max_fee_share", Outcome::Warn),
                _ if offered => ("no_rate", Outcome::Warn),
                _ => ("no_rate", Outcome::Fail),
            };
            findings.add(outcome, code, format!("route {route}"), message);
        }
    }

    /// Warns of routes whose 402 has more headers than many proxies pass on.
    pub(super) fn oversized_headers(&self, config: &Config, findings: &mut Findings) {
        for (route, access) in config.routes.iter().zip(&self.accesses) {
            if let Access::Paid(tariff) = access
                && let Some(bytes) = wiring::oversized_headers(config, route, tariff)
            {
                let message = format!(
                    "the 402's headers take about {bytes} bytes; many proxies pass on 8 KiB: offer fewer tokens or a shorter description"
                );
                findings.warn("header_size", format!("route {}", route.id), message);
            }
        }
    }

    /// # Errors
    /// It had not served well.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        drop(self.stop);
        Ok(self.served.await.context("it panicked")??)
    }
}
