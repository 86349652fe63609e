//! Every limit of the chain by name, with its reason. The gas and fee figures are Ethereum's or go-ethereum's.

use std::time::Duration;

/// Bytes of one HTTP request body. go-ethereum allows 5 MiB; a transaction of ours is below 128 KiB, and a batch small.
pub const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// HTTP requests under way at once; one more is told to come later (503). Each may hold a body and wait for a block.
pub const HTTP_REQUESTS_MAX: usize = 512;
/// Requests in one JSON-RPC batch, as in go-ethereum: a batch is answered by one task and must not hold it for long.
pub const BATCH_REQUESTS_MAX: usize = 1000;
/// Bytes of all results of one batch (go-ethereum's 25 MB): a small batch may ask for large answers.
pub const BATCH_RESPONSE_BYTES_MAX: usize = 25_000_000;
/// Logs in one answer of `eth_getLogs`; more is an error and not a cut, so that nobody takes a part for the whole.
pub const LOGS_MAX: usize = 10_000;
/// Blocks in one answer of `eth_feeHistory` (go-ethereum's limit).
pub const FEE_HISTORY_BLOCKS_MAX: u64 = 1024;
/// Reward percentiles in one question to `eth_feeHistory` (go-ethereum's limit).
pub const FEE_HISTORY_PERCENTILES_MAX: usize = 100;
/// Blocks kept, with their transactions, receipts and state; older ones are forgotten. About 50 MB when each pays once.
pub const HISTORY_BLOCKS_MAX: usize = 16_384;
/// Parent hashes that the BLOCKHASH opcode can ask for.
pub const BLOCK_HASHES_MAX: u64 = 256;
/// Transactions waiting for a block, over all senders.
pub const POOL_TRANSACTIONS_MAX: usize = 4096;
/// Transactions of one sender waiting for a block, nonce gaps included.
pub const SENDER_TRANSACTIONS_MAX: usize = 1024;
/// Bytes of one raw transaction (go-ethereum's pool).
pub const TRANSACTION_BYTES_MAX: usize = 128 * 1024;
/// Gas of one block.
pub const BLOCK_GAS_MAX: u64 = 30_000_000;
/// Gas of one `eth_call` or `eth_estimateGas`; what asks for more gets this much (go-ethereum's `--rpc.gascap`).
pub const CALL_GAS_MAX: u64 = 50_000_000;
/// Accounts that the state overrides of one `eth_call` may name.
pub const OVERRIDE_ACCOUNTS_MAX: usize = 256;
/// How long `eth_sendRawTransactionSync` waits for a block if the caller does not say (EIP-7966; go-ethereum's default).
pub const SYNC_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest such wait a caller may ask for (go-ethereum's maximum).
pub const SYNC_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How long [`shutdown`](crate::DevChain::shutdown) waits for answers under way.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// By how many percent both fees of a replacement must exceed what they replace (go-ethereum's pool).
pub const PRICE_BUMP_PERCENT: u128 = 10;

/// Base fee of the genesis block, wei per gas.
pub const INITIAL_BASE_FEE: u64 = 1_000_000_000;
/// What `eth_maxPriorityFeePerGas` recommends, wei per gas.
pub const SUGGESTED_PRIORITY_FEE: u128 = 1_000_000_000;
