//! A block explorer's API as a source. Source: Etherscan API v2, modules `proxy` and `account`; Blockscout and Routescan serve the same.
//!
//! Its quirks: failures come under 200 with `status` "0", or as a sentence where a result should be; there are no batches; few methods,
//! and calls at the newest block alone; the API key is a part of the URL, so nothing here may print one.

use std::time::Duration;

use farebox_core::ports::BoxError;
use serde::Deserialize;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use url::Url;

use super::{
    Answered, SourceError,
    ask::{Question, Reply},
    http,
    jsonrpc::{ErrorBody, present},
    source::SecretText,
};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 4 << 20;

pub(super) struct Explorer {
    client: reqwest::Client,
    url: Url,
    key: Option<SecretText>,
    chain_id: u64,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(default)]
    status: Option<&'a str>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default, deserialize_with = "present")]
    result: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<ErrorBody>,
}

impl Explorer {
    pub(super) fn new(url: &Url, key: Option<SecretText>, chain_id: u64, timeout: Duration) -> Result<Self, BoxError> {
        Ok(Self { client: http::client(timeout)?, url: url.clone(), key, chain_id })
    }

    pub(super) async fn all(&self, questions: &[Question]) -> Result<Vec<Reply>, SourceError> {
        // Checked before anything is asked: a batch that cannot be answered as a whole is another source's.
        let queries: Result<Vec<_>, _> = questions.iter().map(query).collect();
        let mut replies = Vec::with_capacity(questions.len());
        for (question, query) in questions.iter().zip(queries?) {
            replies.push(self.one(question, &query).await?);
        }
        Ok(replies)
    }

    async fn one(&self, question: &Question, query: &[(&str, String)]) -> Result<Reply, SourceError> {
        let mut url = self.url.clone();
        {
            let mut pairs = url.query_pairs_mut();
            pairs.append_pair("chainid", &self.chain_id.to_string()).extend_pairs(query);
            if let Some(key) = &self.key {
                pairs.append_pair("apikey", key.expose());
            }
        }
        let answer = http::fetch(self.client.get(url), ANSWER_BYTES_MAX).await?;
        let answer: Answer<'_> = serde_json::from_slice(&answer).map_err(|e| SourceError::garbled(e.to_string()))?;
        let reply = answer.reply()?;
        match (question.method, reply) {
            // The chain is chosen by the URL, so whoever answers with a height serves it.
            ("eth_chainId", Ok(_)) => Ok(Ok(raw(&format!("{:#x}", self.chain_id))?)),
            ("eth_getBalance", Ok(wei)) => Ok(Ok(raw(&hex(&wei)?)?)),
            (_, reply) => Ok(reply),
        }
    }
}

impl Answer<'_> {
    fn reply(self) -> Result<Reply, SourceError> {
        if let Some(error) = self.error {
            return Ok(Err(Answered::new(error.code, &error.message)));
        }
        let result = self.result.ok_or_else(|| SourceError::garbled("neither a result nor an error"))?;
        let is_result = |text: &String| {
            text.starts_with("0x") || (self.status == Some("1") && text.bytes().all(|b| b.is_ascii_digit()))
        };
        let sentence = serde_json::from_str::<String>(result.get()).ok().filter(|text| !is_result(text));
        let refused = self.status == Some("0") || self.message.as_deref() == Some("NOTOK");
        match sentence {
            Some(text) => Err(refusal(&text)),
            None if refused => Err(refusal(self.message.as_deref().unwrap_or_default())),
            None => Ok(Ok(result)),
        }
    }
}

/// What a sentence in place of a result means. Only its kind is kept: it may repeat the key.
fn refusal(text: &str) -> SourceError {
    let lower = text.to_lowercase();
    if lower.contains("rate limit") || lower.contains("max calls") || lower.contains("too many") {
        SourceError::Limited { retry_after: None }
    } else if lower.contains("api key") || lower.contains("apikey") {
        SourceError::garbled("the explorer does not accept the API key")
    } else {
        SourceError::garbled("the explorer refused to answer")
    }
}

/// The parameters of the explorer's form of a question.
fn query(question: &Question) -> Result<Vec<(&'static str, String)>, SourceError> {
    let unsupported = || SourceError::Unsupported(question.method);
    let text = |at: usize| question.params.get(at).and_then(Value::as_str).map(str::to_owned).ok_or_else(unsupported);
    let latest = |at: usize| text(at).and_then(|tag| if tag == "latest" { Ok(tag) } else { Err(unsupported()) });
    let proxy = |parameters: Vec<(&'static str, String)>| {
        let action = if question.method == "eth_chainId" { "eth_blockNumber" } else { question.method };
        let mut query = vec![("module", "proxy".to_owned()), ("action", action.to_owned())];
        query.extend(parameters);
        query
    };
    match question.method {
        "eth_chainId" => Ok(proxy(vec![])),
        "eth_getBlockByNumber" => Ok(proxy(vec![("tag", text(0)?), ("boolean", "false".to_owned())])),
        "eth_getTransactionByHash" | "eth_getTransactionReceipt" => Ok(proxy(vec![("txhash", text(0)?)])),
        "eth_getTransactionCount" | "eth_getCode" => Ok(proxy(vec![("address", text(0)?), ("tag", latest(1)?)])),
        "eth_sendRawTransaction" => Ok(proxy(vec![("hex", text(0)?)])),
        "eth_getBalance" => Ok(vec![
            ("module", "account".to_owned()),
            ("action", "balance".to_owned()),
            ("address", text(0)?),
            ("tag", latest(1)?),
        ]),
        "eth_call" => {
            let call = question.params.get(0).ok_or_else(unsupported)?;
            let part = |name: &str| call.get(name).and_then(Value::as_str).map(str::to_owned);
            // Without a sender the call would be another one.
            let (None, Some(to), Some(data)) = (part("from"), part("to"), part("data")) else {
                return Err(unsupported());
            };
            Ok(proxy(vec![("to", to), ("data", data), ("tag", latest(1)?)]))
        }
        _ => Err(unsupported()),
    }
}

/// A decimal string of wei as JSON-RPC writes it.
fn hex(wei: &RawValue) -> Result<String, SourceError> {
    let decimal: String = serde_json::from_str(wei.get()).map_err(|e| SourceError::garbled(e.to_string()))?;
    let wei: u128 = decimal.parse().map_err(|_| SourceError::garbled("a balance that is no number"))?;
    Ok(format!("{wei:#x}"))
}

fn raw(text: &str) -> Result<Box<RawValue>, SourceError> {
    to_raw_value(text).map_err(|e| SourceError::garbled(e.to_string()))
}

#[cfg(test)]
mod tests {
    use alloy::primitives::{Address, B256};

    use super::*;
    use crate::node::{Call, ask};
    use ask::Batch as _;

    fn read(body: &str) -> Result<Reply, SourceError> {
        serde_json::from_str::<Answer<'_>>(body).unwrap().reply()
    }

    #[test]
    fn failures_under_200_are_failures() {
        for (body, limited) in [
            (r#"{"status":"0","message":"NOTOK","result":"Max rate limit reached"}"#, true),
            (r#"{"status":"0","message":"NOTOK","result":"Max calls per sec rate limit reached (5/sec)"}"#, true),
            (r#"{"status":"0","message":"NOTOK","result":"Invalid API Key (#err2)|SECRET"}"#, false),
            (r#"{"status":"0","message":"NOTOK","result":null}"#, false),
            (r#"{"jsonrpc":"2.0","id":1,"result":"Error! Missing transaction hash"}"#, false),
            ("{}", false),
        ] {
            let error = read(body).unwrap_err();
            assert_eq!(matches!(error, SourceError::Limited { .. }), limited, "{body}");
            assert!(!format!("{error:?} {error}").contains("SECRET"), "{error:?}");
        }
    }

    #[test]
    fn results_and_errors_pass() {
        assert!(matches!(read(r#"{"jsonrpc":"2.0","id":83,"result":"0x1b"}"#), Ok(Ok(_))));
        assert!(matches!(read(r#"{"jsonrpc":"2.0","id":83,"result":null}"#), Ok(Ok(raw)) if raw.get() == "null"));
        assert!(matches!(read(r#"{"status":"1","message":"OK","result":"40891626854930000000000"}"#), Ok(Ok(_))));
        let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"nonce too low"}}"#;
        assert!(matches!(read(error), Ok(Err(answered)) if answered.code == -32000));
    }

    #[test]
    fn what_an_explorer_cannot_answer_is_left_to_others() {
        let can = |batch: &dyn Fn() -> Vec<Question>| batch().iter().all(|question| query(question).is_ok());
        assert!(can(&|| (ask::receipt(B256::ZERO), ask::transaction(B256::ZERO), ask::head()).questions()));
        let call = |from| Call { from, to: Address::ZERO, gas: None, data: Default::default() };
        assert!(can(&|| ask::call(&call(None), None).questions()));
        assert!(!can(&|| ask::call(&call(Some(Address::ZERO)), None).questions()));
        assert!(!can(&|| ask::call(&call(None), Some(7)).questions()));
        assert!(!can(&|| ask::fee_history(1).questions()));
    }
}
