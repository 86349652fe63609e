//! A node's seed: shown once and asked back, or read from what was written down.

use std::{
    io::{self, BufRead, Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use farebox_core::{BitcoinNetwork, ports::Entropy};
use farebox_lightning::embedded::{self, SeedOrigin, SeedWords};
use serde_json::json;
use zeroize::Zeroizing;

use super::{super::print, network, shell};

/// How many of the words are asked back, and how often one may be wrong.
const ASKED: usize = 3;
const ATTEMPTS: usize = 3;
/// More than 24 words and their spaces.
const INPUT_BYTES_MAX: u64 = 4_096;

#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// Its network: bitcoin, testnet, testnet4, signet or regtest
    #[arg(long, value_parser = network)]
    network: BitcoinNetwork,
    /// Do not ask for words back: for scripts, which then have to keep what is printed
    #[arg(long)]
    yes_i_wrote_it_down: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
    /// Its network: bitcoin, testnet, testnet4, signet or regtest
    #[arg(long, value_parser = network)]
    network: BitcoinNetwork,
}

/// Makes a node. Its directory is written once the words were given back, so that no node is without somebody who knows them.
///
/// # Errors
/// There is a node, the words were not given back, or the directory cannot be written.
pub(super) fn init(args: &InitArgs, dir: &Path, json: bool, entropy: &dyn Entropy) -> anyhow::Result<ExitCode> {
    if json && !args.yes_i_wrote_it_down {
        bail!(
            "with --json nobody is asked whether the words were written down; add --yes-i-wrote-it-down, and keep what is printed"
        );
    }
    // Before the words are shown: nobody should write down words in vain.
    embedded::free_for_init(dir)?;
    let words = SeedWords::generate(entropy);
    if args.yes_i_wrote_it_down {
        let warning = "warning: the words were not asked back; whoever loses them and the directory loses the coins, and whoever reads them has the coins\n";
        // If standard error is gone there is nobody to warn.
        let _ = io::stderr().write_all(warning.as_bytes());
        embedded::init(dir, args.network, &words, SeedOrigin::New)?;
    }
    if json {
        let listed: Vec<&str> = words.reveal().collect();
        print(&format!("{}\n", json!({ "dir": dir, "network": args.network, "words": listed })))?;
        return Ok(ExitCode::SUCCESS);
    }
    show(&words)?;
    if !args.yes_i_wrote_it_down {
        ask_back(&words, entropy, &mut io::stdin().lock())?;
        embedded::init(dir, args.network, &words, SeedOrigin::New)?;
    }
    print(&made(dir, args.network))?;
    Ok(ExitCode::SUCCESS)
}

/// Makes a node from words of standard input.
///
/// # Errors
/// They are no seed's words, there is a node, or the directory cannot be written.
pub(super) fn restore(args: &RestoreArgs, dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    embedded::free_for_init(dir)?;
    if !json {
        print("The words, in their order; end with an empty line:\n")?;
    }
    let words = SeedWords::parse(&read_words(&mut io::stdin().lock())?)?;
    embedded::init(dir, args.network, &words, SeedOrigin::Restored)?;
    if json {
        print(&format!("{}\n", json!({ "dir": dir, "network": args.network })))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&made(dir, args.network))?;
    print(
        "Its first start needs an Esplora or Electrum source, to look for the coins of the node that was. That node must never run again.\n",
    )?;
    Ok(ExitCode::SUCCESS)
}

fn show(words: &SeedWords) -> anyhow::Result<()> {
    let mut text = "These words are the node's seed. Write them down on paper, in this order; they are not shown again.\nWhoever has them has the coins on chain; they do not bring back channels.\n\n".to_owned();
    let words: Vec<&str> = words.reveal().collect();
    let rows = words.len().div_ceil(4);
    for row in 0..rows {
        for column in 0..4 {
            if let Some(word) = words.get(column * rows + row) {
                text.push_str(&format!("  {:>2}. {word:<10}", column * rows + row + 1));
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text.push('\n');
    Ok(print(&text)?)
}

fn ask_back(words: &SeedWords, entropy: &dyn Entropy, input: &mut impl BufRead) -> anyhow::Result<()> {
    let words: Vec<&str> = words.reveal().collect();
    let mut places: Vec<usize> = Vec::new();
    while places.len() < ASKED.min(words.len()) {
        let mut byte = [0];
        entropy.fill(&mut byte);
        let place = usize::from(byte[0]) % words.len();
        if !places.contains(&place) {
            places.push(place);
        }
    }
    for place in places {
        let mut attempts = 0;
        loop {
            print(&format!("word {}? ", place + 1))?;
            let mut line = Zeroizing::new(String::new());
            if input.take(INPUT_BYTES_MAX).read_line(&mut line)? == 0 {
                bail!("the words were not given back, and no node was made; in a script use --yes-i-wrote-it-down");
            }
            if words.get(place).is_some_and(|word| line.trim().eq_ignore_ascii_case(word)) {
                break;
            }
            attempts += 1;
            if attempts == ATTEMPTS {
                bail!(
                    "that is not word {}; no node was made, and these words are worth nothing: begin anew",
                    place + 1
                );
            }
            print("that is another word; look at what you wrote\n")?;
        }
    }
    Ok(())
}

fn read_words(input: &mut impl BufRead) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let mut input = input.take(INPUT_BYTES_MAX);
    loop {
        let before = text.len();
        input.read_line(&mut text).context("the words could not be read")?;
        if text[before..].trim().is_empty() {
            return Ok(text);
        }
    }
}

fn made(dir: &Path, network: BitcoinNetwork) -> String {
    let dir = shell(dir);
    format!(
        "The node is in {dir}, for {network}.\n\nNext:\n  farebox lightning --dir {dir} --chain SOURCE address    to have an address to send coins to\n  farebox lightning --dir {dir} --chain SOURCE status     to see what it can receive, and what to do to receive more\n  farebox lightning --dir {dir} backup                    to know what to back up\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_asked_back_until_they_are_right_or_wrong_too_often() {
        let words = SeedWords::generate(&Counting);
        let listed: Vec<&str> = words.reveal().collect();
        // Places 0, 1 and 2.
        let right = format!("nonsense\n {} \n{}\n{}\n", listed[0].to_uppercase(), listed[1], listed[2]);
        ask_back(&words, &Counting, &mut right.as_bytes()).unwrap();
        let wrong = format!("{0}\n{0}\n{0}\n", listed[1]);
        let error = ask_back(&words, &Counting, &mut wrong.as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with("that is not word 1;"), "{error}");
        let error = ask_back(&words, &Counting, &mut listed[0].as_bytes()).unwrap_err();
        assert!(error.to_string().contains("no node was made"), "{error}");
    }

    #[test]
    fn words_are_read_until_an_empty_line_or_the_end() {
        let read = |text: &str| {
            read_words(&mut text.as_bytes()).unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(read("one two\nthree\n\nfour\n"), ["one", "two", "three"]);
        assert_eq!(read("one"), ["one"]);
    }

    /// Each fill begins one higher.
    #[derive(Debug)]
    struct Counting;

    impl Entropy for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            use std::sync::atomic::{AtomicU8, Ordering};
            thread_local!(static NEXT: AtomicU8 = const { AtomicU8::new(0) });
            if bytes.len() == 1 {
                bytes[0] = NEXT.with(|next| next.fetch_add(1, Ordering::Relaxed)) % 3;
            } else {
                bytes.iter_mut().zip(0..).for_each(|(byte, n)| *byte = n);
            }
        }
    }
}
