//! A block explorer's API before a real node, in Etherscan's form: one GET a question, names for the parameters, and failures told in
//! sentences under status 200. Source: Etherscan API v2, module `proxy`.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use hyper::{Request, Response, body::Incoming};
use serde_json::{Value, json};

use crate::{
    CHAIN_ID, http_client,
    web::{Body, BrokenOff, Server, full},
};

/// A running explorer; answers whoever has its key.
#[derive(Debug)]
pub struct Explorer {
    server: Server,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    node: String,
    client: reqwest::Client,
    limited: AtomicBool,
    answered: AtomicUsize,
}

impl Explorer {
    /// What it wants to be told as `apikey`.
    pub const KEY: &'static str = "KEY0123456789";

    /// Starts one that knows what the node at `node` knows.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(node: &str) -> Result<Self> {
        let (limited, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let state = Arc::new(State { node: node.to_owned(), client: http_client()?, limited, answered });
        let handler_state = Arc::clone(&state);
        let server = Server::start(move |request| Arc::clone(&handler_state).answer(request)).await?;
        Ok(Self { server, state })
    }

    /// Where its API is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/v2/api", self.server.address)
    }

    /// From now on it says that it is asked too often, or no longer.
    pub fn limit(&self, limited: bool) {
        self.state.limited.store(limited, Ordering::Relaxed);
    }

    /// How many questions it has answered with what the node says.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.state.answered.load(Ordering::Relaxed)
    }
}

impl State {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, BrokenOff> {
        let query = request.uri().query().unwrap_or_default();
        let asked: HashMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let refused = |why: &str| Ok(json!({ "status": "0", "message": "NOTOK", "result": why }));
        let said = if asked.get("apikey") != Some(&Explorer::KEY) {
            refused("Missing/Invalid API Key")
        } else if asked.get("chainid") != Some(&&*CHAIN_ID.to_string()) {
            refused("Missing or unsupported chainid parameter")
        } else if self.limited.load(Ordering::Relaxed) {
            refused("Max calls per sec rate limit reached (5/sec)")
        } else {
            self.ask(&asked).await
        };
        let body = said.map_err(|_unanswered| BrokenOff)?.to_string();
        Response::builder().header("content-type", "application/json").body(full(body)).map_err(|_| BrokenOff)
    }

    async fn ask(&self, asked: &HashMap<&str, &str>) -> Result<Value> {
        let of = |name: &str| asked.get(name).copied().with_context(|| format!("no parameter {name}"));
        let params = match of("action")? {
            "eth_blockNumber" => json!([]),
            "eth_getBlockByNumber" => json!([of("tag")?, of("boolean")? == "true"]),
            "eth_getTransactionByHash" | "eth_getTransactionReceipt" => json!([of("txhash")?]),
            "eth_getTransactionCount" | "eth_getCode" => json!([of("address")?, of("tag")?]),
            "eth_call" => json!([{ "to": of("to")?, "data": of("data")? }, of("tag")?]),
            "eth_sendRawTransaction" => json!([of("hex")?]),
            unknown => {
                return Ok(json!({ "status": "0", "message": "NOTOK", "result": format!("no action {unknown}") }));
            }
        };
        let message = json!({ "jsonrpc": "2.0", "id": 1, "method": of("action")?, "params": params });
        let answer = self.client.post(&self.node).json(&message).send().await?.json().await?;
        self.answered.fetch_add(1, Ordering::Relaxed);
        Ok(answer)
    }
}
