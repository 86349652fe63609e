//! The binary as its user meets it: arguments, files and environment in; text and exit code out.

#![expect(clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    path::Path,
    process::{Command, Output},
};

const KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const PAY_TO: &str = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C";

const CONFIG: &str = r#"
[[chain]]
network = "eip155:84532"
rpc = ["http://127.0.0.1:1"]
assets = ["USDC"]
pay_to = "${FAREBOX_PAY_TO}"
relayer = { key = "${FAREBOX_RELAYER_KEY}" }

[[route]]
match = "GET /v1/{name}"
upstream = "http://127.0.0.1:1/base"
price = "$0.01"

[[route]]
match = "GET /health"
upstream = "http://127.0.0.1:1"
free = true
"#;

/// Runs the binary in a folder with nothing but these variables, and returns exit code, standard output and standard error.
fn run(dir: &Path, arguments: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_farebox"))
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

fn folder(config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("farebox.toml"), config).expect("a file");
    dir
}

#[test]
fn init_writes_a_config_that_check_accepts_once_the_variables_are_set() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = run(dir.path(), &["init"], &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("farebox check"), "{out}");
    let (code, out, err) =
        run(dir.path(), &["check", "--offline"], &[("FAREBOX_RELAYER_KEY", KEY), ("FAREBOX_PAY_TO", PAY_TO)]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("0 failed"), "{out}");
}

#[test]
fn init_never_overwrites() {
    let dir = folder("mine");
    let (code, _, err) = run(dir.path(), &["init"], &[]);
    assert_eq!(code, 1);
    assert!(err.contains("exists, and is never overwritten"), "{err}");
    assert_eq!(std::fs::read_to_string(dir.path().join("farebox.toml")).unwrap(), "mine");
}

#[cfg(unix)]
#[test]
fn init_writes_for_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(dir.path(), &["init", "a.toml"], &[]).0, 0);
    assert_eq!(std::fs::metadata(dir.path().join("a.toml")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn price_names_route_upstream_and_terms_without_secrets() {
    let dir = folder(CONFIG);
    let (code, out, err) = run(dir.path(), &["price", "GET", "/v1/x%41?q=1"], &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "route     GET /v1/{name}\n\
         match     GET /v1/{name}\n\
         upstream  http://127.0.0.1:1/base/v1/xA?q=1\n\
         price     $0.01\n\
         rails     x402\n\
         settle    before_response\n\
         pay       USDC on eip155:84532 to ${FAREBOX_PAY_TO} (0x036CbD53842c5426634e7929541eC2318f3dCF7e)\n"
    );
    let (code, out, _) = run(dir.path(), &["price", "HEAD", "/health", "--json"], &[]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["verdict"], &json["charge"]), (0, &"route".into(), &serde_json::Value::Null));
}

#[test]
fn price_says_plainly_what_has_no_route_and_what_is_ambiguous() {
    let dir = folder(CONFIG);
    for (path, part) in [("/v2/x", "404"), ("/v1/a%2fb", "400"), ("/v1//x", "400"), ("/V1/x", "")] {
        let (code, out, _) = run(dir.path(), &["price", "GET", path], &[]);
        assert!(code == 1 && out.contains(part), "{path}: {code} {out}");
    }
    assert_eq!(run(dir.path(), &["price", "G ET", "/"], &[]).0, 1);
}

#[test]
fn a_mistake_is_told_with_its_line_by_every_command() {
    let dir = folder(&CONFIG.replace("price", "prise"));
    for arguments in [&["price", "GET", "/"][..], &["check"], &["serve"], &["payments"], &["audit", "verify"]] {
        let (code, out, err) = run(dir.path(), arguments, &[]);
        assert_eq!((code, out.as_str()), (1, ""), "{arguments:?}");
        assert!(err.contains("farebox.toml:12:1, route[0].prise") && err.contains("did you mean `price`?"), "{err}");
    }
    let (code, out, _) = run(dir.path(), &["check", "--json"], &[]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["outcome"]), (1, &"fail".into()));
    assert_eq!(json["findings"][0]["subject"], "farebox.toml:12:1, route[0].prise");
}

#[test]
fn secrets_that_are_missing_are_told_all_at_once_and_never_printed() {
    let dir = folder(CONFIG);
    let (code, _, err) = run(dir.path(), &["serve"], &[]);
    assert_eq!(code, 1);
    assert!(err.contains("FAREBOX_RELAYER_KEY is not set") && err.contains("FAREBOX_PAY_TO is not set"), "{err}");
    let almost = format!("{KEY}1");
    let (code, _, err) = run(dir.path(), &["check"], &[("FAREBOX_RELAYER_KEY", &almost), ("FAREBOX_PAY_TO", PAY_TO)]);
    assert!(code == 1 && !err.contains(KEY), "{err}");
}

#[test]
fn the_config_is_named_by_argument_or_environment_and_paths_start_at_its_folder() {
    let dir = folder("");
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    let config = CONFIG.replace("${FAREBOX_RELAYER_KEY}", "file:relayer.key");
    std::fs::write(dir.path().join("etc/shop.toml"), config).unwrap();
    std::fs::write(dir.path().join("etc/relayer.key"), KEY).unwrap();
    let pay_to = ("FAREBOX_PAY_TO", PAY_TO);
    assert_eq!(run(dir.path(), &["check", "--offline", "--config", "etc/shop.toml"], &[pay_to]).0, 0);
    assert_eq!(run(dir.path(), &["check", "--offline"], &[pay_to, ("FAREBOX_CONFIG", "etc/shop.toml")]).0, 0);
    let (code, _, err) = run(dir.path(), &["price", "GET", "/", "--config", "none.toml"], &[]);
    assert!(code == 1 && err.contains("there is no config file none.toml") && err.contains("farebox init"), "{err}");
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let dir = folder(CONFIG);
    for arguments in [&["prize"][..], &["price", "GET"], &["check", "--ofline"], &[]] {
        assert_eq!(run(dir.path(), arguments, &[]).0, 2, "{arguments:?}");
    }
    let (code, out, _) = run(dir.path(), &["--version"], &[]);
    assert!(code == 0 && out.starts_with("farebox "), "{out}");
}

#[test]
fn a_price_too_fine_for_a_known_token_is_told_without_a_chain() {
    let dir = folder(&CONFIG.replace("$0.01", "$0.0000001"));
    for arguments in [&["check", "--offline"][..], &["price", "GET", "/v1/x"]] {
        let (code, _, err) = run(dir.path(), arguments, &[("FAREBOX_RELAYER_KEY", KEY), ("FAREBOX_PAY_TO", PAY_TO)]);
        assert!(code == 1 && err.contains("route[0].price") && err.contains("cannot be charged in USDC"), "{err}");
    }
    let dir = folder(&CONFIG.replace("$0.01", "$0.000001"));
    assert_eq!(run(dir.path(), &["price", "GET", "/v1/x"], &[]).0, 0, "the finest price there is");
}

#[test]
fn a_coin_that_is_on_no_bill_is_told() {
    let config = CONFIG.replace("[\"USDC\"]", "[\"USDC\", \"native\"]");
    let transfers = "public_url = \"https://a.example\"\n[transfer]\n";
    let env = [("FAREBOX_RELAYER_KEY", KEY), ("FAREBOX_PAY_TO", PAY_TO)];
    let wrong = "[[rate]]\nsymbol = \"WETH\"\nfixed = \"3000\"\n";
    for (config, part) in [
        (format!("{transfers}{config}"), "needs a [[rate]] with symbol = \"ETH\""),
        (format!("{transfers}{config}{wrong}"), "needs a [[rate]] with symbol = \"ETH\""),
        (config.clone(), "add a [transfer] table"),
    ] {
        let (code, out, _) = run(folder(&config).path(), &["check", "--offline"], &env);
        assert!(code == 0 && out.contains("ETH on eip155:84532 is configured and never offered"), "{out}");
        assert!(out.contains(part) && !out.contains("USDC on"), "{out}");
    }
    let right = wrong.replace("WETH", "ETH");
    let (_, out, _) = run(folder(&format!("{transfers}{config}{right}")).path(), &["check", "--offline"], &env);
    assert!(!out.contains("never offered"), "{out}");
}

/// PAINS 11: a shop whose chain cannot be asked must not open.
#[test]
fn serve_refuses_to_start_when_no_node_answers() {
    let dir = folder(CONFIG);
    let (code, _, err) = run(dir.path(), &["serve"], &[("FAREBOX_RELAYER_KEY", KEY), ("FAREBOX_PAY_TO", PAY_TO)]);
    assert_eq!(code, 1);
    assert!(err.contains("eip155:84532") && err.contains("no node answered"), "{err}");
}

#[test]
fn check_tells_every_fault_of_the_world_and_leaves_nothing_behind() {
    let dir = folder(CONFIG);
    let env = [("FAREBOX_RELAYER_KEY", KEY), ("FAREBOX_PAY_TO", PAY_TO)];
    let (code, out, err) = run(dir.path(), &["check", "--json"], &env);
    assert_eq!((code, err.as_str()), (1, ""));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    let failed = |code: &str| {
        let findings = json["findings"].as_array().unwrap();
        findings.iter().any(|finding| finding["outcome"] == "fail" && finding["code"] == code)
    };
    assert!(failed("upstream") && !failed("ledger"), "{out}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["farebox.toml"]);
}

#[test]
fn an_exported_audit_log_is_checked_without_config_or_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let zeros = "0".repeat(64);
    // By hand, as the page on the audit log says: one line that follows nothing.
    let line =
        format!(r#"{{"sequence":1,"time":"2026-11-23T00:00:00.000Z","outcome":"claimed","previous":"{zeros}"}}"#);
    std::fs::write(dir.path().join("audit.jsonl"), format!("{line}\n")).unwrap();
    let (code, out, err) = run(dir.path(), &["audit", "verify", "--file", "audit.jsonl"], &[]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.starts_with("the audit log is whole: 1 entry, 2026-11-23T00:00:00.000Z to "), "{out}");
    std::fs::write(dir.path().join("audit.jsonl"), format!("{line}\n{line}\n")).unwrap();
    let (code, out, err) = run(dir.path(), &["audit", "verify", "--file", "audit.jsonl"], &[]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("the audit log is not whole") && err.contains("entry 2 is missing"), "{err}");
    let (code, _, err) = run(dir.path(), &["audit", "verify", "--expect", &zeros[1..], "--file", "audit.jsonl"], &[]);
    assert!(code == 2 && err.contains("expected 64 hex digits"), "{code} {err}");
    assert_eq!(run(dir.path(), &["audit", "verify"], &[]).0, 1, "without a file it takes a config");
}

#[cfg(feature = "demo")]
#[test]
fn the_demo_pays_by_both_rails_and_its_books_agree_with_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = run(dir.path(), &["demo"], &[]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("3            settled") && out.contains("the seller holds 0.03 USDC"), "{out}");
    assert!(out.contains("  transfer  0x") && out.contains("  x402      0x"), "{out}");
}
