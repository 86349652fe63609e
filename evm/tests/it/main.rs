//! The rail against a real node: anvil, with the demo's token at USDC's address on Base Sepolia.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends at the first surprise, and tells its figures"
)]

mod harness;
mod hostile;
mod inspect;
mod lane;
mod proxy;
mod quorum;
mod rates;
mod settle;
mod sources;
mod transfer;
mod verify;
