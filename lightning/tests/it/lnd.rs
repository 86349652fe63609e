//! Against lnd.

use std::time::Duration;

use farebox_core::{
    BitcoinNetwork, InvoiceNews, PaymentHash, Preimage,
    ports::{InvoiceStatus, LightningNode, NodeError, Outgoing, PayOrder, PayOutcome},
};
use farebox_e2e::lightning::{CHANNEL_SAT, InvoiceState, LightningPair, Lnd, Macaroon};

use crate::{
    server::Proxy,
    support::{LONG, as_invoice, hashes, lnd, lnd_at, order, paid, settled, to_pay},
};

const NOW: Duration = Duration::from_millis(300);

#[tokio::test]
async fn settlements_are_told_from_the_first_on_and_none_is_lost_by_a_restart_of_either_side() {
    let LightningPair { mut seller, payer, regtest } = LightningPair::start().await.unwrap();
    let shop = lnd(&seller, Macaroon::Invoice).node;
    let wallet = lnd(&payer, Macaroon::Admin).wallet;

    let nothing = shop.settlements(None, NOW).await.unwrap();
    assert_eq!(nothing.news, []);

    // The very first settlement of a node is waited for, then the second, over one subscription.
    let mut cursor = nothing.cursor;
    let mut all = Vec::new();
    for amount_msat in [1_000, 2_500, 3_001] {
        let invoice = shop.create_invoice(&order(amount_msat)).await.unwrap();
        assert_eq!(invoice.amount_msat, amount_msat);
        assert_eq!(invoice.expires_at.since(invoice.created_at), Duration::from_secs(600));
        assert_eq!(shop.invoice_news(invoice.payment_hash).await.unwrap(), Some(InvoiceStatus::Open));
        let wish = to_pay(&invoice);
        let (told, outcome) = tokio::join!(next(&*shop, cursor.as_ref()), wallet.pay(&wish));
        paid(outcome, invoice.payment_hash);
        assert_eq!(told.news, [(invoice.payment_hash, settled(amount_msat))]);
        let status = shop.invoice_news(invoice.payment_hash).await.unwrap();
        assert_eq!(status, Some(InvoiceStatus::News(settled(amount_msat))));
        cursor = told.cursor;
        all.push(invoice.payment_hash);
    }

    // While it waits, lnd dies: that is an error and not silence. What is paid while the gateway is away is told when it is back.
    let (told, ()) = tokio::join!(shop.settlements(cursor.as_ref(), LONG), async {
        tokio::time::sleep(NOW).await;
        seller.kill_9().unwrap();
    });
    assert!(matches!(told, Err(NodeError::Unavailable { .. })), "{told:?}");
    let down = shop.create_invoice(&order(1_000)).await;
    assert!(matches!(down, Err(NodeError::Unavailable { .. })), "{down:?}");
    seller.restart().await.unwrap();
    payer.wait_for_way_to(seller.node_id()).await.unwrap();
    for amount_msat in [4_000, 5_000] {
        let invoice = shop.create_invoice(&order(amount_msat)).await.unwrap();
        paid(wallet.pay(&to_pay(&invoice)).await, invoice.payment_hash);
        all.push(invoice.payment_hash);
    }
    let again = lnd(&seller, Macaroon::Invoice).node;
    let mut told = Vec::new();
    while told.len() < 2 {
        let more = next(&*again, cursor.as_ref()).await;
        told.extend(hashes(&more));
        cursor = more.cursor;
    }
    assert_eq!(told, all[3..]);

    // And all of them to one who has no cursor, the first included.
    let mut from_start = Vec::new();
    let mut cursor = None;
    while !all.iter().all(|hash| from_start.contains(hash)) {
        let more = next(&*again, cursor.as_ref()).await;
        from_start.extend(hashes(&more));
        cursor = more.cursor;
    }
    drop(regtest);
}

#[tokio::test]
async fn what_becomes_of_an_invoice_is_told_in_the_words_of_the_books() {
    let LightningPair { seller, payer, regtest } = LightningPair::start().await.unwrap();
    let shop = lnd(&seller, Macaroon::Invoice).node;
    let news = async |hash: &str| shop.invoice_news(PaymentHash::from_hex(hash).unwrap()).await.unwrap();

    assert_eq!(news(&"ab".repeat(32)).await, None);

    let hold = seller.hold_invoice(7_000, [7; 32]).await.unwrap().invoice;
    let wallet = lnd(&payer, Macaroon::Admin).wallet;
    let invoice = as_invoice(&hold, 7_000);
    // The payer gives up waiting; the payment goes on.
    let outcome = wallet.pay(&PayOrder { timeout: Duration::from_secs(1), ..to_pay(&invoice) }).await;
    assert!(matches!(outcome, PayOutcome::Unknown { .. }), "{outcome:?}");
    seller.wait_for_invoice(&hold.payment_hash, InvoiceState::Accepted).await.unwrap();
    assert_eq!(news(&hold.payment_hash).await, Some(InvoiceStatus::News(InvoiceNews::Held)));
    assert_eq!(wallet.outgoing(invoice.payment_hash).await.unwrap(), Outgoing::InFlight);
    let again = wallet.pay(&PayOrder { timeout: Duration::from_secs(1), ..to_pay(&invoice) }).await;
    assert!(matches!(again, PayOutcome::Unknown { .. }), "{again:?}");
    seller.settle(&Preimage([7; 32]).reveal()).await.unwrap();
    seller.wait_for_invoice(&hold.payment_hash, InvoiceState::Settled).await.unwrap();
    assert_eq!(news(&hold.payment_hash).await, Some(InvoiceStatus::News(settled(7_000))));
    let outcome = wallet.pay(&to_pay(&invoice)).await;
    assert_eq!(paid(outcome, invoice.payment_hash), Preimage([7; 32]));

    let hold = seller.hold_invoice(8_000, [8; 32]).await.unwrap().invoice;
    let invoice = as_invoice(&hold, 8_000);
    let wish = to_pay(&invoice);
    let (outcome, ()) = tokio::join!(wallet.pay(&wish), async {
        seller.wait_for_invoice(&hold.payment_hash, InvoiceState::Accepted).await.unwrap();
        seller.cancel(&hold.payment_hash).await.unwrap();
    });
    assert!(matches!(outcome, PayOutcome::Failed { code: "refused", .. }), "{outcome:?}");
    assert_eq!(wallet.outgoing(invoice.payment_hash).await.unwrap(), Outgoing::Failed);
    assert_eq!(news(&hold.payment_hash).await, Some(InvoiceStatus::News(InvoiceNews::Cancelled)));

    let short = seller.invoice(1_000, Duration::from_secs(1)).await.unwrap();
    seller.wait_for_invoice(&short.payment_hash, InvoiceState::Canceled).await.unwrap();
    assert_eq!(news(&short.payment_hash).await, Some(InvoiceStatus::News(InvoiceNews::Expired)));
    let late = wallet.pay(&to_pay(&as_invoice(&short, 1_000))).await;
    assert!(matches!(late, PayOutcome::Failed { code: "invoice_expired", .. }), "{late:?}");
    assert_eq!(wallet.outgoing(as_invoice(&short, 1_000).payment_hash).await.unwrap(), Outgoing::Never);
    drop(regtest);
}

#[tokio::test]
async fn an_invoice_is_paid_once_even_when_every_answer_is_lost() {
    let LightningPair { seller, payer, regtest } = LightningPair::start().await.unwrap();
    let shop = lnd(&seller, Macaroon::Invoice).node;
    let proxy = Proxy::before(&payer.rest_url()).await;
    let wallet = lnd_at(&proxy.url(), &payer, Macaroon::Admin).wallet;
    let before = seller.channel_sat().await.unwrap();

    let invoice = shop.create_invoice(&order(50_000_000)).await.unwrap();
    // So that there is a connection through which the question can go.
    wallet.network().await.unwrap();
    proxy.swallow_answers();
    let outcome = wallet.pay(&PayOrder { timeout: Duration::from_secs(1), ..to_pay(&invoice) }).await;
    assert!(matches!(outcome, PayOutcome::Unknown { .. }), "{outcome:?}");
    assert!(matches!(wallet.outgoing(invoice.payment_hash).await, Err(NodeError::Unavailable { .. })));
    proxy.heal();

    let Outgoing::Paid(first) = wallet.outgoing(invoice.payment_hash).await.unwrap() else { panic!("it was paid") };
    assert_eq!(first.fee_msat, Some(0));
    let second = paid(wallet.pay(&to_pay(&invoice)).await, invoice.payment_hash);
    assert_eq!(first.preimage, Some(second));
    assert_eq!(seller.channel_sat().await.unwrap(), before + 50_000);

    // The question never arrives: also not known, and never paid.
    let invoice = shop.create_invoice(&order(1_000_000)).await.unwrap();
    proxy.cut_off();
    let outcome = wallet.pay(&to_pay(&invoice)).await;
    assert!(matches!(outcome, PayOutcome::Unknown { .. }), "{outcome:?}");
    proxy.heal();
    assert_eq!(wallet.outgoing(invoice.payment_hash).await.unwrap(), Outgoing::Never);
    drop(regtest);
}

#[tokio::test]
async fn what_cannot_be_paid_fails_with_its_reason() {
    let LightningPair { seller, payer, regtest } = LightningPair::start().await.unwrap();
    let shop = lnd(&seller, Macaroon::Invoice).node;
    let wallet = lnd(&payer, Macaroon::Admin).wallet;

    let spendable = wallet.spendable_msat().await.unwrap();
    assert!((1..CHANNEL_SAT * 1000).contains(&spendable), "{spendable}");
    assert_eq!(wallet.network().await.unwrap(), Some(BitcoinNetwork::Regtest));

    let dear = shop.create_invoice(&order(spendable + 1_000_000)).await.unwrap();
    let outcome = wallet.pay(&to_pay(&dear)).await;
    assert!(matches!(outcome, PayOutcome::Failed { code: "insufficient_balance", .. }), "{outcome:?}");

    let stranger = Lnd::start(&regtest, "stranger").await.unwrap();
    let far = lnd(&stranger, Macaroon::Invoice).node.create_invoice(&order(1_000)).await.unwrap();
    let outcome = wallet.pay(&to_pay(&far)).await;
    assert!(matches!(outcome, PayOutcome::Failed { code: "no_route", .. }), "{outcome:?}");

    let own = lnd(&payer, Macaroon::Admin).node.create_invoice(&order(1_000)).await.unwrap();
    let outcome = wallet.pay(&to_pay(&own)).await;
    assert!(matches!(outcome, PayOutcome::Failed { code: "refused", .. }), "{outcome:?}");
    assert_eq!(wallet.outgoing(own.payment_hash).await.unwrap(), Outgoing::Never);
}

#[tokio::test]
async fn a_node_says_who_it_is_as_far_as_its_macaroon_allows() {
    let LightningPair { seller, regtest, .. } = LightningPair::start().await.unwrap();
    let full = lnd(&seller, Macaroon::Readonly).node.info().await.unwrap();
    assert_eq!(&*full.id, seller.node_id());
    assert_eq!((&*full.alias, full.network, full.synced), ("seller", Some(BitcoinNetwork::Regtest), true));
    assert_eq!(full.channels, Some(1));
    // Half of the channel, less the payer's reserve of a hundredth and its commitment fee.
    let receivable_sat = full.receivable_msat.unwrap() / 1000;
    assert!((CHANNEL_SAT * 45 / 100..CHANNEL_SAT / 2).contains(&receivable_sat), "{receivable_sat}");

    let least = lnd(&seller, Macaroon::Invoice).node;
    let info = least.info().await.unwrap();
    assert_eq!((&*info.id, info.network, info.receivable_msat), (least.label(), None, None));

    let refused = lnd(&seller, Macaroon::Readonly).node.create_invoice(&order(1_000)).await;
    assert!(matches!(refused, Err(NodeError::Refused { .. })), "{refused:?}");
    drop(regtest);
}

/// The next settlements, however long the node needs to tell of them.
async fn next(
    node: &dyn LightningNode,
    cursor: Option<&farebox_core::ports::NewsCursor>,
) -> farebox_core::ports::Settlements {
    for _ in 0..20 {
        let told = node.settlements(cursor, Duration::from_secs(1)).await.unwrap();
        if !told.news.is_empty() {
            return told;
        }
    }
    panic!("no settlement after {cursor:?} in 20 s")
}
