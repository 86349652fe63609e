//! Listening, workers and their end.

use std::{net::SocketAddr, sync::Arc};

use farebox_core::{
    InstanceId,
    ports::{Clock, Entropy, Ledger, Rail},
};

use crate::{GatewayConfig, RouteTable, RouteTableError, upstream::Upstreams};

/// What stands behind the gateway.
#[derive(Clone, Debug)]
pub struct Ports {
    /// The configured rails.
    pub rails: Vec<Arc<dyn Rail>>,
    /// The books.
    pub ledger: Arc<dyn Ledger>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// This run of this process.
    pub instance: InstanceId,
}

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: GatewayConfig,
    pub(crate) routes: RouteTable,
    pub(crate) ports: Ports,
}

/// One worker: a thread with its own runtime and upstream connections.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) upstreams: Upstreams,
    /// Work that must not end with the request it belongs to: spawn it here, and a drain waits for it.
    pub(crate) tasks: tokio_util::task::TaskTracker,
}

/// A gateway that listens but does not serve yet.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The routes conflict.
    #[error(transparent)]
    Routes(#[from] RouteTableError),
    /// An address could not be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why serving ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A worker thread could not be started.
    #[error("a worker thread could not be started")]
    Thread(#[source] std::io::Error),
}
