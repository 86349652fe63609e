//! `eth_call`, `eth_estimateGas` and reading state.

use alloy::eips::BlockId;
use alloy::network::TransactionBuilder as _;
use alloy::primitives::{Address, B256, Bytes, U256, map::AddressHashMap};
use alloy::providers::Provider as _;
use alloy::rpc::types::state::AccountOverride;
use alloy::rpc::types::{BlockNumberOrTag, TransactionRequest};
use alloy::sol_types::{Revert, SolCall as _, SolError as _};
use farebox_devchain::DemoUsd;

use crate::harness::{Network, TOKEN, refusal};

const NOBODY: Address = Address::repeat_byte(0x13);
const EXCEEDS: &str = "ERC20: transfer amount exceeds balance";

fn transfer_of_what_nobody_has() -> TransactionRequest {
    let call = DemoUsd::transferCall { to: Address::repeat_byte(0x42), value: U256::from(1) };
    TransactionRequest::default().with_from(NOBODY).with_to(TOKEN).with_input(call.abi_encode())
}

pub(crate) async fn a_revert_answers_with_code_3_the_reason_and_its_data(network: Network) {
    network.token().await;
    let error = refusal(network.provider.call(transfer_of_what_nobody_has()).await);
    assert_eq!((error.code, error.message.as_ref()), (3, format!("execution reverted: {EXCEEDS}").as_str()));
    let data = error.as_revert_data().unwrap();
    assert_eq!(Revert::abi_decode(&data).unwrap().reason, EXCEEDS);
}

pub(crate) async fn an_account_without_money_may_call(network: Network) {
    network.token().await;
    let mint = DemoUsd::mintCall { to: NOBODY, amount: U256::from(9) };
    let call = TransactionRequest::default().with_from(NOBODY).with_to(TOKEN).with_input(mint.abi_encode());
    let answer = network.provider.call(call.clone()).await.unwrap();
    assert!(DemoUsd::mintCall::abi_decode_returns(&answer).unwrap());
    let token = DemoUsd::new(TOKEN, network.provider.clone());
    assert_eq!(token.balanceOf(NOBODY).call().await.unwrap(), U256::ZERO, "a call leaves nothing behind");

    let sends = TransactionRequest::default().with_from(NOBODY).with_to(NOBODY).with_value(U256::from(1));
    let error = refusal(network.provider.call(sends).await);
    assert!(error.message.to_lowercase().contains("insufficient funds"), "{error}");
}

pub(crate) async fn an_estimate_is_enough_and_not_much_more(network: Network) {
    let token = network.token().await;
    let mint = token.mint(NOBODY, U256::from(1000));
    let estimate = mint.estimate_gas().await.unwrap();
    let receipt = mint.gas(estimate).send().await.unwrap().get_receipt().await.unwrap();
    assert!(receipt.status());
    assert!(estimate <= receipt.gas_used * 102 / 100, "estimated {estimate}, used {}", receipt.gas_used);

    let plain = TransactionRequest::default().with_from(network.funded.address()).with_to(NOBODY);
    assert_eq!(network.provider.estimate_gas(plain).await.unwrap(), 21_000);
}

pub(crate) async fn an_estimate_of_what_reverts_tells_the_reason(network: Network) {
    network.token().await;
    let error = refusal(network.provider.estimate_gas(transfer_of_what_nobody_has()).await);
    assert_eq!(error.code, 3);
    assert!(error.message.contains(EXCEEDS), "{error}");
}

pub(crate) async fn state_overrides_hold_for_one_call_only(network: Network) {
    // PUSH1 0, SLOAD, PUSH1 0, MSTORE, PUSH1 32, PUSH1 0, RETURN: answers with slot 0.
    let code = Bytes::from_static(&[0x60, 0, 0x54, 0x60, 0, 0x52, 0x60, 32, 0x60, 0, 0xf3]);
    let word = B256::repeat_byte(0x5a);
    let account = AccountOverride::default().with_code(code).with_state_diff([(B256::ZERO, word)]);
    let overrides: AddressHashMap<_> = [(NOBODY, account)].into_iter().collect();
    let call = TransactionRequest::default().with_to(NOBODY);
    let answer = network.provider.call(call.clone()).overrides(overrides).await.unwrap();
    assert_eq!(answer, Bytes::from(word.0));
    assert_eq!(network.provider.call(call).await.unwrap(), Bytes::new());
}

pub(crate) async fn state_can_be_read_as_of_an_older_block(network: Network) {
    let token = network.token().await;
    let before = network.provider.get_block_number().await.unwrap();
    let receipt = token.mint(NOBODY, U256::from(7)).send().await.unwrap().get_receipt().await.unwrap();
    let at = async |block: BlockId| token.balanceOf(NOBODY).block(block).call().await;
    assert_eq!(at(before.into()).await.unwrap(), U256::ZERO);
    assert_eq!(at((before + 1).into()).await.unwrap(), U256::from(7));
    assert_eq!(at(receipt.block_hash.unwrap().into()).await.unwrap(), U256::from(7));
    assert_eq!(at(BlockNumberOrTag::Pending.into()).await.unwrap(), U256::from(7));
    let nonce = network.provider.get_transaction_count(network.funded.address());
    let now = network.provider.get_transaction_count(network.funded.address()).await.unwrap();
    assert_eq!(nonce.block_id(before.into()).await.unwrap() + 1, now);
    let unknown = network.provider.get_balance(NOBODY).number(before + 1000).await;
    assert!(unknown.unwrap_err().is_error_resp());
}

pub(crate) async fn blocks_are_found_by_number_tag_and_hash(network: Network) {
    network.mine().await;
    let latest = network.provider.get_block(BlockNumberOrTag::Latest.into()).await.unwrap().unwrap();
    assert_eq!(latest.header.number, 1);
    assert_eq!(network.provider.get_block(1.into()).await.unwrap().unwrap(), latest);
    assert_eq!(network.provider.get_block(latest.header.hash.into()).await.unwrap().unwrap(), latest);
    let earliest = network.provider.get_block(BlockNumberOrTag::Earliest.into()).await.unwrap().unwrap();
    assert_eq!((earliest.header.number, earliest.header.hash), (0, latest.header.parent_hash));
    let pending = network.provider.get_block(BlockNumberOrTag::Pending.into()).await.unwrap().unwrap();
    assert_eq!((pending.header.number, pending.header.parent_hash), (2, latest.header.hash));
    for tag in [BlockNumberOrTag::Safe, BlockNumberOrTag::Finalized] {
        assert!(network.provider.get_block(tag.into()).await.unwrap().is_some(), "{tag}");
    }
    assert_eq!(network.provider.get_block(99.into()).await.unwrap(), None);
    assert_eq!(network.provider.get_block(B256::repeat_byte(9).into()).await.unwrap(), None);
    assert_eq!(network.provider.get_transaction_by_hash(B256::repeat_byte(9)).await.unwrap(), None);
    assert_eq!(network.receipt(B256::repeat_byte(9)).await, None);
}
