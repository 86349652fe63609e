//! Blocks that are taken away again: revenue is reversed and comes back with its transaction, and nothing is served twice.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use alloy::{
    primitives::{B256, Bytes},
    providers::Provider,
};
use farebox_e2e::{Account, Asked, Claim, Next, Shop, ShopOptions};
use serde_json::{Value, json};

/// Far above what anything here takes, for a machine with ten other things to do.
const SOON: Duration = Duration::from_secs(30);
const WARY: ShopOptions = ShopOptions { chain: "confirmations_marked = 5", ..ShopOptions::BOTH };

/// A paid and served request, and the transaction's bytes.
struct Sold {
    shop: Shop,
    payer: Account,
    option: Asked,
    claim: Claim,
    signed: Bytes,
    hash: B256,
}

impl Sold {
    async fn for_symbol(symbol: &str) -> Self {
        Self::in_a(WARY, symbol).await
    }

    async fn in_a(options: ShopOptions, symbol: &str) -> Self {
        let shop = Shop::open_with(options).await.unwrap();
        let payer = shop.spender("payer").await.unwrap();
        let bill = shop.quote(Shop::AFTER).await.unwrap();
        let option = bill.option(symbol).unwrap();
        // Below the payment there are blocks that stay.
        shop.anvil.mine(3).await.unwrap();
        let signed = shop.anvil.sign(&payer, shop.transfer_of(&option, option.units)).await.unwrap();
        let hash = shop.anvil.include(&signed).await.unwrap();
        let claim = bill.claim(&option, hash, payer.address()).signed(&payer).await.unwrap();
        let served = shop.claim(&claim).await.unwrap();
        assert_eq!(served.status, 200, "{served:?}");
        Self { shop, payer, option, claim, signed, hash }
    }

    /// Takes the payment's block away, and waits until the books know.
    async fn reversed(&self) {
        let mined = self.shop.anvil.receipt(self.hash).await.unwrap().block_number.unwrap();
        let depth = self.shop.anvil.head().await.unwrap() + 1 - mined;
        self.shop.anvil.reorganise(depth).await.unwrap();
        self.wait_for_state("in_doubt").await;
    }

    async fn wait_for_state(&self, state: &str) -> Value {
        let hash = json!(self.hash);
        let ours = |books: &[Value]| books.iter().any(|row| row["transaction"] == hash && row["state"] == state);
        let books = self.shop.wait_for_books(SOON, ours).await.unwrap();
        books.into_iter().find(|row| row["transaction"] == hash).unwrap()
    }

    async fn outcomes(&self) -> Vec<String> {
        let log = self.shop.audit_log().await.unwrap();
        let ours = log.iter().filter(|entry| entry["transaction"] == json!(self.hash));
        ours.map(|entry| entry["outcome"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn a_payment_that_a_reorganisation_removes_is_reversed_and_comes_back_with_its_transaction() {
    for symbol in ["USDC", "ETH"] {
        let sold = Sold::for_symbol(symbol).await;
        sold.reversed().await;
        // However often it is looked at, it is told once.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(sold.outcomes().await, ["settled", "delivered", "reversed"], "{symbol}");
        // Delivered is delivered: the answer is the payer's, and there is no second one.
        let again = sold.shop.claim(&sold.claim).await.unwrap();
        assert!(again.status == 200 && again.is_replay() || again.status == 503, "{symbol}: {again:?}");
        assert!(!again.is_bill(), "{symbol}: {again:?}");
        assert_eq!(sold.shop.echo.hits(), 1);

        sold.shop.anvil.include(&sold.signed).await.unwrap();
        sold.wait_for_state("settled").await;
        assert_eq!(sold.outcomes().await, ["settled", "delivered", "reversed", "settled"], "{symbol}");
        let again = sold.shop.insist_on(&sold.claim, SOON).await.unwrap();
        assert!(again.status == 200 && again.is_replay(), "{symbol}: {again:?}");
        assert_eq!(sold.shop.audit().await.unwrap().payments.len(), 1);
    }
}

#[tokio::test]
async fn a_payer_whose_payment_was_undone_waits_longer_until_it_is_made_good() {
    // From the moment that it is undone: the next look at the books is far away.
    let seldom = ShopOptions { top: "reconciler.interval = \"5s\"", ..WARY };
    let sold = Sold::in_a(seldom, "USDC").await;
    sold.reversed().await;
    let other = sold.shop.spender("another payer").await.unwrap();
    let others = sold.shop.buy(&other, Shop::AFTER, "USDC").await.unwrap();
    assert_eq!(sold.shop.insist_on(&others, SOON).await.unwrap().status, 200);

    // The undone transaction's nonce is free again, and another one takes it.
    let next = sold.shop.buy(&sold.payer, Shop::AFTER, "USDC").await.unwrap();
    let waiting = sold.shop.claim(&next).await.unwrap();
    waiting.refuses("the marked payer", 402, "payment_pending", Next::Again);
    assert_eq!(waiting.problem()["need"], 5, "{waiting:?}");
    let runs = sold.shop.echo.hits();
    sold.shop.anvil.mine(5).await.unwrap();
    assert_eq!(sold.shop.insist_on(&next, SOON).await.unwrap().status, 200);
    assert_eq!(sold.shop.echo.hits(), runs + 1);
    // What can never come back is never revenue again.
    let row =
        sold.shop.payments().await.unwrap().into_iter().find(|row| row["transaction"] == json!(sold.hash)).unwrap();
    assert_ne!(row["state"], "settled", "{row}");
    assert!(sold.shop.verify_audit_log().await.unwrap().0);
}

#[tokio::test]
async fn a_transfer_that_moves_to_another_place_of_its_block_is_the_same_transfer() {
    let sold = Sold::for_symbol("USDC").await;
    sold.reversed().await;
    // In the new block another transfer stands before it, so that its log's number within the block is another.
    let other = sold.shop.spender("another payer").await.unwrap();
    let bill = sold.shop.quote(Shop::AFTER).await.unwrap();
    sold.shop.anvil.hold_blocks().await.unwrap();
    let first = sold.shop.transfer_of(&sold.option, 7);
    let first = alloy::network::TransactionBuilder::with_max_fee_per_gas(first, 90_000_000_000);
    let first = alloy::network::TransactionBuilder::with_max_priority_fee_per_gas(first, 80_000_000_000);
    let first = sold.shop.anvil.sign(&other, first).await.unwrap();
    let beside = sold.shop.anvil.submit(&first).await.unwrap();
    sold.shop.anvil.submit(&sold.signed).await.unwrap();
    sold.shop.anvil.mine_at_once().await.unwrap();
    let receipt = sold.shop.anvil.receipt(sold.hash).await.unwrap();
    assert_eq!(receipt.logs()[0].log_index, Some(1), "the other one was to be first");

    sold.wait_for_state("settled").await;
    let again = bill.claim(&sold.option, sold.hash, sold.payer.address()).signed(&sold.payer).await.unwrap();
    sold.shop.claim(&again).await.unwrap().refuses("by a new quote", 409, "already_claimed", Next::Nothing);
    let replay = sold.shop.insist_on(&sold.claim, SOON).await.unwrap();
    assert!(replay.is_replay(), "{replay:?}");
    assert_eq!(sold.shop.echo.hits(), 1);
    assert_eq!(sold.shop.audit_beside(&[beside]).await.unwrap().payments.len(), 1);
}

#[tokio::test]
async fn a_transaction_that_is_gone_before_it_is_claimed_buys_nothing_until_it_is_back() {
    let shop = Shop::open_with(WARY).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    let bill = shop.quote(Shop::AFTER).await.unwrap();
    let option = bill.option("USDC").unwrap();
    let signed = shop.anvil.sign(&payer, shop.transfer_of(&option, option.units)).await.unwrap();
    let hash = shop.anvil.include(&signed).await.unwrap();
    shop.anvil.reorganise(1).await.unwrap();
    let claim = bill.claim(&option, hash, payer.address()).signed(&payer).await.unwrap();
    let reply = shop.claim(&claim).await.unwrap();
    assert_eq!((reply.problem()["retry"].clone(), reply.is_bill()), (json!("same_proof"), false), "{reply:?}");
    assert_eq!(shop.echo.hits(), 0);
    shop.anvil.include(&signed).await.unwrap();
    assert_eq!(shop.insist_on(&claim, SOON).await.unwrap().status, 200);
    assert_eq!(shop.audit().await.unwrap().payments.len(), 1);
}

#[tokio::test]
async fn a_reorganisation_while_the_gateway_is_down_is_found_when_it_is_up() {
    let mut sold = Sold::for_symbol("USDC").await;
    sold.shop.farebox.kill_9().unwrap();
    let mined = sold.shop.anvil.receipt(sold.hash).await.unwrap().block_number.unwrap();
    let depth = sold.shop.anvil.head().await.unwrap() + 1 - mined;
    sold.shop.anvil.reorganise(depth).await.unwrap();
    sold.shop.farebox.restart().await.unwrap();
    sold.wait_for_state("in_doubt").await;
    sold.shop.anvil.include(&sold.signed).await.unwrap();
    sold.wait_for_state("settled").await;
    assert_eq!(sold.shop.audit().await.unwrap().payments.len(), 1);
}

#[tokio::test]
async fn payments_that_await_finality_cost_one_question_a_block_and_not_one_each() {
    const PAYMENTS: usize = 30;
    const BLOCKS: u64 = 20;
    let shop = Shop::open_with(ShopOptions::TRANSFERS).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    for _ in 0..PAYMENTS {
        let claim = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
        assert_eq!(shop.claim(&claim).await.unwrap().status, 200);
    }
    let about = ["eth_getTransactionReceipt", "eth_getTransactionByHash", "eth_getBlockByHash"];
    let asked = || -> usize { about.iter().map(|method| shop.rpc.calls(method).len()).sum() };
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, messages) = (asked(), shop.rpc.messages_total());
    let began = tokio::time::Instant::now();
    for _ in 0..BLOCKS {
        shop.anvil.mine(1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let (asked, messages) = (asked() - before, shop.rpc.messages_total() - messages);
    assert_eq!(asked, 0, "payments were asked for one by one");
    // The follower also asks where there is no new block, ten times a second in this shop.
    let most = BLOCKS as usize + began.elapsed().as_millis() as usize / 100 + 10;
    assert!(messages <= most, "{messages} messages in {:?}, at most {most} expected", began.elapsed());
    let head = shop.anvil.provider().get_block_number().await.unwrap();
    assert!(head >= BLOCKS);
}
