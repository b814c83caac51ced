//! What append and fetch promise, on both backends, across rolls and reopens.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected should panic"
)]

mod support;

use loglane::io::BackendChoice;
use loglane::{
    AppendOptions, CompletionQueue, Config, Durability, Engine, Error, FetchOptions, HighWatermark,
    Isolation, LeaderEpoch, Offset, OffsetQuery, PartitionConfig, View,
};
use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use support::{batch, read_dense, small_segments};

fn segments(dir: &std::path::Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".log")).count()
}

#[test]
fn records_come_back_dense_across_rolls_and_reopens_on_both_backends() {
    for backend in [BackendChoice::Auto, BackendChoice::Plain] {
        let dir = tempfile::tempdir().unwrap();
        let mut next = 0;
        for round in 0..3 {
            let mut config = small_segments(dir.path());
            config.backend = backend;
            let engine = Engine::open(config).unwrap();
            assert!(engine.was_clean(), "round {round}");
            let partition = match round {
                0 => engine.create_topic("t", 1).unwrap().remove(0),
                _ => engine.partition("t", 0).unwrap(),
            };
            assert_eq!(partition.log_end_offset(), Offset(next));
            for _ in 0..50 {
                let info = partition.append(batch(next, 7, 200), AppendOptions::default()).unwrap();
                assert_eq!(info.base_offset, Offset(next));
                assert_eq!(info.last_offset, Offset(next + 6));
                next += 7;
            }
            for max_bytes in [1, 2_000, 1 << 20] {
                assert_eq!(read_dense(&partition, 0, max_bytes), next);
            }
            for offset in [0, 1, 6, 7, 8, next / 2, next - 1] {
                assert_eq!(read_dense(&partition, offset, 5_000), next, "from {offset}");
            }
            assert!(partition.stat().segments > 3);
            engine.close().unwrap();
        }
        assert!(segments(&dir.path().join("t-0")) > 10);
    }
}

#[test]
fn a_receipt_names_the_class_that_was_met_and_durable_covers_what_came_before() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let written = partition.append(batch(0, 1, 10), AppendOptions::default()).unwrap();
    assert_eq!(written.durability, Durability::Written);
    assert_eq!(partition.durable_offset(), Offset(0));
    let durable = partition.append(batch(1, 1, 10), AppendOptions::durable()).unwrap();
    assert_eq!(durable.durability, Durability::Durable);
    assert_eq!(partition.durable_offset(), Offset(2));
    partition.append(batch(2, 1, 10), AppendOptions::default()).unwrap();
    assert_eq!(partition.flush().unwrap(), Offset(3));
    assert_eq!(partition.durable_offset(), Offset(3));
}

#[test]
fn many_appends_under_way_are_all_answered_in_order_for_each_partition() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partitions = engine.create_topic("t", 20).unwrap();
    let queue = CompletionQueue::new().unwrap();
    let (mut done, mut next) = (Vec::new(), vec![0_i64; partitions.len()]);
    const ROUNDS: usize = 100;
    for _ in 0..ROUNDS {
        for (i, partition) in partitions.iter().enumerate() {
            let bytes = batch(next[i], 3, 100);
            let durability = if i % 5 == 0 { Durability::Durable } else { Durability::Written };
            let options = AppendOptions { durability, leader_epoch: None };
            while let Err(error) = partition.submit(bytes.clone(), options, &queue, i as u64) {
                assert!(matches!(error, Error::Busy { .. }), "{error}");
                queue.wait(&mut done, Duration::from_secs(1));
            }
            next[i] += 3;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while done.len() < ROUNDS * partitions.len() {
        assert!(Instant::now() < deadline, "{} answers are missing", ROUNDS * 20 - done.len());
        queue.wait(&mut done, Duration::from_secs(1));
    }
    let mut seen = vec![0_i64; partitions.len()];
    for completion in done {
        let at = usize::try_from(completion.token).unwrap();
        assert_eq!(completion.result.unwrap().base_offset, Offset(seen[at]));
        seen[at] += 3;
    }
    for (partition, next) in partitions.iter().zip(next) {
        assert_eq!(read_dense(partition, 0, 1 << 20), next);
    }
}

#[test]
fn fetch_stops_at_the_high_watermark_that_the_host_sets() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    let config =
        PartitionConfig { high_watermark: HighWatermark::SetByHost, ..PartitionConfig::default() };
    let partition = engine.create_partition("t", 0, config).unwrap();
    for i in 0..10 {
        partition.append(batch(i * 5, 5, 600), AppendOptions::default()).unwrap();
    }
    let consumer = FetchOptions::default();
    assert!(partition.fetch(Offset(0), &consumer).unwrap().is_empty());
    assert_eq!(partition.set_high_watermark(Offset(20)), Offset(20));
    let lease = partition.fetch(Offset(0), &consumer).unwrap();
    assert_eq!(lease.next_offset(), Offset(20));
    assert_eq!(support::check_records(&lease.to_vec().unwrap(), 0), 20);
    let past = partition.fetch(Offset(21), &consumer);
    assert!(matches!(past, Err(Error::OffsetOutOfRange { .. })));
    let follower = FetchOptions { isolation: Isolation::LogEnd, ..consumer };
    assert_eq!(partition.fetch(Offset(21), &follower).unwrap().next_offset(), Offset(50));
}

#[test]
fn a_lease_goes_out_by_sendfile_byte_for_byte_in_any_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    for i in 0..40 {
        partition.append(batch(i * 4, 4, 300), AppendOptions::default()).unwrap();
    }
    let lease = partition.fetch(Offset(0), &FetchOptions::default()).unwrap();
    assert!(lease.ranges().len() > 1, "the lease spans segments");
    let expected = lease.to_vec().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let total = lease.bytes();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let mut sent = 0;
    while sent < total {
        sent += lease.send_part(&ours, sent, 777).unwrap();
    }
    drop(ours);
    assert_eq!(reader.join().unwrap(), expected);
}

#[test]
fn deleted_segments_stay_readable_under_a_lease_and_go_when_it_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    for i in 0..100 {
        partition.append(batch(i * 4, 4, 300), AppendOptions::default()).unwrap();
    }
    let lease = partition.fetch(Offset(0), &FetchOptions { max_bytes: 1, ..Default::default() });
    let lease = lease.unwrap();
    assert_eq!(partition.delete_records(Offset(203)).unwrap(), Offset(203));
    let gone = partition.fetch(Offset(202), &FetchOptions::default());
    assert!(matches!(gone, Err(Error::OffsetOutOfRange { .. })));
    assert_eq!(read_dense(&partition, 203, 9_000), 400, "the start lies inside a batch");

    let deleted = || {
        let names = std::fs::read_dir(dir.path().join("t-0")).unwrap();
        let names = names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|n| n.ends_with(".log.deleted")).collect::<BTreeSet<_>>()
    };
    let held = "00000000000000000000.log.deleted".to_owned();
    let deadline = Instant::now() + Duration::from_secs(20);
    while deleted().len() > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(deleted(), BTreeSet::from([held]), "only the leased file waits");
    assert!(lease.is_retired());
    assert_eq!(support::check_records(&lease.to_vec().unwrap(), 0), 4);
    drop(lease);
    while !deleted().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(deleted().is_empty(), "the file went with the lease");
    engine.close().unwrap();

    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partition = engine.partition("t", 0).unwrap();
    assert_eq!(partition.log_start_offset(), Offset(203), "the start survives a reopen");
    assert_eq!(read_dense(&partition, 203, 9_000), 400);
    assert_eq!(partition.delete_records(Offset(400)).unwrap(), Offset(400), "all of it");
    assert_eq!(
        partition.append(batch(400, 1, 1), AppendOptions::default()).unwrap().base_offset,
        Offset(400)
    );
}

#[test]
fn an_older_leader_is_fenced_and_epochs_say_where_they_end() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let append = |first: i64, epoch: i32| {
        let options =
            AppendOptions { leader_epoch: Some(LeaderEpoch(epoch)), ..AppendOptions::default() };
        partition.append(batch(first, 5, 10), options)
    };
    append(0, 3).unwrap();
    append(5, 7).unwrap();
    assert!(matches!(append(10, 6), Err(Error::EpochFenced { .. })));
    partition.set_leader_epoch(LeaderEpoch(9));
    assert!(matches!(append(10, 7), Err(Error::EpochFenced { .. })));
    append(10, 9).unwrap();
    let end = |epoch| partition.end_offset_for_epoch(LeaderEpoch(epoch)).map(|(e, o)| (e.0, o.0));
    assert_eq!(end(3), Some((3, 5)));
    assert_eq!(end(8), Some((7, 10)));
    assert_eq!(end(9), Some((9, 15)));
    assert_eq!(end(10), None);
    drop(engine);
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    assert_eq!(engine.partition("t", 0).unwrap().leader_epochs().len(), 3);
}

#[test]
fn a_follower_takes_only_what_continues_its_log() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = Engine::open(Config::new(from.path())).unwrap();
    let follower = Engine::open(Config::new(to.path())).unwrap();
    let leads = leader.create_topic("t", 1).unwrap().remove(0);
    let follows = follower.create_topic("t", 1).unwrap().remove(0);
    for i in 0..5 {
        leads.append(batch(i * 3, 3, 50), AppendOptions::default()).unwrap();
    }
    let bytes = leads.fetch(Offset(0), &FetchOptions::default()).unwrap().to_vec().unwrap();
    let info = follows.append_as_follower(bytes.clone(), Durability::Written).unwrap();
    assert_eq!(info.last_offset, Offset(14));
    assert_eq!(read_dense(&follows, 0, 1 << 20), 15);
    let again = follows.append_as_follower(bytes, Durability::Written);
    assert!(matches!(again, Err(Error::OffsetMismatch { expected: Offset(15), .. })));
    assert_eq!(follows.log_end_offset(), Offset(15));
}

#[test]
fn records_are_found_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    for i in 0..100 {
        partition.append(batch(i * 4, 4, 300), AppendOptions::default()).unwrap();
    }
    let at = |timestamp| OffsetQuery::from_kafka(timestamp).unwrap();
    let listed = |query| {
        let found = partition.list_offset(query, Isolation::HighWatermark).unwrap();
        found.map(|found| (found.offset.0, found.timestamp))
    };
    for offset in [0, 1, 3, 4, 150, 399] {
        let timestamp = 1_000_000 + offset;
        assert_eq!(listed(at(timestamp)), Some((offset, Some(timestamp))));
    }
    assert_eq!(listed(at(0)), Some((0, Some(1_000_000))));
    assert_eq!(listed(at(1_000_400)), None);
}

#[test]
fn the_sentinels_of_list_offsets_mean_what_they_mean_in_kafka() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = small_segments(dir.path());
    config.partition.high_watermark = HighWatermark::SetByHost;
    let engine = Engine::open(config).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let listed = |timestamp, isolation| {
        let query = OffsetQuery::from_kafka(timestamp).unwrap();
        let found = partition.list_offset(query, isolation).unwrap();
        found.map(|found| (found.offset.0, found.timestamp, found.leader_epoch.map(|e| e.0)))
    };
    let (to_end, to_mark) = (Isolation::LogEnd, Isolation::HighWatermark);
    assert_eq!(listed(-1, to_end), Some((0, None, None)), "an empty log");
    assert_eq!(listed(-3, to_end), None, "no record has a timestamp");
    // The largest timestamp is not the last one.
    for from in [0, 4, 8, 2, 5] {
        partition.append(batch(from, 4, 300), AppendOptions::default()).unwrap();
    }
    partition.set_high_watermark(Offset(14));
    assert_eq!(listed(-1, to_end), Some((20, None, Some(0))));
    assert_eq!(listed(-1, to_mark), Some((14, None, Some(0))));
    assert_eq!(listed(-3, to_end), Some((11, Some(1_000_011), Some(0))));
    assert_eq!(listed(-5, to_end), None);
    partition.delete_records(Offset(6)).unwrap();
    assert_eq!(listed(-2, to_mark), Some((6, None, Some(0))));
    assert_eq!(listed(-4, to_mark), Some((6, None, Some(0))));
    assert_eq!(listed(1_000_008, to_mark), Some((8, Some(1_000_008), Some(0))));
    assert_eq!(OffsetQuery::from_kafka(-6), None);
}

#[test]
fn bad_batches_are_refused_by_name_and_leave_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let good = batch(0, 3, 100);
    let mut bad_crc = good.clone();
    bad_crc[80] ^= 1;
    let mut bad_magic = good.clone();
    bad_magic[16] = 1;
    let two = [good.clone(), bad_crc.clone()].concat();
    for (bytes, position) in [
        (vec![], 0),
        (bad_crc, 0),
        (bad_magic, 0),
        (good[..60].to_vec(), 0),
        (good[..good.len() - 1].to_vec(), 0),
        (two, good.len()),
    ] {
        match partition.append(bytes, AppendOptions::default()) {
            Err(Error::InvalidBatch { position: at, .. }) => assert_eq!(at, position),
            other => panic!("{other:?}"),
        }
    }
    let huge = batch(0, 1, 2 << 20);
    assert!(matches!(
        partition.append(huge, AppendOptions::default()),
        Err(Error::TooLarge { .. })
    ));
    assert_eq!(partition.log_end_offset(), Offset(0));
    assert_eq!(partition.stat().bytes, 0);
    partition.append(good, AppendOptions::default()).unwrap();
    assert_eq!(read_dense(&partition, 0, 1 << 20), 3);
}

#[test]
fn a_directory_has_one_writer_and_any_number_of_readers() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    assert!(matches!(Engine::open(Config::new(dir.path())), Err(Error::Locked { .. })));
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let mut view = View::open(dir.path()).unwrap();
    assert!(view.writer_is_live() && !view.is_clean());
    let mut next = 0;
    for _ in 0..30 {
        for _ in 0..10 {
            partition.append(batch(next, 4, 300), AppendOptions::default()).unwrap();
            next += 4;
        }
        view.refresh().unwrap();
        let seen = view.partition("t", 0).unwrap();
        assert_eq!(seen.log_end_offset(), Offset(next));
        let lease = seen.fetch(Offset(next - 40), &FetchOptions::default()).unwrap();
        assert_eq!(support::check_records(&lease.to_vec().unwrap(), next - 40), next);
    }
    let fresh = View::open(dir.path()).unwrap();
    let seen = fresh.partition("t", 0).unwrap();
    let mut offset = 0;
    while offset < next {
        let lease = seen.fetch(Offset(offset), &FetchOptions::default()).unwrap();
        offset = support::check_records(&lease.to_vec().unwrap(), offset);
    }
}

#[test]
fn a_deleted_topic_is_gone_and_its_name_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    let old = engine.create_topic("t", 3).unwrap();
    old[1].append(batch(0, 3, 10), AppendOptions::default()).unwrap();
    let lease = old[1].fetch(Offset(0), &FetchOptions::default()).unwrap();
    engine.delete_topic("t").unwrap();
    assert!(matches!(
        old[1].append(batch(3, 1, 1), AppendOptions::default()),
        Err(Error::Closed { .. })
    ));
    assert!(matches!(engine.partition("t", 1), Err(Error::NotFound { .. })));
    assert_eq!(support::check_records(&lease.to_vec().unwrap(), 0), 3, "the lease still holds");
    let new = engine.create_topic("t", 1).unwrap().remove(0);
    assert_ne!(new.topic_id(), old[0].topic_id());
    assert_eq!(new.log_end_offset(), Offset(0));
    assert!(matches!(engine.create_topic("t", 1), Err(Error::AlreadyExists { .. })));
}

#[test]
fn segments_roll_by_age_and_by_a_full_index_and_stay_readable() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    // Records of `batch` are a millisecond apart: 100 of them are older than 50 ms.
    let by_age = PartitionConfig { segment_ms: 50, ..PartitionConfig::default() };
    let by_index = PartitionConfig {
        index_bytes_max: 96,
        index_interval_bytes: 0,
        ..PartitionConfig::default()
    };
    for (name, config) in [("age", by_age), ("index", by_index)] {
        let partition = engine.create_partition(name, 0, config).unwrap();
        for i in 0..100 {
            partition.append(batch(i * 10, 10, 20), AppendOptions::default()).unwrap();
        }
        let segments = partition.stat().segments;
        assert!((10..=30).contains(&segments), "{segments} segments by {name}");
        assert_eq!(read_dense(&partition, 0, 3_000), 1000);
    }
    engine.close().unwrap();
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    for name in ["age", "index"] {
        assert_eq!(read_dense(&engine.partition(name, 0).unwrap(), 0, 3_000), 1000);
    }
}

#[test]
fn rolling_and_deleting_for_ever_keeps_no_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    // Links under /proc/self/fd that point into our directory: other tests run in this process too.
    let open_here = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
        targets.filter(|target| target.starts_with(dir.path())).count()
    };
    let mut next = 0;
    for _ in 0..60 {
        partition.append(batch(next, 4, 300), AppendOptions::default()).unwrap();
        next += 4;
        partition.delete_records(Offset(next)).unwrap();
    }
    assert!(open_here() < 10, "{} files are open for one partition", open_here());
}
