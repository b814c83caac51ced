//! Long polls: waiting until partitions have so many bytes to read, or a deadline passes.
//!
//! A poll is armed with all its partitions and wakes once. A shard that publishes records looks at
//! the polls of that partition only, and only if there are any; deadlines are kept by one thread,
//! which is started by the first poll.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::io::Clock;
use crate::log::{Isolation, LogShared, Watcher};
use crate::offset::Offset;
use crate::partition::Partition;
use crate::shard::{Pending, Promise, pending};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a long poll found when it woke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Woken {
    /// Bytes that can be fetched from the offsets asked for.
    pub bytes: u64,
    /// The deadline passed before there was enough.
    pub timed_out: bool,
}

/// One armed poll.
struct Poll {
    interests: Vec<(Arc<LogShared>, i64)>,
    isolation: Isolation,
    bytes_min: u64,
    promise: Mutex<Option<Promise<Woken>>>,
}

impl Poll {
    /// Wakes whoever waits, if there is enough or something to be told. True if it is over.
    fn try_wake(&self, timed_out: bool) -> bool {
        let mut bytes = 0;
        let mut all_good = true;
        for (log, offset) in &self.interests {
            match log.bytes_from(*offset, self.isolation) {
                Ok(found) => bytes += found,
                // The fetch that follows says what is wrong.
                Err(_) => all_good = false,
            }
        }
        if all_good && bytes < self.bytes_min && !timed_out {
            return self.promise().is_none();
        }
        if let Some(promise) = self.promise().take() {
            promise.answer(Ok(Woken { bytes, timed_out }));
        }
        true
    }

    fn promise(&self) -> MutexGuard<'_, Option<Promise<Woken>>> {
        self.promise.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher for Poll {
    fn look(&self) -> bool {
        !self.try_wake(false)
    }
}

/// Keeps the deadlines of all polls of an engine.
pub(crate) struct LongPolls {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    deadlines: BinaryHeap<Reverse<Deadline>>,
    stopped: bool,
}

struct Deadline {
    at: Duration,
    poll: Arc<Poll>,
}

impl PartialEq for Deadline {
    fn eq(&self, other: &Deadline) -> bool {
        self.at == other.at
    }
}

impl Eq for Deadline {}

impl PartialOrd for Deadline {
    fn partial_cmp(&self, other: &Deadline) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Deadline {
    fn cmp(&self, other: &Deadline) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl LongPolls {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> LongPolls {
        let (state, changed) = (Mutex::default(), Condvar::new());
        LongPolls { clock, state, changed, thread: Mutex::default() }
    }

    pub(crate) fn arm(
        self: &Arc<Self>,
        interests: &[(Partition, Offset)],
        bytes_min: u64,
        timeout: Duration,
        isolation: Isolation,
    ) -> Result<Pending<Woken>> {
        let interests: Vec<(Arc<LogShared>, i64)> =
            interests.iter().map(|(p, offset)| (Arc::clone(p.shared()), offset.0)).collect();
        for (log, offset) in &interests {
            log.bytes_from(*offset, isolation)?;
        }
        self.start()?;
        let (promise, answer) = pending();
        let promise = Mutex::new(Some(promise));
        let poll = Arc::new(Poll { interests, isolation, bytes_min, promise });
        for (log, _) in &poll.interests {
            let watcher: Weak<Poll> = Arc::downgrade(&poll);
            log.watchers.add(watcher);
        }
        if poll.try_wake(timeout.is_zero()) {
            return Ok(answer);
        }
        let at = self.clock.monotonic() + timeout;
        let mut state = self.lock();
        if !state.stopped {
            state.deadlines.push(Reverse(Deadline { at, poll }));
            self.changed.notify_one();
        }
        Ok(answer)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Self>) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if self.lock().stopped {
            return Err(Error::Closed { what: "the engine".into() });
        }
        if thread.is_none() {
            let polls = Arc::clone(self);
            let name = "loglane-polls".to_owned();
            let started = std::thread::Builder::new().name(name).spawn(move || polls.run());
            *thread = Some(started.map_err(|e| Error::io("start a thread for", "long polls", e))?);
        }
        Ok(())
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.stopped {
            let now = self.clock.monotonic();
            let wait = match state.deadlines.peek() {
                None => None,
                Some(Reverse(first)) if first.at > now => Some(first.at - now),
                Some(_) => {
                    let due = state.deadlines.pop();
                    drop(state);
                    if let Some(Reverse(Deadline { poll, .. })) = due {
                        poll.try_wake(true);
                    }
                    state = self.lock();
                    continue;
                }
            };
            state = match wait {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(wait) => {
                    let woken = self.changed.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            // Polls that woke before their deadline go, once they are most of what is kept.
            let before = state.deadlines.len();
            if before > DEADLINES_KEPT && before.is_multiple_of(DEADLINES_KEPT) {
                state.deadlines.retain(|Reverse(deadline)| deadline.poll.promise().is_some());
            }
        }
    }

    /// Polls that wait are answered that the engine is closed.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        let left = std::mem::take(&mut state.deadlines);
        self.changed.notify_one();
        drop(state);
        // Dropping the promises answers them.
        drop(left);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of long polls panicked");
        }
    }
}

/// Deadlines that may wait for their time though their poll is over.
const DEADLINES_KEPT: usize = 1024;
