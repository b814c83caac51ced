//! Bugs that a test plants, to see that the simulation catches them. Outside of tests there are none.

#![forbid(unsafe_code)]

/// A way to lose what was acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// A durable append is answered when it is in the page cache.
    AckBeforeSync,
    /// A new segment's name is not synced before it has records.
    NoDirectorySync,
    /// A frame counts though one before it has not completed.
    FramesOutOfOrder,
    /// After a failed fdatasync the same file is synced again, and the answer believed.
    SyncAgain,
    /// A sync is believed though the file system may have stopped writing.
    SyncBelieved,
    /// Retention deletes records that the high watermark has not reached.
    RetentionPassesHighWatermark,
    /// Retention deletes what is pinned.
    RetentionIgnoresPins,
    /// The state file takes its name before its bytes are on disk.
    StateRenamedUnsynced,
    /// A journal file is begun again though the changes of values in it are not in a synced file.
    StateRecycledEarly,
    /// A change of values is answered as durable though appends before it are not.
    ChangeBeforeAppends,
    /// An append is answered as durable though changes of values before it are not.
    AppendBeforeChanges,
    /// What a failed write would have told of producers is kept.
    KeepStagedProducers,
    /// A producer snapshot is believed though the log ends before it.
    SnapshotPastLogEnd,
    /// After a power cut a producer snapshot is believed though it is past what was synced.
    SnapshotPastSynced,
    /// An aborted transaction gets no entry in the transaction index.
    ForgetAborted,
    /// A sync that covers an abort marker leaves its transaction index out.
    AbortedUnsynced,
    /// A compacted segment takes its place before its bytes are on disk.
    SwapBeforeSync,
    /// Compaction drops tombstones as soon as it sees them.
    TombstonesAtOnce,
    /// The names of a compacted segment are not synced before its sources go.
    SourcesBeforeNames,
}

#[cfg(test)]
impl Bug {
    /// True if it shows in lives with retention only.
    pub(crate) fn is_of_retention(self) -> bool {
        matches!(self, Bug::RetentionPassesHighWatermark | Bug::RetentionIgnoresPins)
    }
}

/// True if this bug is planted on this thread.
#[cfg(not(test))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Plants a bug for the rest of this thread, or pulls it out.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
