//! A node that loses answers, refuses to answer, or answers nonsense.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// What the proxy does to requests that name `method`.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Hands it on and closes the connection before the answer.
    LoseAnswer(&'static str),
    /// Answers with this body instead.
    Say(&'static str, &'static str),
    /// Drops every connection.
    Down,
}

#[derive(Debug, Default)]
pub(crate) struct Proxy {
    fault: Mutex<Option<Fault>>,
    pub(crate) requests: AtomicU32,
    pub(crate) lost: AtomicBool,
}

impl Proxy {
    /// Starts one before `upstream`; gives its URL.
    pub(crate) fn start(upstream: &str) -> (Arc<Self>, String) {
        let proxy = Arc::new(Self::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
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
        (proxy, url)
    }

    pub(crate) fn set(&self, fault: impl Into<Option<Fault>>) {
        *self.fault.lock() = fault.into();
    }

    async fn serve(&self, stream: TcpStream, upstream: &str, http: &reqwest::Client) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut length = 0;
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await? == 0 {
                    return Ok(());
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
            self.requests.fetch_add(1, Ordering::SeqCst);
            let fault = self.fault.lock().clone();
            let text = String::from_utf8_lossy(&body).into_owned();
            // "[" stands for a batch.
            let named = |method: &str| {
                text.contains(&format!("\"{method}\""))
                    || (method == "[" && text.starts_with('['))
                    || (method == "eth_" && text.contains("eth_"))
            };
            if matches!(fault, Some(Fault::Down)) {
                return Ok(());
            }
            let answer = match fault {
                Some(Fault::Say(method, instead)) if named(method) => instead.as_bytes().to_vec(),
                _ => http
                    .post(upstream)
                    .header("content-type", "application/json")
                    .body(body)
                    .send()
                    .await
                    .unwrap()
                    .bytes()
                    .await
                    .unwrap()
                    .to_vec(),
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
            stream.write_all(&answer).await?;
            stream.flush().await?;
        }
    }
}
