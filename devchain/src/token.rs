//! The demo's token and the tests' contract wallet, from `contracts/` (how they are compiled: `contracts/build.mjs`).

use alloy::primitives::{Address, Bytes, TxKind, U256, address, keccak256};
use alloy::sol_types::SolCall;
use revm::bytecode::Bytecode;
use revm::context::TxEnv;
use revm::context::result::ExecutionResult;

use crate::call::{self, CallError, Place};
use crate::chain::Chain;
use crate::limits::CALL_GAS_MAX;

mod contracts {
    #![expect(clippy::too_many_arguments, reason = "generated from the ABI: EIP-3009 has up to nine arguments")]

    alloy::sol!(
        #[sol(rpc)]
        DemoUsd,
        "contracts/DemoUSD.json"
    );
    alloy::sol!(
        #[sol(rpc)]
        DemoWallet,
        "contracts/DemoWallet.json"
    );
}

pub use contracts::{DemoUsd, DemoWallet};

/// Who acts when the chain edits itself (the system address of EIP-4788): an account nobody has the key of.
const SYSTEM: Address = address!("0xfffffffffffffffffffffffffffffffffffffffe");

/// A token to put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenConfig {
    /// Where; `None` is an address that follows from the other fields.
    pub address: Option<Address>,
    /// EIP-712 domain name as well, for instance `USDC`.
    pub name: String,
    /// For instance `USDC`.
    pub symbol: String,
    /// EIP-712 domain version, for instance `2`.
    pub version: String,
    /// Decimals of one whole token.
    pub decimals: u8,
}

/// Why a token was not put in place or did not do as asked. The chain is then as it was.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The address has code already.
    #[error("there is code at {0}; choose another address for the token")]
    Occupied(Address),
    /// The token, or what is at its address, said no.
    #[error("token {token} refused: {reason}")]
    Refused {
        /// The address that was called.
        token: Address,
        /// The contract's words, or the EVM's.
        reason: String,
    },
}

impl TokenError {
    /// A stable name, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Occupied(_) => "token_occupied",
            Self::Refused { .. } => "token_refused",
        }
    }
}

pub(crate) fn deploy(chain: &mut Chain, token: &TokenConfig) -> Result<Address, TokenError> {
    let address = token.address.unwrap_or_else(|| derived_address(token));
    if chain.account(address).is_some_and(|account| !account.is_empty_code_hash()) {
        return Err(TokenError::Occupied(address));
    }
    chain.edit_account(address, |account| {
        account.set_code(Bytecode::new_legacy(DemoUsd::DEPLOYED_BYTECODE.clone()));
        // As a contract has after its creation (EIP-161).
        account.nonce = 1;
    });
    let initialize = DemoUsd::initializeCall {
        name_: token.name.clone(),
        symbol_: token.symbol.clone(),
        version_: token.version.clone(),
        decimals_: token.decimals,
    };
    edit(chain, address, &initialize)?;
    Ok(address)
}

pub(crate) fn mint(chain: &mut Chain, token: Address, to: Address, units: U256) -> Result<(), TokenError> {
    // A call to an account without code succeeds and does nothing.
    if chain.account(token).is_none_or(|account| account.is_empty_code_hash()) {
        return Err(refused(token, "there is no code at this address".into()));
    }
    edit(chain, token, &DemoUsd::mintCall { to, amount: units })
}

pub(crate) fn balance(chain: &Chain, token: Address, of: Address) -> Result<U256, TokenError> {
    let header = chain.next_header();
    let state = chain.state_at(chain.head().header.number);
    let call = alloy::rpc::types::TransactionRequest::default()
        .to(token)
        .input(DemoUsd::balanceOfCall(of).abi_encode().into());
    let answer = Place { chain_id: chain.chain_id(), header, state }.call(&call);
    let answer = answer.map_err(|error: CallError| refused(token, error.to_string()))?;
    DemoUsd::balanceOfCall::abi_decode_returns(&answer).map_err(|error| refused(token, error.to_string()))
}

fn edit(chain: &mut Chain, token: Address, call: &impl SolCall) -> Result<(), TokenError> {
    let tx = TxEnv {
        caller: SYSTEM,
        kind: TxKind::Call(token),
        data: Bytes::from(call.abi_encode()),
        gas_limit: CALL_GAS_MAX,
        ..TxEnv::default()
    };
    match chain.edit(tx) {
        Ok(ExecutionResult::Success { .. }) => Ok(()),
        Ok(ExecutionResult::Revert { output, .. }) => {
            Err(refused(token, call::reason(&output).unwrap_or_else(|| output.to_string())))
        }
        Ok(ExecutionResult::Halt { reason, .. }) => Err(refused(token, reason.to_string())),
        Err(error) => Err(refused(token, error.to_string())),
    }
}

fn derived_address(token: &TokenConfig) -> Address {
    let TokenConfig { name, symbol, version, decimals, .. } = token;
    let seed = format!("farebox devchain token\n{name}\n{symbol}\n{version}\n{decimals}");
    Address::from_word(keccak256(seed))
}

fn refused(token: Address, reason: String) -> TokenError {
    TokenError::Refused { token, reason }
}
