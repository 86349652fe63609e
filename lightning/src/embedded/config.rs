//! What an embedded node is told.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use farebox_core::BitcoinNetwork;
use url::Url;
use zeroize::Zeroizing;

/// Where a node lives, and whom it asks about the chain.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// Its directory, as `farebox lightning init` made it.
    pub dir: PathBuf,
    /// The network that it was made for.
    pub network: BitcoinNetwork,
    /// Whom it asks about the chain.
    pub chain: ChainSource,
    /// Where peers may connect to it; none: it connects to them, which is enough to receive payments.
    pub listen: Vec<SocketAddr>,
}

/// Whom a node asks about the chain, and gives its transactions to.
#[derive(Clone, PartialEq, Eq)]
pub enum ChainSource {
    /// An Esplora HTTP API, such as `https://blockstream.info/api`. It learns which addresses are asked for.
    Esplora(Url),
    /// An Electrum server, `ssl://host:50002` or `tcp://host:50001`. It learns which addresses are asked for.
    Electrum(String),
    /// A Bitcoin Core node of one's own.
    Bitcoind {
        /// Its RPC's host.
        host: String,
        /// Its RPC's port.
        port: u16,
        /// Its RPC's user.
        user: String,
        /// The password for that.
        password: Zeroizing<String>,
    },
}

/// Not a chain source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected https://… (an Esplora API), ssl://host:port or tcp://host:port (an Electrum server) or bitcoind://user:password@host:port"
)]
pub struct ChainSourceError;

impl FromStr for ChainSource {
    type Err = ChainSourceError;

    fn from_str(text: &str) -> Result<Self, ChainSourceError> {
        let url = Url::parse(text).map_err(|_| ChainSourceError)?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(ChainSourceError)?.to_owned();
        let plain = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        match url.scheme() {
            "https" | "http" if url.fragment().is_none() => Ok(Self::Esplora(url)),
            "ssl" | "tcp" if plain && url.port().is_some() && url.username().is_empty() => {
                Ok(Self::Electrum(text.trim_end_matches('/').to_owned()))
            }
            "bitcoind" if plain && !url.username().is_empty() => {
                let decoded = |text: &str| percent_decoded(text).ok_or(ChainSourceError);
                Ok(Self::Bitcoind {
                    host,
                    port: url.port().ok_or(ChainSourceError)?,
                    user: decoded(url.username())?,
                    password: Zeroizing::new(decoded(url.password().ok_or(ChainSourceError)?)?),
                })
            }
            _ => Err(ChainSourceError),
        }
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (high, low) = (char::from(rest.next()?).to_digit(16)?, char::from(rest.next()?).to_digit(16)?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for ChainSource {
    /// Without what may be a secret: a user's name, a password, a key in a path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Esplora(url) => write!(f, "esplora at {}", url.host_str().unwrap_or_default()),
            Self::Electrum(server) => write!(f, "electrum at {server}"),
            Self::Bitcoind { host, port, .. } => write!(f, "bitcoind at {host}:{port}"),
        }
    }
}

impl fmt::Debug for ChainSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_source_is_read_and_does_not_print_its_secrets() {
        let source = |text: &str| text.parse::<ChainSource>();
        let shown = |text: &str| source(text).map(|source| format!("{source:?}")).unwrap_or_default();
        assert_eq!(shown("https://user:secret@node.example/key/api"), "esplora at node.example");
        assert_eq!(shown("ssl://electrum.example:50002"), "electrum at ssl://electrum.example:50002");
        assert_eq!(shown("bitcoind://me:s%2Fcret@127.0.0.1:8332"), "bitcoind at 127.0.0.1:8332");
        let Ok(ChainSource::Bitcoind { user, password, .. }) = source("bitcoind://me:s%2Fcret@127.0.0.1:8332") else {
            panic!("not read");
        };
        assert_eq!((user.as_str(), password.as_str()), ("me", "s/cret"));
        for wrong in [
            "",
            "electrum.example:50002",
            "ssl://electrum.example",
            "ssl://electrum.example:50002/path",
            "bitcoind://127.0.0.1:8332",
            "bitcoind://me@127.0.0.1:8332",
            "bitcoind://me:pass@127.0.0.1",
            "bitcoind://me:%zz@127.0.0.1:8332",
            "ftp://node.example",
        ] {
            assert_eq!(source(wrong), Err(ChainSourceError), "{wrong}");
        }
    }
}
