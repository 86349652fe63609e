//! The unpaid loads: free pass-through beside nginx as a plain reverse proxy, and the 402 beside nginx's canned answer.

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use farebox_e2e::{Account, Anvil, Farebox, Process, Setup, Tool, Usdc, free_port, tool};
use tempfile::TempDir;

use crate::{
    Args, host,
    report::{Report, Round},
    wrk::{self, Drive},
};

/// Worker threads of every contender.
pub(crate) const WORKERS: usize = 2;

/// An nginx of ours in a folder of its own.
pub(crate) struct Nginx {
    process: Process,
    port: u16,
    _dir: TempDir,
}

impl Nginx {
    /// Starts it with this `http` block content; `PORT` in it is the port it gets.
    pub(crate) async fn start(workers: usize, http: &str) -> Result<Self> {
        let (dir, port) = (tempfile::tempdir()?, free_port()?);
        let config = format!(
            "daemon off; worker_processes {workers}; pid nginx.pid; error_log stderr error;\n\
             events {{ worker_connections 16384; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path body; proxy_temp_path proxy;\n\
             fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi; {} }}\n",
            http.replace("PORT", &port.to_string())
        );
        fs::write(dir.path().join("nginx.conf"), config)?;
        let mut command = Command::new(tool(Tool::Nginx)?);
        command.arg("-p").arg(dir.path()).args(["-c", "nginx.conf"]);
        let process = Process::start("nginx", &mut command)?;
        wait_for(port).await.with_context(|| format!("nginx: {}", process.log()))?;
        Ok(Self { process, port, _dir: dir })
    }

    /// The sample API that every proxy stands before.
    pub(crate) async fn origin() -> Result<Self> {
        Self::start(
            1,
            "server { listen 127.0.0.1:PORT reuseport; default_type application/json; location / { return 200 '{\"ok\":true}'; } }",
        )
        .await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) const fn process(&self) -> &Process {
        &self.process
    }
}

async fn wait_for(port: u16) -> Result<()> {
    for _ in 0..500 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("nothing listens on port {port} after 5 s")
}

/// A gateway before `upstream`, paid over x402 on `anvil`.
pub(crate) async fn farebox(anvil: &Anvil, upstream: &str) -> Result<Farebox> {
    farebox_e2e::tool(Tool::Farebox)?;
    let relayer = Account::named("relayer")?;
    anvil.set_balance(relayer.address(), 10u128.pow(20)).await?;
    let config = format!(
        "[server]\nworkers = {WORKERS}\n\n[log]\nlevel = \"warn\"\n\n[[chain]]\nnetwork = \"{}\"\nrpc = [\"{}\"]\nassets = [\"USDC\"]\npay_to = \"{}\"\n\
         relayer = {{ key = \"${{RELAYER_KEY}}\" }}\nmax_timeout = \"5m\"\ngas_per_day_max = 1000\n\n\
         [[route]]\nmatch = \"GET /free\"\nupstream = \"{upstream}\"\nfree = true\n\n\
         [[route]]\nmatch = \"GET /paid\"\nupstream = \"{upstream}\"\nprice = \"$0.01\"\n",
        farebox_e2e::NETWORK,
        anvil.url(),
        pay_to()?,
    );
    Farebox::start(Setup::new(&config)?.env("RELAYER_KEY", &relayer.key())).await
}

/// Where every payment of the benchmark goes.
pub(crate) fn pay_to() -> Result<alloy::primitives::Address> {
    Ok(Account::named("seller")?.address())
}

/// A node fit for load: instant blocks and flat memory. Mines a block each half second as well, for instant mining can leave
/// a transaction queued although its nonce is next.
pub(crate) async fn node() -> Result<(Arc<Anvil>, Usdc)> {
    let anvil = Arc::new(Anvil::start(&["--hardfork", "cancun", "--prune-history", "200"]).await?);
    let usdc = Usdc::deploy(&anvil).await?;
    let miner = Arc::downgrade(&anvil);
    tokio::spawn(async move {
        while let Some(anvil) = miner.upgrade() {
            // A node that is being stopped answers no more, and the next look finds it gone.
            anvil.mine(1).await.ok();
            drop(anvil);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    Ok((anvil, usdc))
}

/// Measures one contender once.
pub(crate) fn measure(pid: u32, drive: &Drive<'_>, expected: Expected) -> Result<Round> {
    let before = host::cpu_s(pid)?;
    let load = wrk::drive(drive)?;
    let cpu = host::cpu_s(pid)? - before;
    let served = match expected {
        Expected::Served => load.requests - load.refused,
        Expected::Refused => load.refused,
    };
    ensure!(
        served == load.requests,
        "{} of {} answers were not as expected from {}",
        load.requests - served,
        load.requests,
        drive.url
    );
    Ok(Round::new(&load, served, cpu, host::memory_mib(pid)?))
}

/// What every answer of a load must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expected {
    Served,
    Refused,
}

/// The unpaid loads.
pub(crate) async fn unpaid(args: &Args, report: &mut Report, free: bool, bill: bool) -> Result<()> {
    let origin = Nginx::origin().await?;
    let (anvil, _usdc) = node().await?;
    let mut gateway = farebox(&anvil, &origin.url("")).await?;
    let gateway_pid = gateway.process().id();
    let (paid, open) = (gateway.url("/paid"), gateway.url("/free"));

    let body = reqwest::get(&paid).await?.text().await?;
    let dir = tempfile::tempdir()?;
    let canned = canned(dir.path(), &body).await?;
    let proxy = Nginx::start(
        WORKERS,
        &format!(
            "upstream origin {{ server {}; keepalive 256; }} server {{ listen 127.0.0.1:PORT reuseport; location / {{ \
             proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ''; }} }}",
            origin.url("").trim_start_matches("http://")
        ),
    )
    .await?;

    for round in 0..args.rounds {
        let mut loads = vec![];
        if free {
            loads.push(("free", "nginx", proxy.process.id(), proxy.url("/free"), Expected::Served));
            loads.push(("free", "farebox", gateway_pid, open.clone(), Expected::Served));
        }
        if bill {
            loads.push(("402", "nginx, canned", canned.process.id(), canned.url("/paid"), Expected::Refused));
            loads.push(("402", "farebox", gateway_pid, paid.clone(), Expected::Refused));
        }
        // Whoever comes second finds a warmer machine; so they take turns.
        if round % 2 == 1 {
            loads.reverse();
        }
        for (load, contender, pid, url, expected) in loads {
            let drive = Drive { url: &url, connections: args.connections, seconds: args.seconds, script: None };
            report.round(load, contender, measure(pid, &drive, expected)?);
        }
    }
    Ok(())
}

/// nginx answering 402 with as many bytes as the gateway's bill.
pub(crate) async fn canned(dir: &Path, body: &str) -> Result<Nginx> {
    fs::write(dir.join("bill.json"), body)?;
    let safe = body.replace(['\'', '$', '\\', '{', '}', ';'], "x");
    Nginx::start(
        WORKERS,
        &format!(
            "server {{ listen 127.0.0.1:PORT reuseport; location / {{ default_type application/problem+json; \
             add_header Cache-Control no-store always; add_header PAYMENT-REQUIRED '{}' always; return 402 '{safe}'; }} }}",
            "x".repeat(900)
        ),
    )
    .await
}
