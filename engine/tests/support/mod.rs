//! Batches and readings shared by the engine's tests.
#![allow(dead_code, unreachable_pub, reason = "each test file uses some of these")]

use loglane::format::{BatchBuilder, Batches, Codec};
use loglane::{Config, FetchOptions, Isolation, Offset, Partition, PartitionConfig};
use std::path::Path;

/// Settings that roll after a few batches and keep deleted files for a moment only.
pub fn small_segments(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.shards = 2;
    config.checkpoint_interval_ms = 100;
    config.file_delete_delay_ms = 0;
    config.partition = PartitionConfig { segment_bytes: 16 << 10, ..PartitionConfig::default() };
    config
}

/// A batch of `count` records whose values name the record: `first`, `first + 1`, …
pub fn batch(first: i64, count: i64, value_bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None);
    for i in first..first + count {
        builder
            .append(1_000_000 + i, Some(&i.to_be_bytes()), Some(&value(i, value_bytes)), &[])
            .unwrap();
    }
    builder.build().unwrap()
}

/// The value of record `i`: bytes that depend on it.
pub fn value(i: i64, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|b| u8::try_from((i * 31 + b as i64) & 0xff).unwrap()).collect()
}

/// Reads records from `offset` to the end and checks that each key names its own offset.
pub fn read_dense(partition: &Partition, mut offset: i64, max_bytes: u64) -> i64 {
    let options =
        FetchOptions { max_bytes, isolation: Isolation::LogEnd, ..FetchOptions::default() };
    loop {
        let lease = partition.fetch(Offset(offset), &options).unwrap();
        if lease.is_empty() {
            assert_eq!(Offset(offset), lease.log_end_offset());
            return offset;
        }
        lease.verify().unwrap();
        offset = check_records(&lease.to_vec().unwrap(), offset);
        assert_eq!(lease.next_offset(), Offset(offset));
    }
}

/// Checks that records from `offset` on are dense and true; returns the offset after them.
pub fn check_records(bytes: &[u8], mut offset: i64) -> i64 {
    for batch in Batches::new(bytes) {
        let (_, batch) = batch.unwrap();
        for record in batch.decode().unwrap().records() {
            let record = record.unwrap();
            if record.offset < offset {
                continue; // a lease starts with the whole batch that holds its offset
            }
            assert_eq!(record.offset, offset, "a hole before");
            assert_eq!(record.key, Some(&offset.to_be_bytes()[..]), "another record's key");
            let expected = value(offset, record.value.unwrap().len());
            assert_eq!(record.value, Some(&expected[..]), "another record's value");
            offset += 1;
        }
    }
    offset
}
