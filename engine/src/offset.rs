//! The numbers a log is made of, each with a type of its own.
//!
//! An [`Offset`] counts records in a partition; a [`FilePosition`] counts bytes in a file; a
//! [`LeaderEpoch`] counts leaders. Keeping them apart is cheaper than finding out which was meant.

#![forbid(unsafe_code)]

use std::fmt;

/// The place of a record in its partition, counted from 0 at the partition's first record ever.
/// Never reused; gaps are legal after compaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Offset(pub i64);

impl Offset {
    /// The first offset of a new partition.
    pub const ZERO: Offset = Offset(0);

    /// The offset `records` later. Saturates: no log reaches 2^63 records.
    #[must_use]
    pub const fn plus(self, records: i64) -> Offset {
        Offset(self.0.saturating_add(records))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A byte position in a segment's `.log` file. Kafka keeps positions in 31 bits; so do we.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FilePosition(pub u32);

impl fmt::Display for FilePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of the leader that wrote a batch. Rises by election; 0 for a log that never had one.
/// Kafka refuses −1 in a leader epoch cache, so the engine stamps at least 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LeaderEpoch(pub i32);

impl fmt::Display for LeaderEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
