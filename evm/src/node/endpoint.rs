//! One node: its connection, what it can do, and whether it failed lately.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use alloy::{
    primitives::{B256, Bytes},
    rpc::{
        client::{BatchRequest, RpcClient, Waiter},
        json_rpc::{RpcError, RpcRecv, RpcSend},
    },
    transports::{TransportError, TransportErrorKind},
};
use alloy_transport_ws::{WebSocketConfig, WsConnect};
use farebox_core::ports::BoxError;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{EndpointError, Receipt, transport};
use crate::RpcUrl;

/// For how long a node that did not answer is asked last.
const REST: Duration = Duration::from_secs(15);
/// For how long `eth_sendRawTransactionSync` is not tried again on a node that does not have it.
const NO_SYNC_SEND: Duration = Duration::from_secs(3600);
/// The same for a node that has it and answered too late to be of use.
const SLOW_SYNC_SEND: Duration = Duration::from_secs(60);
/// The longest message of a node over WebSocket.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// "Method not found". Source: JSON-RPC 2.0 §5.1.
const METHOD_NOT_FOUND: i64 = -32601;

/// One node. Clones share everything.
#[derive(Clone)]
pub(crate) struct Endpoint(Arc<Inner>);

struct Inner {
    url: RpcUrl,
    /// For http from the start, for ws once connected and until the connection is lost for good.
    client: Mutex<Option<RpcClient>>,
    resting_until: Mutex<Option<Instant>>,
    no_sync_send_until: Mutex<Option<Instant>>,
    no_batches: AtomicBool,
}

impl Endpoint {
    pub(super) fn new(url: &RpcUrl, timeout: Duration) -> Result<Self, BoxError> {
        let http = matches!(url.expose().scheme(), "http" | "https");
        let client = http.then(|| transport::http(url.expose(), timeout)).transpose()?;
        Ok(Self(Arc::new(Inner {
            url: url.clone(),
            client: Mutex::new(client),
            resting_until: Mutex::new(None),
            no_sync_send_until: Mutex::new(None),
            no_batches: AtomicBool::new(false),
        })))
    }

    /// Scheme and host.
    pub(crate) fn label(&self) -> &RpcUrl {
        &self.0.url
    }

    /// Whether it may be asked among the first.
    pub(super) fn rested(&self) -> bool {
        self.0.resting_until.lock().is_none_or(|until| Instant::now() >= until)
    }

    /// Notes a failure.
    pub(super) fn rest(&self, error: &EndpointError) {
        if let EndpointError::TimedOut(_) | EndpointError::Transport(_) = error {
            *self.0.resting_until.lock() = Some(Instant::now() + REST);
        }
        tracing::debug!(node = %self.label(), error = error as &dyn std::error::Error, "a node did not answer");
    }

    /// Whether it is believed to serve `eth_sendRawTransactionSync`.
    pub(super) fn sync_send(&self) -> bool {
        self.rested() && self.0.no_sync_send_until.lock().is_none_or(|until| Instant::now() >= until)
    }

    pub(super) async fn request<P: RpcSend, R: RpcRecv>(
        &self,
        method: &'static str,
        params: P,
    ) -> Result<R, EndpointError> {
        let client = self.client().await?;
        client.request(method, params).await.map_err(|error| self.failure(error))
    }

    /// One receipt, or none, for each hash, in one batch if the node takes batches.
    pub(super) async fn receipts(&self, hashes: &[B256]) -> Result<Vec<Option<Receipt>>, EndpointError> {
        const METHOD: &str = "eth_getTransactionReceipt";
        if hashes.len() > 1 && !self.0.no_batches.load(Ordering::Relaxed) {
            match self.receipt_batch(METHOD, hashes).await {
                // A node that refuses batches answers with one error for all, or with something that does not parse as many.
                Err(EndpointError::Answered(_) | EndpointError::Transport(_)) => {}
                done => return done,
            }
        }
        let each = hashes.iter().map(|hash| self.request(METHOD, (*hash,)));
        let receipts = futures_util::future::try_join_all(each).await?;
        if hashes.len() > 1 {
            self.0.no_batches.store(true, Ordering::Relaxed);
        }
        Ok(receipts)
    }

    async fn receipt_batch(
        &self,
        method: &'static str,
        hashes: &[B256],
    ) -> Result<Vec<Option<Receipt>>, EndpointError> {
        let client = self.client().await?;
        let mut batch = BatchRequest::new(&client);
        let waiters: Result<Vec<Waiter<Option<Receipt>>>, _> =
            hashes.iter().map(|hash| batch.add_call(method, &(*hash,))).collect();
        let waiters = waiters.map_err(|error| self.failure(error))?;
        batch.send().await.map_err(|error| self.failure(error))?;
        futures_util::future::try_join_all(waiters).await.map_err(|error| self.failure(error))
    }

    /// Sends and waits for the receipt on the node's side, at most `wait`. `None` says nothing about the transaction.
    pub(super) async fn send_sync(&self, raw: &Bytes, wait: Duration) -> Option<Receipt> {
        let asked = self.request::<_, Receipt>("eth_sendRawTransactionSync", (raw.clone(),));
        match tokio::time::timeout(wait, asked).await {
            Ok(Ok(receipt)) => Some(receipt),
            Ok(Err(EndpointError::Answered(answer))) if answer.code == METHOD_NOT_FOUND => {
                self.pause_sync_send(NO_SYNC_SEND);
                None
            }
            Ok(Err(error)) => {
                tracing::debug!(node = %self.label(), error = &error as &dyn std::error::Error, "no receipt at once");
                None
            }
            // A chain with slow blocks is better asked now and then than waited for on an open request.
            Err(_) => {
                self.pause_sync_send(SLOW_SYNC_SEND);
                None
            }
        }
    }

    fn pause_sync_send(&self, pause: Duration) {
        *self.0.no_sync_send_until.lock() = Some(Instant::now() + pause);
    }

    async fn client(&self) -> Result<RpcClient, EndpointError> {
        if let Some(client) = self.0.client.lock().clone() {
            return Ok(client);
        }
        let limits = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX));
        let connect = WsConnect::new(self.0.url.expose().as_str()).with_config(limits);
        let client = RpcClient::connect_pubsub(connect).await.map_err(|e| EndpointError::Transport(Box::new(e)))?;
        *self.0.client.lock() = Some(client.clone());
        Ok(client)
    }

    fn failure(&self, error: TransportError) -> EndpointError {
        match error {
            RpcError::ErrorResp(payload) => EndpointError::Answered(payload.into()),
            error => {
                if let RpcError::Transport(TransportErrorKind::BackendGone) = error {
                    *self.0.client.lock() = None;
                }
                EndpointError::Transport(Box::new(error))
            }
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.url, f)
    }
}
