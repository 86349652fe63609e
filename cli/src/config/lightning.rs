//! `[lightning]` and what a route says of tokens, from literal to resolved.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use farebox_core::{BitcoinNetwork, Decimal, Grant, Price, RailName, RouteId, TokenScope, TokenTerms};
use farebox_wire::l402::service_name;
use toml::{Spanned, de::DeValue};
use url::Url;

use super::{
    literal::RouteLiteral,
    read::{
        Absent::{Default, Means, Refused},
        At, Literal, Located, Notes, found, keys,
    },
    resolve::value,
    secret::{SecretRef, Template},
    values::{Count, FilePath, Many, Millis, words},
};

/// How long what an invoice buys may be used.
pub(crate) type TokenTime = Millis<1_000, 31_536_000_000>;

/// What one invoice buys, calls.
pub(crate) type Calls = Count<1, 1_000_000>;

/// Symbols of prices that an invoice is made over, and how many decimals of theirs an invoice can express.
const SYMBOLS: [(&str, u8); 2] = [("sat", 3), ("msat", 0)];

/// The coin whose rate turns a price in dollars into satoshis.
const BTC: &str = "BTC";

words!(
    BitcoinNetwork,
    "bitcoin" => Self::Bitcoin, "testnet" => Self::Testnet, "testnet4" => Self::Testnet4, "signet" => Self::Signet,
    "regtest" => Self::Regtest,
);
words!(TokenScope, "route" => Self::Route, "request" => Self::Request);

keys! {
    /// Payments by Bitcoin Lightning (L402). The node makes an invoice for each buyer; paying it buys a token, which is good for one call, for many, or for some time, as the route says.
    LightningLiteral = "[lightning]" {
        /// The Bitcoin network. A node that is on another one is refused at start.
        "network" network: BitcoinNetwork, Refused;
        /// The node that makes invoices and is paid.
        "node" node: NodeLiteral, Refused;
        /// Whether a token is believed only once the node says that its invoice is settled. Otherwise its preimage is enough, which a payer gets for the money.
        "strict" strict: bool, Default("false");
        /// How long an invoice can be paid.
        "invoice_expiry" invoice_expiry: Millis<30_000, 86_400_000>, Default("\"10m\"");
        /// An open invoice with less time left than this is not offered again, and a new one is made; shorter than `invoice_expiry`.
        "invoice_reuse" invoice_reuse: Millis<1_000, 86_400_000>, Default("\"2m\"");
        /// Invoices a minute that one client (an IPv4 address, an IPv6 /64) may have made and not pay; a quarter of them at once.
        "invoices_per_client" invoices_per_client: Count<1, 60_000>, Default("30");
        /// Invoices a minute that all clients together may have made and not pay; a quarter of them at once.
        "invoices" invoices: Count<1, 60_000>, Default("1200");
        /// How long the node may take over one answer.
        "node_timeout" node_timeout: Millis<100, 60_000>, Default("\"10s\"");
    }
}

keys! {
    /// The node behind `[lightning]`: one of these. `farebox check` says whether it answers, is on the right network and can receive.
    NodeLiteral = "node = { .. }" {
        /// LND, by its REST interface.
        "lnd" lnd: LndLiteral, Means("it is another one");
        /// Core Lightning, by clnrest.
        "cln" cln: ClnLiteral, Means("it is another one");
        /// Any wallet that speaks Nostr Wallet Connect (NIP-47): its `nostr+walletconnect://` URI, which is a secret.
        "nwc" nwc: SecretRef, Means("it is another one");
        /// A node within the gateway, for a seller who has none: `farebox lightning init` makes it.
        "ldk" ldk: LdkLiteral, Means("it is another one");
    }
}

keys! {
    /// LND. A macaroon with `invoices:read invoices:write` is enough to be paid; with `info:read offchain:read` the node also tells its network and what it can receive: `lncli bakemacaroon invoices:read invoices:write info:read offchain:read`.
    LndLiteral = "lnd = { .. }" {
        /// Its REST interface, such as `https://127.0.0.1:8080`; http only on loopback.
        "url" url: NodeUrl, Refused;
        /// The macaroon: a file as lnd writes it, or hex digits in a variable.
        "macaroon" macaroon: SecretRef, Refused;
        /// Its certificate, `tls.cert`, which is then the only one that is believed.
        "cert" cert: FilePath, Means("a certificate that the web's authorities vouch for");
    }
}

keys! {
    /// Core Lightning. A rune restricted to what the gateway asks is enough: `lightning-cli createrune restrictions='[["method=invoice","method=listinvoices","method=waitanyinvoice","method=getinfo","method=listpeerchannels"]]'`.
    ClnLiteral = "cln = { .. }" {
        /// Its clnrest interface, such as `https://127.0.0.1:3010`; http only on loopback.
        "url" url: NodeUrl, Refused;
        /// The rune.
        "rune" rune: SecretRef, Refused;
        /// Its certificate or that of its own authority, which is then the only one that is believed.
        "cert" cert: FilePath, Means("a certificate that the web's authorities vouch for");
    }
}

keys! {
    /// The node within the gateway. `farebox lightning status` says what it has and what it can receive.
    LdkLiteral = "ldk = { .. }" {
        /// Its directory, made by `farebox lightning init`. It is money: back it up, and never run it twice.
        "dir" dir: FilePath, Default("\"lightning\"");
        /// Whom it asks about the chain: `https://..` (an Esplora API), `ssl://host:50002` (an Electrum server) or `bitcoind://user:${PASSWORD}@host:8332`.
        "chain" chain: Template, Refused;
        /// Where other nodes may connect to it; it connects to them all the same.
        "listen" listen: Many<SocketAddr, 0, 8>, Default("[]");
    }
}

keys! {
    /// What one invoice of a route buys, where `calls` or `for` alone do not say enough.
    RouteTokenLiteral = "l402 = { .. }" {
        /// How many calls one invoice buys.
        "calls" calls: Calls, Means("1, unless `for` is there");
        /// How long a token can be used, as often as its holder likes.
        "for" time: TokenTime, Means("`calls` says how often");
        /// What one invoice costs.
        "price" price: Price, Means("the route's price times `calls`");
        /// Whether a token is good for every request to the route, or only for the method, path and query it was sold for.
        "bind" bind: TokenScope, Default("\"route\"");
        /// Raise it to end the tokens that were sold before: a token of another tier is refused.
        "tier" tier: Count<0, 255>, Default("0");
        /// How long the calls of a token can be made, from the end of its invoice's time on.
        "valid_for" valid_for: TokenTime, Default("\"30d\"");
    }
}

/// Where a node is: an http or https URL. Its secret is not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeUrl(pub(crate) Url);

impl Literal for NodeUrl {
    fn expected() -> String {
        "an https URL without user, query and fragment, such as \"https://127.0.0.1:8080\"; http only on loopback"
            .to_owned()
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        let wrong = |notes: &mut Notes, found: String| {
            notes.wrong(value.span(), at.path(), format!("expected {}, found {found}", Self::expected()))
        };
        let Some(url) = value.get_ref().as_str().and_then(|text| Url::parse(text).ok()) else {
            // What stands before an `@` may be a password.
            let hidden = value.get_ref().as_str().is_some_and(|text| text.contains('@'));
            return wrong(notes, if hidden { "a text that is no such URL".to_owned() } else { found(value) });
        };
        let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        let loopback = match url.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        let safe = url.scheme() == "https" || url.scheme() == "http" && loopback;
        if plain && url.fragment().is_none() && url.has_host() && safe {
            return Some(Self(url));
        }
        wrong(notes, if plain { found(value) } else { "one that has them".to_owned() })
    }
}

/// How Lightning payments are taken. Its secrets are not fetched.
#[derive(Clone, Debug)]
pub(crate) struct Lightning {
    /// Of its table.
    pub(crate) span: Range<usize>,
    pub(crate) network: BitcoinNetwork,
    pub(crate) node: Located<Node>,
    pub(crate) strict: bool,
    /// Whole seconds.
    pub(crate) invoice_expiry: Duration,
    pub(crate) invoice_reuse: Duration,
    pub(crate) invoices_per_client: u32,
    pub(crate) invoices: u32,
    pub(crate) node_timeout: Duration,
}

/// Which node, and where its secrets are.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    Lnd { url: Url, macaroon: Located<SecretRef>, cert: Option<PathBuf> },
    Cln { url: Url, rune: Located<SecretRef>, cert: Option<PathBuf> },
    Nwc { uri: Located<SecretRef> },
    Ldk { dir: PathBuf, chain: Located<Template>, listen: Vec<SocketAddr> },
}

/// What was read. `None` after noting why.
pub(super) fn resolve(lightning: Located<LightningLiteral>, dir: &Path, notes: &mut Notes) -> Option<Lightning> {
    let span = lightning.span();
    let lightning = lightning.into_inner();
    let node = lightning.node?;
    let node_span = node.span();
    let node = resolve_node(node, dir, notes);
    let (expiry, expiry_span) =
        (lightning.invoice_expiry.as_ref()?.get_ref().0, lightning.invoice_expiry.as_ref()?.span());
    if expiry.subsec_nanos() != 0 {
        return notes.wrong(expiry_span, "lightning.invoice_expiry", "an invoice lives whole seconds");
    }
    let reuse = lightning.invoice_reuse.as_ref()?;
    if reuse.get_ref().0 >= expiry {
        let what = "an invoice would never be offered again: invoice_reuse must be shorter than invoice_expiry";
        return notes.wrong(reuse.span(), "lightning.invoice_reuse", what);
    }
    Some(Lightning {
        span,
        network: value(lightning.network)?,
        node: Located::new(node_span, node?),
        strict: value(lightning.strict)?,
        invoice_expiry: expiry,
        invoice_reuse: value(lightning.invoice_reuse)?.0,
        invoices_per_client: u32::try_from(value(lightning.invoices_per_client)?.0).ok()?,
        invoices: u32::try_from(value(lightning.invoices)?.0).ok()?,
        node_timeout: value(lightning.node_timeout)?.0,
    })
}

fn resolve_node(node: Located<NodeLiteral>, dir: &Path, notes: &mut Notes) -> Option<Node> {
    let span = node.span();
    let cert = |cert: Option<Located<FilePath>>| value(cert).map(|path| dir.join(path.0));
    match node.into_inner() {
        NodeLiteral { lnd: Some(lnd), cln: None, nwc: None, ldk: None } => {
            let lnd = lnd.into_inner();
            Some(Node::Lnd { url: value(lnd.url)?.0, macaroon: lnd.macaroon?, cert: cert(lnd.cert) })
        }
        NodeLiteral { lnd: None, cln: Some(cln), nwc: None, ldk: None } => {
            let cln = cln.into_inner();
            Some(Node::Cln { url: value(cln.url)?.0, rune: cln.rune?, cert: cert(cln.cert) })
        }
        NodeLiteral { lnd: None, cln: None, nwc: Some(uri), ldk: None } => Some(Node::Nwc { uri }),
        NodeLiteral { lnd: None, cln: None, nwc: None, ldk: Some(ldk) } => {
            let ldk = ldk.into_inner();
            let listen = value(ldk.listen)?.0.into_iter().map(Spanned::into_inner).collect();
            Some(Node::Ldk { dir: dir.join(value(ldk.dir)?.0), chain: ldk.chain?, listen })
        }
        // One that was wrong leaves a hole here.
        NodeLiteral { lnd: None, cln: None, nwc: None, ldk: None }
            if notes.list.iter().any(|mistake| mistake.key.starts_with("lightning.node.")) =>
        {
            None
        }
        _ => notes.wrong_hint(
            span,
            "lightning.node",
            "a node is one of lnd, cln, nwc and ldk",
            "write node = { lnd = { url = \"https://127.0.0.1:8080\", macaroon = \"file:farebox.macaroon\", cert = \"tls.cert\" } }",
        ),
    }
}

/// What one invoice of a route buys, once its rails are known.
#[derive(Clone, Debug)]
pub(super) struct RouteToken {
    /// Where its price is said.
    pub(super) price_span: Range<usize>,
    pub(super) terms: TokenTerms,
}

/// What the route says of tokens, if it takes the rail. `None` after noting why.
pub(super) fn token(
    index: usize,
    route: &RouteLiteral,
    id: &RouteId,
    rails: &[RailName],
    notes: &mut Notes,
) -> Option<Option<RouteToken>> {
    let at = |key: &str| format!("route[{index}].{key}");
    let table = route.l402.as_ref().map(Located::get_ref);
    let said = [
        ("calls", route.calls.as_ref().map(Located::span)),
        ("for", route.time.as_ref().map(Located::span)),
        ("l402", route.l402.as_ref().map(Located::span)),
    ];
    let said: Vec<(&str, Range<usize>)> = said.into_iter().filter_map(|(key, span)| Some((key, span?))).collect();
    if !rails.contains(&RailName::L402) {
        for (key, span) in said {
            let what = format!("`{key}` says what a Lightning invoice buys, and this route does not take l402");
            notes.wrong_hint::<()>(span, at(key), what, "add \"l402\" to its rails, and a [lightning] table");
        }
        return Some(None);
    }
    let (calls, time) = (one_of(&route.calls, table.map(|t| &t.calls)), one_of(&route.time, table.map(|t| &t.time)));
    let grant = match (calls, time) {
        (Said::Once(_), Said::Once(time)) => {
            return notes.wrong(time.span(), at("for"), "an invoice buys a number of calls or some time, not both");
        }
        (Said::Twice(second), _) => {
            return notes.wrong(second, at("l402.calls"), "`calls` stands here twice");
        }
        (_, Said::Twice(second)) => {
            return notes.wrong(second, at("l402.for"), "`for` stands here twice");
        }
        (Said::Once(calls), Said::Never) => {
            Grant::Calls(u32::try_from(calls.get_ref().0).ok().and_then(NonZeroU32::new)?)
        }
        (Said::Never, Said::Once(time)) => Grant::For(time.get_ref().0),
        (Said::Never, Said::Never) => Grant::default(),
    };
    let span = said.first().map(|(_, span)| span.clone());
    let (price, price_span) = price(index, route, &grant, rails, span.as_ref(), notes)?;
    let literal = table.cloned();
    let defaults = || Some((TokenScope::default(), 0, VALID_FOR_DEFAULT));
    let (scope, tier, valid_for) = match literal {
        None => defaults()?,
        Some(literal) => {
            (value(literal.bind)?, u8::try_from(value(literal.tier)?.0).ok()?, value(literal.valid_for)?.0)
        }
    };
    let terms = TokenTerms { grant, price, service: service_name(id), tier, scope, valid_for };
    Some(Some(RouteToken { price_span, terms }))
}

/// As the table says it for routes that write one.
const VALID_FOR_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);

enum Said<'a, T> {
    Never,
    Once(&'a Located<T>),
    Twice(Range<usize>),
}

/// A key that may stand in the route or in its table.
fn one_of<'a, T>(route: &'a Option<Located<T>>, table: Option<&'a Option<Located<T>>>) -> Said<'a, T> {
    match (route, table.and_then(Option::as_ref)) {
        (None, None) => Said::Never,
        (Some(said), None) | (None, Some(said)) => Said::Once(said),
        (Some(_), Some(second)) => Said::Twice(second.span()),
    }
}

/// What one invoice costs: what is said, or the route's price for every call that it buys.
fn price(
    index: usize,
    route: &RouteLiteral,
    grant: &Grant,
    rails: &[RailName],
    span: Option<&Range<usize>>,
    notes: &mut Notes,
) -> Option<(Price, Range<usize>)> {
    if let Some(price) = route.l402.as_ref().and_then(|table| table.get_ref().price.as_ref()) {
        return Some((price.get_ref().clone(), price.span()));
    }
    let one = route.price.as_ref()?;
    let total = match grant {
        Grant::Calls(calls) => times(one.get_ref(), *calls),
        // The price of a call, by the other rails, is none of an hour.
        Grant::For(_) if rails.len() > 1 => {
            let at = span.cloned().unwrap_or_else(|| one.span());
            let what = "what the time costs is not said: the route's price is that of one call, by its other rails";
            let hint = "write l402 = { for = \"1h\", price = \"..\" }, or rails = [\"l402\"]";
            return notes.wrong_hint(at, format!("route[{index}].for"), what, hint);
        }
        Grant::For(_) => Some(one.get_ref().clone()),
    };
    match total {
        Some(total) => Some((total, one.span())),
        None => notes.wrong(one.span(), format!("route[{index}].price"), "so many calls cost more than there is"),
    }
}

/// A price so many times. `None` if it is more than can be written.
fn times(price: &Price, calls: NonZeroU32) -> Option<Price> {
    const DECIMALS: u8 = 18;
    let times = |amount: &Decimal| {
        let units = amount.to_units(DECIMALS).ok()?.checked_mul(u128::from(calls.get()))?;
        Some(Decimal::from_units(units, DECIMALS))
    };
    Some(match price {
        Price::Usd(amount) => Price::Usd(times(amount)?),
        Price::Token { amount, symbol } => Price::Token { amount: times(amount)?, symbol: symbol.clone() },
    })
}

/// Whether prices of this kind can be asked for by an invoice at all.
pub(super) fn is_chargeable(price: &Price) -> bool {
    match price {
        Price::Usd(_) => true,
        Price::Token { symbol, .. } => SYMBOLS.iter().any(|(name, _)| name == symbol),
    }
}

/// Why this price cannot be asked for by an invoice, and what to do. `rated`: whether a coin has a rate in dollars.
pub(super) fn why_unpayable(price: &Price, rated: impl Fn(&str) -> bool) -> Option<(String, &'static str)> {
    match price {
        Price::Usd(_) if rated(BTC) => None,
        Price::Usd(_) => {
            let what = format!("an invoice over {price} needs to know what a bitcoin is worth");
            Some((
                what,
                "add a [[rate]] with symbol = \"BTC\", or say what an invoice costs: l402 = { price = \"10 sat\" }",
            ))
        }
        Price::Token { amount, symbol } => match SYMBOLS.iter().find(|(name, _)| name == symbol) {
            None => {
                let what = format!("an invoice cannot be made over {price}");
                Some((what, "prices by Lightning are in sat, msat or dollars: l402 = { price = \"10 sat\" }"))
            }
            Some((_, decimals)) => {
                let error = amount.to_units(*decimals).err()?;
                Some((
                    format!("an invoice cannot be made over {price}: {error}"),
                    "1 sat is 1000 msat, and less cannot be paid",
                ))
            }
        },
    }
}
