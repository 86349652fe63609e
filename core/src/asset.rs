//! Networks and assets by their CAIP names.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A network by its CAIP-2 name, such as `eip155:8453`: namespace of 3 to 8 `[-a-z0-9]`, reference of 1 to 32
/// `[-_a-zA-Z0-9]`. Source: CAIP-2.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(Arc<str>);

/// Why a text is no [`Network`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected a CAIP-2 network such as eip155:8453, found {found}")]
pub struct NetworkError {
    /// What was found instead.
    pub found: crate::Untrusted,
}

impl Network {
    /// The network of an EVM chain id.
    #[must_use]
    pub fn evm(chain_id: u64) -> Self {
        Self(format!("eip155:{chain_id}").into())
    }

    /// A Bitcoin network.
    #[must_use]
    pub fn bitcoin(network: crate::BitcoinNetwork) -> Self {
        Self(network.caip2().into())
    }

    /// The chain id, if this is an EVM network.
    #[must_use]
    pub fn evm_chain_id(&self) -> Option<u64> {
        self.0.strip_prefix("eip155:")?.parse().ok()
    }

    /// The CAIP-2 name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError { found: crate::Untrusted::new(text) };
        let (namespace, reference) = text.split_once(':').ok_or_else(wrong)?;
        let namespace_ok = (3..=8).contains(&namespace.len())
            && namespace.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let reference_ok = (1..=32).contains(&reference.len())
            && reference.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        // An EVM chain id has one spelling: `eip155:08453` would be a second name for the same chain.
        let canonical = namespace != "eip155" || reference.parse::<u64>().is_ok_and(|id| id.to_string() == reference);
        if namespace_ok && reference_ok && canonical { Ok(Self(text.into())) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Network {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.0.as_ref().to_owned()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An asset by its CAIP-19 name, such as `eip155:8453/erc20:0x8335…` (address in lower case) or
/// `eip155:8453/slip44:60` for the native coin. Two names are equal only if they mean the same asset. Source: CAIP-19.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AssetId {
    network: Network,
    /// `erc20:0x…` in lower case.
    kind: Arc<str>,
}

const NATIVE: &str = "slip44:60";
const LIGHTNING: &str = "lnbtc:msat";

/// Why a text is no [`AssetId`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected a CAIP-19 asset such as eip155:8453/erc20:0x833589fcd6edb6e08f4c7c32d4f71b54bda02913, found {found}")]
pub struct AssetIdError {
    /// What was found instead.
    pub found: crate::Untrusted,
}

impl AssetId {
    /// The ERC-20 token at `address` on `network`.
    #[must_use]
    pub fn erc20(network: Network, address: crate::EvmAddress) -> Self {
        Self { network, kind: format!("erc20:{address:x}").into() }
    }

    /// The coin that pays for gas on `network`. Every EVM chain's is named by SLIP-44's 60, so that one coin has one name here.
    #[must_use]
    pub fn native(network: Network) -> Self {
        Self { network, kind: NATIVE.into() }
    }

    /// Bitcoin over Lightning on `network`, counted in millisatoshis: `lnbtc:msat`, a name of ours, for `slip44:0` counts satoshis on
    /// the chain.
    #[must_use]
    pub fn lightning(network: &Network) -> Self {
        Self { network: network.clone(), kind: LIGHTNING.into() }
    }

    /// Whether it is Bitcoin over Lightning.
    #[must_use]
    pub fn is_lightning(&self) -> bool {
        &*self.kind == LIGHTNING
    }

    /// Whether it is the network's own coin.
    #[must_use]
    pub fn is_native(&self) -> bool {
        &*self.kind == NATIVE
    }

    /// The network the asset lives on.
    #[must_use]
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// The address of the token's contract, if it is an ERC-20 token.
    #[must_use]
    pub fn erc20_address(&self) -> Option<crate::EvmAddress> {
        self.kind.strip_prefix("erc20:")?.parse().ok()
    }
}

impl FromStr for AssetId {
    type Err = AssetIdError;

    fn from_str(text: &str) -> Result<Self, AssetIdError> {
        let wrong = || AssetIdError { found: crate::Untrusted::new(text) };
        let (network, kind) = text.split_once('/').ok_or_else(wrong)?;
        let network: Network = network.parse().map_err(|_| wrong())?;
        let (namespace, reference) = kind.split_once(':').ok_or_else(wrong)?;
        match namespace {
            "erc20" => Ok(Self::erc20(network, reference.parse().map_err(|_| wrong())?)),
            "lnbtc" if kind == LIGHTNING && network.as_str().starts_with("bip122:") => Ok(Self::lightning(&network)),
            "slip44" if reference.parse::<u32>().is_ok_and(|n| n.to_string() == reference) => {
                Ok(Self { network, kind: kind.into() })
            }
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for AssetId {
    type Error = AssetIdError;

    fn try_from(text: String) -> Result<Self, AssetIdError> {
        text.parse()
    }
}

impl From<AssetId> for String {
    fn from(asset: AssetId) -> Self {
        asset.to_string()
    }
}

impl fmt::Display for AssetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.kind)
    }
}

impl fmt::Debug for AssetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_one_spelling() {
        assert_eq!("eip155:8453".parse::<Network>().unwrap().evm_chain_id(), Some(8453));
        for wrong in ["", "base", "eip155:", "eip155:08453", "eip155:+1", "EIP155:1", "eip155:1/erc20:0x", "eip155:0x1"]
        {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn asset_names_compare_by_value() {
        let lower: AssetId = "eip155:8453/erc20:0x833589fcd6edb6e08f4c7c32d4f71b54bda02913".parse().unwrap();
        let mixed: AssetId = "eip155:8453/erc20:0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913".parse().unwrap();
        assert_eq!(lower, mixed);
        assert_eq!(lower.to_string(), "eip155:8453/erc20:0x833589fcd6edb6e08f4c7c32d4f71b54bda02913");
        assert!("eip155:1/erc721:0x00".parse::<AssetId>().is_err());
    }
}
