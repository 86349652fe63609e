//! The JSON-RPC methods: from parameters to a question to the chain, and from its answer to JSON.

use std::time::Duration;

use alloy::eips::{BlockId, BlockNumberOrTag};
use alloy::primitives::{Address, B256, Bytes, U64, U256};
use alloy::rpc::types::state::StateOverride;
use alloy::rpc::types::{Filter, FilterBlockOption, Log};
use revm::Database as _;
use revm::bytecode::Bytecode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Mining;
use crate::call::{CallError, Place};
use crate::chain::{Block, Chain};
use crate::limits::{LOGS_MAX, SUGGESTED_PRIORITY_FEE, SYNC_TIMEOUT, SYNC_TIMEOUT_MAX};
use crate::node::Node;
use crate::send::SendError;
use crate::view::{self, Detail};

mod fees;

/// What `web3_clientVersion` says.
const CLIENT_VERSION: &str = concat!("farebox-devchain/v", env!("CARGO_PKG_VERSION"));

/// A method's answer: at once, or when a transaction is in a block.
pub(crate) enum Reply {
    Result(Box<RawValue>),
    Receipt { hash: B256, timeout: Duration },
}

/// Answers one request.
///
/// # Errors
/// -32601 for a method that does not exist, -32602 for parameters it does not take, 3 for a revert, -32000 for the rest.
pub(crate) fn dispatch(node: &Node, method: &str, params: Value) -> Result<Reply, RpcError> {
    let params = Params::try_from(params)?;
    let result = match method {
        "eth_sendRawTransactionSync" => return send_sync(node, &params),
        "eth_sendRawTransaction" => raw(&send(node, &params)?),
        "eth_call" => node.read(|chain| raw(&place(chain, &params)?.call(&params.required(0)?)?)),
        "eth_estimateGas" => {
            node.read(|chain| raw(&U64::from(place(chain, &params)?.estimate_gas(&params.required(0)?)?)))
        }
        "eth_chainId" => raw(&U64::from(node.read(Chain::chain_id))),
        "net_version" => raw(&node.read(Chain::chain_id).to_string()),
        "net_listening" => raw(&true),
        "web3_clientVersion" => raw(&CLIENT_VERSION),
        "eth_syncing" => raw(&false),
        "eth_accounts" => raw(&[(); 0]),
        "eth_blockNumber" => raw(&U64::from(node.read(|chain| chain.head().header.number))),
        "eth_getBlockByNumber" | "eth_getBlockByHash" => node.read(|chain| block(chain, method, &params)),
        "eth_getBlockReceipts" => node.read(|chain| block_receipts(chain, &params)),
        "eth_getTransactionByHash" => node.read(|chain| transaction(chain, &params)),
        "eth_getTransactionReceipt" => node.read(|chain| {
            let hash: B256 = params.required(0)?;
            raw(&chain.place(&hash).map(|(block, index)| view::receipt(block, index)))
        }),
        "eth_getLogs" => node.read(|chain| raw(&logs(chain, &params.required(0)?)?)),
        "eth_getBalance" => node.read(|chain| raw(&account(chain, &params, 1)?.balance)),
        "eth_getTransactionCount" => node.read(|chain| raw(&U64::from(account(chain, &params, 1)?.nonce))),
        "eth_getCode" => node.read(|chain| {
            let mut place = place_at(chain, params.optional(1)?.unwrap_or_default())?;
            raw(&view::code(&mut place.state, params.required(0)?))
        }),
        "eth_getStorageAt" => node.read(|chain| storage(chain, &params)),
        "eth_gasPrice" => raw(&U256::from(u128::from(node.read(Chain::next_base_fee)) + SUGGESTED_PRIORITY_FEE)),
        "eth_maxPriorityFeePerGas" => raw(&U256::from(SUGGESTED_PRIORITY_FEE)),
        "eth_feeHistory" => node.read(|chain| raw(&fees::history(chain, &params)?)),
        _ => edit(node, method, &params),
    };
    result.map(Reply::Result)
}

/// The methods that exist on development chains only.
fn edit(node: &Node, method: &str, params: &Params) -> Result<Box<RawValue>, RpcError> {
    match method {
        "evm_mine" => {
            params.none()?;
            node.write(Chain::mine);
            raw(&"0x0")
        }
        "evm_setAutomine" => {
            let mining = if params.required(0)? { Mining::Instant } else { Mining::Held };
            node.write(|chain| chain.set_mining(mining));
            raw(&Value::Null)
        }
        "evm_increaseTime" => {
            let by_s: U64 = params.required(0)?;
            raw(&node.write(|chain| chain.increase_time(by_s.to())))
        }
        "anvil_setBalance" => {
            let (address, wei) = (params.required(0)?, params.required(1)?);
            node.write(|chain| chain.edit_account(address, |account| account.balance = wei));
            raw(&Value::Null)
        }
        "anvil_setCode" => {
            let (address, code): (Address, Bytes) = (params.required(0)?, params.required(1)?);
            let code = Bytecode::new_raw_checked(code).map_err(|error| RpcError::argument(1, error))?;
            node.write(|chain| {
                chain.edit_account(address, |account| {
                    account.set_code(code);
                })
            });
            raw(&Value::Null)
        }
        _ => Err(RpcError::new(-32601, format!("the method {method} does not exist/is not available"))),
    }
}

fn send(node: &Node, params: &Params) -> Result<B256, RpcError> {
    let raw: Bytes = params.required(0)?;
    Ok(node.write(|chain| chain.send(&raw))?)
}

/// EIP-7966.
fn send_sync(node: &Node, params: &Params) -> Result<Reply, RpcError> {
    let timeout_ms: Option<U64> = params.optional(1)?;
    let timeout = timeout_ms.map(|ms| Duration::from_millis(ms.to())).filter(|timeout| !timeout.is_zero());
    let hash = send(node, params)?;
    Ok(Reply::Receipt { hash, timeout: timeout.unwrap_or(SYNC_TIMEOUT).min(SYNC_TIMEOUT_MAX) })
}

fn block(chain: &Chain, method: &str, params: &Params) -> Result<Box<RawValue>, RpcError> {
    let detail = if params.optional(1)?.unwrap_or(false) { Detail::Full } else { Detail::Hashes };
    let found = if method == "eth_getBlockByHash" {
        chain.block_by_hash(&params.required(0)?)
    } else {
        match params.required(0)? {
            BlockNumberOrTag::Pending => return raw(&view::block(&chain.draft().block, detail)),
            number => numbered(chain, number),
        }
    };
    raw(&found.map(|block| view::block(block, detail)))
}

fn block_receipts(chain: &Chain, params: &Params) -> Result<Box<RawValue>, RpcError> {
    let block = match params.required(0)? {
        BlockId::Hash(hash) => chain.block_by_hash(&hash.block_hash),
        BlockId::Number(number) => numbered(chain, number),
    };
    let receipts = |block: &std::sync::Arc<Block>| -> Vec<_> {
        (0..block.transactions.len()).map(|index| view::receipt(block, index)).collect()
    };
    raw(&block.map(receipts))
}

fn transaction(chain: &Chain, params: &Params) -> Result<Box<RawValue>, RpcError> {
    let hash: B256 = params.required(0)?;
    let mined = chain.place(&hash).map(|(block, index)| view::transaction(block, index));
    raw(&mined.or_else(|| chain.pool().get(&hash).map(view::waiting_transaction)))
}

fn logs(chain: &Chain, filter: &Filter) -> Result<Vec<Log>, RpcError> {
    let head = chain.head().header.number;
    let (from, to) = match filter.block_option {
        FilterBlockOption::AtBlockHash(hash) => {
            let block = chain.block_by_hash(&hash).ok_or_else(|| RpcError::new(-32000, "unknown block"))?;
            (block.header.number, block.header.number)
        }
        FilterBlockOption::Range { from_block, to_block } => {
            let number = |tag: Option<BlockNumberOrTag>| match tag.unwrap_or_default() {
                BlockNumberOrTag::Number(number) => number,
                BlockNumberOrTag::Earliest => chain.oldest().header.number,
                _ => head,
            };
            (number(from_block), number(to_block))
        }
    };
    if from > to {
        return Err(RpcError::new(-32000, "invalid block range params"));
    }
    let mut found = Vec::new();
    // What is older than the history was forgotten: an answer without it would be a lie.
    if from < chain.oldest().header.number {
        return Err(RpcError::new(-32000, "history has been pruned for this block"));
    }
    for block in (from..=to.min(head)).filter_map(|number| chain.block(number)) {
        if !filter.matches_bloom(block.header.logs_bloom) {
            continue;
        }
        let logs = (0..block.transactions.len()).flat_map(|index| view::logs(block, index));
        found.extend(logs.filter(|log| filter.matches(&log.inner)));
        if found.len() > LOGS_MAX {
            return Err(RpcError::new(-32005, format!("query returned more than {LOGS_MAX} results")));
        }
    }
    Ok(found)
}

fn account(chain: &Chain, params: &Params, at: usize) -> Result<revm::state::AccountInfo, RpcError> {
    let (address, block): (Address, BlockId) = (params.required(0)?, params.optional(at)?.unwrap_or_default());
    let Ok(account) = place_at(chain, block)?.state.basic(address);
    let mut account = account.unwrap_or_default();
    if block.is_pending() {
        // Also what waits behind a full block counts as used.
        account.nonce = chain.pool().next_nonce(address, chain.nonce(address));
    }
    Ok(account)
}

fn storage(chain: &Chain, params: &Params) -> Result<Box<RawValue>, RpcError> {
    let (address, slot): (Address, U256) = (params.required(0)?, params.required(1)?);
    let mut place = place_at(chain, params.optional(2)?.unwrap_or_default())?;
    let Ok(word) = place.state.storage(address, slot);
    raw(&B256::from(word))
}

/// Where the call in `params` runs: `[call, block, state overrides, block overrides]`.
fn place<'a>(chain: &'a Chain, params: &Params) -> Result<Place<'a>, RpcError> {
    let mut place = place_at(chain, params.optional(1)?.unwrap_or_default())?;
    if let Some(overrides) = params.optional::<StateOverride>(2)? {
        place.pretend(overrides)?;
    }
    if params.optional::<Value>(3)?.is_some() {
        return Err(RpcError::argument(3, "block overrides are not supported"));
    }
    Ok(place)
}

fn place_at(chain: &Chain, block: BlockId) -> Result<Place<'_>, RpcError> {
    let chain_id = chain.chain_id();
    if block.is_pending() {
        let draft = chain.draft();
        return Ok(Place { chain_id, header: draft.block.header, state: draft.state });
    }
    let found = match block {
        BlockId::Hash(hash) => chain.block_by_hash(&hash.block_hash),
        BlockId::Number(number) => numbered(chain, number),
    };
    let found = found.ok_or_else(|| RpcError::new(-32000, "header not found"))?;
    let mut header = found.header.clone();
    if block.is_latest() {
        header.timestamp = chain.now_s();
    }
    Ok(Place { chain_id, header, state: chain.state_at(found.header.number) })
}

/// The block that a number or tag names, but for `pending`. There are no reorganisations, so the head is final.
fn numbered(chain: &Chain, number: BlockNumberOrTag) -> Option<&std::sync::Arc<Block>> {
    match number {
        BlockNumberOrTag::Number(number) => chain.block(number),
        BlockNumberOrTag::Earliest => Some(chain.oldest()),
        BlockNumberOrTag::Latest | BlockNumberOrTag::Safe | BlockNumberOrTag::Finalized | BlockNumberOrTag::Pending => {
            Some(chain.head())
        }
    }
}

/// The parameters by position. A missing one and `null` are the same.
struct Params(Vec<Value>);

impl TryFrom<Value> for Params {
    type Error = RpcError;

    fn try_from(params: Value) -> Result<Self, RpcError> {
        match params {
            Value::Array(params) => Ok(Self(params)),
            Value::Null => Ok(Self(Vec::new())),
            _ => Err(RpcError::new(-32602, "non-array args")),
        }
    }
}

impl Params {
    fn required<T: DeserializeOwned>(&self, index: usize) -> Result<T, RpcError> {
        let missing = || RpcError::new(-32602, format!("missing value for required argument {index}"));
        self.optional(index)?.ok_or_else(missing)
    }

    fn optional<T: DeserializeOwned>(&self, index: usize) -> Result<Option<T>, RpcError> {
        let Some(value) = self.0.get(index) else { return Ok(None) };
        Option::deserialize(value).map_err(|error| RpcError::argument(index, error))
    }

    fn none(&self) -> Result<(), RpcError> {
        if self.0.is_empty() { Ok(()) } else { Err(RpcError::new(-32602, "too many arguments, want at most 0")) }
    }
}

/// The error member of an answer (JSON-RPC 2.0 §5.1).
#[derive(Debug, Serialize)]
pub(crate) struct RpcError {
    code: i64,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

impl RpcError {
    pub(crate) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// The transaction waits for a block still; `data` is its hash (EIP-7966).
    pub(crate) fn sync_timeout(hash: B256, timeout: Duration) -> Self {
        let message = format!("The transaction was added to the transaction pool but wasn't processed in {timeout:?}.");
        Self { code: 4, message, data: Some(hash.to_string().into()) }
    }

    fn argument(index: usize, error: impl std::fmt::Display) -> Self {
        Self::new(-32602, format!("invalid argument {index}: {error}"))
    }
}

impl From<SendError> for RpcError {
    fn from(error: SendError) -> Self {
        Self::new(-32000, error.to_string())
    }
}

impl From<CallError> for RpcError {
    fn from(error: CallError) -> Self {
        let message = error.to_string();
        match error {
            CallError::Reverted(data) => Self { code: 3, message, data: Some(data.to_string().into()) },
            _ => Self::new(-32000, message),
        }
    }
}

pub(crate) fn raw(value: &impl Serialize) -> Result<Box<RawValue>, RpcError> {
    serde_json::value::to_raw_value(value).map_err(|error| RpcError::new(-32603, error.to_string()))
}
