//! `farebox serve` as a process: it starts, answers, drains and ends. What it does for money is tested with real chains in e2e.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStderr, Command, Stdio},
    time::Duration,
};

/// A gateway that is killed if the test ends before it does.
struct Serving {
    child: Child,
    log: BufReader<ChildStderr>,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Serving {
    /// Serves `GET /free` from this upstream, on a free port, and waits until it listens.
    fn start(upstream: SocketAddr, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "listen = \"127.0.0.1:0\"\nserver.workers = 1\nlog.format = \"json\"\n{more}\n\
             [[route]]\nmatch = \"GET /free\"\nupstream = \"http://{upstream}\"\nfree = true\n"
        );
        std::fs::write(dir.path().join("farebox.toml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_farebox"))
            .arg("serve")
            .current_dir(dir.path())
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = wait_for(&mut log, "listening")["address"].as_str().unwrap().parse().unwrap();
        Self { child, log, address, dir }
    }

    fn get(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        stream
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn end(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It has ended, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next log line with this message.
fn wait_for(log: &mut BufReader<ChildStderr>, message: &str) -> serde_json::Value {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "ended before it said {message:?}: {seen}");
        match serde_json::from_str::<serde_json::Value>(&line) {
            Ok(json) if json["message"].as_str().is_some_and(|said| said.starts_with(message)) => return json,
            _ => seen.push_str(&line),
        }
    }
}

fn text(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn it_serves_what_the_config_names_and_404_for_the_rest_and_ends_on_sigterm() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let serving = Serving::start(upstream.local_addr().unwrap(), "");
    let free = serving.get("/free");
    answer(&upstream);
    assert!(text(free).starts_with("HTTP/1.1 200 "));
    assert!(text(serving.get("/other")).starts_with("HTTP/1.1 404 "));
    serving.signal("-TERM");
    assert_eq!(serving.end(), 0);
}

#[test]
fn what_runs_is_finished_after_the_first_signal() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut serving = Serving::start(upstream.local_addr().unwrap(), "");
    let free = serving.get("/free");
    let (called, _) = upstream.accept().unwrap();
    serving.signal("-INT");
    wait_for(&mut serving.log, "stopping");
    respond(called);
    assert!(text(free).starts_with("HTTP/1.1 200 "));
    assert_eq!(serving.end(), 0);
}

#[test]
fn a_second_signal_stops_at_once() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut serving = Serving::start(upstream.local_addr().unwrap(), "server.drain_timeout = \"1h\"");
    let _free = serving.get("/free");
    let _called = upstream.accept().unwrap();
    serving.signal("-TERM");
    wait_for(&mut serving.log, "stopping");
    serving.signal("-TERM");
    assert_eq!(serving.end(), 1);
}

#[test]
fn a_second_gateway_on_the_same_ledger_is_refused() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let serving = Serving::start(upstream.local_addr().unwrap(), "");
    let second = Command::new(env!("CARGO_BIN_EXE_farebox"))
        .args(["serve", "--config"])
        .arg(serving.dir.path().join("farebox.toml"))
        .env_clear()
        .output()
        .unwrap();
    let told = String::from_utf8(second.stderr).unwrap();
    assert!(second.status.code() == Some(1) && told.contains("another gateway is using this ledger"), "{told}");
}

fn answer(upstream: &TcpListener) {
    respond(upstream.accept().unwrap().0);
}

/// Reads a request's head and answers it.
fn respond(stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
}
