//! What single keys say well and cannot hold together.

use std::{ops::Range, time::Duration};

use farebox_core::{Access, EvmAddress, Price, Pricing, RailName, SettleWhen, Untrusted};
use farebox_evm::{NativeRole, Pegged, RateConfig, RateSource, is_test_network, known_asset};
use farebox_gateway::{AdmissionLimits, RouteTable, RouteTableError};

use super::{
    chains::Chain,
    lightning::{self, Lightning},
    read::{Located, Notes},
    resolve::{Config, PaidRoute, Route},
    values::ms_text,
};

/// Notes every route that an earlier one leaves nothing to match.
pub(super) fn note_conflicts(routes: &[Route], notes: &mut Notes) {
    let mut left: Vec<&Route> = routes.iter().collect();
    // Each round takes one route out, so that all conflicts are told and not the first alone.
    loop {
        let table = RouteTable::new(left.iter().map(|route| route.to_gateway(Access::Free)).collect());
        let Err(RouteTableError::Conflict { first, second }) = table else { return };
        let (Some(index), Some(at)) =
            (routes.iter().position(|r| r.id == second), left.iter().position(|r| r.id == second))
        else {
            return;
        };
        let what = format!(
            "this route matches what the route {} matches, and neither is more specific",
            Untrusted::new(first.as_str())
        );
        notes.wrong_hint::<()>(
            routes[index].span.clone(),
            format!("route[{index}].match"),
            what,
            "remove one, or change its `match`",
        );
        left.remove(at);
    }
}

/// By what a seller is paid.
pub(super) struct Seller<'a> {
    pub(super) chains: &'a [Chain],
    pub(super) rates: &'a [Located<RateConfig>],
    pub(super) lightning: Option<&'a Lightning>,
}

/// Notes every paid route that cannot be paid as it says.
pub(super) fn note_unpayable(seller: &Seller<'_>, routes: &[Route], notes: &mut Notes) {
    let rated = |symbol: &str| seller.rates.iter().any(|rate| rate.get_ref().symbol == symbol);
    for (index, paid) in paid(routes) {
        let Pricing { price, rails, token, .. } = &paid.pricing;
        // That there is no [lightning] is told of the rails.
        if let (Some(terms), Some(span), Some(_)) = (token, &paid.token_price_span, seller.lightning)
            && let Some((what, hint)) = lightning::why_unpayable(&terms.price, rated)
        {
            notes.wrong_hint::<()>(span.clone(), format!("route[{index}].price"), what, hint);
        }
        let in_bitcoin = lightning::is_chargeable(price) && matches!(price, Price::Token { .. });
        let key = || format!("route[{index}].price");
        match (in_bitcoin, rails.contains(&RailName::L402)) {
            (true, true) => {}
            (true, false) => {
                let what = format!("{price} is paid by Lightning, and this route does not take it");
                let hint = "add a [lightning] table, and \"l402\" to the route's rails if it names them";
                notes.wrong_hint::<()>(paid.price_span.clone(), key(), what, hint);
            }
            (false, l402) => {
                let by_chain = rails.iter().any(|rail| *rail != RailName::L402) || !l402;
                if let Some(what) = by_chain.then(|| why_unpayable(seller.chains, seller.rates, price)).flatten() {
                    notes.wrong::<()>(paid.price_span.clone(), key(), what);
                }
            }
        }
    }
}

/// Notes a shop that would take worthless money for real.
pub(super) fn note_mixed_networks(seller: &Seller<'_>, routes: &[Route], notes: &mut Notes) {
    if paid(routes).next().is_none() {
        return;
    }
    let chains = seller.chains.iter().map(|chain| {
        let real = !is_test_network(&chain.network);
        (real, chain.network.to_string(), chain.span.clone(), "chain")
    });
    let lightning = seller.lightning.iter().map(|lightning| {
        let network = lightning.network;
        (!network.is_test(), format!("Bitcoin's {network}"), lightning.span.clone(), "lightning.network")
    });
    let (real, test): (Vec<_>, Vec<_>) = chains.chain(lightning).partition(|(real, ..)| *real);
    if let (Some((_, test, span, key)), Some((_, real, ..))) = (test.first(), real.first()) {
        let what = format!(
            "{test} is a test network and {real} is not: whoever pays there gets for nothing what others pay for"
        );
        notes.wrong_hint::<()>(span.clone(), *key, what, "run one gateway for tests and another for money");
    }
}

fn paid(routes: &[Route]) -> impl Iterator<Item = (usize, &PaidRoute)> {
    routes.iter().enumerate().filter_map(|(index, route)| Some((index, route.paid.as_ref()?)))
}

fn why_unpayable(chains: &[Chain], rates: &[Located<RateConfig>], price: &Price) -> Option<String> {
    if chains.is_empty() {
        return Some(format!("nothing can be paid {price} with: there is no [[chain]]"));
    }
    match price {
        Price::Usd(_) => {
            let dollars = |chain: &&Chain| chain.assets.iter().any(|asset| asset.pegged == Pegged::UsDollar);
            let rated = |chain: &Chain| {
                let native = chain.native.as_ref().filter(|native| native.role == NativeRole::Payment);
                let symbols = chain.assets.iter().map(|asset| &asset.symbol).chain(native.map(|native| &native.symbol));
                symbols.into_iter().any(|symbol| rates.iter().any(|rate| rate.get_ref().symbol == *symbol))
            };
            let lacking = chains.iter().find(|chain| !dollars(chain) && !rated(chain))?;
            Some(format!(
                "the chain {} has no dollar token to charge {price} in; its assets need one with dollar = true, or a [[rate]]",
                lacking.network
            ))
        }
        Price::Token { symbol, .. } => {
            let native = |chain: &Chain| {
                let native = chain.native.as_ref();
                native.is_some_and(|native| native.role == NativeRole::Payment && native.symbol == *symbol)
            };
            let has =
                chains.iter().any(|chain| native(chain) || chain.assets.iter().any(|asset| asset.symbol == *symbol));
            (!has).then(|| format!("no chain has a token called {symbol}, so nothing can be charged {price}"))
        }
    }
}

/// What is configured to be paid in and yet on no bill: one line each, for a start and a check.
pub(crate) fn never_offered(config: &Config) -> Vec<String> {
    let paid: Vec<&PaidRoute> = config.routes.iter().filter_map(|route| route.paid.as_ref()).collect();
    if paid.is_empty() {
        return Vec::new();
    }
    let rated = |symbol: &str| config.rates.iter().any(|rate| rate.symbol == symbol);
    let mut told = Vec::new();
    if config.lightning.is_some() && paid.iter().all(|paid| paid.pricing.token.is_none()) {
        let what = "Lightning is configured and never offered: no route has a price that an invoice can be made over";
        told.push(format!("{what}; say what one costs, as in l402 = {{ price = \"10 sat\" }}"));
    }
    for chain in &config.chains {
        let native = chain.native.as_ref().filter(|native| native.role == NativeRole::Payment);
        let tokens = chain.assets.iter().map(|asset| (&asset.symbol, asset.pegged, chain.relayer.is_some()));
        for (symbol, pegged, by_x402) in tokens.chain(native.map(|native| (&native.symbol, Pegged::No, false))) {
            let moved = |paid: &&&PaidRoute| {
                paid.pricing.rails.iter().any(|rail| match rail {
                    RailName::X402 => by_x402,
                    RailName::Transfer => true,
                    RailName::L402 => false,
                })
            };
            let priced = |paid: &&PaidRoute| match &paid.pricing.price {
                Price::Usd(_) => pegged == Pegged::UsDollar || rated(symbol),
                Price::Token { symbol: wanted, .. } => wanted == symbol,
            };
            let movable: Vec<&&PaidRoute> = paid.iter().filter(moved).collect();
            let why = match () {
                () if movable.is_empty() => {
                    "no route takes the rail that moves it; add a [transfer] table, or take it out of assets".to_owned()
                }
                () if movable.iter().any(|paid| priced(paid)) => continue,
                () if movable.iter().any(|paid| matches!(paid.pricing.price, Price::Usd(_))) => {
                    format!("a price in dollars needs a [[rate]] with symbol = \"{symbol}\" to be charged in it")
                }
                () => "no route has a price in it".to_owned(),
            };
            told.push(format!("{symbol} on {} is configured and never offered: {why}", chain.network));
        }
    }
    told
}

/// Notes prices that a known token cannot express, which else the chain alone would tell of, at start.
pub(super) fn note_too_fine(chains: &[Chain], routes: &[Route], notes: &mut Notes) {
    for (index, paid) in routes.iter().enumerate().filter_map(|(index, route)| Some((index, route.paid.as_ref()?))) {
        let too_fine = chains.iter().flat_map(|chain| chain.assets.iter().map(move |asset| (chain, asset))).find_map(
            |(chain, asset)| {
                let amount = match &paid.pricing.price {
                    Price::Usd(dollars) if asset.pegged == Pegged::UsDollar => *dollars,
                    Price::Token { symbol, amount } if *symbol == asset.symbol => *amount,
                    _ => return None,
                };
                let known = known_asset(&chain.network, &asset.symbol)?;
                let same = known.address.parse().is_ok_and(|known: EvmAddress| known == asset.address);
                let error = amount.to_units(known.decimals).err().filter(|_| same)?;
                Some(format!(
                    "{} cannot be charged in {} on {}: {error}",
                    paid.pricing.price, asset.symbol, chain.network
                ))
            },
        );
        if let Some(what) = too_fine {
            notes.wrong::<()>(paid.price_span.clone(), format!("route[{index}].price"), what);
        }
    }
}

/// Notes rails that a route names and the config has no parts for, and chains that no rail can use.
pub(super) fn note_unconfigured_rails(configured: &[RailName], chains: &[Chain], routes: &[Route], notes: &mut Notes) {
    let lacks = |rail: &RailName| match rail {
        RailName::X402 => "no [[chain]] has a relayer to settle x402 payments with",
        RailName::Transfer => "transfers need a [transfer] table and a public_url",
        RailName::L402 => "payments by Lightning need a [lightning] table",
    };
    for (index, route) in routes.iter().enumerate() {
        let Some(paid) = &route.paid else { continue };
        for rail in paid.pricing.rails.iter().filter(|rail| !configured.contains(rail)) {
            let span = paid.rails_span.as_ref().unwrap_or(&route.span).clone();
            notes.wrong::<()>(span, format!("route[{index}].rails"), lacks(rail));
        }
    }
    if configured.contains(&RailName::Transfer) {
        return;
    }
    for (index, chain) in chains.iter().enumerate().filter(|(_, chain)| chain.relayer.is_none()) {
        let what = "this chain has no relayer, which x402 needs, and transfers are not taken: nothing can be paid here";
        let hint = "add relayer = { key = \"${FAREBOX_RELAYER_KEY}\" }, or a [transfer] table";
        notes.wrong_hint::<()>(chain.span.clone(), format!("chain[{index}].relayer"), what, hint);
    }
}

/// Notes rates that are read on a chain the config does not have.
pub(super) fn note_strange_rates(chains: &[Chain], rates: &[Located<RateConfig>], notes: &mut Notes) {
    for (index, rate) in rates.iter().enumerate() {
        let RateSource::Chainlink { network, .. } = &rate.get_ref().source else { continue };
        if !chains.iter().any(|chain| chain.network == *network) {
            let what = format!("the rate is read on {network}, and no [[chain]] is that network");
            notes.wrong::<()>(rate.span(), format!("rate[{index}].chainlink.network"), what);
        }
    }
}

/// A claim whose lease ends while its request still runs could be claimed by somebody else in the meantime.
pub(super) fn note_short_lease(
    limits: &AdmissionLimits,
    span: Range<usize>,
    chains: &[Chain],
    routes: &[Route],
    notes: &mut Notes,
) {
    let paid = routes.iter().filter(|route| route.paid.is_some());
    let upstream = paid.map(|route| route.upstream.connect_timeout + route.upstream.response_timeout).max();
    let settle = chains.iter().map(|chain| chain.limits.settle_timeout + chain.limits.lane_wait).max();
    let Some(upstream) = upstream else { return };
    // A token's call is settled before it is made.
    let settle = settle.unwrap_or_default();
    let longest = upstream + limits.answer_timeout + settle;
    if limits.lease <= longest {
        let what = format!(
            "a lease of {} may end before its request does: connect, response, answer and settle timeouts add up to {}",
            duration_text(limits.lease),
            duration_text(longest)
        );
        notes.wrong::<()>(span, "admission.lease", what);
    }
}

/// A route whose upstream may take as long as a bill lives would refuse every payment: too little of it is left to settle in.
pub(super) fn note_short_bills(limits: &AdmissionLimits, chains: &[Chain], routes: &[Route], notes: &mut Notes) {
    let Some(shortest) = chains.iter().min_by_key(|chain| chain.limits.max_timeout_s) else { return };
    let lives = Duration::from_secs(shortest.limits.max_timeout_s);
    for (index, route) in routes.iter().enumerate() {
        let upstream = match route.paid.as_ref().map(|paid| paid.settle) {
            None => continue,
            Some(SettleWhen::BeforeUpstream) => Duration::ZERO,
            Some(SettleWhen::BeforeResponse) => route.upstream.connect_timeout + route.upstream.response_timeout,
        };
        let needed = upstream + limits.settle_margin;
        if needed < lives {
            continue;
        }
        let what = format!(
            "every payment would be refused: serving and settling may take {}, and a bill of {} lives {}",
            duration_text(needed),
            shortest.network,
            duration_text(lives)
        );
        let hint =
            "raise the chain's `max_timeout`, lower the route's `response_timeout`, or settle = \"before_upstream\"";
        notes.wrong_hint::<()>(route.span.clone(), format!("route[{index}]"), what, hint);
    }
}

fn duration_text(duration: Duration) -> String {
    ms_text(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
