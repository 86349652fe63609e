//! What a payer signs to claim a transfer. Source: EIP-712; the type and the domain are `farebox_wire::transfer`'s.

use alloy::{
    primitives::{Address, B256, U256},
    sol,
    sol_types::{Eip712Domain, SolStruct},
};
use farebox_core::PaymentCode as Code;
use farebox_wire::transfer::{DOMAIN_NAME, DOMAIN_VERSION, NATIVE_PLACEHOLDER};

use crate::address;

sol! {
    struct PaymentCode {
        string quote;
        string method;
        string resource;
        bytes32 transaction;
        address asset;
        address payer;
        address payTo;
        uint256 amount;
        uint256 expiresAt;
    }
}

/// The 32 bytes to sign; `None` if the code is for no EVM asset.
pub(super) fn digest(code: &Code) -> Option<B256> {
    let chain_id = code.asset.network().evm_chain_id()?;
    let asset: Address = match code.asset.erc20_address() {
        Some(token) => address::alloy(token),
        None if code.asset.is_native() => address::alloy(NATIVE_PLACEHOLDER),
        None => return None,
    };
    let domain = Eip712Domain {
        name: Some(DOMAIN_NAME.into()),
        version: Some(DOMAIN_VERSION.into()),
        chain_id: Some(U256::from(chain_id)),
        ..Eip712Domain::default()
    };
    let message = PaymentCode {
        quote: code.quote.to_string(),
        method: code.method.to_string(),
        resource: code.resource.to_string(),
        transaction: code.transaction.into(),
        asset,
        payer: address::alloy(code.payer),
        payTo: address::alloy(code.pay_to),
        amount: U256::from(code.amount),
        expiresAt: U256::from(code.expires_at),
    };
    Some(message.eip712_signing_hash(&domain))
}

#[cfg(test)]
mod tests {
    use farebox_wire::transfer::CODE_TYPE;

    use super::*;

    #[test]
    fn what_is_signed_is_what_the_bill_says_is_signed() {
        assert_eq!(PaymentCode::eip712_encode_type(), CODE_TYPE);
    }

    #[test]
    fn cast_signs_the_same_bytes() {
        // By `cast wallet sign --data` of foundry 1.7.1, with anvil's first key.
        let theirs = "8bb352eb98f020ded1a0340a9ece55acf411d1a08995cb6d959c924df330bbf73eda5ebaba563b65769f13f3b60c57f3ffc6f29bfe\
                      646f8031ff70a052be47491c";
        let key = crate::EvmKey::from_hex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80").unwrap();
        let code = Code {
            quote: "AbC-_9".into(),
            asset: "eip155:84532/slip44:60".parse().unwrap(),
            transaction: hex::decode("89c91c789e57059b17285e7ba1716a1f5ff4c5dace0ea5a5135f26158d0421b9")
                .unwrap()
                .try_into()
                .unwrap(),
            payer: key.address(),
            pay_to: "0x209693Bc6afc0C5328bA36FaF03C514EF312287C".parse().unwrap(),
            amount: 10_000,
            resource: "https://api.example.com/v1/report?id=7".into(),
            method: "GET".into(),
            expires_at: 1_763_823_600,
            signature: Vec::new(),
        };
        assert_eq!(hex::encode(key.sign(digest(&code).unwrap()).as_bytes()), theirs);
    }
}
