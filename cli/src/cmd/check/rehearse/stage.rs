//! The stage: an embedded chain for every configured one, a sample upstream, a payer with money, and the gateway of the config.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use farebox_core::{
    Access, Decimal, EvmAddress, Finality, Offer, RailName,
    ports::{Clock as _, Entropy as _},
};
use farebox_devchain::{Address, DevChain, DevChainConfig, TokenConfig, U256};
use farebox_evm::{
    ChainConfig, EvmKey, FinalityTier, LocalWallet, Pegged, RateConfig, RateSource, RpcUrl, SourceConfig,
};
use http::{HeaderName, HeaderValue, Method};

use crate::{
    cmd::check::{trial::Trial, world},
    config::{Config, Route},
    system::{OsEntropy, SystemClock},
};

/// What the payer has of every token, units, and of every coin, wei: more than any price.
const PURSE: u128 = u128::MAX >> 8;
/// What a coin is worth on the stage if the config does not fix it, dollars.
const COIN_DOLLARS: &str = "1000";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Stage {
    pub(super) trial: Trial,
    pub(super) wallet: LocalWallet,
    pub(super) client: reqwest::Client,
    calls: Arc<AtomicU64>,
    chains: Vec<DevChain>,
    /// What bills name, without a slash at the end.
    public: Option<String>,
}

/// What is paid for by one rail.
pub(super) struct Line {
    pub(super) method: Method,
    pub(super) target: String,
    /// What its first offer asks for.
    pub(super) units: u128,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) bill: Option<Vec<u8>>,
    pub(super) receipt: Option<Vec<u8>>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// Such as `402 underpaid`.
    pub(super) fn told(&self) -> String {
        format!("{} {}", self.status, self.code).trim_end().to_owned()
    }
}

impl Stage {
    pub(super) async fn set(config: &Config, chains: &[ChainConfig]) -> anyhow::Result<Self> {
        let payer = key()?;
        let (mut embedded, mut configs) = (Vec::new(), Vec::new());
        for chain in chains {
            let (node, config) = embed(chain, &payer).await?;
            embedded.push(node);
            configs.push(config);
        }
        let mut wallet = LocalWallet::new(payer, Arc::new(OsEntropy));
        for (node, chain) in embedded.iter().zip(&configs) {
            let rpc = RpcUrl::parse(&node.url())?;
            wallet = wallet.with_rpc(chain.network.clone(), &[rpc]).map_err(anyhow::Error::from_boxed)?;
        }
        let (upstream, calls) = upstream().await?;
        let config = staged(config, &upstream)?;
        let trial = Trial::start(&config, configs).await?;
        Ok(Self {
            trial,
            wallet,
            client: reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build()?,
            calls,
            chains: embedded,
            public: config.public_url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned()),
        })
    }

    /// The first route that is offered by this rail.
    pub(super) fn line(&self, config: &Config, rail: RailName) -> Option<Line> {
        let of_rail = |offers: &[Offer]| offers.iter().find(|offer| offer.rail == rail).map(|offer| offer.amount.units);
        config.routes.iter().zip(&self.trial.accesses).find_map(|(route, access)| {
            let Access::Paid(tariff) = access else { return None };
            let units = of_rail(&tariff.board.now().offers)?;
            Some(Line { method: world::target_method(route), target: sample(route)?, units })
        })
    }

    /// Sends one request to the gateway.
    pub(super) async fn send(
        &self,
        line: &Line,
        target: &str,
        headers: &[(HeaderName, HeaderValue)],
    ) -> anyhow::Result<Answer> {
        let mut request = self.client.request(line.method.clone(), format!("{}{target}", self.trial.base));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request.send().await?;
        let header = |name: &str| response.headers().get(name).map(|value| value.as_bytes().to_vec());
        let (status, bill, receipt) =
            (response.status().as_u16(), header("payment-required"), header("payment-response"));
        let body = response.bytes().await?.to_vec();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let code = problem["code"].as_str().unwrap_or_default().to_owned();
        Ok(Answer { status, code, bill, receipt, body })
    }

    /// How often the sample upstream was called.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The URL that bills name for a target.
    pub(super) fn resource(&self, target: &str) -> String {
        format!("{}{target}", self.public.as_deref().unwrap_or(&self.trial.base))
    }

    /// Ends everything.
    pub(super) async fn strike(self) -> anyhow::Result<()> {
        self.trial.stop().await?;
        for chain in self.chains {
            chain.shutdown().await;
        }
        Ok(())
    }
}

/// A path that the route matches, with a query of its own so that two requests to it differ.
fn sample(route: &Route) -> Option<String> {
    Some(format!("{}?rehearsal=1", world::sample(route)?))
}

/// A chain of the same id with the same tokens at the same addresses, and the config to use it: blocks come with transactions, so
/// one block is final, and one node is all there is.
async fn embed(chain: &ChainConfig, payer: &EvmKey) -> anyhow::Result<(DevChain, ChainConfig)> {
    let id = chain.network.evm_chain_id().context("only EVM networks can be embedded")?;
    let relayer = chain.relayer.as_ref().map(|_| key()).transpose()?;
    let mut embedded = DevChainConfig::new(id, Arc::new(|| SystemClock.now().unix_s()));
    let holders = [Some(payer.address()), relayer.as_ref().map(EvmKey::address)];
    embedded.accounts = holders.into_iter().flatten().map(|holder| (address(holder), U256::from(PURSE))).collect();
    let node = DevChain::start(embedded).await?;
    for asset in &chain.assets {
        let token = TokenConfig {
            address: Some(address(asset.address)),
            name: asset.symbol.clone(),
            symbol: asset.symbol.clone(),
            version: "2".into(),
            // The dollar tokens of known networks have six; any price fits into eighteen.
            decimals: if asset.pegged == Pegged::UsDollar { 6 } else { 18 },
        };
        node.deploy_token(&token)?;
        node.mint(address(asset.address), address(payer.address()), U256::from(PURSE))?;
    }
    let config = ChainConfig {
        rpc: vec![SourceConfig::node(RpcUrl::parse(&node.url())?)],
        quorum: None,
        confirmations: vec![FinalityTier { up_to: None, finality: Finality::Blocks(1) }],
        marked_finality: Finality::Blocks(1),
        relayer,
        ..chain.clone()
    };
    Ok((node, config))
}

/// The config with the sample upstream behind every route, and rates that stand still.
fn staged(config: &Config, upstream: &str) -> anyhow::Result<Config> {
    let mut config = config.clone();
    for route in &mut config.routes {
        route.upstream.origin = upstream.parse()?;
        (route.upstream.http2, route.upstream.ca) = (false, None);
    }
    for rate in &mut config.rates {
        let fixed = match (&rate.source, rate.min) {
            (RateSource::Fixed(dollars), _) => *dollars,
            (_, Some(min)) => min,
            (_, None) => COIN_DOLLARS.parse::<Decimal>()?,
        };
        *rate = RateConfig { source: RateSource::Fixed(fixed), ..rate.clone() };
    }
    Ok(config)
}

/// Answers everything, and counts.
async fn upstream() -> anyhow::Result<(String, Arc<AtomicU64>)> {
    let calls = Arc::new(AtomicU64::new(0));
    let counter = calls.clone();
    let served = axum::Router::new().fallback(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        async { "rehearsed\n" }
    });
    let listener =
        tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("the upstream cannot listen")?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, served).await });
    Ok((format!("http://{address}"), calls))
}

fn key() -> anyhow::Result<EvmKey> {
    let mut bytes = [0; 32];
    OsEntropy.fill(&mut bytes);
    Ok(EvmKey::from_bytes(&bytes)?)
}

fn address(of: EvmAddress) -> Address {
    Address::from(of.0)
}
