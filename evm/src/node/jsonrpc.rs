//! JSON-RPC over HTTP: one question or a batch, answers matched by id. Not by alloy's transport, which puts the whole URL, API key
//! included, into its spans, reads an answer of any size, and believes a single answer whatever its id is.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use farebox_core::ports::BoxError;
use reqwest::header::CONTENT_TYPE;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, value::RawValue};
use url::Url;

use super::{
    Answered, SourceError,
    ask::{Question, Reply},
    http,
};

/// The longest answer that is read: a full page of logs is below it.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A node behind an http or https URL.
pub(super) struct JsonRpc {
    client: reqwest::Client,
    url: Url,
    next_id: AtomicU64,
}

#[derive(Serialize)]
struct RequestBody<'a> {
    jsonrpc: &'static str,
    id: u64,
    method: &'static str,
    params: &'a Value,
}

#[derive(Deserialize)]
struct ResponseBody {
    #[serde(default)]
    id: Value,
    #[serde(default, deserialize_with = "present")]
    result: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
pub(super) struct ErrorBody {
    pub(super) code: i64,
    #[serde(default)]
    pub(super) message: String,
}

/// Keeps a `null` that is there from one that is not.
pub(super) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

impl ResponseBody {
    fn reply(self) -> Result<Reply, SourceError> {
        match (self.result, self.error) {
            (_, Some(error)) => Ok(Err(Answered::new(error.code, &error.message))),
            (Some(result), None) => Ok(Ok(result)),
            (None, None) => Err(SourceError::garbled("neither a result nor an error")),
        }
    }
}

impl JsonRpc {
    pub(super) fn new(url: &Url, timeout: Duration) -> Result<Self, BoxError> {
        Ok(Self { client: http::client(timeout)?, url: url.clone(), next_id: AtomicU64::new(1) })
    }

    pub(super) async fn one(&self, question: &Question) -> Result<Reply, SourceError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let answer = self.post(&body(id, question)).await?;
        let response: ResponseBody = parse(&answer)?;
        // A node that could not read the question answers with an error and no id. Source: JSON-RPC 2.0 §5.
        let unread = response.id.is_null() && response.error.is_some();
        if response.id == id || unread { response.reply() } else { Err(SourceError::garbled("another id")) }
    }

    /// All or nothing: an answer too few, too many, twice or to another question makes the whole batch none.
    pub(super) async fn batch(&self, questions: &[Question]) -> Result<Vec<Reply>, SourceError> {
        let count = questions.len() as u64;
        let first = self.next_id.fetch_add(count, Ordering::Relaxed);
        let bodies: Vec<_> = (first..).zip(questions).map(|(id, question)| body(id, question)).collect();
        let answer = self.post(&bodies).await?;
        let responses: Vec<ResponseBody> = parse(&answer)?;
        if responses.len() != questions.len() {
            return Err(SourceError::garbled("a batch with too few or too many answers"));
        }
        let mut replies: Vec<Option<Reply>> = questions.iter().map(|_| None).collect();
        for response in responses {
            let at = response.id.as_u64().and_then(|id| id.checked_sub(first)).and_then(|at| usize::try_from(at).ok());
            let place = at.and_then(|at| replies.get_mut(at));
            match place {
                Some(place @ None) => *place = Some(response.reply()?),
                _ => return Err(SourceError::garbled("a batch with a wrong or repeated id")),
            }
        }
        Ok(replies.into_iter().flatten().collect())
    }

    async fn post<B: Serialize + Sync>(&self, body: &B) -> Result<Vec<u8>, SourceError> {
        let body = serde_json::to_vec(body).map_err(|e| SourceError::Transport(Box::new(e)))?;
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        Ok(http::fetch(request, ANSWER_BYTES_MAX).await?)
    }
}

const fn body(id: u64, question: &Question) -> RequestBody<'_> {
    RequestBody { jsonrpc: "2.0", id, method: question.method, params: &question.params }
}

fn parse<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, SourceError> {
    serde_json::from_slice(answer).map_err(|e| SourceError::garbled(e.to_string()))
}
