//! The challenge lines of a 402: ours, and what of others' can be paid.

use std::fmt;

use base64::Engine as _;
use farebox_core::{Macaroon, Preimage, ports::TokenBill};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, InvalidHeaderValue, WWW_AUTHENTICATE},
};
use serde::{Deserialize, Serialize};

use super::{credential::BASE64, decode_macaroon};

/// The most `WWW-Authenticate` lines of one answer that we read.
pub const CHALLENGE_LINES_MAX: usize = 32;
/// The longest of them that we read, bytes; an invoice has up to 7,089.
pub const CHALLENGE_LINE_BYTES_MAX: usize = 16 * 1024;
/// The most challenges of one answer that we take.
pub const CHALLENGES_MAX: usize = 16;

/// The two `WWW-Authenticate` lines of a bill, in the order in which they have to stand, before any other scheme's: clients of old read the
/// first, others the second. Only a 402 may have them: some clients pay whatever status they come with.
#[must_use]
pub fn encode_challenge(bill: &TokenBill) -> [(HeaderName, HeaderValue); 2] {
    let TokenBill { macaroon, invoice, .. } = bill;
    let invoice = &invoice.bolt11;
    [
        line(format!("LSAT macaroon=\"{macaroon}\", invoice=\"{invoice}\"")),
        line(format!("L402 macaroon=\"{macaroon}\", invoice=\"{invoice}\", version=\"0\", token=\"{macaroon}\"")),
    ]
}

fn line(text: String) -> (HeaderName, HeaderValue) {
    match HeaderValue::try_from(text) {
        Ok(value) => (WWW_AUTHENTICATE, value),
        Err(error) => unreachable!("base64 and bech32 are header text: {error}"),
    }
}

/// The name that a seller gives the scheme, and wants to read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum L402Scheme {
    /// Today's.
    L402,
    /// Of old.
    Lsat,
}

impl L402Scheme {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L402 => "L402",
            Self::Lsat => "LSAT",
        }
    }

    fn named(text: &str) -> Option<Self> {
        [Self::L402, Self::Lsat].into_iter().find(|scheme| text.eq_ignore_ascii_case(scheme.as_str()))
    }
}

/// What a seller asks to be paid, and what it gives for it.
#[derive(Clone, PartialEq, Eq)]
pub struct L402Challenge {
    /// How it calls the scheme: L402 if both.
    pub scheme: L402Scheme,
    /// Its macaroon, in its own spelling, to be sent back as it came: sellers may use what only they can read.
    pub macaroon_b64: String,
    /// The same, if it is one that we read.
    pub macaroon: Option<Macaroon>,
    /// The invoice; a stranger's text.
    pub invoice: String,
}

impl fmt::Debug for L402Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("L402Challenge");
        shown.field("scheme", &self.scheme).field("macaroon", &self.macaroon).finish_non_exhaustive()
    }
}

/// What can be paid, in the seller's order, each once however often and by whichever names it is said.
///
/// Takes every form that sellers write: several challenges in one line, other schemes among them, values quoted or bare, `token` for `macaroon`.
/// What is incomplete is passed over. Source: RFC 9110 §11.6.1.
#[must_use]
pub fn challenges(headers: &HeaderMap) -> Vec<L402Challenge> {
    let mut found = Found::default();
    for line in headers.get_all(WWW_AUTHENTICATE).iter().take(CHALLENGE_LINES_MAX) {
        if line.len() <= CHALLENGE_LINE_BYTES_MAX
            && let Ok(line) = line.to_str()
        {
            found.read(line);
        }
    }
    found.challenges
}

/// The `Authorization` that redeems a token. Printing it does not show it.
///
/// # Errors
/// The macaroon has characters that no header can carry.
pub fn authorization(
    scheme: L402Scheme,
    macaroon_b64: &str,
    preimage: &Preimage,
) -> Result<(HeaderName, HeaderValue), InvalidHeaderValue> {
    let mut value = HeaderValue::try_from(format!("{} {macaroon_b64}:{}", scheme.as_str(), preimage.reveal()))?;
    value.set_sensitive(true);
    Ok((AUTHORIZATION, value))
}

#[derive(Default)]
struct Found {
    challenges: Vec<L402Challenge>,
}

/// The parameters of one challenge, as far as they matter. The first of a name counts.
#[derive(Default)]
struct Parameters {
    macaroon: Option<String>,
    token: Option<String>,
    invoice: Option<String>,
}

impl Found {
    fn read(&mut self, line: &str) {
        let mut current: Option<(L402Scheme, Parameters)> = None;
        for part in parts(line) {
            let (scheme, parameter) = split_scheme(part);
            if let Some(name) = scheme {
                self.take(current.take());
                current = L402Scheme::named(name).map(|scheme| (scheme, Parameters::default()));
            }
            if let (Some((_, parameters)), Some((name, value))) = (&mut current, parameter.split_once('=')) {
                parameters.note(name.trim(), value.trim());
            }
        }
        self.take(current);
    }

    fn take(&mut self, read: Option<(L402Scheme, Parameters)>) {
        let Some((scheme, Parameters { macaroon, token, invoice })) = read else { return };
        let (Some(macaroon_b64), Some(invoice)) = (macaroon.or(token), invoice) else { return };
        let known =
            self.challenges.iter_mut().find(|known| known.macaroon_b64 == macaroon_b64 && known.invoice == invoice);
        if let Some(known) = known {
            if scheme == L402Scheme::L402 {
                known.scheme = scheme;
            }
        } else if self.challenges.len() < CHALLENGES_MAX {
            let bytes = BASE64.iter().find_map(|engine| engine.decode(&macaroon_b64).ok());
            let macaroon = bytes.and_then(|bytes| decode_macaroon(&bytes).ok());
            self.challenges.push(L402Challenge { scheme, macaroon_b64, macaroon, invoice });
        }
    }
}

impl Parameters {
    fn note(&mut self, name: &str, value: &str) {
        let place = match () {
            () if name.eq_ignore_ascii_case("macaroon") => &mut self.macaroon,
            () if name.eq_ignore_ascii_case("token") => &mut self.token,
            () if name.eq_ignore_ascii_case("invoice") => &mut self.invoice,
            () => return,
        };
        let value = unquoted(value);
        // A space, a comma or a colon would end the value, or begin the preimage, when it is sent back.
        let sendable = value.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b':'));
        if place.is_none() && sendable && !value.is_empty() {
            *place = Some(value);
        }
    }
}

/// What stands between commas that are not in quotes.
fn parts(line: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    let comma = move |c: char| {
        let ends = c == ',' && !quoted;
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && c == '\\' && !escaped;
        ends
    };
    line.split(comma).map(str::trim).filter(|part| !part.is_empty())
}

/// The scheme's name, if a challenge begins here, and the rest: `L402 a=b`, `a=b`, or `Negotiate`.
fn split_scheme(part: &str) -> (Option<&str>, &str) {
    let name_ends = part.find(|c: char| c.is_ascii_whitespace() || c == '=').unwrap_or(part.len());
    let (name, rest) = part.split_at(name_ends);
    let rest = rest.trim_start();
    // `a = b` is a parameter, written with the spaces that RFC 9110 has recipients bear.
    if rest.starts_with('=') { (None, part) } else { (Some(name), rest) }
}

fn unquoted(value: &str) -> String {
    if let Some(inner) = value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        return inner.to_owned();
    }
    let Some(inner) = value.strip_prefix('"') else { return value.to_owned() };
    let (mut text, mut chars) = (String::with_capacity(inner.len()), inner.chars());
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => text.extend(chars.next()),
            c => text.push(c),
        }
    }
    text
}
