//! One partition: its segments, its offsets, and the writer that moves them.
//!
//! [`Log`] is the writer, owned by one shard; [`LogShared`] is what readers see. Once a tick the
//! shard hands the log all appends that came in ([`Log::stage`], [`Log::finish`]); they leave in as
//! few writes as possible:
//!
//! ```text
//! requests ─▶ roll if due ─▶ copy to the staging buffer, stamp offset and epoch
//!          ─▶ a copy to the journal, if somebody waits for the disk: one frame for all partitions
//!          ─▶ one write
//!          ─▶ index entries ─▶ segment tail ─▶ log end offset ─▶ receipts
//! ```
//!
//! Invariants: nothing is published before its write returned; a request lies in one segment
//! whole; after a failed write the file is cut back to what was published, or the log takes no more.

#![forbid(unsafe_code)]

mod check;
mod epochs;
mod journalled;
mod lease;
mod list;
mod offsets;
mod producers;
mod rebuild;
mod replace;
mod reset;
mod rewrite;
mod roll;
mod shared;
mod sync;
mod truncate;
mod watchers;
mod write;

pub(crate) use epochs::Epochs;
pub(crate) use journalled::Ahead;
pub use lease::{Lease, LeaseRange};
pub use list::{ListedOffset, OffsetQuery};
pub(crate) use offsets::Offsets;
pub(crate) use rebuild::Trust;
pub(crate) use replace::{CleanedMark, Replacement, SwapOrder, SwapState};
pub(crate) use roll::{create_segment, first_segment as create_first, write_index};
pub(crate) use shared::{AtomicI32Max, LogShared, SegmentList, read_index};
pub use shared::{FetchOptions, Isolation, Verify};
pub(crate) use sync::SyncOutcome;
pub(crate) use truncate::CutPoint;
pub(crate) use watchers::{Watcher, Watchers};
pub(crate) use write::{AppendOrigin, AppendRequest, Staged, Staging, WriteOutcome};

use crate::error::{Error, Result};
use crate::io::{Clock, Disk, FileRef, OpenMode};
use crate::offset::Offset;
use crate::segment::{IndexWriter, Segment, names};
use std::path::PathBuf;
use std::sync::Arc;

/// The segment that takes appends.
pub(crate) struct ActiveSegment {
    pub(crate) segment: Arc<Segment>,
    /// Open for writing from the first append on; a log that is only read costs no descriptor.
    pub(crate) file: Option<FileRef>,
    pub(crate) index: IndexWriter,
    /// Entries that the index files on disk hold already.
    pub(crate) entries_on_disk: (usize, usize),
    /// Bytes written and published.
    pub(crate) bytes: u32,
    /// Timestamp of its first batch; its age counts from there.
    pub(crate) first_timestamp: Option<i64>,
    /// When it became active, Unix ms; its age when batches have no timestamps.
    pub(crate) created_ms: i64,
    /// Size when its index files were last brought up to date.
    pub(crate) indexed_bytes: u32,
    /// Size up to which writeback was started.
    pub(crate) written_back: u32,
    /// The file may have been cut back, by a failed write or by recovery, and no sync has come since:
    /// a power cut may bring back what was cut.
    pub(crate) cut_back: bool,
}

/// The writer of one partition. One shard owns it.
pub(crate) struct Log {
    pub(crate) shared: Arc<LogShared>,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    active: ActiveSegment,
    epochs: Epochs,
    producers: producers::LogProducers,
    sync: sync::SyncState,
    journalled: journalled::Journalled,
    /// Why the log takes no more appends.
    failed: Option<&'static str>,
    /// Segments that were removed from the list and wait for their files to be unlinked.
    retired: Vec<RetiredSegment>,
    /// A compacted segment that is taking the place of its sources.
    swap: Option<replace::Swap>,
}

/// A segment that is no longer part of its log.
pub(crate) struct RetiredSegment {
    pub(crate) segment: Arc<Segment>,
    /// Its files, under their `.deleted` names.
    pub(crate) files: Vec<PathBuf>,
}

impl Log {
    /// A writer on what recovery found. `active` is the last segment of the list.
    pub(crate) fn new(
        shared: Arc<LogShared>,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        active: ActiveSegment,
    ) -> Log {
        let epochs = Epochs::clone(&shared.epochs.load());
        let synced = shared.offsets.synced();
        let mut sync = sync::SyncState::new(synced);
        if synced < shared.offsets.log_end() {
            // A crash left them unsynced; the active one is synced with them in any case.
            let segments = shared.segments.load();
            for pair in segments.windows(2).filter(|pair| !ends_at_or_below(pair, synced)) {
                sync.sealed_before(Arc::clone(pair.first().expect("windows are of two")));
            }
            sync.written(active.bytes.into());
        }
        let journalled = journalled::Journalled::new(synced);
        let (retired, producers) = (Vec::new(), producers::LogProducers::default());
        Log {
            shared,
            disk,
            clock,
            active,
            epochs,
            producers,
            sync,
            journalled,
            failed: None,
            retired,
            swap: None,
        }
    }

    /// Below it all segments are sealed.
    pub(crate) fn active_base_offset(&self) -> i64 {
        self.active.segment.base_offset()
    }

    /// Segments removed since the last call, to be unlinked by and by.
    pub(crate) fn take_retired(&mut self) -> Vec<RetiredSegment> {
        std::mem::take(&mut self.retired)
    }

    /// Moves the log start offset up to `before`; segments that end at or below it go.
    ///
    /// The files get their `.deleted` names now, which frees the names; their bytes are freed when
    /// the delay is over and no lease holds them.
    pub(crate) fn delete_records(&mut self, before: i64) -> Result<i64> {
        let offsets = self.shared.offsets.snapshot();
        if before > offsets.high_watermark {
            return Err(self.shared.out_of_range(
                before,
                offsets.log_start,
                offsets.high_watermark,
            ));
        }
        if before <= offsets.log_start {
            return Ok(offsets.log_start);
        }
        self.delete_below(before)
    }

    /// As [`Log::delete_records`], for who has checked that `before` is at most the high watermark;
    /// also when the log start is there already.
    pub(crate) fn delete_below(&mut self, before: i64) -> Result<i64> {
        self.settle_swap()?;
        let offsets = self.shared.offsets.snapshot();
        if before == offsets.log_end && self.active.bytes > 0 {
            // Kafka rolls first, so that there is always an active segment to stay.
            self.check_usable()?;
            self.roll(before)?;
        }
        self.shared.offsets.advance_log_start(before);
        if self.epochs.truncate_prefix(before) {
            self.store_epochs()?;
        }
        let mut list = self.shared.segments.load().to_vec();
        let gone = list.windows(2).take_while(|w| ends_at_or_below(w, before)).count();
        for (number, segment) in list.drain(..gone).enumerate() {
            if number > 0 {
                // Oldest first, also on disk: what a power cut brings back has no hole.
                self.sync_dir()?;
            }
            self.retire(segment)?;
        }
        self.sync.at_most(list.iter().map(|segment| u64::from(segment.tail().bytes)).sum());
        self.shared.segments.store(Arc::new(list));
        if gone > 0 {
            // Before anything later is durable: a segment that came back without what it had not
            // synced would be a hole before records that were promised.
            let synced = self.sync_dir();
            if synced.is_err() {
                self.failed = Some("delete");
            }
            synced?;
        }
        Ok(before)
    }

    fn sync_dir(&self) -> Result<()> {
        let dir = &self.shared.dir;
        self.disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
    }

    fn retire(&mut self, segment: Arc<Segment>) -> Result<()> {
        let mut files = Vec::new();
        // The snapshot at its base goes with it.
        for suffix in names::SEGMENT_SUFFIXES.into_iter().chain([names::SNAPSHOT]) {
            let from = names::path(&self.shared.dir, segment.base_offset(), suffix);
            let to =
                names::path(&self.shared.dir, segment.base_offset(), &format!("{suffix}.deleted"));
            match self.disk.rename(&from, &to) {
                Ok(()) => files.push(to),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("rename", from, e)),
            }
        }
        self.sync.forget(&segment);
        segment.retire();
        segment.close_file();
        self.retired.push(RetiredSegment { segment, files });
        Ok(())
    }

    /// Writes the index files of the active segment and syncs everything, so that the directory can
    /// be opened by Kafka without recovery. The log takes no appends after.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.settle_swap()?;
        if self.failed.is_none() {
            self.seal_active_index()?;
            self.snapshot_at_close()?;
            self.sync_now()?;
        }
        let failed = self.check_usable();
        self.failed = Some("close");
        self.active.file = None;
        for segment in self.shared.segments.load().iter() {
            segment.close_file();
        }
        failed
    }

    /// The error of a log that takes no more appends.
    pub(crate) fn check_usable(&self) -> Result<()> {
        match self.failed {
            None => Ok(()),
            Some("close") => Err(Error::Closed { what: self.shared.name.to_string() }),
            Some(op) => Err(Error::PartitionFailed {
                partition: self.shared.name.to_string(),
                op,
                durable: Offset(self.shared.offsets.durable()),
            }),
        }
    }

    /// The active segment's file, opened for writing on first use and pinned while it may hold
    /// bytes that are not synced.
    fn active_file(&mut self) -> Result<FileRef> {
        if let Some(file) = &self.active.file {
            return Ok(Arc::clone(file));
        }
        let path = self.active.segment.path();
        let file = self
            .disk
            .open(path, OpenMode::ReadWrite)
            .map_err(|e| Error::io("open for writing", path, e))?;
        self.active.segment.pin_file(Arc::clone(&file));
        self.active.file = Some(Arc::clone(&file));
        Ok(file)
    }

    fn store_epochs(&mut self) -> Result<()> {
        crate::checkpoint::write_epochs(
            self.disk.as_ref(),
            &self.shared.dir,
            self.epochs.entries(),
        )?;
        self.shared.epochs.store(Arc::new(self.epochs.clone()));
        Ok(())
    }
}

/// True if the first of two neighbours holds nothing at or above `offset`.
fn ends_at_or_below(pair: &[Arc<Segment>], offset: i64) -> bool {
    matches!(pair, [_, next] if next.base_offset() <= offset)
}
