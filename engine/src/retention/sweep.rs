//! The engine's round of retention over all partitions, and when it runs: at an interval, and at once
//! when space is short.

#![forbid(unsafe_code)]

use super::policy::Limits;
use super::stat::RetentionStat;
use super::{Place, Terms, dormant, facts};
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::io::{Clock, Disk};
use crate::partition::Partition;
use crate::registry::{Entry, Registry};
use crate::topic::TopicPartition;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The first round comes this long after the open at the earliest, as Kafka's does: a host that opens
/// a directory can still change settings and set pins.
const FIRST_AFTER: Duration = Duration::from_secs(30);

/// The least pause between two rounds while space is short. A round that took longer rests eight times
/// as long as it took.
const LOW_EVERY: Duration = Duration::from_millis(250);

/// What one round of retention did.
#[derive(Debug, Default)]
pub struct Round {
    /// What it deleted.
    pub deleted: RetentionStat,
    /// Partitions it could not look at or delete from, and why; the next round tries again.
    pub failed: Vec<(TopicPartition, Error)>,
}

/// Opens a partition.
pub(crate) type Opener<'a> = dyn Fn(&Entry) -> Result<Partition> + 'a;

/// What a round works on.
pub(crate) struct Scope<'a> {
    pub(crate) terms: &'a Terms,
    pub(crate) disk: &'a dyn Disk,
    pub(crate) registry: &'a Registry,
    /// Most bytes of all `.log` files together.
    pub(crate) total_bytes: Option<u64>,
    /// Opens a partition that nobody has touched; `None` while such are being recovered anyway.
    pub(crate) open: Option<&'a Opener<'a>>,
}

impl Scope<'_> {
    /// Does it all.
    pub(super) fn round(&self, is_stopping: impl Fn() -> bool) -> Round {
        let mut round = Round::default();
        for entry in self.registry.all() {
            if is_stopping() {
                return round;
            }
            if let Err(error) = self.retain(&entry, &mut round) {
                round.fail(&entry, error);
            }
        }
        if let Some(limit) = self.total_bytes {
            self.keep_total(limit, &mut round, is_stopping);
        }
        if let Err(error) = self.terms.pins.drop_expired(self.terms.clock.now_ms()) {
            tracing::warn!(%error, "expired pins stay on disk for now; they hold nothing");
        }
        round
    }

    /// Deletes what a partition's own limits want gone.
    fn retain(&self, entry: &Entry, round: &mut Round) -> Result<()> {
        let partition = match entry.opened() {
            Some(partition) => partition.clone(),
            None => match self.open {
                Some(open) if self.is_worth_opening(entry)? => open(entry)?,
                _ => return Ok(()),
            },
        };
        for gone in partition.retain()? {
            round.deleted.count(&gone);
        }
        Ok(())
    }

    fn is_worth_opening(&self, entry: &Entry) -> Result<bool> {
        let id = checkpoint::read_topic_id(self.disk, &entry.dir)?;
        let limits = Limits::of(&self.terms.settings.effective(&entry.name, id));
        if limits.is_none() {
            return Ok(false);
        }
        let now_ms = self.terms.clock.now_ms();
        let pinned = self.terms.pins.floor(Place { name: &entry.name, topic_id: id }, now_ms);
        let look = dormant::look(self.disk, &entry.dir)?;
        Ok(look.is_some_and(|look| dormant::may_be_due(&limits, &look, pinned, now_ms)))
    }

    /// Deletes the oldest segment of any partition, by its last append, while all together have more
    /// than `limit` bytes.
    fn keep_total(&self, limit: u64, round: &mut Round, is_stopping: impl Fn() -> bool) {
        let entries = self.registry.all();
        let mut total = 0_u64;
        let mut oldest = BinaryHeap::new();
        for (at, entry) in entries.iter().enumerate() {
            match self.first_of(entry) {
                Ok(Some((bytes, first))) => {
                    total += bytes;
                    if !self.terms.settings.is_kept_whole(&entry.name) {
                        oldest.push(Reverse((first, at)));
                    }
                }
                Ok(None) => {}
                Err(error) => round.fail(entry, error),
            }
        }
        while total > limit
            && !is_stopping()
            && let Some(Reverse((First { base_offset, .. }, at))) = oldest.pop()
        {
            let Some(entry) = entries.get(at) else { continue };
            let deleted = self.open_now(entry).and_then(|partition| {
                partition.map_or(Ok(None), |p| p.delete_first(base_offset, total - limit))
            });
            match deleted {
                Ok(Some(gone)) => {
                    total = total.saturating_sub(gone.bytes);
                    round.deleted.count(&gone);
                    if let Ok(Some((_, next))) = self.first_of(entry) {
                        oldest.push(Reverse((next, at)));
                    }
                }
                // Something holds it: then what is behind it stays too.
                Ok(None) => {}
                Err(error) => round.fail(entry, error),
            }
        }
    }

    fn open_now(&self, entry: &Entry) -> Result<Option<Partition>> {
        match (entry.opened(), self.open) {
            (Some(partition), _) => Ok(Some(partition.clone())),
            (None, Some(open)) => open(entry).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Bytes of a partition, and its first segment.
    fn first_of(&self, entry: &Entry) -> Result<Option<(u64, First)>> {
        let Some(partition) = entry.opened() else {
            let look = dormant::look(self.disk, &entry.dir)?;
            return Ok(look.map(|look| (look.bytes, First::new(&look.first))));
        };
        let shared = partition.shared();
        let segments = shared.segments.load_full();
        let log_end = shared.offsets.log_end();
        let bytes = segments.iter().map(|s| u64::from(s.tail().bytes)).sum();
        let first = facts::of_segments(shared, &segments, log_end, facts::Effort::Look)
            .next()
            .transpose()?;
        Ok(first.map(|first| (bytes, First::new(&first))))
    }
}

/// The first segment of a partition, ordered by when it was last appended to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct First {
    last_append_ms: i64,
    base_offset: i64,
}

impl First {
    fn new(facts: &super::policy::SegmentFacts) -> First {
        // What does not say how old it is goes last.
        let last_append_ms = facts.last_append_ms.unwrap_or(i64::MAX);
        First { last_append_ms, base_offset: facts.base_offset }
    }
}

impl Round {
    fn fail(&mut self, entry: &Entry, error: Error) {
        match error {
            // Deleted or closed meanwhile.
            Error::Closed { .. } => {}
            error => self.failed.push((entry.name.clone(), error)),
        }
    }
}

/// When rounds run, and that only one does at a time.
#[derive(Default)]
pub(crate) struct Sweep {
    state: Mutex<State>,
    changed: Condvar,
    running: Mutex<()>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    hurry: bool,
}

impl Sweep {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Space is short: the next round comes now.
    pub(crate) fn hurry(&self) {
        self.state().hurry = true;
        self.changed.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.state().stopping = true;
        self.changed.notify_one();
    }

    /// One round, when no other runs.
    pub(crate) fn round(&self, scope: &Scope<'_>) -> Round {
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let round = scope.round(|| self.state().stopping);
        for (partition, error) in &round.failed {
            tracing::warn!(%partition, %error, "retention left out; the next round tries again");
        }
        let deleted = round.deleted.total();
        if deleted.segments > 0 {
            tracing::info!(segments = deleted.segments, bytes = deleted.bytes, "retention");
        }
        round
    }

    /// Runs until told to stop. `round` says whether space is short.
    pub(crate) fn run(&self, interval: Duration, clock: &Arc<dyn Clock>, round: impl Fn() -> bool) {
        let mut wait = interval.min(FIRST_AFTER);
        loop {
            let state = self.state();
            let idle = |state: &mut State| !state.stopping && !state.hurry;
            let waited = self.changed.wait_timeout_while(state, wait, idle);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.stopping {
                return;
            }
            state.hurry = false;
            drop(state);
            let start = clock.monotonic();
            let is_low = round();
            let took = clock.monotonic().saturating_sub(start);
            wait = match is_low {
                true => interval.min(LOW_EVERY.max(took * 8)),
                false => interval,
            };
            if is_low {
                // Who meets the lack of space again and again must not make rounds follow each other.
                self.state().hurry = false;
            }
        }
    }
}
