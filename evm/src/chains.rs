//! The chains in service, shared by every rail that is paid on them.

use std::{collections::HashSet, sync::Arc};

use farebox_core::{
    AssetId, BlockRef, Finality, Network,
    ports::{BoxError, Canonical, ChainWindow, Clock, TransactionStore},
};

use crate::{ChainConfig, ConnectError, EvmRail, Rates, TransferParts, TransferRail, chain::Chain, token::Coin};

/// Every configured chain: its sources, its tokens, its relayer's lane. Clones share them; the lanes end with the last.
#[derive(Clone, Debug)]
pub struct EvmChains(Arc<[Chain]>);

impl EvmChains {
    /// Asks every chain what its tokens are, begins to read the rates, and starts the lanes of those with a relayer, which first broadcast again what an
    /// earlier run left open. Needs a running tokio runtime.
    ///
    /// # Errors
    /// [`ConnectError`]: of a chain that does not answer nothing is guessed.
    pub async fn connect(
        chains: Vec<ChainConfig>,
        store: Arc<dyn TransactionStore>,
        clock: Arc<dyn Clock>,
        rates: Arc<Rates>,
    ) -> Result<Self, ConnectError> {
        let mut seen = HashSet::new();
        if let Some(twice) = chains.iter().find(|chain| !seen.insert(&chain.network)) {
            let problem = "is configured twice".to_owned();
            return Err(ConnectError::Config { network: twice.network.clone(), problem });
        }
        let connecting =
            chains.into_iter().map(|chain| Chain::connect(chain, store.clone(), clock.clone(), rates.clone()));
        let chains = Self(futures_util::future::try_join_all(connecting).await?.into());
        let sources = |chain: &Chain| (chain.node.clone(), chain.config.agreement());
        rates.begin(|network| chains.find(network).map(sources)).await;
        Ok(chains)
    }

    /// The x402 rail on the chains that have a relayer; `None` if none has.
    #[must_use]
    pub fn x402(&self) -> Option<EvmRail> {
        self.0.iter().any(|chain| chain.lane.is_some()).then(|| EvmRail::on(self.clone()))
    }

    /// The transfer rail on every chain.
    #[must_use]
    pub fn transfer(&self, parts: TransferParts) -> TransferRail {
        TransferRail::on(self.clone(), parts)
    }

    /// What we are paid in, on every chain: the asset, what prices call it, and its decimals.
    #[must_use]
    pub fn assets(&self) -> Vec<(AssetId, String, u8)> {
        let coin = |coin: &Coin| (coin.asset.clone(), coin.symbol.clone(), coin.decimals);
        self.iter().flat_map(|chain| chain.coins.iter().map(coin)).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Chain> {
        self.0.iter()
    }

    pub(crate) fn find(&self, network: &Network) -> Option<&Chain> {
        self.iter().find(|chain| chain.config.network == *network)
    }

    /// As [`farebox_core::ports::Rail::windows`].
    pub(crate) async fn windows(&self) -> Vec<ChainWindow> {
        let windows = self.iter().map(|chain| async move {
            let window = chain.window().await;
            if let Err(error) = &window {
                tracing::warn!(network = %chain.config.network, error = &**error as &dyn std::error::Error, "a chain's head could not be read");
            }
            window.ok()
        });
        futures_util::future::join_all(windows).await.into_iter().flatten().collect()
    }

    /// As [`farebox_core::ports::Rail::is_canonical`].
    pub(crate) async fn is_canonical(&self, network: &Network, block: &BlockRef) -> Result<Canonical, BoxError> {
        let chain = self.find(network).ok_or("this network is not configured")?;
        chain.is_canonical(block).await
    }

    /// As [`farebox_core::ports::Rail::deepest`].
    pub(crate) fn deepest(&self, network: &Network) -> Finality {
        self.find(network).map_or_else(Finality::default, |chain| chain.config.marked_finality)
    }
}
