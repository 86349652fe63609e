//! The browser's page.

use farebox_core::{RailName, UnavailableRail};
use farebox_wire::page::html;
use serde_json::json;

use crate::fixtures::{PAY_TO, USDC, challenge, offer, two_offers};

#[test]
fn the_page_says_what_the_body_says() {
    let page = html(&two_offers(), &"$0.01".parse().unwrap(), None);
    for part in [
        "$0.01",
        "10000 smallest units of USDC",
        "eip155:84532",
        "eip155:1<",
        PAY_TO,
        USDC,
        "60 seconds",
        "this call costs $0.01; pay one of the offers and send it again",
        "payment_required",
        "<dt>Charged</dt><dd>no</dd>",
        "farebox pay &#39;https://api.example.com/v1/answer?q=1&amp;lang=en&#39;",
        "An answer – in &lt;b&gt;full&lt;/b&gt;",
        "application/json",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
}

#[test]
fn the_page_loads_nothing_and_runs_nothing() {
    let page = html(&two_offers(), &"$0.01".parse().unwrap(), None);
    for part in ["<script", "src=", "href=", "url(", "@import", "onload", "<form", "<iframe"] {
        assert!(!page.contains(part), "{part} in {page}");
    }
}

#[test]
fn a_lightning_offer_is_a_link_a_picture_and_a_text() {
    let mut challenge = two_offers();
    challenge.token = Some(crate::challenges::bill().into());
    let page = html(&challenge, &"$0.01".parse().unwrap(), None);
    for part in [
        "10.001 sat",
        "href=\"lightning:lnbcrt100n1pj\"",
        "<svg",
        crate::macaroons::VECTOR,
        "Authorization: L402 MACAROON:PREIMAGE",
        "2027-01-15 08:10:00 UTC",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    for part in ["<script", "src=", "url(", "@import", "onload", "<image", "xlink"] {
        assert!(!page.contains(part), "{part} in {page}");
    }
    assert!(page.contains("<pre>farebox pay &#39;https://"), "by x402, which needs no more words: {page}");
    challenge.offers = [].into();
    let page = html(&challenge, &"10 sat".parse().unwrap(), None);
    assert!(page.contains("<pre>farebox pay --lightning WALLET &#39;https://"), "{page}");
    challenge.token = None;
    let detail = "the node <is> down".to_owned();
    challenge.unavailable.push(UnavailableRail { rail: RailName::L402, code: "node_unavailable".into(), detail });
    let page = html(&challenge, &"$0.01".parse().unwrap(), None);
    assert!(page.contains("By l402: not now. the node &lt;is&gt; down") && !page.contains("<svg"), "{page}");
}

#[test]
fn nobodys_text_becomes_markup_or_a_second_command() {
    let evil = "'\"><script>alert(1)</script>\u{0}&";
    let mut terms = offer("eip155:84532");
    terms.extra.insert("name".to_owned(), json!(evil));
    let mut challenge = challenge(vec![terms]);
    challenge.resource.url = "https://x/?a=';rm -rf ~;'".to_owned();
    challenge.resource.description = evil.into();
    challenge.refusal.detail = evil.to_owned();
    challenge.refusal.code = evil.to_owned().into();
    let page = html(&challenge, &"0.01 USDC".parse().unwrap(), None);
    assert!(!page.contains("<script") && !page.contains('\u{0}'), "{page}");
    assert_eq!(page.matches("&lt;script&gt;alert(1)").count(), 6, "{page}");
    assert!(
        page.contains(r"farebox pay &#39;https://x/?a=&#39;\&#39;&#39;;rm -rf ~;&#39;\&#39;&#39;&#39;</pre>"),
        "{page}"
    );
}
