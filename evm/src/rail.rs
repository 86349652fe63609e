//! The x402 rail on EVM chains.

use std::{collections::HashSet, sync::Arc};

use async_trait::async_trait;
use farebox_core::{
    AssetId, BlockRef, FeeTerms, Finality, Network, Offer, Payment, Permit, Price, RailName,
    ports::{
        BoxError, Canonical, ChainWindow, Checked, Clock, Lookups, OfferError, Presented, Rail, Rejected, Settlement,
        TransactionStore, Verified, VerifyError,
    },
};

use crate::{
    ChainConfig, ChainLimits, ConnectError,
    chain::Chain,
    check::{self, code, rejected},
    token::Token,
};

/// x402 `exact` by EIP-3009, settled by our own relayer, on every configured chain.
#[derive(Debug)]
pub struct EvmRail {
    chains: Vec<Chain>,
}

impl EvmRail {
    /// Asks every chain what its tokens are, and starts its relayer's lane, which first broadcasts again what an earlier run left
    /// open. Needs a running tokio runtime; the lanes end when the rail is dropped.
    ///
    /// # Errors
    /// [`ConnectError`]: of a chain that does not answer nothing is guessed.
    pub async fn connect(
        chains: Vec<ChainConfig>,
        store: Arc<dyn TransactionStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConnectError> {
        let mut seen = HashSet::new();
        if let Some(twice) = chains.iter().find(|chain| !seen.insert(&chain.network)) {
            let problem = "is configured twice".to_owned();
            return Err(ConnectError::Config { network: twice.network.clone(), problem });
        }
        let connecting = chains.into_iter().map(|chain| Chain::connect(chain, store.clone(), clock.clone()));
        Ok(Self { chains: futures_util::future::try_join_all(connecting).await? })
    }

    fn chain(&self, network: &Network) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.config.network == *network)
    }

    fn token(&self, asset: &AssetId) -> Option<(&Token, &ChainLimits)> {
        let chain = self.chain(asset.network())?;
        Some((chain.token(asset)?, &chain.config.limits))
    }
}

#[async_trait]
impl Rail for EvmRail {
    fn name(&self) -> RailName {
        RailName::X402
    }

    fn offers(&self, price: &Price, fee: FeeTerms) -> Result<Vec<Offer>, OfferError> {
        if fee != FeeTerms::default()
            && let Some((chain, token)) = self.chains.iter().find_map(|chain| Some((chain, chain.tokens.first()?)))
        {
            return Err(OfferError::NoRate {
                price: price.clone(),
                symbol: token.symbol.clone(),
                network: chain.config.network.clone(),
                source: "the network fee is not followed".into(),
            });
        }
        let mut offers = Vec::new();
        for chain in &self.chains {
            for token in &chain.tokens {
                offers.extend(token.offer(price, &chain.config)?);
            }
        }
        if offers.is_empty() { Err(OfferError::NoAsset { price: price.clone() }) } else { Ok(offers) }
    }

    fn check(&self, presented: &Presented<'_>) -> Result<Checked, Rejected> {
        let Presented { credential, offers, now, .. } = *presented;
        check::check(credential, offers, now, |asset| self.token(asset))
    }

    async fn verify(&self, checked: &Checked, _lookups: &dyn Lookups) -> Result<Verified, VerifyError> {
        match self.chain(checked.offer.network()) {
            Some(chain) => chain.verify(checked).await,
            None => Err(VerifyError::Rejected(rejected(code::NETWORK, "this network is not configured"))),
        }
    }

    async fn settle(&self, permit: &Permit) -> Settlement {
        let payment = permit.payment();
        match self.chain(payment.amount.asset.network()) {
            Some(chain) => chain.settle(payment).await,
            None => not_configured(payment),
        }
    }

    async fn resolve(&self, payment: &Payment) -> Settlement {
        match self.chain(payment.amount.asset.network()) {
            Some(chain) => chain.resolve(payment).await,
            None => not_configured(payment),
        }
    }

    async fn windows(&self) -> Vec<ChainWindow> {
        let windows = self.chains.iter().map(|chain| async move {
            chain.window().await.inspect_err(|error| {
                tracing::warn!(network = %chain.config.network, error = &**error as &dyn std::error::Error, "a chain's head could not be read");
            }).ok()
        });
        futures_util::future::join_all(windows).await.into_iter().flatten().collect()
    }

    async fn is_canonical(&self, network: &Network, block: &BlockRef) -> Result<Canonical, BoxError> {
        let chain = self.chain(network).ok_or("this network is not configured")?;
        let mut verdict = None;
        // Nodes that disagree prove nothing: one of them lags or lies. Those that do not answer are left out.
        for node in chain.node.each() {
            let found = match node.block(block.number).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a block could not be read");
                    continue;
                }
            };
            let holds = found.is_some_and(|found| found.hash.0 == block.hash);
            let says = if holds { Canonical::Holds } else { Canonical::Gone };
            if verdict.is_some_and(|verdict| verdict != says) {
                return Err(format!("the nodes disagree about block {}", block.number).into());
            }
            verdict = Some(says);
        }
        verdict.ok_or_else(|| format!("no node said whether block {} still holds", block.number).into())
    }

    fn deepest(&self, network: &Network) -> Finality {
        self.chain(network).map_or_else(Finality::default, |chain| chain.config.finality())
    }
}

fn not_configured(payment: &Payment) -> Settlement {
    let source = format!("{} is not configured", payment.amount.asset.network()).into();
    Settlement::InDoubt { transaction: payment.transaction.clone(), source }
}
