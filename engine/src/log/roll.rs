//! Rolling: closing the active segment and starting the next.

#![forbid(unsafe_code)]

use super::{ActiveSegment, Log};
use crate::error::{Error, Result};
use crate::format::BatchHeader;
use crate::io::{Disk, FileRef, OpenMode};
use crate::planted::{Bug, planted};
use crate::segment::{IndexWriter, OFFSET_ENTRY, Segment, TIME_ENTRY, Tail, names};
use std::path::Path;
use std::sync::Arc;

impl Log {
    /// Kafka's `LogSegment.shouldRoll`, for an append of `incoming` bytes behind `staged` ones.
    pub(super) fn is_roll_due(
        &self,
        staged: u64,
        incoming: u64,
        staged_first: Option<i64>,
        header: &BatchHeader,
        next_offset: i64,
    ) -> bool {
        let config = self.shared.config.load();
        let bytes = u64::from(self.active.bytes) + staged;
        if bytes == 0 {
            return false;
        }
        let base = self.active.segment.base_offset();
        let last_offset = next_offset + i64::from(header.last_offset_delta);
        bytes + incoming > u64::from(config.segment_bytes)
            || self.age_ms(staged_first, header.max_timestamp) > config.segment_ms_max()
            || self.active.index.is_full(config.index_bytes_max)
            || last_offset - base > i64::from(i32::MAX)
    }

    /// From the first batch's timestamp to the incoming one's; by the clock where there is none.
    fn age_ms(&self, staged_first: Option<i64>, incoming: i64) -> u64 {
        let first = self.active.first_timestamp.or(staged_first).filter(|t| *t >= 0);
        let (from, to) = match first {
            Some(first) if incoming >= 0 => (first, incoming),
            _ => (self.active.created_ms, self.clock.now_ms()),
        };
        u64::try_from(to.saturating_sub(from)).unwrap_or(0)
    }

    /// Starts a new active segment at `base_offset`. The old one gets its index files and is synced
    /// in the background.
    pub(crate) fn roll(&mut self, base_offset: i64) -> Result<()> {
        // The journal may still have a failed write that stood where the new segment begins.
        self.check_cut()?;
        // Sealed first: after a kill, a segment that has a successor has its index files whole.
        self.seal_active_index()?;
        if self.active.cut_back {
            // A sealed segment below the recovery point is believed to its last byte.
            let path = self.active.segment.path().to_owned();
            let synced = self.active_file()?.sync_data();
            if synced.is_err() {
                // A second try would succeed and mean nothing.
                self.doubt();
                self.failed = Some("sync");
            }
            synced.map_err(|e| Error::io("sync", path, e))?;
        }
        self.snapshot_before_roll(base_offset);
        let segment = self.create_next(base_offset)?;
        let (old, old_file) = self.install(segment);
        self.sync.segment_sealed(old, old_file);
        self.journalled.on_rolled(base_offset);
        let mut list = self.shared.segments.load().to_vec();
        list.push(Arc::clone(&self.active.segment));
        self.shared.segments.store(Arc::new(list));
        tracing::debug!(partition = %self.shared.name, base_offset, "rolled");
        Ok(())
    }

    /// Makes a new segment the active one. Gives the one before, with its file if that is open.
    pub(super) fn install(&mut self, segment: NewSegment) -> (Arc<Segment>, Option<FileRef>) {
        let base_offset = segment.shared.base_offset();
        let old = std::mem::replace(&mut self.active.segment, Arc::new(segment.shared));
        let old_file = self.active.file.replace(Arc::clone(&segment.file));
        let (index, writer) =
            IndexWriter::new(base_offset, self.shared.config.load().index_interval_bytes);
        self.active.segment.set_index(index);
        self.active.segment.pin_file(segment.file);
        self.active.index = writer;
        self.active.entries_on_disk = (0, 0);
        self.active.bytes = 0;
        self.active.first_timestamp = None;
        self.active.created_ms = self.clock.now_ms();
        self.active.indexed_bytes = 0;
        self.active.written_back = 0;
        self.active.cut_back = false;
        self.on_producers_rolled();
        (old, old_file)
    }

    /// Creates the next segment, durably before it has a byte: a later one must not survive a power
    /// cut that takes this one.
    pub(super) fn create_next(&mut self, base_offset: i64) -> Result<NewSegment> {
        let created = create_segment(self.disk.as_ref(), &self.shared.dir, base_offset);
        let created = created.and_then(|segment| match planted(Bug::NoDirectorySync) {
            true => Ok(segment),
            false => self.sync_dir().map(|()| segment),
        });
        if created.is_err() {
            // Appends go on in the segment before it; a file that claims their offsets must not stay.
            let removed = self.remove_segment(base_offset).and_then(|()| self.sync_dir());
            if let Err(error) = removed {
                tracing::error!(partition = %self.shared.name, %error, "a failed roll stays half done");
                self.failed = Some("roll");
            }
        }
        created
    }

    fn remove_segment(&self, base_offset: i64) -> Result<()> {
        for suffix in [names::LOG, names::INDEX, names::TIME_INDEX] {
            let path = names::path(&self.shared.dir, base_offset, suffix);
            match self.disk.remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Rolls now, whatever the limits say; an empty segment stays. Returns the active base offset.
    pub(crate) fn roll_now(&mut self) -> Result<i64> {
        if self.active.bytes > 0 {
            self.roll(self.shared.offsets.log_end())?;
        }
        Ok(self.active.segment.base_offset())
    }

    /// Writes what the active segment's index files lack, with the final time entry.
    pub(super) fn seal_active_index(&mut self) -> Result<()> {
        self.active.index.seal();
        if let Some((offset_file, time_file)) = self.write_index_entries()? {
            self.sync.index_written(self.active.segment.base_offset(), offset_file, time_file);
        }
        self.seal_aborted()
    }

    /// Brings the active segment's index files up to date now and then: whoever opens the directory
    /// after a kill walks the log from the last entry on. Nothing depends on it.
    pub(super) fn refresh_index_files(&mut self) {
        if self.active.bytes - self.active.indexed_bytes < INDEX_REFRESH_BYTES {
            return;
        }
        self.active.indexed_bytes = self.active.bytes;
        if let Err(error) = self.write_index_entries() {
            tracing::warn!(partition = %self.shared.name, %error, "index files not refreshed");
        }
        self.refresh_snapshot();
    }

    /// Appends new entries to both index files: first of times, so that an entry of the offset
    /// index, from which a walk starts, never lacks those of times before it.
    fn write_index_entries(&mut self) -> Result<Option<(FileRef, FileRef)>> {
        let segment = &self.active.segment;
        let Some(index) = segment.loaded_index() else { return Ok(None) };
        let (offsets_done, times_done) = self.active.entries_on_disk;
        let (offsets, times) = (index.offset_entries(), index.time_entries());
        if (offsets, times) == (offsets_done, times_done) {
            return Ok(None);
        }
        let write = |suffix: &str, bytes: Vec<u8>, position: usize| -> Result<FileRef> {
            let path = names::path(&self.shared.dir, segment.base_offset(), suffix);
            write_index(self.disk.as_ref(), &path, &bytes, position as u64)
        };
        let time_file =
            write(names::TIME_INDEX, index.time_file(times_done), times_done * TIME_ENTRY)?;
        let offset_file =
            write(names::INDEX, index.offset_file(offsets_done), offsets_done * OFFSET_ENTRY)?;
        self.active.entries_on_disk = (offsets, times);
        Ok(Some((offset_file, time_file)))
    }

    /// The stretch of the active segment that is worth starting to write back: long enough for the
    /// disk, early enough that a sync finds little left.
    pub(crate) fn take_writeback(&mut self) -> Option<(FileRef, u64, u64)> {
        let (from, to) = (self.active.written_back, self.active.bytes);
        let length = to.checked_sub(from).filter(|length| *length >= WRITEBACK_BYTES)?;
        self.active.written_back = to;
        Some((Arc::clone(self.active.file.as_ref()?), from.into(), length.into()))
    }
}

/// How much of an active segment its index files may lack.
const INDEX_REFRESH_BYTES: u32 = 8 << 20;

/// Dirty bytes of a segment at which their writeback is started.
const WRITEBACK_BYTES: u32 = 1 << 20;

/// A segment just created, with its file open for writing.
pub(crate) struct NewSegment {
    pub(crate) shared: Segment,
    pub(crate) file: FileRef,
}

/// Creates the three files of an empty segment. Files of that name are what a crash left of an
/// earlier try, with nothing in them that was published: they are replaced, as Kafka does.
pub(crate) fn create_segment(disk: &dyn Disk, dir: &Path, base_offset: i64) -> Result<NewSegment> {
    let create = |suffix: &str| {
        let path = names::path(dir, base_offset, suffix);
        disk.open(&path, OpenMode::CreateOrTruncate).map_err(|e| Error::io("create", &path, e))
    };
    create(names::INDEX)?;
    create(names::TIME_INDEX)?;
    let file = create(names::LOG)?;
    let path = names::path(dir, base_offset, names::LOG);
    let shared = Segment::new(path, base_offset, Vec::new());
    shared.trust_from(0);
    shared.publish_tail(Tail { end_offset: base_offset, bytes: 0 });
    Ok(NewSegment { shared, file })
}

/// Writes index bytes at `position` and cuts the file behind them.
pub(crate) fn write_index(
    disk: &dyn Disk,
    path: &Path,
    bytes: &[u8],
    position: u64,
) -> Result<FileRef> {
    let mode = if position == 0 { OpenMode::CreateOrTruncate } else { OpenMode::ReadWrite };
    let file = disk.open(path, mode).map_err(|e| Error::io("open", path, e))?;
    file.write_all_at(bytes, position).map_err(|e| Error::io("write", path, e))?;
    let end = position + bytes.len() as u64;
    file.set_len(end).map_err(|e| Error::io("cut", path, e))?;
    Ok(file)
}

/// A new log's first active segment.
pub(crate) fn first_segment(
    disk: &dyn Disk,
    dir: &Path,
    base_offset: i64,
    interval_bytes: u32,
    now_ms: i64,
) -> Result<ActiveSegment> {
    let new = create_segment(disk, dir, base_offset)?;
    let (index, writer) = IndexWriter::new(base_offset, interval_bytes);
    new.shared.set_index(index);
    Ok(ActiveSegment {
        segment: Arc::new(new.shared),
        // Opened again at the first append: an empty partition costs no descriptor.
        file: None,
        index: writer,
        entries_on_disk: (0, 0),
        bytes: 0,
        first_timestamp: None,
        created_ms: now_ms,
        indexed_bytes: 0,
        written_back: 0,
        cut_back: false,
    })
}
