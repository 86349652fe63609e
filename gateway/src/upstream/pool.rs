//! One origin's connections: HTTP/1.1 ones kept while idle, last in first out; one HTTP/2 connection for all.
//!
//! Not hyper-util's client: it spawns a task for each answer to get the connection back, and does not say whether a request had been
//! sent when it failed.

use std::{sync::Arc, time::Duration};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    UpstreamError,
    connect::{Connector, Stream, UpstreamTlsError},
};
use crate::{UpstreamConfig, request_body::RequestBody};

/// How long a connection whose answer is read may take to be ready for the next request: until then it still sends the
/// last request's body.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// An upstream with its connections.
pub(super) struct Origin {
    pub(super) config: UpstreamConfig,
    connector: Connector,
    idle: Mutex<Vec<Idle>>,
    h2: Mutex<Option<http2::SendRequest<RequestBody>>>,
    /// Held while connecting, so that a burst opens one HTTP/2 connection and not a hundred.
    h2_connecting: tokio::sync::Mutex<()>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

/// What to do about a request that was not sent.
#[derive(Clone, Copy)]
pub(super) enum NotSent {
    TryAgain,
    GiveUp,
}

impl Origin {
    pub(super) fn new(config: UpstreamConfig) -> Result<Self, UpstreamTlsError> {
        let connector = Connector::new(&config)?;
        Ok(Self {
            config,
            connector,
            idle: Mutex::default(),
            h2: Mutex::default(),
            h2_connecting: tokio::sync::Mutex::default(),
        })
    }

    /// A kept connection and how long it was unused.
    pub(super) fn checkout(&self, now: Instant) -> Option<(http1::SendRequest<RequestBody>, Duration)> {
        let mut idle = self.idle.lock();
        while let Some(kept) = idle.pop() {
            let unused = now.saturating_duration_since(kept.since);
            if unused > self.config.pool_idle_timeout {
                // Those below are older.
                idle.clear();
                return None;
            }
            if kept.sender.is_ready() {
                return Some((kept.sender, unused));
            }
        }
        None
    }

    pub(super) fn give_back(self: &Arc<Self>, mut sender: http1::SendRequest<RequestBody>) {
        if sender.is_ready() {
            self.keep(sender);
        } else if !sender.is_closed() {
            let origin = self.clone();
            tokio::spawn(async move {
                if let Ok(Ok(())) = tokio::time::timeout(READY_TIMEOUT, sender.ready()).await {
                    origin.keep(sender);
                }
            });
        }
    }

    fn keep(&self, sender: http1::SendRequest<RequestBody>) {
        let mut idle = self.idle.lock();
        if idle.len() < self.config.pool_idle_max {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }

    pub(super) async fn connect_h1(&self) -> Result<http1::SendRequest<RequestBody>, UpstreamError> {
        let stream = self.open().await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(self.config.header_bytes_max.max(8192));
        match stream {
            Stream::Plain(tcp) => drive_h1(&builder, TokioIo::new(tcp)).await,
            Stream::Tls(tls) => drive_h1(&builder, TokioIo::new(*tls)).await,
        }
    }

    pub(super) async fn connect_h2(&self) -> Result<http2::SendRequest<RequestBody>, UpstreamError> {
        if let Some(sender) = self.open_h2() {
            return Ok(sender);
        }
        let _turn = self.h2_connecting.lock().await;
        if let Some(sender) = self.open_h2() {
            return Ok(sender);
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(self.config.header_bytes_max).unwrap_or(u32::MAX))
            .initial_stream_window_size(1024 * 1024)
            .initial_connection_window_size(4 * 1024 * 1024)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10));
        let sender = match self.open().await? {
            Stream::Plain(tcp) => drive_h2(&builder, TokioIo::new(tcp)).await,
            Stream::Tls(tls) => drive_h2(&builder, TokioIo::new(*tls)).await,
        }?;
        *self.h2.lock() = Some(sender.clone());
        Ok(sender)
    }

    fn open_h2(&self) -> Option<http2::SendRequest<RequestBody>> {
        self.h2.lock().as_ref().filter(|sender| !sender.is_closed()).cloned()
    }

    async fn open(&self) -> Result<Stream, UpstreamError> {
        let timeout = self.config.connect_timeout;
        match tokio::time::timeout(timeout, self.connector.connect(&self.config.origin)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(UpstreamError::Connect { source }),
            Err(_) => Err(UpstreamError::Connect { source: format!("no connection within {timeout:?}").into() }),
        }
    }

    pub(super) fn reap(&self) {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        if !idle.is_empty() {
            let timeout = self.config.pool_idle_timeout;
            idle.retain(|kept| !kept.sender.is_closed() && now.saturating_duration_since(kept.since) <= timeout);
        }
    }

    pub(super) fn close(&self) {
        self.idle.lock().clear();
        *self.h2.lock() = None;
    }
}

async fn drive_h1<T>(builder: &http1::Builder, io: T) -> Result<http1::SendRequest<RequestBody>, UpstreamError>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) =
        builder.handshake(io).await.map_err(|error| UpstreamError::Connect { source: error.into() })?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(error = &error as &dyn std::error::Error, "upstream connection ended");
        }
    });
    Ok(sender)
}

async fn drive_h2<T>(
    builder: &http2::Builder<TokioExecutor>,
    io: T,
) -> Result<http2::SendRequest<RequestBody>, UpstreamError>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) =
        builder.handshake(io).await.map_err(|error| UpstreamError::Connect { source: error.into() })?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = &error as &dyn std::error::Error, "upstream connection ended");
        }
    });
    Ok(sender)
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origin").field("origin", &self.config.origin).finish_non_exhaustive()
    }
}
