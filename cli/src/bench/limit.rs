//! The bare loops that the engine is held against.

#![forbid(unsafe_code)]

use super::Round;
use crate::failure::Failure;
use loglane::format::crc32c;
use loglane::io::{BackendChoice, Op, OpenMode, open as open_disk};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What O_DIRECT asks of addresses, positions and lengths.
const ALIGNMENT: usize = 4096;
/// Bytes of the recycled file: a few seconds of durable writes go around it many times.
const RECYCLED_BYTES: usize = 64 << 20;

/// One CRC and one pwrite for each batch, into a fresh file.
pub(super) fn write_loop(
    path: &Path,
    batch: &[u8],
    records: u64,
    time: Duration,
    bytes_max: u64,
) -> Result<Round, Failure> {
    let file = File::create(path).map_err(|e| failed("create", path, &e))?;
    let mut round = Round::default();
    let start = Instant::now();
    while start.elapsed() < time && round.bytes < bytes_max {
        std::hint::black_box(crc32c(batch.get(21..).unwrap_or_default()));
        file.write_all_at(batch, round.bytes).map_err(|e| failed("write", path, &e))?;
        round.bytes += batch.len() as u64;
        round.batches += 1;
        round.records += records;
    }
    Ok(round)
}

/// A file whose blocks are written already, open for O_DIRECT|O_DSYNC writes.
pub(super) struct Recycled {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    from: usize,
    /// Bytes of one write, whole blocks, and those of them that count.
    length: usize,
    payload: usize,
    position: usize,
}

impl Recycled {
    /// Writes the file once from end to end.
    pub(super) fn new(path: &Path, batch_bytes: usize) -> Result<Recycled, Failure> {
        let zeros = vec![0; RECYCLED_BYTES];
        std::fs::write(path, &zeros).map_err(|e| failed("write", path, &e))?;
        let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::DSYNC | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| failed("open for direct writes", path, &e.into()))?;
        let length = batch_bytes.next_multiple_of(ALIGNMENT);
        let buffer = vec![7; length + ALIGNMENT];
        let from = buffer.as_ptr().align_offset(ALIGNMENT);
        let (file, path, payload) = (file.into(), path.to_owned(), batch_bytes);
        Ok(Recycled { file, path, buffer, from, length, payload, position: 0 })
    }

    /// The same writes, `in_flight` of them at a time, through a lane of the engine's backend.
    pub(super) fn write_loop_many(
        &mut self,
        in_flight: u16,
        records: u64,
        time: Duration,
    ) -> Result<Round, Failure> {
        let path = self.path.clone();
        let io = |what: &'static str| {
            let path = path.clone();
            move |e: io::Error| failed(what, &path, &e)
        };
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let disk = open_disk(dir, BackendChoice::Auto).map_err(io("set up I/O for"))?;
        let file = disk.open(&self.path, OpenMode::Direct).map_err(io("open"))?;
        let mut lane = disk.lane().map_err(io("set up a lane for"))?;
        let mut free = lane.buffers(in_flight, self.length);
        for buffer in &mut free {
            buffer.extend_from_slice(&vec![7; self.length]);
        }
        let (mut round, mut done, start) = (Round::default(), Vec::new(), Instant::now());
        loop {
            let over = start.elapsed() >= time;
            while !over && let Some(buffer) = free.pop() {
                if self.position + self.length > RECYCLED_BYTES {
                    self.position = 0;
                }
                let (file, position) = (Arc::clone(&file), self.position as u64);
                self.position += self.length;
                lane.submit(Op::WriteDurable { file, buffer, position }, 0);
            }
            lane.reap(&mut done);
            for one in done.drain(..) {
                one.result.map_err(io("write to"))?;
                free.extend(one.buffer);
                round.bytes += self.payload as u64;
                round.batches += 1;
                round.records += records;
            }
            if over && lane.pending() == 0 {
                return Ok(round);
            }
            if free.is_empty() {
                // As the engine does: the kernel worker that completes a write needs a core too.
                std::thread::yield_now();
            }
        }
    }

    /// One write.
    pub(super) fn write_once(&mut self) -> Result<(), Failure> {
        if self.position + self.length > RECYCLED_BYTES {
            self.position = 0;
        }
        let bytes = self.buffer.get(self.from..self.from + self.length).unwrap_or_default();
        let written = self.file.write_all_at(bytes, self.position as u64);
        written.map_err(|e| failed("write to", &self.path, &e))?;
        self.position += self.length;
        Ok(())
    }

    /// One write at a time, each on disk before the next.
    pub(super) fn write_loop(&mut self, records: u64, time: Duration) -> Result<Round, Failure> {
        let mut round = Round::default();
        let start = Instant::now();
        while start.elapsed() < time {
            self.write_once()?;
            round.bytes += self.payload as u64;
            round.batches += 1;
            round.records += records;
        }
        Ok(round)
    }
}

/// sendfile of one file from end to end, again and again, `chunk` bytes a call.
pub(super) fn send_loop(
    file: &File,
    length: u64,
    to: BorrowedFd<'_>,
    chunk: u64,
    time: Duration,
) -> Result<Round, Failure> {
    let mut round = Round::default();
    let (mut position, start) = (0, Instant::now());
    while start.elapsed() < time {
        if position == length {
            position = 0;
        }
        let wanted = usize::try_from(chunk.min(length - position)).unwrap_or(usize::MAX);
        let sent = loglane::io::send_file(to, file.as_fd(), position, wanted)
            .map_err(|e| failed("send", Path::new("the log"), &e))? as u64;
        position += sent;
        round.bytes += sent;
    }
    Ok(round)
}

pub(super) fn failed(op: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {op} {}: {error}", path.display()), "try another --dir")
}
