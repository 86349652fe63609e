//! The copy of the audit log in a file.

use std::path::Path;

use super::*;

/// How long a copy may take: the first wait after a failure, and a slow machine.
const COPIED_WITHIN: Duration = Duration::from_secs(10);

fn open_with_copy(folder: &Folder, instance: &str) -> SqliteLedger {
    let options = SqliteOptions { audit_file: Some(copy_of(folder)), ..options(instance) };
    SqliteLedger::open(&folder.path(), options, NOW).unwrap()
}

fn copy_of(folder: &Folder) -> PathBuf {
    folder.0.path().join("audit.jsonl")
}

/// The whole log as the file should have it.
async fn log(ledger: &SqliteLedger) -> String {
    ledger.audit_lines(0, 1_000_000).await.unwrap().into_iter().map(|line| line.text + "\n").collect()
}

async fn wait_for(path: &Path, expected: &str) {
    let wait = async {
        while std::fs::read_to_string(path).ok().as_deref() != Some(expected) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(COPIED_WITHIN, wait).await.is_err() {
        panic!("{}:\n{:?}\nand not:\n{expected}", path.display(), std::fs::read_to_string(path));
    }
}

#[tokio::test]
async fn every_line_is_in_the_file_when_the_ledger_is_closed() {
    let folder = Folder::new();
    let ledger = open_with_copy(&folder, "a");
    for number in 1..20 {
        deliver(&ledger, number, NOW).await;
    }
    let log = log(&ledger).await;
    assert_eq!(log.lines().count(), 19 * 4);
    wait_for(&copy_of(&folder), &log).await;
    ledger.claim(sample_claim(99)).await.unwrap();
    let log = self::log(&ledger).await;
    drop(ledger);
    assert_eq!(std::fs::read_to_string(copy_of(&folder)).unwrap(), log);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(copy_of(&folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_file_that_a_crash_left_short_is_completed() {
    let folder = Folder::new();
    let ledger = open_with_copy(&folder, "a");
    for number in 1..4 {
        ledger.claim(sample_claim(number)).await.unwrap();
    }
    let log = log(&ledger).await;
    drop(ledger);
    let second = log.find('\n').unwrap() + 1;
    // Nothing, part of the first line, one line, part of the second, all but the last line's end, all.
    for length in [0, 1, 20, second - 1, second, second + 1, second + 50, log.len() - 1, log.len()] {
        std::fs::write(copy_of(&folder), &log[..length]).unwrap();
        drop(open_with_copy(&folder, "b"));
        assert_eq!(std::fs::read_to_string(copy_of(&folder)).unwrap(), log, "{length}");
    }
    // As some file systems show it after a power cut.
    std::fs::write(copy_of(&folder), format!("{}{}", &log[..second], "\0".repeat(300))).unwrap();
    drop(open_with_copy(&folder, "b"));
    assert_eq!(std::fs::read_to_string(copy_of(&folder)).unwrap(), log);
    std::fs::remove_file(copy_of(&folder)).unwrap();
    drop(open_with_copy(&folder, "b"));
    assert_eq!(std::fs::read_to_string(copy_of(&folder)).unwrap(), log);
}

#[tokio::test]
async fn a_file_that_is_not_this_ledgers_is_left_alone_until_it_is_moved_away() {
    let other = Folder::new();
    let ledger = open_with_copy(&other, "a");
    ledger.claim(sample_claim(9)).await.unwrap();
    drop(ledger);
    let foreign = std::fs::read_to_string(copy_of(&other)).unwrap();
    let altered = foreign.replace("10000", "90000");
    for content in [&foreign, &altered, "some notes\n", "some notes", "{\"sequence\":0,\"previous\":\"\"}\n", "\n"] {
        let folder = Folder::new();
        std::fs::write(copy_of(&folder), content).unwrap();
        let ledger = open_with_copy(&folder, "a");
        ledger.claim(sample_claim(1)).await.unwrap();
        drop(ledger);
        assert_eq!(std::fs::read_to_string(copy_of(&folder)).unwrap(), *content);
    }
    let folder = Folder::new();
    std::fs::write(copy_of(&folder), &foreign).unwrap();
    let ledger = open_with_copy(&folder, "a");
    ledger.claim(sample_claim(1)).await.unwrap();
    std::fs::rename(copy_of(&folder), folder.0.path().join("away")).unwrap();
    wait_for(&copy_of(&folder), &log(&ledger).await).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_written_stops_no_payment() {
    let folder = Folder::new();
    let path = folder.0.path().join("none").join("audit.jsonl");
    let options = SqliteOptions { audit_file: Some(path.clone()), ..options("a") };
    let ledger = SqliteLedger::open(&folder.path(), options, NOW).unwrap();
    for number in 1..9 {
        deliver(&ledger, number, NOW).await;
    }
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    wait_for(&path, &log(&ledger).await).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_under_the_file_stops_no_payment() {
    let folder = Folder::new();
    std::os::unix::fs::symlink("/dev/full", copy_of(&folder)).unwrap();
    let ledger = open_with_copy(&folder, "a");
    for number in 1..9 {
        deliver(&ledger, number, NOW).await;
    }
    std::fs::remove_file(copy_of(&folder)).unwrap();
    wait_for(&copy_of(&folder), &log(&ledger).await).await;
}

#[tokio::test]
async fn a_file_that_was_rotated_goes_on_in_a_new_one() {
    let folder = Folder::new();
    let ledger = open_with_copy(&folder, "a");
    deliver(&ledger, 1, NOW).await;
    let first = log(&ledger).await;
    wait_for(&copy_of(&folder), &first).await;
    let away = folder.0.path().join("audit.jsonl.1");
    std::fs::rename(copy_of(&folder), &away).unwrap();
    deliver(&ledger, 2, NOW).await;
    let whole = log(&ledger).await;
    wait_for(&copy_of(&folder), &whole[first.len()..]).await;
    assert_eq!(std::fs::read_to_string(&away).unwrap(), first);
    // A restart goes on after the last line, however little the file has.
    drop(ledger);
    let ledger = open_with_copy(&folder, "a");
    deliver(&ledger, 3, NOW).await;
    let whole = log(&ledger).await;
    wait_for(&copy_of(&folder), &whole[first.len()..]).await;
}

#[tokio::test]
async fn two_ledgers_do_not_write_one_file() {
    let (one, two) = (Folder::new(), Folder::new());
    let first = open_with_copy(&one, "a");
    first.claim(sample_claim(1)).await.unwrap();
    wait_for(&copy_of(&one), &log(&first).await).await;
    let options = SqliteOptions { audit_file: Some(copy_of(&one)), ..options("b") };
    let second = SqliteLedger::open(&two.path(), options, NOW).unwrap();
    second.claim(sample_claim(2)).await.unwrap();
    drop(second);
    first.claim(sample_claim(3)).await.unwrap();
    wait_for(&copy_of(&one), &log(&first).await).await;
}
