//! The gateway: a reverse proxy that lets a paid route through only once it is paid.
//!
//! A request goes straight down: connection, [`route::RouteTable`], admission (paid routes), upstream. Each worker is a thread
//! with its own single-threaded runtime and its own upstream connections; one acceptor hands connections to the
//! worker that has the fewest.

mod admission;
mod answer;
mod body;
mod challenge;
mod client;
mod config;
mod connection;
mod delivery;
mod fare;
mod forward;
mod path;
mod pattern;
mod proxy;
mod reconciler;
mod request_body;
mod route;
mod server;
mod tls;
mod upstream;
mod worker;

pub use admission::AdmissionLimits;
pub use config::{
    GatewayConfig, Limits, ListenerConfig, ReplayLimits, TlsFiles, UpstreamConfig, UpstreamHost, UpstreamUrl,
    UpstreamUrlError,
};
pub use path::{AmbiguousPath, CanonicalPath};
pub use pattern::{MatchError, Methods, PathPattern, parse_match};
pub use reconciler::ReconcilerLimits;
pub use route::{Route, RouteMatch, RouteTable, RouteTableError};
pub use server::{BindError, Gateway, Ports, ServeError};
pub use tls::TlsFilesError;
pub use upstream::UpstreamTlsError;
