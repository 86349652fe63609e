//! What `farebox check` asks a chain.

use std::{error::Error, time::Duration};

use alloy::primitives::{Address, B256, Bytes, U64, U256};
use farebox_core::{Decimal, Network, Timestamp, ports::Clock};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::{
    ChainConfig, ChainLimits, EvmKey, address,
    chain::{node_of, validate},
    checksum,
    lane::{Quote, SETTLEMENT_GAS},
    node::{Draft, Estimate, NoAnswer, Node, ask},
    token::{Coin, Token},
};

/// Below so many settlements the relayer needs to be given gas soon.
const SETTLEMENTS_FEW: u128 = 1_000;
/// A daily cap that pays for fewer is more likely forgotten than meant.
const SETTLEMENTS_A_DAY_FEW: u128 = 100;

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
            if let Some(node) = looked.sources(config, &node, chain_id, now).await {
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

/// What another clock says.
#[derive(Clone, Debug)]
pub struct ClockReading {
    /// Whose: scheme and host of a source.
    pub of: String,
    /// How it says so.
    pub by: ClockHand,
    /// What it says.
    pub theirs: Timestamp,
    /// What ours said then.
    pub ours: Timestamp,
}

/// Where a clock is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockHand {
    /// The newest block's time, which is never later than now.
    Block,
    /// The `Date` of an HTTP answer, which is now, in whole seconds.
    HttpDate,
}

/// Reads the clocks of a chain's sources. Those that do not answer, or tell no time, are left out.
pub async fn clocks(config: &ChainConfig, clock: &dyn Clock) -> Vec<ClockReading> {
    let Ok(node) = validate(config).and_then(|chain_id| node_of(config, chain_id)) else { return Vec::new() };
    let each = node.each().map(|one| async move {
        let head = one.head().await.ok();
        let block = head.map(|head| ClockReading {
            of: one.label(),
            by: ClockHand::Block,
            theirs: Timestamp::from_unix_s(head.timestamp.to()),
            ours: clock.now(),
        });
        let mut readings = Vec::from_iter(block);
        for source in one.sources() {
            let date = source.http_date(config.limits.rpc_timeout).await;
            let date = date.map(|theirs| ClockReading {
                of: source.label(),
                by: ClockHand::HttpDate,
                theirs,
                ours: clock.now(),
            });
            readings.extend(date);
        }
        readings
    });
    join_all(each).await.concat()
}

struct Looked(Vec<Finding>);

impl Looked {
    fn add(&mut self, severity: Severity, code: &'static str, message: String) {
        self.0.push(Finding { severity, code, message });
    }

    fn recipient(&mut self, config: &ChainConfig) {
        let pay_to = checksum(config.pay_to);
        if let Some(token) = config.assets.iter().find(|asset| asset.address == config.pay_to) {
            let message =
                format!("pay_to {pay_to} is the contract of {}: what is sent there is lost for good", token.symbol);
            return self.add(Severity::Error, "pay_to_is_token", message);
        }
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
    async fn sources(&mut self, config: &ChainConfig, node: &Node, chain_id: u64, now: Timestamp) -> Option<Node> {
        let seen = join_all(node.each().map(|one| async move {
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
                    let age_s = now.unix_s().saturating_sub(head.timestamp.to());
                    let seen = SourceHead { number: head.number.to(), age_s, took };
                    self.source(&name, &seen, newest.unwrap_or_default(), config.head_age_max);
                    heads.push((one, head.number.to::<u64>()));
                }
            }
        }
        self.common_block(&heads).await;
        let well: Vec<_> = heads.into_iter().map(|(one, _)| one).collect();
        node.only(&well)
    }

    fn source(&mut self, name: &str, seen: &SourceHead, newest: u64, age_max: Duration) {
        let SourceHead { number, age_s, took } = *seen;
        let behind = newest.saturating_sub(number);
        let message = format!(
            "{name} is at block {number}, {age_s} s old and {behind} behind, and answers in {} ms",
            took.as_millis()
        );
        if age_s > age_max.as_secs() {
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
        let told: Vec<(String, Option<B256>)> = join_all(asked).await;
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
                match Coin::read(node, config, asset).await {
                    Ok(coin) => {
                        let message =
                            format!("{} {} has {} decimals", coin.symbol, checksum(asset.address), coin.decimals);
                        self.add(Severity::Fine, "token", message);
                    }
                    Err(error) => self.add(Severity::Error, error.code(), told(&error)),
                }
                continue;
            }
            match Token::read(node, config, chain_id, asset).await {
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
        let mut message =
            format!("relayer {relayer} has {ether} of the native coin, enough for about {count} settlements now");
        if severity != Severity::Fine {
            let more = SETTLEMENTS_FEW.saturating_mul(each).max(sure).saturating_sub(balance);
            message.push_str(&format!("; send it {} more", Decimal::from_units(more, 18)));
        }
        self.add(severity, "relayer_gas", message);
        self.gas_caps(limits, fee.max, each);
    }

    /// The caps of the config against what a settlement costs now.
    fn gas_caps(&mut self, limits: &ChainLimits, fee: u128, each: u128) {
        let gwei = |wei: u128| Decimal::from_units(wei, 9);
        let cap = limits.fee_per_gas_max;
        // `fee` is twice the base fee: over half of the cap, the base fee has room to double once.
        let near = fee > cap / 2;
        let severity = if near { Severity::Warning } else { Severity::Fine };
        let then = if near { "; raise fee_gwei_max, or settlements stop when the fee doubles" } else { "" };
        let message = format!("gas is offered at up to {} gwei now, of {} allowed{then}", gwei(fee), gwei(cap));
        self.add(severity, "fee_cap", message);
        let count = limits.gas_per_day_max / each;
        let few = count < SETTLEMENTS_A_DAY_FEW;
        let severity = if few { Severity::Warning } else { Severity::Fine };
        let then = if few { "; raise gas_per_day_max if you expect more calls than that" } else { "" };
        let day = Decimal::from_units(limits.gas_per_day_max, 18);
        self.add(
            severity,
            "gas_per_day",
            format!("the daily cap of {day} pays for about {count} settlements now{then}"),
        );
    }

    async fn pay_to_code(&mut self, config: &ChainConfig, node: &Node) {
        let pay_to = checksum(config.pay_to);
        match node.code(address::alloy(config.pay_to)).await {
            Ok(code) if code.is_empty() => {}
            Ok(_) => {
                let message =
                    format!("pay_to {pay_to} is a contract; make sure that it is yours and can send tokens on");
                self.add(Severity::Warning, "pay_to_contract", message);
                if config.takes_native() {
                    self.takes_coins(config, node).await;
                }
            }
            Err(error) => self.add(Severity::Error, "rpc_unreachable", told(&error)),
        }
    }

    /// A plain transfer of one wei to the contract, tried and not sent: one that takes tokens may well refuse the coin.
    async fn takes_coins(&mut self, config: &ChainConfig, node: &Node) {
        let code = "pay_to_takes_coins";
        let pay_to = checksum(config.pay_to);
        let from = match funded(config, node).await {
            Ok(Some(from)) => from,
            Ok(None) => {
                let message =
                    format!("whether the contract {pay_to} takes the native coin could not be tried; send it one wei");
                return self.add(Severity::Warning, code, message);
            }
            Err(error) => return self.add(Severity::Error, "rpc_unreachable", told(&error)),
        };
        let draft = Draft { from, to: address::alloy(config.pay_to), value: U256::from(1), data: Bytes::new() };
        match node.estimate(&draft).await {
            Ok(Estimate::Gas(_)) => {
                self.add(Severity::Fine, code, format!("the contract {pay_to} takes the native coin"))
            }
            Ok(Estimate::Fails) => {
                let message = format!(
                    "the contract {pay_to} refuses the native coin, so nobody could pay with it; take \"native\" out of assets, or pay another account"
                );
                self.add(Severity::Error, code, message);
            }
            Err(error) => self.add(Severity::Error, "rpc_unreachable", told(&error)),
        }
    }
}

/// An account with money to try a transfer from: the relayer, or one of those that people burn coins at.
async fn funded(config: &ChainConfig, node: &Node) -> Result<Option<Address>, NoAnswer> {
    let burnt = [Address::ZERO, Address::with_last_byte(1), Address::repeat_byte(0xee)];
    for account in config.relayer_address().into_iter().chain(burnt) {
        if node.balance(account).await? > U256::from(1) {
            return Ok(Some(account));
        }
    }
    Ok(None)
}

/// What a source speaks, and its scheme and host.
fn source_name(one: &Node) -> String {
    one.sources().first().map_or_else(String::new, |source| format!("the {} {}", source.kind(), source.label()))
}

/// A source's newest block, and how long the source took to tell of it.
struct SourceHead {
    number: u64,
    age_s: u64,
    took: Duration,
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
