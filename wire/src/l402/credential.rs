//! The token among a request's headers. Source: Aperture 0.5.0 `l402/header.go`, and what its clients send.

use base64::{
    Engine as _,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use farebox_core::{L402Token, Preimage};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};

use super::{GRPC_METADATA_MACAROON, MACAROON, MACAROON_BYTES_MAX, MacaroonError, decode_macaroon};
use crate::{CredentialError, CredentialProblem};

/// Besides `Authorization`, the headers that carry a token: stripped before the upstream of a gateway that takes tokens.
pub static TOKEN_HEADERS: [HeaderName; 2] = [MACAROON, GRPC_METADATA_MACAROON];

const SCHEMES: [&str; 2] = ["L402", "LSAT"];
const PREIMAGE_CAVEAT: &str = "preimage=";
/// Lines of one header that are compared; clients send up to two.
const LINES_MAX: usize = 4;

const PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
/// Clients pad or do not, and use either alphabet.
pub(super) const BASE64: [GeneralPurpose; 2] =
    [GeneralPurpose::new(&STANDARD, PADDING), GeneralPurpose::new(&URL_SAFE, PADDING)];

/// Why what came is no token that we read.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum TokenProblem {
    /// Not `<macaroon>:<preimage>`.
    #[error("is no L402 credential; expected: L402 <macaroon in base64>:<preimage, 64 lower-case hex digits>")]
    Shape,
    /// Several credentials in one line.
    #[error("has several credentials, joined by a comma; send one")]
    Joined,
    /// Several lines that do not say the same.
    #[error("came more than once, and not with one and the same L402 credential; send one")]
    Several,
    /// The macaroon's spelling.
    #[error("has a macaroon that is not {expected}")]
    Encoding {
        /// What it should be.
        expected: &'static str,
    },
    /// The macaroon.
    #[error("cannot be read: {0}")]
    Macaroon(#[from] MacaroonError),
    /// The preimage.
    #[error("has a preimage that is not 64 lower-case hex digits")]
    Preimage,
    /// A macaroon that came alone, and no preimage in it, or several.
    #[error(
        "has {found} caveats preimage=<hex>; expected exactly 1, for the preimage has no other place in this header"
    )]
    PreimageCaveats {
        /// How many.
        found: usize,
    },
    /// A caveat that names another preimage.
    #[error("has a macaroon whose caveat names another preimage than the one beside it")]
    OtherPreimage,
}

/// The token of a request, if it has one.
///
/// `Authorization` of another scheme is the upstream's, and like ours it hides the two headers of gRPC clients.
pub(crate) fn token(headers: &HeaderMap) -> Result<Option<(HeaderName, L402Token)>, CredentialError> {
    if headers.contains_key(AUTHORIZATION) {
        if !headers.get_all(AUTHORIZATION).iter().any(is_token_authorization) {
            return Ok(None);
        }
        return one(headers, AUTHORIZATION, of_authorization).map(|token| Some((AUTHORIZATION, token)));
    }
    let found = TOKEN_HEADERS.each_ref().map(|name| headers.contains_key(name));
    let header = match found {
        [false, false] => return Ok(None),
        [true, false] => MACAROON,
        [_, true] => GRPC_METADATA_MACAROON,
    };
    let token = one(headers, header.clone(), of_macaroon)?;
    if found == [true, true] && one(headers, MACAROON, of_macaroon)? != token {
        return Err(CredentialError { header, problem: TokenProblem::Several.into() });
    }
    Ok(Some((header, token)))
}

/// Whether an `Authorization` carries a token of ours, and not the upstream's own credentials.
#[must_use]
pub fn is_token_authorization(value: &HeaderValue) -> bool {
    scheme(value.as_bytes()).is_some()
}

/// What comes after `L402` or `LSAT` and what parts it from the rest.
fn scheme(value: &[u8]) -> Option<&[u8]> {
    let name = value.get(..4)?;
    if !SCHEMES.iter().any(|scheme| name.eq_ignore_ascii_case(scheme.as_bytes())) {
        return None;
    }
    match &value[4..] {
        rest @ ([] | [b' ' | b'\t', ..]) => Some(rest.trim_ascii_start()),
        _ => None,
    }
}

/// All lines of one header say the same token, or it is nobody's to guess which was meant.
fn one(
    headers: &HeaderMap,
    header: HeaderName,
    read: fn(&[u8]) -> Result<L402Token, TokenProblem>,
) -> Result<L402Token, CredentialError> {
    let mut lines = headers.get_all(&header).iter();
    let first = lines.next().map_or(Err(TokenProblem::Shape), |line| read(line.as_bytes()));
    let token = first.and_then(|first| {
        let same = |line: &HeaderValue| read(line.as_bytes()).is_ok_and(|token| token == first);
        let several = lines.by_ref().take(LINES_MAX).any(|line| !same(line)) || lines.next().is_some();
        if several { Err(TokenProblem::Several) } else { Ok(first) }
    });
    token.map_err(|problem| CredentialError { header, problem: CredentialProblem::Token(problem) })
}

fn of_authorization(value: &[u8]) -> Result<L402Token, TokenProblem> {
    let credential = scheme(value).ok_or(TokenProblem::Several)?;
    // pyl402 writes the scheme twice when it sends a kept token.
    let credential = scheme(credential).unwrap_or(credential);
    if credential.contains(&b',') {
        return Err(TokenProblem::Joined);
    }
    let colon = credential.iter().position(|b| *b == b':').ok_or(TokenProblem::Shape)?;
    let (macaroon, preimage) = (&credential[..colon], &credential[colon + 1..]);
    let macaroon = decode_macaroon(&base64(macaroon)?)?;
    let preimage = std::str::from_utf8(preimage).ok().and_then(Preimage::from_hex).ok_or(TokenProblem::Preimage)?;
    for named in preimages(&macaroon.caveats) {
        if !named?.same(&preimage) {
            return Err(TokenProblem::OtherPreimage);
        }
    }
    Ok(L402Token { macaroon, preimage })
}

fn of_macaroon(value: &[u8]) -> Result<L402Token, TokenProblem> {
    if value.len() > 2 * MACAROON_BYTES_MAX {
        return Err(MacaroonError::TooLong { found: value.len() / 2 }.into());
    }
    let bytes = hex::decode(value).map_err(|_| TokenProblem::Encoding { expected: "hex" })?;
    let macaroon = decode_macaroon(&bytes)?;
    let mut named = preimages(&macaroon.caveats);
    let preimage = match (named.next(), named.count()) {
        (Some(only), 0) => only?,
        (first, more) => {
            return Err(TokenProblem::PreimageCaveats { found: usize::from(first.is_some()) + more });
        }
    };
    Ok(L402Token { macaroon, preimage })
}

fn preimages(caveats: &[String]) -> impl Iterator<Item = Result<Preimage, TokenProblem>> {
    let named = caveats.iter().filter_map(|caveat| caveat.strip_prefix(PREIMAGE_CAVEAT));
    named.map(|hex| Preimage::from_hex(hex).ok_or(TokenProblem::Preimage))
}

fn base64(text: &[u8]) -> Result<Vec<u8>, TokenProblem> {
    if text.len() > MACAROON_BYTES_MAX.div_ceil(3) * 4 {
        return Err(MacaroonError::TooLong { found: text.len() / 4 * 3 }.into());
    }
    let expected = "base64 (standard or URL-safe)";
    BASE64.iter().find_map(|engine| engine.decode(text).ok()).ok_or(TokenProblem::Encoding { expected })
}
