//! The journal: one device write makes every partition of a tick durable.
//!
//! Each shard has a *lane*: a few files of fixed size beside the partition folders, written once
//! from end to end when they are made and then again and again, so that a write changes no metadata
//! and needs no flush of it. What a tick appends for callers who wait for the disk goes into one
//! *frame*, which is one write, durable when it completes.
//!
//! ```text
//! append ─▶ segment (page cache) ─┐
//!    └────▶ frame ─▶ lane, a few in flight ─▶ complete, in order ─▶ durable offsets ─▶ receipts
//! checkpoint: sync the segments that a full file has entries of ─▶ the file is free again
//! ```
//!
//! Invariants:
//! - A frame counts when it and every frame before it have completed. After a cut the journal ends
//!   at the first frame that is not whole; nothing behind it was ever acknowledged.
//! - A partition's entries continue each other from its recovery point on, so that everything below
//!   its durable offset is in synced segment files or in the journal.
//! - A file is begun again only when all it has entries of is in synced segment files.
//! - After a failed write nothing more is written: what is in flight counts as not durable.

#![forbid(unsafe_code)]

mod files;
mod format;
mod replay;

pub(crate) use files::{FILES, JournalFiles, create_files, is_journal_name};
pub(crate) use format::{EntryKind, Stretch};
pub(crate) use replay::{Extent, Replay, ReplayedLog, remove, scan};

use crate::io::{BLOCK_BYTES, Buffer, FileRef, Lane, Op};
use crate::planted::{Bug, planted};
use format::{Entry, FRAME_HEADER_BYTES, FileHeader, FrameHeader, Prefixes};
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// Frames in flight at once. One keeps a disk half idle; past four its queue only grows.
pub(crate) const FRAMES_IN_FLIGHT: u16 = 4;

/// Frames and files of one shard. Does not wait, knows no threads: the shard passes its lane in and
/// hands completions back.
pub(crate) struct Journal {
    lane_number: u32,
    session: u64,
    files: Vec<JournalFile>,
    /// The file that frames go to, and where the next one starts.
    current: Option<(usize, u64)>,
    generation: u64,
    next_sequence: u64,
    open: Option<OpenFrame>,
    in_flight: VecDeque<Frame>,
    buffers: Vec<Buffer>,
    buffer_bytes: usize,
    table: Vec<u8>,
    prefixes: Prefixes,
    failed: bool,
    /// A file became full since somebody asked.
    filled: bool,
    stats: JournalStats,
}

/// What a journal has done since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct JournalStats {
    /// Device writes.
    pub frames: u64,
    /// Bytes written, padding included.
    pub bytes: u64,
    /// Stretches of partitions in them.
    pub entries: u64,
}

struct JournalFile {
    file: FileRef,
    bytes: u64,
    /// The generation it was last begun as; 0 if never.
    generation: u64,
    state: FileState,
    /// By partition, the offset up to which its segments must be synced before this file is free.
    needs: BTreeMap<usize, i64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FileState {
    Free,
    Current,
    Full,
}

/// The frame that entries are added to.
struct OpenFrame {
    buffer: Buffer,
    /// Where the frame's header is in the buffer: behind a file's header block, if it is the first.
    header_at: usize,
    entries: u32,
    /// Partitions, with what the frame means for them.
    marks: Vec<(usize, Mark)>,
}

/// A frame on its way.
struct Frame {
    sequence: u64,
    done: bool,
    marks: Vec<(usize, Mark)>,
}

/// What a frame that counts means for a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mark {
    /// Everything below the offset is durable.
    Durable(i64),
    /// A cut is on disk.
    Cut,
    /// Changes of values below the number are durable.
    State(u64),
}

/// Whether the journal takes entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Availability {
    /// Yes, if there is room in the frame.
    Ready,
    /// Not until a frame completes or a file is free: both will happen.
    Busy,
    /// No: only a sync of the segments makes anything durable.
    Off,
}

impl Journal {
    /// A journal without files: off until it is given some.
    pub(crate) fn new(lane_number: u32, session: u64) -> Journal {
        Journal {
            lane_number,
            session,
            files: Vec::new(),
            current: None,
            generation: 0,
            next_sequence: 0,
            open: None,
            in_flight: VecDeque::new(),
            buffers: Vec::new(),
            buffer_bytes: 0,
            table: Vec::new(),
            prefixes: Prefixes::default(),
            failed: false,
            filled: false,
            stats: JournalStats::default(),
        }
    }

    /// Begins to use files that were made for this lane.
    pub(crate) fn start(&mut self, files: JournalFiles, lane: &mut dyn Lane) {
        self.buffer_bytes = files.buffer_bytes;
        self.buffers = lane.buffers(FRAMES_IN_FLIGHT, files.buffer_bytes);
        let file_bytes = files.file_bytes;
        self.files = files
            .files
            .into_iter()
            .map(|file| JournalFile {
                file,
                bytes: file_bytes,
                generation: 0,
                state: FileState::Free,
                needs: BTreeMap::new(),
            })
            .collect();
    }

    /// True once it was given files.
    pub(crate) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    pub(crate) fn availability(&self) -> Availability {
        if self.failed || self.files.is_empty() {
            return Availability::Off;
        }
        if self.open.is_some() {
            return Availability::Ready;
        }
        let has_file = self.has_room() || self.files.iter().any(|f| f.state == FileState::Free);
        match (has_file, self.buffers.is_empty()) {
            (true, false) => Availability::Ready,
            _ => Availability::Busy,
        }
    }

    /// Adds a stretch to the open frame, for the partition `owner`. False if it does not fit: then
    /// it is not journalled at all.
    pub(crate) fn add(&mut self, owner: usize, stretch: &Stretch<'_>, payload: &[u8]) -> bool {
        let table_bytes = Entry::table_bytes(stretch.partition);
        if self.open.as_ref().is_some_and(|open| !self.fits(open, payload.len() + table_bytes)) {
            return false;
        }
        if self.open.is_none() && !self.open_frame() {
            return false;
        }
        let Some(mut open) = self.open.take() else { return false };
        let fits = self.fits(&open, payload.len() + table_bytes);
        if fits {
            stretch.encode(payload, &mut self.table, &mut self.prefixes);
            open.buffer.extend_from_slice(payload);
            open.entries += 1;
            let mark = match stretch.kind {
                EntryKind::Append => Mark::Durable(stretch.next_offset),
                EntryKind::Cut => Mark::Cut,
                EntryKind::State => Mark::State(stretch.next_offset.cast_unsigned()),
            };
            open.marks.push((owner, mark));
        }
        self.open = Some(open);
        fits
    }

    /// True if an entry of so many bytes fits in a frame that has no other.
    pub(crate) fn can_take(&self, stretch: &Stretch<'_>, payload_bytes: usize) -> bool {
        let entry = FRAME_HEADER_BYTES + Entry::table_bytes(stretch.partition) + payload_bytes;
        // A file's header block may stand before it.
        BLOCK_BYTES + entry <= self.buffer_bytes
    }

    fn fits(&self, open: &OpenFrame, bytes: usize) -> bool {
        open.buffer.room() >= self.table.len() + bytes
    }

    /// True if something was added that is not submitted.
    pub(crate) fn has_open_frame(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.entries > 0)
    }

    fn open_frame(&mut self) -> bool {
        if self.failed || self.buffers.is_empty() || !(self.has_room() || self.begin_file()) {
            return false;
        }
        let Some(mut buffer) = self.buffers.pop() else { return false };
        buffer.clear();
        let first = self.current.is_some_and(|(_, position)| position == 0);
        if first {
            let header = FileHeader {
                session: self.session,
                lane: self.lane_number,
                generation: self.generation,
            };
            buffer.extend_from_slice(&header.encode());
            buffer.pad_to_block();
        }
        let header_at = buffer.len();
        buffer.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        self.table.clear();
        self.open = Some(OpenFrame { buffer, header_at, entries: 0, marks: Vec::new() });
        true
    }

    /// True if the largest frame fits in the current file.
    fn has_room(&self) -> bool {
        self.current.is_some_and(|(file, position)| {
            let bytes = self.files.get(file).map_or(0, |f| f.bytes);
            position + self.buffer_bytes as u64 <= bytes
        })
    }

    /// Turns to a free file; the one before is full from then on.
    fn begin_file(&mut self) -> bool {
        // The oldest: what stays on disk is then the end of the lane's history, without a hole.
        let free = self.files.iter().enumerate().filter(|(_, f)| f.state == FileState::Free);
        let Some((free, _)) = free.min_by_key(|(_, file)| file.generation) else { return false };
        if let Some((full, _)) = self.current.take()
            && let Some(full) = self.files.get_mut(full)
        {
            full.state = FileState::Full;
            self.filled = true;
        }
        self.generation += 1;
        if let Some(file) = self.files.get_mut(free) {
            file.state = FileState::Current;
            file.generation = self.generation;
        }
        self.current = Some((free, 0));
        true
    }

    /// Hands the open frame to the lane, under the token that `token` makes of its sequence.
    pub(crate) fn submit(&mut self, lane: &mut dyn Lane, token: impl Fn(u64) -> u64) {
        let Some(mut open) = self.open.take() else { return };
        let Some((at, position)) = self.current else { return };
        let Some(file) = self.files.get_mut(at) else { return };
        if open.entries == 0 {
            return self.buffers.push(open.buffer);
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let payload = open.buffer.len() - open.header_at - FRAME_HEADER_BYTES;
        let header = FrameHeader {
            session: self.session,
            generation: self.generation,
            sequence,
            durable_below: self.in_flight.front().map_or(sequence, |frame| frame.sequence),
            payload_bytes: u32::try_from(payload).unwrap_or(u32::MAX),
            table_bytes: u32::try_from(self.table.len()).unwrap_or(u32::MAX),
            entries: open.entries,
        };
        open.buffer.extend_from_slice(&self.table);
        let encoded = header.encode(&self.table);
        let place = open.header_at..open.header_at + FRAME_HEADER_BYTES;
        if let Some(place) = open.buffer.as_mut_slice().get_mut(place) {
            place.copy_from_slice(&encoded);
        }
        open.buffer.pad_to_block();
        for (owner, mark) in &open.marks {
            match mark {
                Mark::Durable(up_to) => {
                    file.needs.insert(*owner, *up_to);
                }
                Mark::State(below) if !planted(Bug::StateRecycledEarly) => {
                    file.needs.insert(*owner, below.cast_signed());
                }
                Mark::State(_) | Mark::Cut => {}
            }
        }
        let bytes = open.buffer.len() as u64;
        self.stats.frames += 1;
        self.stats.bytes += bytes;
        self.stats.entries += u64::from(open.entries);
        self.current = Some((at, position + bytes));
        self.in_flight.push_back(Frame { sequence, done: false, marks: open.marks });
        let file = FileRef::clone(&file.file);
        lane.submit(Op::WriteDurable { file, buffer: open.buffer, position }, token(sequence));
    }

    /// Takes a completed write. Gives to `marks` what counts now.
    ///
    /// # Errors
    /// The first failure of a write. From then on the journal is off, and no frame that had not
    /// counted counts any more.
    pub(crate) fn on_written(
        &mut self,
        sequence: u64,
        result: io::Result<()>,
        buffer: Option<Buffer>,
        marks: &mut Vec<(usize, Mark)>,
    ) -> io::Result<()> {
        self.buffers.extend(buffer);
        if let Err(error) = result {
            let first = !self.failed;
            self.failed = true;
            self.in_flight.clear();
            if let Some(open) = self.open.take() {
                self.buffers.push(open.buffer);
            }
            return if first { Err(error) } else { Ok(()) };
        }
        if let Some(frame) = self.in_flight.iter_mut().find(|frame| frame.sequence == sequence) {
            frame.done = true;
            if planted(Bug::FramesOutOfOrder) {
                marks.append(&mut frame.marks);
            }
        }
        while self.in_flight.front().is_some_and(|frame| frame.done) {
            let Some(frame) = self.in_flight.pop_front() else { break };
            marks.extend(frame.marks);
        }
        Ok(())
    }

    /// Frames submitted and not yet completed.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// True if a file became full since the last call.
    pub(crate) fn take_filled(&mut self) -> bool {
        std::mem::take(&mut self.filled)
    }

    /// True if it is time to free files.
    pub(crate) fn is_half_full(&self) -> bool {
        let full = self.files.iter().filter(|f| f.state == FileState::Full).count();
        full > 0 && 2 * full >= self.files.len()
    }

    /// Partitions whose segments must be synced before the full files are free, oldest file first.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = usize> + '_ {
        let full = self.files.iter().filter(|f| f.state == FileState::Full);
        full.flat_map(|file| file.needs.keys().copied())
    }

    /// Frees the full files whose entries are all in synced segments. `synced` gives a partition's
    /// recovery point; `None` for one that is gone, with all its records.
    pub(crate) fn recycle(&mut self, synced: impl Fn(usize) -> Option<i64>) {
        for file in self.files.iter_mut().filter(|f| f.state == FileState::Full) {
            file.needs.retain(|owner, up_to| synced(*owner).is_some_and(|synced| synced < *up_to));
            if file.needs.is_empty() {
                file.state = FileState::Free;
            }
        }
    }

    /// Bytes a restart would read of it now.
    pub(crate) fn used_bytes(&self) -> u64 {
        let used = |(at, file): (usize, &JournalFile)| match file.state {
            FileState::Free => 0,
            FileState::Full => file.bytes,
            FileState::Current => {
                self.current.filter(|(current, _)| *current == at).map_or(0, |(_, used)| used)
            }
        };
        self.files.iter().enumerate().map(used).sum()
    }

    /// What it has done.
    pub(crate) fn stats(&self) -> JournalStats {
        self.stats
    }
}
