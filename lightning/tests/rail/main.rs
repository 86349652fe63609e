//! The rail, with a real lnd, and with a node that does what its script says: for faults that a real one cannot be brought to have.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod attacks;
mod bills;
mod cost;
mod lnd;
mod news;
mod node;
mod shop;
mod tokens;
