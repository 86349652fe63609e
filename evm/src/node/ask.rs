//! Questions to a chain, typed, one or several in a batch.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes, U64, U256};
use serde::de::DeserializeOwned;
use serde_json::{Value, json, value::RawValue};

use super::{
    Answered, Call, Called, Draft, Estimate, FeeHistory, Header, Log, LogFilter, Receipt, SourceError, Transaction,
};

/// A method and its parameters.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(super) method: &'static str,
    pub(super) params: Value,
}

/// A source's answer to one question: a result, or an error object.
pub(super) type Reply = Result<Box<RawValue>, Answered>;

/// What an answer leaves open that a source may have given because it is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Doubt {
    /// Nothing: it is as good from a source that lags, or whoever asks compares for himself.
    None,
    /// It may be an old state: the source's head is compared with the others'.
    Old,
    /// Something was not found: every source is asked before that is believed.
    Absent,
}

type Read<R> = Box<dyn Fn(Reply) -> Result<R, SourceError> + Send + Sync>;

/// A question and how its answer is read.
pub(crate) struct Asked<R> {
    question: Question,
    read: Read<R>,
    doubt: fn(&R) -> Doubt,
    head: fn(&R) -> Option<&Header>,
}

impl<R: DeserializeOwned + 'static> Asked<R> {
    fn new(method: &'static str, params: Value) -> Self {
        Self {
            question: Question { method, params },
            read: Box::new(plain::<R>),
            doubt: |_| Doubt::None,
            head: |_| None,
        }
    }

    /// With a check that the answer is about what was asked.
    fn checked(mut self, about: impl Fn(&R) -> bool + Send + Sync + 'static, wrong: &'static str) -> Self {
        self.read = Box::new(move |reply| {
            let answer = plain::<R>(reply)?;
            if about(&answer) { Ok(answer) } else { Err(SourceError::garbled(wrong)) }
        });
        self
    }

    fn doubting(mut self, doubt: fn(&R) -> Doubt) -> Self {
        self.doubt = doubt;
        self
    }
}

impl<R> fmt::Debug for Asked<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.question, f)
    }
}

fn plain<R: DeserializeOwned>(reply: Reply) -> Result<R, SourceError> {
    let raw = reply.map_err(SourceError::Answered)?;
    // The text of an odd answer is a stranger's and may be huge: the parser's own message says where it broke.
    serde_json::from_str(raw.get()).map_err(|e| SourceError::garbled(e.to_string()))
}

fn absent<T>(found: &Option<T>) -> Doubt {
    if found.is_none() { Doubt::Absent } else { Doubt::None }
}

pub(crate) fn chain_id() -> Asked<U64> {
    Asked::new("eth_chainId", json!([]))
}

/// The code at an address. Empty decides that there is none.
pub(crate) fn code(address: Address) -> Asked<Bytes> {
    Asked::new("eth_getCode", json!([address, "latest"])).doubting(|code: &Bytes| match code.is_empty() {
        true => Doubt::Old,
        false => Doubt::None,
    })
}

/// Native coin, wei.
pub(crate) fn balance(address: Address) -> Asked<U256> {
    Asked::new("eth_getBalance", json!([address, "latest"])).doubting(|_| Doubt::Old)
}

/// How many transactions of `address` are mined, which is its next nonce.
pub(crate) fn mined_nonce(address: Address) -> Asked<U64> {
    Asked::new("eth_getTransactionCount", json!([address, "latest"])).doubting(|_| Doubt::Old)
}

/// The same with the transactions that wait in the source's pool.
pub(crate) fn pending_nonce(address: Address) -> Asked<U64> {
    Asked::new("eth_getTransactionCount", json!([address, "pending"])).doubting(|_| Doubt::Old)
}

/// How many transactions of `address` were mined up to block `number`.
pub(crate) fn nonce_at(address: Address, number: u64) -> Asked<U64> {
    Asked::new("eth_getTransactionCount", json!([address, U64::from(number)]))
}

/// What a transaction would burn on the newest block.
pub(crate) fn estimate(draft: &Draft) -> Asked<Estimate> {
    Asked {
        question: Question { method: "eth_estimateGas", params: json!([draft]) },
        read: Box::new(|reply| match reply {
            Err(answer) if answer.is_execution() => Ok(Estimate::Fails),
            reply => plain::<U64>(reply).map(|gas| Estimate::Gas(gas.to())),
        }),
        doubt: |estimate| if *estimate == Estimate::Fails { Doubt::Old } else { Doubt::None },
        head: |_| None,
    }
}

/// The newest block.
pub(crate) fn head() -> Asked<Header> {
    let mut asked: Asked<Header> = Asked::new("eth_getBlockByNumber", json!(["latest", false]));
    asked.head = |header| Some(header);
    asked
}

/// The block that the source calls `safe` or `finalized`.
pub(crate) fn tagged(tag: &'static str) -> Asked<Header> {
    Asked::new("eth_getBlockByNumber", json!([tag, false]))
}

/// The block at this height, if there is one yet.
pub(crate) fn block(number: u64) -> Asked<Option<Header>> {
    Asked::new("eth_getBlockByNumber", json!([U64::from(number), false]))
        .checked(
            move |found: &Option<Header>| found.as_ref().is_none_or(|header| header.number == U64::from(number)),
            "another block",
        )
        .doubting(absent)
}

/// A mined transaction's receipt.
pub(crate) fn receipt(hash: B256) -> Asked<Option<Receipt>> {
    polled_receipt(hash).doubting(absent)
}

/// The same for one that is asked for again and again until it is there: that it is absent decides nothing.
pub(crate) fn polled_receipt(hash: B256) -> Asked<Option<Receipt>> {
    Asked::new("eth_getTransactionReceipt", json!([hash])).checked(
        move |found: &Option<Receipt>| found.as_ref().is_none_or(|receipt| receipt.is_of(hash)),
        "another transaction's receipt",
    )
}

/// A transaction, mined or not.
pub(crate) fn transaction(hash: B256) -> Asked<Option<Transaction>> {
    Asked::new("eth_getTransactionByHash", json!([hash]))
        .checked(
            move |found: &Option<Transaction>| found.as_ref().is_none_or(|transaction| transaction.hash == hash),
            "another transaction",
        )
        .doubting(absent)
}

/// `blocks` of fees and tips up to the newest, each with the tip at the middle of its gas.
pub(crate) fn fee_history(blocks: u64) -> Asked<FeeHistory> {
    Asked::new("eth_feeHistory", json!([U64::from(blocks), "latest", [50]]))
}

pub(crate) fn logs(filter: &LogFilter) -> Asked<Vec<Log>> {
    Asked::new("eth_getLogs", json!([filter]))
}

/// Executes a call on the latest block, or on `block`.
pub(crate) fn call(call: &Call, block: Option<u64>) -> Asked<Called> {
    let at = block.map_or_else(|| "latest".to_owned(), |number| format!("{number:#x}"));
    Asked {
        question: Question { method: "eth_call", params: json!([call, at]) },
        read: Box::new(|reply| match reply {
            Err(answer) if answer.is_execution() => Ok(Called::Reverted(answer)),
            reply => plain(reply).map(Called::Returned),
        }),
        // What a call failed of may be over by now.
        doubt: |called| if matches!(called, Called::Reverted(_)) { Doubt::Old } else { Doubt::None },
        head: |_| None,
    }
}

pub(super) fn broadcast(raw: &Bytes) -> Question {
    Question { method: "eth_sendRawTransaction", params: json!([raw]) }
}

/// Broadcasts and answers with the receipt. Source: EIP-7966.
pub(super) fn broadcast_sync(raw: &Bytes) -> Question {
    Question { method: "eth_sendRawTransactionSync", params: json!([raw]) }
}

pub(super) fn receipt_of(hash: B256, reply: Reply) -> Result<Receipt, SourceError> {
    let receipt: Receipt = plain(reply)?;
    if receipt.is_of(hash) { Ok(receipt) } else { Err(SourceError::garbled("another transaction's receipt")) }
}

/// Questions that one source answers together, in one round trip if it takes batches.
pub(crate) trait Batch: Send + Sync {
    type Answers: Send;

    fn questions(&self) -> Vec<Question>;

    /// Takes as many replies as there are questions, in their order.
    fn read(&self, replies: &mut dyn Iterator<Item = Reply>) -> Result<Self::Answers, SourceError>;

    fn doubt(&self, answers: &Self::Answers) -> Doubt;

    /// The source's head, if it was asked for.
    fn head<'a>(&self, answers: &'a Self::Answers) -> Option<&'a Header>;
}

impl<R: Send> Batch for Asked<R> {
    type Answers = R;

    fn questions(&self) -> Vec<Question> {
        vec![self.question.clone()]
    }

    fn read(&self, replies: &mut dyn Iterator<Item = Reply>) -> Result<R, SourceError> {
        let reply = replies.next().ok_or_else(|| SourceError::garbled("an answer is missing"))?;
        (self.read)(reply)
    }

    fn doubt(&self, answer: &R) -> Doubt {
        (self.doubt)(answer)
    }

    fn head<'a>(&self, answer: &'a R) -> Option<&'a Header> {
        (self.head)(answer)
    }
}

impl<R: Send> Batch for Vec<Asked<R>> {
    type Answers = Vec<R>;

    fn questions(&self) -> Vec<Question> {
        self.iter().map(|asked| asked.question.clone()).collect()
    }

    fn read(&self, replies: &mut dyn Iterator<Item = Reply>) -> Result<Vec<R>, SourceError> {
        self.iter().map(|asked| asked.read(replies)).collect()
    }

    fn doubt(&self, answers: &Vec<R>) -> Doubt {
        self.iter().zip(answers).map(|(asked, answer)| asked.doubt(answer)).max().unwrap_or(Doubt::None)
    }

    fn head<'a>(&self, answers: &'a Vec<R>) -> Option<&'a Header> {
        self.iter().zip(answers).find_map(|(asked, answer)| asked.head(answer))
    }
}

macro_rules! batch_of {
    ($($part:ident $at:tt),+) => {
        impl<$($part: Batch),+> Batch for ($($part,)+) {
            type Answers = ($($part::Answers,)+);

            fn questions(&self) -> Vec<Question> {
                let mut questions = Vec::new();
                $(questions.extend(self.$at.questions());)+
                questions
            }

            fn read(&self, replies: &mut dyn Iterator<Item = Reply>) -> Result<Self::Answers, SourceError> {
                Ok(($(self.$at.read(replies)?,)+))
            }

            fn doubt(&self, answers: &Self::Answers) -> Doubt {
                let mut doubt = Doubt::None;
                $(doubt = doubt.max(self.$at.doubt(&answers.$at));)+
                doubt
            }

            fn head<'a>(&self, answers: &'a Self::Answers) -> Option<&'a Header> {
                let mut head = None;
                $(head = head.or_else(|| self.$at.head(&answers.$at));)+
                head
            }
        }
    };
}

batch_of!(A 0, B 1);
batch_of!(A 0, B 1, C 2);
batch_of!(A 0, B 1, C 2, D 3);
