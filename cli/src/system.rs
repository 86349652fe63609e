//! The clock, the randomness and the environment: the only place of the product that reads them.

use farebox_core::{
    InstanceId, Timestamp,
    ports::{Clock, Entropy},
};

/// The machine's wall clock.
#[derive(Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    /// A clock before 1970 reads as 1970: every authorization is then refused as not valid yet.
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "this is where Clock is implemented")]
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_unix_ms(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }
}

/// The kernel's randomness.
#[derive(Debug)]
pub(crate) struct OsEntropy;

impl Entropy for OsEntropy {
    /// Ends the process if the kernel gives none: an id or a nonce that can be guessed must not go out, and no caller could do
    /// better. Linux gives always, once booted.
    fn fill(&self, bytes: &mut [u8]) {
        if let Err(error) = getrandom::fill(bytes) {
            tracing::error!(%error, "the kernel gives no randomness; stopping");
            std::process::abort();
        }
    }
}

/// An environment variable. `None` if it is not set or not UTF-8.
pub(crate) fn environment(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
    std::env::var(name).ok()
}

/// The name of this run of this process.
pub(crate) fn instance(entropy: &dyn Entropy) -> InstanceId {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes);
    InstanceId::new(hex::encode(bytes))
}
