//! Consumer groups from outside: who resumes where, and what is left when a command ends.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use loglane::{Config, Engine, Offset};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn loglane(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loglane"));
    command.env("LOGLANE_DIR", dir).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    loglane(dir).args(args).output().unwrap()
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Numbers as lines, in batches of several records.
fn produce(dir: &Path, numbers: std::ops::Range<u32>) {
    let mut child = loglane(dir)
        .args(["produce", "--topic", "t", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines: String = numbers.map(|n| format!("{n}\n")).collect();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn lines(numbers: std::ops::Range<u32>) -> String {
    numbers.map(|n| format!("{n}\n")).collect()
}

/// Offset and lag of the one partition of a group.
fn place(dir: &Path, group: &str) -> (i64, i64) {
    let described = ok(&run(dir, &["groups", "describe", group, "--json"]));
    let place: Value = serde_json::from_str(described.lines().next().unwrap()).unwrap();
    (place["offset"].as_i64().unwrap(), place["lag"].as_i64().unwrap())
}

#[test]
fn a_group_goes_on_where_it_was_also_inside_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    produce(dir, 0..10);
    let consume = ["consume", "--topic", "t", "--group", "g"];
    let first = [&consume[..], &["--max-records", "3"]].concat();
    assert_eq!(ok(&run(dir, &first)), lines(0..3));
    assert_eq!(place(dir, "g"), (3, 7));
    assert_eq!(ok(&run(dir, &[&consume[..], &["--commit", "none"]].concat())), lines(3..10));
    assert_eq!(ok(&run(dir, &consume)), lines(3..10));
    assert_eq!(ok(&run(dir, &consume)), "");
    produce(dir, 10..12);
    assert_eq!(place(dir, "g"), (10, 2));
    assert_eq!(ok(&run(dir, &consume)), lines(10..12));
    // Another group has a place of its own, and one that was named goes before the group's.
    assert_eq!(ok(&run(dir, &["consume", "--topic", "t", "--group", "h"])), lines(0..12));
    assert_eq!(ok(&run(dir, &[&consume[..], &["--offset", "11"]].concat())), lines(11..12));
    assert_eq!(ok(&run(dir, &["groups", "list"])), "g partitions=1\nh partitions=1\n");
}

#[test]
fn groups_are_reset_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    produce(dir, 0..10);
    let reset = ["groups", "reset", "g", "--topic", "t"];
    for (to, offset) in [
        (&["--to-latest"][..], 10),
        (&["--to-earliest"], 0),
        (&["--to-offset", "7"], 7),
        (&["--to-offset", "99"], 10),
        (&["--to-timestamp", "0"], 0),
    ] {
        assert_eq!(ok(&run(dir, &[&reset[..], to].concat())), format!("t-0 offset={offset}\n"));
        assert_eq!(place(dir, "g"), (offset, 10 - offset));
    }
    assert_eq!(run(dir, &reset).status.code(), Some(2));
    ok(&run(dir, &["groups", "reset", "h", "--topic", "t", "--to-latest"]));
    ok(&run(dir, &["groups", "delete", "h"]));
    assert_eq!(ok(&run(dir, &["groups", "list"])), "g partitions=1\n");
    for gone in [&["groups", "describe", "h"][..], &["groups", "delete", "h"]] {
        let output = run(dir, gone);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("does not exist"), "{}", stderr(&output));
    }
    ok(&run(dir, &["topics", "delete", "t"]));
    assert_eq!(ok(&run(dir, &["groups", "list"])), "");
}

#[test]
fn an_offset_that_is_out_of_range_is_reported_and_reset() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    produce(dir, 0..10);
    ok(&run(dir, &["groups", "reset", "g", "--topic", "t", "--to-offset", "2"]));
    let engine = Engine::open(Config::new(dir)).unwrap();
    engine.partition("t", 0).unwrap().delete_records(Offset(5)).unwrap();
    engine.close().unwrap();
    let described = ok(&run(dir, &["groups", "describe", "g"]));
    assert!(described.contains("lag=5") && described.contains("out-of-range"), "{described}");
    let consume = ["consume", "--topic", "t", "--group", "g", "--commit", "none"];
    let from_beginning = run(dir, &[&consume[..], &["--from-beginning"]].concat());
    assert_eq!(ok(&from_beginning), lines(5..10));
    assert!(stderr(&from_beginning).contains("offset 2 of t-0 is out of range [5, 10)"));
    let latest = run(dir, &consume);
    assert_eq!(ok(&latest), "");
    assert!(stderr(&latest).contains("out of range"), "{}", stderr(&latest));
}

#[test]
fn a_follower_commits_while_others_write_and_when_it_is_told_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    produce(dir, 0..3);
    let mut child = loglane(dir)
        .args(["consume", "--topic", "t", "--group", "g", "--from-beginning", "--follow"])
        .args(["--commit-interval-ms", "20"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = BufReader::new(child.stdout.take().unwrap()).lines();
    for number in 0..3 {
        assert_eq!(printed.next().unwrap().unwrap(), number.to_string());
    }
    // A commit may have the directory at this moment.
    let engine = loop {
        match Engine::open(Config::new(dir)) {
            Ok(engine) => break engine,
            Err(loglane::Error::Locked { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    };
    let mut batch = loglane::format::BatchBuilder::new(loglane::format::Codec::None);
    batch.append(1, None, Some(b"3"), &[]).unwrap();
    let partition = engine.partition("t", 0).unwrap();
    partition.append(batch.build().unwrap(), loglane::AppendOptions::durable()).unwrap();
    assert_eq!(printed.next().unwrap().unwrap(), "3");
    engine.close().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(printed.next().is_none());
    assert!(child.wait().unwrap().success());
    assert_eq!(place(dir, "g"), (4, 0));
}

#[test]
fn offsets_that_cannot_be_committed_are_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    produce(dir, 0..3);
    let engine = Engine::open(Config::new(dir)).unwrap();
    let output = run(dir, &["consume", "--topic", "t", "--group", "g"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), lines(0..3));
    assert!(stderr(&output).contains("are not committed"), "{}", stderr(&output));
    engine.close().unwrap();
    assert_eq!(ok(&run(dir, &["groups", "list"])), "");
}

#[test]
fn a_damaged_state_file_is_reported_and_can_be_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    produce(dir, 0..3);
    ok(&run(dir, &["groups", "reset", "g", "--topic", "t", "--to-offset", "2"]));
    ok(&run(dir, &["verify"]));
    let file = dir.join("loglane-state");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[70] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(run(dir, &["groups", "list"]).status.code(), Some(3));
    assert_eq!(run(dir, &["verify"]).status.code(), Some(3));
    let consumed = run(dir, &["consume", "--topic", "t", "--group", "g"]);
    assert!(stderr(&consumed).contains("--accept-state-damage"), "{}", stderr(&consumed));
    assert_eq!(run(dir, &["recover"]).status.code(), Some(3));
    assert!(
        ok(&run(dir, &["recover", "--accept-state-damage"])).contains("loglane-state-damaged-")
    );
    assert_eq!(ok(&run(dir, &["consume", "--topic", "t", "--group", "g"])), lines(0..3));
}
