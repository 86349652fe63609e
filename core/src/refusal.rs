//! How a "no" is told to a program: a stable code, what to do next, and whether money moved.

use std::borrow::Cow;

use serde::Serialize;

/// What the caller may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// Pay (again) with a new authorization.
    AfterPayment,
    /// Send the identical bytes again, later. Never sign anew: the first authorization may have been charged.
    SameProof,
    /// Not this request.
    Never,
}

/// Whether the payment presented with this request moved money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charged {
    /// It did.
    Yes,
    /// It did not, and will not.
    No,
    /// It may have, or may yet.
    Unknown,
}

impl Serialize for Charged {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Yes => serializer.serialize_bool(true),
            Self::No => serializer.serialize_bool(false),
            Self::Unknown => serializer.serialize_str("unknown"),
        }
    }
}

/// The outside of an error: safe to send. Source: RFC 9457.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status: 400, 402, 404, 409, 413, 429, 502, 503 or 504.
    pub status: u16,
    /// Stable, snake_case.
    pub code: Cow<'static, str>,
    /// What, expected, found, next; one line.
    pub detail: String,
    /// What to do next.
    pub retry: Retry,
    /// Whether money moved.
    pub charged: Charged,
    /// When to retry, seconds, if there is a best time.
    pub retry_after_s: Option<u32>,
    /// What else a program can act on, by member of the problem document: `have` and `need`, `required` and `received`, `credit`.
    pub facts: serde_json::Map<String, serde_json::Value>,
}

impl Refusal {
    /// A refusal under which nothing was charged and the request as it is will never do.
    #[must_use]
    pub fn new(status: u16, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code: Cow::Borrowed(code),
            detail: detail.into(),
            retry: Retry::Never,
            charged: Charged::No,
            retry_after_s: None,
            facts: serde_json::Map::new(),
        }
    }

    /// A 402: nothing was charged, pay with a new authorization.
    #[must_use]
    pub fn payment(code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self {
            status: 402,
            code: code.into(),
            detail: detail.into(),
            retry: Retry::AfterPayment,
            charged: Charged::No,
            retry_after_s: None,
            facts: serde_json::Map::new(),
        }
    }

    /// A 503: could not tell, so neither a yes nor a new bill. Send the same again after `retry_after_s` seconds.
    #[must_use]
    pub fn could_not_tell(code: &'static str, detail: impl Into<String>, charged: Charged) -> Self {
        Self {
            status: 503,
            code: Cow::Borrowed(code),
            detail: detail.into(),
            retry: Retry::SameProof,
            charged,
            retry_after_s: Some(1),
            facts: serde_json::Map::new(),
        }
    }

    /// With one more fact.
    #[must_use]
    pub fn with_fact(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }
}
