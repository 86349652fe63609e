//! Paying by Lightning, with wallets and sellers that fail in every way.

mod crash;
mod hostile;
mod limits;
mod paying;
mod shop;
mod tokens;
mod wallet;
mod wallets;
