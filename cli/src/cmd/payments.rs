//! `farebox payments`: the books, to read and to export, while a gateway runs or not.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    io::{self, IsTerminal as _, Write},
    path::Path,
};

use anyhow::{Context as _, bail};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use farebox_core::{
    AssetId, Decimal, Delivery, Network, Payment, PaymentId, PaymentState, RouteId, Timestamp, TransactionId,
    Untrusted,
    ports::{CreditIs, PaymentFilter},
};
use farebox_ledger::{AssetName, SqliteReader};
use serde::Serialize;

/// Rows read at a time, each time in a read transaction of its own: a long export must not hold back the gateway's log.
const PAGE_ROWS: u32 = 500;

/// Rows of a table unless `--limit` says otherwise; exports have no limit.
const TABLE_ROWS: u64 = 50;

/// List payments, newest first, or export them.
///
/// Times are UTC. `--since` and `--until` take a date (2026-11-23), a time (2026-11-23T20:00:00Z) or an age (30m, 24h, 7d).
#[derive(Debug, Default, clap::Args)]
pub(crate) struct PaymentsArgs {
    /// Only this payment
    #[arg(long, value_name = "PAYMENT")]
    id: Option<PaymentId>,
    /// Only in this state: claimed, settling, in_doubt, settled, refused or void
    #[arg(long, value_parser = parse_state)]
    state: Option<PaymentState>,
    /// Only for this route, by its id
    #[arg(long)]
    route: Option<String>,
    /// Only by this payer: an address or a CAIP-10 account
    #[arg(long)]
    payer: Option<String>,
    /// Only on this network, such as eip155:8453
    #[arg(long)]
    network: Option<Network>,
    /// Only settled by this transaction
    #[arg(long, value_name = "HASH")]
    tx: Option<String>,
    /// Only with credit that is owed to the payer: what came late, or over the price
    #[arg(long)]
    credit: bool,
    /// Only claimed at or after this time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only claimed before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// At most so many, 0 for all [default: 50, with --json and --csv all]
    #[arg(long, value_name = "ROWS")]
    limit: Option<u64>,
    /// Print JSON, one object a line
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV with a header line; text that a spreadsheet would run as a formula starts with an apostrophe
    #[arg(long)]
    csv: bool,
}

/// Prints the payments in the ledger at `ledger_path` to standard output.
///
/// # Errors
/// A time cannot be read, the ledger cannot be opened or read, or standard output is closed.
pub(crate) fn run(args: PaymentsArgs, ledger_path: &Path, now: Timestamp) -> anyhow::Result<()> {
    let reader = SqliteReader::open(ledger_path)
        .with_context(|| format!("the ledger {} cannot be read", ledger_path.display()))?;
    let width = io::stdout().is_terminal().then(terminal_width).flatten();
    let mut out = io::BufWriter::new(io::stdout().lock());
    print(&args, &reader, now, width, &mut out)?;
    out.flush()?;
    Ok(())
}

fn terminal_width() -> Option<u16> {
    terminal_size::terminal_size().map(|(terminal_size::Width(columns), _)| columns)
}

fn print(
    args: &PaymentsArgs,
    reader: &SqliteReader,
    now: Timestamp,
    width: Option<u16>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let names = reader.asset_names()?.into_iter().map(|name| (name.asset.clone(), name)).collect();
    let filter = filter(args, now)?;
    let pages = Pages { reader, filter };
    match (args.json, args.csv) {
        (true, _) => print_json(pages, args.limit.unwrap_or(0), &names, out),
        (_, true) => print_csv(pages, args.limit.unwrap_or(0), &names, out),
        _ => print_table(pages, args.limit.unwrap_or(TABLE_ROWS), &names, width, out),
    }
}

type Names = HashMap<AssetId, AssetName>;

fn filter(args: &PaymentsArgs, now: Timestamp) -> anyhow::Result<PaymentFilter> {
    let time = |text: &Option<String>| text.as_deref().map(|text| parse_time(text, now)).transpose();
    Ok(PaymentFilter {
        id: args.id,
        state: args.state,
        route: args.route.as_deref().map(RouteId::new),
        payer: args.payer.clone(),
        network: args.network.clone(),
        transaction: args.tx.as_deref().map(|hash| TransactionId::new(hash.to_lowercase())),
        credit: args.credit.then_some(CreditIs::Owed),
        since: time(&args.since)?,
        until: time(&args.until)?,
        before: None,
        limit: 0,
    })
}

fn parse_state(text: &str) -> Result<PaymentState, String> {
    let known = PaymentState::ALL.map(PaymentState::as_str);
    let found = PaymentState::ALL.into_iter().find(|state| state.as_str() == text);
    found.ok_or_else(|| format!("expected one of {}", known.join(", ")))
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

/// The matching payments, a page at a time.
struct Pages<'r> {
    reader: &'r SqliteReader,
    filter: PaymentFilter,
}

/// Whether a limit left something out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    All,
    Newest,
}

impl Pages<'_> {
    /// Hands over at most `limit` payments, newest first; 0 means all.
    fn each(mut self, limit: u64, mut take: impl FnMut(&Payment) -> anyhow::Result<()>) -> anyhow::Result<Shown> {
        let mut left = if limit == 0 { u64::MAX } else { limit };
        self.filter.limit = PAGE_ROWS;
        loop {
            let page = self.reader.list(&self.filter)?;
            for payment in &page {
                if left == 0 {
                    return Ok(Shown::Newest);
                }
                left -= 1;
                take(payment)?;
            }
            match page.last() {
                Some(last) if page.len() == PAGE_ROWS as usize => self.filter.before = Some(last.id),
                _ => return Ok(Shown::All),
            }
        }
    }
}

/// A payment in an export. The order of fields is the order of columns.
#[derive(Debug, Serialize)]
struct Entry<'p> {
    id: String,
    created_at: String,
    updated_at: String,
    state: &'static str,
    reason: Option<Cow<'p, str>>,
    delivery: &'static str,
    route: Cow<'p, str>,
    method: Cow<'p, str>,
    resource: Cow<'p, str>,
    rail: &'static str,
    payer: Cow<'p, str>,
    pay_to: Cow<'p, str>,
    /// Whole tokens, exact; empty if the asset's decimals are not known.
    amount: Option<String>,
    symbol: Option<Cow<'p, str>>,
    units: String,
    asset: String,
    network: Cow<'p, str>,
    transaction: Option<Cow<'p, str>>,
    block: Option<u64>,
    runs: u32,
    /// What of it, or beside it, is the payer's credit: whole tokens.
    credit: Option<String>,
    credit_units: String,
    /// A reorganisation took the money back.
    reversed: bool,
    request: Cow<'p, str>,
}

impl<'p> Entry<'p> {
    /// `text` is applied to all text that is not of our own making.
    fn new(payment: &'p Payment, names: &'p Names, text: fn(&str) -> Cow<'_, str>) -> anyhow::Result<Self> {
        let name = names.get(&payment.amount.asset);
        let tokens = |units| name.map(|name| Decimal::from_units(units, name.decimals).to_string());
        Ok(Self {
            id: payment.id.to_string(),
            created_at: iso(payment.created_at)?,
            updated_at: iso(payment.updated_at)?,
            state: payment.state.as_str(),
            reason: payment.reason.as_deref().map(text),
            delivery: delivery(payment),
            route: text(payment.binding.route.as_str()),
            method: text(&payment.binding.method),
            resource: text(&payment.binding.resource),
            rail: payment.rail.as_str(),
            payer: text(payment.payer.as_str()),
            pay_to: text(&payment.pay_to),
            amount: tokens(payment.amount.units),
            symbol: name.map(|name| text(&name.symbol)),
            units: payment.amount.units.to_string(),
            asset: payment.amount.asset.to_string(),
            network: text(payment.amount.asset.network().as_str()),
            transaction: payment.transaction.as_ref().map(|hash| text(hash.as_str())),
            block: payment.block.map(|block| block.number),
            runs: payment.runs,
            credit: tokens(payment.credit),
            credit_units: payment.credit.to_string(),
            reversed: payment.reversed,
            request: text(payment.request.as_str()),
        })
    }
}

fn print_json(pages: Pages<'_>, limit: u64, names: &Names, out: &mut impl Write) -> anyhow::Result<()> {
    pages.each(limit, |payment| {
        serde_json::to_writer(&mut *out, &Entry::new(payment, names, |text| Cow::Borrowed(text))?)?;
        out.write_all(b"\n")?;
        Ok(())
    })?;
    Ok(())
}

fn print_csv(pages: Pages<'_>, limit: u64, names: &Names, out: &mut impl Write) -> anyhow::Result<()> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(out);
    writer.write_record(CSV_COLUMNS)?;
    pages.each(limit, |payment| Ok(writer.serialize(Entry::new(payment, names, no_formula)?)?))?;
    writer.flush()?;
    Ok(())
}

/// Written even when no payment matches, so not left to the first row.
const CSV_COLUMNS: [&str; 24] = [
    "id",
    "created_at",
    "updated_at",
    "state",
    "reason",
    "delivery",
    "route",
    "method",
    "resource",
    "rail",
    "payer",
    "pay_to",
    "amount",
    "symbol",
    "units",
    "asset",
    "network",
    "transaction",
    "block",
    "runs",
    "credit",
    "credit_units",
    "reversed",
    "request",
];

/// A spreadsheet runs a cell that begins with one of these as a formula, even quoted. Source: OWASP, "CSV Injection".
fn no_formula(text: &str) -> Cow<'_, str> {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) {
        Cow::Owned(format!("'{text}"))
    } else {
        Cow::Borrowed(text)
    }
}

fn print_table(
    pages: Pages<'_>,
    limit: u64,
    names: &Names,
    width: Option<u16>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut table = table_of(width);
    table.set_header(TABLE_COLUMNS);
    let mut sums = Sums::default();
    let shorten = if width.is_some() { shortened } else { whole };
    let shown = pages.each(limit, |payment| {
        sums.add(payment);
        let account = payment.payer.as_str();
        let in_tokens = |units| in_tokens(units, &payment.amount.asset, names);
        let cells = [
            payment.id.to_string(),
            iso(payment.created_at)?.get(..19).unwrap_or_default().replace('T', " "),
            payment.binding.route.to_string(),
            payment.rail.to_string(),
            shorten(account.rsplit(':').next().unwrap_or(account)),
            in_tokens(payment.amount.units),
            if payment.credit > 0 { in_tokens(payment.credit) } else { String::new() },
            payment.amount.asset.network().to_string(),
            payment.transaction.as_ref().map(|hash| shorten(hash.as_str())).unwrap_or_default(),
            state(payment),
            delivery(payment).to_owned(),
        ];
        table.add_row(cells.map(|cell| printable(&cell)));
        Ok(())
    })?;
    if sums.0.is_empty() {
        return Ok(writeln!(out, "no payments match")?);
    }
    for (column, name) in table.column_iter_mut().zip(TABLE_COLUMNS) {
        match name {
            "credit" if !sums.has_credit() => {
                column.set_constraint(ColumnConstraint::Hidden);
            }
            "amount" | "credit" => column.set_cell_alignment(CellAlignment::Right),
            _ => {}
        }
    }
    writeln!(out, "{}\n\n{}", table.trim_fmt(), sums.table(names, width).trim_fmt())?;
    if shown == Shown::Newest {
        writeln!(out, "\nthe newest {limit} are shown and summed; more match, --limit 0 shows all")?;
    }
    Ok(())
}

const TABLE_COLUMNS: [&str; 11] = [
    "payment",
    "time (UTC)",
    "route",
    "rail",
    "payer",
    "amount",
    "credit",
    "network",
    "transaction",
    "state",
    "delivery",
];

/// The state with its reason; a reversal shows until the money is there again.
fn state(payment: &Payment) -> String {
    let reversed = payment.reversed.then_some("reversed");
    let why: Vec<&str> = [reversed, payment.reason.as_deref()].into_iter().flatten().collect();
    match why.is_empty() {
        true => payment.state.as_str().to_owned(),
        false => format!("{}: {}", payment.state.as_str(), why.join(", ")),
    }
}

fn table_of(width: Option<u16>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(columns) = width {
        table.set_width(columns);
    }
    table
}

/// Sums by asset and state, exact, what is earned apart from what is the payers' credit: together they are what came.
/// `None` is a sum that 128 bits cannot hold.
#[derive(Default)]
struct Sums(BTreeMap<(AssetId, &'static str, Part), (u64, Option<u128>)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Price,
    Credit,
}

impl Sums {
    fn add(&mut self, payment: &Payment) {
        // A row that is credit whole has no price: its amount is its credit.
        if payment.delivery != Delivery::Credited {
            self.add_part(payment, Part::Price, payment.amount.units);
        }
        if payment.credit > 0 {
            self.add_part(payment, Part::Credit, payment.credit);
        }
    }

    fn add_part(&mut self, payment: &Payment, part: Part, units: u128) {
        let key = (payment.amount.asset.clone(), payment.state.as_str(), part);
        let (count, sum) = self.0.entry(key).or_insert((0, Some(0)));
        *count += 1;
        *sum = sum.and_then(|sum| sum.checked_add(units));
    }

    fn has_credit(&self) -> bool {
        self.0.keys().any(|(_, _, part)| *part == Part::Credit)
    }

    fn table(&self, names: &Names, width: Option<u16>) -> Table {
        let mut table = table_of(width);
        table.set_header(["sum", "of payments", "in state", "on"]);
        for ((asset, state, part), (count, sum)) in &self.0 {
            let sum = sum.map_or_else(|| "2^128 units or more".into(), |units| in_tokens(units, asset, names));
            let state = match part {
                Part::Price => (*state).to_owned(),
                Part::Credit => format!("{state}, credit"),
            };
            table.add_row([sum, count.to_string(), state, asset.network().to_string()].map(|c| printable(&c)));
        }
        table
    }
}

/// `0.01 USDC`, or units and the asset's whole name if nobody told the ledger its decimals.
fn in_tokens(units: u128, asset: &AssetId, names: &Names) -> String {
    match names.get(asset) {
        Some(name) => format!("{} {}", Decimal::from_units(units, name.decimals), name.symbol),
        None => format!("{units} units of {asset}"),
    }
}

/// What is still owed to the payer; nothing is for a payment that moved no money.
const fn delivery(payment: &Payment) -> &'static str {
    match (payment.delivery, payment.state) {
        (Delivery::Delivered, _) => "delivered",
        (Delivery::Credited, _) => "credited",
        (Delivery::Pending, PaymentState::Refused | PaymentState::Void) => "none",
        (Delivery::Pending, _) => "pending",
    }
}

/// `2026-11-23T20:14:55.123Z`.
fn iso(time: Timestamp) -> anyhow::Result<String> {
    let ms = i64::try_from(time.unix_ms()).context("a time in the ledger is out of range")?;
    let time = jiff::Timestamp::from_millisecond(ms).context("a time in the ledger is out of range")?;
    Ok(format!("{time:.3}"))
}

/// `0x1234…cdef`, for a terminal.
fn shortened(text: &str) -> String {
    match (text.get(..6), text.len().checked_sub(4).and_then(|at| text.get(at..))) {
        (Some(head), Some(tail)) if text.len() > 12 => format!("{head}…{tail}"),
        _ => text.to_owned(),
    }
}

fn whole(text: &str) -> String {
    text.to_owned()
}

/// Without what could move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests;
