//! What `farebox check` asks a chain.

use std::error::Error;

use farebox_core::{Decimal, Network, Timestamp};
use tokio::time::Instant;

use crate::{
    ChainConfig, EvmKey, address,
    chain::{node_of, validate},
    checksum,
    lane::Quote,
    node::Node,
    token::{Coin, Token},
};

/// A head older than this is a node that lags, or a chain that stands still.
const HEAD_AGE_MAX_S: u64 = 120;
/// What one settlement uses: FiatTokenV2_2 with a first transfer to a new recipient. Measured on anvil.
const SETTLEMENT_GAS: u128 = 104_000;
/// Below so many settlements the relayer needs to be given gas soon.
const SETTLEMENTS_FEW: u128 = 1_000;

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
pub async fn inspect(config: &ChainConfig, now: Timestamp) -> ChainReport {
    let mut looked = Looked(Vec::new());
    looked.recipient(config);
    let node = validate(config).and_then(|chain_id| Ok((chain_id, node_of(config, chain_id)?)));
    match node {
        Ok((chain_id, node)) => {
            looked.nodes(&node, chain_id, now).await;
            looked.tokens(config, &node, chain_id).await;
            if let Some(relayer) = &config.relayer {
                looked.relayer(config, relayer, &node).await;
            }
            looked.pay_to_code(config, &node).await;
        }
        Err(error) => looked.add(Severity::Error, error.code(), told(&error)),
    }
    ChainReport { network: config.network.clone(), findings: looked.0 }
}

struct Looked(Vec<Finding>);

impl Looked {
    fn add(&mut self, severity: Severity, code: &'static str, message: String) {
        self.0.push(Finding { severity, code, message });
    }

    fn recipient(&mut self, config: &ChainConfig) {
        let pay_to = checksum(config.pay_to);
        if config.relayer.as_ref().is_some_and(|relayer| relayer.address() == config.pay_to) {
            let message =
                format!("pay_to {pay_to} is the relayer itself; its key is on this machine, so pay somebody else");
            self.add(Severity::Warning, "pay_to_is_relayer", message);
        } else {
            self.add(Severity::Fine, "pay_to", format!("payments go to {pay_to}"));
        }
    }

    async fn nodes(&mut self, node: &Node, chain_id: u64, now: Timestamp) {
        for one in node.each() {
            let started = Instant::now();
            match one.chain_id().await {
                Err(error) => self.add(Severity::Error, "rpc_unreachable", told(&error)),
                Ok(found) if found != chain_id => {
                    let message = format!("{} serves chain id {found}, expected {chain_id}", one.label());
                    self.add(Severity::Error, "wrong_chain_id", message);
                }
                Ok(_) => {
                    let message = format!("{} answers in {} ms", one.label(), started.elapsed().as_millis());
                    self.add(Severity::Fine, "rpc_reachable", message);
                    self.head(&one, now).await;
                }
            }
        }
    }

    async fn head(&mut self, node: &Node, now: Timestamp) {
        match node.head().await {
            Ok(head) => {
                let age_s = now.unix_s().saturating_sub(head.timestamp.to());
                let severity = if age_s > HEAD_AGE_MAX_S { Severity::Warning } else { Severity::Fine };
                let message = format!("{} is at block {}, {age_s} s old", node.label(), head.number);
                self.add(severity, "rpc_head", message);
            }
            Err(error) => self.add(Severity::Error, "rpc_head", told(&error)),
        }
    }

    async fn tokens(&mut self, config: &ChainConfig, node: &Node, chain_id: u64) {
        for asset in &config.assets {
            if config.relayer.is_none() {
                match Coin::read(node, &config.network, asset).await {
                    Ok(coin) => {
                        let message =
                            format!("{} {} has {} decimals", coin.symbol, checksum(asset.address), coin.decimals);
                        self.add(Severity::Fine, "token", message);
                    }
                    Err(error) => self.add(Severity::Error, error.code(), told(&error)),
                }
                continue;
            }
            match Token::read(node, &config.network, chain_id, asset).await {
                Ok(token) => {
                    let message = format!(
                        "{} {} is \"{}\" version \"{}\" with {} decimals",
                        token.symbol,
                        checksum(asset.address),
                        token.name,
                        token.version,
                        token.decimals
                    );
                    self.add(Severity::Fine, "token", message);
                }
                Err(error) => self.add(Severity::Error, error.code(), told(&error)),
            }
        }
    }

    async fn relayer(&mut self, config: &ChainConfig, key: &EvmKey, node: &Node) {
        let relayer = checksum(key.address());
        let limits = &config.limits;
        let quote = match Quote::ask(node, key.alloy_address()).await {
            Ok(quote) => quote,
            Err(error) => return self.add(Severity::Error, "relayer", told(&error)),
        };
        let fee = match quote.fee(limits.fee_per_gas_max) {
            Ok(fee) => fee,
            Err(unsent) => return self.add(Severity::Error, "fee_over_cap", unsent.to_string()),
        };
        let (balance, each) = (quote.balance(), SETTLEMENT_GAS.saturating_mul(fee.max).max(1));
        let sure = u128::from(limits.gas_limit_max).saturating_mul(fee.max);
        let count = balance / each;
        let severity = match () {
            () if balance < sure => Severity::Error,
            () if count < SETTLEMENTS_FEW => Severity::Warning,
            () => Severity::Fine,
        };
        let ether = Decimal::from_units(balance, 18);
        let message =
            format!("relayer {relayer} has {ether} of the native coin, enough for about {count} settlements now");
        self.add(severity, "relayer_gas", message);
    }

    async fn pay_to_code(&mut self, config: &ChainConfig, node: &Node) {
        match node.code(address::alloy(config.pay_to)).await {
            Ok(code) if code.is_empty() => {}
            Ok(_) => {
                let message =
                    format!("pay_to {} is a contract; make sure that it can send tokens on", checksum(config.pay_to));
                self.add(Severity::Warning, "pay_to_contract", message);
            }
            Err(error) => self.add(Severity::Error, "rpc_unreachable", told(&error)),
        }
    }
}

/// An error with its causes, on one line.
fn told(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}
