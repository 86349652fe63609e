//! A Lightning node within this process, over ldk-node: for sellers who have none.
//!
//! ldk-node keeps channels, payments and the wallet; what is ours beside it is a store of news (`news.sqlite`) whose order the cursor of
//! `LightningNode::settlements` points into, the lock on the directory, and the answer for payments that a crash cut off.

mod config;
mod control;
mod events;
mod home;
mod log;
mod manage;
mod news;
mod pay;
mod receive;

use std::{fmt, io, net::TcpListener, path::PathBuf, sync::Arc, time::Duration};

use farebox_core::{
    BitcoinNetwork, Timestamp,
    ports::{BoxError, Clock, NodeError},
};
use ldk_node::{Builder, Node, bitcoin::Network, lightning::ln::msgs::SocketAddress};
use parking_lot::{Mutex, RwLock};
use tokio::{
    runtime::{Handle, Runtime},
    sync::watch,
};

pub use self::{
    config::{ChainSource, ChainSourceError, EmbeddedConfig},
    control::{ControlError, ask},
    home::{HomeError, InitError, SeedOrigin, SeedWords, SeedWordsError, free_for_init, init, network_of},
    manage::{Balances, ChannelReport, ChannelState, Command, CommandError, Done, Peer, PeerError, Report},
};
use self::{home::Home, log::Log, news::News};

/// Threads of a node's own runtime: one that waits for disk does not stop the others from talking to peers.
const THREADS: usize = 2;
/// Between attempts to start a node whose chain source does not answer: the first, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How long a stop waits for threads that block; ldk-node's own waits come before it.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A node that runs in this process, on threads of its own. [`Self::stop`] it: what is dropped is stopped too, but blocks meanwhile.
///
/// After `kill -9`, or power that fails, it goes on from its directory: every change of a channel is on disk before its peer is told.
pub struct EmbeddedNode {
    core: Arc<Core>,
    stop: watch::Sender<bool>,
    runtime: Mutex<Option<Runtime>>,
}

/// What the node's tasks share.
struct Core {
    label: String,
    config: EmbeddedConfig,
    clock: Arc<dyn Clock>,
    news: News,
    /// Moves on whenever something became of an invoice or a payment.
    told: watch::Sender<u64>,
    state: RwLock<State>,
    log: Arc<Log>,
    home: Home,
    /// Its own threads.
    tasks: Handle,
}

enum State {
    /// Its chain source does not answer, or did not yet.
    Waiting(String),
    Up {
        node: Arc<Node>,
        since: tokio::time::Instant,
        started_at: Timestamp,
    },
    Stopped,
}

/// Why a node could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its directory is not there, held by another process, or cannot be read.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// It was made for another network.
    #[error("the node in {} was made for {found}, not for {expected}", .dir.display())]
    OtherNetwork {
        /// Where.
        dir: PathBuf,
        /// What the config says.
        expected: BitcoinNetwork,
        /// What it was made for.
        found: BitcoinNetwork,
    },
    /// The store of settlements could not be opened.
    #[error("the node's store of news could not be opened")]
    News(#[source] rusqlite::Error),
    /// Peers cannot be listened for.
    #[error("the node cannot listen on {address}; is something else listening there?")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// ldk-node would not have its store or config.
    #[error("the node could not be built: {detail}")]
    Build {
        /// Its words.
        detail: String,
    },
    /// The first start needs the chain.
    #[error("{chain} did not answer, and the first start of a node needs it")]
    FirstStart {
        /// Which.
        chain: String,
    },
    /// Coins of words from elsewhere would not be found.
    #[error(
        "a node restored from words must first be started with an Esplora or Electrum source, for a Bitcoin Core node is not asked about the past"
    )]
    RestoredNeedsScan,
    /// No threads.
    #[error("the node's threads could not be started")]
    Threads(#[source] io::Error),
}

impl OpenError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Home(HomeError::Held { .. }) => "node_held",
            Self::Home(HomeError::None { .. }) => "no_node",
            Self::Home(_) => "node_directory_unreadable",
            Self::OtherNetwork { .. } => "other_network",
            Self::News(_) => "news_store_failed",
            Self::Listen { .. } => "cannot_listen",
            Self::Build { .. } => "node_not_built",
            Self::FirstStart { .. } => "chain_unavailable",
            Self::RestoredNeedsScan => "restored_needs_scan",
            Self::Threads(_) => "no_threads",
        }
    }
}

impl OpenError {
    fn panicked(panic: &tokio::task::JoinError) -> Self {
        Self::Build { detail: panic.to_string() }
    }
}

impl EmbeddedNode {
    /// Takes the directory, and starts the node in it. A chain source that does not answer is asked again and again in the background, while
    /// every call fails as [`NodeError::Unavailable`]; only the first start of all needs it.
    ///
    /// # Errors
    /// [`OpenError`]: nothing runs then.
    pub async fn open(config: EmbeddedConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, OpenError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("lightning")
            .enable_all()
            .build()
            .map_err(OpenError::Threads)?;
        let tasks = runtime.handle().clone();
        // From here on a failure drops the runtime within async code, which only `shutdown_background` allows.
        let opened = tasks
            .spawn_blocking({
                let tasks = tasks.clone();
                move || Core::open(config, clock, tasks)
            })
            .await;
        let core = match opened.unwrap_or_else(|panic| Err(OpenError::panicked(&panic))) {
            Ok(core) => Arc::new(core),
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let node =
            Arc::new(Self { core: core.clone(), stop: watch::Sender::new(false), runtime: Mutex::new(Some(runtime)) });
        let started = tasks
            .spawn_blocking({
                let core = core.clone();
                move || core.start()
            })
            .await;
        match started.unwrap_or_else(|panic| Err(StartError::Build(OpenError::panicked(&panic)))) {
            Ok(()) => {}
            Err(StartError::Build(error)) => {
                node.stop().await;
                return Err(error);
            }
            Err(StartError::Chain(why)) => core.wait_for_chain(why),
        }
        tasks.spawn(core.clone().run(node.stop.subscribe()));
        control::serve(&core, node.stop.subscribe());
        Ok(node)
    }

    /// Stops it: peers are told, tasks end, the directory is free. A second call does nothing.
    pub async fn stop(&self) {
        let Some(runtime) = self.runtime.lock().take() else { return };
        let (core, stop) = (self.core.clone(), self.stop.clone());
        // A thread of its own: the stop blocks, and may not be cut off by a caller that is dropped.
        let (done, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            halt(&core, &stop, runtime);
            drop(core);
            // Nobody may be waiting any more.
            let _ = done.send(());
        });
        // An error says that the thread is gone, which is what is waited for.
        let _ = ended.await;
    }

    /// Whether it has heard of the chain since it was opened; until then it knows what it knew when it was stopped.
    #[must_use]
    pub fn caught_up(&self) -> bool {
        match &*self.core.state.read() {
            State::Up { node, started_at, .. } => {
                let heard = node.status().latest_lightning_wallet_sync_timestamp;
                // Whole seconds: one in which both fall counts, and is at most a second too early.
                heard.is_some_and(|heard| heard >= started_at.unix_s())
            }
            State::Waiting(_) | State::Stopped => false,
        }
    }

    /// Does what a command asks, as [`ask`] does over the socket.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn command(&self, command: Command) -> Result<Done, CommandError> {
        self.core.clone().command(command).await
    }
}

impl Drop for EmbeddedNode {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.lock().take() else { return };
        let (core, stop) = (self.core.clone(), self.stop.clone());
        // Blocking calls are not allowed on an async worker, where this may run.
        let halted = std::thread::spawn(move || halt(&core, &stop, runtime)).join();
        if halted.is_err() {
            tracing::error!(node = self.core.label, "the node did not stop as it should");
        }
    }
}

fn halt(core: &Core, stop: &watch::Sender<bool>, runtime: Runtime) {
    stop.send_replace(true);
    let state = std::mem::replace(&mut *core.state.write(), State::Stopped);
    if let State::Up { node, .. } = state
        && let Err(error) = node.stop()
    {
        tracing::warn!(node = core.label, %error, "the node did not stop as it should");
    }
    runtime.shutdown_timeout(STOP_TIMEOUT);
    core.home.release();
}

impl fmt::Debug for EmbeddedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedNode").field("label", &self.core.label).finish_non_exhaustive()
    }
}

enum StartError {
    /// It will not be better later.
    Build(OpenError),
    /// It may.
    Chain(String),
}

impl Core {
    fn open(config: EmbeddedConfig, clock: Arc<dyn Clock>, tasks: Handle) -> Result<Self, OpenError> {
        let home = Home::take(&config.dir)?;
        if home.network != config.network {
            let (dir, expected, found) = (config.dir, config.network, home.network);
            return Err(OpenError::OtherNetwork { dir, expected, found });
        }
        if home.restored && !home.has_store() && matches!(config.chain, ChainSource::Bitcoind { .. }) {
            return Err(OpenError::RestoredNeedsScan);
        }
        for &address in &config.listen {
            // ldk-node would leave tasks behind if it found out.
            TcpListener::bind(address).map_err(|source| OpenError::Listen { address, source })?;
        }
        let news = News::open(&home.dir.join("news.sqlite")).map_err(OpenError::News)?;
        Ok(Self {
            label: format!("the embedded node in {}", config.dir.display()),
            config,
            clock,
            news,
            told: watch::Sender::new(0),
            state: RwLock::new(State::Waiting("it is starting".to_owned())),
            log: Arc::new(Log::default()),
            home,
            tasks,
        })
    }

    /// Builds the node and starts it. Blocks.
    fn start(&self) -> Result<(), StartError> {
        let first = !self.home.has_store();
        let node = self.build().map_err(StartError::Build)?;
        // With Bitcoin Core, the wallet's first block is the newest one at its first start. Not told that block, it would begin at the genesis block and
        // read the whole chain; on regtest there is little to read.
        let unborn =
            first && node.status().current_best_block.height == 0 && self.config.network != BitcoinNetwork::Regtest;
        if unborn && matches!(self.config.chain, ChainSource::Bitcoind { .. }) {
            drop(node);
            if let Err(error) = self.home.forget_first_store() {
                tracing::error!(node = self.label, %error, "the store of a failed first start is still there; remove the node's directory");
            }
            return Err(StartError::Build(OpenError::FirstStart { chain: self.config.chain.to_string() }));
        }
        let started_at = self.clock.now();
        node.start().map_err(|error| StartError::Chain(error.to_string()))?;
        self.learn(&node).map_err(|error| StartError::Build(OpenError::News(error)))?;
        *self.state.write() = State::Up { node: Arc::new(node), since: tokio::time::Instant::now(), started_at };
        tracing::info!(node = self.label, network = %self.config.network, chain = %self.config.chain, "lightning node started");
        Ok(())
    }

    fn build(&self) -> Result<Node, OpenError> {
        let words = self.home.words()?;
        let mut builder = Builder::new();
        builder.set_runtime(self.tasks.clone());
        builder.set_network(ldk_network(self.config.network));
        builder.set_storage_dir_path(self.config.dir.display().to_string());
        builder.set_entropy_bip39_mnemonic(words.mnemonic(), None);
        builder.set_custom_logger(self.log.clone());
        builder.set_gossip_source_p2p();
        match &self.config.chain {
            ChainSource::Esplora(url) => {
                builder.set_chain_source_esplora(url.as_str().trim_end_matches('/').to_owned(), None)
            }
            ChainSource::Electrum(server) => builder.set_chain_source_electrum(server.clone(), None),
            ChainSource::Bitcoind { host, port, user, password } => {
                builder.set_chain_source_bitcoind_rpc(host.clone(), *port, user.clone(), password.to_string())
            }
        };
        let failed = |error: ldk_node::BuildError| OpenError::Build { detail: error.to_string() };
        if !self.config.listen.is_empty() {
            let listen = self.config.listen.iter().copied().map(SocketAddress::from).collect();
            builder.set_listening_addresses(listen).map_err(failed)?;
        }
        builder.build().map_err(failed)
    }

    fn wait_for_chain(&self, why: String) {
        tracing::warn!(node = self.label, chain = %self.config.chain, why, "the node waits for its chain source");
        *self.state.write() = State::Waiting(why);
    }

    /// The node, if it runs.
    ///
    /// # Errors
    /// Unavailable: it waits for its chain source, has stopped, or its event loop has ended.
    fn node(&self) -> Result<Arc<Node>, NodeError> {
        let why = match &*self.state.read() {
            State::Up { .. } if self.log.ended() => {
                "it could not write to its store and handles no more events; make room and restart it".to_owned()
            }
            State::Up { node, .. } => return Ok(node.clone()),
            State::Waiting(why) => format!("it waits for {}: {why}", self.config.chain),
            State::Stopped => "it was stopped".to_owned(),
        };
        Err(self.unavailable(why))
    }

    fn unavailable(&self, source: impl Into<BoxError>) -> NodeError {
        NodeError::Unavailable { label: self.label.clone(), source: source.into() }
    }

    fn refused(&self, detail: impl Into<String>) -> NodeError {
        NodeError::Refused { label: self.label.clone(), detail: detail.into() }
    }
}

/// Ends when the node is to stop, or is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that it is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Runs what blocks (ldk-node writes to disk in most calls) on the node's own threads: it also looks for the runtime that it is called from.
async fn blocking<T: Send + 'static>(
    core: &Arc<Core>,
    work: impl FnOnce(&Arc<Core>) -> T + Send + 'static,
) -> Result<T, NodeError> {
    let owned = core.clone();
    let ended = core.tasks.spawn_blocking(move || work(&owned)).await;
    ended.map_err(|panic| core.unavailable(panic))
}

const fn ldk_network(network: BitcoinNetwork) -> Network {
    match network {
        BitcoinNetwork::Bitcoin => Network::Bitcoin,
        BitcoinNetwork::Testnet => Network::Testnet,
        BitcoinNetwork::Testnet4 => Network::Testnet4,
        BitcoinNetwork::Signet => Network::Signet,
        BitcoinNetwork::Regtest => Network::Regtest,
    }
}
