//! `farebox price`: which route and price apply to a request, by the same table that serves it.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Context as _;
use farebox_core::{Access, Grant, Price, Pricing, RailName, SettleWhen, TokenScope, Untrusted};
use farebox_evm::{Pegged, checksum};
use farebox_gateway::RouteTable;
use http::Method;
use serde::Serialize;

use super::Globals;
use crate::config::{self, Chain, Config, PaidRoute, Route, values::ms_text};

/// Say which route and price apply to a request. Needs no secret and no network. Exit code 1 if no route applies.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The method, such as GET
    method: String,
    /// The path as a client sends it, with or without a query; or a URL, of which only path and query count
    path: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the verdict.
///
/// # Errors
/// The config or the method is wrong.
pub(crate) fn run(args: &Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let method: Method = args
        .method
        .parse()
        .with_context(|| format!("expected a method such as GET, found {}", Untrusted::new(args.method.as_str())))?;
    let config = config::load(&globals.config)?;
    let verdict = verdict(&config, &method, target_of(&args.path))?;
    let text = if args.json { format!("{}\n", serde_json::to_string_pretty(&verdict)?) } else { verdict.to_string() };
    super::print(&text)?;
    Ok(if matches!(verdict, Verdict::Route(_)) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Path and query of a URL; anything else as it came, since a path's odd spelling is what is asked about.
fn target_of(text: &str) -> &str {
    let after_scheme = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let target = match after_scheme {
        Some(rest) => rest.find(['/', '?']).map_or("/", |at| &rest[at..]),
        None => text,
    };
    target.split('#').next().unwrap_or(target)
}

/// What would become of the request.
#[derive(Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
enum Verdict {
    Route(Box<Priced>),
    /// 404.
    NoRoute,
    /// 400.
    AmbiguousPath {
        reason: String,
    },
}

#[derive(Debug, Serialize)]
struct Priced {
    route: String,
    #[serde(rename = "match")]
    pattern: String,
    /// What the upstream would be asked for.
    upstream: String,
    /// `null`: free.
    charge: Option<Charge>,
}

#[derive(Debug, Serialize)]
struct Charge {
    price: String,
    /// In the order in which they are offered.
    rails: Vec<&'static str>,
    /// What a bill names, as far as is known without asking a chain.
    payable: Vec<Payable>,
    /// What a Lightning invoice costs and buys, if the route takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    lightning: Option<Invoiced>,
    settle: &'static str,
    description: String,
    mime_type: String,
}

#[derive(Debug, Serialize)]
struct Payable {
    network: String,
    asset: String,
    address: String,
    pay_to: String,
}

#[derive(Debug, Serialize)]
struct Invoiced {
    network: &'static str,
    price: String,
    /// Such as `1 call`, `100 calls`, `1h`.
    buys: String,
    /// What of requests its token is good for: `route` or `request`.
    bind: &'static str,
    tier: u8,
    /// The route's name in the token.
    service: String,
}

fn verdict(config: &Config, method: &Method, target: &str) -> anyhow::Result<Verdict> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    // A tariff needs the chains; which route applies does not.
    let table = RouteTable::new(config.routes.iter().map(|route| route.to_gateway(Access::Free)).collect())?;
    let found = match table.find(method, path) {
        Err(ambiguous) => return Ok(Verdict::AmbiguousPath { reason: ambiguous.to_string() }),
        Ok(None) => return Ok(Verdict::NoRoute),
        Ok(Some(found)) => found,
    };
    let route = &config.routes[found.index];
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    Ok(Verdict::Route(Box::new(Priced {
        route: route.id.to_string(),
        pattern: route.matches.text.clone(),
        upstream: format!("{}{}{query}", route.upstream.origin, found.path.as_str()),
        charge: charge(config, route),
    })))
}

fn charge(config: &Config, route: &Route) -> Option<Charge> {
    let PaidRoute { pricing, settle, description, mime_type, .. } = route.paid.as_ref()?;
    let Pricing { price, rails, .. } = pricing;
    let by_chain = rails.iter().any(|rail| *rail != RailName::L402);
    Some(Charge {
        price: price.to_string(),
        rails: rails.iter().map(|rail| rail.as_str()).collect(),
        payable: config.chains.iter().filter(|_| by_chain).flat_map(|chain| payable(chain, price)).collect(),
        lightning: invoiced(config, pricing),
        settle: match settle {
            SettleWhen::BeforeUpstream => "before_upstream",
            SettleWhen::BeforeResponse => "before_response",
        },
        description: description.clone(),
        mime_type: mime_type.clone(),
    })
}

fn invoiced(config: &Config, pricing: &Pricing) -> Option<Invoiced> {
    let terms = pricing.token.as_ref()?;
    Some(Invoiced {
        network: config.lightning.as_ref()?.network.as_str(),
        price: terms.price.to_string(),
        buys: match terms.grant {
            Grant::Calls(calls) => format!("{calls} call{}", if calls.get() == 1 { "" } else { "s" }),
            Grant::For(time) => ms_text(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        },
        bind: match terms.scope {
            TokenScope::Route => "route",
            TokenScope::Request => "request",
        },
        tier: terms.tier,
        service: terms.service.to_string(),
    })
}

fn payable<'a>(chain: &'a Chain, price: &'a Price) -> impl Iterator<Item = Payable> + 'a {
    let takes = move |asset: &&farebox_evm::AssetConfig| match price {
        Price::Usd(_) => asset.pegged == Pegged::UsDollar,
        Price::Token { symbol, .. } => asset.symbol == *symbol,
    };
    chain.assets.iter().filter(takes).map(|asset| Payable {
        network: chain.network.to_string(),
        asset: asset.symbol.clone(),
        address: checksum(asset.address),
        pay_to: chain.pay_to.get_ref().to_string(),
    })
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoRoute => writeln!(f, "no route matches: answered 404, never proxied"),
            Self::AmbiguousPath { reason } => writeln!(f, "ambiguous: answered 400, never proxied; {reason}"),
            Self::Route(priced) => {
                writeln!(f, "route     {}\nmatch     {}\nupstream  {}", priced.route, priced.pattern, priced.upstream)?;
                let Some(charge) = &priced.charge else { return writeln!(f, "price     free") };
                let mut ways = String::new();
                for way in &charge.payable {
                    writeln!(ways, "pay       {} on {} to {} ({})", way.asset, way.network, way.pay_to, way.address)?;
                }
                if let Some(Invoiced { network, price, buys, bind, .. }) = &charge.lightning {
                    let good = if *bind == "request" { ", for this request alone" } else { "" };
                    writeln!(ways, "pay       {price} by Lightning on Bitcoin's {network}: {buys}{good}")?;
                }
                let rails = charge.rails.join(", ");
                write!(f, "price     {}\nrails     {rails}\nsettle    {}\n{ways}", charge.price, charge.settle)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_path_and_query_of_a_url_count() {
        for (given, target) in [
            ("/v1/x?a=b", "/v1/x?a=b"),
            ("https://api.example/v1/x?a=b#c", "/v1/x?a=b"),
            ("http://api.example", "/"),
            ("http://api.example?a", "?a"),
            ("v1/x", "v1/x"),
            ("/v1//x", "/v1//x"),
        ] {
            assert_eq!(target_of(given), target);
        }
    }
}
