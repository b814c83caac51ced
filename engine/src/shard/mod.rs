//! A shard: one thread that owns some of the partitions, with one lane for what may block.
//!
//! ```text
//! tick:  drain the mailbox ─▶ one write per partition, one frame of the journal for all
//!        ─▶ start syncs that are due ─▶ reap what has finished ─▶ deliver answers
//!        ─▶ nothing to do? say so, look again, sleep
//! ```
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the outside: messages, the handle, the thread |
//! | `tick.rs` | the loop: messages in, writes out |
//! | `commit.rs` | what makes things durable: frames, syncs, and who waits for them |
//! | `state.rs` | changes of values, in order with appends |
//! | `checkpoint.rs` | when segments are synced though nobody waits |
//!
//! Nothing here is shared with another shard. A lone request is served at once: ticks have no timer,
//! batches form by themselves while the one before is written.

mod checkpoint;
mod commit;
mod completion;
mod mailbox;
mod spin;
mod state;
mod tick;

pub(crate) use checkpoint::{Outstanding, OutstandingMax};
pub(crate) use completion::{Answers, Promise, Reply, pending};
pub use completion::{AppendInfo, Completion, CompletionQueue, Durability, Pending};
pub(crate) use state::ChangeRequest;

use crate::error::{Error, Result};
use crate::io::{Alive, Clock, Lane, Waker};
use crate::journal::{Journal, JournalFiles};
use crate::log::{AppendRequest, Log, RetiredSegment, SwapOrder, SwapState};
use crate::offset::Offset;
use crate::producers::ProducerState;
use crate::state::Store;
use mailbox::{Full, Sender, mailbox};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tick::Shard;

/// A partition's place in its shard.
pub(crate) type Slot = usize;

/// Work on a log; it answers for itself, and says that all is closed by being dropped.
pub(crate) type Work = Box<dyn FnOnce(&mut Log) + Send>;

/// What a shard does.
pub(crate) enum Message {
    /// Takes a partition over.
    Adopt(Slot, Box<Log>),
    Append(Slot, AppendRequest<AppendReply>),
    /// Changes values: of a partition, in order with its appends, or of no partition.
    Change(Option<Slot>, ChangeRequest),
    /// Makes everything written so far durable; the answer is the durable offset.
    Flush(Slot, Promise<Offset>),
    /// Answered with the offset as it is when it has reached `Offset`.
    Wait(Slot, Mark, Offset, Promise<Offset>),
    /// Does something with a log, after what is queued for it.
    With(Slot, Work),
    Truncate(Slot, Offset, Promise<Offset>),
    Reset(Slot, Offset, Promise<Offset>),
    Roll(Slot, Promise<Offset>),
    Producers(Slot, Promise<Vec<ProducerState>>),
    /// Takes a step of putting a compacted segment in the place of others.
    Swap(Slot, SwapOrder, Promise<SwapState>),
    /// Syncs all sealed segments; the answer is the recovery point.
    SyncSealed(Slot, Promise<Offset>),
    /// Closes a partition; the shard forgets it.
    Close(Slot, Promise<()>),
    /// Forgets a partition whose directory is about to go.
    Drop(Slot, Promise<()>),
    /// Ends the thread, after what is queued.
    Stop,
}

/// An offset of a partition that can be waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// The log end offset: records below are in the page cache.
    Written,
    /// The durable offset: records below are on disk.
    Durable,
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
    gauges: Arc<Gauges>,
    state: Arc<Store>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The shard itself, if callers run it.
    driven: Mutex<Option<Shard>>,
}

impl ShardHandle {
    /// Runs one turn of a shard without a thread of its own; without work it waits for its lane, at
    /// most `time`. False if there is nothing to run.
    pub(crate) fn drive(&self, time: Duration) -> bool {
        let mut driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(shard) = driven.as_mut() else { return false };
        if !shard.tick() {
            shard.sleep(time);
        }
        true
    }

    /// Waits for an answer of this shard.
    pub(crate) fn wait<T>(&self, pending: Pending<T>) -> Result<T> {
        while !pending.is_ready() && self.drive(DRIVE_WAIT) {}
        pending.wait()
    }

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

    /// Queues changes of values; waits while too much is queued already.
    pub(crate) fn send_change(&self, slot: Option<Slot>, request: ChangeRequest) {
        let bytes = request.bytes;
        loop {
            let before = self.inflight_bytes.fetch_add(bytes, Ordering::AcqRel);
            if before == 0 || before + bytes <= self.inflight_bytes_max {
                return self.send(Message::Change(slot, request));
            }
            self.inflight_bytes.fetch_sub(bytes, Ordering::AcqRel);
            if !self.drive(Duration::ZERO) {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }

    /// What the shard tells about itself.
    pub(crate) fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// The values of the directory.
    pub(crate) fn state(&self) -> &Store {
        &self.state
    }

    /// Requests the mailbox holds at most.
    pub(crate) fn capacity(&self) -> usize {
        self.sender.capacity()
    }

    /// Stops the thread after what is queued.
    pub(crate) fn stop(&self) {
        // A shard that callers run knows, through what it calls, its own handle.
        drop(self.driven.lock().unwrap_or_else(PoisonError::into_inner).take());
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

/// Makes the journal files of a shard, on another thread or at once, and hands them to the second
/// argument.
pub(crate) type JournalMaker = Arc<dyn Fn(u32, JournalSlot) + Send + Sync>;

/// Writes the recovery points of the directory now.
pub(crate) type StoreRecoveryPoints = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// Where the maker of journal files puts them.
#[derive(Clone)]
pub(crate) struct JournalSlot {
    files: Arc<Mutex<Option<Result<JournalFiles>>>>,
    waker: Arc<Waker>,
}

impl JournalSlot {
    pub(crate) fn put(&self, files: Result<JournalFiles>) {
        *self.files.lock().unwrap_or_else(PoisonError::into_inner) = Some(files);
        self.waker.wake();
    }

    fn take(&self) -> Option<Result<JournalFiles>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What a shard tells about itself, for statistics.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    /// Bytes of the journal that a restart would read.
    pub(crate) journal_bytes: AtomicU64,
    /// Frames written.
    pub(crate) frames: AtomicU64,
    /// Bytes of frames written.
    pub(crate) frame_bytes: AtomicU64,
}

/// What a shard is made of.
pub(crate) struct Setup {
    pub(crate) number: u32,
    pub(crate) lane: Box<dyn Lane>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) mailbox_requests_max: usize,
    pub(crate) inflight_bytes_max: u64,
    /// Appends wait when all shards together have more than this.
    pub(crate) outstanding_max: OutstandingMax,
    pub(crate) outstanding: Arc<Outstanding>,
    pub(crate) checkpoint_interval: Duration,
    /// Of this open of the directory.
    pub(crate) session: u64,
    /// Journals of earlier sessions are there, which a crash would replay.
    pub(crate) old_journals: Arc<AtomicBool>,
    /// Tells whether syncs can be believed.
    pub(crate) alive: Alive,
    /// The values of the directory.
    pub(crate) state: Arc<Store>,
    pub(crate) retired: RetiredSink,
    pub(crate) make_journal: JournalMaker,
    pub(crate) store_recovery_points: StoreRecoveryPoints,
}

/// How long a caller who runs a shard lets it wait for its lane.
const DRIVE_WAIT: Duration = Duration::from_millis(1);

/// Makes a shard that its callers run ([`ShardHandle::drive`]).
pub(crate) fn build(setup: Setup) -> ShardHandle {
    let (sender, receiver) = mailbox(setup.mailbox_requests_max);
    let waker = setup.lane.waker();
    let inflight_bytes = Arc::new(AtomicU64::new(0));
    let gauges = Arc::new(Gauges::default());
    let handle = ShardHandle {
        sender,
        waker,
        inflight_bytes: Arc::clone(&inflight_bytes),
        inflight_bytes_max: setup.inflight_bytes_max,
        gauges: Arc::clone(&gauges),
        state: Arc::clone(&setup.state),
        thread: Mutex::new(None),
        driven: Mutex::new(None),
    };
    let journal = Journal::new(setup.number, setup.session);
    let shard = Shard::new(setup, receiver, inflight_bytes, gauges, journal);
    *handle.driven.lock().unwrap_or_else(PoisonError::into_inner) = Some(shard);
    handle
}

/// Gives a shard a thread of its own.
pub(crate) fn spawn(number: u32, handle: &ShardHandle) -> std::io::Result<()> {
    let shard = handle.driven.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(shard) = shard else { return Ok(()) };
    let thread =
        std::thread::Builder::new().name(format!("loglane-{number}")).spawn(move || shard.run())?;
    *handle.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    Ok(())
}

fn closed() -> Error {
    Error::Closed { what: "the partition".into() }
}
