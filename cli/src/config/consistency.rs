//! What single keys say well and cannot hold together.

use std::{ops::Range, time::Duration};

use farebox_core::{Access, Price, SettleWhen, Untrusted};
use farebox_evm::{Pegged, is_test_network};
use farebox_gateway::{AdmissionLimits, RouteTable, RouteTableError};

use super::{
    read::Notes,
    resolve::{Chain, Route},
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

/// Notes every paid route that cannot be paid as it says, and a shop that would take worthless money for real.
pub(super) fn note_unpayable(chains: &[Chain], routes: &[Route], notes: &mut Notes) {
    let paid = || routes.iter().enumerate().filter_map(|(index, route)| Some((index, route.paid.as_ref()?)));
    for (index, route) in paid() {
        if let Some(what) = why_unpayable(chains, &route.price) {
            notes.wrong::<()>(route.price_span.clone(), format!("route[{index}].price"), what);
        }
    }
    let test = chains.iter().find(|chain| is_test_network(&chain.network));
    let real = chains.iter().find(|chain| !is_test_network(&chain.network));
    if let (Some(test), Some(real), Some(_)) = (test, real, paid().next()) {
        let what = format!(
            "{} is a test network and {} is not: whoever pays there gets for nothing what others pay for",
            test.network, real.network
        );
        notes.wrong_hint::<()>(test.span.clone(), "chain", what, "run one gateway for tests and another for money");
    }
}

fn why_unpayable(chains: &[Chain], price: &Price) -> Option<String> {
    if chains.is_empty() {
        return Some(format!("nothing can be paid {price} with: there is no [[chain]]"));
    }
    match price {
        Price::Usd(_) => {
            let lacking =
                chains.iter().find(|chain| !chain.assets.iter().any(|asset| asset.pegged == Pegged::UsDollar))?;
            Some(format!(
                "the chain {} has no dollar token to charge {price} in; its assets need one with dollar = true",
                lacking.network
            ))
        }
        Price::Token { symbol, .. } => {
            let has = chains.iter().any(|chain| chain.assets.iter().any(|asset| asset.symbol == *symbol));
            (!has).then(|| format!("no chain has a token called {symbol}, so nothing can be charged {price}"))
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
    let (Some(upstream), Some(settle)) = (upstream, settle) else { return };
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
