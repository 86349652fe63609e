//! Version 1 names of networks. Source: npm x402 1.2.0, npm @x402/evm 2.27.0 and PyPI x402 2.25.
//!
//! Left out are names on whose chain id those three do not agree (`story`, `educhain`, `skale-base-sepolia`): a payment for one
//! chain must not be read as a payment on another.

use farebox_core::Network;

/// Whether clients that refuse a whole bill for one unknown name (npm x402-fetch) know a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    ToAll,
    ToNewClients,
}

const NAMES: &[(&str, u64, Known)] = &[
    ("base", 8453, Known::ToAll),
    ("base-sepolia", 84532, Known::ToAll),
    ("polygon", 137, Known::ToAll),
    ("polygon-amoy", 80002, Known::ToAll),
    ("avalanche", 43114, Known::ToAll),
    ("avalanche-fuji", 43113, Known::ToAll),
    ("abstract", 2741, Known::ToAll),
    ("abstract-testnet", 11124, Known::ToAll),
    ("iotex", 4689, Known::ToAll),
    ("sei", 1329, Known::ToAll),
    ("sei-testnet", 1328, Known::ToAll),
    ("peaq", 3338, Known::ToAll),
    ("ethereum", 1, Known::ToNewClients),
    ("sepolia", 11_155_111, Known::ToNewClients),
    ("megaeth", 4326, Known::ToNewClients),
    ("monad", 143, Known::ToNewClients),
    ("stable", 988, Known::ToNewClients),
    ("stable-testnet", 2201, Known::ToNewClients),
    ("celo", 42220, Known::ToNewClients),
];

/// The version 1 name of a network, if every version 1 client knows it.
#[must_use]
pub fn v1_name(network: &Network) -> Option<&'static str> {
    let chain_id = network.evm_chain_id()?;
    NAMES.iter().find(|(_, id, known)| *id == chain_id && *known == Known::ToAll).map(|(name, ..)| *name)
}

/// The network that a version 1 name stands for.
#[must_use]
pub fn from_v1_name(name: &str) -> Option<Network> {
    NAMES.iter().find(|(known, ..)| *known == name).map(|(_, id, _)| Network::evm(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways_and_disputed_ones_neither() {
        for (name, id, known) in NAMES {
            assert_eq!(from_v1_name(name), Some(Network::evm(*id)));
            assert_eq!(v1_name(&Network::evm(*id)), (*known == Known::ToAll).then_some(*name));
        }
        for disputed in ["story", "educhain", "skale-base-sepolia", "eip155:8453", "Base", ""] {
            assert_eq!(from_v1_name(disputed), None, "{disputed}");
        }
    }
}
