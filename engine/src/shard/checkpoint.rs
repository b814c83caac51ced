//! When segments are synced though nobody waits: so that the journal can be written again from the
//! start, so that a restart has little to read, and so that dirty pages do not pile up.
//!
//! Three things make a partition due: half of the journal is full and has entries of it; the shards
//! have half of what they may have unsynced; the interval is over. Not sooner: every page that is
//! written back takes disk time from frames, which somebody waits for, and a page that changes again
//! is written once. Few syncs run at once, for the same reason.

#![forbid(unsafe_code)]

use super::Slot;
use super::state::STATE_OWNER;
use super::tick::Shard;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Partitions that are synced at once by a checkpoint.
const SYNCS_MAX: usize = 8;

/// What is unsynced, and what is being done about it.
pub(super) struct Checkpoints {
    unsynced_bytes_max: u64,
    /// Of all shards: the limit is for the directory.
    unsynced_bytes: Arc<AtomicU64>,
    interval: Duration,
    next_at: Duration,
    /// Something happened since the clock was last looked at, or time has passed.
    look: bool,
    due: BTreeSet<Slot>,
    running: usize,
    /// A sync ended since the journal was last asked what is free.
    ended: bool,
}

impl Checkpoints {
    pub(super) fn new(
        unsynced_bytes_max: u64,
        unsynced_bytes: Arc<AtomicU64>,
        interval: Duration,
        now: Duration,
    ) -> Checkpoints {
        Checkpoints {
            unsynced_bytes_max,
            unsynced_bytes,
            interval,
            next_at: now + interval,
            look: false,
            due: BTreeSet::new(),
            running: 0,
            ended: false,
        }
    }

    /// A partition's unsynced bytes were `before` and are `after`.
    pub(super) fn changed(&mut self, before: u64, after: u64) {
        if after >= before {
            self.unsynced_bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.unsynced_bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    pub(super) fn sync_started(&mut self, really: bool) {
        self.running += usize::from(really);
    }

    pub(super) fn sync_ended(&mut self, bytes: u64) {
        self.running = self.running.saturating_sub(1);
        self.changed(bytes, 0);
        self.ended = true;
    }

    /// The state file is synced.
    pub(super) fn changes_synced(&mut self) {
        self.ended = true;
    }

    fn unsynced_bytes(&self) -> u64 {
        self.unsynced_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn look_at_clock(&mut self) {
        self.look = true;
    }

    /// True if what is written now is going to be synced soon anyway.
    pub(super) fn are_near(&self, half_full: bool) -> bool {
        half_full || self.unsynced_bytes() > self.unsynced_bytes_max / 2
    }
}

impl Shard {
    /// True while more is unsynced than a restart may have to read: appends wait for the disk.
    pub(super) fn must_wait_for_syncs(&self) -> bool {
        self.checkpoints.unsynced_bytes() > self.checkpoints.unsynced_bytes_max
            && self.checkpoints.running > 0
    }

    /// Finds out what is due and starts some of it. True if a sync was started.
    pub(super) fn checkpoint(&mut self, busy: bool) -> bool {
        if !busy && !self.checkpoints.look {
            return false;
        }
        self.checkpoints.look = false;
        let ended = std::mem::take(&mut self.checkpoints.ended);
        if ended {
            let (logs, state) = (&self.logs, &self.states.store);
            self.journal.recycle(|slot| {
                if slot == STATE_OWNER {
                    return Some(state.synced().cast_signed());
                }
                let owned = logs.get(slot).and_then(Option::as_ref)?;
                Some(owned.log.shared.offsets.synced())
            });
        }
        let look = self.journal.take_filled() || ended;
        if look && self.journal.is_half_full() && self.checkpoints.due.is_empty() {
            self.checkpoints.due.extend(self.journal.wanted());
            self.states.due |= self.checkpoints.due.remove(&STATE_OWNER);
        }
        let now = self.clock.monotonic();
        let over_half = self.checkpoints.unsynced_bytes() > self.checkpoints.unsynced_bytes_max / 2;
        if now >= self.checkpoints.next_at || (over_half && self.checkpoints.due.is_empty()) {
            self.checkpoints.next_at = now + self.checkpoints.interval;
            self.states.due |= self.states.store.wants_checkpoint();
            for (slot, owned) in self.logs.iter().enumerate() {
                if owned.as_ref().is_some_and(|o| o.log.is_unsynced()) {
                    self.checkpoints.due.insert(slot);
                }
            }
        }
        self.start_due_syncs()
    }

    fn start_due_syncs(&mut self) -> bool {
        let mut any = false;
        while self.checkpoints.running < SYNCS_MAX
            && let Some(slot) = self.checkpoints.due.pop_first()
        {
            let owned = self.logs.get(slot).and_then(Option::as_ref);
            let wanted = owned.is_some_and(|owned| {
                !owned.log.is_syncing()
                    && owned.log.is_unsynced()
                    && owned.log.check_usable().is_ok()
            });
            if wanted {
                self.start_sync(slot);
                any = true;
            } else if owned.is_none_or(|owned| !owned.log.is_unsynced()) {
                // Synced on somebody's demand, or gone: the journal may have a free file now.
                self.checkpoints.ended = true;
            }
        }
        any
    }
}
