//! A full disk with retention on: fill, retain, resume, again and again without a restart; nothing that
//! was acknowledged is lost, and nothing is deleted that the settings keep. Method: a small tmpfs (needs
//! root); a pin makes the disk fill up, its release lets retention work.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should panic"
)]

use loglane::format::{BatchBuilder, Batches, Codec};
use loglane::io::{Clock, SystemClock};
use loglane::{
    AppendOptions, Config, Engine, Error, FetchOptions, Isolation, KeptBy, Offset, Partition,
    SettingsChange,
};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SEGMENT_BYTES: u32 = 256 << 10;
const VALUE_BYTES: usize = 20_000;

/// A mount that ends with the test.
struct Tmpfs<'a>(&'a Path);

impl Tmpfs<'_> {
    fn mount<'a>(dir: &'a Path, size: &str) -> Option<Tmpfs<'a>> {
        let options = format!("size={size}");
        let arguments = ["-t", "tmpfs", "-o", &options, "tmpfs", dir.to_str().unwrap()];
        let mounted = Command::new("mount").args(arguments).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Tmpfs(dir));
        }
        eprintln!("SKIPPED: cannot mount a tmpfs; run as root");
        None
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn batch(offset: i64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None);
    let now = SystemClock::new().now_ms();
    builder.append(now, Some(&offset.to_be_bytes()), Some(&[7; VALUE_BYTES]), &[]).unwrap();
    builder.build().unwrap()
}

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir.join("data"));
    config.shards = 1;
    config.partition.segment_bytes = SEGMENT_BYTES;
    // Only a lack of space makes retention run, and files go before their time then.
    config.retention_check_interval_ms = 86_400_000;
    config
}

fn append(partition: &Partition, durable: bool) -> Result<(), Error> {
    let next = partition.log_end_offset();
    let options = if durable { AppendOptions::durable() } else { AppendOptions::default() };
    let info = partition.append(batch(next.0), options)?;
    assert_eq!(info.base_offset, next, "an offset was left out or given twice");
    Ok(())
}

/// Appends until it is refused; gives how many were taken.
fn fill(partition: &Partition) -> usize {
    for taken in 0..10_000 {
        match append(partition, taken % 7 == 0) {
            Ok(()) => {}
            Err(Error::NoSpace { .. }) => return taken,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the disk never was full");
}

/// Appends until one is taken.
fn resume(partition: &Partition, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = append(partition, false) {
        assert!(matches!(error, Error::NoSpace { .. }), "{what}: {error}");
        assert!(Instant::now() < deadline, "{what}: appends do not go on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every record from the log start to the log end is there and is its own.
fn check(partition: &Partition) {
    let mut offset = partition.log_start_offset();
    let options = FetchOptions {
        max_bytes: 4 << 20,
        isolation: Isolation::LogEnd,
        ..FetchOptions::default()
    };
    while offset < partition.log_end_offset() {
        let lease = partition.fetch(offset, &options).unwrap();
        let bytes = lease.to_vec().unwrap();
        for batch in Batches::new(&bytes) {
            let (_, batch) = batch.unwrap();
            for record in batch.decode().unwrap().records() {
                let record = record.unwrap();
                assert_eq!(record.offset, offset.0, "a hole");
                assert_eq!(record.key, Some(&offset.0.to_be_bytes()[..]));
                offset = Offset(offset.0 + 1);
            }
        }
    }
}

#[test]
fn a_hundred_rounds_of_fill_retain_and_resume_lose_nothing_and_need_no_restart() {
    const LIMIT: u64 = 2 << 20;
    let dir = tempfile::tempdir().unwrap();
    let Some(_mount) = Tmpfs::mount(dir.path(), "8m") else { return };
    let config = || Config { file_delete_delay_ms: 0, ..config(dir.path()) };
    let engine = Engine::open(config()).unwrap();
    let settings = SettingsChange::new().retention_ms(None).retention_bytes(Some(LIMIT));
    let partition = engine.create_topic_with("t", 1, &settings).unwrap().remove(0);
    for round in 0..100 {
        let start = partition.log_start_offset();
        let pin = partition.pin("round", "to fill the disk", start, None);
        let pin = pin.unwrap_or_else(|e| panic!("round {round}: {e}"));
        let taken = fill(&partition);
        assert!(taken > 50, "round {round}: only {taken} fitted");
        assert_eq!(partition.log_start_offset(), start, "round {round}: pinned records went");
        let end = partition.log_end_offset();
        let said = partition.explain().unwrap();
        assert_eq!(said.segments[0].kept_by, [KeptBy::Pin(pin.clone())], "round {round}");
        check(&partition);
        // Nobody asks for it: what is short of space sees that the pin is gone.
        partition.release_pin(pin.id).unwrap();
        resume(&partition, &format!("round {round}"));
        assert!(partition.log_start_offset() > start, "round {round}");
        assert!(partition.log_end_offset() > end, "round {round}");
        let bytes = partition.stat().bytes;
        assert!(bytes >= LIMIT, "round {round}: {bytes} bytes are left of {LIMIT}");
        check(&partition);
    }
    let deleted = engine.stat().deleted;
    assert!(deleted.by_bytes.segments > 100, "{deleted:?}");
    assert_eq!(deleted.total(), deleted.by_bytes, "{deleted:?}");
    let (start, end) = (partition.log_start_offset(), partition.log_end_offset());
    drop(partition);
    engine.close().unwrap();
    let engine = Engine::open(config()).unwrap();
    let partition = engine.partition("t", 0).unwrap();
    assert_eq!((partition.log_start_offset(), partition.log_end_offset()), (start, end));
    check(&partition);
    engine.close().unwrap();
}

#[test]
fn a_writer_that_never_stops_gets_ten_disks_through_one() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mount) = Tmpfs::mount(dir.path(), "8m") else { return };
    let engine = Engine::open(config(dir.path())).unwrap();
    let settings = SettingsChange::new().retention_ms(None).retention_bytes(Some(1 << 20));
    let partitions = engine.create_topic_with("t", 2, &settings).unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    for number in 0..10 * (8 << 20) / VALUE_BYTES {
        let partition = &partitions[number % 2];
        while let Err(error) = append(partition, number % 50 == 0) {
            assert!(matches!(error, Error::NoSpace { .. }), "{error}");
            assert!(Instant::now() < deadline, "record {number}: appends do not go on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    for partition in &partitions {
        check(partition);
        assert!(partition.stat().bytes >= 1 << 20);
    }
    engine.close().unwrap();
}

#[test]
fn without_a_limit_nothing_is_deleted_for_want_of_space() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mount) = Tmpfs::mount(dir.path(), "4m") else { return };
    let engine = Engine::open(config(dir.path())).unwrap();
    let settings = SettingsChange::new().retention_ms(None);
    let partition = engine.create_topic_with("t", 1, &settings).unwrap().remove(0);
    fill(&partition);
    // Rounds run all the time now; this one is one more.
    let round = engine.apply_retention();
    assert!(round.failed.is_empty() && round.deleted.total().segments == 0, "{round:?}");
    assert_eq!(partition.log_start_offset(), Offset(0));
    check(&partition);
    engine.close().unwrap();
}
