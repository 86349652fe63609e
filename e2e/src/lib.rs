//! The ground for tests with real parts: a node with Circle's USDC on it, an upstream, a proxy that breaks the way to
//! the node, foreign clients, and the `farebox` binary, each a value that stops what it started when it is dropped.
//!
//! Where the tools are is told by `.ci/tools`, which must have run once. A missing tool is an error, never a skip.

mod anvil;
mod client;
pub mod contract;
mod counter;
mod echo;
mod explorer;
mod farebox;
mod fault;
pub mod lightning;
mod peer;
mod process;
mod shop;
mod tools;
mod transfer;
mod usdc;
mod web;

pub use anvil::{Account, Anvil, CHAIN_ID, NETWORK};
pub use client::{ForeignClient, Job, Outcome};
pub use counter::{Counter, bill, books, header, payment, signed_payment};
pub use echo::{Answer, Echo, Seen};
pub use explorer::Explorer;
pub use farebox::{Farebox, Setup};
pub use fault::{Fault, FaultProxy, Lie, Times};
pub use peer::ExpressPeer;
pub use process::{Process, free_port};
pub use shop::{Audit, Next, Paid, Rails, Reply, Shop, ShopOptions};
pub use tools::{Tool, tool};
pub use transfer::{Asked, Claim, Quoted};
pub use usdc::{Authorization, Usdc, now_s};
pub use web::http_client;
