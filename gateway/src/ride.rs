//! What every paid request does once it may run: a task of its own, one call of the upstream, small answers read whole.

use std::sync::Arc;

use bytes::Bytes;
use farebox_core::{Answer, Payer, PaymentId, Refusal, RequestId, Retry};
use farebox_wire::l402;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tracing::{Instrument as _, warn};

use crate::{
    body::Body,
    challenge::{Desk, PAYMENT_ID, REQUEST_ID},
    delivery::answer_headers,
    proxy::Inbound,
    till::Till,
    upstream::{BrokenBy, Unanswered, UpstreamBody, Upstreams},
};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const PAYER: HeaderName = HeaderName::from_static("farebox-payer");

/// Who waits for the answer; closed once they hung up.
pub(crate) type Caller = oneshot::Sender<Response<Body>>;

/// A request with the right to one run of its upstream.
pub(crate) trait Ride: Send + Sync + 'static {
    /// What writes its answers.
    fn desk(&self) -> &Arc<Desk>;

    /// Takes the request to its answer, whether the caller still waits or not.
    fn ride(self, inbound: Inbound, caller: &Caller) -> impl Future<Output = Response<Body>> + Send;

    /// What the caller is told if the task is gone: it panicked, or the runtime is going down.
    fn lost(desk: &Desk) -> Response<Body>;
}

/// Rides in a task of its own, so that a caller who hangs up cannot stop it between the upstream and the books, and waits for the answer.
pub(crate) async fn run<R: Ride>(rider: R, inbound: Inbound) -> Response<Body> {
    let (caller, answer) = oneshot::channel();
    let desk = rider.desk().clone();
    let ride = async move {
        let response = rider.ride(inbound, &caller).await;
        // Nobody there: the response is dropped, and with it the delivery, which tells the books.
        drop(caller.send(response));
    };
    tokio::spawn(ride.in_current_span());
    match answer.await {
        Ok(response) => response,
        Err(_) => R::lost(&desk),
    }
}

/// What a run is known by: to the upstream, which may see two for one payment after a crash, and in logs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'a> {
    pub(crate) payer: &'a Payer,
    pub(crate) payment: PaymentId,
    pub(crate) request: &'a RequestId,
}

impl Named<'_> {
    fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let text = [
            (PAYER, HeaderValue::from_str(self.payer.as_str())),
            (PAYMENT_ID, HeaderValue::try_from(self.payment.to_string())),
            (REQUEST_ID, HeaderValue::from_str(self.request.as_str())),
        ];
        text.into_iter().filter_map(|(name, value)| Some((name, value.ok()?))).collect()
    }
}

/// The upstream's answer: whole if it is small, else its stream.
pub(crate) enum Served {
    Whole(http::response::Parts, Bytes),
    Streaming(Response<UpstreamBody>),
}

impl Served {
    /// Its HTTP status, or of a gRPC answer that is trailers alone the one that it stands for.
    pub(crate) fn status(&self) -> u16 {
        let (status, headers) = match self {
            Self::Whole(head, _) => (head.status, &head.headers),
            Self::Streaming(response) => (response.status(), response.headers()),
        };
        headers.get(GRPC_STATUS).filter(|_| l402::is_grpc(headers)).map_or(status.as_u16(), http_status)
    }

    pub(crate) const fn is_whole(&self) -> bool {
        matches!(self, Self::Whole(..))
    }

    /// A whole answer, for the books. A switch of protocols cannot be kept.
    pub(crate) fn to_be_kept(&self) -> Option<Answer> {
        match self {
            Self::Whole(head, body) if head.status != StatusCode::SWITCHING_PROTOCOLS => Some(Answer {
                status: head.status.as_u16(),
                headers: answer_headers(&head.headers),
                body: body.to_vec(),
            }),
            Self::Whole(..) | Self::Streaming(_) => None,
        }
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        match self {
            Self::Whole(head, body) => Response::from_parts(head, Body::full(body)),
            Self::Streaming(response) => response.map(Body::Upstream),
        }
    }
}

/// The HTTP status of a gRPC status. Source: `google/rpc/code.proto`.
fn http_status(grpc: &HeaderValue) -> u16 {
    match grpc.as_bytes() {
        b"0" => 200,
        b"1" => 499,
        b"3" | b"9" | b"11" => 400,
        b"4" => 504,
        b"5" => 404,
        b"6" | b"10" => 409,
        b"7" => 403,
        b"8" => 429,
        b"12" => 501,
        b"14" => 503,
        b"16" => 401,
        _ => 500,
    }
}

/// Calls the upstream once. An answer that is small enough to keep is read whole, so that a break in it costs nothing.
pub(crate) async fn call_upstream(
    till: &Till,
    upstreams: &Upstreams,
    named: Named<'_>,
    inbound: Inbound,
) -> Result<Served, Broken> {
    let Inbound { request, client, route: index, shared } = inbound;
    let (payment, route) = (named.payment, &shared.routes.routes()[index].id);
    let response =
        upstreams.call(index, request, &client, &named.headers()).await.map_err(|Unanswered { error, by }| {
            let code = error.code();
            warn!(%payment, %route, code, error = &error as &dyn std::error::Error, "upstream failed");
            Broken { status: error.status(), code, detail: error.to_string(), by }
        })?;
    let small = response.body().size_hint().exact().is_some_and(|size| size <= till.answer_bytes_max);
    if !small {
        return Ok(Served::Streaming(response));
    }
    let (head, body) = response.into_parts();
    let sent = body.request().cloned();
    let broken = |status, code, detail: &str| {
        Err(Broken { status, code, detail: detail.to_owned(), by: BrokenBy::of(sent.as_deref()) })
    };
    match tokio::time::timeout(till.limits.answer_timeout, body.collect()).await {
        Ok(Ok(whole)) => Ok(Served::Whole(head, whole.to_bytes())),
        Ok(Err(error)) => {
            warn!(%payment, %route, error = &error as &dyn std::error::Error, "upstream broke off");
            broken(502, "upstream_reset", "the upstream broke off in mid-answer")
        }
        Err(_) => broken(504, "upstream_timeout", "the upstream's answer took too long"),
    }
}

/// Why the upstream gave no answer. Whether anything was charged is not said here.
pub(crate) struct Broken {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) detail: String,
    pub(crate) by: BrokenBy,
}

impl Broken {
    pub(crate) fn new(status: u16, code: &'static str, detail: &str) -> Self {
        Self { status, code, detail: detail.to_owned(), by: BrokenBy::Upstream }
    }

    /// Nothing was charged, in these words: the same credential is good for another try.
    pub(crate) fn uncharged(self, words: &str) -> Refusal {
        let detail = format!("{}; {words}", self.detail);
        Refusal { retry: Retry::SameProof, ..Refusal::new(self.status, self.code, detail) }
    }
}
