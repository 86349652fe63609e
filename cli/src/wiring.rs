//! Who is who: puts ledger, rails and gateway together as the config says.

use std::{collections::BTreeSet, net::SocketAddr, path::Path, sync::Arc};

use anyhow::Context as _;
use farebox_core::{
    Access, Challenge, Decimal, InstanceId, Offer, Price, Refusal, Resource, Tariff, Timestamp,
    ports::{Clock, Entropy, Ledger, Rail},
};
use farebox_evm::{ChainConfig, EvmRail};
use farebox_gateway::{Gateway, GatewayConfig, ListenerConfig, Ports, ReplayLimits, TlsFiles};
use farebox_ledger::{AssetName, SqliteLedger, SqliteOptions};

use crate::{
    config::{Config, PaidRoute, Route, read::Notes},
    system::{self, OsEntropy, SystemClock},
};

/// Proxies and servers of many kinds take a response's headers up to this size together. Source: nginx
/// `proxy_buffer_size`, Node `--max-http-header-size`.
const HEADERS_BYTES_COMMON_MAX: usize = 8 * 1024;

/// What the other headers of a 402 take, about.
const OTHER_HEADERS_BYTES: usize = 1024;

/// One run of the gateway, before it listens.
pub(crate) struct Shop {
    pub(crate) instance: InstanceId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) ledger: Arc<SqliteLedger>,
    pub(crate) rails: Vec<Arc<dyn Rail>>,
}

/// Where a gateway listens.
pub(crate) struct Listening {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) tls: Option<TlsFiles>,
}

/// Opens the ledger and connects every chain. Needs a running tokio runtime.
///
/// # Errors
/// The ledger is in use or unusable, or a chain does not answer or is not what the config says.
pub(crate) async fn open(config: &Config, ledger: &Path, chains: Vec<ChainConfig>) -> anyhow::Result<Shop> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let instance = system::instance(&*entropy);
    let options = SqliteOptions { instance: instance.clone(), answers_kept_for: config.replay.keep_for };
    let ledger = SqliteLedger::open(ledger, options, clock.now())
        .with_context(|| format!("the ledger {} cannot be used", ledger.display()))?;
    let ledger = Arc::new(ledger);
    let mut rails: Vec<Arc<dyn Rail>> = Vec::new();
    if !chains.is_empty() {
        let symbols: BTreeSet<String> =
            chains.iter().flat_map(|chain| &chain.assets).map(|asset| asset.symbol.clone()).collect();
        let rail = EvmRail::connect(chains, ledger.clone(), clock.clone()).await?;
        ledger.name_assets(names(&rail, symbols)).await.context("the ledger could not be told the tokens' names")?;
        rails.push(Arc::new(rail));
    }
    Ok(Shop { instance, clock, entropy, ledger, rails })
}

/// What people call the tokens, for whoever reads the books: the offer for one whole token has its decimals.
fn names(rail: &dyn Rail, symbols: BTreeSet<String>) -> Vec<AssetName> {
    let mut names = Vec::new();
    for symbol in symbols {
        let one = Price::Token { amount: Decimal::from_units(1, 0), symbol: symbol.clone() };
        // A token that has no such offer is read in the books as a count of its units.
        for offer in rail.offers(&one).unwrap_or_default() {
            if let Some(decimals) = offer.amount.units.checked_ilog10().and_then(|log| u8::try_from(log).ok()) {
                names.push(AssetName { asset: offer.amount.asset, symbol: symbol.clone(), decimals });
            }
        }
    }
    names
}

/// Makes every route's tariff and listens.
///
/// # Errors
/// A price that a token cannot express, a certificate that cannot be used, an address that is taken; or the ledger fails.
pub(crate) async fn bind(config: &Config, shop: Shop, listening: Listening) -> anyhow::Result<(Gateway, Vec<Access>)> {
    let accesses = accesses(config, &shop).await?;
    let routes = config.routes.iter().zip(&accesses).map(|(route, access)| route.to_gateway(access.clone())).collect();
    let Listening { addresses, tls } = listening;
    let gateway = GatewayConfig {
        listeners: addresses.into_iter().map(|address| ListenerConfig { address, tls: tls.clone() }).collect(),
        public_url: config.public_url.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
        limits: config.limits.clone(),
        workers: config.workers.unwrap_or_else(processors),
        routes,
        replay: ReplayLimits { body_bytes_max: usize::try_from(config.replay.body_bytes_max)? },
        admission: config.admission,
        reconciler: config.reconciler,
    };
    let Shop { instance, clock, entropy, ledger, rails } = shop;
    let gateway = Gateway::bind(gateway, Ports { rails, ledger, clock, entropy, instance }).await?;
    Ok((gateway, accesses))
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What every route costs, in the order of the config.
async fn accesses(config: &Config, shop: &Shop) -> anyhow::Result<Vec<Access>> {
    let mut notes = Notes::default();
    let mut accesses = Vec::with_capacity(config.routes.len());
    for (index, route) in config.routes.iter().enumerate() {
        let Some(paid) = &route.paid else {
            accesses.push(Access::Free);
            continue;
        };
        let offers = offers(&format!("route[{index}].price"), paid, &shop.rails, &mut notes);
        // The ledger is told only of prices that stand: a start that fails retires no bill.
        if notes.list.is_empty() {
            accesses.push(Access::Paid(Arc::new(tariff(route, paid, offers, &*shop.ledger, shop.clock.now()).await?)));
        }
    }
    if notes.list.is_empty() { Ok(accesses) } else { Err(config.mistakes(notes).into()) }
}

fn offers(key: &str, paid: &PaidRoute, rails: &[Arc<dyn Rail>], notes: &mut Notes) -> Vec<Offer> {
    let mut offers = Vec::new();
    for rail in rails.iter().filter(|rail| paid.rails.contains(&rail.name())) {
        match rail.offers(&paid.price) {
            Ok(more) => offers.extend(more),
            Err(error) => {
                let why = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
                notes.wrong::<()>(paid.price_span.clone(), key, format!("{error}{why}"));
            }
        }
    }
    if offers.is_empty() && !notes.told(key) {
        notes.wrong::<()>(paid.price_span.clone(), key, format!("nothing configured can be charged {}", paid.price));
    }
    offers
}

async fn tariff(
    route: &Route,
    paid: &PaidRoute,
    offers: Vec<Offer>,
    ledger: &dyn Ledger,
    now: Timestamp,
) -> anyhow::Result<Tariff> {
    let earlier = ledger
        .exchange_offers(&route.id, &offers, now)
        .await
        .with_context(|| format!("the offers of route {} could not be remembered", route.id))?;
    let longest = earlier.iter().map(|offer| offer.max_timeout_s).max().unwrap_or(0);
    Ok(Tariff {
        route: route.id.clone(),
        price: paid.price.clone(),
        offers: offers.into(),
        earlier_offers: earlier.into(),
        earlier_until: now.plus(std::time::Duration::from_secs(longest)),
        settle: paid.settle,
        description: paid.description.as_str().into(),
        mime_type: paid.mime_type.as_str().into(),
    })
}

/// The bytes that the headers of this tariff's 402 take together, if that is more than common proxies pass on.
pub(crate) fn oversized_headers(config: &Config, route: &Route, tariff: &Tariff) -> Option<usize> {
    let origin = config.public_url.as_ref().map_or("https://some-host-name.example", |url| url.as_str());
    let challenge = Challenge {
        resource: Resource {
            url: format!("{origin}{}", route.matches.pattern.as_str()),
            description: tariff.description.clone(),
            mime_type: tariff.mime_type.clone(),
        },
        offers: tariff.offers.clone(),
        refusal: Refusal::payment("payment_required", ""),
    };
    let bytes = farebox_wire::x402::encode_payment_required(&challenge).len() + OTHER_HEADERS_BYTES;
    (bytes > HEADERS_BYTES_COMMON_MAX).then_some(bytes)
}
