//! Lanes of io_uring.
//!
//! A [`RingLane`] is one small ring: fdatasync, writes with RWF_DSYNC from aligned buffers, and
//! sync_file_range. It sleeps in poll(2) on its waker, an eventfd that the kernel raises as well, with
//! every completion.
//!
//! ```text
//! submit ─▶ writes, then backlog ─▶ slots (file and buffer held) ─▶ SQ ─▶ kernel ─▶ CQ ─▶ finished ─▶ reap
//!                                   ≤ RING_ENTRIES                               └─▶ eventfd ◀─ wake
//! ```
//!
//! Not a sleep in io_uring_enter with the waker polled by an entry: that measured no faster (3.5 µs
//! from a wake to running, against 3.1), and a host that sleeps in a poll of its own could not see
//! it. On Linux 6.18 a poll of the ring's own descriptor was seen to sleep over completions, and an
//! eventfd registered with the ring was not raised a second time by an entry that polls another
//! eventfd. Completions of syncs, which come from kernel workers, raise it every time.
//!
//! Invariants:
//! - The kernel is given addresses of [`Buffer`]s only, and only to read. A slot owns its buffer and
//!   its file from before its entry is queued until its completion has been taken: so the memory is
//!   not reused, nor the descriptor's number for another file, while the kernel may look at either.
//!   When the ring breaks, nobody can tell when that ends, and the buffer is leaked.
//! - Writes, which somebody waits for, go before syncs, and find slots that syncs never take.
//! - The ring is created disabled and enabled by the first thread that reaps or waits: that thread
//!   is its single issuer, and a lane may be made on one thread and moved to its shard's.
//! - After an error of the ring itself the lane is *broken*: all that is pending is reported as
//!   failed, because nobody can tell what became of it, and `wait` says why.

use super::wake::sleep_on;
use super::{BLOCK_BYTES, Buffer, Done, Lane, Op, Waker};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
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

/// Entries kept free for writes.
const WRITE_ENTRIES: usize = 16;

/// When to try again what the kernel had no memory for, or interrupted.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// A lane on a ring of its own.
pub(super) struct RingLane {
    // Before `slots` and `waker`, so that the ring is closed first.
    ring: IoUring,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Writes, which go first. As many as the shard has buffers.
    writes: VecDeque<Slot>,
    /// Bounded by what the shard has pending: at most one sync and a few writebacks per open file.
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
    op: Op,
    token: u64,
    /// Bytes of a write that are on disk.
    written: usize,
}

impl Slot {
    /// The entry that tells the kernel what to do. `None` for a file without a descriptor.
    fn entry(&self) -> Option<squeue::Entry> {
        let fd = |file: &super::FileRef| file.fd().map(|fd| Fd(fd.as_raw_fd()));
        Some(match &self.op {
            Op::SyncData(file) => opcode::Fsync::new(fd(file)?).flags(FsyncFlags::DATASYNC).build(),
            Op::WriteBack { file, position, length } => {
                let length = u32::try_from(*length).unwrap_or(u32::MAX);
                opcode::SyncFileRange::new(fd(file)?, length)
                    .offset(*position)
                    .flags(libc::SYNC_FILE_RANGE_WRITE)
                    .build()
            }
            Op::WriteDurable { file, buffer, position } => {
                let rest = buffer.as_slice().get(self.written..).unwrap_or_default();
                let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
                let position = position + self.written as u64;
                match buffer.registered() {
                    Some(number) => {
                        opcode::WriteFixed::new(fd(file)?, rest.as_ptr(), length, number)
                            .offset(position)
                            .rw_flags(libc::RWF_DSYNC)
                            .build()
                    }
                    None => opcode::Write::new(fd(file)?, rest.as_ptr(), length)
                        .offset(position)
                        .rw_flags(libc::RWF_DSYNC)
                        .build(),
                }
            }
        })
    }

    /// What a completion means; `None` if there is more to do.
    fn outcome(&mut self, result: i32) -> Option<io::Result<()>> {
        if let Ok(bytes) = usize::try_from(result) {
            let Op::WriteDurable { buffer, .. } = &self.op else { return Some(Ok(())) };
            self.written += bytes;
            let rest = buffer.len().checked_sub(self.written);
            return match rest {
                Some(0) => Some(Ok(())),
                Some(_) if bytes > 0 && self.written.is_multiple_of(BLOCK_BYTES) => None,
                _ => Some(Err(io::ErrorKind::WriteZero.into())),
            };
        }
        match (-result, &self.op) {
            // Interrupted before it did anything: no write error was reported and cleared.
            (libc::EINTR, _) | (libc::EAGAIN, Op::WriteDurable { .. }) => None,
            // Only a hint, which not every file system takes.
            (
                libc::EINVAL | libc::ESPIPE | libc::EOPNOTSUPP | libc::ENOSYS,
                Op::WriteBack { .. },
            ) => Some(Ok(())),
            (errno, _) => Some(Err(io::Error::from_raw_os_error(errno))),
        }
    }

    fn done(self, result: io::Result<()>) -> Done {
        Done { token: self.token, result, buffer: self.op.into_buffer() }
    }
}

impl RingLane {
    pub(super) fn new() -> io::Result<RingLane> {
        RingLane::on(build_ring()?)
    }

    fn on(ring: IoUring) -> io::Result<RingLane> {
        let waker = Arc::new(Waker::new()?);
        ring.submitter().register_eventfd(waker.as_fd().as_raw_fd())?;
        let capacity = RING_ENTRIES as usize;
        Ok(RingLane {
            ring,
            slots: (0..capacity).map(|_| None).collect(),
            free: (0..capacity).rev().collect(),
            writes: VecDeque::new(),
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
            let is_write = !self.writes.is_empty();
            if !is_write && self.free.len() <= WRITE_ENTRIES {
                return;
            }
            let queue = if is_write { &mut self.writes } else { &mut self.backlog };
            let Some(mut slot) = queue.pop_front() else { return };
            let Some(entry) = slot.entry() else {
                // Not a file of a disk with descriptors; nothing to block on, then.
                let result = slot.op.run();
                self.finished.push(slot.done(result));
                continue;
            };
            let entry = entry.user_data(free as u64);
            // SAFETY: the slot that the entry names, filled below before anything is submitted, owns
            // the file of its descriptor and the buffer of its address until its completion.
            let queued = unsafe { self.ring.submission().push(&entry) };
            if queued.is_err() {
                let queue = if is_write { &mut self.writes } else { &mut self.backlog };
                queue.push_front(slot);
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
            let Some(mut slot) = slot else { continue };
            self.free.push(index);
            match slot.outcome(entry.result()) {
                Some(result) => self.finished.push(slot.done(result)),
                None if matches!(slot.op, Op::WriteDurable { .. }) => self.writes.push_back(slot),
                None => self.backlog.push_back(slot),
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
        let failed = || Err(io::Error::from_raw_os_error(errno));
        for slot in self.slots.iter_mut().filter_map(Option::take) {
            // The kernel may read it for as long as it likes.
            std::mem::forget(slot.op.into_buffer());
            let (token, result) = (slot.token, failed());
            self.finished.push(Done { token, result, buffer: None });
        }
        let waiting = self.writes.drain(..).chain(self.backlog.drain(..));
        self.finished.extend(waiting.map(|slot| slot.done(failed())));
    }

    /// Something is queued that the kernel could take, and no completion will remind us of.
    fn must_retry(&mut self) -> bool {
        let waiting = !self.writes.is_empty() && !self.free.is_empty()
            || !self.backlog.is_empty() && self.free.len() > WRITE_ENTRIES;
        waiting || !self.ring.submission().is_empty()
    }

    fn in_kernel(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl Lane for RingLane {
    fn buffers(&mut self, count: u16, bytes: usize) -> Vec<Buffer> {
        let mut buffers: Vec<Buffer> = (0..count).map(|_| Buffer::new(bytes)).collect();
        if !self.enable() {
            return buffers;
        }
        let memory: Vec<libc::iovec> = buffers.iter_mut().map(Buffer::memory).collect();
        // SAFETY: each address is of a buffer's own memory, of the length given. The kernel pins its
        // pages: should a buffer be dropped before the ring, they are freed when the ring is, and its
        // number is not used again, because only the buffer knows it.
        let registered = unsafe { self.ring.submitter().register_buffers(&memory) };
        match registered {
            Ok(()) => {
                for (number, buffer) in (0..count).zip(&mut buffers) {
                    buffer.set_registered(number);
                }
            }
            // Most likely RLIMIT_MEMLOCK, which the pinned pages count against.
            Err(e) => tracing::debug!("buffers are not registered, so writes look them up: {e}"),
        }
        buffers
    }

    fn submit(&mut self, op: Op, token: u64) {
        if let State::Broken(errno) = self.state {
            let result = Err(io::Error::from_raw_os_error(errno));
            self.finished.push(Done { token, result, buffer: op.into_buffer() });
            return;
        }
        let is_write = matches!(op, Op::WriteDurable { .. });
        let queue = if is_write { &mut self.writes } else { &mut self.backlog };
        queue.push_back(Slot { op, token, written: 0 });
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
        in_kernel + self.writes.len() + self.backlog.len() + self.finished.len()
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
        self.writes.clear();
        self.backlog.clear();
        while self.state == State::Running && self.in_kernel() > 0 {
            self.enter(1);
            if self.state == State::Running {
                self.collect();
                // What was interrupted was put back; nobody waits for it now.
                self.writes.clear();
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

/// Rings from best to plainest; older kernels refuse flags they do not know.
fn builders() -> [io_uring::Builder; 3] {
    let mut best = IoUring::builder();
    // Completions are posted when the owner asks, by itself: no interrupts, no locks (6.1).
    best.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
    let mut good = IoUring::builder();
    // Completions wait for the owner's next system call instead of interrupting it (5.19).
    good.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
    [best, good, IoUring::builder()].map(|mut builder| {
        builder.dontfork().setup_r_disabled();
        builder
    })
}

fn build_ring() -> io::Result<IoUring> {
    let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
    for builder in builders() {
        match builder.build(RING_ENTRIES) {
            Ok(ring) => return Ok(ring),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => refusal = e,
            Err(e) => return Err(e),
        }
    }
    Err(refusal)
}

/// How long the probe gives a sync of a directory that nobody writes to.
const PROBE_TIME_MAX: Duration = Duration::from_secs(10);

/// Finds out whether lanes can be rings, by using one: wakes it, and syncs `dir` through it (which
/// leaves no file behind and works on a read-only mount).
///
/// # Errors
/// A sentence that says why not.
pub(super) fn probe(dir: &Path) -> Result<(), String> {
    let mut lane = RingLane::new().map_err(|e| refusal(&e))?;
    lane.waker().wake();
    lane.wait(Some(PROBE_TIME_MAX)).map_err(|e| refusal(&e))?;
    // A directory yet to be created cannot be synced; that lanes work at all has been seen.
    let Ok(file) = super::plain::open_dir(dir) else { return Ok(()) };
    lane.submit(Op::SyncData(Arc::clone(&file)), 0);
    let mut done = Vec::new();
    for _ in 0..2 {
        lane.wait(Some(PROBE_TIME_MAX)).map_err(|e| refusal(&e))?;
        lane.reap(&mut done);
        if let Some(Done { result, .. }) = done.pop() {
            // Some file systems have no sync for directories; then plain calls fail the same way.
            return match (result, file.sync_data()) {
                (Err(e), Ok(())) => Err(format!("io_uring refused a sync: {}", refusal(&e))),
                _ => Ok(()),
            };
        }
    }
    Err("io_uring took a sync and did not complete it in time".into())
}

/// Who refused, as far as an errno tells, and what can be done about it.
fn refusal(e: &io::Error) -> String {
    let cause = match e.raw_os_error() {
        Some(libc::EPERM) => match disabled_sysctl() {
            Some(2) => "sysctl kernel.io_uring_disabled=2 turns it off for every process".into(),
            Some(1) => {
                "sysctl kernel.io_uring_disabled=1 keeps it for CAP_SYS_ADMIN and the group in \
                 kernel.io_uring_group"
                    .into()
            }
            _ => "most likely a seccomp filter, as container runtimes install by default".into(),
        },
        Some(libc::EACCES) => "most likely a security module such as SELinux".into(),
        Some(libc::ENOSYS) => {
            "this kernel has no io_uring, or a sandbox (gVisor, a seccomp filter) hides it".into()
        }
        Some(libc::ENOMEM) => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
            let limit = limit.map_or("unlimited".into(), |bytes| format!("{bytes} bytes"));
            format!("RLIMIT_MEMLOCK is {limit}; raise ulimit -l, or use Linux 5.12 or later")
        }
        Some(libc::EMFILE | libc::ENFILE) => "no descriptor left; raise ulimit -n".into(),
        Some(libc::EINVAL) => "the kernel is too old for what the engine needs (5.10)".into(),
        _ => String::new(),
    };
    match (errno_name(e), cause) {
        (None, cause) if cause.is_empty() => e.to_string(),
        (Some(name), cause) if cause.is_empty() => format!("{name} ({e})"),
        (name, cause) => format!("{} ({cause})", name.unwrap_or("refused")),
    }
}

fn errno_name(e: &io::Error) -> Option<&'static str> {
    Some(match e.raw_os_error()? {
        libc::EPERM => "EPERM",
        libc::EACCES => "EACCES",
        libc::ENOSYS => "ENOSYS",
        libc::ENOMEM => "ENOMEM",
        libc::EMFILE => "EMFILE",
        libc::ENFILE => "ENFILE",
        libc::EINVAL => "EINVAL",
        _ => return None,
    })
}

/// The sysctl that forbids io_uring (since Linux 6.6), if this kernel has it.
pub(super) fn disabled_sysctl() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::{BackendChoice, BackendKind, File, FileRef, open, suite};
    use super::*;
    use std::time::Instant;

    /// Makes one system call fail on this thread, for good, as a container's filter does.
    fn forbid(call: libc::c_long, errno: i32) {
        let allow = libc::SECCOMP_RET_ALLOW;
        let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
        let op = |code: u32, jf, k| libc::sock_filter {
            code: u16::try_from(code).unwrap(),
            jt: 0,
            jf,
            k,
        };
        let mut filter = [
            op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0), // seccomp_data.nr
            op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, u32::try_from(call).unwrap()),
            op(libc::BPF_RET | libc::BPF_K, 0, refuse),
            op(libc::BPF_RET | libc::BPF_K, 0, allow),
        ];
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).unwrap(),
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: this option takes numbers only.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        // SAFETY: the kernel copies the program, which points to `filter`; both outlive the call.
        let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, 0, 0) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }

    /// On a thread of its own: a filter is a thread's and cannot be taken off.
    fn apart<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(run).join().unwrap()
    }

    /// False, with a message, where the machine running the tests has no io_uring to test.
    fn usable(dir: &Path) -> bool {
        probe(dir).inspect_err(|why| eprintln!("skipped: no io_uring here: {why}")).is_ok()
    }

    #[test]
    fn the_ring_backend_does_what_every_disk_must() {
        let dir = tempfile::tempdir().unwrap();
        if usable(dir.path()) {
            let disk = open(dir.path(), BackendChoice::IoUring).unwrap();
            assert_eq!(disk.backend().kind, BackendKind::IoUring);
            suite::all(&disk, dir.path());
        }
    }

    #[test]
    fn a_container_that_forbids_io_uring_gets_plain_calls_and_a_reason() {
        for (call, errno, word) in [
            (libc::SYS_io_uring_setup, libc::EPERM, "EPERM"),
            (libc::SYS_io_uring_setup, libc::ENOSYS, "ENOSYS"),
            (libc::SYS_io_uring_setup, libc::ENOMEM, "MEMLOCK"),
            (libc::SYS_io_uring_enter, libc::EPERM, "EPERM"),
            (libc::SYS_io_uring_register, libc::EPERM, "EPERM"),
        ] {
            apart(move || {
                forbid(call, errno);
                let dir = tempfile::tempdir().unwrap();
                let disk = open(dir.path(), BackendChoice::Auto).unwrap();
                assert_eq!(disk.backend().kind, BackendKind::Plain);
                let reason = &disk.backend().reason;
                assert!(reason.contains(word), "{reason}");
                println!("{reason}");
                suite::all(&disk, dir.path());
                let e = open(dir.path(), BackendChoice::IoUring).unwrap_err();
                assert!(e.to_string().contains(word), "{e}");
            });
        }
    }

    #[test]
    fn a_ring_that_fails_later_reports_its_syncs_as_failed_and_never_hangs() {
        let dir = tempfile::tempdir().unwrap();
        if !usable(dir.path()) {
            return;
        }
        apart(move || {
            let disk = open(dir.path(), BackendChoice::IoUring).unwrap();
            let file = disk.open(&dir.path().join("f"), super::super::OpenMode::CreateNew).unwrap();
            let mut lane = disk.lane().unwrap();
            lane.submit(Op::SyncData(Arc::clone(&file)), 1);
            let mut done = Vec::new();
            while lane.pending() > 0 {
                lane.wait(None).unwrap();
                lane.reap(&mut done);
            }
            assert!(done.pop().unwrap().result.is_ok());
            forbid(libc::SYS_io_uring_enter, libc::EPERM);
            for token in 0..1_000 {
                lane.submit(Op::SyncData(Arc::clone(&file)), token);
            }
            lane.wait(None).unwrap();
            lane.reap(&mut done);
            assert_eq!(lane.pending(), 0);
            lane.submit(Op::SyncData(Arc::clone(&file)), 1_000);
            lane.wait(None).unwrap();
            lane.reap(&mut done);
            assert!(done.iter().map(|d| d.token).eq(0..=1_000));
            assert!(done.iter().all(|d| d.result.is_err()));
            assert_eq!(lane.wait(None).unwrap_err().raw_os_error(), Some(libc::EPERM));
            drop(lane);
            assert_eq!(Arc::strong_count(&file), 1);
        });
    }

    #[test]
    fn every_ring_that_an_older_kernel_would_give_works_too() {
        for builder in builders() {
            let dir = tempfile::tempdir().unwrap();
            let Ok(ring) = builder.build(RING_ENTRIES) else { continue };
            let mut lane = RingLane::on(ring).unwrap();
            let file = super::super::plain::open_dir(dir.path()).unwrap();
            for token in 0..600 {
                lane.submit(Op::SyncData(Arc::clone(&file)), token);
            }
            let mut done = Vec::new();
            lane.waker().wake();
            while lane.pending() > 0 {
                lane.wait(None).unwrap();
                lane.reap(&mut done);
            }
            assert_eq!(done.len(), 600);
        }
    }

    #[test]
    #[ignore = "a measurement, not a test: run it alone, in release, with --nocapture"]
    fn measure_wakes_and_syncs() {
        let dir = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
        for choice in [BackendChoice::IoUring, BackendChoice::Plain] {
            let disk = open(dir.path(), choice).unwrap();
            println!("{}:", disk.backend().kind.name());
            measure_wakes(disk.lane().unwrap());
            measure_syncs(&*disk, dir.path());
        }
        for (name, builder) in ["defer", "coop", "plainest"].into_iter().zip(builders()) {
            println!("ring, {name}:");
            measure_wakes(Box::new(RingLane::on(builder.build(RING_ENTRIES).unwrap()).unwrap()));
        }
    }

    fn percentiles(what: &str, times: &mut [Duration]) {
        times.sort();
        let at = |per_mille| times[(times.len() - 1) * per_mille / 1000];
        println!("  {what}: p50 {:?}  p99 {:?}  max {:?}", at(500), at(990), at(1000));
    }

    fn measure_wakes(mut lane: Box<dyn Lane>) {
        use std::sync::atomic::{AtomicU64, Ordering};
        const ROUNDS: usize = 5_000;
        let (start, sent) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let (waker, stamp) = (lane.waker(), Arc::clone(&sent));
        let nanos = |t: Duration| u64::try_from(t.as_nanos()).unwrap();
        let other = std::thread::spawn(move || {
            let mut cost = Vec::with_capacity(ROUNDS);
            while cost.len() < ROUNDS {
                std::thread::sleep(Duration::from_micros(100));
                let before = start.elapsed();
                stamp.store(nanos(before), Ordering::Release);
                waker.wake();
                cost.push(start.elapsed() - before);
            }
            cost
        });
        let (mut times, mut last) = (Vec::with_capacity(ROUNDS), 0);
        while times.len() < ROUNDS * 99 / 100 {
            lane.wait(Some(Duration::from_secs(1))).unwrap();
            let now = nanos(start.elapsed());
            let at = sent.load(Ordering::Acquire);
            if at != last {
                times.push(Duration::from_nanos(now - at));
                last = at;
            }
        }
        percentiles("wake to running", &mut times);
        percentiles("call of wake", &mut other.join().unwrap());
    }

    fn measure_syncs(disk: &dyn super::super::Disk, dir: &Path) {
        use super::super::OpenMode;
        let page = [1; 4096];
        let files: Vec<_> = (0..64)
            .map(|i| disk.open(&dir.join(i.to_string()), OpenMode::CreateOrTruncate).unwrap())
            .collect();
        let mut lane = disk.lane().unwrap();
        let mut position = 0;
        let mut rounds = |what: &str, count: usize, files: &[FileRef], run: &mut dyn FnMut()| {
            let mut times = Vec::new();
            for _ in 0..count {
                files.iter().for_each(|f| f.write_all_at(&page, position).unwrap());
                position += 4096;
                let start = Instant::now();
                run();
                times.push(start.elapsed());
            }
            percentiles(what, &mut times);
        };
        rounds("one file, sync_data", 500, &files[..1], &mut || files[0].sync_data().unwrap());
        let mut done = Vec::new();
        let mut through_lane = |files: &[FileRef]| {
            for file in files {
                lane.submit(Op::SyncData(Arc::clone(file)), 0);
            }
            while lane.pending() > 0 {
                lane.wait(None).unwrap();
                lane.reap(&mut done);
            }
            assert!(done.drain(..).all(|d| d.result.is_ok()));
        };
        rounds("one file, lane", 500, &files[..1], &mut || through_lane(&files[..1]));
        rounds("64 files, sync_data each", 100, &files, &mut || {
            files.iter().for_each(|f: &Arc<dyn File>| f.sync_data().unwrap());
        });
        rounds("64 files, lane", 100, &files, &mut || through_lane(&files));
    }
}
