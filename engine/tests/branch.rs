//! A branch is a directory of its own: what either side does afterwards the other does not see.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected should panic"
)]

mod support;

use loglane::{
    AppendOptions, BranchSync, Engine, Error, FetchOptions, LeaderEpoch, Offset, Partition,
};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{batch, read_dense, small_segments};

fn append(partition: &Partition, batches: i64) {
    for _ in 0..batches {
        let from = partition.log_end_offset().0;
        partition.append(batch(from, 4, 300), AppendOptions::default()).unwrap();
    }
}

fn bytes_of(partition: &Partition) -> Vec<u8> {
    let options = FetchOptions { max_bytes: u64::MAX, ..FetchOptions::default() };
    partition.fetch(partition.log_start_offset(), &options).unwrap().to_vec().unwrap()
}

fn open(dir: &Path) -> (Engine, Vec<Partition>) {
    let engine = Engine::open(small_segments(dir)).unwrap();
    let partitions = engine.topic("t").unwrap();
    (engine, partitions)
}

#[test]
fn a_branch_has_every_record_and_goes_its_own_way() {
    for sync in [BranchSync::Durable, BranchSync::Later] {
        let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let engine = Engine::open(small_segments(dir.path())).unwrap();
        let partitions = engine.create_topic("t", 3).unwrap();
        partitions[0].set_leader_epoch(LeaderEpoch(4));
        for (partition, batches) in partitions.iter().zip([100, 1, 0]) {
            append(partition, batches);
        }
        partitions[0].delete_records(Offset(130)).unwrap();
        let before: Vec<Vec<u8>> = partitions.iter().map(bytes_of).collect();
        let branched = engine.branch(to.path(), sync).unwrap();
        assert_eq!(branched.partitions, 3);
        assert!(branched.linked_bytes > branched.copied_bytes, "{branched:?}");

        let (branch, copies) = open(to.path());
        assert_eq!(branch.was_clean(), sync == BranchSync::Durable);
        let after: Vec<Vec<u8>> = copies.iter().map(bytes_of).collect();
        assert!(before == after, "the same bytes");
        assert_eq!(copies[0].log_start_offset(), Offset(130));
        assert_eq!(copies[0].leader_epochs(), partitions[0].leader_epochs());
        assert_eq!(copies[0].topic_id(), partitions[0].topic_id());

        // Each cuts into segments that have two names, and writes others in their place.
        partitions[0].truncate(Offset(200)).unwrap();
        copies[0].truncate(Offset(240)).unwrap();
        for partition in [&partitions[0], &copies[0], &copies[2]] {
            append(partition, 50);
        }
        assert_eq!(read_dense(&partitions[0], 130, 1 << 20), 400);
        assert_eq!(read_dense(&copies[0], 130, 1 << 20), 440);
        assert_eq!(partitions[2].log_end_offset(), Offset(0));
        // Either may delete everything it had in common with the other.
        partitions[0].delete_records(Offset(390)).unwrap();
        branch.close().unwrap();
        engine.close().unwrap();
        let (branch, copies) = open(to.path());
        assert_eq!(read_dense(&copies[0], 130, 1 << 20), 440);
        branch.close().unwrap();
        let (engine, partitions) = open(dir.path());
        assert_eq!(read_dense(&partitions[0], 390, 1 << 20), 400);
        engine.close().unwrap();
    }
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn branches_made_while_everything_changes_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                append(&partition, 20);
                let (start, end) = (partition.log_start_offset().0, partition.log_end_offset().0);
                match round % 3 {
                    // At the start of a batch: else the next one leaves a gap, as in Kafka.
                    0 if end - start > 40 => {
                        partition.truncate(Offset((end - 30) / 4 * 4)).map(drop).unwrap()
                    }
                    1 => partition
                        .delete_records(Offset(start + (end - start) / 2))
                        .map(drop)
                        .unwrap(),
                    _ => {}
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        // Also when this thread panics.
        let _stop = StopAtEnd(&stop);
        for number in 0..20 {
            let to = dir
                .path()
                .join(format!("../{}-{number}", dir.path().file_name().unwrap().display()));
            engine.branch(&to, BranchSync::Later).unwrap();
            let (branch, copies) = open(&to);
            let from = copies[0].log_start_offset().0;
            assert_eq!(read_dense(&copies[0], from, 1 << 20), copies[0].log_end_offset().0);
            assert!(copies[0].damaged_ranges().is_empty());
            branch.close().unwrap();
            std::fs::remove_dir_all(&to).unwrap();
        }
    });
    engine.close().unwrap();
}

#[test]
fn a_branch_into_a_directory_with_something_in_it_is_refused_and_changes_nothing() {
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    engine.create_topic("t", 1).unwrap();
    std::fs::write(to.path().join("mine"), "kept").unwrap();
    let refused = engine.branch(to.path(), BranchSync::Durable);
    assert!(matches!(refused, Err(Error::AlreadyExists { .. })), "{refused:?}");
    assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 1);
    engine.close().unwrap();
}
