//! The token's functions and events, and calldata that we encode ourselves from parsed values.

use alloy::{
    primitives::{Address, B256, Bytes, Signature, U256},
    sol,
    sol_types::{SolCall, SolEvent, SolValue},
};
use farebox_core::TransferAuthorization;

use crate::{address, node::Log};

sol! {
    /// Source: EIP-20, EIP-712, EIP-3009, and FiatTokenV2_2 for the `bytes` form.
    interface Token {
        function name() external view returns (string);
        function version() external view returns (string);
        function decimals() external view returns (uint8);
        function DOMAIN_SEPARATOR() external view returns (bytes32);
        function balanceOf(address account) external view returns (uint256);
        function transfer(address to, uint256 value) external returns (bool);
        function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);
        function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter,
            uint256 validBefore, bytes32 nonce, uint8 v, bytes32 r, bytes32 s) external;
        function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter,
            uint256 validBefore, bytes32 nonce, bytes signature) external;

        event Transfer(address indexed from, address indexed to, uint256 value);
        event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
        event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);
    }

    /// Source: EIP-1271.
    interface ContractWallet {
        function isValidSignature(bytes32 digest, bytes signature) external view returns (bytes4);
    }
}

/// What `isValidSignature` returns for a yes, as the whole word. Source: EIP-1271.
pub(crate) const EIP1271_YES: [u8; 32] = {
    let mut word = [0; 32];
    word[0] = 0x16;
    word[1] = 0x26;
    word[2] = 0xba;
    word[3] = 0x7e;
    word
};

/// The last 32 bytes of a signature that brings its wallet's deployment along. Source: ERC-6492.
const ERC6492_SUFFIX: B256 = B256::new(*b"\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92\x64\x92");

/// `transferWithAuthorization` by a key's signature, in the form that every EIP-3009 token has.
pub(crate) fn transfer_by_key(a: &TransferAuthorization, signature: &Signature) -> Bytes {
    Token::transferWithAuthorization_0Call {
        from: address::alloy(a.from),
        to: address::alloy(a.to),
        value: U256::from(a.value),
        validAfter: U256::from(a.valid_after),
        validBefore: U256::from(a.valid_before),
        nonce: a.nonce.into(),
        v: 27 + u8::from(signature.v()),
        r: signature.r().into(),
        s: signature.s().into(),
    }
    .abi_encode()
    .into()
}

/// `transferWithAuthorization` by a contract wallet's signature, in the form that FiatTokenV2_2 and its like have.
pub(crate) fn transfer_by_contract(a: &TransferAuthorization, signature: &[u8]) -> Bytes {
    Token::transferWithAuthorization_1Call {
        from: address::alloy(a.from),
        to: address::alloy(a.to),
        value: U256::from(a.value),
        validAfter: U256::from(a.valid_after),
        validBefore: U256::from(a.valid_before),
        nonce: a.nonce.into(),
        signature: signature.to_vec().into(),
    }
    .abi_encode()
    .into()
}

pub(crate) fn is_valid_signature(digest: B256, signature: &[u8]) -> Bytes {
    ContractWallet::isValidSignatureCall { digest, signature: signature.to_vec().into() }.abi_encode().into()
}

/// A signature that names the factory that would deploy its wallet.
pub(crate) struct WithDeployment {
    pub(crate) factory: Address,
    /// The signature for the wallet once it is there.
    pub(crate) inner: Bytes,
}

/// Unwraps an ERC-6492 signature. `None`: it is not one, or does not decode.
pub(crate) fn with_deployment(signature: &[u8]) -> Option<WithDeployment> {
    let wrapped = signature.strip_suffix(ERC6492_SUFFIX.as_slice())?;
    let (factory, _calldata, inner) = <(Address, Bytes, Bytes)>::abi_decode_params(wrapped).ok()?;
    Some(WithDeployment { factory, inner })
}

/// An event of the token that says something of an authorization or moves money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenEvent {
    Used { authorizer: Address, nonce: B256 },
    Canceled { authorizer: Address, nonce: B256 },
    Moved { from: Address, to: Address, value: U256 },
}

impl TokenEvent {
    /// Reads a log of the token itself; `None` for its other events.
    pub(crate) fn read(log: &Log) -> Option<Self> {
        let topics = || log.topics.iter().copied();
        match *log.topics.first()? {
            Token::AuthorizationUsed::SIGNATURE_HASH => {
                let event = Token::AuthorizationUsed::decode_raw_log(topics(), &log.data).ok()?;
                Some(Self::Used { authorizer: event.authorizer, nonce: event.nonce })
            }
            Token::AuthorizationCanceled::SIGNATURE_HASH => {
                let event = Token::AuthorizationCanceled::decode_raw_log(topics(), &log.data).ok()?;
                Some(Self::Canceled { authorizer: event.authorizer, nonce: event.nonce })
            }
            // One word and no more: what has another shape is another event with the same name.
            Token::Transfer::SIGNATURE_HASH if log.data.len() == 32 => {
                let event = Token::Transfer::decode_raw_log(topics(), &log.data).ok()?;
                Some(Self::Moved { from: event.from, to: event.to, value: event.value })
            }
            _ => None,
        }
    }
}

/// The events that end an authorization, as alternatives for a log filter's first topic.
pub(crate) const ENDS_AUTHORIZATION: [B256; 2] =
    [Token::AuthorizationUsed::SIGNATURE_HASH, Token::AuthorizationCanceled::SIGNATURE_HASH];
