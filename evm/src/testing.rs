//! What unit tests stand on.

use std::{sync::Arc, time::Duration};

use alloy::primitives::{Address, B256, U64, U256};
use farebox_core::{Finality, Network, Timestamp, ports::Clock};

use crate::{
    AssetConfig, ChainConfig, ChainLimits, EvmKey, FinalityTier, NativeCoin, NativeRole, Pegged, Rates, RpcUrl,
    node::Receipt,
};

/// The chain of the recorded payments, with a relayer and its own coin.
pub(crate) fn chain() -> ChainConfig {
    ChainConfig {
        network: Network::evm(84532),
        rpc: vec![RpcUrl::parse("http://127.0.0.1:1").unwrap().into()],
        confirmations: vec![FinalityTier { up_to: None, finality: Finality::Blocks(1) }],
        marked_finality: Finality::Blocks(12),
        assets: vec![AssetConfig {
            address: "0x036CbD53842c5426634e7929541eC2318f3dCF7e".parse().unwrap(),
            symbol: "USDC".to_owned(),
            pegged: Pegged::UsDollar,
        }],
        native: Some(NativeCoin { symbol: "ETH".to_owned(), role: NativeRole::Payment }),
        pay_to: "0x209693Bc6afc0C5328bA36FaF03C514EF312287C".parse().unwrap(),
        relayer: Some(EvmKey::from_bytes(&[7; 32]).unwrap()),
        head_age_max: Duration::from_secs(120),
        quorum: None,
        limits: ChainLimits { max_timeout_s: 60, ..ChainLimits::default() },
    }
}

/// A receipt of a transaction to `to` that succeeded.
pub(crate) fn receipt(to: Address, gas_used: u64) -> Receipt {
    Receipt {
        transaction_hash: B256::ZERO,
        from: Address::ZERO,
        to: Some(to),
        block_hash: B256::ZERO,
        block_number: U64::from(1),
        status: U64::from(1),
        gas_used: U64::from(gas_used),
        effective_gas_price: U256::from(1),
        l1_fee: None,
        logs: Vec::new(),
    }
}

/// No rates, by a clock that stands still.
pub(crate) fn no_rates() -> Arc<Rates> {
    #[derive(Debug)]
    struct Still;

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp::from_unix_s(0)
        }
    }

    Rates::none(Arc::new(Still))
}
