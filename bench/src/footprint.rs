//! Memory and start-up.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    contender::{Nginx, farebox, node},
    host,
    report::Report,
};

const IDLE_CONNECTIONS: usize = 10_000;

/// Idle memory, 10,000 idle keep-alive connections, and the time from start to first answer.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let origin = Nginx::origin().await?;
    let (anvil, _usdc) = node().await?;
    let mut gateway = farebox(&anvil, &origin.url("")).await?;
    let pid = gateway.process().id();
    report.fact("idle memory", format!("{:.1} MiB", host::memory_mib(pid)?), "<= 40 MiB");

    let address = gateway.url("").trim_start_matches("http://").to_owned();
    let mut idle = Vec::with_capacity(IDLE_CONNECTIONS);
    for n in 0..IDLE_CONNECTIONS {
        let mut connection = TcpStream::connect(&address).await.with_context(|| format!("connection {n}"))?;
        answered(&mut connection, "/free").await?;
        idle.push(connection);
    }
    report.fact("10,000 idle keep-alive connections", format!("{:.1} MiB", host::memory_mib(pid)?), "<= 250 MiB");
    drop(idle);

    let mut starts = vec![];
    for _ in 0..5 {
        gateway.kill_9()?;
        let started = tokio::time::Instant::now();
        let restart = gateway.restart();
        restart.await?;
        let mut connection = TcpStream::connect(&address).await?;
        answered(&mut connection, "/paid").await?;
        starts.push(started.elapsed());
    }
    starts.sort();
    report.fact("start to first 402, median of 5", format!("{} ms", starts[2].as_millis()), "<= 300 ms");
    Ok(())
}

async fn answered(connection: &mut TcpStream, path: &str) -> Result<()> {
    connection.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes()).await?;
    let mut buffer = [0; 8192];
    let read = tokio::time::timeout(Duration::from_secs(5), connection.read(&mut buffer)).await??;
    anyhow::ensure!(buffer[..read].starts_with(b"HTTP/1.1 "), "no answer");
    Ok(())
}
