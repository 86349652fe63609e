//! EVM chains: the x402 `exact` rail by EIP-3009 with its own relayer, a wallet, and what `farebox check` asks a chain.
//!
//! The only crate of the product that knows alloy.

mod abi;
mod address;
mod bounced;
mod chain;
mod chains;
mod check;
mod config;
mod error;
mod fee;
mod follower;
mod inspect;
mod key;
mod known;
mod lane;
mod node;
mod outcome;
mod rail;
mod rates;
mod settle;
mod signature;
mod status;
#[cfg(test)]
mod testing;
mod token;
mod transfer;
mod verify;
mod wallet;

pub use address::{AddressError, checksum, parse_address};
pub use chains::EvmChains;
pub use config::{
    AssetConfig, ChainConfig, ChainLimits, ETHER, FinalityTier, GWEI, NativeCoin, NativeRole, Pegged, Quorum, RpcUrl,
    RpcUrlError,
};
pub use error::ConnectError;
pub use inspect::{ChainReport, ClockHand, ClockReading, Finding, Severity, clocks, inspect};
pub use key::{EvmKey, KeyError};
pub use known::{KNOWN_ASSETS, KnownAsset, is_test_network, known_asset, known_native};
pub use node::{SecretText, SourceConfig, SourceKind};
pub use rail::EvmRail;
pub use rates::{NoRate, Rate, RateConfig, RateConfigError, RateSource, Rates};
pub use status::{ChainStatus, RelayerStatus, SourceStatus, Standing};
pub use transfer::{TransferParts, TransferRail};
pub use wallet::LocalWallet;
