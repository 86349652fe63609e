//! What coins are worth in US dollars: fixed by the seller, read from a Chainlink feed, or from a page of JSON.

mod chainlink;
mod convert;
mod json;

use std::{
    collections::HashSet,
    error::Error,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use farebox_core::{
    Decimal, EvmAddress, Network, Timestamp,
    ports::{BoxError, Clock, DollarRates},
};
use parking_lot::Mutex;
use url::Url;

pub(crate) use self::convert::{fee_units, units_for, worth};
use self::{chainlink::Feed, json::Page};
use crate::node::{Agreement, Node};

/// How long one reading may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait after a failed reading; it doubles up to the maximum, and is never longer than the rate's own `refresh`.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A rate that is in use moves once the source's differs from it by more than so many of a thousand. Bills follow rates, and bills that
/// change with every reading would have the gateway remember many old ones; half a per cent is less than two exchanges differ by.
const STEP_PERMILLE: u128 = 5;

/// Where to learn what a coin is worth.
#[derive(Clone, Debug)]
pub struct RateConfig {
    /// As prices and assets name it, such as `ETH`.
    pub symbol: String,
    /// Where it is read.
    pub source: RateSource,
    /// A reading below is a fault of the source.
    pub min: Option<Decimal>,
    /// A reading above is a fault of the source.
    pub max: Option<Decimal>,
    /// A value older than this is none. The source's own time counts if it tells one.
    pub stale_after: Duration,
    /// How often it is read.
    pub refresh: Duration,
}

/// Where a rate comes from: US dollars for one whole coin.
#[derive(Clone)]
pub enum RateSource {
    /// The seller's word; never stale.
    Fixed(Decimal),
    /// A Chainlink aggregator, such as ETH / USD. Source: Chainlink `AggregatorV3Interface`.
    Chainlink {
        /// The chain it is on, which has to be configured.
        network: Network,
        /// The aggregator's contract, or its proxy.
        address: EvmAddress,
    },
    /// A page of JSON over https, or http from this machine itself.
    Http {
        /// Never printed whole: it may hold an API key.
        url: Url,
        /// Where in the page the number is, as RFC 6901 writes it: `/data/amount`.
        pointer: String,
    },
}

impl fmt::Debug for RateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(dollars) => write!(f, "Fixed({dollars})"),
            Self::Chainlink { network, address } => write!(f, "Chainlink({network}, {address:x})"),
            Self::Http { url, pointer } => {
                write!(f, "Http({}://{}/…, {pointer})", url.scheme(), url.host_str().unwrap_or_default())
            }
        }
    }
}

/// US dollars for one whole coin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Greater than zero, at most 18 digits after the point.
    pub dollars: Decimal,
    /// When the source said so.
    pub at: Timestamp,
}

/// Why there is no rate. Never taken for a rate of zero or one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NoRate {
    /// None is configured.
    #[error("no rate is configured for {symbol}")]
    Unknown {
        /// Of what.
        symbol: String,
    },
    /// The last good one is too old, or there never was one.
    #[error("the rate of {symbol} is not known; {last}")]
    Stale {
        /// Of what.
        symbol: String,
        /// How old the last one is.
        last: String,
        /// Why no newer one was read.
        #[source]
        source: Option<Arc<dyn Error + Send + Sync>>,
    },
}

/// Why rates cannot be served as configured.
#[derive(Debug, thiserror::Error)]
#[error("the rate of {symbol}: {problem}")]
pub struct RateConfigError {
    /// Of what.
    pub symbol: String,
    /// What, expected, found.
    pub problem: String,
}

impl RateConfigError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "rate_config"
    }
}

/// Every configured rate, kept up to date in the background for as long as this lives.
#[derive(Debug)]
pub struct Rates {
    entries: Vec<Entry>,
    clock: Arc<dyn Clock>,
    reading: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    config: RateConfig,
    reader: Reader,
    known: Mutex<Known>,
}

#[derive(Debug)]
enum Reader {
    Fixed(Decimal),
    Chainlink(Feed),
    Http(Page),
}

#[derive(Debug, Default)]
struct Known {
    /// The newest reading.
    read: Option<Rate>,
    /// What is served of it.
    served: Option<Decimal>,
    failed: Option<Arc<dyn Error + Send + Sync>>,
}

impl Rates {
    /// Takes the rates' configuration. They are read from when the chains are connected on, which some are read on.
    ///
    /// # Errors
    /// [`RateConfigError`]: what no reading could make good.
    pub fn start(configs: Vec<RateConfig>, clock: Arc<dyn Clock>) -> Result<Arc<Self>, RateConfigError> {
        let mut symbols = HashSet::new();
        let mut entries = Vec::with_capacity(configs.len());
        for config in configs {
            let wrong = |problem: String| RateConfigError { symbol: config.symbol.clone(), problem };
            if !symbols.insert(config.symbol.clone()) {
                return Err(wrong("is configured twice".to_owned()));
            }
            let reader = reader_of(&config).map_err(wrong)?;
            entries.push(Entry { config, reader, known: Mutex::default() });
        }
        Ok(Arc::new(Self { entries, clock, reading: AtomicBool::new(false) }))
    }

    /// No rates: every dollar token is worth its dollars, and of nothing else is it known.
    #[must_use]
    pub fn none(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { entries: Vec::new(), clock, reading: AtomicBool::new(false) })
    }

    /// Reads every rate once, and goes on reading in the background, once however often this is called. One that could not be read is
    /// told in the log, and not served. `nodes` gives the sources of a chain, and how many must agree. Needs a running tokio runtime.
    pub(crate) async fn begin(self: &Arc<Self>, nodes: impl Fn(&Network) -> Option<(Node, Agreement)>) {
        if self.reading.swap(true, Ordering::SeqCst) {
            return;
        }
        for entry in &self.entries {
            if let (Reader::Chainlink(feed), RateSource::Chainlink { network, .. }) =
                (&entry.reader, &entry.config.source)
                && let Some((node, agreement)) = nodes(network)
            {
                feed.ask_at(node, agreement);
            }
        }
        futures_util::future::join_all(self.entries.iter().map(|entry| entry.read(&*self.clock))).await;
        for (at, entry) in self.entries.iter().enumerate() {
            if !matches!(entry.reader, Reader::Fixed(_)) {
                tokio::spawn(keep(Arc::downgrade(self), at));
            }
        }
    }

    /// What one whole coin is worth: the last good reading, until it is stale.
    ///
    /// # Errors
    /// [`NoRate`].
    pub fn dollars(&self, symbol: &str) -> Result<Rate, NoRate> {
        let Some(entry) = self.entries.iter().find(|entry| entry.config.symbol == symbol) else {
            return Err(NoRate::Unknown { symbol: symbol.to_owned() });
        };
        entry.rate(self.clock.now())
    }

    /// Begins to read the rates where there are no chains: one that is read on a chain is not served. Needs a running tokio runtime.
    pub async fn begin_without_chains(self: &Arc<Self>) {
        self.begin(|_| None).await;
    }

    /// Whether a rate is configured for it.
    #[must_use]
    pub fn knows(&self, symbol: &str) -> bool {
        self.entries.iter().any(|entry| entry.config.symbol == symbol)
    }
}

impl DollarRates for Rates {
    fn dollars(&self, symbol: &str) -> Result<Decimal, BoxError> {
        Ok(Self::dollars(self, symbol)?.dollars)
    }
}

/// Reads one rate again and again, until nobody holds the rates any more.
async fn keep(rates: Weak<Rates>, at: usize) {
    let mut failures = 0u32;
    loop {
        let Some(wait) = rates.upgrade().and_then(|rates| {
            let entry = rates.entries.get(at)?;
            let failed = entry.known.lock().failed.is_some();
            failures = if failed { failures.saturating_add(1) } else { 0 };
            let retry = RETRY_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(RETRY_MAX);
            Some(if failed { retry.min(entry.config.refresh) } else { entry.config.refresh })
        }) else {
            return;
        };
        tokio::time::sleep(wait).await;
        let Some(rates) = rates.upgrade() else { return };
        if let Some(entry) = rates.entries.get(at) {
            entry.read(&*rates.clock).await;
        }
    }
}

impl Entry {
    async fn read(&self, clock: &dyn Clock) {
        let reading = match &self.reader {
            Reader::Fixed(dollars) => Ok(Rate { dollars: *dollars, at: clock.now() }),
            Reader::Chainlink(feed) => feed.read().await,
            Reader::Http(page) => page.read().await.map(|dollars| Rate { dollars, at: clock.now() }),
        };
        let reading = reading.and_then(|rate| self.within_bounds(rate, clock.now()));
        let mut known = self.known.lock();
        match reading {
            Ok(rate) => {
                if known.served.is_none_or(|served| differs(served, rate.dollars)) {
                    known.served = Some(rate.dollars);
                }
                (known.read, known.failed) = (Some(rate), None);
            }
            Err(error) => {
                tracing::warn!(symbol = self.config.symbol, error = &*error as &dyn Error, "a rate could not be read");
                known.failed = Some(Arc::from(error));
            }
        }
    }

    fn within_bounds(&self, rate: Rate, now: Timestamp) -> Result<Rate, BoxError> {
        let RateConfig { min, max, stale_after, .. } = &self.config;
        let Rate { dollars, at } = rate;
        if dollars.is_zero() {
            return Err("the source says 0".into());
        }
        if min.is_some_and(|min| dollars < min) || max.is_some_and(|max| dollars > max) {
            let bound = |bound: &Option<Decimal>| bound.map_or_else(|| "any".to_owned(), |bound| bound.to_string());
            return Err(format!("the source says {dollars}, expected {} to {}", bound(min), bound(max)).into());
        }
        // A time ahead of ours would keep a dead feed fresh.
        let at = at.min(now);
        if now.since(at) > *stale_after {
            return Err(format!("the source's own value is {} s old", now.since(at).as_secs()).into());
        }
        Ok(Rate { dollars, at })
    }

    fn rate(&self, now: Timestamp) -> Result<Rate, NoRate> {
        if let Reader::Fixed(dollars) = self.reader {
            return Ok(Rate { dollars, at: now });
        }
        let known = self.known.lock();
        let age = known.read.map(|read| now.since(read.at));
        match (known.served, known.read, age) {
            (Some(dollars), Some(read), Some(age)) if age <= self.config.stale_after => {
                Ok(Rate { dollars, at: read.at })
            }
            _ => Err(NoRate::Stale {
                symbol: self.config.symbol.clone(),
                last: age.map_or_else(
                    || "it was never read".to_owned(),
                    |age| {
                        format!(
                            "the last is {} s old, and {} s is too old",
                            age.as_secs(),
                            self.config.stale_after.as_secs()
                        )
                    },
                ),
                source: known.failed.clone(),
            }),
        }
    }
}

/// Whether a rate has moved far enough from the one that is served.
fn differs(served: Decimal, read: Decimal) -> bool {
    let (Ok(served), Ok(read)) = (served.to_units(18), read.to_units(18)) else { return true };
    served.abs_diff(read).saturating_mul(1000) > served.saturating_mul(STEP_PERMILLE)
}

fn reader_of(config: &RateConfig) -> Result<Reader, String> {
    if config.refresh.is_zero() || config.stale_after < config.refresh {
        return Err("stale_after must be as long as refresh or longer, and refresh more than zero".to_owned());
    }
    if let (Some(min), Some(max)) = (config.min, config.max)
        && min > max
    {
        return Err(format!("min is {min} and max {max}; expected min below max"));
    }
    match &config.source {
        RateSource::Fixed(dollars) if dollars.is_zero() => Err("a rate of 0 is not a rate".to_owned()),
        RateSource::Fixed(dollars) => Ok(Reader::Fixed(*dollars)),
        RateSource::Chainlink { address, .. } => Ok(Reader::Chainlink(Feed::new(*address))),
        RateSource::Http { url, pointer } => Page::new(url, pointer, READ_TIMEOUT).map(Reader::Http),
    }
}
