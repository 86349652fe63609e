//! The way of a request that brings a token, with a scripted rail and books that fail on demand.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod bills;
mod calls;
mod faults;
mod kiosk;
mod refusals;
#[path = "../support/mod.rs"]
mod support;
