//! The `farebox` binary and the node of `[lightning]`: what is refused at a start, and what a start survives. Payments are made in e2e, with real
//! nodes; the one here plays the ones that no test can have: a mainnet node, and one that is not there.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStderr, Command, Output, Stdio},
    time::Duration,
};

/// An lnd that says it is on `network`, and has a channel through which it can receive 40,000 sat.
fn lnd_on(network: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || answer(stream, network));
        }
    });
    address
}

fn answer(stream: TcpStream, network: &str) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut line) = (String::new(), String::new());
    reader.read_line(&mut first).unwrap();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    let body = match first.split(' ').nth(1).unwrap().split('?').next().unwrap() {
        "/v1/getinfo" => format!(
            r#"{{"identity_pubkey":"{}","alias":"shop","synced_to_chain":true,"num_active_channels":1,"chains":[{{"chain":"bitcoin","network":"{network}"}}]}}"#,
            "02".repeat(33)
        ),
        "/v1/channels" => {
            let reserve = r#"{"chan_reserve_sat":"1000"}"#;
            format!(
                r#"{{"channels":[{{"local_balance":"50000","remote_balance":"41000","local_constraints":{reserve},"remote_constraints":{reserve}}}]}}"#
            )
        }
        _ => r#"{"code":5,"message":"not found"}"#.to_owned(),
    };
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    reader.get_mut().write_all(format!("{head}{body}").as_bytes()).unwrap();
}

/// A port at which nobody answers.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A seller by Lightning alone.
fn folder(network: &str, node: SocketAddr) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "listen = \"127.0.0.1:0\"\nserver.workers = 1\nlog.format = \"json\"\n\
         [lightning]\nnetwork = \"{network}\"\nnode_timeout = \"2s\"\n\
         node = {{ lnd = {{ url = \"http://{node}\", macaroon = \"${{MACAROON}}\" }} }}\n\
         [[route]]\nmatch = \"GET /v1/x\"\nupstream = \"http://127.0.0.1:1\"\nprice = \"10 sat\"\n"
    );
    std::fs::write(dir.path().join("farebox.toml"), config).unwrap();
    dir
}

fn farebox(dir: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farebox"));
    command.args(arguments).current_dir(dir.path()).env_clear().env("MACAROON", "0201036c6e64");
    command
}

fn run(dir: &tempfile::TempDir, arguments: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = farebox(dir, arguments).output().unwrap();
    (status.code().unwrap(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

struct Serving {
    child: Child,
    /// Kept open, as whoever runs a gateway does.
    _log: BufReader<ChildStderr>,
    address: SocketAddr,
}

impl Serving {
    fn start(dir: &tempfile::TempDir) -> (Self, String) {
        let mut child = farebox(dir, &["serve"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let address = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "ended before it listened: {seen}");
            let json: serde_json::Value = serde_json::from_str(&line).unwrap();
            if json["message"] == "listening" {
                break json["address"].as_str().unwrap().parse().unwrap();
            }
            seen.push_str(&line);
        };
        (Self { child, _log: log, address }, seen)
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It has ended, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_test_node_for_real_money_stops_the_start_and_a_real_node_for_a_test() {
    for (config, node, why) in [("bitcoin", "regtest", "worth nothing"), ("regtest", "mainnet", "real money")] {
        let dir = folder(config, lnd_on(node));
        for command in ["serve", "check"] {
            let (code, told) = run(&dir, &[command]);
            assert_eq!(code, 1, "{command}: {told}");
            assert!(told.contains(&format!("and the config says {config}")) && told.contains(why), "{command}: {told}");
        }
    }
}

#[test]
fn a_node_that_is_not_there_closes_no_shop_and_sells_nothing() {
    let dir = folder("regtest", nobody());
    let (serving, log) = Serving::start(&dir);
    assert!(log.contains("did not answer") || log.contains("Connection refused"), "{log}");
    let answer = serving.get("/v1/x");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("node_unavailable"), "{answer}");
    assert!(!answer.to_lowercase().contains("\nwww-authenticate:"), "{answer}");
    drop(serving);
    let (code, told) = run(&dir, &["check"]);
    assert!(code == 1 && told.contains("lightning"), "{told}");
}

#[test]
fn a_check_says_what_the_node_can_receive_and_makes_no_invoice() {
    let (code, told) = run(&folder("regtest", lnd_on("regtest")), &["check"]);
    for part in ["can receive 40000 sat now", "for which a check makes no invoice", "1 channel"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // The upstream is not there, and nothing else is wrong.
    assert!(code == 1 && told.contains("1 failed"), "{told}");
}

#[test]
fn price_tells_rails_and_what_an_invoice_buys() {
    let (code, told) = run(&folder("regtest", nobody()), &["price", "GET", "/v1/x"]);
    assert_eq!(code, 0, "{told}");
    for part in ["rails     l402", "pay       10 sat by Lightning on Bitcoin's regtest: 1 call"] {
        assert!(told.contains(part), "{part}: {told}");
    }
}
