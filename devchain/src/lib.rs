//! An Ethereum chain inside the process, for `farebox demo` and for tests: blocks by revm, JSON-RPC over HTTP on loopback,
//! and a token that answers as USDC does ([`DemoUsd`]). There is no peer, no consensus and nothing on disk; a block, once
//! made, stays, so `safe` and `finalized` are the head.
//!
//! It answers in go-ethereum's words and codes where clients read them. `tests/behaviour.rs` runs one suite against this
//! chain and against anvil.
//!
//! Where it differs from a node on purpose: the state root in headers is zero; `eth_call` at `latest` runs at the clock's
//! time and not the head's, which may be an hour old when blocks are made only for transactions (anvil does the same); two
//! blocks may have the same timestamp; a transaction whose fee is below the next base fee is refused and not kept.

mod call;
mod chain;
mod evm;
pub mod limits;
mod node;
mod pool;
mod rpc;
mod send;
mod server;
mod state;
mod token;
mod view;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{B256, Bytes};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::chain::Chain;
use crate::limits::SHUTDOWN_TIMEOUT;
use crate::node::Node;

pub use alloy::primitives::{Address, U256};

pub use crate::send::SendError;
pub use crate::token::{DemoUsd, DemoWallet, TokenConfig, TokenError};

/// Tells the time, in whole seconds since the Unix epoch. Called for each block and each call, so it must be cheap;
/// should it go back, the chain stays at its last block's time.
pub type ChainClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// When blocks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mining {
    /// As soon as a transaction can be executed, before its sender has an answer.
    Instant,
    /// Every so often, with or without transactions. Must not be zero.
    Interval(Duration),
    /// Only when asked: [`DevChain::mine`] or `evm_mine`.
    Held,
}

/// What a chain is started with.
#[derive(Clone)]
pub struct DevChainConfig {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Where JSON-RPC listens: a loopback address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// When blocks are made.
    pub mining: Mining,
    /// Accounts with money at genesis, in wei.
    pub accounts: Vec<(Address, U256)>,
    /// Time of the genesis block, Unix seconds; `None` is the clock's time at the start.
    pub genesis_timestamp_s: Option<u64>,
    /// The clock that blocks and calls follow.
    pub clock: ChainClock,
}

impl DevChainConfig {
    /// Instant blocks on a free port of 127.0.0.1, nobody funded, genesis at the clock's time.
    #[must_use]
    pub fn new(chain_id: u64, clock: ChainClock) -> Self {
        Self {
            chain_id,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            mining: Mining::Instant,
            accounts: Vec::new(),
            genesis_timestamp_s: None,
            clock,
        }
    }
}

/// Why a chain could not be started. None is cured by trying again with the same configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Anybody who can connect can mint and edit balances, so it must not be reachable from elsewhere.
    #[error("a development chain listens on loopback only, found {0}; use 127.0.0.1:0")]
    NotLoopback(SocketAddr),
    /// The interval between blocks is zero.
    #[error("the block interval must be above zero; use Mining::Instant")]
    ZeroInterval,
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl StartError {
    /// A stable name, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotLoopback(_) => "devchain_not_loopback",
            Self::ZeroInterval => "devchain_zero_interval",
            Self::Listen { .. } => "devchain_listen",
        }
    }
}

/// A running chain. Dropping it stops it: it takes no more connections, and those open end with the answer under way.
pub struct DevChain {
    node: Arc<Node>,
    address: SocketAddr,
    server: JoinHandle<()>,
    /// Never sent to: that it closes tells the tasks to stop.
    stop: watch::Sender<()>,
}

impl DevChain {
    /// Starts a chain; it answers when this returns. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`]; nothing then runs.
    pub async fn start(config: DevChainConfig) -> Result<Self, StartError> {
        if !config.listen.ip().is_loopback() {
            return Err(StartError::NotLoopback(config.listen));
        }
        if config.mining == Mining::Interval(Duration::ZERO) {
            return Err(StartError::ZeroInterval);
        }
        let listen_error = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;

        let genesis_timestamp_s = config.genesis_timestamp_s.unwrap_or_else(|| (config.clock)());
        let chain = Chain::new(config.chain_id, config.clock, config.mining, genesis_timestamp_s, &config.accounts);
        let node = Arc::new(Node::new(chain));
        let (stop, stopped) = watch::channel(());
        if let Mining::Interval(every) = config.mining {
            tokio::spawn(mine_every(every, node.clone(), stopped.clone()));
        }
        let server = tokio::spawn(server::serve(listener, node.clone(), stopped));
        Ok(Self { node, address, server, stop })
    }

    /// Where JSON-RPC answers, for instance `http://127.0.0.1:41234`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address of [`DevChain::url`].
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// EIP-155 chain id.
    #[must_use]
    pub fn chain_id(&self) -> u64 {
        self.node.read(Chain::chain_id)
    }

    /// Number of the newest block.
    #[must_use]
    pub fn block_number(&self) -> u64 {
        self.node.read(|chain| chain.head().header.number)
    }

    /// Takes a raw signed transaction (EIP-2718) as `eth_sendRawTransaction` does; returns its hash.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_raw(&self, raw: &[u8]) -> Result<B256, SendError> {
        self.node.write(|chain| chain.send(raw))
    }

    /// Makes one block now, if only an empty one.
    pub fn mine(&self) {
        self.node.write(Chain::mine);
    }

    /// From now on makes blocks [`Mining::Instant`]ly or [`Mining::Held`]; an interval can be chosen only at the start,
    /// and is given up for good with this call.
    pub fn set_mining(&self, mining: Mining) {
        self.node.write(|chain| chain.set_mining(mining));
    }

    /// Moves the clock forward for good.
    pub fn increase_time(&self, by: Duration) {
        self.node.write(|chain| chain.increase_time(by.as_secs()));
    }

    /// Sets a balance, in wei, as of the newest block.
    pub fn set_balance(&self, address: Address, wei: U256) {
        self.node.write(|chain| chain.edit_account(address, |account| account.balance = wei));
    }

    /// Puts a token in place, as of the newest block: no transaction tells of it. Returns its address.
    ///
    /// # Errors
    /// [`TokenError::Occupied`] if the address has code.
    pub fn deploy_token(&self, token: &TokenConfig) -> Result<Address, TokenError> {
        self.node.write(|chain| token::deploy(chain, token))
    }

    /// Gives `to` some units of a token that [`DevChain::deploy_token`] has put in place, as of the newest block:
    /// no transaction and no log tells of it.
    ///
    /// # Errors
    /// [`TokenError::Refused`], with the token's words.
    pub fn mint(&self, token: Address, to: Address, units: U256) -> Result<(), TokenError> {
        self.node.write(|chain| token::mint(chain, token, to, units))
    }

    /// What an account has of a token, in units.
    ///
    /// # Errors
    /// [`TokenError::Refused`] if there is no token at the address.
    pub fn token_balance(&self, token: Address, of: Address) -> Result<U256, TokenError> {
        self.node.read(|chain| token::balance(chain, token, of))
    }

    /// The code at an address, empty if there is none.
    #[must_use]
    pub fn code(&self, address: Address) -> Bytes {
        self.node.read(|chain| view::code(&mut chain.state_at(chain.head().header.number), address))
    }

    /// Stops the chain: no more connections, answers under way are given a moment ([`SHUTDOWN_TIMEOUT`]).
    pub async fn shutdown(self) {
        drop(self.stop);
        let mut server = self.server;
        match tokio::time::timeout(SHUTDOWN_TIMEOUT, &mut server).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the development chain's server had failed"),
            Err(_) => {
                tracing::warn!("the development chain stops with answers under way");
                server.abort();
            }
        }
    }
}

async fn mine_every(every: Duration, node: Arc<Node>, mut stopped: watch::Receiver<()>) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            _ = stopped.changed() => return,
            _ = ticks.tick() => {}
        }
        let still = node.write(|chain| {
            let still = matches!(chain.mining(), Mining::Interval(_));
            if still {
                chain.mine();
            }
            still
        });
        if !still {
            return;
        }
    }
}
