//! Walks the batches of a `.log` file, checking every byte: recovery, verify and dump are this walk.
//!
//! Three things can stop it short of the end, and they are told apart (docs/FORMAT.md, "Recovery"):
//!
//! - a **torn tail**: a bad batch with nothing valid after it — the end of an interrupted write;
//! - **damage**: a bad batch with a valid one after it that continues the log — bytes that were
//!   whole once and are not any more. It is skipped and reported, never cut;
//! - a fault of the disk itself, which is an error.

#![forbid(unsafe_code)]

use crate::format::{Batch, BatchFault, BatchHeader, HEADER_BYTES};
use crate::io::{File, FileRef};
use std::io;

/// Bytes read at a time; grows to the size of a larger batch.
const READ_BYTES: usize = 1 << 20;

/// One step of the walk.
pub(crate) enum Scanned<'a> {
    /// A batch that holds, and where it starts.
    Batch {
        /// Its first byte in the file.
        position: u64,
        /// The checked batch.
        batch: Batch<'a>,
    },
    /// Bytes that are no batch, up to the next one that is.
    Damage {
        /// First damaged byte.
        position: u64,
        /// First byte after it that is a batch again.
        end: u64,
        /// What is wrong at `position`.
        fault: BatchFault,
    },
    /// The rest of the file is no batch.
    TornTail {
        /// First byte of the tail.
        position: u64,
        /// What is wrong there.
        fault: BatchFault,
    },
    /// The file ends after a batch, as it should.
    End,
}

/// A walk over one file, from a batch boundary to a length fixed at the start.
pub(crate) struct Scanner {
    file: FileRef,
    /// Base offset of the segment: no batch in it starts lower.
    base_offset: i64,
    /// Offsets at or above this one may come next.
    next_offset: i64,
    position: u64,
    end: u64,
    /// Bytes of the file from `buffer_position` on.
    buffer: Vec<u8>,
    buffer_position: u64,
}

impl Scanner {
    /// Starts at `position`, where `next_offset` is the lowest offset that may come.
    pub(crate) fn new(
        file: FileRef,
        base_offset: i64,
        position: u64,
        next_offset: i64,
        end: u64,
    ) -> Scanner {
        Scanner {
            file,
            base_offset,
            next_offset,
            position,
            end,
            buffer: Vec::new(),
            buffer_position: 0,
        }
    }

    /// Where the walk is: the byte after the last batch it gave.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Lowest offset that may come next: one past the last batch it gave.
    pub(crate) fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// The next batch, or why there is none.
    pub(crate) fn step(&mut self) -> io::Result<Scanned<'_>> {
        if self.position >= self.end {
            return Ok(Scanned::End);
        }
        let position = self.position;
        let fault = match self.check_at(position, self.next_offset)? {
            Ok((total, next_offset)) => {
                self.position += total as u64;
                self.next_offset = next_offset;
                let bytes = self.buffered(position, total);
                // Checked a moment ago on these very bytes; checking again would double the cost.
                let batch = Batch::trusted(bytes).map_err(io::Error::other)?;
                return Ok(Scanned::Batch { position, batch });
            }
            Err(fault) => fault,
        };
        match self.find_survivor(position + 1)? {
            Some(survivor) => {
                self.position = survivor;
                Ok(Scanned::Damage { position, end: survivor, fault })
            }
            None => {
                self.position = self.end;
                Ok(Scanned::TornTail { position, fault })
            }
        }
    }

    /// Checks the batch at `position`: size, CRC, and an offset of at least `offset_min`.
    /// Gives its size and the offset after it.
    fn check_at(
        &mut self,
        position: u64,
        offset_min: i64,
    ) -> io::Result<Result<(usize, i64), BatchFault>> {
        let have = usize::try_from(self.end - position).unwrap_or(usize::MAX);
        if have < HEADER_BYTES {
            return Ok(Err(BatchFault::Truncated { needed: HEADER_BYTES, have }));
        }
        let header = match BatchHeader::read(self.fill(position, HEADER_BYTES)?) {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let total = header.total_bytes();
        if total > have {
            return Ok(Err(BatchFault::Truncated { needed: total, have }));
        }
        let in_segment = header.base_offset >= self.base_offset
            && header.last_offset() - self.base_offset <= i64::from(i32::MAX);
        if header.base_offset < offset_min || header.last_offset_delta < 0 || !in_segment {
            return Ok(Err(BatchFault::BaseOffset {
                expected: offset_min,
                found: header.base_offset,
            }));
        }
        Ok(Batch::check(self.fill(position, total)?).map(|_| (total, header.next_offset())))
    }

    /// The next position from which a batch continues the log, however far.
    fn find_survivor(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut position = from;
        while position + HEADER_BYTES as u64 <= self.end {
            let window = READ_BYTES.min(usize::try_from(self.end - position).unwrap_or(READ_BYTES));
            let bytes = self.fill(position, window)?;
            let candidate = bytes
                .windows(HEADER_BYTES)
                .position(|w| BatchHeader::read(w).is_ok_and(|h| h.attributes.is_plausible()));
            let Some(at) = candidate else {
                // The last bytes of the window may start a header that the next one completes.
                position += (window - (HEADER_BYTES - 1)) as u64;
                continue;
            };
            let here = position + at as u64;
            if self.check_at(here, self.next_offset)?.is_ok() {
                return Ok(Some(here));
            }
            position = here + 1;
        }
        Ok(None)
    }

    /// The bytes `[position, position + length)`, read ahead as far as a buffer goes.
    fn fill(&mut self, position: u64, length: usize) -> io::Result<&[u8]> {
        let have_from = position.checked_sub(self.buffer_position);
        let held = have_from.is_some_and(|from| from + length as u64 <= self.buffer.len() as u64);
        if !held {
            let rest = usize::try_from(self.end - position).unwrap_or(usize::MAX);
            self.buffer.resize(length.max(READ_BYTES).min(rest), 0);
            self.buffer_position = position;
            self.file.read_exact_at(&mut self.buffer, position)?;
        }
        Ok(self.buffered(position, length))
    }

    fn buffered(&self, position: u64, length: usize) -> &[u8] {
        let from = usize::try_from(position - self.buffer_position).unwrap_or(usize::MAX);
        self.buffer.get(from..from + length).unwrap_or_default()
    }
}

/// Reads the header of the batch at `position`, without its records.
///
/// `end` bounds what may be read: a batch that would pass it is reported as cut short.
pub(crate) fn header_at(
    file: &dyn File,
    position: u64,
    end: u64,
) -> io::Result<Result<BatchHeader, BatchFault>> {
    let have = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
    if have < HEADER_BYTES {
        return Ok(Err(BatchFault::Truncated { needed: HEADER_BYTES, have }));
    }
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, position)?;
    Ok(BatchHeader::read(&bytes).and_then(|header| {
        let total = header.total_bytes();
        if total > have {
            return Err(BatchFault::Truncated { needed: total, have });
        }
        Ok(header)
    }))
}
