//! Asking a chain: every question has a time limit, goes to the next node if one does not answer, and tells an answer from a
//! failure to answer.

mod endpoint;
mod transport;
mod types;

use std::{future::Future, sync::Arc, time::Duration};

use alloy::{
    primitives::{Address, B256, Bytes, U64, U256},
    rpc::json_rpc::{ErrorPayload, RpcRecv, RpcSend},
};
use farebox_core::{Untrusted, ports::BoxError};

pub(crate) use self::{
    endpoint::Endpoint,
    types::{Call, FeeHistory, Header, Log, LogFilter, Receipt},
};
use crate::{ConnectError, RpcUrl};

/// Hashes in one batch of receipts; nodes that take batches take this many.
const BATCH_MAX: usize = 50;

/// The nodes of one chain, the preferred one first.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    endpoints: Arc<[Endpoint]>,
    timeout: Duration,
}

/// Nobody answered, or nothing that can be relied on. Never a "no".
#[derive(Debug, thiserror::Error)]
#[error("{method} got no answer from {node}")]
pub(crate) struct NoAnswer {
    pub(crate) method: &'static str,
    /// Scheme and host.
    pub(crate) node: String,
    #[source]
    pub(crate) source: BoxError,
}

/// An error object that a node answered with, its text made safe to print.
#[derive(Clone, Debug, thiserror::Error)]
#[error("error {code}: {message}")]
pub(crate) struct Answered {
    pub(crate) code: i64,
    pub(crate) message: Untrusted,
    /// The message in lower case, for telling errors apart; nodes agree on words, not on codes.
    lower: String,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) enum Called {
    Returned(Bytes),
    /// The chain executed it and it failed. Nothing else is a "no".
    Reverted(Answered),
}

/// Why a node did not take a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broadcast {
    /// It has it, now or already.
    Taken,
    /// The nonce was used before.
    NonceTooLow,
    /// The fee is too low, or another transaction with this nonce pays more.
    Underpriced,
    /// Anything else: it may or may not have it.
    Unclear,
}

impl Node {
    pub(crate) fn new(urls: &[RpcUrl], timeout: Duration) -> Result<Self, BoxError> {
        let endpoints: Vec<_> = urls.iter().map(|url| Endpoint::new(url, timeout)).collect::<Result<_, _>>()?;
        Ok(Self { endpoints: endpoints.into(), timeout })
    }

    /// Each node by itself, for questions that every one has to answer.
    pub(crate) fn each(&self) -> impl Iterator<Item = Self> + '_ {
        self.endpoints.iter().map(|endpoint| Self { endpoints: Arc::new([endpoint.clone()]), timeout: self.timeout })
    }

    /// Scheme and host of each node.
    pub(crate) fn label(&self) -> String {
        self.endpoints.iter().map(|e| e.label().to_string()).collect::<Vec<_>>().join(", ")
    }

    pub(crate) async fn chain_id(&self) -> Result<u64, NoAnswer> {
        self.read::<_, U64>("eth_chainId", ()).await.map(|id| id.to())
    }

    pub(crate) async fn code(&self, address: Address) -> Result<Bytes, NoAnswer> {
        self.read("eth_getCode", (address, "latest")).await
    }

    pub(crate) async fn balance(&self, address: Address) -> Result<U256, NoAnswer> {
        self.read("eth_getBalance", (address, "latest")).await
    }

    /// How many transactions of `address` are mined, which is its next nonce.
    pub(crate) async fn mined_nonce(&self, address: Address) -> Result<u64, NoAnswer> {
        self.read::<_, U64>("eth_getTransactionCount", (address, "latest")).await.map(|n| n.to())
    }

    pub(crate) async fn head(&self) -> Result<Header, NoAnswer> {
        let head: Option<Header> = self.read("eth_getBlockByNumber", ("latest", false)).await?;
        head.ok_or_else(|| self.no_answer("eth_getBlockByNumber", "the node has no latest block"))
    }

    /// The block that the node calls `tag`: `safe` or `finalized`.
    pub(crate) async fn tagged(&self, tag: &'static str) -> Result<Header, NoAnswer> {
        let block: Option<Header> = self.read("eth_getBlockByNumber", (tag, false)).await?;
        block.ok_or_else(|| self.no_answer("eth_getBlockByNumber", "the node has no block of this name"))
    }

    pub(crate) async fn block(&self, number: u64) -> Result<Option<Header>, NoAnswer> {
        self.read("eth_getBlockByNumber", (U64::from(number), false)).await
    }

    pub(crate) async fn fee_history(&self) -> Result<FeeHistory, NoAnswer> {
        self.read("eth_feeHistory", (U64::from(1), "latest", [50])).await
    }

    pub(crate) async fn logs(&self, filter: LogFilter) -> Result<Vec<Log>, NoAnswer> {
        self.read("eth_getLogs", (filter,)).await
    }

    pub(crate) async fn receipt(&self, hash: B256) -> Result<Option<Receipt>, NoAnswer> {
        self.read("eth_getTransactionReceipt", (hash,)).await
    }

    /// The receipts of those that are mined, in as few questions as the node allows.
    pub(crate) async fn receipts(&self, hashes: &[B256]) -> Result<Vec<Receipt>, NoAnswer> {
        let mut found = Vec::new();
        for chunk in hashes.chunks(BATCH_MAX) {
            let answers =
                self.ask("eth_getTransactionReceipt", |endpoint| async move { endpoint.receipts(chunk).await }).await?;
            found.extend(answers.into_iter().flatten());
        }
        Ok(found)
    }

    /// Executes a call on the latest block, or on `block`.
    pub(crate) async fn call(&self, call: Call, block: Option<u64>) -> Result<Called, NoAnswer> {
        let at = block.map_or_else(|| "latest".to_owned(), |number| format!("{number:#x}"));
        let ask = |endpoint: Endpoint| {
            let params = (call.clone(), at.clone());
            async move {
                match endpoint.request::<_, Bytes>("eth_call", params).await {
                    Ok(bytes) => Ok(Called::Returned(bytes)),
                    Err(EndpointError::Answered(answer)) if answer.is_execution() => Ok(Called::Reverted(answer)),
                    Err(error) => Err(error),
                }
            }
        };
        self.ask("eth_call", ask).await
    }

    /// Hands a transaction to a node. The bytes are the same for every node, so handing them to the next is safe.
    pub(crate) async fn broadcast(&self, raw: &Bytes) -> Result<Broadcast, NoAnswer> {
        let ask = |endpoint: Endpoint| async move {
            match endpoint.request::<_, B256>("eth_sendRawTransaction", (raw.clone(),)).await {
                Ok(_) => Ok(Broadcast::Taken),
                Err(EndpointError::Answered(answer)) => answer.as_broadcast(),
                Err(error) => Err(error),
            }
        };
        self.ask("eth_sendRawTransaction", ask).await
    }

    /// Hands a transaction to a node and waits there for its receipt, if the node can (EIP-7966). `None`: it cannot, or it took
    /// the transaction and did not see it mined in time.
    pub(crate) async fn broadcast_sync(&self, raw: &Bytes, wait: Duration) -> Option<Receipt> {
        let endpoint = self.endpoints.first().filter(|e| e.sync_send())?;
        endpoint.send_sync(raw, wait).await
    }

    async fn read<P: RpcSend, R: RpcRecv>(&self, method: &'static str, params: P) -> Result<R, NoAnswer> {
        let ask = |endpoint: Endpoint| {
            let params = params.clone();
            async move { endpoint.request(method, params).await }
        };
        self.ask(method, ask).await
    }

    /// Asks one node after the other until one answers: those that failed lately come last.
    async fn ask<R, F>(&self, method: &'static str, ask: impl Fn(Endpoint) -> F) -> Result<R, NoAnswer>
    where
        F: Future<Output = Result<R, EndpointError>>,
    {
        let mut failed = None;
        for rested in [true, false] {
            for endpoint in self.endpoints.iter().filter(|e| e.rested() == rested) {
                let error = match tokio::time::timeout(self.timeout, Box::pin(ask(endpoint.clone()))).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => error,
                    Err(_) => EndpointError::TimedOut(self.timeout),
                };
                endpoint.rest(&error);
                failed = Some(NoAnswer { method, node: endpoint.label().to_string(), source: Box::new(error) });
            }
        }
        Err(failed.unwrap_or_else(|| self.no_answer(method, "no node is configured")))
    }

    fn no_answer(&self, method: &'static str, why: &'static str) -> NoAnswer {
        NoAnswer { method, node: self.label(), source: why.into() }
    }

    /// The error of a caller that cannot start without this answer.
    pub(crate) fn unreachable(&self, network: &farebox_core::Network, source: NoAnswer) -> ConnectError {
        ConnectError::Unreachable { network: network.clone(), tried: self.label(), source: Box::new(source) }
    }
}

/// Why one node's answer is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the connection failed")]
    Transport(#[source] BoxError),
    #[error("the node answered with an error")]
    Answered(#[source] Answered),
}

impl From<ErrorPayload> for Answered {
    fn from(payload: ErrorPayload) -> Self {
        let lower = payload.message.to_lowercase();
        Self { code: payload.code, message: Untrusted::new(payload.message), lower }
    }
}

impl Answered {
    /// Whether the chain executed the call and it failed: geth and anvil say 3 or "execution reverted", others spell it their
    /// way. Everything else (rate limits, missing headers, internal errors) says nothing about the call.
    fn is_execution(&self) -> bool {
        let says = |words: &[&str]| words.iter().any(|w| self.lower.contains(w));
        self.code == 3
            || says(&[
                "execution reverted",
                "vm exception",
                "vm execution error",
                "out of gas",
                "outofgas",
                "invalid opcode",
            ])
    }

    /// What a refused broadcast means. Nodes agree on geth's words.
    fn as_broadcast(&self) -> Result<Broadcast, EndpointError> {
        let says = |words: &[&str]| words.iter().any(|w| self.lower.contains(w));
        if says(&["already known", "already imported", "known transaction", "already exists", "already in mempool"]) {
            Ok(Broadcast::Taken)
        } else if says(&["nonce too low", "nonce is too low", "nonce has already been used", "old nonce"]) {
            Ok(Broadcast::NonceTooLow)
        } else if says(&["underpriced", "less than block base fee", "fee too low", "feetoolow", "gas price too low"]) {
            Ok(Broadcast::Underpriced)
        } else {
            tracing::warn!(error = %self, "the node refused a transaction");
            Ok(Broadcast::Unclear)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: i64, message: &'static str) -> Answered {
        ErrorPayload { code, message: message.into(), data: None }.into()
    }

    #[test]
    fn only_an_executed_call_is_a_no() {
        for (code, message) in
            [(3, "execution reverted: x"), (-32000, "execution reverted"), (-32003, "EVM error OutOfGas")]
        {
            assert!(answered(code, message).is_execution(), "{message}");
        }
        for (code, message) in [
            (-32005, "limit exceeded"),
            (429, "Too Many Requests"),
            (-32603, "Internal error"),
            (-32000, "header not found"),
            (-32601, "the method eth_call does not exist"),
            (-32000, "missing trie node"),
        ] {
            assert!(!answered(code, message).is_execution(), "{message}");
        }
    }

    #[test]
    fn refused_broadcasts_are_told_apart() {
        let check =
            |message, expected| assert_eq!(answered(-32000, message).as_broadcast().unwrap(), expected, "{message}");
        check("already known", Broadcast::Taken);
        check("nonce too low: next nonce 5, tx nonce 4", Broadcast::NonceTooLow);
        check("replacement transaction underpriced", Broadcast::Underpriced);
        check("max fee per gas less than block base fee: address 0x…", Broadcast::Underpriced);
        check("insufficient funds for gas * price + value", Broadcast::Unclear);
        check("txpool is full", Broadcast::Unclear);
    }
}
