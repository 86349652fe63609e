//! Bitcoin Core on a chain of its own, where blocks come when they are asked for.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Process, Tool, free_port, http_client, tool};

const START_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Blocks that must lie on a coinbase before it can be spent: a consensus rule.
const MATURITY: u64 = 100;
/// Coinbases that can be spent after the start; more are mined when they are used up.
const COINS: u64 = 10;
/// The key that blocks are mined to: private key 1, whose address is BIP 173's example.
const MINER: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";
const MINER_KEY: &str = "cMahea7zqjxrtgAbB7LSGbcQUr1uX1ojuat9jZodMN87JcbXMTcA";
const FEE_SAT: u64 = 10_000;
const SAT_PER_BITCOIN: u64 = 100_000_000;

/// What a node needs to ask bitcoind over JSON-RPC: plain HTTP with basic authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcLogin {
    /// Always the loopback address.
    pub host: String,
    /// The port of JSON-RPC, and of the REST interface.
    pub port: u16,
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
}

/// A running bitcoind with some hundred blocks, no peers and no wallet.
#[derive(Debug)]
pub struct Regtest {
    process: Process,
    dir: TempDir,
    login: RpcLogin,
    client: reqwest::Client,
    coins: Mutex<Vec<Coin>>,
}

/// A coinbase to [`MINER`].
#[derive(Clone, Debug)]
struct Coin {
    txid: String,
    sat: u64,
}

impl Regtest {
    /// Starts bitcoind and mines until there are coins to send.
    ///
    /// # Errors
    /// bitcoind is not installed, or does not answer in time.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let login = RpcLogin {
            host: "127.0.0.1".to_owned(),
            port: free_port()?,
            user: "farebox".to_owned(),
            password: "regtest".to_owned(),
        };
        let process = start(dir.path(), &login)?;
        let regtest = Self { process, dir, login, client: http_client()?, coins: Mutex::default() };
        regtest.wait_until_it_answers().await?;
        regtest.mine_coins().await?;
        Ok(regtest)
    }

    /// How to ask it.
    #[must_use]
    pub const fn login(&self) -> &RpcLogin {
        &self.login
    }

    /// Any JSON-RPC call, such as `getblockcount`.
    ///
    /// # Errors
    /// It does not answer, or answers with an error.
    pub async fn rpc(&self, method: &str, params: Value) -> Result<Value> {
        let RpcLogin { host, port, user, password } = &self.login;
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let request = self.client.post(format!("http://{host}:{port}/")).basic_auth(user, Some(password)).json(&call);
        let mut answer: Value = request.send().await?.json().await.with_context(|| format!("{method} on bitcoind"))?;
        ensure!(answer["error"].is_null(), "{method} on bitcoind: {}", answer["error"]);
        Ok(answer["result"].take())
    }

    /// Mines `count` blocks.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn mine(&self, count: u64) -> Result<()> {
        self.rpc("generatetoaddress", json!([count, MINER])).await.map(drop)
    }

    /// The number of the newest block.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn height(&self) -> Result<u64> {
        self.rpc("getblockcount", json!([])).await?.as_u64().context("a block count is a number")
    }

    /// Sends `sat` to `address` and returns the transaction id; unconfirmed until [`Regtest::mine`].
    ///
    /// # Errors
    /// More than a coinbase holds (50 bitcoin), or an address of another network.
    pub async fn send(&self, address: &str, sat: u64) -> Result<String> {
        let coin = self.take_coin().await?;
        let rest =
            coin.sat.checked_sub(sat + FEE_SAT).with_context(|| format!("{sat} sat and a fee in {} sat", coin.sat))?;
        let inputs = json!([{ "txid": coin.txid, "vout": 0 }]);
        let outputs = json!([{ address: bitcoin(sat) }, { MINER: bitcoin(rest) }]);
        let raw = self.rpc("createrawtransaction", json!([inputs, outputs])).await?;
        let signed = self.rpc("signrawtransactionwithkey", json!([raw, [MINER_KEY]])).await?;
        ensure!(signed["complete"] == true, "bitcoind could not sign: {signed}");
        let txid = self.rpc("sendrawtransaction", json!([signed["hex"]])).await?;
        txid.as_str().map(str::to_owned).context("a transaction id is a string")
    }

    /// The process, for its log and for signals such as `STOP`.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGKILL, with no chance to tidy up.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn kill_9(&mut self) -> Result<()> {
        self.process.kill_9()
    }

    /// Starts it again on the same port and folder, killing it first if it still runs.
    ///
    /// # Errors
    /// As [`Regtest::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill_9()?;
        self.process = start(self.dir.path(), &self.login)?;
        self.wait_until_it_answers().await
    }

    async fn take_coin(&self) -> Result<Coin> {
        if let Some(coin) = self.coins.lock().pop() {
            return Ok(coin);
        }
        self.mine_coins().await?;
        self.coins.lock().pop().context("mined coins")
    }

    /// Mines [`COINS`] coinbases, and on them what makes them spendable.
    async fn mine_coins(&self) -> Result<()> {
        let blocks = self.rpc("generatetoaddress", json!([COINS, MINER])).await?;
        self.mine(MATURITY).await?;
        for block in blocks.as_array().context("a list of block hashes")? {
            let block = self.rpc("getblock", json!([block, 2])).await?;
            let coinbase = &block["tx"][0];
            let txid = coinbase["txid"].as_str().context("a coinbase has an id")?.to_owned();
            let sat = satoshi(&coinbase["vout"][0]["value"])?;
            self.coins.lock().push(Coin { txid, sat });
        }
        Ok(())
    }

    async fn wait_until_it_answers(&self) -> Result<()> {
        let answers = async {
            while self.rpc("getblockchaininfo", json!([])).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(START_WITHIN, answers).await.is_err() {
            bail!("bitcoind did not answer within {START_WITHIN:?}; it said:\n{}", self.process.log());
        }
        Ok(())
    }
}

fn start(dir: &Path, login: &RpcLogin) -> Result<Process> {
    let mut command = Command::new(tool(Tool::Bitcoind)?);
    command.arg(format!("-datadir={}", dir.display())).arg(format!("-rpcport={}", login.port));
    command.arg(format!("-rpcuser={}", login.user)).arg(format!("-rpcpassword={}", login.password));
    // Several nodes poll it many times a second, with more connections at once than it would serve by default.
    command.args([
        "-regtest",
        "-server",
        "-rest",
        "-txindex",
        "-rpcthreads=8",
        "-rpcworkqueue=256",
        "-rpcbind=127.0.0.1",
    ]);
    command.args([
        "-rpcallowip=127.0.0.1",
        "-listen=0",
        "-dnsseed=0",
        "-fixedseeds=0",
        "-dbcache=16",
        "-noprinttoconsole",
    ]);
    Process::start("bitcoind", &mut command)
}

/// As bitcoind wants amounts: a decimal string of bitcoins.
fn bitcoin(sat: u64) -> String {
    format!("{}.{:08}", sat / SAT_PER_BITCOIN, sat % SAT_PER_BITCOIN)
}

fn satoshi(bitcoin: &Value) -> Result<u64> {
    let text = bitcoin.to_string();
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    Ok(whole.parse::<u64>()? * SAT_PER_BITCOIN + format!("{part:0<8}").parse::<u64>()?)
}
