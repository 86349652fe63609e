//! From literal to resolved: what is written becomes what it means, and what contradicts itself is told.

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use farebox_core::{Access, FeeTerms, Pricing, RailName, RouteId, SettleWhen, Untrusted};
use farebox_evm::{ChainConfig, RateConfig};
use farebox_gateway::{AdmissionLimits, Limits, ReconcilerLimits, TlsFiles, UpstreamConfig, UpstreamUrl};
use farebox_wire::transfer::TransferTimes;
use ipnet::IpNet;
use toml::Spanned;
use url::Url;

use super::{
    chains::{self, Chain},
    consistency,
    lightning::{self, Lightning},
    literal::{
        AdmissionLiteral, FileLiteral, LogLiteral, ReconcilerLiteral, ReplayLiteral, RouteLiteral, ServerLiteral,
        Timeout, TlsLiteral, UpstreamLiteral,
    },
    mistake::Mistakes,
    money::TransferLiteral,
    node::NodeSource,
    rates,
    read::{Located, Notes},
    secret::Environment,
    values::{LogFormat, Match},
};

/// A config without mistakes. Paths are absolute or relative to where the process started.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) source: Source,
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) public_url: Option<Url>,
    pub(crate) ledger: PathBuf,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) tls: Option<TlsFiles>,
    /// `None`: one a processor.
    pub(crate) workers: Option<usize>,
    pub(crate) limits: Limits,
    pub(crate) replay: Replay,
    pub(crate) admission: AdmissionLimits,
    pub(crate) reconciler: ReconcilerLimits,
    pub(crate) log: Log,
    /// Where metrics and health are told; `None`: nowhere.
    pub(crate) admin: Option<SocketAddr>,
    /// Where the audit log is also written.
    pub(crate) audit_file: Option<PathBuf>,
    /// `None`: transfers are not taken.
    pub(crate) transfer: Option<TransferTimes>,
    /// `None`: Lightning payments are not taken.
    pub(crate) lightning: Option<Lightning>,
    /// How often prices are made again.
    pub(crate) reprice_every: Duration,
    pub(crate) rates: Vec<RateConfig>,
    pub(crate) chains: Vec<Chain>,
    pub(crate) routes: Vec<Route>,
}

/// Where a config came from, to tell later mistakes at their place.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.fmt(f)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Replay {
    pub(crate) body_bytes_max: u64,
    pub(crate) keep_for: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    pub(crate) level: tracing::Level,
}

#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// Of its `match`.
    pub(crate) span: Range<usize>,
    pub(crate) id: RouteId,
    /// Methods and path pattern.
    pub(crate) matches: Match,
    pub(crate) upstream: UpstreamConfig,
    pub(crate) request_body_bytes_max: Option<u64>,
    /// `None`: free.
    pub(crate) paid: Option<PaidRoute>,
}

#[derive(Clone, Debug)]
pub(crate) struct PaidRoute {
    pub(crate) pricing: Pricing,
    pub(crate) price_span: Range<usize>,
    /// Where they are named, if they are.
    pub(crate) rails_span: Option<Range<usize>>,
    /// Where the price of a token is said, if tokens are sold.
    pub(crate) token_price_span: Option<Range<usize>>,
    pub(crate) settle: SettleWhen,
    pub(crate) description: String,
    pub(crate) mime_type: String,
}

/// What the parts are made of that need secrets.
#[derive(Clone, Debug)]
pub(crate) struct Secrets {
    /// In the order of [`Config::chains`].
    pub(crate) chains: Vec<ChainConfig>,
    /// If there is a `[lightning]`.
    pub(crate) node: Option<NodeSource>,
}

impl Config {
    /// Everything that needs secrets. An encrypted keystore takes some seconds of CPU.
    ///
    /// # Errors
    /// Every secret that could not be fetched or is not what it should be, at its place.
    pub(crate) fn secrets(&self, env: Environment<'_>) -> Result<Secrets, Mistakes> {
        let mut notes = Notes::default();
        let node = match &self.lightning {
            None => Some(None),
            Some(lightning) => lightning.with_secrets(self.dir(), env, &mut notes).map(Some),
        };
        let fetched: Vec<Option<ChainConfig>> = self
            .chains
            .iter()
            .enumerate()
            .map(|(index, chain)| chain.with_secrets(index, self.dir(), env, &mut notes))
            .collect();
        match (fetched.into_iter().collect(), node) {
            (Some(chains), Some(node)) if notes.list.is_empty() => Ok(Secrets { chains, node }),
            _ => Err(self.mistakes(notes)),
        }
    }

    /// Mistakes found later, told at their place in the file.
    pub(crate) fn mistakes(&self, notes: Notes) -> Mistakes {
        Mistakes::new(self.source.path.clone(), self.source.text.clone(), notes.list)
    }

    fn dir(&self) -> &Path {
        dir_of(&self.source.path)
    }
}

impl Route {
    /// The gateway's form of it, with its tariff or as a free one.
    pub(crate) fn to_gateway(&self, access: Access) -> farebox_gateway::Route {
        farebox_gateway::Route {
            id: self.id.clone(),
            methods: self.matches.methods.clone(),
            pattern: self.matches.pattern.clone(),
            upstream: self.upstream.clone(),
            access,
            request_body_bytes_max: self.request_body_bytes_max,
        }
    }
}

/// The folder that relative paths start from.
fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new(""))
}

/// Resolves what was read. `None` after noting why.
pub(super) fn resolve(path: &Path, text: &str, file: FileLiteral, notes: &mut Notes) -> Option<Config> {
    let dir = dir_of(path);
    let upstream = value(file.upstream);
    let server = value(file.server);
    let chains = chains::chains(value(file.chain), dir, notes);
    let rates = rates::rates(value(file.rate), notes);
    let public_url = value(file.public_url).map(|url| url.0);
    let told_transfer = notes.list.iter().any(|mistake| mistake.key.starts_with("transfer"));
    let transfer = match file.transfer {
        None if told_transfer => None,
        None => Some(None),
        Some(transfer) => resolve_transfer(transfer, public_url.is_some(), notes).map(Some),
    };
    let told_lightning = notes.list.iter().any(|mistake| mistake.key.starts_with("lightning"));
    let lightning = match file.lightning {
        None if told_lightning => None,
        None => Some(None),
        Some(lightning) => lightning::resolve(lightning, dir, notes).map(Some),
    };
    let configured = configured_rails(chains.as_deref(), transfer.as_ref(), lightning.as_ref());
    let routes = routes(value(file.route), upstream.as_ref(), &configured, dir, notes);
    if let Some(routes) = &routes {
        consistency::note_conflicts(routes, notes);
    }
    if let (Some(chains), Some(rates), Some(routes), Some(lightning)) = (&chains, &rates, &routes, &lightning) {
        let seller = consistency::Seller { chains, rates, lightning: lightning.as_ref() };
        consistency::note_unpayable(&seller, routes, notes);
        consistency::note_mixed_networks(&seller, routes, notes);
        consistency::note_too_fine(chains, routes, notes);
        consistency::note_unconfigured_rails(&configured, chains, routes, notes);
    }
    if let (Some(chains), Some(rates)) = (&chains, &rates) {
        consistency::note_strange_rates(chains, rates, notes);
    }
    let rates = rates.map(|rates| rates.into_iter().map(Spanned::into_inner).collect());
    let admission = value(file.admission).and_then(|literal| {
        let span = literal.lease.as_ref()?.span();
        let limits = resolve_admission(literal)?;
        if let (Some(chains), Some(routes)) = (&chains, &routes) {
            consistency::note_short_lease(&limits, span, chains, routes, notes);
            consistency::note_short_bills(&limits, chains, routes, notes);
        }
        Some(limits)
    });
    let listen = listen(value(file.listen).map(|many| many.0), notes);
    Some(Config {
        source: Source { path: path.to_owned(), text: text.to_owned() },
        listen: listen?,
        public_url,
        ledger: dir.join(value(file.ledger)?.0),
        trusted_proxies: value(file.trusted_proxies)?.0.into_iter().map(Spanned::into_inner).collect(),
        tls: match value(file.tls) {
            None => None,
            Some(tls) => Some(resolve_tls(tls, dir)?),
        },
        workers: server.as_ref()?.workers.as_ref().and_then(|count| usize::try_from(count.get_ref().0).ok()),
        limits: resolve_limits(server?)?,
        replay: resolve_replay(value(file.replay)?)?,
        admission: admission?,
        reconciler: resolve_reconciler(value(file.reconciler)?)?,
        log: resolve_log(value(file.log)?)?,
        admin: match value(file.admin) {
            None => None,
            Some(admin) => Some(value(admin.listen)?),
        },
        audit_file: value(file.audit_file).map(|path| dir.join(path.0)),
        transfer: transfer?,
        lightning: lightning?,
        reprice_every: value(value(file.pricing)?.refresh)?.0,
        rates: rates?,
        chains: chains?,
        routes: routes?,
    })
}

pub(super) fn value<T>(located: Option<Located<T>>) -> Option<T> {
    located.map(Spanned::into_inner)
}

fn listen(listen: Option<Vec<Located<SocketAddr>>>, notes: &mut Notes) -> Option<Vec<SocketAddr>> {
    let mut seen: Vec<SocketAddr> = Vec::new();
    for address in listen? {
        // Port 0 takes any free port, so two of them are two listeners.
        if seen.contains(address.get_ref()) && address.get_ref().port() != 0 {
            notes.wrong::<()>(address.span(), "listen", format!("the address {} stands here twice", address.get_ref()));
        }
        seen.push(*address.get_ref());
    }
    Some(seen)
}

fn resolve_tls(tls: TlsLiteral, dir: &Path) -> Option<TlsFiles> {
    Some(TlsFiles { cert: dir.join(value(tls.cert)?.0), key: dir.join(value(tls.key)?.0) })
}

fn resolve_limits(server: ServerLiteral) -> Option<Limits> {
    Some(Limits {
        connections_max: usize::try_from(value(server.connections_max)?.0).ok()?,
        header_bytes_max: usize::try_from(value(server.header_bytes_max)?.0).ok()?,
        headers_max: usize::try_from(value(server.headers_max)?.0).ok()?,
        header_read_timeout: value(server.header_read_timeout)?.0,
        idle_timeout: value(server.idle_timeout)?.0,
        drain_timeout: value(server.drain_timeout)?.0,
        request_body_bytes_max: value(server.request_body_bytes_max)?.0,
        streams_max: u32::try_from(value(server.streams_max)?.0).ok()?,
        tunnel_idle_timeout: value(server.tunnel_idle_timeout)?.0,
    })
}

fn resolve_replay(replay: ReplayLiteral) -> Option<Replay> {
    Some(Replay { body_bytes_max: value(replay.body_bytes_max)?.0, keep_for: value(replay.keep_for)?.0 })
}

fn resolve_admission(admission: AdmissionLiteral) -> Option<AdmissionLimits> {
    Some(AdmissionLimits {
        busy_wait: value(admission.busy_wait)?.0,
        lease: value(admission.lease)?.0,
        unsettled_per_payer_max: usize::try_from(value(admission.unsettled_per_payer_max)?.0).ok()?,
        lookups_per_minute: u32::try_from(value(admission.lookups_per_minute)?.0).ok()?,
        settle_margin: value(admission.settle_margin)?.0,
        answer_timeout: value(admission.answer_timeout)?.0,
        ..AdmissionLimits::default()
    })
}

fn resolve_reconciler(reconciler: ReconcilerLiteral) -> Option<ReconcilerLimits> {
    Some(ReconcilerLimits {
        interval: value(reconciler.interval)?.0,
        batch: u32::try_from(value(reconciler.batch)?.0).ok()?,
        question_timeout: value(reconciler.question_timeout)?.0,
    })
}

/// Quotes live as the table says, and name the public URL, never the Host that a caller sends.
fn resolve_transfer(
    transfer: Located<TransferLiteral>,
    has_public_url: bool,
    notes: &mut Notes,
) -> Option<TransferTimes> {
    let span = transfer.span();
    let transfer = transfer.into_inner();
    if !has_public_url {
        let what = "a quote names the URL that callers know, and the config does not say it";
        return notes.wrong_hint(span, "transfer", what, "add public_url = \"https://api.example\" at the top");
    }
    let times =
        TransferTimes { pay_within: value(transfer.pay_within)?.0, claim_within: value(transfer.claim_within)?.0 };
    if times.claim_within <= times.pay_within {
        let what =
            "claim_within must be longer than pay_within, or what was paid in time could come too late to be claimed";
        return notes.wrong(span, "transfer.claim_within", what);
    }
    Some(times)
}

/// The rails that the config has all parts of, in the order in which they are offered. Of a part that could not be read it is not said that
/// it is missing.
fn configured_rails(
    chains: Option<&[Chain]>,
    transfer: Option<&Option<TransferTimes>>,
    lightning: Option<&Option<Lightning>>,
) -> Vec<RailName> {
    let configured = |rail: &RailName| match rail {
        RailName::X402 => chains.is_none_or(|chains| chains.iter().any(|chain| chain.relayer.is_some())),
        RailName::L402 => lightning.is_none_or(Option::is_some),
        RailName::Transfer => transfer.is_none_or(Option::is_some),
    };
    RailName::ALL.into_iter().filter(configured).collect()
}

fn resolve_log(log: LogLiteral) -> Option<Log> {
    Some(Log { format: value(log.format)?, level: value(log.level)? })
}

fn routes(
    tables: Option<super::values::Tables<RouteLiteral, 10_000>>,
    upstream: Option<&UpstreamLiteral>,
    rails: &[RailName],
    dir: &Path,
    notes: &mut Notes,
) -> Option<Vec<Route>> {
    let tables = tables?.0;
    if tables.is_empty() {
        return notes.wrong(0..0, "route", "there is no [[route]], so every request would be answered 404");
    }
    let mut ids: HashMap<String, usize> = HashMap::new();
    let resolved: Vec<Option<Route>> = tables
        .into_iter()
        .enumerate()
        .map(|(index, route)| {
            note_second_id(index, route.get_ref(), &mut ids, notes);
            resolve_route(index, route, upstream, rails, dir, notes)
        })
        .collect();
    resolved.into_iter().collect()
}

/// Two routes of one name would share one line of the books.
fn note_second_id(index: usize, route: &RouteLiteral, ids: &mut HashMap<String, usize>, notes: &mut Notes) {
    let of_match = || route.pattern.as_ref().map(|m| (m.get_ref().text.clone(), m.span()));
    let Some((id, span)) = route.id.as_ref().map(|id| (id.get_ref().clone(), id.span())).or_else(of_match) else {
        return;
    };
    if let Some(first) = ids.insert(id.clone(), index) {
        let what = format!("the route {} stands here twice; route[{first}] has that name", Untrusted::new(id));
        notes.wrong_hint::<()>(span, format!("route[{index}]"), what, "give one of them another `id`");
    }
}

fn resolve_route(
    index: usize,
    route: Located<RouteLiteral>,
    upstream: Option<&UpstreamLiteral>,
    rails: &[RailName],
    dir: &Path,
    notes: &mut Notes,
) -> Option<Route> {
    let (span, route) = (route.span(), route.into_inner());
    let is_free = route.free.as_ref().is_some_and(|free| *free.get_ref());
    let matches = route.pattern.as_ref()?;
    let id = RouteId::new(route.id.as_ref().map_or(&matches.get_ref().text, |id| id.get_ref()).as_str());
    let paid = match (&route.price, is_free) {
        (Some(price), true) => {
            let what = "a route has a price or is free, and this one says both";
            notes.wrong_hint(price.span(), format!("route[{index}].price"), what, "take out `price` or `free`")
        }
        (None, true) => Some(None),
        (Some(_), false) => resolve_paid(index, &route, &id, rails, notes).map(Some),
        // A price that could not be read, or its key.
        (None, false) if notes.told(&format!("route[{index}].price")) => None,
        (None, false) => notes.wrong_hint(
            span,
            format!("route[{index}]"),
            "this route has no price and does not say that it is free",
            "add price = \"$0.01\", or free = true",
        ),
    };
    let matches = route.pattern?;
    let own = [route.connect_timeout, route.response_timeout, route.idle_timeout];
    Some(Route {
        span: matches.span(),
        id,
        upstream: resolve_upstream(value(route.upstream)?, own, upstream?, dir)?,
        matches: matches.into_inner(),
        request_body_bytes_max: value(route.request_body_bytes_max).map(|max| max.0),
        paid: paid?,
    })
}

/// What the route says itself, else what `[upstream]` says. `own`: connect, response and idle timeout.
fn resolve_upstream(
    origin: UpstreamUrl,
    own: [Option<Located<Timeout>>; 3],
    shared: &UpstreamLiteral,
    dir: &Path,
) -> Option<UpstreamConfig> {
    let [connect, response, idle] = own;
    let timeout = |own: Option<Located<Timeout>>, shared: &Option<Located<Timeout>>| {
        value(own).or_else(|| value(shared.clone())).map(|timeout| timeout.0)
    };
    Some(UpstreamConfig {
        origin,
        host: value(shared.host.clone())?,
        http2: value(shared.http2.clone())?,
        ca: value(shared.ca.clone()).map(|path| dir.join(path.0)),
        connect_timeout: timeout(connect, &shared.connect_timeout)?,
        response_timeout: timeout(response, &shared.response_timeout)?,
        idle_timeout: timeout(idle, &shared.idle_timeout)?,
        pool_idle_max: usize::try_from(value(shared.pool_idle_max.clone())?.0).ok()?,
        pool_idle_timeout: value(shared.pool_idle_timeout.clone())?.0,
        header_bytes_max: usize::try_from(value(shared.header_bytes_max.clone())?.0).ok()?,
    })
}

fn resolve_paid(
    index: usize,
    route: &RouteLiteral,
    id: &RouteId,
    configured: &[RailName],
    notes: &mut Notes,
) -> Option<PaidRoute> {
    let price = route.price.as_ref()?;
    let text = |text: &Option<Located<String>>| text.as_ref().map(|text| text.get_ref().clone()).unwrap_or_default();
    let rails = match &route.rails {
        None => rails_by_default(route, configured),
        Some(rails) => rails.get_ref().0.iter().map(|rail| *rail.get_ref()).collect(),
    };
    let token = lightning::token(index, route, id, &rails, notes)?;
    Some(PaidRoute {
        token_price_span: token.as_ref().map(|token| token.price_span.clone()),
        pricing: Pricing {
            price: price.get_ref().clone(),
            network_fee: FeeTerms {
                added_with_buffer_percent: match &route.network_fee {
                    None => None,
                    Some(fee) => {
                        let fee = fee.get_ref();
                        fee.include.as_ref()?.get_ref().then_some(fee.buffer.as_ref()?.get_ref().0)
                    }
                },
                share_percent_max: route.max_fee_share.as_ref().map(|share| share.get_ref().0),
            },
            rails,
            token: token.map(|token| token.terms),
        },
        price_span: price.span(),
        rails_span: route.rails.as_ref().map(Spanned::span),
        settle: *route.settle.as_ref()?.get_ref(),
        description: text(&route.description),
        mime_type: text(&route.mime_type),
    })
}

/// All that are configured; but a price in a token is none by Lightning, unless the route says what an invoice costs or buys.
fn rails_by_default(route: &RouteLiteral, configured: &[RailName]) -> Vec<RailName> {
    let of_tokens = route.l402.is_some() || route.calls.is_some() || route.time.is_some();
    let invoiced = of_tokens || route.price.as_ref().is_none_or(|price| lightning::is_chargeable(price.get_ref()));
    configured.iter().copied().filter(|rail| *rail != RailName::L402 || invoiced).collect()
}
