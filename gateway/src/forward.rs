//! What an intermediary takes out of a head and puts in. Sources: RFC 9110 §7.6, RFC 9113 §8.2.

use farebox_wire::{
    Tokens,
    l402::{TOKEN_HEADERS, is_token_authorization},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{AUTHORIZATION, CONNECTION, COOKIE, TE, UPGRADE, VIA},
};

use crate::client::ClientInfo;

/// `preimage=` in hex: the caveat by which a macaroon that comes alone is a token.
const PREIMAGE_CAVEAT: &[u8] = b"707265696d6167653d";

/// Who we are in `Via`.
const VIA_VALUES: [HeaderValue; 2] = [HeaderValue::from_static("1.1 farebox"), HeaderValue::from_static("2.0 farebox")];

/// Rewrites a request's headers in place for the upstream, all but `Host`. Gives the protocol to upgrade to, if the client asked for one
/// that may be tunnelled.
pub(crate) fn request_headers(
    headers: &mut HeaderMap,
    version: Version,
    client: &ClientInfo,
    tokens: Tokens,
    extra: &[(HeaderName, HeaderValue)],
) -> Option<HeaderValue> {
    let upgrade = wanted_upgrade(headers, version);
    let trailers = wants_trailers(headers);
    strip(headers, |name| is_hop_by_hop(name) || is_not_for_upstreams(name, client));
    if tokens == Tokens::Taken {
        strip_tokens(headers);
    }
    if version == Version::HTTP_2 {
        join_cookies(headers);
    }
    if let Some(protocol) = &upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    } else if trailers {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    client.write_forwarded(headers);
    let via = &VIA_VALUES[usize::from(version == Version::HTTP_2)];
    headers.append(VIA, via.clone());
    for (name, value) in extra {
        headers.insert(name.clone(), value.clone());
    }
    upgrade
}

/// Takes the connection's own headers out of an upstream's answer.
pub(crate) fn response_headers(headers: &mut HeaderMap) {
    strip(headers, is_hop_by_hop);
}

/// `Upgrade`, if the request really asks for it (RFC 9110 §7.8) and what comes after is not HTTP: through an `h2c` tunnel a
/// client could ask the upstream for every paid path, unseen.
fn wanted_upgrade(headers: &HeaderMap, version: Version) -> Option<HeaderValue> {
    if version != Version::HTTP_11 {
        return None;
    }
    let protocol = headers.get(UPGRADE)?;
    let asked = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let text = protocol.to_str().ok()?;
    let mut names = text.split(',').map(|name| name.split('/').next().unwrap_or(name).trim());
    let tunnel = names.all(|name| !["h2c", "h2", "http", "tls"].iter().any(|http| name.eq_ignore_ascii_case(http)));
    (asked && tunnel).then(|| protocol.clone())
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    headers.contains_key(TE) && tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn strip(headers: &mut HeaderMap, is_dropped: impl Fn(&HeaderName) -> bool) {
    let mut dropped: Vec<HeaderName> = Vec::new();
    if headers.contains_key(CONNECTION) {
        let named = tokens(headers, &CONNECTION).filter(|token| !is_kept_though_named(token));
        dropped.extend(named.filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok()));
        // Nearly always alone: then nothing is allocated.
        headers.remove(CONNECTION);
    }
    dropped.extend(headers.keys().filter(|name| is_dropped(name)).cloned());
    for name in dropped {
        headers.remove(name);
    }
}

/// Named by every other connection and never a field, or needed to frame the message: `Connection: content-length` must not
/// turn a body of known length into one of unknown length.
fn is_kept_though_named(token: &str) -> bool {
    ["close", "keep-alive", "content-length", "host", "te", "upgrade", ""]
        .iter()
        .any(|kept| token.eq_ignore_ascii_case(kept))
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-authentication-info"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Headers of a request that an upstream must not get from a client. CGI and WSGI read `farebox_payer` as `Farebox-Payer`, so a name
/// with underscores is judged by its twin.
fn is_not_for_upstreams(name: &HeaderName, client: &ClientInfo) -> bool {
    let name = name.as_str();
    if name.contains('_') { is_reserved(&name.replace('_', "-"), client) } else { is_reserved(name, client) }
}

/// Credentials of payment, our own names, claims about who is forwarded for (unless a listed proxy made them), and those by which some
/// frameworks take a request for another method or path than the one that was matched.
fn is_reserved(name: &str, client: &ClientInfo) -> bool {
    match name {
        "expect"
        | "x-http-method-override"
        | "x-http-method"
        | "x-method-override"
        | "x-original-url"
        | "x-rewrite-url" => true,
        "forwarded" | "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" | "x-forwarded-port"
        | "x-forwarded-prefix" | "x-forwarded-server" | "x-forwarded-scheme" | "x-real-ip" => !client.is_behind_proxy(),
        other => other.starts_with("farebox-") || farebox_wire::CREDENTIAL_HEADERS.iter().any(|name| name == other),
    }
}

/// Takes out what buys calls here, on every route of a gateway that sells tokens: clients that keep one send it to the whole host. Other
/// schemes of `Authorization`, and macaroons without a preimage, are the upstream's own.
fn strip_tokens(headers: &mut HeaderMap) {
    retain_lines(headers, &AUTHORIZATION, |value| !has_token(value));
    let twins = headers.keys().filter(|name| name.as_str().contains('_'));
    let twins = twins.filter(|name| TOKEN_HEADERS.iter().any(|ours| ours.as_str() == name.as_str().replace('_', "-")));
    let twins: Vec<HeaderName> = twins.cloned().collect();
    for name in TOKEN_HEADERS.iter().chain(&twins) {
        retain_lines(headers, name, |value| {
            let bytes = value.as_bytes();
            !bytes.windows(PREIMAGE_CAVEAT.len()).any(|part| part.eq_ignore_ascii_case(PREIMAGE_CAVEAT))
        });
    }
}

/// Whether our scheme begins an `Authorization`, or any word of it: some clients join several.
fn has_token(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let ends_word = |byte: u8| matches!(byte, b' ' | b'\t' | b',' | b';');
    let begins = |at: &usize| *at == 0 || ends_word(bytes[*at - 1]);
    // The scheme, and what parts it from the rest: no more is copied, of a line that may be all words.
    let mut words = (0..bytes.len()).filter(begins).map(|at| &bytes[at..bytes.len().min(at + 5)]);
    words.any(|word| HeaderValue::from_bytes(word).is_ok_and(|word| is_token_authorization(&word)))
}

fn retain_lines(headers: &mut HeaderMap, name: &HeaderName, keep: impl Fn(&HeaderValue) -> bool) {
    if headers.get_all(name).iter().all(&keep) {
        return;
    }
    let kept: Vec<HeaderValue> = headers.get_all(name).iter().filter(|value| keep(value)).cloned().collect();
    headers.remove(name);
    headers.extend(kept.into_iter().map(|value| (name.clone(), value)));
}

/// RFC 9113 §8.2.3: cookie lines of HTTP/2 are one header elsewhere.
fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(COOKIE).iter();
    if lines.nth(1).is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}
