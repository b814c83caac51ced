//! A data directory: open it, find or make its partitions, close it so that Kafka can open it.

#![forbid(unsafe_code)]

use crate::checkpoint;
use crate::config::{Config, PartitionConfig};
use crate::error::{Error, Result};
use crate::io::{self, Backend, DirLock, Disk, EntryKind};
use crate::keeper::Keeper;
use crate::log::LogShared;
use crate::partition::Partition;
use crate::recovery::{Checkpoints, Mode, Opened, Opening, RecoveryReport, open_partition};
use crate::segment::OpenFiles;
use crate::shard::{self, Message, RetiredSink, ShardHandle};
use crate::topic::TopicPartition;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use uuid::Uuid;

/// Kafka's lock file.
pub(crate) const LOCK_FILE: &str = ".lock";
/// Descriptors left to the host when the limit of open files is derived from the process's.
const HOST_FILES: u64 = 64;

type Partitions = Arc<RwLock<BTreeMap<TopicPartition, Partition>>>;

/// An open data directory. One process has it at a time; others may read ([`crate::View`]).
pub struct Engine {
    config: Config,
    disk: Arc<dyn Disk>,
    open_files: Arc<OpenFiles>,
    shards: Vec<Arc<ShardHandle>>,
    partitions: Partitions,
    reports: BTreeMap<TopicPartition, RecoveryReport>,
    keeper: Arc<Keeper>,
    keeper_thread: Mutex<Option<JoinHandle<()>>>,
    next_slot: AtomicUsize,
    broker_epoch: i64,
    was_clean: bool,
    lock: Mutex<Option<DirLock>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("dir", &self.config.dir).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens a data directory, creating it if it is missing, and recovers what a crash left.
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
        let broker_epoch = checkpoint::read_clean_shutdown(disk.as_ref(), &config.dir)?;
        let dirs = partition_dirs(disk.as_ref(), &config.dir)?;
        let read = |name: &str| checkpoint::read_offsets(disk.as_ref(), &config.dir.join(name));
        let recovery_points = read(checkpoint::RECOVERY_POINTS)?;
        let high_watermarks = read(checkpoint::HIGH_WATERMARKS)?;
        let log_starts = read(checkpoint::LOG_STARTS)?;
        let limit = config.open_files_max.unwrap_or_else(open_files_default);
        let open_files = Arc::new(OpenFiles::new(Arc::clone(&disk), limit));
        let keeper = Arc::new(Keeper::new(
            config.dir.clone(),
            Arc::clone(&disk),
            Arc::clone(&config.clock),
            Duration::from_millis(config.file_delete_delay_ms),
        ));
        let mut engine = Engine {
            shards: start_shards(&config, &disk, &keeper)?,
            disk,
            open_files,
            partitions: Partitions::default(),
            reports: BTreeMap::new(),
            keeper,
            keeper_thread: Mutex::new(None),
            next_slot: AtomicUsize::new(0),
            broker_epoch: broker_epoch.unwrap_or(-1),
            was_clean: broker_epoch.is_some() || dirs.is_empty(),
            lock: Mutex::new(Some(lock)),
            config,
        };
        // From here on a crash means recovery, also one in the middle of this open.
        checkpoint::remove_clean_shutdown(engine.disk.as_ref(), &engine.config.dir)?;
        for (name, dir) in dirs {
            let checkpoints = Checkpoints {
                recovery_point: recovery_points.get(&name).copied().unwrap_or(0),
                high_watermark: high_watermarks.get(&name).copied().unwrap_or(0),
                log_start: log_starts.get(&name).copied(),
            };
            let mode = if engine.was_clean { Mode::Clean } else { Mode::Crashed };
            let config = engine.config.partition.clone();
            let opened = engine.open_dir(name.clone(), dir, mode, config, checkpoints)?;
            engine.adopt(opened.0);
            engine.reports.insert(name, opened.1);
        }
        engine.start_keeper()?;
        Ok(engine)
    }

    /// The data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    /// Which backend serves it, and why.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        self.disk.backend()
    }

    /// True if it was closed cleanly before, or is new.
    #[must_use]
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// What opening each partition found and did.
    #[must_use]
    pub fn recovery_reports(&self) -> &BTreeMap<TopicPartition, RecoveryReport> {
        &self.reports
    }

    /// All partitions that are open.
    #[must_use]
    pub fn partitions(&self) -> Vec<Partition> {
        self.read_partitions().values().cloned().collect()
    }

    /// The partitions of a topic, by number.
    #[must_use]
    pub fn topic(&self, topic: &str) -> Vec<Partition> {
        let partitions = self.read_partitions();
        partitions
            .iter()
            .filter(|(name, _)| name.topic() == topic)
            .map(|(_, p)| p.clone())
            .collect()
    }

    /// A partition that exists.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TopicName`].
    pub fn partition(&self, topic: &str, partition: u32) -> Result<Partition> {
        let name = TopicPartition::new(topic, partition)?;
        let found = self.read_partitions().get(&name).cloned();
        found.ok_or_else(|| Error::NotFound { what: format!("partition {name}") })
    }

    /// Makes the partitions 0 to `count` − 1 of a new topic, with the engine's default settings.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if the topic has a partition, and those of
    /// [`Engine::create_partition`]; then none is left behind that was not there before.
    pub fn create_topic(&self, topic: &str, count: u32) -> Result<Vec<Partition>> {
        if count == 0 {
            return Err(Error::Config {
                key: "partitions",
                reason: "a topic has at least 1".into(),
            });
        }
        if !self.topic(topic).is_empty() {
            return Err(Error::AlreadyExists { what: format!("topic {topic}") });
        }
        let made: Result<Vec<Partition>> = (0..count)
            .map(|number| self.create_partition(topic, number, self.config.partition.clone()))
            .collect();
        if made.is_err() {
            // The error that stopped us is the one to report.
            let _ = self.delete_topic(topic);
        }
        made
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
        let name = TopicPartition::new(topic, partition)?;
        if name.is_cluster_metadata() {
            let reason = "this topic is the controller's";
            return Err(Error::TopicName { name: topic.into(), reason });
        }
        let dir = self.config.dir.join(name.to_string());
        if let Err(e) = self.disk.create_dir(&dir) {
            return Err(match e.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    Error::AlreadyExists { what: name.to_string() }
                }
                _ => Error::io("create", dir, e),
            });
        }
        let made = self.make_partition(name, &dir, config);
        if made.is_err() {
            let _ = self.disk.remove_dir_all(&dir);
        }
        made
    }

    fn make_partition(
        &self,
        name: TopicPartition,
        dir: &Path,
        config: PartitionConfig,
    ) -> Result<Partition> {
        let sibling = self.topic(name.topic()).first().and_then(Partition::topic_id);
        let id = sibling.unwrap_or_else(Uuid::new_v4);
        checkpoint::write_topic_id(self.disk.as_ref(), dir, id)?;
        let checkpoints = Checkpoints::default();
        let (shared, _) = self.open_dir(name, dir.to_owned(), Mode::Clean, config, checkpoints)?;
        let parent = &self.config.dir;
        self.disk.sync_dir(parent).map_err(|e| Error::io("sync", parent, e))?;
        Ok(self.adopt(shared))
    }

    /// Deletes a topic: its directories are renamed at once and removed in the background.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`].
    pub fn delete_topic(&self, topic: &str) -> Result<()> {
        let mut partitions = self.partitions.write().unwrap_or_else(PoisonError::into_inner);
        let doomed: Vec<TopicPartition> =
            partitions.keys().filter(|name| name.topic() == topic).cloned().collect();
        if doomed.is_empty() {
            return Err(Error::NotFound { what: format!("topic {topic}") });
        }
        for name in doomed {
            let Some(partition) = partitions.remove(&name) else { continue };
            partition.drop_from_shard()?;
            let from = self.config.dir.join(name.to_string());
            let to = self.config.dir.join(delete_name(&name));
            self.disk.rename(&from, &to).map_err(|e| Error::io("rename", &from, e))?;
            // Leases keep their descriptors: the bytes live until the last of them is released.
            if let Err(error) = self.disk.remove_dir_all(&to) {
                tracing::warn!(dir = %to.display(), %error, "removed at the next open");
            }
        }
        let dir = &self.config.dir;
        self.disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
    }

    /// Writes the checkpoint files now.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn checkpoint(&self) -> Result<()> {
        self.keeper.write_checkpoints(&shared_of(&self.partitions))
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
        let Some(lock) = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        self.keeper.stop();
        let thread = self.keeper_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the housekeeper's thread panicked");
        }
        let mut result = Ok(());
        for partition in self.partitions() {
            result = result.and(partition.close());
        }
        for shard in &self.shards {
            shard.stop();
        }
        result = result.and_then(|()| self.checkpoint());
        result = result.and_then(|()| {
            let (disk, dir) = (self.disk.as_ref(), &self.config.dir);
            checkpoint::write_clean_shutdown(disk, dir, self.broker_epoch)
        });
        drop(lock);
        result
    }

    fn open_dir(
        &self,
        name: TopicPartition,
        dir: PathBuf,
        mode: Mode,
        config: PartitionConfig,
        checkpoints: Checkpoints,
    ) -> Result<(Opened, RecoveryReport)> {
        let mut opened = open_partition(Opening {
            name,
            dir,
            mode,
            config,
            checkpoints,
            open_files: Arc::clone(&self.open_files),
            clock: &self.config.clock,
        })?;
        let report = std::mem::take(&mut opened.report);
        Ok((opened, report))
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
        let partition = Partition::new(shared, shard, slot);
        let mut partitions = self.partitions.write().unwrap_or_else(PoisonError::into_inner);
        partitions.insert(partition.name().clone(), partition.clone());
        partition
    }

    fn start_keeper(&self) -> Result<()> {
        let (keeper, partitions) = (Arc::clone(&self.keeper), Arc::clone(&self.partitions));
        let interval = Duration::from_millis(self.config.checkpoint_interval_ms);
        let thread = std::thread::Builder::new()
            .name("loglane-keeper".into())
            .spawn(move || keeper.run(interval, || shared_of(&partitions)))
            .map_err(|e| Error::io("start a thread for", &self.config.dir, e))?;
        *self.keeper_thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    fn read_partitions(
        &self,
    ) -> std::sync::RwLockReadGuard<'_, BTreeMap<TopicPartition, Partition>> {
        self.partitions.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Engine {
    /// Closes, for hosts that forget; errors go to the log only.
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            tracing::error!(%error, dir = %self.config.dir.display(), "closed with an error");
        }
    }
}

fn shared_of(partitions: &Partitions) -> Vec<Arc<LogShared>> {
    let partitions = partitions.read().unwrap_or_else(PoisonError::into_inner);
    partitions.values().map(|p| Arc::clone(p.shared())).collect()
}

fn start_shards(
    config: &Config,
    disk: &Arc<dyn Disk>,
    keeper: &Arc<Keeper>,
) -> Result<Vec<Arc<ShardHandle>>> {
    (0..config.shards)
        .map(|number| {
            let lane = disk.lane().map_err(|e| Error::io("set up a lane for", &config.dir, e))?;
            let keeper = Arc::clone(keeper);
            let retired: RetiredSink = Arc::new(move |segments| keeper.retire(segments));
            let (requests, bytes) = (config.mailbox_requests_max, config.inflight_bytes_max);
            shard::spawn(number, lane, requests, bytes, retired)
                .map(Arc::new)
                .map_err(|e| Error::io("start a thread for", &config.dir, e))
        })
        .collect()
}

/// The partition directories; what deletions left behind is removed.
fn partition_dirs(disk: &dyn Disk, dir: &Path) -> Result<Vec<(TopicPartition, PathBuf)>> {
    let mut found = Vec::new();
    for entry in disk.list(dir).map_err(|e| Error::io("list", dir, e))? {
        if entry.kind != EntryKind::Dir {
            continue;
        }
        let path = dir.join(&entry.name);
        if is_delete_name(&entry.name) {
            disk.remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
        } else if let Some(name) = TopicPartition::from_dir_name(&entry.name)
            && !name.is_cluster_metadata()
        {
            found.push((name, path));
        }
    }
    found.sort();
    Ok(found)
}

/// `<topic>-<partition>.<32 hex digits>-delete`, cut to 255 bytes as Kafka does.
fn delete_name(name: &TopicPartition) -> String {
    let suffix = format!("-{}.{}-delete", name.partition(), Uuid::new_v4().simple());
    let room = 255 - suffix.len();
    let topic = name.topic();
    format!("{}{suffix}", topic.get(..topic.len().min(room)).unwrap_or(topic))
}

fn is_delete_name(name: &str) -> bool {
    let middle = name.strip_suffix("-delete").and_then(|rest| rest.rsplit_once('.'));
    middle.is_some_and(|(partition, id)| {
        TopicPartition::from_dir_name(partition).is_some()
            && id.len() == 32
            && id.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// Half of what the process may open: active segments, sockets and files of the host need the rest.
fn open_files_default() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let soft = limit.current.unwrap_or(1 << 20);
    usize::try_from((soft / 2).saturating_sub(HOST_FILES).max(16)).unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delete_names_are_recognised_and_fit_a_file_name() {
        let name = TopicPartition::new(&"x".repeat(249), 7).unwrap();
        let deleted = delete_name(&name);
        assert!(deleted.len() <= 255 && is_delete_name(&deleted), "{deleted}");
        for name in
            ["a-0", "a-0-delete", "a-0.xyz-delete", "notes.0123456789abcdef0123456789abcdef-delete"]
        {
            assert!(!is_delete_name(name), "{name}");
        }
    }
}
