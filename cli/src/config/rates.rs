//! `[[rate]]` from literal to resolved.

use std::collections::HashMap;

use farebox_core::Untrusted;
use farebox_evm::{RateConfig, RateSource};

use super::{
    money::RateLiteral,
    read::{Located, Notes},
    resolve::value,
    values::Tables,
};

/// Every rate, where it stands. `None` after noting why.
pub(super) fn rates(tables: Option<Tables<RateLiteral, 64>>, notes: &mut Notes) -> Option<Vec<Located<RateConfig>>> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut resolved = Some(Vec::new());
    for (index, rate) in tables?.0.into_iter().enumerate() {
        let span = rate.span();
        if let Some(symbol) = &rate.get_ref().symbol
            && let Some(first) = seen.insert(symbol.get_ref().0.clone(), index)
        {
            let symbol = Untrusted::new(symbol.get_ref().0.as_str());
            let what = format!("the rate of {symbol} stands here twice; rate[{first}] has it");
            notes.wrong::<()>(span.clone(), format!("rate[{index}].symbol"), what);
        }
        match (resolve_rate(index, rate, notes), &mut resolved) {
            (Some(rate), Some(all)) => all.push(Located::new(span, rate)),
            (_, all) => *all = None,
        }
    }
    resolved
}

fn resolve_rate(index: usize, rate: Located<RateLiteral>, notes: &mut Notes) -> Option<RateConfig> {
    let at = format!("rate[{index}]");
    let (span, rate) = (rate.span(), rate.into_inner());
    let source = match (rate.fixed, rate.chainlink, rate.http) {
        (Some(fixed), None, None) => RateSource::Fixed(fixed.into_inner().0),
        (None, Some(chainlink), None) => {
            let chainlink = chainlink.into_inner();
            RateSource::Chainlink { network: value(chainlink.network)?, address: value(chainlink.address)?.0 }
        }
        (None, None, Some(http)) => {
            let http = http.into_inner();
            RateSource::Http { url: value(http.url)?.0, pointer: value(http.pointer)?.0 }
        }
        // One that was wrong leaves a hole here.
        _ if ["fixed", "chainlink", "http"].iter().any(|key| notes.told(&format!("{at}.{key}"))) => return None,
        _ => {
            let what = "a rate has one source: fixed, chainlink or http";
            return notes.wrong_hint(span, at, what, "write fixed = \"3150\", or the other two as in docs/config.md");
        }
    };
    let (min, max) = (value(rate.min).map(|min| min.0), value(rate.max).map(|max| max.0));
    if let (Some(low), Some(high)) = (min, max)
        && low > high
    {
        return notes.wrong(span, format!("{at}.min"), format!("no rate is between {low} and {high}"));
    }
    Some(RateConfig {
        symbol: value(rate.symbol)?.0,
        source,
        min,
        max,
        stale_after: value(rate.stale_after)?.0,
        refresh: value(rate.refresh)?.0,
    })
}
