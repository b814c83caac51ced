//! One operation of a ring: the entry that asks for it, and what its completion means.

#![forbid(unsafe_code)]

use super::super::{BLOCK_BYTES, Done, FileRef, Op, writeback};
use io_uring::opcode;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags};
use std::io;
use std::os::fd::AsRawFd;

/// Most bytes of one entry; the rest follows in another. Far above what anybody writes at once, and
/// whole blocks below what the kernel writes at once (2 GiB).
const ENTRY_BYTES_MAX: usize = 1 << 30;

/// An operation, with all that its entry points to: whoever holds it keeps the file open and the
/// buffer's memory in place.
#[derive(Debug)]
pub(super) struct Slot {
    op: Op,
    token: u64,
    /// Bytes of the buffer that the kernel has said are written.
    written: usize,
}

impl Slot {
    pub(super) fn new(op: Op, token: u64) -> Slot {
        Slot { op, token, written: 0 }
    }

    /// True if somebody waits for its answer: it goes first.
    pub(super) fn is_write(&self) -> bool {
        matches!(self.op, Op::WriteDurable { .. })
    }

    /// The entry that asks the kernel for what is left to do; `ring` is the ring it goes to. None if
    /// there is nothing to ask the kernel for: no byte to write, or a file of a disk without
    /// descriptors.
    ///
    /// An entry of a write holds the address of this slot's buffer.
    pub(super) fn entry(&self, ring: u64) -> Option<Entry> {
        let fd = Fd(self.file().fd()?.as_raw_fd());
        Some(match &self.op {
            Op::SyncData(_) => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Op::WriteBack { position, length, .. } => {
                // A hint may be cut; zero would mean all of the file.
                let length = u32::try_from(*length).unwrap_or(u32::MAX);
                opcode::SyncFileRange::new(fd, length)
                    .offset(*position)
                    .flags(libc::SYNC_FILE_RANGE_WRITE)
                    .build()
            }
            Op::WriteDurable { buffer, position, .. } => {
                let rest = buffer.as_slice().get(self.written..).filter(|rest| !rest.is_empty())?;
                let length = u32::try_from(rest.len().min(ENTRY_BYTES_MAX)).ok()?;
                let position = position + self.written as u64;
                match buffer.registered_with(ring) {
                    Some(number) => opcode::WriteFixed::new(fd, rest.as_ptr(), length, number)
                        .offset(position)
                        .rw_flags(DSYNC)
                        .build(),
                    None => opcode::Write::new(fd, rest.as_ptr(), length)
                        .offset(position)
                        .rw_flags(DSYNC)
                        .build(),
                }
            }
        })
    }

    /// What a completion says of it. None: the kernel must be asked again, for what is left.
    pub(super) fn judge(&mut self, result: i32) -> Option<io::Result<()>> {
        let count = match usize::try_from(result) {
            Ok(count) => count,
            // Interrupted before it did anything: no write error was reported and cleared. A write
            // that was interrupted later puts the same bytes to the same place again.
            Err(_) if result == -libc::EINTR => return None,
            Err(_) if result == -libc::EAGAIN && self.is_write() => return None,
            Err(_) => {
                let is_hint = matches!(self.op, Op::WriteBack { .. });
                let ignored = is_hint && writeback::may_be_ignored(-result);
                return Some(if ignored { Ok(()) } else { Err(from_result(result)) });
            }
        };
        let Op::WriteDurable { buffer, position, .. } = &self.op else { return Some(Ok(())) };
        let left = buffer.len().saturating_sub(self.written);
        if count > left {
            return Some(Err(io::Error::other("the kernel says it wrote more than it was given")));
        }
        self.written += count;
        let rest = position + self.written as u64;
        if count == left {
            Some(Ok(()))
        } else if count > 0 && rest.is_multiple_of(BLOCK_BYTES as u64) {
            None
        } else {
            // Half a block cannot be continued past the page cache.
            Some(Err(io::ErrorKind::WriteZero.into()))
        }
    }

    /// Does it on this thread.
    pub(super) fn run(mut self) -> Done {
        let result = self.op.run();
        self.done(result)
    }

    /// Lets go of the file and gives the buffer back: the kernel looks at neither any more, or never
    /// has.
    pub(super) fn done(self, result: io::Result<()>) -> Done {
        Done { token: self.token, result, buffer: self.op.into_buffer() }
    }

    /// Lets go of the file, and leaks the buffer: the kernel may look at it for as long as it likes.
    pub(super) fn abandoned(self, result: io::Result<()>) -> Done {
        std::mem::forget(self.op.into_buffer());
        Done { token: self.token, result, buffer: None }
    }

    fn file(&self) -> &FileRef {
        match &self.op {
            Op::SyncData(file) | Op::WriteBack { file, .. } | Op::WriteDurable { file, .. } => file,
        }
    }
}

/// Each write is durable when it completes, without a sync of the file.
const DSYNC: i32 = libc::RWF_DSYNC;

fn from_result(result: i32) -> io::Error {
    io::Error::from_raw_os_error(-result)
}

#[cfg(test)]
mod tests {
    use super::super::super::{Buffer, plain};
    use super::*;
    use std::path::Path;

    fn write_of(blocks: usize) -> Slot {
        let file = plain::open_dir(Path::new("/")).unwrap();
        let mut buffer = Buffer::new(blocks * BLOCK_BYTES);
        buffer.extend_from_slice(&vec![1; blocks * BLOCK_BYTES]);
        Slot::new(Op::WriteDurable { file, buffer, position: 8 * BLOCK_BYTES as u64 }, 1)
    }

    fn kind(outcome: Option<io::Result<()>>) -> io::ErrorKind {
        outcome.unwrap().unwrap_err().kind()
    }

    #[test]
    fn a_write_is_done_when_its_last_byte_is() {
        let mut slot = write_of(5);
        assert!(slot.judge(2 * 4096).is_none(), "two blocks of five");
        assert!(slot.judge(-libc::EINTR).is_none());
        assert!(slot.judge(-libc::EAGAIN).is_none());
        assert!(slot.judge(4096).is_none());
        assert!(slot.entry(0).is_some());
        slot.judge(2 * 4096).unwrap().unwrap();
        assert!(slot.entry(0).is_none(), "nothing left to ask for");
        assert_eq!(slot.done(Ok(())).buffer.unwrap().len(), 5 * 4096);
    }

    #[test]
    fn a_write_that_cannot_be_continued_fails() {
        assert_eq!(kind(write_of(2).judge(0)), io::ErrorKind::WriteZero);
        assert_eq!(kind(write_of(2).judge(4095)), io::ErrorKind::WriteZero);
        assert_eq!(kind(write_of(2).judge(512)), io::ErrorKind::WriteZero);
        assert_eq!(kind(write_of(2).judge(2 * 4096 + 1)), io::ErrorKind::Other);
        let mut slot = write_of(2);
        assert!(slot.judge(4096).is_none());
        assert_eq!(kind(slot.judge(2 * 4096)), io::ErrorKind::Other, "more than was left");
        assert_eq!(kind(write_of(2).judge(-libc::ENOSPC)), io::ErrorKind::StorageFull);
        assert!(write_of(2).judge(i32::MIN + 1).unwrap().is_err());
    }

    #[test]
    fn a_hint_that_means_nothing_here_succeeds_and_a_failed_sync_does_not() {
        let file = plain::open_dir(Path::new("/")).unwrap();
        let mut sync = Slot::new(Op::SyncData(FileRef::clone(&file)), 1);
        let mut hint = Slot::new(Op::WriteBack { file, position: 0, length: u64::MAX }, 1);
        assert!(hint.entry(0).is_some());
        for errno in [libc::EINVAL, libc::ESPIPE, libc::EOPNOTSUPP, libc::ENOSYS] {
            hint.judge(-errno).unwrap().unwrap();
            sync.judge(-errno).unwrap().unwrap_err();
        }
        hint.judge(-libc::EIO).unwrap().unwrap_err();
        sync.judge(-libc::EAGAIN).unwrap().unwrap_err();
        assert!(hint.judge(-libc::EINTR).is_none() && sync.judge(-libc::EINTR).is_none());
        hint.judge(0).unwrap().unwrap();
        sync.judge(0).unwrap().unwrap();
    }

    #[test]
    fn a_buffer_goes_by_its_number_on_its_own_ring_only() {
        let mut slot = write_of(1);
        let code = |slot: &Slot, ring| slot.entry(ring).unwrap().get_opcode();
        assert_eq!(code(&slot, 7), u32::from(opcode::Write::CODE));
        if let Op::WriteDurable { buffer, .. } = &mut slot.op {
            buffer.set_registered(7, 3);
        }
        assert_eq!(code(&slot, 7), u32::from(opcode::WriteFixed::CODE));
        assert_eq!(code(&slot, 8), u32::from(opcode::Write::CODE));
    }
}
