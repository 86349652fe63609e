//! Bitcoin Lightning: L402 tokens sold by invoices, and the nodes and wallets behind one port.

pub mod node;
