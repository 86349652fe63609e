//! Transfers: real wallets on a real node, before sellers that answer by script.

mod chain;
mod crash;
mod example;
mod hostile;
mod paying;
mod shop;
mod stuck;
