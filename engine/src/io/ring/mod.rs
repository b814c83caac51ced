//! Lanes of io_uring.
//!
//! A [`RingLane`] is one small ring. Syncs are fdatasync entries. It sleeps in poll(2) on its waker,
//! an eventfd that the kernel raises as well, with every completion.
//!
//! ```text
//! submit ─▶ backlog ─▶ slots (files held) ─▶ SQ ─▶ kernel ─▶ CQ ─▶ finished ─▶ reap
//!                      ≤ RING_ENTRIES                        └─▶ eventfd ◀─ wake
//! ```
//!
//! Not a sleep in io_uring_enter with the waker polled by an entry: that measured no faster (3.5 µs
//! from a wake to running, against 3.1), and a host that sleeps in a poll of its own could not see
//! it. On Linux 6.18 a poll of the ring's own descriptor was seen to sleep over completions, and an
//! eventfd registered with the ring was not raised a second time by an entry that polls another
//! eventfd. Completions of syncs, which come from kernel workers, raise it every time.
//!
//! Invariants:
//! - The kernel is never given an address: every entry is a descriptor and flags. So nothing of
//!   ours can be written to after a drop, whatever is still in flight.
//! - A slot holds its file from before its entry is queued until its completion has been taken, so
//!   that a descriptor number is not reused for another file before the kernel has resolved it.
//! - The ring is created disabled and enabled by the first thread that reaps or waits: that thread
//!   is its single issuer, and a lane may be made on one thread and moved to its shard's.
//! - After an error of the ring itself the lane is *broken*: all that is pending is reported as
//!   failed, because nobody can tell what became of it, and `wait` says why.

#[cfg(test)]
mod measure;
mod probe;
#[cfg(test)]
mod tests;

pub(super) use probe::{disabled_sysctl, probe};

use super::wake::sleep_on;
use super::{Done, FileRef, Lane, Op, Waker};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// Entries of a lane's ring, and operations a lane has in the kernel at once; more wait in its
/// backlog. Small, because before Linux 5.12 a ring counts against RLIMIT_MEMLOCK, which is 8 MiB
/// for most users, and a shard syncs tens of files at a time.
const RING_ENTRIES: u32 = 256;

/// Most kernel workers that run one shard's syncs. The kernel's own default grows with the machine
/// (four times its CPUs), for every shard. 64 files of 4 KiB on two cores: 2.6–2.9 ms one by one,
/// 2.1 ms with two workers, 1.6 with four, 1.3 with eight, 1.0 with 32.
const SYNC_WORKERS_MAX: u32 = 8;

/// When to try again what the kernel had no memory for, or interrupted.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// A lane on a ring of its own.
pub(super) struct RingLane {
    // Before `slots` and `waker`, so that the ring is closed first.
    ring: IoUring,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Bounded by what the shard has pending: at most one sync per open file.
    backlog: VecDeque<Slot>,
    finished: Vec<Done>,
    waker: Arc<Waker>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// No thread has used it yet.
    Disabled,
    Running,
    /// The errno that ended it.
    Broken(i32),
}

#[derive(Debug)]
struct Slot {
    file: FileRef,
    token: u64,
}

impl RingLane {
    pub(super) fn new() -> io::Result<RingLane> {
        RingLane::on(probe::build_ring()?)
    }

    fn on(ring: IoUring) -> io::Result<RingLane> {
        let waker = Arc::new(Waker::new()?);
        ring.submitter().register_eventfd(waker.as_fd().as_raw_fd())?;
        let capacity = RING_ENTRIES as usize;
        Ok(RingLane {
            ring,
            slots: (0..capacity).map(|_| None).collect(),
            free: (0..capacity).rev().collect(),
            backlog: VecDeque::new(),
            finished: Vec::new(),
            waker,
            state: State::Disabled,
        })
    }

    /// Makes this thread the issuer, if none is. False if the lane is broken.
    fn enable(&mut self) -> bool {
        if self.state == State::Disabled {
            match self.ring.submitter().register_enable_rings() {
                Ok(()) => self.state = State::Running,
                Err(e) => self.break_with(&e),
            }
            // Since 5.15; without it there are more workers than are of use, no more than that.
            let _ = self.ring.submitter().register_iowq_max_workers(&mut [SYNC_WORKERS_MAX, 0]);
        }
        self.state == State::Running
    }

    /// Moves work from the backlog to the submission queue.
    fn fill(&mut self) {
        while let Some(&free) = self.free.last() {
            let Some(slot) = self.backlog.pop_front() else { return };
            let Some(fd) = slot.file.fd() else {
                // Not a file of a disk with descriptors; nothing to block on, then.
                let result = slot.file.sync_data();
                self.finished.push(Done { token: slot.token, result, buffer: None });
                continue;
            };
            let sync = opcode::Fsync::new(Fd(fd.as_raw_fd()))
                .flags(FsyncFlags::DATASYNC)
                .build()
                .user_data(free as u64);
            // SAFETY: the entry holds no address; its descriptor stays open because the slot it
            // names, filled below before anything is submitted, owns the file until its completion.
            let queued = unsafe { self.ring.submission().push(&sync) };
            if queued.is_err() {
                self.backlog.push_front(slot);
                return;
            }
            self.free.pop();
            if let Some(place) = self.slots.get_mut(free) {
                *place = Some(slot);
            }
        }
    }

    /// Takes completions from the ring.
    fn collect(&mut self) {
        for entry in self.ring.completion() {
            let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let slot = self.slots.get_mut(index).and_then(Option::take);
            debug_assert!(slot.is_some(), "a completion nobody waits for");
            let Some(slot) = slot else { continue };
            self.free.push(index);
            match entry.result() {
                // Interrupted before it did anything: no write error was reported and cleared.
                result if result == -libc::EINTR => self.backlog.push_back(slot),
                result if result < 0 => {
                    let result = Err(io::Error::from_raw_os_error(-result));
                    self.finished.push(Done { token: slot.token, result, buffer: None });
                }
                _ => self.finished.push(Done { token: slot.token, result: Ok(()), buffer: None }),
            }
        }
    }

    /// Submits what is queued, has the kernel post what it has put off, and waits for `want`
    /// completions. May do less; the caller looks at the completion queue anyway.
    fn enter(&mut self, want: usize) {
        let queue = self.ring.submission();
        if want == 0 && queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return;
        }
        drop(queue);
        if let Err(e) = self.ring.submit_and_wait(want) {
            match e.raw_os_error() {
                Some(libc::EINTR) => {}
                // The completion queue wants emptying, or the kernel is short of memory: later.
                Some(libc::EBUSY | libc::EAGAIN) => std::thread::yield_now(),
                _ => self.break_with(&e),
            }
        }
    }

    /// Takes what has finished and hands over what is queued.
    fn turn(&mut self) {
        if self.enable() {
            self.collect();
            self.fill();
            self.enter(0);
        }
        if self.state == State::Running {
            self.collect();
        }
    }

    /// Gives up the ring: all that is pending has failed, for all anyone can tell.
    fn break_with(&mut self, e: &io::Error) {
        let errno = e.raw_os_error().unwrap_or(libc::EIO);
        self.state = State::Broken(errno);
        tracing::error!("the io_uring of a shard failed, so what it was syncing did too: {e}");
        // The kernel holds references of its own to the files of what it has taken; what it has not
        // taken is never submitted, since a broken lane does not enter its ring again.
        let pending = self.slots.iter_mut().filter_map(Option::take).chain(self.backlog.drain(..));
        for slot in pending {
            let result = Err(io::Error::from_raw_os_error(errno));
            self.finished.push(Done { token: slot.token, result, buffer: None });
        }
    }

    /// Something is queued that the kernel could take, and no completion will remind us of.
    fn must_retry(&mut self) -> bool {
        !self.ring.submission().is_empty() || !(self.backlog.is_empty() || self.free.is_empty())
    }

    fn in_kernel(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl Lane for RingLane {
    fn submit(&mut self, op: Op, token: u64) {
        if let State::Broken(errno) = self.state {
            let result = Err(io::Error::from_raw_os_error(errno));
            self.finished.push(Done { token, result, buffer: op.into_buffer() });
            return;
        }
        match op {
            Op::SyncData(file) => self.backlog.push_back(Slot { file, token }),
            mut op => {
                let result = op.run();
                self.finished.push(Done { token, result, buffer: op.into_buffer() });
            }
        }
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        self.turn();
        done.append(&mut self.finished);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.turn();
        if self.finished.is_empty() {
            // Failures are reported first; then there is nothing to sleep on any more.
            if let State::Broken(errno) = self.state {
                return Err(io::Error::from_raw_os_error(errno));
            }
            if self.must_retry() {
                let soon = timeout.map_or(RETRY_AFTER, |time| time.min(RETRY_AFTER));
                sleep_on(&self.waker, Some(soon))?;
            } else {
                sleep_on(&self.waker, timeout)?;
            }
        }
        self.waker.drain();
        Ok(())
    }

    fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    fn pending(&self) -> usize {
        let in_kernel = if matches!(self.state, State::Broken(_)) { 0 } else { self.in_kernel() };
        in_kernel + self.backlog.len() + self.finished.len()
    }

    fn would_wait(&mut self) -> bool {
        self.turn();
        // A wake not yet consumed shows in the descriptor itself.
        self.state == State::Running && self.finished.is_empty() && !self.must_retry()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.waker.as_fd())
    }
}

impl Drop for RingLane {
    /// Waits for what the kernel has taken, so that no sync of this lane runs after it; the backlog
    /// is dropped undone. On another thread than the lane's own the kernel refuses the wait: then
    /// syncs may finish later, on references the kernel holds itself.
    fn drop(&mut self) {
        self.backlog.clear();
        while self.state == State::Running && self.in_kernel() > 0 {
            self.enter(1);
            if self.state == State::Running {
                self.collect();
                // An interrupted sync was put back; nobody waits for it now.
                self.backlog.clear();
            }
        }
    }
}

impl fmt::Debug for RingLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingLane")
            .field("state", &self.state)
            .field("in_kernel", &self.in_kernel())
            .field("backlog", &self.backlog.len())
            .finish_non_exhaustive()
    }
}
