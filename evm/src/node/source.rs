//! One source: its connection, what it can do, and how it has done lately.

use std::{fmt, sync::Arc, time::Duration};

use alloy::primitives::{B256, Bytes};
use farebox_core::{Timestamp, ports::BoxError};
use parking_lot::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{
    Answered, Receipt, SourceError,
    ask::{self, Question, Reply},
    explorer::Explorer,
    health::Health,
    jsonrpc::JsonRpc,
    websocket::WebSocket,
};
use crate::{
    RpcUrl,
    status::{SourceStatus, Standing},
};

/// For how long `eth_sendRawTransactionSync` is not tried again on a node that does not have it.
const NO_SYNC_SEND: Duration = Duration::from_secs(3600);
/// The same for a node that has it and answered too late to be of use.
const SLOW_SYNC_SEND: Duration = Duration::from_secs(60);
/// For how long no batch is sent to a node that refused one and answered its questions one by one.
const NO_BATCHES: Duration = Duration::from_secs(3600);
/// Questions that one node is asked at once where it refuses batches.
const AT_ONCE_MAX: usize = 16;

/// Somewhere to ask about a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// http, https, ws or wss; for an explorer http or https, such as `https://api.etherscan.io/v2/api`.
    pub url: RpcUrl,
    /// What it speaks.
    pub kind: SourceKind,
    /// An explorer's API key. Nodes have theirs in the URL.
    pub key: Option<SecretText>,
}

impl SourceConfig {
    /// A node.
    #[must_use]
    pub const fn node(url: RpcUrl) -> Self {
        Self { url, kind: SourceKind::JsonRpc, key: None }
    }
}

impl From<RpcUrl> for SourceConfig {
    fn from(url: RpcUrl) -> Self {
        Self::node(url)
    }
}

/// What a source speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// Ethereum JSON-RPC over HTTP or a WebSocket.
    JsonRpc,
    /// The API of Etherscan and its like. It serves receipts, transactions, blocks, balances, plain calls and broadcasts.
    Explorer,
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JsonRpc => "node",
            Self::Explorer => "explorer",
        })
    }
}

/// A text that never prints, and is wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// Whether questions of a batch may overtake one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Any,
    Kept,
}

/// One source. Clones share everything.
#[derive(Clone)]
pub(crate) struct Source(Arc<Inner>);

struct Inner {
    config: SourceConfig,
    wire: Wire,
    health: Health,
    no_sync_send_until: Mutex<Option<Instant>>,
    no_batches_until: Mutex<Option<Instant>>,
}

enum Wire {
    Http(JsonRpc),
    Ws(WebSocket),
    Explorer(Explorer),
}

impl Source {
    pub(super) fn new(config: &SourceConfig, chain_id: u64, timeout: Duration) -> Result<Self, BoxError> {
        let url = config.url.expose();
        let over_http = matches!(url.scheme(), "http" | "https");
        let wire = match config.kind {
            SourceKind::Explorer if !over_http => return Err("an explorer's URL must be http or https".into()),
            SourceKind::Explorer => Wire::Explorer(Explorer::new(url, config.key.clone(), chain_id, timeout)?),
            SourceKind::JsonRpc if over_http => Wire::Http(JsonRpc::new(url, timeout)?),
            SourceKind::JsonRpc => Wire::Ws(WebSocket::new(url, timeout)),
        };
        Ok(Self(Arc::new(Inner {
            config: config.clone(),
            wire,
            health: Health::default(),
            no_sync_send_until: Mutex::new(None),
            no_batches_until: Mutex::new(None),
        })))
    }

    /// Scheme and host.
    pub(crate) fn label(&self) -> String {
        self.0.config.url.to_string()
    }

    pub(crate) fn kind(&self) -> SourceKind {
        self.0.config.kind
    }

    /// The time as its server tells it.
    pub(crate) async fn http_date(&self, timeout: Duration) -> Option<Timestamp> {
        super::http::date(self.0.config.url.expose(), timeout).await
    }

    /// How it does now, from what was heard of it.
    pub(crate) fn status(&self) -> SourceStatus {
        let health = self.health();
        let head = health.head();
        SourceStatus {
            label: self.label(),
            kind: self.kind(),
            standing: match () {
                () if health.is_limited() => Standing::Limited,
                () if health.is_resting() => Standing::Resting,
                () if health.behind() > 0 => Standing::Behind,
                () => Standing::Good,
            },
            head: head.map(|seen| (seen.number, Timestamp::from_unix_s(seen.timestamp))),
            latency: health.usual(),
        }
    }

    pub(super) fn health(&self) -> &Health {
        &self.0.health
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Asks, in one round trip if the source takes batches. Gives as many replies as questions, in their order.
    pub(super) async fn exchange(&self, questions: &[Question], order: Order) -> Result<Vec<Reply>, SourceError> {
        let replies = match &self.0.wire {
            Wire::Ws(ws) => ws.all(questions).await?,
            Wire::Explorer(explorer) => explorer.all(questions).await?,
            Wire::Http(http) => self.over_http(http, questions, order).await?,
        };
        match replies.iter().any(|reply| reply.as_ref().is_err_and(Answered::is_limit)) {
            true => Err(SourceError::Limited { retry_after: None }),
            false => Ok(replies),
        }
    }

    async fn over_http(&self, http: &JsonRpc, questions: &[Question], order: Order) -> Result<Vec<Reply>, SourceError> {
        if let [question] = questions {
            return Ok(vec![http.one(question).await?]);
        }
        let refused = paused(&self.0.no_batches_until);
        if !refused {
            match http.batch(questions).await {
                // A node that refuses batches answers with one error for all, or with a status of its own.
                Err(SourceError::Garbled(_) | SourceError::Transport(_)) => {}
                done => return done,
            }
        }
        let mut replies = Vec::with_capacity(questions.len());
        let at_once = if order == Order::Kept { 1 } else { AT_ONCE_MAX };
        for chunk in questions.chunks(at_once) {
            let each = chunk.iter().map(|question| http.one(question));
            replies.extend(futures_util::future::try_join_all(each).await?);
        }
        if !refused {
            pause(&self.0.no_batches_until, NO_BATCHES);
        }
        Ok(replies)
    }

    /// Whether it is believed to serve `eth_sendRawTransactionSync`.
    pub(super) fn sync_send(&self) -> bool {
        self.kind() == SourceKind::JsonRpc && !self.0.health.is_resting() && !paused(&self.0.no_sync_send_until)
    }

    /// Sends in order and waits for the receipts on the node's side, at most `wait`. `None` says nothing about a transaction; no
    /// answer at all says nothing of any.
    pub(super) async fn send_sync(&self, group: &[(B256, Bytes)], wait: Duration) -> Option<Vec<Option<Receipt>>> {
        let questions: Vec<_> = group.iter().map(|(_, raw)| ask::broadcast_sync(raw)).collect();
        let replies = match tokio::time::timeout(wait, self.exchange(&questions, Order::Kept)).await {
            Ok(Ok(replies)) => replies,
            Ok(Err(error)) => {
                tracing::debug!(node = self.label(), error = &error as &dyn std::error::Error, "no receipts at once");
                return None;
            }
            // A chain with slow blocks is better asked now and then than waited for on an open request.
            Err(_) => {
                pause(&self.0.no_sync_send_until, SLOW_SYNC_SEND);
                return None;
            }
        };
        let missing = |reply: &Reply| reply.as_ref().is_err_and(|answer| answer.code == Answered::METHOD_NOT_FOUND);
        if replies.iter().any(missing) {
            pause(&self.0.no_sync_send_until, NO_SYNC_SEND);
            return None;
        }
        let receipts = group.iter().zip(replies).map(|((hash, _), reply)| ask::receipt_of(*hash, reply).ok());
        Some(receipts.collect())
    }
}

fn paused(until: &Mutex<Option<Instant>>) -> bool {
    until.lock().is_some_and(|until| Instant::now() < until)
}

fn pause(until: &Mutex<Option<Instant>>, pause: Duration) {
    *until.lock() = Some(Instant::now() + pause);
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.config.url, f)
    }
}
