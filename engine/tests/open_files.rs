//! How many files an engine has open, however many partitions are written to. Alone in its process,
//! so that the open files are its own.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected should panic"
)]

mod support;

use loglane::{AppendOptions, Bytes, Config, Engine, FetchOptions, Offset};
use std::path::Path;
use support::batch;

/// Segment and index files of the directory that this process has open.
fn open_files(dir: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let paths = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    paths.filter(|path| path.starts_with(dir) && path.extension().is_some()).count()
}

#[test]
fn no_more_files_are_open_than_the_limit_however_many_partitions_are_written() {
    const PARTITIONS: u32 = 200;
    const LIMIT: usize = 16;
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path().join("data"));
    config.open_files_max = Some(LIMIT);
    config.shards = 2;
    config.partition.segment_bytes = 4096;
    let engine = Engine::open(config).unwrap();
    let partitions = engine.create_topic("many", PARTITIONS).unwrap();
    let bytes = Bytes::from(batch(0, 8, 60));
    let mut most = 0;
    for round in 0..40 {
        let options =
            if round % 2 == 0 { AppendOptions::default() } else { AppendOptions::durable() };
        let pending: Vec<_> =
            partitions.iter().map(|p| p.start_append(bytes.clone(), options).unwrap()).collect();
        for pending in pending {
            pending.wait().unwrap();
        }
        most = most.max(open_files(dir.path()));
    }
    // As many again for readers, and those of the syncs under way in two shards.
    assert!(most <= 2 * LIMIT + 48, "{most} files were open");
    for partition in &partitions {
        let lease = partition.fetch(Offset(0), &FetchOptions::default()).unwrap();
        lease.verify().unwrap();
        assert_eq!(partition.log_end_offset(), Offset(40 * 8));
    }
    assert!(open_files(dir.path()) <= 2 * LIMIT + 48);
    engine.close().unwrap();
    assert_eq!(open_files(dir.path()), 0);
}
