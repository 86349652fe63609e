//! What goes wrong when a chain is asked, and what a node's error says.

use std::{borrow::Cow, time::Duration};

use farebox_core::{Untrusted, ports::BoxError};

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

/// Why one source's answer is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the connection failed")]
    Transport(#[source] BoxError),
    #[error("the source answered with an error")]
    Answered(#[source] Answered),
    #[error("the source limits how often it is asked")]
    Limited { retry_after: Option<Duration> },
    /// Not JSON, the wrong ids, or about something else than was asked.
    #[error("the answer is not one to what was asked: {0}")]
    Garbled(Cow<'static, str>),
    /// An explorer has a few methods only.
    #[error("the source does not serve {0}")]
    Unsupported(&'static str),
    #[error("the source is {behind} blocks behind the others")]
    Lagging { behind: u64 },
}

impl SourceError {
    pub(super) fn garbled(why: impl Into<Cow<'static, str>>) -> Self {
        Self::Garbled(why.into())
    }
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

/// What a node said of a transaction, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Broadcast {
    /// The nonce was used before, perhaps by this very transaction.
    NonceTooLow,
    /// It has it, now or already.
    Taken,
    /// The fee is too low, or another transaction with this nonce pays more.
    Underpriced,
    /// Anything else: it may or may not have it.
    Unclear,
}

impl Answered {
    /// "Method not found". Source: JSON-RPC 2.0 §5.1.
    pub(super) const METHOD_NOT_FOUND: i64 = -32601;

    pub(super) fn new(code: i64, message: &str) -> Self {
        Self { code, message: Untrusted::new(message), lower: message.to_lowercase() }
    }

    /// Whether the chain executed the call and it failed: geth and anvil say 3 or "execution reverted", others spell it their
    /// way. Everything else (rate limits, missing headers, internal errors) says nothing about the call.
    pub(super) fn is_execution(&self) -> bool {
        self.code == 3
            || self.says(&[
                "execution reverted",
                "vm exception",
                "vm execution error",
                "out of gas",
                "outofgas",
                "invalid opcode",
            ])
    }

    /// Whether the source has been asked too often. A page of logs that is too long has the same code at some providers and is
    /// no such thing. Source: EIP-1474 (-32005), and the words of public providers.
    pub(super) fn is_limit(&self) -> bool {
        if self.says(&["query returned more than", "block range", "gas limit", "execution"]) {
            return false;
        }
        matches!(self.code, -32005 | 429)
            || self.says(&[
                "rate limit",
                "limit exceeded",
                "too many requests",
                "request count exceeded",
                "compute units per second",
            ])
    }

    /// What a refused broadcast means. Nodes agree on geth's words.
    pub(super) fn as_broadcast(&self) -> Broadcast {
        if self.says(&[
            "already known",
            "already imported",
            "known transaction",
            "already exists",
            "already in mempool",
        ]) {
            Broadcast::Taken
        } else if self.says(&["nonce too low", "nonce is too low", "nonce has already been used", "old nonce"]) {
            Broadcast::NonceTooLow
        } else if self.says(&[
            "underpriced",
            "less than block base fee",
            "fee too low",
            "feetoolow",
            "gas price too low",
        ]) {
            Broadcast::Underpriced
        } else {
            tracing::warn!(error = %self, "the node refused a transaction");
            Broadcast::Unclear
        }
    }

    fn says(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.lower.contains(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_executed_call_is_a_no() {
        for (code, message) in
            [(3, "execution reverted: x"), (-32000, "execution reverted"), (-32003, "EVM error OutOfGas")]
        {
            assert!(Answered::new(code, message).is_execution(), "{message}");
        }
        for (code, message) in [
            (-32005, "limit exceeded"),
            (429, "Too Many Requests"),
            (-32603, "Internal error"),
            (-32000, "header not found"),
            (-32601, "the method eth_call does not exist"),
            (-32000, "missing trie node"),
        ] {
            assert!(!Answered::new(code, message).is_execution(), "{message}");
        }
    }

    #[test]
    fn a_limit_is_told_from_other_errors() {
        for (code, message) in [
            (-32005, "daily request count exceeded, request rate limited"),
            (429, "Your app has exceeded its compute units per second capacity"),
            (-32000, "Too Many Requests"),
        ] {
            assert!(Answered::new(code, message).is_limit(), "{message}");
        }
        for (code, message) in [
            (-32005, "query returned more than 10000 results"),
            (-32000, "exceeds block gas limit"),
            (3, "execution reverted: rate limit exceeded"),
            (-32000, "nonce too low"),
        ] {
            assert!(!Answered::new(code, message).is_limit(), "{message}");
        }
    }

    #[test]
    fn refused_broadcasts_are_told_apart() {
        let check =
            |message, expected| assert_eq!(Answered::new(-32000, message).as_broadcast(), expected, "{message}");
        check("already known", Broadcast::Taken);
        check("nonce too low: next nonce 5, tx nonce 4", Broadcast::NonceTooLow);
        check("replacement transaction underpriced", Broadcast::Underpriced);
        check("max fee per gas less than block base fee: address 0x…", Broadcast::Underpriced);
        check("insufficient funds for gas * price + value", Broadcast::Unclear);
        check("txpool is full", Broadcast::Unclear);
    }
}
