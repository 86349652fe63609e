//! One request: route it, admit it, pass it on.

use std::{borrow::Cow, sync::Arc, time::Duration};

use farebox_core::{Access, Refusal, Retry};
use farebox_wire::problem;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
};
use hyper::body::Incoming;

use crate::{
    AmbiguousPath, Methods, Route, RouteTable, admission,
    body::Body,
    client::{BadTarget, ClientInfo, Peer},
    counts::Outcome,
    server::Shared,
    upstream::{Unanswered, UpstreamError},
    worker::Worker,
};

/// A routed request to a paid route, for admission.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// As it came; its URI's path is the canonical one.
    pub(crate) request: Request<Incoming>,
    /// Who calls.
    pub(crate) client: ClientInfo,
    /// The route's index.
    pub(crate) route: usize,
    pub(crate) shared: Arc<Shared>,
}

impl Inbound {
    /// Path and query as matched and forwarded.
    pub(crate) fn path_and_query(&self) -> String {
        self.request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned()
    }

    /// The URL of what is sold, as bills name it, and where its path begins.
    pub(crate) fn resource_url(&self) -> (String, usize) {
        let path = self.request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let mut url = match &self.shared.config.public_url {
            Some(base) => base.as_str().trim_end_matches('/').to_owned(),
            None => self.client.origin(),
        };
        let resource_at = url.len();
        url.push_str(path);
        (url, resource_at)
    }

    /// How long the upstream may take to the head of its answer.
    pub(crate) fn upstream_timeout(&self) -> Duration {
        let upstream = &self.shared.routes.routes()[self.route].upstream;
        upstream.connect_timeout + upstream.response_timeout
    }

    /// `Allow` of the route.
    pub(crate) fn allowed_methods(&self) -> HeaderValue {
        allowed_methods(&self.shared.routes.routes()[self.route].methods)
    }
}

/// Answers one request.
pub(crate) async fn handle(worker: &Worker, peer: &Arc<Peer>, mut request: Request<Incoming>) -> Response<Body> {
    let (route, client) = match route(&worker.shared, peer, &mut request) {
        Ok(routed) => routed,
        Err(refusal) => {
            worker.shared.till.counts.code(&refusal.code);
            return refuse(&refusal);
        }
    };
    let counts = &worker.shared.till.counts;
    match &worker.shared.routes.routes()[route].access {
        Access::Free => match worker.upstreams.call(route, request, &client, &[]).await {
            Ok(response) => {
                counts.add(route, Outcome::Free);
                response.map(Body::Upstream)
            }
            Err(Unanswered { error, .. }) => {
                log_failure(&worker.shared.routes.routes()[route], &error);
                let refusal = error.into();
                counts.refused(route, &refusal);
                refuse(&refusal)
            }
        },
        Access::Paid(tariff) => {
            let tariff = tariff.clone();
            let inbound = Inbound { request, client, route, shared: worker.shared.clone() };
            Box::pin(admission::admit(worker, &tariff, inbound)).await
        }
    }
}

/// Finds the route, and makes the URI's path the canonical one.
fn route(shared: &Shared, peer: &Arc<Peer>, request: &mut Request<Incoming>) -> Result<(usize, ClientInfo), Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::new(501, "connect_not_supported", "CONNECT is not proxied; send requests for paths"));
    }
    // Methods are case-sensitive, and yet there are upstreams that take `get` for GET: with `GET /x` paid and `ANY /*` free it
    // would be had for nothing.
    if request.method().as_str().bytes().any(|byte| !byte.is_ascii_uppercase() && byte != b'-' && byte != b'_') {
        return Err(Refusal::new(
            501,
            "method_not_supported",
            "a method is written in upper-case letters, such as GET",
        ));
    }
    let trusted = &shared.config.trusted_proxies;
    let client = ClientInfo::read(peer, request.version(), request.uri(), request.headers(), trusted)?;
    let found = if request.method() == Method::OPTIONS {
        find_for_options(&shared.routes, request.uri().path(), request.headers())?
    } else {
        shared.routes.find(request.method(), request.uri().path())?
    };
    let Some(found) = found else {
        return Err(Refusal::new(404, "no_such_route", "no route of this gateway has this method and path"));
    };
    if request
        .headers()
        .get(http::header::EXPECT)
        .is_some_and(|expect| !expect.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Refusal::new(417, "expectation_failed", "the only expectation understood is 100-continue"));
    }
    let index = found.index;
    if let Cow::Owned(path) = &found.path.forwarded {
        let target = match request.uri().query() {
            Some(query) => format!("{path}?{query}"),
            None => path.clone(),
        };
        let uri = Uri::try_from(target).map_err(|_| AmbiguousPath::new("cannot be written in its plain form"))?;
        *request.uri_mut() = uri;
    }
    Ok((index, client))
}

/// OPTIONS belongs to the route that names it; else to the route of the method that a preflight asks about, or of any other.
fn find_for_options<'a>(
    table: &'a RouteTable,
    path: &'a str,
    headers: &HeaderMap,
) -> Result<Option<crate::RouteMatch<'a>>, AmbiguousPath> {
    let preflight = headers.get(ACCESS_CONTROL_REQUEST_METHOD).and_then(|m| Method::from_bytes(m.as_bytes()).ok());
    let others = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    for method in [Method::OPTIONS].into_iter().chain(preflight).chain(others) {
        if let Some(found) = table.find(&method, path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn allowed_methods(methods: &Methods) -> HeaderValue {
    let Methods::Only(methods) = methods else {
        return HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    };
    let mut names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    for (name, wanted) in [("HEAD", names.contains(&"GET")), ("OPTIONS", true)] {
        if wanted && !names.contains(&name) {
            names.push(name);
        }
    }
    HeaderValue::try_from(names.join(", ")).unwrap_or_else(|_| HeaderValue::from_static("OPTIONS"))
}

/// A refusal as problem+json. RFC 9457.
pub(crate) fn refuse(refusal: &Refusal) -> Response<Body> {
    let mut response = Response::new(Body::full(problem::problem_json(refusal, None, None)));
    *response.status_mut() = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = refusal.retry_after_s {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn log_failure(route: &Route, error: &UpstreamError) {
    tracing::warn!(route = %route.id, code = error.code(), error = error as &dyn std::error::Error, "upstream failed");
}

impl From<UpstreamError> for Refusal {
    fn from(error: UpstreamError) -> Self {
        let refusal = Self::new(error.status(), error.code(), error.to_string());
        match error.status() {
            502 | 504 => Self { retry: Retry::SameProof, ..refusal },
            _ => refusal,
        }
    }
}

impl From<AmbiguousPath> for Refusal {
    fn from(error: AmbiguousPath) -> Self {
        Self::new(400, error.code(), error.to_string())
    }
}

impl From<BadTarget> for Refusal {
    fn from(error: BadTarget) -> Self {
        Self::new(400, "bad_target", error.to_string())
    }
}
