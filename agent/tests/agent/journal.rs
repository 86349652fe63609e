//! Restarts, crashes, and many agents with one journal.

use std::{
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use farebox_agent::{Charge, EXPIRY_GRACE, Entry, FetchError, Journal, REDELIVERY_WITHIN};
use farebox_core::ports::Clock as _;
use futures_util::StreamExt as _;
use proptest::prelude::*;
use serde_json::json;

use crate::support::*;

/// A seller that gives the goods for a credential it has seen before as well, as ours does; it answers nothing useful while
/// `down`.
async fn shop(down: &Arc<AtomicBool>) -> Seller {
    let down = Arc::clone(down);
    Seller::start(move |attempt, _| match attempt {
        0 => bill(&[cent()]),
        _ if down.load(Ordering::SeqCst) => respond(503, &[], ""),
        _ => goods(),
    })
    .await
}

#[tokio::test]
async fn a_restart_sends_the_identical_bytes_first() {
    let down = Arc::new(AtomicBool::new(true));
    let (seller, payer) = (shop(&down).await, Payer::new());
    let error = payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!(error.code(), "outcome_unclear");
    let sent = seller.seen().len();
    down.store(false, Ordering::SeqCst);
    let fetched = payer.agent().fetch(get(seller.url("/"))).await.unwrap();
    assert_eq!(fetched.payment.as_ref().unwrap().signatures, 0);
    assert_eq!(read(Ok(fetched)).await, (200, "goods".to_owned()));
    assert_eq!(seller.seen().len(), sent + 1, "no bill is asked for");
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (1, 1));
}

#[tokio::test]
async fn a_crash_between_the_journal_and_the_wire_is_made_good() {
    let down = Arc::new(AtomicBool::new(false));
    let (seller, payer) = (shop(&down).await, Payer::new());
    // The state after such a crash: signed and noted, never sent.
    let fetched = payer.agent().fetch(get(seller.url("/"))).await.unwrap();
    drop(fetched);
    let mut entry: serde_json::Value = serde_json::from_slice(&std::fs::read(payer.open_file()).unwrap()).unwrap();
    entry["current"]["standing"] = json!("open");
    std::fs::write(payer.open_file(), entry.to_string()).unwrap();
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials(), seller.credentials().len()), (1, 1, 2));
}

#[tokio::test]
async fn the_credential_is_on_disk_and_private_before_it_is_sent() {
    let payer = Payer::new();
    let folder = payer.folder.path().to_owned();
    let seller = Seller::start(move |attempt, seen| {
        if attempt == 0 {
            return bill(&[cent()]);
        }
        let path = std::fs::read_dir(folder.join("open")).unwrap().next().unwrap().unwrap().path();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(std::fs::read_to_string(path).unwrap().contains(&seen.credential().unwrap().1));
        goods()
    })
    .await;
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    let mode = payer.folder.path().join("open").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn an_answer_that_broke_off_is_asked_for_again_with_the_same_payment() {
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill(&[cent()]),
        1 => {
            // The head must be out before the break, or the answer is lost whole.
            let broken = futures_util::stream::once(async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("gone"))
            });
            let pieces = futures_util::stream::iter([Ok(bytes::Bytes::from_static(b"go"))]).chain(broken);
            let body = axum::body::Body::from_stream(pieces);
            respond(200, &[("payment-response", &settlement(true, HASH, None))], body)
        }
        _ => goods(),
    })
    .await;
    let payer = Payer::new();
    let fetched = payer.agent().fetch(get(seller.url("/"))).await.unwrap();
    assert!(fetched.response.text().await.is_err());
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await, (200, "goods".to_owned()));
    assert_eq!(payer.wallet.signed(), 1);
    // Not for ever: whoever comes back much later wants something new.
    drop(payer.agent().fetch(get(seller.url("/"))).await.unwrap());
    payer.clock.advance(REDELIVERY_WITHIN + Duration::from_secs(1));
    drop(payer.agent().fetch(get(seller.url("/"))).await.unwrap());
    assert_eq!(payer.wallet.signed(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn agents_at_work_on_one_request_share_one_payment() {
    let seller = Seller::start(|attempt, _| {
        std::thread::sleep(Duration::from_millis(30));
        if attempt == 0 { bill(&[cent()]) } else { goods() }
    })
    .await;
    let payer = Payer::new();
    let one = payer.agent();
    let agents = [one.clone(), one, payer.agent(), payer.agent()];
    let runs = agents.map(|agent| {
        let request = get(seller.url("/"));
        tokio::spawn(async move { read(agent.fetch(request).await).await })
    });
    for run in runs {
        assert_eq!(run.await.unwrap(), (200, "goods".to_owned()));
    }
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn purchases_with_labels_of_their_own_are_paid_each() {
    let seller = Seller::start(|attempt, _| if attempt == 0 { bill(&[cent()]) } else { goods() }).await;
    let payer = Payer::new();
    let runs = ["a", "b", "c"].map(|label| {
        let (agent, request) = (payer.agent(), get(seller.url("/")));
        tokio::spawn(async move { read(agent.fetch_distinct(request, label).await).await.0 })
    });
    for run in runs {
        assert_eq!(run.await.unwrap(), 200);
    }
    assert_eq!(payer.wallet.signed(), 3);
}

#[tokio::test]
async fn an_expired_authorization_is_sent_once_more_before_a_new_one_is_signed() {
    let down = Arc::new(AtomicBool::new(true));
    let switch = Arc::clone(&down);
    let first = Arc::new(std::sync::OnceLock::new());
    let seller = Seller::start(move |attempt, seen| match seen.credential() {
        None => bill(&[cent()]),
        Some(credential) => {
            let old = *first.get_or_init(|| credential.clone()) == credential;
            match (switch.load(Ordering::SeqCst), old) {
                (true, _) => respond(503, &[], attempt.to_string()),
                (false, true) => refusal(&[cent()], "authorization_expired", json!(false)),
                (false, false) => goods(),
            }
        }
    })
    .await;
    let payer = Payer::new();
    assert_eq!(payer.agent().fetch(get(seller.url("/"))).await.unwrap_err().code(), "outcome_unclear");
    payer.clock.advance(Duration::from_secs(60) + EXPIRY_GRACE + Duration::from_secs(1));
    assert_eq!(payer.agent().fetch(get(seller.url("/"))).await.unwrap_err().code(), "outcome_unclear");
    assert_eq!(payer.wallet.signed(), 1, "still unknown, so still nothing new");
    down.store(false, Ordering::SeqCst);
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!(payer.wallet.signed(), 2);
}

#[tokio::test]
async fn an_upstream_error_without_a_receipt_stays_open_and_the_same_payment_is_offered_again() {
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill(&[cent()]),
        1 => respond(500, &[], "boom"),
        _ => goods(),
    })
    .await;
    let payer = Payer::new();
    let fetched = payer.agent().fetch(get(seller.url("/"))).await.unwrap();
    assert!(matches!(fetched.payment.as_ref().unwrap().charge, Charge::NotSettled { .. }));
    assert_eq!(read(Ok(fetched)).await, (500, "boom".to_owned()));
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (1, 1));
}

async fn check_corrupt(change: impl Fn(Vec<u8>) -> Vec<u8>) {
    let down = Arc::new(AtomicBool::new(true));
    let (seller, payer) = (shop(&down).await, Payer::new());
    assert!(payer.agent().fetch(get(seller.url("/"))).await.is_err());
    let path = payer.open_file();
    let damaged = change(std::fs::read(&path).unwrap());
    std::fs::write(&path, &damaged).unwrap();
    let sent = seller.seen().len();
    let error = payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    let FetchError::Journal(inside) = &error else { panic!("{error:?}") };
    assert_eq!(inside.code(), "journal_corrupt");
    assert!(inside.to_string().contains(path.to_str().unwrap()), "{inside}");
    assert_eq!((payer.wallet.signed(), seller.seen().len()), (1, sent), "nothing is signed over it or sent");
    assert_eq!(std::fs::read(&path).unwrap(), damaged, "it is left as it is");
}

#[tokio::test]
async fn a_damaged_entry_stops_the_request_and_is_left_alone() {
    check_corrupt(|_| Vec::new()).await;
    check_corrupt(|bytes| bytes[..bytes.len() / 2].to_vec()).await;
    check_corrupt(|bytes| String::from_utf8(bytes).unwrap().replace("\"format\": 1", "\"format\": 2").into_bytes())
        .await;
    check_corrupt(|_| vec![b' '; 2 << 20]).await;
    let other = |bytes: Vec<u8>| {
        let mut entry: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        entry["fingerprint"] = json!("0".repeat(64));
        entry.to_string().into_bytes()
    };
    check_corrupt(other).await;
}

#[tokio::test]
async fn a_half_written_draft_is_no_entry() {
    let down = Arc::new(AtomicBool::new(false));
    let (seller, payer) = (shop(&down).await, Payer::new());
    drop(payer.agent().fetch(get(seller.url("/"))).await.unwrap());
    let path = payer.open_file();
    std::fs::rename(&path, path.with_extension("draft")).unwrap();
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    let journal = Journal::open(payer.folder.path(), payer.clock.now()).unwrap();
    assert_eq!((journal.unresolved().unwrap().len(), journal.receipts(10).unwrap().len()), (0, 1));
}

fn a_real_entry() -> &'static str {
    static ENTRY: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ENTRY.get_or_init(|| {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let (seller, payer) = (shop(&Arc::default()).await, Payer::new());
            drop(payer.agent().fetch(get(seller.url("/"))).await.unwrap());
            std::fs::read_to_string(payer.open_file()).unwrap()
        })
    })
}

proptest! {
    #[test]
    fn a_damaged_entry_is_an_error_or_survives_the_way_to_disk(at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = a_real_entry().as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(entry) = serde_json::from_slice::<Entry>(&bytes) {
            let again: Entry = serde_json::from_slice(&serde_json::to_vec(&entry).unwrap()).unwrap();
            prop_assert_eq!(again, entry);
        }
    }

    #[test]
    fn a_cut_entry_is_an_error(at in any::<prop::sample::Index>()) {
        let text = a_real_entry();
        prop_assert!(serde_json::from_str::<Entry>(&text[..at.index(text.len())]).is_err());
    }

    #[test]
    fn garbage_is_an_error(bytes: Vec<u8>) {
        prop_assert!(serde_json::from_slice::<Entry>(&bytes).is_err());
    }
}
