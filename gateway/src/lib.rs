//! The gateway: a reverse proxy that lets a paid route through only once it is paid.
//!
//! A request goes straight down: connection, [`RouteTable`], admission (paid routes), upstream. Each worker is a thread
//! with its own single-threaded runtime and its own upstream connections; one acceptor hands connections to the
//! worker that has the fewest.
//!
//! What the proxy does not do: CONNECT (501), and so WebSocket over HTTP/2 (RFC 8441), which is not advertised: clients use HTTP/1.1
//! for it; upgrades to an HTTP/2 upstream (the request goes there without `Upgrade`); informational answers but 100 and 101.

mod admission;
mod answer;
mod body;
mod challenge;
mod client;
mod config;
mod connection;
mod counts;
mod delivery;
mod draws;
mod fare;
mod forward;
mod hold;
mod lookups;
mod marked;
mod path;
mod pattern;
mod places;
mod proxy;
mod quotes;
mod reconciler;
mod refused;
mod repricer;
mod request_body;
mod ride;
mod route;
mod server;
mod till;
mod tls;
mod token_bill;
mod tokens;
mod upstream;
mod worker;

pub use config::{
    GatewayConfig, Limits, ListenerConfig, ReplayLimits, TlsFiles, UpstreamConfig, UpstreamHost, UpstreamUrl,
    UpstreamUrlError,
};
pub use counts::{Outcome, Watch};
pub use path::{AmbiguousPath, CanonicalPath};
pub use pattern::{MatchError, Methods, PathPattern, parse_match};
pub use reconciler::ReconcilerLimits;
pub use route::{Route, RouteMatch, RouteTable, RouteTableError};
pub use server::{BindError, Gateway, Ports, ServeError, Tokens};
pub use till::AdmissionLimits;
pub use tls::TlsFilesError;
pub use upstream::UpstreamTlsError;
