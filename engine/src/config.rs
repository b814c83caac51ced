//! Settings, with their units in their names and Kafka's defaults where Kafka has one.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::io::{BLOCK_BYTES, BackendChoice, Clock, SystemClock};
use crate::journal;
use std::path::PathBuf;
use std::sync::Arc;

/// Smallest `segment_bytes`, as Kafka's `segment.bytes` of 4.3 (1 MiB there; tests here roll sooner).
const SEGMENT_BYTES_MIN: u32 = 1024;

/// Settings of a data directory.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory: a Kafka log directory. Created if missing.
    pub dir: PathBuf,
    /// Threads that own partitions, 1 to 256. Default: one for each core.
    pub shards: usize,
    /// io_uring, plain calls, or whichever the probe finds usable (default).
    pub backend: BackendChoice,
    /// Most bytes submitted to one shard and not yet completed; more is [`Error::Busy`].
    /// 64 KiB to 16 GiB, default 64 MiB.
    pub inflight_bytes_max: u64,
    /// Most requests waiting in one shard's mailbox, a power of two, 64 to 1 Mi. Default 8192.
    pub mailbox_requests_max: usize,
    /// Most segment files kept open for readers, and as many again for appends: past half of that,
    /// partitions are synced so that their files can be closed, and appends wait for it at the limit.
    /// Default: each half of the process's soft limit of open files, less 64 for the host.
    pub open_files_max: Option<usize>,
    /// How often segments are synced though nobody asks, and recovery points and high watermarks
    /// are written to their checkpoint files. 100 ms to a day, default 5 s (Kafka: 60 s and 5 s).
    pub checkpoint_interval_ms: u64,
    /// Most bytes that a restart after a power cut reads again: a quarter of it are journals, the
    /// rest is what segments may hold unsynced. More of either makes appends wait for the disk.
    /// 16 MiB to 1 TiB, default 2 GiB.
    pub replay_bytes_max: u64,
    /// Disk space held back, so that retention, truncation, checkpoints and a clean close work on a
    /// full disk; appends are refused with [`Error::NoSpace`] before it is touched. 0 to 1 TiB,
    /// default 64 MiB; 0 holds nothing back.
    pub reserve_bytes: u64,
    /// How long a deleted segment's file stays under its `.deleted` name, and at least until the
    /// last lease on it is released. Kafka's `file.delete.delay.ms`, default 60 s.
    pub file_delete_delay_ms: u64,
    /// How often retention looks for what may go, beside when space is short. 100 ms to a day,
    /// default 5 min (Kafka's `log.retention.check.interval.ms`), the first time after 30 s; 0: only
    /// when the host calls [`crate::Engine::apply_retention`].
    pub retention_check_interval_ms: u64,
    /// Most bytes of all partitions' `.log` files together: over it the oldest segments of any
    /// partition go, by their last append, as far as high watermarks and pins let them. An active
    /// segment goes only if the limit is kept without it. Kafka's internal topics (`__…`) and those its
    /// cleaner compacted are counted, not deleted from. Default `None`: no limit.
    pub retention_total_bytes: Option<u64>,
    /// Memory of the map from keys to offsets that compaction works with, 24 bytes a key at a load of
    /// 0.9; keys that do not fit take another pass. 1 KiB to 64 GiB, default 128 MiB
    /// (`log.cleaner.dedupe.buffer.size`).
    pub compaction_memory_bytes: u64,
    /// Most bytes that compaction reads and writes in a second, all partitions together; 0 (default)
    /// for no limit (`log.cleaner.io.max.bytes.per.second`).
    pub compaction_bytes_per_s: u64,
    /// How often the cleaner's thread looks for a partition that is dirty enough. 10 ms to a day,
    /// default 15 s (`log.cleaner.backoff.ms`).
    pub compaction_interval_ms: u64,
    /// Settings of partitions, as far as none are stored for them or their topic
    /// ([`crate::Engine::configure_topic`]). Retention by default leaves Kafka's internal topics (`__…`)
    /// and those its cleaner compacted alone.
    pub partition: PartitionConfig,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// Defaults for a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        Config {
            dir: dir.into(),
            shards: std::thread::available_parallelism().map_or(1, usize::from).min(256),
            backend: BackendChoice::Auto,
            inflight_bytes_max: 64 << 20,
            mailbox_requests_max: 8192,
            open_files_max: None,
            checkpoint_interval_ms: 5_000,
            replay_bytes_max: 2 << 30,
            reserve_bytes: 64 << 20,
            file_delete_delay_ms: 60_000,
            retention_check_interval_ms: 300_000,
            retention_total_bytes: None,
            compaction_memory_bytes: 128 << 20,
            compaction_bytes_per_s: 0,
            compaction_interval_ms: 15_000,
            partition: PartitionConfig::default(),
            clock: Arc::new(SystemClock::default()),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        in_range("shards", self.shards as u64, 1, 256)?;
        in_range("inflight_bytes_max", self.inflight_bytes_max, 64 << 10, 16 << 30)?;
        in_range("mailbox_requests_max", self.mailbox_requests_max as u64, 64, 1 << 20)?;
        if !self.mailbox_requests_max.is_power_of_two() {
            return Err(Error::Config {
                key: "mailbox_requests_max",
                reason: format!("{} is not a power of two", self.mailbox_requests_max),
            });
        }
        in_range("checkpoint_interval_ms", self.checkpoint_interval_ms, 100, 86_400_000)?;
        in_range("replay_bytes_max", self.replay_bytes_max, 16 << 20, 1 << 40)?;
        in_range("reserve_bytes", self.reserve_bytes, 0, 1 << 40)?;
        if self.retention_check_interval_ms > 0 {
            let interval = self.retention_check_interval_ms;
            in_range("retention_check_interval_ms", interval, 100, 86_400_000)?;
        }
        in_range("compaction_memory_bytes", self.compaction_memory_bytes, 1 << 10, 64 << 30)?;
        in_range("compaction_interval_ms", self.compaction_interval_ms, 10, 86_400_000)?;
        self.partition.check()
    }

    /// Size of one file of a shard's journal.
    pub(crate) fn journal_file_bytes(&self) -> u64 {
        let of_shard = self.replay_bytes_max / 4 / self.shards.max(1) as u64;
        let file = of_shard / u64::from(journal::FILES);
        file - file % BLOCK_BYTES as u64
    }

    /// What segments may hold unsynced.
    pub(crate) fn unsynced_bytes_max(&self) -> u64 {
        self.replay_bytes_max - self.replay_bytes_max / 4
    }
}

/// Settings of a partition. Names follow Kafka's topic settings.
#[derive(Clone, PartialEq, Debug)]
pub struct PartitionConfig {
    /// Largest segment file; an append that would pass it rolls first (`segment.bytes`). 1 KiB to
    /// 2^31−1, default 1 GiB.
    pub segment_bytes: u32,
    /// Oldest a segment gets, from its first record's timestamp to the next append's
    /// (`segment.ms`). Default 7 days.
    pub segment_ms: u64,
    /// Largest index file of a segment (`segment.index.bytes`). Default 10 MiB.
    pub index_bytes_max: u32,
    /// Bytes between two index entries (`index.interval.bytes`). Default 4096.
    pub index_interval_bytes: u32,
    /// Largest batch taken (`max.message.bytes`). Default 1,048,588.
    pub batch_bytes_max: u32,
    /// How long a producer is remembered after its last append (`producer.id.expiration.ms`); one
    /// with an open transaction is longer. 1 ms or more, default 1 day.
    pub producer_id_expiration_ms: u64,
    /// Who moves the high watermark.
    pub high_watermark: HighWatermark,
    /// How long records stay (`retention.ms`): a segment goes when it is older, by
    /// `retention_clock`. Default 7 days; `None`: for ever. At most 2^63−1.
    pub retention_ms: Option<u64>,
    /// The oldest segment goes while the log has this many bytes without it (`retention.bytes`), so the
    /// log is never made smaller than this. Counts `.log` files. Default `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// The oldest segment goes while the log has this many records without it, counted by offsets.
    /// Default `None`: no limit.
    pub retention_records: Option<u64>,
    /// What the age of a segment counts from.
    pub retention_clock: RetentionClock,
    /// What becomes of old records (`cleanup.policy`). With compaction every record that a leader
    /// appends must have a key. Default: [`CleanupPolicy::Delete`].
    pub cleanup_policy: CleanupPolicy,
    /// The part of a log that must not have been compacted yet before it is compacted in the
    /// background (`min.cleanable.dirty.ratio`). 0 to 1, default 0.5.
    pub min_cleanable_dirty_ratio: f64,
    /// Segments with a record younger than this are not compacted (`min.compaction.lag.ms`).
    /// Default 0.
    pub min_compaction_lag_ms: u64,
    /// A log with records older than this that were not compacted yet is compacted whatever its
    /// ratio, and its active segment rolls after this time (`max.compaction.lag.ms`). 1 or more,
    /// default 2^63 − 1: never.
    pub max_compaction_lag_ms: u64,
    /// How long a tombstone, or a transaction's marker, stays after the first compaction that saw it
    /// (`delete.retention.ms`). Default 24 hours.
    pub delete_retention_ms: u64,
}

/// What the age of a segment counts from, for `retention_ms`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RetentionClock {
    /// Its largest record timestamp, as in Kafka; its last append if no record has one. Records dated
    /// in the future hold their segment until then.
    Record,
    /// The earlier of largest record timestamp and last append: as Kafka, but a segment whose records
    /// are dated in the future goes `retention_ms` after its last append.
    #[default]
    Earlier,
    /// Its last append, whatever its records say: records dated in the past stay as long as others.
    Append,
}

impl RetentionClock {
    /// All of them.
    pub const ALL: [RetentionClock; 3] =
        [RetentionClock::Record, RetentionClock::Earlier, RetentionClock::Append];

    /// Its name in stored settings and in the program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RetentionClock::Record => "record",
            RetentionClock::Earlier => "earlier",
            RetentionClock::Append => "append",
        }
    }
}

/// What becomes of old records: Kafka's `cleanup.policy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CleanupPolicy {
    /// Retention deletes old segments.
    #[default]
    Delete,
    /// Of each key the newest record stays.
    Compact,
    /// Both.
    CompactAndDelete,
}

impl CleanupPolicy {
    /// True if the partition is compacted.
    #[must_use]
    pub fn compacts(self) -> bool {
        self != CleanupPolicy::Delete
    }
}

impl std::fmt::Display for CleanupPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CleanupPolicy::Delete => "delete",
            CleanupPolicy::Compact => "compact",
            CleanupPolicy::CompactAndDelete => "compact,delete",
        })
    }
}

impl std::str::FromStr for CleanupPolicy {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<CleanupPolicy, String> {
        match text {
            "delete" => Ok(CleanupPolicy::Delete),
            "compact" => Ok(CleanupPolicy::Compact),
            "compact,delete" | "delete,compact" => Ok(CleanupPolicy::CompactAndDelete),
            _ => Err(format!("{text:?} is not one of delete, compact and compact,delete")),
        }
    }
}

/// Who moves a partition's high watermark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HighWatermark {
    /// It follows the log end offset: a log without replicas.
    #[default]
    FollowsLogEnd,
    /// The host moves it, when replicas have the data.
    SetByHost,
}

impl Default for PartitionConfig {
    fn default() -> PartitionConfig {
        PartitionConfig {
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3600 * 1000,
            index_bytes_max: 10 << 20,
            index_interval_bytes: 4096,
            batch_bytes_max: 1_048_588,
            producer_id_expiration_ms: 24 * 3600 * 1000,
            high_watermark: HighWatermark::FollowsLogEnd,
            retention_ms: Some(7 * 24 * 3600 * 1000),
            retention_bytes: None,
            retention_records: None,
            retention_clock: RetentionClock::default(),
            cleanup_policy: CleanupPolicy::Delete,
            min_cleanable_dirty_ratio: 0.5,
            min_compaction_lag_ms: 0,
            max_compaction_lag_ms: i64::MAX as u64,
            delete_retention_ms: 24 * 3600 * 1000,
        }
    }
}

impl PartitionConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let segment_bytes_max = u64::from(u32::MAX >> 1);
        in_range(
            "segment_bytes",
            self.segment_bytes.into(),
            SEGMENT_BYTES_MIN.into(),
            segment_bytes_max,
        )?;
        in_range("segment_ms", self.segment_ms, 1, i64::MAX as u64)?;
        let expiration = self.producer_id_expiration_ms;
        in_range("producer_id_expiration_ms", expiration, 1, i64::MAX as u64)?;
        // Kafka's floor: room for a handful of entries; the time index keeps one slot for the roll.
        in_range("index_bytes_max", self.index_bytes_max.into(), 24, segment_bytes_max)?;
        in_range("index_interval_bytes", self.index_interval_bytes.into(), 0, segment_bytes_max)?;
        in_range("retention_ms", self.retention_ms.unwrap_or(0), 0, i64::MAX as u64)?;
        in_range("batch_bytes_max", self.batch_bytes_max.into(), 61, segment_bytes_max)?;
        if !(0.0..=1.0).contains(&self.min_cleanable_dirty_ratio) {
            let reason = format!("{} is not within 0 to 1", self.min_cleanable_dirty_ratio);
            return Err(Error::Config { key: "min_cleanable_dirty_ratio", reason });
        }
        in_range("min_compaction_lag_ms", self.min_compaction_lag_ms, 0, i64::MAX as u64)?;
        in_range("max_compaction_lag_ms", self.max_compaction_lag_ms, 1, i64::MAX as u64)?;
        in_range("delete_retention_ms", self.delete_retention_ms, 0, i64::MAX as u64)?;
        if self.min_compaction_lag_ms > self.max_compaction_lag_ms {
            let reason = "is over max_compaction_lag_ms".into();
            return Err(Error::Config { key: "min_compaction_lag_ms", reason });
        }
        Ok(())
    }

    /// Oldest an active segment gets: Kafka's `LogConfig.maxSegmentMs`.
    pub(crate) fn segment_ms_max(&self) -> u64 {
        match self.cleanup_policy.compacts() {
            true => self.segment_ms.min(self.max_compaction_lag_ms),
            false => self.segment_ms,
        }
    }
}

fn in_range(key: &'static str, value: u64, min: u64, max: u64) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::Config { key, reason: format!("{value} is not within {min} to {max}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_name_their_key() {
        let mut config = Config::new("d");
        assert!(config.check().is_ok());
        config.shards = 0;
        assert!(matches!(config.check(), Err(Error::Config { key: "shards", .. })));
        config.shards = 1;
        config.partition.segment_bytes = 1 << 31;
        assert!(matches!(config.check(), Err(Error::Config { key: "segment_bytes", .. })));
    }
}
