//! Processes: what they said is kept, and how they ended is told.

use std::{process::Command, time::Duration};

use farebox_e2e::{Process, free_port};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_line_is_found_on_either_pipe_and_a_process_that_ends_without_it_is_quoted() {
    let mut shell = Command::new("sh");
    let process = Process::start("shell", shell.args(["-c", "echo out; echo err >&2"])).unwrap();
    process.wait_for_line(SOON, |line| (line == "err").then_some(())).await.unwrap();
    let missed = process.wait_for_line(SOON, |line| (line == "never").then_some(())).await.unwrap_err().to_string();
    assert!(missed.contains("shell ended before") && missed.contains("out") && missed.contains("err"), "{missed}");
}

#[tokio::test]
async fn a_process_can_be_asked_to_end_and_be_killed() {
    let mut polite = Process::start(
        "polite",
        Command::new("sh").args(["-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done"]),
    )
    .unwrap();
    polite.wait_for_line(SOON, |line| (line == "up").then_some(())).await.unwrap();
    polite.signal("TERM").unwrap();
    assert_eq!(polite.wait(SOON).await.unwrap().code(), Some(7));

    let mut sleeper = Process::start("sleeper", Command::new("sleep").arg("1000")).unwrap();
    assert!(sleeper.ended().unwrap().is_none());
    sleeper.kill_9().unwrap();
    assert_eq!(sleeper.ended().unwrap().unwrap().code(), None);
}

#[test]
fn two_free_ports_differ() {
    assert_ne!(free_port().unwrap(), free_port().unwrap());
}
