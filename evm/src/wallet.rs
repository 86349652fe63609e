//! A wallet that holds its key in this process.

use std::sync::Arc;

use async_trait::async_trait;
use farebox_core::{
    Amount, AssetId, Credential, EvmAddress, Network, Offer, Timestamp,
    ports::{Entropy, Wallet, WalletError},
};

use crate::{EvmKey, RpcUrl};

/// A key in memory that signs EIP-3009 authorizations.
#[derive(Debug)]
pub struct LocalWallet {
    key: EvmKey,
}

impl LocalWallet {
    /// A wallet of this key; nonces come from `entropy`.
    #[must_use]
    pub fn new(key: EvmKey, _entropy: Arc<dyn Entropy>) -> Self {
        Self { key }
    }

    /// The same with a node to ask for balances on `network`.
    #[must_use]
    pub fn with_rpc(self, _network: Network, _rpc: RpcUrl) -> Self {
        self
    }
}

#[async_trait]
impl Wallet for LocalWallet {
    fn evm_address(&self) -> EvmAddress {
        self.key.address()
    }

    async fn authorize(&self, _offer: &Offer, _now: Timestamp) -> Result<Credential, WalletError> {
        unimplemented!()
    }

    async fn balance(&self, _asset: &AssetId) -> Result<Amount, WalletError> {
        unimplemented!()
    }
}
