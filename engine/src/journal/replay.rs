//! Reading journals after a crash: which bytes of which segments they hold.
//!
//! Files are grouped into lanes and read in the order they were written. A lane ends at the first
//! frame that is not whole: frames behind it may have reached the disk first, but were not
//! acknowledged. If one of them says that the missing frame was durable, then it is not the end but
//! damage, and what follows counts all the same.

#![forbid(unsafe_code)]

use super::files::session_of;
use super::format::{Entry, EntryKind, FRAME_HEADER_BYTES, FileHeader, FrameHeader};
use crate::error::{Error, Result};
use crate::io::{BLOCK_BYTES, Disk, FileRef, OpenMode};
use crate::topic::TopicPartition;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// What the journals of a directory hold.
#[derive(Default)]
pub(crate) struct Replay {
    /// By partition and topic id.
    pub(crate) logs: BTreeMap<(TopicPartition, Option<Uuid>), ReplayedLog>,
    /// All journal files, also those without a whole frame.
    pub(crate) paths: Vec<PathBuf>,
    /// The next session: no file is of it or of a later one.
    pub(crate) next_session: u64,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// Places where a frame that was durable is not whole any more: file and first byte.
    pub(crate) damaged: Vec<(PathBuf, u64)>,
    /// Records of the state file, in the order of each lane.
    pub(crate) states: Vec<Vec<u8>>,
}

impl Replay {
    /// Journals that are there and need not be read.
    pub(crate) fn unread(dir: &Path, names: &[String]) -> Replay {
        let next_session =
            names.iter().filter_map(|name| session_of(name)).max().map_or(0, |s| s + 1);
        let paths = names.iter().map(|name| dir.join(name)).collect();
        Replay { paths, next_session, ..Replay::default() }
    }
}

/// What the journals hold of one partition: stretches in file order, none covering another.
#[derive(Clone, Default)]
pub(crate) struct ReplayedLog {
    pub(crate) extents: Vec<Extent>,
    /// A cut is among what was read.
    pub(crate) has_cut: bool,
}

/// Bytes of a segment that are in a journal file.
#[derive(Clone)]
pub(crate) struct Extent {
    pub(crate) segment_base: i64,
    /// Where they belong in the segment.
    pub(crate) position: u32,
    pub(crate) bytes: u32,
    pub(crate) next_offset: i64,
    file: FileRef,
    at: u64,
}

impl Extent {
    /// Reads the bytes, which were checked by the scan.
    pub(crate) fn read(&self, into: &mut Vec<u8>) -> std::io::Result<()> {
        into.resize(self.bytes as usize, 0);
        self.file.read_exact_at(into, self.at)
    }
}

impl ReplayedLog {
    /// One past the last offset that is durable; `None` if there is none.
    pub(crate) fn next_offset(&self) -> Option<i64> {
        self.extents.last().map(|extent| extent.next_offset)
    }

    /// Forgets what lies at or behind a place, which is a batch's start and that of `offset`.
    fn cut(&mut self, segment_base: i64, position: u32, offset: i64) {
        let starts_before =
            |extent: &Extent| (extent.segment_base, extent.position) < (segment_base, position);
        while self.extents.last().is_some_and(|last| !starts_before(last)) {
            self.extents.pop();
        }
        if let Some(last) = self.extents.last_mut().filter(|e| e.segment_base == segment_base)
            && last.position + last.bytes > position
        {
            last.bytes = position - last.position;
            last.next_offset = offset;
        }
    }
}

/// Removes journals, oldest first, each removal on disk before the next: what a power cut leaves of
/// them must not lack the cuts that undo its entries.
pub(crate) fn remove(disk: &dyn Disk, dir: &Path, paths: &[PathBuf]) -> Result<()> {
    let mut ordered = Vec::new();
    for path in paths {
        match disk.open(path, OpenMode::Read) {
            Ok(file) => {
                let mut block = vec![0; FileHeader::BYTES];
                let read =
                    file.read_up_to(&mut block, 0).map_err(|e| Error::io("read", path, e))?;
                let header = block.get(..read).and_then(FileHeader::decode);
                ordered.push((header.map(|h| (h.session, h.generation)), path));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("open", path, e)),
        }
    }
    ordered.sort();
    for (_, path) in ordered {
        match disk.remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", path, e));
            }
            _ => {}
        }
        disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))?;
    }
    Ok(())
}

/// One journal file that was begun.
struct Begun {
    header: FileHeader,
    path: PathBuf,
    file: FileRef,
}

/// Frames at the end of a lane that may be newer than what its segments have in the page cache: a
/// frame is submitted before its segments are written, and so many are under way at once.
const TAIL_FRAMES: usize = 2 * super::FRAMES_IN_FLIGHT as usize;

/// Reads the journals of a directory: all of them after the machine died. If the process alone died,
/// and only one session is there, the end of each lane has all that its segments may lack.
///
/// # Errors
/// [`Error::Io`], [`Error::TooManyOpenFiles`]. Bytes that are not what was written are no error.
pub(crate) fn scan(
    disk: &dyn Disk,
    dir: &Path,
    names: &[String],
    machine_died: bool,
) -> Result<Replay> {
    let mut replay = Replay::default();
    let mut begun = Vec::new();
    for name in names {
        let path = dir.join(name);
        if let Some(session) = session_of(name) {
            replay.next_session = replay.next_session.max(session + 1);
        }
        let file = disk.open(&path, OpenMode::Read).map_err(|e| Error::io("open", &path, e))?;
        let mut block = vec![0; FileHeader::BYTES];
        let read = file.read_up_to(&mut block, 0).map_err(|e| Error::io("read", &path, e))?;
        replay.paths.push(path.clone());
        if let Some(header) = block.get(..read).and_then(FileHeader::decode) {
            // A process that died may have left a write in the disk's cache: what is believed from
            // here on must survive the next power cut too.
            file.sync_data().map_err(|e| Error::io("sync", &path, e))?;
            replay.next_session = replay.next_session.max(header.session + 1);
            begun.push(Begun { header, path, file });
        }
    }
    begun.sort_by_key(|file| (file.header.session, file.header.lane, file.header.generation));
    for lane in begun
        .chunk_by(|a, b| (a.header.session, a.header.lane) == (b.header.session, b.header.lane))
    {
        let sessions =
            begun.first().map(|f| f.header.session) != begun.last().map(|f| f.header.session);
        read_lane(lane, machine_died || sessions, &mut replay)?;
    }
    Ok(replay)
}

/// One whole frame, and where it is.
struct Found {
    sequence: u64,
    durable_below: u64,
    file: usize,
    at: u64,
    entries: Vec<(Entry, u64)>,
}

/// Takes the frames of one lane in the order of their sequence.
fn read_lane(files: &[Begun], whole: bool, replay: &mut Replay) -> Result<()> {
    let mut frames = Vec::new();
    for (number, begun) in files.iter().enumerate().rev() {
        if !whole && frames.len() >= TAIL_FRAMES {
            break;
        }
        replay.bytes += read_frames(begun, number, &mut frames)?;
    }
    frames.sort_by_key(|frame| frame.sequence);
    if !whole {
        frames.drain(..frames.len().saturating_sub(TAIL_FRAMES));
    }
    // Every frame below this one had completed when another was written.
    let durable_below = frames.iter().map(|frame| frame.durable_below).max().unwrap_or(0);
    let mut next = 0;
    let mut place = None;
    for frame in frames {
        let missing = next..frame.sequence;
        // At the beginning of the lane they are in files that were begun again since.
        if !missing.is_empty() && missing.start < durable_below && place.is_some() {
            let (number, at): (usize, u64) = place.unwrap_or_default();
            let path = files.get(number).map_or_else(PathBuf::new, |begun| begun.path.clone());
            tracing::error!(
                file = %path.display(), ?missing,
                "journal frames that were durable are not whole any more"
            );
            replay.damaged.push((path, at));
        }
        if missing.end > durable_below && !missing.is_empty() {
            return Ok(());
        }
        next = frame.sequence + 1;
        place = Some((frame.file, frame.at));
        let Some(begun) = files.get(frame.file) else { continue };
        for (entry, at) in frame.entries {
            if entry.kind == EntryKind::State {
                let mut record = vec![0; entry.payload_bytes as usize];
                let read = begun.file.read_exact_at(&mut record, at);
                read.map_err(|e| Error::io("read", &begun.path, e))?;
                replay.states.push(record);
                continue;
            }
            let log = replay.logs.entry((entry.partition, entry.topic_id)).or_default();
            log.has_cut |= entry.kind == EntryKind::Cut;
            log.cut(entry.segment_base, entry.position, entry.offset);
            if entry.kind == EntryKind::Append {
                log.extents.push(Extent {
                    segment_base: entry.segment_base,
                    position: entry.position,
                    bytes: entry.payload_bytes,
                    next_offset: entry.next_offset,
                    file: Arc::clone(&begun.file),
                    at,
                });
            }
        }
    }
    Ok(())
}

/// Finds the whole frames of a file; gives how many bytes were read.
fn read_frames(begun: &Begun, number: usize, frames: &mut Vec<Found>) -> Result<u64> {
    let failed = |e| Error::io("read", &begun.path, e);
    let length = begun.file.len().map_err(failed)?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let read = begun.file.read_up_to(&mut bytes, 0).map_err(failed)?;
    bytes.truncate(read);
    let mut at = BLOCK_BYTES;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        match whole_frame(&begun.header, rest) {
            Some((header, entries)) => {
                let payload_at = (at + FRAME_HEADER_BYTES) as u64;
                let entries = entries.into_iter().map(|(e, from)| (e, payload_at + from)).collect();
                frames.push(Found {
                    sequence: header.sequence,
                    durable_below: header.durable_below,
                    file: number,
                    at: at as u64,
                    entries,
                });
                at += header.total_bytes();
            }
            // One that tore, or one of an earlier generation: the next may still be whole.
            None => at += BLOCK_BYTES,
        }
    }
    Ok(read as u64)
}

/// The frame at the start of `bytes`, if it is of this file's generation and every byte of it holds.
fn whole_frame(file: &FileHeader, bytes: &[u8]) -> Option<(FrameHeader, Vec<(Entry, u64)>)> {
    let header = FrameHeader::decode(bytes)?;
    if (header.session, header.generation) != (file.session, file.generation) {
        return None;
    }
    let table_at = FRAME_HEADER_BYTES.checked_add(header.payload_bytes as usize)?;
    let mut table = bytes.get(table_at..table_at.checked_add(header.table_bytes as usize)?)?;
    if !FrameHeader::holds(bytes, table) {
        return None;
    }
    let payload = bytes.get(FRAME_HEADER_BYTES..table_at)?;
    let mut entries = Vec::with_capacity(header.entries as usize);
    let mut from = 0;
    while !table.is_empty() {
        let (entry, rest) = Entry::decode(table)?;
        let to = from + entry.payload_bytes as usize;
        if !entry.covers(payload.get(from..to)?) {
            return None;
        }
        entries.push((entry, from as u64));
        (table, from) = (rest, to);
    }
    Some((header, entries))
}
