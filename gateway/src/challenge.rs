//! Everything a paid route says itself: the 402 and its variants, preflights, and the headers a paid answer carries.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use farebox_core::{
    AssetId, CallerId, Challenge, Charged, Credential, Network, Offer, OfferBoard, PaymentId, RailName, Refusal,
    RequestId, Resource, Retry, Tariff, UnavailableRail, X402Version, ports::TokenBill,
};
use farebox_wire::{
    CredentialError, l402, page, problem,
    transfer::{TransferBill, X_PAYMENT_CODE, X_PAYMENT_HASH},
    x402::{
        PAYMENT_REQUIRED, PAYMENT_RESPONSE, SettlementResponse, X_PAYMENT, X_PAYMENT_RESPONSE, encode_payment_required,
    },
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ALLOW, CACHE_CONTROL,
        CONTENT_SECURITY_POLICY, CONTENT_TYPE, ORIGIN, RETRY_AFTER, USER_AGENT, VARY, WWW_AUTHENTICATE,
    },
};

use crate::{
    admission::forwarded,
    body::Body,
    counts::Outcome,
    proxy::Inbound,
    quotes::Sale,
    till::Till,
    token_bill::{TokenSide, token_side, without_tokens},
};

/// Our name for a payment: to the upstream, so that it can tell a repeat, and to the payer.
pub(crate) const PAYMENT_ID: HeaderName = HeaderName::from_static("farebox-payment-id");

/// Our name for one request with a credential: to the upstream, to the payer, and in logs.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("farebox-request-id");

/// How many calls the token has left after this one.
const PASS_REMAINING: HeaderName = HeaderName::from_static("farebox-pass-remaining");

/// When a route without a price is worth another try, seconds.
const PRICE_RETRY_S: u32 = 5;

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static(problem::CONTENT_TYPE);
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const PRIVATE: HeaderValue = HeaderValue::from_static("private");
const ANY: HeaderValue = HeaderValue::from_static("*");
const VARY_CREDENTIALS: HeaderValue = HeaderValue::from_static(
    "payment-signature, x-payment, x-payment-hash, x-payment-code, authorization, macaroon, grpc-metadata-macaroon",
);
const VARY_CHALLENGE: HeaderValue = HeaderValue::from_static(
    "payment-signature, x-payment, x-payment-hash, x-payment-code, authorization, macaroon, grpc-metadata-macaroon, accept",
);
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "payment-required, payment-response, x-payment-response, www-authenticate, farebox-payment-id, farebox-pass-remaining, \
     farebox-request-id, idempotent-replayed, retry-after",
);
const PREFLIGHT_HEADERS: &str = "payment-signature, x-payment, x-payment-hash, x-payment-code, authorization, macaroon, \
                                 idempotency-key, access-control-expose-headers, content-type";

/// What a paid answer says of its price.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// A payment was charged for it.
    Charge(SettlementResponse),
    /// It was a call of a pass, which has so many left, if calls are counted.
    Pass { left: Option<u32> },
}

/// Writes the answers of one route to one caller.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    till: Arc<Till>,
    tariff: Arc<Tariff>,
    /// One for the whole request, so that its bill and its checks agree.
    board: Arc<OfferBoard>,
    /// The route's index.
    route: usize,
    url: String,
    /// Where path and query begin in it.
    resource_at: usize,
    client: IpAddr,
    /// What proxies say of it.
    forwarded: Vec<u8>,
    /// Whether a listed one said so.
    is_behind_proxy: bool,
    method: Method,
    /// Whether the request claims a transfer.
    rail: RailName,
    /// Once there is a credential.
    request: Option<RequestId>,
    caller: Caller,
    version: X402Version,
    /// Preflight: which headers the page wants to send.
    wanted_headers: Option<HeaderValue>,
    methods: HeaderValue,
}

/// Who reads the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Program,
    Browser,
    /// gRPC's: it reads no status and no body.
    Grpc,
}

/// An answer in its caller's language.
enum Words {
    Problem(Vec<u8>),
    Page(String),
    Grpc,
}

impl Desk {
    pub(crate) fn new(till: &Arc<Till>, tariff: &Arc<Tariff>, inbound: &Inbound) -> Self {
        let headers = inbound.request.headers();
        let contains = |name: HeaderName, part: &str| {
            headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains(part))
        };
        let browser = contains(ACCEPT, "text/html") && contains(USER_AGENT, "Mozilla");
        let transfer = headers.contains_key(X_PAYMENT_HASH) || headers.contains_key(X_PAYMENT_CODE);
        let (url, resource_at) = inbound.resource_url();
        Self {
            till: till.clone(),
            tariff: tariff.clone(),
            board: tariff.board.now(),
            route: inbound.route,
            url,
            resource_at,
            client: inbound.client.addr,
            forwarded: forwarded(headers),
            is_behind_proxy: inbound.client.is_behind_proxy(),
            method: inbound.request.method().clone(),
            rail: if transfer { RailName::Transfer } else { RailName::X402 },
            request: None,
            caller: match browser {
                _ if l402::is_grpc(headers) => Caller::Grpc,
                true => Caller::Browser,
                false => Caller::Program,
            },
            version: if headers.contains_key(X_PAYMENT) { X402Version::V1 } else { X402Version::V2 },
            wanted_headers: headers
                .get(ACCESS_CONTROL_REQUEST_HEADERS)
                .filter(|_| headers.contains_key(ORIGIN))
                .cloned(),
            methods: inbound.allowed_methods(),
        }
    }

    /// For a request with a credential, which has a name.
    pub(crate) fn of_request(self, request: &RequestId) -> Self {
        Self { request: Some(request.clone()), ..self }
    }

    pub(crate) fn tariff(&self) -> &Tariff {
        &self.tariff
    }

    pub(crate) fn board(&self) -> &OfferBoard {
        &self.board
    }

    /// The request's public URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Its canonical path, and the query as sent.
    pub(crate) fn resource(&self) -> &str {
        &self.url[self.resource_at..]
    }

    /// Its method.
    pub(crate) const fn method(&self) -> &Method {
        &self.method
    }

    /// Who sent it, by the socket or a listed proxy.
    pub(crate) const fn client(&self) -> IpAddr {
        self.client
    }

    /// Who sent it, told apart from others at the same address.
    pub(crate) fn caller(&self) -> CallerId {
        CallerId::from_address(self.client, &self.forwarded)
    }

    /// Whether its address is that of a proxy that is not listed, or of a client that pretends to be one.
    pub(crate) const fn is_behind_stranger(&self) -> bool {
        !self.is_behind_proxy && !self.forwarded.is_empty()
    }

    /// Its name, or a new one if it brought no credential.
    pub(crate) fn request_or_else(&self, new: impl FnOnce() -> RequestId) -> Cow<'_, RequestId> {
        self.request.as_ref().map_or_else(|| Cow::Owned(new()), Cow::Borrowed)
    }

    /// The Lightning network that tokens are sold on, as far as an offer says it.
    pub(crate) fn token_network(&self) -> Option<&Network> {
        let mut offers = self.board.offers.iter().chain(self.board.earlier_offers.iter());
        offers.find(|offer| offer.rail == RailName::L402).map(|offer| offer.network())
    }

    /// What people call an asset, as far as an offer says it.
    pub(crate) fn symbol(&self, asset: &AssetId) -> Option<&str> {
        let mut offers = self.board.offers.iter().chain(self.board.earlier_offers.iter());
        offers.find_map(|offer| offer.extra.get("symbol")?.as_str().filter(|_| offer.amount.asset == *asset))
    }

    /// Whether what the request's credential speaks of has moved money before we looked: an authorization has not, a transfer may have.
    pub(crate) const fn charged_before(&self) -> Charged {
        match self.rail {
            RailName::X402 => Charged::No,
            RailName::Transfer | RailName::L402 => Charged::Unknown,
        }
    }

    /// The bill, for a request without a credential.
    pub(crate) async fn unpaid(&self) -> Response<Body> {
        if self.board.offers.is_empty() {
            return self.refuse(&price_unavailable(), None);
        }
        let refusal = Refusal::payment(
            "payment_required",
            "this resource is paid by the call; pay one of the offers and send the request again",
        );
        self.rebill(&refusal, None).await
    }

    /// A credential that cannot be read: 400. With a fresh bill so that a client can go on, unless money may have moved.
    pub(crate) async fn malformed(&self, error: &CredentialError) -> Response<Body> {
        let refusal = error.refusal();
        match refusal.retry {
            Retry::AfterPayment => self.rebill(&refusal, None).await,
            Retry::SameProof | Retry::Never => self.refuse(&refusal, None),
        }
    }

    /// A credential of a rail that this gateway does not take.
    pub(crate) async fn no_rail(&self, credential: &Credential) -> Response<Body> {
        let detail = format!("this gateway does not take {} payments; see the offers", credential.rail());
        let refusal = Refusal { charged: self.charged_before(), ..Refusal::payment("unsupported_rail", detail) };
        self.rebill(&refusal, None).await
    }

    /// A refusal with a fresh bill: paying (again) is right. Without one while there is no price.
    pub(crate) async fn rebill(&self, refusal: &Refusal, settlement: Option<&SettlementResponse>) -> Response<Body> {
        if self.board.offers.is_empty() {
            return self.refuse(refusal, settlement);
        }
        // There are clients that pay whatever invoice an answer has, even a 400.
        let side = match refusal.status {
            402 => token_side(&self.till, self).await,
            _ => TokenSide::NotAsked,
        };
        match side {
            TokenSide::Bill(bill) => self.bill(refusal, self.board.offers.clone(), Some(bill), Vec::new(), settlement),
            TokenSide::NotAsked => match without_tokens(&self.board.offers) {
                offers if offers.is_empty() => self.refuse(refusal, settlement),
                offers => self.bill(refusal, offers, None, Vec::new(), settlement),
            },
            TokenSide::Off(off) => match without_tokens(&self.board.offers) {
                offers if offers.is_empty() => self.refuse(&off.refusal(), settlement),
                offers => self.bill(refusal, offers, None, vec![off.told()], settlement),
            },
        }
    }

    fn bill(
        &self,
        refusal: &Refusal,
        offers: Arc<[Offer]>,
        token: Option<Arc<TokenBill>>,
        unavailable: Vec<UnavailableRail>,
        settlement: Option<&SettlementResponse>,
    ) -> Response<Body> {
        let challenge = Challenge {
            resource: Resource {
                url: self.url.clone(),
                description: self.tariff.description.clone(),
                mime_type: self.tariff.mime_type.clone(),
            },
            offers,
            token,
            unavailable,
            refusal: refusal.clone(),
        };
        let words = match self.caller {
            Caller::Grpc => Words::Grpc,
            Caller::Browser => {
                Words::Page(page::html(&challenge, &self.tariff.pricing.price, self.transfer_bill().as_ref()))
            }
            Caller::Program => {
                Words::Problem(problem::problem_json(refusal, Some(&challenge), self.transfer_bill().as_ref()))
            }
        };
        let mut response = self.respond(refusal, words, challenge.token.as_deref(), settlement);
        if let Some(bill) = encode_payment_required(&challenge).and_then(|bill| HeaderValue::try_from(bill).ok()) {
            response.headers_mut().insert(PAYMENT_REQUIRED, bill);
        }
        response
    }

    fn transfer_bill(&self) -> Option<TransferBill> {
        // Nobody reads the body, and a HEAD is not sold.
        if self.method == Method::HEAD {
            return None;
        }
        let sale = Sale {
            route: &self.tariff.route,
            method: self.method.as_str(),
            url: &self.url,
            offers: &self.board.offers,
        };
        self.till.quotes.as_ref()?.bill(sale, &*self.till.clock, &*self.till.entropy)
    }

    /// A refusal without a bill: to pay (again) would be wrong, or no use.
    pub(crate) fn refuse(&self, refusal: &Refusal, settlement: Option<&SettlementResponse>) -> Response<Body> {
        let words = match self.caller {
            Caller::Grpc => Words::Grpc,
            Caller::Program | Caller::Browser => Words::Problem(problem::problem_json(refusal, None, None)),
        };
        self.respond(refusal, words, None, settlement)
    }

    fn respond(
        &self,
        refusal: &Refusal,
        words: Words,
        token: Option<&TokenBill>,
        settlement: Option<&SettlementResponse>,
    ) -> Response<Body> {
        self.till.counts.refused(self.route, refusal);
        let (status, content_type, body) = match words {
            Words::Problem(json) => (refusal.status, PROBLEM_JSON, Body::full(json)),
            Words::Page(html) => (refusal.status, HTML, Body::full(html)),
            Words::Grpc => (200, GRPC, Body::empty()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.reserve(14);
        if content_type == HTML {
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::CONTENT_SECURITY_POLICY));
        }
        if content_type == GRPC {
            headers.extend(l402::grpc_refusal(refusal, token));
        } else {
            headers.extend(token.into_iter().flat_map(l402::encode_challenge));
        }
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(CACHE_CONTROL, NO_STORE);
        headers.insert(VARY, VARY_CHALLENGE);
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        if let Some(seconds) = refusal.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        self.add_names(headers, settlement);
        response
    }

    /// A preflight costs nothing and never reaches the upstream; nor does any other OPTIONS.
    pub(crate) fn options(&self) -> Response<Body> {
        self.till.counts.add(self.route, Outcome::Free);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(ALLOW, self.methods.clone());
        headers.insert(CACHE_CONTROL, NO_STORE);
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
        let wanted = self.wanted_headers.clone().unwrap_or(HeaderValue::from_static(PREFLIGHT_HEADERS));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted);
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        headers.insert(VARY, HeaderValue::from_static("origin, access-control-request-headers"));
        response
    }

    /// An upstream's answer that was paid for.
    pub(crate) fn paid(&self, response: Response<Body>, payment: PaymentId, told: &Told) -> Response<Body> {
        self.till.counts.add(self.route, Outcome::Paid);
        self.handed_over(response, payment, told)
    }

    /// A kept answer.
    pub(crate) fn replayed(&self, response: Response<Body>, payment: PaymentId, told: &Told) -> Response<Body> {
        self.till.counts.add(self.route, Outcome::Replayed);
        self.handed_over(response, payment, told)
    }

    fn handed_over(&self, mut response: Response<Body>, payment: PaymentId, told: &Told) -> Response<Body> {
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::try_from(payment.to_string()) {
            headers.insert(PAYMENT_ID, id);
        }
        headers.remove(PASS_REMAINING);
        match told {
            Told::Charge(settlement) => self.add_names(headers, Some(settlement)),
            Told::Pass { left } => {
                self.add_names(headers, None);
                headers.extend(left.map(|left| (PASS_REMAINING, HeaderValue::from(left))));
            }
        }
        Self::guard(response)
    }

    /// An upstream's answer on a paid route that was not charged (status 400 or more).
    pub(crate) fn uncharged(&self, mut response: Response<Body>, told: &SettlementResponse) -> Response<Body> {
        self.till.counts.add(self.route, Outcome::Uncharged);
        self.add_names(response.headers_mut(), Some(told));
        Self::guard(response)
    }

    /// No shared cache may hand a paid answer to the next caller.
    fn guard(mut response: Response<Body>) -> Response<Body> {
        let headers = response.headers_mut();
        // Ours to say: an upstream that names these is confused or hostile.
        headers.remove(PAYMENT_REQUIRED);
        drop_invoices(headers);
        // What shared caches obey before Cache-Control.
        for name in ["cdn-cache-control", "surrogate-control"] {
            headers.remove(name);
        }
        let cacheable = headers.get_all(CACHE_CONTROL).iter().all(|value| {
            let value = value.as_bytes().to_ascii_lowercase();
            ![&b"no-store"[..], b"private"].iter().any(|word| value.windows(word.len()).any(|part| part == *word))
        });
        if cacheable {
            headers.insert(CACHE_CONTROL, PRIVATE);
        }
        headers.append(VARY, VARY_CREDENTIALS);
        if !headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
        }
        headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        response
    }

    /// What became of the payment, and what the request is called.
    fn add_names(&self, headers: &mut HeaderMap, settlement: Option<&SettlementResponse>) {
        headers.remove(REQUEST_ID);
        if let Some(Ok(request)) = self.request.as_ref().map(|request| HeaderValue::try_from(request.as_str())) {
            headers.insert(REQUEST_ID, request);
        }
        for name in [PAYMENT_RESPONSE, X_PAYMENT_RESPONSE] {
            headers.remove(name);
        }
        if let Some((name, value)) = settlement.map(|settlement| settlement.encode(self.version)) {
            headers.insert(name, value);
        }
    }
}

/// Takes an upstream's L402 challenges out: whoever paid us is not to pay an invoice that we know nothing of.
fn drop_invoices(headers: &mut HeaderMap) {
    let is_ours = |value: &HeaderValue| {
        let value = value.as_bytes();
        [&b"l402"[..], b"lsat"]
            .iter()
            .any(|scheme| value.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
    };
    if headers.get_all(WWW_AUTHENTICATE).iter().any(is_ours) {
        headers.remove(WWW_AUTHENTICATE);
    }
}

fn price_unavailable() -> Refusal {
    let detail = "what this resource costs cannot be told now; send the request again";
    Refusal { retry_after_s: Some(PRICE_RETRY_S), ..Refusal::could_not_tell("price_unavailable", detail, Charged::No) }
}

/// Whether an upstream's header may be kept with an answer: not the connection's own, and not ours.
pub(crate) fn is_end_to_end(name: &HeaderName) -> bool {
    use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
    ![
        CONNECTION,
        CONTENT_LENGTH,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        PAYMENT_REQUIRED,
        PAYMENT_RESPONSE,
        X_PAYMENT_RESPONSE,
        REQUEST_ID,
        PASS_REMAINING,
    ]
    .contains(name)
}
