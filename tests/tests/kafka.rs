//! The real Kafka 4.3.1 on our files, and us on its. Method: tests/kafka/run.sh starts a stock
//! broker and its tools; both sides print every record as one canonical line, and index files are
//! compared byte for byte. Skipped, saying so, where Java or Maven are missing.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should panic"
)]

use loglane::format::{BatchBuilder, Batches, Codec};
use loglane::{
    AppendOptions, Config, Engine, FetchOptions, Isolation, Offset, Partition, PartitionConfig,
    TransactionMarker, TransactionOutcome, View, inspect, parse_topic_id, topic_id_text,
};
use loglane_tests::canonical_lines;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

const RECORDS: usize = 100_000;

/// One broker at a time: two cores.
static TURN: Mutex<()> = Mutex::new(());

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kafka")
}

fn run(arguments: &[&str]) -> Output {
    Command::new(root().join("run.sh")).args(arguments).output().unwrap()
}

/// Runs a command of the harness and gives its standard output.
fn kafka(arguments: &[&str]) -> String {
    let output = run(arguments);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// True if the harness can run here; says what is missing otherwise.
fn available() -> bool {
    let output = Command::new(root().join("setup.sh")).output().unwrap();
    if output.status.success() {
        return true;
    }
    eprintln!("SKIPPED: {}", String::from_utf8_lossy(&output.stderr).trim());
    // On CI a skip would hide the point of the project.
    assert!(std::env::var_os("CI").is_none(), "CI must have Java and Maven");
    false
}

/// A formatted work directory whose broker is killed when the test ends, however it ends.
struct Broker {
    dir: tempfile::TempDir,
}

impl Broker {
    fn new() -> Broker {
        let broker = Broker { dir: tempfile::tempdir().unwrap() };
        kafka(&["format", broker.path()]);
        broker
    }

    fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        run(&["kill", self.path()]);
    }
}

fn lines_of(data: &Path, topic: &str) -> Vec<String> {
    let view = View::open_only(data, |name| name.topic() == topic).unwrap();
    let mut lines = Vec::new();
    for partition in view.partitions().values() {
        assert!(partition.report().damaged.is_empty() && partition.report().torn_tail.is_none());
        canonical_lines(partition, &mut lines).unwrap();
    }
    lines
}

fn assert_same(found: &[String], expected: &str) {
    let expected: Vec<&str> = expected.lines().collect();
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "record {i}");
    }
    assert_eq!(found.len(), expected.len());
}

/// Compares index files with those that Kafka's own recovery builds from the same logs.
fn assert_indexes_are_kafkas(partition: &Path, out: &Path) -> usize {
    kafka(&["rebuild", partition.to_str().unwrap(), out.to_str().unwrap()]);
    let mut compared = 0;
    for entry in fs::read_dir(partition).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".index") || name.ends_with(".timeindex") {
            let ours = fs::read(partition.join(&name)).unwrap();
            let kafkas = fs::read(out.join(&name)).unwrap();
            assert_eq!(ours, kafkas, "{name} differs from what Kafka builds");
            compared += 1;
        }
    }
    compared
}

#[test]
fn a_directory_that_kafka_wrote_is_read_record_for_record_and_taken_over() {
    if !available() {
        return;
    }
    let _turn = TURN.lock();
    let broker = Broker::new();
    let work = broker.path();
    kafka(&["start", work]);
    kafka(&["produce", work, "t", "3", &RECORDS.to_string(), "7"]);
    let expected = fs::read_to_string(broker.dir.path().join("expected-t.txt")).unwrap();
    assert_eq!(expected.lines().count(), RECORDS);
    // Live: what the broker has in its page cache is there for a view.
    assert_same(&lines_of(&broker.data(), "t"), &expected);
    kafka(&["stop", work]);
    assert_same(&lines_of(&broker.data(), "t"), &expected);

    // Taken over, appended to, and given back.
    let engine = Engine::open(Config::new(broker.data())).unwrap();
    assert!(engine.was_clean());
    let partition = engine.partition("t", 1).unwrap();
    assert!(partition.stat().segments > 1, "several rolled segments");
    let before = partition.log_end_offset();
    let mut batch = BatchBuilder::new(Codec::Zstd);
    batch.append(1_800_000_000_000, Some(b"ours"), Some(b"appended by us"), &[]).unwrap();
    let info = partition.append(batch.build().unwrap(), AppendOptions::default()).unwrap();
    assert_eq!(info.base_offset, before);
    engine.close().unwrap();
    kafka(&["start", work]);
    assert_eq!(kafka(&["was-recovered", work]).trim(), "none");
    let out = broker.dir.path().join("consumed.txt");
    kafka(&["consume", work, "t", out.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(out).unwrap().lines().count(), RECORDS + 1);
    kafka(&["stop", work]);
}

#[test]
fn a_directory_that_we_wrote_is_kafkas_without_recovery_and_byte_for_byte() {
    if !available() {
        return;
    }
    let _turn = TURN.lock();
    let broker = Broker::new();
    let work = broker.path();
    kafka(&["start", work]);
    let id = kafka(&["create", work, "ours", "3"]);
    kafka(&["stop", work]);

    write_as_loglane(&broker.data());
    let engine_id = View::open(broker.data()).unwrap().partition("ours", 0).unwrap().topic_id();
    assert_eq!(topic_id_text(engine_id.unwrap()), id.trim(), "the topic id was kept");
    assert_eq!(engine_id, parse_topic_id(id.trim()));

    let lines = lines_of(&broker.data(), "ours");
    assert_eq!(lines.len(), RECORDS);
    let mut compared = 0;
    for partition in 0..3 {
        let dir = broker.data().join(format!("ours-{partition}"));
        kafka(&["dump", dir.to_str().unwrap()]);
        let rebuilt = broker.dir.path().join(format!("rebuilt-{partition}"));
        compared += assert_indexes_are_kafkas(&dir, &rebuilt);
    }
    assert!(compared > 12, "only {compared} index files: nothing rolled");

    kafka(&["start", work]);
    assert_eq!(kafka(&["was-recovered", work]).trim(), "none");
    let out = broker.dir.path().join("consumed.txt");
    kafka(&["consume", work, "ours", out.to_str().unwrap()]);
    assert_same(&lines, &fs::read_to_string(out).unwrap());
    let console = kafka(&["console", work, "ours", &RECORDS.to_string()]);
    // Values are letters, nothing, or null: one line each.
    assert_eq!(console.lines().count(), RECORDS);
    kafka(&["stop", work]);
}

/// What `producers` prints, from our side.
fn described(partition: &Partition) -> String {
    let mut lines = format!("stable {}\n", partition.last_stable_offset());
    for p in partition.producers().unwrap() {
        lines.push_str(&format!(
            "producer {} {} {} {} {} {}\n",
            p.producer_id,
            p.producer_epoch,
            p.last_sequence,
            p.timestamp,
            // As Kafka's Admin client has it: no coordinator epoch is less than 0.
            p.coordinator_epoch,
            p.transaction_first_offset
        ));
    }
    for offset in committed(partition) {
        lines.push_str(&format!("committed {offset}\n"));
    }
    lines
}

/// The offsets that a read-committed consumer is shown, by the rule of its protocol: from its first
/// offset to its marker, an aborted transaction's batches are left out.
fn committed(partition: &Partition) -> Vec<i64> {
    let options = FetchOptions {
        max_bytes: 200_000,
        isolation: Isolation::ReadCommitted,
        ..FetchOptions::default()
    };
    let (mut offsets, mut next) = (Vec::new(), 0);
    loop {
        let lease = partition.fetch(Offset(next), &options).unwrap();
        if lease.is_empty() {
            return offsets;
        }
        let bytes = lease.to_vec().unwrap();
        for batch in Batches::new(&bytes) {
            let (_, batch) = batch.unwrap();
            let header = batch.header();
            let is_aborted = lease.aborted_transactions().iter().any(|a| {
                a.producer_id == header.producer_id
                    && (a.first_offset..a.last_offset).contains(&header.base_offset)
            });
            let hidden = header.attributes.is_transactional() && is_aborted;
            if !header.attributes.is_control() && !hidden {
                offsets.extend(header.base_offset..header.next_offset());
            }
        }
        next = lease.next_offset().0;
    }
}

fn files(dir: &Path, suffix: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|e| (e.file_name().into_string().unwrap(), e.path()));
    let wanted = named.filter(|(name, _)| name.ends_with(suffix));
    wanted.map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}

#[test]
fn producers_and_transactions_that_kafka_left_are_known_and_told_apart_as_kafka_does() {
    if !available() {
        return;
    }
    let _turn = TURN.lock();
    let broker = Broker::new();
    let work = broker.path();
    kafka(&["start", work]);
    kafka(&["transactions", work, "t", "400"]);
    let expected = kafka(&["producers", work, "t"]);
    assert!(expected.lines().filter(|line| line.starts_with("producer ")).count() == 3);
    kafka(&["stop", work]);
    let dir = broker.data().join("t-0");
    let indexes = files(&dir, ".txnindex");
    let snapshots = files(&dir, ".snapshot");
    assert!(indexes.len() > 1 && snapshots.len() > 2, "several segments");

    let engine = Engine::open(Config::new(broker.data())).unwrap();
    let partition = engine.partition("t", 0).unwrap();
    assert_eq!(described(&partition), expected, "from Kafka's snapshot");
    engine.close().unwrap();
    assert_eq!(files(&dir, ".txnindex"), indexes, "nothing was changed");
    assert_eq!(files(&dir, ".snapshot"), snapshots);

    // After a crash that left nothing but the log, all of it is made again as it was.
    for name in indexes.keys().chain(snapshots.keys()) {
        fs::remove_file(dir.join(name)).unwrap();
    }
    fs::remove_file(broker.data().join(".kafka_cleanshutdown")).unwrap();
    fs::remove_file(broker.data().join("recovery-point-offset-checkpoint")).unwrap();
    let engine = Engine::open(Config::new(broker.data())).unwrap();
    let partition = engine.partition("t", 0).unwrap();
    assert_eq!(described(&partition), expected, "from the log");
    engine.close().unwrap();
    assert_eq!(files(&dir, ".txnindex"), indexes, "byte for byte what Kafka wrote");
    let newest = snapshots.last_key_value().unwrap().0;
    let read = |name: &str| inspect::producer_snapshot(&dir.join(name)).unwrap();
    let ours = read(newest);
    fs::write(dir.join(newest), &snapshots[newest]).unwrap();
    let mut kafkas = read(newest);
    kafkas.sort_by_key(|producer| producer.producer_id);
    assert_eq!(ours, kafkas);
    kafka(&["start", work]);
    assert_eq!(kafka(&["was-recovered", work]).trim(), "none");
    assert_eq!(kafka(&["producers", work, "t"]), expected);
    kafka(&["stop", work]);
}

#[test]
fn producers_and_transactions_that_we_left_are_known_to_kafka() {
    if !available() {
        return;
    }
    let _turn = TURN.lock();
    let broker = Broker::new();
    let work = broker.path();
    kafka(&["start", work]);
    kafka(&["create", work, "ours", "1"]);
    kafka(&["stop", work]);
    let mut config = Config::new(broker.data());
    config.partition = PartitionConfig { segment_bytes: 1 << 20, ..PartitionConfig::default() };
    let now = config.clock.now_ms();
    let engine = Engine::open(config).unwrap();
    let partition = engine.partition("ours", 0).unwrap();
    let append = |producer: i64, sequence: i32, in_transaction: bool| {
        let mut batch = BatchBuilder::new(Codec::None);
        batch.producer(producer, 0, sequence).transactional(in_transaction);
        for _ in 0..3 {
            batch.append(now, None, Some(&[7; 1000]), &[]).unwrap();
        }
        partition.append(batch.build().unwrap(), AppendOptions::default()).unwrap();
    };
    for round in 0..300 {
        append(7001, round * 3, false);
        append(7002, round * 3, true);
        append(7003, round * 3, true);
        for producer_id in [7002, 7003] {
            let outcome = match round % 3 {
                0 => TransactionOutcome::Abort,
                _ => TransactionOutcome::Commit,
            };
            if round == 299 && producer_id == 7003 {
                break;
            }
            let marker = TransactionMarker {
                producer_id,
                producer_epoch: 0,
                coordinator_epoch: 1,
                outcome,
                transaction_version: 1,
                timestamp: now,
            };
            partition.append_marker(&marker, AppendOptions::default()).unwrap();
        }
    }
    assert!(partition.stat().segments > 2);
    assert!(partition.last_stable_offset() < partition.log_end_offset());
    let expected = described(&partition);
    engine.close().unwrap();
    let dir = broker.data().join("ours-0");
    kafka(&["dump", dir.to_str().unwrap()]);
    let rebuilt = broker.dir.path().join("rebuilt");
    kafka(&["rebuild", dir.to_str().unwrap(), rebuilt.to_str().unwrap()]);
    let indexes = files(&dir, ".txnindex");
    assert!(indexes.len() > 2);
    assert_eq!(indexes, files(&rebuilt, ".txnindex"), "byte for byte what Kafka builds");

    kafka(&["start", work]);
    assert_eq!(kafka(&["was-recovered", work]).trim(), "none");
    assert_eq!(kafka(&["producers", work, "ours"]), expected);
    kafka(&["stop", work]);
}

/// 100,000 records with keys, headers, nulls and all five codecs, in segments of 1 MiB.
fn write_as_loglane(data: &Path) {
    let mut config = Config::new(data);
    config.partition = PartitionConfig { segment_bytes: 1 << 20, ..PartitionConfig::default() };
    let engine = Engine::open(config).unwrap();
    let partitions = engine.topic("ours").unwrap();
    assert_eq!(partitions.len(), 3);
    let mut written = 0;
    let mut batches = 0;
    while written < RECORDS {
        let mut batch = BatchBuilder::new(Codec::ALL[batches % 5]);
        for _ in 0..(1 + batches * 7 % 40).min(RECORDS - written) {
            let i = written as i64;
            let key = format!("key-{}", i % 997);
            let value =
                vec![b'a' + u8::try_from(i % 26).unwrap(); usize::try_from(i * 31 % 700).unwrap()];
            let headers =
                [("trace", Some(key.as_bytes())), ("none", None), ("empty", Some(&b""[..]))];
            let headers = &headers[..usize::try_from(i % 4).unwrap()];
            let key = Some(key.as_bytes()).filter(|_| i % 10 != 0);
            let value = Some(&value[..]).filter(|_| i % 100 != 0);
            batch.append(1_700_000_000_000 + i * 10, key, value, headers).unwrap();
            written += 1;
        }
        let partition = &partitions[batches % 3];
        partition.append(batch.build().unwrap(), AppendOptions::default()).unwrap();
        batches += 1;
    }
    engine.close().unwrap();
}
