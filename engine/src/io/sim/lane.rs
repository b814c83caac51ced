//! A lane whose operations finish when chance says, in any order, on the thread that asks.
//!
//! An operation takes effect when it finishes, not when it is submitted. One that is in flight when
//! the machine dies may have taken effect or not.

#![forbid(unsafe_code)]

use super::names::Ino;
use super::trace::{Call, Subject};
use super::{Shared, lock};
use crate::io::{Done, Lane, Op, Waker};
use libc::EIO;
use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What an operation takes at most while a lane waits for it.
const OPERATION_MICROS_MAX: u64 = 500;

thread_local! {
    /// Wakers are descriptors. A thread that runs many worlds one after the other needs few.
    static WAKERS: RefCell<Vec<Arc<Waker>>> = const { RefCell::new(Vec::new()) };
}

/// A waker that nobody else has.
fn free_waker() -> io::Result<Arc<Waker>> {
    WAKERS.with_borrow_mut(|wakers| {
        if let Some(free) = wakers.iter().find(|waker| Arc::strong_count(waker) == 1) {
            if free.is_raised() {
                free.drain();
            }
            return Ok(Arc::clone(free));
        }
        let waker = Arc::new(Waker::new()?);
        wakers.push(Arc::clone(&waker));
        Ok(waker)
    })
}

/// An operation that was submitted and has not finished.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) op: Op,
    pub(super) token: u64,
    /// What it works on; `None` for a file of another disk or of an earlier life.
    pub(super) ino: Option<Ino>,
    /// The number of the last change when it was submitted.
    pub(super) since: u64,
    /// It failed when it was submitted.
    pub(super) refused: Option<i32>,
    /// A crash has decided what became of it.
    pub(super) settled: bool,
}

/// What a lane has under way.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) waiting: Vec<InFlight>,
    finished: Vec<Done>,
}

/// A lane of a simulated disk.
#[derive(Debug)]
pub(super) struct SimLane {
    shared: Arc<Shared>,
    epoch: u32,
    queue: Arc<Mutex<Queue>>,
    waker: Arc<Waker>,
}

impl SimLane {
    pub(super) fn new(shared: &Arc<Shared>, epoch: u32) -> io::Result<SimLane> {
        let queue = Arc::new(Mutex::new(Queue::default()));
        let mut state = shared.lock();
        state.lanes.retain(|lane| lane.strong_count() > 0);
        state.lanes.push(Arc::downgrade(&queue));
        drop(state);
        Ok(SimLane { shared: Arc::clone(shared), epoch, queue, waker: free_waker()? })
    }

    /// Finishes operations: any number that chance gives, at least some; all without reordering.
    fn finish(&self, queue: &mut Queue, at_least: usize) {
        let waiting = queue.waiting.len();
        if waiting == 0 {
            return;
        }
        let mut state = self.shared.lock();
        let reorder = state.knobs.reorder;
        if !reorder || state.is_dead(self.epoch) {
            drop(state);
            for item in queue.waiting.drain(..) {
                queue.finished.push(self.perform(item));
            }
            return;
        }
        let count = at_least + state.rng.index(waiting - at_least + 1);
        drop(state);
        for _ in 0..count {
            let i = self.shared.lock().rng.index(queue.waiting.len());
            let item = queue.waiting.swap_remove(i);
            queue.finished.push(self.perform(item));
        }
    }

    fn perform(&self, mut item: InFlight) -> Done {
        let now_ms = self.shared.now_ms();
        let mut state = self.shared.lock();
        let result = if item.ino.is_none() && item.refused.is_none() {
            // Another kind of file, such as one that injects faults: it does its own calls.
            drop(state);
            item.op.run()
        } else {
            let result = state.perform(self.epoch, &mut item, now_ms);
            drop(state);
            result.map_err(io::Error::from_raw_os_error)
        };
        Done { token: item.token, result, buffer: item.op.into_buffer() }
    }
}

impl Lane for SimLane {
    fn submit(&mut self, op: Op, token: u64) {
        let (Op::SyncData(file) | Op::WriteDurable { file, .. } | Op::WriteBack { file, .. }) = &op;
        let handle = file.simulated();
        let mut queue = lock(&self.queue);
        let mut state = self.shared.lock();
        let (mut ino, mut refused) = (None, None);
        if let Some(handle) = handle {
            let (epoch, number) = ((handle >> 32) as u32, handle as Ino);
            if epoch == self.epoch {
                ino = Some(number);
                let (position, len) = match &op {
                    Op::SyncData(_) => (0, 0),
                    Op::WriteDurable { position, buffer, .. } => (*position, buffer.len() as u64),
                    Op::WriteBack { position, length, .. } => (*position, *length),
                };
                let subject = Subject::File(number);
                let fate = state.enter(self.epoch, Call::Submit, subject, position, len);
                refused = match fate {
                    Ok(super::faults::Fate::Fails(errno)) => Some(errno),
                    // In flight if it dies here.
                    Ok(_) => None,
                    Err(errno) => Some(errno),
                };
            } else {
                refused = Some(EIO);
            }
        }
        let since = state.number;
        drop(state);
        queue.waiting.push(InFlight { op, token, ino, since, refused, settled: false });
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let mut queue = lock(&self.queue);
        self.finish(&mut queue, 0);
        done.append(&mut queue.finished);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let woken = self.waker.is_raised() && self.waker.drain();
        let mut queue = lock(&self.queue);
        if woken || !queue.finished.is_empty() {
            return Ok(());
        }
        if queue.waiting.is_empty() {
            // Nobody can wake a single thread: it would sleep until the time is over.
            self.shared.clock.advance(timeout.unwrap_or_default());
            return Ok(());
        }
        let has_time = timeout != Some(Duration::ZERO);
        if has_time {
            let micros = 1 + self.shared.lock().rng.below(OPERATION_MICROS_MAX);
            let takes = Duration::from_micros(micros);
            self.shared.clock.advance(timeout.map_or(takes, |timeout| takes.min(timeout)));
        }
        self.finish(&mut queue, usize::from(has_time));
        Ok(())
    }

    fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    fn pending(&self) -> usize {
        let queue = lock(&self.queue);
        queue.waiting.len() + queue.finished.len()
    }
}

impl Drop for SimLane {
    /// What was in flight is done or was not begun. Nobody hears of it.
    fn drop(&mut self) {
        let waiting = std::mem::take(&mut lock(&self.queue).waiting);
        for mut item in waiting {
            let now_ms = self.shared.now_ms();
            let mut state = self.shared.lock();
            let dead = state.is_dead(self.epoch);
            if dead {
                state.abandon(self.epoch, &item, now_ms);
            } else if item.ino.is_some() && state.rng.coin() {
                let _ = state.perform(self.epoch, &mut item, now_ms);
            }
        }
    }
}
