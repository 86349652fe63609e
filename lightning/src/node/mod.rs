//! Nodes and wallets that run elsewhere, each behind [`LightningNode`] and [`LightningWallet`]: lnd over its REST interface, Core Lightning
//! over clnrest, and any wallet over Nostr Wallet Connect.

mod cln;
mod config;
mod lines;
mod lnd;
mod nwc;
mod once;
mod rest;
mod tls;

use std::sync::Arc;

use farebox_core::{
    BitcoinNetwork,
    ports::{Clock, LightningNode, LightningWallet},
};

pub use config::{
    ClnConfig, ConnectError, LndConfig, NodeConfig, NodeUriError, NwcConfig, NwcUri, SecretSource, TIMEOUT_DEFAULT,
};
pub use tls::{PinError, Pins, Trust};

/// One node or wallet, as both ports see it.
#[derive(Clone, Debug)]
pub struct Connected {
    /// It makes invoices.
    pub node: Arc<dyn LightningNode>,
    /// It pays.
    pub wallet: Arc<dyn LightningWallet>,
}

/// A node by its config. Reads the files that the config names and asks nobody yet: whether it is there is what
/// [`LightningNode::info`] tells.
///
/// # Errors
/// [`ConnectError`].
pub fn connect(config: &NodeConfig, clock: &Arc<dyn Clock>) -> Result<Connected, ConnectError> {
    let clock = Arc::clone(clock);
    Ok(match config {
        NodeConfig::Lnd(config) => both(lnd::Lnd::new(config, clock)?),
        NodeConfig::Cln(config) => both(cln::Cln::new(config, clock)?),
        NodeConfig::Nwc(config) => both(nwc::Nwc::new(config, clock)?),
    })
}

fn both(node: impl LightningNode + LightningWallet + 'static) -> Connected {
    let node = Arc::new(node);
    Connected { node: Arc::clone(&node) as _, wallet: node }
}

/// A network as nodes spell it: `mainnet` and `bitcoin` are the same.
fn network(name: &str) -> Option<BitcoinNetwork> {
    let name = if name == "mainnet" { "bitcoin" } else { name };
    BitcoinNetwork::ALL.into_iter().find(|known| known.as_str() == name)
}
