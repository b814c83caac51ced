//! Cutting a log at either end, and beginning it anew: who reads there is told, and a reopen agrees.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected should panic"
)]

mod support;

use loglane::{AppendOptions, Engine, Error, FetchOptions, LeaderEpoch, Offset, Partition};
use std::path::Path;
use support::{batch, read_dense, small_segments};

fn open(dir: &Path) -> (Engine, Partition) {
    let engine = Engine::open(small_segments(dir)).unwrap();
    let partition = match engine.partition("t", 0) {
        Ok(partition) => partition,
        Err(_) => engine.create_topic("t", 1).unwrap().remove(0),
    };
    (engine, partition)
}

fn append(partition: &Partition, batches: i64) {
    for _ in 0..batches {
        let from = partition.log_end_offset().0;
        partition.append(batch(from, 4, 300), AppendOptions::durable()).unwrap();
    }
}

#[test]
fn a_reader_past_a_truncation_is_told_so_and_others_read_on() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, partition) = open(dir.path());
    append(&partition, 100);
    partition.truncate(Offset(120)).unwrap();
    let fetch = |offset| partition.fetch(Offset(offset), &FetchOptions::default());
    for gone in [121, 300, 400] {
        match fetch(gone) {
            Err(Error::Truncated { offset, log_end, .. }) => {
                assert_eq!((offset.0, log_end.0), (gone, 120));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(fetch(120).unwrap().is_empty());
    assert!(matches!(fetch(401), Err(Error::OffsetOutOfRange { .. })), "never there");
    append(&partition, 50);
    assert_eq!(read_dense(&partition, 0, 1 << 20), 320);
    assert!(matches!(fetch(399), Err(Error::Truncated { .. })));
    engine.close().unwrap();
}

#[test]
fn a_log_begins_anew_wherever_it_is_told_to_and_so_does_its_reopen() {
    for to in [0, 40, 101, 400, 5_000_000_000] {
        let dir = tempfile::tempdir().unwrap();
        let (engine, partition) = open(dir.path());
        partition.set_leader_epoch(LeaderEpoch(3));
        append(&partition, 100);
        partition.delete_records(Offset(102)).unwrap();
        assert_eq!(partition.reset(Offset(to)).unwrap().0, to);
        let stat = partition.stat();
        let all = [stat.log_start_offset, stat.high_watermark, stat.log_end_offset];
        assert_eq!(all, [Offset(to); 3], "reset to {to}");
        assert_eq!((stat.durable_offset.0, stat.segments, stat.bytes), (to, 1, 0));
        assert_eq!(partition.leader_epochs(), []);
        append(&partition, 30);
        assert_eq!(read_dense(&partition, to, 1 << 20), to + 120);
        engine.close().unwrap();

        let (engine, partition) = open(dir.path());
        assert_eq!((partition.log_start_offset().0, partition.log_end_offset().0), (to, to + 120));
        assert_eq!(read_dense(&partition, to, 1 << 20), to + 120);
        engine.close().unwrap();
    }
}

#[test]
fn a_reset_to_nowhere_is_refused_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, partition) = open(dir.path());
    append(&partition, 3);
    assert!(matches!(partition.reset(Offset(-1)), Err(Error::OffsetOutOfRange { .. })));
    assert_eq!(read_dense(&partition, 0, 1 << 20), 12);
    engine.close().unwrap();
}
