//! The x402 rail on EVM chains.

use async_trait::async_trait;
use farebox_core::{
    AssetId, BlockRef, FeeTerms, Finality, Network, Offer, Payment, Permit, Price, RailName,
    ports::{
        BoxError, Canonical, ChainWindow, Checked, Lookups, OfferError, Offering, Presented, Rail, Rejected,
        Settlement, Verified, VerifyError,
    },
};

use crate::{
    ChainLimits, EvmChains,
    chain::Chain,
    check::{self, code, rejected},
    fee::those_made,
    token::Token,
};

/// x402 `exact` by EIP-3009, settled by our own relayer, on every configured chain.
#[derive(Debug)]
pub struct EvmRail {
    chains: EvmChains,
}

impl EvmRail {
    pub(crate) const fn on(chains: EvmChains) -> Self {
        Self { chains }
    }

    /// The chains on which we can settle.
    fn settled_here(&self) -> impl Iterator<Item = &Chain> {
        self.chains.iter().filter(|chain| chain.lane.is_some())
    }

    fn token(&self, asset: &AssetId) -> Option<(&Token, &ChainLimits)> {
        let chain = self.chains.find(asset.network())?;
        Some((chain.token(asset)?, &chain.config.limits))
    }
}

impl Offering for EvmRail {
    fn name(&self) -> RailName {
        RailName::X402
    }

    fn offers(&self, price: &Price, fee: FeeTerms) -> Result<Vec<Offer>, OfferError> {
        let each = self.settled_here().flat_map(|chain| chain.tokens.iter().map(move |token| (chain, token)));
        those_made(price, each.map(|(chain, token)| chain.settled_offer(token, price, fee)))
    }
}

#[async_trait]
impl Rail for EvmRail {
    fn check(&self, presented: &Presented<'_>) -> Result<Checked, Rejected> {
        let Presented { credential, offers, now, .. } = *presented;
        check::check(credential, offers, now, |asset| self.token(asset))
    }

    async fn verify(&self, checked: &Checked, _lookups: &dyn Lookups) -> Result<Verified, VerifyError> {
        match self.chains.find(checked.offer.network()) {
            Some(chain) => chain.verify(checked).await,
            None => Err(VerifyError::Rejected(rejected(code::NETWORK, "this network is not configured"))),
        }
    }

    async fn settle(&self, permit: &Permit) -> Settlement {
        let payment = permit.payment();
        match self.chains.find(payment.amount.asset.network()) {
            Some(chain) => chain.settle(payment).await,
            None => not_configured(payment),
        }
    }

    async fn resolve(&self, payment: &Payment) -> Settlement {
        match self.chains.find(payment.amount.asset.network()) {
            Some(chain) => chain.resolve(payment).await,
            None => not_configured(payment),
        }
    }

    async fn windows(&self) -> Vec<ChainWindow> {
        self.chains.windows().await
    }

    async fn is_canonical(&self, network: &Network, block: &BlockRef) -> Result<Canonical, BoxError> {
        self.chains.is_canonical(network, block).await
    }

    fn deepest(&self, network: &Network) -> Finality {
        self.chains.deepest(network)
    }
}

fn not_configured(payment: &Payment) -> Settlement {
    let source = format!("{} is not configured", payment.amount.asset.network()).into();
    Settlement::InDoubt { transaction: payment.transaction.clone(), source }
}
