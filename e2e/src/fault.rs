//! A JSON-RPC proxy before a real node that fails as scripted, method by method.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::{
    http_client,
    web::{Body, BrokenOff, Server, full},
};

/// What goes wrong with a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The node gets and executes it; the caller's connection closes without an answer.
    DropAnswer,
    /// The node never gets it; the connection closes.
    HangUp,
    /// The node gets it after this long.
    Delay(Duration),
    /// The node gets and executes it at once; the answer waits for [`FaultProxy::release`].
    HoldAnswer,
    /// Status 200 and bytes that are no JSON; the node never gets it.
    Garbage,
    /// This HTTP status, such as 429 or 502, and no JSON; the node never gets it.
    Status(u16),
    /// A JSON-RPC error; the node never gets it.
    Error {
        /// The JSON-RPC code.
        code: i64,
        /// Its message.
        message: &'static str,
    },
    /// A lie: this result; the node never gets it.
    Lie(Value),
}

/// How often a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// So many times; then the node is reached again.
    Next(usize),
    /// Until [`FaultProxy::heal`].
    Always,
}

/// A running proxy; healthy until told otherwise. HTTP only.
#[derive(Debug)]
pub struct FaultProxy {
    server: Server,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    node: String,
    client: reqwest::Client,
    script: Mutex<Script>,
    gate: Semaphore,
}

#[derive(Debug, Default)]
struct Script {
    faults: HashMap<String, (Fault, Times)>,
    cut_off: bool,
    calls: Vec<Value>,
}

impl FaultProxy {
    /// Starts one before the node at `node`.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(node: &str) -> Result<Self> {
        let (script, gate) = (Mutex::default(), Semaphore::new(0));
        let state = Arc::new(State { node: node.to_owned(), client: http_client()?, script, gate });
        let handler_state = Arc::clone(&state);
        let server = Server::start(move |request| Arc::clone(&handler_state).answer(request)).await?;
        Ok(Self { server, state })
    }

    /// The address to give out in place of the node's.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// Lets `fault` strike calls of `method`, or of every method by `*`. A later word on the same method replaces it.
    pub fn fail(&self, method: &str, times: Times, fault: Fault) {
        self.state.script.lock().faults.insert(method.to_owned(), (fault, times));
    }

    /// Closes every call's connection before it reaches the node.
    pub fn cut_off(&self) {
        self.state.script.lock().cut_off = true;
    }

    /// Ends all faults.
    pub fn heal(&self) {
        let mut script = self.state.script.lock();
        script.faults.clear();
        script.cut_off = false;
    }

    /// Lets `count` held answers go, present or to come.
    pub fn release(&self, count: usize) {
        self.state.gate.add_permits(count);
    }

    /// The parameters of every call of `method` that came, struck or not, in order.
    #[must_use]
    pub fn calls(&self, method: &str) -> Vec<Value> {
        let script = self.state.script.lock();
        script.calls.iter().filter(|call| call["method"] == method).map(|call| call["params"].clone()).collect()
    }

    /// How many calls of any method came.
    #[must_use]
    pub fn calls_total(&self) -> usize {
        self.state.script.lock().calls.len()
    }

    /// Waits until `count` calls of `method` have come.
    ///
    /// # Errors
    /// Fewer come within `within`.
    pub async fn wait_for_calls(&self, method: &str, count: usize, within: Duration) -> Result<()> {
        let arrived = async {
            while self.calls(method).len() < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(within, arrived).await;
        waited.map_err(|_| anyhow::anyhow!("fewer than {count} calls of {method} came within {within:?}"))
    }
}

impl State {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, BrokenOff> {
        let body = request.into_body().collect().await.map_err(|_gone| BrokenOff)?.to_bytes();
        let message: Value = serde_json::from_slice(&body).map_err(|_| BrokenOff)?;
        let fault = self.script.lock().strike(&message)?;
        match fault {
            None => self.forward(body).await,
            Some(Fault::HangUp) => Err(BrokenOff),
            Some(Fault::DropAnswer) => self.forward(body).await.and(Err(BrokenOff)),
            Some(Fault::Delay(pause)) => {
                tokio::time::sleep(pause).await;
                self.forward(body).await
            }
            Some(Fault::HoldAnswer) => {
                let answer = self.forward(body).await;
                self.gate.acquire().await.map_err(|_closed| BrokenOff)?.forget();
                answer
            }
            Some(Fault::Garbage) => respond(200, "<html>502 Bad Gateway</html>"),
            Some(Fault::Status(status)) => respond(status, "slow down"),
            Some(Fault::Error { code, message: text }) => {
                respond_each(&message, &json!({ "error": { "code": code, "message": text } }))
            }
            Some(Fault::Lie(result)) => respond_each(&message, &json!({ "result": result })),
        }
    }

    async fn forward(&self, body: Bytes) -> Result<Response<Body>, BrokenOff> {
        let request = self.client.post(&self.node).header("content-type", "application/json").body(body);
        let answer = request.send().await.map_err(|_node_gone| BrokenOff)?;
        let status = answer.status().as_u16();
        respond(status, answer.bytes().await.map_err(|_node_gone| BrokenOff)?)
    }
}

impl Script {
    /// Notes the calls of one message, which may be a batch, and says what strikes them.
    fn strike(&mut self, message: &Value) -> Result<Option<Fault>, BrokenOff> {
        let calls = message.as_array().map_or_else(|| std::slice::from_ref(message), Vec::as_slice);
        self.calls.extend_from_slice(calls);
        if self.cut_off {
            return Err(BrokenOff);
        }
        let methods = calls.iter().filter_map(|call| call["method"].as_str()).chain(["*"]);
        for method in methods {
            let Some((fault, times)) = self.faults.get_mut(method) else { continue };
            let fault = fault.clone();
            if let Times::Next(left) = times {
                *left -= 1;
                if *left == 0 {
                    self.faults.remove(method);
                }
            }
            return Ok(Some(fault));
        }
        Ok(None)
    }
}

/// `outcome` for every call of the message, with the ids they came with.
fn respond_each(message: &Value, outcome: &Value) -> Result<Response<Body>, BrokenOff> {
    let one = |call: &Value| {
        let mut answer = outcome.clone();
        answer["jsonrpc"] = "2.0".into();
        answer["id"] = call["id"].clone();
        answer
    };
    let answer = message.as_array().map_or_else(|| one(message), |calls| calls.iter().map(one).collect());
    respond(200, answer.to_string())
}

fn respond(status: u16, body: impl Into<Bytes>) -> Result<Response<Body>, BrokenOff> {
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(full(body)).map_err(|_| BrokenOff)
}
