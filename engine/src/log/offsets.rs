//! The offsets of a partition, and the one place where they move.
//!
//! ```text
//! log start ≤ last stable ≤ high watermark ≤ log end (written)        synced ≤ durable ≤ log end
//! ```
//!
//! Durable is on disk, in segment files or in the journal; synced is in synced segment files, and is
//! the recovery point. Offsets move forward only, except by a truncation. The shard of a partition
//! moves them all but the high watermark, which the host may move from any thread.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicI64, Ordering};

/// All offsets of a partition at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OffsetSnapshot {
    pub(crate) log_start: i64,
    pub(crate) high_watermark: i64,
    pub(crate) log_end: i64,
    pub(crate) durable: i64,
}

/// The offsets of one partition, readable from any thread.
#[derive(Debug)]
pub(crate) struct Offsets {
    log_start: AtomicI64,
    high_watermark: AtomicI64,
    log_end: AtomicI64,
    durable: AtomicI64,
    synced: AtomicI64,
    /// Where the first undecided transaction begins; `i64::MAX` if there is none.
    first_unstable: AtomicI64,
}

impl Offsets {
    /// The offsets recovery found. High watermark, durable and synced are brought into range: they
    /// may come from checkpoints that are older or newer than the log.
    pub(crate) fn new(
        log_start: i64,
        high_watermark: i64,
        log_end: i64,
        durable: i64,
        synced: i64,
    ) -> Offsets {
        assert!(log_start <= log_end, "log start {log_start} is past the log end {log_end}");
        Offsets {
            log_start: AtomicI64::new(log_start),
            high_watermark: AtomicI64::new(high_watermark.clamp(log_start, log_end)),
            log_end: AtomicI64::new(log_end),
            durable: AtomicI64::new(durable.min(log_end)),
            synced: AtomicI64::new(synced.min(durable).min(log_end)),
            first_unstable: AtomicI64::new(i64::MAX),
        }
    }

    /// Each offset is read once, in an order that keeps the relations true: those that bound
    /// others from above are read last.
    pub(crate) fn snapshot(&self) -> OffsetSnapshot {
        let log_start = self.log_start.load(Ordering::Acquire);
        let durable = self.durable.load(Ordering::Acquire);
        let high_watermark = self.high_watermark.load(Ordering::Acquire);
        let log_end = self.log_end.load(Ordering::Acquire);
        OffsetSnapshot { log_start, high_watermark, log_end, durable }
    }

    pub(crate) fn log_start(&self) -> i64 {
        self.log_start.load(Ordering::Acquire)
    }

    pub(crate) fn log_end(&self) -> i64 {
        self.log_end.load(Ordering::Acquire)
    }

    pub(crate) fn durable(&self) -> i64 {
        self.durable.load(Ordering::Acquire)
    }

    /// The recovery point.
    pub(crate) fn synced(&self) -> i64 {
        self.synced.load(Ordering::Acquire)
    }

    pub(crate) fn high_watermark(&self) -> i64 {
        self.high_watermark.load(Ordering::Acquire)
    }

    /// The last stable offset: below it every transaction is decided, and nothing is past the high
    /// watermark. The high watermark comes first: the writer lowers the first unstable offset before
    /// it publishes what is unstable.
    pub(crate) fn last_stable(&self) -> i64 {
        let high_watermark = self.high_watermark.load(Ordering::Acquire);
        let first_unstable = self.first_unstable.load(Ordering::Acquire);
        let log_start = self.log_start.load(Ordering::Acquire);
        high_watermark.min(first_unstable.max(log_start))
    }

    /// The first undecided transaction begins at `offset`; `None` if there is none.
    pub(crate) fn set_first_unstable(&self, offset: Option<i64>) {
        self.first_unstable.store(offset.unwrap_or(i64::MAX), Ordering::Release);
    }

    /// Records below `offset` are in the page cache and in the index.
    pub(crate) fn advance_written(&self, offset: i64) {
        let before = self.log_end.load(Ordering::Relaxed);
        assert!(offset >= before, "log end moved back from {before} to {offset}");
        self.log_end.store(offset, Ordering::Release);
    }

    /// Records below `offset` are on disk.
    pub(crate) fn advance_durable(&self, offset: i64) {
        let log_end = self.log_end.load(Ordering::Relaxed);
        assert!(offset <= log_end, "durable {offset} would pass the log end {log_end}");
        self.durable.fetch_max(offset, Ordering::AcqRel);
    }

    /// Records below `offset` are in synced segment files.
    pub(crate) fn advance_synced(&self, offset: i64) {
        self.advance_durable(offset);
        self.synced.fetch_max(offset, Ordering::AcqRel);
    }

    /// The log is about to be cut at `offset`: no reader gets past it from now on. To be followed by
    /// [`Offsets::truncate`] when the files are cut.
    pub(crate) fn lower(&self, offset: i64) {
        self.synced.fetch_min(offset, Ordering::AcqRel);
        self.durable.fetch_min(offset, Ordering::AcqRel);
        self.high_watermark.fetch_min(offset, Ordering::AcqRel);
    }

    /// The log ends at `offset`, which is below where it ended.
    pub(crate) fn truncate(&self, offset: i64) {
        self.lower(offset);
        self.log_start.fetch_min(offset, Ordering::AcqRel);
        self.log_end.store(offset, Ordering::Release);
    }

    /// The log is empty and begins at `offset`, which may be anywhere.
    pub(crate) fn reset(&self, offset: i64) {
        // Down to where both can be, then up: at no moment is one past another that bounds it.
        self.truncate(offset.min(self.log_end.load(Ordering::Relaxed)));
        for each in
            [&self.log_end, &self.high_watermark, &self.durable, &self.synced, &self.log_start]
        {
            each.store(offset, Ordering::Release);
        }
    }

    /// Moves the high watermark up to `offset`, or to the log end if that is lower. Returns where
    /// it is now.
    pub(crate) fn advance_high_watermark(&self, offset: i64) -> i64 {
        let offset = offset.min(self.log_end.load(Ordering::Acquire));
        self.high_watermark.fetch_max(offset, Ordering::AcqRel).max(offset)
    }

    /// Moves the log start up to `offset`, which is at most the high watermark.
    pub(crate) fn advance_log_start(&self, offset: i64) {
        let high_watermark = self.high_watermark.load(Ordering::Acquire);
        assert!(
            offset <= high_watermark,
            "log start {offset} past high watermark {high_watermark}"
        );
        self.log_start.fetch_max(offset, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_out_of_range_are_brought_into_it() {
        let offsets = Offsets::new(10, 3, 20, 99, 99);
        let expected =
            OffsetSnapshot { log_start: 10, high_watermark: 10, log_end: 20, durable: 20 };
        assert_eq!(offsets.snapshot(), expected);
    }

    #[test]
    fn offsets_never_move_back_or_past_each_other() {
        let offsets = Offsets::new(0, 0, 0, 0, 0);
        offsets.advance_written(100);
        assert_eq!(offsets.advance_high_watermark(500), 100, "stops at the log end");
        assert_eq!(offsets.advance_high_watermark(50), 100, "never back");
        offsets.advance_durable(80);
        offsets.advance_durable(60);
        assert_eq!(offsets.durable(), 80);
        offsets.advance_synced(70);
        assert_eq!((offsets.synced(), offsets.durable()), (70, 80), "a journal is ahead of syncs");
        offsets.advance_log_start(30);
        offsets.advance_log_start(20);
        assert_eq!(offsets.log_start(), 30);
    }

    #[test]
    fn a_truncation_takes_everything_down_with_the_log_end() {
        let offsets = Offsets::new(0, 90, 100, 80, 60);
        offsets.truncate(50);
        let expected =
            OffsetSnapshot { log_start: 0, high_watermark: 50, log_end: 50, durable: 50 };
        assert_eq!((offsets.snapshot(), offsets.synced()), (expected, 50));
    }

    #[test]
    fn the_last_stable_offset_is_within_log_start_and_high_watermark() {
        let offsets = Offsets::new(0, 50, 100, 0, 0);
        assert_eq!(offsets.last_stable(), 50);
        offsets.set_first_unstable(Some(80));
        assert_eq!(offsets.last_stable(), 50, "not past the high watermark");
        offsets.set_first_unstable(Some(20));
        assert_eq!(offsets.last_stable(), 20);
        offsets.advance_log_start(30);
        assert_eq!(offsets.last_stable(), 30, "the beginning of the transaction is deleted");
        offsets.set_first_unstable(None);
        assert_eq!(offsets.last_stable(), 50);
    }

    #[test]
    fn a_reset_begins_anywhere() {
        for to in [0, 40, 500] {
            let offsets = Offsets::new(20, 90, 100, 80, 60);
            offsets.truncate(20);
            offsets.reset(to);
            let expected =
                OffsetSnapshot { log_start: to, high_watermark: to, log_end: to, durable: to };
            assert_eq!((offsets.snapshot(), offsets.synced()), (expected, to));
        }
    }

    #[test]
    #[should_panic(expected = "moved back")]
    fn a_log_end_that_moves_back_is_a_bug_and_is_caught() {
        Offsets::new(0, 0, 10, 0, 0).advance_written(9);
    }

    #[test]
    #[should_panic(expected = "would pass the log end")]
    fn durable_past_written_is_a_bug_and_is_caught() {
        Offsets::new(0, 0, 10, 0, 0).advance_durable(11);
    }
}
