//! JSON-RPC 2.0 over HTTP POST, batches included.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::serve::ListenerExt as _;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::limits::{BATCH_REQUESTS_MAX, BATCH_RESPONSE_BYTES_MAX, BODY_BYTES_MAX, HTTP_REQUESTS_MAX};
use crate::node::Node;
use crate::rpc::{self, Reply, RpcError};

/// Serves until `stopped` closes, and then until the answers under way are given.
pub(crate) async fn serve(listener: TcpListener, node: Arc<Node>, mut stopped: watch::Receiver<()>) {
    let server = Arc::new(Server { node, requests: Semaphore::new(HTTP_REQUESTS_MAX) });
    let router = Router::new().route("/", post(answer)).layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).with_state(server);
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "answers may be delayed: TCP_NODELAY refused");
        }
    });
    let stop = async move {
        // Nothing is ever sent: it ends when the sender is dropped.
        while stopped.changed().await.is_ok() {}
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "the development chain's server failed");
    }
}

struct Server {
    node: Arc<Node>,
    requests: Semaphore,
}

async fn answer(State(server): State<Arc<Server>>, headers: HeaderMap, body: Bytes) -> Response {
    // A page in a browser can post text/plain to any port of this machine; it cannot post JSON without a preflight.
    if !is_json(headers.get(header::CONTENT_TYPE)) {
        let message = "invalid content type, only application/json is supported\n";
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, message).into_response();
    }
    let Ok(_permit) = server.requests.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n").into_response();
    };
    let Ok(document) = serde_json::from_slice::<Value>(&body) else {
        return json(&Answer::error(Value::Null, RpcError::new(-32700, "parse error")));
    };
    match document {
        Value::Array(requests) if requests.is_empty() => {
            json(&Answer::error(Value::Null, RpcError::new(-32600, "empty batch")))
        }
        Value::Array(requests) if requests.len() > BATCH_REQUESTS_MAX => {
            json(&Answer::error(Value::Null, RpcError::new(-32600, "batch too large")))
        }
        Value::Array(requests) => match answer_batch(&server.node, requests).await {
            answers if answers.is_empty() => StatusCode::OK.into_response(),
            answers => json(&answers),
        },
        request => match answer_one(&server.node, request).await {
            Some(answer) => json(&answer),
            None => StatusCode::OK.into_response(),
        },
    }
}

async fn answer_batch(node: &Arc<Node>, requests: Vec<Value>) -> Vec<Answer> {
    let (mut answers, mut bytes) = (Vec::new(), 0);
    for request in requests {
        if bytes > BATCH_RESPONSE_BYTES_MAX {
            let id = request.get("id").cloned().unwrap_or_default();
            answers.push(Answer::error(id, RpcError::new(-32003, "response too large")));
            continue;
        }
        let Some(answer) = answer_one(node, request).await else { continue };
        bytes += answer.result.as_ref().map_or(0, |result| result.get().len());
        answers.push(answer);
    }
    answers
}

/// `None` if the request is a notification, which has no answer (JSON-RPC 2.0 §4.1).
async fn answer_one(node: &Arc<Node>, request: Value) -> Option<Answer> {
    let Value::Object(mut request) = request else {
        return Some(Answer::error(Value::Null, RpcError::new(-32600, "invalid request")));
    };
    let id = request.remove("id");
    let named = request.remove("method");
    let params = request.remove("params").unwrap_or_default();
    let (Some(Value::String(method)), true) = (named, request.get("jsonrpc").is_some_and(|version| version == "2.0"))
    else {
        return Some(Answer::error(id.unwrap_or_default(), RpcError::new(-32600, "invalid request")));
    };
    if matches!(id, Some(Value::Array(_) | Value::Object(_) | Value::Bool(_))) {
        return Some(Answer::error(Value::Null, RpcError::new(-32600, "invalid request")));
    }
    let result = execute(node, method, params).await;
    let id = id?;
    Some(match result {
        Ok(result) => Answer { jsonrpc: "2.0", id, result: Some(result), error: None },
        Err(error) => Answer::error(id, error),
    })
}

async fn execute(node: &Arc<Node>, method: String, params: Value) -> Result<Box<RawValue>, RpcError> {
    let worker = node.clone();
    // The EVM may run for tens of milliseconds, which a task of the runtime must not.
    let reply = tokio::task::spawn_blocking(move || rpc::dispatch(&worker, &method, params)).await;
    let reply = reply.map_err(|error| {
        tracing::error!(%error, "a JSON-RPC method failed; this is a defect of the development chain");
        RpcError::new(-32603, "internal error")
    })??;
    match reply {
        Reply::Result(result) => Ok(result),
        Reply::Receipt { hash, timeout } => match node.receipt(&hash, timeout).await {
            Some(receipt) => rpc::raw(&receipt),
            None => Err(RpcError::sync_timeout(hash, timeout)),
        },
    }
}

#[derive(Serialize)]
struct Answer {
    jsonrpc: &'static str,
    id: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<RpcError>,
}

impl Answer {
    fn error(id: Value, error: RpcError) -> Self {
        Self { jsonrpc: "2.0", id, result: None, error: Some(error) }
    }
}

fn is_json(content_type: Option<&HeaderValue>) -> bool {
    let media_type = content_type.and_then(|value| value.to_str().ok()).and_then(|value| value.split(';').next());
    media_type.is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("application/json"))
}

fn json(answer: &impl Serialize) -> Response {
    axum::Json(answer).into_response()
}
