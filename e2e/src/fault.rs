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
    /// A lie made of the truth: the node's result, altered.
    Altered(Lie),
    /// The node as it was when this was its newest block: it lags.
    FrozenAt(u64),
}

/// What an altered result says in place of the true one.
#[derive(Clone)]
pub struct Lie(Arc<dyn Fn(Value) -> Value + Send + Sync>);

impl Lie {
    /// `told` makes the lie of the truth.
    #[must_use]
    pub fn new(told: impl Fn(Value) -> Value + Send + Sync + 'static) -> Self {
        Self(Arc::new(told))
    }
}

impl std::fmt::Debug for Lie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lie")
    }
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
    messages: usize,
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

    /// How many messages came, that is round trips: a batch is one.
    #[must_use]
    pub fn messages_total(&self) -> usize {
        self.state.script.lock().messages
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
        let strike = self.script.lock().strike(&message)?;
        let Some(Strike { method, fault }) = strike else { return self.forward(body).await };
        match fault {
            Fault::HangUp => Err(BrokenOff),
            Fault::DropAnswer => self.forward(body).await.and(Err(BrokenOff)),
            Fault::Delay(pause) => {
                tokio::time::sleep(pause).await;
                self.forward(body).await
            }
            Fault::HoldAnswer => {
                let answer = self.forward(body).await;
                self.gate.acquire().await.map_err(|_closed| BrokenOff)?.forget();
                answer
            }
            Fault::Garbage => respond(200, "<html>502 Bad Gateway</html>"),
            Fault::Status(status) => respond(status, "slow down"),
            Fault::Error { code, message: text } => {
                respond_each(&message, &json!({ "error": { "code": code, "message": text } }))
            }
            Fault::Lie(result) => respond_each(&message, &json!({ "result": result })),
            Fault::Altered(Lie(lie)) => self.altered(&message, &method, &|_, result| lie(result)).await,
            Fault::FrozenAt(head) => {
                self.altered(&before(message, head), "*", &|call, result| hidden(call, result, head)).await
            }
        }
    }

    /// The node's answer, with the result of each call of `method` altered.
    async fn altered(
        &self,
        message: &Value,
        method: &str,
        told: &(dyn Fn(&Value, Value) -> Value + Send + Sync),
    ) -> Result<Response<Body>, BrokenOff> {
        let (_, answer) = self.ask(message.to_string().into()).await?;
        let mut answer: Value = serde_json::from_slice(&answer).map_err(|_| BrokenOff)?;
        let alter = |one: &mut Value| {
            let asked = |call: &&Value| call["id"] == one["id"] && (method == "*" || call["method"] == method);
            let call = calls(message).iter().find(asked);
            if let (Some(call), Some(result)) = (call, one.get_mut("result")) {
                *result = told(call, result.take());
            }
        };
        match answer.as_array_mut() {
            Some(answers) => answers.iter_mut().for_each(alter),
            None => alter(&mut answer),
        }
        respond(200, answer.to_string())
    }

    async fn forward(&self, body: Bytes) -> Result<Response<Body>, BrokenOff> {
        let (status, answer) = self.ask(body).await?;
        respond(status, answer)
    }

    async fn ask(&self, body: Bytes) -> Result<(u16, Bytes), BrokenOff> {
        let request = self.client.post(&self.node).header("content-type", "application/json").body(body);
        let answer = request.send().await.map_err(|_node_gone| BrokenOff)?;
        let status = answer.status().as_u16();
        Ok((status, answer.bytes().await.map_err(|_node_gone| BrokenOff)?))
    }
}

impl Script {
    /// Notes the calls of one message, which may be a batch, and says what strikes them.
    fn strike(&mut self, message: &Value) -> Result<Option<Strike>, BrokenOff> {
        let calls = calls(message);
        self.messages += 1;
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
            return Ok(Some(Strike { method: method.to_owned(), fault }));
        }
        Ok(None)
    }
}

/// A fault, and the method that it was set for.
struct Strike {
    method: String,
    fault: Fault,
}

/// The calls of a message, which may be a batch.
fn calls(message: &Value) -> &[Value] {
    message.as_array().map_or_else(|| std::slice::from_ref(message), Vec::as_slice)
}

/// `message` with every word for a newest block replaced by the block `head`.
fn before(message: Value, head: u64) -> Value {
    match message {
        Value::Array(items) => items.into_iter().map(|item| before(item, head)).collect(),
        Value::Object(members) => members.into_iter().map(|(name, value)| (name, before(value, head))).collect(),
        Value::String(word) if matches!(&*word, "latest" | "pending" | "safe" | "finalized") => {
            json!(format!("{head:#x}"))
        }
        other => other,
    }
}

/// `result` as a node says it whose newest block is `head`: nothing of what came later.
fn hidden(call: &Value, result: Value, head: u64) -> Value {
    let number = |value: &Value| u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok();
    if call["method"] == "eth_blockNumber" {
        return json!(format!("{head:#x}"));
    }
    // A receipt, a transaction or a block.
    let at = result.get("blockNumber").or_else(|| result.get("number")).and_then(number);
    if at.is_some_and(|at| at > head) { Value::Null } else { result }
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
