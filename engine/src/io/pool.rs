//! Lanes of plain system calls.
//!
//! A [`PoolLane`] hands its work to a few threads that all lanes of a disk share, and sleeps in
//! poll(2) on its waker, which finished work raises as well. Threads are started when there is work
//! for them, and end with the pool. Durable writes go first, and never wait for a sync. Nothing here needs a descriptor: a sync is [`File::sync_data`],
//! so that simulated and fault-injecting files work too.
//!
//! [`File::sync_data`]: super::File::sync_data

#![forbid(unsafe_code)]

use super::wake::sleep_on;
use super::{Done, Lane, Op, Waker};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Most threads that sync or write back at once. Syncs of different files overlap on the device: 64 files of 4 KiB took
/// 2.9 ms one by one, 2.2 ms with two threads, 1.6 with four, 1.3 with eight, 0.9 with 32. Four take
/// most of that, and are few enough to be started in a container with a low thread limit.
const SYNC_THREADS_MAX: usize = 4;

/// Most threads of one pool. Those beyond [`SYNC_THREADS_MAX`] are started for durable writes, and
/// do nothing else, so that a write never waits for a sync to end. One of them may be flushing the
/// device while the other fills it.
const THREADS_MAX: usize = SYNC_THREADS_MAX + 2;

/// The threads that do what may block. Shared by the lanes of a disk.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<PoolState>,
    work: Condvar,
}

#[derive(Debug, Default)]
struct PoolState {
    /// Durable writes that no thread has begun: somebody waits for their answers.
    writes: VecDeque<Job>,
    /// The rest. Bounded by what the lanes have pending: a shard has at most one sync per open file.
    others: VecDeque<Job>,
    others_running: usize,
    threads: Vec<JoinHandle<()>>,
    idle: usize,
    closed: bool,
}

impl PoolState {
    /// What a free thread begins next: writes first, and no more than so many others at once.
    fn next(&mut self) -> Option<Job> {
        if let Some(write) = self.writes.pop_front() {
            return Some(write);
        }
        let other = self.others.pop_front_if(|_| self.others_running < SYNC_THREADS_MAX);
        self.others_running += usize::from(other.is_some());
        other
    }

    /// True if there is more to begin than threads to begin it, and one more may be started. Idle
    /// threads may all have been called already and not be up yet: so what is queued counts.
    fn wants_thread(&self) -> bool {
        let others = self.others.len().min(SYNC_THREADS_MAX.saturating_sub(self.others_running));
        let most = if self.writes.is_empty() { SYNC_THREADS_MAX } else { THREADS_MAX };
        self.idle < self.writes.len() + others && self.threads.len() < most
    }
}

#[derive(Debug)]
struct Job {
    op: Op,
    token: u64,
    lane: Arc<LaneShared>,
}

impl Pool {
    /// A pool without threads; the first job starts one.
    pub(super) fn new() -> Pool {
        Pool { shared: Arc::default() }
    }

    fn push(&self, job: Job) {
        let mut state = lock(&self.shared.state);
        if job.is_write() { &mut state.writes } else { &mut state.others }.push_back(job);
        if state.wants_thread() {
            let shared = Arc::clone(&self.shared);
            match std::thread::Builder::new()
                .name("loglane-sync".into())
                .spawn(move || run(&shared))
            {
                Ok(thread) => state.threads.push(thread),
                Err(e) if state.threads.is_empty() => {
                    // No thread at all is no reason to leave a sync undone; it blocks, that is all.
                    tracing::warn!("cannot start a sync thread, so syncs block their shard: {e}");
                    let writes = std::mem::take(&mut state.writes);
                    let others = std::mem::take(&mut state.others);
                    drop(state);
                    writes.into_iter().chain(others).for_each(Job::run);
                    return;
                }
                Err(_) => {}
            }
        }
        drop(state);
        self.shared.work.notify_one();
    }

    /// Takes back what no thread has begun.
    fn remove_jobs_of(&self, lane: &Arc<LaneShared>) -> usize {
        let mut state = lock(&self.shared.state);
        let before = state.writes.len() + state.others.len();
        state.writes.retain(|job| !Arc::ptr_eq(&job.lane, lane));
        state.others.retain(|job| !Arc::ptr_eq(&job.lane, lane));
        before - state.writes.len() - state.others.len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let threads = {
            let mut state = lock(&self.shared.state);
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.work.notify_all();
        for thread in threads {
            // A file that owns its disk can make one of our threads drop the pool: not itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a sync thread panicked");
            }
        }
    }
}

fn run(shared: &Shared) {
    let mut state = lock(&shared.state);
    loop {
        if let Some(job) = state.next() {
            drop(state);
            let is_write = job.is_write();
            job.run();
            state = lock(&shared.state);
            state.others_running -= usize::from(!is_write);
        } else if state.closed {
            return;
        } else {
            state.idle += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

impl Job {
    fn is_write(&self) -> bool {
        matches!(self.op, Op::WriteDurable { .. })
    }

    fn run(self) {
        let Job { mut op, token, lane } = self;
        // What panics must still complete, or its shard would wait for it for ever.
        let result = catch_unwind(AssertUnwindSafe(|| op.run()))
            .unwrap_or_else(|_| Err(io::Error::other("the operation panicked")));
        // The file goes before the completion is seen, so that a shard that closes it really does.
        let buffer = op.into_buffer();
        let mut state = lock(&lane.state);
        state.done.push(Done { token, result, buffer });
        state.running -= 1;
        let idle = state.running == 0;
        drop(state);
        lane.waker.wake();
        if idle {
            lane.idle.notify_all();
        }
    }
}

/// A lane whose work runs on the pool.
#[derive(Debug)]
pub(super) struct PoolLane {
    pool: Arc<Pool>,
    shared: Arc<LaneShared>,
    pending: usize,
}

#[derive(Debug)]
struct LaneShared {
    state: Mutex<LaneState>,
    /// Notified when the last job of a lane has finished; the lane's drop waits for it.
    idle: Condvar,
    waker: Arc<Waker>,
}

#[derive(Debug, Default)]
struct LaneState {
    done: Vec<Done>,
    /// Jobs in the pool's queue or on one of its threads.
    running: usize,
}

impl PoolLane {
    pub(super) fn new(pool: Arc<Pool>) -> io::Result<PoolLane> {
        let waker = Arc::new(Waker::new()?);
        let shared = LaneShared { state: Mutex::default(), idle: Condvar::new(), waker };
        Ok(PoolLane { pool, shared: Arc::new(shared), pending: 0 })
    }
}

impl Lane for PoolLane {
    fn submit(&mut self, op: Op, token: u64) {
        self.pending += 1;
        lock(&self.shared.state).running += 1;
        self.pool.push(Job { op, token, lane: Arc::clone(&self.shared) });
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let mut state = lock(&self.shared.state);
        self.pending -= state.done.len();
        done.append(&mut state.done);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if lock(&self.shared.state).done.is_empty() {
            sleep_on(&self.shared.waker, timeout)?;
        }
        self.shared.waker.drain();
        Ok(())
    }

    fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.shared.waker)
    }

    fn pending(&self) -> usize {
        self.pending
    }

    fn would_wait(&mut self) -> bool {
        // A wake not yet consumed shows in the descriptor itself.
        lock(&self.shared.state).done.is_empty()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.waker.as_fd())
    }
}

impl Drop for PoolLane {
    fn drop(&mut self) {
        let removed = self.pool.remove_jobs_of(&self.shared);
        let mut state = lock(&self.shared.state);
        state.running -= removed;
        while state.running > 0 {
            state = self.shared.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// No job panics while it holds a lock, and what the locks guard is whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::{Buffer, File};
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A file without a descriptor, as a simulated disk has.
    #[derive(Debug, Default)]
    struct Fake {
        syncs: AtomicUsize,
        running: AtomicUsize,
        most: AtomicUsize,
        panics: bool,
        /// Syncs end only when this is unlocked.
        gate: Mutex<()>,
    }

    impl File for Fake {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }
        fn len(&self) -> io::Result<u64> {
            Ok(0)
        }
        fn set_modified(&self, _: std::time::SystemTime) -> io::Result<()> {
            Ok(())
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn sync_data(&self) -> io::Result<()> {
            assert!(!self.panics, "as asked");
            let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            drop(lock(&self.gate));
            self.running.fetch_sub(1, Ordering::SeqCst);
            self.syncs.fetch_add(1, Ordering::SeqCst);
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
        fn write_durable_at(&self, bytes: &[u8], _: u64) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn write_back(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn allocate(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    fn reap_all(lane: &mut PoolLane) -> Vec<Done> {
        let mut done = Vec::new();
        while lane.pending() > 0 {
            lane.wait(Some(Duration::from_secs(20))).unwrap();
            lane.reap(&mut done);
        }
        done
    }

    #[test]
    fn a_file_without_a_descriptor_syncs_through_the_trait_on_few_threads() {
        let file = Arc::new(Fake::default());
        let mut lane = PoolLane::new(Arc::new(Pool::new())).unwrap();
        for token in 0..40 {
            lane.submit(Op::SyncData(file.clone()), token);
        }
        let mut done = reap_all(&mut lane);
        done.sort_by_key(|d| d.token);
        assert!(done.iter().map(|d| d.token).eq(0..40));
        assert!(
            done.iter().all(|d| d.result.as_ref().unwrap_err().raw_os_error() == Some(libc::EIO))
        );
        let most = file.most.load(Ordering::SeqCst);
        assert!((2..=SYNC_THREADS_MAX).contains(&most), "{most} at once");
    }

    fn write_to(file: &Arc<Fake>) -> Op {
        let mut buffer = Buffer::new(1);
        buffer.extend_from_slice(b"x");
        Op::WriteDurable { file: file.clone(), buffer, position: 0 }
    }

    #[test]
    fn a_write_never_waits_for_a_sync_to_end() {
        let file = Arc::new(Fake::default());
        let pool = Arc::new(Pool::new());
        let mut syncing = PoolLane::new(Arc::clone(&pool)).unwrap();
        let mut writing = PoolLane::new(pool).unwrap();
        let closed = lock(&file.gate);
        for token in 0..40 {
            syncing.submit(Op::SyncData(file.clone()), token);
        }
        while file.running.load(Ordering::SeqCst) < SYNC_THREADS_MAX {
            std::thread::yield_now();
        }
        for token in 0..40 {
            writing.submit(write_to(&file), token);
        }
        let done = reap_all(&mut writing);
        assert!(done.iter().all(|d| d.result.is_ok() && d.buffer.is_some()));
        assert_eq!((done.len(), syncing.pending()), (40, 40), "no sync has ended");
        drop(closed);
        assert_eq!(reap_all(&mut syncing).len(), 40);
        assert_eq!(file.most.load(Ordering::SeqCst), SYNC_THREADS_MAX, "also with more threads");
    }

    #[test]
    fn writes_begin_in_order_before_all_else_and_others_only_so_many_at_once() {
        let file = Arc::new(Fake::default());
        let lane = PoolLane::new(Arc::new(Pool::new())).unwrap().shared.clone();
        let mut state = PoolState::default();
        for token in 0..10 {
            let sync = Job { op: Op::SyncData(file.clone()), token, lane: Arc::clone(&lane) };
            state.others.push_back(sync);
            let write = Job { op: write_to(&file), token: 100 + token, lane: Arc::clone(&lane) };
            state.writes.push_back(write);
        }
        let begun: Vec<_> = std::iter::from_fn(|| state.next()).map(|job| job.token).collect();
        assert!(begun.into_iter().eq((100..110).chain(0..SYNC_THREADS_MAX as u64)));
        state.others_running -= 1;
        assert_eq!(state.next().unwrap().token, SYNC_THREADS_MAX as u64);
    }

    #[test]
    fn a_sync_that_panics_completes_as_failed() {
        let file = Arc::new(Fake { panics: true, ..Fake::default() });
        let mut lane = PoolLane::new(Arc::new(Pool::new())).unwrap();
        lane.submit(Op::SyncData(file), 7);
        let done = reap_all(&mut lane);
        assert!(done.len() == 1 && done[0].token == 7 && done[0].result.is_err());
    }

    #[test]
    fn nothing_of_a_lane_runs_after_its_drop_and_other_lanes_go_on() {
        let pool = Arc::new(Pool::new());
        let (gone, stays) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
        let mut first = PoolLane::new(Arc::clone(&pool)).unwrap();
        let mut second = PoolLane::new(pool).unwrap();
        for token in 0..100 {
            first.submit(Op::SyncData(gone.clone()), token);
        }
        second.submit(Op::SyncData(stays.clone()), 1);
        drop(first);
        let after = gone.syncs.load(Ordering::SeqCst);
        assert!(after < 100, "drop takes back what has not begun");
        assert_eq!(Arc::strong_count(&gone), 1);
        assert_eq!(reap_all(&mut second).len(), 1);
        assert_eq!(gone.syncs.load(Ordering::SeqCst), after);
    }
}
