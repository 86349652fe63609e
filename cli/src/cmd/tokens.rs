//! `farebox tokens`: the L402 tokens that were sold, to read, to export and to revoke, while a gateway runs or not.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write},
    path::Path,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, bail};
use comfy_table::CellAlignment;
use farebox_core::{Decimal, Grant, InvoiceState, PassId, RouteId, Timestamp, Token, Untrusted, ports::TokenFilter};
use farebox_ledger::{SqliteReader, revoke_token};
use serde::Serialize;

use super::listing::{
    PAGE_ROWS, Shown, TABLE_ROWS, each, iso, network_name, no_formula, printable, shortened, table_of, terminal_width,
};

/// The fewest digits that a pass may be named by.
const DIGITS_MIN: usize = 6;

/// List, show or revoke the L402 tokens that were sold.
///
/// A token is named by its pass: 64 hex digits, the payer of its payment in `farebox payments` and in the audit log. Any digits that it begins
/// with will do, if no other does; 6 at least.
#[derive(Debug, clap::Args)]
pub(crate) struct TokensArgs {
    #[command(subcommand)]
    command: TokensCommand,
}

#[derive(Debug, clap::Subcommand)]
enum TokensCommand {
    List(ListArgs),
    Show(ShowArgs),
    Revoke(RevokeArgs),
}

/// List tokens, newest first, or export them
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only of this route, by its id
    #[arg(long)]
    route: Option<String>,
    /// Only paid ones
    #[arg(long)]
    paid: bool,
    /// Only those that are not paid, or not in full
    #[arg(long, conflicts_with = "paid")]
    unpaid: bool,
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

/// Show all that is known of a token
#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Which
    pass: PassDigits,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// End a token: from now on it buys nothing, and not even answers that it had are given again
///
/// Its root key is deleted, so that nobody can ever use or narrow it again. Takes effect at once, whether a gateway runs or not. What was paid for it
/// stays in the books; nothing is paid back by itself. Its calls that are under way end as they would.
#[derive(Debug, clap::Args)]
struct RevokeArgs {
    /// Which
    pass: PassDigits,
}

/// The digits that a pass begins with.
#[derive(Clone, Debug)]
struct PassDigits(String);

impl FromStr for PassDigits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.to_ascii_lowercase();
        let fits = (DIGITS_MIN..=64).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        fits.then_some(Self(digits)).ok_or_else(|| {
            format!("expected {DIGITS_MIN} to 64 hex digits that a pass begins with, found {}", Untrusted::new(text))
        })
    }
}

impl PassDigits {
    /// The one token that they name.
    fn token(&self, reader: &SqliteReader) -> anyhow::Result<Token> {
        let filled = |digit: &str| {
            let text = format!("{}{}", self.0, digit.repeat(64 - self.0.len()));
            PassId::from_hex(&text).with_context(|| format!("{text} names no pass"))
        };
        let mut found = reader.tokens_between(filled("0")?, filled("f")?, 2)?;
        match (found.pop(), found.is_empty()) {
            (Some(token), true) => Ok(token),
            (Some(_), false) => bail!("more than one pass begins with {}; give more of its digits", self.0),
            (None, _) => bail!("the ledger has no token whose pass begins with {}", self.0),
        }
    }
}

/// Does it, on standard output.
///
/// # Errors
/// The ledger cannot be opened, read or written, there is no such token, or standard output is closed.
pub(crate) fn run(args: TokensArgs, ledger_path: &Path, now: Timestamp) -> anyhow::Result<()> {
    let width = io::stdout().is_terminal().then(terminal_width).flatten();
    let mut out = io::BufWriter::new(io::stdout().lock());
    print(&args, ledger_path, now, width, &mut out)?;
    out.flush()?;
    Ok(())
}

fn print(
    args: &TokensArgs,
    ledger_path: &Path,
    now: Timestamp,
    width: Option<u16>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let reader = SqliteReader::open(ledger_path)
        .with_context(|| format!("the ledger {} cannot be read", ledger_path.display()))?;
    match &args.command {
        TokensCommand::List(args) => list(args, &reader, now, width, out),
        TokensCommand::Show(args) => {
            let token = args.pass.token(&reader)?;
            let entry = Entry::new(&token, now, Cow::Borrowed)?;
            if args.json { line(&entry, out) } else { show(&entry, &token, width, out) }
        }
        TokensCommand::Revoke(args) => {
            let token = args.pass.token(&reader)?;
            drop(reader);
            revoke(&token, ledger_path, now, out)
        }
    }
}

fn revoke(token: &Token, ledger_path: &Path, now: Timestamp, out: &mut impl Write) -> anyhow::Result<()> {
    let pass = token.sold.pass;
    if let Some(at) = token.revoked_at {
        return Ok(writeln!(out, "{pass} was revoked at {} already", iso(at)?)?);
    }
    let revoked = revoke_token(ledger_path, pass, now)
        .with_context(|| format!("{pass} may not be revoked; look with `farebox tokens show` and try again"))?
        .with_context(|| format!("{pass} is gone from the ledger; it was never paid"))?;
    let left = match (revoked.state, &revoked.payment) {
        (InvoiceState::Settled, Some(payment)) => format!("it was bought by {payment}, {}", used(&revoked)),
        _ => format!("its invoice was {}", revoked.state.as_str()),
    };
    Ok(writeln!(out, "revoked {pass}; {left}")?)
}

fn list(
    args: &ListArgs,
    reader: &SqliteReader,
    now: Timestamp,
    width: Option<u16>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let paid = match (args.paid, args.unpaid) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let route = args.route.as_deref().map(RouteId::new);
    let pages = Pages { reader, filter: TokenFilter { route, paid, ..TokenFilter::default() } };
    let limit = |or| args.limit.unwrap_or(or);
    if args.json {
        pages.each(limit(0), |token| line(&Entry::new(token, now, Cow::Borrowed)?, out))?;
        return Ok(());
    }
    if args.csv {
        let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(out);
        writer.write_record(CSV_COLUMNS)?;
        pages.each(limit(0), |token| Ok(writer.serialize(Entry::new(token, now, no_formula)?)?))?;
        return Ok(writer.flush()?);
    }
    print_table(pages, limit(TABLE_ROWS), now, width, out)
}

/// The matching tokens, a page at a time.
struct Pages<'r> {
    reader: &'r SqliteReader,
    filter: TokenFilter,
}

impl Pages<'_> {
    /// Hands over at most `limit` tokens, newest first; 0 means all.
    fn each(mut self, limit: u64, take: impl FnMut(&Token) -> anyhow::Result<()>) -> anyhow::Result<Shown> {
        self.filter.limit = PAGE_ROWS;
        let page = |last: Option<&Token>| {
            self.filter.before = last.map(|token| token.sold.pass);
            self.reader.tokens(&self.filter)
        };
        each(limit, page, take)
    }
}

/// A token in an export. The order of fields is the order of columns. Never the root key: whoever has it can mint.
#[derive(Debug, Serialize)]
struct Entry<'t> {
    pass: String,
    sold_at: String,
    status: &'static str,
    route: Cow<'t, str>,
    method: Cow<'t, str>,
    resource: Cow<'t, str>,
    /// Calls bought; empty if time was.
    calls: Option<u32>,
    /// Calls taken, those under way included; empty if time was bought, whose calls are not counted.
    used: Option<u32>,
    /// Seconds bought; empty if calls were.
    time_s: Option<u64>,
    valid_until: String,
    /// Satoshis, exact.
    amount: String,
    symbol: &'static str,
    amount_msat: u64,
    received_msat: u64,
    invoice_state: &'static str,
    invoice_expires_at: String,
    payment_hash: String,
    invoice: Cow<'t, str>,
    network: Cow<'t, str>,
    node: Cow<'t, str>,
    payment: Option<String>,
    revoked_at: Option<String>,
    request: Cow<'t, str>,
}

/// Written even when no token matches, so not left to the first row.
const CSV_COLUMNS: [&str; 23] = [
    "pass",
    "sold_at",
    "status",
    "route",
    "method",
    "resource",
    "calls",
    "used",
    "time_s",
    "valid_until",
    "amount",
    "symbol",
    "amount_msat",
    "received_msat",
    "invoice_state",
    "invoice_expires_at",
    "payment_hash",
    "invoice",
    "network",
    "node",
    "payment",
    "revoked_at",
    "request",
];

impl<'t> Entry<'t> {
    /// `text` is applied to all text that is not of our own making.
    fn new(token: &'t Token, now: Timestamp, text: fn(&'t str) -> Cow<'t, str>) -> anyhow::Result<Self> {
        let (sold, invoice) = (&token.sold, &token.sold.invoice);
        let (calls, time_s) = match sold.grant {
            Grant::Calls(calls) => (Some(calls.get()), None),
            Grant::For(time) => (None, Some(time.as_secs())),
        };
        Ok(Self {
            pass: sold.pass.to_string(),
            sold_at: iso(invoice.created_at)?,
            status: status(token, now),
            route: text(sold.route.as_str()),
            method: text(&sold.method),
            resource: text(&sold.resource),
            calls,
            used: calls.map(|_| token.used),
            time_s,
            valid_until: iso(sold.valid_until)?,
            amount: satoshis(invoice.amount_msat),
            symbol: "sat",
            amount_msat: invoice.amount_msat,
            received_msat: token.received_msat,
            invoice_state: token.state.as_str(),
            invoice_expires_at: iso(invoice.expires_at)?,
            payment_hash: invoice.payment_hash.to_string(),
            invoice: text(&invoice.bolt11),
            network: text(sold.network.as_str()),
            node: text(&sold.node),
            payment: token.payment.map(|id| id.to_string()),
            revoked_at: token.revoked_at.map(iso).transpose()?,
            request: text(sold.request.as_str()),
        })
    }
}

/// What a token is good for now: a paid one that still buys something is `good`.
fn status(token: &Token, now: Timestamp) -> &'static str {
    let spent = match token.sold.grant {
        Grant::Calls(calls) => token.used >= calls.get(),
        Grant::For(_) => false,
    };
    match token.state {
        _ if token.revoked_at.is_some() => "revoked",
        InvoiceState::Settled if spent => "spent",
        InvoiceState::Settled if now >= token.sold.valid_until => "ended",
        InvoiceState::Settled => "good",
        unpaid => unpaid.as_str(),
    }
}

fn satoshis(msat: u64) -> String {
    Decimal::from_units(u128::from(msat), 3).to_string()
}

/// `3 of 10 calls`, or the time that was bought.
fn used(token: &Token) -> String {
    match token.sold.grant {
        Grant::Calls(calls) => format!("{} of {calls} calls used", token.used),
        Grant::For(time) => format!("for {}", span(time)),
    }
}

/// In the largest unit that it is whole in, as the config writes it: `36h`.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(24 * 60 * 60, 'd'), (60 * 60, 'h'), (60, 'm')];
    let whole = units.into_iter().find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{seconds}s"), |(unit, name)| format!("{}{name}", seconds / unit))
}

fn line(entry: &Entry<'_>, out: &mut impl Write) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *out, entry)?;
    Ok(out.write_all(b"\n")?)
}

fn show(entry: &Entry<'_>, token: &Token, width: Option<u16>, out: &mut impl Write) -> anyhow::Result<()> {
    let sold = &token.sold;
    let came =
        if token.received_msat > 0 { format!("{} sat", satoshis(token.received_msat)) } else { "nothing".into() };
    let revoked = entry.revoked_at.as_ref().map(|at| format!(", revoked at {at}")).unwrap_or_default();
    let lines = [
        ("pass", entry.pass.clone()),
        ("status", format!("{}{revoked}", entry.status)),
        ("route", entry.route.to_string()),
        ("asked for by", format!("{} {}, {}", entry.method, entry.resource, entry.request)),
        ("buys", used(token)),
        ("sold at", entry.sold_at.clone()),
        ("valid until", entry.valid_until.clone()),
        ("price", format!("{} sat", entry.amount)),
        ("received", came),
        ("payment", entry.payment.clone().unwrap_or_else(|| "none".into())),
        ("invoice", format!("{}, until {}", entry.invoice_state, entry.invoice_expires_at)),
        ("payment hash", entry.payment_hash.clone()),
        ("network", network_name(&sold.network)),
        ("node", entry.node.to_string()),
        ("BOLT 11", entry.invoice.to_string()),
    ];
    let mut table = table_of(width);
    for (name, value) in lines {
        table.add_row([name.to_owned(), printable(&value)]);
    }
    Ok(writeln!(out, "{}", table.trim_fmt())?)
}

const TABLE_COLUMNS: [&str; 8] =
    ["pass", "sold (UTC)", "route", "buys", "price", "status", "valid until (UTC)", "payment"];

fn print_table(
    pages: Pages<'_>,
    limit: u64,
    now: Timestamp,
    width: Option<u16>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut table = table_of(width);
    table.set_header(TABLE_COLUMNS);
    let minute = |time| iso(time).map(|text| text.get(..16).unwrap_or_default().replace('T', " "));
    let mut rows = 0_u64;
    let shown = pages.each(limit, |token| {
        rows += 1;
        let (sold, pass) = (&token.sold, token.sold.pass.to_string());
        let payment = token.payment.map(|id| id.to_string()).unwrap_or_default();
        let cells = [
            // As many digits as name one, for a terminal.
            if width.is_some() { pass.get(..12).unwrap_or_default().to_owned() } else { pass },
            minute(sold.invoice.created_at)?,
            sold.route.to_string(),
            used(token),
            format!("{} sat", satoshis(sold.invoice.amount_msat)),
            status(token, now).to_owned(),
            minute(sold.valid_until)?,
            if width.is_some() { shortened(&payment) } else { payment },
        ];
        table.add_row(cells.map(|cell| printable(&cell)));
        Ok(())
    })?;
    if rows == 0 {
        return Ok(writeln!(out, "no tokens match")?);
    }
    for (column, name) in table.column_iter_mut().zip(TABLE_COLUMNS) {
        if name == "price" {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(out, "{}", table.trim_fmt())?;
    if shown == Shown::Newest {
        writeln!(out, "\nthe newest {limit} are shown; more match, --limit 0 shows all")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
