//! What is granted, and how often.

use alloy::{primitives::TxKind, sol_types::SolCall};
use farebox_core::{FeeTerms, NetworkFee, RailName, ports::Offering};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_of_a_token_pays_once() {
    let shop = Shop::new(&[]).await;
    let draft = shop.draft(shop.pay(PRICE).await);
    let payment = shop.claim(&shop.sign(&draft)).await.unwrap();
    assert_eq!(payment.proof.as_str(), format!("transfer:eip155:84532:{}:0", draft.transaction));
    assert_eq!((payment.amount.units, payment.credit), (PRICE, 0));
    // The same proof has the same outcome; another quote for the same transfer has none.
    assert_eq!(shop.claim(&shop.sign(&draft)).await.unwrap().id, payment.id);
    assert_eq!(shop.claim_code(&shop.draft(draft.transaction)).await, no(409, "already_claimed"));
    assert_eq!(shop.anvil().balance(SELLER).await, 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_of_the_native_coin_pays_once_and_what_is_over_is_credit() {
    let shop = Shop::new(&[]).await;
    let draft = shop.native_draft(shop.pay_native(10u128.pow(14) + 7).await);
    let payment = shop.claim(&shop.sign(&draft)).await.unwrap();
    assert!(payment.proof.as_str().ends_with(":native"), "{}", payment.proof);
    assert_eq!((payment.amount.units, payment.credit), (10u128.pow(14), 7));
    assert_eq!(shop.claim_code(&shop.native_draft(draft.transaction)).await, no(409, "already_claimed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_is_signed_again_is_the_same_claim() {
    let shop = Shop::new(&[]).await;
    let mut draft = shop.draft(shop.pay(PRICE).await);
    draft.expires_at = now().unix_s() - 31;
    assert_eq!(shop.claim_code(&draft).await, no(402, "payment_code_expired"));
    draft.expires_at = now().unix_s() + 60;
    let payment = shop.claim(&shop.sign(&draft)).await.unwrap();
    // Once it is in the books its time does not matter any more, but its signature does.
    draft.expires_at = now().unix_s() - 1000;
    assert_eq!(shop.claim(&shop.sign(&draft)).await.unwrap().id, payment.id);
    let thief = shop.sign_by(&draft, &Payer::random().signer);
    assert_eq!(shop.claim(&thief).await.unwrap_err(), no(402, "payment_code_expired"));
    draft.expires_at = now().unix_s() + 60;
    let thief = shop.sign_by(&draft, &Payer::random().signer);
    assert_eq!(shop.claim(&thief).await.unwrap_err(), no(402, "bad_signature"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_two_transfers_in_one_transaction_pays_once() {
    let shop = Shop::new(&[]).await;
    let batch = batch_of(&shop, PRICE, 2).await;
    let first = shop.claim(&shop.sign(&shop.draft(batch))).await.unwrap();
    let second = shop.claim(&shop.sign(&shop.draft(batch))).await.unwrap();
    assert_ne!(first.proof, second.proof);
    assert_eq!(shop.claim_code(&shop.draft(batch)).await, no(409, "already_claimed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_transfers_in_one_transaction_are_all_found() {
    let shop = Shop::new(&[]).await;
    let batch = batch_of(&shop, PRICE, 200).await;
    let paid = shop.look(&shop.sign(&shop.draft(batch)), &Unlimited).await.unwrap();
    assert_eq!(paid.arrivals.len(), 200);
    let mut proofs = std::collections::HashSet::new();
    for _ in 0..200 {
        let payment = shop.claim(&shop.sign(&shop.draft(batch))).await.unwrap();
        assert!(proofs.insert(payment.proof.clone()), "{} was granted twice", payment.proof);
    }
    assert_eq!(shop.claim_code(&shop.draft(batch)).await, no(409, "already_claimed"));
}

/// A batch contract moves `value` from the payer to the seller, so many times.
pub(crate) async fn batch_of(shop: &Shop, value: u128, times: u64) -> B256 {
    let batch = deploy(shop.anvil(), "Batch", &[]).await;
    let approve = approveCall { spender: batch, value: U256::MAX }.abi_encode();
    shop.payer.send(shop.anvil(), TxKind::Call(USDC.parse().unwrap()), 0, approve).await;
    let (token, times) = (USDC.parse().unwrap(), U256::from(times));
    let pay = payCall { token, to: seller(), value: U256::from(value), times }.abi_encode();
    shop.payer.send(shop.anvil(), TxKind::Call(batch), 0, pay).await
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_came_too_late_is_credit() {
    let shop = Shop::new(&[]).await;
    let transaction = shop.pay(PRICE + 5).await;
    let mut late = shop.draft(transaction);
    late.quote.issued_at = late.quote.issued_at.minus(Duration::from_secs(1000));
    late.quote.pay_by = now().minus(Duration::from_secs(30));
    let payment = shop.claim(&shop.sign(&late)).await.unwrap();
    assert_eq!((payment.credit, payment.reason.as_deref()), (PRICE + 5, Some("paid_too_late")));
    assert_eq!(shop.claim_code(&shop.draft(transaction)).await, no(409, "already_claimed"), "the credit has taken it");

    let transaction = shop.pay(PRICE).await;
    let mut over = shop.draft(transaction);
    over.quote.claim_by = now().minus(Duration::from_secs(1));
    let payment = shop.claim(&shop.sign(&over)).await.unwrap();
    assert_eq!((payment.credit, payment.reason.as_deref()), (PRICE, Some("quote_expired")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_says_what_the_payer_pays_beside_it_and_what_to_wait_for() {
    let shop = Shop::through(&[], str::to_owned, |config| {
        let tier = |up_to: Option<&str>, finality| farebox_evm::FinalityTier {
            up_to: up_to.map(|dollars| dollars.parse().unwrap()),
            finality,
        };
        config.confirmations = vec![tier(Some("1"), Finality::Blocks(2)), tier(None, Finality::Finalized)];
    })
    .await;
    let offers = |price: &str| shop.rail.offers(&price.parse().unwrap(), FeeTerms::default()).unwrap();
    let [usdc_offer] = &offers("$0.01")[..] else { panic!("one token is a dollar") };
    assert_eq!(
        (usdc_offer.rail, &*usdc_offer.scheme, &*usdc_offer.asset_on_wire),
        (RailName::Transfer, "transfer", USDC)
    );
    assert_eq!((usdc_offer.amount.units, usdc_offer.finality), (PRICE, Finality::Blocks(2)));
    assert_eq!(Value::Object(usdc_offer.extra.clone()), json!({"symbol": "USDC", "decimals": 6}));
    let Some(NetworkFee::OnTop(token_fee)) = usdc_offer.network_fee else { panic!("{usdc_offer:?}") };
    assert_eq!(offers("$1.01")[0].finality, Finality::Finalized);
    let [ether] = &offers("0.0001 ETH")[..] else { panic!("the native coin is taken") };
    assert_eq!((&*ether.asset_on_wire, ether.amount.units), ("native", 10u128.pow(14)));
    // Nobody knows what it is worth.
    assert_eq!(ether.finality, Finality::Finalized);
    let Some(NetworkFee::OnTop(native_fee)) = ether.network_fee else { panic!("{ether:?}") };
    let paid = shop.anvil().receipt(&json!(shop.pay(PRICE).await)).await;
    let number = |value: &Value| u128::from_str_radix(&value.as_str().unwrap()[2..], 16).unwrap();
    let spent = number(&paid["gasUsed"]) * number(&paid["effectiveGasPrice"]);
    assert!(token_fee > spent / 3 && token_fee < spent * 10, "told {token_fee}, spent {spent}");
    assert!(native_fee > 0 && native_fee < token_fee);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_wallet_claims_by_its_owners_signature() {
    let shop = Shop::new(&[]).await;
    let owner = alloy::sol_types::SolValue::abi_encode(&shop.payer.address());
    let wallet = deploy(shop.anvil(), "Wallet", &owner).await;
    shop.anvil().mint(&wallet.to_string(), 50_000).await;
    let data = transferCall { to: seller(), value: U256::from(PRICE) }.abi_encode();
    let execute = executeCall { to: USDC.parse().unwrap(), value: U256::ZERO, data: data.into() }.abi_encode();
    let transaction = shop.payer.send(shop.anvil(), TxKind::Call(wallet), 0, execute).await;
    let draft = Draft { payer: wallet, ..shop.draft(transaction) };
    let few = Few(Mutex::new(1));
    assert_eq!(told(&shop.look(&shop.sign(&draft), &few).await.unwrap_err()), no(429, "too_many_claims"));
    shop.claim(&shop.sign(&draft)).await.unwrap();
    let thief = shop.sign_by(&Draft { payer: wallet, ..shop.draft(transaction) }, &Payer::random().signer);
    assert_eq!(shop.claim(&thief).await.unwrap_err(), no(402, "bad_signature"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_without_a_relayer_takes_transfers_and_tokens_without_authorizations() {
    let world = World::new(&[]).await;
    let plain = deploy(&world.anvil, "FeeToken", &[]).await;
    let config = crate::harness::config(&world.anvil.url, |config| {
        config.relayer = None;
        config.assets[0].address = EvmAddress(plain.into_array());
        config.assets[0].symbol = "HOST".into();
    });
    let clock = Arc::new(crate::harness::WallClock);
    let chains = farebox_evm::EvmChains::connect(
        vec![config],
        world.store.clone(),
        clock.clone(),
        farebox_evm::Rates::none(clock),
    )
    .await
    .unwrap();
    assert!(chains.x402().is_none());
    let ledger = Arc::new(MemoryLedger::new(InstanceId::new("test"), Duration::from_secs(60)));
    let quoter = Arc::new(Quoter::new(vec![QuoteKey { id: 1, secret: [5; 32], since: now() }]).unwrap());
    let rail = rail(&World { chains, ..world }, &ledger, &quoter);
    let [offer] = &rail.offers(&"1 HOST".parse().unwrap(), FeeTerms::default()).unwrap()[..] else {
        panic!("one offer")
    };
    assert_eq!(offer.amount.units, 1_000_000);
}
