//! `[admin]`: what operators and their tools ask, on a listener of its own that callers never reach.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Json, Router, extract::State, routing::get};
use farebox_core::{
    CredentialDigest,
    ports::{Clock, Ledger},
};
use farebox_evm::{ChainStatus, EvmChains};
use farebox_lightning::L402;
use http::{HeaderName, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tracing::debug;

use crate::metrics::{self, Metrics};

/// How long the books may take before they are not ready.
const LEDGER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often relayers' balances are asked for: for a gauge, so seldom.
const BALANCES_EVERY: Duration = Duration::from_secs(30);

/// What the listener tells of.
pub(crate) struct Admin {
    pub(crate) metrics: Metrics,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) chains: Option<EvmChains>,
    pub(crate) lightning: Option<Arc<L402>>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Listens at `address` and serves until the runtime ends. Gives the address, with the port that port 0 became.
///
/// # Errors
/// It cannot listen there.
pub(crate) async fn start(address: SocketAddr, admin: Admin) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("the admin listener cannot listen on {address}; change [admin] listen, or stop what listens there")
    })?;
    let address = listener.local_addr()?;
    let admin = Arc::new(admin);
    tokio::spawn(keep_balances(admin.clone()));
    let router = Router::new()
        .route("/metrics", get(text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(admin);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the admin listener ended");
        }
    });
    Ok(address)
}

async fn keep_balances(admin: Arc<Admin>) {
    let Some(chains) = &admin.chains else { return };
    let known = admin.metrics.balances();
    loop {
        let mut fresh = Vec::new();
        for (network, wei) in chains.relayer_balances().await {
            match wei {
                Ok(wei) => fresh.push((network, wei)),
                // The gauge goes away: a balance of before would look like one of now.
                Err(error) => debug!(%network, error = &*error, "a relayer's balance could not be read"),
            }
        }
        *known.lock() = fresh;
        tokio::time::sleep(BALANCES_EVERY).await;
    }
}

type Headers = [(HeaderName, &'static str); 1];

async fn text(State(admin): State<Arc<Admin>>) -> Result<(Headers, String), StatusCode> {
    let text = admin.metrics.text().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}

/// The process is up; no more.
async fn healthz() -> Json<Value> {
    Json(json!({ "status": "up", "version": env!("CARGO_PKG_VERSION") }))
}

/// Whether a paid request could be served now by every rail: the books answer, each chain's head is fresh, and the Lightning node makes
/// invoices.
async fn readyz(State(admin): State<Arc<Admin>>) -> (StatusCode, Json<Value>) {
    let reasons = admin.not_ready().await;
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons })))
}

impl Admin {
    async fn not_ready(&self) -> Vec<String> {
        // Any read will do; this one finds nothing.
        let asked = self.ledger.find(CredentialDigest::of(&[b"readyz"]));
        let books = match tokio::time::timeout(LEDGER_TIMEOUT, asked).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("the ledger did not answer within {} s", LEDGER_TIMEOUT.as_secs())),
        };
        let chains = self.chains.iter().flat_map(EvmChains::status);
        books.into_iter().chain(chains.filter_map(|chain| self.stale(&chain))).chain(self.no_node()).collect()
    }

    /// Since when the Lightning node makes no invoices.
    fn no_node(&self) -> Option<String> {
        let trouble = self.lightning.as_ref()?.node_trouble()?;
        let s = self.clock.now().since(trouble.since).as_secs();
        Some(format!("lightning: the node has made no invoices for {s} s ({})", trouble.code))
    }

    fn stale(&self, chain: &ChainStatus) -> Option<String> {
        let network = &chain.network;
        let Some((number, at)) = chain.head else {
            return Some(format!("{network}: no source has told of a block in the last minute"));
        };
        let (age, max) = (self.clock.now().since(at), chain.head_age_max);
        (age > max).then(|| {
            format!(
                "{network}: the newest block, {number}, is {} s old; head_age_max is {} s",
                age.as_secs(),
                max.as_secs()
            )
        })
    }
}
