//! How a node is reached: from the gateway's config, or from one line for an agent.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use farebox_core::{Untrusted, ports::BoxError};
use url::Url;
use zeroize::Zeroizing;

pub use super::nwc::NwcUri;
use super::{PinError, Pins, Trust};

/// How long a node may take over an answer, unless the config says otherwise. Local ones need milliseconds; hosted ones and relays seconds.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The longest credential or certificate file that is read.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The longest scheme or parameter name that an error repeats: secrets are longer.
const PLAIN_BYTES_MAX: usize = 20;
/// Of the shortest text that is taken for a credential. Runes have 43 characters and more, macaroons hundreds; in base64 a `/` may cut them.
const SECRET_BYTES_MIN: usize = 32;

/// Which node or wallet, and how it is reached.
///
/// As text: `lnd+https://HOST:PORT?macaroon=FILE&cert=FILE`, `cln+https://HOST:PORT?rune=FILE&cert=FILE`, `nostr+walletconnect://…` (NIP-47).
/// Without `cert` the server's certificate must be good by the web's authorities. `lnd+http` and `cln+http` reach loopback alone.
#[derive(Clone, Debug)]
pub enum NodeConfig {
    /// lnd.
    Lnd(LndConfig),
    /// Core Lightning.
    Cln(ClnConfig),
    /// A wallet over Nostr Wallet Connect.
    Nwc(NwcConfig),
}

/// lnd over REST.
#[derive(Clone, Debug)]
pub struct LndConfig {
    /// Where its REST interface is, with a path if a proxy serves it under one.
    pub url: Url,
    /// A file in lnd's own form, or hex digits. To sell, `invoices:read invoices:write` is enough, and `info:read offchain:read` tells more; an agent needs
    /// `info:read offchain:read offchain:write`.
    pub macaroon: SecretSource,
    /// lnd's `tls.cert`, in PEM or DER; without one the server needs a certificate that the web trusts.
    pub certificate: Option<PathBuf>,
    /// How long it may take over an answer.
    pub timeout: Duration,
}

/// Core Lightning over clnrest.
#[derive(Clone, Debug)]
pub struct ClnConfig {
    /// Where clnrest is.
    pub url: Url,
    /// A file that holds the rune, or the rune.
    pub rune: SecretSource,
    /// clnrest's `server.pem`; without one the server needs a certificate that the web trusts.
    pub certificate: Option<PathBuf>,
    /// How long it may take over an answer.
    pub timeout: Duration,
}

/// A wallet over Nostr Wallet Connect.
#[derive(Clone, Debug)]
pub struct NwcConfig {
    /// What the wallet gave.
    pub uri: NwcUri,
    /// How long it may take over an answer, its way through the relay included.
    pub timeout: Duration,
}

/// Where a secret comes from. Its `Debug` shows no secret.
#[derive(Clone)]
pub enum SecretSource {
    /// A file.
    File(PathBuf),
    /// The secret itself.
    Text(Zeroizing<String>),
}

/// Why a node cannot even be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its URL.
    #[error("the node's URL is {found}: {detail}")]
    Url {
        /// Without its query.
        found: String,
        /// What was expected.
        detail: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of certificates that holds none.
    #[error("cannot pin the certificate of {path}")]
    Pin {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: PinError,
    },
    /// A macaroon or a rune that is none. What was found is not repeated.
    #[error("the node's credential is not good: {0}")]
    Credential(&'static str),
    /// No client could be made.
    #[error("cannot make a client")]
    Client(#[source] BoxError),
}

impl ConnectError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Url { .. } => "node_url",
            Self::File { .. } => "node_file",
            Self::Pin { .. } => "node_certificate",
            Self::Credential(_) => "node_credential",
            Self::Client(_) => "node_client",
        }
    }

    /// Whether to try again may help.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Url { .. } | Self::File { .. } | Self::Pin { .. } | Self::Credential(_) | Self::Client(_) => false,
        }
    }
}

/// Why a line names no node. Never repeats the line: it may hold a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeUriError {
    /// Another scheme.
    #[error("expected lnd+https://, cln+https:// or nostr+walletconnect://, found {0}")]
    Scheme(Untrusted),
    /// Not a URL.
    #[error("not a URL: {0}")]
    Form(#[from] url::ParseError),
    /// A parameter that is missing.
    #[error("the parameter {0} is missing")]
    Missing(&'static str),
    /// A parameter that means nothing here.
    #[error("the parameter {found} means nothing here; expected {expected}")]
    Unknown {
        /// Its name.
        found: Untrusted,
        /// Which there are.
        expected: &'static str,
    },
    /// A parameter that is there twice.
    #[error("the parameter {0} is there twice")]
    Twice(&'static str),
    /// A value that is none.
    #[error("{name} is not {expected}")]
    Value {
        /// Of which part.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

impl NodeUriError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Scheme(_) => "node_uri_scheme",
            Self::Form(_) => "node_uri_form",
            Self::Missing(_) => "node_uri_missing",
            Self::Unknown { .. } => "node_uri_unknown",
            Self::Twice(_) => "node_uri_twice",
            Self::Value { .. } => "node_uri_value",
        }
    }

    /// Whether to try again may help.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }
}

impl FromStr for NodeConfig {
    type Err = NodeUriError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (scheme, _) = text.split_once("://").ok_or_else(|| NodeUriError::Scheme(Untrusted::new("no scheme")))?;
        let scheme = plain(scheme).ok_or_else(|| NodeUriError::Scheme(Untrusted::new("no scheme")))?;
        let timeout = TIMEOUT_DEFAULT;
        match scheme {
            "lnd+https" | "lnd+http" => {
                let (url, secret, certificate) = split(text, "lnd+", "macaroon", "macaroon, cert")?;
                Ok(Self::Lnd(LndConfig { url, macaroon: SecretSource::File(secret), certificate, timeout }))
            }
            "cln+https" | "cln+http" => {
                let (url, secret, certificate) = split(text, "cln+", "rune", "rune, cert")?;
                Ok(Self::Cln(ClnConfig { url, rune: SecretSource::File(secret), certificate, timeout }))
            }
            "nostr+walletconnect" => Ok(Self::Nwc(NwcConfig { uri: text.parse()?, timeout })),
            other => Err(NodeUriError::Scheme(Untrusted::new(other))),
        }
    }
}

/// A scheme or a name, if it looks like one: where these are expected, a slip puts a secret.
fn plain(text: &str) -> Option<&str> {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+.-_".contains(&b);
    (1..=PLAIN_BYTES_MAX).contains(&text.len()).then_some(text).filter(|text| text.bytes().all(is_plain))
}

/// The node's own URL, the file of its credential, and that of its certificate.
fn split(
    text: &str,
    prefix: &str,
    secret: &'static str,
    expected: &'static str,
) -> Result<(Url, PathBuf, Option<PathBuf>), NodeUriError> {
    let mut url: Url = text.strip_prefix(prefix).unwrap_or(text).parse()?;
    let (mut credential, mut certificate) = (None, None);
    for (name, value) in url.query_pairs() {
        let (slot, name) = match &*name {
            name if name == secret => (&mut credential, secret),
            "cert" => (&mut certificate, "cert"),
            other => {
                let found = Untrusted::new(plain(other).unwrap_or("(not shown)"));
                return Err(NodeUriError::Unknown { found, expected });
            }
        };
        if slot.replace(PathBuf::from(&*value)).is_some() {
            return Err(NodeUriError::Twice(name));
        }
    }
    url.set_query(None);
    Ok((url, credential.ok_or(NodeUriError::Missing(secret))?, certificate))
}

impl SecretSource {
    /// The bytes of the file, or of the text.
    pub(super) fn read(&self) -> Result<Zeroizing<Vec<u8>>, ConnectError> {
        match self {
            Self::File(path) => file(path).map(Zeroizing::new).map_err(|error| match is_secret(path) {
                true => ConnectError::Credential("expected the name of a file that holds it, and this is none"),
                false => error,
            }),
            Self::Text(text) => Ok(Zeroizing::new(text.as_bytes().to_vec())),
        }
    }
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) if is_secret(path) => f.write_str("File(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text(_) => f.write_str("Text(..)"),
        }
    }
}

/// Whether a file's name may be a credential put in its place: hex digits or base64, without the dot of most names.
fn is_secret(path: &Path) -> bool {
    let longest =
        path.as_os_str().as_encoded_bytes().split(|b| matches!(b, b'.' | b'/' | b'\\')).map(<[u8]>::len).max();
    longest.is_some_and(|length| length >= SECRET_BYTES_MIN)
}

pub(super) fn trust(certificate: Option<&Path>) -> Result<Trust, ConnectError> {
    let Some(path) = certificate else { return Ok(Trust::WebPki) };
    let pins = Pins::parse(&file(path)?);
    pins.map(Trust::Pinned).map_err(|source| ConnectError::Pin { path: path.to_owned(), source })
}

fn file(path: &Path) -> Result<Vec<u8>, ConnectError> {
    let read = || {
        let length = fs::metadata(path)?.len();
        if length > FILE_BYTES_MAX {
            let detail = format!("it has {length} bytes, expected at most {FILE_BYTES_MAX}");
            return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, detail));
        }
        fs::read(path)
    };
    read().map_err(|source| ConnectError::File { path: path.to_owned(), source })
}
