//! Beginning a log anew at an offset: what a replica does that is given a snapshot instead of records.
//!
//! First everything goes, as in a truncation to the very beginning ([`super::truncate`]), then an
//! empty segment takes the old one's place. A crash in between leaves the log as it was, shorter, or
//! empty; the host, which has no answer yet, resets it again.

#![forbid(unsafe_code)]

use super::{CutPoint, Epochs, Log, Trust};
use crate::error::Result;

impl Log {
    /// Lowers the offsets, so that nobody reads on, and says what the journal must undo.
    pub(crate) fn begin_reset(&mut self, to: i64) -> Result<CutPoint> {
        self.check_usable()?;
        self.check_cut()?;
        self.settle_swap()?;
        let lowest = self.shared.segments.load().first().map_or(to, |s| s.base_offset().min(to));
        self.lower(lowest);
        Ok(CutPoint::beginning(lowest))
    }

    /// Cuts the files and begins at `to`. On an error the log takes no more appends: reopen, and
    /// reset again.
    pub(crate) fn finish_reset(&mut self, to: i64) -> Result<()> {
        let first = self.shared.segments.load().first().map_or(to, |s| s.base_offset());
        self.finish_truncate(&CutPoint::beginning(first))?;
        let begun = if first == to { Ok(()) } else { self.begin_at(to) };
        let begun = begun.and_then(|()| {
            self.epochs = Epochs::new(Vec::new(), to, to);
            self.store_epochs()?;
            self.load_producers(Trust::UpToLogEnd)?;
            self.check_alive()
        });
        if begun.is_err() {
            self.failed = Some("reset");
        }
        self.shared.watchers.notify();
        begun
    }

    /// Puts an empty segment in the place of the log's only one, which is empty.
    fn begin_at(&mut self, to: i64) -> Result<()> {
        let segment = self.create_next(to)?;
        let (old, _file) = self.install(segment);
        self.shared.offsets.reset(to);
        self.sync.truncated(to);
        self.journalled.on_synced(to, Some(0));
        self.shared.segments.store(vec![self.active.segment.clone()].into());
        self.retire(old)?;
        self.sync_dir()
    }
}
