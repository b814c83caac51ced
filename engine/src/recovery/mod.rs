//! Opening a partition's directory: finish what a crash interrupted, find where the log ends.
//!
//! The steps are Kafka's (docs/FORMAT.md, "Recovery"), with one difference: a bad batch that has
//! good ones after it is damage to report, not a tail to cut.
//!
//! 1. `.deleted` and `.cleaned` files go; a finished `.swap` takes its sources' place.
//! 2. Index files without a log go.
//! 3. What the journal holds past the recovery point is written to its segments again (`redo`).
//! 4. After a clean close the indexes are believed, and checked against the log at a few places.
//!    After the process alone died they are too, as far as they go. Otherwise every segment from the
//!    recovery point on is walked, batch by batch, and its indexes are built anew.
//! 5. Below the *mark*, the greater of recovery point and journal, a bad batch is damage and
//!    nothing is cut; past it the log ends there.
//! 6. Leader epochs are cut to the log; producers are loaded (`log/rebuild.rs`).
//!
//! A read-only open does the same in memory and writes nothing.

#![forbid(unsafe_code)]

mod leftovers;

use crate::checkpoint;
use crate::config::PartitionConfig;
use crate::error::{Error, Result};
use crate::format::{BatchFault, HEADER_BYTES};
use crate::io::{Clock, Disk, FileRef, OpenMode};
use crate::journal::{Extent, ReplayedLog};
use crate::log::{
    ActiveSegment, AtomicI32Max, CleanedMark, Epochs, Log, LogShared, Offsets, SegmentList, Trust,
    Watchers, create_first, create_segment, read_index, write_index,
};
use crate::offset::Offset;
use crate::segment::{
    DamagedRange, IndexWriter, OpenFiles, Scanned, Scanner, Segment, Tail, names,
};
use crate::space::Space;
use crate::topic::TopicPartition;
use arc_swap::ArcSwap;
use leftovers::{list_segments, remove_segment};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};

/// How a directory is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// For writing, after a clean close.
    Clean,
    /// For writing, after a crash of the machine, or of who knows what.
    Crashed,
    /// For writing, after this machine's kernel went on when the process died: what was written is
    /// in the page cache, whole but for the last write.
    Killed,
    /// For reading, perhaps while another process writes: nothing on disk is believed that can be
    /// checked, nothing is changed.
    ReadOnly,
}

/// What the checkpoint files say of a partition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checkpoints {
    pub(crate) recovery_point: i64,
    pub(crate) high_watermark: i64,
    pub(crate) log_start: Option<i64>,
    /// Compacted below.
    pub(crate) cleaned: Option<i64>,
}

/// What opening a partition found and did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// Segments walked batch by batch.
    pub segments_walked: usize,
    /// Segments whose index files were missing or not sound, and why; their indexes were built anew.
    pub indexes_rebuilt: Vec<(PathBuf, String)>,
    /// A torn tail that was cut (or, read-only, left out): file, first byte, cause.
    pub torn_tail: Option<(PathBuf, u64, BatchFault)>,
    /// Damage below what was durable, or with good batches after it: reported, never cut.
    pub damaged: Vec<DamagedRange>,
    /// Bytes that were written to segments again, from the journal.
    pub replayed_bytes: u64,
}

/// Everything a partition is opened with.
pub(crate) struct Opening<'a> {
    pub(crate) name: TopicPartition,
    pub(crate) dir: PathBuf,
    pub(crate) mode: Mode,
    pub(crate) config: PartitionConfig,
    pub(crate) checkpoints: Checkpoints,
    /// What the journals hold of it.
    pub(crate) replayed: Option<&'a ReplayedLog>,
    /// This engine wrote the directory last: its segments follow each other without a gap.
    pub(crate) ours: bool,
    /// What the page cache holds past the recovery point may not be on disk, whatever a sync says.
    pub(crate) doubt: bool,
    pub(crate) open_files: Arc<OpenFiles>,
    pub(crate) space: Arc<Space>,
    pub(crate) clock: &'a Arc<dyn Clock>,
}

impl Opening<'_> {
    /// Everything below was on disk when the crash came.
    fn mark(&self) -> i64 {
        let journalled = self.replayed.and_then(ReplayedLog::next_offset).unwrap_or(0);
        self.checkpoints.recovery_point.max(journalled)
    }
}

/// A partition that is open.
pub(crate) struct Opened {
    pub(crate) shared: Arc<LogShared>,
    /// `None` when read-only.
    pub(crate) log: Option<Log>,
    pub(crate) report: RecoveryReport,
    /// The writer of the active segment's in-memory index when read-only: the view that follows the
    /// file goes on with it.
    pub(crate) follow: Option<Follow>,
}

/// How far a read-only view has followed the active segment.
pub(crate) struct Follow {
    pub(crate) segment: Arc<Segment>,
    pub(crate) index: IndexWriter,
    pub(crate) next_offset: i64,
    pub(crate) bytes: u32,
}

/// One segment as the open found it.
struct Loaded {
    segment: Arc<Segment>,
    index: Option<IndexWriter>,
    entries_on_disk: (usize, usize),
    tail: Tail,
    /// Where the log ends in it, and why.
    torn: Option<(u64, BatchFault)>,
    /// The offset after the last batch that a walk reached.
    walked_to: Option<i64>,
}

/// Opens a partition.
pub(crate) fn open_partition(opening: Opening<'_>) -> Result<Opened> {
    let disk = Arc::clone(opening.open_files.disk());
    let writable = opening.mode != Mode::ReadOnly;
    let (mut bases, mut missing) = list_segments(disk.as_ref(), &opening.dir, writable)?;
    let log_start = opening.checkpoints.log_start.unwrap_or(0);
    let now_ms = opening.clock.now_ms();
    let mut shared = empty_shared(&opening, disk.as_ref())?;
    let mut report = RecoveryReport::default();

    if matches!(opening.mode, Mode::Crashed | Mode::Killed)
        && let Some(replayed) = opening.replayed
    {
        report.replayed_bytes = redo(&opening, disk.as_ref(), replayed, &mut bases)?;
    }
    let mut loaded: Vec<Loaded> = Vec::new();
    while let Some(base) = bases.pop_first() {
        let next = Next { base: bases.first().copied(), missing: None };
        let next = next.with_missing(base, &mut missing);
        let segment = load_segment(&shared, &opening, base, next, &mut report)?;
        let ends = opening.mode == Mode::Crashed && segment.ends_log(&opening, next);
        loaded.push(segment);
        if ends {
            // Past the mark nothing was promised, and what survived behind a hole is no log.
            for base in std::mem::take(&mut bases).into_iter().rev() {
                tracing::warn!(partition = %opening.name, base, "a segment behind the log end goes");
                // Newest first, each on disk before the next: a second power cut must not bring one
                // back over what is appended now, nor leave one out between others.
                remove_segment(disk.as_ref(), &opening.dir, base)?;
                sync_dir(disk.as_ref(), &opening.dir)?;
            }
        }
    }
    if let (Some(last), true) = (loaded.last_mut(), writable) {
        cut_torn_tail(disk.as_ref(), last, &mut report)?;
    } else if let Some(last) = loaded.last() {
        report_torn(last, &mut report);
    }

    let fits = loaded.last().is_none_or(|last| last.tail.end_offset >= log_start);
    if !fits {
        // Kafka: a log that ends before its start holds nothing that may be read; begin there.
        for old in loaded.drain(..).filter(|_| writable) {
            remove_segment(disk.as_ref(), &opening.dir, old.segment.base_offset())?;
        }
        if writable {
            sync_dir(disk.as_ref(), &opening.dir)?;
        }
    }
    let goes_on_at = loaded.last().filter(|l| l.index.is_none()).map(|l| l.tail.end_offset);
    let (list, active, follow) = match loaded.pop() {
        Some(last) if goes_on_at.is_some() => {
            // The end of what was durable is lost; its offsets are not given to other records.
            let base = last.tail.end_offset;
            let active = new_active(disk.as_ref(), &opening, base, now_ms)?;
            let mut list: SegmentList = loaded.into_iter().map(|l| l.segment).collect();
            list.extend([last.segment, Arc::clone(&active.segment)]);
            (list, Some(active), None)
        }
        Some(last) => {
            let mut list: SegmentList = loaded.into_iter().map(|l| l.segment).collect();
            list.push(Arc::clone(&last.segment));
            split_last(last, list, writable, now_ms)
        }
        None if writable => {
            // Nothing is left of what was durable: its offsets are not given to other records.
            let base = log_start.max(if opening.mode == Mode::Clean { 0 } else { opening.mark() });
            let active = new_active(disk.as_ref(), &opening, base, now_ms)?;
            (vec![Arc::clone(&active.segment)], Some(active), None)
        }
        None => read_only_empty(&opening, log_start),
    };
    if matches!(opening.mode, Mode::Crashed | Mode::Killed)
        && opening.replayed.is_some_and(|replayed| replayed.has_cut)
        && let Some(last) = list.last()
    {
        // The process may have died in a truncation, whose files are cut in the page cache only.
        let file = last.file(&opening.open_files)?;
        file.sync_data().map_err(|e| Error::io("sync", last.path(), e))?;
        sync_dir(disk.as_ref(), &opening.dir)?;
    }
    let log_end = list.last().map_or(log_start, |s| s.tail().end_offset);
    let first = list.first().map_or(log_start, |s| s.base_offset());
    let log_start = log_start.max(first).min(log_end);
    // A clean close synced everything. After a crash what is past the recovery point may be in the
    // page cache only; a checkpoint is going to sync it.
    let (durable, synced) = match opening.mode {
        Mode::Clean => (log_end, log_end),
        Mode::Crashed => (opening.mark(), opening.checkpoints.recovery_point),
        Mode::Killed | Mode::ReadOnly => {
            (opening.checkpoints.recovery_point, opening.checkpoints.recovery_point)
        }
    };
    let follows = opening.config.high_watermark == crate::config::HighWatermark::FollowsLogEnd;
    let high_watermark = if follows { log_end } else { opening.checkpoints.high_watermark };
    let stored = checkpoint::read_epochs(disk.as_ref(), &opening.dir)?;
    let epochs = Epochs::new(stored, log_start, log_end);
    shared.leader_epoch = AtomicI32Max::new(epochs.latest().unwrap_or(0));
    shared.epochs = ArcSwap::from_pointee(epochs);
    shared.offsets = Offsets::new(log_start, high_watermark, log_end, durable, synced);
    shared.segments = ArcSwap::from_pointee(list);
    report.damaged = shared.damaged_ranges();
    let shared = Arc::new(shared);
    let mut log =
        active.map(|active| Log::new(Arc::clone(&shared), disk, Arc::clone(opening.clock), active));
    if let Some(log) = &mut log {
        log.load_producers(match opening.mode {
            Mode::Clean => Trust::Clean,
            Mode::Crashed => Trust::UpToSegmentOf(opening.checkpoints.recovery_point),
            Mode::Killed | Mode::ReadOnly => Trust::UpToLogEnd,
        })?;
    }
    if let (Some(log), true) = (&mut log, opening.doubt) {
        log.write_anew()?;
    }
    Ok(Opened { shared, log, report, follow })
}

fn empty_shared(opening: &Opening<'_>, disk: &dyn Disk) -> Result<LogShared> {
    Ok(LogShared {
        name: opening.name.clone(),
        dir: opening.dir.clone(),
        topic_id: checkpoint::read_topic_id(disk, &opening.dir)?,
        config: ArcSwap::from_pointee(opening.config.clone()),
        offsets: Offsets::new(0, 0, 0, 0, 0),
        segments: ArcSwap::from_pointee(Vec::new()),
        epochs: ArcSwap::from_pointee(Epochs::default()),
        open_files: Arc::clone(&opening.open_files),
        writable: opening.mode != Mode::ReadOnly,
        leader_epoch: AtomicI32Max::new(0),
        space: Arc::clone(&opening.space),
        cleaned: CleanedMark::new(opening.checkpoints.cleaned),
        indexes_rebuilt: AtomicU32::new(0),
        transactions: Mutex::default(),
        cut_from: AtomicI64::new(-1),
        cuts: AtomicU64::new(0),
        watchers: Watchers::default(),
    })
}

type Split = (SegmentList, Option<ActiveSegment>, Option<Follow>);

fn split_last(last: Loaded, list: SegmentList, writable: bool, now_ms: i64) -> Split {
    let Loaded { segment, index, entries_on_disk, tail, .. } = last;
    let Some(index) = index else { unreachable!("the active segment's index is always loaded") };
    if !writable {
        let follow = Follow { segment, index, next_offset: tail.end_offset, bytes: tail.bytes };
        return (list, None, Some(follow));
    }
    let active = ActiveSegment {
        segment,
        file: None,
        index,
        entries_on_disk,
        bytes: tail.bytes,
        first_timestamp: None,
        created_ms: now_ms,
        indexed_bytes: tail.bytes,
        written_back: tail.bytes,
        // An earlier recovery may have cut it, and died before the cut was on disk.
        cut_back: true,
    };
    (list, Some(active), None)
}

fn new_active(
    disk: &dyn Disk,
    opening: &Opening<'_>,
    base: i64,
    now_ms: i64,
) -> Result<ActiveSegment> {
    let interval = opening.config.index_interval_bytes;
    let active = create_first(disk, &opening.dir, base, interval, now_ms)?;
    sync_dir(disk, &opening.dir)?;
    Ok(active)
}

fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<()> {
    disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
}

/// A read-only look at a directory whose first segment is not there yet.
fn read_only_empty(opening: &Opening<'_>, base: i64) -> Split {
    let path = names::path(&opening.dir, base, names::LOG);
    let segment = Arc::new(Segment::new(path, base, Vec::new()));
    segment.trust_from(0);
    let (index, writer) = IndexWriter::new(base, opening.config.index_interval_bytes);
    segment.set_index(index);
    let follow =
        Follow { segment: Arc::clone(&segment), index: writer, next_offset: base, bytes: 0 };
    (vec![segment], None, Some(follow))
}

/// What comes behind a segment.
#[derive(Clone, Copy)]
struct Next {
    /// The next segment that is there; `None` for the active one.
    base: Option<i64>,
    /// One that should be there before it, and is not.
    missing: Option<i64>,
}

impl Next {
    /// Takes out the missing segments between `base` and the next.
    fn with_missing(self, base: i64, missing: &mut BTreeSet<i64>) -> Next {
        let Some(next) = self.base else { return self };
        let first = missing.range(base..next).next().copied();
        missing.retain(|m| !(base..next).contains(m));
        Next { missing: first, ..self }
    }

    /// Where this segment ends, if it is sealed.
    fn end(self) -> Option<i64> {
        self.missing.or(self.base)
    }

    fn is_active(self) -> bool {
        self.base.is_none()
    }

    /// The records of a segment that is missing.
    fn damage(self, opening: &Opening<'_>, bytes: u32) -> Option<DamagedRange> {
        let (missing, next) = (self.missing?, self.base?);
        Some(DamagedRange {
            path: names::path(&opening.dir, missing, names::LOG),
            position: bytes.into(),
            length: 0,
            offset: Offset(missing),
            next_offset: Offset(next),
            fault: BatchFault::Empty,
        })
    }
}

impl Loaded {
    /// True if what comes behind this segment cannot be part of the log.
    fn ends_log(&self, opening: &Opening<'_>, next: Next) -> bool {
        let past_mark = self.walked_to.is_some_and(|end| end >= opening.mark());
        next.end().is_some() && past_mark && self.torn.is_some()
    }
}

fn load_segment(
    shared: &LogShared,
    opening: &Opening<'_>,
    base: i64,
    next: Next,
    report: &mut RecoveryReport,
) -> Result<Loaded> {
    let disk = opening.open_files.disk();
    let path = names::path(&opening.dir, base, names::LOG);
    let len = disk.stat(&path).map_err(|e| Error::io("stat", &path, e))?.len;
    if len > u64::from(u32::MAX >> 1) {
        let reason = format!("is {len} bytes; a segment has at most 2147483647");
        return Err(Error::Format { path, reason });
    }
    let bytes = u32::try_from(len).unwrap_or(u32::MAX);
    let below_recovery_point =
        next.base.is_some_and(|next| next <= opening.checkpoints.recovery_point);
    let believed = match opening.mode {
        Mode::Clean | Mode::Killed => true,
        Mode::Crashed | Mode::ReadOnly => below_recovery_point,
    };
    if believed && next.missing.is_some() {
        // Where the loss begins shows in a walk only.
        return walk(shared, opening, base, bytes, next, None, report);
    }
    if believed && !next.is_active() {
        // Looked at on first touch: opening 46,000 segments must not read 46,000 indexes.
        let segment = Segment::new(path, base, Vec::new());
        let tail = Tail { end_offset: next.base.unwrap_or(base), bytes };
        segment.publish_tail(tail);
        let index_files_exist = [names::INDEX, names::TIME_INDEX]
            .iter()
            .all(|suffix| disk.stat(&names::path(&opening.dir, base, suffix)).is_ok());
        if index_files_exist || opening.mode == Mode::ReadOnly {
            let segment = Arc::new(segment);
            return Ok(Loaded {
                segment,
                index: None,
                entries_on_disk: (0, 0),
                tail,
                torn: None,
                walked_to: None,
            });
        }
        let why = Some("an index file is missing");
        return walk(shared, opening, base, bytes, next, why, report);
    }
    if believed || (opening.mode == Mode::ReadOnly && next.is_active()) {
        let probe = Segment::new(path, base, Vec::new());
        match read_index(shared, &probe, len) {
            Ok((index, writer)) => {
                let loaded = walk_tail(shared, opening, base, bytes, index, writer)?;
                if let Some(loaded) = loaded {
                    return Ok(loaded);
                }
                return walk(shared, opening, base, bytes, next, None, report);
            }
            Err(reason) if opening.mode == Mode::Clean => {
                return walk(shared, opening, base, bytes, next, Some(&reason), report);
            }
            // A live writer's index files lag behind: no fault.
            Err(_) => {}
        }
    }
    walk(shared, opening, base, bytes, next, None, report)
}

/// Finds the end of an active segment whose index can be used: from its last entry on. `None` if
/// what follows is not whole batches up to the end of the file.
fn walk_tail(
    shared: &LogShared,
    opening: &Opening<'_>,
    base: i64,
    bytes: u32,
    index: crate::segment::SegmentIndex,
    mut writer: IndexWriter,
) -> Result<Option<Loaded>> {
    let path = names::path(&opening.dir, base, names::LOG);
    let segment = Segment::new(path, base, Vec::new());
    let file = segment.file(&shared.open_files)?;
    let from = index.last_offset_entry().map_or(0, |e| u64::from(e.position));
    let mut scanner = Scanner::new(file, base, from, base, bytes.into());
    // The files of a killed process end before the log does; the index goes on from there.
    let goes_on = opening.mode == Mode::Killed;
    let entries_on_disk = (index.offset_entries(), index.time_entries());
    let mut max_timestamp = writer.max_timestamp();
    loop {
        match scanner.step().map_err(|e| Error::io("read", segment.path(), e))? {
            Scanned::Batch { position, batch } => {
                max_timestamp = max_timestamp.max(batch.header().max_timestamp);
                if goes_on {
                    writer.on_batch(batch.header(), u32::try_from(position).unwrap_or(u32::MAX));
                }
            }
            Scanned::End => break,
            Scanned::Damage { .. } | Scanned::TornTail { .. } => return Ok(None),
        }
    }
    if max_timestamp > writer.max_timestamp() {
        // A time index without its final entry: not from a clean close of this log.
        return Ok(None);
    }
    segment.trust_from(u32::try_from(from).unwrap_or(u32::MAX));
    segment.set_max_timestamp(max_timestamp);
    segment.set_index(index);
    let tail = Tail { end_offset: scanner.next_offset(), bytes };
    segment.publish_tail(tail);
    let segment = Arc::new(segment);
    let index = Some(writer);
    Ok(Some(Loaded { segment, index, entries_on_disk, tail, torn: None, walked_to: None }))
}

/// Walks a segment batch by batch and builds its indexes anew; on disk too, unless read-only.
fn walk(
    shared: &LogShared,
    opening: &Opening<'_>,
    base: i64,
    bytes: u32,
    next: Next,
    why: Option<&str>,
    report: &mut RecoveryReport,
) -> Result<Loaded> {
    let path = names::path(&opening.dir, base, names::LOG);
    let file = Segment::new(path.clone(), base, Vec::new()).file(&shared.open_files)?;
    let (index, mut writer) = IndexWriter::new(base, opening.config.index_interval_bytes);
    let mut scanner = Scanner::new(file, base, 0, base, bytes.into());
    let mut damaged = Vec::new();
    let mut open_damage: Option<(u64, u64, i64, BatchFault)> = None;
    let mut torn = None;
    let mark = opening.mark();
    let mut walked_to = base;
    let mut stale = None;
    loop {
        let before = scanner.next_offset();
        match scanner.step().map_err(|e| Error::io("read", &path, e))? {
            // A write that failed and was cut back; the log went on in the next segment, but the cut
            // did not reach the disk.
            Scanned::Batch { position, batch }
                if next.base.is_some_and(|next| batch.header().base_offset >= next) =>
            {
                stale = Some(u32::try_from(position).unwrap_or(u32::MAX));
                break;
            }
            Scanned::Batch { position, batch } => {
                let position = u32::try_from(position).unwrap_or(u32::MAX);
                writer.on_batch(batch.header(), position);
                walked_to = batch.header().next_offset();
                if let Some((from, end, offset, fault)) = open_damage.take() {
                    damaged.push(DamagedRange {
                        path: path.clone(),
                        position: from,
                        length: end - from,
                        offset: Offset(offset),
                        next_offset: Offset(batch.header().base_offset),
                        fault,
                    });
                }
            }
            // A power cut loses pages in any order: past the mark the first hole is the end.
            Scanned::Damage { position, fault, .. }
                if opening.mode == Mode::Crashed && before >= mark =>
            {
                torn = Some((position, fault));
                break;
            }
            Scanned::Damage { position, end, fault } => {
                open_damage = Some((position, end, before, fault));
            }
            Scanned::TornTail { position, fault } => {
                let past_mark = before >= mark || opening.mode != Mode::Crashed;
                let goes_on_at = match next.base {
                    // The log goes on in the next segment, so this is damage, not a tail.
                    Some(next) if opening.mode != Mode::Crashed || !past_mark => Some(next),
                    None if !past_mark => Some(mark),
                    _ => None,
                };
                match goes_on_at {
                    Some(next) => damaged.push(DamagedRange {
                        path: path.clone(),
                        position,
                        length: u64::from(bytes) - position,
                        offset: Offset(before),
                        next_offset: Offset(next),
                        fault,
                    }),
                    None => torn = Some((position, fault)),
                }
                break;
            }
            Scanned::End => break,
        }
    }
    let hole_behind = opening.ours && next.end().is_some_and(|next| walked_to < next);
    if opening.mode == Mode::Crashed && torn.is_none() && hole_behind && walked_to >= mark {
        // Its end is lost, down to a batch's edge: the segments behind it continue nothing.
        let fault = BatchFault::Truncated { needed: HEADER_BYTES, have: 0 };
        torn = Some((bytes.into(), fault));
    }
    writer.seal();
    report.segments_walked += 1;
    if let Some(why) = why {
        tracing::warn!(partition = %opening.name, segment = %path.display(), why, "index rebuilt");
        report.indexes_rebuilt.push((path.clone(), why.to_owned()));
    }
    let mut entries_on_disk = (0, 0);
    if opening.mode != Mode::ReadOnly {
        let disk = opening.open_files.disk().as_ref();
        for (suffix, content) in
            [(names::INDEX, index.offset_file(0)), (names::TIME_INDEX, index.time_file(0))]
        {
            let path = names::path(&opening.dir, base, suffix);
            let file = write_index(disk, &path, &content, 0)?;
            if !next.is_active() {
                // Nobody writes it again.
                file.sync_data().map_err(|e| Error::io("sync", &path, e))?;
            }
        }
        entries_on_disk = (index.offset_entries(), index.time_entries());
    }
    let whole = torn.as_ref().map_or(bytes, |(at, _)| u32::try_from(*at).unwrap_or(bytes));
    let whole = stale.unwrap_or(whole);
    if stale.is_some() && opening.mode != Mode::ReadOnly {
        cut(opening.open_files.disk().as_ref(), &path, whole.into())?;
    }
    let mut end_offset = match (&torn, next.end()) {
        (None, Some(next)) => next,
        _ => scanner.next_offset(),
    };
    // The file ends before what was durable: the rest of it is lost.
    let lost_to = (opening.mode == Mode::Crashed && next.is_active())
        .then_some(mark)
        .filter(|mark| *mark > walked_to && torn.is_none());
    if let Some(mark) = lost_to {
        leave_trace(opening, walked_to)?;
        if damaged.last().is_none_or(|d| d.next_offset.0 < mark) {
            damaged.push(DamagedRange {
                path: path.clone(),
                position: whole.into(),
                length: 0,
                offset: Offset(walked_to),
                next_offset: Offset(mark),
                fault: BatchFault::Empty,
            });
        }
        end_offset = mark;
    }
    let to_end = |d: &DamagedRange| d.position + d.length >= whole.into();
    if !damaged.last().is_some_and(to_end) {
        damaged.extend(next.damage(opening, whole));
    }
    let segment = Segment::new(path, base, damaged);
    segment.trust_from(0);
    segment.set_max_timestamp(writer.max_timestamp());
    segment.set_index(index);
    let tail = Tail { end_offset, bytes: whole };
    segment.publish_tail(tail);
    let segment = Arc::new(segment);
    // Without a writer the segment is not appended to: another takes its place.
    let index = lost_to.is_none().then_some(writer);
    Ok(Loaded { segment, index, entries_on_disk, tail, torn, walked_to: Some(walked_to) })
}

/// The files alone do not tell a loss from the gaps that compaction leaves: a later open must know.
fn leave_trace(opening: &Opening<'_>, from: i64) -> Result<()> {
    let path = names::path(&opening.dir, from, names::LOST);
    let disk = opening.open_files.disk();
    let file =
        disk.open(&path, OpenMode::CreateOrTruncate).map_err(|e| Error::io("create", &path, e))?;
    file.sync_data().map_err(|e| Error::io("sync", &path, e))
}

/// Writes again what the journal has and a segment lost. Gives how many bytes that were. Whatever
/// stands there instead goes, also whole batches: a power cut may bring back what a failed append, or
/// one that was truncated, had left.
fn redo(
    opening: &Opening<'_>,
    disk: &dyn Disk,
    replayed: &ReplayedLog,
    bases: &mut BTreeSet<i64>,
) -> Result<u64> {
    let mut written = 0;
    let (mut wanted, mut found) = (Vec::new(), Vec::new());
    let mut open: Option<(i64, FileRef)> = None;
    let first = bases.first().copied();
    let to_do = |e: &&Extent| e.next_offset > opening.checkpoints.recovery_point;
    for extent in replayed.extents.iter().filter(to_do) {
        let base = extent.segment_base;
        let path = names::path(&opening.dir, base, names::LOG);
        if !bases.contains(&base) {
            // A segment below those that are there was deleted, and so was one whose beginning is
            // not here: a name is on disk before the first byte. One past them all was lost.
            let below = first.is_some_and(|first| base < first)
                || bases.last().is_some_and(|last| base < *last);
            if below || extent.position > 0 {
                continue;
            }
            create_segment(disk, &opening.dir, base)?;
            bases.insert(base);
        }
        if open.as_ref().is_none_or(|(of, _)| *of != base) {
            let file = disk
                .open(&path, OpenMode::ReadWrite)
                .map_err(|e| Error::io("open for writing", &path, e))?;
            open = Some((base, file));
        }
        let Some((_, file)) = &open else { continue };
        extent.read(&mut wanted).map_err(|e| Error::io("read", "the journal", e))?;
        found.resize(wanted.len(), 0);
        let have = file
            .read_up_to(&mut found, extent.position.into())
            .map_err(|e| Error::io("read", &path, e))?;
        let found = found.get(..have).unwrap_or_default();
        if found == wanted.as_slice() {
            continue;
        }
        file.write_all_at(&wanted, extent.position.into())
            .map_err(|e| Error::io("write", &path, e))?;
        written += wanted.len() as u64;
    }
    Ok(written)
}

/// Cuts what an interrupted write left behind the last whole batch.
fn cut_torn_tail(disk: &dyn Disk, last: &mut Loaded, report: &mut RecoveryReport) -> Result<()> {
    report_torn(last, report);
    let Some((position, _)) = last.torn.take() else { return Ok(()) };
    cut(disk, last.segment.path(), position)
}

fn cut(disk: &dyn Disk, path: &Path, length: u64) -> Result<()> {
    let file = disk.open(path, OpenMode::ReadWrite).map_err(|e| Error::io("open", path, e))?;
    file.set_len(length).map_err(|e| Error::io("cut", path, e))?;
    file.sync_data().map_err(|e| Error::io("sync", path, e))
}

fn report_torn(last: &Loaded, report: &mut RecoveryReport) {
    let Some((position, fault)) = &last.torn else { return };
    let path = last.segment.path().to_owned();
    tracing::warn!(segment = %path.display(), position, %fault, "torn tail left out");
    report.torn_tail = Some((path, *position, fault.clone()));
}
