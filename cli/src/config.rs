//! The config file: read with every mistake told at once, then resolved into what the rest of the binary works with.

mod chains;
mod consistency;
pub(crate) mod lightning;
pub(crate) mod literal;
pub(crate) mod mistake;
pub(crate) mod money;
pub(crate) mod node;
mod rates;
pub(crate) mod read;
#[cfg(test)]
mod reference;
pub(crate) mod resolve;
pub(crate) mod secret;
#[cfg(test)]
mod tests;
pub(crate) mod values;

use std::path::{Path, PathBuf};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

pub(crate) use self::{
    chains::Chain,
    consistency::never_offered,
    lightning::Lightning,
    node::NodeSource,
    resolve::{Config, PaidRoute, Route, Secrets},
};
use self::{
    literal::FileLiteral,
    mistake::{Mistake, Mistakes},
    read::{At, Literal, Notes},
};

/// The longest config that is read.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// At most so many syntax errors are told: the parser goes on after the first, but finds ever more that follow from it.
const SYNTAX_MISTAKES_TOLD_MAX: usize = 3;

/// Why there is no config.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// It is not where it was looked for.
    #[error("there is no config file {path}", path = .path.display())]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("the config file {path} could not be read", path = .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no config.
    #[error("the config file {path} has {bytes} bytes, more than {FILE_BYTES_MAX}", path = .path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// How large.
        bytes: u64,
    },
    /// It says what cannot be.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

/// Reads and resolves the file at `path`. Fetches no secret.
///
/// # Errors
/// [`LoadError`], with every mistake of the file.
pub(crate) fn load(path: &Path) -> Result<Config, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let bytes = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(LoadError::Missing { path: path.to_owned() });
        }
        metadata => metadata.map_err(unreadable)?.len(),
    };
    if bytes > FILE_BYTES_MAX {
        return Err(LoadError::TooLarge { path: path.to_owned(), bytes });
    }
    Ok(parse(path, &std::fs::read_to_string(path).map_err(unreadable)?)?)
}

/// Resolves the text of the file at `path`, which says only where relative paths start and what messages name.
///
/// # Errors
/// Every mistake of the text.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Config, Mistakes> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    let syntax = syntax.iter().take(SYNTAX_MISTAKES_TOLD_MAX).map(|error| syntax_mistake(error, text));
    let mut notes = Notes::with(syntax.collect());
    // What broken syntax leaves behind would only be blamed for what it lacks.
    let config = if notes.list.is_empty() { resolve(path, text, document, &mut notes) } else { None };
    match config {
        Some(config) if notes.list.is_empty() => Ok(config),
        _ => Err(Mistakes::new(path.to_owned(), text.to_owned(), notes.list)),
    }
}

fn resolve(path: &Path, text: &str, document: Spanned<DeTable<'_>>, notes: &mut Notes) -> Option<Config> {
    // The file as a whole starts at its first byte: a key that it lacks is told there.
    let root = Spanned::new(0..0, DeValue::Table(document.into_inner()));
    let literal = FileLiteral::read(&root, &At::root(), notes)?;
    resolve::resolve(path, text, literal, notes)
}

fn syntax_mistake(error: &toml::de::Error, text: &str) -> Mistake {
    let what = error.message().lines().collect::<Vec<_>>().join(", ");
    Mistake {
        span: error.span().unwrap_or(text.len()..text.len()),
        key: String::new(),
        what: format!("not TOML: {what}"),
        hint: None,
    }
}
