//! kill -9 during appends and rolls: everything flushed before is there, offsets are dense, indexes
//! are what a rebuild gives, and values are as they were answered. Method: a child process writes and says what was flushed; it is killed
//! after a random time, its directory opened, checked, and given to the next child.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected should panic"
)]

use loglane::format::Batches;
use loglane::{Config, Engine, FetchOptions, Isolation, Offset, OffsetQuery, Partition};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Kills in one run of this test; LOGLANE_KILLS sets more.
const KILLS: u64 = 200;
const PARTITIONS: u32 = 3;

/// By partition, what was flushed and what a value was set to.
type Promised = BTreeMap<u32, (i64, i64)>;

#[test]
fn everything_flushed_before_a_kill_is_there_and_offsets_are_dense() {
    let kills = std::env::var("LOGLANE_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let mut dir = tempfile::tempdir().unwrap();
    let mut flushed = Promised::new();
    let (mut records, mut rolls) = (0, 0);
    for round in 0..kills {
        if round.is_multiple_of(25) {
            // Fresh now and then, so that a round stays short and creation is hit too.
            dir = tempfile::tempdir().unwrap();
            flushed.clear();
        }
        run_and_kill(dir.path(), round, &mut flushed);
        let (ends, segments) = check(dir.path(), &flushed, round);
        records += ends.values().sum::<i64>();
        rolls += segments;
    }
    println!("{kills} kills, {records} records checked in {rolls} segments, 0 lost");
    assert!(records > 0 && rolls > 0, "the writer never got to write");
}

fn run_and_kill(dir: &Path, round: u64, flushed: &mut Promised) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kill-target"))
        .args([dir.to_str().unwrap(), &PARTITIONS.to_string(), &(round * 7919 + 1).to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut seen = Promised::new();
        // A line that the kill cut short says nothing.
        for line in BufReader::new(out).split(b'\n').map(|line| line.unwrap()) {
            let line = String::from_utf8(line).unwrap();
            let mut words = line.split(' ');
            let (Some(what), Some(partition), Some(offset)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let seen = seen.entry(partition.parse::<u32>().unwrap()).or_default();
            let offset = offset.parse::<i64>().unwrap_or(0);
            match what {
                "flushed" => seen.0 = offset,
                "put" => seen.1 = offset,
                _ => {}
            }
        }
        seen
    });
    std::thread::sleep(Duration::from_millis(10 + round * 37 % 120));
    child.kill().unwrap();
    child.wait().unwrap();
    for (partition, (offset, put)) in reader.join().unwrap() {
        let before = flushed.entry(partition).or_default();
        *before = (offset.max(before.0), put.max(before.1));
    }
}

/// Opens what was killed and reads it from end to end; the next child takes it over closed cleanly
/// every third time, killed again otherwise.
fn check(dir: &Path, flushed: &Promised, round: u64) -> (BTreeMap<u32, i64>, usize) {
    let engine = Engine::open(Config::new(dir)).unwrap();
    let (mut ends, mut segments) = (BTreeMap::new(), 0);
    for partition in engine.topic("t").unwrap() {
        let number = partition.name().partition();
        let report = &engine.recovery_reports()[partition.name()];
        assert!(report.damaged.is_empty(), "round {round}: {report:?}");
        let end = read_dense(&partition);
        let (promised, put) = flushed.get(&number).copied().unwrap_or_default();
        assert!(end >= promised, "round {round}: {promised} flushed in {number}, {end} found");
        let value = partition.get_value(b"end").unwrap();
        let value = value.map_or(0, |v| i64::from_be_bytes(v.as_ref().try_into().unwrap()));
        assert!(value >= put, "round {round}: {put} put in {number}, {value} found");
        assert!(value <= end, "round {round}: {value} put in {number}, which ends at {end}");
        // Every record is found from any offset: the rebuilt indexes are right.
        for offset in (0..end).step_by(97) {
            let lease = partition.fetch(Offset(offset), &small()).unwrap();
            let bytes = lease.to_vec().unwrap();
            let (_, batch) = Batches::new(&bytes).next().unwrap().unwrap();
            let header = batch.header();
            assert!(header.base_offset <= offset && offset <= header.last_offset());
            let query = OffsetQuery::At(1_000_000 + offset);
            let by_time = partition.list_offset(query, Isolation::LogEnd).unwrap().unwrap();
            assert_eq!((by_time.offset.0, by_time.timestamp), (offset, Some(1_000_000 + offset)));
        }
        segments += partition.stat().segments;
        ends.insert(number, end);
    }
    if round.is_multiple_of(3) {
        engine.close().unwrap();
    } else {
        // Leaves the directory as a crash would, minus the time.
        drop(engine);
        let _ = std::fs::remove_file(dir.join(".kafka_cleanshutdown"));
    }
    (ends, segments)
}

fn small() -> FetchOptions {
    FetchOptions { max_bytes: 1, isolation: Isolation::LogEnd, ..FetchOptions::default() }
}

fn read_dense(partition: &Partition) -> i64 {
    let mut next = 0;
    loop {
        let lease = partition.fetch(Offset(next), &FetchOptions::default()).unwrap();
        if lease.is_empty() {
            assert_eq!(lease.log_end_offset(), Offset(next));
            return next;
        }
        for batch in Batches::new(&lease.to_vec().unwrap()) {
            let (_, batch) = batch.unwrap();
            for record in batch.decode().unwrap().records() {
                let record = record.unwrap();
                assert_eq!(record.offset, next, "a hole");
                assert_eq!(record.key, Some(&next.to_be_bytes()[..]), "another record");
                let fill = u8::try_from(next & 0xff).unwrap();
                assert!(record.value.unwrap().iter().all(|b| *b == fill), "another value");
                next += 1;
            }
        }
        assert_eq!(lease.next_offset(), Offset(next));
    }
}
