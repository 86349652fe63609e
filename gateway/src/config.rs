//! What a gateway is told, resolved and validated: nothing here is parsed again.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use farebox_wire::transfer::TransferTimes;
use http::{HeaderValue, uri::Scheme};
use ipnet::IpNet;
use url::Url;

use crate::{AdmissionLimits, ReconcilerLimits, Route};

/// Everything the gateway is told.
#[derive(Debug)]
pub struct GatewayConfig {
    /// Where to listen; at least one.
    pub listeners: Vec<ListenerConfig>,
    /// What bills name as the origin of their resources. Without it: scheme and authority of the request.
    pub public_url: Option<Url>,
    /// Peers whose `X-Forwarded-*` and `Forwarded` are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Limits of the side that faces clients.
    pub limits: Limits,
    /// Worker threads, each with its own runtime; at least 1.
    pub workers: usize,
    /// The routes.
    pub routes: Vec<Route>,
    /// How much of a delivered answer is kept.
    pub replay: ReplayLimits,
    /// Bounds of a paid request's way.
    pub admission: AdmissionLimits,
    /// How doubts are ended.
    pub reconciler: ReconcilerLimits,
    /// How long payers by transfer have. Needed, like `public_url`, as soon as a route takes transfers.
    pub transfer: Option<TransferTimes>,
    /// Pause between two looks at what the routes cost; rates and network fees move. \[5 s\]
    pub reprice_every: Duration,
}

/// One address to listen on.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// Port 0 takes a free one; see `Gateway::addresses`.
    pub address: SocketAddr,
    /// Plain HTTP/1.1 and h2c without it.
    pub tls: Option<TlsFiles>,
}

/// PEM files of a certificate chain and its key.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
}

/// Limits of the side that faces clients. Every wait and size has one.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open client connections; further ones wait in the kernel's queue. \[16384\]
    pub connections_max: usize,
    /// Bytes of a request's head; more is 431. At least 8 KiB. \[32 KiB\]
    pub header_bytes_max: usize,
    /// Header fields of a request; more is 431. \[100\]
    pub headers_max: usize,
    /// From a head's first byte to its end, and for a TLS handshake. Against slow heads. \[10 s\]
    pub header_read_timeout: Duration,
    /// How long a connection without a request is kept, and how long a client may neither take nor send bytes it owes.
    /// \[75 s\]
    pub idle_timeout: Duration,
    /// How long requests in flight may take to finish after shutdown began. \[30 s\]
    pub drain_timeout: Duration,
    /// Bytes of a request's body, unless the route says otherwise; more is 413. \[16 MiB\]
    pub request_body_bytes_max: u64,
    /// Concurrent HTTP/2 streams of one connection. \[128\]
    pub streams_max: u32,
    /// How long an upgraded connection (WebSocket) may be silent in both directions. \[10 min\]
    pub tunnel_idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            header_bytes_max: 32 * 1024,
            headers_max: 100,
            header_read_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            drain_timeout: Duration::from_secs(30),
            request_body_bytes_max: 16 * 1024 * 1024,
            streams_max: 128,
            tunnel_idle_timeout: Duration::from_secs(600),
        }
    }
}

/// How much of a delivered answer is kept for a payer who lost it.
#[derive(Clone, Debug)]
pub struct ReplayLimits {
    /// Longer bodies are not kept. \[64 KiB\]
    pub body_bytes_max: usize,
}

impl Default for ReplayLimits {
    fn default() -> Self {
        Self { body_bytes_max: 64 * 1024 }
    }
}

/// Where a route's requests go, and how long that may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Scheme, authority and base path.
    pub origin: UpstreamUrl,
    /// Which `Host` the upstream sees.
    pub host: UpstreamHost,
    /// HTTP/2: by prior knowledge (h2c) for http, by ALPN for https. Otherwise HTTP/1.1.
    pub http2: bool,
    /// PEM file of certificates trusted beside the public roots (webpki-roots), for https.
    pub ca: Option<PathBuf>,
    /// Name resolution, TCP and TLS together. \[3 s\]
    pub connect_timeout: Duration,
    /// From the request's head sent to the response's head received. \[30 s\]
    pub response_timeout: Duration,
    /// Between frames of the response's body. \[60 s\]
    pub idle_timeout: Duration,
    /// Idle HTTP/1.1 connections kept, by worker. \[256\]
    pub pool_idle_max: usize,
    /// How long one is kept; shorter than common servers' own (Node: 5 s), for one they close as we send is a 502. \[4 s\]
    pub pool_idle_timeout: Duration,
    /// Bytes of a response's head. \[64 KiB\]
    pub header_bytes_max: usize,
}

/// Which `Host` (`:authority`) an upstream sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UpstreamHost {
    /// The upstream's own authority.
    #[default]
    Upstream,
    /// The client's.
    Preserve,
}

impl UpstreamConfig {
    /// Default limits for this origin.
    #[must_use]
    pub fn new(origin: UpstreamUrl) -> Self {
        Self {
            origin,
            host: UpstreamHost::Upstream,
            http2: false,
            ca: None,
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            pool_idle_max: 256,
            pool_idle_timeout: Duration::from_secs(4),
            header_bytes_max: 64 * 1024,
        }
    }
}

/// An upstream's origin and base path: `http` or `https`, no user, query or fragment; the base path is canonical, without a
/// trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    pub(crate) scheme: Scheme,
    /// For connecting: a name or an IP literal without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// As in `Host`: the port only if it is not the scheme's own.
    pub(crate) authority: HeaderValue,
    /// Empty or `/a/b`.
    pub(crate) base_path: String,
}

/// Why a URL is no upstream.
#[derive(Debug, thiserror::Error)]
#[error("expected an upstream such as http://127.0.0.1:9000 or https://api.internal/base, found {found}: {reason}")]
pub struct UpstreamUrlError {
    found: farebox_core::Untrusted,
    reason: &'static str,
}

impl UpstreamUrlError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "bad_upstream_url"
    }
}

impl std::str::FromStr for UpstreamUrl {
    type Err = UpstreamUrlError;

    fn from_str(text: &str) -> Result<Self, UpstreamUrlError> {
        let wrong = |reason| UpstreamUrlError { found: farebox_core::Untrusted::new(text), reason };
        let url = Url::parse(text).map_err(|_| wrong("it is not a URL"))?;
        let scheme = match url.scheme() {
            "http" => Scheme::HTTP,
            "https" => Scheme::HTTPS,
            _ => return Err(wrong("the scheme is neither http nor https")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it carries a user name or a password"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it carries a query or a fragment"));
        }
        let host = url.host().ok_or_else(|| wrong("it names no host"))?;
        let port = url.port_or_known_default().ok_or_else(|| wrong("it names no port"))?;
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        };
        let authority = HeaderValue::try_from(authority).map_err(|_| wrong("the host is not ASCII"))?;
        let host = host.to_string().trim_start_matches('[').trim_end_matches(']').to_owned();
        // `Url` removes dot segments by itself; what the user wrote must already be without them.
        let path = url.path().trim_end_matches('/');
        if !path.is_empty() && crate::CanonicalPath::parse(path).is_err() {
            return Err(wrong("the base path is ambiguous"));
        }
        Ok(Self { scheme, host, port, authority, base_path: path.to_owned() })
    }
}

impl std::fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority.to_str().map_err(|_| std::fmt::Error)?, self.base_path)
    }
}
