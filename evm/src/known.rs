//! Tokens and networks that are known by name, so that a config can say `assets = ["USDC"]`.

use farebox_core::{EvmAddress, Network};

use crate::checksum;

/// A token that a config may name by its symbol. Source: the issuers' lists; the EIP-712 name and version are not here, since
/// they are read from the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownAsset {
    /// CAIP-2.
    pub network: &'static str,
    /// Such as `USDC`.
    pub symbol: &'static str,
    /// EIP-55.
    pub address: &'static str,
    /// As its issuer tells them. A node that tells others is not believed.
    pub decimals: u8,
}

const fn usdc(network: &'static str, address: &'static str) -> KnownAsset {
    KnownAsset { network, symbol: "USDC", address, decimals: 6 }
}

/// Dollar tokens with EIP-3009, by network.
pub const KNOWN_ASSETS: &[KnownAsset] = &[
    usdc("eip155:1", "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"),
    usdc("eip155:8453", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"),
    usdc("eip155:84532", "0x036CbD53842c5426634e7929541eC2318f3dCF7e"),
    usdc("eip155:42161", "0xaf88d065e77c8cC2239327C5EDb3A432268e5831"),
    usdc("eip155:421614", "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d"),
    usdc("eip155:137", "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359"),
    usdc("eip155:43114", "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E"),
    usdc("eip155:143", "0x754704Bc059F8C67012fEd69BC8A327a5aafb603"),
    usdc("eip155:42220", "0xcebA9300f2b948710d2653dD7B07f33A8B32118C"),
    usdc("eip155:11142220", "0x01C5C0122039549AD1493B8220cABEdD739BC44E"),
    usdc("eip155:1329", "0xe15fC38F6D8c56aF07bbCBe3BAf5708A2Bf42392"),
    usdc("eip155:1328", "0x4fCF1784B31630811181f670Aea7A7bEF803eaED"),
    usdc("eip155:50", "0xfA2958CB79b0491CC627c1557F441eF849Ca8eb1"),
    usdc("eip155:51", "0xb5AB69F7bBada22B28e79C8FFAECe55eF1c771D4"),
];

/// Networks whose coins are worth nothing: test networks and the chain ids that development nodes use.
const TEST_CHAIN_IDS: &[u64] = &[
    5, 51, 97, 300, 338, 919, 1301, 1328, 1337, 4801, 5003, 10_143, 10_200, 17_000, 31_337, 43_113, 44_787, 57_054,
    59_141, 80_001, 80_002, 84_532, 421_614, 534_351, 560_048, 763_373, 11_142_220, 11_155_111, 11_155_420,
];

/// What the coin that pays for gas is called, by chain id.
const NATIVE_COINS: &[(&str, &[u64])] = &[
    ("ETH", &[1, 10, 1_337, 8_453, 31_337, 42_161, 84_532, 421_614, 11_155_111, 11_155_420]),
    ("POL", &[137, 80_002]),
    ("AVAX", &[43_113, 43_114]),
    ("CELO", &[42_220, 44_787, 11_142_220]),
    ("SEI", &[1_328, 1_329]),
    ("XDC", &[50, 51]),
    ("MON", &[143, 10_143]),
];

/// What the coin of `network` is called, if the network is known.
#[must_use]
pub fn known_native(network: &Network) -> Option<&'static str> {
    let id = network.evm_chain_id()?;
    NATIVE_COINS.iter().find(|(_, ids)| ids.contains(&id)).map(|(symbol, _)| *symbol)
}

/// The token called `symbol` on `network`, if it is known.
#[must_use]
pub fn known_asset(network: &Network, symbol: &str) -> Option<&'static KnownAsset> {
    KNOWN_ASSETS.iter().find(|a| a.network == network.as_str() && a.symbol == symbol)
}

/// What is known of the token at `address`.
pub(crate) fn known_token(network: &Network, address: EvmAddress) -> Option<&'static KnownAsset> {
    let at = checksum(address);
    KNOWN_ASSETS.iter().find(|a| a.network == network.as_str() && a.address == at)
}

/// Whether `network` is known to be a test network. False for networks we do not know.
#[must_use]
pub fn is_test_network(network: &Network) -> bool {
    network.evm_chain_id().is_some_and(|id| TEST_CHAIN_IDS.contains(&id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse_address;

    #[test]
    fn known_addresses_carry_right_checksums_and_each_network_is_named_once() {
        for (i, asset) in KNOWN_ASSETS.iter().enumerate() {
            assert!(parse_address(asset.address).is_ok(), "{}", asset.network);
            assert!(asset.network.parse::<Network>().is_ok());
            assert!(known_native(&asset.network.parse().unwrap()).is_some(), "{}", asset.network);
            assert!(KNOWN_ASSETS[..i].iter().all(|b| b.network != asset.network));
        }
    }
}
