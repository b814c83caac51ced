//! Lanes of io_uring.
//!
//! A [`RingLane`] is one small ring. Syncs are fdatasync entries, writebacks are sync_file_range
//! entries, and durable writes are write entries with RWF_DSYNC. It sleeps in poll(2) on its waker,
//! an eventfd that the kernel raises as well, with every completion.
//!
//! ```text
//! submit ─▶ writes, others ─▶ slots (files, buffers) ─▶ SQ ─▶ kernel ─▶ CQ ─▶ finished ─▶ reap
//!                             ≤ RING_ENTRIES                            └─▶ eventfd ◀─ wake
//! ```
//!
//! Writes are answers that somebody waits for: they go before all others, which never take the last
//! slots. A shard that waits for one may call `reap` over and over, since that makes no system call
//! unless the kernel has said that there is something to take, or there is something to hand over.
//! It yields between calls: on a device without FUA a kernel worker flushes its cache after each
//! write, on the CPU that takes the device's interrupts, and a loop on that CPU keeps it waiting.
//! Writes of 20 KiB, one at a time, were 1.05 to 1.1 times as fast as a loop of pwrite on an
//! O_DIRECT and O_DSYNC descriptor that way, and 0.01 times without the yield; four at a time of
//! 64 KiB, 1.9 to 2.1 times.
//!
//! Not a sleep in io_uring_enter with the waker polled by an entry: that measured no faster (3.5 µs
//! from a wake to running, against 3.1), and a host that sleeps in a poll of its own could not see
//! it. On Linux 6.18 a poll of the ring's own descriptor was seen to sleep over completions, and an
//! eventfd registered with the ring was not raised a second time by an entry that polls another
//! eventfd. Completions of syncs, which come from kernel workers, raise it every time.
//!
//! Invariants:
//! - A slot owns its file and its buffer from before its entry is queued until its completion has
//!   been taken. So a descriptor number is not reused for another file before the kernel has resolved
//!   it, and the memory that the kernel reads is neither freed nor written to.
//! - A buffer whose completion is never taken, because the ring broke, is leaked on purpose: the
//!   kernel may still read it. The kernel is never given an address to write to.
//! - Drop waits for completions; where it may not, the ring counts as broken.
//! - A number of a registered buffer is used on the ring that gave it, and while the buffer lives.
//! - The ring is created disabled and enabled by the first thread that reaps or waits: that thread
//!   is its single issuer, and a lane may be made on one thread and moved to its shard's.
//! - After an error of the ring itself the lane is *broken*: all that is pending is reported as
//!   failed, because nobody can tell what became of it, and `wait` says why.

#[cfg(test)]
mod measure;
mod probe;
mod slot;
#[cfg(test)]
mod tests;

pub(super) use probe::{disabled_sysctl, probe};

use super::wake::sleep_on;
use super::{Buffer, Done, Lane, Op, Waker};
use io_uring::IoUring;
use slot::Slot;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Entries of a lane's ring, and operations a lane has in the kernel at once; more wait in its
/// backlog. Small, because before Linux 5.12, and again on 6.18, a ring counts against RLIMIT_MEMLOCK,
/// which is 8 MiB for all of a user's rings, and a shard syncs tens of files at a time.
const RING_ENTRIES: u32 = 256;

/// Most kernel workers that run one shard's syncs. The kernel's own default grows with the machine
/// (four times its CPUs), for every shard. 64 files of 4 KiB on two cores: 2.6–2.9 ms one by one,
/// 2.1 ms with two workers, 1.6 with four, 1.3 with eight, 1.0 with 32.
const SYNC_WORKERS_MAX: u32 = 8;

/// Most syncs and writebacks in the kernel at once: its workers do no more than
/// [`SYNC_WORKERS_MAX`] at a time, and have some more at hand while the shard is busy. The rest waits
/// in the lane's backlog, because a write that the kernel cannot start without blocking (into blocks
/// never written before, say) queues behind them for a worker.
const OTHERS_IN_KERNEL_MAX: usize = 32;

/// When to try again what the kernel had no memory for, or interrupted.
const RETRY_AFTER: Duration = Duration::from_millis(1);

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// A lane on a ring of its own.
pub(super) struct RingLane {
    // Before `slots` and `waker`, so that the ring is closed first.
    ring: IoUring,
    /// Tells it from the rings of other lanes, past and present, as the owner of a buffer's number.
    id: u64,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Durable writes that wait for a slot.
    writes: VecDeque<Slot>,
    /// Syncs and writebacks that wait for one. Bounded by what the shard has pending: at most one
    /// sync per open file.
    others: VecDeque<Slot>,
    others_in_kernel: usize,
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
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            slots: (0..capacity).map(|_| None).collect(),
            free: (0..capacity).rev().collect(),
            writes: VecDeque::new(),
            others: VecDeque::new(),
            others_in_kernel: 0,
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

    /// Moves work from the backlogs to the submission queue: writes first, and others only as many as
    /// leave the kernel room for writes.
    fn fill(&mut self) {
        while let Some(&free) = self.free.last() {
            let next = match self.writes.pop_front() {
                None if self.others_in_kernel < OTHERS_IN_KERNEL_MAX => self.others.pop_front(),
                write => write,
            };
            let Some(slot) = next else { return };
            let Some(entry) = slot.entry(self.id) else {
                self.finished.push(slot.run());
                continue;
            };
            let entry = entry.user_data(free as u64);
            // SAFETY: what the entry names stays until its completion: its descriptor is open and its
            // address valid because the slot, placed below before anything is submitted, owns file
            // and buffer. `collect` takes a slot only after its completion; `break_with` takes it
            // before that, and leaks the buffer; `drop` comes to one of these two.
            let queued = unsafe { self.ring.submission().push(&entry) };
            if queued.is_err() {
                self.put_back(slot);
                return;
            }
            self.others_in_kernel += usize::from(!slot.is_write());
            self.free.pop();
            if let Some(place) = self.slots.get_mut(free) {
                *place = Some(slot);
            }
        }
    }

    /// Before all others of its kind.
    fn put_back(&mut self, slot: Slot) {
        if slot.is_write() { &mut self.writes } else { &mut self.others }.push_front(slot);
    }

    /// Takes completions from the ring.
    fn collect(&mut self) {
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return };
            let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let slot = self.slots.get_mut(index).and_then(Option::take);
            debug_assert!(slot.is_some(), "a completion nobody waits for");
            let Some(mut slot) = slot else { continue };
            self.free.push(index);
            self.others_in_kernel -= usize::from(!slot.is_write());
            match slot.judge(entry.result()) {
                Some(result) => self.finished.push(slot.done(result)),
                None => self.put_back(slot),
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
        tracing::error!("the io_uring of a shard failed, so what it was doing did too: {e}");
        let failure = || Err(io::Error::from_raw_os_error(errno));
        // The kernel holds references of its own to the files of what it has taken, and may yet read
        // the buffers. What it has not taken is never submitted, since a broken lane does not enter
        // its ring again; but nobody can tell the two apart.
        for slot in self.slots.iter_mut().filter_map(Option::take) {
            self.finished.push(slot.abandoned(failure()));
        }
        for slot in self.writes.drain(..).chain(self.others.drain(..)) {
            self.finished.push(slot.done(failure()));
        }
    }

    /// Something is queued that the kernel could take, and no completion will remind us of.
    fn must_retry(&mut self) -> bool {
        let others = !self.others.is_empty() && self.others_in_kernel < OTHERS_IN_KERNEL_MAX;
        let queued = others || !self.writes.is_empty();
        queued && !self.free.is_empty() || !self.ring.submission().is_empty()
    }

    fn in_kernel(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl Lane for RingLane {
    /// Registers them with the ring. The kernel then holds their pages until the ring is closed, also
    /// those of a buffer that is dropped before: its memory may go to other uses, for a number that
    /// no buffer has any more is in no entry.
    ///
    /// Handing over a write takes the shard 0.95 of the time that it takes with a buffer not
    /// registered at 20 KiB, 0.86 at 64 KiB, 0.67 at 512 KiB. The write itself takes as long.
    fn buffers(&mut self, count: u16, bytes: usize) -> Vec<Buffer> {
        let mut buffers: Vec<Buffer> = (0..count).map(|_| Buffer::new(bytes)).collect();
        let ranges: Vec<libc::iovec> = buffers.iter().map(Buffer::memory).collect();
        // SAFETY: the ranges are allocated while the kernel pins their pages, in this call. Later it
        // reads them through numbers only, which `Slot::entry` takes from a live buffer alone.
        match unsafe { self.ring.submitter().register_buffers(&ranges) } {
            Ok(()) => {
                for (number, buffer) in (0..count).zip(&mut buffers) {
                    buffer.set_registered(self.id, number);
                }
            }
            // RLIMIT_MEMLOCK, mostly; or they have been registered once already.
            Err(e) => tracing::debug!("buffers of a shard are not registered with its ring: {e}"),
        }
        buffers
    }

    fn submit(&mut self, op: Op, token: u64) {
        let slot = Slot::new(op, token);
        match self.state {
            State::Broken(errno) => {
                self.finished.push(slot.done(Err(io::Error::from_raw_os_error(errno))));
            }
            _ if slot.is_write() => self.writes.push_back(slot),
            _ => self.others.push_back(slot),
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
        in_kernel + self.writes.len() + self.others.len() + self.finished.len()
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
    /// Waits for what the kernel has taken, so that no operation of this lane runs after it; the
    /// backlogs are dropped undone. On another thread than the lane's own the kernel refuses the
    /// wait: then operations may finish later, on references the kernel holds itself and on buffers
    /// that are leaked.
    fn drop(&mut self) {
        while self.state == State::Running && self.in_kernel() > 0 {
            self.enter(1);
            if self.state == State::Running {
                // What must be asked for again is put back, and not asked for.
                self.collect();
            }
        }
    }
}

impl fmt::Debug for RingLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingLane")
            .field("state", &self.state)
            .field("in_kernel", &self.in_kernel())
            .field("writes", &self.writes.len())
            .field("others", &self.others.len())
            .finish_non_exhaustive()
    }
}
