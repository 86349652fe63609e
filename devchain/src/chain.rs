//! The chain itself: blocks, the state after each, the pool, and the rule by which the one becomes the other.

use std::collections::VecDeque;
use std::sync::Arc;

use alloy::consensus::constants::EMPTY_WITHDRAWALS;
use alloy::consensus::{
    EMPTY_OMMER_ROOT_HASH, Eip658Value, Header, Receipt, ReceiptEnvelope, ReceiptWithBloom, Transaction as _,
    TxReceipt as _, proofs,
};
use alloy::eips::eip1559::BaseFeeParams;
use alloy::eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy::primitives::map::B256Map;
use alloy::primitives::{Address, B256, Bloom, Bytes, U256};
use revm::DatabaseCommit as _;
use revm::bytecode::Bytecode;
use revm::context::TxEnv;
use revm::context::result::ExecutionResult;
use revm::database::CacheDB;
use revm::state::{AccountInfo, EvmState};

use crate::evm::{self, Rules, RunError, Scratch};
use crate::limits::{BLOCK_GAS_MAX, HISTORY_BLOCKS_MAX, INITIAL_BASE_FEE};
use crate::pool::{Pool, SignedTransaction};
use crate::send::{self, SendError};
use crate::state::State;
use crate::{ChainClock, Mining};

pub(crate) struct Chain {
    chain_id: u64,
    clock: ChainClock,
    /// Seconds by which `evm_increaseTime` has moved the clock forward.
    ahead_s: u64,
    mining: Mining,
    state: State,
    /// Ascending without a gap; never empty.
    blocks: VecDeque<Arc<Block>>,
    head: Arc<Block>,
    numbers: B256Map<u64>,
    /// Block number and index of each transaction in `blocks`.
    places: B256Map<(u64, usize)>,
    pool: Pool,
}

/// A block with all that was asked of it ever after.
pub(crate) struct Block {
    pub(crate) header: Header,
    pub(crate) hash: B256,
    pub(crate) transactions: Vec<SignedTransaction>,
    pub(crate) outcomes: Vec<Outcome>,
}

/// What became of the transaction at the same index.
pub(crate) struct Outcome {
    pub(crate) receipt: ReceiptEnvelope,
    pub(crate) gas_used: u64,
    pub(crate) created: Option<Address>,
    /// Index of its first log within the block.
    pub(crate) first_log: u64,
}

/// A block that is not part of the chain (yet), and the state after it.
pub(crate) struct Draft<'a> {
    pub(crate) block: Block,
    pub(crate) state: Scratch<'a>,
    changes: Vec<EvmState>,
    /// Transactions that can no longer be executed, for instance because an earlier one has spent the balance.
    invalid: Vec<B256>,
}

impl Chain {
    pub(crate) fn new(
        chain_id: u64,
        clock: ChainClock,
        mining: Mining,
        genesis_timestamp_s: u64,
        accounts: &[(Address, U256)],
    ) -> Self {
        let header =
            Header { timestamp: genesis_timestamp_s, base_fee_per_gas: Some(INITIAL_BASE_FEE), ..header_template() };
        let hash = header.hash_slow();
        let genesis = Arc::new(Block { header, hash, transactions: Vec::new(), outcomes: Vec::new() });
        let mut state = State::default();
        state.set_block_hash(0, hash);
        for (address, wei) in accounts {
            state.set_account(*address, 0, &AccountInfo::from_balance(*wei));
        }
        Self {
            chain_id,
            clock,
            ahead_s: 0,
            mining,
            state,
            blocks: VecDeque::from([genesis.clone()]),
            head: genesis,
            numbers: B256Map::from_iter([(hash, 0)]),
            places: B256Map::default(),
            pool: Pool::default(),
        }
    }

    /// Takes a raw transaction; with instant blocks it is executed at once, if its nonce is next.
    ///
    /// # Errors
    /// The first rule it breaks; the chain is then as it was.
    pub(crate) fn send(&mut self, raw: &[u8]) -> Result<B256, SendError> {
        let tx = send::decode(raw, self.chain_id)?;
        send::validate(self, &tx)?;
        let hash = *tx.tx_hash();
        self.pool.add(tx)?;
        if self.mining == Mining::Instant {
            self.mine_ready();
        }
        Ok(hash)
    }

    /// Makes blocks until no transaction is ready.
    pub(crate) fn mine_ready(&mut self) {
        while self.has_ready() {
            self.mine();
        }
    }

    fn has_ready(&self) -> bool {
        self.pool.ready(self.next_base_fee(), |sender| self.nonce(sender)).next().is_some()
    }

    /// Makes one block of what is ready, if only an empty one.
    pub(crate) fn mine(&mut self) {
        let Draft { block, changes, invalid, .. } = self.draft();
        let number = block.header.number;
        for change in changes {
            self.state.commit(number, change);
        }
        self.state.set_block_hash(number, block.hash);
        for hash in invalid {
            self.pool.remove(&hash);
        }
        for (index, tx) in block.transactions.iter().enumerate() {
            self.pool.remove(tx.tx_hash());
            self.places.insert(*tx.tx_hash(), (number, index));
        }
        self.numbers.insert(block.hash, number);
        self.head = Arc::new(block);
        self.blocks.push_back(self.head.clone());
        self.forget_old();
    }

    fn forget_old(&mut self) {
        while self.blocks.len() > HISTORY_BLOCKS_MAX {
            let Some(old) = self.blocks.pop_front() else { return };
            self.numbers.remove(&old.hash);
            for tx in &old.transactions {
                self.places.remove(tx.tx_hash());
            }
            self.state.forget_before(old.header.number + 1);
        }
    }

    /// Executes what is ready on top of the head, and keeps none of it.
    pub(crate) fn draft(&self) -> Draft<'_> {
        let header = self.next_header();
        let base_fee = self.next_base_fee();
        let mut state = CacheDB::new(self.state.at(self.head.header.number));
        let (mut transactions, mut outcomes, mut changes, mut invalid) = (vec![], vec![], vec![], vec![]);
        let (mut gas_used, mut logs) = (0, 0);
        let mut ready = self.pool.ready(base_fee, |sender| self.nonce(sender));
        while let Some(tx) = ready.next() {
            if gas_used + tx.gas_limit() > header.gas_limit {
                continue;
            }
            let env = evm::tx_env(tx, tx.signer());
            let ran = match evm::run(&mut state, self.chain_id, evm::block_env(&header), env, Rules::Consensus) {
                Ok(ran) => ran,
                Err(error) => {
                    tracing::debug!(hash = %tx.tx_hash(), %error, "a transaction that waited cannot be executed");
                    invalid.push(*tx.tx_hash());
                    continue;
                }
            };
            state.commit(ran.state.clone());
            changes.push(ran.state);
            let outcome = Outcome::new(tx, ran.result, gas_used, logs);
            gas_used += outcome.gas_used;
            logs += outcome.receipt.logs().len() as u64;
            outcomes.push(outcome);
            transactions.push(tx.clone());
            ready.used(tx);
        }
        let block = seal(Header { gas_used, ..header }, transactions, outcomes);
        Draft { block, state, changes, invalid }
    }

    /// Runs a call on the head with neither sender's signature nor fee, and keeps its changes in the head's state:
    /// no block, no transaction and no log tells of it.
    pub(crate) fn edit(&mut self, tx: TxEnv) -> Result<ExecutionResult, RunError> {
        let (number, caller) = (self.head.header.number, tx.caller);
        let mut state = CacheDB::new(self.state.at(number));
        let block = evm::block_env(&self.next_header());
        let mut ran = evm::run(&mut state, self.chain_id, block, tx, Rules::FreeCall)?;
        if ran.result.is_success() {
            ran.state.remove(&caller);
            self.state.commit(number, ran.state);
        }
        Ok(ran.result)
    }

    pub(crate) fn edit_account(&mut self, address: Address, edit: impl FnOnce(&mut AccountInfo)) {
        let mut info = self.account(address).unwrap_or_default();
        edit(&mut info);
        self.state.set_account(address, self.head.header.number, &info);
    }

    pub(crate) fn set_mining(&mut self, mining: Mining) {
        self.mining = mining;
        if mining == Mining::Instant {
            self.mine_ready();
        }
    }

    pub(crate) fn mining(&self) -> Mining {
        self.mining
    }

    /// Moves the clock forward for good; returns by how many seconds it has been moved in all.
    pub(crate) fn increase_time(&mut self, by_s: u64) -> u64 {
        self.ahead_s = self.ahead_s.saturating_add(by_s);
        self.ahead_s
    }

    /// Unix seconds: the clock's, but never before the head. Two blocks of one second have the same time, so that the
    /// chain does not run ahead of the clock under load (which would make fresh authorizations expire).
    pub(crate) fn now_s(&self) -> u64 {
        (self.clock)().saturating_add(self.ahead_s).max(self.head.header.timestamp)
    }

    pub(crate) fn next_base_fee(&self) -> u64 {
        self.head.header.next_block_base_fee(BaseFeeParams::ethereum()).unwrap_or(INITIAL_BASE_FEE)
    }

    /// The header of the block after the head, before any transaction.
    pub(crate) fn next_header(&self) -> Header {
        Header {
            parent_hash: self.head.hash,
            number: self.head.header.number + 1,
            timestamp: self.now_s(),
            base_fee_per_gas: Some(self.next_base_fee()),
            mix_hash: self.head.hash,
            ..header_template()
        }
    }

    pub(crate) fn state_at(&self, block: u64) -> Scratch<'_> {
        CacheDB::new(self.state.at(block))
    }

    pub(crate) fn account(&self, address: Address) -> Option<AccountInfo> {
        self.state.account(address, self.head.header.number)
    }

    /// Whether the account is a contract, and not one that merely delegates (EIP-7702).
    pub(crate) fn has_contract_code(&self, account: &AccountInfo) -> bool {
        use revm::DatabaseRef as _;
        let Ok(code) = self.state.at(self.head.header.number).code_by_hash_ref(account.code_hash);
        !code.is_empty() && !Bytecode::is_eip7702(&code)
    }

    pub(crate) fn nonce(&self, address: Address) -> u64 {
        self.account(address).map_or(0, |account| account.nonce)
    }

    pub(crate) fn chain_id(&self) -> u64 {
        self.chain_id
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn head(&self) -> &Arc<Block> {
        &self.head
    }

    /// The oldest block that is kept.
    pub(crate) fn oldest(&self) -> &Arc<Block> {
        self.blocks.front().unwrap_or(&self.head)
    }

    pub(crate) fn block(&self, number: u64) -> Option<&Arc<Block>> {
        let index = number.checked_sub(self.oldest().header.number)?;
        self.blocks.get(usize::try_from(index).ok()?)
    }

    pub(crate) fn block_by_hash(&self, hash: &B256) -> Option<&Arc<Block>> {
        self.block(*self.numbers.get(hash)?)
    }

    /// The block of a transaction and its index there.
    pub(crate) fn place(&self, hash: &B256) -> Option<(&Arc<Block>, usize)> {
        let (number, index) = *self.places.get(hash)?;
        Some((self.block(number)?, index))
    }
}

impl Outcome {
    fn new(tx: &SignedTransaction, result: ExecutionResult, gas_before: u64, logs_before: u64) -> Self {
        let (gas_used, created) = (result.tx_gas_used(), result.created_address());
        let status = Eip658Value::Eip658(result.is_success());
        // revm hands out what a failed transaction had logged before it failed; a receipt must not.
        let logs = if result.is_success() { result.into_logs() } else { Vec::new() };
        let receipt = Receipt { status, cumulative_gas_used: gas_before + gas_used, logs };
        let receipt = ReceiptEnvelope::from_typed(tx.tx_type(), ReceiptWithBloom::from(receipt));
        Self { receipt, gas_used, created, first_log: logs_before }
    }
}

fn seal(header: Header, transactions: Vec<SignedTransaction>, outcomes: Vec<Outcome>) -> Block {
    let envelopes: Vec<_> = transactions.iter().map(|tx| tx.inner()).collect();
    let receipts: Vec<_> = outcomes.iter().map(|outcome| &outcome.receipt).collect();
    let header = Header {
        transactions_root: proofs::calculate_transaction_root(&envelopes),
        receipts_root: proofs::calculate_receipt_root(&receipts),
        logs_bloom: receipts.iter().fold(Bloom::ZERO, |bloom, receipt| bloom | receipt.bloom()),
        ..header
    };
    Block { hash: header.hash_slow(), header, transactions, outcomes }
}

/// What all headers have in common. The state root stays zero: there is no trie, and nobody can ask for a proof.
fn header_template() -> Header {
    Header {
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        beneficiary: Address::ZERO,
        state_root: B256::ZERO,
        gas_limit: BLOCK_GAS_MAX,
        extra_data: Bytes::from_static(b"farebox devchain"),
        withdrawals_root: Some(EMPTY_WITHDRAWALS),
        blob_gas_used: Some(0),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(B256::ZERO),
        requests_hash: Some(EMPTY_REQUESTS_HASH),
        ..Header::default()
    }
}
