//! `farebox check --live`, against an embedded chain in place of a real one.

#![cfg(all(unix, feature = "demo"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    path::Path,
    process::Command,
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
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
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
