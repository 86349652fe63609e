//! The API behind the gateway: it answers with what it saw, counts, and fails in every way it is told to.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use anyhow::Result;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Request, Response, StatusCode, body::Frame, body::Incoming};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::web::{Body, BrokenOff, Server, full};

/// The header by which the gateway tells the upstream which payment a request belongs to.
const PAYMENT_ID: &str = "farebox-payment-id";

/// How the upstream answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200 and JSON: {method, path (with query), headers: [[name, value]], body (base64)}.
    Echo,
    /// This status and the echo as body.
    Status(u16),
    /// 200 with no body.
    Empty,
    /// 200, this content type, and these pieces, with a pause before each but the first.
    Pieces {
        /// The media type.
        content_type: &'static str,
        /// The body, piece by piece.
        pieces: Vec<&'static str>,
        /// Between two pieces.
        pause: Duration,
    },
    /// The echo, after this long.
    After(Duration),
    /// The echo, once [`Echo::release`] lets it go.
    Held,
    /// The connection closes without a byte of answer.
    HangUp,
    /// 200 that promises 1,000 bytes; ten come, and the connection closes.
    ResetMidBody,
}

/// A request as the upstream saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// Path and query, as they came.
    pub path: String,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Bytes,
}

impl Seen {
    /// The first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn echo(&self) -> Bytes {
        let body = BASE64_STANDARD.encode(&self.body);
        let echo = json!({ "method": self.method, "path": self.path, "headers": self.headers, "body": body });
        echo.to_string().into()
    }
}

/// A running upstream.
#[derive(Debug)]
pub struct Echo {
    server: Server,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    script: Mutex<Script>,
    seen: Mutex<Vec<Seen>>,
    gate: Semaphore,
}

#[derive(Debug)]
struct Script {
    next: VecDeque<Answer>,
    otherwise: Answer,
}

impl Echo {
    /// Starts one that echoes.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start() -> Result<Self> {
        let script = Mutex::new(Script { next: VecDeque::new(), otherwise: Answer::Echo });
        let state = Arc::new(State { script, seen: Mutex::default(), gate: Semaphore::new(0) });
        let handler_state = Arc::clone(&state);
        let server = Server::start(move |request| Arc::clone(&handler_state).answer(request)).await?;
        Ok(Self { server, state })
    }

    /// Its origin, such as `http://127.0.0.1:9000`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// How all further requests are answered.
    pub fn answer(&self, answer: Answer) {
        let mut script = self.state.script.lock();
        script.next.clear();
        script.otherwise = answer;
    }

    /// How the next request is answered; called again, the one after it.
    pub fn answer_next(&self, answer: Answer) {
        self.state.script.lock().next.push_back(answer);
    }

    /// Lets `count` held requests go, present or to come.
    pub fn release(&self, count: usize) {
        self.state.gate.add_permits(count);
    }

    /// Every request so far, counted before it was answered.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().clone()
    }

    /// How many requests came.
    #[must_use]
    pub fn hits(&self) -> usize {
        self.state.seen.lock().len()
    }

    /// How many requests came for one payment.
    #[must_use]
    pub fn hits_for(&self, payment_id: &str) -> usize {
        self.state.seen.lock().iter().filter(|seen| seen.header(PAYMENT_ID) == Some(payment_id)).count()
    }

    /// Waits until `count` requests have come.
    ///
    /// # Errors
    /// Fewer come within `within`.
    pub async fn wait_for_hits(&self, count: usize, within: Duration) -> Result<()> {
        let arrived = async {
            while self.hits() < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(within, arrived).await;
        waited
            .map_err(|_| anyhow::anyhow!("{} of {count} requests reached the upstream within {within:?}", self.hits()))
    }
}

impl State {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, BrokenOff> {
        let seen = see(request).await?;
        let echo = seen.echo();
        self.seen.lock().push(seen);
        let answer = {
            let mut script = self.script.lock();
            script.next.pop_front().unwrap_or_else(|| script.otherwise.clone())
        };
        match answer {
            Answer::Echo => {}
            Answer::After(pause) => tokio::time::sleep(pause).await,
            Answer::Held => self.gate.acquire().await.map_err(|_closed| BrokenOff)?.forget(),
            Answer::Status(status) => return respond(status, "application/json", full(echo)),
            Answer::Empty => return respond(200, "text/plain", full(Bytes::new())),
            Answer::HangUp => return Err(BrokenOff),
            Answer::ResetMidBody => return reset_mid_body(),
            Answer::Pieces { content_type, pieces, pause } => {
                return respond(200, content_type, in_pieces(pieces, pause));
            }
        }
        respond(200, "application/json", full(echo))
    }
}

async fn see(request: Request<Incoming>) -> Result<Seen, BrokenOff> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_gone| BrokenOff)?.to_bytes();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let path = head.uri.path_and_query().map_or_else(|| "/".into(), ToString::to_string);
    Ok(Seen { method: head.method.to_string(), path, headers, body })
}

fn respond(status: u16, content_type: &'static str, body: Body) -> Result<Response<Body>, BrokenOff> {
    let status = StatusCode::from_u16(status).map_err(|_| BrokenOff)?;
    Response::builder().status(status).header("content-type", content_type).body(body).map_err(|_| BrokenOff)
}

fn reset_mid_body() -> Result<Response<Body>, BrokenOff> {
    let pieces = stream::unfold(0, |step| async move {
        match step {
            0 => Some((Ok(Frame::data(Bytes::from_static(b"ten bytes!"))), 1)),
            1 => {
                // Without a pause hyper throws the ten bytes away together with the connection.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Err(BrokenOff), 2))
            }
            _ => None,
        }
    });
    let body = StreamBody::new(pieces).boxed();
    Response::builder().header("content-length", 1000).body(body).map_err(|_| BrokenOff)
}

fn in_pieces(pieces: Vec<&'static str>, pause: Duration) -> Body {
    let frames = stream::unfold(pieces.into_iter().enumerate(), move |mut rest| async move {
        let (index, piece) = rest.next()?;
        if index > 0 {
            tokio::time::sleep(pause).await;
        }
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece.as_bytes()))), rest))
    });
    StreamBody::new(frames).map_err(|never| match never {}).boxed()
}
