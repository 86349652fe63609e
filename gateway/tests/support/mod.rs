//! A gateway between real clients and real upstreams, all on loopback.

#![expect(dead_code, reason = "each test binary uses its own part of it")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failed test")]

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use farebox_core::{Access, InstanceId, RouteId, Timestamp};
use farebox_gateway::{
    AdmissionLimits, Gateway, GatewayConfig, Limits, ListenerConfig, Ports, ReconcilerLimits, ReplayLimits, Route,
    ServeError, UpstreamConfig, parse_match,
};
use farebox_testkit::{ManualClock, MemoryLedger, SeededEntropy};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

/// The longest any wait in a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) type TestBody = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A gateway that serves.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Begins the drain.
    pub(crate) fn shut_down(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).unwrap();
        }
    }

    /// Waits for the end of the drain.
    pub(crate) async fn ended(mut self) {
        self.shut_down();
        patiently(self.served).await.unwrap().unwrap();
    }

    /// Sends bytes on a new connection and reads until it is closed.
    pub(crate) async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The gateway may close before it has read all of it.
        drop(stream.write_all(bytes.as_ref()).await);
        let mut answer = Vec::new();
        drop(patiently(stream.read_to_end(&mut answer)).await);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

pub(crate) async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("took too long")
}

/// A config with these free routes (`match`, upstream URL).
pub(crate) fn config(routes: &[(&str, &str)]) -> GatewayConfig {
    GatewayConfig {
        listeners: vec![ListenerConfig { address: loopback(), tls: None }],
        public_url: None,
        trusted_proxies: Vec::new(),
        limits: Limits::default(),
        workers: 2,
        routes: routes.iter().map(|(matches, upstream)| route(matches, upstream)).collect(),
        replay: ReplayLimits::default(),
        admission: AdmissionLimits::default(),
        reconciler: ReconcilerLimits::default(),
        transfer: None,
        reprice_every: Duration::from_secs(3600),
    }
}

pub(crate) fn route(matches: &str, upstream: &str) -> Route {
    let (methods, pattern) = parse_match(matches).unwrap();
    Route {
        id: RouteId::new(matches),
        methods,
        pattern,
        upstream: UpstreamConfig::new(upstream.parse().unwrap()),
        access: Access::Free,
        request_body_bytes_max: None,
    }
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Ports behind which nobody pays.
pub(crate) fn ports() -> Ports {
    let instance = InstanceId::new("test");
    Ports {
        tokens: None,
        rails: Vec::new(),
        ledger: Arc::new(MemoryLedger::new(instance.clone(), Duration::ZERO)),
        clock: Arc::new(ManualClock::at(Timestamp::from_unix_s(1_700_000_000))),
        entropy: Arc::new(SeededEntropy::new(1)),
        instance,
        quoter: None,
    }
}

pub(crate) async fn serve(config: GatewayConfig) -> Running {
    serve_with(config, ports()).await
}

pub(crate) async fn serve_with(config: GatewayConfig, ports: Ports) -> Running {
    let gateway = Gateway::bind(config, ports).await.unwrap();
    let address = gateway.addresses()[0];
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(gateway.serve(async move { drop(stopped.await) }));
    Running { address, stop: Some(stop), served }
}

/// A gateway before one upstream, with everything passed through.
pub(crate) async fn pass_through(upstream: &Upstream) -> Running {
    serve(config(&[("ANY /*", &upstream.url())])).await
}

/// What an upstream saw of a request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

/// An upstream that notes whole requests.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().last().expect("the upstream saw no request").clone()
    }

    /// Reads every request whole and answers 200 with its body.
    pub(crate) async fn echo() -> Self {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let notes = seen.clone();
        let address = upstream(move |request| {
            let notes = notes.clone();
            async move {
                let (head, body) = request.into_parts();
                let Ok(whole) = body.collect().await else { return text("broken") };
                let trailers = whole.trailers().cloned();
                let body = whole.to_bytes();
                notes.lock().push(Seen {
                    method: head.method.to_string(),
                    target: head.uri.path_and_query().unwrap().to_string(),
                    headers: head.headers,
                    body: body.clone(),
                    trailers,
                });
                text(body)
            }
        })
        .await;
        Self { address, seen }
    }
}

pub(crate) fn text(body: impl Into<Bytes>) -> Response<TestBody> {
    Response::new(Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed())
}

/// Serves HTTP/1.1 and h2c with `answer`.
pub(crate) async fn upstream<F, A>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<TestBody>> + Send + 'static,
{
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answering = answer(request);
                    async move { Ok::<_, Infallible>(answering.await) }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection_with_upgrades(TokioIo::new(tcp), service).await);
            });
        }
    });
    address
}

/// An upstream below HTTP: `converse` gets each connection.
pub(crate) async fn raw_upstream<F, A>(converse: F) -> SocketAddr
where
    F: Fn(TcpStream) -> A + Send + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(converse(tcp));
        }
    });
    address
}

/// Reads one head, up to the empty line.
pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

pub(crate) fn client() -> reqwest::Client {
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::builder().no_proxy().build().unwrap()
}
