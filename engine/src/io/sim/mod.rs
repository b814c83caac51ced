//! A disk that exists only in memory, loses what a real one may lose, and fails on request.
//!
//! A [`SimWorld`] is a machine with one disk. The engine's own code runs on it through
//! [`SimWorld::disk`]; a test chooses when the power goes or the process dies, and opens what is
//! left. Everything that is left to chance comes from one seed, so a seed is a run.
//!
//! ```text
//! world.cut_at(137, Power) ──▶ run until a call says EIO ──▶ world.crash(Power) ──▶ world.disk()
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | `content` | bytes of a file: page cache, disk, and what a power cut makes of the difference |
//! | `names` | the same for the names in a directory |
//! | `state` | the tree, space, handles' lives, crashes |
//! | `transfer` | reads, writes and syncs, and how they fail or are interrupted |
//! | `disk`, `lane`, `clock` | the traits |
//! | `faults`, `trace`, `rng` | what goes wrong when, what was called last, chance |
//!
//! Not modelled: renames between directories, links, permissions, several processes, sparse
//! files' space, and a disk that loses what it has once made durable, but for flipped bits.

#![forbid(unsafe_code)]

mod clock;
mod content;
mod disk;
mod faults;
mod lane;
mod names;
mod rng;
mod state;
#[cfg(test)]
mod tests;
mod trace;
mod transfer;

pub(crate) use clock::SimClock;
pub(crate) use faults::{FaultRates, Knobs};
pub(crate) use rng::Rng;
pub(crate) use state::Stats;

use crate::io::{Clock, Disk};
use disk::SimDisk;
use faults::Plan;
use state::State;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// How a run ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CrashKind {
    /// Everything that is not durable may be lost.
    Power,
    /// The kernel goes on: what was written stays, what was in flight is done or is not.
    Process,
}

/// What handles and worlds share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    clock: Arc<SimClock>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }
}

/// A test that panics elsewhere should still be able to print the trace.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A simulated machine with one disk. Clones are the same machine.
#[derive(Clone, Debug)]
pub(crate) struct SimWorld {
    shared: Arc<Shared>,
}

impl SimWorld {
    /// A machine with an empty disk, all of whose chances come from `seed`.
    pub(crate) fn new(seed: u64) -> SimWorld {
        SimWorld::from_state(State::new(seed), Arc::new(SimClock::new()))
    }

    fn from_state(state: State, clock: Arc<SimClock>) -> SimWorld {
        SimWorld { shared: Arc::new(Shared { state: Mutex::new(state), clock }) }
    }

    /// The disk as it is now. Dead after the next crash, with all its files and lanes: every call
    /// then fails with EIO and changes nothing.
    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(SimDisk::new(Arc::clone(&self.shared)))
    }

    /// The machine's clock.
    pub(crate) fn clock(&self) -> Arc<SimClock> {
        Arc::clone(&self.shared.clock)
    }

    /// Crashes now, if a call has died or not. Planned faults belong to the life that ends, those
    /// by chance stay.
    pub(crate) fn crash(&self, kind: CrashKind) {
        let lanes = std::mem::take(&mut self.shared.lock().lanes);
        self.shared.lock().dead = Some(kind);
        // Lanes are locked before the state, here as in the lanes themselves.
        for lane in lanes.iter().filter_map(Weak::upgrade) {
            let mut queue = lock(&lane);
            let mut state = self.shared.lock();
            let epoch = state.epoch;
            for item in &mut queue.waiting {
                state.abandon(epoch, item, self.shared.now_ms());
                item.settled = true;
            }
        }
        self.shared.lock().crash(kind);
    }

    /// Another machine whose disk is what this one's would be after a crash now, with chances of
    /// its own; this one goes on, or stays dead. For many crashes out of one run. Later
    /// moves of the clock are not shared.
    pub(crate) fn crashed_copy(&self, kind: CrashKind, seed: u64) -> SimWorld {
        let mut state = self.shared.lock().clone();
        state.rng = Rng::new(seed);
        state.dead = Some(kind);
        let epoch = state.epoch;
        for lane in std::mem::take(&mut state.lanes).iter().filter_map(Weak::upgrade) {
            for item in &lock(&lane).waiting {
                state.abandon(epoch, item, self.shared.now_ms());
            }
        }
        state.crash(kind);
        SimWorld::from_state(state, Arc::new(self.shared.clock.copy()))
    }

    /// In the call of that index (see [`Stats::ios`]), or the next one if it is over, the machine
    /// or the process dies: that call and all later ones fail with EIO, until [`SimWorld::crash`].
    pub(crate) fn cut_at(&self, index: u64, kind: CrashKind) {
        self.shared.lock().plan.cut_at(index, kind);
    }

    /// The call of that index fails once. Of a write any prefix may be written; a failed sync of a
    /// file (EIO, ENOSPC) drops what it should have made durable, as Linux does.
    pub(crate) fn fail_at(&self, index: u64, errno: i32) {
        self.shared.lock().plan.fail_at(index, errno);
    }

    /// Makes calls fail by chance.
    pub(crate) fn set_fault_rates(&self, rates: FaultRates) {
        self.shared.lock().plan.rates = rates;
    }

    /// Forgets planned faults and those by chance.
    pub(crate) fn clear_faults(&self) {
        self.shared.lock().plan = Plan::new();
    }

    /// Sets how the disk behaves.
    pub(crate) fn set_knobs(&self, knobs: Knobs) {
        self.shared.lock().knobs = knobs;
    }

    /// Sets the size of the disk, in bytes. Space is given out in blocks of 4 KiB; a removed file
    /// gives its own back at once, even if it is open.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.shared.lock().capacity = bytes;
    }

    /// How the running life has ended, between the fatal call and the crash.
    pub(crate) fn died(&self) -> Option<CrashKind> {
        self.shared.lock().dead
    }

    /// Calls so far: the index that the next one has.
    pub(crate) fn ios(&self) -> u64 {
        self.shared.lock().stats.ios
    }

    /// Counts of the run.
    pub(crate) fn stats(&self) -> Stats {
        self.shared.lock().stats
    }

    /// The last calls, one in a line.
    pub(crate) fn trace(&self) -> String {
        let state = self.shared.lock();
        state.trace.text(|ino| Arc::clone(&state.inodes[ino as usize].label))
    }

    /// What reads of a file would see. Not a call: works on a dead machine too.
    pub(crate) fn peek(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let state = self.shared.lock();
        let ino = state.find(path.as_ref().to_str()?).ok()?;
        state.content(ino).ok().map(|content| content.bytes().to_vec())
    }

    /// Makes a directory, and those above it, durably. Not a call; for setting up.
    ///
    /// # Panics
    /// If a file is in the way.
    pub(crate) fn make_dir_all(&self, path: impl AsRef<Path>) {
        let path = path.as_ref().to_str().unwrap();
        self.shared.lock().make_dir_all(path).unwrap();
    }

    /// Puts a new file with durable bytes in a directory, which is made if need be. Not a call.
    ///
    /// # Panics
    /// If something is in the way.
    pub(crate) fn put(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        let path = path.as_ref().to_str().unwrap();
        self.shared.lock().put(path, bytes.to_vec()).unwrap();
    }

    /// Turns a bit of a file's durable bytes over, and what reads see of it; false if they are not
    /// that long. Bit 0 is the lowest of the first byte.
    pub(crate) fn flip_bit(&self, path: impl AsRef<Path>, bit: u64) -> bool {
        let mut state = self.shared.lock();
        let ino = path.as_ref().to_str().and_then(|path| state.find(path).ok());
        ino.and_then(|ino| state.content_mut(ino).ok()).is_some_and(|content| content.flip(bit))
    }

    /// Turns any bit of a file's durable bytes over and says which.
    pub(crate) fn flip_random_bit(&self, path: impl AsRef<Path>) -> Option<u64> {
        let bit = {
            let mut state = self.shared.lock();
            let ino = state.find(path.as_ref().to_str()?).ok()?;
            let bits = state.content(ino).ok()?.durable_bytes().len() as u64 * 8;
            state.rng.below(bits)
        };
        self.flip_bit(path, bit).then_some(bit)
    }
}
