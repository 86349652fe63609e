//! Other people's clients, as their users run them.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{Account, Tool, tool, tools::script};

/// A client starts Node.js or Python, asks twice, and signs once.
const PAY_WITHIN: Duration = Duration::from_secs(60);

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignClient {
    /// npm @x402/fetch, protocol version 2.
    X402Fetch,
    /// npm @x402/axios, protocol version 2.
    X402Axios,
    /// npm x402-fetch, protocol version 1, deprecated and in use.
    X402FetchV1,
    /// PyPI x402 over requests, protocol version 2.
    PypiRequests,
    /// PyPI x402 over httpx, protocol version 2.
    PypiHttpx,
}

/// One request to be paid for.
#[derive(Clone, Debug, Serialize)]
pub struct Job {
    url: String,
    method: String,
    headers: serde_json::Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    key: String,
}

impl Job {
    /// A GET, paid by `payer`.
    #[must_use]
    pub fn get(url: impl Into<String>, payer: &Account) -> Self {
        Self { url: url.into(), method: "GET".into(), headers: serde_json::Map::new(), body: None, key: payer.key() }
    }

    /// A POST of JSON text, paid by `payer`.
    #[must_use]
    pub fn post(url: impl Into<String>, body: impl Into<String>, payer: &Account) -> Self {
        let job = Self { method: "POST".into(), body: Some(body.into()), ..Self::get(url, payer) };
        job.header("content-type", "application/json")
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }
}

/// What a client was given in the end.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The last answer's status; absent when the client gave up by itself.
    pub status: Option<u16>,
    /// Names in lower case.
    #[serde(default)]
    pub headers: serde_json::Map<String, serde_json::Value>,
    /// The last answer's body.
    #[serde(default)]
    pub body: String,
    /// PAYMENT-RESPONSE or X-PAYMENT-RESPONSE, as the client's own package decodes it.
    #[serde(default)]
    pub payment_response: Option<serde_json::Value>,
    /// Why the client gave up.
    #[serde(default)]
    pub error: Option<String>,
}

impl ForeignClient {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::X402Fetch, Self::X402Axios, Self::X402FetchV1, Self::PypiRequests, Self::PypiHttpx];

    /// Does `job` in a process of the client's own.
    ///
    /// # Errors
    /// The client is not installed, takes too long, or prints no outcome. That it did not get what it wanted is no error.
    pub async fn pay(self, job: &Job) -> Result<Outcome> {
        let mut command = self.command()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("start {self:?}"))?;
        let mut stdin = child.stdin.take().context("a piped stdin")?;
        stdin.write_all(&serde_json::to_vec(job)?).await?;
        drop(stdin);
        let output = tokio::time::timeout(PAY_WITHIN, child.wait_with_output())
            .await
            .with_context(|| format!("{self:?} was not done within {PAY_WITHIN:?}"))??;
        let said = || String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{self:?} ended with {}:\n{}", output.status, said());
        serde_json::from_slice(&output.stdout).with_context(|| format!("{self:?} printed no outcome:\n{}", said()))
    }

    fn command(self) -> Result<Command> {
        let (interpreter, file, arguments): (_, _, &[&str]) = match self {
            Self::X402Fetch => (Tool::Node, "x402-fetch.mjs", &[]),
            Self::X402Axios => (Tool::Node, "x402-axios.mjs", &[]),
            Self::X402FetchV1 => (Tool::Node, "x402-fetch-v1.mjs", &[]),
            Self::PypiRequests => (Tool::Python, "x402_pypi.py", &["requests"]),
            Self::PypiHttpx => (Tool::Python, "x402_pypi.py", &["httpx"]),
        };
        let mut command = Command::new(tool(interpreter)?);
        command.arg(script("clients").join(file)).args(arguments);
        Ok(command)
    }
}
