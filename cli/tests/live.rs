//! `farebox check --live`, against an embedded chain in place of a real one.

#![cfg(all(unix, feature = "demo"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use farebox_devchain::{Address, DevChain, DevChainConfig, TokenConfig, U256};
use farebox_evm::{ETHER, EvmKey};

const KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const USDC: &str = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";

/// A chain with the token, a relayer with gas, an upstream that counts, and a folder for the config.
struct World {
    chain: DevChain,
    upstream: String,
    calls: Arc<AtomicU64>,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the chain keeps the machine's time")]
        let clock = Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
        let mut config = DevChainConfig::new(84532, clock);
        let relayer = EvmKey::from_hex(KEY).unwrap().address();
        config.accounts = vec![(Address::from(relayer.0), U256::from(10 * ETHER))];
        let chain = DevChain::start(config).await.unwrap();
        let (name, symbol, version) = ("USDC".into(), "USDC".into(), "2".into());
        let address = Some(USDC.parse().unwrap());
        chain.deploy_token(&TokenConfig { address, name, symbol, version, decimals: 6 }).unwrap();
        let calls = Arc::new(AtomicU64::new(0));
        let counter = calls.clone();
        let router = axum::Router::new().fallback(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            async { "hello" }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { chain, upstream, calls, dir: tempfile::tempdir().unwrap() }
    }

    /// A config without a fault, but that its network is a test network.
    fn good(&self) -> String {
        format!(
            "listen = \"127.0.0.1:0\"\npublic_url = \"http://localhost:8402\"\n\n[admin]\n\n[transfer]\n\n\
             [[rate]]\nsymbol = \"ETH\"\nfixed = \"3000\"\n\n\
             [[chain]]\nnetwork = \"eip155:84532\"\nrpc = \"{}\"\nassets = [\"USDC\", \"native\"]\n\
             pay_to = \"0x209693Bc6afc0C5328bA36FaF03C514EF312287C\"\nrelayer = {{ key = \"${{FAREBOX_RELAYER_KEY}}\" }}\n\n\
             [[route]]\nmatch = \"GET /v1/{{name}}\"\nupstream = \"{}\"\nprice = \"$1\"\n\n\
             [[route]]\nmatch = \"GET /health\"\nupstream = \"{}\"\nfree = true\n",
            self.chain.url(),
            self.upstream,
            self.upstream
        )
    }

    async fn check(&self, config: &str, arguments: &[&str]) -> (i32, String) {
        let path = self.dir.path().join("farebox.toml");
        std::fs::write(&path, config).unwrap();
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let dir = self.dir.path().to_owned();
        tokio::task::spawn_blocking(move || run(&dir, &arguments)).await.unwrap()
    }
}

fn run(dir: &Path, arguments: &[String]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_farebox"))
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .env("FAREBOX_RELAYER_KEY", KEY)
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.lines().all(|line| line.contains(" WARN a rate could not be read")), "{stderr}");
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// The text without what differs from run to run: addresses, numbers and names of payments.
fn steady(text: &str) -> String {
    let steady_word = |word: &str| {
        if word.contains("127.0.0.1") {
            return "<address>".to_owned();
        }
        if word.starts_with("pay_") && !word.starts_with("pay_to") {
            return "<payment>".to_owned();
        }
        if word.contains("0x") || word.contains("eip155") || word.starts_with("/v1/") || word.contains("402") {
            return word.to_owned();
        }
        let mut steady = String::new();
        for c in word.chars() {
            let digit = c.is_ascii_digit() || (c == '.' && steady.ends_with('N'));
            match digit {
                true if steady.ends_with('N') => {}
                true => steady.push('N'),
                false => steady.push(c),
            }
        }
        steady
    };
    let line = |line: &str| line.split(' ').map(steady_word).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_config_passes_and_its_rehearsal_pays_by_every_rail() {
    let world = World::new().await;
    let (code, text) = world.check(&world.good(), &["check", "--live", "--rehearse"]).await;
    assert_eq!(code, 0, "{text}");
    insta::assert_snapshot!("good", steady(&text));
    // One OPTIONS; rehearsed payments went to the sample.
    assert_eq!(world.calls.load(Ordering::Relaxed), 1);
    assert_eq!(world.chain.block_number(), 0, "no transaction was sent to the configured chain");
    let left: Vec<_> = std::fs::read_dir(world.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["farebox.toml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_config_fails_with_a_line_for_every_fault() {
    let world = World::new().await;
    let bad = world
        .good()
        .replace("0x209693Bc6afc0C5328bA36FaF03C514EF312287C", &USDC.to_lowercase())
        .replace("[admin]\n", "")
        .replace(
            "http://localhost:8402\"",
            "http://api.example\"\ntrusted_proxies = [\"0.0.0.0/0\"]\naudit_file = \"none/audit.jsonl\"",
        )
        .replace(
            "[[route]]\nmatch = \"GET /health\"",
            "[log]\nlevel = \"debug\"\n\n[[route]]\nmatch = \"GET /health\"",
        );
    let (code, text) = world.check(&bad, &["check", "--live"]).await;
    assert_eq!(code, 1, "{text}");
    insta::assert_snapshot!("bad", steady(&text));
}

#[tokio::test(flavor = "multi_thread")]
async fn json_has_the_findings_and_a_price_below_its_gas_warns() {
    let world = World::new().await;
    let cheap = world.good().replace("\"$1\"", "\"$0.001\"");
    let (code, text) = world.check(&cheap, &["check", "--live", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, json["outcome"].as_str()), (0, Some("warn")), "{text}");
    let findings = json["findings"].as_array().unwrap();
    let fee = findings.iter().find(|finding| finding["code"] == "network_fee").unwrap();
    assert!(fee["outcome"] == "warn" && fee["message"].as_str().unwrap().contains("loses money"), "{fee}");
}

/// A restart during a gas spike: the other rail still sells, and the fee may fall.
#[tokio::test(flavor = "multi_thread")]
async fn a_fee_over_its_share_is_warned_of_and_the_gateway_starts_without_that_offer() {
    let world = World::new().await;
    let more = "[admin]\nlisten = \"127.0.0.1:0\"\n\n[log]\nformat = \"json\"\n";
    let dear = world.good().replace("[admin]\n", more).replace("\"$1\"", "\"$0.001\"\nmax_fee_share = \"1%\"");
    let (code, text) = world.check(&dear, &["check"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("warn  route GET /v1/{name}: is not offered by x402 now: the network fee is"), "{text}");
    assert!(text.contains("raise max_fee_share") && text.contains("with a bill of 2 offers"), "{text}");
    let (serving, base, _) = world.serve(&dear);
    assert_eq!(get(&format!("{base}/v1/a")).await.0, 402);
    drop(serving);

    let alone = dear.replace("[transfer]\n", "");
    let (code, text) = world.check(&alone, &["check"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("nothing else is, so it is answered 503"), "{text}");
    let (_serving, base, _) = world.serve(&alone);
    assert_eq!(get(&format!("{base}/v1/a")).await.0, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_takes_transfers_alone_passes_its_check() {
    let world = World::new().await;
    let alone = world.good().replace("relayer = { key = \"${FAREBOX_RELAYER_KEY}\" }\n", "");
    for arguments in [&["check"][..], &["check", "--live"]] {
        let (code, text) = world.check(&alone, arguments).await;
        assert_eq!(code, 0, "{text}");
    }
    let (_, text) = world.check(&alone, &["check"]).await;
    assert!(text.contains("is answered 402 with a bill of 2 offers"), "{text}");
}

/// The node is not there, and no invoice is made: neither keeps the other rails from being tried.
#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_takes_lightning_too_is_rehearsed_by_its_other_rails() {
    let world = World::new().await;
    let node = "{ lnd = { url = \"http://127.0.0.1:1\", macaroon = \"${FAREBOX_RELAYER_KEY}\" } }";
    let lightning = format!(
        "[lightning]\nnetwork = \"regtest\"\nnode = {node}\n\n[[rate]]\nsymbol = \"BTC\"\nfixed = \"60000\"\n\n[[chain]]"
    );
    let (code, told) =
        world.check(&world.good().replacen("[[chain]]", &lightning, 1), &["check", "--live", "--rehearse"]).await;
    for line in [
        "FAIL  lightning, Bitcoin's regtest: lnd at http://127.0.0.1:1 did not answer",
        "pass  unpaid GET /v1/check, l402: is offered for 1667 sat; start the gateway to have an invoice looked at",
        "pass  unpaid GET /v1/check, x402: is billed in header and body",
        "pass  rehearsal, books of x402: has payment",
        "pass  rehearsal, books of transfer: has payment",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(code == 1 && told.contains("1 failed"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_no_rate_prices_names_the_rate() {
    let world = World::new().await;
    let nowhere = "http = { url = \"http://127.0.0.1:1/\", pointer = \"/x\" }";
    let config = world.good().replace("fixed = \"3000\"", nowhere).replace("[\"USDC\", \"native\"]", "[\"native\"]");
    let config = config.replace("relayer = { key = \"${FAREBOX_RELAYER_KEY}\" }\n", "");
    let (code, text) = world.check(&config, &["check"]).await;
    assert_eq!(code, 1, "{text}");
    let line = text.lines().find(|line| line.starts_with("FAIL")).unwrap();
    assert!(line.contains("answered 503") && line.contains("ETH") && line.contains("[[rate]]"), "{text}");
    assert!(!text.contains("is it this config's gateway"), "{text}");
}

/// A gateway that is killed if the test ends before it does.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    /// Serves the config, and gives the gateway, its address and that of its metrics.
    fn serve(&self, config: &str) -> (Serving, String, String) {
        std::fs::write(self.dir.path().join("farebox.toml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_farebox"))
            .arg("serve")
            .current_dir(self.dir.path())
            .env_clear()
            .env("FAREBOX_RELAYER_KEY", KEY)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut addresses = Vec::new();
        for expected in ["metrics and health", "listening"] {
            let line = log.find_map(|line| {
                let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
                (line["message"] == expected).then(|| line["address"].as_str().unwrap().to_owned())
            });
            addresses.push(format!("http://{}", line.unwrap()));
        }
        std::thread::spawn(move || log.for_each(drop));
        (Serving(child), addresses.remove(1), addresses.remove(0))
    }
}

impl World {
    /// A payer with money gets what costs it.
    async fn pays(&self, url: &str) {
        let payer = "22".repeat(32);
        let account = Address::from(EvmKey::from_hex(&payer).unwrap().address().0);
        self.chain.mint(USDC.parse().unwrap(), account, U256::from(5_000_000)).unwrap();
        let arguments = ["pay", "--rail", "x402", "--max", "$2", url].map(str::to_owned);
        let dir = self.dir.path().to_owned();
        let paid = tokio::task::spawn_blocking(move || {
            let mut pay = Command::new(env!("CARGO_BIN_EXE_farebox"));
            pay.args(arguments).current_dir(&dir).env_clear().env("HOME", &dir).env("FAREBOX_WALLET_KEY", payer);
            pay.output().unwrap()
        });
        let paid = paid.await.unwrap();
        assert!(paid.status.success(), "{}", String::from_utf8_lossy(&paid.stderr));
    }
}

async fn get(url: &str) -> (u16, String) {
    // The other test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// The value of one line of metrics.
fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_gateway_tells_metrics_and_readiness_and_is_checked_as_it_runs() {
    let world = World::new().await;
    let config = world.good().replace("[admin]\n", "[admin]\nlisten = \"127.0.0.1:0\"\n\n[log]\nformat = \"json\"\n");
    let (serving, gateway, admin) = world.serve(&config);
    assert_eq!(get(&format!("{gateway}/health")).await.0, 200);
    assert_eq!(get(&format!("{gateway}/v1/x")).await.0, 402);
    assert_eq!(get(&format!("{gateway}/none")).await.0, 404);
    assert_eq!(get(&format!("{admin}/healthz")).await.0, 200);
    // A head is known from the first look at the chain on.
    let mut ready = get(&format!("{admin}/readyz")).await;
    for _ in 0..100 {
        if ready.0 == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        ready = get(&format!("{admin}/readyz")).await;
    }
    assert_eq!(ready.0, 200, "{}", ready.1);
    let (_, text) = get(&format!("{admin}/metrics")).await;
    let requests = |route: &str, outcome: &str| {
        metric(&text, &format!("farebox_requests_total{{route=\"{route}\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!((requests("GET /health", "free"), requests("GET /v1/{name}", "billed")), (1.0, 1.0), "{text}");
    assert_eq!(metric(&text, "farebox_answers_total{code=\"no_such_route\"}"), 1.0);
    assert_eq!(metric(&text, "farebox_chain_height{network=\"eip155:84532\"}"), 0.0);
    assert_eq!(metric(&text, "farebox_relayer_in_flight{network=\"eip155:84532\"}"), 0.0);
    assert_eq!(metric(&text, "farebox_audit_queue"), 0.0);
    world.pays(&format!("{gateway}/v1/x")).await;
    let (_, text) = get(&format!("{admin}/metrics")).await;
    for (name, expected) in [
        ("farebox_requests_total{route=\"GET /v1/{name}\",outcome=\"paid\"}", 1.0),
        ("farebox_verifications_total{rail=\"x402\",verdict=\"good\"}", 1.0),
        ("farebox_settlements_total{rail=\"x402\",outcome=\"final\"}", 1.0),
        ("farebox_settlement_time_seconds_count{rail=\"x402\"}", 1.0),
        ("farebox_claims_total{rail=\"x402\",outcome=\"granted\"}", 1.0),
        ("farebox_payment_events_total{rail=\"x402\",event=\"settled\"}", 1.0),
        ("farebox_payment_events_total{rail=\"x402\",event=\"delivered\"}", 1.0),
        ("farebox_ledger_time_seconds_count{operation=\"claim\",kind=\"write\"}", 1.0),
        ("farebox_unverifiable_total{network=\"eip155:84532\"}", 0.0),
    ] {
        assert_eq!(metric(&text, name), expected, "{name}\n{text}");
    }
    assert!(text.contains("standing=\"good\"} 1.0\n") && text.ends_with("# EOF\n"), "{text}");
    let url = gateway.clone();
    let (code, told) =
        world.check(&config.replace("127.0.0.1:0", &admin[7..]), &["check", "--live", "--url", &url]).await;
    assert!(code == 0 && told.contains(&format!("somebody answers at {url}")), "{told}");
    assert!(!told.contains("FAIL") && told.contains("transfer: is billed: "), "{told}");
    // Without --url it is found where the config says, and its quotes are opened with the keys of its books.
    let here = config.replacen("127.0.0.1:0", &gateway[7..], 1).replace("127.0.0.1:0", &admin[7..]);
    let (code, told) = world.check(&here, &["check", "--live"]).await;
    assert!(code == 0 && told.contains("transfer: is billed, and the quote is ours: "), "{told}");
    drop(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_chain_stands_still_is_not_ready_and_says_why() {
    let world = World::new().await;
    let more = "[admin]\nlisten = \"127.0.0.1:0\"\n\n[log]\nformat = \"json\"\n";
    let still = world.good().replace("[admin]\n", more).replace("[[chain]]\n", "[[chain]]\nhead_age_max = \"5s\"\n");
    let (_serving, _, admin) = world.serve(&still);
    let told = async {
        loop {
            let (status, body) = get(&format!("{admin}/readyz")).await;
            if status == 503 && body.contains("head_age_max is 5 s") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), told).await.unwrap();
}
