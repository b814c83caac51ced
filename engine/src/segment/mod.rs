//! One segment of a partition: a `.log` file, its two indexes, and what readers may see of it.
//!
//! The writer (in `log`) owns the [`IndexWriter`]; everything here is shared with readers on any
//! thread, who load [`Segment::tail`] and search the index without a lock:
//!
//! ```text
//! writer:  bytes → page cache   then index entries   then tail (one word: end offset, size)
//! reader:  tail                 then index           then bytes below the size
//! ```
//!
//! Invariant: every byte below the published size belongs to a whole batch, or to a damaged range
//! that recovery noted.

#![forbid(unsafe_code)]

mod files;
mod index;
pub(crate) mod names;
mod published;
mod scan;
mod verified;

pub(crate) use files::OpenFiles;
pub(crate) use index::{IndexWriter, OFFSET_ENTRY, OffsetEntry, SegmentIndex, TIME_ENTRY};
pub(crate) use published::{Published, Writer as PublishedWriter};
pub(crate) use scan::{Scanned, Scanner, header_at};

use crate::error::{Error, Result};
use crate::format::{BatchFault, BatchHeader};
use crate::io::FileRef;
use crate::offset::Offset;
use files::FileSlot;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use verified::Verified;

/// Where a segment ends, read in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tail {
    /// One past the last offset in the segment.
    pub(crate) end_offset: i64,
    /// Bytes of whole batches.
    pub(crate) bytes: u32,
}

/// A stretch of a segment that is no batch, found by recovery or by a walk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedRange {
    /// The segment file.
    pub path: PathBuf,
    /// First damaged byte.
    pub position: u64,
    /// Bytes up to the next whole batch; 0 if the file ends, or is missing, where they should be.
    pub length: u64,
    /// First offset that is lost.
    pub offset: Offset,
    /// First offset after the damage.
    pub next_offset: Offset,
    /// What is wrong at the first damaged byte.
    pub fault: BatchFault,
}

impl DamagedRange {
    pub(crate) fn error(&self) -> Error {
        Error::Damaged {
            path: self.path.clone(),
            position: self.position,
            offset: self.offset,
            next_offset: self.next_offset,
            fault: self.fault.clone(),
        }
    }
}

/// The shared part of a segment.
pub(crate) struct Segment {
    base_offset: i64,
    file: FileSlot,
    index: OnceLock<SegmentIndex>,
    /// Aborted transactions whose markers are in it, four words each (`producers`).
    aborted: OnceLock<Arc<Published<4>>>,
    /// What is not in `aborted` does not exist: there is no file to look into.
    aborted_is_known: AtomicBool,
    /// End offset − base in the high half, bytes in the low half.
    tail: AtomicU64,
    max_timestamp: AtomicI64,
    leases: AtomicUsize,
    retired: AtomicBool,
    /// In file order; noted before the segment is shared.
    damaged: Vec<DamagedRange>,
    verified: Verified,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("path", &self.path()).field("tail", &self.tail()).finish()
    }
}

impl Segment {
    /// A segment whose tail is still at its base: empty, or not yet looked at.
    pub(crate) fn new(path: PathBuf, base_offset: i64, damaged: Vec<DamagedRange>) -> Segment {
        Segment {
            base_offset,
            file: FileSlot::new(path),
            index: OnceLock::new(),
            aborted: OnceLock::new(),
            aborted_is_known: AtomicBool::new(false),
            tail: AtomicU64::new(0),
            max_timestamp: AtomicI64::new(-1),
            leases: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
            damaged,
            verified: Verified::new(),
        }
    }

    pub(crate) fn base_offset(&self) -> i64 {
        self.base_offset
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(crate) fn tail(&self) -> Tail {
        let word = self.tail.load(Ordering::Acquire);
        #[expect(clippy::cast_possible_truncation, reason = "the low half is the size")]
        let bytes = word as u32;
        Tail { end_offset: self.base_offset + i64::from((word >> 32) as u32), bytes }
    }

    /// Makes everything below the new tail visible to readers. Called by the one writer.
    pub(crate) fn publish_tail(&self, tail: Tail) {
        let relative = u32::try_from(tail.end_offset - self.base_offset)
            .expect("the log rolls before an offset leaves its segment's range");
        self.tail.store(u64::from(relative) << 32 | u64::from(tail.bytes), Ordering::Release);
    }

    pub(crate) fn max_timestamp(&self) -> i64 {
        self.max_timestamp.load(Ordering::Relaxed)
    }

    pub(crate) fn set_max_timestamp(&self, timestamp: i64) {
        self.max_timestamp.store(timestamp, Ordering::Relaxed);
    }

    pub(crate) fn damaged(&self) -> &[DamagedRange] {
        &self.damaged
    }

    /// Damage that checks have found since the segment was opened.
    pub(crate) fn found_damaged(&self) -> Vec<DamagedRange> {
        self.verified.damaged()
    }

    /// Notes damage; true if it was not known.
    pub(crate) fn note_damage(&self, damage: DamagedRange) -> bool {
        self.verified.note(damage)
    }

    /// Every batch from `position` on was checked, and so is what will be appended.
    pub(crate) fn trust_from(&self, position: u32) {
        self.verified.trust_from(position);
    }

    /// What of the bytes `[start, end)` was not checked since the open: first to last.
    pub(crate) fn unchecked(&self, start: u32, end: u32) -> Option<(u32, u32)> {
        self.verified.unchecked(start, end)
    }

    /// The batches in `[start, end)` were checked.
    pub(crate) fn add_checked(&self, start: u32, end: u32) {
        self.verified.add(start, end);
    }

    pub(crate) fn set_index(&self, index: SegmentIndex) {
        let _ = self.index.set(index);
    }

    /// Aborted transactions, if any are in memory.
    pub(crate) fn aborted(&self) -> Option<&Arc<Published<4>>> {
        self.aborted.get()
    }

    /// False if there may be a file of them that nobody has read yet.
    pub(crate) fn aborted_is_known(&self) -> bool {
        self.aborted_is_known.load(Ordering::Acquire)
    }

    /// Notes all aborted transactions that there are so far. Two readers may both load them; one
    /// array is kept.
    pub(crate) fn set_aborted(&self, aborted: Option<Arc<Published<4>>>) {
        if let Some(aborted) = aborted {
            let _ = self.aborted.set(aborted);
        }
        self.aborted_is_known.store(true, Ordering::Release);
    }

    /// The index, if it is in memory.
    pub(crate) fn loaded_index(&self) -> Option<&SegmentIndex> {
        self.index.get()
    }

    /// The index, loaded by `load` on first use. Two threads may both load; one result is kept.
    pub(crate) fn index_or_load(
        &self,
        load: impl FnOnce() -> Result<SegmentIndex>,
    ) -> Result<&SegmentIndex> {
        if let Some(index) = self.index.get() {
            return Ok(index);
        }
        let loaded = load()?;
        Ok(self.index.get_or_init(|| loaded))
    }

    /// The `.log` file, opened if it is not.
    pub(crate) fn file(&self, open_files: &OpenFiles) -> Result<FileRef> {
        self.file.get(open_files)
    }

    /// Keeps `file` open whatever the limit: it has bytes that are not synced yet, and a
    /// descriptor opened later might not be told of a failed writeback.
    pub(crate) fn pin_file(&self, file: FileRef) {
        self.file.pin(file);
    }

    /// Closes the file, as far as this segment goes.
    pub(crate) fn close_file(&self) {
        self.file.close();
    }

    pub(crate) fn unpin_file(&self, open_files: &OpenFiles) {
        self.file.unpin(open_files);
    }

    /// Counts a lease on the file.
    pub(crate) fn lease(self: &Arc<Self>) -> SegmentLease {
        self.leases.fetch_add(1, Ordering::AcqRel);
        SegmentLease { segment: Arc::clone(self) }
    }

    pub(crate) fn leases(&self) -> usize {
        self.leases.load(Ordering::Acquire)
    }

    /// True when the segment was removed from its log.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Marks the segment as removed from its log.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Position of the first batch at or after `position` whose last offset is at least `offset`.
    /// `None` if the published bytes end before.
    pub(crate) fn walk_to_offset(
        &self,
        file: &FileRef,
        from: u64,
        offset: i64,
    ) -> Result<Option<(u64, BatchHeader)>> {
        let end = u64::from(self.tail().bytes);
        let mut position = from;
        let mut next_offset = self.base_offset;
        loop {
            let damage = match self.damage_at(position) {
                Some(damage) => damage.clone(),
                None if position >= end => {
                    // What should follow is not in the file at all.
                    let lost = self.damaged.last().filter(|d| d.length == 0);
                    return match lost.filter(|lost| offset < lost.next_offset.0) {
                        Some(lost) => Err(lost.error()),
                        None => Ok(None),
                    };
                }
                None => match self.header(file, position, end) {
                    Ok(header) if header.last_offset() >= offset => {
                        return Ok(Some((position, header)));
                    }
                    Ok(header) => {
                        position += header.total_bytes() as u64;
                        next_offset = header.next_offset();
                        continue;
                    }
                    Err(Error::Damaged { fault, .. }) => {
                        self.find_damage(file, position, next_offset, fault)?
                    }
                    Err(error) => return Err(error),
                },
            };
            if offset < damage.next_offset.0 {
                return Err(damage.error());
            }
            position = damage.position + damage.length;
            next_offset = damage.next_offset.0;
        }
    }

    /// Measures damage that a walk has run into at `position`: up to the next whole batch.
    pub(crate) fn find_damage(
        &self,
        file: &FileRef,
        position: u64,
        next_offset: i64,
        fault: BatchFault,
    ) -> Result<DamagedRange> {
        let tail = self.tail();
        let end = u64::from(tail.bytes);
        let read = |e| Error::io("read", self.path(), e);
        let mut scanner =
            Scanner::new(FileRef::clone(file), self.base_offset, position, next_offset, end);
        let mut survivor = (end, tail.end_offset);
        // The first step passes over the damage, the second says what comes after it.
        if let Scanned::Damage { end, .. } = scanner.step().map_err(read)?
            && let Scanned::Batch { batch, .. } = scanner.step().map_err(read)?
        {
            survivor = (end, batch.header().base_offset);
        }
        Ok(DamagedRange {
            path: self.path().to_owned(),
            position,
            length: survivor.0 - position,
            offset: Offset(next_offset),
            next_offset: Offset(survivor.1),
            fault,
        })
    }

    /// The header at `position`, which a walk has reached; anything else there is damage.
    pub(crate) fn header(&self, file: &FileRef, position: u64, end: u64) -> Result<BatchHeader> {
        let read = header_at(file.as_ref(), position, end)
            .map_err(|e| Error::io("read", self.path(), e))?;
        read.and_then(|header| {
            let in_range = header.base_offset >= self.base_offset
                && header.last_offset_delta >= 0
                && header.last_offset() <= self.tail().end_offset;
            if in_range {
                return Ok(header);
            }
            Err(BatchFault::BaseOffset { expected: self.base_offset, found: header.base_offset })
        })
        .map_err(|fault| Error::Damaged {
            path: self.path().to_owned(),
            position,
            offset: Offset(self.base_offset),
            next_offset: Offset(self.tail().end_offset),
            fault,
        })
    }

    /// The damage that starts at or covers `position`.
    fn damage_at(&self, position: u64) -> Option<&DamagedRange> {
        self.damaged.iter().find(|d| d.position <= position && position < d.position + d.length)
    }

    /// True if offsets behind its last byte are lost.
    pub(crate) fn ends_in_damage(&self) -> bool {
        let end = u64::from(self.tail().bytes);
        self.damaged.last().is_some_and(|damage| damage.position + damage.length >= end)
    }

    /// The first damage at or after `position`: a lease ends before it.
    pub(crate) fn damage_after(&self, position: u64) -> Option<&DamagedRange> {
        self.damaged.iter().find(|d| d.position + d.length > position)
    }
}

/// Holds a segment's file: it is not unlinked while one of these lives.
#[derive(Debug)]
pub(crate) struct SegmentLease {
    segment: Arc<Segment>,
}

impl SegmentLease {
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// True when the segment was deleted after the lease was taken. Its bytes can still be read.
    pub(crate) fn is_retired(&self) -> bool {
        self.segment.is_retired()
    }
}

impl Clone for SegmentLease {
    fn clone(&self) -> SegmentLease {
        self.segment.lease()
    }
}

impl Drop for SegmentLease {
    fn drop(&mut self) {
        self.segment.leases.fetch_sub(1, Ordering::AcqRel);
    }
}
