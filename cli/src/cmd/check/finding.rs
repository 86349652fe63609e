//! What was found, for people and for programs.

use std::fmt;

use farebox_evm::{ChainReport, Severity};
use serde::Serialize;

use crate::{
    config::mistake::Mistakes,
    wiring::{EIP3009_HINT, needs_eip3009},
};

/// How one thing turned out; the worse, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// As it should be.
    Pass,
    /// Works, but somebody should look at it.
    Warn,
    /// Does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    outcome: Outcome,
    /// Stable, snake_case.
    code: &'static str,
    /// Which chain, route, file or address.
    subject: String,
    /// What, expected, found, next; one line.
    message: String,
}

/// All of them, in the order in which they were looked at.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub(crate) fn pass(&mut self, code: &'static str, subject: impl Into<String>, message: impl Into<String>) {
        self.add(Outcome::Pass, code, subject, message);
    }

    pub(crate) fn warn(&mut self, code: &'static str, subject: impl Into<String>, message: impl Into<String>) {
        self.add(Outcome::Warn, code, subject, message);
    }

    pub(crate) fn fail(&mut self, code: &'static str, subject: impl Into<String>, message: impl Into<String>) {
        self.add(Outcome::Fail, code, subject, message);
    }

    /// One line: whatever an error's text or a stranger's answer brings along is made so.
    pub(crate) fn add(
        &mut self,
        outcome: Outcome,
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
    ) {
        let message = message.into().lines().map(str::trim).collect::<Vec<_>>().join("; ");
        self.0.push(Finding { outcome, code, subject: subject.into(), message });
    }

    /// What was found out about a chain.
    pub(crate) fn chain(&mut self, report: ChainReport) {
        for finding in report.findings {
            let outcome = match finding.severity {
                Severity::Fine => Outcome::Pass,
                Severity::Warning => Outcome::Warn,
                Severity::Error => Outcome::Fail,
            };
            // The subject says which network already.
            let network = report.network.to_string();
            let message = finding.message.strip_prefix(&format!("{network}: ")).unwrap_or(&finding.message);
            let hint = if needs_eip3009(message) { format!("; {EIP3009_HINT}") } else { String::new() };
            self.add(outcome, finding.code, network, format!("{message}{hint}"));
        }
    }

    /// The same, before real money: a recipient whose key is on this machine is a fault.
    pub(crate) fn chain_for_money(&mut self, report: ChainReport) {
        let strict = |mut finding: farebox_evm::Finding| {
            if finding.code == "pay_to_is_relayer" {
                finding.severity = Severity::Error;
            }
            finding
        };
        self.chain(ChainReport { findings: report.findings.into_iter().map(strict).collect(), ..report });
    }

    /// Passes if `good`, else fails.
    #[cfg(feature = "demo")]
    pub(crate) fn expect(
        &mut self,
        good: bool,
        code: &'static str,
        subject: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.add(if good { Outcome::Pass } else { Outcome::Fail }, code, subject, found);
    }

    /// The mistakes of the config.
    pub(crate) fn mistakes(&mut self, mistakes: &Mistakes) {
        for mistake in &mistakes.list {
            let hint = mistake.hint.as_ref().map_or_else(String::new, |hint| format!("; {hint}"));
            self.fail("config", mistakes.place(mistake), format!("{}{hint}", mistake.what));
        }
    }

    /// The worst outcome.
    pub(crate) fn worst(&self) -> Outcome {
        self.0.iter().map(|finding| finding.outcome).max().unwrap_or(Outcome::Pass)
    }

    /// `{"outcome": .., "findings": [..]}`.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let all = serde_json::json!({ "outcome": self.worst(), "findings": self.0 });
        serde_json::to_string_pretty(&all).map(|text| text + "\n")
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.0 {
            let outcome = match finding.outcome {
                Outcome::Pass => "pass",
                Outcome::Warn => "warn",
                Outcome::Fail => "FAIL",
            };
            writeln!(f, "{outcome}  {}: {}", finding.subject, finding.message)?;
        }
        let count = |outcome| self.0.iter().filter(|finding| finding.outcome == outcome).count();
        let (pass, warn, fail) = (count(Outcome::Pass), count(Outcome::Warn), count(Outcome::Fail));
        writeln!(f, "{pass} passed, {}, {fail} failed", super::count(warn, "warning"))
    }
}
