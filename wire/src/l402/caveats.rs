//! The caveats of a token: what we write into it, and whether they allow a request. Pure.
//!
//! `services=<service>:<tier>`, `<service>_capabilities=`, then for a token of one request `<service>_method=` and `<service>_path=` (SHA-256 of
//! path and query, in hex), and `<service>_valid_until=<unix seconds>`. Source of the first two and the last: L402 specification, Aperture 0.5.0.
//! Holders add more of them, which may only narrow; a condition that we gave no meaning is refused, for its author meant it to restrict.

use std::{borrow::Cow, sync::Arc};

use farebox_core::{
    L402Token, Preimage, RouteId, Timestamp, TokenScope, TokenTerms, Untrusted,
    ports::{Rejected, TokenRequest},
};
use sha2::{Digest, Sha256};

/// The longest service name, characters.
pub const SERVICE_CHARS_MAX: usize = 255;

const SERVICES: &str = "services";
const PREIMAGE: &str = "preimage";
const CAPABILITIES: &str = "_capabilities";
const METHOD: &str = "_method";
const PATH: &str = "_path";
const VALID_UNTIL: &str = "_valid_until";

/// A route as caveats name it: percent-encoded but for `A-Z a-z 0-9 _ . -`, so that no path can write a second service, tier or condition
/// into a caveat. Different routes have different names: one that gets too long ends in `%-` and its SHA-256, which no other can.
#[must_use]
pub fn service_name(route: &RouteId) -> Arc<str> {
    let mut name = String::with_capacity(route.as_str().len() + 16);
    for byte in route.as_str().bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' => name.push(char::from(byte)),
            other => {
                name.push('%');
                name.push_str(&hex::encode_upper([other]));
            }
        }
    }
    if name.is_empty() || name.len() > SERVICE_CHARS_MAX {
        let digest = format!("%-{}", hex::encode(Sha256::digest(route.as_str())));
        name.truncate(SERVICE_CHARS_MAX - digest.len());
        name.push_str(&digest);
    }
    name.into()
}

/// The caveats of a new token, sold for `request`.
#[must_use]
pub fn caveats(request: &TokenRequest<'_>, valid_until: Timestamp) -> Vec<String> {
    let TokenTerms { service, tier, scope, .. } = request.terms;
    let mut caveats = vec![format!("{SERVICES}={service}:{tier}"), format!("{service}{CAPABILITIES}=")];
    if *scope == TokenScope::Request {
        caveats.push(format!("{service}{METHOD}={}", request.method));
        caveats.push(format!("{service}{PATH}={}", hex::encode(path_digest(request.resource))));
    }
    caveats.push(format!("{service}{VALID_UNTIL}={}", valid_until.unix_s()));
    caveats
}

/// Why the caveats of a token do not allow a request.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CaveatProblem {
    /// It is for other routes, or of another gateway.
    #[error("the token is for {found}; this route is {expected}; pay the invoice of this answer")]
    Service {
        /// This route.
        expected: Arc<str>,
        /// What its `services` says, or that there is none.
        found: Untrusted,
    },
    /// It was sold at another price tier.
    #[error(
        "the token is of another price tier of this route; expected tier {expected}; pay the invoice of this answer"
    )]
    Tier {
        /// The route's.
        expected: u8,
    },
    /// It is for another method.
    #[error("the token is for {found} requests; this is {expected}; pay the invoice of this answer")]
    Method {
        /// This request's.
        expected: String,
        /// The token's.
        found: Untrusted,
    },
    /// It is for another path or query.
    #[error("the token is for another path or query of this route; pay the invoice of this answer")]
    Path,
    /// Its time is over.
    #[error("the token ended {ago_s} s ago; pay the invoice of this answer")]
    Expired {
        /// Seconds.
        ago_s: u64,
    },
    /// It names a capability.
    #[error(
        "the token is for the capability {found} alone, and this route has none of that name; pay the invoice of this answer"
    )]
    Capability {
        /// Which.
        found: Untrusted,
    },
    /// It names another preimage than the one that came.
    #[error("the token's caveat names another preimage than the one that came with it")]
    Preimage,
    /// A later caveat that allows what an earlier one does not.
    #[error("the token's caveat {index} allows more than one before it; caveats only narrow")]
    Widens {
        /// Its place, from 0.
        index: usize,
    },
    /// A value that is not of its condition's form.
    #[error("the token's caveat {index} is {found}; expected {expected}")]
    Form {
        /// Its place, from 0.
        index: usize,
        /// What would be right.
        expected: &'static str,
        /// What it is.
        found: Untrusted,
    },
    /// A condition that we do not know, which may restrict what we cannot see.
    #[error("the token's caveat {index} is {found}; this gateway knows no such condition")]
    Unknown {
        /// Its place, from 0.
        index: usize,
        /// What it is.
        found: Untrusted,
    },
}

impl CaveatProblem {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Service { .. } => "token_other_route",
            Self::Tier { .. } => "token_other_tier",
            Self::Method { .. } => "token_other_method",
            Self::Path => "token_other_path",
            Self::Expired { .. } => "token_expired",
            Self::Capability { .. } => "token_other_capability",
            Self::Preimage => "token_other_preimage",
            Self::Widens { .. } => "token_caveat_widens",
            Self::Form { .. } => "token_caveat_malformed",
            Self::Unknown { .. } => "token_caveat_unknown",
        }
    }

    /// As the rail's no.
    #[must_use]
    pub fn rejected(&self) -> Rejected {
        Rejected { code: Cow::Borrowed(self.code()), detail: self.to_string() }
    }
}

/// Whether the token's caveats allow the request. Says nothing of its signature, which has to hold first.
///
/// # Errors
/// [`CaveatProblem`]: the first.
pub fn judge(token: &L402Token, request: &TokenRequest<'_>) -> Result<(), CaveatProblem> {
    let mut judge = Judge { request, preimage: &token.preimage, services: None, valid_until: None };
    for (index, caveat) in token.macaroon.caveats.iter().enumerate() {
        judge.caveat(index, caveat)?;
    }
    // One of ours always says what it is for.
    if judge.services.is_some() { Ok(()) } else { Err(judge.other_service("no route")) }
}

struct Judge<'a> {
    request: &'a TokenRequest<'a>,
    preimage: &'a Preimage,
    /// Of the last caveat that names services.
    services: Option<Vec<(&'a str, u8)>>,
    /// Unix seconds.
    valid_until: Option<u64>,
}

impl<'a> Judge<'a> {
    fn caveat(&mut self, index: usize, caveat: &'a str) -> Result<(), CaveatProblem> {
        let unknown = || CaveatProblem::Unknown { index, found: Untrusted::new(caveat) };
        let (condition, value) = caveat.split_once('=').ok_or_else(unknown)?;
        match condition {
            SERVICES => return self.services(index, value),
            PREIMAGE => return self.preimage(index, value),
            _ => {}
        }
        match condition.strip_prefix(&*self.request.terms.service).ok_or_else(unknown)? {
            CAPABILITIES => capabilities(value),
            METHOD => self.method(value),
            PATH => self.path(index, value),
            VALID_UNTIL => self.valid_until(index, value),
            _ => Err(unknown()),
        }
    }

    fn services(&mut self, index: usize, value: &'a str) -> Result<(), CaveatProblem> {
        let TokenTerms { service, tier, .. } = self.request.terms;
        let expected = "services of the form name:tier, separated by commas";
        let named: Option<Vec<_>> = value.split(',').map(one_service).collect();
        let named = named.ok_or_else(|| form(index, expected, value))?;
        if self.services.as_ref().is_some_and(|before| named.iter().any(|one| !before.contains(one))) {
            return Err(CaveatProblem::Widens { index });
        }
        if !named.contains(&(&**service, *tier)) {
            let of_this_route = named.iter().any(|(name, _)| *name == &**service);
            return Err(if of_this_route {
                CaveatProblem::Tier { expected: *tier }
            } else {
                self.other_service(value)
            });
        }
        self.services = Some(named);
        Ok(())
    }

    fn other_service(&self, found: &str) -> CaveatProblem {
        CaveatProblem::Service { expected: self.request.terms.service.clone(), found: Untrusted::new(found) }
    }

    fn preimage(&self, index: usize, value: &str) -> Result<(), CaveatProblem> {
        let named = Preimage::from_hex(value);
        // Not shown: it is one, or nearly.
        let named =
            named.ok_or_else(|| form(index, "preimage= and 64 lower-case hex digits", "preimage=(not shown)"))?;
        if named.same(self.preimage) { Ok(()) } else { Err(CaveatProblem::Preimage) }
    }

    fn method(&self, value: &str) -> Result<(), CaveatProblem> {
        if value == self.request.method {
            return Ok(());
        }
        Err(CaveatProblem::Method { expected: self.request.method.to_owned(), found: Untrusted::new(value) })
    }

    fn path(&self, index: usize, value: &str) -> Result<(), CaveatProblem> {
        let mut digest = [0; 32];
        let lower = value.bytes().all(|b| !b.is_ascii_uppercase());
        if !lower || hex::decode_to_slice(value, &mut digest).is_err() {
            return Err(form(index, "64 lower-case hex digits", value));
        }
        if digest == path_digest(self.request.resource) { Ok(()) } else { Err(CaveatProblem::Path) }
    }

    fn valid_until(&mut self, index: usize, value: &str) -> Result<(), CaveatProblem> {
        let until: u64 = decimal(value).ok_or_else(|| form(index, "unix seconds", value))?;
        if self.valid_until.is_some_and(|before| until > before) {
            return Err(CaveatProblem::Widens { index });
        }
        self.valid_until = Some(until);
        let now = self.request.now.unix_s();
        if now < until { Ok(()) } else { Err(CaveatProblem::Expired { ago_s: now - until }) }
    }
}

/// An empty list restricts nothing. Any other restricts to what no route of ours has.
fn capabilities(value: &str) -> Result<(), CaveatProblem> {
    if value.is_empty() { Ok(()) } else { Err(CaveatProblem::Capability { found: Untrusted::new(value) }) }
}

fn one_service(text: &str) -> Option<(&str, u8)> {
    let (name, tier) = text.split_once(':')?;
    Some((name, decimal(tier)?)).filter(|_| !name.is_empty())
}

/// Digits without a sign or leading zeros: one spelling for one number.
fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    canonical.then(|| text.parse().ok())?
}

fn form(index: usize, expected: &'static str, found: &str) -> CaveatProblem {
    CaveatProblem::Form { index, expected, found: Untrusted::new(found) }
}

fn path_digest(resource: &str) -> [u8; 32] {
    Sha256::digest(resource).into()
}
