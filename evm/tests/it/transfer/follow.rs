//! The end of the chain, followed.

use std::sync::atomic::Ordering;

use farebox_core::BlockRef;

use super::*;
use crate::proxy::Fault;

/// The follower answers a question of a moment ago from memory.
const A_MOMENT: Duration = Duration::from_millis(250);

async fn window(shop: &Shop) -> Vec<BlockRef> {
    tokio::time::sleep(A_MOMENT).await;
    let mut windows = shop.rail.windows().await;
    assert!(windows.len() <= 1, "one chain: {windows:?}");
    windows.pop().map(|window| window.blocks).unwrap_or_default()
}

async fn head(anvil: &Anvil) -> BlockRef {
    let head = block(anvil, "latest").await;
    let text = |name: &str| head[name].as_str().unwrap().to_owned();
    let number = u64::from_str_radix(&text("number")[2..], 16).unwrap();
    BlockRef { number, hash: text("hash").parse::<B256>().unwrap().0 }
}

fn is_gapless(blocks: &[BlockRef]) -> bool {
    blocks.windows(2).all(|pair| pair[1].number == pair[0].number + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_block_is_one_question_and_a_gap_is_filled() {
    let (proxy, shop) = Shop::proxied(&[], |config| config.limits.watch_depth = 10).await;
    shop.anvil().rpc("anvil_mine", json!(["0x20"])).await;
    let first = window(&shop).await;
    assert_eq!((first.len(), first.last()), (11, Some(&head(shop.anvil()).await)));
    for _ in 0..3 {
        shop.anvil().rpc("anvil_mine", json!(["0x1"])).await;
        let before = proxy.requests.load(Ordering::SeqCst);
        let blocks = window(&shop).await;
        assert_eq!(proxy.requests.load(Ordering::SeqCst) - before, 1, "one block, one question");
        assert_eq!((blocks.len(), blocks.last()), (11, Some(&head(shop.anvil()).await)));
        assert!(is_gapless(&blocks));
    }
    shop.anvil().rpc("anvil_mine", json!(["0x5"])).await;
    let before = proxy.requests.load(Ordering::SeqCst);
    let blocks = window(&shop).await;
    assert_eq!(proxy.requests.load(Ordering::SeqCst) - before, 2, "the head, and what lies between in one batch");
    assert!(is_gapless(&blocks) && blocks.last() == Some(&head(shop.anvil()).await));
    // Many who ask at once ask once.
    tokio::time::sleep(A_MOMENT).await;
    let before = proxy.requests.load(Ordering::SeqCst);
    futures_util::future::join_all((0..100).map(|_| shop.rail.windows())).await;
    assert_eq!(proxy.requests.load(Ordering::SeqCst) - before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_is_followed_and_a_lagging_node_is_none() {
    let (proxy, shop) = Shop::proxied(&[], |config| config.limits.watch_depth = 10).await;
    shop.anvil().rpc("anvil_mine", json!(["0x20"])).await;
    let before = window(&shop).await;
    let lagging = before[before.len() - 4].number;
    proxy.set(Fault::Lag(lagging));
    assert_eq!(window(&shop).await, before, "a lower head is no reorganisation");
    proxy.set(None);
    shop.anvil().rpc("anvil_reorg", json!([3, []])).await;
    let after = window(&shop).await;
    let fork = after.len() - 3;
    assert_eq!(after[..fork], before[..fork]);
    assert!(
        after[fork..].iter().zip(&before[fork..]).all(|(new, old)| new.number == old.number && new.hash != old.hash)
    );
    assert!(is_gapless(&after) && after.last() == Some(&head(shop.anvil()).await));
    proxy.set(Fault::Down);
    assert_eq!(window(&shop).await, vec![], "a head that could not be read is left out");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_that_tells_of_another_branch_is_not_believed() {
    use crate::proxy::Proxy;
    let mut liar = None;
    let shop = Shop::through(&[], str::to_owned, |config| {
        let (proxy, url) = Proxy::start(&config.rpc[0].url.to_string());
        liar = Some(proxy);
        config.rpc.insert(0, farebox_evm::RpcUrl::parse(&url).unwrap().into());
        config.limits.watch_depth = 10;
    })
    .await;
    let liar = liar.unwrap();
    shop.anvil().rpc("anvil_mine", json!(["0x20"])).await;
    let before = window(&shop).await;
    let forged = json!(B256::repeat_byte(7));
    liar.set(Fault::result("eth_getBlockByNumber", move |found| found["hash"] = forged.clone()));
    let told = window(&shop).await;
    assert!(told.is_empty() || told == before, "the sources disagree, so nothing new is believed: {told:?}");
    liar.set(None);
    assert_eq!(window(&shop).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_whose_payments_wait_for_finalized_is_watched_down_to_it() {
    let shop = Shop::through(&["--slots-in-an-epoch", "8"], str::to_owned, |config| {
        config.limits.watch_depth = 2;
        config.marked_finality = Finality::Finalized;
    })
    .await;
    shop.anvil().rpc("anvil_mine", json!(["0x40"])).await;
    let finalized = block(shop.anvil(), "finalized").await["number"].as_str().unwrap().to_owned();
    let blocks = window(&shop).await;
    assert_eq!(format!("{:#x}", blocks[0].number), finalized);
    assert!(is_gapless(&blocks) && blocks.len() > 3);
}
