//! What a payer signs to claim a transfer: the EIP-712 digest of a payment code, and whose key signed it.

use std::sync::LazyLock;

use alloy::{
    primitives::{Address, B256, U256, keccak256},
    sol_types::SolValue,
};
use farebox_core::{AssetId, PaymentCode};
use farebox_wire::transfer::{CODE_TYPE, DOMAIN_NAME, DOMAIN_VERSION, NATIVE_PLACEHOLDER};

use crate::{address, signature};

static TYPE: LazyLock<B256> = LazyLock::new(|| keccak256(CODE_TYPE));
static DOMAIN: LazyLock<[B256; 3]> = LazyLock::new(|| {
    [
        keccak256("EIP712Domain(string name,string version,uint256 chainId)"),
        keccak256(DOMAIN_NAME),
        keccak256(DOMAIN_VERSION),
    ]
});

/// The 32 bytes that are signed. `None` for an asset that is neither a token nor the own coin of an EVM network. Source: EIP-712.
pub(crate) fn digest(code: &PaymentCode) -> Option<B256> {
    let chain_id = code.asset.network().evm_chain_id()?;
    let [kind, name, version] = *DOMAIN;
    let domain = keccak256((kind, name, version, U256::from(chain_id)).abi_encode());
    let fields = (
        *TYPE,
        keccak256(code.quote.as_bytes()),
        keccak256(code.method.as_bytes()),
        keccak256(code.resource.as_bytes()),
        B256::from(code.transaction),
        asset_as_signed(&code.asset)?,
        address::alloy(code.payer),
        address::alloy(code.pay_to),
        U256::from(code.amount),
        U256::from(code.expires_at),
    );
    let mut message = [0; 66];
    message[..2].copy_from_slice(b"\x19\x01");
    message[2..34].copy_from_slice(domain.as_slice());
    message[34..].copy_from_slice(keccak256(fields.abi_encode()).as_slice());
    Some(keccak256(message))
}

fn asset_as_signed(asset: &AssetId) -> Option<Address> {
    let named = if asset.is_native() { Some(NATIVE_PLACEHOLDER) } else { asset.erc20_address() };
    named.map(address::alloy)
}

/// The address whose key made `signature` over `digest`, if a key can have: 65 bytes, v of 27 or 28, low s. 30 µs of CPU.
pub(super) fn signer(digest: B256, signature: &[u8]) -> Option<Address> {
    // 0 and 1, which some wallets write, would be a second spelling of one signature.
    let one_spelling = matches!(signature.last(), Some(27 | 28));
    let key = signature::of_key(signature).filter(|_| one_spelling)?;
    signature::signer(digest, &key)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use alloy::{
        sol,
        sol_types::{SolStruct, eip712_domain},
    };
    use farebox_core::{EvmAddress, Network};

    use super::*;
    use crate::EvmKey;

    sol! {
        /// alloy's opinion of the type, which need not be ours.
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

    fn code(asset: AssetId) -> farebox_core::PaymentCode {
        farebox_core::PaymentCode {
            quote: Arc::from("AQAAAAE"),
            asset,
            transaction: [3; 32],
            payer: EvmAddress([4; 20]),
            pay_to: EvmAddress([5; 20]),
            amount: 10_000,
            resource: Arc::from("https://api.example.com/v1/report?id=7"),
            method: Arc::from("GET"),
            expires_at: 1_763_823_600,
            signature: vec![],
        }
    }

    #[test]
    fn alloy_and_we_agree_on_what_a_payment_code_signs() {
        let network = Network::evm(8453);
        let token = EvmAddress([6; 20]);
        let placeholder = "0xEeeeeEeeeEeEeeEeEeEeeEEEeeeeEeeeeeeeEEeE";
        for (asset, signed) in [
            (AssetId::erc20(network.clone(), token), address::alloy(token)),
            (AssetId::native(network), placeholder.parse().unwrap()),
        ] {
            let ours = code(asset);
            let theirs = PaymentCode {
                quote: ours.quote.to_string(),
                method: ours.method.to_string(),
                resource: ours.resource.to_string(),
                transaction: ours.transaction.into(),
                asset: signed,
                payer: address::alloy(ours.payer),
                payTo: address::alloy(ours.pay_to),
                amount: U256::from(ours.amount),
                expiresAt: U256::from(ours.expires_at),
            };
            let domain = eip712_domain! { name: "Farebox Payment Code", version: "1", chain_id: 8453, };
            assert_eq!(digest(&ours), Some(theirs.eip712_signing_hash(&domain)));
        }
        let elsewhere = AssetId::native("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp".parse().unwrap());
        assert_eq!(digest(&code(elsewhere)), None);
    }

    #[test]
    fn cast_signs_the_same_bytes() {
        // By `cast wallet sign --data` of foundry 1.7.1, with anvil's first key.
        let theirs = "8bb352eb98f020ded1a0340a9ece55acf411d1a08995cb6d959c924df330bbf73eda5ebaba563b65769f13f3b60c57f3ffc6f29bfe\
                      646f8031ff70a052be47491c";
        let key = EvmKey::from_hex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80").unwrap();
        let code = farebox_core::PaymentCode {
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

    #[test]
    fn a_keys_signature_has_one_spelling() {
        let key = EvmKey::from_bytes(&[9; 32]).unwrap();
        let digest = digest(&code(AssetId::native(Network::evm(1)))).unwrap();
        let good = key.sign(digest).as_bytes().to_vec();
        assert_eq!(signer(digest, &good), Some(key.alloy_address()));
        let with_v = |v: u8| [&good[..64], &[v]].concat();
        for other in [with_v(good[64] - 27), with_v(good[64] + 35), good[..64].to_vec(), [&good[..], &[0]].concat()] {
            assert_eq!(signer(digest, &other), None, "{other:?}");
        }
        let order =
            U256::from_str_radix("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16).unwrap();
        let mut twin = good.clone();
        twin[32..64].copy_from_slice(&(order - U256::from_be_slice(&good[32..64])).to_be_bytes::<32>());
        twin[64] = if good[64] == 27 { 28 } else { 27 };
        assert_eq!(signer(digest, &twin), None, "the malleable twin");
    }
}
