//! Sending, blocks, fees and time.

use alloy::consensus::proofs::calculate_transaction_root;
use alloy::consensus::{SignableTransaction as _, TxEip2930, TxLegacy};
use alloy::eips::eip1559::BaseFeeParams;
use alloy::eips::eip2718::Encodable2718 as _;
use alloy::eips::eip2930::{AccessList, AccessListItem};
use alloy::network::{TransactionBuilder as _, TxSignerSync as _};
use alloy::primitives::{Address, B256, TxKind, U256};
use alloy::providers::Provider as _;
use alloy::rpc::client::BatchRequest;
use alloy::rpc::types::{BlockNumberOrTag, TransactionRequest};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolConstructor as _;
use farebox_devchain::DemoWallet;
use serde_json::{Value, json};

use crate::harness::{CHAIN_ID, ETHER, GWEI, Network, refusal, sign, transfer};

pub(crate) async fn a_payment_is_in_a_block_when_its_receipt_is_asked_for(network: Network) {
    let to = Address::repeat_byte(0x42);
    let tx = TransactionRequest::default().with_to(to).with_value(U256::from(5 * ETHER));
    let receipt = network.provider.send_transaction(tx).await.unwrap().get_receipt().await.unwrap();

    assert!(receipt.status());
    assert_eq!((receipt.from, receipt.to), (network.funded.address(), Some(to)));
    assert_eq!((receipt.gas_used, receipt.inner.cumulative_gas_used()), (21_000, 21_000));
    assert_eq!((receipt.block_number, receipt.transaction_index), (Some(1), Some(0)));
    assert_eq!(network.provider.get_balance(to).await.unwrap(), U256::from(5 * ETHER));
    assert_eq!(network.provider.get_transaction_count(network.funded.address()).await.unwrap(), 1);

    let block = network.provider.get_block_by_hash(receipt.block_hash.unwrap()).full().await.unwrap().unwrap();
    let base_fee = u128::from(block.header.base_fee_per_gas.unwrap());
    let tx = network.provider.get_transaction_by_hash(receipt.transaction_hash).await.unwrap().unwrap();
    assert_eq!(tx.block_number, Some(1));
    let tip = alloy::consensus::Transaction::max_priority_fee_per_gas(tx.inner.inner()).unwrap();
    assert_eq!(receipt.effective_gas_price, base_fee + tip);
    assert_eq!(block.transactions.as_transactions().unwrap(), [tx]);
}

pub(crate) async fn blocks_are_linked_by_their_canonical_hashes_and_the_base_fee_follows_eip_1559(network: Network) {
    for nonce in 0..3 {
        network.send_and_wait(&sign(transfer(nonce), &network.funded)).await;
    }
    let mut parent: Option<alloy::rpc::types::Block> = None;
    for number in 0..4u64 {
        let block = network.provider.get_block(number.into()).full().await.unwrap().unwrap();
        assert_eq!(block.header.hash, block.header.inner.hash_slow(), "block {number}");
        assert_eq!(block.header.transactions_root, transactions_root(&block), "block {number}");
        if let Some(parent) = parent {
            assert_eq!(block.header.parent_hash, parent.header.hash, "block {number}");
            // anvil starts to count after its first block.
            if number > 1 {
                let expected = parent.header.next_block_base_fee(BaseFeeParams::ethereum());
                assert_eq!(block.header.base_fee_per_gas, expected, "block {number}");
            }
            assert!(block.header.timestamp >= parent.header.timestamp, "block {number}");
            assert_eq!(block.header.gas_used, 21_000, "block {number}");
        }
        parent = Some(block);
    }
}

fn transactions_root(block: &alloy::rpc::types::Block) -> B256 {
    let transactions: Vec<_> =
        block.transactions.as_transactions().unwrap().iter().map(|tx| tx.inner.inner()).collect();
    calculate_transaction_root(&transactions)
}

pub(crate) async fn a_transaction_after_a_nonce_gap_waits_until_it_is_filled(network: Network) {
    let sender = network.funded.address();
    let later = network.send_raw(&sign(transfer(1), &network.funded)).await.unwrap();
    assert_eq!(network.receipt(later).await, None);
    let waiting = network.provider.get_transaction_by_hash(later).await.unwrap().unwrap();
    assert_eq!((waiting.block_number, waiting.inner.signer()), (None, sender));
    assert_eq!(network.provider.get_transaction_count(sender).pending().await.unwrap(), 0);

    let first = network.send_raw(&sign(transfer(0), &network.funded)).await.unwrap();
    // anvil may leave a transaction waiting though its nonce is next.
    network.mine().await;
    for hash in [first, later] {
        assert!(network.receipt(hash).await.expect("is in a block").status());
    }
    assert_eq!(network.provider.get_transaction_count(sender).pending().await.unwrap(), 2);
}

pub(crate) async fn a_replacement_must_pay_more_and_then_takes_the_place(network: Network) {
    network.hold().await;
    let raw = sign(transfer(0), &network.funded);
    let original = network.send_raw(&raw).await.unwrap();
    assert_eq!(network.provider.get_transaction_count(network.funded.address()).pending().await.unwrap(), 1);
    assert_eq!(network.provider.get_transaction_count(network.funded.address()).await.unwrap(), 0);

    let again = refusal(network.send_raw(&raw).await);
    assert!(again.message.contains("already"), "{again}");

    // anvil is content with any rise; that a rise must be 10 % is tested in tests/devchain.
    let mut little = transfer(0);
    little.max_fee_per_gas -= 1;
    little.max_priority_fee_per_gas -= 1;
    let little = refusal(network.send_raw(&sign(little, &network.funded)).await);
    assert!(little.message.contains("replacement transaction underpriced"), "{little}");

    let mut double = transfer(0);
    double.max_fee_per_gas *= 2;
    double.max_priority_fee_per_gas *= 2;
    let replacement = network.send_raw(&sign(double, &network.funded)).await.unwrap();
    network.mine().await;
    assert!(network.receipt(replacement).await.unwrap().status());
    assert_eq!(network.receipt(original).await, None);
    assert_eq!(network.provider.get_transaction_by_hash(original).await.unwrap(), None);
}

pub(crate) async fn a_used_nonce_is_too_low(network: Network) {
    let raw = sign(transfer(0), &network.funded);
    network.send_and_wait(&raw).await;
    let mut other = transfer(0);
    other.value = U256::from(2);
    let error = refusal(network.send_raw(&sign(other, &network.funded)).await);
    assert!(error.message.contains("nonce too low"), "{error}");
}

pub(crate) async fn a_foreign_poor_or_gasless_transaction_is_refused(network: Network) {
    let mut foreign = transfer(0);
    foreign.chain_id = CHAIN_ID + 1;
    let mut gasless = transfer(0);
    gasless.gas_limit = 20_999;
    let mut stingy = transfer(0);
    (stingy.max_fee_per_gas, stingy.max_priority_fee_per_gas) = (1, 1);
    let mut inverted = transfer(0);
    inverted.max_priority_fee_per_gas = inverted.max_fee_per_gas + 1;
    let mut huge = transfer(0);
    huge.gas_limit = 30_000_001;
    let poor = PrivateKeySigner::random();
    for (what, raw) in [
        ("for another chain", sign(foreign, &network.funded)),
        ("less than the intrinsic gas", sign(gasless, &network.funded)),
        ("below the base fee", sign(stingy, &network.funded)),
        ("tip above the fee", sign(inverted, &network.funded)),
        ("more gas than a block", sign(huge, &network.funded)),
        ("no money", sign(transfer(0), &poor)),
        ("no transaction", b"\x02\xc0".to_vec()),
        ("nothing", Vec::new()),
    ] {
        let answer = network.send_raw(&raw).await;
        assert!(matches!(&answer, Err(error) if error.is_error_resp()), "{what}: {answer:?}");
    }
    assert_eq!(network.provider.get_transaction_count(network.funded.address()).pending().await.unwrap(), 0);
    assert_eq!(network.provider.get_block_number().await.unwrap(), 0);
}

pub(crate) async fn transactions_in_one_block_share_its_gas_and_log_counters(network: Network) {
    let token = network.token().await;
    network.hold().await;
    let mut hashes = Vec::new();
    for (nonce, units) in [(1, 100u64), (2, 200), (3, 300)] {
        let mint = token.mint(Address::repeat_byte(0x42), U256::from(units)).nonce(nonce).gas(200_000);
        hashes.push(*mint.send().await.unwrap().tx_hash());
    }
    network.mine().await;

    let (mut gas, mut logs) = (0, 0);
    let mut bloom = alloy::primitives::Bloom::ZERO;
    for (index, hash) in hashes.iter().enumerate() {
        let receipt = network.receipt(*hash).await.unwrap();
        assert!(receipt.status());
        assert_eq!(receipt.transaction_index, Some(index as u64));
        gas += receipt.gas_used;
        assert_eq!(receipt.inner.cumulative_gas_used(), gas);
        for log in receipt.inner.logs() {
            assert_eq!((log.log_index, log.transaction_index), (Some(logs), Some(index as u64)));
            logs += 1;
        }
        bloom |= *receipt.inner.logs_bloom();
    }
    let block = network.provider.get_block(BlockNumberOrTag::Latest.into()).await.unwrap().unwrap();
    assert_eq!((block.header.gas_used, logs), (gas, 6), "each mint logs Mint and Transfer");
    assert_eq!(block.header.logs_bloom, bloom);
    assert_eq!(block.transactions.as_hashes().unwrap(), hashes);
    assert_eq!(block.header.hash, block.header.inner.hash_slow());
    let receipts = network.provider.get_block_receipts(block.header.hash.into()).await.unwrap().unwrap();
    assert_eq!(receipts.iter().map(|receipt| receipt.transaction_hash).collect::<Vec<_>>(), hashes);
}

pub(crate) async fn a_synchronous_send_answers_with_the_receipt(network: Network) {
    let receipt = network.provider.send_raw_transaction_sync(&sign(transfer(0), &network.funded)).await.unwrap();
    assert!(receipt.status());
    assert_eq!(receipt.block_number, Some(1));
    assert_eq!(network.receipt(receipt.transaction_hash).await.unwrap(), receipt);

    let low = refusal(network.provider.send_raw_transaction_sync(&sign(transfer(0), &network.funded)).await);
    assert!(low.message.contains("nonce too low"), "{low}");
}

pub(crate) async fn legacy_and_access_list_transactions_are_taken(network: Network) {
    let to = TxKind::Call(Address::repeat_byte(0x42));
    let (gas_price, value) = (3 * GWEI, U256::ONE);
    let mut legacy =
        TxLegacy { chain_id: Some(CHAIN_ID), gas_price, gas_limit: 21_000, to, value, ..Default::default() };
    let signature = network.funded.sign_transaction_sync(&mut legacy).unwrap();
    let raw = legacy.into_signed(signature).encoded_2718();
    let receipt = network.send_and_wait(&raw).await;
    assert_eq!((receipt.inner.tx_type() as u8, receipt.effective_gas_price), (0, gas_price));

    let item = AccessListItem { address: Address::repeat_byte(1), storage_keys: vec![B256::ZERO] };
    let access_list = AccessList(vec![item]);
    let mut tx = TxEip2930 {
        chain_id: CHAIN_ID,
        nonce: 1,
        gas_price,
        gas_limit: 30_000,
        to,
        value,
        access_list,
        ..Default::default()
    };
    let signature = network.funded.sign_transaction_sync(&mut tx).unwrap();
    let raw = tx.into_signed(signature).encoded_2718();
    let receipt = network.send_and_wait(&raw).await;
    assert_eq!((receipt.inner.tx_type() as u8, receipt.gas_used), (1, 21_000 + 2400 + 1900));
}

pub(crate) async fn a_created_contract_has_the_address_its_receipt_names(network: Network) {
    let owner = Address::repeat_byte(0x55);
    let wallet = DemoWallet::deploy_builder(network.provider.clone(), owner);
    let receipt = wallet.send().await.unwrap().get_receipt().await.unwrap();
    let address = receipt.contract_address.unwrap();
    assert_eq!(address, network.funded.address().create(0));
    assert_eq!(receipt.to, None);
    assert_eq!(network.provider.get_code_at(address).await.unwrap(), DemoWallet::DEPLOYED_BYTECODE);
    assert_eq!(DemoWallet::new(address, network.provider.clone()).owner().call().await.unwrap(), owner);
    assert_eq!(
        network.provider.get_storage_at(address, U256::ZERO).await.unwrap(),
        U256::from_be_slice(owner.as_slice())
    );

    let args = DemoWallet::constructorCall { owner_: owner }.abi_encode();
    let create = TransactionRequest::default().with_deploy_code([DemoWallet::BYTECODE.as_ref(), &args].concat());
    assert_eq!(network.provider.call(create).await.unwrap(), DemoWallet::DEPLOYED_BYTECODE);
}

pub(crate) async fn fee_history_has_one_more_base_fee_than_blocks(network: Network) {
    for nonce in 0..4 {
        network.send_and_wait(&sign(transfer(nonce), &network.funded)).await;
    }
    // anvil notes a block's fees a moment after it told of the block.
    let mut history = network.provider.get_fee_history(3, BlockNumberOrTag::Latest, &[10.0, 50.0]).await.unwrap();
    for _ in 0..100 {
        if history.base_fee_per_gas.len() == 4 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        history = network.provider.get_fee_history(3, BlockNumberOrTag::Latest, &[10.0, 50.0]).await.unwrap();
    }
    assert_eq!((history.oldest_block, history.base_fee_per_gas.len(), history.gas_used_ratio.len()), (2, 4, 3));
    assert_eq!(history.reward.unwrap(), vec![vec![GWEI, GWEI]; 3]);
    assert!(
        history.gas_used_ratio.iter().all(|ratio| *ratio == 21_000.0 / 30_000_000.0),
        "{:?}",
        history.gas_used_ratio
    );
    for (offset, base_fee) in history.base_fee_per_gas.iter().take(3).enumerate() {
        let block = network.provider.get_block((2 + offset as u64).into()).await.unwrap().unwrap();
        assert_eq!(block.header.base_fee_per_gas.map(u128::from), Some(*base_fee));
    }
    let more = network.provider.get_fee_history(100, BlockNumberOrTag::Latest, &[]).await.unwrap();
    assert_eq!((more.oldest_block, more.base_fee_per_gas.len()), (0, 6));
}

pub(crate) async fn time_goes_forward_by_what_it_is_told(network: Network) {
    network.mine().await;
    let before = network.time_s().await;
    network.request::<Value>("evm_increaseTime", (3600,)).await.unwrap();
    network.mine().await;
    let after = network.time_s().await;
    assert!((before + 3600..before + 3660).contains(&after), "{before} to {after}");
}

pub(crate) async fn a_batch_is_answered_item_by_item_and_an_unknown_method_by_its_code(network: Network) {
    let mut batch = BatchRequest::new(network.provider.client());
    let chain_id = batch.add_call::<_, U256>("eth_chainId", &()).unwrap();
    let number = batch.add_call::<_, U256>("eth_blockNumber", &()).unwrap();
    batch.send().await.unwrap();
    assert_eq!((chain_id.await.unwrap(), number.await.unwrap()), (U256::from(CHAIN_ID), U256::ZERO));

    let requests = json!([
        {"jsonrpc": "2.0", "id": "a", "method": "net_version", "params": []},
        {"jsonrpc": "2.0", "id": 7, "method": "eth_inventTheWheel", "params": []},
        {"jsonrpc": "2.0", "id": 8, "method": "eth_getBalance", "params": ["0x12"]},
    ]);
    let answer = reqwest::Client::new().post(&network.url).json(&requests).send().await.unwrap();
    let answers: Vec<Value> = answer.json().await.unwrap();
    let by_id = |id: Value| answers.iter().find(|answer| answer["id"] == id).unwrap();
    assert_eq!(by_id(json!("a"))["result"], CHAIN_ID.to_string());
    assert_eq!(by_id(json!(7))["error"]["code"], -32601);
    assert_eq!(by_id(json!(8))["error"]["code"], -32602);
    assert_eq!(answers.len(), 3);
}
