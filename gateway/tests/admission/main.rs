//! The way of a paid request, with scripted chains and books that fail on demand.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails is a test that fails")]

mod crash;
mod prices;
mod reorganisations;
mod shop;
#[path = "../support/mod.rs"]
mod support;
mod transfers;
mod upstreams;
mod x402;
