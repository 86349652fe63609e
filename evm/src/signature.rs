//! EIP-712 digests of EIP-3009 messages, and whose key signed them.

use alloy::{
    primitives::{Address, B256, Signature, U256, b256, keccak256},
    sol_types::SolValue,
};
use farebox_core::TransferAuthorization;
use secp256k1::{
    Message, SECP256K1,
    ecdsa::{RecoverableSignature, RecoveryId},
};

use crate::{address, key::address_of};

/// keccak of "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)".
const DOMAIN_TYPE: B256 = b256!("8b73c3c69bb8fe3d512ecc4cf759cc79239f7b179b0ffacaa9a75d522b39400f");
/// keccak of "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)".
const TRANSFER_TYPE: B256 = b256!("7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267");
/// Half the order of secp256k1: a signature with a larger s is the malleable twin of one with a smaller (EIP-2).
const S_MAX: U256 =
    U256::from_limbs([0xdfe9_2f46_681b_20a0, 0x5d57_6e73_57a4_501d, 0xffff_ffff_ffff_ffff, 0x7fff_ffff_ffff_ffff]);

/// The EIP-712 domain separator of a token. Source: EIP-712 §domainSeparator.
pub(crate) fn domain_separator(name: &str, version: &str, chain_id: u64, token: Address) -> B256 {
    let fields = (DOMAIN_TYPE, keccak256(name), keccak256(version), U256::from(chain_id), token);
    keccak256(fields.abi_encode())
}

/// What the payer signs. Source: EIP-712, EIP-3009.
pub(crate) fn digest(domain: B256, a: &TransferAuthorization) -> B256 {
    let fields = (
        TRANSFER_TYPE,
        address::alloy(a.from),
        address::alloy(a.to),
        U256::from(a.value),
        U256::from(a.valid_after),
        U256::from(a.valid_before),
        B256::from(a.nonce),
    );
    let mut message = [0; 66];
    message[..2].copy_from_slice(b"\x19\x01");
    message[2..34].copy_from_slice(domain.as_slice());
    message[34..].copy_from_slice(keccak256(fields.abi_encode()).as_slice());
    keccak256(message)
}

/// The signature as a key's, if it has a key's form: 65 bytes, low s, v of 27 or 28 (or 0 or 1, which some wallets write).
pub(crate) fn of_key(bytes: &[u8]) -> Option<Signature> {
    let bytes: &[u8; 65] = bytes.try_into().ok()?;
    let odd = match bytes[64] {
        0 | 27 => false,
        1 | 28 => true,
        _ => return None,
    };
    let signature = Signature::from_bytes_and_parity(&bytes[..64], odd);
    (signature.s() <= S_MAX).then_some(signature)
}

/// The address whose key made `signature` over `digest`; `None` if no key can have. 30 µs of CPU.
pub(crate) fn signer(digest: B256, signature: &Signature) -> Option<Address> {
    let id = if signature.v() { RecoveryId::One } else { RecoveryId::Zero };
    let rs = signature.as_bytes();
    let recoverable = RecoverableSignature::from_compact(&rs[..64], id).ok()?;
    let key = SECP256K1.recover_ecdsa(Message::from_digest(digest.0), &recoverable).ok()?;
    Some(address_of(&key))
}
