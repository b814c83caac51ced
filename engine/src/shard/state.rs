//! Changes of values: into the state file, into the journal, and who waits for them.
//!
//! A change of a partition's values waits in its shard together with the appends of its tick. It is
//! written before them and goes into the frame before them; whoever waits for it to be durable waits
//! for the appends that came before it as well, and a durable append waits for every change of its
//! partition that was written before it. So durable means the whole prefix, of both.
//!
//! Changes are handed to the journal in the order of their numbers. Those that nobody waits for are
//! kept for the next frame that somebody does wait for, up to a bound; past it a sync of the state
//! file makes them durable, as it does without a journal.

#![forbid(unsafe_code)]

use super::commit::{Sink, Waiter, WaiterKind, answer_waiters};
use super::tick::Shard;
use super::{Durability, Promise, Slot, closed};
use crate::error::{Error, Result};
use crate::io::Op;
use crate::journal::{Availability, EntryKind, Stretch};
use crate::planted::{Bug, planted};
use crate::state::{Change, Store, SyncStart, Ticket};
use crate::topic::TopicPartition;
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Owner of the changes of values in the journal; partitions are never so many.
pub(super) const STATE_OWNER: Slot = Slot::MAX;
/// The token of a sync of the state file.
pub(super) const STATE_TOKEN: u64 = 1 << 61;
/// What a change in the journal has in the place of a topic.
const STATE_TOPIC: &str = "loglane-state";
/// More that nobody waits for is left to a sync of the state file, as gaps of a log are.
const UNJOURNALLED_BYTES_MAX: usize = 256 << 10;
/// Looks for the end of another shard's sync before this one writes the file anew instead: whoever
/// runs that shard may be waiting for us.
const BUSY_LOOKS_MAX: u32 = 100;

/// A change on its way through a shard: checked by the caller's thread.
pub(crate) struct ChangeRequest {
    pub(crate) changes: Vec<Change>,
    pub(crate) durability: Durability,
    /// About as many as it takes in the file.
    pub(crate) bytes: u64,
    pub(crate) promise: Promise<()>,
}

/// What a shard knows of the changes that it made.
pub(super) struct States {
    pub(super) store: Arc<Store>,
    topic: TopicPartition,
    /// Changes of no partition that are not written.
    commits: Vec<ChangeRequest>,
    /// Who waits for changes of no partition, with the number they must be durable below.
    waiters: Vec<(u64, Promise<()>)>,
    /// Partitions where somebody waits for a change.
    waiting: BTreeSet<Slot>,
    /// Written and not handed to the journal, oldest first.
    unjournalled: VecDeque<(u64, Bytes)>,
    unjournalled_bytes: usize,
    /// Changes below were left out of the journal: a sync must cover them first.
    gap: u64,
    /// Changes of this shard below are in frames that were handed over.
    journalled: u64,
    /// As `journalled`, in frames that count.
    durable: u64,
    /// Who waits for changes below was answered.
    answered: u64,
    /// Somebody waits until all below is durable.
    wanted: u64,
    /// The state file is to be synced.
    pub(super) due: bool,
    running: Option<Ticket>,
    /// Times in a row that another shard's sync was in the way.
    busy: u32,
}

impl States {
    pub(super) fn new(store: Arc<Store>) -> States {
        States {
            store,
            topic: TopicPartition::new(STATE_TOPIC, 0).expect("a name that Kafka takes"),
            commits: Vec::new(),
            waiters: Vec::new(),
            waiting: BTreeSet::new(),
            unjournalled: VecDeque::new(),
            unjournalled_bytes: 0,
            gap: 0,
            journalled: 0,
            durable: 0,
            answered: 0,
            wanted: 0,
            due: false,
            running: None,
            busy: 0,
        }
    }

    /// Changes of this shard below are durable.
    pub(super) fn durable(&self) -> u64 {
        self.durable.max(self.store.synced())
    }

    /// Notes that somebody waits for the changes below, in a partition. Gives what there is to wait
    /// for: 0 if all of it is durable.
    fn wait_for(&mut self, slot: Slot, below: u64) -> u64 {
        if below <= self.durable() {
            return 0;
        }
        self.waiting.insert(slot);
        self.wanted = self.wanted.max(below);
        below
    }

    /// As `wait_for`, for an append or a flush of the partition.
    pub(super) fn wait_beside_log(&mut self, slot: Slot, below: u64) -> u64 {
        if planted(Bug::AppendBeforeChanges) { 0 } else { self.wait_for(slot, below) }
    }

    pub(super) fn forget(&mut self, slot: Slot) {
        self.waiting.remove(&slot);
    }

    /// Writes one change, to the file and to what the journal is going to have.
    fn write(&mut self, request: &ChangeRequest) -> Result<u64> {
        let written = self.store.write(&request.changes)?;
        self.unjournalled_bytes += written.record.len();
        self.unjournalled.push_back((written.below, written.record));
        if self.unjournalled_bytes > UNJOURNALLED_BYTES_MAX {
            self.leave_out(written.below);
        }
        Ok(written.below)
    }

    /// Changes below will not be in the journal.
    fn leave_out(&mut self, below: u64) {
        self.gap = self.gap.max(below);
        self.drop_below(below);
    }

    fn drop_below(&mut self, below: u64) {
        while let Some((_, record)) = self.unjournalled.pop_front_if(|(first, _)| *first <= below) {
            self.unjournalled_bytes -= record.len();
        }
    }
}

impl Shard {
    /// Takes a change in; it is written with the appends of this tick.
    pub(super) fn enqueue_change(&mut self, slot: Option<Slot>, request: ChangeRequest) {
        let durable = request.durability == Durability::Durable;
        let bytes = request.bytes;
        match slot {
            None => self.states.commits.push(request),
            Some(slot) => {
                let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else {
                    self.inflight_bytes.fetch_sub(bytes, Ordering::AcqRel);
                    return request.promise.answer(Err(closed()));
                };
                if owned.queue.is_empty() && owned.changes.is_empty() {
                    self.dirty.push(slot);
                }
                owned.changes.push(request);
            }
        }
        if durable {
            self.for_disk_bytes += bytes;
        }
    }

    /// Writes the changes of no partition, unless they wait for the journal. True if there were any.
    pub(super) fn write_commits(&mut self, now: bool) -> bool {
        if self.states.commits.is_empty() {
            return false;
        }
        let durable = |request: &ChangeRequest| request.durability == Durability::Durable;
        if self.states.commits.iter().any(durable) {
            self.want_journal();
            if self.must_wait(self.journal_for_frame(), now) {
                return false;
            }
        }
        for request in std::mem::take(&mut self.states.commits) {
            let waits = durable(&request);
            self.inflight_bytes.fetch_sub(request.bytes, Ordering::AcqRel);
            self.for_disk_bytes -= if waits { request.bytes } else { 0 };
            match self.states.write(&request) {
                Ok(below) if waits => {
                    self.states.wanted = self.states.wanted.max(below);
                    self.states.waiters.push((below, request.promise));
                }
                written => request.promise.answer(written.map(drop)),
            }
        }
        self.hand_over_changes();
        true
    }

    /// Writes the changes of a partition, ahead of its appends.
    pub(super) fn write_changes(&mut self, slot: Slot) {
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { return };
        for request in std::mem::take(&mut owned.changes) {
            self.inflight_bytes.fetch_sub(request.bytes, Ordering::AcqRel);
            if request.durability == Durability::Durable {
                self.for_disk_bytes -= request.bytes;
            }
            let shared = &owned.log.shared;
            // What came before it in the log could not become durable with it.
            let written =
                owned.log.check_usable().and_then(|()| match shared.space.admits(request.bytes) {
                    true => self.states.write(&request),
                    false => Err(shared.space.error()),
                });
            match written {
                Ok(below) => {
                    owned.changed_below = below;
                    owned.changed.push((below, request));
                }
                Err(error) => request.promise.answer(Err(error)),
            }
        }
    }

    /// Answers the changes of a partition that are written, now that the appends before them are.
    pub(super) fn changes_written(&mut self, slot: Slot) {
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { return };
        for (below, request) in owned.changed.drain(..) {
            if request.durability == Durability::Written {
                request.promise.answer(Ok(()));
                continue;
            }
            let log_end = owned.log.shared.offsets.log_end();
            let up_to = if planted(Bug::ChangeBeforeAppends) { 0 } else { log_end };
            let state = self.states.wait_for(slot, below);
            let kind = WaiterKind::Change(request.promise);
            owned.waiters.push(Waiter { up_to, state, kind });
            self.sync_due.push(slot);
        }
    }

    /// Hands changes to the open frame, as far as it and those behind it have room.
    pub(super) fn hand_over_changes(&mut self) {
        let synced = self.states.store.synced();
        self.states.drop_below(synced);
        if self.states.gap > synced {
            return;
        }
        while let Some((below, record)) = self.states.unjournalled.front().cloned() {
            if self.journal.availability() != Availability::Ready {
                return;
            }
            let offset = below.saturating_sub(1).cast_signed();
            let stretch = Stretch {
                kind: EntryKind::State,
                partition: &self.states.topic,
                topic_id: None,
                segment_base: 0,
                position: 0,
                offset,
                next_offset: offset.saturating_add(1),
            };
            if !self.journal.can_take(&stretch, record.len()) {
                return self.states.leave_out(below);
            }
            let mut sink = Sink::new(&mut self.journal, self.lane.as_mut(), STATE_OWNER);
            if !crate::log::Ahead::take(&mut sink, &stretch, &record) {
                return;
            }
            self.states.journalled = self.states.journalled.max(below);
            self.states.drop_below(below);
        }
    }

    /// A frame with changes counts.
    pub(super) fn on_changes_journalled(&mut self, below: u64) {
        self.states.durable = self.states.durable.max(below);
        self.answer_changes();
    }

    /// The journal failed: what it did not acknowledge is for a sync.
    pub(super) fn on_journal_lost_for_changes(&mut self) {
        self.states.journalled = self.states.durable;
        self.states.leave_out(u64::MAX);
    }

    /// Answers everybody whose changes are durable.
    fn answer_changes(&mut self) {
        let durable = self.states.durable();
        self.states.answered = durable;
        for slot in std::mem::take(&mut self.states.waiting) {
            let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { continue };
            answer_waiters(owned, durable, &mut self.answers);
            if owned.waiters.iter().any(|waiter| waiter.state > durable) {
                self.states.waiting.insert(slot);
            }
        }
        for (_, promise) in self.states.waiters.extract_if(.., |(below, _)| *below <= durable) {
            promise.answer(Ok(()));
        }
    }

    /// Syncs the state file if somebody waits for what no frame has, or a checkpoint wants it.
    pub(super) fn sync_changes(&mut self) {
        if self.states.durable() > self.states.answered {
            // Another shard's sync may have covered what a frame of ours never will.
            self.answer_changes();
        }
        let covered = self.states.journalled.max(self.states.store.synced());
        if !self.states.due && self.states.wanted <= covered || self.states.running.is_some() {
            return;
        }
        self.states.due = true;
        match self.states.store.begin_sync(&self.lane.waker()) {
            Ok(SyncStart::Busy) if self.states.busy < BUSY_LOOKS_MAX => {
                self.states.busy += 1;
                return;
            }
            Ok(SyncStart::Busy) => match self.states.store.rewrite_now() {
                Ok(()) => {
                    self.checkpoints.changes_synced();
                    self.answer_changes();
                }
                Err(error) => self.fail_changes(&error),
            },
            Ok(SyncStart::Started(file, ticket)) => {
                self.states.running = Some(ticket);
                self.checkpoints.sync_started(true);
                self.lane.submit(Op::SyncData(file), STATE_TOKEN);
            }
            Ok(SyncStart::Done) => {
                // The journal may have a free file now.
                self.checkpoints.changes_synced();
                self.answer_changes();
            }
            Err(error) => self.fail_changes(&error),
        }
        (self.states.due, self.states.busy) = (false, 0);
    }

    pub(super) fn on_changes_synced(&mut self, result: std::io::Result<()>) {
        let Some(ticket) = self.states.running.take() else { return };
        let synced = self.states.store.on_synced(ticket, result);
        self.checkpoints.sync_ended();
        if let Err(error) = synced {
            self.fail_changes(&error);
        }
        self.answer_changes();
    }

    /// Tells everybody who waits for a change that no frame has that it will not come. A checkpoint
    /// tries again.
    fn fail_changes(&mut self, error: &Error) {
        let covered = self.states.journalled.max(self.states.store.synced());
        self.states.wanted = self.states.wanted.min(covered);
        for (_, promise) in self.states.waiters.extract_if(.., |(below, _)| *below > covered) {
            promise.answer(Err(error.repeat()));
        }
        for slot in self.states.waiting.clone() {
            let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { continue };
            for waiter in owned.waiters.extract_if(.., |waiter| waiter.state > covered) {
                waiter.fail(error, &mut self.answers);
            }
        }
    }
}
