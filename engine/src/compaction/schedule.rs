//! Which partition is compacted next, and how fast.
//!
//! One run at a time: the memory for keys is one budget. The dirtiest partition goes first, of those
//! whose ratio is over their `min_cleanable_dirty_ratio` or whose records wait for too long (Kafka
//! `LogCleanerManager.grabFilthiestCompactedLog`).

#![forbid(unsafe_code)]

use super::plan::Plan;
use super::transactions::last_stable_offset;
use super::{CompactionRun, Outcome, Owner, Tools, compact};
use crate::error::{Error, Result};
use crate::io::{Clock, Disk};
use crate::topic::TopicPartition;
use std::collections::BTreeSet;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes after which a run without a limit gives its core away once.
const YIELD_BYTES: u64 = 1 << 20;
/// A run that is too fast rests no shorter than this.
const REST_MIN: Duration = Duration::from_millis(1);
/// Times a run begins anew because the log was cut under it.
const TRIES: u32 = 8;
/// How much the cleaner's thread gives way to others on its core (`nice`).
const NICE: i32 = 10;

/// Compacts the partitions of a directory.
pub(crate) struct Compactor {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    memory_bytes: u64,
    throttle: Throttle,
    store_points: Box<dyn Fn() -> Result<()> + Send + Sync>,
    /// Held while a partition is compacted.
    running: Mutex<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// For the thread; `None` if there is none.
    jobs: Mutex<Option<Vec<Job>>>,
}

/// A partition that somebody waits for.
struct Job {
    owner: Box<dyn Owner>,
    answer: SyncSender<Result<CompactionRun>>,
}

/// Keeps a rate, and knows when it is time to stop.
pub(crate) struct Throttle {
    clock: Arc<dyn Clock>,
    bytes_per_s: u64,
    state: Mutex<Pace>,
    changed: Condvar,
}

#[derive(Default)]
struct Pace {
    stopping: bool,
    /// Somebody waits for a run.
    wanted: bool,
    /// From when on `bytes` were spent.
    since: Duration,
    bytes: u64,
    unyielded: u64,
}

impl Throttle {
    pub(crate) fn new(clock: Arc<dyn Clock>, bytes_per_s: u64) -> Throttle {
        Throttle { clock, bytes_per_s, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Counts bytes that were read or written, and rests if that was too fast.
    ///
    /// # Errors
    /// [`Error::Closed`] when it is time to stop.
    pub(crate) fn spend(&self, bytes: u64) -> Result<()> {
        let mut pace = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if pace.stopping {
            return Err(Error::Closed { what: "the engine".into() });
        }
        pace.bytes += bytes;
        pace.unyielded += bytes;
        if self.bytes_per_s > 0 {
            let due = Duration::from_secs_f64(ratio(pace.bytes, self.bytes_per_s));
            let rest = (pace.since + due).saturating_sub(self.clock.monotonic());
            if rest >= REST_MIN {
                let stopping = |pace: &mut Pace| !pace.stopping;
                let waited = self.changed.wait_timeout_while(pace, rest, stopping);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
        } else if pace.unyielded >= YIELD_BYTES {
            pace.unyielded = 0;
            drop(pace);
            std::thread::yield_now();
        }
        Ok(())
    }

    /// A run begins: time that passed before it is not its own.
    fn begin(&self) {
        let mut pace = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        pace.since = self.clock.monotonic();
        pace.bytes = 0;
    }

    /// Waits that long, or until it is woken; false if it is time to stop.
    fn rest(&self, time: Duration) -> bool {
        let pace = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = |pace: &mut Pace| !pace.stopping && !pace.wanted;
        let waited = self.changed.wait_timeout_while(pace, time, quiet);
        let mut pace = waited.unwrap_or_else(PoisonError::into_inner).0;
        pace.wanted = false;
        !pace.stopping
    }

    /// Ends a rest between two looks for work.
    fn wake(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).wanted = true;
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopping = true;
        self.changed.notify_all();
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits")]
fn ratio(bytes: u64, per_s: u64) -> f64 {
    bytes as f64 / per_s as f64
}

impl Compactor {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        memory_bytes: u64,
        bytes_per_s: u64,
        store_points: Box<dyn Fn() -> Result<()> + Send + Sync>,
    ) -> Compactor {
        let throttle = Throttle::new(Arc::clone(&clock), bytes_per_s);
        let (running, thread) = (Mutex::default(), Mutex::new(None));
        let jobs = Mutex::new(None);
        Compactor { disk, clock, memory_bytes, throttle, store_points, running, thread, jobs }
    }

    /// Now, Unix ms.
    pub(crate) fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// Compacts all of a partition that can be, now. Waits for a run that is under way.
    pub(crate) fn compact_now(&self, owner: Box<dyn Owner>) -> Result<CompactionRun> {
        let shared = owner.shared();
        if !shared.config.load().cleanup_policy.compacts() {
            return Err(Error::Config {
                key: "cleanup_policy",
                reason: format!("{} is not compacted", shared.name),
            });
        }
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = jobs.as_mut() else {
            // Without a thread of its own: on this one.
            drop(jobs);
            return self.run_job(owner.as_ref());
        };
        let (answer, answered) = sync_channel(1);
        waiting.push(Job { owner, answer });
        drop(jobs);
        self.throttle.wake();
        answered.recv().unwrap_or_else(|_| Err(Error::Closed { what: "the engine".into() }))
    }

    fn run_job(&self, owner: &dyn Owner) -> Result<CompactionRun> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        owner.sync_sealed()?;
        let done = self.run(owner);
        drop(running);
        done
    }

    /// What somebody waits for, in order.
    fn run_jobs(&self) {
        loop {
            let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(job) = jobs.as_mut().filter(|jobs| !jobs.is_empty()).map(|j| j.remove(0))
            else {
                return;
            };
            drop(jobs);
            // Whoever asked may have gone.
            let _ = job.answer.send(self.run_job(job.owner.as_ref()));
        }
    }

    /// One partition, with what becomes of it noted.
    fn run(&self, owner: &dyn Owner) -> Result<CompactionRun> {
        self.throttle.begin();
        let tools = Tools {
            disk: self.disk.as_ref(),
            memory_bytes: self.memory_bytes,
            throttle: &self.throttle,
            now_ms: self.now_ms(),
            store_points: &*self.store_points,
        };
        for _ in 0..TRIES {
            match compact(owner, &tools) {
                Ok(Outcome::Stale) => {}
                Ok(Outcome::Done(run)) => {
                    let run = CompactionRun { finished_ms: self.now_ms(), ..run };
                    owner.latch().succeeded(run);
                    return Ok(run);
                }
                Err(error) => {
                    let partition = &owner.shared().name;
                    tracing::warn!(%partition, %error, "not compacted");
                    owner.latch().failed(&error);
                    return Err(error);
                }
            }
        }
        // Somebody cuts the log all the time.
        Err(Error::Busy { partition: owner.shared().name.to_string(), queued: 0 })
    }

    /// Starts the thread that looks for work until it is told to stop.
    pub(crate) fn start(
        self: &Arc<Self>,
        interval: Duration,
        partitions: impl Fn() -> Vec<Box<dyn Owner>> + Send + 'static,
    ) -> std::io::Result<()> {
        let compactor = Arc::clone(self);
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
        let thread = std::thread::Builder::new()
            .name("loglane-cleaner".into())
            .spawn(move || compactor.run_background(interval, partitions))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    fn run_background(&self, interval: Duration, partitions: impl Fn() -> Vec<Box<dyn Owner>>) {
        // Appends and fetches are waited for; this is not.
        let _ = rustix::process::setpriority_process(None, NICE);
        while self.throttle.rest(interval) {
            self.run_jobs();
            // Those that got nowhere in this round; an error is in the partition's status.
            let mut done = BTreeSet::new();
            while let Some(owner) = self.dirtiest(partitions(), &done) {
                let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                let run = self.run(owner.as_ref());
                drop(running);
                if run.is_err() || run.is_ok_and(|run| run.passes == 0) {
                    done.insert(owner.shared().name.clone());
                }
                self.run_jobs();
            }
        }
        // From here on nobody waits for this thread; who did is told.
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The partition that is compacted next.
    fn dirtiest(
        &self,
        partitions: Vec<Box<dyn Owner>>,
        done: &BTreeSet<TopicPartition>,
    ) -> Option<Box<dyn Owner>> {
        let now_ms = self.now_ms();
        let mut best: Option<(f64, Box<dyn Owner>)> = None;
        for owner in partitions {
            let shared = owner.shared();
            let compacts = shared.config.load().cleanup_policy.compacts();
            if !compacts || owner.latch().is_uncleanable() || done.contains(&shared.name) {
                continue;
            }
            let segments = shared.segments.load_full();
            let bound = shared.offsets.synced().min(last_stable_offset(shared));
            let plan = match Plan::make(shared, &segments, bound, now_ms) {
                Ok(plan) => plan,
                Err(error) => {
                    owner.latch().failed(&error);
                    continue;
                }
            };
            let ratio = plan.dirty_ratio();
            if plan.is_due(shared) && best.as_ref().is_none_or(|(most, _)| ratio > *most) {
                best = Some((ratio, owner));
            }
        }
        best.map(|(_, owner)| owner)
    }

    /// Ends the run under way at its next batch, and all to come; waits for the thread.
    pub(crate) fn stop(&self) {
        self.throttle.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the cleaner's thread panicked");
        }
    }
}
