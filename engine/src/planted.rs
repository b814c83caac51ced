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
    /// A compacted segment takes its place before its bytes are on disk.
    SwapBeforeSync,
    /// Compaction drops tombstones as soon as it sees them.
    TombstonesAtOnce,
    /// The names of a compacted segment are not synced before its sources go.
    SourcesBeforeNames,
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
