//! When segments are synced though nobody waits: so that the journal can be written again from the
//! start, so that a restart has little to read, and so that dirty pages do not pile up.
//!
//! Four things make a partition due: half of the journal is full and has entries of it; the shards
//! have half of what they may have unsynced, or of the files they may have open, which only a sync
//! lets them close; the interval is over. Not sooner: every page that is
//! written back takes disk time from frames, which somebody waits for, and a page that changes again
//! is written once. Few syncs run at once, for the same reason.

#![forbid(unsafe_code)]

use super::Slot;
use super::commit::Owned;
use super::state::STATE_OWNER;
use super::tick::Shard;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Partitions that are synced at once by a checkpoint.
const SYNCS_MAX: usize = 8;

/// What the shards of an engine have that only syncs make less: the limits are for all together.
#[derive(Default)]
pub(crate) struct Outstanding {
    /// Bytes in segments that no sync has covered.
    pub(crate) unsynced_bytes: AtomicU64,
    /// Files open for writing, or because they are not synced.
    pub(crate) files: AtomicUsize,
}

/// How much of it there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutstandingMax {
    pub(crate) unsynced_bytes: u64,
    pub(crate) files: usize,
}

/// A partition's share of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Share {
    unsynced_bytes: u64,
    files: usize,
}

/// What is unsynced, and what is being done about it.
pub(super) struct Checkpoints {
    max: OutstandingMax,
    outstanding: Arc<Outstanding>,
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
        max: OutstandingMax,
        outstanding: Arc<Outstanding>,
        interval: Duration,
        now: Duration,
    ) -> Checkpoints {
        Checkpoints {
            max,
            outstanding,
            interval,
            next_at: now + interval,
            look: false,
            due: BTreeSet::new(),
            running: 0,
            ended: false,
        }
    }

    /// Counts what a partition's log has now, in the place of what was counted before.
    pub(super) fn count(&self, owned: &mut Owned) {
        let (unsynced_bytes, files) = (owned.log.unsynced_bytes(), owned.log.files());
        self.replace(&mut owned.share, Share { unsynced_bytes, files });
    }

    /// A partition goes, with its share.
    pub(super) fn discount(&self, owned: &mut Owned) {
        self.replace(&mut owned.share, Share::default());
    }

    fn replace(&self, share: &mut Share, now: Share) {
        let before = std::mem::replace(share, now);
        if before == now {
            return;
        }
        // Adding first keeps the sums from passing below zero in between.
        let bytes = &self.outstanding.unsynced_bytes;
        bytes.fetch_add(now.unsynced_bytes, Ordering::Relaxed);
        bytes.fetch_sub(before.unsynced_bytes, Ordering::Relaxed);
        self.outstanding.files.fetch_add(now.files, Ordering::Relaxed);
        self.outstanding.files.fetch_sub(before.files, Ordering::Relaxed);
    }

    pub(super) fn sync_started(&mut self, really: bool) {
        self.running += usize::from(really);
    }

    pub(super) fn sync_ended(&mut self) {
        self.running = self.running.saturating_sub(1);
        self.ended = true;
    }

    /// The state file is synced.
    pub(super) fn changes_synced(&mut self) {
        self.ended = true;
    }

    fn unsynced_bytes(&self) -> u64 {
        self.outstanding.unsynced_bytes.load(Ordering::Relaxed)
    }

    /// True if it is time to close files: half of what may be open is.
    pub(super) fn is_short_of_files(&self) -> bool {
        self.outstanding.files.load(Ordering::Relaxed) > self.max.files / 2
    }

    pub(super) fn look_at_clock(&mut self) {
        self.look = true;
    }

    /// True if what is written now is going to be synced soon anyway.
    pub(super) fn are_near(&self, half_full: bool) -> bool {
        half_full || self.unsynced_bytes() > self.max.unsynced_bytes / 2
    }
}

impl Shard {
    /// True while more is unsynced than a restart may have to read, or than there are files for:
    /// appends wait for the disk. One of a turn never waits for files, if no sync is under way that
    /// will close some.
    pub(super) fn must_wait_for_syncs(&self) -> bool {
        let Checkpoints { max, outstanding, running, .. } = &self.checkpoints;
        let files = outstanding.files.load(Ordering::Relaxed) + self.staged.len();
        *running > 0 && self.checkpoints.unsynced_bytes() > max.unsynced_bytes
            || files >= max.files && (*running > 0 || self.writes > 0 || !self.staged.is_empty())
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
        let over_half = self.checkpoints.unsynced_bytes() > self.checkpoints.max.unsynced_bytes / 2;
        let is_short = self.checkpoints.is_short_of_files() && self.checkpoints.running == 0;
        let idle = self.checkpoints.due.is_empty();
        if now >= self.checkpoints.next_at || (idle && (over_half || is_short)) {
            self.checkpoints.next_at = now + self.checkpoints.interval;
            self.states.due |= self.states.store.wants_checkpoint();
            for (slot, owned) in self.logs.iter_mut().enumerate() {
                let Some(owned) = owned else { continue };
                if owned.log.is_unsynced() {
                    self.checkpoints.due.insert(slot);
                } else if is_short && owned.log.release_file() {
                    self.checkpoints.count(owned);
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
