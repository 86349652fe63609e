//! A whole answer of the gateway, and what it tells the payer to do.

use anyhow::Result;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, to its end.
    pub body: Bytes,
}

/// What a refused claim's answer tells the payer to do next. Whether money moved is not for it to say, unless the books know: the payer
/// names a transaction, and may have paid something or somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Pay, by this fresh bill.
    Pay,
    /// The same, and what came is kept as credit.
    PayCredited,
    /// Ask again with the same proof: no bill.
    Again,
    /// Mend the headers, and do not pay again: no bill.
    Mend,
    /// Nothing, the transaction has bought something: no bill.
    Nothing,
}

impl Reply {
    /// Reads an answer to its end.
    ///
    /// # Errors
    /// It breaks off.
    pub async fn read(answer: reqwest::Response) -> Result<Self> {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok(Self { status, headers, body: answer.bytes().await? })
    }

    /// PAYMENT-RESPONSE.
    #[must_use]
    pub fn receipt(&self) -> Option<Value> {
        decoded(&self.headers, "payment-response")
    }

    /// The body of a refusal; null for any other.
    #[must_use]
    pub fn problem(&self) -> Value {
        let problem = self.header("content-type").is_some_and(|media| media.starts_with("application/problem+json"));
        if problem { serde_json::from_slice(&self.body).unwrap_or_default() } else { Value::Null }
    }

    /// Panics unless it is this refusal, told in full.
    #[track_caller]
    pub fn refuses(&self, name: &str, status: u16, code: &str, next: Next) {
        let problem = self.problem();
        let (retry, charged) = match next {
            Next::Pay => ("after_payment", json!("unknown")),
            Next::PayCredited => ("after_payment", json!(true)),
            Next::Again => ("same_proof", json!("unknown")),
            Next::Mend => ("never", json!("unknown")),
            // A settlement of our own may still be under way.
            Next::Nothing if problem["charged"] == "unknown" => ("never", json!("unknown")),
            Next::Nothing => ("never", json!(true)),
        };
        let told = json!([self.status, problem["code"], problem["retry"], problem["charged"]]);
        assert_eq!(told, json!([status, code, retry, charged]), "{name}: {self:?}");
        assert!(problem["detail"].as_str().is_some_and(|reason| reason.len() > 20), "{name}: {problem}");
        assert_eq!(self.header("cache-control"), Some("no-store"), "{name}");
        assert_eq!(problem["transfer"].is_object(), retry == "after_payment", "{name}: {problem}");
        assert_eq!(self.is_bill(), retry == "after_payment", "{name}: {problem}");
        assert!(next != Next::Again || self.retry_after().is_some(), "{name}: no Retry-After: {self:?}");
    }

    /// Retry-After in seconds.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        self.header("retry-after")?.parse().ok()
    }

    /// A header that is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether there is anything in it that could be paid once more.
    #[must_use]
    pub fn is_bill(&self) -> bool {
        let problem = self.problem();
        let billed = ["accepts", "transfer"].iter().any(|member| !problem[member].is_null());
        billed || self.headers.contains_key("payment-required")
    }

    /// Whether it came from the books and not from the upstream.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }
}

pub(super) fn decoded(headers: &HeaderMap, name: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64_STANDARD.decode(headers.get(name)?).ok()?).ok()
}
