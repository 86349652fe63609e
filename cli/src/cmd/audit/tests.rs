use std::{sync::Arc, time::Duration};

use clap::Parser;
use farebox_core::{ArrivedFor, InstanceId, PaymentEvent, ports::Ledger as _};
use farebox_ledger::{SqliteLedger, SqliteOptions};
use farebox_testkit::{test_claim, test_transfer_claim};

use super::*;

const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: AuditArgs,
}

/// A ledger in use.
struct Books {
    folder: tempfile::TempDir,
    ledger: Arc<SqliteLedger>,
}

impl Books {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteOptions {
            instance: InstanceId::new("i"),
            answers_kept_for: Duration::from_secs(60),
            audit_file: None,
        };
        let ledger = SqliteLedger::open(&folder.path().join("farebox.db"), options, NOW).unwrap();
        Self { folder, ledger: Arc::new(ledger) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("farebox.db")
    }

    /// One entry a minute, at once, so that they share commits.
    async fn claim(&self, count: u64) {
        let mut claims = tokio::task::JoinSet::new();
        for number in 0..count {
            let (ledger, now) = (self.ledger.clone(), NOW.plus(Duration::from_secs(60 * number)));
            claims.spawn(async move { ledger.claim(test_claim(number, InstanceId::new("i"), now)).await.unwrap() });
        }
        claims.join_all().await;
    }

    fn export(&self) -> Vec<String> {
        self.told("export").unwrap().lines().map(str::to_owned).collect()
    }

    fn file(&self, lines: &[String]) -> PathBuf {
        let path = self.folder.path().join("export.jsonl");
        std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        path
    }

    /// What the command prints, or why it fails, causes and all.
    fn told(&self, line: &str) -> Result<String, String> {
        let words = std::iter::once("audit").chain(line.split_whitespace());
        let args = Cli::try_parse_from(words).map_err(|error| error.to_string())?.args;
        let mut out = Vec::new();
        let done = match args.command {
            AuditCommand::Verify(args) => match args.file.clone() {
                Some(path) => verify_file(&args, &path, &mut out),
                None => verify_ledger(&args, &open(&self.path()).unwrap(), &mut out),
            },
            AuditCommand::Export(args) => {
                export(&args, &open(&self.path()).unwrap(), NOW.plus(Duration::from_secs(3600)), &mut out)
            }
        };
        done.map(|()| String::from_utf8(out).unwrap()).map_err(|error| format!("{error:#}"))
    }
}

#[tokio::test]
async fn a_whole_log_is_told_with_count_times_and_last_hash() {
    let books = Books::new();
    assert_eq!(books.told("verify").unwrap(), "the audit log is empty\n");
    // More than a page, and a gateway that goes on.
    books.claim(u64::from(PAGE_LINES) + 2).await;
    let export = books.export();
    assert_eq!(export.len(), PAGE_LINES as usize + 2);
    let last = AuditLine::read(export.last().unwrap(), 1).unwrap();
    let told = books.told("verify").unwrap();
    assert!(told.starts_with("the audit log is whole: 1002 entries, 2026-11-18T"), "{told}");
    assert!(told.contains(&format!("last entry: 1002, hash {}\n", last.hash())), "{told}");
    let path = books.file(&export);
    assert_eq!(books.told(&format!("verify --file {}", path.display())).unwrap(), told);
}

#[tokio::test]
async fn a_hash_that_was_kept_is_found_however_much_came_after() {
    let books = Books::new();
    books.claim(3).await;
    let hashes: Vec<_> = books.export().iter().map(|line| AuditLine::read(line, 1).unwrap().hash()).collect();
    for kept in hashes.iter().map(String::as_str).chain([AuditLine::NOTHING_BEFORE]) {
        assert!(books.told(&format!("verify --expect {}", kept.to_uppercase())).is_ok(), "{kept}");
    }
    let path = books.file(&books.export()[..2]);
    let told = books.told(&format!("verify --file {} --expect {}", path.display(), hashes[2])).unwrap_err();
    assert!(told.starts_with("no entry has the hash ") && told.contains("cut off"), "{told}");
    assert!(books.told("verify --expect 0x12").unwrap_err().contains("64 hex digits"));
}

#[tokio::test]
async fn the_first_broken_entry_is_named() {
    let books = Books::new();
    books.claim(5).await;
    let export = books.export();
    let damaged = |damage: fn(&mut Vec<String>)| {
        let mut lines = export.clone();
        damage(&mut lines);
        books.told(&format!("verify --file {}", books.file(&lines).display())).unwrap_err()
    };
    for (told, entry) in [
        (damaged(|lines| drop(lines.remove(2))), "entry 3 is missing: the next one is 4"),
        (damaged(|lines| drop(lines.remove(0))), "entry 1 is missing: the next one is 2"),
        (damaged(|lines| lines.swap(1, 3)), "entry 2 is missing: the next one is 4"),
        (damaged(|lines| lines.insert(3, lines[2].clone())), "entry 4 is missing: the next one is 3"),
        (damaged(|lines| lines[2] = lines[2].replace("10000", "90000")), "entry 4 does not follow"),
        (damaged(|lines| lines[2].push('\r')), "entry 4 does not follow"),
        (damaged(|lines| lines[2].clear()), "line 3 of the file: entry 3 cannot be read"),
        (damaged(|lines| lines[0] = "{}".into()), "line 1 of the file: entry 1 cannot be read"),
    ] {
        assert!(told.contains(entry), "{told}");
    }
    let path = books.file(&export);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let told = books.told(&format!("verify --file {}", path.display())).unwrap_err();
    assert!(told.contains("line 5 of the file has no end"), "{told}");
    std::fs::write(&path, vec![b'x'; LINE_BYTES_MAX + 1]).unwrap();
    let told = books.told(&format!("verify --file {}", path.display())).unwrap_err();
    assert!(told.contains("line 1 of the file has no end"), "{told}");
    assert!(books.told("verify --file /nonexistent/export.jsonl").unwrap_err().contains("cannot be read"));
}

#[tokio::test]
async fn exports_made_one_after_another_are_checked_one_after_another() {
    let books = Books::new();
    books.claim(4).await;
    let export = books.export();
    assert_eq!(books.told("export --after 2").unwrap().lines().collect::<Vec<_>>(), export[2..]);
    let second = AuditLine::read(&export[1], 1).unwrap().hash();
    let path = books.file(&export[2..]).display().to_string();
    assert!(books.told(&format!("verify --file {path}")).unwrap_err().contains("entry 1 is missing"));
    let told = books.told(&format!("verify --file {path} --follows {second}")).unwrap();
    assert!(told.starts_with("the audit log is whole: 2 entries"), "{told}");
    let other = second.replace(|c: char| c.is_ascii_digit(), "a");
    let told = books.told(&format!("verify --file {path} --follows {other}")).unwrap_err();
    assert!(told.contains(&format!("entry 3 follows {second}, not {other}")), "{told}");
    assert!(books.told(&format!("verify --follows {second}")).is_err(), "of a ledger, the whole is checked");
}

#[tokio::test]
async fn an_export_is_narrowed_by_time_and_payment() {
    let books = Books::new();
    books.claim(3).await;
    let transfer = test_transfer_claim(9, 10_001, ArrivedFor::Delivery, InstanceId::new("i"), NOW);
    let id = transfer.id;
    books.ledger.claim(transfer).await.unwrap();
    books.ledger.record(id, vec![PaymentEvent::Reversed], NOW).await.unwrap();
    for (line, count) in [
        (format!("export --payment {id}"), 2),
        (format!("export --payment {id} --after 4"), 1),
        ("export --since 59m".to_owned(), 2),
        ("export --until 2026-11-18T11:07:40Z".to_owned(), 3),
        ("export --since 2026-11-19".to_owned(), 0),
    ] {
        assert_eq!(books.told(&line).unwrap().lines().count(), count, "{line}");
    }
    assert!(books.told("export --since yesterday").unwrap_err().contains("expected a date"));
    let reversed = books.told(&format!("export --payment {id}")).unwrap();
    assert!(reversed.contains(r#""outcome":"reversed""#) && reversed.contains(r#""credit":"1""#), "{reversed}");
}

/// As the help says.
#[cfg(unix)]
#[tokio::test]
async fn the_chain_is_checked_with_nothing_but_sha256sum() {
    let books = Books::new();
    books.claim(3).await;
    let export = books.export();
    let path = books.file(&export);
    for (number, next) in (1..).zip(&export[1..]) {
        let script = format!("sed -n {number}p {} | tr -d '\\n' | sha256sum", path.display());
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        let hash = String::from_utf8(output.stdout).unwrap();
        let hash = hash.split_whitespace().next().unwrap();
        assert!(next.ends_with(&format!(r#""previous":"{hash}"}}"#)), "{hash}: {next}");
    }
}
