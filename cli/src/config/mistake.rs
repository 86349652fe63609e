//! Mistakes in a config file, told so that they can be mended: where, what was expected, what was found, what to do.

use std::{fmt, ops::Range, path::PathBuf};

/// At most so many mistakes are told at once: the rest mostly follows from these.
const MISTAKES_TOLD_MAX: usize = 50;

/// A line is shown up to so many characters.
const LINE_CHARS_MAX: usize = 200;

/// One mistake. Its text never holds a secret; the line it points at is masked when it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Bytes of the file; empty for what is missing at the end.
    pub(crate) span: Range<usize>,
    /// Such as `route[1].price`; empty for the file as a whole.
    pub(crate) key: String,
    /// What is wrong, what was expected, what was found; one line.
    pub(crate) what: String,
    /// What to do; a line of its own.
    pub(crate) hint: Option<String>,
}

/// Every mistake of one file, and the text to show them in.
#[derive(thiserror::Error)]
pub(crate) struct Mistakes {
    /// The file as the user named it.
    pub(crate) path: PathBuf,
    /// The file's text.
    pub(crate) text: String,
    /// One or more, in the order of the file.
    pub(crate) list: Vec<Mistake>,
}

impl Mistakes {
    /// Sorts the list by place.
    pub(crate) fn new(path: PathBuf, text: String, mut list: Vec<Mistake>) -> Self {
        list.sort_by_key(|mistake| (mistake.span.start, mistake.span.end));
        list.dedup();
        Self { path, text, list }
    }

    /// Such as `farebox.toml:14:1, route[1].price`.
    pub(crate) fn place(&self, mistake: &Mistake) -> String {
        let place = Place::of(&self.text, &mistake.span);
        let key = if mistake.key.is_empty() { String::new() } else { format!(", {}", mistake.key) };
        format!("{}:{}:{}{key}", self.path.display(), place.line, place.column)
    }

    fn show(&self, f: &mut fmt::Formatter<'_>, mistake: &Mistake) -> fmt::Result {
        let place = Place::of(&self.text, &mistake.span);
        let gutter = " ".repeat(place.line.to_string().len());
        writeln!(f, "error: {}", mistake.what)?;
        writeln!(f, "{gutter}--> {}", self.place(mistake))?;
        writeln!(f, "{gutter} |\n{} | {}", place.line, place.shown)?;
        writeln!(f, "{gutter} | {}{}", " ".repeat(place.indent), "^".repeat(place.carets))?;
        if let Some(hint) = &mistake.hint {
            writeln!(f, "{gutter} = {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in self.list.iter().take(MISTAKES_TOLD_MAX) {
            self.show(f, mistake)?;
            writeln!(f)?;
        }
        if self.list.len() > MISTAKES_TOLD_MAX {
            writeln!(f, "and {} more", self.list.len() - MISTAKES_TOLD_MAX)?;
        }
        let count = self.list.len();
        write!(f, "{}: {count} mistake{}", self.path.display(), if count == 1 { "" } else { "s" })
    }
}

/// As [`fmt::Display`]: the derived form would print the file, secrets included.
impl fmt::Debug for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A span as people count: lines and columns from 1, and the line as it may be shown.
struct Place {
    line: usize,
    column: usize,
    shown: String,
    indent: usize,
    carets: usize,
}

impl Place {
    fn of(text: &str, span: &Range<usize>) -> Self {
        let start = floor_char_boundary(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let end = floor_char_boundary(text, span.end).clamp(start, line_end.max(start));
        // Masking keeps every character's place, so that the carets still point at what is meant.
        let shown: String = mask(&text[line_start..line_end])
            .chars()
            .take(LINE_CHARS_MAX)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let before = text[line_start..start].chars().count();
        Self {
            line: text[..start].matches('\n').count() + 1,
            column: before + 1,
            indent: before.min(LINE_CHARS_MAX),
            carets: text[start..end].chars().count().clamp(1, LINE_CHARS_MAX),
            shown: shown.trim_end().to_owned(),
        }
    }
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// A URL's path this short holds no provider's key worth hiding, unless the line says `rpc`.
const URL_PATH_SHOWN_MAX: usize = 20;

/// Words that stand on a line with a secret.
const SECRET_WORDS: [&str; 8] = ["key", "pass", "pasw", "relayer", "secret", "nwc", "rune", "macaroon"];

/// The line with every character of what may be a secret as `*`: runs of 64 hex digits or more, what follows the host of a
/// URL and its user part, and any text in quotes on a line that names a secret, unless it only refers to one. A terminal's
/// scrollback and a CI log are read by more people than the file.
fn mask(line: &str) -> String {
    let mut chars: Vec<char> = line.chars().collect();
    mask_hex_runs(&mut chars);
    let lower = line.to_lowercase();
    mask_urls(&mut chars, if lower.contains("rpc") { 0 } else { URL_PATH_SHOWN_MAX });
    if SECRET_WORDS.iter().any(|word| lower.contains(word)) {
        mask_quoted(&mut chars);
    }
    chars.into_iter().collect()
}

fn mask_hex_runs(chars: &mut [char]) {
    let mut start = 0;
    for at in 0..=chars.len() {
        if at < chars.len() && chars[at].is_ascii_hexdigit() {
            continue;
        }
        if at - start >= 64 {
            chars[start..at].fill('*');
        }
        start = at + 1;
    }
}

/// A provider's key is in the path, the query or the user part of its URL.
fn mask_urls(chars: &mut [char], path_shown_max: usize) {
    let mut at = 0;
    while let Some(found) = chars[at..].windows(3).position(|w| w == [':', '/', '/']) {
        let host = at + found + 3;
        let stop = |c: &char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ']' | '}');
        let end = chars[host..].iter().position(stop).map_or(chars.len(), |n| host + n);
        if let Some(user_end) = chars[host..end].iter().rposition(|c| *c == '@') {
            chars[host..host + user_end].fill('*');
        }
        if let Some(path) = chars[host..end].iter().position(|c| matches!(c, '/' | '?' | '#'))
            && end - (host + path + 1) > path_shown_max
        {
            chars[host + path + 1..end].fill('*');
        }
        at = end;
    }
}

fn mask_quoted(chars: &mut [char]) {
    let mut at = 0;
    while at < chars.len() {
        let quote = chars[at];
        if !matches!(quote, '"' | '\'') {
            at += 1;
            continue;
        }
        let end = chars[at + 1..].iter().position(|c| *c == quote).map_or(chars.len(), |n| at + 1 + n);
        let inside: String = chars[at + 1..end].iter().collect();
        if !inside.starts_with("${") && !inside.starts_with("file:") {
            chars[at + 1..end].fill('*');
        }
        at = end + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_shown_without_their_secrets() {
        let key = "ab".repeat(32);
        for (line, shown) in [
            (format!("x = 0x{key}"), format!("x = 0x{}", "*".repeat(64))),
            (
                "rpc = [\"https://base.example/v2/a1b2c3d4e5f6a7b8c9d0e1f2\"]".to_owned(),
                format!("rpc = [\"https://base.example/{}\"]", "*".repeat(27)),
            ),
            (
                "rpc = [\"https://me:word@base.example/\"]".to_owned(),
                "rpc = [\"https://*******@base.example/\"]".to_owned(),
            ),
            (
                "relayer = { keystore = \"a.json\", pasword = \"hunter2\" }".to_owned(),
                "relayer = { keystore = \"******\", pasword = \"*******\" }".to_owned(),
            ),
            ("relayer = { key = \"${KEY}\" }".to_owned(), "relayer = { key = \"${KEY}\" }".to_owned()),
            (
                "upstream = \"http://127.0.0.1:9000/base\"".to_owned(),
                "upstream = \"http://127.0.0.1:9000/base\"".to_owned(),
            ),
        ] {
            assert_eq!(mask(&line), shown);
        }
    }

    #[test]
    fn a_place_past_the_end_is_shown_at_the_end() {
        let place = Place::of("é", &(100..200));
        assert_eq!((place.line, place.column, place.carets), (1, 2, 1));
    }
}
