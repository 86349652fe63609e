//! `examples/pay-by-transfer.sh`: a payer with cast, curl and jq.

use std::{
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use farebox_core::ports::TransferWallet as _;
use serde_json::json;

use super::{chain::*, shop::*};
use crate::support::*;

async fn run(rich: &Rich, anvil: &Anvil, url: &url::Url, more: &[(&str, &str)]) -> Output {
    #[expect(clippy::disallowed_methods, reason = "where the tools are, only the environment can say")]
    let (cast, path) = (std::env::var("FAREBOX_CAST").unwrap(), std::env::var("PATH").unwrap());
    let folder = std::path::Path::new(&cast).parent().unwrap().display();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/pay-by-transfer.sh");
    let mut command = tokio::process::Command::new("bash");
    command.arg(script).arg(url.as_str()).current_dir(rich.payer.folder.path());
    command.env("PATH", format!("{folder}:{path}")).env("RPC_URL", &anvil.url).env("MAX_UNITS", "10000");
    command.env("ETH_PRIVATE_KEY", format!("0x{}", hex::encode(rich.key))).env("no_proxy", "127.0.0.1");
    command.envs(more.iter().copied()).output().await.unwrap()
}

fn said(output: &Output) -> (bool, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn the_script_pays_once_and_claims_what_it_paid_when_it_is_run_again() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let down = Arc::new(AtomicBool::new(true));
    let seller_down = Arc::clone(&down);
    let seller = Seller::of_transfers(move |attempt, _| match attempt {
        1 => pending(),
        _ if seller_down.load(Ordering::SeqCst) => respond(500, &[], "boom"),
        _ => goods(),
    })
    .await;
    let url = seller.url("/report?id=7");
    let (ok, _, told) = said(&run(&rich, &anvil, &url, &[]).await);
    assert!(!ok && told.contains("not served for 0x") && told.contains("boom"), "{told}");
    down.store(false, Ordering::SeqCst);
    assert_eq!(said(&run(&rich, &anvil, &url, &[]).await), (true, "goods\n".to_owned(), String::new()));
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(rich.address()).await), (CENT, 1));
    assert_eq!((seller.codes().len(), seller.claimed().len()), (3, 1));
    for code in seller.codes() {
        assert_eq!((code.payer, code.amount, &*code.resource), (rich.address(), CENT, url.as_str()));
        assert_eq!(rich.wallet.sign_code(code.clone()).unwrap().signature, code.signature);
    }
}

#[tokio::test]
async fn the_script_sends_coins_and_refuses_what_it_should() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::start(|attempt, seen| match (seen.path.as_str(), attempt) {
        ("/free", _) => respond(200, &[], "free"),
        (_, 1..) => goods(),
        ("/other", _) => {
            let mut other = terms(seen, vec![cent_option()]);
            other.resource.push_str("?x");
            bill_of(&other)
        }
        _ => bill_of(&terms(seen, vec![cent_option(), option(coin(), 9_999)])),
    })
    .await;
    let before = anvil.coins_of(SELLER).await;
    let (ok, _, told) = said(&run(&rich, &anvil, &seller.url("/a"), &[("MAX_UNITS", "9999")]).await);
    assert!(!ok && told.contains("10000 units are too many"), "{told}");
    let (ok, _, told) = said(&run(&rich, &anvil, &seller.url("/other"), &[]).await);
    assert!(!ok && told.contains("no such way to pay"), "{told}");
    assert_eq!(said(&run(&rich, &anvil, &seller.url("/free"), &[]).await).1, "free\n");
    assert_eq!(anvil.nonce_of(rich.address()).await, 0);
    let (ok, text, told) = said(&run(&rich, &anvil, &seller.url("/a"), &[("ASSET", "native")]).await);
    assert!(ok && text == "goods\n", "{told}");
    assert_eq!((anvil.coins_of(SELLER).await - before, anvil.tokens_of(SELLER).await), (9_999, 0));
    let code = seller.codes().remove(0);
    assert_eq!(rich.wallet.sign_code(code.clone()).unwrap().signature, code.signature);
    let mine = json!(format!("{:x}", rich.address()));
    assert_eq!(json!(format!("{:x}", code.payer)), mine);
}
