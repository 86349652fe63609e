//! A wallet that holds its key in this process.

mod transfers;

use std::{collections::HashMap, sync::Arc, time::Duration};

use alloy::{
    primitives::{Address, U64, U256},
    sol_types::SolCall,
};
use async_trait::async_trait;
use farebox_core::{
    AcceptedTerms, Amount, AssetId, EchoedRequirement, EvmAddress, Network, Offer, RailName, Timestamp,
    TransferAuthorization, X402Credential, X402Version,
    ports::{BoxError, Entropy, TransferWallet, Wallet, WalletError},
};

use crate::{
    EvmKey, RpcUrl, SourceConfig, abi, address,
    node::{Call, Called, Node},
    signature,
};

/// How long one question to a node may take.
const RPC_TIMEOUT: Duration = Duration::from_secs(5);
/// An authorization is valid from so long before it was signed: a seller's clock, or a chain's last block, may be behind ours.
/// Not from 0 as the official client has it: what is told to a chain for good should say when it was meant to begin.
const VALID_SINCE_S: u64 = 600;
/// Nobody's bill gets an authorization that lives longer.
const TIMEOUT_MAX_S: u64 = 3600;

/// A key in memory that signs EIP-3009 authorizations.
#[derive(Debug)]
pub struct LocalWallet {
    key: EvmKey,
    entropy: Arc<dyn Entropy>,
    nodes: HashMap<Network, Node>,
}

impl LocalWallet {
    /// A wallet of this key; nonces come from `entropy`.
    #[must_use]
    pub fn new(key: EvmKey, entropy: Arc<dyn Entropy>) -> Self {
        Self { key, entropy, nodes: HashMap::new() }
    }

    /// The same with nodes to ask for balances on `network`.
    ///
    /// # Errors
    /// The connection's TLS could not be set up; nothing is asked yet.
    pub fn with_rpc(mut self, network: Network, rpc: &[RpcUrl]) -> Result<Self, BoxError> {
        let chain_id = network.evm_chain_id().ok_or("expected an EVM network such as eip155:8453")?;
        let sources: Vec<SourceConfig> = rpc.iter().cloned().map(Into::into).collect();
        self.nodes.insert(network, Node::new(&sources, chain_id, RPC_TIMEOUT)?);
        Ok(self)
    }

    fn node(&self, network: &Network) -> Result<&Node, WalletError> {
        self.nodes.get(network).ok_or_else(|| WalletError::NoNode { network: network.clone() })
    }

    /// How much of an asset it holds. More than 2^128 units of anything is more than there is to spend.
    async fn held(&self, asset: &AssetId) -> Result<u128, WalletError> {
        let node = self.node(asset.network())?;
        let units = match asset.erc20_address() {
            Some(token) => token_balance(node, address::alloy(token), self.key.alloy_address()).await?,
            None if asset.is_native() => node.balance(self.key.alloy_address()).await.map_err(unavailable)?,
            None => return Err(unsupported(format!("{asset} is neither an ERC-20 token nor a network's coin"))),
        };
        Ok(u128::try_from(units).unwrap_or(u128::MAX))
    }

    fn sign(&self, offer: &Offer, now: Timestamp) -> Result<X402Credential, WalletError> {
        let domain = domain(offer)?;
        let to: EvmAddress =
            offer.pay_to.parse().map_err(|_| unsupported("the bill's payTo is no EVM address".to_owned()))?;
        if !(1..=TIMEOUT_MAX_S).contains(&offer.max_timeout_s) {
            let found = offer.max_timeout_s;
            return Err(unsupported(format!("maxTimeoutSeconds is {found}; expected 1 to {TIMEOUT_MAX_S}")));
        }
        let mut nonce = [0; 32];
        self.entropy.fill(&mut nonce);
        let authorization = TransferAuthorization {
            from: self.key.address(),
            to,
            value: offer.amount.units,
            valid_after: now.unix_s().saturating_sub(VALID_SINCE_S),
            valid_before: now.unix_s().saturating_add(offer.max_timeout_s),
            nonce,
        };
        let signed = self.key.sign(signature::digest(domain, &authorization));
        let accepted = AcceptedTerms {
            scheme: offer.scheme.clone(),
            network: offer.network().clone(),
            requirement: Some(EchoedRequirement {
                amount: offer.amount.units.to_string().into(),
                asset: offer.asset_on_wire.clone(),
                pay_to: offer.pay_to.clone(),
                max_timeout_s: offer.max_timeout_s,
                extra: serde_json::Value::Object(offer.extra.clone()),
            }),
        };
        Ok(X402Credential::new(X402Version::V2, accepted, authorization, signed.as_bytes().to_vec()))
    }
}

/// The EIP-712 domain that the bill says its token has. A bill that lies about it gets a signature that is good for nothing.
fn domain(offer: &Offer) -> Result<alloy::primitives::B256, WalletError> {
    let text = |key: &str| offer.extra.get(key).and_then(|value| value.as_str());
    if offer.rail != RailName::X402 || &*offer.scheme != "exact" {
        return Err(unsupported(format!("expected x402 exact, found {} {}", offer.rail, offer.scheme)));
    }
    if text("assetTransferMethod").is_some_and(|method| method != "eip3009") {
        return Err(unsupported("the bill wants another transfer method than eip3009".to_owned()));
    }
    let (Some(name), Some(version)) = (text("name"), text("version")) else {
        return Err(unsupported("the bill does not name its token's EIP-712 name and version in extra".to_owned()));
    };
    let chain_id = offer.network().evm_chain_id();
    let (Some(chain_id), Some(token)) = (chain_id, offer.amount.asset.erc20_address()) else {
        return Err(unsupported(format!("{} is no ERC-20 token", offer.amount.asset)));
    };
    Ok(signature::domain_separator(name, version, chain_id, address::alloy(token)))
}

async fn token_balance(node: &Node, token: Address, account: Address) -> Result<U256, WalletError> {
    let data = abi::Token::balanceOfCall { account }.abi_encode().into();
    match node.call(Call { from: None, to: token, gas: None::<U64>, data }, None).await.map_err(unavailable)? {
        Called::Returned(word) => abi::Token::balanceOfCall::abi_decode_returns_validate(&word).map_err(unavailable),
        Called::Reverted(answer) => Err(unavailable(answer)),
    }
}

fn unavailable(source: impl Into<BoxError>) -> WalletError {
    WalletError::Unavailable { source: source.into() }
}

const fn unsupported(reason: String) -> WalletError {
    WalletError::Unsupported { reason }
}

#[async_trait]
impl Wallet for LocalWallet {
    fn evm_address(&self) -> EvmAddress {
        self.key.address()
    }

    async fn authorize(&self, offer: &Offer, now: Timestamp) -> Result<X402Credential, WalletError> {
        self.sign(offer, now)
    }

    async fn balance(&self, asset: &AssetId) -> Result<Amount, WalletError> {
        let units = self.held(asset).await?;
        Ok(Amount { units, asset: asset.clone() })
    }

    fn transfers(&self) -> Option<&dyn TransferWallet> {
        Some(self)
    }
}
