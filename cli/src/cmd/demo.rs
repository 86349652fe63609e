//! `farebox demo`: a paid call from end to end, with chain, API, gateway and agent in this process.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use axum::{Json, Router, extract::Query, routing::get};
use farebox_agent::{Agent, Charge, Journal, PaymentMade, Policy};
use farebox_core::{
    Decimal, EvmAddress, Network, RailName,
    ports::{Clock as _, Entropy as _, Wallet as _},
};
use farebox_devchain::{Address, DevChain, DevChainConfig, TokenConfig, U256};
use farebox_evm::{EvmKey, LocalWallet, RpcUrl, checksum};
use farebox_wire::{
    transfer::decode_bill,
    x402::{PAYMENT_REQUIRED, PAYMENT_RESPONSE, decode_payment_required, decode_settlement, encode_credential},
};
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{payments, print, serve};
use crate::{
    config, logging,
    system::{OsEntropy, SystemClock},
    wiring::{self, Listening},
};

/// Base Sepolia: clients know its USDC, so that any of them can be pointed at a demo that is kept running.
const CHAIN_ID: u64 = 84532;
const USDC: [u8; 20] = [
    0x03, 0x6c, 0xbd, 0x53, 0x84, 0x2c, 0x54, 0x26, 0x63, 0x4e, 0x79, 0x29, 0x54, 0x1e, 0xc2, 0x31, 0x8f, 0x3d, 0xcf,
    0x7e,
];
const DECIMALS: u8 = 6;
/// What the agent starts with: 5 USDC.
const PURSE: u128 = 5_000_000;
const PORT: u16 = 8402;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// See a paid call from end to end: an embedded chain, a sample API, the gateway and an agent, on this machine only
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave everything running, and print lines to try
    #[arg(long)]
    keep: bool,
}

/// Runs the demo.
///
/// # Errors
/// A step did not do what it should; everything is stopped then.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    logging::start(&logging::QUIET)?;
    say("Farebox demo: one paid call from end to end. Everything runs in this process, on loopback.\n")?;
    serve::runtime()?.block_on(Box::pin(demo(args)))?;
    Ok(ExitCode::SUCCESS)
}

async fn demo(args: &Args) -> anyhow::Result<()> {
    let town = Town::build().await?;
    say(&format!(
        "\n  chain    {:<28} embedded, eip155:{CHAIN_ID}, with a USDC-like token\n  API      {:<28} a sample that knows nothing of payments\n  \
         gateway  {:<28} farebox serve, before the API: GET /v1/* costs $0.01\n  agent    {:<28} holds {} USDC, may spend $0.10 a call\n",
        town.chain.url(),
        town.api,
        town.gateway,
        short(&checksum(town.wallet.evm_address())),
        tokens(PURSE),
    ))?;
    let paid = unpaid_and_paid(&town).await?;
    replays(&town, &paid).await?;
    agent_pays(&town).await?;
    transfer_pays(&town).await?;
    books(&town)?;
    if args.keep {
        keep(&town).await?;
    }
    town.close().await
}

/// A request that was paid for, to be tried again.
struct Paid {
    url: String,
    credential: (HeaderName, HeaderValue),
}

async fn unpaid_and_paid(town: &Town) -> anyhow::Result<Paid> {
    let url = format!("{}/v1/quote?symbol=BTC", town.gateway);
    say(&format!("\n1. The bill\n   GET {url}\n"))?;
    let unpaid = town.client.get(&url).send().await?;
    let status = unpaid.status();
    let header = unpaid.headers().get(&PAYMENT_REQUIRED).cloned().context("the 402 has no bill")?;
    let problem: Value = unpaid.json().await?;
    let bill = decode_payment_required(Some(header.as_bytes()), None)?;
    let requirement = bill.requirements.first().context("the bill has no offer")?;
    let offer = &requirement.offer;
    say(&format!(
        "   {status}: {}\n   {} USDC ({} units of {}) on {} to {}, within {} s\n",
        problem["detail"].as_str().unwrap_or_default(),
        tokens(offer.amount.units),
        offer.amount.units,
        short(&offer.asset_on_wire),
        offer.network(),
        short(&offer.pay_to),
        offer.max_timeout_s
    ))?;

    say("\n2. The payment\n")?;
    let credential = town.wallet.authorize(offer, SystemClock.now()).await?;
    say(&format!(
        "   signed   an EIP-3009 authorization: {} USDC from {} to {}, nonce {}\n   sent     the same request with the header PAYMENT-SIGNATURE\n",
        tokens(credential.authorization.value),
        short(&format!("{:x}", credential.authorization.from)),
        short(&offer.pay_to),
        short(&format!("0x{}", hex::encode(credential.authorization.nonce))),
    ))?;
    let credential = encode_credential(&credential, requirement, &bill);
    let answer = town.send(&url, &credential).await?;

    say(&format!("\n3. The answer and the receipt\n   {}: {}\n", answer.status, answer.body))?;
    ensure!(answer.status == 200, "expected 200 for a paid call, found {}", answer.status);
    let receipt = decode_settlement(answer.receipt.context("the answer has no receipt")?.as_bytes())?;
    say(&format!(
        "   charged  {} USDC, transaction {}\n   chain    agent {} USDC, seller {} USDC\n",
        tokens(receipt.amount.unwrap_or_default()),
        receipt.transaction,
        town.balance(town.wallet.evm_address())?,
        town.balance(town.seller)?
    ))?;
    Ok(Paid { url, credential })
}

async fn replays(town: &Town, paid: &Paid) -> anyhow::Result<()> {
    say("\n4. The same payment again\n")?;
    let elsewhere = format!("{}/v1/quote?symbol=ETH", town.gateway);
    let refused = town.send(&elsewhere, &paid.credential).await?;
    let problem: Value = serde_json::from_str(&refused.body)?;
    say(&format!(
        "   for another URL   {} {}, refused: it is good for its own request only\n",
        refused.status,
        problem["code"].as_str().unwrap_or_default()
    ))?;
    ensure!(refused.status == 409, "expected 409 for a payment used elsewhere, found {}", refused.status);
    let calls = town.calls();
    let repeated = town.send(&paid.url, &paid.credential).await?;
    say(&format!(
        "   for the same URL  {}, the kept answer: nothing is charged, and the API was not called again ({calls} call in all)\n",
        repeated.status
    ))?;
    ensure!(repeated.status == 200 && town.calls() == calls, "a replay reached the API");
    Ok(())
}

async fn agent_pays(town: &Town) -> anyhow::Result<()> {
    say("\n5. An agent does all of that by itself\n")?;
    let url = format!("{}/v1/quote?symbol=ETH", town.gateway);
    let (payment, answer) = town.fetch(&url, RailName::X402).await?;
    say(&format!(
        "   farebox pay {url}\n   {answer}\n   paid {} USDC to {}\n",
        payment.asset.tokens(payment.offer.amount.units),
        short(&payment.offer.pay_to)
    ))
}

async fn transfer_pays(town: &Town) -> anyhow::Result<()> {
    say("\n6. The other way to pay: an ordinary transfer, from any wallet, claimed by its hash\n")?;
    let url = format!("{}/v1/quote?symbol=SOL", town.gateway);
    let body = town.client.get(&url).send().await?.bytes().await?;
    let bill = decode_bill(&body)?.context("the 402 has no bill by transfer")?.bill;
    let option = bill.options.first().context("the bill has no option")?;
    say(&format!(
        "   the bill  `transfer` in the 402: {} units of {} to {}, and a quote that goes back with the claim\n",
        option.amount.units,
        option.symbol,
        short(&checksum(option.pay_to)),
    ))?;
    let (payment, answer) = town.fetch(&url, RailName::Transfer).await?;
    let made = payment.transfer.context("the agent did not pay by transfer")?;
    say(&format!(
        "   sent      transaction {}\n   claimed   the same request with X-Payment-Hash, and X-Payment-Code signed by the payer\n   {answer}\n",
        made.transaction
    ))
}

fn books(town: &Town) -> anyhow::Result<()> {
    say("\n7. The books (farebox payments)\n\n")?;
    payments::run(payments::PaymentsArgs::default(), &town.ledger(), SystemClock.now())?;
    say(&format!("\n   and the chain agrees: the seller holds {} USDC\n", town.balance(town.seller)?))
}

async fn keep(town: &Town) -> anyhow::Result<()> {
    let config = town.dir.path().join("farebox.toml");
    let farebox = std::env::current_exe().map_or_else(|_| "farebox".to_owned(), |path| path.display().to_string());
    say(&format!(
        "\nKept running until Ctrl-C. Try:\n\n  curl -i '{0}/v1/quote?symbol=SOL'\n  curl -i '{0}/health'\n  \
         curl -s '{0}/v1/quote?symbol=SOL' | python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)[\"transfer\"], indent=2))'\n  \
         FAREBOX_WALLET_KEY={1} {3} pay '{0}/v1/quote?symbol=SOL'\n  \
         FAREBOX_WALLET_KEY={1} {3} pay --rail transfer --rpc eip155:{CHAIN_ID}={4} '{0}/v1/quote?symbol=DOT'\n  {3} --config {2} payments\n  {3} --config {2} price GET /v1/quote\n\n\
         The key is the demo agent's own, made a moment ago; its money exists on the embedded chain only.\n",
        town.gateway,
        town.agent_key,
        config.display(),
        farebox,
        town.chain.url(),
    ))?;
    serve::Stop::new()?.asked().await;
    Ok(())
}

/// Everything that runs.
struct Town {
    dir: tempfile::TempDir,
    chain: DevChain,
    api: String,
    api_calls: Arc<AtomicU64>,
    gateway: String,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<anyhow::Result<()>>,
    wallet: Arc<LocalWallet>,
    agent_key: String,
    seller: EvmAddress,
    client: reqwest::Client,
}

/// What came back.
struct Answer {
    status: u16,
    body: String,
    receipt: Option<HeaderValue>,
}

impl Town {
    async fn build() -> anyhow::Result<Self> {
        let (agent_key, agent) = key()?;
        let (relayer_key, relayer) = key()?;
        let seller = key()?.1.address();
        let mut chain = DevChainConfig::new(CHAIN_ID, Arc::new(|| SystemClock.now().unix_s()));
        // The relayer pays the gas of settlements, the agent that of its transfers.
        let holders = [relayer.address(), agent.address()];
        chain.accounts = holders.map(|holder| (Address::from(holder.0), U256::from(farebox_evm::ETHER))).to_vec();
        let chain = DevChain::start(chain).await?;
        let token = TokenConfig {
            address: Some(Address::from(USDC)),
            name: "USDC".into(),
            symbol: "USDC".into(),
            version: "2".into(),
            decimals: DECIMALS,
        };
        chain.deploy_token(&token)?;
        chain.mint(Address::from(USDC), Address::from(agent.address().0), U256::from(PURSE))?;

        let (api, api_calls) = api().await?;
        let dir = tempfile::tempdir().context("a folder for the demo cannot be made")?;
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let config = dir.path().join("farebox.toml");
        std::fs::write(&config, config_text(listen, &chain.url(), &api, seller))?;
        let wallet = LocalWallet::new(agent, Arc::new(OsEntropy));
        let network = Network::evm(CHAIN_ID);
        let wallet = wallet.with_rpc(network, &[RpcUrl::parse(&chain.url())?]).map_err(anyhow::Error::from_boxed)?;
        let (stop, stopped) = oneshot::channel();
        let (gateway, served) = serve_config(&config, &relayer_key, stopped).await?;
        Ok(Self {
            dir,
            chain,
            api,
            api_calls,
            gateway,
            stop,
            served,
            wallet: Arc::new(wallet),
            agent_key,
            seller,
            client: reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build()?,
        })
    }

    /// An agent that pays this way alone: what it paid, and the answer it got.
    async fn fetch(&self, url: &str, rail: RailName) -> anyhow::Result<(PaymentMade, String)> {
        let journal = self.dir.path().join(format!("journal-{rail}"));
        let agent = Agent::builder()
            .wallet(self.wallet.clone())
            .journal(Journal::open(&journal, SystemClock.now())?)
            .clock(Arc::new(SystemClock))
            .entropy(Arc::new(OsEntropy))
            .policy(Policy { rails: vec![rail], ..Policy::default() })
            .build()?;
        let fetched = agent.fetch(reqwest::Request::new(reqwest::Method::GET, url.parse()?)).await?;
        let (status, payment) = (fetched.response.status(), fetched.payment);
        let body = fetched.response.text().await?;
        let payment = payment.context("the agent was not asked to pay")?;
        ensure!(matches!(payment.charge, Charge::Charged { .. }), "the agent has no receipt");
        Ok((payment, format!("{status}: {body}")))
    }

    async fn send(&self, url: &str, credential: &(HeaderName, HeaderValue)) -> anyhow::Result<Answer> {
        let response = self.client.get(url).header(&credential.0, &credential.1).send().await?;
        let (status, receipt) = (response.status().as_u16(), response.headers().get(&PAYMENT_RESPONSE).cloned());
        Ok(Answer { status, receipt, body: response.text().await? })
    }

    fn calls(&self) -> u64 {
        self.api_calls.load(Ordering::Relaxed)
    }

    fn ledger(&self) -> std::path::PathBuf {
        self.dir.path().join("farebox.db")
    }

    fn balance(&self, of: EvmAddress) -> anyhow::Result<Decimal> {
        let units = self.chain.token_balance(Address::from(USDC), Address::from(of.0))?;
        Ok(tokens(u128::try_from(units).context("a balance beyond 128 bits")?))
    }

    async fn close(self) -> anyhow::Result<()> {
        // Only fails if the gateway has ended already, which the next line tells.
        let _ = self.stop.send(());
        self.served.await.context("the gateway panicked")??;
        self.chain.shutdown().await;
        Ok(())
    }
}

/// The gateway as `farebox serve` would run it with this config.
async fn serve_config(
    config: &Path,
    relayer_key: &str,
    stopped: oneshot::Receiver<()>,
) -> anyhow::Result<(String, tokio::task::JoinHandle<anyhow::Result<()>>)> {
    let config = config::load(config)?;
    let secrets = config.secrets(&|name| (name == "RELAYER_KEY").then(|| relayer_key.to_owned()))?;
    let shop = wiring::open(&config, &config.ledger, secrets).await?;
    let listening = Listening { addresses: config.listen.clone(), tls: None };
    let gateway = wiring::bind(&config, shop, listening).await?.gateway;
    let address = gateway.addresses().first().copied().context("the gateway listens nowhere")?;
    let served = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        gateway.serve(stopped).await.context("the gateway ended")
    });
    Ok((format!("http://{address}"), served))
}

fn config_text(listen: SocketAddr, rpc: &str, api: &str, seller: EvmAddress) -> String {
    format!(
        "listen = \"{listen}\"\npublic_url = \"http://{listen}\"\n\n[transfer]\n\n[server]\nworkers = 1\n\n[[chain]]\nnetwork = \"eip155:{CHAIN_ID}\"\nrpc = [\"{rpc}\"]\nassets = [\"USDC\"]\npay_to = \"{}\"\n\
         relayer = {{ key = \"${{RELAYER_KEY}}\" }}\n\n[[route]]\nmatch = \"GET /v1/*\"\nupstream = \"{api}\"\nprice = \"$0.01\"\ndescription = \"A price quote\"\n\n\
         [[route]]\nmatch = \"GET /health\"\nupstream = \"{api}\"\nfree = true\n",
        checksum(seller)
    )
}

/// The sample API: a price that is made up from the symbol, and how often it was asked.
async fn api() -> anyhow::Result<(String, Arc<AtomicU64>)> {
    let calls = Arc::new(AtomicU64::new(0));
    let counter = calls.clone();
    let quote = move |Query(query): Query<std::collections::BTreeMap<String, String>>| async move {
        let call = counter.fetch_add(1, Ordering::Relaxed) + 1;
        let symbol = query.get("symbol").cloned().unwrap_or_default();
        let cents = symbol.bytes().fold(100_u64, |sum, byte| (sum * 31 + u64::from(byte)) % 9_000_000);
        Json(json!({ "symbol": symbol, "usd": format!("{}.{:02}", cents / 100, cents % 100), "call": call }))
    };
    let router = Router::new().route("/v1/quote", get(quote)).route("/health", get(|| async { "ok\n" }));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("the API cannot listen")?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok((format!("http://{address}"), calls))
}

/// Farebox's own port if nobody has it, else any: bills name it before the gateway listens.
fn free_port() -> anyhow::Result<u16> {
    let on = |port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = on(PORT).or_else(|_| on(0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

fn key() -> anyhow::Result<(String, EvmKey)> {
    let mut bytes = [0; 32];
    OsEntropy.fill(&mut bytes);
    Ok((format!("0x{}", hex::encode(bytes)), EvmKey::from_bytes(&bytes)?))
}

fn tokens(units: u128) -> Decimal {
    Decimal::from_units(units, DECIMALS)
}

/// An address or hash that is only to be told from others.
fn short(text: &str) -> String {
    match (text.get(..8), text.get(text.len().saturating_sub(6)..)) {
        (Some(head), Some(tail)) if text.len() > 20 => format!("{head}…{tail}"),
        _ => text.to_owned(),
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(print(text)?)
}
