//! Bills that are paid, and bills that the policy forbids.

use farebox_agent::{Charge, PlainHttp, Policy, PolicyRule, Quote, Redirects, Usd};
use farebox_agent::{DollarAsset, FetchError};

use crate::support::*;

#[tokio::test]
async fn a_version_2_bill_is_paid_once_and_the_receipt_is_told() {
    let seller = Seller::start(|attempt, _| if attempt == 0 { bill(&[cent()]) } else { goods() }).await;
    let payer = Payer::new();
    let fetched = payer.agent().fetch(get(seller.url("/x?a=b"))).await.unwrap();
    let made = fetched.payment.unwrap();
    assert_eq!(made.price.unwrap().to_string(), "$0.01");
    assert_eq!(made.charge, Charge::Charged { transaction: Some(farebox_core::TransactionId::new(HASH)) });
    assert_eq!(made.payment.unwrap().to_string(), "pay_01hzxk3vd4s0q7r2m9n8b5c6e1");
    assert_eq!(fetched.response.url().path(), "/x");
    assert_eq!(payer.files("open").len(), 1, "until it is read, it is not delivered");
    assert_eq!(fetched.response.text().await.unwrap(), "goods");
    assert_eq!((payer.files("open").len(), payer.files("closed").len()), (0, 1));
    assert_eq!(payer.files("lock").len(), 0);
    let [first, second] = &seller.seen()[..] else { panic!("{:?}", seller.seen()) };
    assert_eq!((first.credential(), &second.path), (None, &"/x?a=b".to_owned()));
    assert_eq!(second.credential().unwrap().0, "payment-signature");
}

#[tokio::test]
async fn a_version_1_body_is_paid_in_version_1() {
    let seller = Seller::start(|attempt, _| if attempt == 0 { bill_v1(&[cent()]) } else { goods() }).await;
    let payer = Payer::new();
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await, (200, "goods".to_owned()));
    assert_eq!(seller.credentials()[0].0, "x-payment");
}

#[tokio::test]
async fn the_header_wins_over_another_body() {
    let dear = offer(90_000);
    let seller = Seller::start(move |attempt, _| match attempt {
        0 => bill_with(&[cent()], v1_terms(std::slice::from_ref(&dear))),
        _ => goods(),
    })
    .await;
    let payer = Payer::new();
    let fetched = payer.agent().fetch(get(seller.url("/"))).await.unwrap();
    assert_eq!(fetched.payment.unwrap().price.unwrap().to_string(), "$0.01");
}

#[tokio::test]
async fn every_purchase_of_the_same_thing_is_paid() {
    let seller = Seller::start(|attempt, _| if attempt == 0 { bill(&[cent()]) } else { goods() }).await;
    let payer = Payer::new();
    let agent = payer.agent();
    for _ in 0..3 {
        assert_eq!(read(agent.fetch(get(seller.url("/"))).await).await.0, 200);
    }
    assert_eq!((payer.wallet.signed(), seller.distinct_credentials()), (3, 3));
    assert_eq!(payer.files("closed").len(), 3);
}

#[tokio::test]
async fn what_is_free_leaves_no_trace() {
    let seller = Seller::start(|_, _| respond(503, &[], "busy")).await;
    let payer = Payer::new();
    let fetched = payer.agent().fetch(get(seller.url("/"))).await.unwrap();
    assert!(fetched.payment.is_none());
    assert_eq!(fetched.response.text().await.unwrap(), "busy");
    assert_eq!(payer.files("open").len() + payer.files("closed").len() + payer.files("lock").len(), 0);
}

async fn check_refused(offers: Vec<farebox_core::Offer>, policy: Policy, expected: &str) {
    let seller = Seller::start(move |attempt, _| if attempt == 0 { bill(&offers) } else { goods() }).await;
    let payer = Payer::new();
    let agent = payer.builder().policy(policy).build().unwrap();
    let error = agent.fetch(get(seller.url("/"))).await.unwrap_err();
    let FetchError::Policy(refused) = &error else { panic!("{error:?}") };
    assert_eq!(refused[0].rule.code(), expected, "{error}");
    assert_eq!((payer.wallet.signed(), seller.credentials().len(), payer.files("open").len()), (0, 0, 0));
}

#[tokio::test]
async fn the_policy_forbids_before_anything_is_signed() {
    let change = |change: fn(&mut farebox_core::Offer)| {
        let mut offer = cent();
        change(&mut offer);
        vec![offer]
    };
    check_refused(vec![offer(100_001)], Policy::default(), "over_max").await;
    check_refused(vec![offer(u128::MAX)], Policy::default(), "over_max").await;
    let other = "eip155:84532/erc20:0x0000000000000000000000000000000000000001";
    let unknown = change(|offer| {
        offer.asset_on_wire = "0x0000000000000000000000000000000000000001".into();
        // A seller's word on decimals is not asked for.
        offer.extra.insert("decimals".to_owned(), 18.into());
    });
    check_refused(unknown.clone(), Policy::default(), "asset_not_allowed").await;
    let known_dear = DollarAsset::new(other.parse().unwrap(), "X", 2).unwrap();
    check_refused(unknown, Policy { assets: vec![known_dear], ..Policy::default() }, "over_max").await;
    let base_only = Policy { networks: Some(["eip155:8453".parse().unwrap()].into()), ..Policy::default() };
    check_refused(vec![cent()], base_only, "network_not_allowed").await;
    let other_payee = Policy { payees: Some([farebox_core::EvmAddress([1; 20])].into()), ..Policy::default() };
    check_refused(vec![cent()], other_payee, "payee_not_allowed").await;
}

#[tokio::test]
async fn the_limit_itself_may_be_spent_and_the_cheapest_offer_is_taken() {
    let offers = [offer(100_000), offer(99_999), offer(99_999), offer(100_001)];
    let seller = Seller::start(move |attempt, _| if attempt == 0 { bill(&offers) } else { goods() }).await;
    let payer = Payer::new();
    let Quote::Bill { offers, .. } = payer.agent().quote(get(seller.url("/"))).await.unwrap() else { panic!() };
    let chosen: Vec<_> = offers.iter().map(|offer| offer.chosen).collect();
    assert_eq!(chosen, [false, true, false, false]);
    let max = Usd::new("0.1".parse().unwrap()).unwrap();
    assert!(matches!(&offers[3].judgement, Err(PolicyRule::OverMax { max: found, .. }) if *found == max));
    assert_eq!((payer.wallet.signed(), payer.files("open").len()), (0, 0), "a quote signs nothing");
    let fetched = payer.agent().fetch(get(seller.url("/"))).await.unwrap();
    assert_eq!(fetched.payment.unwrap().price.unwrap().to_string(), "$0.099999");
}

#[tokio::test]
async fn head_is_never_signed_for() {
    let check = async |answer: fn() -> axum::response::Response, expected: &str| {
        let seller = Seller::start(move |_, _| answer()).await;
        let payer = Payer::new();
        let head = || reqwest::Request::new(http::Method::HEAD, seller.url("/"));
        let error = payer.agent().fetch(head()).await.unwrap_err();
        assert_eq!((error.code(), error.stake()), ("head_not_sold", farebox_agent::Stake::Nothing));
        assert_eq!(error.to_string(), format!("HEAD is not sold; the same URL by GET costs {expected}"));
        assert_eq!(payer.agent().quote(head()).await.unwrap_err().code(), "head_not_sold");
        assert!(seller.seen().iter().all(|seen| seen.method == http::Method::HEAD && seen.credential().is_none()));
        assert_eq!((payer.wallet.signed(), payer.files("open").len(), seller.seen().len()), (0, 0, 2));
    };
    check(|| bill(&[cent()]), "$0.01").await;
    check(|| bill(&[offer(10_000_000)]), "$10").await;
    check(|| respond(402, &[], ""), "money").await;
}

#[tokio::test]
async fn an_upload_is_identical_on_the_paid_retry_and_a_stream_is_not_sent_at_all() {
    let seller = Seller::start(|attempt, _| if attempt == 0 { bill(&[cent()]) } else { goods() }).await;
    let payer = Payer::new();
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut request = reqwest::Request::new(http::Method::POST, seller.url("/"));
    request.headers_mut().insert("content-type", "multipart/form-data; boundary=q".parse().unwrap());
    *request.body_mut() = Some(body.clone().into());
    assert_eq!(read(payer.agent().fetch(request).await).await.0, 200);
    let seen = seller.seen();
    assert!(seen.iter().all(|s| s.body == body && s.headers["content-type"] == "multipart/form-data; boundary=q"));

    let mut request = reqwest::Request::new(http::Method::POST, seller.url("/"));
    let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"x"))]);
    *request.body_mut() = Some(reqwest::Body::wrap_stream(stream));
    assert_eq!(payer.agent().fetch(request).await.unwrap_err().code(), "body_not_replayable");
    assert_eq!((seller.seen().len(), payer.wallet.signed()), (2, 1));
}

#[tokio::test]
async fn redirects_before_payment_are_followed_only_when_asked_and_carry_no_secrets_away() {
    let shop = Seller::start(|attempt, _| if attempt < 2 { bill(&[cent()]) } else { goods() }).await;
    let target = shop.url("/there").to_string();
    let front = Seller::start(move |_, _| respond(302, &[("location", &target)], "")).await;
    let payer = Payer::new();
    let request = || {
        let mut request = get(front.url("/"));
        request.headers_mut().insert("authorization", "Bearer secret".parse().unwrap());
        request.headers_mut().insert("idempotency-key", "\"of the front\"".parse().unwrap());
        request.headers_mut().insert("x-kept", "1".parse().unwrap());
        request
    };
    assert_eq!(read(payer.agent().fetch(request()).await).await.0, 302);
    let following = payer.builder().redirects(Redirects::Follow { hops_max: 3 }).build().unwrap();
    let refused = following.fetch(request()).await.unwrap_err().to_string();
    assert!(refused.contains("a redirect led to http://127.0.0.1:") && payer.wallet.signed() == 0, "{refused}");
    let following = payer.builder().redirects(Redirects::FollowAndPay { hops_max: 3 }).build().unwrap();
    assert_eq!(read(following.fetch(request()).await).await, (200, "goods".to_owned()));
    assert!(shop.seen().iter().all(|s| !s.headers.contains_key("authorization") && s.headers.contains_key("x-kept")));
    assert!(front.credentials().is_empty());
    assert!(shop.seen().iter().all(|s| s.headers.get("idempotency-key").is_none_or(|key| key != "\"of the front\"")));
}

#[tokio::test]
async fn nothing_is_paid_over_plain_http_unless_the_owner_says_so() {
    let seller = Seller::start(|attempt, _| if attempt < 2 { bill(&[cent()]) } else { goods() }).await;
    let (payer, mut url) = (Payer::new(), seller.url("/"));
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], url.port().unwrap()));
    url.set_host(Some("shop.test")).unwrap();
    let agent = |plain| {
        let client = reqwest::Client::builder().resolve("shop.test", address);
        payer.builder().client(client).plain_http(plain).build().unwrap()
    };
    let refused = agent(PlainHttp::Unpaid).fetch(get(url.clone())).await.unwrap_err().to_string();
    assert!(refused.contains("plain http") && payer.wallet.signed() == 0, "{refused}");
    assert_eq!(read(agent(PlainHttp::Paid).fetch(get(url)).await).await.0, 200);
}

#[tokio::test]
async fn a_paid_request_is_never_redirected() {
    let thief = Seller::start(|_, _| goods()).await;
    let target = thief.url("/").to_string();
    let seller = Seller::start(move |attempt, _| match attempt {
        0 => bill(&[cent()]),
        _ => respond(307, &[("location", &target)], ""),
    })
    .await;
    let payer = Payer::new();
    let agent = payer.builder().redirects(Redirects::Follow { hops_max: 3 }).build().unwrap();
    let fetched = agent.fetch(get(seller.url("/"))).await.unwrap();
    assert_eq!(fetched.response.status(), 307);
    assert!(fetched.payment.unwrap().notes.contains(&farebox_agent::Note::RedirectNotFollowed));
    assert!(thief.seen().is_empty());
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    let seller = Seller::start(|_, _| respond(302, &[("location", "/again")], "")).await;
    let payer = Payer::new();
    let agent = payer.builder().redirects(Redirects::Follow { hops_max: 3 }).build().unwrap();
    assert_eq!(agent.fetch(get(seller.url("/"))).await.unwrap_err().code(), "redirect");
    assert_eq!(seller.seen().len(), 4);
}
