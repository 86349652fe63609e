//! `farebox check --live --rehearse`: this config's routes are paid for, on embedded chains and before a sample upstream. No money that is
//! worth anything moves, and the real chains, upstreams and books are left alone.

mod stage;
mod transfer;
mod x402;

use std::sync::Arc;

use farebox_core::{
    PaymentState, RailName,
    ports::{Ledger as _, PaymentFilter},
    verify_audit,
};
use farebox_evm::ChainConfig;

use self::stage::{Line, Stage};
use super::finding::Findings;
use crate::config::Config;

/// More lines than a rehearsal writes into the audit log.
const AUDIT_LINES_MAX: u32 = 10_000;

/// Pays by every rail that a route is offered by, and tries what must be refused.
pub(super) async fn run(config: &Config, chains: &[ChainConfig], findings: &mut Findings) {
    let stage = match Box::pin(Stage::set(config, chains)).await {
        Ok(stage) => stage,
        Err(error) => return findings.fail("rehearsal", "rehearsal", format!("it could not begin: {error:#}")),
    };
    let mut paid = Vec::new();
    for rail in RailName::ALL {
        let Some(line) = stage.line(config, rail) else { continue };
        let subject = format!("rehearsal, {rail}");
        let played = match rail {
            RailName::X402 => Box::pin(x402::play(&stage, &line, &subject, findings)).await,
            RailName::L402 => continue,
            RailName::Transfer => Box::pin(transfer::play(&stage, &line, &subject, findings)).await,
        };
        match played {
            Ok(()) => paid.push((rail, line)),
            Err(error) => findings.fail("rehearsal", subject, format!("it broke off: {error:#}")),
        }
    }
    if paid.is_empty() {
        findings.warn("rehearsal", "rehearsal", "no route was paid for: is there one with a price?");
    }
    if let Err(error) = books(&stage, &paid, findings).await {
        findings.fail("rehearsal_books", "rehearsal, books", format!("{error:#}"));
    }
    if let Err(error) = stage.strike().await {
        findings.fail("rehearsal", "rehearsal", format!("the gateway ended: {error:#}"));
    }
}

/// Every payment once and settled, nothing else, and a log of decisions that is whole.
async fn books(stage: &Stage, paid: &[(RailName, Line)], findings: &mut Findings) -> anyhow::Result<()> {
    let ledger = Arc::clone(&stage.trial.ledger);
    let payments = ledger.list(&PaymentFilter::default()).await?;
    for (rail, line) in paid {
        let of_rail: Vec<_> = payments.iter().filter(|payment| payment.rail == *rail).collect();
        let settled: Vec<_> = of_rail.iter().filter(|payment| payment.state == PaymentState::Settled).collect();
        let right = match &settled[..] {
            [payment] => payment.amount.units == line.units && payment.transaction.is_some(),
            _ => false,
        };
        let message = match settled.first() {
            Some(payment) if right => format!("has payment {} over {} units, once and settled", payment.id, line.units),
            _ => format!("has {} settled payments by {rail}, expected one over {} units", settled.len(), line.units),
        };
        findings.expect(right, "rehearsal_books", format!("rehearsal, books of {rail}"), message);
    }
    let lines = ledger.audit_lines(0, AUDIT_LINES_MAX).await?;
    let count = lines.len();
    match verify_audit(None, lines) {
        Ok(_) => {
            let message = format!("has {count} entries, and every one names the one before it");
            findings.expect(count >= paid.len(), "rehearsal_audit", "rehearsal, audit log", message);
        }
        Err(problem) => findings.fail("rehearsal_audit", "rehearsal, audit log", problem.to_string()),
    }
    Ok(())
}
