//! A shard: one thread that owns some of the partitions, with one lane for what may block.
//!
//! ```text
//! tick:  drain the mailbox ─▶ one write per partition ─▶ start syncs that are due
//!        ─▶ reap finished syncs ─▶ deliver answers ─▶ nothing to do? say so, look again, sleep
//! ```
//!
//! Nothing here is shared with another shard. A lone request is served at once: ticks have no timer,
//! batches form by themselves while the one before is written.

mod completion;
mod mailbox;

pub(crate) use completion::{Answers, Promise, Reply, pending};
pub use completion::{AppendInfo, Completion, CompletionQueue, Durability, Pending};

use crate::error::{Error, Result};
use crate::io::{Done, Lane, Op, Waker};
use crate::log::{AppendRequest, Log, RetiredSegment, Staging, SyncOutcome, WriteOutcome};
use crate::offset::{LeaderEpoch, Offset};
use mailbox::{Full, Receiver, Sender, mailbox};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Requests taken from the mailbox in one tick: enough that a tick's writes are long, few enough
/// that the first of them does not wait for the last for long.
const TICK_REQUESTS: usize = 2048;

/// Turns an idle shard looks around before it sleeps: a futex wake costs 13 µs, a spin 0.2 µs.
const IDLE_SPINS: u32 = 200;

/// A shard that has nothing to do looks up this often, in case a wake-up went wrong.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// A partition's place in its shard.
pub(crate) type Slot = usize;

/// What a shard does.
pub(crate) enum Message {
    /// Takes a partition over.
    Adopt(Slot, Box<Log>),
    Append(Slot, AppendRequest<AppendReply>),
    /// Makes everything written so far durable; the answer is the durable offset.
    Flush(Slot, Promise<Offset>),
    DeleteRecords(Slot, Offset, Promise<Offset>),
    Roll(Slot, Promise<Offset>),
    /// Closes a partition; the shard forgets it.
    Close(Slot, Promise<()>),
    /// Forgets a partition whose directory is about to go.
    Drop(Slot, Promise<()>),
    /// Ends the thread, after what is queued.
    Stop,
}

/// What the shard must know to answer an append.
pub(crate) struct AppendReply {
    pub(crate) reply: Reply,
    pub(crate) durability: Durability,
    pub(crate) bytes: u64,
}

/// The outside of a shard.
pub(crate) struct ShardHandle {
    sender: Sender<Message>,
    waker: Arc<Waker>,
    inflight_bytes: Arc<AtomicU64>,
    inflight_bytes_max: u64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl ShardHandle {
    /// Queues a message; waits for room, which the shard always makes.
    pub(crate) fn send(&self, mut message: Message) {
        loop {
            match self.try_send(message) {
                Ok(()) => return,
                Err(Full(back)) => message = back,
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    fn try_send(&self, message: Message) -> std::result::Result<(), Full<Message>> {
        if self.sender.send(message)? {
            self.waker.wake();
        }
        Ok(())
    }

    /// Queues an append, unless too much is queued already: then it comes back.
    pub(crate) fn send_append(
        &self,
        slot: Slot,
        request: AppendRequest<AppendReply>,
    ) -> std::result::Result<(), AppendRequest<AppendReply>> {
        let bytes = request.reply.bytes;
        let before = self.inflight_bytes.fetch_add(bytes, Ordering::AcqRel);
        // One append is always let in, however large.
        if before > 0 && before + bytes > self.inflight_bytes_max {
            self.inflight_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(request);
        }
        match self.try_send(Message::Append(slot, request)) {
            Ok(()) => Ok(()),
            Err(Full(Message::Append(_, request))) => {
                self.inflight_bytes.fetch_sub(bytes, Ordering::AcqRel);
                Err(request)
            }
            Err(Full(_)) => unreachable!("what comes back is what went in"),
        }
    }

    /// Requests the mailbox holds at most.
    pub(crate) fn capacity(&self) -> usize {
        self.sender.capacity()
    }

    /// Stops the thread after what is queued.
    pub(crate) fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            self.send(Message::Stop);
            if thread.join().is_err() {
                tracing::error!("a shard's thread panicked");
            }
        }
    }
}

/// Where segments go that wait for their files to be unlinked.
pub(crate) type RetiredSink = Arc<dyn Fn(Vec<RetiredSegment>) + Send + Sync>;

/// Starts a shard's thread.
pub(crate) fn spawn(
    number: usize,
    lane: Box<dyn Lane>,
    mailbox_requests_max: usize,
    inflight_bytes_max: u64,
    retired: RetiredSink,
) -> std::io::Result<ShardHandle> {
    let (sender, receiver) = mailbox(mailbox_requests_max);
    let waker = lane.waker();
    let inflight_bytes = Arc::new(AtomicU64::new(0));
    let shard = Shard {
        receiver,
        lane,
        logs: Vec::new(),
        dirty: Vec::new(),
        sync_due: Vec::new(),
        staging: Staging::default(),
        outcomes: Vec::new(),
        answers: Answers::default(),
        done: Vec::new(),
        inflight_bytes: Arc::clone(&inflight_bytes),
        retired,
        stopping: false,
    };
    let thread =
        std::thread::Builder::new().name(format!("loglane-{number}")).spawn(move || shard.run())?;
    let thread = Mutex::new(Some(thread));
    Ok(ShardHandle { sender, waker, inflight_bytes, inflight_bytes_max, thread })
}

struct Shard {
    receiver: Receiver<Message>,
    lane: Box<dyn Lane>,
    logs: Vec<Option<Owned>>,
    /// Partitions with appends in this tick.
    dirty: Vec<Slot>,
    /// Partitions that somebody waits on, or that have sealed segments to sync.
    sync_due: Vec<Slot>,
    staging: Staging,
    outcomes: Vec<WriteOutcome<AppendReply>>,
    answers: Answers,
    done: Vec<Done>,
    inflight_bytes: Arc<AtomicU64>,
    retired: RetiredSink,
    stopping: bool,
}

/// A partition and who waits on it.
struct Owned {
    log: Box<Log>,
    queue: Vec<AppendRequest<AppendReply>>,
    waiters: Vec<Waiter>,
}

struct Waiter {
    up_to: i64,
    kind: WaiterKind,
}

enum WaiterKind {
    Append(Reply, AppendInfo),
    Flush(Promise<Offset>),
}

impl Shard {
    fn run(mut self) {
        let mut idle = 0;
        loop {
            let busy = self.tick();
            if busy {
                idle = 0;
            } else if self.stopping {
                return;
            } else if idle < IDLE_SPINS {
                idle += 1;
                std::hint::spin_loop();
            } else {
                idle = 0;
                self.sleep();
            }
        }
    }

    /// One turn; true if there was anything to do.
    fn tick(&mut self) -> bool {
        let mut taken = 0;
        while taken < TICK_REQUESTS
            && let Some(message) = self.receiver.take()
        {
            taken += 1;
            self.handle(message);
        }
        self.write_dirty();
        self.start_syncs();
        let finished = self.reap();
        self.answers.deliver();
        taken > 0 || finished
    }

    fn sleep(&mut self) {
        if self.receiver.prepare_sleep() {
            if let Err(error) = self.lane.wait(Some(SLEEP_MAX)) {
                tracing::error!(%error, "a shard cannot sleep");
            }
            self.receiver.awake();
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Adopt(slot, log) => self.adopt(slot, log),
            Message::Append(slot, request) => self.enqueue(slot, request),
            Message::Flush(slot, promise) => self.flush(slot, promise),
            Message::DeleteRecords(slot, before, promise) => {
                let result = self.with_log(slot, |log| log.delete_records(before.0));
                promise.answer(result.map(Offset));
            }
            Message::Roll(slot, promise) => {
                let result = self.with_log(slot, |log| {
                    log.check_usable()?;
                    log.roll_now()
                });
                self.sync_due.push(slot);
                promise.answer(result.map(Offset));
            }
            Message::Close(slot, promise) => {
                self.write_dirty();
                self.settle(slot);
                let closed = self.with_log(slot, Log::close);
                self.forget(slot);
                promise.answer(closed);
            }
            Message::Drop(slot, promise) => {
                self.write_dirty();
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
        if let Some(place) = self.logs.get_mut(slot) {
            *place = Some(Owned { log, queue: Vec::new(), waiters: Vec::new() });
        }
    }

    fn enqueue(&mut self, slot: Slot, request: AppendRequest<AppendReply>) {
        match self.logs.get_mut(slot).and_then(Option::as_mut) {
            Some(owned) => {
                if owned.queue.is_empty() {
                    self.dirty.push(slot);
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
        self.write_dirty();
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else {
            return promise.answer(Err(closed()));
        };
        if let Err(error) = owned.log.check_usable() {
            return promise.answer(Err(error));
        }
        let up_to = owned.log.shared.offsets.log_end();
        owned.waiters.push(Waiter { up_to, kind: WaiterKind::Flush(promise) });
        self.sync_due.push(slot);
    }

    /// Runs `f` on a log after its queued appends, and passes on what it retired.
    fn with_log<T>(&mut self, slot: Slot, f: impl FnOnce(&mut Log) -> Result<T>) -> Result<T> {
        self.write_dirty();
        let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else {
            return Err(closed());
        };
        let result = f(&mut owned.log);
        let retired = owned.log.take_retired();
        if !retired.is_empty() {
            (self.retired)(retired);
        }
        result
    }

    /// Writes what the mailbox brought, partition by partition.
    fn write_dirty(&mut self) {
        for slot in std::mem::take(&mut self.dirty) {
            let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { continue };
            owned.log.write(owned.queue.drain(..), &mut self.staging, &mut self.outcomes);
            let mut waits = owned.log.has_sealed_unsynced();
            for WriteOutcome { reply, result } in self.outcomes.drain(..) {
                let AppendReply { reply, durability, bytes } = reply;
                self.inflight_bytes.fetch_sub(bytes, Ordering::AcqRel);
                let info = result.map(|written| AppendInfo {
                    base_offset: Offset(written.base_offset),
                    last_offset: Offset(written.last_offset),
                    leader_epoch: LeaderEpoch(written.leader_epoch),
                    durability,
                });
                match info {
                    Ok(info) if durability == Durability::Durable => {
                        waits = true;
                        let up_to = info.last_offset.0 + 1;
                        owned.waiters.push(Waiter { up_to, kind: WaiterKind::Append(reply, info) });
                    }
                    info => self.answers.add(reply, info),
                }
            }
            if waits {
                self.sync_due.push(slot);
            }
        }
    }

    /// Hands the files of due partitions to the lane.
    fn start_syncs(&mut self) {
        for slot in std::mem::take(&mut self.sync_due) {
            let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { continue };
            if owned.log.is_syncing() {
                // The running one may not cover what came since; its end starts the next.
                continue;
            }
            let durable = owned.log.shared.offsets.durable();
            let wanted =
                owned.waiters.iter().any(|w| w.up_to > durable) || owned.log.has_sealed_unsynced();
            if wanted {
                match owned.log.begin_sync() {
                    Ok(files) => {
                        for file in files {
                            self.lane.submit(Op::SyncData(file), slot as u64);
                        }
                    }
                    // Nothing was forgotten: it is tried again when somebody asks, or writes.
                    Err(error) => fail_waiters(owned, &error, &mut self.answers),
                }
            }
            answer_waiters(owned, &mut self.answers);
        }
    }

    /// Takes finished syncs; true if there were any.
    fn reap(&mut self) -> bool {
        let mut done = std::mem::take(&mut self.done);
        self.lane.reap(&mut done);
        let any = !done.is_empty();
        for Done { token, result, .. } in done.drain(..) {
            let slot = usize::try_from(token).unwrap_or(usize::MAX);
            let Some(owned) = self.logs.get_mut(slot).and_then(Option::as_mut) else { continue };
            match owned.log.on_synced(result) {
                SyncOutcome::Pending => continue,
                SyncOutcome::Durable => answer_waiters(owned, &mut self.answers),
                SyncOutcome::Failed => {
                    if let Err(error) = owned.log.check_usable() {
                        fail_waiters(owned, &error, &mut self.answers);
                    }
                }
            }
            if !owned.waiters.is_empty() || owned.log.has_sealed_unsynced() {
                self.sync_due.push(slot);
            }
        }
        self.done = done;
        if any {
            self.start_syncs();
        }
        any
    }

    /// Waits until no sync of this partition is under way.
    fn settle(&mut self, slot: Slot) {
        while self.logs.get(slot).and_then(Option::as_ref).is_some_and(|o| o.log.is_syncing()) {
            if !self.reap()
                && let Err(error) = self.lane.wait(Some(SLEEP_MAX))
            {
                tracing::error!(%error, "a shard cannot wait for a sync");
            }
        }
    }

    fn forget(&mut self, slot: Slot) {
        if let Some(mut owned) = self.logs.get_mut(slot).and_then(Option::take) {
            fail_waiters(&mut owned, &closed(), &mut self.answers);
        }
    }
}

/// Answers everybody whose records are on disk.
fn answer_waiters(owned: &mut Owned, answers: &mut Answers) {
    let durable = owned.log.shared.offsets.durable();
    for waiter in owned.waiters.extract_if(.., |waiter| waiter.up_to <= durable) {
        match waiter.kind {
            WaiterKind::Append(reply, info) => answers.add(reply, Ok(info)),
            WaiterKind::Flush(promise) => promise.answer(Ok(Offset(durable))),
        }
    }
}

fn fail_waiters(owned: &mut Owned, error: &Error, answers: &mut Answers) {
    for waiter in owned.waiters.drain(..) {
        match waiter.kind {
            WaiterKind::Append(reply, _) => answers.add(reply, Err(error.repeat())),
            WaiterKind::Flush(promise) => promise.answer(Err(error.repeat())),
        }
    }
}

fn closed() -> Error {
    Error::Closed { what: "the partition".into() }
}
