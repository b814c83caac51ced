//! What idempotent and transactional producers are promised, through rolls, reopens and truncations.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected should panic"
)]

mod support;

use loglane::format::{BatchBuilder, Codec};
use loglane::inspect;
use loglane::{
    AbortedTransaction, AppendInfo, AppendOptions, Config, Durability, Engine, Error, FetchOptions,
    HighWatermark, Isolation, Offset, Partition, PartitionConfig, ProducerFault, ProducerState,
    TransactionMarker, TransactionOutcome, View,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use support::small_segments;

const NOW: i64 = 4_000_000_000_000;

/// Small segments, and no space held back: these tests open many directories.
fn settings(dir: &Path) -> Config {
    Config { reserve_bytes: 0, ..small_segments(dir) }
}

/// A producer's batch of `count` records.
fn of(producer: i64, epoch: i16, sequence: i32, count: i32) -> BatchBuilder {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.producer(producer, epoch, sequence);
    for _ in 0..count {
        builder.append(NOW, None, Some(&[7; 100]), &[]).unwrap();
    }
    builder
}

fn append(partition: &Partition, mut batch: BatchBuilder) -> loglane::Result<AppendInfo> {
    partition.append(batch.build().unwrap(), AppendOptions::default())
}

fn in_transaction(
    partition: &Partition,
    producer: i64,
    sequence: i32,
    count: i32,
) -> loglane::Result<AppendInfo> {
    let mut batch = of(producer, 0, sequence, count);
    batch.transactional(true);
    append(partition, batch)
}

fn end(partition: &Partition, producer_id: i64, outcome: TransactionOutcome) -> AppendInfo {
    let marker = TransactionMarker {
        producer_id,
        producer_epoch: 0,
        coordinator_epoch: 3,
        outcome,
        transaction_version: 1,
        timestamp: NOW,
    };
    partition.append_marker(&marker, AppendOptions::default()).unwrap()
}

fn fault(result: loglane::Result<AppendInfo>) -> ProducerFault {
    match result {
        Err(Error::Producer { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(dir.join("t-0")).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = names.filter(|p| p.to_string_lossy().ends_with(suffix)).collect();
    files.sort();
    files
}

/// As if the machine had died with everything below `recovery_point` synced.
fn crash(dir: &Path, recovery_point: i64) {
    fs::remove_file(dir.join(".kafka_cleanshutdown")).unwrap();
    let text = format!("0\n1\nt 0 {recovery_point}\n");
    fs::write(dir.join("recovery-point-offset-checkpoint"), text).unwrap();
}

/// Everything that producers leave: their states, the last stable offset, and what was aborted.
fn all(partition: &Partition) -> (Vec<ProducerState>, Offset, Vec<AbortedTransaction>) {
    let end = partition.log_end_offset();
    let aborted = partition.aborted_transactions(partition.log_start_offset(), end).unwrap();
    (partition.producers().unwrap(), partition.last_stable_offset(), aborted)
}

/// Work of three producers over several segments: two transactional, with every third transaction
/// aborted and producer 2's last one left open.
fn work(partition: &Partition, rounds: i32) {
    for round in 0..rounds {
        append(partition, of(1, 0, round * 3, 3)).unwrap();
        in_transaction(partition, 2, round * 5, 5).unwrap();
        in_transaction(partition, 3, round * 2, 2).unwrap();
        let outcome = match round % 3 {
            0 => TransactionOutcome::Abort,
            _ => TransactionOutcome::Commit,
        };
        end(partition, 3, outcome);
        if round + 1 < rounds {
            end(partition, 2, outcome);
        }
    }
}

#[test]
fn a_batch_that_is_sent_again_gets_its_old_offsets_and_is_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let mut first = Vec::new();
    for i in 0..7 {
        first.push(append(&partition, of(1, 0, i * 2, 2)).unwrap());
        assert!(!first[i as usize].duplicate);
    }
    let end = partition.log_end_offset();
    for i in 2..7 {
        for durability in [Durability::Written, Durability::Durable] {
            let options = AppendOptions { durability, leader_epoch: None };
            let again = partition.append(of(1, 0, i * 2, 2).build().unwrap(), options).unwrap();
            assert!(again.duplicate);
            assert_eq!(again.base_offset, first[i as usize].base_offset);
            assert_eq!(again.last_offset, first[i as usize].last_offset);
            assert!(
                durability == Durability::Written || partition.durable_offset() > again.last_offset
            );
        }
    }
    let forgotten = fault(append(&partition, of(1, 0, 2, 2)));
    assert_eq!(forgotten, ProducerFault::Sequence { given: 2, last: 13 });
    assert_eq!(partition.log_end_offset(), end);
}

#[test]
fn a_gap_an_old_epoch_and_a_plain_write_within_a_transaction_are_refused_and_leave_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    append(&partition, of(1, 4, 0, 2)).unwrap();
    let before = all(&partition);
    let gap = fault(append(&partition, of(1, 4, 3, 1)));
    assert_eq!(gap, ProducerFault::Sequence { given: 3, last: 1 });
    let old = fault(append(&partition, of(1, 3, 2, 1)));
    assert_eq!(old, ProducerFault::Epoch { given: 3, current: 4 });
    // The second batch of a request is refused: the first must not count.
    let mut two = of(1, 4, 2, 1).build().unwrap();
    two.extend(of(1, 4, 9, 1).build().unwrap());
    let second = fault(partition.append(two, AppendOptions::default()));
    assert_eq!(second, ProducerFault::Sequence { given: 9, last: 2 });
    assert_eq!(all(&partition), before);
    assert_eq!(partition.log_end_offset(), Offset(2));
    in_transaction(&partition, 2, 0, 1).unwrap();
    let plain = fault(append(&partition, of(2, 0, 1, 1)));
    assert_eq!(plain, ProducerFault::NotTransactional { first_offset: 2 });
    assert_eq!(plain_code(&partition), 28);
}

fn plain_code(partition: &Partition) -> i32 {
    append(partition, of(2, 0, 1, 1)).unwrap_err().code()
}

#[test]
fn requests_of_one_tick_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let start = |sequence: i32| {
        let batch = of(1, 0, sequence, 1).build().unwrap();
        partition.start_append(batch, AppendOptions::durable()).unwrap()
    };
    for round in 0..20 {
        let base = round * 5;
        let pending: Vec<_> =
            [0, 1, 1, 3, 2, 3, 0, 4].iter().map(|i| (*i, start(base + i))).collect();
        let answers: Vec<_> = pending.into_iter().map(|(i, p)| (i, p.wait())).collect();
        let expected = [false, false, true, false, false, false, true, false];
        for (number, (i, answer)) in answers.into_iter().enumerate() {
            if number == 3 {
                assert!(matches!(fault(answer), ProducerFault::Sequence { .. }), "2 is missing");
                continue;
            }
            let info = answer.unwrap();
            assert_eq!((info.base_offset.0, info.duplicate), ((base + i).into(), expected[number]));
        }
    }
}

#[test]
fn committed_readers_stop_at_the_first_open_transaction_and_are_told_of_aborted_ones() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let committed = FetchOptions { isolation: Isolation::ReadCommitted, ..FetchOptions::default() };
    append(&partition, of(1, 0, 0, 2)).unwrap();
    in_transaction(&partition, 2, 0, 3).unwrap(); // 2..5
    in_transaction(&partition, 3, 0, 1).unwrap(); // 5
    assert_eq!(partition.last_stable_offset(), Offset(2));
    let lease = partition.fetch(Offset(0), &committed).unwrap();
    assert_eq!((lease.next_offset(), lease.last_stable_offset()), (Offset(2), Offset(2)));
    assert!(partition.fetch(Offset(4), &committed).unwrap().is_empty(), "it waits");
    assert!(partition.fetch(Offset(7), &committed).is_err());

    end(&partition, 2, TransactionOutcome::Abort); // 6
    assert_eq!(partition.last_stable_offset(), Offset(5));
    let lease = partition.fetch(Offset(0), &committed).unwrap();
    assert_eq!(lease.next_offset(), Offset(5));
    let aborted = AbortedTransaction {
        producer_id: 2,
        first_offset: 2,
        last_offset: 6,
        last_stable_offset: 5,
    };
    assert_eq!(lease.aborted_transactions(), [aborted]);
    end(&partition, 3, TransactionOutcome::Commit); // 7
    let stat = partition.stat();
    assert_eq!((stat.last_stable_offset, stat.log_end_offset), (Offset(8), Offset(8)));
    let lease = partition.fetch(Offset(5), &committed).unwrap();
    assert_eq!((lease.next_offset(), lease.aborted_transactions()), (Offset(8), &[aborted][..]));
    let plain = partition.fetch(Offset(0), &FetchOptions::default()).unwrap();
    assert!(plain.aborted_transactions().is_empty());
    let view = View::open(dir.path()).unwrap();
    let seen = view.partition("t", 0).unwrap().fetch(Offset(0), &committed);
    assert!(matches!(seen, Err(Error::Config { key: "isolation", .. })), "a view cannot tell");
    // A marker without a transaction changes nothing.
    end(&partition, 3, TransactionOutcome::Abort);
    assert_eq!(all(&partition).2, [aborted]);
    assert_eq!(partition.last_stable_offset(), Offset(9));
}

#[test]
fn a_transaction_is_stable_only_when_its_marker_is_below_the_high_watermark() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = settings(dir.path());
    config.partition.high_watermark = HighWatermark::SetByHost;
    let settings = config.partition.clone();
    let engine = Engine::open(config.clone()).unwrap();
    let partition = engine.create_partition("t", 0, settings).unwrap();
    append(&partition, of(1, 0, 0, 2)).unwrap();
    in_transaction(&partition, 2, 0, 3).unwrap(); // 2..5
    end(&partition, 2, TransactionOutcome::Commit); // 5
    for (high_watermark, stable) in [(1, 1), (2, 2), (4, 2), (5, 2), (6, 6)] {
        partition.set_high_watermark(Offset(high_watermark));
        assert_eq!(partition.last_stable_offset(), Offset(stable), "at {high_watermark}");
    }
    in_transaction(&partition, 2, 3, 1).unwrap(); // 6
    end(&partition, 2, TransactionOutcome::Abort); // 7
    partition.set_high_watermark(Offset(7));
    engine.close().unwrap();
    let engine = Engine::open(config).unwrap();
    let partition = engine.partition("t", 0).unwrap();
    assert_eq!(
        (partition.high_watermark(), partition.last_stable_offset()),
        (Offset(7), Offset(7))
    );
    partition.set_high_watermark(Offset(8));
    assert_eq!(partition.last_stable_offset(), Offset(8));
}

#[test]
fn a_follower_counts_what_the_leader_took_and_checks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partitions = engine.create_topic("t", 2).unwrap();
    let (leader, follower) = (&partitions[0], &partitions[1]);
    work(leader, 20);
    let everything = FetchOptions {
        max_bytes: 1 << 30,
        isolation: Isolation::LogEnd,
        ..FetchOptions::default()
    };
    let mut next = 0;
    while next < leader.log_end_offset().0 {
        let lease = leader.fetch(Offset(next), &everything).unwrap();
        for range in lease.to_vec().unwrap().chunks_exact(lease.bytes() as usize) {
            for batch in loglane::format::Batches::new(range) {
                let bytes = batch.unwrap().1.bytes().to_vec();
                follower.append_as_follower(bytes, Durability::Written).unwrap();
            }
        }
        next = lease.next_offset().0;
    }
    assert_eq!(all(follower), all(leader));
    assert!(all(leader).2.len() > 10);
}

#[test]
fn producers_survive_a_clean_close_and_what_the_snapshot_lacks_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    work(&partition, 40);
    assert!(partition.stat().segments > 3);
    let before = all(&partition);
    let log_end = partition.log_end_offset();
    engine.close().unwrap();
    let snapshots = files(dir.path(), ".snapshot");
    let newest = inspect::producer_snapshot(snapshots.last().unwrap()).unwrap();
    assert_eq!(newest, before.0);
    assert_eq!(inspect::base_offset_of(snapshots.last().unwrap()), Some(log_end.0));
    let logs = files(dir.path(), ".log").len();
    assert_eq!(snapshots.len(), logs, "one at each base but the first, and one at the end");

    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.partition("t", 0).unwrap();
    assert_eq!(all(&partition), before);
    let again = append(&partition, of(1, 0, 39 * 3, 3)).unwrap();
    assert!(again.duplicate, "the last batch of each producer is in the snapshot");
    assert!(matches!(
        fault(append(&partition, of(1, 0, 38 * 3, 3))),
        ProducerFault::Sequence { .. }
    ));
    in_transaction(&partition, 2, 200, 1).unwrap();
    end(&partition, 2, TransactionOutcome::Abort);
    assert_eq!(all(&partition).1, partition.log_end_offset());
}

/// The same directory, its end lost in every way, comes back with the producers of what is left.
#[test]
fn after_a_crash_producers_are_those_of_the_log_that_is_left_whatever_files_survived() {
    let whole = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(whole.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    // What a log that was only ever this long knows, for each length.
    let mut known = BTreeMap::new();
    for round in 0..70 {
        append(&partition, of(1, 0, round * 3, 3)).unwrap();
        known.insert(partition.log_end_offset().0, all(&partition));
        in_transaction(&partition, 2, round * 5, 5).unwrap();
        known.insert(partition.log_end_offset().0, all(&partition));
        end(&partition, 2, TransactionOutcome::Abort);
        known.insert(partition.log_end_offset().0, all(&partition));
    }
    engine.close().unwrap();
    let bases: Vec<i64> = files(whole.path(), ".log")
        .iter()
        .map(|path| inspect::base_offset_of(path).unwrap())
        .collect();
    assert!(bases.len() > 3);
    for cut_bytes in [0, 50, 1500] {
        for damage in ["none", "no snapshots", "torn snapshots", "no txnindex", "long txnindex"] {
            for recovery_point in [0, bases[2] + 1, *bases.last().unwrap()] {
                let dir = tempfile::tempdir().unwrap();
                copy(whole.path(), dir.path());
                crash(dir.path(), recovery_point);
                let last = files(dir.path(), ".log").pop().unwrap();
                let length = fs::metadata(&last).unwrap().len();
                let file = fs::OpenOptions::new().write(true).open(&last).unwrap();
                file.set_len(length.saturating_sub(cut_bytes)).unwrap();
                spoil(dir.path(), damage, recovery_point);
                let engine = Engine::open(settings(dir.path())).unwrap();
                let partition = engine.partition("t", 0).unwrap();
                let end = partition.log_end_offset().0;
                let expected = &known[&end];
                let context = format!("{cut_bytes} {damage} {recovery_point} {end}");
                assert_eq!(&all(&partition), expected, "{context}");
                engine.close().unwrap();
                // And once more, now clean.
                let engine = Engine::open(settings(dir.path())).unwrap();
                assert_eq!(&all(&engine.partition("t", 0).unwrap()), expected, "{context}");
            }
        }
    }
}

/// What a power cut may do to files that were not synced: those past the recovery point's segment.
fn spoil(dir: &Path, damage: &str, recovery_point: i64) {
    let bases = files(dir, ".log");
    let bases: Vec<i64> = bases.iter().map(|p| inspect::base_offset_of(p).unwrap()).collect();
    let trusted = bases.iter().rfind(|base| **base <= recovery_point).copied().unwrap_or(0);
    for path in files(dir, ".snapshot") {
        match damage {
            "no snapshots" => fs::remove_file(path).unwrap(),
            "torn snapshots" => {
                let bytes = fs::read(&path).unwrap();
                fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            }
            _ => {}
        }
    }
    for path in files(dir, ".txnindex") {
        if inspect::base_offset_of(&path).unwrap() < trusted {
            continue;
        }
        match damage {
            "no txnindex" => fs::remove_file(path).unwrap(),
            "long txnindex" => {
                let mut bytes = fs::read(&path).unwrap();
                bytes.extend([0; 34]);
                fs::write(path, bytes).unwrap();
            }
            _ => {}
        }
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_snapshot_of_records_that_were_lost_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    append(&partition, of(1, 0, 0, 2)).unwrap();
    let before = all(&partition).0;
    append(&partition, of(1, 0, 2, 2)).unwrap();
    engine.close().unwrap();
    // The snapshot at 4 reached the disk, the second batch did not.
    let log = files(dir.path(), ".log").remove(0);
    let length = fs::metadata(&log).unwrap().len();
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(length / 2).unwrap();
    crash(dir.path(), 0);
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.partition("t", 0).unwrap();
    assert_eq!((partition.log_end_offset(), all(&partition).0), (Offset(2), before));
    append(&partition, of(1, 0, 2, 2)).expect("it was lost, so it is no duplicate");
}

#[test]
fn a_truncation_takes_producers_and_transactions_back() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let mut known = BTreeMap::new();
    for round in 0..60 {
        in_transaction(&partition, 2, round * 5, 5).unwrap();
        known.insert(partition.log_end_offset().0, all(&partition));
        end(&partition, 2, TransactionOutcome::Abort);
        known.insert(partition.log_end_offset().0, all(&partition));
    }
    assert!(partition.stat().segments > 2);
    for (end, expected) in known.iter().rev().step_by(7) {
        partition.truncate(Offset(*end)).unwrap();
        assert_eq!(&all(&partition), expected, "cut at {end}");
        let past = files(dir.path(), ".snapshot")
            .iter()
            .filter(|path| inspect::base_offset_of(path).unwrap() > *end)
            .count();
        assert_eq!(past, 0, "snapshots past {end}");
    }
    let left = all(&partition);
    engine.close().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    assert_eq!(all(&engine.partition("t", 0).unwrap()), left);
}

#[test]
fn a_log_that_begins_anew_knows_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    for to in [5_000, 7] {
        work(&partition, 60);
        partition.reset(Offset(to)).unwrap();
        assert_eq!(all(&partition), (Vec::new(), Offset(to), Vec::new()));
        assert_eq!(files(dir.path(), ".snapshot").len(), 0);
        assert_eq!(files(dir.path(), ".txnindex").len(), 0);
    }
    work(&partition, 60);
    let before = all(&partition);
    engine.close().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    assert_eq!(all(&engine.partition("t", 0).unwrap()), before);
}

#[test]
fn snapshots_go_with_their_segments_and_a_deleted_beginning_of_a_transaction_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    in_transaction(&partition, 9, 0, 1).unwrap();
    work(&partition, 60);
    let middle = partition.log_end_offset().0 / 2;
    assert_eq!(partition.last_stable_offset(), Offset(0));
    partition.delete_records(Offset(middle)).unwrap();
    assert_eq!(partition.last_stable_offset(), Offset(middle), "never below the log start");
    let first = inspect::base_offset_of(&files(dir.path(), ".log")[0]).unwrap();
    let snapshots = files(dir.path(), ".snapshot");
    assert!(inspect::base_offset_of(&snapshots[0]).unwrap() >= first);
    assert!(snapshots.len() > 1);
}

#[test]
fn a_transaction_index_that_is_not_sound_is_made_anew_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(settings(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    work(&partition, 60);
    let before = all(&partition);
    engine.close().unwrap();
    let indexes = files(dir.path(), ".txnindex");
    assert!(indexes.len() > 3);
    let good: Vec<Vec<u8>> = indexes.iter().map(|path| fs::read(path).unwrap()).collect();
    for path in &indexes {
        fs::write(path, b"not an index").unwrap();
    }
    let engine = Engine::open(settings(dir.path())).unwrap();
    assert_eq!(all(&engine.partition("t", 0).unwrap()), before);
    engine.close().unwrap();
    for (path, good) in indexes.iter().zip(&good) {
        assert_eq!(&fs::read(path).unwrap(), good, "{}", path.display());
    }
}

#[test]
fn producers_that_were_silent_for_too_long_are_forgotten_at_the_next_open() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = settings(dir.path());
    config.partition.producer_id_expiration_ms = i64::MAX as u64;
    let engine = Engine::open(config.clone()).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let mut old = BatchBuilder::new(Codec::None);
    old.producer(5, 0, 0).append(1_000, None, None, &[]).unwrap();
    append(&partition, old).unwrap();
    append(&partition, of(6, 0, 0, 1)).unwrap();
    assert_eq!(partition.producers().unwrap().len(), 2);
    engine.close().unwrap();
    config.partition = PartitionConfig { producer_id_expiration_ms: 1_000, ..config.partition };
    let engine = Engine::open(config).unwrap();
    let states = engine.partition("t", 0).unwrap().producers().unwrap();
    assert_eq!(states.iter().map(|s| s.producer_id).collect::<Vec<_>>(), [6]);
}
