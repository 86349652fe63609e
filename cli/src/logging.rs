//! Log lines on standard error.

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    config::{resolve::Log, values::LogFormat},
    system,
};

/// Overrides the config's level, by module too: `info,farebox_evm=debug`.
const LEVEL_VARIABLE: &str = "FAREBOX_LOG";

/// What commands other than `serve` log: only what is wrong.
pub(crate) const QUIET: Log = Log { format: LogFormat::Pretty, level: tracing::Level::WARN };

/// Starts logging. Lines logged before are lost.
///
/// # Errors
/// `FAREBOX_LOG` cannot be read.
pub(crate) fn start(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::from_level(log.level).into());
    let filter = filter.parse(system::environment(LEVEL_VARIABLE).unwrap_or_default()).with_context(|| {
        format!("the environment variable {LEVEL_VARIABLE} holds no log filter such as info,farebox_evm=debug")
    })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Pretty => {
            use std::io::IsTerminal as _;
            lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init()
        }
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging was started twice: {error}"))
}
