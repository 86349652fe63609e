//! Text that a stranger sent, made safe to print.

use std::fmt;

use crate::CredentialDigest;

/// The most characters of a stranger's text that we ever print.
const PRINTED_CHARS_MAX: usize = 120;

/// Text from outside. Prints with control characters, quotes and non-ASCII escaped, cut at 120 characters, so that it cannot
/// forge a log line, move a terminal's cursor or flood a message.
#[derive(Clone, PartialEq, Eq)]
pub struct Untrusted(String);

impl Untrusted {
    /// Takes the text as it came.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Takes bytes that need not be UTF-8.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The text as it came, not safe to print.
    #[must_use]
    pub fn as_raw(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        f.write_str("\"")?;
        for c in chars.by_ref().take(PRINTED_CHARS_MAX) {
            write!(f, "{}", c.escape_default())?;
        }
        f.write_str(if chars.next().is_some() { "\"…" } else { "\"" })
    }
}

impl fmt::Debug for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A path and query short enough to store: at most `bytes_max` bytes of it, and what tells it from others that begin alike.
#[must_use]
pub fn shortened(resource: String, bytes_max: usize) -> String {
    if resource.len() <= bytes_max {
        return resource;
    }
    let cut = (0..=bytes_max).rev().find(|at| resource.is_char_boundary(*at)).unwrap_or(0);
    let digest = CredentialDigest::of(&[resource.as_bytes()]);
    format!("{}…#{digest:?}", &resource[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_resource_keeps_its_beginning_and_differs_from_others_that_begin_alike() {
        let long = |end| format!("/{}{end}", "é".repeat(30));
        let cut = shortened(long("a"), 10);
        assert!(cut.starts_with("/éééé…#") && cut.len() < 100, "{cut}");
        assert_ne!(cut, shortened(long("b"), 10));
        assert_eq!(shortened("/éé".to_owned(), 5), "/éé");
    }

    #[test]
    fn control_characters_are_escaped_and_long_text_is_cut() {
        let shown = Untrusted::new(format!("a\r\nlevel=ERROR \u{1b}[2J{}", "x".repeat(500))).to_string();
        assert!(shown.starts_with("\"a\\r\\nlevel=ERROR \\u{1b}[2J"));
        assert!(shown.ends_with("…") && shown.len() < 200);
    }
}
