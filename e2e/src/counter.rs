//! Everything a gateway stands between, and payments by hand for what no honest client sends.

use alloy::primitives::{Address, Bytes, U256, address};
use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{Account, Anvil, Authorization, Echo, Farebox, Setup, Usdc, http_client};

const ETHER: u128 = 1_000_000_000_000_000_000;

/// A chain with USDC, a relayer with gas, an upstream, and a seller: all that a gateway's config names.
#[derive(Debug)]
pub struct Counter {
    /// The node.
    pub anvil: Anvil,
    /// Circle's token on it.
    pub usdc: Usdc,
    /// The upstream.
    pub echo: Echo,
    /// Who settles; has gas.
    pub relayer: Account,
}

impl Counter {
    /// Who is paid.
    pub const SELLER: Address = address!("209693Bc6afc0C5328bA36FaF03C514EF312287C");

    /// Starts all but the gateway; `anvil_flags` as in [`Anvil::start`].
    ///
    /// # Errors
    /// A part does not start.
    pub async fn open(anvil_flags: &[&str]) -> Result<Self> {
        let anvil = Anvil::start(anvil_flags).await?;
        let usdc = Usdc::deploy(&anvil).await?;
        let relayer = Account::named("relayer")?;
        anvil.set_balance(relayer.address(), ETHER).await?;
        Ok(Self { anvil, usdc, echo: Echo::start().await?, relayer })
    }

    /// The `[[chain]]` of a config whose node is at `rpc`.
    #[must_use]
    pub fn chain(&self, rpc: &str) -> String {
        format!(
            "[[chain]]\nnetwork = \"eip155:84532\"\nrpc = [\"{rpc}\"]\nassets = [\"USDC\"]\npay_to = \"{}\"\n\
             relayer = {{ key = \"${{FAREBOX_RELAYER_KEY}}\" }}\n",
            Self::SELLER
        )
    }

    /// One `[[route]]` to the upstream; `rest` is its further lines.
    #[must_use]
    pub fn route(&self, pattern: &str, rest: &str) -> String {
        format!("[[route]]\nmatch = \"{pattern}\"\nupstream = \"{}\"\n{rest}\n", self.echo.url())
    }

    /// What a gateway on this config is started with; the relayer's key is in its environment.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn setup(&self, config: &str) -> Result<Setup> {
        Ok(Setup::new(config)?.env("FAREBOX_RELAYER_KEY", &self.relayer.key()))
    }

    /// A gateway on the node itself, with these routes.
    ///
    /// # Errors
    /// It does not start.
    pub async fn serve(&self, routes: &str) -> Result<Farebox> {
        Farebox::start(self.setup(&format!("{}{routes}", self.chain(self.anvil.url())))?).await
    }

    /// An account with so many units of USDC.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn payer(&self, name: &str, units: u128) -> Result<Account> {
        let payer = Account::named(name)?;
        self.usdc.mint(payer.address(), units).await?;
        Ok(payer)
    }

    /// What `payer` has paid the seller: each transfer's units.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn paid_by(&self, payer: Address) -> Result<Vec<u128>> {
        Ok(self.usdc.transfers(payer, Self::SELLER).await?.into_iter().map(|(_, units)| units).collect())
    }
}

/// The terms in an unpaid answer's PAYMENT-REQUIRED header, as JSON: {x402Version, resource, accepts, ..}.
///
/// # Errors
/// The answer is no 402 with such a header.
pub async fn bill(url: &str) -> Result<Value> {
    let answer = http_client()?.get(url).send().await?;
    ensure!(answer.status() == 402, "{url} is answered {}", answer.status());
    let header = answer.headers().get("payment-required").context("a 402 without PAYMENT-REQUIRED")?;
    Ok(serde_json::from_slice(&BASE64_STANDARD.decode(header)?)?)
}

/// A version 2 payment as JSON, by the first offer of `bill`.
#[must_use]
pub fn payment(bill: &Value, authorization: &Authorization, signature: &Bytes) -> Value {
    let a = authorization;
    let signed = json!({
        "from": a.from, "to": a.to, "value": a.value.to_string(), "nonce": a.nonce,
        "validAfter": a.valid_after.to_string(), "validBefore": a.valid_before.to_string(),
    });
    let payload = json!({ "signature": signature, "authorization": signed });
    json!({ "x402Version": 2, "resource": bill["resource"], "accepted": bill["accepts"][0], "payload": payload })
}

/// A JSON value as the payment headers carry it.
#[must_use]
pub fn header(json: &Value) -> String {
    BASE64_STANDARD.encode(json.to_string())
}

/// A good PAYMENT-SIGNATURE for the first offer of `url`; `seed` makes its nonce.
///
/// # Errors
/// `url` gives no bill, or the signer fails.
pub async fn signed_payment(url: &str, payer: &Account, seed: &str) -> Result<String> {
    let bill = bill(url).await?;
    let value = bill["accepts"][0]["amount"].as_str().context("an amount")?.parse::<U256>()?;
    let authorization = Authorization::new(payer, Counter::SELLER, value.to(), seed);
    let signature = authorization.sign(payer).await?;
    Ok(header(&payment(&bill, &authorization, &signature)))
}

/// The books by `farebox payments --json`, newest first.
///
/// # Errors
/// The command fails.
pub async fn books(setup: &Setup) -> Result<Vec<Value>> {
    let output = Command::from(setup.command(&["payments", "--json"])?).output().await?;
    ensure!(output.status.success(), "farebox payments: {}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| Ok(serde_json::from_slice(line)?)).collect()
}
