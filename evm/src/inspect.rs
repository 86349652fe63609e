//! What `farebox check` asks a chain.

use std::{error::Error, time::Duration};

use alloy::primitives::{B256, U64};
use farebox_core::{Decimal, Network, Timestamp};
use tokio::time::Instant;

use crate::{
    ChainConfig, EvmKey, address,
    chain::{node_of, validate},
    checksum,
    lane::{Quote, SETTLEMENT_GAS},
    node::{Header, Node, ask},
    token::{Coin, Token},
};

/// A head older than this is a node that lags, or a chain that stands still.
const HEAD_AGE_MAX_S: u64 = 120;
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
            // What nobody can be asked about is not asked, or every question would tell of the same dead source again.
            if let Some(node) = looked.sources(&node, chain_id, now).await {
                looked.tokens(config, &node, chain_id).await;
                if let Some(relayer) = &config.relayer {
                    looked.relayer(config, relayer, &node).await;
                }
                looked.pay_to_code(config, &node).await;
            }
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

    /// One line for each source, and one for what they say of each other. Gives the sources that can be asked further, so that one that
    /// is dead is told of once; none if all are.
    async fn sources(&mut self, node: &Node, chain_id: u64, now: Timestamp) -> Option<Node> {
        let seen = futures_util::future::join_all(node.each().map(|one| async move {
            let started = Instant::now();
            let told = one.batch((ask::chain_id(), ask::head())).await;
            (one, told, started.elapsed())
        }))
        .await;
        let newest = seen.iter().filter_map(|(_, told, _)| Some(told.as_ref().ok()?.1.number.to::<u64>())).max();
        let mut heads = Vec::new();
        for (one, told, took) in seen {
            let name = source_name(&one);
            match told {
                Err(error) => self.add(Severity::Error, "rpc_unreachable", format!("{name}: {}", self::told(&error))),
                Ok((found, _)) if found != U64::from(chain_id) => {
                    let message = format!("{name} serves chain id {found}, expected {chain_id}");
                    self.add(Severity::Error, "wrong_chain_id", message);
                }
                Ok((_, head)) => {
                    self.source(&name, &head, newest.unwrap_or_default(), took, now);
                    heads.push((one, head.number.to::<u64>()));
                }
            }
        }
        self.common_block(&heads).await;
        let well: Vec<_> = heads.into_iter().map(|(one, _)| one).collect();
        node.only(&well)
    }

    fn source(&mut self, name: &str, head: &Header, newest: u64, took: Duration, now: Timestamp) {
        let (number, age_s) = (head.number.to::<u64>(), now.unix_s().saturating_sub(head.timestamp.to()));
        let behind = newest.saturating_sub(number);
        let message = format!(
            "{name} is at block {number}, {age_s} s old and {behind} behind, and answers in {} ms",
            took.as_millis()
        );
        if age_s > HEAD_AGE_MAX_S {
            let message = format!("{message}; it lags, or the chain stands still");
            self.add(Severity::Warning, "rpc_lags", message);
        } else {
            self.add(Severity::Fine, "rpc_reachable", message);
        }
    }

    /// What every source says of the newest block that all of them have. A majority is believed about who is wrong.
    async fn common_block(&mut self, heads: &[(Node, u64)]) {
        let Some(number) = heads.iter().map(|(_, number)| *number).min().filter(|_| heads.len() > 1) else { return };
        // One below the lowest head: at the very end sources may differ for a moment.
        let number = number.saturating_sub(1);
        let asked = heads.iter().map(|(one, _)| async move {
            (source_name(one), one.block(number).await.ok().flatten().map(|block| block.hash))
        });
        let told: Vec<(String, Option<B256>)> = futures_util::future::join_all(asked).await;
        let votes = |hash: &Option<B256>| told.iter().filter(|(_, other)| other == hash).count();
        let Some((most, usual)) = told.iter().map(|(_, hash)| (votes(hash), hash)).max_by_key(|(votes, _)| *votes)
        else {
            return;
        };
        let others: Vec<&str> = told.iter().filter(|(_, hash)| hash != usual).map(|(name, _)| name.as_str()).collect();
        if others.is_empty() {
            let message = format!("all {} sources agree about block {number}", told.len());
            self.add(Severity::Fine, "rpc_agree", message);
        } else if most * 2 > told.len() {
            let message = format!("{} disagrees with the other sources about block {number}", others.join(" and "));
            self.add(Severity::Error, "rpc_disagree", message);
        } else {
            let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
            let message = format!("{} disagree about block {number}; one of them is wrong", names.join(" and "));
            self.add(Severity::Error, "rpc_disagree", message);
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
        let (balance, each) = (quote.balance(), u128::from(SETTLEMENT_GAS).saturating_mul(fee.max).max(1));
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

/// What a source speaks, and its scheme and host.
fn source_name(one: &Node) -> String {
    one.sources().first().map_or_else(String::new, |source| format!("the {} {}", source.kind(), source.label()))
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
