//! A request that can be sent again, byte for byte.

use bytes::Bytes;
use farebox_core::Untrusted;
use farebox_wire::l402;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use reqwest::Request;
use url::{Host, Url};

use crate::{
    entry::{Fingerprint, SecretHeader},
    error::RequestError,
};

/// Headers that carry a payment. The agent alone sets them.
const CREDENTIAL_HEADERS: [&str; 6] =
    ["payment-signature", "x-payment", "x-payment-hash", "x-payment-code", "macaroon", "grpc-metadata-macaroon"];

/// Headers that another origin must not see after a redirect.
const ORIGIN_HEADERS: [HeaderName; 5] =
    [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION, header::HOST, IDEMPOTENCY_KEY];

/// Source: draft-ietf-httpapi-idempotency-key-header. Whoever knows one can ask for the answer that was paid for with it.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A request, its body in memory.
#[derive(Clone, Debug)]
pub(crate) struct Replayable {
    pub(crate) method: Method,
    pub(crate) url: Url,
    headers: HeaderMap,
    body: Bytes,
    label: String,
    /// Whether a redirect led away from the origin that the caller named.
    is_elsewhere: bool,
}

impl Replayable {
    pub(crate) fn new(request: Request, label: &str) -> Result<Self, RequestError> {
        let body = match request.body() {
            None => Bytes::new(),
            Some(body) => Bytes::copy_from_slice(body.as_bytes().ok_or(RequestError::BodyNotReplayable)?),
        };
        if let Some(header) = CREDENTIAL_HEADERS.into_iter().find(|name| request.headers().contains_key(*name)) {
            return Err(RequestError::CredentialPresent { header });
        }
        let mut own = request.headers().get_all(header::AUTHORIZATION).iter();
        if own.any(l402::is_token_authorization) {
            return Err(RequestError::CredentialPresent { header: "authorization" });
        }
        let keys: Vec<_> = request.headers().get_all(IDEMPOTENCY_KEY).iter().collect();
        if keys.len() > 1 || keys.iter().any(|key| key.to_str().is_err()) {
            return Err(RequestError::IdempotencyKey);
        }
        if !matches!(request.url().scheme(), "http" | "https") {
            return Err(RequestError::Scheme { scheme: Untrusted::new(request.url().scheme()) });
        }
        let (method, url, headers) = (request.method().clone(), request.url().clone(), request.headers().clone());
        Ok(Self { method, url, headers, body, label: label.to_owned(), is_elsewhere: false })
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.method, &self.url, &self.body, &self.label)
    }

    /// Scheme, host and port.
    pub(crate) fn origin(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// Whether a redirect led away from the origin that the caller named.
    pub(crate) const fn is_elsewhere(&self) -> bool {
        self.is_elsewhere
    }

    /// Whether it goes over a network without TLS.
    pub(crate) fn is_plain(&self) -> bool {
        self.url.scheme() == "http"
            && !match self.url.host() {
                Some(Host::Ipv4(address)) => address.is_loopback(),
                Some(Host::Ipv6(address)) => address.is_loopback(),
                // Source: RFC 6761 §6.3.
                Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
                None => false,
            }
    }

    /// Whether the caller gave an `Authorization` of its own.
    pub(crate) fn has_authorization(&self) -> bool {
        self.headers.contains_key(header::AUTHORIZATION)
    }

    pub(crate) fn host(&self) -> String {
        self.url.host_str().unwrap_or_default().to_owned()
    }

    /// Its URL as a seller names it, without a fragment.
    pub(crate) fn resource(&self) -> Url {
        let mut url = self.url.clone();
        url.set_fragment(None);
        url
    }

    /// The caller's own `Idempotency-Key`, visible ASCII.
    pub(crate) fn idempotency_key(&self) -> Option<&HeaderValue> {
        self.headers.get(IDEMPOTENCY_KEY)
    }

    /// Whether doing it twice is as good as once. Source: RFC 9110 §9.2.2.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// The request as it goes out, with a payment's headers if there is one.
    pub(crate) fn to_request(&self, payment: &[&SecretHeader]) -> Request {
        let mut request = Request::new(self.method.clone(), self.url.clone());
        *request.headers_mut() = self.headers.clone();
        for SecretHeader { name, value } in payment {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        if !self.body.is_empty() {
            *request.body_mut() = Some(self.body.clone().into());
        }
        request
    }

    /// Where `status` and `location` lead an unpaid request. 303, and 301 or 302 after POST, become GET without a body, as in
    /// RFC 9110 §15.4; another origin does not get this one's secrets.
    pub(crate) fn redirected(&self, status: StatusCode, headers: &HeaderMap) -> Result<Option<Self>, RequestError> {
        if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let Some(location) = headers.get(header::LOCATION) else { return Ok(None) };
        let shown = || Untrusted::from_bytes(location.as_bytes());
        let wrong = |reason: String| RequestError::Redirect { reason };
        let text = location.to_str().map_err(|_| wrong(format!("redirected to {}, which is no URL", shown())))?;
        let url = self.url.join(text).map_err(|_| wrong(format!("redirected to {}, which is no URL", shown())))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(format!("redirected to {}, which is not http or https", shown())));
        }
        if self.url.scheme() == "https" && url.scheme() == "http" {
            return Err(wrong(format!("redirected from https to {}, which anybody on the way can read", shown())));
        }
        let mut next = self.clone();
        let becomes_get = match status.as_u16() {
            303 => self.method != Method::HEAD,
            301 | 302 => self.method == Method::POST,
            _ => false,
        };
        if becomes_get {
            next.method = Method::GET;
            next.body = Bytes::new();
            for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::CONTENT_ENCODING] {
                next.headers.remove(name);
            }
        }
        if url.origin() != self.url.origin() {
            for name in ORIGIN_HEADERS {
                next.headers.remove(name);
            }
            next.is_elsewhere = true;
        }
        next.url = url;
        Ok(Some(next))
    }
}
