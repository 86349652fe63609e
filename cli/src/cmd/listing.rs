//! What listings of the books share: times, sums, tables, and text that moves no cursor and runs no formula.

use std::{borrow::Cow, collections::HashMap};

use anyhow::{Context as _, bail};
use comfy_table::{ContentArrangement, Table, presets};
use farebox_core::{AssetId, BitcoinNetwork, Decimal, Network, Timestamp, Untrusted, ports::LedgerUnavailable};
use farebox_ledger::AssetName;

/// Rows read at a time, each time in a read transaction of its own: a long export must not hold back the gateway's log.
pub(super) const PAGE_ROWS: u32 = 500;

/// Rows of a table unless `--limit` says otherwise; exports have no limit.
pub(super) const TABLE_ROWS: u64 = 50;

/// Whether a limit left something out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    All,
    Newest,
}

/// Hands over at most `limit` rows, 0 means all. `page` reads up to [`PAGE_ROWS`] of them that come after the one it is given.
pub(super) fn each<T>(
    limit: u64,
    mut page: impl FnMut(Option<&T>) -> Result<Vec<T>, LedgerUnavailable>,
    mut take: impl FnMut(&T) -> anyhow::Result<()>,
) -> anyhow::Result<Shown> {
    let mut left = if limit == 0 { u64::MAX } else { limit };
    let mut last = None;
    loop {
        let mut rows = page(last.as_ref())?;
        for row in &rows {
            if left == 0 {
                return Ok(Shown::Newest);
            }
            left -= 1;
            take(row)?;
        }
        if rows.len() < PAGE_ROWS as usize {
            return Ok(Shown::All);
        }
        last = rows.pop();
    }
}

pub(super) type Names = HashMap<AssetId, AssetName>;

pub(super) fn terminal_width() -> Option<u16> {
    terminal_size::terminal_size().map(|(terminal_size::Width(columns), _)| columns)
}

/// A date, a time with its offset, or an age such as `24h`.
pub(super) fn parse_time(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    if let Some(age) = parse_age(text) {
        return Ok(now.minus(age));
    }
    let midnight = text.parse::<jiff::civil::Date>().ok().and_then(|date| format!("{date}T00:00:00Z").parse().ok());
    let time: jiff::Timestamp = match midnight {
        Some(time) if text.len() == "2026-11-23".len() => time,
        _ => text.parse().with_context(|| {
            format!(
                "expected a date (2026-11-23), a time with its offset (2026-11-23T20:00:00Z) or an age (24h), found {}",
                Untrusted::new(text)
            )
        })?,
    };
    match u64::try_from(time.as_millisecond()) {
        Ok(ms) => Ok(Timestamp::from_unix_ms(ms)),
        Err(_) => bail!("{} lies before 1970", Untrusted::new(text)),
    }
}

fn parse_age(text: &str) -> Option<std::time::Duration> {
    let unit = text.chars().next_back()?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return None,
    };
    let count: u64 = text.strip_suffix(unit)?.parse().ok()?;
    Some(std::time::Duration::from_secs(count.checked_mul(seconds)?))
}

/// Bitcoin over Lightning is known without being told: people count satoshis, and the books thousandths of one.
const SATOSHI: (&str, u8) = ("sat", 3);

/// Symbol and decimals, if they are known.
pub(super) fn name_of<'n>(asset: &AssetId, names: &'n Names) -> Option<(&'n str, u8)> {
    let told = names.get(asset).map(|name| (&*name.symbol, name.decimals));
    told.or_else(|| asset.is_lightning().then_some(SATOSHI))
}

/// `0.01 USDC`, or units and the asset's whole name if nobody told the ledger its decimals.
pub(super) fn in_tokens(units: u128, asset: &AssetId, names: &Names) -> String {
    match name_of(asset, names) {
        Some((symbol, decimals)) => format!("{} {symbol}", Decimal::from_units(units, decimals)),
        None => format!("{units} units of {asset}"),
    }
}

/// A network as people call it: those of Bitcoin have names that nobody knows by heart.
pub(super) fn network_name(network: &Network) -> String {
    BitcoinNetwork::of(network).map_or_else(|| network.to_string(), |bitcoin| bitcoin.to_string())
}

/// A CAIP-2 name, or a Bitcoin network's.
pub(super) fn parse_network(text: &str) -> Result<Network, String> {
    match BitcoinNetwork::ALL.into_iter().find(|known| known.as_str() == text) {
        Some(bitcoin) => Ok(bitcoin.network()),
        None => text.parse().map_err(|error: farebox_core::NetworkError| error.to_string()),
    }
}

/// A spreadsheet runs a cell that begins with one of these as a formula, even quoted. Source: OWASP, "CSV Injection".
pub(super) fn no_formula(text: &str) -> Cow<'_, str> {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) {
        Cow::Owned(format!("'{text}"))
    } else {
        Cow::Borrowed(text)
    }
}

pub(super) fn table_of(width: Option<u16>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(columns) = width {
        table.set_width(columns);
    }
    table
}

/// `2026-11-23T20:14:55.123Z`.
pub(super) fn iso(time: Timestamp) -> anyhow::Result<String> {
    let ms = i64::try_from(time.unix_ms()).context("a time in the ledger is out of range")?;
    let time = jiff::Timestamp::from_millisecond(ms).context("a time in the ledger is out of range")?;
    Ok(format!("{time:.3}"))
}

/// `0x1234…cdef`, for a terminal.
pub(super) fn shortened(text: &str) -> String {
    match (text.get(..6), text.len().checked_sub(4).and_then(|at| text.get(at..))) {
        (Some(head), Some(tail)) if text.len() > 12 => format!("{head}…{tail}"),
        _ => text.to_owned(),
    }
}

pub(super) fn whole(text: &str) -> String {
    text.to_owned()
}

/// Without what could move a terminal's cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
