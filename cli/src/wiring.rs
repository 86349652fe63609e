//! Who is who: puts ledger, rails and gateway together as the config says.

pub(crate) mod lightning;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use farebox_core::{
    Access, Challenge, InstanceId, LiveOffers, Offer, OfferBoard, RailName, Refusal, Resource, RouteId, Tariff,
    Timestamp,
    ports::{Clock, Entropy, Ledger, OfferError, Offering, QuoteKeyRotation, Rail, TokenRail, offers_by},
};
use farebox_evm::{ChainConfig, ConnectError, EvmChains, Rates, TransferParts};
use farebox_gateway::{
    BindError, Gateway, GatewayConfig, ListenerConfig, Ports, ReplayLimits, TlsFiles, Tokens, Watch,
};
use farebox_ledger::{AssetName, SqliteLedger, SqliteOptions};
use farebox_wire::transfer::{Quoter, TransferTimes};
use tracing::warn;

use self::lightning::Lightning;
use crate::{
    admin::Admin,
    config::{Config, PaidRoute, Route, Secrets, read::Notes},
    metrics::Metrics,
    system::{self, OsEntropy, SystemClock},
};

/// Proxies and servers of many kinds take a response's headers up to this size together. Source: nginx
/// `proxy_buffer_size`, Node `--max-http-header-size`.
const HEADERS_BYTES_COMMON_MAX: usize = 8 * 1024;

/// What the other headers of a 402 take, about.
const OTHER_HEADERS_BYTES: usize = 1024;

/// How old the key that quotes are sealed with may get.
const QUOTE_KEY_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// How often its age is looked at.
const QUOTE_KEY_LOOKED_AT_EVERY: Duration = Duration::from_secs(3600);

/// One run of the gateway, before it listens.
pub(crate) struct Shop {
    pub(crate) instance: InstanceId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) ledger: Arc<SqliteLedger>,
    /// The same, as the gateway sees it.
    pub(crate) books: Arc<dyn Ledger>,
    pub(crate) rails: Vec<Arc<dyn Rail>>,
    /// `None`: there are none.
    pub(crate) chains: Option<EvmChains>,
    /// `None`: transfers are not taken.
    pub(crate) quoter: Option<Arc<Quoter>>,
    /// `None`: Lightning payments are not taken.
    pub(crate) lightning: Option<Lightning>,
    /// Its rail, as the gateway sees it.
    pub(crate) tokens: Option<Arc<dyn TokenRail>>,
}

/// Where a gateway listens.
pub(crate) struct Listening {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) tls: Option<TlsFiles>,
}

/// Opens the ledger and connects every chain and the Lightning node. Needs a running tokio runtime.
///
/// # Errors
/// The ledger is in use or unusable, a chain does not answer, or a chain or the node is not what the config says.
pub(crate) async fn open(config: &Config, ledger: &Path, secrets: Secrets) -> anyhow::Result<Shop> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let instance = system::instance(&*entropy);
    let options = SqliteOptions {
        instance: instance.clone(),
        answers_kept_for: config.replay.keep_for,
        audit_file: config.audit_file.clone(),
    };
    let ledger = SqliteLedger::open(ledger, options, clock.now())
        .with_context(|| format!("the ledger {} cannot be used", ledger.display()))?;
    let ledger = Arc::new(ledger);
    let quoter = match &config.transfer {
        Some(times) => Some(Arc::new(quoter(&ledger, &*entropy, times, clock.now()).await?)),
        None => None,
    };
    let rates = Rates::start(config.rates.clone(), clock.clone())?;
    let chains = connect_chains(secrets.chains, &ledger, &clock, &rates).await?;
    let rails = chains.as_ref().map(|chains| rails(config, chains, &ledger, quoter.as_ref())).unwrap_or_default();
    let lightning = match (&config.lightning, &secrets.node) {
        (Some(settings), Some(source)) => {
            let parts = lightning::Parts { ledger: &ledger, rates, entropy: &entropy, clock: &clock };
            Some(lightning::open(config, settings, source, parts).await?)
        }
        _ => None,
    };
    let tokens = lightning.as_ref().map(|lightning| lightning.rail.clone() as Arc<dyn TokenRail>);
    Ok(Shop { instance, clock, entropy, books: ledger.clone(), ledger, rails, chains, quoter, lightning, tokens })
}

/// With the rates read, which some chains are asked for.
async fn connect_chains(
    chains: Vec<ChainConfig>,
    ledger: &Arc<SqliteLedger>,
    clock: &Arc<dyn Clock>,
    rates: &Arc<Rates>,
) -> anyhow::Result<Option<EvmChains>> {
    if chains.is_empty() {
        rates.begin_without_chains().await;
        return Ok(None);
    }
    let chains = EvmChains::connect(chains, ledger.clone(), clock.clone(), rates.clone()).await.map_err(hinted)?;
    let names = chains.assets().into_iter();
    let names = names.map(|(asset, symbol, decimals)| AssetName { asset, symbol, decimals }).collect();
    ledger.name_assets(names).await.context("the ledger could not be told the tokens' names")?;
    Ok(Some(chains))
}

/// What to do about a token that x402 cannot move.
pub(crate) const EIP3009_HINT: &str = "x402 needs EIP-3009; to take this token by transfer alone, take `relayer` out of its [[chain]] and add a [transfer] table";

/// Whether a chain's word on a token means that it takes no EIP-3009 authorizations.
pub(crate) fn needs_eip3009(message: &str) -> bool {
    ["does not answer DOMAIN_SEPARATOR()", "does not take EIP-3009"].iter().any(|part| message.contains(part))
}

/// What x402 needs of a token is told with what to do without it.
fn hinted(error: ConnectError) -> anyhow::Error {
    let hint = needs_eip3009(&error.to_string()).then_some(EIP3009_HINT);
    let error = anyhow::Error::from(error);
    match hint {
        Some(hint) => error.context(hint),
        None => error,
    }
}

/// In the order in which they are offered.
fn rails(
    config: &Config,
    chains: &EvmChains,
    ledger: &Arc<SqliteLedger>,
    quoter: Option<&Arc<Quoter>>,
) -> Vec<Arc<dyn Rail>> {
    let mut rails: Vec<Arc<dyn Rail>> = Vec::new();
    if let Some(x402) = chains.x402() {
        rails.push(Arc::new(x402));
    }
    if let (Some(quoter), Some(times)) = (quoter, &config.transfer) {
        let parts = TransferParts { quoter: quoter.clone(), ledger: ledger.clone(), times: *times };
        rails.push(Arc::new(chains.transfer(parts)));
    }
    rails
}

fn rotation(entropy: &dyn Entropy, times: &TransferTimes) -> QuoteKeyRotation {
    let mut fresh = [0; 32];
    entropy.fill(&mut fresh);
    // Longer than any quote lives: a claim that comes too late for its quote is credit only as long as we know the quote for ours.
    QuoteKeyRotation { fresh, rotate_after: QUOTE_KEY_AGE_MAX, keep_for: times.claim_within + QUOTE_KEY_AGE_MAX }
}

async fn quoter(
    ledger: &SqliteLedger,
    entropy: &dyn Entropy,
    times: &TransferTimes,
    now: Timestamp,
) -> anyhow::Result<Quoter> {
    let keys = ledger.quote_keys(rotation(entropy, times), now).await;
    Ok(Quoter::new(keys.context("the ledger gave no keys to seal quotes with")?)?)
}

/// Exchanges the key that quotes are sealed with when it is old, until it is dropped.
pub(crate) async fn keep_quote_keys_young(shop: QuoteKeys) {
    loop {
        tokio::time::sleep(QUOTE_KEY_LOOKED_AT_EVERY).await;
        let rotation = rotation(&*shop.entropy, &shop.times);
        match shop.ledger.quote_keys(rotation, shop.clock.now()).await {
            Ok(keys) => {
                if let Err(error) = shop.quoter.replace(keys) {
                    warn!(error = &error as &dyn std::error::Error, "the keys of quotes could not be exchanged");
                }
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "the keys of quotes could not be read; trying again")
            }
        }
    }
}

/// What the exchange of quote keys works with.
pub(crate) struct QuoteKeys {
    quoter: Arc<Quoter>,
    times: TransferTimes,
    ledger: Arc<SqliteLedger>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

/// What is counted of a shop whose gateway does not listen yet.
pub(crate) struct Watched {
    metrics: Metrics,
    ledger: Arc<SqliteLedger>,
    chains: Option<EvmChains>,
    lightning: Option<Lightning>,
    clock: Arc<dyn Clock>,
}

impl Watched {
    /// What the admin listener tells of.
    pub(crate) fn by(self, watch: Watch) -> Admin {
        let Self { metrics, ledger, chains, lightning, clock } = self;
        let rail = lightning.as_ref().map(|lightning| lightning.rail.clone());
        let metered = lightning.map(|lightning| (lightning.rail, lightning.meter));
        let metrics = metrics.watching(watch, chains.clone(), metered, clock.clone());
        Admin { metrics, ledger, chains, lightning: rail, clock }
    }
}

impl Shop {
    /// Has every call of the gateway to rails and books counted, if the config asks for metrics. For [`Watched::by`].
    pub(crate) fn metered(&mut self, config: &Config) -> Option<Watched> {
        config.admin?;
        let metrics = Metrics::new(self.chains.as_ref(), self.lightning.as_ref().map(|lightning| &lightning.meter));
        self.rails = self.rails.drain(..).map(|rail| metrics.rail(rail)).collect();
        self.tokens = self.tokens.take().map(|rail| metrics.token_rail(rail));
        self.books = metrics.ledger(self.books.clone());
        let (ledger, chains, clock) = (self.ledger.clone(), self.chains.clone(), self.clock.clone());
        Some(Watched { metrics, ledger, chains, lightning: self.lightning.clone(), clock })
    }

    /// For [`keep_quote_keys_young`], if transfers are taken.
    pub(crate) fn quote_keys(&self, config: &Config) -> Option<QuoteKeys> {
        Some(QuoteKeys {
            quoter: self.quoter.clone()?,
            times: config.transfer?,
            ledger: self.ledger.clone(),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
        })
    }
}

/// A gateway that listens.
pub(crate) struct Bound {
    pub(crate) gateway: Gateway,
    /// What every route costs, in the order of the config.
    pub(crate) accesses: Vec<Access>,
    /// What is not offered yet.
    pub(crate) unpriced: Vec<Unpriced>,
}

/// A rail by which a route is not offered now, though it may be in a moment.
pub(crate) struct Unpriced {
    pub(crate) route: RouteId,
    pub(crate) rail: RailName,
    pub(crate) why: OfferError,
}

impl Unpriced {
    /// What to do about it.
    pub(crate) const fn hint(&self) -> &'static str {
        match self.why {
            OfferError::FeeShare { .. } => "it is offered once the fee falls; else raise max_fee_share, or the price",
            _ => "it is offered once the [[rate]] is known; see its source and stale_after",
        }
    }
}

/// Makes every route's tariff and listens.
///
/// # Errors
/// A price that a token cannot express, a certificate that cannot be used, an address that is taken; or the ledger fails.
pub(crate) async fn bind(config: &Config, shop: Shop, listening: Listening) -> anyhow::Result<Bound> {
    let (accesses, unpriced) = accesses(config, &shop).await?;
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
        transfer: config.transfer,
        reprice_every: config.reprice_every,
    };
    let Shop { instance, clock, entropy, books: ledger, rails, tokens, quoter, lightning, .. } = shop;
    let tokens = tokens.zip(lightning).map(|(rail, lightning)| Tokens { rail, books: lightning.books });
    let gateway = Gateway::bind(gateway, Ports { rails, tokens, ledger, clock, entropy, instance, quoter }).await;
    let gateway = gateway.map_err(|error| match &error {
        BindError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            let hint =
                "somebody listens there already: another farebox, or another program; stop it, or change `listen`";
            anyhow::Error::from(error).context(hint)
        }
        _ => error.into(),
    })?;
    Ok(Bound { gateway, accesses, unpriced })
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What every route costs, in the order of the config, and what is not offered yet.
async fn accesses(config: &Config, shop: &Shop) -> anyhow::Result<(Vec<Access>, Vec<Unpriced>)> {
    let (mut notes, mut unpriced) = (Notes::default(), Vec::new());
    let rails = shop.rails.iter().map(|rail| rail.clone() as Arc<dyn Offering>);
    let offerings: Vec<_> = rails.chain(shop.tokens.iter().map(|rail| rail.clone() as Arc<dyn Offering>)).collect();
    let mut accesses = Vec::with_capacity(config.routes.len());
    for (index, route) in config.routes.iter().enumerate() {
        let Some(paid) = &route.paid else {
            accesses.push(Access::Free);
            continue;
        };
        let (offers, later) = offers(&format!("route[{index}].price"), paid, &offerings, &mut notes);
        unpriced.extend(later.into_iter().map(|(rail, why)| Unpriced { route: route.id.clone(), rail, why }));
        // The ledger is told only of prices that stand: a start that fails retires no bill.
        if notes.list.is_empty() {
            accesses.push(Access::Paid(Arc::new(tariff(route, paid, offers, &*shop.ledger, shop.clock.now()).await?)));
        }
    }
    if notes.list.is_empty() { Ok((accesses, unpriced)) } else { Err(config.mistakes(notes).into()) }
}

/// What a route is offered for now, and the rails that may offer it later.
fn offers(
    key: &str,
    paid: &PaidRoute,
    rails: &[Arc<dyn Offering>],
    notes: &mut Notes,
) -> (Vec<Offer>, Vec<(RailName, OfferError)>) {
    let (offers, failures) = offers_by(&paid.pricing, rails);
    let mut later = Vec::new();
    for (rail, error) in failures {
        match error {
            // A rate may be there in a moment, and a dear fee fall: a restart must not close a shop that would have stayed open. Until
            // then the route is sold by the other rails, or says 503.
            OfferError::NoRate { .. } | OfferError::FeeShare { .. } => later.push((rail, error)),
            // Another rail may have the asset; if none has, it is told below.
            OfferError::NoAsset { .. } => {}
            OfferError::NotExact { .. } => {
                let why = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
                notes.wrong::<()>(paid.price_span.clone(), key, format!("{error}{why}"));
            }
        }
    }
    if offers.is_empty() && later.is_empty() && !notes.told(key) {
        notes.wrong::<()>(
            paid.price_span.clone(),
            key,
            format!("nothing configured can be charged {}", paid.pricing.price),
        );
    }
    (offers, later)
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
    Ok(Tariff {
        route: route.id.clone(),
        pricing: paid.pricing.clone(),
        board: LiveOffers::new(OfferBoard::since(now, offers, earlier)),
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
        offers: tariff.board.now().offers.clone(),
        token: None,
        unavailable: Vec::new(),
        refusal: Refusal::payment("payment_required", ""),
    };
    let bill = farebox_wire::x402::encode_payment_required(&challenge).map_or(0, |bill| bill.len());
    let bytes = bill + OTHER_HEADERS_BYTES;
    (bytes > HEADERS_BYTES_COMMON_MAX).then_some(bytes)
}
