//! Wallets that do not say what they did.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use farebox_agent::{FetchError, LightningError, RetryPolicy, Stake};

use super::{shop::*, wallet::*};
use crate::support::*;

struct Case {
    me: Satoshi,
    till: Arc<Till>,
    seller: Seller,
}

impl Case {
    async fn new(mood: Mood) -> Self {
        let me = Satoshi::new(mood);
        let till = Arc::new(Till::new(&me.lightning));
        let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
        Self { me, till, seller }
    }

    /// What one run comes to: its error's code and stake, or the status.
    async fn run(&self) -> Result<u16, (&'static str, Stake)> {
        let retry =
            RetryPolicy { deadline: Duration::from_millis(1500), pay_timeout: Duration::from_millis(200), ..quick() };
        let agent = self.me.builder().retry(retry).build().unwrap();
        match agent.fetch(get(self.seller.url("/"))).await {
            Ok(fetched) => {
                let status = fetched.response.status().as_u16();
                assert_eq!(fetched.response.text().await.unwrap(), "goods");
                Ok(status)
            }
            Err(error) => Err((error.code(), error.stake())),
        }
    }

    fn counts(&self) -> (usize, usize, u32) {
        (self.me.purse.asked(), self.me.lightning.paid(), self.till.served())
    }
}

#[tokio::test]
async fn a_payment_that_was_made_is_found_whatever_the_wallet_said() {
    for mood in
        [Mood::FailsAndPays, Mood::PaysAndHangs, Mood::PaysAndLosesTheAnswer, Mood::IsSlow(3), Mood::PaysBlindAtFirst]
    {
        let case = Case::new(mood).await;
        assert_eq!(case.run().await, Ok(200), "{mood:?}");
        assert_eq!(case.counts(), (1, 1, 1), "{mood:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_found_out_is_not_paid_again() {
    for mood in [Mood::PaysAndLosesTheAnswer, Mood::PaysAndHangs] {
        let case = Case::new(mood).await;
        let watching = async {
            while case.me.purse.asked() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            case.me.purse.is_down.store(true, Ordering::SeqCst);
        };
        let (ended, ()) = tokio::join!(case.run(), watching);
        assert_eq!(ended, Err(("lightning_unclear", Stake::Unclear)), "{mood:?}");
        assert_eq!(case.run().await, Err(("lightning_unclear", Stake::Unclear)), "{mood:?}");
        assert_eq!(case.counts(), (1, 1, 0), "{mood:?}");
        case.me.purse.is_down.store(false, Ordering::SeqCst);
        assert_eq!(case.run().await, Ok(200), "{mood:?}");
        assert_eq!(case.counts(), (1, 1, 1), "{mood:?}");
    }
}

#[tokio::test]
async fn a_payment_on_its_way_is_waited_for_over_several_runs() {
    let case = Case::new(Mood::IsSlow(usize::MAX)).await;
    for _ in 0..2 {
        assert_eq!(case.run().await, Err(("lightning_unclear", Stake::Unclear)));
    }
    case.me.purse.is_now(Mood::IsSlow(0));
    assert_eq!(case.run().await, Ok(200));
    assert_eq!(case.counts(), (1, 1, 1));
}

#[tokio::test]
async fn a_wish_that_the_wallet_never_heard_of_is_told_again_for_the_same_invoice() {
    let case = Case::new(Mood::LosesTheWish).await;
    assert_eq!(case.run().await, Err(("lightning_unclear", Stake::Unclear)));
    assert_eq!(case.counts(), (1, 0, 0));
    case.me.purse.is_now(Mood::Pays);
    assert_eq!(case.run().await, Ok(200));
    let orders = case.me.purse.orders.lock().unwrap().clone();
    assert!(orders.len() == 2 && orders[0].invoice == orders[1].invoice, "{orders:?}");
    // One that has ended is never paid late: another takes its place when nothing of it can be on its way.
    let case = Case::new(Mood::LosesTheWish).await;
    assert_eq!(case.run().await, Err(("lightning_unclear", Stake::Unclear)));
    case.me.purse.is_now(Mood::Pays);
    case.me.payer.clock.advance(Duration::from_secs(601));
    assert_eq!(case.run().await, Err(("lightning_unclear", Stake::Unclear)));
    case.me.payer.clock.advance(Duration::from_secs(24 * 3600));
    case.till.wanted.lock().unwrap().made_at = farebox_core::ports::Clock::now(&*case.me.payer.clock);
    assert_eq!(case.run().await, Ok(200));
    let orders = case.me.purse.orders.lock().unwrap();
    assert!(orders.len() == 2 && orders[0].invoice != orders[1].invoice, "{orders:?}");
}

#[tokio::test]
async fn a_payment_that_failed_leaves_nothing_behind_and_the_next_run_pays_anew() {
    let case = Case::new(Mood::Fails).await;
    assert_eq!(case.run().await, Err(("lightning_not_paid", Stake::Nothing)));
    assert!(case.me.payer.files("open").is_empty());
    case.me.purse.is_now(Mood::Pays);
    assert_eq!(case.run().await, Ok(200));
    assert_eq!(case.counts(), (2, 1, 1));
}

#[tokio::test]
async fn a_payment_that_failed_and_then_did_not_is_used_instead_of_another() {
    let case = Case::new(Mood::FailsAndPaysLater).await;
    assert_eq!(case.run().await, Err(("lightning_not_paid", Stake::Nothing)));
    case.me.purse.is_now(Mood::Pays);
    assert_eq!(case.run().await, Ok(200));
    assert_eq!(case.counts(), (1, 1, 1));
}

#[tokio::test]
async fn a_wallet_without_preimage_is_told_of_and_never_pays_a_second_time() {
    for mood in [Mood::PaysBlind, Mood::PaysWrong] {
        let case = Case::new(mood).await;
        for _ in 0..3 {
            assert_eq!(case.run().await, Err(("wallet_gave_no_preimage", Stake::Charged)), "{mood:?}");
        }
        assert_eq!(case.counts(), (1, 1, 0), "{mood:?}");
        let error = case.me.agent().fetch(get(case.seller.url("/"))).await.unwrap_err();
        let FetchError::Lightning(LightningError::NoPreimage { amount_msat, .. }) = &error else { panic!("{error:?}") };
        assert!(*amount_msat == 10_000 && error.to_string().contains("paid 10 sat"), "{error}");
    }
}

#[tokio::test]
async fn another_wallet_is_not_asked_about_a_payment_of_this_one() {
    let case = Case::new(Mood::IsSlow(usize::MAX)).await;
    assert_eq!(case.run().await, Err(("lightning_unclear", Stake::Unclear)));
    let mut other = Purse::new(&case.me.lightning, Mood::Pays);
    other.key = "02bb";
    let other = Arc::new(other);
    let agent = case.me.builder_of(other.clone()).build().unwrap();
    let error = agent.fetch(get(case.seller.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), error.stake(), other.asked()), ("other_lightning_wallet", Stake::Unclear, 0));
    let evm = farebox_agent::Agent::builder().policy(policy());
    let journal =
        farebox_agent::Journal::open(case.me.payer.folder.path(), farebox_core::Timestamp::from_unix_s(0)).unwrap();
    let evm = evm.wallet(case.me.payer.wallet.clone()).journal(journal).clock(case.me.payer.clock.clone());
    let evm = evm.entropy(Arc::new(OsEntropy)).retry(quick()).build().unwrap();
    assert_eq!(evm.fetch(get(case.seller.url("/"))).await.unwrap_err().code(), "lightning_unclear");
}
