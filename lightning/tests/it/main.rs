//! Nodes and wallets, against real ones, and against servers that answer as no real one would.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod cln;
mod faults;
mod hostile_wallet;
mod lnd;
mod nwc;
mod relay;
mod server;
mod support;
mod tls;
