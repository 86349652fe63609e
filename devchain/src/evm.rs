//! One transaction through revm, and the block it runs in.

use std::convert::Infallible;

use alloy::consensus::{Header, Transaction as _, TxEnvelope, Typed2718 as _};
use alloy::primitives::{Address, U256};
use revm::context::either::Either;
use revm::context::result::{EVMError, InvalidTransaction, ResultAndState};
use revm::context::{BlockEnv, CfgEnv, Context, TxEnv};
use revm::database::CacheDB;
use revm::primitives::hardfork::SpecId;
use revm::{ExecuteEvm as _, MainBuilder as _, MainContext as _};

use crate::state::StateAt;

/// Prague: the rules that Ethereum and Base both have.
const SPEC: SpecId = SpecId::PRAGUE;

/// State as of one block, under changes that are not (or not yet) part of the chain.
pub(crate) type Scratch<'a> = CacheDB<StateAt<'a>>;

pub(crate) type RunError = EVMError<Infallible, InvalidTransaction>;

/// Who may skip which check.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    /// A signed transaction in a block: all checks.
    Consensus,
    /// `eth_call` that names a fee: no nonce, any sender, any gas limit; the fee must cover the base fee.
    Call,
    /// `eth_call` that names no fee: as `Call`, and gas costs nothing.
    FreeCall,
}

/// Runs one transaction on `db` without keeping its changes there.
pub(crate) fn run(
    db: &mut Scratch<'_>,
    chain_id: u64,
    block: BlockEnv,
    tx: TxEnv,
    rules: Rules,
) -> Result<ResultAndState, RunError> {
    let mut evm = Context::mainnet().with_cfg(cfg(chain_id, rules)).with_block(block).with_db(db).build_mainnet();
    evm.transact(tx)
}

pub(crate) fn cfg(chain_id: u64, rules: Rules) -> CfgEnv {
    let mut cfg = CfgEnv::new_with_spec(SPEC).with_chain_id(chain_id);
    cfg.tx_chain_id_check = rules == Rules::Consensus;
    cfg.disable_nonce_check = rules != Rules::Consensus;
    cfg.disable_block_gas_limit = rules != Rules::Consensus;
    cfg.disable_eip3607 = rules != Rules::Consensus;
    cfg.disable_base_fee = rules == Rules::FreeCall;
    cfg
}

/// The block that `header` heads, as the EVM sees it.
pub(crate) fn block_env(header: &Header) -> BlockEnv {
    BlockEnv {
        number: U256::from(header.number),
        beneficiary: header.beneficiary,
        timestamp: U256::from(header.timestamp),
        gas_limit: header.gas_limit,
        basefee: header.base_fee_per_gas.unwrap_or_default(),
        prevrandao: Some(header.mix_hash),
        ..BlockEnv::default()
    }
}

pub(crate) fn tx_env(tx: &TxEnvelope, sender: Address) -> TxEnv {
    TxEnv {
        tx_type: tx.ty(),
        caller: sender,
        gas_limit: tx.gas_limit(),
        gas_price: tx.max_fee_per_gas(),
        kind: tx.kind(),
        value: tx.value(),
        data: tx.input().clone(),
        nonce: tx.nonce(),
        chain_id: tx.chain_id(),
        access_list: tx.access_list().cloned().unwrap_or_default(),
        gas_priority_fee: tx.max_priority_fee_per_gas(),
        authorization_list: tx.authorization_list().unwrap_or_default().iter().cloned().map(Either::Left).collect(),
        ..TxEnv::default()
    }
}
