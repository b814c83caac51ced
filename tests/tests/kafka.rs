//! The real Kafka 4.3.1 on our files, and us on its. Method: tests/kafka/run.sh starts a stock
//! broker and its tools; both sides print every record as one canonical line, and index files are
//! compared byte for byte. Skipped, saying so, where Java or Maven are missing.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should panic"
)]

use loglane::format::{BatchBuilder, Codec};
use loglane::{
    AppendOptions, Config, Engine, PartitionConfig, View, parse_topic_id, topic_id_text,
};
use loglane_tests::canonical_lines;
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
