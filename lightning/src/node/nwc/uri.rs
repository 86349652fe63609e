//! The line by which a wallet lets somebody in. Source: NIP-47, "Nostr Wallet Connect URI".

use std::{fmt, str::FromStr};

use farebox_core::Untrusted;
use nostr::{Keys, PublicKey, SecretKey};
use url::Url;

use crate::node::NodeUriError;

/// The most relays that are tried.
const RELAYS_MAX: usize = 8;

/// `nostr+walletconnect://PUBKEY?relay=…&secret=…`. Its `Debug` shows no secret.
#[derive(Clone)]
pub struct NwcUri {
    pub(super) wallet: PublicKey,
    pub(super) relays: Vec<Url>,
    /// Whoever has it can spend what the wallet lets this connection spend.
    pub(super) keys: Keys,
}

impl FromStr for NwcUri {
    type Err = NodeUriError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url: Url = text.trim().parse()?;
        if url.scheme() != "nostr+walletconnect" {
            return Err(NodeUriError::Scheme(Untrusted::new(url.scheme())));
        }
        let wallet = PublicKey::from_hex(url.host_str().unwrap_or_default()).map_err(|_| NodeUriError::Value {
            name: "the wallet's key",
            expected: "a Nostr public key of 64 hex digits",
        })?;
        let (mut relays, mut keys) = (Vec::new(), None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "relay" => relays.push(relay(&value)?),
                "secret" if keys.is_some() => return Err(NodeUriError::Twice("secret")),
                "secret" => keys = Some(secret(&value)?),
                // Others, such as lud16, are for wallets that show profiles.
                _ => {}
            }
        }
        match keys {
            None => Err(NodeUriError::Missing("secret")),
            Some(_) if relays.is_empty() => Err(NodeUriError::Missing("relay")),
            Some(_) if relays.len() > RELAYS_MAX => {
                Err(NodeUriError::Value { name: "relay", expected: "there at most 8 times" })
            }
            Some(keys) => Ok(Self { wallet, relays, keys }),
        }
    }
}

impl fmt::Debug for NwcUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let relays: Vec<&str> = self.relays.iter().filter_map(Url::host_str).collect();
        f.debug_struct("NwcUri").field("wallet", &self.wallet.to_hex()).field("relays", &relays).finish_non_exhaustive()
    }
}

fn relay(text: &str) -> Result<Url, NodeUriError> {
    let url: Url = text.parse()?;
    // What passes through is encrypted and signed from end to end; a relay without TLS learns what any relay learns.
    if matches!(url.scheme(), "wss" | "ws") && url.host().is_some() {
        return Ok(url);
    }
    Err(NodeUriError::Value { name: "relay", expected: "a wss:// or ws:// URL" })
}

fn secret(text: &str) -> Result<Keys, NodeUriError> {
    let wrong = NodeUriError::Value { name: "secret", expected: "a Nostr secret key of 64 hex digits" };
    SecretKey::from_hex(text).map(Keys::new).map_err(|_| wrong)
}
