//! `eth_call` and `eth_estimateGas`, by go-ethereum's rules and in its words.

use alloy::consensus::Header;
use alloy::primitives::{Address, Bytes, TxKind, U256, hex};
use alloy::rpc::types::TransactionRequest;
use alloy::rpc::types::state::StateOverride;
use alloy::sol_types::{Panic, Revert, SolError as _};
use revm::Database as _;
use revm::bytecode::Bytecode;
use revm::context::TxEnv;
use revm::context::result::{EVMError, ExecutionResult, HaltReason, InvalidTransaction};

use crate::evm::{self, Rules, RunError, Scratch};
use crate::limits::{BLOCK_GAS_MAX, CALL_GAS_MAX, OVERRIDE_ACCOUNTS_MAX};

/// Gas of a transaction that only moves ether; none needs less.
const PLAIN_TRANSFER: u64 = 21_000;

/// Why a call has no result.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// The contract said no, with these bytes.
    #[error("execution reverted{}", reason(.0).map(|reason| format!(": {reason}")).unwrap_or_default())]
    Reverted(Bytes),
    /// The EVM gave up.
    #[error("{0}")]
    Halted(String),
    /// `eth_estimateGas`: fails even with all the gas it may have.
    #[error("gas required exceeds allowance ({allowance})")]
    AboveAllowance { allowance: u64 },
    /// The call could not start.
    #[error("{0}")]
    Invalid(String),
}

/// Where a call runs: a state, which it may scribble on, and the block it believes to be in.
pub(crate) struct Place<'a> {
    pub(crate) chain_id: u64,
    pub(crate) header: Header,
    pub(crate) state: Scratch<'a>,
}

impl Place<'_> {
    /// Pretends other balances, nonces, code and storage.
    pub(crate) fn pretend(&mut self, overrides: StateOverride) -> Result<(), CallError> {
        if overrides.len() > OVERRIDE_ACCOUNTS_MAX {
            return Err(invalid(format!("state overrides name more than {OVERRIDE_ACCOUNTS_MAX} accounts")));
        }
        for (address, account) in overrides {
            if account.move_precompile_to.is_some() {
                return Err(invalid("movePrecompileToAddress is not supported".into()));
            }
            let mut info = self.account(address);
            info.balance = account.balance.unwrap_or(info.balance);
            info.nonce = account.nonce.unwrap_or(info.nonce);
            if let Some(code) = account.code {
                info.set_code(Bytecode::new_raw_checked(code).map_err(|error| invalid(error.to_string()))?);
            }
            self.state.insert_account_info(address, info);
            let words = |slots: alloy::primitives::map::B256HashMap<alloy::primitives::B256>| {
                slots.into_iter().map(|(key, value)| (key.into(), value.into()))
            };
            if let Some(slots) = account.state {
                let Ok(()) = self.state.replace_account_storage(address, words(slots).collect());
            }
            for (key, value) in account.state_diff.into_iter().flat_map(words) {
                let Ok(()) = self.state.insert_account_storage(address, key, value);
            }
        }
        Ok(())
    }

    /// The bytes the call returns.
    pub(crate) fn call(&mut self, request: &TransactionRequest) -> Result<Bytes, CallError> {
        let gas = request.gas.unwrap_or(CALL_GAS_MAX).min(CALL_GAS_MAX);
        let (tx, rules) = self.tx_env(request)?;
        let result = self.run(TxEnv { gas_limit: gas, ..tx }, rules)?;
        Ok(succeeded(result)?.into_output().unwrap_or_default())
    }

    /// A gas limit with which the call succeeds, at most 1.5 % above the least one (go-ethereum's search).
    pub(crate) fn estimate_gas(&mut self, request: &TransactionRequest) -> Result<u64, CallError> {
        const ERROR_RATIO_PER_MILLE: u64 = 15;
        const CALL_STIPEND: u64 = 2300;
        let (tx, rules) = self.tx_env(request)?;
        let mut high = self.allowance(request, &tx)?;
        let first = match self.run(TxEnv { gas_limit: high, ..tx.clone() }, rules) {
            Ok(ExecutionResult::Halt { reason: HaltReason::OutOfGas(_), .. })
            | Err(CallError::AboveAllowance { .. }) => {
                return Err(CallError::AboveAllowance { allowance: high });
            }
            other => succeeded(other?)?,
        };
        if first.gas().total_gas_spent() == PLAIN_TRANSFER {
            return Ok(PLAIN_TRANSFER);
        }
        let mut low = first.tx_gas_used().saturating_sub(1);
        // Most calls need what they used, what was refunded, and the 64th that EIP-150 holds back: try that first.
        let mut guess = (first.gas().total_gas_spent() + CALL_STIPEND) * 64 / 63;
        while low + 1 < high && (high - low) * 1000 > high * ERROR_RATIO_PER_MILLE {
            let limit = if guess > low && guess < high { guess } else { low.midpoint(high).min(low.saturating_mul(2)) };
            guess = 0;
            if self.succeeds(TxEnv { gas_limit: limit, ..tx.clone() }, rules)? {
                high = limit;
            } else {
                low = limit;
            }
        }
        Ok(high)
    }

    /// The most gas the call may have: what it asks for or a block's, as far as the sender can pay.
    fn allowance(&mut self, request: &TransactionRequest, tx: &TxEnv) -> Result<u64, CallError> {
        let gas = request.gas.filter(|gas| *gas >= PLAIN_TRANSFER).unwrap_or(BLOCK_GAS_MAX).min(CALL_GAS_MAX);
        if tx.gas_price == 0 {
            return Ok(gas);
        }
        let balance = self.account(tx.caller).balance;
        let Some(available) = balance.checked_sub(tx.value) else {
            return Err(invalid("insufficient funds for transfer".into()));
        };
        Ok((available / U256::from(tx.gas_price)).saturating_to::<u64>().min(gas))
    }

    fn succeeds(&mut self, tx: TxEnv, rules: Rules) -> Result<bool, CallError> {
        match self.run(tx, rules) {
            Ok(result) => Ok(result.is_success()),
            Err(CallError::AboveAllowance { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn run(&mut self, tx: TxEnv, rules: Rules) -> Result<ExecutionResult, CallError> {
        let (caller, gas, value) = (tx.caller, tx.gas_limit, tx.value);
        let (fee, base_fee) = (tx.gas_price, self.header.base_fee_per_gas.unwrap_or_default());
        let block = evm::block_env(&self.header);
        evm::run(&mut self.state, self.chain_id, block, tx, rules).map(|ran| ran.result).map_err(|error| match error {
            EVMError::Transaction(InvalidTransaction::LackOfFundForMaxFee { fee, balance }) => invalid(format!(
                "insufficient funds for gas * price + value: address {caller} have {balance} want {}",
                (*fee).max(value)
            )),
            EVMError::Transaction(InvalidTransaction::GasPriceLessThanBasefee) => invalid(format!(
                "max fee per gas less than block base fee: address {caller}, maxFeePerGas: {fee}, baseFee: {base_fee}"
            )),
            EVMError::Transaction(
                InvalidTransaction::CallGasCostMoreThanGasLimit { .. }
                | InvalidTransaction::GasFloorMoreThanGasLimit { .. },
            ) => CallError::AboveAllowance { allowance: gas },
            error => invalid(words(&error)),
        })
    }

    fn account(&mut self, address: Address) -> revm::state::AccountInfo {
        let Ok(account) = self.state.basic(address);
        account.unwrap_or_default()
    }

    fn tx_env(&self, request: &TransactionRequest) -> Result<(TxEnv, Rules), CallError> {
        let request = request.clone();
        if request.gas_price.is_some()
            && (request.max_fee_per_gas.is_some() || request.max_priority_fee_per_gas.is_some())
        {
            return Err(invalid("both gasPrice and (maxFeePerGas or maxPriorityFeePerGas) specified".into()));
        }
        if let Some(have) = request.chain_id.filter(|id| *id != self.chain_id) {
            return Err(invalid(format!("chainId does not match node's (have={have}, want={})", self.chain_id)));
        }
        if request.blob_versioned_hashes.is_some() || request.max_fee_per_blob_gas.is_some() {
            return Err(invalid("transaction type not supported".into()));
        }
        let input = request.input.try_into_unique_input().map_err(|error| invalid(error.to_string()))?;
        let fee = request.gas_price.or(request.max_fee_per_gas).unwrap_or_default();
        let mut tx = TxEnv {
            caller: request.from.unwrap_or_default(),
            gas_price: fee,
            gas_priority_fee: request.max_priority_fee_per_gas.filter(|_| fee > 0),
            kind: request.to.unwrap_or(TxKind::Create),
            value: request.value.unwrap_or_default(),
            data: input.unwrap_or_default(),
            chain_id: Some(self.chain_id),
            access_list: request.access_list.unwrap_or_default(),
            ..TxEnv::default()
        };
        tx.set_signed_authorization(request.authorization_list.unwrap_or_default());
        tx.derive_tx_type().map_err(|error| invalid(error.to_string()))?;
        Ok((tx, if fee == 0 { Rules::FreeCall } else { Rules::Call }))
    }
}

fn succeeded(result: ExecutionResult) -> Result<ExecutionResult, CallError> {
    match result {
        ExecutionResult::Success { .. } => Ok(result),
        ExecutionResult::Revert { output, .. } => Err(CallError::Reverted(output)),
        ExecutionResult::Halt { reason, .. } => Err(CallError::Halted(match reason {
            HaltReason::OutOfGas(_) => "out of gas".into(),
            HaltReason::InvalidFEOpcode => "invalid opcode: INVALID".into(),
            HaltReason::StateChangeDuringStaticCall => "write protection".into(),
            reason => reason.to_string(),
        })),
    }
}

/// What a contract meant by the bytes it reverted with: `Error(string)` or `Panic(uint256)`, as go-ethereum tells it.
pub(crate) fn reason(data: &[u8]) -> Option<String> {
    if let Ok(Revert { reason }) = Revert::abi_decode(data) {
        return Some(reason);
    }
    let code = Panic::abi_decode(data).ok()?.code;
    let known = match code.saturating_to::<u64>() {
        0x00 => "generic panic",
        0x01 => "assert(false)",
        0x11 => "arithmetic underflow or overflow",
        0x12 => "division or modulo by zero",
        0x21 => "enum overflow",
        0x22 => "invalid encoded storage byte array accessed",
        0x31 => "out-of-bounds array access; popping on an empty array",
        0x32 => "out-of-bounds access of an array or bytesN",
        0x41 => "out of memory",
        0x51 => "uninitialized function",
        _ => return Some(format!("unknown panic code: {}", hex::encode_prefixed(code.to_be_bytes_trimmed_vec()))),
    };
    Some(known.into())
}

fn words(error: &RunError) -> String {
    match error {
        EVMError::Transaction(error) => error.to_string(),
        error => error.to_string(),
    }
}

fn invalid(message: String) -> CallError {
    CallError::Invalid(message)
}
