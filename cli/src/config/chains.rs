//! `[[chain]]` from literal to resolved, and with its secrets.

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use farebox_core::{Decimal, Finality, Network, Untrusted};
use farebox_evm::{
    AssetConfig, ChainConfig, ChainLimits, EvmKey, FinalityTier, KNOWN_ASSETS, NativeCoin, NativeRole, Pegged, Quorum,
    SecretText, SourceConfig, SourceKind,
};

use super::{
    literal::{ChainLiteral, RelayerLiteral},
    money::{Confirmations, QuorumLiteral, RpcSource, TierLiteral},
    read::{Located, Notes},
    resolve::value,
    secret::{Environment, RpcTemplate, SecretRef},
    values::{AssetLiteral, FilePath, PayTo, Symbol, Tables},
};

/// A chain whose secrets are not fetched yet.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// Of its `[[chain]]`.
    pub(crate) span: Range<usize>,
    pub(crate) network: Network,
    pub(crate) sources: Vec<Located<Source>>,
    pub(crate) quorum: Option<Quorum>,
    pub(crate) head_age_max: Duration,
    pub(crate) native: Option<NativeCoin>,
    pub(crate) assets: Vec<AssetConfig>,
    pub(crate) pay_to: Located<PayTo>,
    /// `None`: no x402 here.
    pub(crate) relayer: Option<Located<Relayer>>,
    pub(crate) confirmations: Vec<FinalityTier>,
    pub(crate) marked_finality: Finality,
    pub(crate) limits: ChainLimits,
}

/// A source of what a chain says.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) url: RpcTemplate,
    pub(crate) kind: SourceKind,
    pub(crate) key: Option<Located<SecretRef>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Relayer {
    Key(Located<SecretRef>),
    Keystore { path: PathBuf, password: Located<SecretRef> },
}

impl Chain {
    /// With its secrets; an encrypted keystore takes some seconds of CPU. `None` after noting what could not be fetched.
    pub(super) fn with_secrets(
        &self,
        index: usize,
        dir: &Path,
        env: Environment<'_>,
        notes: &mut Notes,
    ) -> Option<ChainConfig> {
        let key = |name: &str| format!("chain[{index}].{name}");
        let sources: Vec<Option<SourceConfig>> =
            self.sources.iter().map(|source| source_config(source, &key("rpc"), dir, env, notes)).collect();
        let pay_to = self.pay_to.get_ref().fetch(env);
        let pay_to = pay_to.map_or_else(|why| notes.wrong(self.pay_to.span(), key("pay_to"), why), Some);
        let relayer = match &self.relayer {
            None => Some(None),
            Some(relayer) => relayer_key(relayer.get_ref(), dir, env).map_or_else(
                |(span, why)| notes.wrong(span.unwrap_or_else(|| relayer.span()), key("relayer"), why),
                |key| Some(Some(key)),
            ),
        };
        Some(ChainConfig {
            network: self.network.clone(),
            rpc: sources.into_iter().collect::<Option<_>>()?,
            quorum: self.quorum,
            head_age_max: self.head_age_max,
            native: self.native.clone(),
            confirmations: self.confirmations.clone(),
            marked_finality: self.marked_finality,
            assets: self.assets.clone(),
            pay_to: pay_to?,
            relayer: relayer?,
            limits: self.limits.clone(),
        })
    }
}

fn source_config(
    source: &Located<Source>,
    at: &str,
    dir: &Path,
    env: Environment<'_>,
    notes: &mut Notes,
) -> Option<SourceConfig> {
    let Source { url, kind, key } = source.get_ref();
    let url = url.fetch(env).map_or_else(|why| notes.wrong(source.span(), at, why), Some)?;
    let key = match key {
        None => None,
        Some(reference) => match reference.get_ref().fetch(dir, env) {
            Ok(key) => Some(SecretText::new(key.as_str().to_owned())),
            Err(why) => return notes.wrong(reference.span(), at, why),
        },
    };
    Some(SourceConfig { url, kind: *kind, key })
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

/// Every chain. `None` after noting why.
pub(super) fn chains(tables: Option<Tables<ChainLiteral, 32>>, dir: &Path, notes: &mut Notes) -> Option<Vec<Chain>> {
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
    let relayer = match chain.relayer {
        None if notes.told(&format!("chain[{index}].relayer")) => None,
        None => Some(None),
        Some(relayer) => {
            let span = relayer.span();
            resolve_relayer(index, relayer, dir, notes).map(|relayer| Some(Located::new(span, relayer)))
        }
    };
    let confirmations = chain.confirmations.and_then(|tiers| resolve_confirmations(index, tiers, notes));
    let sources: Vec<Located<Source>> =
        value(chain.rpc)?.0.into_iter().map(|source| resolve_source(index, source, notes)).collect::<Option<_>>()?;
    let quorum = match chain.quorum {
        None => None,
        Some(quorum) => Some(resolve_quorum(index, quorum, sources.len(), notes)?),
    };
    let (assets, role) = assets?;
    let network = network?;
    let native =
        value(chain.native).map(|symbol| symbol.0).or_else(|| farebox_evm::known_native(&network).map(str::to_owned));
    if role == NativeRole::Payment && native.is_none() {
        let what = format!("the coin of {network} is taken, and nothing says what it is called");
        notes.wrong_hint::<()>(
            span.clone(),
            format!("chain[{index}].native"),
            what,
            "add native = \"ETH\", or its own name",
        );
    }
    Some(Chain {
        span,
        network,
        sources,
        quorum,
        head_age_max: value(chain.head_age_max)?.0,
        native: native.map(|symbol| NativeCoin { symbol, role }),
        assets,
        pay_to: chain.pay_to?,
        relayer: relayer?,
        confirmations: confirmations?,
        marked_finality: value(chain.confirmations_marked)?.0,
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
) -> Option<(Vec<AssetConfig>, NativeRole)> {
    let mut resolved: Vec<AssetConfig> = Vec::new();
    let mut role = NativeRole::Gas;
    let mut complete = true;
    for (index, literal) in list.into_iter().enumerate() {
        let (span, key) = (literal.span(), format!("chain[{chain}].assets[{index}]"));
        let asset = match literal.into_inner() {
            AssetLiteral::Native => {
                role = NativeRole::Payment;
                continue;
            }
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
    complete.then_some((resolved, role))
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

fn resolve_source(chain: usize, source: Located<RpcSource>, notes: &mut Notes) -> Option<Located<Source>> {
    let span = source.span();
    let source = match source.into_inner() {
        RpcSource::Node(url) => Source { url, kind: SourceKind::JsonRpc, key: None },
        RpcSource::Table(table) => Source { url: value(table.url)?, kind: value(table.kind)?, key: table.key },
    };
    if let (SourceKind::JsonRpc, Some(key)) = (source.kind, &source.key) {
        let hint = "put a node's key into its url as ${NAME}";
        return notes.wrong_hint(key.span(), format!("chain[{chain}].rpc"), "a key is for an explorer", hint);
    }
    Some(Located::new(span, source))
}

fn resolve_quorum(chain: usize, quorum: Located<QuorumLiteral>, sources: usize, notes: &mut Notes) -> Option<Quorum> {
    let span = quorum.span();
    let quorum = quorum.into_inner();
    let agree = usize::try_from(value(quorum.agree)?.0).ok()?;
    if agree > sources {
        let what =
            format!("{agree} sources have to agree, and rpc names {sources}: no payment above would ever be believed");
        return notes.wrong(span, format!("chain[{chain}].quorum"), what);
    }
    Some(Quorum { agree, above: value(quorum.above)?.0 })
}

/// Tiers in rising order; the last has no bound, so that every amount has one.
fn resolve_confirmations(
    chain: usize,
    confirmations: Located<Confirmations>,
    notes: &mut Notes,
) -> Option<Vec<FinalityTier>> {
    let (span, at) = (confirmations.span(), format!("chain[{chain}].confirmations"));
    let tiers = match confirmations.into_inner() {
        Confirmations::All(finality) => return Some(vec![FinalityTier { up_to: None, finality: finality.0 }]),
        Confirmations::Tiers(tiers) => tiers,
    };
    let last = tiers.len().saturating_sub(1);
    let mut resolved: Vec<FinalityTier> = Vec::new();
    for (index, tier) in tiers.into_iter().enumerate() {
        let TierLiteral { up_to, blocks } = tier.into_inner();
        let (up_to, finality): (Option<Decimal>, Finality) = (value(up_to).map(|up_to| up_to.0), value(blocks)?.0);
        let before = resolved.last().and_then(|tier| tier.up_to);
        let wrong = match up_to {
            None if index < last => Some("a tier without `up_to` is for all amounts and has to be the last"),
            Some(_) if index == last => Some("the last tier has no `up_to`, or larger amounts would have no rule"),
            Some(bound) if before.is_some_and(|before| bound <= before) => Some("tiers are written in rising order"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return notes.wrong_hint(span, at, wrong, "write [{ up_to = \"$1\", blocks = 1 }, { blocks = 6 }]");
        }
        resolved.push(FinalityTier { up_to, finality });
    }
    Some(resolved)
}
