//! Producers from files: the newest snapshot that can be believed, and the log behind it.
//!
//! 1. Snapshots that are out of range, or at no segment's base and older than another, go.
//! 2. The newest one is loaded; one that is not whole goes, and the next older is tried.
//! 3. The log behind it is walked, header by header; markers are read. Aborted transactions found so
//!    replace what `.txnindex` files say of that stretch.
//! 4. Where the last two segments begin, and at the end of a long walk, snapshots are taken.
//!
//! The rules are Kafka's (`ProducerStateManager.removeStraySnapshots`, `truncateAndReload`,
//! `UnifiedLog.rebuildProducerState`). After a power cut Kafka believes any snapshot whose CRC holds;
//! here only one below the recovery point is, at or before the base of the segment that holds it. What
//! is past it may be of another history: a snapshot can reach the disk though the records it counts
//! did not.

#![forbid(unsafe_code)]

use super::producers::{read_aborted, remove_snapshot, write_snapshot};
use super::{LogShared, SegmentList};
use crate::error::{Error, Result};
use crate::format::{BatchHeader, HEADER_BYTES};
use crate::io::{Disk, EntryKind, FileRef, OpenMode};
use crate::planted::{Bug, planted};
use crate::producers::{
    AbortedEntries, AbortedTransaction, AbortedWriter, EndMarker, Event, MarkerCheck, Producers,
    TransactionOutcome, Transactions, decode_snapshot, encode_aborted,
};
use crate::segment::{Segment, names};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Bytes read at a time: some headers of small batches, not much of a large one.
const READ_BYTES: usize = 8 << 10;
/// No marker is larger.
const MARKER_BYTES_MAX: usize = 64 << 10;
/// A walk over this much of the log is worth a snapshot at its end.
const WORTH_BYTES: u64 = 1 << 20;
/// Largest `.snapshot` or `.txnindex` file that is read: millions of entries.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Which snapshots a load believes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trust {
    /// After a clean close; without any snapshot there are no producers.
    Clean,
    /// All up to the log end: the page cache has kept them in step with the log.
    UpToLogEnd,
    /// Those up to the base of the segment that holds this recovery point: the machine died.
    UpToSegmentOf(i64),
}

/// How the producers of a log are made.
pub(super) struct Rebuild<'a> {
    pub(super) shared: &'a LogShared,
    pub(super) disk: &'a dyn Disk,
    pub(super) trust: Trust,
    pub(super) now_ms: i64,
}

/// What came of it.
pub(super) struct Rebuilt {
    pub(super) producers: Producers,
    pub(super) active_aborted: Option<AbortedWriter>,
    pub(super) active_aborted_on_disk: usize,
    pub(super) newest_snapshot: i64,
    pub(super) stray: Option<i64>,
    pub(super) newest_is_unsynced: bool,
    /// Files to be synced, with an offset of their segments.
    pub(super) written: Vec<(i64, FileRef)>,
}

/// The files of a directory that are about producers.
struct Files {
    snapshots: BTreeSet<i64>,
    aborted: BTreeSet<i64>,
}

impl Rebuild<'_> {
    pub(super) fn run(&self) -> Result<Rebuilt> {
        let offsets = self.shared.offsets.snapshot();
        let segments = self.shared.segments.load_full();
        let mut files = self.list()?;
        self.remove_strays(&mut files.snapshots, &segments);
        let nothing_is_there = files.snapshots.is_empty();
        let mut rebuilt = Rebuilt {
            producers: Producers::default(),
            active_aborted: None,
            active_aborted_on_disk: 0,
            newest_snapshot: offsets.log_start,
            stray: None,
            newest_is_unsynced: false,
            written: Vec::new(),
        };
        let last_bases: Vec<i64> = segments.iter().rev().take(2).map(|s| s.base_offset()).collect();
        let mut from = offsets.log_start;
        if self.trust == Trust::Clean && nothing_is_there {
            // Kafka takes it for a log from before there were snapshots, and so that no later start
            // reads it all, writes empty ones.
            for at in last_bases.iter().rev().copied().chain([offsets.log_end]) {
                self.take_snapshot(at, &mut rebuilt, &segments);
            }
            from = offsets.log_end;
        } else {
            self.remove_out_of_range(&mut files.snapshots, &segments);
            if let Some((at, producers)) = self.load_newest(&mut files.snapshots, &segments)? {
                rebuilt.producers = producers;
                rebuilt.newest_snapshot = at;
                rebuilt.newest_is_unsynced = self.trust != Trust::Clean;
                rebuilt.stray = Some(at).filter(|at| !is_base(&segments, *at));
                from = at;
            }
        }
        let mut replay = Replay::new(self.shared, std::mem::take(&mut rebuilt.producers));
        for segment in segments.iter().filter(|s| s.tail().end_offset > from) {
            let base = segment.base_offset();
            if base > from && last_bases.contains(&base) {
                std::mem::swap(&mut rebuilt.producers, &mut replay.producers);
                self.take_snapshot(base, &mut rebuilt, &segments);
                std::mem::swap(&mut rebuilt.producers, &mut replay.producers);
            }
            replay.segment(segment, base.max(from))?;
        }
        self.settle_aborted(&segments, &files, from, &mut replay.aborted, &mut rebuilt)?;
        rebuilt.producers = replay.producers;
        if replay.bytes >= WORTH_BYTES {
            self.take_snapshot(offsets.log_end, &mut rebuilt, &segments);
        }
        let mut transactions = self.shared.transactions();
        *transactions = replay.transactions;
        self.shared.offsets.set_first_unstable(transactions.first_unstable());
        Ok(rebuilt)
    }

    fn list(&self) -> Result<Files> {
        let dir = &self.shared.dir;
        let mut files = Files { snapshots: BTreeSet::new(), aborted: BTreeSet::new() };
        for entry in self.disk.list(dir).map_err(|e| Error::io("list", dir, e))? {
            if entry.kind == EntryKind::File {
                files.snapshots.extend(names::base_offset(&entry.name, names::SNAPSHOT));
                files.aborted.extend(names::base_offset(&entry.name, names::TXN_INDEX));
            }
        }
        Ok(files)
    }

    /// Snapshots at no segment's base go, but for the newest of them if no segment begins past it:
    /// that is the one of the last close.
    fn remove_strays(&self, snapshots: &mut BTreeSet<i64>, segments: &SegmentList) {
        let last_base = segments.last().map_or(0, |s| s.base_offset());
        let newest = snapshots.iter().rev().find(|at| !is_base(segments, **at)).copied();
        let keep = newest.filter(|at| *at > last_base);
        snapshots.retain(|at| {
            let stays = is_base(segments, *at) || Some(*at) == keep;
            if !stays {
                remove_snapshot(self.disk, &self.shared.dir, *at);
            }
            stays
        });
    }

    fn remove_out_of_range(&self, snapshots: &mut BTreeSet<i64>, segments: &SegmentList) {
        let offsets = self.shared.offsets.snapshot();
        let mut trusted_to = match self.trust {
            Trust::UpToSegmentOf(recovery_point) if !planted(Bug::SnapshotPastSynced) => {
                let base = segments.iter().rev().map(|s| s.base_offset());
                base.into_iter().find(|base| *base <= recovery_point).unwrap_or(offsets.log_start)
            }
            _ => offsets.log_end,
        };
        if planted(Bug::SnapshotPastLogEnd) {
            trusted_to = i64::MAX;
        }
        snapshots.retain(|at| {
            let stays = *at > offsets.log_start && *at <= trusted_to;
            if !stays {
                remove_snapshot(self.disk, &self.shared.dir, *at);
            }
            stays
        });
    }

    fn load_newest(
        &self,
        snapshots: &mut BTreeSet<i64>,
        segments: &SegmentList,
    ) -> Result<Option<(i64, Producers)>> {
        while let Some(at) = snapshots.last().copied() {
            let within = segments.iter().rfind(|s| s.base_offset() < at);
            let within = within.filter(|_| !is_base(segments, at));
            if let Some(segment) = within
                && let Err(reason) = read_aborted(self.disk, &self.shared.dir, segment)?
            {
                // Its file is made anew from its first batch on.
                let dir = self.shared.dir.display();
                tracing::warn!(%dir, reason, "a transaction index is not sound");
                snapshots.remove(&at);
                continue;
            }
            let path = names::path(&self.shared.dir, at, names::SNAPSHOT);
            match decode_snapshot(&read_file(self.disk, &path)?.unwrap_or_default()) {
                Ok(states) => {
                    let expiration = self.shared.config.load().producer_id_expiration_ms;
                    return Ok(Some((at, Producers::load(&states, self.now_ms, expiration))));
                }
                Err(reason) => {
                    tracing::warn!(file = %path.display(), reason, "a producer snapshot goes");
                    remove_snapshot(self.disk, &self.shared.dir, at);
                    snapshots.remove(&at);
                }
            }
        }
        Ok(None)
    }

    /// Writes what is known now as the snapshot of `at`. An error, of a full disk perhaps, costs the
    /// next start some time and must not fail this one.
    fn take_snapshot(&self, at: i64, rebuilt: &mut Rebuilt, segments: &SegmentList) {
        if at <= rebuilt.newest_snapshot {
            return;
        }
        let states = rebuilt.producers.states();
        if let Err(error) = write_snapshot(self.disk, &self.shared.dir, at, &states) {
            tracing::warn!(partition = %self.shared.name, %error, "no producer snapshot");
            remove_snapshot(self.disk, &self.shared.dir, at);
            return;
        }
        rebuilt.newest_snapshot = at;
        // A descriptor for the next sync, of each of many partitions, would cost more than it saves.
        rebuilt.newest_is_unsynced = true;
        let stray = Some(at).filter(|at| !is_base(segments, *at));
        if let Some(before) = std::mem::replace(&mut rebuilt.stray, stray) {
            remove_snapshot(self.disk, &self.shared.dir, before);
        }
    }

    /// Brings the aborted transactions of the walked segments into memory, and their files up to date.
    fn settle_aborted(
        &self,
        segments: &SegmentList,
        files: &Files,
        from: i64,
        found: &mut BTreeMap<i64, Vec<AbortedTransaction>>,
        rebuilt: &mut Rebuilt,
    ) -> Result<()> {
        let synced = self.shared.offsets.synced();
        for (number, segment) in segments.iter().enumerate() {
            let base = segment.base_offset();
            let is_active = number + 1 == segments.len();
            let has_file = files.aborted.contains(&base);
            let end = segment.tail().end_offset;
            let path = names::path(&self.shared.dir, base, names::TXN_INDEX);
            if end > from || is_active {
                let on_disk = match has_file {
                    true => read_aborted(self.disk, &self.shared.dir, segment)?.ok(),
                    false => Some(Vec::new()),
                };
                let mut entries = on_disk.clone().unwrap_or_default();
                entries.retain(|entry| entry.last_offset < from);
                entries.extend(found.remove(&base).unwrap_or_default());
                if Some(&entries) != on_disk.as_ref() {
                    self.replace_aborted(&path, &entries)?;
                }
                let writer = attach(segment, &entries);
                if is_active {
                    rebuilt.active_aborted = writer;
                    rebuilt.active_aborted_on_disk = entries.len();
                }
            }
            // The recovery point must not pass a file that only the page cache has.
            if !is_active && end > synced && (has_file || segment.aborted().is_some()) {
                match self.disk.open(&path, OpenMode::ReadWrite) {
                    Ok(file) => rebuilt.written.push((base, file)),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    Err(e) => return Err(Error::io("open", &path, e)),
                }
            }
        }
        Ok(())
    }

    fn replace_aborted(&self, path: &Path, entries: &[AbortedTransaction]) -> Result<()> {
        if entries.is_empty() {
            return match self.disk.remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io("remove", path, e))
                }
                _ => Ok(()),
            };
        }
        let bytes = encode_aborted(entries.iter().copied());
        let file = super::write_index(self.disk, path, &bytes, 0)?;
        file.sync_data().map_err(|e| Error::io("sync", path, e))
    }
}

/// Gives a segment its aborted transactions; the writer, if there are any.
fn attach(segment: &Segment, entries: &[AbortedTransaction]) -> Option<AbortedWriter> {
    if entries.is_empty() {
        segment.set_aborted(None);
        return None;
    }
    let (shared, writer) = AbortedEntries::new(entries);
    shared.attach(segment);
    Some(writer)
}

/// The aborted transactions of a sealed segment whose file is not sound, which is written again.
pub(super) fn aborted_from_log(
    shared: &LogShared,
    segment: &Arc<Segment>,
) -> Result<Vec<AbortedTransaction>> {
    // Nobody is too old to have aborted a transaction.
    let rebuild = Rebuild {
        shared,
        disk: shared.open_files.disk().as_ref(),
        trust: Trust::UpToLogEnd,
        now_ms: i64::MIN,
    };
    let base = segment.base_offset();
    let snapshots = rebuild.list()?.snapshots;
    let mut start = (shared.offsets.log_start(), Producers::default());
    for at in snapshots.range(start.0 + 1..=base.max(start.0 + 1)).rev() {
        let path = names::path(&shared.dir, *at, names::SNAPSHOT);
        let bytes = read_file(rebuild.disk, &path)?.unwrap_or_default();
        if let (true, Ok(states)) = (*at <= base, decode_snapshot(&bytes)) {
            let expiration = shared.config.load().producer_id_expiration_ms;
            start = (*at, Producers::load(&states, i64::MIN, expiration));
            break;
        }
    }
    let mut replay = Replay::new(shared, start.1);
    let end = segment.tail().end_offset;
    let segments = shared.segments.load_full();
    let walked = |s: &&Arc<Segment>| s.tail().end_offset > start.0 && s.base_offset() < end;
    for segment in segments.iter().filter(walked) {
        replay.segment(segment, segment.base_offset().max(start.0))?;
    }
    let entries = replay.aborted.remove(&base).unwrap_or_default();
    if shared.writable {
        let path = names::path(&shared.dir, base, names::TXN_INDEX);
        rebuild.replace_aborted(&path, &entries)?;
    }
    Ok(entries)
}

fn is_base(segments: &SegmentList, offset: i64) -> bool {
    segments.binary_search_by_key(&offset, |s| s.base_offset()).is_ok()
}

/// Reads a small file whole; `None` if there is none.
pub(super) fn read_file(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match disk.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let len = file.len().map_err(|e| Error::io("stat", path, e))?;
    // Cut short, a larger one is not sound, which is told where it is decoded.
    let mut bytes = vec![0; usize::try_from(len.min(FILE_BYTES_MAX)).unwrap_or_default()];
    let read = file.read_up_to(&mut bytes, 0).map_err(|e| Error::io("read", path, e))?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// A walk over the log that takes in every producer's batches and markers.
struct Replay<'a> {
    shared: &'a LogShared,
    producers: Producers,
    transactions: Transactions,
    /// By the base offset of the segment that has the marker.
    aborted: BTreeMap<i64, Vec<AbortedTransaction>>,
    bytes: u64,
}

impl<'a> Replay<'a> {
    fn new(shared: &'a LogShared, producers: Producers) -> Replay<'a> {
        let mut transactions = Transactions::default();
        for state in producers.states() {
            if state.transaction_first_offset >= 0 {
                transactions.begin(state.transaction_first_offset, state.producer_id);
            }
        }
        Replay { shared, producers, transactions, aborted: BTreeMap::new(), bytes: 0 }
    }

    /// Walks a segment from offset `from` on. Damage is passed over: what it held is not known.
    fn segment(&mut self, segment: &Arc<Segment>, from: i64) -> Result<()> {
        let file = segment.file(&self.shared.open_files)?;
        let end = u64::from(segment.tail().bytes);
        let mut headers = Headers { file: &file, buffer: Vec::new(), position: 0, end };
        let mut next = from;
        let mut position = match from <= segment.base_offset() {
            true => Some(0),
            false => self.find(segment, &file, &mut next)?,
        };
        let mut lost = None;
        while let Some(at) = position.filter(|at| *at < end) {
            let read = headers.at(at).map_err(|e| Error::io("read", segment.path(), e))?;
            let sound = read.filter(|header| {
                header.last_offset_delta >= 0
                    && header.base_offset >= segment.base_offset()
                    && header.next_offset() <= segment.tail().end_offset
                    && at + header.total_bytes() as u64 <= end
            });
            let Some(header) = sound else {
                if lost.replace(at) == Some(at) {
                    break;
                }
                position = self.find(segment, &file, &mut next)?;
                continue;
            };
            let total = header.total_bytes();
            if header.producer_id >= 0 {
                let marker = match header.attributes.is_control() {
                    true if total <= MARKER_BYTES_MAX => {
                        let read = headers.bytes(at, total);
                        let bytes = read.map_err(|e| Error::io("read", segment.path(), e))?;
                        EndMarker::read(bytes)
                    }
                    _ => None,
                };
                self.batch(segment.base_offset(), &header, marker.as_ref());
            }
            next = header.next_offset();
            position = Some(at + total as u64);
            self.bytes += total as u64;
        }
        Ok(())
    }

    /// The position of the first batch that reaches `next`, which moves past damage.
    fn find(&self, segment: &Arc<Segment>, file: &FileRef, next: &mut i64) -> Result<Option<u64>> {
        loop {
            match self.shared.locate(segment, file, *next) {
                Ok(found) => return Ok(found.map(|(position, _)| position)),
                Err(Error::Damaged { next_offset, .. }) if next_offset.0 > *next => {
                    *next = next_offset.0;
                }
                Err(Error::Damaged { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn batch(&mut self, base: i64, header: &BatchHeader, marker: Option<&EndMarker>) {
        // Neither is refused: the leader took them.
        let _ = match (header.attributes.is_control(), marker) {
            (false, _) => self.producers.try_data(header, false),
            (true, Some(marker)) => {
                self.producers.try_marker(header, marker, MarkerCheck::Replicated)
            }
            (true, None) => Ok(()),
        };
        self.producers.accept();
        for event in self.producers.on_written() {
            match event {
                Event::Begun { producer_id, first } => self.transactions.begin(first, producer_id),
                Event::Ended { producer_id, first, last, outcome } => {
                    if outcome == TransactionOutcome::Abort {
                        self.aborted.entry(base).or_default().push(AbortedTransaction {
                            producer_id,
                            first_offset: first,
                            last_offset: last,
                            last_stable_offset: self.transactions.stable_at_end(producer_id, last),
                        });
                    }
                    let high_watermark = self.shared.offsets.high_watermark();
                    self.transactions.end(first, last, high_watermark);
                }
            }
        }
    }
}

/// Reads batch headers, some at a time if the batches are small.
struct Headers<'a> {
    file: &'a FileRef,
    buffer: Vec<u8>,
    /// Of the buffer's first byte.
    position: u64,
    end: u64,
}

impl Headers<'_> {
    /// The header at `at`; `None` if there is none.
    fn at(&mut self, at: u64) -> std::io::Result<Option<BatchHeader>> {
        if self.end - at < HEADER_BYTES as u64 {
            return Ok(None);
        }
        self.bytes(at, HEADER_BYTES).map(|bytes| BatchHeader::read(bytes).ok())
    }

    fn bytes(&mut self, at: u64, length: usize) -> std::io::Result<&[u8]> {
        let within = at.checked_sub(self.position).and_then(|from| usize::try_from(from).ok());
        let held = within.filter(|from| from + length <= self.buffer.len());
        let from = match held {
            Some(from) => from,
            None => {
                let rest = usize::try_from(self.end - at).unwrap_or(usize::MAX);
                self.buffer.resize(length.max(READ_BYTES).min(rest), 0);
                self.position = at;
                self.file.read_exact_at(&mut self.buffer, at)?;
                0
            }
        };
        Ok(self.buffer.get(from..from + length).unwrap_or_default())
    }
}
