//! The x402 rail on EVM chains.

use std::sync::Arc;

use async_trait::async_trait;
use farebox_core::{
    BlockRef, Credential, Network, Offer, Payment, Permit, Price, RailName, Timestamp,
    ports::{
        BoxError, Canonical, Checked, Clock, OfferError, Rail, Rejected, Settlement, TransactionStore, VerifyError,
    },
};

use crate::{ChainConfig, ConnectError};

/// x402 `exact` by EIP-3009, settled by our own relayer, on every configured chain.
#[derive(Debug)]
pub struct EvmRail {}

impl EvmRail {
    /// Asks every chain what its tokens are, and starts its relayer's lane. Needs a running tokio runtime.
    ///
    /// # Errors
    /// [`ConnectError`]: of a chain that does not answer nothing is guessed.
    pub async fn connect(
        _chains: Vec<ChainConfig>,
        _store: Arc<dyn TransactionStore>,
        _clock: Arc<dyn Clock>,
    ) -> Result<Self, ConnectError> {
        unimplemented!()
    }
}

#[async_trait]
impl Rail for EvmRail {
    fn name(&self) -> RailName {
        RailName::X402
    }

    fn offers(&self, _price: &Price) -> Result<Vec<Offer>, OfferError> {
        unimplemented!()
    }

    fn check(&self, _credential: &Credential, _offers: &[Offer], _now: Timestamp) -> Result<Checked, Rejected> {
        unimplemented!()
    }

    async fn verify(&self, _checked: &Checked) -> Result<(), VerifyError> {
        unimplemented!()
    }

    async fn settle(&self, _permit: &Permit) -> Settlement {
        unimplemented!()
    }

    async fn resolve(&self, _payment: &Payment) -> Settlement {
        unimplemented!()
    }

    async fn revocable(&self) -> Vec<(Network, u64)> {
        unimplemented!()
    }

    async fn is_canonical(&self, _network: &Network, _block: &BlockRef) -> Result<Canonical, BoxError> {
        unimplemented!()
    }
}
