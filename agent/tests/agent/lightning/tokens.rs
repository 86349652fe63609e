//! Tokens that are held: where they go, how long they are kept, and what becomes of them.

use std::{sync::Arc, time::Duration};

use farebox_agent::{Charge, FetchError, Note, Redirects, Stake};
use serde_json::json;

use super::{shop::*, wallet::*};
use crate::support::*;

struct Held {
    me: Satoshi,
    till: Arc<Till>,
    seller: Seller,
}

impl Held {
    /// A seller that serves the first token once, and then does as the script says: the function gets the number of the attempt with a token,
    /// from 2.
    async fn new(script: impl Fn(usize, &Seen, &Till) -> axum::response::Response + Send + Sync + 'static) -> Self {
        let me = Satoshi::new(Mood::Pays);
        let till = Arc::new(Till::new(&me.lightning));
        let seller = Seller::of_tokens(&till, move |attempt, seen, till| match attempt {
            1 => till.serve(None),
            _ => script(attempt, seen, till),
        })
        .await;
        assert_eq!(read(me.agent().fetch(get(seller.url("/a"))).await).await.0, 200);
        Self { me, till, seller }
    }

    async fn fetch(&self, path: &str) -> Result<u16, (&'static str, Stake)> {
        match self.me.agent().fetch(get(self.seller.url(path))).await {
            Ok(fetched) => Ok(read(Ok(fetched)).await.0),
            Err(error) => Err((error.code(), error.stake())),
        }
    }

    fn unpaid_asks(&self) -> usize {
        self.seller.seen().iter().filter(|seen| seen.credential().is_none()).count()
    }
}

#[tokio::test]
async fn no_passing_fault_takes_a_token_away_or_leads_to_a_payment() {
    type Fault = fn(usize, &Seen, &Till) -> axum::response::Response;
    let faults: [Fault; 6] = [
        |_, _, _| respond(503, &[], ""),
        |_, _, _| respond(502, &[], "bad gateway"),
        |_, _, _| respond(429, &[("retry-after", "0")], ""),
        |_, _, _| {
            let body = json!({"code": "payment_in_progress", "retry": "same_proof", "charged": "unknown"}).to_string();
            respond(503, &[("content-type", "application/problem+json"), ("retry-after", "0")], body)
        },
        |_, _, _| {
            let body = json!({"code": "invoice_unsettled", "retry": "same_proof", "charged": "unknown"}).to_string();
            respond(402, &[("content-type", "application/problem+json")], body)
        },
        |_, _, _| {
            std::thread::sleep(Duration::from_millis(500));
            respond(200, &[], "too late")
        },
    ];
    for (which, fault) in faults.into_iter().enumerate() {
        let held = Held::new(
            move |attempt, seen, till| if attempt < 4 { fault(attempt, seen, till) } else { till.serve(None) },
        )
        .await;
        assert_eq!(held.fetch("/a").await, Ok(200), "{which}");
        let held = Held::new(fault).await;
        let ended = held.fetch("/a").await;
        assert_eq!(ended, Err(("charged_not_served", Stake::Charged)), "{which}");
        assert_eq!((held.me.lightning.paid(), held.me.payer.files("tokens").len()), (1, 1), "{which}");
        let keys: std::collections::BTreeSet<_> =
            held.seller.seen().iter().filter(|seen| seen.credential().is_some()).skip(1).map(key_of).collect();
        assert_eq!(keys.len(), 1, "one call has one key");
    }
}

#[tokio::test]
async fn an_upstream_error_keeps_the_call_and_the_token() {
    let held =
        Held::new(|attempt, _, till| if attempt < 3 { respond(500, &[], "boom") } else { till.serve(None) }).await;
    assert_eq!(held.fetch("/a").await, Ok(500));
    assert_eq!(held.fetch("/a").await, Ok(200));
    let keys: Vec<_> = held.seller.seen().iter().filter(|seen| seen.credential().is_some()).map(key_of).collect();
    assert!(keys[1] == keys[2] && keys[0] != keys[1]);
    assert_eq!(held.me.lightning.paid(), 1);
}

#[tokio::test]
async fn a_spent_token_is_kept_for_people_and_the_bill_that_came_with_the_refusal_is_paid() {
    for code in ["token_spent", "token_expired", "token_revoked", "token_unknown"] {
        let held = Held::new(move |attempt, _, till| match attempt {
            2 => till.refuse(code),
            _ => till.serve(None),
        })
        .await;
        assert_eq!(held.fetch("/a").await, Ok(200), "{code}");
        assert_eq!((held.me.lightning.paid(), held.unpaid_asks()), (2, 1), "{code}");
        assert_eq!((held.me.payer.files("spent").len(), held.me.payer.files("tokens").len()), (1, 1), "{code}");
        assert_eq!(held.till.shown.lock().unwrap().len(), 2, "{code}: no bill is asked for in vain");
    }
}

#[tokio::test]
async fn a_token_of_the_same_service_is_tried_for_another_path_before_that_is_paid_for() {
    let held = Held::new(|_, _, till| till.serve(None)).await;
    let fetched = held.me.agent().fetch(get(held.seller.url("/b"))).await.unwrap();
    assert_eq!(fetched.payment.unwrap().charge, Charge::Prepaid);
    assert_eq!((held.me.lightning.paid(), held.unpaid_asks()), (1, 2));

    // Refused for that path alone, it stays good for its own.
    let held = Held::new(|_, seen, till| match &*seen.path {
        "/b" if seen.headers["idempotency-key"] != "bought" => till.refuse("token_other_path"),
        _ => till.serve(None),
    })
    .await;
    let mut request = get(held.seller.url("/b"));
    request.headers_mut().insert("idempotency-key", "tried".parse().unwrap());
    let error = held.me.agent().fetch(request).await.unwrap_err();
    assert_eq!((error.code(), held.me.lightning.paid()), ("charged_not_delivered", 2));
    assert_eq!(held.me.payer.files("spent").len(), 0);
    assert_eq!(held.fetch("/a").await, Ok(200));
    assert_eq!(held.me.lightning.paid(), 2);
}

#[tokio::test]
async fn a_token_goes_only_to_the_seller_that_sold_it_and_not_along_a_redirect() {
    let held = Held::new(|_, _, till| till.serve(None)).await;
    let me = &held.me;
    let thief = {
        let till = Arc::clone(&held.till);
        Seller::start(move |_, _| till.bill()).await
    };
    // The same host on another port, for the same path, and for a service of the same name.
    let never = Satoshi::only_lightning();
    let policy = farebox_agent::Policy { max_msat_per_call: Some(1), ..never };
    let agent = me.builder().policy(policy).redirects(Redirects::Follow { hops_max: 3 }).build().unwrap();
    assert_eq!(agent.fetch(get(thief.url("/a"))).await.unwrap_err().code(), "policy_refused");
    assert!(thief.credentials().is_empty());

    let target = thief.url("/a").to_string();
    let held = Held::new(move |_, _, _| respond(307, &[("location", &target)], "")).await;
    let agent = held.me.builder().redirects(Redirects::Follow { hops_max: 3 }).build().unwrap();
    let fetched = agent.fetch(get(held.seller.url("/a"))).await.unwrap();
    assert_eq!(fetched.response.status(), 307);
    assert!(thief.credentials().is_empty());
}

#[tokio::test]
async fn a_token_for_one_request_is_not_sent_with_another() {
    let me = Satoshi::new(Mood::Pays);
    let mut till = Till::new(&me.lightning);
    till.caveats =
        ["services=shop:0", "shop_capabilities=", "shop_method=GET", "shop_path=00"].map(str::to_owned).into();
    let till = Arc::new(till);
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    for path in ["/a?x=1", "/a?x=2", "/a?x=1", "/b"] {
        assert_eq!(read(me.agent().fetch(get(seller.url(path))).await).await.0, 200);
    }
    assert_eq!((me.lightning.paid(), till.served()), (3, 4));
}

#[tokio::test]
async fn a_token_whose_time_is_over_is_put_aside() {
    let me = Satoshi::new(Mood::Pays);
    let now = farebox_core::ports::Clock::now(&*me.payer.clock);
    let mut till = Till::new(&me.lightning);
    till.caveats = vec!["services=shop:0".into(), format!("shop_valid_until={}", now.unix_s() + 60)];
    let till = Arc::new(till);
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    assert_eq!(read(me.agent().fetch(get(seller.url("/a"))).await).await.0, 200);
    me.payer.clock.advance(Duration::from_secs(61));
    // The seller offers another that is over too.
    assert_eq!(me.agent().fetch(get(seller.url("/a"))).await.unwrap_err().code(), "policy_refused");
    assert_eq!((me.lightning.paid(), me.payer.files("spent").len(), seller.credentials().len()), (1, 1, 1));
}

#[tokio::test]
async fn a_purchase_under_way_keeps_its_token_from_others() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |attempt, _, till| match attempt {
        ..=5 => respond(503, &[], ""),
        _ => till.serve(Some(0)),
    })
    .await;
    let first = me.agent().fetch(get(seller.url("/a"))).await.unwrap_err();
    assert_eq!((first.code(), first.stake()), ("charged_not_served", Stake::Charged));
    let fetched = me.agent().fetch_distinct(get(seller.url("/a")), "another").await;
    assert_eq!(read(fetched).await.0, 200);
    assert_eq!(read(me.agent().fetch(get(seller.url("/a"))).await).await.0, 200);
    assert_eq!((me.lightning.paid(), seller.distinct_credentials()), (2, 2));
}

#[tokio::test]
async fn one_bill_too_many_does_not_take_the_calls_away_that_are_paid_for() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let seller =
        Seller::of_tokens(&till, |attempt, _, till| if attempt % 2 == 1 { till.serve(Some(999)) } else { till.bill() })
            .await;
    for _ in 0..6 {
        assert_eq!(read(me.agent().fetch(get(seller.url("/a"))).await).await.0, 200);
    }
    assert_eq!((me.lightning.paid(), till.served(), me.payer.files("spent").len()), (1, 6, 0));
}

#[tokio::test]
async fn a_seller_that_forgets_the_calls_it_sold_is_paid_twice_at_most_and_told_of() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let known = std::sync::Mutex::new(std::collections::BTreeSet::new());
    let seller = Seller::of_tokens(&till, move |_, seen, till| {
        if known.lock().unwrap().insert(token_of(seen)) { till.serve(Some(999)) } else { till.bill() }
    })
    .await;
    read(me.agent().fetch(get(seller.url("/a"))).await).await;
    let first = token_of(seller.seen().last().unwrap());
    let fetched = me.agent().fetch(get(seller.url("/a"))).await.unwrap();
    let notes = fetched.payment.as_ref().unwrap().notes.clone();
    assert_eq!(notes, [Note::TokenNotTaken { payment_hash: first, calls_left: Some(999) }]);
    read(Ok(fetched)).await;
    for _ in 0..3 {
        let FetchError::Policy(rules) = me.agent().fetch(get(seller.url("/a"))).await.unwrap_err() else { panic!() };
        assert_eq!(rules[0].rule.code(), "calls_forgotten");
    }
    assert_eq!((me.lightning.paid(), me.payer.files("tokens").len()), (2, 2));
}

#[tokio::test]
async fn one_tenant_of_an_origin_does_not_destroy_what_was_bought_of_another() {
    type Tenant = fn(&Till) -> axum::response::Response;
    let tenants: [Tenant; 3] = [|till| till.refuse("token_spent"), |till| till.serve(Some(0)), Till::bill];
    for (which, mallory) in tenants.into_iter().enumerate() {
        let held = Held::new(move |_, seen, till| match &*seen.path {
            "/mallory" => mallory(till),
            _ => till.serve(Some(9)),
        })
        .await;
        let poor = farebox_agent::Policy { max_msat_per_call: Some(1), ..policy() };
        let _ = held.me.builder().policy(poor).build().unwrap().fetch(get(held.seller.url("/mallory"))).await;
        assert_eq!(held.fetch("/a").await, Ok(200), "{which}");
        assert_eq!((held.me.lightning.paid(), held.me.payer.files("spent").len()), (1, 0), "{which}");
    }
}

#[tokio::test]
async fn what_can_be_done_twice_is_not_sent_again_without_the_sellers_invitation() {
    let post = |seller: &Seller| {
        let mut request = reqwest::Request::new(http::Method::POST, seller.url("/send-mail"));
        *request.body_mut() = Some("x".into());
        request
    };
    type Answer = fn() -> axum::response::Response;
    let silent: [Answer; 3] = [
        || respond(504, &[], ""),
        || respond(429, &[("retry-after", "0")], ""),
        || {
            std::thread::sleep(Duration::from_millis(500));
            respond(200, &[], "too late")
        },
    ];
    for (which, answer) in silent.into_iter().enumerate() {
        let me = Satoshi::new(Mood::Pays);
        let till = Arc::new(Till::new(&me.lightning));
        let seller = Seller::of_tokens(&till, move |_, _, _| answer()).await;
        let error = me.agent().fetch(post(&seller)).await.unwrap_err();
        assert_eq!((error.code(), error.stake()), ("charged_not_served", Stake::Charged), "{which}");
        assert_eq!(seller.credentials().len(), 1, "{which}");
    }
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |attempt, _, till| {
        let body = json!({"code": "payment_in_progress", "retry": "same_proof", "charged": "unknown"}).to_string();
        let busy = respond(503, &[("content-type", "application/problem+json"), ("retry-after", "0")], body);
        if attempt < 3 { busy } else { till.serve(None) }
    })
    .await;
    assert_eq!(read(me.agent().fetch(post(&seller)).await).await.0, 200);
}
