//! What a process used, as the kernel counts it.

use std::fs;

use anyhow::{Context, Result};

/// The kernel's clock ticks a second: 100 on every Linux that Rust runs on, by `getconf CLK_TCK`.
const TICKS_PER_S: f64 = 100.0;

/// CPU seconds, user and system, of a process and its children that still run.
pub(crate) fn cpu_s(root: u32) -> Result<f64> {
    tree(root)?.into_iter().map(|pid| ticks(pid).map(|ticks| ticks / TICKS_PER_S)).sum()
}

/// Resident memory of a process and its children that still run, MiB.
pub(crate) fn memory_mib(root: u32) -> Result<f64> {
    let mut kib = 0.0;
    for pid in tree(root)? {
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        kib += line.trim().trim_end_matches("kB").trim().parse::<f64>()?;
    }
    Ok(kib / 1024.0)
}

fn tree(root: u32) -> Result<Vec<u32>> {
    let mut pids = vec![root];
    let mut at = 0;
    while let Some(pid) = pids.get(at).copied() {
        at += 1;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .with_context(|| format!("process {pid} is gone"))?;
        pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(pids)
}

fn ticks(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // The name stands in parentheses and may hold anything; the fields after it do not.
    let (_, fields) = stat.rsplit_once(')').context("odd /proc stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |at: usize| fields.get(at).context("odd /proc stat").and_then(|text| Ok(text.parse::<f64>()?));
    // utime and stime: fields 14 and 15 of proc(5), counted from the state as field 3.
    Ok(field(11)? + field(12)?)
}
