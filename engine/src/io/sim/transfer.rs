//! What simulated calls do to the bytes of files: reads, writes, syncs, and those of lanes.

#![forbid(unsafe_code)]

use super::CrashKind;
use super::faults::Fate;
use super::lane::InFlight;
use super::names::Ino;
use super::state::{State, Sys, may_have_written};
use super::trace::{Call, Subject};
use crate::io::Op;
use libc::{EFBIG, EINTR, EIO, ENOSPC};

/// No file may be larger: its bytes are in memory.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// How a write goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// To the page cache.
    Cached,
    /// Durable when done; may be short.
    Durable,
    /// Durable when done, and not in pieces.
    DurableWhole,
}

impl State {
    pub(super) fn read(
        &mut self,
        epoch: u32,
        file: Ino,
        buf: &mut [u8],
        position: u64,
    ) -> Sys<usize> {
        let len = buf.len() as u64;
        match self.enter(epoch, Call::Read, Subject::File(file), position, len)? {
            Fate::Works => Ok(self.content(file)?.read(buf, position)),
            Fate::Fails(errno) => Err(errno),
            Fate::Dies => Err(EIO),
        }
    }

    pub(super) fn write(
        &mut self,
        (epoch, call): (u32, Call),
        file: Ino,
        buf: &[u8],
        position: u64,
        way: Way,
        now_ms: i64,
    ) -> Sys<usize> {
        let fate = self.enter(epoch, call, Subject::File(file), position, buf.len() as u64)?;
        let mut take = buf.len();
        match fate {
            Fate::Works => {
                if way != Way::DurableWhole && self.rng.per_million(self.knobs.short_writes) {
                    take = take.min(1 + self.rng.index(take));
                }
            }
            // Sectors of a write that the power cut interrupts are each on the disk or not.
            Fate::Dies if way != Way::Cached && self.dead == Some(CrashKind::Power) => {}
            Fate::Dies => take = self.rng.index(take + 1),
            Fate::Fails(errno) if !may_have_written(errno) => return Err(errno),
            Fate::Fails(_) => take = self.rng.index(take + 1),
        }
        let end = position.saturating_add(take as u64);
        if end > FILE_BYTES_MAX {
            self.trace.failed(EFBIG);
            return Err(EFBIG);
        }
        let room = self.claim(file, end).saturating_sub(position) as usize;
        let written = take.min(room);
        self.put_bytes(file, &buf[..written], position, now_ms)?;
        match fate {
            Fate::Works if written == 0 && take > 0 => {
                self.trace.failed(ENOSPC);
                Err(ENOSPC)
            }
            Fate::Works => {
                if way != Way::Cached {
                    self.stats.syncs += 1;
                    self.settle_range(file, position as usize, written)?;
                }
                if way == Way::DurableWhole && written < buf.len() {
                    self.trace.failed(ENOSPC);
                    return Err(ENOSPC);
                }
                Ok(written)
            }
            Fate::Fails(errno) => {
                if way != Way::Cached {
                    self.fail_sync(file, errno);
                }
                Err(errno)
            }
            Fate::Dies => Err(EIO),
        }
    }

    fn put_bytes(&mut self, file: Ino, bytes: &[u8], position: u64, now_ms: i64) -> Sys<()> {
        let number = self.next_number();
        self.content_mut(file)?.write(bytes, position as usize, number);
        self.inodes[file as usize].modified_ms = now_ms;
        Ok(())
    }

    fn settle_range(&mut self, file: Ino, position: usize, len: usize) -> Sys<()> {
        if !self.knobs.lying_durable_writes && len > 0 {
            self.content_mut(file)?.settle_range(position..position + len);
        }
        Ok(())
    }

    /// Syncs a file or directory. `since` is the number of the last change when the sync was
    /// submitted: a later one may be covered or not.
    pub(super) fn sync(
        &mut self,
        (epoch, call): (u32, Call),
        ino: Ino,
        since: Option<u64>,
    ) -> Sys<()> {
        match self.enter(epoch, call, Subject::File(ino), 0, 0)? {
            Fate::Works if self.aborted => match self.rng.coin() {
                true => Ok(()),
                false => Err(EIO),
            },
            Fate::Works => {
                self.stats.syncs += 1;
                let up_to = match since {
                    Some(since) if self.rng.coin() => {
                        since + self.rng.below(self.number - since + 1)
                    }
                    _ => u64::MAX,
                };
                self.settle(ino, up_to);
                Ok(())
            }
            // An interrupted sync has reported nothing yet: real files repeat it themselves.
            Fate::Fails(EINTR) => self.sync((epoch, call), ino, since),
            Fate::Fails(errno) => {
                self.fail_sync(ino, errno);
                Err(errno)
            }
            Fate::Dies => {
                if self.rng.coin() {
                    self.settle(ino, u64::MAX);
                }
                Err(EIO)
            }
        }
    }

    pub(super) fn change_len(&mut self, epoch: u32, file: Ino, len: u64, now_ms: i64) -> Sys<()> {
        let change = |state: &mut State| match len > FILE_BYTES_MAX {
            true => Err(EFBIG),
            false => state.set_len(file, len as usize, now_ms),
        };
        self.whole(epoch, Call::SetLen, Subject::File(file), change)
    }

    pub(super) fn allocate(&mut self, epoch: u32, file: Ino, len: u64, now_ms: i64) -> Sys<()> {
        let reserve = |state: &mut State| {
            if len > FILE_BYTES_MAX {
                return Err(EFBIG);
            }
            let before = state.inodes[file as usize].space_end;
            if state.claim(file, len) < len {
                state.release(file, before);
                return Err(ENOSPC);
            }
            if state.content(file)?.len() < len as usize {
                let number = state.next_number();
                state.content_mut(file)?.set_len(len as usize, number);
                state.inodes[file as usize].modified_ms = now_ms;
            }
            Ok(())
        };
        self.whole(epoch, Call::Allocate, Subject::File(file), reserve)
    }

    /// An operation of a lane is done now, some time after it was submitted.
    pub(super) fn perform(&mut self, epoch: u32, item: &mut InFlight, now_ms: i64) -> Sys<()> {
        if self.is_dead(epoch) {
            self.abandon(epoch, item, now_ms);
            item.settled = true;
            return Err(EIO);
        }
        let Some(ino) = item.ino else { return Err(EIO) };
        if let Some(errno) = item.refused {
            if matches!(item.op, Op::SyncData(_)) {
                self.fail_sync(ino, errno);
            }
            return Err(errno);
        }
        let result = match &item.op {
            Op::SyncData(_) => self.sync((epoch, Call::LaneSync), ino, Some(item.since)),
            Op::WriteBack { .. } => {
                self.whole(epoch, Call::LaneWriteBack, Subject::File(ino), |_| Ok(()))
            }
            Op::WriteDurable { buffer, position, .. } => {
                let call = (epoch, Call::LaneWrite);
                let bytes = buffer.as_slice();
                let whole = Way::DurableWhole;
                loop {
                    // Interrupted ones are repeated, as around a system call.
                    match self.write(call, ino, bytes, *position, whole, now_ms) {
                        Err(EINTR) => {}
                        result => break result.map(drop),
                    }
                }
            }
        };
        // What died in its own call has had its effect there.
        item.settled |= self.is_dead(epoch);
        result
    }

    /// An operation was in flight when the machine or the process died. To be called once.
    pub(super) fn abandon(&mut self, epoch: u32, item: &InFlight, now_ms: i64) {
        let was_alive = epoch == self.epoch;
        if item.settled || !was_alive || item.refused.is_some() {
            return;
        }
        let kind = self.dead.unwrap_or(CrashKind::Power);
        let Some(ino) = item.ino else { return };
        match &item.op {
            Op::WriteDurable { buffer, position, .. } => {
                // The power cut chooses among its sectors; what a killed process has handed to the
                // kernel is done, or was not begun.
                let begun = kind == CrashKind::Power || self.rng.coin();
                let bytes = buffer.as_slice();
                let end = *position + bytes.len() as u64;
                if begun && end <= FILE_BYTES_MAX && self.claim(ino, end) == end {
                    let put = self.put_bytes(ino, bytes, *position, now_ms);
                    if put.is_ok() && kind == CrashKind::Process {
                        let _ = self.settle_range(ino, *position as usize, bytes.len());
                    }
                }
            }
            Op::SyncData(_) if self.rng.coin() => self.settle(ino, self.number),
            Op::SyncData(_) | Op::WriteBack { .. } => {}
        }
    }
}
