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
    /// A connection seldom names more than one host.
    last_host: Mutex<Option<Host>>,
    /// The connection's place among `connections_max`.
    _slot: Option<OwnedSemaphorePermit>,
}

/// A `Host`, read, and what we say of it upstream.
#[derive(Clone, Debug)]
struct Host {
    value: HeaderValue,
    authority: Authority,
    forwarded: Option<HeaderValue>,
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
        Self { addr, addr_value, scheme, trust, last_host: Mutex::new(None), _slot: slot }
    }

    fn host(&self, value: &HeaderValue) -> Result<Authority, BadTarget> {
        let mut last = self.last_host.lock();
        if let Some(host) = &*last
            && host.value == value
        {
            return Ok(host.authority.clone());
        }
        let authority = parse_authority(value.as_bytes())?;
        let forwarded = self.forwarded(&self.scheme, Some(&authority));
        // A copy of the bytes: a clone would keep the whole buffer that the head was read into, for as long as the connection lives.
        let value =
            HeaderValue::from_bytes(value.as_bytes()).map_err(|_| BadTarget { reason: "has an invalid Host" })?;
        *last = Some(Host { value, authority: authority.clone(), forwarded });
        Ok(authority)
    }

    /// `for=…;host=…;proto=…` of RFC 7239.
    fn forwarded(&self, scheme: &Scheme, authority: Option<&Authority>) -> Option<HeaderValue> {
        let node = match self.addr {
            IpAddr::V4(addr) => addr.to_string(),
            IpAddr::V6(addr) => format!("\"[{addr}]\""),
        };
        let value = match authority {
            Some(authority) => format!("for={node};host=\"{authority}\";proto={scheme}"),
            None => format!("for={node};proto={scheme}"),
        };
        HeaderValue::try_from(value).ok()
    }

    /// `X-Forwarded-Host` and `Forwarded` of a request.
    fn origin_headers(&self, client: &ClientInfo) -> (Option<HeaderValue>, Option<HeaderValue>) {
        if let (Some(host), Some(authority)) = (&*self.last_host.lock(), &client.authority)
            && host.authority.as_str() == authority.as_str()
            && client.scheme == self.scheme
        {
            return (Some(host.value.clone()), host.forwarded.clone());
        }
        let host = client.authority.as_ref().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        (host, self.forwarded(&client.scheme, client.authority.as_ref()))
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
        let authority = authority(peer, version, uri, headers)?;
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
        let (host, forwarded) = peer.origin_headers(self);
        append_to_list(headers, &X_FORWARDED_FOR, peer.addr_value.clone());
        if let Some(forwarded) = forwarded {
            append_to_list(headers, &FORWARDED, forwarded);
        }
        let https = self.scheme == Scheme::HTTPS;
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if https { "https" } else { "http" }));
        if let Some(host) = host {
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

fn authority(peer: &Peer, version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, BadTarget> {
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
        Some(host) => Some(peer.host(host)?),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A request from `peer` with these headers, seen as address, scheme and authority. `10.0.0.0/8` is listed.
    fn check(peer: &str, headers: &[(&'static str, &str)], expected: (&str, &str, &str)) {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let address = SocketAddr::new(peer.parse().unwrap(), 1234);
        let peer = Arc::new(Peer::new(address, Scheme::HTTP, &trusted, None));
        let mut map = HeaderMap::new();
        map.insert(HOST, HeaderValue::from_static("gateway.example"));
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let uri = Uri::from_static("/");
        let client = ClientInfo::read(&peer, Version::HTTP_11, &uri, &map, &trusted).unwrap();
        let authority = client.authority.unwrap().to_string();
        assert_eq!((&*client.addr.to_string(), client.scheme.as_str(), &*authority), expected, "{headers:?}");
    }

    #[test]
    fn only_listed_proxies_are_believed() {
        let claims =
            [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "shop.example")];
        check("9.9.9.9", &claims, ("9.9.9.9", "http", "gateway.example"));
        check("10.0.0.1", &claims, ("1.1.1.1", "https", "shop.example"));
        check("::ffff:10.0.0.1", &claims, ("1.1.1.1", "https", "shop.example"));
        check("10.0.0.1", &[], ("10.0.0.1", "http", "gateway.example"));
    }

    #[test]
    fn what_a_client_prepends_to_a_list_is_not_believed() {
        check("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, 1.1.1.1, 10.0.0.2")], ("1.1.1.1", "http", "gateway.example"));
        check(
            "10.0.0.1",
            &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1")],
            ("1.1.1.1", "http", "gateway.example"),
        );
        let spoofed = [("x-forwarded-for", "6.6.6.6, 1.1.1.1"), ("x-forwarded-host", "evil.example, shop.example")];
        check("10.0.0.1", &spoofed, ("1.1.1.1", "http", "shop.example"));
        check("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, garbage")], ("10.0.0.1", "http", "gateway.example"));
    }

    #[test]
    fn forwarded_counts_where_x_forwarded_is_absent() {
        let forwarded = "for=6.6.6.6, for=\"[2001:db8::1]:4711\";proto=https;host=\"shop.example\", for=10.0.0.2";
        check("10.0.0.1", &[("forwarded", forwarded)], ("2001:db8::1", "https", "shop.example"));
        // A proxy that writes only the one passes a client's other on.
        check(
            "10.0.0.1",
            &[("forwarded", "for=6.6.6.6;host=evil.example"), ("x-forwarded-for", "1.1.1.1")],
            ("1.1.1.1", "http", "gateway.example"),
        );
        check(
            "10.0.0.1",
            &[("x-forwarded-proto", "https"), ("x-forwarded-host", "user@evil")],
            ("10.0.0.1", "https", "gateway.example"),
        );
    }
}
