//! The agent against sellers of every kind, over real sockets.

#[cfg(test)]
mod binding;
mod hostile;
#[cfg(test)]
mod journal;
#[cfg(test)]
mod lightning;
#[cfg(test)]
mod paying;
#[cfg(test)]
mod refused;
#[cfg(test)]
mod support;
#[cfg(test)]
mod transfer;
#[cfg(test)]
mod unclear;
