//! Lightning Labs' reverse proxy, which sells over L402: to hold the harness and our agent against.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::Lnd;
use crate::{Process, Tool, free_port, tool};

const START_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A running Aperture before one upstream; every path is for sale, and what is bought is good for all of them until it expires.
#[derive(Debug)]
pub struct Aperture {
    process: Process,
    dir: TempDir,
    port: u16,
}

/// What Aperture sells.
#[derive(Clone, Debug)]
pub struct Goods {
    /// The origin of the upstream: `http://host:port`.
    pub upstream: String,
    /// Price of a token, satoshi.
    pub price_sat: u64,
    /// How long a token is good, whole seconds.
    pub good_for: Duration,
}

impl Aperture {
    /// The name of the one service; a token's first caveat is `services=goods:0`.
    pub const SERVICE: &'static str = "goods";

    /// Starts it; payments go to `seller`.
    ///
    /// # Errors
    /// It is not installed, or does not listen in time.
    pub async fn start(seller: &Lnd, goods: &Goods) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let file = dir.path().join("aperture.yaml");
        std::fs::write(&file, config(&dir, port, seller, goods))?;
        let mut command = Command::new(tool(Tool::Aperture)?);
        command.arg(format!("--configfile={}", file.display()));
        // In the file this key is another than its documentation says.
        command.arg(format!("--sqlite.dbfile={}", dir.path().join("aperture.db").display()));
        let process = Process::start("aperture", &mut command)?;
        let mut aperture = Self { process, dir, port };
        aperture.wait_until_it_listens().await?;
        Ok(aperture)
    }

    /// The address of `path` on it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The process, for its log and for signals.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn wait_until_it_listens(&mut self) -> Result<()> {
        let address = format!("127.0.0.1:{}", self.port);
        let listens = async {
            while tokio::net::TcpStream::connect(&address).await.is_err() {
                if let Some(status) = self.process.ended()? {
                    bail!("aperture ended with {status} at its start; it said:\n{}", self.process.last_words().await);
                }
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        let waited = tokio::time::timeout(START_WITHIN, listens).await;
        waited.with_context(|| format!("aperture in {} did not listen on {address}", self.dir.path().display()))?
    }
}

fn config(dir: &TempDir, port: u16, seller: &Lnd, goods: &Goods) -> String {
    let dir = dir.path().display();
    let (lnd, cert, macaroons) = (seller.grpc_address(), seller.tls_cert(), seller.macaroon_dir());
    let (cert, macaroons, service) = (cert.display(), macaroons.display(), Aperture::SERVICE);
    let Goods { upstream, price_sat, good_for } = goods;
    let upstream = upstream.trim_start_matches("http://");
    format!(
        "listenaddr: '127.0.0.1:{port}'
insecure: true
basedir: '{dir}'
debuglevel: debug
dbbackend: sqlite
authenticator:
  network: regtest
  lndhost: '{lnd}'
  tlspath: '{cert}'
  macdir: '{macaroons}'
services:
  - name: {service}
    hostregexp: '.*'
    pathregexp: '^/.*$'
    address: '{upstream}'
    protocol: http
    price: {price_sat}
    timeout: {}
",
        good_for.as_secs()
    )
}
