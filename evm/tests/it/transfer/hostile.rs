//! What a payer may try to be served for nothing.

use alloy::{primitives::TxKind, sol_types::SolCall};
use farebox_core::{PaymentState, ports::Settlement};
use farebox_evm::{ConnectError, EvmChains, FinalityTier, Quorum, Rates, RpcUrl};

use super::*;
use crate::{
    harness::{WallClock, config, in_doubt, payment, submit_call, transaction_of},
    proxy::{Fault, Proxy},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_our_relayer_sends_is_claimed_from_before_it_is_broadcast() {
    let shop = Shop::new(&[]).await;
    let claimed = shop.world.claimed().await;
    shop.anvil().rpc("evm_setAutomine", json!([false])).await;
    let settling = tokio::time::timeout(Duration::from_millis(500), shop.world.settle(&claimed)).await;
    assert!(settling.is_err(), "nothing is mined yet: {settling:?}");
    let stored = shop.world.store.of(claimed.id)[0].hash.to_string();
    let draft = shop.draft(stored.parse().unwrap());
    assert_eq!(shop.claim_code(&draft).await, no(409, "already_claimed"), "it waits");
    shop.anvil().rpc("evm_setAutomine", json!([true])).await;
    shop.anvil().rpc("evm_mine", json!([])).await;
    assert_eq!(transaction_of(&shop.world.resolved(&in_doubt(&claimed, &shop.world.store)).await), stored);
    assert_eq!(shop.claim_code(&draft).await, no(409, "already_claimed"), "it is mined");
    // Stored and not broadcast: no node knows it, and it is claimed.
    let unsent = B256::repeat_byte(0x55);
    let stored = shop.world.store.rows.lock()[0].clone();
    let row = farebox_core::StoredTransaction { hash: farebox_core::TransactionId::new(unsent.to_string()), ..stored };
    shop.world.store.rows.lock().push(row);
    assert_eq!(shop.claim_code(&shop.draft(unsent)).await, no(409, "already_claimed"), "it is stored");
    // Books that lost it: the sender alone gives it away.
    shop.world.store.rows.lock().clear();
    assert_eq!(shop.claim_code(&draft).await, no(409, "already_claimed"), "our relayer sent it");
    assert_eq!(shop.anvil().balance(SELLER).await, 10_000);
}

/// The harness's relayer, in hands that send what they like.
fn relayer() -> Payer {
    let key = hex::decode(&crate::harness::RELAYER[2..]).unwrap();
    Payer::new(key.as_slice().try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_relayer_sends_is_no_transfer_waiting_or_mined() {
    let shop = Shop::new(&[]).await;
    let usdc_contract = TxKind::Call(USDC.parse().unwrap());
    let relayer = relayer();
    let approve = approveCall { spender: relayer.address(), value: U256::MAX }.abi_encode();
    shop.payer.send(shop.anvil(), usdc_contract, 0, approve).await;
    shop.anvil().rpc("evm_setAutomine", json!([false])).await;
    let take = transferFromCall { from: shop.payer.address(), to: seller(), value: U256::from(PRICE) }.abi_encode();
    let (transaction, _) = relayer.broadcast(shop.anvil(), usdc_contract, 0, take).await;
    assert_eq!(shop.claim_code(&shop.draft(transaction)).await, no(409, "already_claimed"), "it waits");
    shop.anvil().rpc("evm_mine", json!([])).await;
    assert_eq!(shop.anvil().balance(SELLER).await, 10_000);
    assert_eq!(shop.claim_code(&shop.draft(transaction)).await, no(409, "already_claimed"), "it is mined");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorization_that_the_payer_submits_is_no_transfer() {
    let shop = Shop::new(&[]).await;
    let credential = shop.world.credential().await;
    let usdc_contract = TxKind::Call(USDC.parse().unwrap());
    let transaction = shop.payer.send(shop.anvil(), usdc_contract, 0, submit_call(&credential)).await;
    assert_eq!(shop.anvil().balance(SELLER).await, 10_000);
    assert_eq!(shop.claim_code(&shop.draft(transaction)).await, no(409, "already_claimed"));
    // As an x402 payment that was claimed before it is worth what it moved.
    let claimed = payment(&shop.world.check(&credential));
    let claimed = Payment { state: PaymentState::Settling, ..claimed };
    assert_eq!(transaction_of(&shop.world.settle(&claimed).await), transaction.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_to_oneself_or_by_the_relayer_pays_nobody() {
    let shop = Shop::new(&[]).await;
    let transaction = shop.pay(PRICE).await;
    let mut own = shop.draft(transaction);
    own.pay_to = EvmAddress(shop.payer.address().into_array());
    own.quote.options[0].pay_to = own.pay_to;
    assert_eq!(shop.claim_code(&own).await, no(402, "wrong_payer"));
    let relayer = relayer();
    let draft = Draft { payer: relayer.address(), ..shop.draft(transaction) };
    assert_eq!(shop.claim(&shop.sign_by(&draft, &relayer.signer)).await.unwrap_err(), no(402, "wrong_payer"));
    let mut nothing = shop.draft(transaction);
    (nothing.amount, nothing.quote.options[0].units) = (0, 0);
    assert_eq!(shop.claim_code(&nothing).await, no(402, "terms_mismatch"));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_another_contract_are_no_transfer() {
    let shop = Shop::new(&[]).await;
    let liar = deploy(shop.anvil(), "Liar", &[]).await;
    let lie = lieCall { from: shop.payer.address(), to: seller(), value: U256::from(PRICE) }.abi_encode();
    let transaction = shop.payer.send(shop.anvil(), TxKind::Call(liar), 0, lie).await;
    assert_eq!(shop.claim_code(&shop.draft(transaction)).await, no(402, "wrong_asset"));
    assert_eq!(shop.claim_code(&shop.native_draft(transaction)).await, no(402, "wrong_asset"));
}

#[tokio::test(flavor = "multi_thread")]
async fn coins_that_a_contract_sends_on_are_no_transfer() {
    let shop = Shop::new(&[]).await;
    let owner = alloy::sol_types::SolValue::abi_encode(&shop.payer.address());
    let wallet = deploy(shop.anvil(), "Wallet", &owner).await;
    let wei = 10u128.pow(14);
    let execute = executeCall { to: seller(), value: U256::from(wei), data: Bytes::new() }.abi_encode();
    let transaction = shop.payer.send(shop.anvil(), TxKind::Call(wallet), wei, execute).await;
    let balance = shop.anvil().rpc("eth_getBalance", json!([SELLER, "latest"])).await;
    assert_eq!(balance, json!("0x5af3107a4000"), "it did arrive");
    assert_eq!(shop.claim_code(&shop.native_draft(transaction)).await, no(402, "wrong_recipient"));
    let by_wallet = Draft { payer: wallet, ..shop.native_draft(transaction) };
    assert_eq!(shop.claim_code(&by_wallet).await, no(402, "wrong_recipient"));
}

/// A shop that takes the hostile token at `token` by its own symbol.
async fn taking(shop: Shop, token: Address) -> Shop {
    let config = config(&shop.anvil().url, |config| {
        config.relayer = None;
        config.assets[0].address = EvmAddress(token.into_array());
    });
    let Shop { world, ledger, quoter, payer, .. } = shop;
    let chains =
        EvmChains::connect(vec![config], world.store.clone(), Arc::new(WallClock), Rates::none(Arc::new(WallClock)))
            .await
            .unwrap();
    let world = World { chains, ..world };
    let rail = rail(&world, &ledger, &quoter);
    Shop { world, rail, ledger, quoter, payer }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_keeps_a_fee_or_says_no_in_silence_pays_what_it_logged() {
    for (name, expected) in [("FeeToken", "underpaid"), ("SilentToken", "wrong_recipient")] {
        let shop = Shop::new(&[]).await;
        let token = deploy(shop.anvil(), name, &[]).await;
        let shop = taking(shop, token).await;
        let mint = mintCall { to: shop.payer.address(), value: U256::from(PRICE) }.abi_encode();
        shop.payer.send(shop.anvil(), TxKind::Call(token), 0, mint).await;
        let data = transferCall { to: seller(), value: U256::from(PRICE) }.abi_encode();
        let transaction = shop.payer.send(shop.anvil(), TxKind::Call(token), 0, data).await;
        let mut draft = shop.draft(transaction);
        draft.asset = AssetId::erc20(network(), EvmAddress(token.into_array()));
        draft.quote.options[0].asset = draft.asset.clone();
        assert_eq!(shop.claim_code(&draft).await, no(402, expected), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_does_not_tell_its_decimals_is_not_taken_into_service() {
    let anvil = Anvil::start(&[]).await;
    let token = deploy(&anvil, "NoDecimalsToken", &[]).await;
    let config = config(&anvil.url, |config| {
        config.relayer = None;
        config.assets[0].address = EvmAddress(token.into_array());
    });
    let store = Arc::new(crate::harness::Store::default());
    let error = EvmChains::connect(vec![config], store, Arc::new(WallClock), Rates::none(Arc::new(WallClock)))
        .await
        .unwrap_err();
    assert!(matches!(&error, ConnectError::Token { problem, .. } if problem.contains("decimals")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_that_fails_burns_or_mumbles_on_a_signature_has_not_signed() {
    let shop = Shop::new(&[]).await;
    let owner = alloy::sol_types::SolValue::abi_encode(&shop.payer.address());
    let transaction = shop.pay(PRICE).await;
    for name in ["RevertingWallet", "BurningWallet", "ShortWallet"] {
        let wallet = deploy(shop.anvil(), name, &owner).await;
        let draft = Draft { payer: wallet, ..shop.draft(transaction) };
        assert_eq!(shop.claim_code(&draft).await, no(402, "bad_signature"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_claims_at_once_are_granted_once() {
    let shop = Arc::new(Shop::new(&[]).await);
    let transaction = shop.pay(PRICE).await;
    let claims = (0..100).map(|_| {
        let shop = shop.clone();
        tokio::spawn(async move { shop.claim(&shop.sign(&shop.draft(transaction))).await })
    });
    let mut granted = 0;
    for claim in futures_util::future::join_all(claims).await {
        match claim.unwrap() {
            Ok(_) => granted += 1,
            Err(told) => assert_eq!(told, no(409, "already_claimed")),
        }
    }
    assert_eq!((granted, shop.ledger.payments().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn books_that_do_not_answer_are_no_verdict() {
    let shop = Shop::new(&[]).await;
    let draft = shop.native_draft(shop.pay_native(10u128.pow(14)).await);
    let credential = shop.sign(&draft);
    shop.ledger.plan(0, farebox_testkit::Fault::FailBefore);
    assert_eq!(told(&shop.look(&credential, &Unlimited).await.unwrap_err()), no(503, "payment_unverifiable"));
    shop.look(&credential, &Unlimited).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_nothing_to_settle() {
    let shop = Shop::new(&[]).await;
    let payment = shop.claim(&shop.sign(&shop.draft(shop.pay(PRICE).await))).await.unwrap();
    let transaction = payment.transaction.clone();
    let settled = shop.rail.settle(&farebox_core::Permit::granted(payment)).await;
    assert!(matches!(&settled, Settlement::InDoubt { transaction: told, .. } if *told == transaction), "{settled:?}");
}

/// A shop with three sources of which the first is in our hands, and the quorum of two for what is worth more than so much.
async fn with_a_liar(above: &str) -> (Arc<Proxy>, Shop) {
    let mut liar = None;
    let shop = Shop::through(&[], str::to_owned, |config| {
        let anvil = config.rpc[0].url.to_string();
        for place in 0..2 {
            let (proxy, url) = Proxy::start(&anvil);
            config.rpc.insert(place, RpcUrl::parse(&url).unwrap().into());
            liar.get_or_insert(proxy);
        }
        config.quorum = Some(Quorum { agree: 2, above: above.parse().unwrap() });
    })
    .await;
    (liar.unwrap(), shop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_invents_a_payment_is_outvoted_where_it_matters() {
    // For less than the bound one source is believed, and this lie works: that is the seller's choice.
    assert!(invented("1").await.is_ok());
    let (status, code) = invented("0.005").await.unwrap_err();
    assert!(
        (status, &*code) == (402, "payment_reverted") || (status, &*code) == (503, "payment_unverifiable"),
        "{status} {code}"
    );
}

async fn invented(above: &str) -> Result<Payment, (u16, String)> {
    let (liar, shop) = with_a_liar(above).await;
    let data = transferCall { to: seller(), value: U256::from(10u128.pow(12)) }.abi_encode();
    let reverted = shop.payer.send(shop.anvil(), TxKind::Call(USDC.parse().unwrap()), 0, data).await;
    let good = shop.anvil().receipt(&json!(shop.pay(PRICE).await)).await;
    liar.set(Fault::result("eth_getTransactionReceipt", move |found| {
        found["status"] = json!("0x1");
        found["logs"] = good["logs"].clone();
        for log in found["logs"].as_array_mut().unwrap() {
            log["transactionHash"] = json!(reverted);
        }
    }));
    shop.claim(&shop.sign(&shop.draft(reverted))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hides_a_payment_or_its_block_is_outvoted() {
    let (liar, shop) = with_a_liar("0.005").await;
    let forged = json!(B256::repeat_byte(7));
    let hidden = |method| Fault::result(method, |found| *found = Value::Null);
    let faults = [
        hidden("eth_getTransactionReceipt"),
        hidden("eth_getTransactionByHash"),
        Fault::result("eth_getBlockByNumber", move |found| found["hash"] = forged.clone()),
    ];
    for fault in faults {
        liar.set(fault.clone());
        let draft = shop.draft(shop.pay(PRICE).await);
        match shop.claim(&shop.sign(&draft)).await {
            Ok(payment) => assert_eq!(payment.amount.units, PRICE),
            Err(told) => assert_eq!(told, no(503, "payment_unverifiable"), "{fault:?}"),
        }
    }
    liar.set(Fault::Down);
    shop.claim(&shop.sign(&shop.draft(shop.pay(PRICE).await))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_counts_on_the_terms_of_its_own_worth() {
    let tier = |up_to: Option<&str>, blocks| FinalityTier {
        up_to: up_to.map(|bound| bound.parse().unwrap()),
        finality: Finality::Blocks(blocks),
    };
    let shop = Shop::through(&[], str::to_owned, |config| {
        config.confirmations = vec![tier(Some("1"), 1), tier(None, 3)];
    })
    .await;
    // A bill over a cent waits for one block, and ninety dollars of credit for three.
    let dear = shop.sign(&shop.draft(shop.pay(90_000_000).await));
    assert_eq!(told(&shop.look(&dear, &Unlimited).await.unwrap_err()), no(402, "payment_pending"));
    shop.anvil().rpc("anvil_mine", json!(["0x2"])).await;
    assert_eq!(shop.look(&dear, &Unlimited).await.unwrap().arrivals[0].units, 90_000_000);
    // A little more than billed is worth no more trouble.
    shop.claim(&shop.sign(&shop.draft(shop.pay(PRICE + 1).await))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_invents_credit_on_a_small_bill_is_outvoted() {
    for native in [false, true] {
        let (liar, shop) = with_a_liar("1").await;
        let trillion = U256::from(10u128.pow(30));
        let draft = if native {
            liar.set(Fault::result("eth_getTransactionByHash", move |found| found["value"] = json!(trillion)));
            shop.native_draft(shop.pay_native(10u128.pow(14)).await)
        } else {
            liar.set(Fault::result("eth_getTransactionReceipt", move |found| {
                found["logs"][0]["data"] = json!(B256::from(trillion));
            }));
            shop.draft(shop.pay(PRICE).await)
        };
        // Two sources that agree, or none that can be believed.
        match shop.claim(&shop.sign(&draft)).await {
            Ok(payment) => assert_eq!(payment.credit, 0),
            Err(told) => assert_eq!(told, no(503, "payment_unverifiable")),
        }
    }
}
