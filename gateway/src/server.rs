//! Listening, handing connections to workers, and ending well.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use farebox_core::{
    Access, InstanceId, RailName,
    ports::{Clock, Entropy, Ledger, LedgerUnavailable, Rail, TokenBooks, TokenRail},
};
use farebox_wire::transfer::Quoter;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    GatewayConfig, RouteTable, RouteTableError, TlsFilesError, UpstreamTlsError,
    counts::{Counts, Watch},
    draws::OpenDraws,
    lookups::LookupLimit,
    marked::MarkedPayers,
    places::Places,
    quotes::Quotes,
    reconciler, repricer,
    request_body::RequestBodyLimits,
    till::{Ends, Till},
    tls,
    upstream::Upstreams,
    worker::{Accepted, Worker},
};

/// Connections that the kernel holds for us while we are at `connections_max`.
const BACKLOG: i32 = 4096;

/// Pause after a failed accept: out of file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long the books may take, when the gateway stops, for the ends of runs that it has cut off.
const LAST_ENDS_TIMEOUT: Duration = Duration::from_secs(5);

/// And after that for the last refusals.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What stands behind the gateway.
#[derive(Clone, Debug)]
pub struct Ports {
    /// The configured rails whose credentials are proofs of one payment.
    pub rails: Vec<Arc<dyn Rail>>,
    /// The rail that sells tokens, if one is configured.
    pub tokens: Option<Tokens>,
    /// The books.
    pub ledger: Arc<dyn Ledger>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// This run of this process.
    pub instance: InstanceId,
    /// What seals the quotes of bills by transfer. Needed as soon as a route takes transfers; its keys are exchanged by whoever made it.
    pub quoter: Option<Arc<Quoter>>,
}

/// What the sale of tokens stands on.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Makes bills and checks tokens.
    pub rail: Arc<dyn TokenRail>,
    /// The books of tokens.
    pub books: Arc<dyn TokenBooks>,
}

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: GatewayConfig,
    pub(crate) routes: RouteTable,
    pub(crate) till: Arc<Till>,
}

/// A gateway that listens but does not serve yet: connections wait in the kernel.
pub struct Gateway {
    shared: Arc<Shared>,
    listeners: Vec<(TcpListener, Option<TlsAcceptor>)>,
    addresses: Vec<SocketAddr>,
    /// One for each worker.
    upstreams: Vec<Arc<Upstreams>>,
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The routes conflict.
    #[error(transparent)]
    Routes(#[from] RouteTableError),
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsFilesError),
    /// An upstream's TLS cannot be set up.
    #[error(transparent)]
    Upstream(#[from] UpstreamTlsError),
    /// An address could not be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A route takes transfers, and something that bills by transfer need is missing.
    #[error("route {route} takes transfers, which needs {missing}")]
    Transfers {
        /// Which route.
        route: farebox_core::RouteId,
        /// What is missing.
        missing: &'static str,
    },
    /// A route sells tokens, and something that this needs is missing.
    #[error("route {route} sells tokens, which needs {missing}")]
    Tokens {
        /// Which route.
        route: farebox_core::RouteId,
        /// What is missing.
        missing: &'static str,
    },
    /// The books did not answer.
    #[error(transparent)]
    Books(#[from] LedgerUnavailable),
}

impl BindError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Routes(error) => error.code(),
            Self::Tls(error) => error.code(),
            Self::Upstream(error) => error.code(),
            Self::Listen { .. } => "cannot_listen",
            Self::Transfers { .. } => "transfers_incomplete",
            Self::Tokens { .. } => "tokens_incomplete",
            Self::Books(_) => "ledger_unavailable",
        }
    }
}

/// Why serving ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A worker's thread or runtime could not be started.
    #[error("a worker could not be started")]
    Worker(#[source] std::io::Error),
    /// A worker panicked; the others were drained.
    #[error("a worker died")]
    WorkerDied,
}

impl ServeError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Worker(_) => "cannot_start_worker",
            Self::WorkerDied => "worker_died",
        }
    }
}

impl Gateway {
    /// Checks the routes, reads certificates and the payers that the books have marked, and listens.
    ///
    /// # Errors
    /// [`BindError`]; nothing is left listening then.
    pub async fn bind(mut config: GatewayConfig, ports: Ports) -> Result<Self, BindError> {
        let routes = RouteTable::new(std::mem::take(&mut config.routes))?;
        check_transfers(&routes, &config, &ports)?;
        check_tokens(&routes, &ports)?;
        let till = till(&config, ports, Counts::new(routes.routes().len()));
        till.marked.refresh(&*till.ledger).await?;
        let request_defaults = RequestBodyLimits {
            bytes_max: config.limits.request_body_bytes_max,
            idle_timeout: config.limits.idle_timeout,
        };
        let tokens_are_ours = match till.tokens {
            Some(_) => farebox_wire::Tokens::Taken,
            None => farebox_wire::Tokens::NotTaken,
        };
        let tunnel_idle = config.limits.tunnel_idle_timeout;
        let upstreams = (0..config.workers.max(1))
            .map(|_| Upstreams::new(routes.routes(), request_defaults, tunnel_idle, tokens_are_ours).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for listener in &config.listeners {
            let address = listener.address;
            let acceptor = listener.tls.as_ref().map(tls::server_config).transpose()?.map(TlsAcceptor::from);
            let socket = listen(address).map_err(|source| BindError::Listen { address, source })?;
            addresses.push(socket.local_addr().map_err(|source| BindError::Listen { address, source })?);
            listeners.push((socket, acceptor));
        }
        Ok(Self { shared: Arc::new(Shared { till: Arc::new(till), config, routes }), listeners, addresses, upstreams })
    }

    /// Where it listens, in the config's order; with the port that port 0 became.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What to watch it by while it serves.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(self.shared.clone())
    }

    /// Serves until `shutdown`, then stops accepting, lets what is in flight finish within `drain_timeout`, writes into the books what
    /// that has cut off (at most 5 s, and 5 s for the last refusals), and returns.
    ///
    /// Dropped, it closes the listeners and drains in the background.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        // Also when this future is dropped.
        let stopping = self.shared.till.stopping.clone().drop_guard();
        let (drain, draining) = watch::channel(false);
        let mut crew = Crew::default();
        for (number, upstreams) in self.upstreams.into_iter().enumerate() {
            crew.hire(number, self.shared.clone(), upstreams, draining.clone()).map_err(ServeError::Worker)?;
        }
        let Crew { hands, threads } = crew;
        let chores = Chores::start(&self.shared);
        let slots = Arc::new(Semaphore::new(self.shared.config.limits.connections_max));
        let mut accepting = JoinSet::new();
        let hands: Arc<[Hand]> = hands.into();
        for (listener, tls) in self.listeners {
            accepting.spawn(accept(listener, tls, slots.clone(), hands.clone()));
        }
        drop(hands);
        tokio::select! {
            () = shutdown => {}
            // Ends only if every worker is gone.
            _ = accepting.join_next() => tracing::error!("no worker left"),
        }
        accepting.shutdown().await;
        let writing = chores.stop();
        drop(stopping);
        drain.send_replace(true);
        let joined =
            tokio::task::spawn_blocking(move || threads.into_iter().map(JoinHandle::join).all(|end| end.is_ok()));
        let joined = joined.await;
        self.shared.till.ends.finish(LAST_ENDS_TIMEOUT).await;
        writing.finish().await;
        match joined {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(ServeError::WorkerDied),
        }
    }
}

/// What is done beside requests.
struct Chores {
    /// Each leaves nothing half done when it is dropped.
    tasks: JoinSet<()>,
    writing: Writing,
}

/// What is written until the last request is over.
struct Writing {
    close: DropGuard,
    task: tokio::task::JoinHandle<()>,
}

impl Chores {
    fn start(shared: &Arc<Shared>) -> Self {
        let mut tasks = JoinSet::new();
        let till = &shared.till;
        tasks.spawn(reconciler::run(till.clone(), shared.config.reconciler));
        let repriced = shared.clone();
        tasks.spawn(async move {
            let Shared { till, routes, config } = &*repriced;
            repricer::run(routes.routes(), &till.offerings(), &*till.ledger, &*till.clock, config.reprice_every).await;
        });
        let swept = till.clone();
        tasks.spawn(async move { swept.lookups.sweep().await });
        let close = CancellationToken::new();
        let clock = till.clock.clone();
        let writing = till.refused.clone().keep_writing(till.ledger.clone(), move || clock.now(), close.clone());
        Self { tasks, writing: Writing { close: close.drop_guard(), task: tokio::spawn(writing) } }
    }

    fn stop(mut self) -> Writing {
        self.tasks.abort_all();
        self.writing
    }
}

impl Writing {
    /// Writes what is left, unless the books take too long.
    async fn finish(self) {
        drop(self.close);
        if tokio::time::timeout(LAST_WRITE_TIMEOUT, self.task).await.is_err() {
            tracing::warn!("the last refusals are not in the audit log: the books took too long");
        }
    }
}

/// The acceptor's end of a worker.
struct Hand {
    accepted: mpsc::UnboundedSender<Accepted>,
    /// Its open connections.
    load: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Crew {
    hands: Vec<Hand>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    fn hire(
        &mut self,
        number: usize,
        shared: Arc<Shared>,
        upstreams: Arc<Upstreams>,
        draining: watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        let load = Arc::new(AtomicUsize::new(0));
        // Bounded by `connections_max`: each holds a slot.
        let (accepted, inbox) = mpsc::unbounded_channel();
        let worker = Worker::new(shared, upstreams, draining, load.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name(format!("farebox-{number}"))
            .spawn(move || runtime.block_on(worker.run(inbox)))?;
        self.hands.push(Hand { accepted, load });
        self.threads.push(thread);
        Ok(())
    }
}

/// Accepts, and gives each connection to the worker that has the fewest. Not SO_REUSEPORT: the kernel would hash connections
/// onto workers unevenly, and a second process could listen on the same port unnoticed.
async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, slots: Arc<Semaphore>, hands: Arc<[Hand]>) {
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (socket, address) = match listener.accept().await.and_then(|(tcp, address)| Ok((tcp.into_std()?, address)))
        {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let accepted = Accepted { socket, address, tls: tls.clone(), slot };
        let mut by_load: Vec<&Hand> = hands.iter().filter(|hand| !hand.accepted.is_closed()).collect();
        by_load.sort_by_key(|hand| hand.load.load(Ordering::Relaxed));
        let Some(hand) = by_load.first() else { return };
        hand.load.fetch_add(1, Ordering::Relaxed);
        if hand.accepted.send(accepted).is_err() {
            hand.load.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A bill by transfer that could not be sealed, or that named whatever origin its reader asked under, would be found out by the first
/// payer.
fn check_transfers(routes: &RouteTable, config: &GatewayConfig, ports: &Ports) -> Result<(), BindError> {
    let takes =
        |access: &Access| matches!(access, Access::Paid(tariff) if tariff.pricing.rails.contains(&RailName::Transfer));
    let Some(route) = routes.routes().iter().find(|route| takes(&route.access)) else { return Ok(()) };
    let missing = match (&ports.quoter, &config.transfer, &config.public_url) {
        (None, ..) => "keys to seal quotes with",
        (_, None, _) => "the times that payers have",
        (.., None) => "a public URL",
        (Some(_), Some(_), Some(_)) => return Ok(()),
    };
    Err(BindError::Transfers { route: route.id.clone(), missing })
}

/// Two routes of one name would take each other's tokens, the dear one those of the cheap one.
fn check_tokens(routes: &RouteTable, ports: &Ports) -> Result<(), BindError> {
    let mut services = HashSet::new();
    for route in routes.routes() {
        let Access::Paid(tariff) = &route.access else { continue };
        if !tariff.pricing.rails.contains(&RailName::L402) {
            continue;
        }
        let missing = match (&ports.tokens, &tariff.pricing.token) {
            (None, _) => "a rail that makes invoices",
            (_, None) => "to know what an invoice buys",
            (Some(_), Some(terms)) if !services.insert(terms.service.clone()) => "a service name of its own",
            (Some(_), Some(_)) => continue,
        };
        return Err(BindError::Tokens { route: route.id.clone(), missing });
    }
    Ok(())
}

fn till(config: &GatewayConfig, ports: Ports, counts: Counts) -> Till {
    let quotes = ports.quoter.zip(config.transfer).map(|(quoter, times)| Quotes { quoter, times });
    Till {
        rails: ports.rails,
        tokens: ports.tokens,
        ledger: ports.ledger,
        clock: ports.clock,
        entropy: ports.entropy,
        instance: ports.instance,
        limits: config.admission,
        answer_bytes_max: config.replay.body_bytes_max as u64,
        places: Places::default(),
        open_draws: OpenDraws::default(),
        lookups: LookupLimit::new(config.admission.lookups_per_minute),
        marked: MarkedPayers::default(),
        quotes,
        refused: Arc::default(),
        counts,
        told_of_proxy: AtomicBool::new(false),
        stopping: CancellationToken::new(),
        ends: Ends::here(),
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    // A restart must not wait for the last run's connections to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}
