//! A worker: one thread, one single-threaded runtime, its own upstream connections. Nothing on a free request's way is shared
//! with another thread but counters of references.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, uri::Scheme};
use hyper::{
    body::Incoming,
    rt::{Read, Write},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, mpsc, watch},
    time::Instant,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    Limits,
    client::Peer,
    connection::{self, Activity, CoarseClock, Kind, ServedBody, Watched},
    proxy,
    server::Shared,
    upstream::Upstreams,
};

/// How often a worker looks at the time and at its idle upstream connections.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// How often a draining worker looks whether it is done.
const DRAIN_TICK: Duration = Duration::from_millis(10);

/// How long to wait for the rest of a preface that came in parts.
const PREFACE_PAUSE: Duration = Duration::from_millis(5);

/// One worker's parts.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) upstreams: Arc<Upstreams>,
    protocols: Protocols,
    clock: Arc<CoarseClock>,
    draining: watch::Receiver<bool>,
    load: Arc<AtomicUsize>,
}

/// A connection on its way from the acceptor to a worker.
pub(crate) struct Accepted {
    pub(crate) socket: std::net::TcpStream,
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) slot: OwnedSemaphorePermit,
}

#[derive(Clone, Debug)]
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

/// One connection less when dropped.
struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    pub(crate) fn new(
        shared: Arc<Shared>,
        upstreams: Arc<Upstreams>,
        draining: watch::Receiver<bool>,
        load: Arc<AtomicUsize>,
    ) -> Self {
        let protocols = Protocols::new(&shared.config.limits);
        Self { shared, upstreams, protocols, clock: Arc::default(), draining, load }
    }

    /// Serves what the acceptor sends, until draining begins and everything in flight is done or out of time. Runs as the root of
    /// a runtime of its own.
    pub(crate) async fn run(self, mut accepted: mpsc::UnboundedReceiver<Accepted>) {
        let worker = Arc::new(self);
        let started = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        let mut draining = worker.draining.clone();
        loop {
            tokio::select! {
                next = accepted.recv() => match next {
                    Some(next) => worker.clone().start(next),
                    None => break,
                },
                now = tick.tick() => {
                    worker.clock.set(now.saturating_duration_since(started));
                    worker.upstreams.reap();
                }
                _ = draining.wait_for(|draining| *draining) => break,
            }
        }
        drop(accepted);
        worker.upstreams.close();
        worker.finish(started).await;
    }

    /// Waits for every task of this runtime: connections, tunnels, and work that outlives its request.
    async fn finish(&self, started: Instant) {
        let runtime = tokio::runtime::Handle::current();
        let until = Instant::now() + self.shared.config.limits.drain_timeout;
        loop {
            let now = Instant::now();
            self.clock.set(now.saturating_duration_since(started));
            // Connections given back meanwhile would keep their tasks.
            self.upstreams.close();
            match runtime.metrics().num_alive_tasks() {
                0 => return,
                left if now >= until => {
                    tracing::warn!(left, "drain timed out; closing what is left");
                    return;
                }
                _ => tokio::time::sleep(DRAIN_TICK).await,
            }
        }
    }

    fn start(self: Arc<Self>, accepted: Accepted) {
        let load = Load(self.load.clone());
        tokio::spawn(async move {
            let address = accepted.address;
            if let Err(error) = self.serve(accepted).await {
                tracing::debug!(%address, error = &*error, "connection ended");
            }
            drop(load);
        });
    }

    async fn serve(self: Arc<Self>, accepted: Accepted) -> Result<(), farebox_core::ports::BoxError> {
        let Accepted { socket, address, tls, slot } = accepted;
        let tcp = TcpStream::from_std(socket)?;
        tcp.set_nodelay(true)?;
        let config = &self.shared.config;
        let peer = |scheme| Arc::new(Peer::new(address, scheme, &config.trusted_proxies, Some(slot)));
        match tls {
            None => {
                let peer = peer(Scheme::HTTP);
                let mut draining = self.draining.clone();
                let kind = tokio::select! {
                    kind = tokio::time::timeout(config.limits.idle_timeout, sniff(&tcp, &config.limits)) => match kind {
                        Ok(Ok(Some(kind))) => kind,
                        Ok(Ok(None)) | Err(_) => return Ok(()),
                        Ok(Err(error)) => return Err(error.into()),
                    },
                    _ = draining.wait_for(|draining| *draining) => return Ok(()),
                };
                Box::pin(self.speak(kind, TokioIo::new(tcp), peer)).await?;
            }
            Some(acceptor) => {
                let peer = peer(Scheme::HTTPS);
                let tls =
                    Box::pin(tokio::time::timeout(config.limits.header_read_timeout, acceptor.accept(tcp))).await??;
                let kind = if tls.get_ref().1.alpn_protocol() == Some(b"h2") { Kind::Http2 } else { Kind::Http1 };
                Box::pin(self.speak(kind, TokioIo::new(Box::new(tls)), peer)).await?;
            }
        }
        Ok(())
    }

    // What differs by protocol is boxed: else every idle connection is as large as the largest of them.
    async fn speak<T>(self: Arc<Self>, kind: Kind, io: T, peer: Arc<Peer>) -> hyper::Result<()>
    where
        T: Read + Write + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::new(self.clock.clone(), kind));
        let io = Watched { io, activity: activity.clone() };
        let worker = self.clone();
        let noted = activity.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let in_flight = noted.request();
            let (worker, peer) = (worker.clone(), peer.clone());
            // Boxed: hyper keeps room for it on every connection, idle ones too.
            Box::pin(async move {
                let response = proxy::handle(&worker, &peer, request).await;
                let served: Response<ServedBody> = response.map(|body| ServedBody { body, _in_flight: in_flight });
                Ok::<_, Infallible>(served)
            })
        });
        let limits = &self.shared.config.limits;
        let draining = self.draining.clone();
        match kind {
            Kind::Http1 => {
                let connection = self.protocols.http1.serve_connection(io, service).with_upgrades();
                connection::run(Box::pin(connection), &activity, limits, draining).await
            }
            Kind::Http2 => {
                let connection = self.protocols.http2.serve_connection(io, service);
                connection::run(Box::pin(connection), &activity, limits, draining).await
            }
        }
    }
}

impl Protocols {
    fn new(limits: &Limits) -> Self {
        let mut http1 = http1::Builder::new();
        http1.max_buf_size(limits.header_bytes_max.max(8192)).max_header_size(limits.header_bytes_max);
        if limits.headers_max != 100 {
            // Only then: hyper's own 100 need no allocation.
            http1.max_headers(limits.headers_max);
        }
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
            .max_concurrent_streams(limits.streams_max);
        Self { http1, http2 }
    }
}

/// Which protocol a plain connection begins with, without taking bytes from it; `None` if it closed or was too slow. PRI is no
/// method of HTTP/1.1 (RFC 9113 §3.4), so three bytes tell.
async fn sniff(tcp: &TcpStream, limits: &Limits) -> std::io::Result<Option<Kind>> {
    let mut start = [0; 3];
    let mut deadline = None;
    loop {
        let count = tcp.peek(&mut start).await?;
        if count == 0 {
            return Ok(None);
        }
        if count == start.len() || !b"PRI".starts_with(&start[..count]) {
            return Ok(Some(if &start == b"PRI" { Kind::Http2 } else { Kind::Http1 }));
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + limits.header_read_timeout);
        if Instant::now() >= deadline {
            return Ok(None);
        }
        tokio::time::sleep(PREFACE_PAUSE).await;
    }
}
