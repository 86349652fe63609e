//! Being paid.

use std::time::Duration;

use farebox_core::{
    InvoiceNews, PaymentHash,
    ports::{InvoiceStatus, LightningNode as _, NewsCursor, NodeError, Settlements},
};
use farebox_e2e::lightning::{Payment, Regtest};
use farebox_lightning::embedded::{ControlError, EmbeddedNode, HomeError, OpenError, ask};

use super::{HOUR, WITHIN, child::Child, config, open, order, pay, ready, with_channel};

async fn told(node: &EmbeddedNode, after: Option<&NewsCursor>) -> Settlements {
    node.settlements(after, WITHIN).await.unwrap()
}

fn settled(hash: PaymentHash, received_msat: u64) -> (PaymentHash, InvoiceNews) {
    (hash, InvoiceNews::Settled { received_msat })
}

#[tokio::test]
async fn invoices_are_paid_by_lnd_and_told_once_a_cursor_across_a_restart() {
    let (regtest, dir) = (Regtest::start().await.unwrap(), tempfile::tempdir().unwrap());
    let lnd = with_channel(dir.path(), &regtest).await.unwrap();
    let node = open(dir.path(), &regtest).await.unwrap();
    let report = ready(&node).await.unwrap();

    let info = node.info().await.unwrap();
    assert_eq!((&*info.id, info.channels, info.synced), (report.node_id.as_str(), Some(1), true));
    assert_eq!(info.receivable_msat, Some(report.receivable_msat));
    let none = node.settlements(None, Duration::from_millis(10)).await.unwrap();
    assert!(none.news.is_empty() && none.cursor.is_some());

    // Odd millisatoshis, and a description that is not ASCII.
    let first = node.create_invoice(&order(21_501, HOUR)).await.unwrap();
    assert_eq!(first.amount_msat, 21_501);
    assert!(first.expires_at.since(first.created_at) == HOUR && first.bolt11.starts_with("lnbcrt215010p1"));
    assert_eq!(node.invoice_news(first.payment_hash).await.unwrap(), Some(InvoiceStatus::Open));
    assert_eq!(node.invoice_news(PaymentHash([9; 32])).await.unwrap(), None);
    let (news, paid) = tokio::join!(told(&node, none.cursor.as_ref()), pay(&lnd, &first.bolt11));
    assert_eq!(hex::decode(paid.unwrap().preimage).map(|bytes| sha256(&bytes)), Ok(first.payment_hash));
    assert_eq!(news.news, [settled(first.payment_hash, 21_501)]);
    let second = node.create_invoice(&order(1_000, HOUR)).await.unwrap();
    pay(&lnd, &second.bolt11).await.unwrap();

    // Nobody could pay what no channel can take, nor what is over.
    let too_much = node.create_invoice(&order(report.receivable_msat + 1, HOUR)).await.unwrap_err();
    assert!(matches!(&too_much, NodeError::Refused { detail, .. } if detail.contains("farebox lightning status")));
    let brief = node.create_invoice(&order(1_000, Duration::from_secs(1))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let news_of_brief = node.invoice_news(brief.payment_hash).await.unwrap();
    assert_eq!(news_of_brief, Some(InvoiceStatus::News(InvoiceNews::Expired)));

    // One process has the directory; the other can ask it.
    let held = EmbeddedNode::open(config(dir.path(), &regtest), std::sync::Arc::new(super::SystemClock)).await;
    assert!(matches!(held, Err(OpenError::Home(HomeError::Held { .. }))), "{held:?}");
    let asked = ask(dir.path(), &farebox_lightning::embedded::Command::Status).await.unwrap();
    assert!(matches!(asked, farebox_lightning::embedded::Done::Status(seen) if seen.node_id == report.node_id));

    node.stop().await;
    let stopped = ask(dir.path(), &farebox_lightning::embedded::Command::Status).await;
    assert!(matches!(stopped, Err(ControlError::NotRunning)), "{stopped:?}");
    assert!(node.info().await.unwrap_err().retryable());
    let again = open(dir.path(), &regtest).await.unwrap();
    assert_eq!(told(&again, news.cursor.as_ref()).await.news, [settled(second.payment_hash, 1_000)]);
    let all = told(&again, None).await;
    assert_eq!(all.news, [settled(first.payment_hash, 21_501), settled(second.payment_hash, 1_000)]);
    let status = again.invoice_news(first.payment_hash).await.unwrap();
    assert_eq!(status, Some(InvoiceStatus::News(InvoiceNews::Settled { received_msat: 21_501 })));
    // The same invoice is not paid twice.
    assert!(matches!(lnd.try_to_pay(&first.bolt11).await, Err(_) | Ok(Payment::Failed(_))));
}

#[tokio::test]
async fn a_settlement_is_told_although_the_process_was_killed_before_it_was_noted() {
    let (regtest, dir) = (Regtest::start().await.unwrap(), tempfile::tempdir().unwrap());
    let lnd = with_channel(dir.path(), &regtest).await.unwrap();

    // The store of news takes no writes: the payment arrives, its event is there, and cannot be written down.
    let mut child = Child::start(dir.path(), &regtest, 5_000).await.unwrap();
    let blocked = rusqlite::Connection::open(dir.path().join("news.sqlite")).unwrap();
    blocked.execute_batch("BEGIN IMMEDIATE").unwrap();
    pay(&lnd, &child.invoice().bolt11).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    child.kill_9().await.unwrap();
    let unknown: u32 = blocked.query_row("SELECT count(*) FROM settled", [], |row| row.get(0)).unwrap();
    assert_eq!(unknown, 0, "the kill came before the note");
    drop(blocked);
    let first = child.invoice().payment_hash;
    let node = open(dir.path(), &regtest).await.unwrap();
    let news = told(&node, None).await;
    assert_eq!(news.news, [settled(first, 5_000)]);
    node.stop().await;

    // The store of news is lost.
    let mut child = Child::start(dir.path(), &regtest, 7_000).await.unwrap();
    pay(&lnd, &child.invoice().bolt11).await.unwrap();
    child.kill_9().await.unwrap();
    for file in ["news.sqlite", "news.sqlite-wal", "news.sqlite-shm"] {
        std::fs::remove_file(dir.path().join(file)).unwrap();
    }
    let node = open(dir.path(), &regtest).await.unwrap();
    let mut heard = Vec::new();
    let mut cursor = news.cursor;
    while heard.len() < 2 {
        let news = told(&node, cursor.as_ref()).await;
        assert!(!news.news.is_empty(), "told of {heard:?} and no more");
        heard.extend(news.news);
        cursor = news.cursor;
    }
    assert_eq!(heard, [settled(first, 5_000), settled(child.invoice().payment_hash, 7_000)]);
}

fn sha256(bytes: &[u8]) -> PaymentHash {
    farebox_core::Preimage(bytes.try_into().unwrap()).hash()
}
