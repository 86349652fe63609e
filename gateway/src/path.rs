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
    /// slash, `%25` before two hex digits (double encoding), control characters, bytes that are not UTF-8, raw
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
            if decoded == b'%' && escape(rest).is_some() {
                return Err(AmbiguousPath::new("is escaped twice"));
            }
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
