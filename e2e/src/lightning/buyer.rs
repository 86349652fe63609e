//! Clients of L402 that others wrote, each with an lnd as its wallet.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use super::{Lnd, nwc::lnd_environment};
use crate::{Tool, tool, tools::script};

/// A client starts Node.js or Python, and asks and pays a few times.
const BUY_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buyer {
    /// npm @getalby/lightning-tools, `fetchWithL402`.
    AlbyFetchWithL402,
    /// npm @getalby/lightning-tools, `fetch402`, which chooses among L402, MPP and x402 over Lightning.
    AlbyFetch402,
    /// PyPI l402-requests.
    L402Requests,
    /// PyPI l402kit.
    L402Kit,
    /// PyPI pyl402.
    Pyl402,
}

/// One request.
#[derive(Clone, Debug, Serialize)]
pub struct Wanted {
    url: String,
    method: &'static str,
    headers: serde_json::Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

impl Wanted {
    /// A GET.
    #[must_use]
    pub fn get(url: impl Into<String>) -> Self {
        Self { url: url.into(), method: "GET", headers: serde_json::Map::new(), body: None }
    }

    /// A POST of JSON text.
    #[must_use]
    pub fn post(url: impl Into<String>, body: impl Into<String>) -> Self {
        let headers = [("content-type".to_owned(), Value::from("application/json"))].into_iter().collect();
        Self { method: "POST", headers, body: Some(body.into()), ..Self::get(url) }
    }
}

/// What a client got.
#[derive(Clone, Debug, Deserialize)]
pub struct Bought {
    /// The last answer to each request, in their order.
    pub answers: Vec<Answered>,
    /// BOLT 11 of each invoice that the client told its wallet to pay, in that order.
    pub paid: Vec<String>,
}

/// How a request ended.
#[derive(Clone, Debug, Deserialize)]
pub struct Answered {
    /// Absent when the client gave up by itself.
    pub status: Option<u16>,
    /// Names in lower case.
    #[serde(default)]
    pub headers: serde_json::Map<String, Value>,
    /// Empty when the client gave up.
    #[serde(default)]
    pub body: String,
    /// Why the client gave up.
    #[serde(default)]
    pub error: Option<String>,
}

impl Bought {
    /// The statuses of the answers; none where the client gave up.
    #[must_use]
    pub fn statuses(&self) -> Vec<Option<u16>> {
        self.answers.iter().map(|answer| answer.status).collect()
    }
}

impl Buyer {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::AlbyFetchWithL402, Self::AlbyFetch402, Self::L402Requests, Self::L402Kit, Self::Pyl402];

    /// Makes `requests` one after the other in one process of the client's own, which keeps what it keeps between them, and pays from
    /// `wallet`.
    ///
    /// # Errors
    /// The client is not installed, takes too long, or prints no outcome. That it did not get what it wanted is no error.
    pub async fn buy(self, wallet: &Lnd, requests: &[Wanted]) -> Result<Bought> {
        self.run(self.command(wallet)?, requests).await
    }

    /// [`Buyer::buy`] with the client's own wallet over Nostr Wallet Connect, which of these Alby's and l402-requests have.
    ///
    /// # Errors
    /// As there.
    pub async fn buy_over_nwc(self, lnd: &Lnd, nwc_url: &str, requests: &[Wanted]) -> Result<Bought> {
        let mut command = self.command(lnd)?;
        // Alby's takes NIP-44; so both encryptions are in use.
        command.env("NWC_URL", nwc_url).env("NWC_ENCRYPTION", "nip04");
        self.run(command, requests).await
    }

    async fn run(self, mut command: Command, requests: &[Wanted]) -> Result<Bought> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("start {self:?}"))?;
        let mut stdin = child.stdin.take().context("a piped stdin")?;
        stdin.write_all(serde_json::json!({ "requests": requests }).to_string().as_bytes()).await?;
        drop(stdin);
        let output = tokio::time::timeout(BUY_WITHIN, child.wait_with_output())
            .await
            .with_context(|| format!("{self:?} was not done within {BUY_WITHIN:?}"))??;
        let said = || String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{self:?} ended with {}:\n{}", output.status, said());
        serde_json::from_slice(&output.stdout).with_context(|| format!("{self:?} printed no outcome:\n{}", said()))
    }

    fn command(self, wallet: &Lnd) -> Result<Command> {
        let (interpreter, file, argument) = match self {
            Self::AlbyFetchWithL402 => (Tool::Node, "l402-alby.mjs", "fetchWithL402"),
            Self::AlbyFetch402 => (Tool::Node, "l402-alby.mjs", "fetch402"),
            Self::L402Requests => (Tool::PythonL402, "l402_pypi.py", "l402-requests"),
            Self::L402Kit => (Tool::PythonL402, "l402_pypi.py", "l402kit"),
            Self::Pyl402 => (Tool::PythonL402, "l402_pypi.py", "pyl402"),
        };
        let mut command = Command::new(tool(interpreter)?);
        command.arg(script("clients").join(file)).arg(argument);
        command.envs(lnd_environment(wallet)?).env("LND_CERT", wallet.tls_cert());
        Ok(command)
    }
}
