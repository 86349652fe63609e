//! `farebox init`: a commented config to start from.

use std::{fs::OpenOptions, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;

use super::Globals;

/// The text that is written.
const TEMPLATE: &str = include_str!("init.toml");

/// Write a commented config to start from. Never overwrites a file.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to write it [default: the config file]
    path: Option<PathBuf>,
}

/// Writes the config.
///
/// # Errors
/// The file exists, or cannot be written.
pub(crate) fn run(args: &Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let path = args.path.as_ref().unwrap_or(&globals.config);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    // A node's URL may hold a provider's key, and is often written in plain.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            anyhow::bail!("{} exists, and is never overwritten", path.display());
        }
        opened => opened.with_context(|| format!("{} could not be written", path.display()))?,
    };
    file.write_all(TEMPLATE.as_bytes()).with_context(|| format!("{} could not be written", path.display()))?;
    let path = path.display();
    super::print(&format!(
        "wrote {path}\nnext: edit it, set FAREBOX_PAY_TO and FAREBOX_RELAYER_KEY, then run `farebox check --config {path}`\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_written_config_resolves() {
        let config = crate::config::parse(Path::new("farebox.toml"), TEMPLATE).unwrap();
        assert_eq!((config.chains.len(), config.routes.len()), (1, 2));
    }

    /// What stands behind `#` is meant to be used by taking the `#` away.
    #[test]
    fn every_commented_key_resolves_too() {
        let uncommented: String = TEMPLATE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") || rest.starts_with('[') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert_ne!(uncommented, TEMPLATE);
        crate::config::parse(Path::new("farebox.toml"), &uncommented).unwrap();
    }
}
