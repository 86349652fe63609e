//! An HTTP client, and a small server that may also break off an answer.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{net::TcpListener, task::JoinHandle};

/// A test waits for an answer no longer than this.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A client that follows no redirect, uses no proxy and waits a minute at most.
///
/// # Errors
/// The client cannot be built.
pub fn http_client() -> Result<reqwest::Client> {
    Ok(client_builder().build()?)
}

pub(crate) fn client_builder() -> reqwest::ClientBuilder {
    // The provider may have been installed by an earlier call: then this one says so, and that is as good.
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(ANSWER_WITHIN)
}

/// The bytes were cut off on purpose.
#[derive(Debug)]
pub(crate) struct BrokenOff;

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken off on purpose")
    }
}

impl std::error::Error for BrokenOff {}

pub(crate) type Body = BoxBody<Bytes, BrokenOff>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

/// A server on a free port of the loopback interface, HTTP/1.1 and h2c. Dropped, it ends with all its connections.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Server {
    /// `handler` gives the answer, or [`BrokenOff`]: then the connection closes without one.
    pub(crate) async fn start<H, F>(handler: H) -> Result<Self>
    where
        H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<Body>, BrokenOff>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind a free port")?;
        let address = listener.local_addr()?;
        let handler = Arc::new(handler);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let handler = Arc::clone(&handler);
                connections.spawn(async move {
                    let service = service_fn(move |request| handler(request).boxed());
                    // How a connection ends is the peer's affair: breaking it off is what this server is for.
                    auto::Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, accepting })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
