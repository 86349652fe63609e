//! The gateway of this config, started to be asked: on a free port of loopback, with books of its own, so that it finds no payment to
//! go on with and writes nothing into the real ones.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use farebox_core::Access;
use farebox_evm::ChainConfig;
use farebox_gateway::ServeError;
#[cfg(feature = "demo")]
use farebox_ledger::SqliteLedger;
use farebox_wire::transfer::Quoter;
use tokio::sync::oneshot;

use super::finding::Findings;
use crate::{
    admin,
    config::Config,
    wiring::{self, Listening},
};

/// Port 0 of loopback.
const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

pub(super) struct Trial {
    /// Where it listens, such as `http://127.0.0.1:41234`.
    pub(super) base: String,
    /// What every route costs, in the order of the config.
    pub(super) accesses: Vec<Access>,
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
        let mut shop = wiring::open(config, &books.path().join("check.db"), chains).await?;
        let (quoter, watched) = (shop.quoter.clone(), shop.metered(config));
        #[cfg(feature = "demo")]
        let ledger = shop.ledger.clone();
        let listening = Listening { addresses: vec![SocketAddr::from(ANY_PORT)], tls: None };
        let (gateway, accesses) = wiring::bind(config, shop, listening).await?;
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
            quoter,
            #[cfg(feature = "demo")]
            ledger,
            admin,
            stop,
            served,
            _books: books,
        })
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
