//! Whether this machine's clock agrees with those that payments are measured by.

use farebox_core::Timestamp;
use farebox_evm::{ChainConfig, ClockHand};

use crate::{
    cmd::check::{
        finding::{Findings, Outcome},
        world::Dated,
    },
    system::SystemClock,
};

/// From here on payers notice: bills and codes live for minutes.
const WARN_S: u64 = 5;
/// From here on good payments are refused: the wire page bears so much.
const FAIL_S: u64 = 30;

/// One line for each clock that could be read.
pub(super) async fn look(chains: &[ChainConfig], dates: Vec<Dated>, findings: &mut Findings) {
    for chain in chains {
        for reading in farebox_evm::clocks(chain, &SystemClock).await {
            let ahead = reading.theirs > reading.ours;
            match reading.by {
                // A block may be as old as it likes; a newer one than now tells of a clock.
                ClockHand::Block if ahead => {
                    judge(format!("clock, newest block of {}", chain.network), reading.theirs, reading.ours, findings);
                }
                ClockHand::Block => {}
                ClockHand::HttpDate => judge(format!("clock, {}", reading.of), reading.theirs, reading.ours, findings),
            }
        }
    }
    for (of, theirs, ours) in dates {
        judge(format!("clock, {of}"), theirs, ours, findings);
    }
}

fn judge(subject: String, theirs: Timestamp, ours: Timestamp, findings: &mut Findings) {
    let (theirs, ours) = (theirs.unix_s(), ours.unix_s());
    let apart = theirs.abs_diff(ours);
    let side = if ours > theirs { "ahead of" } else { "behind" };
    let (outcome, message) = match apart {
        0..=WARN_S => (Outcome::Pass, format!("agrees with ours within {} s", apart.max(1))),
        _ => (
            if apart > FAIL_S { Outcome::Fail } else { Outcome::Warn },
            format!("ours is {apart} s {side} it; run NTP here: payments are refused as too late or too early by it"),
        ),
    };
    findings.add(outcome, "clock", subject, message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_apart_is_told_from_six_seconds_on_and_fails_from_thirty_one() {
        let at = Timestamp::from_unix_s(1_700_000_000);
        let judged = |theirs: Timestamp| {
            let mut findings = Findings::default();
            judge("x".into(), theirs, at, &mut findings);
            findings.worst()
        };
        for (apart, expected) in
            [(0, Outcome::Pass), (5, Outcome::Pass), (6, Outcome::Warn), (30, Outcome::Warn), (31, Outcome::Fail)]
        {
            assert_eq!(judged(Timestamp::from_unix_s(at.unix_s() + apart)), expected, "{apart} s ahead");
            assert_eq!(judged(Timestamp::from_unix_s(at.unix_s() - apart)), expected, "{apart} s behind");
        }
    }
}
