//! The rail against a real node: anvil, with the demo's token at USDC's address on Base Sepolia.

mod harness;
mod lane;
mod proxy;
mod settle;
mod verify;
