//! What retention, pins and settings promise, through the engine on a simulated machine whose clock
//! the tests move.

#![forbid(unsafe_code)]

use super::{DeleteReason, KeptBy};
use crate::config::{Config, HighWatermark, PartitionConfig, RetentionClock};
use crate::engine::{Engine, Threads};
use crate::format::{BatchBuilder, Codec};
use crate::io::Clock;
use crate::io::sim::{CrashKind, SimWorld};
use crate::planted::{Bug, plant};
use crate::{AppendOptions, Error, FetchOptions, Isolation, Offset, Partition, SettingsChange};
use std::time::Duration;

const DIR: &str = "/data";
const HOUR: Duration = Duration::from_secs(3600);
const HOUR_MS: u64 = 3_600_000;

struct Rig {
    world: SimWorld,
    config: Config,
}

impl Rig {
    fn new() -> Rig {
        let world = SimWorld::new(1);
        world.make_dir_all(DIR);
        let mut config = Config::new(DIR);
        config.shards = 1;
        config.reserve_bytes = 0;
        config.replay_bytes_max = 4 * 8 * 32_768;
        config.file_delete_delay_ms = 0;
        config.partition.segment_bytes = 1024;
        config.clock = world.clock();
        Rig { world, config }
    }

    fn open(&self) -> Engine {
        Engine::open_on(self.config.clone(), self.world.disk(), None, Threads::Caller).unwrap()
    }

    fn now(&self) -> i64 {
        self.world.clock().now_ms()
    }

    /// A segment of one record of about 700 bytes with this timestamp.
    fn append(&self, partition: &Partition, timestamp: i64) {
        let mut batch = BatchBuilder::new(Codec::None);
        batch.append(timestamp, None, Some(&[7; 600]), &[]).unwrap();
        partition.append(batch.build().unwrap(), AppendOptions::default()).unwrap();
    }

    fn fill(&self, partition: &Partition, records: usize) {
        for _ in 0..records {
            self.append(partition, self.now());
        }
    }

    fn pass(&self, time: Duration) {
        self.world.clock().advance(time);
    }
}

fn topic(engine: &Engine, change: SettingsChange) -> Partition {
    engine.create_topic_with("t", 1, &change).unwrap().remove(0)
}

fn retain(engine: &Engine) -> u64 {
    let round = engine.apply_retention();
    assert!(round.failed.is_empty(), "{:?}", round.failed);
    round.deleted.total().segments
}

fn none() -> SettingsChange {
    SettingsChange::new().retention_ms(None)
}

/// Everything from the log start on can be read.
fn read_all(partition: &Partition) -> i64 {
    let mut offset = partition.log_start_offset();
    let options = FetchOptions {
        max_bytes: 1 << 20,
        isolation: Isolation::LogEnd,
        ..FetchOptions::default()
    };
    while offset < partition.log_end_offset() {
        let lease = partition.fetch(offset, &options).unwrap();
        assert!(lease.next_offset() > offset);
        lease.verify().unwrap();
        offset = lease.next_offset();
    }
    offset.0 - partition.log_start_offset().0
}

#[test]
fn segments_go_when_they_are_older_than_the_limit_and_not_before() {
    let rig = Rig::new();
    let engine = rig.open();
    let partition = topic(&engine, none().retention_ms(Some(3 * HOUR_MS)));
    for _ in 0..5 {
        rig.fill(&partition, 1);
        rig.pass(HOUR);
    }
    // Ages: 5, 4, 3, 2 and 1 hours.
    assert_eq!(retain(&engine), 2);
    assert_eq!(partition.log_start_offset(), Offset(2));
    assert_eq!(retain(&engine), 0);
    rig.pass(Duration::from_millis(1));
    assert_eq!(retain(&engine), 1, "three hours and a millisecond");
    assert_eq!(read_all(&partition), 2);
    assert_eq!(engine.stat().deleted.by_time.segments, 3);
}

#[test]
fn a_log_that_is_old_to_its_end_is_emptied_and_takes_appends() {
    let rig = Rig::new();
    let engine = rig.open();
    let partition = topic(&engine, none().retention_ms(Some(HOUR_MS)));
    rig.fill(&partition, 3);
    rig.pass(HOUR * 2);
    assert_eq!(retain(&engine), 3);
    assert_eq!(partition.log_start_offset(), Offset(3));
    assert_eq!(partition.stat().segments, 1);
    assert_eq!(retain(&engine), 0, "an empty active segment stays");
    rig.fill(&partition, 1);
    assert_eq!((partition.log_end_offset(), read_all(&partition)), (Offset(4), 1));
}

#[test]
fn sizes_and_counts_are_never_brought_below_their_limits() {
    let rig = Rig::new();
    let engine = rig.open();
    let partition = topic(&engine, none());
    rig.fill(&partition, 10);
    let one = partition.stat().bytes / 10;
    partition.configure(&none().retention_bytes(Some(4 * one + 1))).unwrap();
    assert_eq!(retain(&engine), 5);
    assert_eq!(partition.stat().bytes, 5 * one);
    partition.configure(&none().retention_bytes(None).retention_records(Some(2))).unwrap();
    assert_eq!(retain(&engine), 3);
    assert_eq!(read_all(&partition), 2);
    let deleted = engine.stat().deleted;
    assert_eq!((deleted.by_bytes.segments, deleted.by_records.segments), (5, 3));
    assert_eq!(deleted.total().bytes, 8 * one);
}

#[test]
fn nothing_at_or_above_the_high_watermark_goes() {
    let rig = Rig::new();
    let engine = rig.open();
    let config = PartitionConfig {
        high_watermark: HighWatermark::SetByHost,
        retention_ms: Some(0),
        ..rig.config.partition.clone()
    };
    let partition = engine.create_partition("t", 0, config).unwrap();
    rig.fill(&partition, 6);
    rig.pass(HOUR);
    assert_eq!(retain(&engine), 0);
    partition.set_high_watermark(Offset(4));
    assert_eq!(retain(&engine), 4);
    assert_eq!(partition.log_start_offset(), Offset(4));
    let said = partition.explain().unwrap();
    assert_eq!(said.segments[0].kept_by, [KeptBy::HighWatermark(Offset(4))]);
    partition.set_high_watermark(Offset(6));
    plant(Some(Bug::RetentionPassesHighWatermark));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        rig.fill(&partition, 2);
        rig.pass(HOUR);
        retain(&engine)
    }));
    plant(None);
    assert!(caught.is_err(), "the offsets let a log start past the high watermark");
}

#[test]
fn records_dated_in_the_future_go_a_limit_after_their_append() {
    let rig = Rig::new();
    let engine = rig.open();
    let year = rig.now() + 365 * 24 * 3_600_000;
    let partition = topic(&engine, none().retention_ms(Some(HOUR_MS)));
    rig.append(&partition, year);
    rig.pass(HOUR / 2);
    rig.append(&partition, year);
    rig.pass(HOUR / 2);
    assert_eq!(retain(&engine), 0);
    rig.pass(Duration::from_millis(1));
    assert_eq!(retain(&engine), 1);
    partition.configure(&SettingsChange::new().retention_clock(RetentionClock::Record)).unwrap();
    rig.pass(HOUR * 24);
    assert_eq!(retain(&engine), 0, "as Kafka: until their date");
    rig.pass(HOUR * 24 * 366);
    assert_eq!(retain(&engine), 1);
}

#[test]
fn records_without_timestamps_and_of_the_past_go_by_their_append_if_told_so() {
    let rig = Rig::new();
    let engine = rig.open();
    let change = none().retention_ms(Some(HOUR_MS)).retention_clock(RetentionClock::Append);
    let partition = topic(&engine, change);
    rig.append(&partition, 1_000);
    rig.append(&partition, -1);
    assert_eq!(retain(&engine), 0, "an import of old records stays");
    rig.pass(HOUR * 2);
    assert_eq!(retain(&engine), 2);
}

#[test]
fn times_are_known_after_a_restart_without_reading_the_log() {
    let rig = Rig::new();
    let engine = rig.open();
    let partition = topic(&engine, none().retention_ms(Some(3 * HOUR_MS)));
    for _ in 0..5 {
        rig.fill(&partition, 1);
        rig.pass(HOUR);
    }
    drop(partition);
    engine.close().unwrap();
    // Nobody touches the partition: its files say that it is due.
    let engine = rig.open();
    assert_eq!(retain(&engine), 2);
    let partition = engine.partition("t", 0).unwrap();
    let said = partition.explain().unwrap();
    assert_eq!(partition.stat().segments, 3);
    let times: Vec<_> = said.segments.iter().map(|s| s.largest_timestamp.unwrap()).collect();
    let start = rig.now() - 5 * 3_600_000;
    assert_eq!(times, [start + 7_200_000, start + 10_800_000, start + 14_400_000]);
    assert_eq!(partition.stat().indexes_rebuilt, 0);
}

#[test]
fn partitions_that_nobody_touches_are_opened_only_when_something_may_go() {
    let rig = Rig::new();
    let engine = rig.open();
    let partition = topic(&engine, none().retention_ms(Some(HOUR_MS)));
    rig.fill(&partition, 2);
    drop(partition);
    engine.close().unwrap();
    let engine = rig.open();
    retain(&engine);
    assert!(engine.recovery_reports().is_empty(), "it was opened for nothing");
    rig.pass(HOUR * 2);
    assert_eq!(retain(&engine), 2);
}

#[test]
fn a_pin_keeps_records_until_it_is_released_or_expires() {
    let rig = Rig::new();
    let engine = rig.open();
    let partition = topic(&engine, none().retention_ms(Some(0)));
    rig.fill(&partition, 8);
    rig.pass(HOUR);
    let pin = partition.pin("backup", "nightly", Offset(3), None).unwrap();
    let soon = partition.pin("tail", "", Offset(1), Some(HOUR)).unwrap();
    assert_eq!(retain(&engine), 1);
    assert_eq!(partition.log_start_offset(), Offset(1));
    let said = partition.explain().unwrap();
    assert_eq!(said.segments[0].kept_by, [KeptBy::Pin(soon.clone())]);
    assert_eq!(said.segments[0].goes_at_ms, soon.expires_ms);
    assert_eq!(said.segments[2].goes_at_ms, None);
    rig.pass(HOUR);
    assert_eq!(retain(&engine), 2);
    assert_eq!(partition.pins(), std::slice::from_ref(&pin), "the other has expired");
    partition.advance_pin(pin.id, Offset(5), None).unwrap();
    assert_eq!(retain(&engine), 2);
    partition.release_pin(pin.id).unwrap();
    assert_eq!(retain(&engine), 3);
    assert!(matches!(partition.release_pin(pin.id), Err(Error::NotFound { .. })));
}

#[test]
fn a_pin_cannot_be_put_on_what_is_gone_or_not_there_yet() {
    let rig = Rig::new();
    let engine = rig.open();
    let partition = topic(&engine, none());
    rig.fill(&partition, 4);
    partition.delete_records(Offset(2)).unwrap();
    for offset in [0, 1, 5] {
        let error = partition.pin("a", "b", Offset(offset), None).unwrap_err();
        assert!(matches!(error, Error::OffsetOutOfRange { .. }), "{error}");
    }
    partition.pin("a", "b", Offset(4), None).unwrap();
    assert_eq!(partition.pins().len(), 1);
}

#[test]
fn records_are_deleted_past_a_pin_only_if_it_is_said() {
    let rig = Rig::new();
    let engine = rig.open();
    let partition = topic(&engine, none());
    rig.fill(&partition, 6);
    let pin = partition.pin("raft follower 2", "catch-up", Offset(3), None).unwrap();
    assert_eq!(partition.delete_records(Offset(3)).unwrap(), Offset(3));
    let error = partition.delete_records(Offset(4)).unwrap_err();
    let Error::Pinned { pinned: Offset(3), ref owner, .. } = error else { panic!("{error}") };
    assert_eq!(owner, "raft follower 2");
    assert_eq!(partition.log_start_offset(), Offset(3));
    assert_eq!(partition.delete_records(Offset(2)).unwrap(), Offset(3), "nothing to do");
    assert_eq!(partition.delete_records_over_pins(Offset(4)).unwrap(), Offset(4));
    assert_eq!(partition.pins(), [pin]);
    assert_eq!(engine.stat().deleted.by_log_start.segments, 4);
}

#[test]
fn pins_and_settings_survive_power_cuts_from_the_moment_their_call_returns() {
    let rig = Rig::new();
    let engine = rig.open();
    let partition = topic(&engine, none().segment_bytes(2048));
    rig.fill(&partition, 5);
    let pin = partition.pin("backup", "of\nmonday", Offset(2), None).unwrap();
    partition.configure(&SettingsChange::new().retention_records(Some(1))).unwrap();
    partition.flush().unwrap();
    drop(partition);
    engine.abandon();
    rig.world.crash(CrashKind::Power);
    let engine = rig.open();
    let partition = engine.partition("t", 0).unwrap();
    assert_eq!(partition.pins(), [pin]);
    let config = partition.config();
    assert_eq!((config.retention_ms, config.retention_records), (None, Some(1)));
    assert_eq!(config.segment_bytes, 2048);
    retain(&engine);
    assert!(partition.log_start_offset() <= Offset(2));
}

#[test]
fn settings_change_an_open_partition_and_stay_over_restarts() {
    let rig = Rig::new();
    let engine = rig.open();
    let partition = topic(&engine, none().segment_bytes(1 << 20));
    rig.fill(&partition, 5);
    assert_eq!(partition.stat().segments, 1);
    engine.configure_topic("t", &SettingsChange::new().segment_bytes(1024)).unwrap();
    rig.fill(&partition, 5);
    assert_eq!(partition.stat().segments, 6, "the first append rolls, and each after it");
    let large = vec![0; 2000];
    let error = partition.append(large, AppendOptions::default()).unwrap_err();
    assert!(matches!(error, Error::TooLarge { max: 1024, .. }), "{error}");
    let bad = SettingsChange::new().set("segment.bytes", "5").unwrap();
    assert!(matches!(partition.configure(&bad), Err(Error::Config { key: "segment_bytes", .. })));
    assert_eq!(partition.config().segment_bytes, 1024);
    drop(partition);
    engine.close().unwrap();
    let mut other = Rig { world: rig.world.clone(), config: rig.config.clone() };
    other.config.partition.segment_bytes = 9999;
    other.config.partition.batch_bytes_max = 5555;
    let engine = other.open();
    let config = engine.partition("t", 0).unwrap().config();
    assert_eq!(config.segment_bytes, 1024);
    assert_eq!(config.batch_bytes_max, 5555, "what is not stored follows the engine");
    engine.delete_topic("t").unwrap();
    let again = engine.create_topic("t", 1).unwrap().remove(0);
    assert_eq!(again.config().segment_bytes, 9999, "another topic of that name");
}

#[test]
fn over_the_limit_of_the_directory_the_oldest_segment_of_any_partition_goes() {
    let mut rig = Rig::new();
    rig.config.partition.retention_ms = None;
    let engine = rig.open();
    let partitions = engine.create_topic("t", 3).unwrap();
    let internal = engine.create_topic("__internal", 1).unwrap().remove(0);
    rig.fill(&internal, 2);
    for round in 0..4 {
        for partition in &partitions[..=round.min(2)] {
            rig.pass(HOUR);
            rig.fill(partition, 1);
        }
    }
    // Appended, in this order: 0 · 0 1 · 0 1 2 · 0 1 2, and two before them that stay.
    let one = internal.stat().bytes / 2;
    drop(engine);
    let mut limited = Rig { world: rig.world.clone(), config: rig.config.clone() };
    limited.config.retention_total_bytes = Some(6 * one);
    let engine = limited.open();
    let starts = || -> Vec<i64> {
        (0..3).map(|p| engine.partition("t", p).unwrap().log_start_offset().0).collect()
    };
    assert_eq!(retain(&engine), 5);
    assert_eq!(starts(), [3, 2, 0], "0 0 1 0 1 went");
    assert_eq!(engine.partition("__internal", 0).unwrap().log_start_offset(), Offset(0));
    assert_eq!(engine.stat().deleted.by_total_bytes.segments, 5);
    assert_eq!(retain(&engine), 0);
}

#[test]
fn the_limit_of_the_directory_spares_pins_and_the_newest_records() {
    let mut rig = Rig::new();
    rig.config.partition.retention_ms = None;
    rig.config.retention_total_bytes = Some(100);
    let engine = rig.open();
    let partitions = engine.create_topic("t", 2).unwrap();
    rig.fill(&partitions[0], 4);
    rig.fill(&partitions[1], 1);
    partitions[0].pin("a", "b", Offset(2), None).unwrap();
    assert_eq!(retain(&engine), 3, "two of the pinned one, and the active one of the other");
    assert_eq!(partitions[0].log_start_offset(), Offset(2));
    for pin in partitions[0].pins() {
        partitions[0].release_pin(pin.id).unwrap();
    }
    assert_eq!(retain(&engine), 1);
    assert!(partitions[0].stat().bytes > 100, "the last segment of all stays");
}

#[test]
fn what_kafka_keeps_is_not_deleted_because_nothing_was_said() {
    let rig = Rig::new();
    rig.world.put("/data/cleaner-offset-checkpoint", b"0\n1\ncompacted 0 1\n");
    let engine = rig.open();
    let kept = ["compacted", "__consumer_offsets"];
    for name in kept.into_iter().chain(["plain"]) {
        let partition = engine.create_topic(name, 1).unwrap().remove(0);
        rig.fill(&partition, 3);
    }
    rig.pass(HOUR * 24 * 30);
    assert_eq!(retain(&engine), 3);
    for name in kept {
        let partition = engine.partition(name, 0).unwrap();
        assert_eq!(partition.log_start_offset(), Offset(0), "{name}");
        assert_eq!(partition.explain().unwrap().segments[0].kept_by, [KeptBy::NoLimit]);
    }
}

#[test]
fn explain_names_the_reason_that_the_next_round_then_counts() {
    let rig = Rig::new();
    let engine = rig.open();
    let partition = topic(&engine, none().retention_records(Some(3)));
    rig.fill(&partition, 5);
    let said = partition.explain().unwrap();
    let due = [KeptBy::NextRound(DeleteReason::Records)];
    assert_eq!(said.segments.iter().filter(|s| s.kept_by == due).count(), 2);
    assert_eq!(said.segments[2].kept_by, [KeptBy::Records(3)]);
    assert_eq!(retain(&engine), 2);
    assert_eq!(engine.stat().deleted.by_records.segments, 2);
}

#[test]
fn deleted_files_stay_until_their_delay_is_over_and_can_be_read_till_then() {
    let mut rig = Rig::new();
    rig.config.file_delete_delay_ms = 60_000;
    let engine = rig.open();
    let partition = topic(&engine, none().retention_records(Some(1)));
    rig.fill(&partition, 3);
    let lease = partition.fetch(Offset(0), &FetchOptions::default()).unwrap();
    assert_eq!(retain(&engine), 2);
    let deleted = "/data/t-0/00000000000000000001.log.deleted";
    engine.keep().unwrap();
    assert!(rig.world.peek(deleted).is_some());
    lease.verify().unwrap();
    drop(lease);
    rig.pass(Duration::from_secs(61));
    engine.keep().unwrap();
    assert!(rig.world.peek(deleted).is_none());
}
