//! Runs wrk and reads what it prints.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use farebox_e2e::{Tool, tool};

/// What one run of wrk said.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) seconds: f64,
    pub(crate) requests: u64,
    /// Answers that are neither 2xx nor 3xx.
    pub(crate) refused: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// How a load is driven.
#[derive(Debug)]
pub(crate) struct Drive<'a> {
    pub(crate) url: &'a str,
    pub(crate) connections: usize,
    pub(crate) seconds: u64,
    /// A Lua script and its arguments.
    pub(crate) script: Option<(&'a Path, Vec<String>)>,
}

/// wrk's own threads, for every contender alike.
pub(crate) const THREADS: usize = 2;

/// Runs wrk once. Socket errors are an error: a figure with broken connections in it means nothing.
pub(crate) fn drive(drive: &Drive<'_>) -> Result<Load> {
    let mut command = Command::new(tool(Tool::Wrk)?);
    command.args(["--latency", "--timeout", "20s", "-t", &THREADS.to_string()]);
    command.args(["-c", &drive.connections.to_string(), "-d", &format!("{}s", drive.seconds)]);
    if let Some((script, _)) = &drive.script {
        command.arg("-s").arg(script);
    }
    command.arg(drive.url);
    if let Some((_, arguments)) = &drive.script {
        command.arg("--").args(arguments);
    }
    let output = command.output().context("run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    read(&text).with_context(|| format!("cannot read what wrk said:\n{text}"))
}

fn read(text: &str) -> Result<Load> {
    let after = |label: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(label))
            .map(str::trim)
            .with_context(|| format!("no {label}"))
    };
    ensure!(!text.contains("Socket errors"), "socket errors");
    let total = text.lines().find(|line| line.contains(" requests in ")).context("no total")?;
    let (requests, rest) = total.trim().split_once(" requests in ").context("no total")?;
    let duration = rest.split(',').next().context("no duration")?;
    Ok(Load {
        seconds: milliseconds(duration)? / 1000.0,
        requests: requests.parse()?,
        refused: after("Non-2xx or 3xx responses:").map_or(Ok(0), str::parse)?,
        p50_ms: milliseconds(after("50%")?)?,
        p99_ms: milliseconds(after("99%")?)?,
    })
}

fn milliseconds(text: &str) -> Result<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        "m" => 60_000.0,
        unit => anyhow::bail!("unknown unit {unit}"),
    };
    Ok(digits.parse::<f64>()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let load = read(
            "Running 5s test @ http://127.0.0.1:1/\n  2 threads and 16 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n  \
             Latency Distribution\n     50%  812.00us\n     75%    1.00ms\n     90%    2.00ms\n     99%    1.50s \n  51234 requests in 5.10s, 9.1MB read\n  \
             Non-2xx or 3xx responses: 12\nRequests/sec:  10045.8\n",
        )
        .unwrap();
        assert_eq!((load.requests, load.refused), (51_234, 12));
        assert!(
            (load.p50_ms - 0.812).abs() < 1e-9
                && (load.p99_ms - 1500.0).abs() < 1e-9
                && (load.seconds - 5.1).abs() < 1e-9
        );
    }
}
