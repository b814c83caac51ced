//! Making a log durable: which files have unsynced bytes, and what a finished sync means.
//!
//! A sync takes everything written so far: sealed segments with their index files, the active
//! segment's bytes, the directory when names in it are new. Only when all of it has come back
//! without error does the durable offset move. While one sync is under way the next gathers; a lone
//! caller is never delayed and many share one device write.
//!
//! A failed sync is never tried again on the same pages: the kernel has already marked them clean
//! (Rebello et al., USENIX ATC 2020), so a second success would say nothing. The log stops instead.

#![forbid(unsafe_code)]

use super::Log;
use crate::error::{Error, Result};
use crate::io::{FileRef, OpenMode};
use crate::segment::Segment;
use std::io;
use std::sync::Arc;

/// What is not on disk yet, and the sync under way.
pub(super) struct SyncState {
    /// Sealed since the last sync, oldest first.
    sealed: Vec<(Arc<Segment>, Option<FileRef>)>,
    /// Index files written since the last sync, with the base offset of their segment.
    index_files: Vec<(i64, FileRef)>,
    /// A segment file was created since the last sync.
    names_changed: bool,
    running: Option<Running>,
    /// End of what the newest finished or running sync covers.
    covered: i64,
}

struct Running {
    /// What is durable when all of it has come back.
    up_to: i64,
    operations: usize,
    failed: bool,
    sealed: Vec<Arc<Segment>>,
}

/// What a finished operation brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SyncOutcome {
    /// Others of the same sync are still under way.
    Pending,
    /// The durable offset has moved.
    Durable,
    /// The log takes no more appends.
    Failed,
}

impl SyncState {
    pub(super) fn new(durable: i64) -> SyncState {
        SyncState {
            sealed: Vec::new(),
            index_files: Vec::new(),
            names_changed: true,
            running: None,
            covered: durable,
        }
    }

    pub(super) fn segment_sealed(&mut self, segment: Arc<Segment>, file: Option<FileRef>) {
        self.sealed.push((segment, file));
        self.names_changed = true;
    }

    fn has_files(&self) -> bool {
        !self.index_files.is_empty() || self.sealed.iter().any(|(_, file)| file.is_some())
    }

    pub(super) fn index_written(&mut self, base_offset: i64, offsets: FileRef, times: FileRef) {
        self.index_files.extend([(base_offset, offsets), (base_offset, times)]);
    }

    /// A deleted segment needs no sync, and must not keep descriptors for one.
    pub(super) fn forget(&mut self, segment: &Arc<Segment>) {
        self.sealed.retain(|(sealed, _)| !Arc::ptr_eq(sealed, segment));
        self.index_files.retain(|(base_offset, _)| *base_offset != segment.base_offset());
    }
}

impl Log {
    /// True if sealed segments wait for their sync, which is due without anybody asking.
    pub(crate) fn has_sealed_unsynced(&self) -> bool {
        !self.sync.sealed.is_empty()
    }

    /// The files to sync for everything written so far. Each must be answered by one
    /// [`Log::on_synced`]. With nothing to do there are none, and everything is durable already.
    pub(crate) fn begin_sync(&mut self) -> Result<Vec<FileRef>> {
        debug_assert!(self.sync.running.is_none(), "one sync at a time");
        self.check_usable()?;
        let up_to = self.shared.offsets.log_end();
        // What may fail comes first: from the first `take` on, forgetting a file would be a lie.
        let active = match self.sync.covered < up_to && self.active.bytes > 0 {
            true => Some(self.active_file()?),
            false => None,
        };
        let dir = &self.shared.dir;
        let names = match self.sync.names_changed && (active.is_some() || self.sync.has_files()) {
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
        if files.is_empty() {
            self.shared.offsets.advance_durable(up_to);
        } else {
            let operations = files.len();
            self.sync.running = Some(Running { up_to, operations, failed: false, sealed });
        }
        Ok(files)
    }

    /// Takes the result of one file of the sync under way.
    pub(crate) fn on_synced(&mut self, result: io::Result<()>) -> SyncOutcome {
        let Some(running) = &mut self.sync.running else { return SyncOutcome::Pending };
        if let Err(error) = result {
            tracing::error!(partition = %self.shared.name, %error, "sync failed; appends stop");
            running.failed = true;
        }
        running.operations -= 1;
        if running.operations > 0 {
            return SyncOutcome::Pending;
        }
        let Some(running) = self.sync.running.take() else { return SyncOutcome::Pending };
        if running.failed {
            self.failed = Some("sync");
            return SyncOutcome::Failed;
        }
        for segment in running.sealed {
            segment.unpin_file(&self.shared.open_files);
        }
        self.shared.offsets.advance_durable(running.up_to);
        SyncOutcome::Durable
    }

    /// True while a sync is under way.
    pub(crate) fn is_syncing(&self) -> bool {
        self.sync.running.is_some()
    }

    /// Syncs on this thread: for a close, when nothing else is left to do.
    pub(super) fn sync_now(&mut self) -> Result<()> {
        for file in self.begin_sync()? {
            self.on_synced(file.sync_data());
        }
        self.check_usable()
    }
}
