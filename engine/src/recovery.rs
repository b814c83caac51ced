//! Opening a partition's directory: finish what a crash interrupted, find where the log ends.
//!
//! The steps are Kafka's (docs/FORMAT.md, "Recovery"), with one difference: a bad batch that has
//! good ones after it is damage to report, not a tail to cut.
//!
//! 1. `.deleted` and `.cleaned` files go; a finished `.swap` takes its sources' place.
//! 2. Index files without a log go.
//! 3. After a clean close the indexes are believed, and checked against the log at a few places;
//!    otherwise every segment from the recovery point on is walked, batch by batch, and its indexes
//!    are built anew.
//! 4. Leader epochs are cut to the log.
//!
//! A read-only open does the same in memory and writes nothing.

#![forbid(unsafe_code)]

use crate::checkpoint;
use crate::config::PartitionConfig;
use crate::error::{Error, Result};
use crate::format::BatchFault;
use crate::io::{Clock, Disk, EntryKind, OpenMode};
use crate::log::{
    ActiveSegment, AtomicI32Max, Epochs, Log, LogShared, Offsets, SegmentList, create_first,
    read_index, write_index,
};
use crate::offset::Offset;
use crate::segment::{
    DamagedRange, IndexWriter, OpenFiles, Scanned, Scanner, Segment, Tail, names,
};
use crate::topic::TopicPartition;
use arc_swap::ArcSwap;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// How a directory is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// For writing, after a clean close.
    Clean,
    /// For writing, after a crash.
    Crashed,
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
    /// Damage with good batches after it: reported, never cut.
    pub damaged: Vec<DamagedRange>,
}

/// Everything a partition is opened with.
pub(crate) struct Opening<'a> {
    pub(crate) name: TopicPartition,
    pub(crate) dir: PathBuf,
    pub(crate) mode: Mode,
    pub(crate) config: PartitionConfig,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) open_files: Arc<OpenFiles>,
    pub(crate) clock: &'a Arc<dyn Clock>,
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
    torn: Option<(u64, BatchFault)>,
}

/// Opens a partition.
pub(crate) fn open_partition(opening: Opening<'_>) -> Result<Opened> {
    let disk = Arc::clone(opening.open_files.disk());
    let writable = opening.mode != Mode::ReadOnly;
    let mut bases = list_segments(disk.as_ref(), &opening.dir, writable)?;
    let log_start = opening.checkpoints.log_start.unwrap_or(0);
    let now_ms = opening.clock.now_ms();
    let mut shared = empty_shared(&opening, disk.as_ref())?;
    let mut report = RecoveryReport::default();

    let mut loaded: Vec<Loaded> = Vec::new();
    while let Some(base) = bases.pop_first() {
        let is_active = bases.is_empty();
        let next_base = bases.first().copied();
        let segment = load_segment(&shared, &opening, base, next_base, is_active, &mut report)?;
        loaded.push(segment);
    }
    if let (Some(last), true) = (loaded.last_mut(), writable) {
        cut_torn_tail(disk.as_ref(), last, &mut report)?;
    } else if let Some(last) = loaded.last() {
        report_torn(last, &mut report);
    }
    if opening.mode == Mode::Crashed {
        sync_walked(disk.as_ref(), &opening, &loaded)?;
    }

    let fits = loaded.last().is_none_or(|last| last.tail.end_offset >= log_start);
    if !fits {
        // Kafka: a log that ends before its start holds nothing that may be read; begin there.
        for old in loaded.drain(..).filter(|_| writable) {
            remove_segment(disk.as_ref(), &opening.dir, old.segment.base_offset())?;
        }
    }
    let (list, active, follow) = match loaded.pop() {
        Some(last) => {
            let mut list: SegmentList = loaded.into_iter().map(|l| l.segment).collect();
            list.push(Arc::clone(&last.segment));
            split_last(last, list, writable, now_ms)
        }
        None if writable => {
            let interval = opening.config.index_interval_bytes;
            let active = create_first(disk.as_ref(), &opening.dir, log_start, interval, now_ms)?;
            disk.sync_dir(&opening.dir).map_err(|e| Error::io("sync", &opening.dir, e))?;
            (vec![Arc::clone(&active.segment)], Some(active), None)
        }
        None => read_only_empty(&opening, log_start),
    };
    let log_end = list.last().map_or(log_start, |s| s.tail().end_offset);
    let first = list.first().map_or(log_start, |s| s.base_offset());
    let log_start = log_start.max(first).min(log_end);
    // A clean close synced everything; after a crash every segment that was walked was synced.
    let durable = match writable {
        true => log_end,
        false => opening.checkpoints.recovery_point.min(log_end),
    };
    let follows = opening.config.high_watermark == crate::config::HighWatermark::FollowsLogEnd;
    let high_watermark = if follows { log_end } else { opening.checkpoints.high_watermark };
    let stored = checkpoint::read_epochs(disk.as_ref(), &opening.dir)?;
    let epochs = Epochs::new(stored, log_start, log_end);
    shared.leader_epoch = AtomicI32Max::new(epochs.latest().unwrap_or(0));
    shared.epochs = ArcSwap::from_pointee(epochs);
    shared.offsets = Offsets::new(log_start, high_watermark, log_end, durable);
    shared.segments = ArcSwap::from_pointee(list);
    report.damaged = shared.damaged_ranges();
    let shared = Arc::new(shared);
    let log =
        active.map(|active| Log::new(Arc::clone(&shared), disk, Arc::clone(opening.clock), active));
    Ok(Opened { shared, log, report, follow })
}

fn empty_shared(opening: &Opening<'_>, disk: &dyn Disk) -> Result<LogShared> {
    Ok(LogShared {
        name: opening.name.clone(),
        dir: opening.dir.clone(),
        topic_id: checkpoint::read_topic_id(disk, &opening.dir)?,
        config: opening.config.clone(),
        offsets: Offsets::new(0, 0, 0, 0),
        segments: ArcSwap::from_pointee(Vec::new()),
        epochs: ArcSwap::from_pointee(Epochs::default()),
        open_files: Arc::clone(&opening.open_files),
        writable: opening.mode != Mode::ReadOnly,
        leader_epoch: AtomicI32Max::new(0),
        indexes_rebuilt: AtomicU32::new(0),
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
    };
    (list, Some(active), None)
}

/// A read-only look at a directory whose first segment is not there yet.
fn read_only_empty(opening: &Opening<'_>, base: i64) -> Split {
    let path = names::path(&opening.dir, base, names::LOG);
    let segment = Arc::new(Segment::new(path, base, Vec::new()));
    let (index, writer) = IndexWriter::new(base, opening.config.index_interval_bytes);
    segment.set_index(index);
    let follow =
        Follow { segment: Arc::clone(&segment), index: writer, next_offset: base, bytes: 0 };
    (vec![segment], None, Some(follow))
}

fn load_segment(
    shared: &LogShared,
    opening: &Opening<'_>,
    base: i64,
    next_base: Option<i64>,
    is_active: bool,
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
    let sealed_end = next_base.unwrap_or(base);
    let below_recovery_point =
        next_base.is_some_and(|next| next <= opening.checkpoints.recovery_point);
    let believed = match opening.mode {
        Mode::Clean => true,
        Mode::Crashed | Mode::ReadOnly => below_recovery_point,
    };
    if believed && !is_active {
        // Looked at on first touch: opening 46,000 segments must not read 46,000 indexes.
        let segment = Segment::new(path, base, Vec::new());
        let tail = Tail { end_offset: sealed_end, bytes };
        segment.publish_tail(tail);
        let index_files_exist = [names::INDEX, names::TIME_INDEX]
            .iter()
            .all(|suffix| disk.stat(&names::path(&opening.dir, base, suffix)).is_ok());
        if index_files_exist || opening.mode == Mode::ReadOnly {
            let segment = Arc::new(segment);
            return Ok(Loaded { segment, index: None, entries_on_disk: (0, 0), tail, torn: None });
        }
        return walk(
            shared,
            opening,
            base,
            bytes,
            next_base,
            Some("an index file is missing"),
            report,
        );
    }
    if believed || (opening.mode == Mode::ReadOnly && is_active) {
        let probe = Segment::new(path, base, Vec::new());
        match read_index(shared, &probe, len) {
            Ok((index, writer)) => {
                let loaded = walk_tail(shared, opening, base, bytes, index, writer)?;
                if let Some(loaded) = loaded {
                    return Ok(loaded);
                }
                return walk(shared, opening, base, bytes, next_base, None, report);
            }
            Err(reason) if opening.mode == Mode::Clean => {
                return walk(shared, opening, base, bytes, next_base, Some(&reason), report);
            }
            // A live writer's index files lag behind: no fault.
            Err(_) => {}
        }
    }
    walk(shared, opening, base, bytes, next_base, None, report)
}

/// Finds the end of an active segment whose index can be used: from its last entry on. `None` if
/// what follows is not whole batches up to the end of the file.
fn walk_tail(
    shared: &LogShared,
    opening: &Opening<'_>,
    base: i64,
    bytes: u32,
    index: crate::segment::SegmentIndex,
    writer: IndexWriter,
) -> Result<Option<Loaded>> {
    let path = names::path(&opening.dir, base, names::LOG);
    let segment = Segment::new(path, base, Vec::new());
    let file = segment.file(&shared.open_files)?;
    let from = index.last_offset_entry().map_or(0, |e| u64::from(e.position));
    let mut scanner = Scanner::new(file, base, from, base, bytes.into());
    let mut max_timestamp = writer.max_timestamp();
    loop {
        match scanner.step().map_err(|e| Error::io("read", segment.path(), e))? {
            Scanned::Batch { batch, .. } => {
                max_timestamp = max_timestamp.max(batch.header().max_timestamp);
            }
            Scanned::End => break,
            Scanned::Damage { .. } | Scanned::TornTail { .. } => return Ok(None),
        }
    }
    if max_timestamp > writer.max_timestamp() {
        // A time index without its final entry: not from a clean close of this log.
        return Ok(None);
    }
    let entries_on_disk = (index.offset_entries(), index.time_entries());
    segment.set_max_timestamp(max_timestamp);
    segment.set_index(index);
    let tail = Tail { end_offset: scanner.next_offset(), bytes };
    segment.publish_tail(tail);
    let segment = Arc::new(segment);
    Ok(Some(Loaded { segment, index: Some(writer), entries_on_disk, tail, torn: None }))
}

/// Walks a segment batch by batch and builds its indexes anew; on disk too, unless read-only.
fn walk(
    shared: &LogShared,
    opening: &Opening<'_>,
    base: i64,
    bytes: u32,
    next_base: Option<i64>,
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
    loop {
        let before = scanner.next_offset();
        match scanner.step().map_err(|e| Error::io("read", &path, e))? {
            Scanned::Batch { position, batch } => {
                let position = u32::try_from(position).unwrap_or(u32::MAX);
                writer.on_batch(batch.header(), position);
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
            Scanned::Damage { position, end, fault } => {
                open_damage = Some((position, end, before, fault));
            }
            Scanned::TornTail { position, fault } => {
                match next_base {
                    // The log goes on in the next segment, so this is damage, not a tail.
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
            let file = names::path(&opening.dir, base, suffix);
            write_index(disk, &file, &content, 0)?
                .sync_data()
                .map_err(|e| Error::io("sync", &file, e))?;
        }
        entries_on_disk = (index.offset_entries(), index.time_entries());
    }
    let whole = torn.as_ref().map_or(bytes, |(at, _)| u32::try_from(*at).unwrap_or(bytes));
    let segment = Segment::new(path, base, damaged);
    segment.set_max_timestamp(writer.max_timestamp());
    segment.set_index(index);
    let end_offset = next_base.unwrap_or(scanner.next_offset());
    let tail = Tail { end_offset, bytes: whole };
    segment.publish_tail(tail);
    let segment = Arc::new(segment);
    Ok(Loaded { segment, index: Some(writer), entries_on_disk, tail, torn })
}

/// Cuts what an interrupted write left behind the last whole batch.
fn cut_torn_tail(disk: &dyn Disk, last: &mut Loaded, report: &mut RecoveryReport) -> Result<()> {
    report_torn(last, report);
    let Some((position, _)) = last.torn.take() else { return Ok(()) };
    let path = last.segment.path();
    let file = disk.open(path, OpenMode::ReadWrite).map_err(|e| Error::io("open", path, e))?;
    file.set_len(position).map_err(|e| Error::io("cut", path, e))?;
    file.sync_data().map_err(|e| Error::io("sync", path, e))
}

/// What a killed process wrote may be in the page cache only; once it is read as part of the log it
/// must not vanish in a power cut that comes before the next flush.
fn sync_walked(disk: &dyn Disk, opening: &Opening<'_>, loaded: &[Loaded]) -> Result<()> {
    for walked in loaded.iter().filter(|l| l.index.is_some()) {
        let path = walked.segment.path();
        let file = walked.segment.file(&opening.open_files)?;
        file.sync_data().map_err(|e| Error::io("sync", path, e))?;
    }
    disk.sync_dir(&opening.dir).map_err(|e| Error::io("sync", &opening.dir, e))
}

fn report_torn(last: &Loaded, report: &mut RecoveryReport) {
    let Some((position, fault)) = &last.torn else { return };
    let path = last.segment.path().to_owned();
    tracing::warn!(segment = %path.display(), position, %fault, "torn tail left out");
    report.torn_tail = Some((path, *position, fault.clone()));
}

/// Base offsets of the segments, after finishing what a crash interrupted.
fn list_segments(disk: &dyn Disk, dir: &Path, writable: bool) -> Result<BTreeSet<i64>> {
    let entries = disk.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let mut names_here: BTreeSet<String> = entries
        .into_iter()
        .filter(|entry| entry.kind == EntryKind::File)
        .map(|entry| entry.name)
        .collect();
    if writable {
        finish_renames(disk, dir, &mut names_here)?;
    }
    let bases: BTreeSet<i64> =
        names_here.iter().filter_map(|name| names::base_offset(name, names::LOG)).collect();
    if writable {
        for name in &names_here {
            let orphan = [names::INDEX, names::TIME_INDEX, names::TXN_INDEX]
                .iter()
                .filter_map(|suffix| names::base_offset(name, suffix))
                .any(|base| !bases.contains(&base));
            if orphan {
                remove(disk, &dir.join(name))?;
            }
        }
    }
    Ok(bases)
}

/// Deletions and clean-ups that were under way: Kafka's `LogLoader.load`, steps 1 and 2.
fn finish_renames(disk: &dyn Disk, dir: &Path, names_here: &mut BTreeSet<String>) -> Result<()> {
    let with = |names_here: &BTreeSet<String>, suffix: &str| -> Vec<String> {
        names_here.iter().filter(|n| n.ends_with(suffix)).cloned().collect()
    };
    for name in with(names_here, names::DELETED) {
        remove(disk, &dir.join(&name))?;
        names_here.remove(&name);
    }
    let swap_base = |name: &str| {
        let log = name.strip_suffix(names::SWAP)?;
        names::base_offset(log, names::LOG)
    };
    let cleaned: Vec<i64> = with(names_here, names::CLEANED)
        .iter()
        .filter_map(|n| names::base_offset(n.strip_suffix(names::CLEANED)?, names::LOG))
        .collect();
    for name in with(names_here, names::CLEANED) {
        remove(disk, &dir.join(&name))?;
        names_here.remove(&name);
    }
    if let Some(smallest) = cleaned.iter().min() {
        // An unfinished split: its sources are still whole.
        for name in with(names_here, names::SWAP) {
            let digits = name.get(..20).and_then(|d| d.parse::<i64>().ok());
            if digits.is_some_and(|base| base >= *smallest) {
                remove(disk, &dir.join(&name))?;
                names_here.remove(&name);
            }
        }
    }
    let swaps = with(names_here, names::SWAP);
    if let Some(min) = swaps.iter().filter_map(|n| swap_base(n)).min() {
        let max = swap_end(disk, dir, &swaps)?;
        let replaced: Vec<String> = names_here
            .iter()
            .filter(|name| {
                let base = [names::LOG, names::INDEX, names::TIME_INDEX, names::TXN_INDEX]
                    .iter()
                    .find_map(|suffix| names::base_offset(name, suffix));
                base.is_some_and(|base| (min..max).contains(&base))
            })
            .cloned()
            .collect();
        for name in replaced {
            remove(disk, &dir.join(&name))?;
            names_here.remove(&name);
        }
    }
    for name in swaps {
        let Some(plain) = name.strip_suffix(names::SWAP) else { continue };
        disk.rename(&dir.join(&name), &dir.join(plain))
            .map_err(|e| Error::io("rename", dir.join(&name), e))?;
        names_here.remove(&name);
        names_here.insert(plain.to_owned());
    }
    Ok(())
}

/// One past the last offset in any swapped-in log.
fn swap_end(disk: &dyn Disk, dir: &Path, swaps: &[String]) -> Result<i64> {
    let mut end = 0;
    for name in swaps {
        let log = name.strip_suffix(names::SWAP).unwrap_or_default();
        let Some(base) = names::base_offset(log, names::LOG) else { continue };
        let path = dir.join(name);
        let file = disk.open(&path, OpenMode::Read).map_err(|e| Error::io("open", &path, e))?;
        let len = file.len().map_err(|e| Error::io("stat", &path, e))?;
        let mut scanner = Scanner::new(file, base, 0, base, len);
        let read = |e| Error::io("read", &path, e);
        while let Scanned::Batch { .. } | Scanned::Damage { .. } = scanner.step().map_err(read)? {}
        end = end.max(scanner.next_offset());
    }
    Ok(end)
}

fn remove_segment(disk: &dyn Disk, dir: &Path, base: i64) -> Result<()> {
    for suffix in names::SEGMENT_SUFFIXES {
        remove(disk, &names::path(dir, base, suffix))?;
    }
    Ok(())
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<()> {
    match disk.remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
