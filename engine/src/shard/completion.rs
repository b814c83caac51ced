//! How an answer gets from a shard to whoever asked: a [`Pending`] for one, a [`CompletionQueue`]
//! for many.

#![forbid(unsafe_code)]

use super::spin::spin_until;
use crate::error::{Error, Result};
use crate::io::Waker;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far an append must have got before it is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Durability {
    /// In the page cache: survives the process, not the machine.
    #[default]
    Written,
    /// On disk, with every record before it in its partition.
    Durable,
}

/// The receipt of an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AppendInfo {
    /// Offset of its first record.
    pub base_offset: crate::Offset,
    /// Offset of its last record.
    pub last_offset: crate::Offset,
    /// Epoch its batches were stamped with.
    pub leader_epoch: crate::LeaderEpoch,
    /// The class that was really met.
    pub durability: Durability,
    /// An idempotent producer sent it again: nothing was written, and the offsets are those it got
    /// the first time.
    pub duplicate: bool,
}

/// One answer out of a [`CompletionQueue`].
#[derive(Debug)]
pub struct Completion {
    /// The number the append was submitted with.
    pub token: u64,
    /// What became of it.
    pub result: Result<AppendInfo>,
}

/// Collects the answers of many appends. One thread drains it, in batches.
#[derive(Debug)]
pub struct CompletionQueue {
    state: Mutex<QueueState>,
    ready: Condvar,
    /// True while there is something to drain; for looking without the lock.
    filled: AtomicBool,
    /// Readable while there is something to drain, for hosts that wait on descriptors.
    waker: Waker,
}

#[derive(Debug, Default)]
struct QueueState {
    done: Vec<Completion>,
    /// Somebody sleeps in `wait`.
    waiting: bool,
    /// Somebody asked for the descriptor: from then on it is kept up to date.
    polled: bool,
}

impl CompletionQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// [`Error::TooManyOpenFiles`] or [`Error::Io`] if there is no descriptor for its eventfd.
    pub fn new() -> Result<Arc<CompletionQueue>> {
        let waker = Waker::new().map_err(|e| Error::io("create", "an eventfd", e))?;
        let (state, ready, filled) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        Ok(Arc::new(CompletionQueue { state, ready, filled, waker }))
    }

    /// Moves all answers to the end of `into`; returns how many.
    pub fn drain(&self, into: &mut Vec<Completion>) -> usize {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.polled {
            self.waker.drain();
        }
        let count = state.done.len();
        into.append(&mut state.done);
        self.filled.store(false, Ordering::Relaxed);
        count
    }

    /// As [`CompletionQueue::drain`], waiting until there is something or the time is over: looking
    /// for some microseconds if there is a core to spare, then sleeping.
    pub fn wait(&self, into: &mut Vec<Completion>, timeout: Duration) -> usize {
        if !timeout.is_zero() {
            spin_until(|| self.filled.load(Ordering::Relaxed));
        }
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.done.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return 0;
            }
            state.waiting = true;
            state = self.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting = false;
        }
        drop(state);
        self.drain(into)
    }

    /// A descriptor that is readable while there are answers (an eventfd: do not read it,
    /// [`CompletionQueue::drain`] resets it). It lives as long as the queue.
    pub fn fd(&self) -> BorrowedFd<'_> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.polled = true;
        if !state.done.is_empty() {
            self.waker.wake();
        }
        drop(state);
        self.waker.as_fd()
    }

    /// Adds a tick's answers under one lock.
    pub(crate) fn push_all(&self, completions: &mut Vec<Completion>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done.append(completions);
        self.filled.store(!state.done.is_empty(), Ordering::Relaxed);
        if state.polled {
            self.waker.wake();
        }
        if state.waiting {
            drop(state);
            self.ready.notify_one();
        }
    }
}

/// An answer that is on its way.
#[derive(Debug)]
#[must_use = "an append that nobody waits for may have failed"]
pub struct Pending<T> {
    cell: Arc<Cell<T>>,
}

#[derive(Debug)]
struct Cell<T> {
    value: Mutex<Option<Result<T>>>,
    ready: Condvar,
    /// True when the value is there; for looking without the lock.
    is_set: AtomicBool,
}

/// The other end of a [`Pending`]. Dropped without an answer, it answers that the engine is closed.
#[derive(Debug)]
pub(crate) struct Promise<T> {
    cell: Arc<Cell<T>>,
}

pub(crate) fn pending<T>() -> (Promise<T>, Pending<T>) {
    let (value, is_set) = (Mutex::new(None), AtomicBool::new(false));
    let cell = Arc::new(Cell { value, ready: Condvar::new(), is_set });
    (Promise { cell: Arc::clone(&cell) }, Pending { cell })
}

impl<T> Promise<T> {
    pub(crate) fn answer(self, value: Result<T>) {
        self.cell.set(value);
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        self.cell.set(Err(Error::Closed { what: "the engine".into() }));
    }
}

impl<T> Cell<T> {
    /// The first answer stays.
    fn set(&self, answer: Result<T>) {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        if value.is_none() {
            *value = Some(answer);
            self.is_set.store(true, Ordering::Relaxed);
            drop(value);
            self.ready.notify_all();
        }
    }
}

impl<T> Pending<T> {
    /// Waits until the answer is there: looking for some microseconds if there is a core to spare,
    /// then sleeping.
    ///
    /// # Errors
    /// Whatever the operation met.
    pub fn wait(self) -> Result<T> {
        spin_until(|| self.cell.is_set.load(Ordering::Relaxed));
        let mut value = self.cell.value.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(answer) = value.take() {
                return answer;
            }
            value = self.cell.ready.wait(value).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// True if the answer is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.cell.is_set.load(Ordering::Acquire)
    }

    /// Sleeps at most `timeout`; on [`Error::Timeout`] the operation goes on, its answer is lost.
    ///
    /// # Errors
    /// [`Error::Timeout`], or whatever the operation met.
    pub fn wait_timeout(self, timeout: Duration) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut value = self.cell.value.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(answer) = value.take() {
                return answer;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout { what: "the operation" });
            }
            value =
                self.cell.ready.wait_timeout(value, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Where the answer of an append goes.
#[derive(Debug)]
pub(crate) enum Reply {
    One(Promise<AppendInfo>),
    Queue(Arc<CompletionQueue>, u64),
}

/// A tick's answers, gathered so that each queue is locked once.
#[derive(Default)]
pub(crate) struct Answers {
    queues: Vec<(Arc<CompletionQueue>, Vec<Completion>)>,
}

impl Answers {
    pub(crate) fn add(&mut self, reply: Reply, result: Result<AppendInfo>) {
        let (queue, token) = match reply {
            Reply::One(promise) => return promise.answer(result),
            Reply::Queue(queue, token) => (queue, token),
        };
        let completion = Completion { token, result };
        // Hosts have one queue, or one for each of a few threads: a scan beats a map.
        match self.queues.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &queue)) {
            Some((_, done)) => done.push(completion),
            None => self.queues.push((queue, vec![completion])),
        }
    }

    pub(crate) fn deliver(&mut self) {
        // Nothing new for a queue must not wake its host: a turn without answers would, every time.
        for (queue, done) in self.queues.iter_mut().filter(|(_, done)| !done.is_empty()) {
            queue.push_all(done);
        }
        // A queue its host has dropped must not live on here.
        self.queues.retain(|(queue, _)| Arc::strong_count(queue) > 1);
    }
}
