//! Text that a stranger sent, made safe to print.

use std::fmt;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_long_text_is_cut() {
        let shown = Untrusted::new(format!("a\r\nlevel=ERROR \u{1b}[2J{}", "x".repeat(500))).to_string();
        assert!(shown.starts_with("\"a\\r\\nlevel=ERROR \\u{1b}[2J"));
        assert!(shown.ends_with("…") && shown.len() < 200);
    }
}
