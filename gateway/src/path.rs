//! Canonical paths: one spelling for whatever the gateway and the upstream could otherwise read differently.
//!
//! A paid path that an upstream recognises but the gateway does not is served for nothing. So a path that software is known
//! to read in two ways is refused, and what is forwarded is exactly what was matched.

use std::borrow::Cow;

/// A request path in its one spelling.
///
/// `forwarded` is RFC 3986 §6.2.2 normal form: unreserved characters decoded, other escapes as they came with upper-case
/// digits, everything that may not stand bare escaped. `matched` is fully decoded, which is what an upstream's router sees;
/// no decoded character can be taken for a slash, for those are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath<'a> {
    pub(crate) forwarded: Cow<'a, str>,
    pub(crate) matched: Cow<'a, str>,
}

/// A path that two programs could read differently. Answered 400, never matched or forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path {reason}; send it in its plain form")]
pub struct AmbiguousPath {
    /// Such as `contains an empty segment`.
    pub reason: &'static str,
}

impl AmbiguousPath {
    pub(crate) const fn new(reason: &'static str) -> Self {
        Self { reason }
    }

    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "ambiguous_path"
    }
}

impl<'a> CanonicalPath<'a> {
    /// Reads the path of a request target, without its query.
    ///
    /// # Errors
    /// [`AmbiguousPath`]: does not begin with a slash, has an empty or dot segment, a backslash, a `;`, an escaped
    /// slash, what decodes to another escape, control characters, bytes that are not UTF-8, raw
    /// non-ASCII, or an escape that is not two hex digits.
    pub fn parse(raw: &'a str) -> Result<Self, AmbiguousPath> {
        let bytes = raw.as_bytes();
        if bytes.first() != Some(&b'/') {
            return Err(AmbiguousPath::new("does not begin with a slash"));
        }
        let path = if bytes.iter().all(|b| is_plain(*b)) {
            Self { forwarded: Cow::Borrowed(raw), matched: Cow::Borrowed(raw) }
        } else {
            normalise(bytes)?
        };
        refuse_odd_segments(&path.matched)?;
        Ok(path)
    }

    /// What is sent upstream.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.forwarded
    }

    /// The fully decoded form that routes are matched on.
    #[must_use]
    pub fn decoded(&self) -> &str {
        &self.matched
    }
}

fn normalise(bytes: &[u8]) -> Result<CanonicalPath<'static>, AmbiguousPath> {
    let mut forwarded = String::with_capacity(bytes.len() + 8);
    let mut matched = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let decoded = if *byte == b'%' {
            let ([high, low, ..], Some(decoded)) = (tail, escape(tail)) else {
                return Err(AmbiguousPath::new("has an escape that is not % and two hex digits"));
            };
            rest = &tail[2..];
            if !is_unreserved(decoded) {
                forwarded.extend(['%', high.to_ascii_uppercase() as char, low.to_ascii_uppercase() as char]);
            } else {
                forwarded.push(decoded as char);
            }
            if decoded == b'/' {
                return Err(AmbiguousPath::new("contains an escaped slash"));
            }
            decoded
        } else {
            if !byte.is_ascii() {
                return Err(AmbiguousPath::new("contains raw bytes outside ASCII"));
            }
            if is_plain(*byte) {
                forwarded.push(*byte as char);
            } else {
                push_escaped(&mut forwarded, *byte);
            }
            *byte
        };
        refuse_odd_byte(decoded)?;
        matched.push(decoded);
    }
    if matched.windows(3).any(|three| three[0] == b'%' && escape(&three[1..]).is_some()) {
        return Err(AmbiguousPath::new("is escaped twice"));
    }
    // Overlong forms and surrogates are no UTF-8 either.
    let matched = String::from_utf8(matched).map_err(|_| AmbiguousPath::new("is not UTF-8 once decoded"))?;
    Ok(CanonicalPath { forwarded: Cow::Owned(forwarded), matched: Cow::Owned(matched) })
}

fn refuse_odd_byte(decoded: u8) -> Result<(), AmbiguousPath> {
    match decoded {
        b'\\' => Err(AmbiguousPath::new("contains a backslash")),
        b';' => Err(AmbiguousPath::new("contains a semicolon")),
        byte if byte.is_ascii_control() => Err(AmbiguousPath::new("contains a control character")),
        _ => Ok(()),
    }
}

fn refuse_odd_segments(matched: &str) -> Result<(), AmbiguousPath> {
    let mut segments = matched[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment == "." || segment == ".." {
            return Err(AmbiguousPath::new("contains a dot segment"));
        }
        if segment.is_empty() && segments.peek().is_some() {
            return Err(AmbiguousPath::new("contains an empty segment"));
        }
    }
    Ok(())
}

/// May stand in a path as it is and is read alike by everybody: pchar of RFC 3986 without `;` and escapes, and the slash.
const fn is_plain(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(byte, b'/' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@')
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn escape(digits: &[u8]) -> Option<u8> {
    let [high, low, ..] = digits else { return None };
    let value = |digit: u8| (digit as char).to_digit(16).and_then(|value| u8::try_from(value).ok());
    Some(value(*high)? << 4 | value(*low)?)
}

fn push_escaped(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend(['%', DIGITS[usize::from(byte >> 4)] as char, DIGITS[usize::from(byte & 15)] as char]);
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    use super::*;

    fn check(raw: &str, forwarded: &str, matched: &str) {
        let path = CanonicalPath::parse(raw).unwrap_or_else(|error| panic!("{raw}: {error}"));
        assert_eq!((path.as_str(), path.decoded()), (forwarded, matched), "{raw}");
    }

    #[test]
    fn a_path_has_one_spelling() {
        check("/", "/", "/");
        check("/v1/reports/", "/v1/reports/", "/v1/reports/");
        check("/%7Euser/%41", "/~user/A", "/~user/A");
        check("/caf%c3%a9", "/caf%C3%A9", "/café");
        check("/a%20b\"c|d", "/a%20b%22c%7Cd", "/a b\"c|d");
        check("/a%3ab:c", "/a%3Ab:c", "/a:b:c");
        check("/100%25", "/100%25", "/100%");
        check("/.well-known/...", "/.well-known/...", "/.well-known/...");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for raw in [
            "",
            "*",
            "v1",
            "/a/%2e%2E",
            "/.",
            "//",
            "/a//b",
            "/%2f",
            "/%5C",
            "/a\\b",
            "/a;b",
            "/%3B",
            "/%00",
            "/%1f",
            "/%7F",
        ] {
            assert!(CanonicalPath::parse(raw).is_err(), "{raw}");
        }
        for raw in ["/%", "/%4", "/%g1", "/%ff", "/%c0%af", "/%ed%a0%80", "/%252e", "/%25%32%65", "/é"] {
            assert!(CanonicalPath::parse(raw).is_err(), "{raw}");
        }
    }

    /// Paths made of the pieces that matter, and now and then of anything.
    fn any_path() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => "[a-cA-C.]{1,3}",
            3 => Just("/".to_owned()),
            3 => (0_u8..=255).prop_map(|byte| format!("%{byte:02x}")),
            2 => (0_u8..=255).prop_map(|byte| format!("%{byte:02X}")),
            1 => "[!-~]{1,2}",
            1 => prop::sample::select(vec!["%2e", "%2F", "%25", "%c3%a9", "..", ";", "\\", "%"]).prop_map(str::to_owned),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #[test]
        fn canonicalisation_is_idempotent(raw in any_path()) {
            if let Ok(path) = CanonicalPath::parse(&raw) {
                let again = CanonicalPath::parse(path.as_str()).unwrap();
                prop_assert_eq!(again.as_str(), path.as_str());
                prop_assert_eq!(again.decoded(), path.decoded());
            }
        }

        #[test]
        fn what_is_forwarded_decodes_to_what_was_sent_and_what_was_matched(raw in any_path()) {
            // Two paths that an upstream tells apart by decoding once are never forwarded or matched as one.
            if let Ok(path) = CanonicalPath::parse(&raw) {
                let meaning = |text: &str| -> Vec<Vec<u8>> {
                    text.split('/').map(|segment| percent_decode_str(segment).collect()).collect()
                };
                prop_assert_eq!(meaning(path.as_str()), meaning(&raw));
                let matched: Vec<Vec<u8>> = path.decoded().split('/').map(|segment| segment.as_bytes().to_vec()).collect();
                prop_assert_eq!(matched, meaning(&raw));
            }
        }

        #[test]
        fn no_reader_finds_another_path_in_it(raw in any_path()) {
            // Decoding twice, dropping parameters, resolving dots or merging slashes changes nothing.
            if let Ok(path) = CanonicalPath::parse(&raw) {
                let twice: Vec<u8> = percent_decode_str(path.decoded()).collect();
                prop_assert_eq!(twice, path.decoded().as_bytes());
                let url = url::Url::parse(&format!("http://x{}", path.as_str())).unwrap();
                prop_assert_eq!(url.path(), path.as_str());
                prop_assert!(!path.decoded().contains("//") && !path.decoded().contains([';', '\\', '\0']));
            }
        }
    }
}
