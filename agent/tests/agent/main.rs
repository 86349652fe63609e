//! The agent against sellers of every kind, over real sockets.

mod hostile;
mod journal;
mod paying;
mod support;
mod unclear;
