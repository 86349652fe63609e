//! The messages that clients match on.

use alloy::primitives::{Bytes, U256};
use alloy::signers::local::PrivateKeySigner;
use farebox_devchain::Mining;
use serde_json::json;

use crate::harness::{CHAIN_ID, GWEI, Net, sign, transfer};

#[tokio::test]
async fn refused_transactions_are_told_in_go_ethereums_words() {
    let net = Net::new(Mining::Held).await;
    let sender = net.funded.address();
    assert_eq!(net.refusal(sign(transfer(0), &net.funded)).await, "");
    assert_eq!(net.refusal(sign(transfer(0), &net.funded)).await, "already known");

    let change = |change: &dyn Fn(&mut alloy::consensus::TxEip1559)| {
        let mut tx = transfer(0);
        change(&mut tx);
        sign(tx, &net.funded)
    };
    let dear = format!("insufficient funds for gas * price + value: balance {}, queued cost 0, tx cost", 10u64.pow(18));
    for (raw, expected) in [
        (change(&|tx| tx.chain_id = 5), format!("invalid sender: invalid chain id for signer: have 5 want {CHAIN_ID}")),
        (change(&|tx| tx.gas_limit = 20_999), "intrinsic gas too low: gas 20999, minimum needed 21000".into()),
        (change(&|tx| tx.gas_limit = 30_000_001), "exceeds block gas limit".into()),
        (change(&|tx| tx.nonce = u64::MAX), "nonce has max value".into()),
        (change(&|tx| tx.value = U256::from(10u64.pow(18))), dear),
        (
            change(&|tx| tx.max_priority_fee_per_gas = 4 * GWEI),
            format!(
                "max priority fee per gas higher than max fee per gas: address {sender}, \
                 maxPriorityFeePerGas: 4000000000, maxFeePerGas: 3000000000"
            ),
        ),
        (
            change(&|tx| (tx.max_fee_per_gas, tx.max_priority_fee_per_gas) = (7, 7)),
            format!("max fee per gas less than block base fee: address {sender}, maxFeePerGas: 7, baseFee: 875000000"),
        ),
        // One per mille short of 10 %.
        (change(&|tx| tx.max_fee_per_gas = 33 * GWEI / 10 - 1), "replacement transaction underpriced".into()),
        (change(&|tx| tx.max_fee_per_gas = 9 * GWEI), "replacement transaction underpriced".into()),
        (vec![0x02], "rlp: ".into()),
        (vec![0; 128 * 1024 + 1], "oversized data: transaction size 131073, limit 131072".into()),
    ] {
        let message = net.refusal(raw).await;
        assert!(message.starts_with(&expected), "{message:?} does not start with {expected:?}");
    }

    let bumped = change(&|tx| {
        tx.max_fee_per_gas = 33 * GWEI / 10;
        tx.max_priority_fee_per_gas = 11 * GWEI / 10;
    });
    assert_eq!(net.refusal(bumped).await, "");
    net.chain.mine();
    assert_eq!(net.refusal(sign(transfer(0), &net.funded)).await, "nonce too low: next nonce 1, tx nonce 0");
}

#[tokio::test]
async fn a_signature_that_recovers_no_key_is_refused() {
    let net = Net::new(Mining::Instant).await;
    let mut raw = sign(transfer(0), &net.funded);
    // The last 33 bytes are the length and value of s: in the upper half, it is a twin that EIP-2 forbids.
    let s = raw.len() - 32;
    raw[s..].fill(0xf0);
    let message = net.refusal(raw).await;
    assert!(message.starts_with("invalid sender: "), "{message}");
}

#[tokio::test]
async fn what_waits_counts_against_the_balance() {
    let net = Net::new(Mining::Held).await;
    let poor = PrivateKeySigner::from_slice(&[8; 32]).unwrap();
    net.chain.set_balance(poor.address(), U256::from(2 * 21_000 * 3 * GWEI - 1));
    assert_eq!(net.refusal(sign(transfer(0), &poor)).await, "");
    let message = net.refusal(sign(transfer(1), &poor)).await;
    assert!(message.contains("queued cost 63000000000000, tx cost 63000000000000"), "{message}");
}

#[tokio::test]
async fn failed_calls_are_told_in_go_ethereums_words() {
    let net = Net::new(Mining::Instant).await;
    let panic_17 = "0x634e487b715f5260116020526024601cfd";
    let (to, from) = ("0x00000000000000000000000000000000000000aa", net.funded.address());
    for (code, code_expected, message, data) in [
        // PUSH0 PUSH0 REVERT
        ("0x5f5ffd", 3, "execution reverted", json!("0x")),
        (
            panic_17,
            3,
            "execution reverted: arithmetic underflow or overflow",
            json!(format!("0x4e487b71{:064x}", 0x11)),
        ),
        ("0xfe", -32000, "invalid opcode: INVALID", json!(null)),
        // JUMPDEST PUSH0 JUMP
        ("0x5b5f56", -32000, "out of gas", json!(null)),
    ] {
        net.rpc("anvil_setCode", json!([to, code])).await;
        let call = json!([{"from": from, "to": to, "gas": "0x186a0"}, "latest"]);
        let error = net.rpc("eth_call", call).await["error"].clone();
        assert_eq!(
            (&error["code"], &error["message"], &error["data"]),
            (&json!(code_expected), &json!(message), &data)
        );
    }
    let endless = json!([{"from": from, "to": to}]);
    let error = net.rpc("eth_estimateGas", endless).await["error"].clone();
    assert_eq!(error["message"], "gas required exceeds allowance (30000000)");
    let cheap = json!([{"from": from, "to": from, "gasPrice": "0x1"}, "latest"]);
    let error = net.rpc("eth_call", cheap).await["error"].clone();
    let expected =
        format!("max fee per gas less than block base fee: address {from}, maxFeePerGas: 1, baseFee: 1000000000");
    assert_eq!(error["message"], expected);
}

#[tokio::test]
async fn a_synchronous_send_without_a_block_tells_the_hash_and_code_4() {
    let net = Net::new(Mining::Held).await;
    let raw = Bytes::from(sign(transfer(0), &net.funded));
    let error = net.rpc("eth_sendRawTransactionSync", json!([raw, 10])).await["error"].clone();
    assert_eq!(error["code"], 4);
    let waiting = net.rpc("eth_getTransactionByHash", json!([error["data"]])).await;
    assert_eq!(waiting["result"]["nonce"], "0x0", "it waits for a block still");
    net.chain.mine();
    assert_eq!(net.rpc("eth_getTransactionReceipt", json!([error["data"]])).await["result"]["status"], "0x1");
}

#[tokio::test]
async fn a_synchronous_send_wakes_with_the_block() {
    let net = Net::new(Mining::Held).await;
    let raw = Bytes::from(sign(transfer(0), &net.funded));
    let params = json!([raw]);
    let send = net.rpc("eth_sendRawTransactionSync", params);
    let mine = async {
        while net.rpc("eth_getTransactionCount", json!([net.funded.address(), "pending"])).await["result"] != "0x1" {}
        net.chain.mine();
    };
    let (answer, ()) = tokio::join!(send, mine);
    assert_eq!(answer["result"]["blockNumber"], "0x1", "{answer}");
}
