//! A gateway that sells for Lightning: the pair of nodes, an upstream, and the binary on a config that names the seller's node.

use anyhow::{Result, ensure};
use reqwest::Response;

use super::{LightningPair, Lnd, Macaroon};
use crate::{Echo, Farebox, Setup, http_client};

const POLL: std::time::Duration = std::time::Duration::from_millis(50);

/// All that a payment by Lightning goes through, each part in the test's hands.
#[derive(Debug)]
pub struct Stall {
    /// The gateway.
    pub farebox: Farebox,
    /// The upstream.
    pub echo: Echo,
    /// Both nodes; the gateway is paid at the seller's.
    pub pair: LightningPair,
}

impl Stall {
    /// Opens one with `routes`, in which `$UPSTREAM` stands for the upstream; `lightning` is further lines of `[lightning]`.
    ///
    /// # Errors
    /// A part does not start, such as the gateway for a wrong config.
    pub async fn open(lightning: &str, routes: &str) -> Result<Self> {
        let pair = LightningPair::start().await?;
        let node = lnd_node(&pair.seller);
        Self::open_at(pair, &format!("{}{lightning}\n", table(&node)), routes).await
    }

    /// Opens one before `pair` on a config of its own: `head`, which must have a `[lightning]` table, then `routes`.
    ///
    /// # Errors
    /// As [`Stall::open`].
    pub async fn open_at(pair: LightningPair, head: &str, routes: &str) -> Result<Self> {
        let echo = Echo::start().await?;
        let routes = routes.replace("$UPSTREAM", &echo.url());
        let setup = Setup::new(&format!("reconciler.interval = \"100ms\"\n{head}{routes}"))?;
        Ok(Self { farebox: Farebox::start(setup).await?, echo, pair })
    }

    /// Asks for `path` without paying until the answer has this status, and returns it.
    ///
    /// # Errors
    /// It has another within `within`; the error tells which.
    pub async fn wait_for(&self, path: &str, status: u16, within: std::time::Duration) -> Result<Response> {
        let (client, until) = (http_client()?, tokio::time::Instant::now() + within);
        loop {
            let answer = client.get(self.farebox.url(path)).send().await?;
            if answer.status() == status {
                return Ok(answer);
            }
            let late = tokio::time::Instant::now() >= until;
            ensure!(!late, "{path} still answers {}: {}", answer.status(), answer.text().await?);
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The table `[lightning]` before this node, as `node = ..` says it, on regtest.
#[must_use]
pub fn table(node: &str) -> String {
    format!("[lightning]\nnetwork = \"regtest\"\nnode = {{ {node} }}\n")
}

/// An lnd as `node = { .. }` says it.
#[must_use]
pub fn lnd_node(lnd: &Lnd) -> String {
    let (url, macaroon, cert) = (lnd.rest_url(), lnd.macaroon_file(Macaroon::Admin), lnd.tls_cert());
    let (macaroon, cert) = (macaroon.display(), cert.display());
    format!("lnd = {{ url = \"{url}\", macaroon = \"file:{macaroon}\", cert = \"{cert}\" }}")
}
