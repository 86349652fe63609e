//! `farebox audit`: the log of decisions, to check and to export, while a gateway runs or not.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use farebox_core::{AuditLine, PaymentId, Timestamp, verify_audit};
use farebox_ledger::{AuditFilter, SqliteReader};
use serde::Deserialize;

use super::listing::parse_time;

/// Lines read at a time, each time in a read transaction of its own: a long check must not hold back the gateway's log.
const PAGE_LINES: u32 = 1_000;

/// More than any line that we write: a URL and a payer's address fit many times over.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Check or export the audit log: every decision that moved or refused money.
///
/// Each entry is a line of JSON that names the SHA-256 of the line before it, so that whatever is altered, removed or put in
/// between shows.
#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AuditCommand {
    Verify(VerifyArgs),
    Export(ExportArgs),
}

/// Check that no entry was altered, removed or put in between
///
/// Prints how many entries there are, the times of the first and the last, and the last one's hash. Keep that hash elsewhere:
/// what is cut off at the end shows only against it.
#[derive(Debug, Default, clap::Args)]
struct VerifyArgs {
    /// A hash that was kept: some entry must still have it
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    expect: Option<String>,
    /// Check this file instead, as `audit export` wrote it: all of the log, or with --after alone; - is standard input
    #[arg(long, value_name = "EXPORT.JSONL")]
    file: Option<PathBuf>,
    /// The file begins after the entry with this hash
    #[arg(long, value_name = "HASH", value_parser = parse_hash, requires = "file")]
    follows: Option<String>,
}

/// Print entries as JSON, one a line, the oldest first
///
/// The lines are what is hashed, byte for byte without the line break, so the chain can be checked without this program: the
/// `previous` of entry 58 is what `sed -n 57p export.jsonl | tr -d '\n' | sha256sum` says.
///
/// Times are UTC. --since and --until take a date (2026-11-23), a time (2026-11-23T20:00:00Z) or an age (30m, 24h, 7d).
#[derive(Debug, Default, clap::Args)]
struct ExportArgs {
    /// Only after the entry with this number
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    after: u64,
    /// Only decided at or after this time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only decided before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only about this payment
    #[arg(long, value_name = "PAYMENT")]
    payment: Option<PaymentId>,
}

/// Does what `args` say with the ledger that `ledger_path` finds, if it takes a ledger.
///
/// # Errors
/// The log is not whole, a time cannot be read, the ledger or file cannot be read, or standard output is closed.
pub(crate) fn run(
    args: AuditArgs,
    ledger_path: impl FnOnce() -> anyhow::Result<PathBuf>,
    now: Timestamp,
) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match args.command {
        AuditCommand::Verify(args) => match &args.file {
            Some(path) => verify_file(&args, path, &mut out)?,
            None => verify_ledger(&args, &open(&ledger_path()?)?, &mut out)?,
        },
        AuditCommand::Export(args) => export(&args, &open(&ledger_path()?)?, now, &mut out)?,
    }
    out.flush()?;
    Ok(())
}

fn open(path: &Path) -> anyhow::Result<SqliteReader> {
    SqliteReader::open(path).with_context(|| format!("the ledger {} cannot be read", path.display()))
}

fn export(args: &ExportArgs, reader: &SqliteReader, now: Timestamp, out: &mut impl Write) -> anyhow::Result<()> {
    let time = |text: &Option<String>| text.as_deref().map(|text| parse_time(text, now)).transpose();
    let (since, until) = (time(&args.since)?, time(&args.until)?);
    let filter = AuditFilter { after: args.after, since, until, payment: args.payment };
    each_page(reader, filter, |page| {
        for line in page {
            writeln!(out, "{}", line.text)?;
        }
        Ok(())
    })
}

fn each_page(
    reader: &SqliteReader,
    mut filter: AuditFilter,
    mut take: impl FnMut(Vec<AuditLine>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        let page = reader.audit_lines(&filter, PAGE_LINES)?;
        let (lines, last) = (page.len(), page.last().map(|line| line.sequence));
        take(page)?;
        match last {
            Some(last) if lines == PAGE_LINES as usize => filter.after = last,
            _ => return Ok(()),
        }
    }
}

fn verify_ledger(args: &VerifyArgs, reader: &SqliteReader, out: &mut impl Write) -> anyhow::Result<()> {
    let mut check = Check::new(args);
    each_page(reader, AuditFilter::default(), |page| check.take(page))?;
    check.end(out)
}

fn verify_file(args: &VerifyArgs, path: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return verify_lines(args, io::stdin().lock(), out);
    }
    let file = File::open(path).with_context(|| format!("the file {} cannot be read", path.display()))?;
    verify_lines(args, BufReader::new(file), out)
}

fn verify_lines(args: &VerifyArgs, mut from: impl BufRead, out: &mut impl Write) -> anyhow::Result<()> {
    let mut check = Check::new(args);
    let mut bytes = Vec::new();
    for place in 1.. {
        bytes.clear();
        let limit = u64::try_from(LINE_BYTES_MAX)?;
        from.by_ref().take(limit).read_until(b'\n', &mut bytes).context("the file cannot be read")?;
        if bytes.is_empty() {
            break;
        }
        let Some(text) = bytes.strip_suffix(b"\n") else {
            bail!("line {place} of the file has no end: it was cut off, or is no line of an audit log");
        };
        let text = std::str::from_utf8(text).with_context(|| format!("line {place} of the file is not UTF-8"))?;
        let line = AuditLine::read(text, place).with_context(|| format!("line {place} of the file"))?;
        check.take(vec![line])?;
    }
    check.end(out)
}

/// A check under way.
struct Check {
    /// What the first line must name, if it need not be the log's first.
    follows: Option<String>,
    /// A hash that some line must have.
    expect: Option<String>,
    count: u64,
    first_time: String,
    last: Option<AuditLine>,
}

/// What is shown of a line.
#[derive(Deserialize)]
struct Shown {
    time: String,
    previous: String,
}

impl Check {
    fn new(args: &VerifyArgs) -> Self {
        // Nothing that could be cut off came before the first entry.
        let expect = args.expect.clone().filter(|hash| hash != AuditLine::NOTHING_BEFORE);
        Self { follows: args.follows.clone(), expect, count: 0, first_time: String::new(), last: None }
    }

    fn take(&mut self, page: Vec<AuditLine>) -> anyhow::Result<()> {
        self.count += page.len() as u64;
        if let Some(hash) = &self.expect
            && page.iter().any(|line| line.hash() == *hash)
        {
            self.expect = None;
        }
        let mut lines = page.into_iter();
        if self.last.is_none()
            && let Some(first) = lines.next()
        {
            self.begin(first)?;
        }
        self.last = verify_audit(self.last.take(), lines).context("the audit log is not whole")?;
        Ok(())
    }

    fn begin(&mut self, first: AuditLine) -> anyhow::Result<()> {
        let shown = shown(&first)?;
        self.first_time = shown.time;
        self.last = match &self.follows {
            Some(hash) => {
                ensure!(
                    shown.previous == *hash,
                    "the audit log is not whole: entry {} follows {}, not {hash}",
                    first.sequence,
                    shown.previous
                );
                Some(first)
            }
            None => verify_audit(None, [first]).context("the audit log is not whole")?,
        };
        Ok(())
    }

    fn end(self, out: &mut impl Write) -> anyhow::Result<()> {
        if let Some(hash) = self.expect {
            bail!(
                "no entry has the hash {hash}: the end of the log was cut off or written anew since that hash was kept"
            );
        }
        let Some(last) = self.last else {
            return Ok(writeln!(out, "the audit log is empty")?);
        };
        let entries = if self.count == 1 { "entry" } else { "entries" };
        writeln!(
            out,
            "the audit log is whole: {} {entries}, {} to {}",
            self.count,
            self.first_time,
            shown(&last)?.time
        )?;
        writeln!(out, "last entry: {}, hash {}", last.sequence, last.hash())?;
        Ok(writeln!(out, "keep that hash elsewhere: what is cut off at the end shows only against it")?)
    }
}

fn shown(line: &AuditLine) -> anyhow::Result<Shown> {
    serde_json::from_str(&line.text)
        .with_context(|| format!("entry {} of the audit log is not one of ours", line.sequence))
}

fn parse_hash(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let fits = text.len() == AuditLine::NOTHING_BEFORE.len() && text.bytes().all(|b| b.is_ascii_hexdigit());
    if fits { Ok(text) } else { Err("expected 64 hex digits".into()) }
}

#[cfg(test)]
mod tests;
