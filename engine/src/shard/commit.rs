//! Making things durable: frames of the journal, syncs of segments, and who waits for them.

#![forbid(unsafe_code)]

use super::checkpoint::Share;
use super::state::{ChangeRequest, STATE_TOKEN};
use super::tick::{JournalWanted, Shard};
use super::{Answers, AppendInfo, AppendReply, Mark, Promise, Reply, Slot, closed};
use crate::error::{Error, Result};
use crate::io::{Done, Lane, Op};
use crate::journal::{self, Availability, Journal, Stretch};
use crate::log::{Ahead, AppendRequest, Log, SyncOutcome};
use crate::offset::Offset;
use crate::planted::{Bug, planted};
use std::sync::atomic::Ordering;

/// Marks the token of a frame; the rest is its sequence. Other tokens are partitions.
const FRAME_TOKEN: u64 = 1 << 63;
/// The token of writebacks, whose results say nothing.
pub(super) const WRITEBACK_TOKEN: u64 = 1 << 62;

/// A partition and who waits on it.
pub(super) struct Owned {
    pub(super) log: Box<Log>,
    pub(super) queue: Vec<AppendRequest<AppendReply>>,
    pub(super) waiters: Vec<Waiter>,
    /// What is counted of it.
    pub(super) share: Share,
    /// Changes of its values that are not written.
    pub(super) changes: Vec<ChangeRequest>,
    /// Those that are, and wait for the appends before them; with their numbers.
    pub(super) changed: Vec<(u64, ChangeRequest)>,
    /// The changes written so far are durable when all below this number are.
    pub(super) changed_below: u64,
}

/// Somebody who waits for an offset.
pub(super) struct Waiter {
    pub(super) up_to: i64,
    /// Changes of values below this number must be durable as well.
    pub(super) state: u64,
    pub(super) kind: WaiterKind,
}

pub(super) enum WaiterKind {
    Append(Reply, AppendInfo),
    Flush(Promise<Offset>),
    Change(Promise<()>),
    /// Waits for the recovery point.
    Synced(Promise<Offset>),
    /// Waits for what others bring about.
    Watch(Mark, Promise<Offset>),
}

/// Where a partition's write hands its bytes to the journal.
pub(super) struct Sink<'a> {
    journal: &'a mut Journal,
    lane: &'a mut dyn Lane,
    owner: Slot,
}

impl<'a> Sink<'a> {
    pub(super) fn new(journal: &'a mut Journal, lane: &'a mut dyn Lane, owner: Slot) -> Sink<'a> {
        Sink { journal, lane, owner }
    }

    fn submit(&mut self) {
        self.journal.submit(self.lane, |sequence| FRAME_TOKEN | sequence);
    }
}

impl Ahead for Sink<'_> {
    fn take(&mut self, stretch: &Stretch<'_>, bytes: &[u8]) -> bool {
        let mut taken = self.journal.add(self.owner, stretch, bytes);
        if !taken && self.journal.has_open_frame() {
            self.submit();
            taken = self.journal.add(self.owner, stretch, bytes);
        }
        taken
    }
}

impl Owned {
    pub(super) fn new(log: Box<Log>) -> Owned {
        Owned {
            log,
            queue: Vec::new(),
            waiters: Vec::new(),
            share: Share::default(),
            changes: Vec::new(),
            changed: Vec::new(),
            changed_below: 0,
        }
    }

    /// True if somebody waits for more than the journal has or will have when its frames complete.
    fn wants_sync(&self) -> bool {
        self.waiters.iter().any(|waiter| match waiter.kind {
            WaiterKind::Append(..) | WaiterKind::Flush(_) | WaiterKind::Change(_) => {
                waiter.up_to > self.log.journalled_offset()
            }
            WaiterKind::Synced(_) => waiter.up_to > self.log.shared.offsets.synced(),
            WaiterKind::Watch(..) => false,
        })
    }
}

impl Shard {
    /// Sends the open frame off.
    pub(super) fn submit_frame(&mut self) {
        if self.journal.has_open_frame() {
            self.journal.submit(self.lane.as_mut(), |sequence| FRAME_TOKEN | sequence);
        }
    }

    /// Hands the files of partitions that somebody waits on to the lane.
    pub(super) fn start_syncs(&mut self) {
        for slot in std::mem::take(&mut self.sync_due) {
            let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { continue };
            answer_waiters(owned, self.states.durable(), &mut self.answers);
            // A running one may not cover what came since; its end starts the next.
            if !owned.log.is_syncing() && owned.wants_sync() {
                self.start_sync(slot);
            }
        }
        self.sync_changes();
    }

    /// Starts a sync of everything a partition has written.
    pub(super) fn start_sync(&mut self, slot: Slot) {
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { return };
        match owned.log.begin_sync() {
            Ok(files) => {
                self.checkpoints.sync_started(!files.is_empty());
                for file in files {
                    self.lane.submit(Op::SyncData(file), slot as u64);
                }
            }
            // Nothing was forgotten: it is tried again when somebody asks, or writes.
            Err(error) => fail_waiters(owned, &error, &mut self.answers),
        }
        self.checkpoints.count(owned);
        answer_waiters(owned, self.states.durable(), &mut self.answers);
    }

    /// Takes what has finished; true if there was anything.
    pub(super) fn reap(&mut self) -> bool {
        let mut done = std::mem::take(&mut self.done);
        self.lane.reap(&mut done);
        let any = !done.is_empty();
        // After all of them: one question answers for every sync that has come back.
        let mut alive = None;
        for Done { token, result, buffer } in done.drain(..) {
            if token & FRAME_TOKEN != 0 {
                let mut marks = std::mem::take(&mut self.marks);
                let sequence = token & !FRAME_TOKEN;
                let written = self.journal.on_written(sequence, result, buffer, &mut marks);
                for (slot, mark) in marks.drain(..) {
                    self.on_mark(slot, mark);
                }
                self.marks = marks;
                if let Err(error) = written {
                    self.on_journal_lost(&error);
                }
            } else if token == STATE_TOKEN {
                let result = result.and_then(|()| self.still_writes(&mut alive));
                self.on_changes_synced(result);
            } else if token != WRITEBACK_TOKEN {
                let result = result.and_then(|()| self.still_writes(&mut alive));
                self.on_synced(usize::try_from(token).unwrap_or(usize::MAX), result);
            }
        }
        self.done = done;
        if any {
            self.start_syncs();
        }
        any
    }

    /// Fails if syncs may have said yes and done nothing; see `io/alive.rs`.
    fn still_writes(&mut self, alive: &mut Option<bool>) -> std::io::Result<()> {
        let alive = alive.get_or_insert_with(|| match self.alive.check() {
            _ if planted(Bug::SyncBelieved) => true,
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "the file system has stopped writing; syncs count for nothing");
                false
            }
        });
        if *alive {
            Ok(())
        } else {
            Err(std::io::Error::from(std::io::ErrorKind::ReadOnlyFilesystem))
        }
    }

    fn on_mark(&mut self, slot: Slot, mark: journal::Mark) {
        if let journal::Mark::State(below) = mark {
            return self.on_changes_journalled(below);
        }
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { return };
        match mark {
            journal::Mark::Durable(up_to) => {
                owned.log.on_journalled(up_to);
                answer_waiters(owned, self.states.durable(), &mut self.answers);
            }
            journal::Mark::Cut => owned.log.on_cut(),
            journal::Mark::State(_) => {}
        }
    }

    /// From here on segments are synced instead: another way to the disk, whose results are its own.
    fn on_journal_lost(&mut self, error: &std::io::Error) {
        tracing::error!(%error, "the journal failed; durable appends sync their segments from now on");
        self.on_journal_lost_for_changes();
        for (slot, owned) in self.logs.iter_mut().enumerate() {
            let Some(owned) = owned else { continue };
            owned.log.on_journal_lost();
            self.sync_due.push(slot);
        }
    }

    fn on_synced(&mut self, slot: Slot, result: std::io::Result<()>) {
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { return };
        match owned.log.on_synced(result) {
            SyncOutcome::Pending => return,
            SyncOutcome::Synced => {
                self.checkpoints.sync_ended();
                if self.checkpoints.is_short_of_files() {
                    owned.log.release_file();
                }
                self.checkpoints.count(owned);
                answer_waiters(owned, self.states.durable(), &mut self.answers);
            }
            SyncOutcome::Failed => {
                self.checkpoints.sync_ended();
                self.checkpoints.count(owned);
                if let Err(error) = owned.log.check_usable() {
                    fail_waiters(owned, &error, &mut self.answers);
                }
            }
        }
        if !owned.waiters.is_empty() {
            self.sync_due.push(slot);
        }
    }

    /// Tells the journal of appends that failed after it had them.
    pub(super) fn journal_cuts(&mut self) {
        if self.cut_due.is_empty() {
            return;
        }
        for slot in std::mem::take(&mut self.cut_due) {
            let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { continue };
            let mut sink = Sink::new(&mut self.journal, self.lane.as_mut(), slot);
            match sink.journal.availability() {
                Availability::Ready if owned.log.journal_cut(&mut sink) => {}
                Availability::Ready | Availability::Busy => self.cut_due.push(slot),
                Availability::Off => owned.log.on_journal_lost(),
            }
        }
        self.submit_frame();
    }

    /// Cuts a log at its end; see `log/truncate.rs` for the order.
    pub(super) fn truncate(&mut self, slot: Slot, to: i64) -> Result<i64> {
        self.before_cut(slot)?;
        let Some(cut) = self.with_log(slot, |log| log.begin_truncate(to))? else {
            return self.with_log(slot, |log| Ok(log.shared.offsets.log_end()));
        };
        self.undo_in_journal(slot, &cut)?;
        self.with_log(slot, |log| {
            log.finish_truncate(&cut)?;
            Ok(log.shared.offsets.log_end())
        })
    }

    /// Begins a log anew; see `log/reset.rs`.
    pub(super) fn reset(&mut self, slot: Slot, to: i64) -> Result<i64> {
        self.before_cut(slot)?;
        let cut = self.with_log(slot, |log| log.begin_reset(to))?;
        self.undo_in_journal(slot, &cut)?;
        self.with_log(slot, |log| log.finish_reset(to).map(|()| to))
    }

    /// Lets what is under way finish, and sees to it that the journal can undo what it has.
    fn before_cut(&mut self, slot: Slot) -> Result<()> {
        self.write_dirty(true);
        self.settle(slot);
        if self.journal.has_files() && self.journal.availability() == Availability::Off {
            return Err(Error::Config {
                key: "truncate",
                reason: "the journal failed and cannot note it; reopen the engine".into(),
            });
        }
        if self.old_journals.load(Ordering::Acquire) && !self.journal.has_files() {
            self.make_journal_now()?;
        }
        Ok(())
    }

    /// Has the lowered offsets and the cut on disk before any file changes.
    fn undo_in_journal(&mut self, slot: Slot, cut: &crate::log::CutPoint) -> Result<()> {
        let (journals, cut_first) = (self.journal.has_files(), cut.is_in_journal_first());
        if journals && cut_first {
            self.journal_truncation(slot, cut)?;
        }
        (self.store_recovery_points)()?;
        if journals && !cut_first {
            self.journal_truncation(slot, cut)?;
        }
        Ok(())
    }

    /// Waits for journal files: what earlier sessions left in theirs can be undone only there.
    fn make_journal_now(&mut self) -> Result<()> {
        self.journal_wanted = JournalWanted::No;
        self.want_journal();
        while matches!(self.journal_wanted, JournalWanted::Asked(_)) {
            let time = Some(std::time::Duration::from_millis(10));
            self.lane.wait(time).map_err(|e| Error::io("wait for", "the journal", e))?;
            self.take_journal_files();
        }
        match self.journal.has_files() {
            true => Ok(()),
            false => Err(Error::NoSpace { path: "the journal".into() }),
        }
    }

    /// Waits until the cut is on disk.
    fn journal_truncation(&mut self, slot: Slot, cut: &crate::log::CutPoint) -> Result<()> {
        loop {
            let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else {
                return Err(closed());
            };
            let mut sink = Sink::new(&mut self.journal, self.lane.as_mut(), slot);
            match sink.journal.availability() {
                Availability::Ready if owned.log.journal_truncate(cut, &mut sink) => break,
                Availability::Off => return Err(journal_failed(&owned.log)),
                Availability::Ready | Availability::Busy => {}
            }
            self.submit_frame();
            self.checkpoint(true);
            self.sync_changes();
            if !self.reap() {
                self.lane
                    .wait(Some(std::time::Duration::from_millis(10)))
                    .map_err(|e| Error::io("wait for", "the journal", e))?;
            }
        }
        self.settle(slot);
        let lost = self.journal.availability() == Availability::Off;
        let owned = self.logs.get(slot).and_then(Option::as_ref).ok_or_else(closed)?;
        if lost { Err(journal_failed(&owned.log)) } else { Ok(()) }
    }
}

fn journal_failed(log: &Log) -> Error {
    Error::PartitionFailed {
        partition: log.shared.name.to_string(),
        op: "write to the journal",
        durable: Offset(log.shared.offsets.durable()),
    }
}

/// Answers everybody whose offset is reached, and whose changes of values are below `state`.
pub(super) fn answer_waiters(owned: &mut Owned, state: u64, answers: &mut Answers) {
    let offsets = owned.log.shared.offsets.snapshot();
    let synced = owned.log.shared.offsets.synced();
    let reached = |waiter: &Waiter| match waiter.kind {
        WaiterKind::Watch(Mark::Written, _) => waiter.up_to <= offsets.log_end,
        WaiterKind::Synced(_) => waiter.up_to <= synced,
        _ => waiter.up_to <= offsets.durable && waiter.state <= state,
    };
    for waiter in owned.waiters.extract_if(.., |waiter| reached(waiter)) {
        match waiter.kind {
            WaiterKind::Append(reply, info) => answers.add(reply, Ok(info)),
            WaiterKind::Change(promise) => promise.answer(Ok(())),
            WaiterKind::Synced(promise) => promise.answer(Ok(Offset(synced))),
            WaiterKind::Flush(promise) | WaiterKind::Watch(Mark::Durable, promise) => {
                promise.answer(Ok(Offset(offsets.durable)));
            }
            WaiterKind::Watch(Mark::Written, promise) => {
                promise.answer(Ok(Offset(offsets.log_end)));
            }
        }
    }
}

/// Tells everybody who waits that it will not come.
pub(super) fn fail_waiters(owned: &mut Owned, error: &Error, answers: &mut Answers) {
    for waiter in owned.waiters.drain(..) {
        waiter.fail(error, answers);
    }
}

impl Waiter {
    pub(super) fn fail(self, error: &Error, answers: &mut Answers) {
        match self.kind {
            WaiterKind::Append(reply, _) => answers.add(reply, Err(error.repeat())),
            WaiterKind::Change(promise) => promise.answer(Err(error.repeat())),
            WaiterKind::Flush(promise)
            | WaiterKind::Synced(promise)
            | WaiterKind::Watch(_, promise) => {
                promise.answer(Err(error.repeat()));
            }
        }
    }
}
