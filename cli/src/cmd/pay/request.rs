//! The request that the command line describes, by curl's habits.

use std::{
    fs,
    io::{self, Read as _},
};

use anyhow::{Context as _, bail, ensure};
use http::{HeaderName, HeaderValue, Method, header};
use reqwest::Request;
use url::{Host, Url};

use super::PayArgs;

/// The largest body that is sent: it is kept in memory, to be sent again.
const BODY_BYTES_MAX: u64 = 256 * 1024 * 1024;

pub(super) fn build(args: &PayArgs) -> anyhow::Result<Request> {
    let (body, form) = match &args.data_binary {
        Some(data) => (Some(read(data)?), true),
        None if args.data.is_empty() => (None, false),
        None => (Some(form_data(&args.data)?), true),
    };
    let method = match &args.method {
        Some(method) => Method::from_bytes(method.as_bytes()).with_context(|| format!("no HTTP method: {method}"))?,
        None if args.head => Method::HEAD,
        None if body.is_some() => Method::POST,
        None => Method::GET,
    };
    let mut request = Request::new(method, url(&args.url)?);
    if form {
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(header::CONTENT_TYPE, form);
    }
    for line in &args.headers {
        let (name, value) = parse_header(line)?;
        match value {
            // The first of a name replaces what we set ourselves; repeats of the user's are all sent.
            Some(value) if name == header::CONTENT_TYPE => drop(request.headers_mut().insert(name, value)),
            Some(value) => drop(request.headers_mut().append(name, value)),
            None => drop(request.headers_mut().remove(name)),
        }
    }
    *request.body_mut() = body.map(Into::into);
    Ok(request)
}

fn url(text: &str) -> anyhow::Result<Url> {
    let parsed = |text: &str| text.parse::<Url>().with_context(|| format!("expected a URL, found {text:?}"));
    let url = if text.contains("://") { parsed(text)? } else { parsed(&format!("https://{text}"))? };
    // What is on this machine is seldom behind TLS, and nobody is on the way to it.
    let url = if text.contains("://") || !is_loopback(&url) { url } else { parsed(&format!("http://{text}"))? };
    ensure!(matches!(url.scheme(), "http" | "https"), "expected an http or https URL, found scheme {}", url.scheme());
    let no_login = url.username().is_empty() && url.password().is_none();
    ensure!(no_login, "a name or password in the URL would end up in the journal; use -H 'Authorization: …'");
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// `Name: value`, `Name;` for an empty value, `Name:` for none.
fn parse_header(line: &str) -> anyhow::Result<(HeaderName, Option<HeaderValue>)> {
    let (name, value) = match (line.split_once(':'), line.strip_suffix(';')) {
        (Some((name, value)), _) if value.trim().is_empty() => (name, None),
        (Some((name, value)), _) => (name, Some(value.trim())),
        (None, Some(name)) => (name, Some("")),
        (None, None) => bail!("expected a header as \"Name: value\", found {line:?}"),
    };
    let name = name.trim().parse().with_context(|| format!("expected a header name, found {name:?}"))?;
    let value = value.map(HeaderValue::from_str).transpose().with_context(|| format!("bad value of header {name}"))?;
    Ok((name, value))
}

fn form_data(parts: &[String]) -> anyhow::Result<Vec<u8>> {
    let mut joined = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            joined.push(b'&');
        }
        let mut bytes = read(part)?;
        if part.starts_with('@') {
            bytes.retain(|b| !matches!(b, b'\r' | b'\n' | 0));
        }
        joined.extend(bytes);
    }
    Ok(joined)
}

/// The text itself, or what `@FILE` or `@-` holds.
fn read(data: &str) -> anyhow::Result<Vec<u8>> {
    let Some(path) = data.strip_prefix('@') else { return Ok(data.as_bytes().to_vec()) };
    let mut bytes = Vec::new();
    let source: Box<dyn io::Read> = match path {
        "-" => Box::new(io::stdin().lock()),
        path => Box::new(fs::File::open(path).with_context(|| format!("cannot read {path}"))?),
    };
    source.take(BODY_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {path}"))?;
    ensure!(bytes.len() as u64 <= BODY_BYTES_MAX, "{path} is larger than the {BODY_BYTES_MAX} bytes that are sent");
    Ok(bytes)
}
