//! A delivered answer, kept for a while so that a payer who lost it gets it again without a second charge.

use serde::{Deserialize, Serialize};

/// A header of a kept answer: name in lower case, value as sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerHeader {
    /// Lower case.
    pub name: String,
    /// Bytes, for values need not be UTF-8.
    pub value: Vec<u8>,
}

/// What the upstream answered to a paid request. Its size is bounded by the gateway's `replay_body_bytes_max`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The status sent.
    pub status: u16,
    /// The headers sent, without hop-by-hop and payment headers.
    pub headers: Vec<AnswerHeader>,
    /// The whole body.
    pub body: Vec<u8>,
}
