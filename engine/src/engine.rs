//! A data directory: open it, find or make its partitions, close it so that Kafka can open it.

#![forbid(unsafe_code)]

mod cursors;

use crate::branch::{self, BranchSync, Branched};
use crate::checkpoint;
use crate::compaction::Compactor;
use crate::config::{Config, PartitionConfig};
use crate::error::{Error, Result};
use crate::io::{self, Alive, Backend, DirLock, Disk, EntryKind};
use crate::journal::{self, Replay};
use crate::keeper::Keeper;
use crate::log::Isolation;
use crate::longpoll::{LongPolls, Woken};
use crate::offset::Offset;
use crate::partition::Partition;
use crate::recovery::{Checkpoints, Mode, Opened, Opening, RecoveryReport, open_partition};
use crate::registry::{Entry, Registry};
use crate::retention::{RetentionStat, Sweep, Terms, open_terms};
use crate::segment::OpenFiles;
use crate::session::{self, Session};
use crate::settings::SettingsChange;
use crate::shard::{
    self, Gauges, JournalMaker, Message, Outstanding, OutstandingMax, Pending, RetiredSink, Setup,
    ShardHandle,
};
use crate::space::Space;
use crate::state::{self, Found, Store};
use crate::topic::TopicPartition;
use names::is_delete_name;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

mod making;
mod names;
mod retain;

/// Kafka's lock file.
pub(crate) const LOCK_FILE: &str = ".lock";
/// Descriptors left to the host when the limit of open files is derived from the process's.
const HOST_FILES: u64 = 64;

/// What an engine has to do, and has done, for durability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EngineStat {
    /// Bytes of journals that a restart after a power cut would read.
    pub journal_bytes: u64,
    /// Bytes in segments that no sync has covered.
    pub unsynced_bytes: u64,
    /// Both together: what a restart would read at most, below `replay_bytes_max`.
    pub replay_bytes: u64,
    /// Device writes of the journals since the open.
    pub journal_writes: u64,
    /// Bytes of them, padding included.
    pub journal_bytes_written: u64,
    /// Segments that were deleted since the open, by reason.
    pub deleted: RetentionStat,
    /// Size of the file of values and cursors.
    pub state_bytes: u64,
    /// Bytes of the values and cursors that are in it, about.
    pub state_live_bytes: u64,
}

/// An open data directory. One process has it at a time; others may read ([`crate::View`]).
pub struct Engine {
    core: Arc<Core>,
    keeper_thread: Mutex<Option<JoinHandle<()>>>,
    sweep_thread: Mutex<Option<JoinHandle<()>>>,
    /// `None` once it is closed.
    open: Mutex<Option<Open>>,
}

/// Held while an engine is open.
struct Open {
    _lock: Option<DirLock>,
}

/// What the engine shares with its housekeeper.
pub(crate) struct Core {
    config: Config,
    disk: Arc<dyn Disk>,
    open_files: Arc<OpenFiles>,
    space: Arc<Space>,
    shards: Vec<Arc<ShardHandle>>,
    registry: Arc<Registry>,
    keeper: Arc<Keeper>,
    terms: Arc<Terms>,
    sweep: Arc<Sweep>,
    outstanding: Arc<Outstanding>,
    polls: Arc<LongPolls>,
    compactor: Arc<Compactor>,
    next_slot: AtomicUsize,
    broker_epoch: i64,
    mode: Mode,
    ours: bool,
    /// A sync of the session before failed: what is past the recovery points is written anew.
    doubt: bool,
    /// Earlier sessions have journals that a crash would replay.
    old_journals: Arc<AtomicBool>,
    /// To be written when every partition is recovered.
    session: Mutex<Option<Session>>,
    /// Values of partitions, cursors of groups.
    state: Arc<Store>,
    /// What earlier sessions left in journals; taken when it is not needed any more.
    replay: Mutex<Option<Arc<Replay>>>,
}

/// Who runs the shards and the housekeeper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Threads {
    /// Threads of the engine's own.
    Own,
    /// Callers, while they wait; between calls nothing happens.
    Caller,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("dir", &self.core.config.dir).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens a data directory, creating it if it is missing. Partitions that a crash left are
    /// recovered when they are first touched, and one by one in the background.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it, [`Error::Config`], [`Error::ReadOnly`],
    /// [`Error::Format`] for a checkpoint file that does not add up, [`Error::Io`].
    pub fn open(config: Config) -> Result<Engine> {
        config.check()?;
        std::fs::create_dir_all(&config.dir).map_err(|e| Error::io("create", &config.dir, e))?;
        let lock = DirLock::acquire(&config.dir.join(LOCK_FILE))?;
        let disk = io::open(&config.dir, config.backend)
            .map_err(|e| Error::io("set up the backend for", &config.dir, e))?;
        Engine::open_on(config, disk, Some(lock), Threads::Own)
    }

    /// Opens a directory that exists, on this disk.
    pub(crate) fn open_on(
        config: Config,
        disk: Arc<dyn Disk>,
        lock: Option<DirLock>,
        threads: Threads,
    ) -> Result<Engine> {
        let dir = config.dir.clone();
        let broker_epoch = checkpoint::read_clean_shutdown(disk.as_ref(), &dir)?;
        let names = list(disk.as_ref(), &dir)?;
        let read = |name: &str| checkpoint::read_offsets(disk.as_ref(), &dir.join(name));
        let recovery_points = read(checkpoint::RECOVERY_POINTS)?;
        let high_watermarks = read(checkpoint::HIGH_WATERMARKS)?;
        let log_starts = read(checkpoint::LOG_STARTS)?;
        let terms = Arc::new(open_terms(&dir, &config.partition, &config.clock, &disk)?);
        let cleaned = read(checkpoint::CLEANER_OFFSETS)?;
        let before = session::read(disk.as_ref(), &dir)?;
        let mount = disk.mount_id(&dir);
        let clean = broker_epoch.is_some() || names.partitions.is_empty();
        let mode = match &before {
            _ if clean => Mode::Clean,
            Some(before) if before.mount.is_some() && before.mount == mount => Mode::Killed,
            _ => Mode::Crashed,
        };
        let mut replay = read_journals(disk.as_ref(), &dir, &names, mode)?;
        let number = replay.next_session.max(before.as_ref().map_or(0, |b| b.number + 1));
        let space = Arc::new(Space::open(
            Arc::clone(&disk),
            Arc::clone(&config.clock),
            &dir,
            config.reserve_bytes,
        )?);
        let limit = config.open_files_max.unwrap_or_else(open_files_default);
        let open_files = Arc::new(OpenFiles::new(Arc::clone(&disk), limit));
        let keeper = Arc::new(Keeper::new(
            dir.clone(),
            Arc::clone(&disk),
            Arc::clone(&config.clock),
            Duration::from_millis(config.file_delete_delay_ms),
        ));
        if mode == Mode::Clean && !replay.paths.is_empty() {
            // Before the mark goes: a crash must not find journals that nobody reads.
            journal::remove(disk.as_ref(), &dir, &replay.paths)?;
        }
        let found = if mode == Mode::Clean { Found::Clean } else { Found::Crashed };
        let journalled = std::mem::take(&mut replay.states);
        let lives = |name: &TopicPartition| {
            names.partitions.binary_search_by(|(there, _)| there.cmp(name)).is_ok()
        };
        let state = Arc::new(state::open(Arc::clone(&disk), &dir, found, &journalled, &lives)?);
        // From here on a crash means recovery, also one in the middle of this open.
        let doubt = before.as_ref().is_some_and(|before| before.doubt);
        let session = Session { number, mount, doubt: false };
        // After a power cut the page cache is to be trusted only when all is recovered.
        let trusted = Session {
            mount: session.mount.clone().filter(|_| mode != Mode::Crashed),
            number,
            doubt,
        };
        session::write(disk.as_ref(), &dir, &trusted)?;
        checkpoint::remove_clean_shutdown(disk.as_ref(), &dir)?;
        let registry = Arc::new(Registry::default());
        for (name, path) in names.partitions {
            let checkpoints = Checkpoints {
                recovery_point: recovery_points.get(&name).copied().unwrap_or(0),
                high_watermark: high_watermarks.get(&name).copied().unwrap_or(0),
                log_start: log_starts.get(&name).copied(),
                cleaned: cleaned.get(&name).copied(),
            };
            registry.insert(Entry::new(name, path, checkpoints));
        }
        let outstanding = Arc::<Outstanding>::default();
        let unread = mode != Mode::Clean && !replay.paths.is_empty();
        let old_journals = Arc::new(AtomicBool::new(unread));
        let shards = Shards {
            config: &config,
            disk: &disk,
            number,
            outstanding: &outstanding,
            old_journals: &old_journals,
            state: &state,
        };
        let shards = shards.make(&keeper, &registry, threads)?;
        let polls = Arc::new(LongPolls::new(Arc::clone(&config.clock)));
        let compactor = compactor(&config, &disk, &keeper, &registry);
        let core = Core {
            config,
            disk,
            open_files,
            space,
            shards,
            registry,
            keeper,
            terms,
            sweep: Arc::default(),
            outstanding,
            polls,
            compactor,
            next_slot: AtomicUsize::new(0),
            broker_epoch: broker_epoch.unwrap_or(-1),
            mode,
            ours: before.is_some(),
            doubt,
            old_journals,
            state,
            session: Mutex::new((mode == Mode::Crashed).then_some(session)),
            replay: Mutex::new((mode != Mode::Clean).then(|| Arc::new(replay))),
        };
        let engine = Engine {
            core: Arc::new(core),
            keeper_thread: Mutex::new(None),
            sweep_thread: Mutex::new(None),
            open: Mutex::new(Some(Open { _lock: lock })),
        };
        if threads == Threads::Own {
            engine.start_keeper()?;
            engine.start_sweep()?;
            let interval = Duration::from_millis(engine.core.config.compaction_interval_ms);
            let registry = Arc::clone(&engine.core.registry);
            let started = engine.core.compactor.start(interval, move || registry.owners());
            started.map_err(|e| Error::io("start a thread for", &dir, e))?;
        }
        Ok(engine)
    }

    /// The data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.core.config.dir
    }

    /// Which backend serves it, and why.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        self.core.disk.backend()
    }

    /// True if it was closed cleanly before, or is new.
    #[must_use]
    pub fn was_clean(&self) -> bool {
        self.core.mode == Mode::Clean
    }

    /// What opening each partition found and did; those not yet opened are not in it.
    #[must_use]
    pub fn recovery_reports(&self) -> BTreeMap<TopicPartition, RecoveryReport> {
        let entries = self.core.registry.all();
        entries.iter().filter_map(|e| Some((e.name.clone(), e.report()?.clone()))).collect()
    }

    /// What a restart after a power cut would have to read now, and what the journal has done.
    #[must_use]
    pub fn stat(&self) -> EngineStat {
        let gauges = || self.core.shards.iter().map(|shard| shard.gauges());
        let sum = |gauge: fn(&Gauges) -> &AtomicU64| -> u64 {
            gauges().map(|g| gauge(g).load(Ordering::Relaxed)).sum()
        };
        let journal_bytes = sum(|g| &g.journal_bytes);
        let unsynced_bytes = self.core.outstanding.unsynced_bytes.load(Ordering::Relaxed);
        EngineStat {
            journal_bytes,
            unsynced_bytes,
            replay_bytes: journal_bytes + unsynced_bytes,
            journal_writes: sum(|g| &g.frames),
            journal_bytes_written: sum(|g| &g.frame_bytes),
            deleted: self.core.terms.counters.stat(),
            state_bytes: self.core.state.file_bytes(),
            state_live_bytes: self.core.state.live_bytes(),
        }
    }

    /// Waits until the partitions together have `bytes_min` bytes or more to be fetched from these
    /// offsets, or until `timeout` has passed: what a broker does with a fetch that finds too little.
    /// It wakes once, through the [`Pending`]; also when an offset can no longer be read, which the
    /// fetch that follows then reports. With nothing to wait for it is answered at once.
    ///
    /// # Errors
    /// As [`Partition::fetch`] for an offset out of range; [`Error::Closed`].
    pub fn long_poll(
        &self,
        interests: &[(Partition, Offset)],
        bytes_min: u64,
        timeout: Duration,
        isolation: Isolation,
    ) -> Result<Pending<Woken>> {
        self.core.polls.arm(interests, bytes_min, timeout, isolation)
    }

    /// Makes a copy of the directory in `to`, which must be empty or missing, while it is written to:
    /// sealed segments by hard links where the file system has them, the rest by copying. Each
    /// partition ends at an offset that was its log end during the call; every partition is opened
    /// for it. The branch is a directory of its own, to be opened and written to.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if `to` has something in it, [`Error::NoSpace`], [`Error::Busy`] if a
    /// partition is truncated or deleted over and over meanwhile, [`Error::Io`], [`Error::Closed`].
    pub fn branch(&self, to: impl AsRef<Path>, sync: BranchSync) -> Result<Branched> {
        branch::make(&self.core, to.as_ref(), sync)
    }

    /// The names of all partitions, open or not.
    #[must_use]
    pub fn partition_names(&self) -> Vec<TopicPartition> {
        self.core.registry.all().iter().map(|entry| entry.name.clone()).collect()
    }

    /// All partitions; those that are not open are opened.
    ///
    /// # Errors
    /// The first that opening one met.
    pub fn partitions(&self) -> Result<Vec<Partition>> {
        self.core.open_all()
    }

    /// The partitions of a topic, by number; none if there is no such topic.
    ///
    /// # Errors
    /// The first that opening one met.
    pub fn topic(&self, topic: &str) -> Result<Vec<Partition>> {
        let entries = self.core.registry.of_topic(topic);
        entries.iter().map(|entry| self.core.open_entry(entry)).collect()
    }

    /// A partition that exists. The first call opens it, and recovers it if a crash left it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TopicName`], what opening it met.
    pub fn partition(&self, topic: &str, partition: u32) -> Result<Partition> {
        let name = TopicPartition::new(topic, partition)?;
        let entry = self.core.registry.get(&name)?;
        self.core.open_entry(&entry)
    }

    /// Makes the partitions 0 to `count` − 1 of a new topic, with the engine's default settings.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if the topic has a partition, and those of
    /// [`Engine::create_partition`]; then none is left behind that was not there before.
    pub fn create_topic(&self, topic: &str, count: u32) -> Result<Vec<Partition>> {
        self.create_topic_with(topic, count, &SettingsChange::new())
    }

    /// Makes one partition, with settings of its own. It joins its topic's id, or starts a new one.
    ///
    /// # Errors
    /// [`Error::TopicName`], [`Error::AlreadyExists`], [`Error::Config`], [`Error::NoSpace`],
    /// [`Error::TooManyOpenFiles`], [`Error::Io`].
    pub fn create_partition(
        &self,
        topic: &str,
        partition: u32,
        config: PartitionConfig,
    ) -> Result<Partition> {
        config.check()?;
        let name = retain::new_name(topic, partition)?;
        let made = self.core.create_partition(name, config, None)?;
        self.core.sync_dir()?;
        Ok(made)
    }

    /// Deletes a topic: its directories are renamed at once and removed in the background.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`].
    pub fn delete_topic(&self, topic: &str) -> Result<()> {
        let doomed = self.core.registry.of_topic(topic);
        if doomed.is_empty() {
            return Err(Error::NotFound { what: format!("topic {topic}") });
        }
        for entry in doomed {
            self.core.delete_partition(&entry)?;
        }
        let dir = &self.core.config.dir;
        self.core.disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))?;
        // If this fails they stay, and mean nothing: a topic of that name has another id.
        self.core.terms.settings.forget(topic)?;
        self.core.terms.pins.forget(topic)
    }

    /// Writes the checkpoint files now.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn checkpoint(&self) -> Result<()> {
        self.core.keeper.write_checkpoints(&self.core.registry)
    }

    /// Flushes everything, writes what Kafka needs to open the directory without recovery, and lets
    /// go of it. Handles on partitions are closed from then on; leases stay valid.
    ///
    /// # Errors
    /// The first that was met. Then the mark of a clean close is not written, and the next open
    /// recovers; nothing acknowledged as durable is lost.
    pub fn close(self) -> Result<()> {
        self.shut_down()
    }

    /// As [`Engine::close`], for hosts that share the engine. Does nothing the second time.
    ///
    /// # Errors
    /// As [`Engine::close`].
    pub fn shut_down(&self) -> Result<()> {
        // Gone after the first call, so that dropping a closed engine does nothing.
        let Some(open) = self.open.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let core = &self.core;
        core.polls.stop();
        core.compactor.stop();
        core.keeper.stop();
        self.stop_sweep();
        let thread = self.keeper_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the housekeeper's thread panicked");
        }
        let mut result = Ok(());
        for entry in core.registry.all() {
            // One that nobody touched is as it was: whole after a clean close, else to be recovered.
            if core.mode != Mode::Clean || entry.opened().is_some() {
                let closed = core.open_entry(&entry).and_then(|partition| partition.close());
                result = result.and(closed);
            }
        }
        for shard in &core.shards {
            shard.stop();
        }
        result = result.and_then(|()| self.checkpoint());
        result = result.and_then(|()| core.state.close());
        result = result.and_then(|()| core.leave_plain());
        drop(open);
        result
    }

    /// One round of housekeeping, for callers who run the shards; true if more is to be recovered.
    #[cfg(test)]
    pub(crate) fn keep(&self) -> Result<bool> {
        self.core.keeper.round(&self.core.registry);
        self.core.keep_state();
        self.core.recover_next()
    }

    /// Forgets the directory as a process that dies does.
    #[cfg(test)]
    pub(crate) fn abandon(self) {
        *self.open.lock().unwrap() = None;
        self.core.shards.iter().for_each(|shard| shard.stop());
    }

    /// One turn of every shard, for callers who run them.
    #[cfg(test)]
    pub(crate) fn poll(&self) {
        for shard in &self.core.shards {
            shard.drive(Duration::from_millis(1));
        }
    }

    fn start_keeper(&self) -> Result<()> {
        let core = Arc::clone(&self.core);
        let thread = std::thread::Builder::new()
            .name("loglane-keeper".into())
            .spawn(move || {
                let interval = Duration::from_millis(core.config.checkpoint_interval_ms);
                core.keeper.run(interval, &core.registry, || {
                    core.keep_state();
                    core.recover_next()
                });
            })
            .map_err(|e| Error::io("start a thread for", &self.core.config.dir, e))?;
        *self.keeper_thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }
}

/// What compacts the directory's partitions. It knows the registry only while that lives, since
/// partitions know it.
fn compactor(
    config: &Config,
    disk: &Arc<dyn Disk>,
    keeper: &Arc<Keeper>,
    registry: &Arc<Registry>,
) -> Arc<Compactor> {
    let (keeper, registry) = (Arc::clone(keeper), Arc::downgrade(registry));
    let store_points = move || match registry.upgrade() {
        Some(registry) => keeper.write_checkpoints(&registry),
        None => Err(Error::Closed { what: "the engine".into() }),
    };
    let (disk, clock) = (Arc::clone(disk), Arc::clone(&config.clock));
    let (memory, rate) = (config.compaction_memory_bytes, config.compaction_bytes_per_s);
    Arc::new(Compactor::new(disk, clock, memory, rate, Box::new(store_points)))
}

impl Core {
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// All partitions; those that are not open are opened.
    pub(crate) fn open_all(&self) -> Result<Vec<Partition>> {
        self.registry.all().iter().map(|entry| self.open_entry(entry)).collect()
    }

    /// Keeps the state file from growing past what it holds.
    fn keep_state(&self) {
        if let Err(error) = self.state.rewrite_if_grown() {
            tracing::warn!(%error, "the state file is not written anew; the next round tries again");
        }
    }

    fn open_entry(&self, entry: &Entry) -> Result<Partition> {
        let mut is_new = false;
        let partition = entry.partition(|entry| {
            is_new = true;
            let replay = self.replay.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.open_dir(entry, self.mode, None, replay.as_deref())
        })?;
        if is_new {
            // A change that came while it was being opened found no partition to tell.
            partition.take_settings();
        }
        Ok(partition)
    }

    fn open_dir(
        &self,
        entry: &Entry,
        mode: Mode,
        config: Option<PartitionConfig>,
        replay: Option<&Replay>,
    ) -> Result<(Partition, RecoveryReport)> {
        let id = checkpoint::read_topic_id(self.disk.as_ref(), &entry.dir)?;
        let config = config.unwrap_or_else(|| self.terms.settings.effective(&entry.name, id));
        let mut opened = open_partition(Opening {
            name: entry.name.clone(),
            dir: entry.dir.clone(),
            mode,
            config,
            checkpoints: entry.checkpoints,
            replayed: replay.and_then(|replay| replay.logs.get(&(entry.name.clone(), id))),
            ours: self.ours,
            doubt: self.doubt && mode == Mode::Crashed,
            open_files: Arc::clone(&self.open_files),
            space: Arc::clone(&self.space),
            clock: &self.config.clock,
        })?;
        let report = std::mem::take(&mut opened.report);
        Ok((self.adopt(opened), report))
    }

    /// Gives a partition to a shard, in turn.
    fn adopt(&self, opened: Opened) -> Partition {
        let Opened { shared, log, .. } = opened;
        let number = self.next_slot.fetch_add(1, Ordering::Relaxed);
        let slot = number / self.shards.len();
        let shard = self.shards.get(number % self.shards.len());
        let shard = Arc::clone(shard.expect("the remainder is below the number of shards"));
        if let Some(log) = log {
            shard.send(Message::Adopt(slot, Box::new(log)));
        }
        Partition::new(shared, shard, slot, Arc::clone(&self.terms), Arc::clone(&self.compactor))
    }

    /// Recovers one partition that nobody has touched yet. False if there is none; then journals of
    /// earlier sessions go as soon as all is synced.
    fn recover_next(&self) -> Result<bool> {
        if self.mode == Mode::Clean {
            return Ok(false);
        }
        if let Some(entry) = self.registry.all().iter().find(|entry| entry.opened().is_none()) {
            self.open_entry(entry)?;
            return Ok(true);
        }
        if let Some(session) = self.session.lock().unwrap_or_else(PoisonError::into_inner).take() {
            session::write(self.disk.as_ref(), &self.config.dir, &session)?;
        }
        self.drop_journals_if_settled()?;
        Ok(false)
    }

    /// Removes the journals of earlier sessions when synced segments have all of them.
    fn drop_journals_if_settled(&self) -> Result<()> {
        let mut replay = self.replay.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(old) = replay.as_ref() else { return Ok(()) };
        if !self.registry.all().iter().all(|entry| entry.is_settled()) {
            return Ok(());
        }
        // A later crash must not miss them: what they held is below these.
        self.keeper.write_checkpoints(&self.registry)?;
        let (disk, dir) = (self.disk.as_ref(), &self.config.dir);
        journal::remove(disk, dir, &old.paths)?;
        self.old_journals.store(false, Ordering::Release);
        *replay = None;
        Ok(())
    }

    /// Takes away everything that is not Kafka's and marks the directory as closed. Before this,
    /// every partition was closed and the recovery points are their log ends.
    fn leave_plain(&self) -> Result<()> {
        let (disk, dir) = (self.disk.as_ref(), &self.config.dir);
        let journals = list(disk, dir)?.journals;
        let journals: Vec<PathBuf> = journals.iter().map(|name| dir.join(name)).collect();
        journal::remove(disk, dir, &journals)?;
        self.state.remove_if_empty()?;
        self.space.close()?;
        io::remove_alive(disk, dir).map_err(|e| Error::io("remove files in", dir, e))?;
        session::remove(disk, dir)?;
        checkpoint::write_clean_shutdown(disk, dir, self.broker_epoch)
    }
}

impl Drop for Engine {
    /// Closes, for hosts that forget; errors go to the log only.
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            tracing::error!(%error, dir = %self.core.config.dir.display(), "closed with an error");
        }
    }
}

/// What shards are made from.
struct Shards<'a> {
    config: &'a Config,
    disk: &'a Arc<dyn Disk>,
    number: u64,
    outstanding: &'a Arc<Outstanding>,
    old_journals: &'a Arc<AtomicBool>,
    state: &'a Arc<Store>,
}

impl Shards<'_> {
    fn make(
        &self,
        keeper: &Arc<Keeper>,
        registry: &Arc<Registry>,
        threads: Threads,
    ) -> Result<Vec<Arc<ShardHandle>>> {
        let mut handles = Vec::new();
        for number in 0..u32::try_from(self.config.shards).unwrap_or(u32::MAX) {
            let dir = &self.config.dir;
            let lane = self.disk.lane().map_err(|e| Error::io("set up a lane for", dir, e))?;
            let retired_to = Arc::clone(keeper);
            let retired: RetiredSink = Arc::new(move |segments| retired_to.retire(segments));
            let (points_to, points_of) = (Arc::clone(keeper), Arc::clone(registry));
            let handle = shard::build(Setup {
                number,
                lane,
                clock: Arc::clone(&self.config.clock),
                mailbox_requests_max: self.config.mailbox_requests_max,
                inflight_bytes_max: self.config.inflight_bytes_max,
                outstanding_max: OutstandingMax {
                    unsynced_bytes: self.config.unsynced_bytes_max(),
                    files: self.config.open_files_max.unwrap_or_else(open_files_default),
                },
                outstanding: Arc::clone(self.outstanding),
                checkpoint_interval: Duration::from_millis(self.config.checkpoint_interval_ms),
                session: self.number,
                alive: Alive::new(self.disk.as_ref(), dir, number)
                    .map_err(|e| Error::io("create a file in", dir, e))?,
                old_journals: Arc::clone(self.old_journals),
                state: Arc::clone(self.state),
                retired,
                make_journal: self.journal_maker(threads),
                store_recovery_points: Arc::new(move || points_to.write_checkpoints(&points_of)),
            });
            if threads == Threads::Own {
                shard::spawn(number, &handle)
                    .map_err(|e| Error::io("start a thread for", dir, e))?;
            }
            handles.push(Arc::new(handle));
        }
        Ok(handles)
    }

    /// Writing journal files from end to end takes a while: durable appends sync their segments
    /// until then.
    fn journal_maker(&self, threads: Threads) -> JournalMaker {
        let (disk, dir) = (Arc::clone(self.disk), self.config.dir.clone());
        let (session, file_bytes) = (self.number, self.config.journal_file_bytes());
        Arc::new(move |lane, slot| {
            let (disk, dir) = (Arc::clone(&disk), dir.clone());
            let back = slot.clone();
            let make = move || {
                let files = journal::create_files(disk.as_ref(), &dir, session, lane, file_bytes);
                slot.put(files);
            };
            if threads == Threads::Caller {
                return make();
            }
            let started = std::thread::Builder::new().name("loglane-journal".into()).spawn(make);
            if let Err(e) = started {
                back.put(Err(Error::io("start a thread to make", "a journal", e)));
            }
        })
    }
}

/// What an open finds in a directory.
#[derive(Default)]
struct Names {
    partitions: Vec<(TopicPartition, PathBuf)>,
    journals: Vec<String>,
}

/// Partition directories and journals; what deletions left behind is removed.
fn list(disk: &dyn Disk, dir: &Path) -> Result<Names> {
    let mut found = Names::default();
    for entry in disk.list(dir).map_err(|e| Error::io("list", dir, e))? {
        let path = dir.join(&entry.name);
        match entry.kind {
            EntryKind::File if journal::is_journal_name(&entry.name) => {
                found.journals.push(entry.name);
            }
            EntryKind::Dir if is_delete_name(&entry.name) => {
                disk.remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
            EntryKind::Dir => {
                if let Some(name) = TopicPartition::from_dir_name(&entry.name)
                    && !name.is_cluster_metadata()
                {
                    found.partitions.push((name, path));
                }
            }
            EntryKind::File | EntryKind::Other => {}
        }
    }
    found.partitions.sort();
    found.journals.sort();
    Ok(found)
}

/// After a clean close journals are leftovers: whoever closed it went on without them.
fn read_journals(disk: &dyn Disk, dir: &Path, names: &Names, mode: Mode) -> Result<Replay> {
    match mode {
        Mode::Crashed => journal::scan(disk, dir, &names.journals, true),
        Mode::Killed => journal::scan(disk, dir, &names.journals, false),
        Mode::Clean | Mode::ReadOnly => Ok(Replay::unread(dir, &names.journals)),
    }
}

/// Half of what the process may open: active segments, sockets and files of the host need the rest.
fn open_files_default() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let soft = limit.current.unwrap_or(1 << 20);
    usize::try_from((soft / 2).saturating_sub(HOST_FILES).max(16)).unwrap_or(1024)
}
