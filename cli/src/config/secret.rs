//! Secrets: the config only says where they are, and they are fetched for the commands that need them.

use std::{fmt, path::Path};

use farebox_evm::RpcUrl;
use toml::{Spanned, de::DeValue};
use zeroize::Zeroizing;

use super::read::{At, Literal, Notes};

/// The longest secret, and the longest value that a variable puts into an RPC URL.
const SECRET_BYTES_MAX: u64 = 4_096;

/// Reads an environment variable: `None` if it is not set or not UTF-8.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SecretRef {
    /// In an environment variable.
    Env(String),
    /// In a file: its text without the newline at the end. Relative to the config file's folder.
    File(String),
}

impl Literal for SecretRef {
    fn expected() -> String {
        "\"${NAME}\" (an environment variable) or \"file:PATH\" (relative to the config file's folder)".to_owned()
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        let text = value.get_ref().as_str().unwrap_or_default();
        if let Some(name) = variable_name(text) {
            return Some(Self::Env(name.to_owned()));
        }
        match text.strip_prefix("file:") {
            Some(path) if !path.is_empty() && !path.contains('\0') => Some(Self::File(path.to_owned())),
            _ => {
                // Never said what was found: it may well be the secret.
                let what = if looks_like_private_key(text) {
                    "a private key stands in the config file, where whoever reads the file can take the money"
                        .to_owned()
                } else {
                    "a secret is never written into the config file itself".to_owned()
                };
                notes.wrong_hint(value.span(), at.path(), what, format!("write {}", Self::expected()))
            }
        }
    }
}

fn looks_like_private_key(text: &str) -> bool {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The name in a whole `${NAME}`.
pub(crate) fn variable_name(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}').filter(|name| is_variable_name(name))
}

fn is_variable_name(name: &str) -> bool {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl SecretRef {
    /// Fetches the secret.
    ///
    /// # Errors
    /// Says where it was looked for and what was wrong, never the secret.
    pub(crate) fn fetch(&self, dir: &Path, env: Environment<'_>) -> Result<Zeroizing<String>, String> {
        let secret = match self {
            Self::Env(name) => env(name).map(Zeroizing::new).ok_or_else(|| not_set(name))?,
            Self::File(path) => read_secret_file(&dir.join(path))?,
        };
        let trimmed = secret.trim_end_matches(['\r', '\n']);
        if trimmed.is_empty() { Err(format!("{self} is empty")) } else { Ok(Zeroizing::new(trimmed.to_owned())) }
    }
}

pub(crate) fn not_set(name: &str) -> String {
    format!("the environment variable {name} is not set")
}

fn read_secret_file(path: &Path) -> Result<Zeroizing<String>, String> {
    let cannot = |error: std::io::Error| format!("the file {} could not be read: {error}", path.display());
    let length = std::fs::metadata(path).map_err(cannot)?.len();
    if length > SECRET_BYTES_MAX {
        return Err(format!("the file {} has {length} bytes, more than a secret's {SECRET_BYTES_MAX}", path.display()));
    }
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(cannot)
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "the environment variable {name}"),
            Self::File(path) => write!(f, "the file {path}"),
        }
    }
}

/// A text, parts of which may come from the environment. It may hold a password, so it never prints.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

/// A node's URL, parts of which may come from the environment. Its path may hold a provider's key, so it never prints.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RpcTemplate(Template);

#[derive(Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Env(String),
}

impl Literal for Template {
    fn expected() -> String {
        "a text in which ${NAME} stands for an environment variable".to_owned()
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        Self::split(value).map_or_else(
            |found| notes.wrong(value.span(), at.path(), format!("expected {}, found {found}", Self::expected())),
            Some,
        )
    }
}

impl Template {
    /// What was found instead, if it is no template; never the text.
    fn split(value: &Spanned<DeValue<'_>>) -> Result<Self, &'static str> {
        let text = value.get_ref().as_str().ok_or("no text")?;
        split_template(text).map(|parts| Self { parts }).ok_or("a ${ without a name and a }")
    }

    /// The text with its variables filled in.
    ///
    /// # Errors
    /// Which variable is not set or too long; never the text.
    pub(crate) fn fill(&self, env: Environment<'_>) -> Result<Zeroizing<String>, String> {
        let mut text = Zeroizing::new(String::new());
        for part in &self.parts {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Env(name) => {
                    let value = env(name).map(Zeroizing::new).ok_or_else(|| not_set(name))?;
                    if value.len() as u64 > SECRET_BYTES_MAX {
                        return Err(format!("the environment variable {name} has more than {SECRET_BYTES_MAX} bytes"));
                    }
                    text.push_str(&value);
                }
            }
        }
        Ok(text)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template(..)")
    }
}

impl Literal for RpcTemplate {
    fn expected() -> String {
        "an http, https, ws or wss URL, in which ${NAME} stands for an environment variable".to_owned()
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        let wrong = |notes: &mut Notes, found: &str| {
            notes.wrong(value.span(), at.path(), format!("expected {}, found {found}", Self::expected()))
        };
        let url = match Template::split(value) {
            Ok(template) => Self(template),
            Err(found) => return wrong(notes, found),
        };
        // A 1 can stand in every part of a URL but its scheme.
        match url.fetch(&|_| Some("1".to_owned())) {
            // A variable for the whole URL, or for its scheme, is looked at when it is fetched.
            _ if matches!(url.0.parts.first(), Some(Part::Env(_))) => Some(url),
            Ok(_) => Some(url),
            // Not what was found: it may hold a provider's key.
            Err(why) => notes.wrong(value.span(), at.path(), why),
        }
    }
}

impl RpcTemplate {
    /// The URL with its variables filled in.
    ///
    /// # Errors
    /// Which variable is not set, or that the result is no such URL; never the URL.
    pub(crate) fn fetch(&self, env: Environment<'_>) -> Result<RpcUrl, String> {
        let text = self.0.fill(env)?;
        RpcUrl::parse(&text).map_err(|error| error.to_string())
    }
}

impl fmt::Debug for RpcTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RpcTemplate(..)")
    }
}

/// `None` if a `${` has no name or no end.
fn split_template(text: &str) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}')?;
        if !is_variable_name(name) {
            return None;
        }
        parts.extend((!before.is_empty()).then(|| Part::Text(before.to_owned())));
        parts.push(Part::Env(name.to_owned()));
        rest = after;
    }
    parts.extend((!rest.is_empty()).then(|| Part::Text(rest.to_owned())));
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::{super::values::read_fragment, *};

    #[test]
    fn rpc_urls_take_variables_and_hide_themselves() {
        let url: RpcTemplate = read_fragment("\"https://base.example/v2/${KEY}?x=${X_1}\"").unwrap();
        assert_eq!(
            url.fetch(&|name| Some(name.to_lowercase())).unwrap(),
            RpcUrl::parse("https://base.example/v2/key?x=x_1").unwrap()
        );
        assert_eq!(url.fetch(&|_| None).unwrap_err(), "the environment variable KEY is not set");
        assert_eq!(format!("{url:?}"), "RpcTemplate(..)");
        assert!(read_fragment::<RpcTemplate>("\"${URL}\"").unwrap().fetch(&|_| Some("ftp://a".to_owned())).is_err());
        for wrong in ["https://a/${", "https://a/${}", "https://a/${A B}", "file:///a", "base.example", "https://"] {
            let mistakes = read_fragment::<RpcTemplate>(&format!("{wrong:?}")).unwrap_err();
            assert!(!mistakes[0].what.contains("base.example"), "{mistakes:?}");
        }
    }

    #[test]
    fn secret_files_are_read_without_their_newline_and_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "abc\r\n").unwrap();
        std::fs::write(dir.path().join("empty"), "\n").unwrap();
        std::fs::write(dir.path().join("big"), "x".repeat(5_000)).unwrap();
        let fetch = |name: &str| SecretRef::File(name.to_owned()).fetch(dir.path(), &|_| None);
        assert_eq!(fetch("key").unwrap().as_str(), "abc");
        assert_eq!(fetch("empty").unwrap_err(), "the file empty is empty");
        assert!(fetch("big").unwrap_err().contains("more than a secret's 4096"));
        assert!(fetch("none").unwrap_err().contains("could not be read"));
    }
}
