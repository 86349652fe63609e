//! A node's directory and its words, as their owner meets them.

#![cfg(feature = "ldk")]
#![expect(clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
};

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farebox"));
    command.args(["lightning", "--dir", "node"]).args(arguments).current_dir(dir).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end with this for standard input.
fn run(dir: &Path, arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = command(dir, arguments).spawn().expect("the binary runs");
    // It may have ended without reading.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("an end");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

/// Reads standard output up to a question.
fn until_question(child: &mut Child) -> String {
    let mut text = String::new();
    let out = child.stdout.as_mut().expect("a pipe");
    let mut byte = [0];
    while !text.ends_with("? ") && out.read(&mut byte).expect("output") == 1 {
        text.push(char::from(byte[0]));
    }
    text
}

#[test]
fn the_words_are_shown_once_and_asked_back_before_there_is_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = command(dir.path(), &["init", "--network", "regtest"]).spawn().unwrap();
    let shown = until_question(&mut child);
    let mut words = vec![String::new(); 24];
    let tokens: Vec<&str> = shown.split_whitespace().collect();
    for pair in tokens.windows(2) {
        if let Some(place) = pair[0].strip_suffix('.').and_then(|place| place.parse::<usize>().ok()) {
            words[place - 1] = pair[1].to_owned();
        }
    }
    assert!(words.iter().all(|word| word.len() >= 3), "{shown}");
    assert!(!dir.path().join("node").exists(), "no node before the words were given back");

    let mut input = child.stdin.take().unwrap();
    let mut question = shown;
    for _ in 0..3 {
        let place = question.trim_end_matches("? ").rsplit(' ').next().unwrap().parse::<usize>().unwrap();
        writeln!(input, "{}", words[place - 1]).unwrap();
        question = until_question(&mut child);
    }
    assert!(child.wait().unwrap().success());
    assert!(question.contains("The node is in node, for regtest."), "{question}");
    assert_eq!(std::fs::read_to_string(dir.path().join("node/seed")).unwrap().trim(), words.join(" "));

    let (code, out, err) = run(dir.path(), &["init", "--network", "regtest", "--yes-i-wrote-it-down"], "");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("there is a node in node already; a seed is never written over"), "{err}");
    let (code, _, err) = run(dir.path(), &["restore", "--network", "regtest"], &words.join(" "));
    assert!(code == 1 && err.contains("never written over"), "{err}");
}

#[test]
fn words_that_are_not_given_back_make_no_node_and_a_script_says_that_it_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = run(dir.path(), &["init", "--network", "regtest"], "");
    assert!(code == 1 && err.contains("--yes-i-wrote-it-down"), "{err}");
    let (code, _, err) = run(dir.path(), &["init", "--network", "regtest"], "wrong\nwrong\nwrong\n");
    assert!(code == 1 && err.contains("no node was made"), "{err}");
    let (code, out, _) = run(dir.path(), &["--json", "init", "--network", "regtest"], "");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(!dir.path().join("node").exists());

    let (code, out, err) = run(dir.path(), &["--json", "init", "--network", "signet", "--yes-i-wrote-it-down"], "");
    assert!(code == 0 && err.contains("warning"), "{err}");
    let made: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((made["network"].as_str(), made["words"].as_array().map(Vec::len)), (Some("signet"), Some(24)));
}

#[test]
fn words_that_were_written_down_wrong_are_told_by_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let right = "abandon ".repeat(23) + "art\n";
    let (code, _, err) =
        run(dir.path(), &["restore", "--network", "regtest"], &right.replacen("abandon", "farebox", 1));
    assert!(code == 1 && err.contains("word 1 is not in the English word list"), "{err}");
    let (code, _, err) = run(dir.path(), &["restore", "--network", "regtest"], &right.replace("art", "abandon"));
    assert!(code == 1 && err.contains("do not belong together"), "{err}");
    assert!(!dir.path().join("node").exists());
    let (code, out, err) =
        run(dir.path(), &["restore", "--network", "regtest"], &right.replace("abandon art", "abandon\nART"));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("That node must never run again"), "{out}");

    // Bitcoin Core is not asked about the past.
    let chain = "bitcoind://user:secret@127.0.0.1:1";
    let (code, _, err) = run(dir.path(), &["--chain", chain, "status"], "");
    assert!(code == 1 && err.contains("Esplora or Electrum") && !err.contains("secret"), "{err}");
    let (code, _, err) = run(dir.path(), &["status"], "");
    assert!(code == 1 && err.contains("--chain"), "{err}");
}
