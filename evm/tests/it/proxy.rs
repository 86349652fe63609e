//! A node that loses answers, refuses to answer, lags, lies, or answers nonsense: a real proxy before a real node.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Turns a request and the node's answer to it into what is answered instead.
pub(crate) type Lie = Arc<dyn Fn(&Value, Value) -> Value + Send + Sync>;

/// What the proxy does.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Hands requests that name the method on and closes the connection before the answer.
    LoseAnswer(&'static str),
    /// Answers requests that name the method with this body instead; an `id` in it becomes the request's.
    Say(&'static str, &'static str),
    /// Drops every connection.
    Down,
    /// Takes requests and never answers.
    Hang,
    /// Answers after so long.
    Slow(Duration),
    /// Answers with this status, and this many seconds of `Retry-After`.
    Status(u16, u32),
    /// Announces the whole answer, sends half of it, and closes.
    Truncate,
    /// Sends the answer byte by byte, this long apart.
    Drip(Duration),
    /// Answers without end.
    Huge,
    /// Knows the chain up to this block only.
    Lag(u64),
    /// Lets every second request with a transaction wait, so that later ones overtake it.
    Overtake,
    /// Changes answers.
    Lie(Lie),
    /// Picks one for each request by its number.
    Mixed(Arc<dyn Fn(u32) -> Option<Self> + Send + Sync>),
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoseAnswer(method) => write!(f, "LoseAnswer({method})"),
            Self::Say(method, body) => write!(f, "Say({method}, {body})"),
            Self::Down => f.write_str("Down"),
            Self::Hang => f.write_str("Hang"),
            Self::Slow(by) => write!(f, "Slow({by:?})"),
            Self::Status(status, after) => write!(f, "Status({status}, {after})"),
            Self::Truncate => f.write_str("Truncate"),
            Self::Drip(apart) => write!(f, "Drip({apart:?})"),
            Self::Huge => f.write_str("Huge"),
            Self::Lag(block) => write!(f, "Lag({block})"),
            Self::Overtake => f.write_str("Overtake"),
            Self::Lie(_) => f.write_str("Lie"),
            Self::Mixed(_) => f.write_str("Mixed"),
        }
    }
}

impl Fault {
    /// Changes the results of one method.
    pub(crate) fn result(method: &'static str, change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::Lie(Arc::new(move |request, mut answer| {
            if request["method"] == method && !answer["result"].is_null() {
                change(&mut answer["result"]);
            }
            answer
        }))
    }

    /// Changes every answer.
    pub(crate) fn every(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::Lie(Arc::new(move |_, mut answer| {
            change(&mut answer);
            answer
        }))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Proxy {
    fault: Mutex<Option<Fault>>,
    pub(crate) requests: AtomicU32,
    pub(crate) lost: AtomicBool,
    /// Signed transactions in the order in which the node got them.
    pub(crate) transactions: Mutex<Vec<String>>,
    transacting: AtomicU64,
}

impl Proxy {
    /// Starts one before `upstream`; gives its URL.
    pub(crate) fn start(upstream: &str) -> (Arc<Self>, String) {
        let proxy = Arc::new(Self::default());
        let (listener, address) = listen();
        let (shared, upstream) = (proxy.clone(), upstream.to_owned());
        tokio::spawn(async move {
            let http = crate::harness::http_client();
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, upstream, http) = (shared.clone(), upstream.clone(), http.clone());
                tokio::spawn(async move {
                    // A connection that breaks is what this is for.
                    let _ = shared.serve(stream, &upstream, &http).await;
                });
            }
        });
        (proxy, format!("http://{address}"))
    }

    pub(crate) fn set(&self, fault: impl Into<Option<Fault>>) {
        *self.fault.lock() = fault.into();
    }

    pub(crate) fn asked(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }

    async fn serve(&self, stream: TcpStream, upstream: &str, http: &reqwest::Client) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        while let Some(body) = read_request(&mut stream).await? {
            let count = self.requests.fetch_add(1, Ordering::SeqCst);
            let fault = match self.fault.lock().clone() {
                Some(Fault::Mixed(pick)) => pick(count),
                fault => fault,
            };
            let text = String::from_utf8_lossy(&body).into_owned();
            // "[" stands for a batch.
            let named = |method: &str| {
                text.contains(&format!("\"{method}\""))
                    || (method == "[" && text.starts_with('['))
                    || (method == "eth_" && text.contains("eth_"))
            };
            let request: Value = serde_json::from_str(&text).unwrap();
            match &fault {
                Some(Fault::Down) => return Ok(()),
                Some(Fault::Hang) => std::future::pending().await,
                Some(Fault::Slow(by)) => tokio::time::sleep(*by).await,
                Some(Fault::Overtake)
                    if text.contains("eth_sendRawTransaction")
                        && self.transacting.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) =>
                {
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
                Some(Fault::Status(status, after)) => {
                    let head = format!("HTTP/1.1 {status} X\r\nretry-after: {after}\r\ncontent-length: 0\r\n\r\n");
                    stream.write_all(head.as_bytes()).await?;
                    continue;
                }
                Some(Fault::Huge) => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await?;
                    loop {
                        stream.write_all(&[b' '; 65536]).await?;
                    }
                }
                _ => {}
            }
            let answer = match &fault {
                Some(Fault::Say(method, instead)) if named(method) => said(&request, instead),
                Some(Fault::Lag(block)) => lagging(http, upstream, request, *block).await,
                Some(Fault::Lie(lie)) => {
                    let answer = self.forward(http, upstream, &request).await;
                    each(&request, answer, |request, answer| lie(request, answer)).to_string()
                }
                _ => self.forward(http, upstream, &request).await.to_string(),
            };
            if let Some(Fault::LoseAnswer(method)) = fault
                && named(method)
            {
                self.lost.store(true, Ordering::SeqCst);
                return Ok(());
            }
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all(head.as_bytes()).await?;
            match fault {
                Some(Fault::Truncate) => {
                    stream.write_all(&answer.as_bytes()[..answer.len() / 2]).await?;
                    return stream.flush().await;
                }
                Some(Fault::Drip(apart)) => {
                    for byte in answer.as_bytes() {
                        stream.write_all(&[*byte]).await?;
                        stream.flush().await?;
                        tokio::time::sleep(apart).await;
                    }
                }
                _ => stream.write_all(answer.as_bytes()).await?,
            }
            stream.flush().await?;
        }
        Ok(())
    }

    async fn forward(&self, http: &reqwest::Client, upstream: &str, request: &Value) -> Value {
        for one in request.as_array().map_or(std::slice::from_ref(request), Vec::as_slice) {
            if one["method"].as_str().unwrap().starts_with("eth_sendRawTransaction") {
                self.transactions.lock().push(one["params"][0].as_str().unwrap().to_owned());
            }
        }
        post(http, upstream, request).await
    }
}

async fn post(http: &reqwest::Client, upstream: &str, request: &Value) -> Value {
    http.post(upstream).json(request).send().await.unwrap().json().await.unwrap()
}

/// The body of the next request, if there is one.
async fn read_request(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Vec<u8>>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}

fn said(request: &Value, instead: &str) -> String {
    match serde_json::from_str::<Value>(instead) {
        Ok(mut answer) if answer.get("id").is_some() && request.is_object() => {
            answer["id"] = request["id"].clone();
            answer.to_string()
        }
        _ => instead.to_owned(),
    }
}

/// Each request of a batch with its answer.
fn each(request: &Value, answer: Value, change: impl Fn(&Value, Value) -> Value) -> Value {
    match (request, answer) {
        (Value::Array(requests), Value::Array(answers)) => answers
            .into_iter()
            .map(|answer| {
                let request = requests.iter().find(|request| request["id"] == answer["id"]).unwrap();
                change(request, answer)
            })
            .collect(),
        (request, answer) => change(request, answer),
    }
}

/// What a node says that has seen no block above `block`.
async fn lagging(http: &reqwest::Client, upstream: &str, mut request: Value, block: u64) -> String {
    let known = format!("{block:#x}");
    let requests = match &mut request {
        Value::Array(requests) => requests.as_mut_slice(),
        request => std::slice::from_mut(request),
    };
    for one in requests {
        for param in one["params"].as_array_mut().unwrap() {
            if *param == "latest" {
                *param = json!(known);
            }
        }
    }
    let answer = post(http, upstream, &request).await;
    let height = |value: &Value| value.as_str().and_then(|hex| u64::from_str_radix(&hex[2..], 16).ok());
    let unknown = |result: &Value| {
        let at = if result["blockNumber"].is_string() { &result["blockNumber"] } else { &result["number"] };
        height(at).is_some_and(|at| at > block)
    };
    each(&request, answer, |_, mut answer| {
        if unknown(&answer["result"]) {
            answer["result"] = Value::Null;
        }
        answer
    })
    .to_string()
}

fn listen() -> (TcpListener, std::net::SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (TcpListener::from_std(listener).unwrap(), address)
}

/// A line that can be cut: whatever goes over it is passed on as it is, WebSockets included.
pub(crate) struct Line {
    cut: watch::Sender<u32>,
    refused: Arc<AtomicBool>,
    pub(crate) connections: Arc<AtomicU32>,
}

impl Line {
    /// Starts one to `upstream`, `http://host:port`; gives `host:port`.
    pub(crate) fn start(upstream: &str) -> (Self, String) {
        let (listener, address) = listen();
        let (cut, cuts) = watch::channel(0);
        let line = Self { cut, refused: Arc::default(), connections: Arc::default() };
        let (refused, connections) = (line.refused.clone(), line.connections.clone());
        let upstream = upstream.trim_start_matches("http://").to_owned();
        tokio::spawn(async move {
            while let Ok((mut down, _)) = listener.accept().await {
                if refused.load(Ordering::SeqCst) {
                    continue;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let (upstream, mut cuts) = (upstream.clone(), cuts.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let mut up = TcpStream::connect(upstream).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut down, &mut up) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        (line, address.to_string())
    }

    /// Takes new connections again.
    pub(crate) fn restore(&self) {
        self.refused.store(false, Ordering::SeqCst);
    }

    /// Cuts every connection; new ones are refused or not.
    pub(crate) fn cut(&self, refuse: bool) {
        self.refused.store(refuse, Ordering::SeqCst);
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}
