//! What a route matches, as users write it: `GET,POST /v1/{id}/*`.

use http::Method;

use crate::CanonicalPath;

/// The methods of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Methods {
    /// Every method but CONNECT.
    Any,
    /// These; GET brings HEAD with it. Never empty.
    Only(Vec<Method>),
}

/// A path pattern: segments that are literal, `{name}` (exactly one segment, not empty), or at the end `*` or `{*rest}` (the rest,
/// which may be empty: `/v1/*` matches `/v1/`, not `/v1`). Case-sensitive; a trailing slash is another path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    pub(crate) segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// Decoded.
    Literal(Box<str>),
    One,
    Rest,
}

/// Why a text is no match of a route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected METHODS and a path such as `GET /v1/*`, found {found}: {reason}")]
pub struct MatchError {
    found: farebox_core::Untrusted,
    reason: &'static str,
}

impl MatchError {
    fn new(found: &str, reason: &'static str) -> Self {
        Self { found: farebox_core::Untrusted::new(found), reason }
    }

    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "bad_route_match"
    }
}

/// Reads `METHODS SPACE PATTERN`: methods are a comma-separated list in upper case, or `*` or `ANY`.
///
/// # Errors
/// [`MatchError`] says what is wrong with it.
pub fn parse_match(text: &str) -> Result<(Methods, PathPattern), MatchError> {
    let (methods, pattern) = text.split_once(' ').ok_or_else(|| MatchError::new(text, "there is no space"))?;
    Ok((parse_methods(methods)?, PathPattern::parse(pattern)?))
}

fn parse_methods(text: &str) -> Result<Methods, MatchError> {
    if text == "*" || text == "ANY" {
        return Ok(Methods::Any);
    }
    let mut methods = Vec::new();
    for name in text.split(',') {
        if name.is_empty() || name.bytes().any(|b| !b.is_ascii_uppercase() && b != b'-') {
            return Err(MatchError::new(text, "a method is upper-case letters"));
        }
        let method = Method::from_bytes(name.as_bytes()).map_err(|_| MatchError::new(text, "it is not a method"))?;
        if method == Method::CONNECT {
            return Err(MatchError::new(text, "CONNECT is never proxied"));
        }
        if methods.contains(&method) {
            return Err(MatchError::new(text, "a method is named twice"));
        }
        methods.push(method);
    }
    Ok(Methods::Only(methods))
}

impl PathPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`MatchError`] if it does not begin with a slash, a literal is not a canonical path segment, a parameter is not a
    /// whole segment, or something follows the rest.
    pub fn parse(text: &str) -> Result<Self, MatchError> {
        let path = text.strip_prefix('/').ok_or_else(|| MatchError::new(text, "a path begins with a slash"))?;
        let mut segments = Vec::new();
        for (index, segment) in path.split('/').enumerate() {
            if segments.last() == Some(&Segment::Rest) {
                return Err(MatchError::new(text, "nothing may follow the rest"));
            }
            if segment.is_empty() && (index + 1 != path.split('/').count()) {
                return Err(MatchError::new(text, "a segment is empty"));
            }
            segments.push(Segment::parse(segment).map_err(|reason| MatchError::new(text, reason))?);
        }
        Ok(Self { text: text.to_owned(), segments })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "*" {
            return Ok(Self::Rest);
        }
        if let Some(name) = text.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
            let (segment, name) = name.strip_prefix('*').map_or((Self::One, name), |name| (Self::Rest, name));
            let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            return if named { Ok(segment) } else { Err("a parameter is {name} of letters, digits and _") };
        }
        if text.contains(['{', '}', '*']) {
            return Err("a parameter is a whole segment, and * stands alone at the end");
        }
        if text.contains(['?', '#']) {
            return Err("a path has no query");
        }
        let mut path = String::from("/");
        // What is bare here in UTF-8 is what a client sends escaped.
        path.extend(percent_encoding::percent_encode(text.as_bytes(), NON_ASCII));
        let path = CanonicalPath::parse(&path).map_err(|ambiguous| ambiguous.reason)?;
        Ok(Self::Literal(path.decoded()[1..].into()))
    }
}

/// Escapes control characters and what is not ASCII; both are then judged by [`CanonicalPath`].
const NON_ASCII: &percent_encoding::AsciiSet = percent_encoding::CONTROLS;
