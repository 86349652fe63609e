//! Who is calling, and under which URL, by the rules of trust in proxies.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri, Version,
    header::{FORWARDED, HOST},
    uri::{Authority, Scheme},
};
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    addr: IpAddr,
    addr_value: HeaderValue,
    scheme: Scheme,
    trust: Trust,
    /// `Forwarded` for the last authority seen: a connection seldom names more than one.
    forwarded: Mutex<Option<(Authority, HeaderValue)>>,
    /// The connection's place among `connections_max`.
    _slot: Option<OwnedSemaphorePermit>,
}

/// Whether what a peer says of others is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// It is in `trusted_proxies`.
    Proxy,
    /// It speaks for itself alone.
    Nobody,
}

/// Who is calling. What a listed proxy said is in it; what others claimed is not.
#[derive(Clone, Debug)]
pub(crate) struct ClientInfo {
    /// The client, as seen by the outermost trusted proxy.
    pub(crate) addr: IpAddr,
    /// `http` or `https`, as the client used it.
    pub(crate) scheme: Scheme,
    /// `Host` or `:authority`, as the client used it. HTTP/1.0 may lack it.
    pub(crate) authority: Option<Authority>,
    pub(crate) peer: Arc<Peer>,
}

/// A request whose target or `Host` is not what HTTP allows: 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request {reason}")]
pub(crate) struct BadTarget {
    pub(crate) reason: &'static str,
}

impl Peer {
    pub(crate) fn new(
        address: SocketAddr,
        scheme: Scheme,
        trusted_proxies: &[IpNet],
        slot: Option<OwnedSemaphorePermit>,
    ) -> Self {
        // A dual-stack socket shows IPv4 peers as ::ffff:a.b.c.d; lists name them as IPv4.
        let addr = address.ip().to_canonical();
        let trust = if is_trusted(addr, trusted_proxies) { Trust::Proxy } else { Trust::Nobody };
        let addr_value =
            HeaderValue::try_from(addr.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { addr, addr_value, scheme, trust, forwarded: Mutex::new(None), _slot: slot }
    }

    /// `for=…;host=…;proto=…` of RFC 7239.
    fn forwarded(&self, scheme: &Scheme, authority: Option<&Authority>) -> Option<HeaderValue> {
        if let (Some((known, value)), Some(authority)) = (&*self.forwarded.lock(), authority)
            && known == authority
            && *scheme == self.scheme
        {
            return Some(value.clone());
        }
        let node = match self.addr {
            IpAddr::V4(addr) => addr.to_string(),
            IpAddr::V6(addr) => format!("\"[{addr}]\""),
        };
        let value = match authority {
            Some(authority) => format!("for={node};host=\"{authority}\";proto={scheme}"),
            None => format!("for={node};proto={scheme}"),
        };
        let value = HeaderValue::try_from(value).ok()?;
        if let (Some(authority), true) = (authority, *scheme == self.scheme) {
            *self.forwarded.lock() = Some((authority.clone(), value.clone()));
        }
        Some(value)
    }
}

impl ClientInfo {
    /// Reads who calls, and as what host.
    ///
    /// # Errors
    /// [`BadTarget`]: no or several `Host` in HTTP/1.1, an invalid one, one that contradicts `:authority`, or a target of
    /// another scheme. RFC 9112 §3.2, RFC 9113 §8.3.1.
    pub(crate) fn read(
        peer: &Arc<Peer>,
        version: Version,
        uri: &Uri,
        headers: &HeaderMap,
        trusted_proxies: &[IpNet],
    ) -> Result<Self, BadTarget> {
        let authority = authority(version, uri, headers)?;
        let mut client = Self { addr: peer.addr, scheme: peer.scheme.clone(), authority, peer: peer.clone() };
        if peer.trust == Trust::Proxy {
            client.believe(headers, trusted_proxies);
        }
        Ok(client)
    }

    /// The origin under which the client asked, such as `https://api.example`.
    pub(crate) fn origin(&self) -> String {
        match &self.authority {
            Some(authority) => format!("{}://{authority}", self.scheme),
            None => format!("{}://localhost", self.scheme),
        }
    }

    /// Takes what trusted proxies said. `X-Forwarded-*` is preferred to `Forwarded`: a proxy that knows only the former passes
    /// a client's forged `Forwarded` on untouched.
    fn believe(&mut self, headers: &HeaderMap, trusted_proxies: &[IpNet]) {
        let (hops, depth);
        if headers.contains_key(X_FORWARDED_FOR) {
            hops = list(headers, &X_FORWARDED_FOR);
            depth = client_depth(hops.iter().map(|hop| parse_node(hop)), trusted_proxies);
            if let Some(addr) = hops.iter().rev().nth(depth).and_then(|hop| parse_node(hop)) {
                self.addr = addr;
            }
            let at_depth = |name: &HeaderName| {
                let values = list(headers, name);
                values.iter().rev().nth(depth).or(values.first()).copied().map(str::to_owned)
            };
            self.believe_origin(at_depth(&X_FORWARDED_PROTO).as_deref(), at_depth(&X_FORWARDED_HOST).as_deref());
        } else if headers.contains_key(FORWARDED) {
            hops = list(headers, &FORWARDED);
            depth = client_depth(hops.iter().map(|hop| parse_node(parameter(hop, "for")?)), trusted_proxies);
            let Some(hop) = hops.iter().rev().nth(depth) else { return };
            if let Some(addr) = parameter(hop, "for").and_then(parse_node) {
                self.addr = addr;
            }
            self.believe_origin(parameter(hop, "proto"), parameter(hop, "host"));
        } else {
            let one = |name: &HeaderName| list(headers, name).first().copied().map(str::to_owned);
            self.believe_origin(one(&X_FORWARDED_PROTO).as_deref(), one(&X_FORWARDED_HOST).as_deref());
        }
    }

    fn believe_origin(&mut self, proto: Option<&str>, host: Option<&str>) {
        match proto {
            Some(proto) if proto.eq_ignore_ascii_case("https") => self.scheme = Scheme::HTTPS,
            Some(proto) if proto.eq_ignore_ascii_case("http") => self.scheme = Scheme::HTTP,
            _ => {}
        }
        if let Some(Ok(host)) = host.map(|host| parse_authority(host.as_bytes())) {
            self.authority = Some(host);
        }
    }

    /// Adds who called to a request on its way upstream. What an untrusted peer sent under these names is gone by then.
    pub(crate) fn write_forwarded(&self, headers: &mut HeaderMap) {
        let peer = &self.peer;
        append_to_list(headers, &X_FORWARDED_FOR, peer.addr_value.clone());
        if let Some(forwarded) = peer.forwarded(&self.scheme, self.authority.as_ref()) {
            append_to_list(headers, &FORWARDED, forwarded);
        }
        let https = self.scheme == Scheme::HTTPS;
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if https { "https" } else { "http" }));
        if let Some(Ok(host)) = self.authority.as_ref().map(|authority| HeaderValue::from_str(authority.as_str())) {
            headers.insert(X_FORWARDED_HOST, host);
        }
    }

    pub(crate) fn is_behind_proxy(&self) -> bool {
        self.peer.trust == Trust::Proxy
    }
}

fn append_to_list(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue) {
    let Some(first) = headers.get(name) else {
        headers.insert(name.clone(), value);
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for more in headers.get_all(name).iter().skip(1).chain([&value]) {
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(more.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(name.clone(), joined);
    }
}

fn authority(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, BadTarget> {
    let bad = |reason| Err(BadTarget { reason });
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return bad("has more than one Host");
    }
    if host.is_none() && version == Version::HTTP_11 {
        return bad("has no Host");
    }
    if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return bad("asks for a scheme other than http and https");
    }
    let host = match host {
        Some(host) if host.is_empty() => None,
        Some(host) => Some(parse_authority(host.as_bytes())?),
        None => None,
    };
    match uri.authority() {
        Some(target) if version == Version::HTTP_2 && host.as_ref().is_some_and(|host| host != target) => {
            bad("has a Host that contradicts :authority")
        }
        // In HTTP/1.1 the target is what counts, and Host is ignored: RFC 9112 §3.2.2.
        Some(target) if !target.as_str().contains('@') => Ok(Some(target.clone())),
        Some(_) => bad("names a user in its authority"),
        None => Ok(host),
    }
}

fn parse_authority(bytes: &[u8]) -> Result<Authority, BadTarget> {
    match Authority::try_from(bytes) {
        Ok(authority) if !authority.as_str().contains('@') && !authority.host().is_empty() => Ok(authority),
        _ => Err(BadTarget { reason: "has an invalid Host" }),
    }
}

/// How many hops from the right the client stands: the first that is not itself a trusted proxy, or the leftmost.
fn client_depth(hops: impl DoubleEndedIterator<Item = Option<IpAddr>>, trusted_proxies: &[IpNet]) -> usize {
    let trusted = hops.rev().take_while(|hop| hop.is_some_and(|addr| is_trusted(addr, trusted_proxies)));
    trusted.count()
}

fn is_trusted(addr: IpAddr, trusted_proxies: &[IpNet]) -> bool {
    trusted_proxies.iter().any(|net| net.contains(&addr))
}

/// The members of a comma-separated list header over all its lines; what is not text is left out.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|member| !member.is_empty()).collect()
}

/// One parameter of a `Forwarded` element, without quotes.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    element.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

/// An address with or without port: `1.2.3.4`, `1.2.3.4:5`, `2001:db8::1`, `[2001:db8::1]:5`.
fn parse_node(text: &str) -> Option<IpAddr> {
    let bare = text.trim_matches('"');
    let addr = bare
        .parse::<IpAddr>()
        .or_else(|_| bare.parse::<SocketAddr>().map(|address| address.ip()))
        .or_else(|_| bare.trim_start_matches('[').trim_end_matches(']').parse());
    addr.ok().map(|addr| addr.to_canonical())
}
