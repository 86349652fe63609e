//! What only the embedded chain promises: go-ethereum's words, its limits, its clock, and how it starts and stops.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise, and tells its figures")]

mod clock;
mod embedded;
mod harness;
mod server;
mod words;
