//! A proxy that breaks the way to a real node, and a server that says what no real one would.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Passes bytes on, whatever they mean, until told otherwise.
pub(crate) struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    accepting: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// What the node says is lost.
    Swallow,
    /// Connections are reset.
    Cut,
}

impl Proxy {
    /// Before the node at `https://127.0.0.1:PORT` or `ws://127.0.0.1:PORT`.
    pub(crate) async fn before(node: &str) -> Self {
        let node: SocketAddr = node.split_once("://").unwrap().1.trim_end_matches('/').parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, watched) = watch::channel(Mode::Pass);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, node, watched.clone()));
            }
        });
        Self { address, mode, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn swallow_answers(&self) {
        self.mode.send_replace(Mode::Swallow);
    }

    pub(crate) fn cut_off(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    pub(crate) fn heal(&self) {
        self.mode.send_replace(Mode::Pass);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(mut client: TcpStream, node: SocketAddr, mut mode: watch::Receiver<Mode>) {
    if *mode.borrow_and_update() == Mode::Cut {
        return;
    }
    let Ok(mut node) = TcpStream::connect(node).await else { return };
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    // A connection in which bytes are missing is no good any more.
    let mut torn = false;
    loop {
        tokio::select! {
            biased;
            changed = mode.changed() => {
                let mode = *mode.borrow();
                if changed.is_err() || mode == Mode::Cut || (torn && mode == Mode::Pass) {
                    return;
                }
            }
            read = client.read(&mut up) => match read {
                Ok(count @ 1..) if node.write_all(&up[..count]).await.is_ok() => {}
                _ => return,
            },
            read = node.read(&mut down) => match read {
                Ok(1..) if *mode.borrow() == Mode::Swallow => torn = true,
                Ok(count @ 1..) if client.write_all(&down[..count]).await.is_ok() => {}
                _ => return,
            },
        }
    }
}

/// What a [`Server`] was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) headers: String,
    pub(crate) body: String,
}

/// What it answers.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Whole,
    /// The body announced is longer than what comes before the connection breaks.
    Broken,
    /// Nothing comes, not even a status.
    Silent,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), end: End::Whole }
    }

    pub(crate) fn json(body: &serde_json::Value) -> Self {
        Self::new(200, body.to_string())
    }

    pub(crate) fn ends(self, end: End) -> Self {
        Self { end, ..self }
    }
}

/// HTTP/1.1 on loopback, one request a connection.
pub(crate) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    accepting: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&asked));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                tokio::spawn(async move { serve(client, &*answer, &seen).await });
            }
        });
        Self { address, asked, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut client: TcpStream, answer: &(dyn Fn(&Asked) -> Reply + Send + Sync), seen: &Mutex<Vec<Asked>>) {
    let Some(asked) = read(&mut client).await else { return };
    let reply = answer(&asked);
    seen.lock().push(asked);
    if reply.end == End::Silent {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    let length = reply.body.len() + usize::from(reply.end == End::Broken);
    let head = format!("HTTP/1.1 {} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n", reply.status);
    // The client may have had enough of a body that is too long.
    if client.write_all(head.as_bytes()).await.is_ok() && client.write_all(&reply.body).await.is_ok() {
        client.flush().await.ok();
    }
}

async fn read(client: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    loop {
        let head = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(head) = head {
            let text = String::from_utf8(bytes[..head].to_vec()).ok()?;
            let (line, headers) = text.split_once("\r\n")?;
            let headers = headers.to_lowercase();
            let length = headers.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(Some(0), |length| length.parse().ok())?;
            while bytes.len() < head + 4 + length {
                read_more(client, &mut bytes).await?;
            }
            let body = String::from_utf8(bytes[head + 4..].to_vec()).ok()?;
            return Some(Asked { line: line.to_owned(), headers, body });
        }
        read_more(client, &mut bytes).await?;
    }
}

async fn read_more(client: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    let mut more = [0; 4096];
    let count = client.read(&mut more).await.ok().filter(|count| *count > 0)?;
    bytes.extend_from_slice(&more[..count]);
    Some(())
}
