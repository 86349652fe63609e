//! From literal to resolved: what is written becomes what it means, and what contradicts itself is told.

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use farebox_core::{Access, Network, Price, RailName, RouteId, SettleWhen, Untrusted};
use farebox_evm::{AssetConfig, ChainConfig, ChainLimits, EvmKey, KNOWN_ASSETS, Pegged, RpcUrl};
use farebox_gateway::{AdmissionLimits, Limits, ReconcilerLimits, TlsFiles, UpstreamConfig, UpstreamUrl};
use ipnet::IpNet;
use toml::Spanned;
use url::Url;

use super::{
    consistency,
    literal::{
        AdmissionLiteral, ChainLiteral, FileLiteral, LogLiteral, ReconcilerLiteral, RelayerLiteral, ReplayLiteral,
        RouteLiteral, ServerLiteral, Timeout, TlsLiteral, UpstreamLiteral,
    },
    mistake::Mistakes,
    read::{Located, Notes},
    secret::{Environment, RpcTemplate, SecretRef},
    values::{AssetLiteral, FilePath, LogFormat, Match, PayTo, Symbol},
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
pub(crate) struct Chain {
    /// Of its `[[chain]]`.
    pub(crate) span: Range<usize>,
    pub(crate) network: Network,
    pub(crate) rpc: Vec<Located<RpcTemplate>>,
    pub(crate) assets: Vec<AssetConfig>,
    pub(crate) pay_to: Located<PayTo>,
    pub(crate) relayer: Located<Relayer>,
    pub(crate) confirmations: u64,
    pub(crate) limits: ChainLimits,
}

#[derive(Clone, Debug)]
pub(crate) enum Relayer {
    Key(Located<SecretRef>),
    Keystore { path: PathBuf, password: Located<SecretRef> },
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
    pub(crate) price: Price,
    pub(crate) price_span: Range<usize>,
    pub(crate) rails: Vec<RailName>,
    pub(crate) settle: SettleWhen,
    pub(crate) description: String,
    pub(crate) mime_type: String,
}

impl Config {
    /// Every chain with its secrets, in the order of [`Config::chains`]. An encrypted keystore takes some seconds of CPU.
    ///
    /// # Errors
    /// Every secret that could not be fetched or is not what it should be, at its place.
    pub(crate) fn chains_with_secrets(&self, env: Environment<'_>) -> Result<Vec<ChainConfig>, Mistakes> {
        let mut notes = Notes::default();
        let fetched: Vec<Option<ChainConfig>> = self
            .chains
            .iter()
            .enumerate()
            .map(|(index, chain)| with_secrets(index, chain, self.dir(), env, &mut notes))
            .collect();
        match fetched.into_iter().collect() {
            Some(all) if notes.list.is_empty() => Ok(all),
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

fn with_secrets(
    index: usize,
    chain: &Chain,
    dir: &Path,
    env: Environment<'_>,
    notes: &mut Notes,
) -> Option<ChainConfig> {
    let key = |name: &str| format!("chain[{index}].{name}");
    let mut noted =
        |fetched: Result<_, String>, span| fetched.map_or_else(|why| notes.wrong(span, key("rpc"), why), Some);
    let rpc: Vec<Option<RpcUrl>> = chain.rpc.iter().map(|rpc| noted(rpc.get_ref().fetch(env), rpc.span())).collect();
    let pay_to = chain.pay_to.get_ref().fetch(env);
    let pay_to = pay_to.map_or_else(|why| notes.wrong(chain.pay_to.span(), key("pay_to"), why), Some);
    let relayer = relayer_key(chain.relayer.get_ref(), dir, env).map_or_else(
        |(span, why)| notes.wrong(span.unwrap_or_else(|| chain.relayer.span()), key("relayer"), why),
        Some,
    );
    Some(ChainConfig {
        network: chain.network.clone(),
        rpc: rpc.into_iter().collect::<Option<_>>()?,
        confirmations: chain.confirmations,
        assets: chain.assets.clone(),
        pay_to: pay_to?,
        relayer: relayer?,
        limits: chain.limits.clone(),
    })
}

/// The key, or why there is none, with the place of the reference to blame if it is not the relayer as a whole.
fn relayer_key(relayer: &Relayer, dir: &Path, env: Environment<'_>) -> Result<EvmKey, (Option<Range<usize>>, String)> {
    let fetch =
        |secret: &Located<SecretRef>| secret.get_ref().fetch(dir, env).map_err(|why| (Some(secret.span()), why));
    match relayer {
        Relayer::Key(reference) => EvmKey::from_hex(&fetch(reference)?)
            .map_err(|error| (Some(reference.span()), format!("{}: {error}", reference.get_ref()))),
        Relayer::Keystore { path, password } => {
            EvmKey::from_keystore(path, &fetch(password)?).map_err(|error| (None, error.to_string()))
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
    let chains = chains(value(file.chain), dir, notes);
    let routes = routes(value(file.route), upstream.as_ref(), dir, notes);
    if let Some(routes) = &routes {
        consistency::note_conflicts(routes, notes);
    }
    if let (Some(chains), Some(routes)) = (&chains, &routes) {
        consistency::note_unpayable(chains, routes, notes);
    }
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
        public_url: value(file.public_url).map(|url| url.0),
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
        chains: chains?,
        routes: routes?,
    })
}

fn value<T>(located: Option<Located<T>>) -> Option<T> {
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
        settle_margin: value(admission.settle_margin)?.0,
        answer_timeout: value(admission.answer_timeout)?.0,
    })
}

fn resolve_reconciler(reconciler: ReconcilerLiteral) -> Option<ReconcilerLimits> {
    Some(ReconcilerLimits {
        interval: value(reconciler.interval)?.0,
        batch: u32::try_from(value(reconciler.batch)?.0).ok()?,
        question_timeout: value(reconciler.question_timeout)?.0,
    })
}

fn resolve_log(log: LogLiteral) -> Option<Log> {
    Some(Log { format: value(log.format)?, level: value(log.level)? })
}

fn chains(
    tables: Option<super::values::Tables<ChainLiteral, 32>>,
    dir: &Path,
    notes: &mut Notes,
) -> Option<Vec<Chain>> {
    let tables = tables?.0;
    let mut networks: HashMap<Network, usize> = HashMap::new();
    for (index, chain) in tables.iter().enumerate() {
        let Some(network) = &chain.get_ref().network else { continue };
        if let Some(first) = networks.insert(network.get_ref().clone(), index) {
            let what = format!("the network {} stands here twice; chain[{first}] has it", network.get_ref());
            notes.wrong::<()>(network.span(), format!("chain[{index}].network"), what);
        }
    }
    let resolved: Vec<Option<Chain>> =
        tables.into_iter().enumerate().map(|(index, chain)| resolve_chain(index, chain, dir, notes)).collect();
    resolved.into_iter().collect()
}

fn resolve_chain(index: usize, chain: Located<ChainLiteral>, dir: &Path, notes: &mut Notes) -> Option<Chain> {
    let (span, chain) = (chain.span(), chain.into_inner());
    let network = value(chain.network);
    let assets = match (&network, value(chain.assets)) {
        (Some(network), Some(list)) => assets(index, network, list.0, notes),
        _ => None,
    };
    let relayer_span = chain.relayer.as_ref().map(Spanned::span);
    let relayer = chain.relayer.and_then(|relayer| resolve_relayer(index, relayer, dir, notes));
    Some(Chain {
        span,
        network: network?,
        rpc: value(chain.rpc)?.0,
        assets: assets?,
        pay_to: chain.pay_to?,
        relayer: Located::new(relayer_span?, relayer?),
        confirmations: value(chain.confirmations)?.0,
        limits: ChainLimits {
            settle_timeout: value(chain.settle_timeout)?.0,
            rpc_timeout: value(chain.rpc_timeout)?.0,
            gas_limit_max: value(chain.gas_limit_max)?.0,
            fee_per_gas_max: value(chain.fee_gwei_max)?.0,
            gas_per_day_max: value(chain.gas_per_day_max)?.0,
            // Rounded down, to the payer's loss by less than a second: the wire has whole seconds.
            max_timeout_s: value(chain.max_timeout)?.0.as_secs(),
            watch_depth: value(chain.watch_depth)?.0,
            in_flight_max: usize::try_from(value(chain.in_flight_max)?.0).ok()?,
            lane_queue_max: usize::try_from(value(chain.lane_queue_max)?.0).ok()?,
            lane_wait: value(chain.lane_wait)?.0,
            bump_after: value(chain.bump_after)?.0,
            ..ChainLimits::default()
        },
    })
}

fn assets(
    chain: usize,
    network: &Network,
    list: Vec<Located<AssetLiteral>>,
    notes: &mut Notes,
) -> Option<Vec<AssetConfig>> {
    let mut resolved: Vec<AssetConfig> = Vec::new();
    let mut complete = true;
    for (index, literal) in list.into_iter().enumerate() {
        let (span, key) = (literal.span(), format!("chain[{chain}].assets[{index}]"));
        let asset = match literal.into_inner() {
            AssetLiteral::Known(symbol) => known_asset(network, &symbol, span.clone(), &key, notes),
            AssetLiteral::Token(token) => {
                token.address.zip(token.symbol).zip(token.dollar).map(|((a, s), d)| AssetConfig {
                    address: a.into_inner().0,
                    symbol: s.into_inner().0,
                    pegged: if d.into_inner() { Pegged::UsDollar } else { Pegged::No },
                })
            }
        };
        let Some(asset) = asset else {
            complete = false;
            continue;
        };
        if resolved.iter().any(|other| other.address == asset.address || other.symbol == asset.symbol) {
            notes.wrong::<()>(
                span,
                key,
                format!("the token {} stands here twice, by symbol or by address", asset.symbol),
            );
        }
        resolved.push(asset);
    }
    complete.then_some(resolved)
}

fn known_asset(
    network: &Network,
    symbol: &Symbol,
    span: Range<usize>,
    key: &str,
    notes: &mut Notes,
) -> Option<AssetConfig> {
    let known = farebox_evm::known_asset(network, &symbol.0);
    // The table's addresses are tested where it stands.
    if let Some(address) = known.and_then(|known| known.address.parse().ok()) {
        return Some(AssetConfig { address, symbol: symbol.0.clone(), pegged: Pegged::UsDollar });
    }
    let there: Vec<&str> =
        KNOWN_ASSETS.iter().filter(|known| known.network == network.as_str()).map(|known| known.symbol).collect();
    let what = format!("no token called {} is known on {network}", Untrusted::new(symbol.0.as_str()));
    let hint =
        "write { address = \"0x..\", symbol = \"..\", dollar = true }, dollar only if one token is one US dollar";
    let hint = if there.is_empty() { hint.to_owned() } else { format!("known there: {}; or {hint}", there.join(", ")) };
    notes.wrong_hint(span, key, what, hint)
}

fn resolve_relayer(chain: usize, relayer: Located<RelayerLiteral>, dir: &Path, notes: &mut Notes) -> Option<Relayer> {
    let at = format!("chain[{chain}].relayer");
    let (span, relayer) = (relayer.span(), relayer.into_inner());
    match (relayer.key, relayer.keystore, relayer.password) {
        (Some(key), None, None) => Some(Relayer::Key(key)),
        (None, Some(keystore), Some(password)) => {
            let FilePath(path) = keystore.into_inner();
            Some(Relayer::Keystore { path: dir.join(path), password })
        }
        (None, Some(_), None) if !notes.told(&format!("{at}.password")) => notes.wrong_hint(
            span,
            at,
            "a keystore needs its password",
            "write { keystore = \"relayer.json\", password = \"${FAREBOX_RELAYER_PASSWORD}\" }",
        ),
        // A wrong one of them leaves a hole here.
        _ if ["key", "keystore", "password"].iter().any(|key| notes.told(&format!("{at}.{key}"))) => None,
        _ => notes.wrong_hint(
            span,
            at,
            "expected either a key, or a keystore and its password",
            "write { key = \"${FAREBOX_RELAYER_KEY}\" }",
        ),
    }
}

fn routes(
    tables: Option<super::values::Tables<RouteLiteral, 10_000>>,
    upstream: Option<&UpstreamLiteral>,
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
            resolve_route(index, route, upstream, dir, notes)
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
    dir: &Path,
    notes: &mut Notes,
) -> Option<Route> {
    let (span, route) = (route.span(), route.into_inner());
    let is_free = route.free.as_ref().is_some_and(|free| *free.get_ref());
    let paid = match (&route.price, is_free) {
        (Some(price), true) => {
            let what = "a route has a price or is free, and this one says both";
            notes.wrong_hint(price.span(), format!("route[{index}].price"), what, "take out `price` or `free`")
        }
        (None, true) => Some(None),
        (Some(_), false) => resolve_paid(&route).map(Some),
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
        id: RouteId::new(value(route.id).unwrap_or_else(|| matches.get_ref().text.clone())),
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

fn resolve_paid(route: &RouteLiteral) -> Option<PaidRoute> {
    let price = route.price.as_ref()?;
    let text = |text: &Option<Located<String>>| text.as_ref().map(|text| text.get_ref().clone()).unwrap_or_default();
    Some(PaidRoute {
        price: price.get_ref().clone(),
        price_span: price.span(),
        rails: match &route.rails {
            None => vec![RailName::X402],
            Some(rails) => rails.get_ref().0.iter().map(|rail| *rail.get_ref()).collect(),
        },
        settle: *route.settle.as_ref()?.get_ref(),
        description: text(&route.description),
        mime_type: text(&route.mime_type),
    })
}
