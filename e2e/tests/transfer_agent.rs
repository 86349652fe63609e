//! `farebox pay --rail transfer` and the shell script that does the same, against the gateway on a real node.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use alloy::{primitives::U256, providers::Provider};
use farebox_e2e::{Account, Answer, Fault, FaultProxy, Shop, ShopOptions, Times, Tool, tool};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Far above what anything here takes, for a machine with ten other things to do.
const SOON: Duration = Duration::from_secs(60);
/// Long after the test.
const NEVER: Duration = Duration::from_secs(600);
const ETHER: &str = "eip155:84532/slip44:60,ETH,18,2500";

/// A payer with a node of its own to ask, which fails as told, and a journal.
struct Purse {
    shop: Shop,
    payer: Account,
    node: FaultProxy,
    folder: TempDir,
}

impl Purse {
    async fn open() -> Self {
        let shop = Shop::open_with(ShopOptions { chain: "confirmations = 2", ..ShopOptions::BOTH }).await.unwrap();
        // Blocks come by themselves, as they do elsewhere.
        shop.anvil.rpc("evm_setIntervalMining", json!([1])).await.unwrap();
        let payer = shop.spender("payer").await.unwrap();
        let node = FaultProxy::start(shop.anvil.url()).await.unwrap();
        Self { shop, payer, node, folder: tempfile::tempdir().unwrap() }
    }

    /// `farebox pay`, by transfer.
    fn pay(&self, arguments: &[&str]) -> Command {
        let mut command = Command::from(self.shop.farebox.setup().command(&["pay", "--rail", "transfer"]).unwrap());
        command.args(arguments).env("FAREBOX_WALLET_KEY", self.payer.key());
        command.env("FAREBOX_JOURNAL", self.folder.path().join("journal"));
        command.env("FAREBOX_RPC", format!("eip155:84532={}", self.node.url()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// The script of `examples`.
    fn script(&self, url: &str, asset: &str) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/pay-by-transfer.sh");
        let cast = tool(Tool::Cast).unwrap();
        #[expect(clippy::disallowed_methods, reason = "the script needs what else is on the path")]
        let path = format!("{}:{}", cast.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.arg(script).arg(url).current_dir(self.folder.path()).env("PATH", path).env("ASSET", asset);
        command.env("RPC_URL", self.node.url()).env("ETH_PRIVATE_KEY", self.payer.key());
        command.env("MAX_UNITS", "10000000000000").env("no_proxy", "127.0.0.1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// One transaction of the payer paid, one run of the upstream answered, and the books agree with the chain.
    async fn paid_once(&self) {
        assert_eq!(self.shop.anvil.transaction_count(self.payer.address()).await.unwrap(), 1);
        let audit = self.shop.audit().await.unwrap();
        assert_eq!(audit.payments.len(), 1, "{:#?}", audit.payments);
        let row = &audit.payments[0];
        let told = json!([row["state"], row["delivery"], row["rail"], row["credit_units"]]);
        assert_eq!(told, json!(["settled", "delivered", "transfer", "0"]), "{row}");
    }
}

/// The echo that was paid for.
#[track_caller]
fn echo(output: &Output) -> Value {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

#[tokio::test]
async fn our_own_command_pays_by_transfer_in_usdc_and_in_ether() {
    for arguments in [&[][..], &["--asset", ETHER]] {
        let purse = Purse::open().await;
        let url = purse.shop.farebox.url("/after/report?id=7");
        if arguments.len() > 1 {
            // No USDC, so that the coin is what is left.
            let all = purse.shop.usdc.balance_of(purse.payer.address()).await.unwrap();
            let away = purse.shop.usdc.transfer(alloy::primitives::Address::repeat_byte(9), all);
            purse.shop.anvil.send(&purse.payer, away).await.unwrap();
        }
        let before = purse.shop.anvil.transaction_count(purse.payer.address()).await.unwrap();
        let output = purse.pay(&[arguments, &["--max", "0.01", &url]].concat()).output().await.unwrap();
        assert_eq!(echo(&output)["path"], "/after/report?id=7");
        assert_eq!(purse.shop.anvil.transaction_count(purse.payer.address()).await.unwrap(), before + 1);
        assert_eq!(purse.shop.echo.hits(), 1);
        let audit = purse.shop.audit().await.unwrap();
        let row = &audit.payments[0];
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(row["transaction"].as_str().unwrap()), "{told}");
        assert_eq!((audit.payments.len(), &row["rail"]), (1, &json!("transfer")));
        // Asked once more it buys once more.
        let output = purse.pay(&[arguments, &[&url]].concat()).output().await.unwrap();
        echo(&output);
        assert_eq!(purse.shop.audit().await.unwrap().in_state("settled").count(), 2);
    }
}

#[tokio::test]
async fn our_own_command_sends_nothing_that_costs_more_than_allowed() {
    let purse = Purse::open().await;
    let url = purse.shop.farebox.url(Shop::AFTER);
    for refused in [&["--max", "0.009999", &url][..], &["--max-gas", "0.000000000001", &url], &["--dry-run", &url]] {
        let output = purse.pay(refused).output().await.unwrap();
        let expected = if refused[0] == "--dry-run" { Some(0) } else { Some(4) };
        assert_eq!(output.status.code(), expected, "{refused:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(purse.shop.anvil.transaction_count(purse.payer.address()).await.unwrap(), 0);
    assert_eq!(purse.shop.payments().await.unwrap(), Vec::<Value>::new());
}

/// Kills the command with SIGKILL.
async fn kill_9(mut child: Child) {
    child.kill().await.unwrap();
}

#[tokio::test]
async fn killed_at_any_step_our_own_command_never_pays_twice() {
    const SEND: &str = "eth_sendRawTransaction";
    for (name, method, fault) in [
        ("before it is sent", SEND, Fault::Delay(NEVER)),
        ("when it is sent and not told", SEND, Fault::HoldAnswer),
        ("while it waits for confirmations", "eth_getTransactionReceipt", Fault::HoldAnswer),
    ] {
        let purse = Purse::open().await;
        let url = purse.shop.farebox.url(Shop::AFTER);
        purse.node.fail(method, Times::Always, fault);
        let child = purse.pay(&[&url]).spawn().unwrap();
        purse.node.wait_for_calls(method, 1, SOON).await.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        // What is held has been executed only once the node has answered the proxy.
        tokio::time::sleep(Duration::from_millis(300)).await;
        kill_9(child).await;
        purse.node.heal();
        let output = purse.pay(&[&url]).output().await.unwrap();
        assert_eq!(echo(&output)["path"], Shop::AFTER, "{name}");
        purse.paid_once().await;
        assert_eq!(purse.shop.echo.hits(), 1, "{name}");
    }
}

#[tokio::test]
async fn killed_while_it_is_served_our_own_command_redeems_what_it_paid() {
    let mut purse = Purse::open().await;
    let url = purse.shop.farebox.url(Shop::AFTER);
    purse.shop.echo.answer_next(Answer::Held);
    let child = purse.pay(&[&url]).spawn().unwrap();
    purse.shop.echo.wait_for_hits(1, SOON).await.unwrap();
    kill_9(child).await;
    purse.shop.farebox.restart().await.unwrap();
    let output = purse.pay(&[&url]).output().await.unwrap();
    assert_eq!(echo(&output)["path"], Shop::AFTER);
    purse.paid_once().await;
}

#[tokio::test]
async fn the_shell_script_pays_once_in_usdc_and_in_ether() {
    let purse = Purse::open().await;
    let usdc = farebox_e2e::Usdc::ADDRESS.to_string();
    for (number, asset) in [usdc.as_str(), "native"].into_iter().enumerate() {
        let path = format!("/after/report?number={number}");
        let output = purse.script(&purse.shop.farebox.url(&path), asset).output().await.unwrap();
        assert_eq!(echo(&output)["path"], path);
        assert_eq!(purse.shop.anvil.transaction_count(purse.payer.address()).await.unwrap(), number as u64 + 1);
        assert_eq!(purse.shop.audit().await.unwrap().in_state("settled").count(), number + 1);
    }
    assert_eq!(purse.shop.usdc.transfers(purse.payer.address(), Shop::SELLER).await.unwrap().len(), 1);
    assert_eq!(purse.shop.anvil.provider().get_balance(Shop::SELLER).await.unwrap(), U256::from(4_000_000_000_000_u64));
}

#[tokio::test]
async fn killed_after_it_has_sent_the_shell_script_claims_what_it_sent() {
    let purse = Purse::open().await;
    let url = purse.shop.farebox.url(Shop::AFTER);
    purse.node.fail("eth_getTransactionReceipt", Times::Always, Fault::HoldAnswer);
    let usdc = farebox_e2e::Usdc::ADDRESS.to_string();
    let child = purse.script(&url, &usdc).spawn().unwrap();
    purse.node.wait_for_calls("eth_getTransactionReceipt", 1, SOON).await.unwrap();
    kill_9(child).await;
    purse.node.heal();
    purse.node.release(100);
    // Its lock is held by its last child until that ends.
    let until = tokio::time::Instant::now() + SOON;
    let output = loop {
        let output = purse.script(&url, &usdc).output().await.unwrap();
        let busy = String::from_utf8_lossy(&output.stderr).contains("another run");
        assert!(!busy || tokio::time::Instant::now() < until, "{output:?}");
        if !busy {
            break output;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(echo(&output)["path"], Shop::AFTER);
    purse.paid_once().await;
}
