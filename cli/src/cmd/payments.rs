//! `farebox payments`: the books, to read and to export, while a gateway runs or not.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write},
    path::Path,
};

use anyhow::Context as _;
use comfy_table::{CellAlignment, ColumnConstraint, Table};
use farebox_core::{
    AssetId, Decimal, Delivery, Network, Payment, PaymentId, PaymentState, RouteId, Timestamp, TransactionId,
    ports::{CreditIs, PaymentFilter},
};
use farebox_ledger::SqliteReader;
use serde::Serialize;

use super::listing::{
    Names, PAGE_ROWS, Shown, TABLE_ROWS, each, in_tokens, iso, name_of, network_name, no_formula, parse_network,
    parse_time, printable, shortened, table_of, terminal_width, whole,
};

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
    /// Only by this payer: an address or a CAIP-10 account; of Lightning the pass that `farebox tokens` lists
    #[arg(long)]
    payer: Option<String>,
    /// Only on this network, such as eip155:8453 or bitcoin
    #[arg(long, value_parser = parse_network)]
    network: Option<Network>,
    /// Only settled by this transaction; of Lightning the payment hash
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

/// The matching payments, a page at a time.
struct Pages<'r> {
    reader: &'r SqliteReader,
    filter: PaymentFilter,
}

impl Pages<'_> {
    /// Hands over at most `limit` payments, newest first; 0 means all.
    fn each(mut self, limit: u64, take: impl FnMut(&Payment) -> anyhow::Result<()>) -> anyhow::Result<Shown> {
        self.filter.limit = PAGE_ROWS;
        let page = |last: Option<&Payment>| {
            self.filter.before = last.map(|payment| payment.id);
            self.reader.list(&self.filter)
        };
        each(limit, page, take)
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
        let name = name_of(&payment.amount.asset, names);
        let tokens = |units| name.map(|(_, decimals)| Decimal::from_units(units, decimals).to_string());
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
            symbol: name.map(|(symbol, _)| text(symbol)),
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
            network_name(payment.amount.asset.network()),
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
            table.add_row([sum, count.to_string(), state, network_name(asset.network())].map(|c| printable(&c)));
        }
        table
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

#[cfg(test)]
mod tests;
