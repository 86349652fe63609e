//! Whatever arrives gets an answer, and the chain goes on.

use farebox_devchain::Mining;
use farebox_devchain::limits::{BATCH_REQUESTS_MAX, BODY_BYTES_MAX};
use serde_json::{Value, json};

use crate::harness::Net;

#[tokio::test]
async fn garbage_is_answered_and_nothing_stops() {
    let net = Net::new(Mining::Instant).await;
    for (body, code) in [
        ("", -32700),
        ("{", -32700),
        ("\u{0}\u{1}", -32700),
        (&*"[".repeat(100_000), -32700),
        ("null", -32600),
        ("7", -32600),
        ("[]", -32600),
        ("{}", -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"eth_chainId"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":{},"method":"eth_chainId"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainID"}"#, -32601),
        (r#"{"jsonrpc":"2.0","id":1,"method":"eth_call","params":{}}"#, -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[]}"#, -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[{},"latest",{},{}]}"#, -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"eth_getBalance","params":["0x12"]}"#, -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"eth_getLogs","params":[{"fromBlock":"x"}]}"#, -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"eth_getLogs","params":[{"fromBlock":"0x9","toBlock":"0x1"}]}"#, -32000),
        (r#"{"jsonrpc":"2.0","id":1,"method":"eth_feeHistory","params":["0x1","latest",[101]]}"#, -32000),
        (r#"{"jsonrpc":"2.0","id":1,"method":"eth_sendRawTransaction","params":["0x"]}"#, -32000),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"anvil_setCode","params":["0x00000000000000000000000000000000000000aa","0xef01"]}"#,
            -32602,
        ),
    ] {
        let answer: Value = net.post(body.to_owned()).await.json().await.unwrap();
        assert_eq!(answer["error"]["code"], code, "{} gave {answer}", body.get(..200).unwrap_or(body));
    }
    assert_eq!(net.rpc("eth_blockNumber", json!([])).await["result"], "0x0");
}

#[tokio::test]
async fn extreme_numbers_do_not_stop_the_chain() {
    let net = Net::new(Mining::Instant).await;
    let (max, word) = ("0xffffffffffffffff", format!("0x{}", "f".repeat(64)));
    let from = net.funded.address();
    for (method, params) in [
        ("eth_getBlockByNumber", json!([max, true])),
        ("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": max}])),
        ("eth_getLogs", json!([{"fromBlock": max, "toBlock": max}])),
        ("eth_feeHistory", json!([max, "latest", [0, 100]])),
        ("eth_feeHistory", json!(["0x0", "latest"])),
        ("eth_call", json!([{"from": from, "to": from, "gas": max, "value": word}, "latest"])),
        ("eth_call", json!([{"from": from, "to": from, "gas": max, "gasPrice": word}, "latest"])),
        (
            "eth_estimateGas",
            json!([{"from": from, "to": from, "gas": max, "maxFeePerGas": "0xffffffffffffffffffffffffffffffff"}]),
        ),
        ("eth_estimateGas", json!([{"data": "0xfe"}])),
        ("eth_getStorageAt", json!([from, word, "latest"])),
        ("evm_increaseTime", json!([max])),
        ("evm_mine", json!([])),
        ("evm_increaseTime", json!([max])),
        ("evm_mine", json!([])),
        ("anvil_setBalance", json!([from, word])),
        ("eth_estimateGas", json!([{"from": from, "to": from, "value": word}])),
    ] {
        let answer = net.rpc(method, params.clone()).await;
        assert_ne!(answer["error"]["code"], -32603, "{method} {params} gave {answer}");
        assert!(answer.get("result").is_some() || answer["error"]["code"].is_i64(), "{method} {params} gave {answer}");
    }
    assert_eq!(net.chain.block_number(), 2);
}

#[tokio::test]
async fn too_large_a_body_or_batch_is_refused_as_a_whole() {
    let net = Net::new(Mining::Instant).await;
    let body = format!("\"{}\"", "a".repeat(BODY_BYTES_MAX));
    assert_eq!(net.post(body).await.status(), 413);
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "evm_mine", "params": []});
    let answer: Value = net.post(json!(vec![request; BATCH_REQUESTS_MAX + 1]).to_string()).await.json().await.unwrap();
    assert_eq!((&answer["error"]["message"], net.chain.block_number()), (&json!("batch too large"), 0));
}

#[tokio::test]
async fn a_notification_is_done_and_not_answered() {
    let net = Net::new(Mining::Instant).await;
    let notification = json!({"jsonrpc": "2.0", "method": "evm_mine"});
    let answer = net.post(notification.to_string()).await;
    assert_eq!((answer.status().as_u16(), answer.bytes().await.unwrap().len()), (200, 0));
    let asked = json!({"jsonrpc": "2.0", "id": null, "method": "eth_blockNumber"});
    let answers: Value = net.post(json!([notification, asked]).to_string()).await.json().await.unwrap();
    assert_eq!(answers, json!([{"jsonrpc": "2.0", "id": null, "result": "0x2"}]));
}

#[tokio::test]
async fn a_web_page_cannot_post_without_a_preflight() {
    let net = Net::new(Mining::Instant).await;
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "evm_mine"}).to_string();
    let post = reqwest::Client::new().post(net.chain.url()).header("content-type", "text/plain").body(request);
    assert_eq!(post.send().await.unwrap().status(), 415);
    assert_eq!(net.chain.block_number(), 0);
}
