//! The loop of a shard: messages in, writes out.

#![forbid(unsafe_code)]

use super::checkpoint::Checkpoints;
use super::commit::{Owned, Sink, Waiter, WaiterKind, fail_waiters};
use super::mailbox::Receiver;
use super::spin::Awake;
use super::state::States;
use super::{
    Answers, AppendInfo, AppendReply, Durability, Gauges, JournalMaker, JournalSlot, Mark, Message,
    Promise, RetiredSink, Setup, Slot, StoreRecoveryPoints, closed,
};
use crate::error::Result;
use crate::io::{Alive, Clock, Done, Lane, Op};
use crate::journal::{Availability, Journal};
use crate::log::{Ahead, AppendRequest, Log, Staged, Staging, WriteOutcome};
use crate::offset::{LeaderEpoch, Offset};
use crate::planted::{Bug, planted};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Requests taken from the mailbox in one tick: enough that a tick's writes are long, few enough
/// that the first of them does not wait for the last for long.
const TICK_REQUESTS: usize = 2048;

/// Looks for one more append before a frame goes off: about as long as a caller that sends to one
/// partition after the other needs between two of them.
const BURST_LOOKS: u32 = 60;

/// Turns an idle shard looks around before it sleeps: a futex wake costs 13 µs, a spin 0.2 µs.
const IDLE_SPINS: u32 = 200;

/// For each frame that is under way the next one gathers this much before it follows: several clients
/// with small batches share a write, and larger batches go out side by side.
const FRAME_BYTES_WORTH: u64 = 8 << 10;

/// Times it gives its core away and looks again while a frame is on the disk, before it sleeps.
const FRAME_YIELDS: u32 = 200;

/// How often a shard that ends looks whether its journal files are made.
const STOP_LOOK: Duration = Duration::from_millis(5);

/// A shard that has nothing to do looks up this often: for checkpoints that are due, and in case a
/// wake-up went wrong.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// One thread's partitions, and what it needs to write them.
pub(crate) struct Shard {
    pub(super) receiver: Receiver<Message>,
    pub(super) lane: Box<dyn Lane>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) logs: Vec<Option<Owned>>,
    /// Partitions with appends, or changes of values, that are not written.
    pub(super) dirty: Vec<Slot>,
    /// Bytes in them that somebody wants on disk.
    pub(super) for_disk_bytes: u64,
    /// Partitions that somebody waits on.
    pub(super) sync_due: Vec<Slot>,
    /// Partitions whose appends wait for a cut in the journal.
    pub(super) cut_due: Vec<Slot>,
    pub(super) staging: Staging<AppendReply>,
    /// Partitions with something in it.
    pub(super) staged: Vec<(Slot, Staged)>,
    /// Partitions written to in this turn.
    pub(super) writes: usize,
    outcomes: Vec<WriteOutcome<AppendReply>>,
    pub(super) answers: Answers,
    pub(super) done: Vec<Done>,
    /// Scratch space for what frames mean.
    pub(super) marks: Vec<(Slot, crate::journal::Mark)>,
    pub(super) journal: Journal,
    pub(super) journal_wanted: JournalWanted,
    pub(super) checkpoints: Checkpoints,
    pub(super) states: States,
    pub(super) old_journals: Arc<AtomicBool>,
    pub(super) alive: Alive,
    pub(super) inflight_bytes: Arc<AtomicU64>,
    gauges: Arc<Gauges>,
    retired: RetiredSink,
    make_journal: JournalMaker,
    pub(super) store_recovery_points: StoreRecoveryPoints,
    number: u32,
    stopping: bool,
}

/// How far a shard is with its journal files. It makes them when somebody first waits for the disk.
pub(super) enum JournalWanted {
    No,
    Asked(JournalSlot),
    /// Made; or given up until this time.
    Done(Option<Duration>),
}

/// How long a shard goes without a journal that could not be made.
const JOURNAL_RETRY: Duration = Duration::from_secs(10);

impl Shard {
    pub(super) fn new(
        setup: Setup,
        receiver: Receiver<Message>,
        inflight_bytes: Arc<AtomicU64>,
        gauges: Arc<Gauges>,
        journal: Journal,
    ) -> Shard {
        let now = setup.clock.monotonic();
        Shard {
            receiver,
            lane: setup.lane,
            clock: setup.clock,
            logs: Vec::new(),
            dirty: Vec::new(),
            for_disk_bytes: 0,
            sync_due: Vec::new(),
            cut_due: Vec::new(),
            staging: Staging::default(),
            staged: Vec::new(),
            writes: 0,
            outcomes: Vec::new(),
            answers: Answers::default(),
            done: Vec::new(),
            marks: Vec::new(),
            journal,
            journal_wanted: JournalWanted::No,
            checkpoints: Checkpoints::new(
                setup.outstanding_max,
                setup.outstanding,
                setup.checkpoint_interval,
                now,
            ),
            states: States::new(setup.state),
            old_journals: setup.old_journals,
            alive: setup.alive,
            inflight_bytes,
            gauges,
            retired: setup.retired,
            make_journal: setup.make_journal,
            store_recovery_points: setup.store_recovery_points,
            number: setup.number,
            stopping: false,
        }
    }

    pub(super) fn run(mut self) {
        let mut idle = 0;
        let mut awake = Awake::new();
        while !self.stopping {
            if self.tick() {
                idle = 0;
            } else if self.journal.in_flight() > 0 && idle < FRAME_YIELDS {
                idle += 1;
                // Not a spin: it would keep the kernel worker that completes a frame from its core.
                std::thread::yield_now();
            } else if idle < IDLE_SPINS && self.journal.in_flight() == 0 {
                idle += 1;
                std::hint::spin_loop();
            } else {
                idle = 0;
                drop(awake);
                self.sleep(SLEEP_MAX);
                awake = Awake::new();
            }
        }
        drop(awake);
        // Files that are being made must not appear in a directory that somebody else has by then.
        while matches!(self.journal_wanted, JournalWanted::Asked(_)) {
            self.take_journal_files();
            if self.lane.wait(Some(STOP_LOOK)).is_err() {
                std::thread::sleep(STOP_LOOK);
            }
        }
    }

    /// One turn; true if there was anything to do.
    pub(crate) fn tick(&mut self) -> bool {
        self.writes = 0;
        let taken = self.take_messages();
        self.take_journal_files();
        self.write_dirty(false);
        self.journal_cuts();
        let finished = self.reap();
        let synced = self.checkpoint(taken > 0 || finished || self.writes > 0);
        self.start_syncs();
        self.answers.deliver();
        if taken > 0 || finished || synced {
            self.tell();
        }
        taken > 0 || finished || self.writes > 0 && !self.dirty.is_empty()
    }

    /// Handles what the mailbox has; how many.
    fn take_messages(&mut self) -> usize {
        let (mut taken, mut looks) = (0, 0);
        while taken < TICK_REQUESTS {
            if let Some(message) = self.receiver.take() {
                (taken, looks) = (taken + 1, 0);
                self.handle(message);
            } else if taken > 0 && self.for_disk_bytes > 0 && looks < BURST_LOOKS {
                looks += 1;
                std::hint::spin_loop();
            } else {
                break;
            }
        }
        taken
    }

    /// Sleeps until a message comes or something on the lane finishes.
    pub(crate) fn sleep(&mut self, time: Duration) {
        if self.receiver.prepare_sleep() {
            if let Err(error) = self.lane.wait(Some(time)) {
                tracing::error!(%error, "a shard cannot sleep");
            }
            self.receiver.awake();
        }
        self.checkpoints.look_at_clock();
    }

    fn tell(&self) {
        let store = |gauge: &AtomicU64, value| gauge.store(value, Ordering::Relaxed);
        let stats = self.journal.stats();
        store(&self.gauges.journal_bytes, self.journal.used_bytes());
        store(&self.gauges.frames, stats.frames);
        store(&self.gauges.frame_bytes, stats.bytes);
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Adopt(slot, log) => self.adopt(slot, log),
            Message::Append(slot, request) => self.enqueue(slot, request),
            Message::Change(slot, request) => self.enqueue_change(slot, request),
            Message::Flush(slot, promise) => self.flush(slot, promise),
            Message::Wait(slot, mark, up_to, promise) => self.wait_for(slot, mark, up_to, promise),
            Message::With(slot, work) => {
                let _ = self.with_log(slot, |log| {
                    work(log);
                    Ok(())
                });
            }
            Message::Truncate(slot, to, promise) => {
                let result = self.truncate(slot, to.0);
                promise.answer(result.map(Offset));
            }
            Message::Reset(slot, to, promise) => {
                let result = self.reset(slot, to.0);
                promise.answer(result.map(Offset));
            }
            Message::Roll(slot, promise) => {
                let result = self.with_log(slot, |log| {
                    log.check_usable()?;
                    log.roll_now()
                });
                promise.answer(result.map(Offset));
            }
            Message::Producers(slot, promise) => {
                promise.answer(self.with_log(slot, |log| Ok(log.producer_states())));
            }
            Message::Swap(slot, order, promise) => {
                let result = self.with_log(slot, |log| log.swap(order));
                promise.answer(result);
            }
            Message::SyncSealed(slot, promise) => self.sync_sealed(slot, promise),
            Message::Close(slot, promise) => {
                self.write_dirty(true);
                self.settle(slot);
                let closed = self.with_log(slot, Log::close);
                self.forget(slot);
                promise.answer(closed);
            }
            Message::Drop(slot, promise) => {
                self.write_dirty(true);
                self.settle(slot);
                self.forget(slot);
                promise.answer(Ok(()));
            }
            Message::Stop => self.stopping = true,
        }
    }

    fn adopt(&mut self, slot: Slot, log: Box<Log>) {
        if self.logs.len() <= slot {
            self.logs.resize_with(slot + 1, || None);
        }
        let mut owned = Owned::new(log);
        self.checkpoints.count(&mut owned);
        if let Some(place) = self.logs.get_mut(slot) {
            *place = Some(owned);
        }
    }

    fn enqueue(&mut self, slot: Slot, request: AppendRequest<AppendReply>) {
        match self.logs.get_mut(slot).and_then(Option::as_mut) {
            Some(owned) => {
                if owned.queue.is_empty() && owned.changes.is_empty() {
                    self.dirty.push(slot);
                }
                if request.reply.durability == Durability::Durable {
                    self.for_disk_bytes += request.reply.bytes;
                }
                owned.queue.push(request);
            }
            None => {
                self.inflight_bytes.fetch_sub(request.reply.bytes, Ordering::AcqRel);
                self.answers.add(request.reply.reply, Err(closed()));
            }
        }
    }

    fn flush(&mut self, slot: Slot, promise: Promise<Offset>) {
        // What was queued before the flush is part of it.
        self.write_dirty(true);
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else {
            return promise.answer(Err(closed()));
        };
        if let Err(error) = owned.log.check_usable() {
            return promise.answer(Err(error));
        }
        let up_to = owned.log.shared.offsets.log_end();
        if self.journal.availability() == Availability::Ready {
            let mut sink = Sink::new(&mut self.journal, self.lane.as_mut(), slot);
            owned.log.journal_gap(&mut sink);
        }
        let state = self.states.wait_beside_log(slot, owned.changed_below);
        owned.waiters.push(Waiter { up_to, state, kind: WaiterKind::Flush(promise) });
        self.sync_due.push(slot);
        self.hand_over_changes();
        self.submit_frame();
    }

    fn sync_sealed(&mut self, slot: Slot, promise: Promise<Offset>) {
        self.write_dirty(true);
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else {
            return promise.answer(Err(closed()));
        };
        if let Err(error) = owned.log.check_usable() {
            return promise.answer(Err(error));
        }
        let up_to = owned.log.active_base_offset();
        owned.waiters.push(Waiter { up_to, state: 0, kind: WaiterKind::Synced(promise) });
        self.sync_due.push(slot);
    }

    fn wait_for(&mut self, slot: Slot, mark: Mark, up_to: Offset, promise: Promise<Offset>) {
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else {
            return promise.answer(Err(closed()));
        };
        let kind = WaiterKind::Watch(mark, promise);
        owned.waiters.push(Waiter { up_to: up_to.0, state: 0, kind });
        self.sync_due.push(slot);
    }

    /// Runs `f` on a log after its queued appends, and passes on what it retired.
    pub(super) fn with_log<T>(
        &mut self,
        slot: Slot,
        f: impl FnOnce(&mut Log) -> Result<T>,
    ) -> Result<T> {
        self.write_dirty(true);
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else {
            return Err(closed());
        };
        let result = f(&mut owned.log);
        self.checkpoints.count(owned);
        let retired = owned.log.take_retired();
        if !retired.is_empty() {
            (self.retired)(retired);
        }
        result
    }

    /// Writes what the mailbox brought, partition by partition. Those whose appends are for the disk
    /// wait while the journal has its hands full, unless they must be written `now`: so the next
    /// frame gathers what comes while the last ones are under way.
    ///
    /// The disk comes first: a frame with all of them is on its way while the page cache takes the
    /// same bytes, one partition after the other.
    pub(super) fn write_dirty(&mut self, now: bool) {
        if self.write_commits(now) && self.dirty.is_empty() {
            self.submit_frame();
        }
        if self.dirty.is_empty() {
            return;
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        if dirty.iter().any(|slot| self.is_for_disk(*slot)) {
            self.want_journal();
        }
        let gathers = self.gathers();
        dirty.retain(|slot| {
            if !self.is_for_disk(*slot) {
                return true;
            }
            let journal = match gathers {
                true => Availability::Busy,
                false => self.journal.availability(),
            };
            if self.must_wait(journal, now) {
                self.dirty.push(*slot);
            } else {
                self.stage(*slot, journal == Availability::Ready);
            }
            false
        });
        self.finish_staged();
        for slot in dirty {
            if self.must_wait(Availability::Off, now) {
                self.dirty.push(slot);
            } else {
                self.stage(slot, false);
                self.finish_staged();
            }
        }
    }

    /// True while a small frame behind others would only keep the next one from being larger.
    fn gathers(&self) -> bool {
        self.for_disk_bytes < self.journal.in_flight() as u64 * FRAME_BYTES_WORTH
    }

    /// Whether the journal takes a frame now.
    pub(super) fn journal_for_frame(&self) -> Availability {
        match self.gathers() {
            true => Availability::Busy,
            false => self.journal.availability(),
        }
    }

    pub(super) fn must_wait(&self, journal: Availability, now: bool) -> bool {
        !now && (journal == Availability::Busy || self.must_wait_for_syncs())
    }

    /// Puts a partition's appends into the staging buffer, and into the journal if that is `ready`.
    fn stage(&mut self, slot: Slot, ready: bool) {
        self.write_changes(slot);
        if ready {
            self.hand_over_changes();
        }
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { return };
        let for_disk = owned.queue.iter().filter(|request| is_durable(request));
        self.for_disk_bytes -= for_disk.map(|request| request.reply.bytes).sum::<u64>();
        let mut sink = Sink::new(&mut self.journal, self.lane.as_mut(), slot);
        let ahead: Option<&mut dyn Ahead> = if ready { Some(&mut sink) } else { None };
        let requests = owned.queue.drain(..);
        let staged = owned.log.stage(requests, &mut self.staging, ahead, &mut self.outcomes);
        self.staged.push((slot, staged));
        self.take_outcomes(slot);
        if self.staging.is_full() {
            self.finish_staged();
        }
    }

    /// Sends the frame off, and writes what was staged to the segments meanwhile.
    fn finish_staged(&mut self) {
        if self.journal.has_open_frame() {
            self.submit_frame();
            // Reaping hands it to the kernel; what else has finished is looked at after the writes.
            self.lane.reap(&mut self.done);
        }
        let mut all = std::mem::take(&mut self.staged);
        for (slot, staged) in all.drain(..) {
            let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { continue };
            self.writes += 1;
            owned.log.finish(staged, &mut self.staging, &mut self.outcomes);
            self.checkpoints.count(owned);
            if owned.log.wants_cut() {
                self.cut_due.push(slot);
            }
            self.take_outcomes(slot);
            self.changes_written(slot);
            self.start_writeback(slot);
        }
        self.staging.clear();
        self.staged = all;
    }

    fn is_for_disk(&self, slot: Slot) -> bool {
        let owned = self.logs.get(slot).and_then(Option::as_ref);
        owned.is_some_and(|owned| {
            owned.queue.iter().any(is_durable)
                || owned.changes.iter().any(|change| change.durability == Durability::Durable)
        })
    }

    /// Answers what a write finished; notes who waits for the disk.
    fn take_outcomes(&mut self, slot: Slot) {
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { return };
        let mut waits = !owned.waiters.is_empty();
        for WriteOutcome { reply, result } in self.outcomes.drain(..) {
            let AppendReply { reply, durability, bytes } = reply;
            self.inflight_bytes.fetch_sub(bytes, Ordering::AcqRel);
            let info = result.map(|written| AppendInfo {
                base_offset: Offset(written.base_offset),
                last_offset: Offset(written.last_offset),
                leader_epoch: LeaderEpoch(written.leader_epoch),
                durability,
                duplicate: written.duplicate,
            });
            match info {
                Ok(info) if durability == Durability::Durable && !planted(Bug::AckBeforeSync) => {
                    waits = true;
                    let up_to = info.last_offset.0 + 1;
                    let state = self.states.wait_beside_log(slot, owned.changed_below);
                    let kind = WaiterKind::Append(reply, info);
                    owned.waiters.push(Waiter { up_to, state, kind });
                }
                info => self.answers.add(reply, info),
            }
        }
        if waits {
            self.sync_due.push(slot);
        }
    }

    /// Has the disk begin on a segment's dirty pages early, when their sync is sure to come soon.
    fn start_writeback(&mut self, slot: Slot) {
        if !self.checkpoints.are_near(self.journal.is_half_full()) {
            return;
        }
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { return };
        if let Some((file, position, length)) = owned.log.take_writeback() {
            let op = Op::WriteBack { file, position, length };
            self.lane.submit(op, super::commit::WRITEBACK_TOKEN);
        }
    }

    /// Asks for journal files when the first append comes that wants them.
    pub(super) fn want_journal(&mut self) {
        match &self.journal_wanted {
            JournalWanted::No => {}
            JournalWanted::Done(Some(until)) if self.clock.monotonic() >= *until => {}
            JournalWanted::Asked(_) | JournalWanted::Done(_) => return,
        }
        let slot = JournalSlot { files: Arc::default(), waker: self.lane.waker() };
        self.journal_wanted = JournalWanted::Asked(slot.clone());
        (self.make_journal)(self.number, slot);
        self.take_journal_files();
    }

    pub(super) fn take_journal_files(&mut self) {
        let JournalWanted::Asked(slot) = &self.journal_wanted else { return };
        match slot.take() {
            None => {}
            Some(Ok(files)) => {
                self.journal.start(files, self.lane.as_mut());
                self.journal_wanted = JournalWanted::Done(None);
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "no journal for now; durable appends sync their segments");
                let until = self.clock.monotonic() + JOURNAL_RETRY;
                self.journal_wanted = JournalWanted::Done(Some(until));
            }
        }
    }

    /// Waits until nothing of this partition is under way.
    pub(super) fn settle(&mut self, slot: Slot) {
        self.submit_frame();
        while self.journal.in_flight() > 0
            || self.logs.get(slot).and_then(Option::as_ref).is_some_and(|o| o.log.is_syncing())
        {
            if !self.reap()
                && let Err(error) = self.lane.wait(Some(SLEEP_MAX))
            {
                tracing::error!(%error, "a shard cannot wait for the disk");
            }
        }
    }

    fn forget(&mut self, slot: Slot) {
        if let Some(mut owned) = self.logs.get_mut(slot).and_then(Option::take) {
            self.checkpoints.discount(&mut owned);
            fail_waiters(&mut owned, &closed(), &mut self.answers);
            self.states.forget(slot);
        }
    }
}

fn is_durable(request: &AppendRequest<AppendReply>) -> bool {
    request.reply.durability == Durability::Durable
}
