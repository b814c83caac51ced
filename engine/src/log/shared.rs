//! What readers on any thread see of a partition: its offsets, its segments, and the way from an
//! offset to bytes. Nothing here takes a lock that a writer holds.
//!
//! A fetch loads the offsets, then the segment list, then a segment's tail: the writer publishes
//! them in the opposite order, so whatever offset a reader has seen, its bytes are there.

#![forbid(unsafe_code)]

use super::check::Found;
use super::epochs::Epochs;
use super::lease::{Lease, LeaseRange};
use super::offsets::{OffsetSnapshot, Offsets};
use super::replace::CleanedMark;
use super::watchers::Watchers;
use crate::config::PartitionConfig;
use crate::error::{Error, Result};
use crate::format::{Batch, BatchHeader};
use crate::io::{FileRef, OpenMode};
use crate::offset::Offset;
use crate::producers::Transactions;
use crate::segment::{
    DamagedRange, IndexWriter, OpenFiles, Scanned, Scanner, Segment, SegmentIndex, names,
};
use crate::space::Space;
use crate::topic::TopicPartition;
use arc_swap::ArcSwap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use uuid::Uuid;

/// Up to which offset a fetch reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Isolation {
    /// Up to the high watermark: what consumers may see.
    #[default]
    HighWatermark,
    /// Up to the log end offset: what followers fetch.
    LogEnd,
    /// Up to the last stable offset: what consumers may see that read committed transactions only.
    /// The records of [`Lease::aborted_transactions`] are among the bytes, and theirs to leave out.
    ReadCommitted,
}

/// How much a fetch reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchOptions {
    /// Most bytes, in whole batches; the first batch comes whole even if it is larger. 1 or more;
    /// default 1 MiB, as consumers' `max.partition.fetch.bytes`.
    pub max_bytes: u64,
    /// Up to which offset.
    pub isolation: Isolation,
    /// Whether bytes are checked before they go out.
    pub verify: Verify,
}

/// Whether a fetch checks the bytes it finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// CRC and size of every batch, once since the directory was opened: what was appended or
    /// recovered since is known to be whole, the rest is read once and remembered.
    #[default]
    Once,
    /// Only the headers at the ends of a lease: for hosts whose readers check for themselves, and
    /// would rather find damage late than read cold bytes twice.
    Headers,
}

impl Default for FetchOptions {
    fn default() -> FetchOptions {
        FetchOptions {
            max_bytes: 1 << 20,
            isolation: Isolation::default(),
            verify: Verify::default(),
        }
    }
}

/// Segments in offset order; the last one is active. Never empty.
pub(crate) type SegmentList = Vec<Arc<Segment>>;

/// The readers' side of one partition.
pub(crate) struct LogShared {
    pub(crate) name: TopicPartition,
    pub(crate) dir: PathBuf,
    pub(crate) topic_id: Option<Uuid>,
    /// May change while the log is open.
    pub(crate) config: ArcSwap<PartitionConfig>,
    pub(crate) offsets: Offsets,
    pub(crate) segments: ArcSwap<SegmentList>,
    pub(crate) epochs: ArcSwap<Epochs>,
    pub(crate) open_files: Arc<OpenFiles>,
    /// The highest log end that a truncation since the open has cut away; −1 for none.
    pub(crate) cut_from: AtomicI64,
    /// Truncations begun since the open.
    pub(crate) cuts: AtomicU64,
    /// Who waits for records of it.
    pub(crate) watchers: Watchers,
    /// The directory is ours: an index that had to be rebuilt is written back.
    pub(crate) writable: bool,
    /// The host's latest word on who leads; appends with an older epoch are fenced.
    pub(crate) leader_epoch: AtomicI32Max,
    /// What the disk has room for.
    pub(crate) space: Arc<Space>,
    /// How far compaction has come.
    pub(crate) cleaned: CleanedMark,
    /// Indexes rebuilt since the open, by recovery or on first touch.
    pub(crate) indexes_rebuilt: AtomicU32,
    /// Undecided transactions: for the shard and who moves the high watermark, not for readers.
    pub(crate) transactions: Mutex<Transactions>,
}

/// A leader epoch that only rises.
pub(crate) struct AtomicI32Max(std::sync::atomic::AtomicI32);

impl AtomicI32Max {
    pub(crate) fn new(value: i32) -> AtomicI32Max {
        AtomicI32Max(value.into())
    }

    pub(crate) fn get(&self) -> i32 {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn raise(&self, value: i32) {
        self.0.fetch_max(value, Ordering::AcqRel);
    }
}

impl LogShared {
    /// Finds the bytes from `offset` on.
    pub(crate) fn fetch(&self, offset: i64, options: &FetchOptions) -> Result<Lease> {
        self.with_segments(|segments| self.fetch_from(segments, offset, options))
    }

    /// Runs a read over the segments, and again if some of them were replaced meanwhile: a file that
    /// was opened by its name may then have been another segment's.
    pub(crate) fn with_segments<T>(
        &self,
        read: impl Fn(&[Arc<Segment>]) -> Result<T>,
    ) -> Result<T> {
        loop {
            // It changes after the list has, and before names do.
            let swaps = self.cleaned.swaps();
            let found = read(self.segments.load().as_slice());
            if swaps == self.cleaned.swaps() {
                return found;
            }
        }
    }

    fn fetch_from(
        &self,
        segments: &[Arc<Segment>],
        offset: i64,
        options: &FetchOptions,
    ) -> Result<Lease> {
        let offsets = self.offsets.snapshot();
        let last_stable = self.offsets.last_stable().min(offsets.high_watermark);
        let limit = self.limit(options.isolation, &offsets);
        self.check_range(offset, &offsets, range_end(options.isolation, limit, &offsets))?;
        let mut lease = Lease {
            ranges: Vec::new(),
            next_offset: offset,
            log_start: offsets.log_start,
            high_watermark: offsets.high_watermark,
            last_stable,
            log_end: offsets.log_end,
            aborted: Vec::new(),
        };
        let mut at = segments.partition_point(|s| s.base_offset() <= offset).saturating_sub(1);
        let mut budget = options.max_bytes;
        while lease.next_offset < limit {
            let Some(segment) = segments.get(at) else { break };
            let from = lease.next_offset;
            let found = self.range_in(segment, from, limit, budget, options.verify, &lease.ranges);
            match found {
                Ok(Some((range, next_offset))) => {
                    budget = budget.saturating_sub(range.length.into());
                    let whole = range.position + range.length == segment.tail().bytes
                        && !segment.ends_in_damage();
                    lease.ranges.push(range);
                    lease.next_offset = next_offset;
                    if budget == 0 || !whole {
                        break;
                    }
                }
                // Nothing at or past the offset in this segment: a gap, or nothing more fits.
                Ok(None) if lease.ranges.is_empty() => {}
                Ok(None) => break,
                // What was found before the damage is good; the next fetch meets it.
                Err(Error::Damaged { .. }) if !lease.ranges.is_empty() => break,
                Err(error) => return Err(error),
            }
            at += 1;
        }
        if options.isolation == Isolation::ReadCommitted && !lease.is_empty() {
            lease.aborted = self.aborted(offset, lease.next_offset)?;
        }
        Ok(lease)
    }

    /// Refuses an offset that cannot be read from.
    pub(super) fn check_range(
        &self,
        offset: i64,
        offsets: &OffsetSnapshot,
        limit: i64,
    ) -> Result<()> {
        if (offsets.log_start..=limit).contains(&offset) {
            return Ok(());
        }
        if offset > offsets.log_end && offset <= self.cut_from.load(Ordering::Acquire) {
            return Err(Error::Truncated {
                partition: self.name.to_string(),
                offset: Offset(offset),
                log_end: Offset(offsets.log_end),
            });
        }
        Err(self.out_of_range(offset, offsets.log_start, limit))
    }

    /// Where reads end.
    pub(super) fn limit(&self, isolation: Isolation, offsets: &OffsetSnapshot) -> i64 {
        match isolation {
            Isolation::HighWatermark => offsets.high_watermark,
            Isolation::LogEnd => offsets.log_end,
            Isolation::ReadCommitted => self.offsets.last_stable().min(offsets.high_watermark),
        }
    }

    /// The stretch of `segment` from `offset` on, and the offset after it.
    fn range_in(
        &self,
        segment: &Arc<Segment>,
        offset: i64,
        limit: i64,
        budget: u64,
        verify: Verify,
        before: &[LeaseRange],
    ) -> Result<Option<(LeaseRange, i64)>> {
        let file = segment.file(&self.open_files)?;
        let tail = segment.tail();
        let Some((start, first)) = self.locate(segment, &file, offset)? else {
            return Ok(None);
        };
        let first_end = start + first.total_bytes() as u64;
        // The first batch of a fetch comes whole; later segments only if they fit.
        if first_end - start > budget && !before.is_empty() {
            return Ok(None);
        }
        let mut end_max = u64::from(tail.bytes).min(first_end.max(start.saturating_add(budget)));
        if let Some(damage) = segment.damage_after(start) {
            end_max = end_max.min(damage.position);
        }
        let whole = end_max == u64::from(tail.bytes) && !segment.ends_in_damage();
        let (end, next_offset) = if whole && tail.end_offset <= limit {
            (end_max, tail.end_offset)
        } else {
            self.last_whole_batch(segment, &file, start, end_max, limit)?
        };
        if end == start {
            return Ok(None);
        }
        let mut found = Found { start, base_offset: first.base_offset, end, next_offset };
        if verify == Verify::Once {
            found = self.check(segment, &file, found)?;
        }
        let Found { end, next_offset, .. } = found;
        let (Ok(position), Ok(length)) = (u32::try_from(start), u32::try_from(end - start)) else {
            unreachable!("positions in a segment fit 31 bits")
        };
        let range = LeaseRange { segment: segment.lease(), file, position, length };
        Ok(Some((range, next_offset)))
    }

    /// Position and header of the first batch whose last offset is at least `offset`.
    pub(super) fn locate(
        &self,
        segment: &Arc<Segment>,
        file: &FileRef,
        offset: i64,
    ) -> Result<Option<(u64, BatchHeader)>> {
        let relative = u32::try_from((offset - segment.base_offset()).max(0)).unwrap_or(u32::MAX);
        let index = self.index(segment)?;
        let from = match index.entry_for_offset(relative) {
            Some(entry) if self.entry_holds(segment, file, entry)? => u64::from(entry.position),
            // Nothing before it, or an entry that is not true: the walk from the start finds it.
            _ => 0,
        };
        segment.walk_to_offset(file, from, offset)
    }

    /// True if a batch starts where the entry says, at or before the entry's offset: then a walk
    /// from it misses nothing. A flipped bit in an index file must cost time, not records.
    fn entry_holds(
        &self,
        segment: &Arc<Segment>,
        file: &FileRef,
        entry: crate::segment::OffsetEntry,
    ) -> Result<bool> {
        let end = u64::from(segment.tail().bytes);
        let offset = segment.base_offset() + i64::from(entry.relative_offset);
        match segment.header(file, entry.position.into(), end) {
            Ok(header) => Ok(header.base_offset <= offset),
            Err(Error::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The end of the last batch that ends at or before `end_max` and starts below offset `limit`,
    /// and the offset after it.
    fn last_whole_batch(
        &self,
        segment: &Arc<Segment>,
        file: &FileRef,
        start: u64,
        end_max: u64,
        limit: i64,
    ) -> Result<(u64, i64)> {
        let index = self.index(segment)?;
        let target = u32::try_from(end_max).unwrap_or(u32::MAX);
        let mut position = start;
        if let Some(entry) = index.entry_for_position(target) {
            let starts_below = segment.base_offset() + i64::from(entry.relative_offset) < limit;
            if starts_below && u64::from(entry.position) > start {
                position = entry.position.into();
            }
        }
        let mut found = None;
        let tail = u64::from(segment.tail().bytes);
        while position < end_max {
            let header = match segment.header(file, position, tail) {
                // As above: if it was an entry that led astray, walk from the start of the lease.
                Err(Error::Damaged { .. }) if found.is_none() && position > start => {
                    position = start;
                    continue;
                }
                // The lease ends before the damage; the next fetch meets it.
                Err(Error::Damaged { .. }) if found.is_some() => break,
                header => header?,
            };
            let end = position + header.total_bytes() as u64;
            if end > end_max || header.base_offset >= limit {
                break;
            }
            found = Some((end, header.next_offset()));
            position = end;
        }
        // A batch that begins at `position` and does not fit ends the lease there.
        match found {
            Some(found) => Ok(found),
            None if position > start => {
                let (end, next) = self.last_before(segment, file, start, position)?;
                Ok((end, next))
            }
            None => Ok((start, limit)),
        }
    }

    /// The batch that ends exactly at `position`, found from the entry before it.
    pub(super) fn last_before(
        &self,
        segment: &Arc<Segment>,
        file: &FileRef,
        start: u64,
        position: u64,
    ) -> Result<(u64, i64)> {
        let tail = u64::from(segment.tail().bytes);
        let before = u32::try_from(position - 1).unwrap_or(u32::MAX);
        let entry = self.index(segment)?.entry_for_position(before);
        let mut at = entry.map_or(start, |e| u64::from(e.position).max(start));
        loop {
            let header = segment.header(file, at, tail)?;
            let end = at + header.total_bytes() as u64;
            if end >= position {
                return Ok((end.min(position), header.next_offset()));
            }
            at = end;
        }
    }

    /// The index of a segment, read from its files on first use and rebuilt if they are not sound.
    pub(crate) fn index<'s>(&self, segment: &'s Arc<Segment>) -> Result<&'s SegmentIndex> {
        segment.index_or_load(|| {
            let tail = segment.tail();
            match read_index(self, segment, tail.bytes.into()) {
                Ok((index, _)) => Ok(index),
                Err(reason) => self.rebuild_index(segment, &reason),
            }
        })
    }

    fn rebuild_index(&self, segment: &Arc<Segment>, reason: &str) -> Result<SegmentIndex> {
        tracing::warn!(
            partition = %self.name, segment = %segment.path().display(), reason,
            "index rebuilt from the log"
        );
        self.indexes_rebuilt.fetch_add(1, Ordering::Relaxed);
        let file = segment.file(&self.open_files)?;
        let (index, mut writer) =
            IndexWriter::new(segment.base_offset(), self.config.load().index_interval_bytes);
        let base = segment.base_offset();
        let mut scanner = Scanner::new(file, base, 0, base, segment.tail().bytes.into());
        loop {
            match scanner.step().map_err(|e| Error::io("read", segment.path(), e))? {
                Scanned::Batch { position, batch } => {
                    let position = u32::try_from(position).unwrap_or(u32::MAX);
                    writer.on_batch(batch.header(), position);
                }
                Scanned::Damage { .. } => {}
                Scanned::TornTail { .. } | Scanned::End => break,
            }
        }
        writer.seal();
        if self.writable {
            // A segment that was replaced meanwhile has no files of this name any more.
            let _renaming = self.cleaned.renaming();
            if !segment.is_retired() {
                self.store_index(base, &index)?;
            }
        }
        Ok(index)
    }

    /// Replaces a sealed segment's index files: whoever opens the directory next believes them.
    fn store_index(&self, base: i64, index: &SegmentIndex) -> Result<()> {
        let disk = self.open_files.disk();
        for (suffix, bytes) in
            [(names::INDEX, index.offset_file(0)), (names::TIME_INDEX, index.time_file(0))]
        {
            let path = names::path(&self.dir, base, suffix);
            super::write_index(disk.as_ref(), &path, &bytes, 0)?
                .sync_data()
                .map_err(|e| Error::io("sync", &path, e))?;
        }
        Ok(())
    }

    /// The first record at or after `timestamp` (Unix ms): its offset and timestamp. `None` when
    /// every record below `limit` is older.
    pub(super) fn record_since(&self, timestamp: i64, limit: i64) -> Result<Option<(i64, i64)>> {
        self.with_segments(|segments| self.first_at(segments, timestamp, limit))
    }

    fn first_at(
        &self,
        segments: &[Arc<Segment>],
        timestamp: i64,
        limit: i64,
    ) -> Result<Option<(i64, i64)>> {
        let offsets = self.offsets.snapshot();
        for segment in segments.iter() {
            let index = self.index(segment)?;
            let newest = segment
                .max_timestamp()
                .max(index.last_time_entry().map_or(-1, |entry| entry.timestamp));
            if newest < timestamp || segment.tail().end_offset <= offsets.log_start {
                continue;
            }
            let from = index.entry_before_time(timestamp).map_or(offsets.log_start, |entry| {
                segment.base_offset() + i64::from(entry.relative_offset)
            });
            if let Some(found) = self.record_at_time(segment, from, timestamp)? {
                return Ok(Some(found).filter(|(offset, _)| *offset < limit));
            }
        }
        Ok(None)
    }

    fn record_at_time(
        &self,
        segment: &Arc<Segment>,
        from: i64,
        timestamp: i64,
    ) -> Result<Option<(i64, i64)>> {
        let file = segment.file(&self.open_files)?;
        let log_start = self.offsets.log_start();
        let from = from.max(segment.base_offset());
        let Some((mut position, _)) = self.locate(segment, &file, from)? else { return Ok(None) };
        let end = u64::from(segment.tail().bytes);
        while position < end {
            let header = segment.header(&file, position, end)?;
            let total = header.total_bytes();
            if header.max_timestamp >= timestamp {
                let mut bytes = vec![0; total];
                file.read_exact_at(&mut bytes, position)
                    .map_err(|e| Error::io("read", segment.path(), e))?;
                let found = first_record_from(&bytes, log_start, timestamp).map_err(|fault| {
                    Error::Damaged {
                        path: segment.path().to_owned(),
                        position,
                        offset: Offset(header.base_offset),
                        next_offset: Offset(header.next_offset()),
                        fault,
                    }
                })?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            position += total as u64;
        }
        Ok(None)
    }

    /// Every damaged range that is known.
    pub(crate) fn damaged_ranges(&self) -> Vec<DamagedRange> {
        let segments = self.segments.load();
        segments.iter().flat_map(|s| s.damaged().iter().cloned().chain(s.found_damaged())).collect()
    }

    /// Remembers where the log ended before a truncation: readers who were there are told.
    pub(crate) fn note_cut(&self, log_end: i64) {
        self.cut_from.fetch_max(log_end, Ordering::AcqRel);
        self.cuts.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn out_of_range(&self, offset: i64, log_start: i64, end: i64) -> Error {
        Error::OffsetOutOfRange {
            partition: self.name.to_string(),
            offset: Offset(offset),
            log_start: Offset(log_start),
            end: Offset(end),
        }
    }
}

/// The greatest offset that may be asked for. A transaction that is open before a consumer's offset
/// makes it wait; it has not read past an end.
pub(super) fn range_end(isolation: Isolation, limit: i64, offsets: &OffsetSnapshot) -> i64 {
    match isolation {
        Isolation::ReadCommitted => offsets.log_end,
        Isolation::HighWatermark | Isolation::LogEnd => limit,
    }
}

/// Reads a segment's two index files.
///
/// # Errors
/// A sentence that says why they cannot be used.
pub(crate) fn read_index(
    log: &LogShared,
    segment: &Segment,
    log_bytes: u64,
) -> std::result::Result<(SegmentIndex, IndexWriter), String> {
    let read = |suffix: &str| -> std::result::Result<Vec<u8>, String> {
        let path = names::path(&log.dir, segment.base_offset(), suffix);
        read_file(&log.open_files, &path).map_err(|e| format!("{suffix} file: {e}"))
    };
    let (offsets, times) = (read(names::INDEX)?, read(names::TIME_INDEX)?);
    let loaded = IndexWriter::from_files(
        segment.base_offset(),
        log.config.load().index_interval_bytes,
        &offsets,
        &times,
        log_bytes,
    )?;
    // A log with timestamps always ends its time index with the largest; an emptied file shows.
    let (index, _) = &loaded;
    if index.time_entries() == 0 && index.offset_entries() > 0 {
        return Err("the time index is empty though the offset index is not".into());
    }
    check_entries_against_log(log, segment, index, log_bytes)?;
    Ok(loaded)
}

/// Compares the first, the last and some entries between with the batches they point at, and the
/// number of entries with the size of the log.
fn check_entries_against_log(
    log: &LogShared,
    segment: &Segment,
    index: &SegmentIndex,
    log_bytes: u64,
) -> std::result::Result<(), String> {
    /// A full comparison would read the log; this many reads find a shifted or stale file.
    const SAMPLES: usize = 8;
    let entries = index.offset_entries();
    if entries_are_missing(log, segment, index, log_bytes)? {
        return Err("the offset index ends long before the log does".into());
    }
    let file = segment.file(&log.open_files).map_err(|e| e.to_string())?;
    for sample in 0..SAMPLES.min(entries) {
        let at = if sample == 0 { entries - 1 } else { sample * entries / SAMPLES };
        let Some(entry) = index.offset_entry(at) else { continue };
        let header = crate::segment::header_at(file.as_ref(), entry.position.into(), log_bytes)
            .map_err(|e| e.to_string())?
            .map_err(|fault| {
                format!("entry {at} of the offset index points at no batch: {fault}")
            })?;
        // An append of several batches may have one entry, for the last offset of them all (4.0).
        let offset = segment.base_offset() + i64::from(entry.relative_offset);
        if header.base_offset > offset || header.base_offset < segment.base_offset() {
            return Err(format!("entry {at} of the offset index points at another batch"));
        }
    }
    Ok(())
}

/// True if two or more entries should follow the last one. One may be missing in a sound file: the
/// distance to the next entry restarts at 0 when a log is reopened.
fn entries_are_missing(
    log: &LogShared,
    segment: &Segment,
    index: &SegmentIndex,
    log_bytes: u64,
) -> std::result::Result<bool, String> {
    let file = segment.file(&log.open_files).map_err(|e| e.to_string())?;
    let interval = u64::from(log.config.load().index_interval_bytes);
    let mut position = index.last_offset_entry().map_or(0, |e| u64::from(e.position));
    let (mut since, mut due) = (0, 0);
    while position < log_bytes && due < 2 {
        let header = crate::segment::header_at(file.as_ref(), position, log_bytes)
            .map_err(|e| e.to_string())?;
        let Ok(header) = header else { break };
        if since > interval {
            (since, due) = (0, due + 1);
        }
        since += header.total_bytes() as u64;
        position += header.total_bytes() as u64;
    }
    Ok(due >= 2)
}

fn read_file(open_files: &OpenFiles, path: &Path) -> std::io::Result<Vec<u8>> {
    let file = open_files.disk().open(path, OpenMode::Read)?;
    let len = usize::try_from(file.len()?).map_err(std::io::Error::other)?;
    let mut bytes = vec![0; len];
    let read = file.read_up_to(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn first_record_from(
    bytes: &[u8],
    offset_min: i64,
    timestamp: i64,
) -> std::result::Result<Option<(i64, i64)>, crate::format::BatchFault> {
    let decoded = Batch::check(bytes)?.decode()?;
    for record in decoded.records() {
        let record = record?;
        if record.timestamp >= timestamp && record.offset >= offset_min {
            return Ok(Some((record.offset, record.timestamp)));
        }
    }
    Ok(None)
}
