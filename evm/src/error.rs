//! Why a chain could not be taken into service.

use farebox_core::{EvmAddress, Network, ports::BoxError};

/// Why a chain could not be taken into service. Nothing is ever guessed in its place.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration alone shows that it cannot work.
    #[error("{network}: {problem}")]
    Config {
        /// Which chain.
        network: Network,
        /// What, expected, found.
        problem: String,
    },
    /// No node answered.
    #[error("{network}: no node answered; tried {tried}")]
    Unreachable {
        /// Which chain.
        network: Network,
        /// Scheme and host of each node.
        tried: String,
        /// What the last one said.
        #[source]
        source: BoxError,
    },
    /// The node serves another chain.
    #[error("{network}: the node {node} serves chain id {found}")]
    WrongChain {
        /// Which chain was expected.
        network: Network,
        /// Scheme and host.
        node: String,
        /// What it says.
        found: u64,
    },
    /// The token cannot be used.
    #[error("{network}: the token {token:?} {problem}")]
    Token {
        /// Which chain.
        network: Network,
        /// Which contract.
        token: EvmAddress,
        /// What is wrong with it.
        problem: String,
    },
    /// The ledger did not tell what the relayer has in flight.
    #[error("{network}: the ledger did not tell which transactions are open")]
    Ledger {
        /// Which chain.
        network: Network,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
}

impl ConnectError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Config { .. } => "chain_config",
            Self::Unreachable { .. } => "rpc_unreachable",
            Self::WrongChain { .. } => "wrong_chain_id",
            Self::Token { .. } => "unusable_token",
            Self::Ledger { .. } => "ledger_unavailable",
        }
    }

    /// Whether the same configuration may work later.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Ledger { .. } => true,
            Self::Config { .. } | Self::WrongChain { .. } | Self::Token { .. } => false,
        }
    }
}
