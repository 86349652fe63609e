//! Figures of all rounds, and the table made of their medians.

use std::fmt;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::wrk::Load;

/// Everything measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    loads: Vec<Series>,
    facts: Vec<Fact>,
}

/// One contender under one load, over all rounds.
#[derive(Debug, Serialize)]
struct Series {
    load: String,
    contender: String,
    rounds: Vec<Round>,
}

/// One round of one contender.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) requests_per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) cpu_us_per_request: f64,
    pub(crate) memory_mib: f64,
}

/// A single figure with its bound.
#[derive(Debug, Serialize)]
struct Fact {
    what: String,
    found: String,
    wanted: String,
}

impl Round {
    /// `served` of the load's requests count; CPU is what the contender's processes used meanwhile.
    pub(crate) fn new(load: &Load, served: u64, cpu_s: f64, memory_mib: f64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
        let served = served as f64;
        Self {
            requests_per_s: served / load.seconds,
            p50_ms: load.p50_ms,
            p99_ms: load.p99_ms,
            cpu_us_per_request: cpu_s * 1e6 / served.max(1.0),
            memory_mib,
        }
    }
}

impl Report {
    pub(crate) fn round(&mut self, load: &str, contender: &str, round: Round) {
        eprintln!(
            "{load:>6} {contender:<20} {:>8.0}/s  p50 {:>7.2} ms  p99 {:>7.2} ms  {:>7.1} us CPU  {:>6.1} MiB",
            round.requests_per_s, round.p50_ms, round.p99_ms, round.cpu_us_per_request, round.memory_mib
        );
        match self.loads.iter_mut().find(|series| series.load == load && series.contender == contender) {
            Some(series) => series.rounds.push(round),
            None => self.loads.push(Series { load: load.into(), contender: contender.into(), rounds: vec![round] }),
        }
    }

    pub(crate) fn fact(&mut self, what: &str, found: impl Into<String>, wanted: &str) {
        let found = found.into();
        eprintln!("{what}: {found} (wanted: {wanted})");
        self.facts.push(Fact { what: what.into(), found, wanted: wanted.into() });
    }
}

impl Series {
    fn median(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        let mut figures: Vec<f64> = self.rounds.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "load",
            "contender",
            "requests/s",
            "ratio",
            "p50 ms",
            "p99 ms",
            "p99 ratio",
            "CPU us",
            "MiB",
        ]);
        for series in &self.loads {
            // The first contender of a load is the peer that the others are held against.
            let peer = self.loads.iter().find(|peer| peer.load == series.load).unwrap_or(series);
            let rate = series.median(|r| r.requests_per_s);
            let p99 = series.median(|r| r.p99_ms);
            table.add_row([
                series.load.clone(),
                series.contender.clone(),
                format!("{rate:.0}"),
                format!("{:.2}", rate / peer.median(|r| r.requests_per_s)),
                format!("{:.2}", series.median(|r| r.p50_ms)),
                format!("{p99:.2}"),
                format!("{:.2}", p99 / peer.median(|r| r.p99_ms)),
                format!("{:.1}", series.median(|r| r.cpu_us_per_request)),
                format!("{:.1}", series.median(|r| r.memory_mib)),
            ]);
        }
        writeln!(f, "{table}\n")?;
        let mut facts = Table::new();
        facts.load_style(presets::ASCII_MARKDOWN);
        facts.set_header(["what", "found", "wanted"]);
        for fact in &self.facts {
            facts.add_row([&fact.what, &fact.found, &fact.wanted]);
        }
        write!(f, "{facts}")
    }
}
