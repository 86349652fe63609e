use std::path::Path;

use proptest::prelude::*;

use super::*;

const CHAIN: &str = r#"
[[chain]]
network = "eip155:84532"
rpc = ["http://127.0.0.1:8545"]
assets = ["USDC"]
pay_to = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
relayer = { key = "${FAREBOX_RELAYER_KEY}" }
"#;

const ROUTE: &str = r#"
[[route]]
match = "GET /v1/*"
upstream = "http://127.0.0.1:9000"
price = "$0.01"
"#;

const LIGHTNING: &str = r#"
[lightning]
network = "regtest"
node = { lnd = { url = "https://127.0.0.1:8080", macaroon = "file:invoices.macaroon", cert = "tls.cert" } }
"#;

/// What a seller by Lightning alone writes.
const INVOICED: &str = r#"
[[route]]
match = "GET /v1/*"
upstream = "http://127.0.0.1:9000"
price = "10 sat"
"#;

/// The mistakes of a seller by Lightning alone in which `from` is replaced by `to`.
fn told_of_invoices(from: &str, to: &str) -> String {
    let good = format!("{LIGHTNING}{INVOICED}");
    assert!(good.contains(from), "{from}");
    told(&good.replacen(from, to, 1))
}

fn told(text: &str) -> String {
    parse(Path::new("farebox.toml"), text).expect_err("a mistake").to_string()
}

/// The mistakes of the ten-line config in which `from` is replaced by `to`.
fn told_of(from: &str, to: &str) -> String {
    let good = format!("{CHAIN}{ROUTE}");
    assert!(good.contains(from), "{from}");
    told(&good.replacen(from, to, 1))
}

/// The mistakes that are told of the ten-line config once its secrets are fetched.
fn told_with(from: &str, to: &str, env: &[(&str, &str)]) -> String {
    let text = format!("{CHAIN}{ROUTE}").replacen(from, to, 1);
    let config = parse(Path::new("no-such-folder/farebox.toml"), &text).expect("a config");
    let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    config.secrets(&env).expect_err("a mistake").to_string()
}

/// One test a mistake: its name is a sentence, its snapshot what the user reads.
macro_rules! mistakes {
    ($($name:ident: $told:expr;)+) => { $(
        #[test]
        fn $name() {
            let mut settings = insta::Settings::clone_current();
            settings.set_prepend_module_to_snapshot(false);
            settings.set_omit_expression(true);
            settings.bind(|| insta::assert_snapshot!(stringify!($name), $told));
        }
    )+ };
}

mistakes! {
    an_unknown_key_is_told_with_its_nearest_neighbour: told_of("price", "prise");
    an_unknown_key_without_neighbour_is_told_with_all_that_are_known: told_of("price", "zzz");
    an_unknown_table_is_told_like_an_unknown_key: told(&format!("[serve]\nworkers = 2\n{CHAIN}{ROUTE}"));
    a_dash_in_a_key_is_taken_for_an_underscore: told_of("pay_to", "pay-to");
    transfers_without_a_public_url_are_refused: told(&format!("[transfer]\n{CHAIN}{ROUTE}"));
    a_claim_that_ends_before_the_payment_is_refused:
        told(&format!("public_url = \"https://a.example\"\ntransfer = {{ pay_within = \"1h\", claim_within = \"10m\" }}\n{CHAIN}{ROUTE}"));
    a_chain_that_no_rail_can_use_is_refused: told_of("relayer = { key = \"${FAREBOX_RELAYER_KEY}\" }\n", "");
    a_rail_without_its_parts_is_refused: told_of("price = ", "rails = [\"transfer\"]\nprice = ");
    a_quorum_of_more_than_there_are_is_refused:
        told_of("assets", "quorum = { agree = 2, above = \"$1\" }\nassets");
    tiers_that_do_not_rise_are_refused:
        told_of("assets", "confirmations = [{ up_to = \"$5\", blocks = 2 }, { up_to = \"$1\", blocks = 1 }, { blocks = 6 }]\nassets");
    tiers_without_a_last_one_are_refused: told_of("assets", "confirmations = [{ up_to = \"$5\", blocks = 2 }]\nassets");
    the_zero_address_is_not_paid:
        told_of("0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "0x0000000000000000000000000000000000000000");
    a_word_that_is_no_finality_is_told: told_of("assets", "confirmations = \"soon\"\nassets");
    a_key_for_a_node_is_refused:
        told_of("[\"http://127.0.0.1:8545\"]", "[{ url = \"http://127.0.0.1:8545\", key = \"${KEY}\" }]");
    a_rate_with_two_sources_is_refused: told(&format!(
        "{CHAIN}{ROUTE}[[rate]]\nsymbol = \"ETH\"\nfixed = \"3000\"\nhttp = {{ url = \"https://a.example\", pointer = \"/x\" }}\n"
    ));
    a_rate_between_nothing_is_refused:
        told(&format!("{CHAIN}{ROUTE}[[rate]]\nsymbol = \"ETH\"\nfixed = \"3000\"\nmin = \"5\"\nmax = \"4\"\n"));
    a_rate_of_a_chain_that_is_not_there_is_refused: told(&format!(
        "{CHAIN}{ROUTE}[[rate]]\nsymbol = \"ETH\"\nchainlink = {{ network = \"eip155:1\", address = \"0x209693Bc6afc0C5328bA36FaF03C514EF312287C\" }}\n"
    ));
    a_fee_that_does_not_say_whether_it_is_included_is_refused: told_of("price = ", "network_fee = { buffer = \"5%\" }\nprice = ");
    broken_toml_is_told_where_it_breaks: told_of("[[route]]", "[[route]");
    broken_toml_hides_the_secret_on_its_line: told_of("\"${FAREBOX_RELAYER_KEY}\" }", "\"0xhunter2");
    a_key_that_stands_twice_is_told: told_of("price = \"$0.01\"", "price = \"$0.01\"\nprice = \"$1\"");
    an_empty_file_lacks_routes: told("");
    an_empty_list_of_routes_sells_nothing: told("route = []");
    a_single_bracket_route_is_told_to_take_two: told("[route]\nmatch = \"GET /\"\n");
    a_missing_upstream_is_told_at_its_route: told_of("upstream = \"http://127.0.0.1:9000\"\n", "");
    a_route_neither_free_nor_priced_is_refused: told_of("price = \"$0.01\"\n", "");
    a_route_both_free_and_priced_is_refused: told_of("price = \"$0.01\"", "price = \"$0.01\"\nfree = true");
    free_false_alone_is_no_price: told_of("price = \"$0.01\"", "free = false");
    a_price_as_a_number_is_refused: told_of("\"$0.01\"", "0.01");
    a_price_without_currency_is_refused: told_of("$0.01", "0.01");
    a_price_of_zero_is_not_free: told_of("$0.01", "$0");
    a_price_in_an_unknown_token_names_it: told_of("$0.01", "0.01 EURC");
    a_dollar_price_on_a_chain_without_dollars_names_the_chain: told_of(
        "[\"USDC\"]",
        "[{ address = \"0x036CbD53842c5426634e7929541eC2318f3dCF7e\", symbol = \"EURC\" }]",
    );
    a_price_without_a_chain_is_refused: told(ROUTE);
    a_test_network_beside_a_real_one_is_refused: told(&format!("{CHAIN}{}{ROUTE}", CHAIN.replace("84532", "8453")));
    a_network_that_stands_twice_is_refused: told(&format!("{CHAIN}{CHAIN}{ROUTE}"));
    a_network_by_its_nickname_is_refused: told_of("eip155:84532", "base-sepolia");
    a_network_of_another_kind_is_refused: told_of("eip155:84532", "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp");
    an_unknown_token_names_the_known_ones: told_of("\"USDC\"", "\"USDT\"");
    a_token_that_stands_twice_is_refused: told_of("[\"USDC\"]", "[\"USDC\", \"USDC\"]");
    a_token_table_with_a_wrong_key_is_told_in_its_place: told_of("\"USDC\"", "{ adress = \"0x00\", symbol = \"X\" }");
    an_address_with_a_wrong_checksum_is_told_with_the_right_one: told_of("0x2096", "0x2196");
    a_short_address_is_refused: told_of("287C", "287");
    a_private_key_in_the_file_is_refused_and_not_shown: told_of("${FAREBOX_RELAYER_KEY}", &"ab".repeat(32));
    a_secret_in_the_file_is_refused_and_not_shown: told_of("key = \"${FAREBOX_RELAYER_KEY}\"",
        "keystore = \"k.json\", password = \"hunter2\"");
    a_keystore_needs_its_password: told_of("key = \"${FAREBOX_RELAYER_KEY}\"", "keystore = \"k.json\"");
    a_relayer_is_a_key_or_a_keystore: told_of("{ key = \"${FAREBOX_RELAYER_KEY}\" }", "{}");
    an_rpc_url_of_another_scheme_is_refused_and_not_shown: told_of("http://127.0.0.1:8545", "ftp://node.example/secretsecret");
    a_variable_without_an_end_is_refused: told_of("8545", "${PORT");
    an_unset_variable_is_told_at_its_place: told_with("x", "x", &[]);
    a_variable_that_holds_no_key_is_told_without_its_value: told_with("x", "x", &[("FAREBOX_RELAYER_KEY", "hunter2")]);
    a_missing_secret_file_is_told_with_its_path: told_with("${FAREBOX_RELAYER_KEY}", "file:relayer.key", &[]);
    a_pay_to_variable_must_hold_an_address: told_with("0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "${PAY_TO}",
        &[("PAY_TO", "0x12"), ("FAREBOX_RELAYER_KEY", "1111111111111111111111111111111111111111111111111111111111111111")]);
    a_match_without_a_method_is_refused: told_of("GET /v1/*", "/v1/*");
    a_star_within_a_path_is_refused: told_of("GET /v1/*", "GET /v1/*/x");
    two_routes_that_match_the_same_are_refused: told(&format!("{CHAIN}{ROUTE}{}", ROUTE.replace("price", "id = \"b\"\nprice")
        .replace("/v1/*", "/v1/{*rest}")));
    two_routes_of_one_name_are_refused: told(&format!("{CHAIN}{ROUTE}{ROUTE}"));
    an_upstream_with_a_user_is_refused: told_of("127.0.0.1:9000", "me:hunter2@127.0.0.1:9000");
    an_upstream_without_a_scheme_is_refused: told_of("http://127.0.0.1:9000", "127.0.0.1:9000");
    a_duration_without_a_unit_is_refused: told(&format!("server = {{ drain_timeout = 30 }}\n{CHAIN}{ROUTE}"));
    a_duration_beyond_its_limit_is_refused: told_of("[\"USDC\"]", "[\"USDC\"]\nsettle_timeout = \"2h\"");
    a_size_in_thousands_is_refused: told(&format!("replay.body_bytes_max = \"64KB\"\n{CHAIN}{ROUTE}"));
    a_count_beyond_its_limit_is_refused: told_of("[\"USDC\"]", "[\"USDC\"]\nconfirmations = 0");
    a_word_with_a_slip_is_told_with_the_right_one: told_of("price", "settle = \"before_respnse\"\nprice");
    a_rail_that_does_not_exist_is_refused: told_of("price", "rails = [\"lightning\"]\nprice");
    an_address_to_listen_on_needs_a_port: told(&format!("listen = \"127.0.0.1\"\n{CHAIN}{ROUTE}"));
    an_address_to_listen_on_stands_once: told(&format!("listen = [\"[::1]:1\", \"[::1]:1\"]\n{CHAIN}{ROUTE}"));
    a_lease_shorter_than_its_request_is_refused: told(
        &format!("admission.lease = \"1m\"\n{CHAIN}{ROUTE}"),
    );
    a_route_that_outlasts_its_bill_is_refused: told_of("price", "response_timeout = \"115s\"\nprice");
    tls_needs_a_key: told(&format!("tls = {{ cert = \"cert.pem\" }}\n{CHAIN}{ROUTE}"));
    l402_without_a_lightning_table_is_refused: told_of("price = ", "rails = [\"x402\", \"l402\"]\nprice = ");
    a_price_in_sat_without_a_lightning_table_is_refused: told_of("$0.01", "10 sat");
    a_price_in_sat_on_a_route_without_lightning_is_refused:
        told(&format!("{LIGHTNING}{CHAIN}{ROUTE}").replace("price = \"$0.01\"", "rails = [\"x402\"]\nprice = \"10 sat\""));
    dollars_by_lightning_need_the_rate_of_a_bitcoin: told_of_invoices("10 sat", "$0.01");
    a_price_that_no_invoice_can_say_is_refused: told_of_invoices("10 sat", "0.0001 sat");
    a_token_by_lightning_says_what_its_invoice_costs:
        told(&format!("{LIGHTNING}{CHAIN}{ROUTE}").replace("price = \"$0.01\"", "calls = 5\nprice = \"0.01 USDC\""));
    calls_without_lightning_are_refused: told_of("price = ", "calls = 5\nprice = ");
    an_invoice_buys_calls_or_time: told_of_invoices("price = ", "calls = 5\nfor = \"1h\"\nprice = ");
    calls_stand_once: told_of_invoices("price = ", "calls = 5\nl402 = { calls = 6 }\nprice = ");
    the_price_of_a_call_is_none_of_an_hour: told(&format!(
        "{LIGHTNING}{CHAIN}{ROUTE}for = \"1h\"\n[[rate]]\nsymbol = \"BTC\"\nfixed = \"60000\"\n"
    ));
    lightning_needs_a_network: told_of_invoices("network = \"regtest\"\n", "");
    a_bitcoin_network_by_another_name_is_refused: told_of_invoices("regtest", "mainnet");
    lightning_needs_one_node: told_of_invoices("{ lnd = {", "{ nwc = \"${NWC}\", lnd = {");
    lightning_needs_a_node_at_all: told_of_invoices(
        "{ lnd = { url = \"https://127.0.0.1:8080\", macaroon = \"file:invoices.macaroon\", cert = \"tls.cert\" } }", "{}");
    a_node_in_plain_http_elsewhere_is_refused: told_of_invoices("https://127.0.0.1:8080", "http://node.example:8080");
    a_nodes_url_with_a_password_is_refused_and_not_shown: told_of_invoices("https://127", "https://me:hunter2@127");
    a_wallets_uri_in_the_file_is_refused_and_not_shown: told_of_invoices(
        "lnd = { url = \"https://127.0.0.1:8080\", macaroon = \"file:invoices.macaroon\", cert = \"tls.cert\" }",
        "nwc = \"nostr+walletconnect://abc?secret=hunter2\"");
    a_node_of_an_unknown_kind_is_refused: told_of_invoices("{ lnd = {", "{ eclair = {");
    a_variable_that_holds_no_wallet_is_told_without_its_value: {
        let text = format!("{LIGHTNING}{INVOICED}").replace(
            "lnd = { url = \"https://127.0.0.1:8080\", macaroon = \"file:invoices.macaroon\", cert = \"tls.cert\" }",
            "nwc = \"${WALLET}\"");
        parse(Path::new("farebox.toml"), &text).unwrap().secrets(&|_| Some("hunter2".to_owned())).unwrap_err()
    };
    an_invoice_that_is_never_offered_again_is_refused: told_of_invoices("network", "invoice_expiry = \"1m\"\nnetwork");
    worthless_bitcoin_beside_real_dollars_is_refused: told(
        &format!("{LIGHTNING}{CHAIN}{ROUTE}[[rate]]\nsymbol = \"BTC\"\nfixed = \"60000\"\n").replace("84532", "8453"));
    every_mistake_is_told_in_one_run_in_the_order_of_the_file: told(
        &format!("lisen = 1\n{CHAIN}{ROUTE}").replace("rpc", "rcp").replace("$0.01", "$0,01").replace("GET", "get"),
    );
}

#[test]
fn ten_lines_are_enough() {
    let config = parse(Path::new("/etc/farebox/farebox.toml"), &format!("{CHAIN}{ROUTE}")).unwrap();
    assert_eq!(config.ledger, Path::new("/etc/farebox/farebox.db"));
    assert_eq!(config.listen, ["127.0.0.1:8402".parse().unwrap()]);
    assert_eq!(config.routes[0].id.as_str(), "GET /v1/*");
    assert!(config.routes[0].paid.is_some() && config.tls.is_none() && config.public_url.is_none());
}

fn pricing(text: &str) -> farebox_core::Pricing {
    let config = parse(Path::new("farebox.toml"), text).unwrap_or_else(|mistakes| panic!("{text}\n{mistakes}"));
    config.routes.into_iter().next().and_then(|route| route.paid).unwrap().pricing
}

#[test]
fn a_seller_by_lightning_alone_needs_no_chain() {
    let pricing = pricing(&format!("{LIGHTNING}{INVOICED}"));
    let terms = pricing.token.unwrap();
    assert_eq!(pricing.rails, [farebox_core::RailName::L402]);
    assert_eq!(
        (terms.grant, terms.price.to_string(), terms.tier),
        (farebox_core::Grant::default(), "10 sat".to_owned(), 0)
    );
    assert_eq!((&*terms.service, terms.scope), ("GET%20%2Fv1%2F%2A", farebox_core::TokenScope::Route));
}

#[test]
fn what_an_invoice_buys_and_costs_is_what_the_route_says() {
    use farebox_core::{Grant, TokenScope};
    let calls = |calls: u32| Grant::Calls(calls.try_into().unwrap());
    let hour = Grant::For(std::time::Duration::from_secs(3600));
    for (said, grant, price) in [
        ("calls = 100", calls(100), "1000 sat"),
        ("l402 = { calls = 100 }", calls(100), "1000 sat"),
        ("l402 = { calls = 100, price = \"0.8 sat\" }", calls(100), "0.8 sat"),
        ("calls = 100\nl402 = { price = \"900 sat\" }", calls(100), "900 sat"),
        ("for = \"1h\"", hour, "10 sat"),
        ("l402 = { for = \"1h\", price = \"50000 msat\" }", hour, "50000 msat"),
        ("l402 = {}", calls(1), "10 sat"),
    ] {
        let terms = pricing(&format!("{LIGHTNING}{INVOICED}{said}\n")).token.unwrap();
        assert_eq!((terms.grant, terms.price.to_string()), (grant, price.to_owned()), "{said}");
    }
    let bound = "l402 = { bind = \"request\", tier = 3, valid_for = \"1h\" }\n";
    let terms = pricing(&format!("{LIGHTNING}{INVOICED}{bound}")).token.unwrap();
    assert_eq!((terms.scope, terms.tier, terms.valid_for.as_secs()), (TokenScope::Request, 3, 3600));
}

#[test]
fn a_table_of_tokens_that_is_not_there_says_what_an_empty_one_says() {
    let [without, empty] =
        ["", "l402 = {}\n"].map(|said| pricing(&format!("{LIGHTNING}{INVOICED}{said}")).token.unwrap());
    assert_eq!(without, empty);
}

#[test]
fn prices_in_dollars_are_taken_by_every_rail_and_prices_in_a_token_not_by_lightning() {
    use farebox_core::RailName::{L402, X402};
    let rate = "[[rate]]\nsymbol = \"BTC\"\nfixed = \"60000\"\n";
    let both = format!("{LIGHTNING}{CHAIN}{ROUTE}{rate}");
    assert_eq!(pricing(&both).rails, [X402, L402]);
    let token = pricing(&both.replace("$0.01", "0.01 USDC"));
    assert_eq!((&token.rails[..], &token.token), (&[X402][..], &None));
    let priced = pricing(&both.replace("price = \"$0.01\"", "price = \"0.01 USDC\"\nl402 = { price = \"10 sat\" }"));
    assert_eq!(priced.rails, [X402, L402]);
    let ordered = pricing(&both.replace("price", "rails = [\"l402\", \"x402\"]\nprice"));
    assert_eq!(ordered.rails, [L402, X402]);
}

/// The gateway and the rail say their defaults in their own types; the reference page says those of the config.
#[test]
fn tiers_sources_and_the_native_coin_are_resolved() {
    let text = format!("public_url = \"https://a.example\"\n[transfer]\n{CHAIN}{ROUTE}[[rate]]\nsymbol = \"ETH\"\nfixed = \"3000\"\n")
        .replace("[\"http://127.0.0.1:8545\"]", "[\"http://127.0.0.1:8545\", { url = \"https://e.example\", kind = \"explorer\", key = \"${K}\" }]")
        .replace("[\"USDC\"]", "[\"USDC\", \"native\"]\nconfirmations = [{ up_to = \"$1\", blocks = 1 }, { blocks = \"finalized\" }]\nquorum = { above = \"$9\" }");
    let config = parse(Path::new("farebox.toml"), &text).unwrap();
    let env = |name: &str| Some(if name == "K" { "explorer-key".to_owned() } else { "11".repeat(32) });
    let chain = config.secrets(&env).unwrap().chains.remove(0);
    assert_eq!(chain.finality(Some("1".parse().unwrap())), farebox_core::Finality::Blocks(1));
    assert_eq!(chain.finality(Some("1.01".parse().unwrap())), farebox_core::Finality::Finalized);
    assert_eq!(chain.finality(None), farebox_core::Finality::Finalized);
    assert_eq!(chain.native.unwrap().symbol, "ETH");
    assert_eq!((chain.rpc[1].kind, chain.quorum.unwrap().agree), (farebox_evm::SourceKind::Explorer, 2));
    assert!(!format!("{:?}", chain.rpc).contains("explorer-key"));
    let rails = &config.routes[0].paid.as_ref().unwrap().pricing.rails;
    assert_eq!(rails[..], [farebox_core::RailName::X402, farebox_core::RailName::Transfer]);
}

#[test]
fn defaults_are_those_of_the_parts() {
    let config = parse(Path::new("farebox.toml"), &format!("{CHAIN}{ROUTE}")).unwrap();
    let debug = |value: &dyn std::fmt::Debug| format!("{value:?}");
    assert_eq!(debug(&config.limits), debug(&farebox_gateway::Limits::default()));
    assert_eq!(debug(&config.chains[0].limits), debug(&farebox_evm::ChainLimits::default()));
    let upstream = farebox_gateway::UpstreamConfig::new("http://127.0.0.1:9000".parse().unwrap());
    assert_eq!(debug(&config.routes[0].upstream), debug(&upstream));
    assert_eq!(debug(&config.admission), debug(&farebox_gateway::AdmissionLimits::default()));
    assert_eq!(debug(&config.reconciler), debug(&farebox_gateway::ReconcilerLimits::default()));
    assert_eq!(config.replay.body_bytes_max, farebox_gateway::ReplayLimits::default().body_bytes_max as u64);
}

#[test]
fn a_route_overrides_what_the_upstreams_share() {
    let text = format!(
        "upstream = {{ idle_timeout = \"7s\", connect_timeout = \"2s\" }}\n{CHAIN}{ROUTE}idle_timeout = \"9s\"\n"
    );
    let config = parse(Path::new("farebox.toml"), &text).unwrap();
    let upstream = &config.routes[0].upstream;
    assert_eq!((upstream.idle_timeout.as_secs(), upstream.connect_timeout.as_secs()), (9, 2));
}

#[test]
fn secrets_are_fetched_from_the_environment_and_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let key = "11".repeat(32);
    std::fs::write(dir.path().join("relayer.key"), format!("0x{key}\n")).unwrap();
    let text =
        format!("{CHAIN}{ROUTE}").replace("8545", "${PORT}").replace("${FAREBOX_RELAYER_KEY}", "file:relayer.key");
    let config = parse(&dir.path().join("farebox.toml"), &text).unwrap();
    let chains = config.secrets(&|name| (name == "PORT").then(|| "8546".to_owned())).unwrap().chains;
    assert_eq!(chains[0].rpc[0].url.to_string(), "http://127.0.0.1:8546");
    let relayer = chains[0].relayer.as_ref().unwrap();
    assert_eq!(relayer.address(), farebox_evm::EvmKey::from_hex(&key).unwrap().address());
}

#[test]
fn neither_messages_nor_debug_print_what_is_secret() {
    let secret = "5eCr3t5eCr3t5eCr3t5eCr3t";
    let rpc = format!("http://127.0.0.1:8545/v2/{secret}");
    let config =
        parse(Path::new("farebox.toml"), &format!("{CHAIN}{ROUTE}").replace("http://127.0.0.1:8545", &rpc)).unwrap();
    assert!(!format!("{config:?}").contains(secret));
    for broken in ["rcp", "rpc = 1\nrpc", "[rpc"] {
        let told = told_of("rpc = [\"http://127.0.0.1:8545\"]", &format!("{broken} = [\"{rpc}\"]"));
        assert!(!told.contains(secret), "{told}");
    }
}

/// Lines of configs, good and bad, and pieces of them.
fn any_line() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "[[route]]",
        "[[chain]]",
        "[server]",
        "match",
        "price",
        "relayer",
        "listen",
        "assets",
        "rpc",
        "free",
        " = ",
        ".",
        ",",
        "\"$0.01\"",
        "\"GET /x\"",
        "\"${A}\"",
        "${",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'''",
        "true",
        "1e999",
        "-0",
        "0x",
        "\u{feff}",
        "é",
        "\t",
        "\r",
        "#",
        "1979-05-27",
        "inf",
        "\\u0000",
    ]);
    prop_oneof![
        2 => prop::sample::select(format!("{CHAIN}{ROUTE}").lines().map(str::to_owned).collect::<Vec<_>>()),
        2 => prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat()),
        1 => "\\PC{0,30}",
    ]
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(lines in prop::collection::vec(any_line(), 0..30)) {
        let text = lines.join("\n");
        if let Err(mistakes) = parse(Path::new("farebox.toml"), &text) {
            prop_assert!(!mistakes.list.is_empty());
            prop_assert!(mistakes.to_string().starts_with("error: "));
        }
    }

    #[test]
    fn no_cut_or_changed_config_makes_the_parser_panic(at in 0usize..400, with in "\\PC{0,3}", take in 0usize..20) {
        let good = format!("{CHAIN}{ROUTE}");
        let start = (0..=at.min(good.len())).rev().find(|at| good.is_char_boundary(*at)).unwrap();
        let end = (start + take).min(good.len());
        let _ = parse(Path::new("farebox.toml"), &format!("{}{with}{}", &good[..start], &good[end..]));
    }
}
