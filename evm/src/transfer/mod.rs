//! The transfer rail: an ordinary transfer, claimed by its hash and the payer's signature. Source: the docs' page on transfers, whose
//! table of checks is followed in its order.

mod authenticate;
mod claimed;
pub(crate) mod code;
mod facts;
mod judge;
mod offers;
mod refusal;
mod resolve;
mod signers;
mod verify;
mod wallets;

use std::sync::Arc;

use alloy::primitives::Address;
use async_trait::async_trait;
use farebox_core::{
    AssetId, BlockRef, FeeTerms, Finality, Network, Offer, Payment, Permit, Price, RailName,
    ports::{
        BoxError, Canonical, ChainWindow, Checked, Ledger, Lookups, OfferError, Offering, Presented, Rail, Rejected,
        Settlement, SignatureCheck, Verified, VerifyError,
    },
};
use farebox_wire::transfer::{Quoter, TransferTimes, eip55};

use self::{
    authenticate::{late_first, see, transfer_of},
    claimed::Found,
    refusal::unavailable,
    resolve::Senders,
    signers::Signers,
    wallets::Wallets,
};
use crate::{EvmChains, address, chain::Chain};

/// The scheme of this rail's offers.
const SCHEME: &str = "transfer";

/// What the rail needs beside the chains.
#[derive(Clone, Debug)]
pub struct TransferParts {
    /// Opens the quotes that bills carry.
    pub quoter: Arc<Quoter>,
    /// The books, which know what has been claimed.
    pub ledger: Arc<dyn Ledger>,
    /// How long a bill is good for.
    pub times: TransferTimes,
}

/// Transfers of tokens and of the native coin, claimed by their hash, on every configured chain.
#[derive(Debug)]
pub struct TransferRail {
    chains: EvmChains,
    parts: TransferParts,
    /// Every relayer of the configuration: what it sends pays for an x402 payment, wherever the same key relays.
    relayers: Vec<Address>,
    wallets: Wallets,
    found: Found,
    signers: Signers,
    senders: Senders,
}

impl TransferRail {
    pub(crate) fn on(chains: EvmChains, parts: TransferParts) -> Self {
        let relayers = chains.iter().filter_map(|chain| chain.config.relayer_address()).collect();
        Self {
            chains,
            parts,
            relayers,
            wallets: Wallets::default(),
            found: Found::default(),
            signers: Signers::default(),
            senders: Senders::default(),
        }
    }

    /// The chain of a payment. A network that was taken out of the configuration may have money on it all the same.
    fn chain(&self, network: &Network) -> Result<&Chain, BoxError> {
        self.chains.find(network).ok_or_else(|| format!("{network} is not configured").into())
    }
}

impl Offering for TransferRail {
    fn name(&self) -> RailName {
        RailName::Transfer
    }

    /// The payer pays the network's fee beside the price, so there is none to add to it.
    fn offers(&self, price: &Price, _fee: FeeTerms) -> Result<Vec<Offer>, OfferError> {
        self.offers_for(price)
    }
}

#[async_trait]
impl Rail for TransferRail {
    async fn authenticate(&self, presented: &Presented<'_>) -> Result<Option<Checked>, VerifyError> {
        let mut seen = see(presented, &self.parts.quoter, &self.signers)?;
        if seen.checked.signature == SignatureCheck::NeedsContract {
            let code = &transfer_of(presented.credential)?.code;
            let chain = self.chain(code.asset.network()).map_err(unavailable)?;
            let wallet = address::alloy(code.payer);
            self.wallets
                .accepts(chain, wallet, seen.digest, &code.signature, presented.lookups)
                .await
                .map_err(|error| late_first(&seen.checked.timely, error))?;
            seen.checked.signature = SignatureCheck::Recovered;
        }
        Ok(Some(seen.checked))
    }

    fn check(&self, presented: &Presented<'_>) -> Result<Checked, Rejected> {
        let code_and_detail = |error| match error {
            VerifyError::Rejected(rejected) => rejected,
            VerifyError::Refused(refusal) => Rejected { code: refusal.code, detail: refusal.detail },
            VerifyError::Unavailable { source } => refusal::rejected(refusal::code::TERMS, source.to_string()),
        };
        see(presented, &self.parts.quoter, &self.signers).map(|seen| seen.checked).map_err(code_and_detail)
    }

    async fn verify(&self, checked: &Checked, lookups: &dyn Lookups) -> Result<Verified, VerifyError> {
        self.find_payment(checked, lookups).await.map(Verified::Paid)
    }

    /// Never needed: the payer has moved the money, and its payment was settled when it was claimed.
    async fn settle(&self, permit: &Permit) -> Settlement {
        let transaction = permit.payment().transaction.clone();
        Settlement::InDoubt {
            transaction,
            source: "a transfer is made by its payer; there is nothing to settle".into(),
        }
    }

    async fn resolve(&self, payment: &Payment) -> Settlement {
        self.look_again(payment).await
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

fn asset_on_wire(asset: &AssetId) -> Arc<str> {
    asset.erc20_address().map_or_else(|| "native".into(), |token| eip55(token).into())
}
