//! Upgraded connections (WebSocket and others): bytes both ways until either side ends or both are silent for too long.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{
    HeaderValue, Response,
    header::{CONNECTION, UPGRADE},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::UpstreamBody;
use crate::client::{ClientInfo, Peer};

/// Joins the two sides once both have switched, which the client's has when its 101 is written. If the 101 is never passed
/// on, both sides are closed.
pub(super) fn open(
    response: &mut Response<UpstreamBody>,
    client_side: OnUpgrade,
    idle_timeout: Duration,
    client: &ClientInfo,
) {
    let protocol = response.headers_mut().remove(UPGRADE);
    crate::forward::response_headers(response.headers_mut());
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(UPGRADE, protocol);
    }
    let upstream_side = hyper::upgrade::on(response);
    tokio::spawn(run(upstream_side, client_side, idle_timeout, client.peer.clone()));
}

async fn run(upstream_side: OnUpgrade, client_side: OnUpgrade, idle_timeout: Duration, _slot: Arc<Peer>) {
    let (upstream, client) = match tokio::try_join!(upstream_side, client_side) {
        Ok(sides) => sides,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "upgrade came to nothing");
            return;
        }
    };
    let heard = Arc::new(Mutex::new(Instant::now()));
    let mut upstream = Heard { io: TokioIo::new(upstream), at: heard.clone() };
    let mut client = Heard { io: TokioIo::new(client), at: heard.clone() };
    tokio::select! {
        ended = tokio::io::copy_bidirectional(&mut upstream, &mut client) => {
            if let Err(error) = ended {
                tracing::debug!(error = &error as &dyn std::error::Error, "tunnel broke off");
            }
        }
        () = silence(&heard, idle_timeout) => tracing::debug!("tunnel closed: silent for {idle_timeout:?}"),
    }
}

async fn silence(heard: &Mutex<Instant>, idle_timeout: Duration) {
    loop {
        let until = *heard.lock() + idle_timeout;
        if Instant::now() >= until {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

/// Notes when bytes came.
struct Heard {
    io: TokioIo<Upgraded>,
    at: Arc<Mutex<Instant>>,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_read(context, buf))?;
        *self.at.lock() = Instant::now();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
