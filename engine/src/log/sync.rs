//! Making a log durable: which files have unsynced bytes, and what a finished sync means.
//!
//! A sync takes everything written so far: sealed segments with their index files, the active
//! segment's bytes, the directory when names in it are new. Only when all of it has come back
//! without error does the recovery point move. While one sync is under way the next gathers; a lone
//! caller is never delayed and many share one device write.
//!
//! A failed sync is never tried again on the same pages: the kernel has already marked them clean
//! (Rebello et al., USENIX ATC 2020), so a second success would say nothing. What is in memory is
//! written to fresh files instead ([`Log::rewrite`]), or the log stops.

#![forbid(unsafe_code)]

use super::Log;
use crate::error::{Error, Result};
use crate::io::{FileRef, OpenMode};
use crate::planted::{Bug, planted};
use crate::segment::Segment;
use std::io;
use std::sync::Arc;

/// What is not on disk yet, and the sync under way.
pub(super) struct SyncState {
    /// Sealed since the last sync, oldest first.
    sealed: Vec<(Arc<Segment>, Option<FileRef>)>,
    /// Index files written since the last sync, with the base offset of their segment.
    index_files: Vec<(i64, FileRef)>,
    /// Names in the directory are newer than its last sync.
    names_changed: bool,
    running: Option<Running>,
    /// End of what the newest finished or running sync covers.
    covered: i64,
    /// Bytes written since the newest sync began.
    bytes: u64,
}

struct Running {
    /// What is synced when all of it has come back, and where that is in the active segment.
    up_to: i64,
    active_base: i64,
    position: u32,
    operations: usize,
    failed: bool,
    sealed: Vec<Arc<Segment>>,
    bytes: u64,
}

/// What a finished operation brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SyncOutcome {
    /// Others of the same sync are still under way.
    Pending,
    /// The recovery point has moved.
    Synced,
    /// The log takes no more appends.
    Failed,
}

impl SyncState {
    pub(super) fn new(synced: i64) -> SyncState {
        SyncState {
            sealed: Vec::new(),
            index_files: Vec::new(),
            names_changed: true,
            running: None,
            covered: synced,
            bytes: 0,
        }
    }

    pub(super) fn segment_sealed(&mut self, segment: Arc<Segment>, file: Option<FileRef>) {
        self.sealed.push((segment, file));
    }

    /// A segment that was sealed before this log was opened, and is not synced.
    pub(super) fn sealed_before(&mut self, segment: Arc<Segment>) {
        self.bytes += u64::from(segment.tail().bytes);
        self.sealed.push((segment, None));
    }

    pub(super) fn written(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    pub(super) fn index_written(&mut self, base_offset: i64, offsets: FileRef, times: FileRef) {
        self.index_files.extend([(base_offset, offsets), (base_offset, times)]);
    }

    /// A file that goes with the segment at `base_offset` was written.
    pub(super) fn file_written(&mut self, base_offset: i64, file: FileRef) {
        self.index_files.push((base_offset, file));
    }

    /// The next sync takes the directory along.
    pub(super) fn names_changed(&mut self) {
        self.names_changed = true;
    }

    /// A deleted segment needs no sync, and must not keep descriptors for one.
    pub(super) fn forget(&mut self, segment: &Arc<Segment>) {
        self.sealed.retain(|(sealed, _)| !Arc::ptr_eq(sealed, segment));
        self.index_files.retain(|(base_offset, _)| *base_offset != segment.base_offset());
    }

    /// Segments were deleted; no more than this is left.
    pub(super) fn at_most(&mut self, bytes: u64) {
        self.bytes = self.bytes.min(bytes);
    }

    /// The log was cut: nothing at or past `offset` is covered any more.
    pub(super) fn truncated(&mut self, offset: i64) {
        self.covered = self.covered.min(offset);
        self.names_changed = true;
    }

    /// Segments that a failed sync may have left off the disk, oldest first; the active one is not
    /// among them.
    pub(super) fn take_unsynced(&mut self, running: &mut Vec<Arc<Segment>>) {
        running.extend(self.sealed.drain(..).map(|(segment, _)| segment));
        self.index_files.clear();
    }
}

impl Log {
    /// Bytes in segment files that no sync has covered.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.sync.bytes + self.sync.running.as_ref().map_or(0, |running| running.bytes)
    }

    /// Files that are open because they are written to, or not synced.
    pub(crate) fn files(&self) -> usize {
        let sealed = self.sync.sealed.iter().filter(|(_, file)| file.is_some()).count();
        let running = self.sync.running.as_ref().map_or(0, |running| running.operations);
        usize::from(self.active.file.is_some()) + sealed + self.sync.index_files.len() + running
    }

    /// Closes the active segment's file, to be opened again by the next append. Not while it has
    /// bytes that are not synced: a descriptor opened later might not be told that they failed.
    pub(crate) fn release_file(&mut self) -> bool {
        if self.is_unsynced() || self.is_syncing() || self.active.file.is_none() {
            return false;
        }
        self.active.file = None;
        self.active.segment.unpin_file(&self.shared.open_files);
        true
    }

    /// True if a sync would have something to do.
    pub(crate) fn is_unsynced(&self) -> bool {
        self.shared.offsets.synced() < self.shared.offsets.log_end() || !self.sync.sealed.is_empty()
    }

    /// The files to sync for everything written so far. Each must be answered by one
    /// [`Log::on_synced`]. With nothing to do there are none, and everything is synced already.
    pub(crate) fn begin_sync(&mut self) -> Result<Vec<FileRef>> {
        debug_assert!(self.sync.running.is_none(), "one sync at a time");
        self.check_usable()?;
        if !planted(Bug::AbortedUnsynced) {
            self.seal_aborted()?;
        }
        let up_to = self.shared.offsets.log_end();
        // What may fail comes first: from the first `take` on, forgetting a file would be a lie.
        let active = match self.sync.covered < up_to && self.active.bytes > 0 {
            true => Some(self.active_file()?),
            false => None,
        };
        for (segment, file) in &mut self.sync.sealed {
            if file.is_none() {
                *file = Some(segment.file(&self.shared.open_files)?);
            }
        }
        let dir = &self.shared.dir;
        let any =
            active.is_some() || !self.sync.index_files.is_empty() || !self.sync.sealed.is_empty();
        let names = match self.sync.names_changed && any {
            true => {
                Some(self.disk.open(dir, OpenMode::Read).map_err(|e| Error::io("open", dir, e))?)
            }
            false => None,
        };
        let index_files = std::mem::take(&mut self.sync.index_files);
        let mut files: Vec<FileRef> = index_files.into_iter().map(|(_, file)| file).collect();
        let mut sealed = Vec::new();
        for (segment, file) in std::mem::take(&mut self.sync.sealed) {
            files.extend(file);
            sealed.push(segment);
        }
        files.extend(active);
        self.sync.names_changed &= names.is_none();
        files.extend(names);
        self.sync.covered = up_to;
        let bytes = std::mem::take(&mut self.sync.bytes);
        if files.is_empty() {
            self.shared.offsets.advance_synced(up_to);
        } else {
            self.sync.running = Some(Running {
                up_to,
                active_base: self.active.segment.base_offset(),
                position: self.active.bytes,
                operations: files.len(),
                failed: false,
                sealed,
                bytes,
            });
        }
        Ok(files)
    }

    /// Takes the result of one file of the sync under way.
    pub(crate) fn on_synced(&mut self, result: io::Result<()>) -> SyncOutcome {
        let Some(running) = &mut self.sync.running else { return SyncOutcome::Pending };
        if let Err(error) = result {
            tracing::error!(partition = %self.shared.name, %error, "sync failed");
            running.failed = true;
        }
        // Another sync of the same file failed meanwhile: this one may have found nothing left to do.
        running.failed |= self.failed == Some("sync");
        running.operations -= 1;
        if running.operations > 0 {
            return SyncOutcome::Pending;
        }
        let Some(mut running) = self.sync.running.take() else { return SyncOutcome::Pending };
        if running.failed && planted(Bug::SyncAgain) {
            let again = self.active.file.as_ref().map(|file| file.sync_data());
            running.failed = again.is_some_and(|result| result.is_err());
        }
        if running.failed {
            self.doubt();
            self.sync.bytes = 0;
            self.sync.take_unsynced(&mut running.sealed);
            if let Err(error) = self.rewrite(&running.sealed) {
                tracing::error!(
                    partition = %self.shared.name, %error,
                    "what a failed sync may have dropped could not be written anew; appends stop"
                );
                self.failed = Some("sync");
                return SyncOutcome::Failed;
            }
            running.up_to = self.shared.offsets.log_end();
            running.position = self.active.bytes;
            running.active_base = self.active.segment.base_offset();
            self.sync.covered = running.up_to;
        }
        for segment in &running.sealed {
            segment.unpin_file(&self.shared.open_files);
        }
        self.shared.offsets.advance_synced(running.up_to);
        self.journalled.on_synced(running.up_to, self.active_position_of(&running));
        SyncOutcome::Synced
    }

    /// Where the end of a finished sync is in the segment that is active now.
    fn active_position_of(&self, running: &Running) -> Option<u32> {
        let active_base = self.active.segment.base_offset();
        if active_base == running.active_base {
            return Some(running.position);
        }
        (active_base == running.up_to).then_some(0)
    }

    /// True while a sync is under way.
    pub(crate) fn is_syncing(&self) -> bool {
        self.sync.running.is_some()
    }

    /// Syncs on this thread: for a close or a truncation.
    pub(super) fn sync_now(&mut self) -> Result<()> {
        for file in self.begin_sync()? {
            self.on_synced(file.sync_data());
        }
        self.check_usable()
    }
}
