//! Compaction against a plain model, on a simulated disk.

#![forbid(unsafe_code)]

use crate::config::{CleanupPolicy, Config, PartitionConfig};
use crate::engine::{Engine, Threads};
use crate::format::{Attributes, Batch, BatchBuilder, Batches, Codec, crc32c, stamp};
use crate::io::Clock;
use crate::io::sim::SimWorld;
use crate::planted::{Bug, plant};
use crate::{AppendOptions, Durability, Error, FetchOptions, Isolation, Offset, Partition};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const DIR: &str = "/data";
const RETENTION_MS: u64 = 1_000;

struct Machine {
    world: SimWorld,
    memory_bytes: u64,
    segment_bytes: u32,
    engine: Option<Engine>,
}

impl Machine {
    fn new(seed: u64, memory_bytes: u64, segment_bytes: u32) -> Machine {
        let world = SimWorld::new(seed);
        world.make_dir_all(DIR);
        let mut machine = Machine { world, memory_bytes, segment_bytes, engine: None };
        machine.open();
        let config = machine.config().partition;
        machine.engine.as_ref().unwrap().create_partition("t", 0, config).unwrap();
        machine
    }

    fn config(&self) -> Config {
        let mut config = Config::new(DIR);
        config.shards = 1;
        config.replay_bytes_max = 16 << 20;
        config.reserve_bytes = 0;
        config.file_delete_delay_ms = 0;
        config.open_files_max = Some(4);
        config.compaction_memory_bytes = self.memory_bytes;
        config.partition = PartitionConfig {
            segment_bytes: self.segment_bytes,
            index_interval_bytes: 200,
            cleanup_policy: CleanupPolicy::Compact,
            delete_retention_ms: RETENTION_MS,
            ..PartitionConfig::default()
        };
        config.clock = self.world.clock();
        config
    }

    fn open(&mut self) {
        let engine = Engine::open_on(self.config(), self.world.disk(), None, Threads::Caller);
        self.engine = Some(engine.unwrap());
    }

    fn reopen(&mut self) {
        self.engine.take().unwrap().close().unwrap();
        self.open();
    }

    fn partition(&self) -> Partition {
        self.engine.as_ref().unwrap().partition("t", 0).unwrap()
    }
}

/// A record as it is read.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Read {
    offset: i64,
    timestamp: i64,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// Everything from `from` on, through fetches of `max_bytes`.
fn read(partition: &Partition, from: i64, max_bytes: u64) -> Vec<Read> {
    let options =
        FetchOptions { max_bytes, isolation: Isolation::LogEnd, ..FetchOptions::default() };
    let (mut offset, mut found) = (from, Vec::new());
    while offset < partition.log_end_offset().0 {
        let lease = partition.fetch(Offset(offset), &options).unwrap();
        lease.verify().unwrap();
        for batch in Batches::new(&lease.to_vec().unwrap()) {
            let (_, batch) = batch.unwrap();
            for record in batch.decode().unwrap().records() {
                let record = record.unwrap();
                if record.offset >= offset && !batch.header().attributes.is_control() {
                    found.push(Read {
                        offset: record.offset,
                        timestamp: record.timestamp,
                        key: record.key.unwrap_or_default().to_vec(),
                        value: record.value.map(<[u8]>::to_vec),
                    });
                }
            }
        }
        assert!(lease.next_offset().0 > offset, "no progress at {offset}");
        offset = lease.next_offset().0;
    }
    found
}

/// The plain model: what was appended, less what compaction takes away.
#[derive(Default)]
struct Model {
    /// With the number of the batch.
    records: Vec<(u64, Read)>,
    /// From when on the tombstones of a batch may go.
    horizons: BTreeMap<u64, i64>,
    cleaned: i64,
}

impl Model {
    fn compact(&mut self, end: i64, now_ms: i64) {
        if end <= self.cleaned {
            return;
        }
        self.cleaned = end;
        let mut newest = BTreeMap::new();
        for (_, record) in self.records.iter().filter(|(_, r)| r.offset < end) {
            newest.insert(record.key.clone(), record.offset);
        }
        let horizons = &self.horizons;
        self.records.retain(|(batch, record)| {
            record.offset >= end
                || newest[&record.key] == record.offset
                    && (record.value.is_some() || horizons.get(batch).is_none_or(|h| now_ms < *h))
        });
        for (batch, _) in self.records.iter().filter(|(_, r)| r.offset < end && r.value.is_none()) {
            self.horizons.entry(*batch).or_insert(now_ms + RETENTION_MS as i64);
        }
    }

    fn records(&self) -> Vec<Read> {
        self.records.iter().map(|(_, record)| record.clone()).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Key and whether it is a tombstone, for each record.
    Append(Codec, Vec<(u8, bool)>),
    Roll,
    Compact,
    Later(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let records = prop::collection::vec((0_u8..40, prop::bool::weighted(0.2)), 1..6);
    let codec = prop::sample::select(Codec::ALL.to_vec());
    prop_oneof![
        12 => (codec, records).prop_map(|(codec, records)| Step::Append(codec, records)),
        1 => Just(Step::Roll),
        2 => Just(Step::Compact),
        1 => (1..2_000_u64).prop_map(Step::Later),
        1 => Just(Step::Reopen),
    ]
}

fn append(partition: &Partition, bytes: Vec<u8>) -> i64 {
    partition.append(bytes, AppendOptions::default()).unwrap().base_offset.0
}

/// Runs the steps and compares after each compaction.
fn run(seed: u64, memory_bytes: u64, segment_bytes: u32, steps: &[Step]) {
    let mut machine = Machine::new(seed, memory_bytes, segment_bytes);
    let (mut model, mut batches) = (Model::default(), 0);
    let compact = [Step::Roll, Step::Compact, Step::Later(RETENTION_MS), Step::Reopen];
    for step in steps.iter().chain(&compact) {
        let partition = machine.partition();
        match step {
            Step::Append(codec, records) => {
                batches += 1;
                let mut builder = BatchBuilder::new(*codec);
                let mut wanted = Vec::new();
                for (i, (key, is_tombstone)) in records.iter().enumerate() {
                    let timestamp = 10_000 + batches as i64 * 10 - i as i64;
                    let value = (!is_tombstone).then(|| vec![*key; 10 + 5 * i]);
                    builder.append(timestamp, Some(&[*key]), value.as_deref(), &[]).unwrap();
                    wanted.push((timestamp, vec![*key], value));
                }
                let base = append(&partition, builder.build().unwrap());
                for (i, (timestamp, key, value)) in wanted.into_iter().enumerate() {
                    let read = Read { offset: base + i as i64, timestamp, key, value };
                    model.records.push((batches, read));
                }
            }
            Step::Roll => drop(partition.roll().unwrap()),
            Step::Compact => {
                let end = partition.shared().segments.load().last().unwrap().base_offset();
                partition.compact().unwrap();
                model.compact(end, machine.world.clock().now_ms());
                assert_eq!(partition.shared().cleaned.offset().unwrap_or(0), model.cleaned);
            }
            Step::Later(ms) => machine.world.clock().advance(Duration::from_millis(*ms)),
            Step::Reopen => {
                drop(partition);
                machine.reopen();
            }
        }
        if matches!(step, Step::Compact | Step::Reopen) {
            let partition = machine.partition();
            let wanted = model.records();
            assert_eq!(read(&partition, 0, 1 << 20), wanted);
            for from in (0..partition.log_end_offset().0).step_by(7) {
                let behind: Vec<Read> =
                    wanted.iter().filter(|record| record.offset >= from).cloned().collect();
                assert_eq!(read(&partition, from, 300), behind, "from {from}");
            }
            for key in 0_u8..40 {
                let newest = wanted.iter().rev().find(|record| record.key == [key]);
                let newest = newest.and_then(|r| Some((r.offset, r.value.clone()?)));
                let found = partition.last_by_key(&[key]).unwrap();
                assert_eq!(found.map(|r| (r.offset.0, r.value.to_vec())), newest, "key {key}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn what_survives_is_what_the_plain_model_says(
        seed: u64,
        keys_that_fit in prop::sample::select(vec![1_024_u64, 4_096, 1 << 20]),
        segment_bytes in 1_024_u32..4_000,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        run(seed, keys_that_fit, segment_bytes, &steps);
    }
}

/// Keys 0 to 199, a tombstone for each third, several times over.
fn busy_steps() -> Vec<Step> {
    let append = |i: u8| Step::Append(Codec::None, vec![(i % 40, i.is_multiple_of(3))]);
    let mut steps: Vec<Step> = (0..200).map(append).collect();
    steps.extend([Step::Roll, Step::Compact, Step::Later(10), Step::Roll]);
    steps.extend((0..20).map(append));
    steps.extend([Step::Roll, Step::Compact]);
    steps
}

#[test]
fn keys_that_do_not_fit_take_more_passes() {
    let machine = Machine::new(1, 1_024, 2_000);
    let partition = machine.partition();
    for i in 0..100_u8 {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.append(1, Some(&[i]), Some(b"value"), &[]).unwrap();
        append(&partition, builder.build().unwrap());
    }
    partition.roll().unwrap();
    let before = partition.compaction_status().unwrap();
    assert_eq!((before.cleaned_offset, before.dirty_ratio), (None, 1.0));
    let run = partition.compact().unwrap();
    assert_eq!(run.passes, 3, "1024 bytes hold 37 keys");
    let after = partition.compaction_status().unwrap();
    assert_eq!((after.cleaned_offset, after.dirty_bytes), (Some(Offset(100)), 0));
    assert_eq!(after.last_run, Some(run));
    assert_eq!(partition.compact().unwrap().passes, 0, "nothing is left to do");
}

#[test]
#[should_panic(expected = "left == right")]
fn a_tombstone_that_goes_too_early_is_caught() {
    plant(Some(Bug::TombstonesAtOnce));
    let caught = std::panic::catch_unwind(|| run(1, 1 << 20, 1_024, &busy_steps()));
    plant(None);
    std::panic::resume_unwind(caught.unwrap_err());
}

#[test]
fn busy_steps_hold_without_a_bug() {
    run(1, 1 << 20, 1_024, &busy_steps());
    run(2, 1_024, 1_024, &busy_steps());
}

#[test]
fn a_record_without_a_key_is_refused_and_a_plain_partition_is_not_compacted() {
    let machine = Machine::new(1, 1_024, 2_000);
    let mut builder = BatchBuilder::new(Codec::Lz4);
    builder.append(1, Some(b"k"), None, &[]).unwrap();
    builder.append(1, None, Some(b"v"), &[]).unwrap();
    let refused = machine.partition().append(builder.build().unwrap(), AppendOptions::default());
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("record 1 has no key"), "{text}");
    let engine = machine.engine.as_ref().unwrap();
    let plain = engine.create_partition("plain", 0, PartitionConfig::default()).unwrap();
    assert!(matches!(plain.compact(), Err(Error::Config { key: "cleanup_policy", .. })));
    assert!(plain.last_by_key(b"k").is_err());
}

/// A batch of a producer, with records of one key each.
fn of_producer(base: i64, id: i64, transactional: bool, sequence: i32, keys: &[&str]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.producer(id, 0, sequence).transactional(transactional);
    for key in keys {
        let value = format!("{id} {base}");
        builder.append(1, Some(key.as_bytes()), Some(value.as_bytes()), &[]).unwrap();
    }
    let mut bytes = builder.build().unwrap();
    stamp(&mut bytes, base, 0);
    bytes
}

/// A marker: 0 aborts, 1 commits.
fn marker(base: i64, id: i64, kind: u8) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.producer(id, 0, -1).transactional(true);
    builder.append(1, Some(&[0, 0, 0, kind]), Some(&[0; 6]), &[]).unwrap();
    let mut bytes = builder.build().unwrap();
    bytes[22] |= 32;
    let crc = crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    stamp(&mut bytes, base, 0);
    bytes
}

/// Every batch: base offset, records, attributes.
fn batches(partition: &Partition) -> Vec<(i64, i32, Attributes)> {
    let options = FetchOptions { isolation: Isolation::LogEnd, ..FetchOptions::default() };
    let lease = partition.fetch(Offset(0), &options).unwrap();
    let bytes = lease.to_vec().unwrap();
    let header = |batch: Batch<'_>| {
        let header = *batch.header();
        (header.base_offset, header.record_count, header.attributes)
    };
    Batches::new(&bytes).map(|batch| header(batch.unwrap().1)).collect()
}

fn follow(partition: &Partition, bytes: Vec<u8>) {
    partition.append_as_follower(bytes, Durability::Written).unwrap();
}

#[test]
fn aborted_records_go_at_once_and_markers_after_their_records_and_the_retention() {
    let machine = Machine::new(1, 1 << 20, 1 << 20);
    let partition = machine.partition();
    follow(&partition, of_producer(0, 1, false, 0, &["a", "b"]));
    follow(&partition, of_producer(2, 7, true, 0, &["a", "c"]));
    follow(&partition, of_producer(4, 8, true, 0, &["d"]));
    follow(&partition, marker(5, 7, 0));
    follow(&partition, marker(6, 8, 1));
    follow(&partition, of_producer(7, 1, false, 2, &["x"]));
    partition.roll().unwrap();
    // A day later the producers are forgotten.
    machine.world.clock().advance(Duration::from_secs(2 * 24 * 3600));
    partition.compact().unwrap();
    let keys: Vec<String> = read(&partition, 0, 1 << 20)
        .into_iter()
        .map(|r| format!("{}={}", String::from_utf8(r.key).unwrap(), r.offset))
        .collect();
    assert_eq!(keys, ["a=0", "b=1", "d=4", "x=7"], "the aborted a and c are gone");
    let bases = |partition: &Partition| batches(partition).iter().map(|b| b.0).collect::<Vec<_>>();
    assert_eq!(bases(&partition), [0, 4, 5, 6, 7], "both markers stay");
    let txn_index = machine.world.peek(format!("{DIR}/t-0/{:020}.txnindex", 0)).unwrap();
    assert_eq!(txn_index.len(), 34);
    assert_eq!(&txn_index[2..18], [7_i64.to_be_bytes(), 2_i64.to_be_bytes()].concat());

    // Next: no batch of the aborted transaction is left, so its marker gets a horizon.
    let more = |base: i64| {
        follow(&partition, of_producer(base, -1, false, -1, &["y"]));
        partition.roll().unwrap();
        partition.compact().unwrap();
    };
    more(8);
    let of = |base: i64| batches(&partition).into_iter().find(|b| b.0 == base);
    assert!(of(5).unwrap().2.has_delete_horizon());
    assert!(!of(6).unwrap().2.has_delete_horizon(), "d of the committed one is still there");
    machine.world.clock().advance(Duration::from_millis(RETENTION_MS - 1));
    more(9);
    assert!(of(5).is_some());
    machine.world.clock().advance(Duration::from_millis(1));
    more(10);
    assert!(of(5).is_none() && of(6).is_some(), "{:?}", batches(&partition));
    assert!(machine.world.peek(format!("{DIR}/t-0/{:020}.txnindex", 0)).is_none());
}

#[test]
fn an_open_transaction_stops_compaction_before_it() {
    let machine = Machine::new(1, 1 << 20, 1 << 20);
    let partition = machine.partition();
    follow(&partition, of_producer(0, -1, false, -1, &["a"]));
    partition.roll().unwrap();
    follow(&partition, of_producer(1, 7, true, 0, &["a"]));
    partition.roll().unwrap();
    partition.compact().unwrap();
    assert_eq!(partition.compaction_status().unwrap().cleaned_offset, Some(Offset(1)));
    assert_eq!(read(&partition, 0, 1 << 20).len(), 2, "its abort would bring the first a back");
    follow(&partition, marker(2, 7, 1));
    partition.compact().unwrap();
    assert_eq!(read(&partition, 0, 1 << 20).len(), 1);
}

#[test]
fn the_last_batch_of_a_live_producer_stays_without_records() {
    let machine = Machine::new(1, 1 << 20, 1 << 20);
    let now = machine.world.clock().now_ms();
    let partition = machine.partition();
    let mut builder = BatchBuilder::new(Codec::Gzip);
    builder.producer(9, 4, 30);
    builder.append(now, Some(b"a"), Some(b"1"), &[]).unwrap();
    append(&partition, builder.build().unwrap());
    builder.producer(-1, -1, -1);
    for _ in 0..2 {
        builder.append(now, Some(b"a"), Some(b"2"), &[]).unwrap();
        append(&partition, builder.build().unwrap());
    }
    partition.roll().unwrap();
    partition.compact().unwrap();
    let found = batches(&partition);
    let counts: Vec<(i64, i32)> = found.iter().map(|b| (b.0, b.1)).collect();
    assert_eq!(counts, [(0, 0), (2, 1)]);
}

#[test]
fn a_lease_on_replaced_segments_stays_readable_and_says_so() {
    let machine = Machine::new(1, 1 << 20, 1_024);
    let partition = machine.partition();
    for i in 0..60_u8 {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.append(1, Some(&[i % 3]), Some(&[i; 30]), &[]).unwrap();
        append(&partition, builder.build().unwrap());
    }
    partition.roll().unwrap();
    let lease = partition.fetch(Offset(0), &FetchOptions::default()).unwrap();
    let before = lease.to_vec().unwrap();
    partition.compact().unwrap();
    assert!(lease.is_retired());
    machine.engine.as_ref().unwrap().keep().unwrap();
    lease.verify().unwrap();
    assert_eq!(lease.to_vec().unwrap(), before);
    assert_eq!(read(&partition, 0, 1 << 20).len(), 3);
    let mut builder = BatchBuilder::new(Codec::None);
    builder.append(1, Some(b"another"), Some(b"value"), &[]).unwrap();
    append(&partition, builder.build().unwrap());
    partition.roll().unwrap();
    partition.compact().unwrap();
    assert_eq!(partition.stat().segments, 2, "what is small now became one");
}

#[test]
fn a_truncation_below_makes_what_comes_there_dirty_again() {
    let mut machine = Machine::new(1, 1 << 20, 1_024);
    let partition = machine.partition();
    let put = |partition: &Partition, key: u8, value: u8| {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.append(1, Some(&[key]), Some(&[value; 40]), &[]).unwrap();
        append(partition, builder.build().unwrap());
    };
    for i in 0..60_u8 {
        put(&partition, i % 20, 1);
    }
    partition.roll().unwrap();
    partition.compact().unwrap();
    partition.truncate(Offset(50)).unwrap();
    assert_eq!(partition.compaction_status().unwrap().cleaned_offset, Some(Offset(50)));
    for i in 0..20_u8 {
        put(&partition, i, 2);
    }
    partition.roll().unwrap();
    drop(partition);
    machine.reopen();
    let partition = machine.partition();
    partition.compact().unwrap();
    let found = read(&partition, 0, 1 << 20);
    assert_eq!(found.len(), 20);
    assert!(found.iter().all(|record| record.value == Some(vec![2; 40])));
}

#[test]
fn a_full_disk_refuses_compaction_and_harms_nothing() {
    let machine = Machine::new(1, 1 << 20, 8_000);
    machine.world.set_capacity(1 << 30);
    let partition = machine.partition();
    for i in 0..100_u8 {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.append(1, Some(&[i % 3]), Some(&[i; 200]), &[]).unwrap();
        append(&partition, builder.build().unwrap());
    }
    partition.roll().unwrap();
    let before = read(&partition, 0, 1 << 20);
    let used = (1 << 30) - machine.world.disk().free_bytes(DIR.as_ref()).unwrap();
    machine.world.set_capacity(used + 4096);
    assert!(matches!(partition.compact(), Err(Error::NoSpace { .. })));
    assert!(partition.compaction_status().unwrap().error.unwrap().contains("no space"));
    assert_eq!(read(&partition, 0, 1 << 20), before);
    machine.world.set_capacity(1 << 30);
    partition.compact().unwrap();
    assert_eq!(partition.compaction_status().unwrap().error, None);
    assert!(read(&partition, 0, 1 << 20).len() < before.len());
}

/// An engine with threads of its own, whose cleaner looks around all the time.
fn own_threads(dir: &std::path::Path) -> Engine {
    let mut config = Config::new(dir);
    config.shards = 2;
    config.checkpoint_interval_ms = 100;
    config.compaction_interval_ms = 10;
    config.file_delete_delay_ms = 0;
    config.open_files_max = Some(4);
    config.partition = PartitionConfig {
        segment_bytes: 4_096,
        cleanup_policy: CleanupPolicy::Compact,
        ..PartitionConfig::default()
    };
    Engine::open(config).unwrap()
}

#[test]
fn readers_and_writers_go_on_while_the_cleaner_compacts_by_itself() {
    const KEYS: u64 = 50;
    const RECORDS: u64 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let engine = own_threads(dir.path());
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (partition, over) = (partition.clone(), &over);
            scope.spawn(move || {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let found = read(&partition, 0, 3_000 + reader * 9_000);
                    assert!(found.is_sorted_by(|a, b| a.offset < b.offset));
                    for record in found {
                        // Which record it is stands in its value: no other's bytes are ever read.
                        let of = record.value.unwrap();
                        assert_eq!(of, record.offset.to_be_bytes());
                        let key = record.offset.cast_unsigned() % KEYS;
                        assert_eq!(record.key, key.to_be_bytes());
                    }
                    partition.list_offset(crate::OffsetQuery::At(1), Isolation::LogEnd).unwrap();
                }
            });
        }
        let mut builder = BatchBuilder::new(Codec::None);
        for first in (0..RECORDS).step_by(10) {
            for number in first..first + 10 {
                let key = (number % KEYS).to_be_bytes();
                builder.append(1, Some(&key), Some(&number.to_be_bytes()), &[]).unwrap();
            }
            append(&partition, builder.build().unwrap());
        }
        partition.roll().unwrap();
        while partition.compaction_status().unwrap().dirty_ratio > 0.5 {
            assert_eq!(partition.compaction_status().unwrap().error, None);
            std::thread::sleep(Duration::from_millis(5));
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(partition.compaction_status().unwrap().last_run.is_some());
    partition.compact().unwrap();
    let found = read(&partition, 0, 1 << 20);
    let offsets: Vec<u64> = found.iter().map(|r| r.offset.cast_unsigned()).collect();
    assert_eq!(offsets, (RECORDS - KEYS..RECORDS).collect::<Vec<_>>());
    drop(partition);
    engine.close().unwrap();
    let engine = own_threads(dir.path());
    let partition = engine.partition("t", 0).unwrap();
    assert_eq!(read(&partition, 0, 1 << 20), found);
    assert_eq!(partition.compaction_status().unwrap().cleaned_offset, Some(Offset(20_000)));
    let text = std::fs::read_to_string(dir.path().join("cleaner-offset-checkpoint")).unwrap();
    assert_eq!(text, "0\n1\nt 0 20000\n");
}

#[test]
fn damage_makes_one_partition_uncleanable_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let engine = own_threads(dir.path());
    let partitions = engine.create_topic("t", 2).unwrap();
    for partition in &partitions {
        let mut builder = BatchBuilder::new(Codec::None);
        for i in 0..200_u32 {
            builder.append(1, Some(&[7]), Some(&i.to_be_bytes()), &[]).unwrap();
            if i == 0 {
                append(partition, builder.build().unwrap());
                let path = dir.path().join(format!("t-{}", partition.name().partition()));
                let path = path.join("00000000000000000000.log");
                if partition.name().partition() == 0 {
                    let mut bytes = std::fs::read(&path).unwrap();
                    bytes[70] ^= 1;
                    std::fs::write(&path, bytes).unwrap();
                }
            }
        }
        append(partition, builder.build().unwrap());
        partition.roll().unwrap();
    }
    let status = |number: usize| partitions[number].compaction_status().unwrap();
    while status(0).error.is_none() || status(1).cleaned_offset.is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(status(0).error.unwrap().contains("damaged"));
    assert_eq!(status(0).cleaned_offset, None);
    assert_eq!((status(1).cleaned_offset, status(1).error), (Some(Offset(200)), None));
}

#[test]
fn a_close_does_not_wait_for_a_slow_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path());
    config.compaction_bytes_per_s = 1;
    config.partition.cleanup_policy = CleanupPolicy::Compact;
    let engine = Engine::open(config).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let mut builder = BatchBuilder::new(Codec::None);
    builder.append(1, Some(b"k"), Some(&[1; 5_000]), &[]).unwrap();
    append(&partition, builder.build().unwrap());
    partition.roll().unwrap();
    // At a byte a second it would run for over an hour.
    let run = std::thread::spawn(move || partition.compact());
    std::thread::sleep(Duration::from_millis(50));
    engine.close().unwrap();
    assert!(matches!(run.join().unwrap(), Err(Error::Closed { .. })));
}
