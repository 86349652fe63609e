//! A real EVM node: Foundry's anvil.

use std::{path::Path, process::Command, time::Duration};

use alloy::{
    eips::eip2718::Encodable2718,
    network::{EthereumWallet, NetworkTransactionBuilder, TransactionBuilder},
    primitives::{Address, B256, Bytes, U256, keccak256},
    providers::{DynProvider, Provider, ProviderBuilder},
    rpc::types::{TransactionReceipt, TransactionRequest},
    signers::local::PrivateKeySigner,
};
use anyhow::{Context, Result};

use crate::{Process, Tool, tool, web};

/// Base Sepolia's, so that the official clients know the token.
pub const CHAIN_ID: u64 = 84532;
/// [`CHAIN_ID`] by CAIP-2.
pub const NETWORK: &str = "eip155:84532";

const START_WITHIN: Duration = Duration::from_secs(20);
const GWEI: u128 = 1_000_000_000;
/// alloy's default for local nodes is 250 ms, which is most of a test's time.
const RECEIPT_POLL: Duration = Duration::from_millis(5);

/// A running node on a port of its own, chain id [`CHAIN_ID`], empty but for its rich unlocked account.
#[derive(Debug)]
pub struct Anvil {
    process: Process,
    url: String,
    provider: DynProvider,
    rich: Address,
}

impl Anvil {
    /// Starts anvil with `flags` besides port and chain id.
    ///
    /// # Errors
    /// anvil is not installed, or does not listen in time.
    pub async fn start(flags: &[&str]) -> Result<Self> {
        let mut command = Command::new(tool(Tool::Anvil)?);
        command.args(["--host", "127.0.0.1", "--port", "0", "--chain-id", &CHAIN_ID.to_string()]).args(flags);
        let process = Process::start("anvil", &mut command)?;
        let listens = |line: &str| line.strip_prefix("Listening on 127.0.0.1:")?.parse::<u16>().ok();
        let port = process.wait_for_line(START_WITHIN, listens).await?;
        let url = format!("http://127.0.0.1:{port}");
        let provider = provider(&url, None)?;
        let rich = *provider.get_accounts().await?.first().context("anvil has no account")?;
        Ok(Self { process, url, provider, rich })
    }

    /// The HTTP JSON-RPC address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// For calls and, from the rich account, transactions.
    #[must_use]
    pub const fn provider(&self) -> &DynProvider {
        &self.provider
    }

    /// The process, for its log and for signals such as `STOP`.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A provider that signs as `account`.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn provider_for(&self, account: &Account) -> Result<DynProvider> {
        provider(&self.url, Some(account))
    }

    /// Any JSON-RPC call, such as `anvil_mine`.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn rpc(&self, method: &'static str, params: serde_json::Value) -> Result<serde_json::Value> {
        self.provider.raw_request(method.into(), params).await.with_context(|| format!("{method} on anvil"))
    }

    /// Gives `account` this much ether, in wei.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn set_balance(&self, account: Address, wei: u128) -> Result<()> {
        self.rpc("anvil_setBalance", serde_json::json!([account, U256::from(wei)])).await.map(drop)
    }

    /// Mines `count` blocks.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn mine(&self, count: u64) -> Result<()> {
        self.rpc("anvil_mine", serde_json::json!([U256::from(count)])).await.map(drop)
    }

    /// Stops mining a block for each transaction, until [`Anvil::mine_at_once`].
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn hold_blocks(&self) -> Result<()> {
        self.rpc("evm_setAutomine", serde_json::json!([false])).await.map(drop)
    }

    /// Mines a block for each transaction again, and one for what has waited.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn mine_at_once(&self) -> Result<()> {
        self.rpc("evm_setAutomine", serde_json::json!([true])).await?;
        self.mine(1).await
    }

    /// How many transactions `account` has had mined.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn transaction_count(&self, account: Address) -> Result<u64> {
        Ok(self.provider.get_transaction_count(account).await?)
    }

    /// Sends `data` from the rich account, to `to` or as a creation, and waits for a receipt that says success.
    pub(crate) async fn transact(&self, to: Option<Address>, data: impl Into<Bytes>) -> Result<TransactionReceipt> {
        let request = TransactionRequest::default().with_from(self.rich).with_input(data.into());
        let request = match to {
            Some(to) => request.with_to(to),
            None => request.into_create(),
        };
        let sent = *self.provider.send_transaction(request).await?.tx_hash();
        let receipt = receipt_of(&self.provider, sent).await?;
        anyhow::ensure!(receipt.status(), "transaction {} reverted", receipt.transaction_hash);
        Ok(receipt)
    }

    /// Deploys `code`, followed by ABI-encoded `arguments`, from the rich account.
    ///
    /// # Errors
    /// The creation reverts.
    pub async fn deploy(&self, code: &[u8], arguments: &[u8]) -> Result<Address> {
        let receipt = self.transact(None, [code, arguments].concat()).await?;
        receipt.contract_address.context("a creation without address")
    }

    /// Signs `request` as `from`, with its next nonce and fees far above the base fee. What the request says itself stays.
    ///
    /// # Errors
    /// The node does not answer, or will not say what gas it takes.
    pub async fn sign(&self, from: &Account, request: TransactionRequest) -> Result<Bytes> {
        let mut request = request.with_from(from.address()).with_chain_id(CHAIN_ID);
        if request.nonce.is_none() {
            request = request.with_nonce(self.provider.get_transaction_count(from.address()).pending().await?);
        }
        if request.max_fee_per_gas.is_none() {
            request = request.with_max_fee_per_gas(10 * GWEI).with_max_priority_fee_per_gas(GWEI);
        }
        if request.gas.is_none() {
            // A little more than it says: a block later the same call may take more.
            let gas = self.provider.estimate_gas(request.clone()).await.context("estimate gas")?;
            request = request.with_gas_limit(gas + gas / 4);
        }
        let envelope = request.build(&EthereumWallet::from(from.signer.clone())).await?;
        Ok(envelope.encoded_2718().into())
    }

    /// Hands a signed transaction to the node, which mines it at once unless blocks are held.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn submit(&self, signed: &Bytes) -> Result<B256> {
        Ok(*self.provider.send_raw_transaction(signed).await?.tx_hash())
    }

    /// [`Anvil::submit`], and waits until it is mined, whether it succeeds or reverts.
    ///
    /// # Errors
    /// As there.
    pub async fn include(&self, signed: &Bytes) -> Result<B256> {
        let hash = self.submit(signed).await?;
        Ok(receipt_of(&self.provider, hash).await?.transaction_hash)
    }

    /// [`Anvil::sign`] and [`Anvil::include`].
    ///
    /// # Errors
    /// As those.
    pub async fn send(&self, from: &Account, request: TransactionRequest) -> Result<B256> {
        self.include(&self.sign(from, request).await?).await
    }

    /// The receipt of a mined transaction.
    ///
    /// # Errors
    /// There is none.
    pub async fn receipt(&self, transaction: B256) -> Result<TransactionReceipt> {
        let receipt = self.provider.get_transaction_receipt(transaction).await?;
        receipt.with_context(|| format!("{transaction} is not mined"))
    }

    /// The newest block's number.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn head(&self) -> Result<u64> {
        Ok(self.provider.get_block_number().await?)
    }

    /// Moves the chain's time on, and mines a block there.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn later(&self, by: Duration) -> Result<()> {
        self.rpc("evm_increaseTime", serde_json::json!([by.as_secs()])).await?;
        self.mine(1).await
    }

    /// A reorganisation: takes the newest `depth` blocks away, with their transactions, and mines one more than that in their place.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn reorganise(&self, depth: u64) -> Result<()> {
        self.rpc("anvil_rollback", serde_json::json!([depth])).await?;
        // Blocks of the same second would be the same blocks.
        self.rpc("evm_increaseTime", serde_json::json!([1])).await?;
        self.mine(depth + 1).await
    }

    /// The unlocked account that anvil starts with.
    #[must_use]
    pub const fn rich(&self) -> Address {
        self.rich
    }
}

/// Waits for a transaction's receipt. Instant mining leaves one queued now and then although its nonce is next: then a block is mined.
///
/// # Errors
/// The node does not answer, or has no receipt after 20 s.
pub(crate) async fn receipt_of(provider: &DynProvider, transaction: B256) -> Result<TransactionReceipt> {
    for look in 1..=4_000 {
        if let Some(receipt) = provider.get_transaction_receipt(transaction).await? {
            return Ok(receipt);
        }
        if look % 100 == 0 {
            provider.raw_request::<_, serde_json::Value>("evm_mine".into(), ()).await?;
        }
        tokio::time::sleep(RECEIPT_POLL).await;
    }
    anyhow::bail!("transaction {transaction} has no receipt")
}

/// A key pair of a test. The key is the hash of the name: worthless anywhere, and the same in every run.
#[derive(Clone, Debug)]
pub struct Account {
    signer: PrivateKeySigner,
}

impl Account {
    /// The account called `name`.
    ///
    /// # Errors
    /// The name's hash is no private key, which has a chance of 2^-128.
    pub fn named(name: &str) -> Result<Self> {
        let key = keccak256(format!("farebox e2e account {name}"));
        Ok(Self { signer: PrivateKeySigner::from_bytes(&key)? })
    }

    /// Its address.
    #[must_use]
    pub const fn address(&self) -> Address {
        self.signer.address()
    }

    /// Its private key, 0x and 64 hex digits.
    #[must_use]
    pub fn key(&self) -> String {
        format!("0x{}", hex::encode(self.signer.to_bytes()))
    }

    /// What signs for it.
    #[must_use]
    pub const fn signer(&self) -> &PrivateKeySigner {
        &self.signer
    }
}

fn provider(url: &str, account: Option<&Account>) -> Result<DynProvider> {
    let client = web::http_client()?;
    let url = url.parse().context("a URL")?;
    let provider = match account {
        // Nonces are asked for each time: the recommended filler counts one as used although the transaction was never sent, when its
        // gas could not be estimated, and every later one then waits for ever.
        Some(account) => ProviderBuilder::new()
            .disable_recommended_fillers()
            .with_simple_nonce_management()
            .with_gas_estimation()
            .with_chain_id(CHAIN_ID)
            .wallet(EthereumWallet::from(account.signer.clone()))
            .connect_reqwest(client, url)
            .erased(),
        None => ProviderBuilder::new().connect_reqwest(client, url).erased(),
    };
    provider.client().set_poll_interval(RECEIPT_POLL);
    Ok(provider)
}

/// A JSON file of an npm package.
pub(crate) fn npm_json(relative: impl AsRef<Path>) -> Result<serde_json::Value> {
    let path = tool(Tool::NodeModules)?.join(relative);
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
}
