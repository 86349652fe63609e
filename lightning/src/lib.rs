//! Bitcoin Lightning: L402 tokens sold by invoices, and the nodes and wallets behind one port.

#[cfg(feature = "ldk")]
pub mod embedded;
mod l402;
pub mod node;

pub use l402::{L402, L402Config, L402ConfigError, L402Parts, NodeTrouble, PaidBy, WrongInvoice};
