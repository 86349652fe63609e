//! What `farebox check` asks a chain.

use farebox_core::{Network, Timestamp};

use crate::ChainConfig;

/// What was found out about one chain.
#[derive(Clone, Debug)]
pub struct ChainReport {
    /// Which.
    pub network: Network,
    /// In the order in which they were looked at.
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Stable, snake_case, such as `rpc_reachable`.
    pub code: &'static str,
    /// What, expected, found, next.
    pub message: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// Works, but somebody should look at it.
    Warning,
    /// Does not work.
    Error,
}

impl ChainReport {
    /// The worst finding's severity.
    #[must_use]
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|f| f.severity).max().unwrap_or(Severity::Fine)
    }
}

/// Looks at everything a chain needs, and goes on after a fault. Sends nothing and signs nothing.
pub async fn inspect(_config: &ChainConfig, _now: Timestamp) -> ChainReport {
    unimplemented!()
}
