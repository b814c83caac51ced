//! The two index files of a segment, entry by entry, against the log they belong to.
//!
//! A check is fed the batches of one walk, in file order, so that it needs no memory but the entries:
//! `on_batch` for each batch, `on_damage` for each stretch without, `finish` at the end.

#![forbid(unsafe_code)]

use super::{base_offset_of, read_whole};
use crate::error::Result;
use crate::format::BatchHeader;
use crate::segment::{OFFSET_ENTRY, TIME_ENTRY};
use std::path::Path;

/// What is wrong with an index file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexFault {
    /// Number of the entry, from 0; `None` if it is the file as a whole.
    pub entry: Option<usize>,
    /// Where in the index file.
    pub position: u64,
    /// What is wrong.
    pub reason: String,
}

/// One entry of a `.index` file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OffsetIndexEntry {
    /// Last offset of a batch.
    pub offset: i64,
    /// Where that batch starts in the `.log` file.
    pub position: u32,
}

/// One entry of a `.timeindex` file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeIndexEntry {
    /// Largest timestamp up to `offset`, Unix ms.
    pub timestamp: i64,
    /// Last offset of the batch that has it.
    pub offset: i64,
}

/// A `.index` file and its comparison with the log.
#[derive(Clone, Debug, Default)]
pub struct OffsetIndex {
    entries: Vec<OffsetIndexEntry>,
    zero_bytes: u64,
    faults: Vec<IndexFault>,
    /// First entry that no batch has met yet.
    next: usize,
    /// Entries whose batch was met but ends below their offset: Kafka before 4.1 wrote the last
    /// offset of the whole append, so a batch after it must end there.
    open: Vec<usize>,
}

/// A `.timeindex` file and its comparison with the log.
#[derive(Clone, Debug, Default)]
pub struct TimeIndex {
    entries: Vec<TimeIndexEntry>,
    zero_bytes: u64,
    faults: Vec<IndexFault>,
    next: usize,
}

impl OffsetIndex {
    /// Reads a `.index` file and checks the order of its entries.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], [`crate::Error::Format`] if it is far too large,
    /// [`crate::Error::Io`].
    pub fn read(path: &Path) -> Result<OffsetIndex> {
        let base = base_offset_of(path).unwrap_or(0);
        let bytes = read_whole(path)?;
        let (chunks, rest) = bytes.as_chunks::<OFFSET_ENTRY>();
        let mut index = OffsetIndex::default();
        let used = used_entries(chunks);
        index.zero_bytes = ((chunks.len() - used) * OFFSET_ENTRY) as u64;
        for chunk in chunks.iter().take(used) {
            let [a, b, c, d, e, f, g, h] = *chunk;
            let relative = i32::from_be_bytes([a, b, c, d]);
            let position = u32::from_be_bytes([e, f, g, h]);
            let entry = OffsetIndexEntry { offset: base + i64::from(relative), position };
            let falls = index
                .entries
                .last()
                .is_some_and(|last| last.offset >= entry.offset || last.position >= position);
            if relative < 0 || falls {
                let reason = format!("offset {} at {position} does not rise", entry.offset);
                index.faults.push(offset_fault(index.entries.len(), reason));
            }
            index.entries.push(entry);
        }
        note_rest(&mut index.faults, bytes.len(), rest.len(), OFFSET_ENTRY);
        Ok(index)
    }

    /// Its entries.
    #[must_use]
    pub fn entries(&self) -> &[OffsetIndexEntry] {
        &self.entries
    }

    /// Zero bytes behind the last entry: the file of a segment that is being written, or whose
    /// writer was killed. Kafka takes them for entries after a clean close.
    #[must_use]
    pub fn zero_bytes(&self) -> u64 {
        self.zero_bytes
    }

    /// What was found wrong so far.
    #[must_use]
    pub fn faults(&self) -> &[IndexFault] {
        &self.faults
    }

    /// Compares with the next batch of the log.
    pub fn on_batch(&mut self, position: u64, header: &BatchHeader) {
        self.pass(position, "between two batches");
        let last = header.last_offset();
        while let Some(entry) = self.entries.get(self.next) {
            if u64::from(entry.position) != position {
                break;
            }
            if entry.offset > last {
                self.open.push(self.next);
            } else if entry.offset < last {
                let reason =
                    format!("says offset {} for a batch that ends at {last}", entry.offset);
                self.faults.push(offset_fault(self.next, reason));
            }
            self.next += 1;
        }
        if self.open.is_empty() {
            return;
        }
        for number in std::mem::take(&mut self.open) {
            let Some(entry) = self.entries.get(number) else { continue };
            if entry.offset > last {
                self.open.push(number);
            } else if entry.offset < last {
                let reason = format!("says offset {}, where no batch ends", entry.offset);
                self.faults.push(offset_fault(number, reason));
            }
        }
    }

    /// Passes over damage: entries into it cannot be checked.
    pub fn on_damage(&mut self, position: u64, end: u64) {
        self.pass(position, "between two batches");
        while self.entries.get(self.next).is_some_and(|e| u64::from(e.position) < end) {
            self.next += 1;
        }
        self.open.clear();
    }

    /// Whatever is left points past the end of the log.
    pub fn finish(&mut self) {
        self.pass(u64::MAX, "past the last batch");
        for number in std::mem::take(&mut self.open) {
            let Some(entry) = self.entries.get(number) else { continue };
            let reason = format!("says offset {}, past the end of the log", entry.offset);
            self.faults.push(offset_fault(number, reason));
        }
    }

    fn pass(&mut self, position: u64, place: &str) {
        while let Some(entry) = self.entries.get(self.next) {
            if u64::from(entry.position) >= position {
                break;
            }
            let reason = format!("points at {}, which is {place}", entry.position);
            self.faults.push(offset_fault(self.next, reason));
            self.next += 1;
        }
    }
}

impl TimeIndex {
    /// Reads a `.timeindex` file and checks the order of its entries.
    ///
    /// # Errors
    /// As [`OffsetIndex::read`].
    pub fn read(path: &Path) -> Result<TimeIndex> {
        let base = base_offset_of(path).unwrap_or(0);
        let bytes = read_whole(path)?;
        let (chunks, rest) = bytes.as_chunks::<TIME_ENTRY>();
        let mut index = TimeIndex::default();
        // A first entry of timestamp 0 at the base offset is all zeros too.
        let used = if chunks.len() == 1 { 1 } else { used_entries(chunks) };
        index.zero_bytes = ((chunks.len() - used) * TIME_ENTRY) as u64;
        for chunk in chunks.iter().take(used) {
            let [a, b, c, d, e, f, g, h, i, j, k, l] = *chunk;
            let timestamp = i64::from_be_bytes([a, b, c, d, e, f, g, h]);
            let relative = i32::from_be_bytes([i, j, k, l]);
            let entry = TimeIndexEntry { timestamp, offset: base + i64::from(relative) };
            let falls = index
                .entries
                .last()
                .is_some_and(|last| last.timestamp >= timestamp || last.offset > entry.offset);
            if relative < 0 || falls {
                let reason =
                    format!("timestamp {timestamp} at offset {} does not rise", entry.offset);
                index.faults.push(time_fault(index.entries.len(), reason));
            }
            index.entries.push(entry);
        }
        note_rest(&mut index.faults, bytes.len(), rest.len(), TIME_ENTRY);
        Ok(index)
    }

    /// Its entries.
    #[must_use]
    pub fn entries(&self) -> &[TimeIndexEntry] {
        &self.entries
    }

    /// As [`OffsetIndex::zero_bytes`].
    #[must_use]
    pub fn zero_bytes(&self) -> u64 {
        self.zero_bytes
    }

    /// What was found wrong so far.
    #[must_use]
    pub fn faults(&self) -> &[IndexFault] {
        &self.faults
    }

    /// Compares with the next batch of the log.
    pub fn on_batch(&mut self, header: &BatchHeader) {
        while let Some(entry) = self.entries.get(self.next) {
            if entry.offset > header.last_offset() {
                break;
            }
            if entry.offset < header.base_offset {
                let reason = format!("says offset {}, which no batch has", entry.offset);
                self.faults.push(time_fault(self.next, reason));
            } else if entry.timestamp != header.max_timestamp {
                let reason = format!(
                    "says timestamp {} for the batch of offset {}, whose largest is {}",
                    entry.timestamp, entry.offset, header.max_timestamp
                );
                self.faults.push(time_fault(self.next, reason));
            }
            self.next += 1;
        }
        // Up to an entry's offset nothing may be later than the entry says.
        if let Some(entry) = self.entries.get(self.next)
            && header.max_timestamp > entry.timestamp
        {
            let reason = format!(
                "says {} is the largest timestamp up to offset {}, but offset {} has {}",
                entry.timestamp,
                entry.offset,
                header.last_offset(),
                header.max_timestamp
            );
            self.faults.push(time_fault(self.next, reason));
            self.next += 1;
        }
    }

    /// Passes over damage up to `next_offset`: entries into it cannot be checked.
    pub fn on_damage(&mut self, next_offset: i64) {
        while self.entries.get(self.next).is_some_and(|e| e.offset < next_offset) {
            self.next += 1;
        }
    }

    /// Whatever is left is past the end of the log.
    pub fn finish(&mut self) {
        for (number, entry) in self.entries.iter().enumerate().skip(self.next) {
            let reason = format!("says offset {}, past the end of the log", entry.offset);
            self.faults.push(time_fault(number, reason));
        }
        self.next = self.entries.len();
    }
}

/// Entries up to the last that is not all zeros.
fn used_entries<const N: usize>(chunks: &[[u8; N]]) -> usize {
    chunks.iter().rposition(|chunk| *chunk != [0; N]).map_or(0, |last| last + 1)
}

fn note_rest(faults: &mut Vec<IndexFault>, bytes: usize, rest: usize, entry: usize) {
    if rest > 0 {
        faults.push(IndexFault {
            entry: None,
            position: (bytes - rest) as u64,
            reason: format!("{bytes} bytes are no whole number of {entry}-byte entries"),
        });
    }
}

fn offset_fault(entry: usize, reason: String) -> IndexFault {
    IndexFault { entry: Some(entry), position: (entry * OFFSET_ENTRY) as u64, reason }
}

fn time_fault(entry: usize, reason: String) -> IndexFault {
    IndexFault { entry: Some(entry), position: (entry * TIME_ENTRY) as u64, reason }
}
