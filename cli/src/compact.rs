//! `loglane compact`: compacts a topic by key, now.

#![forbid(unsafe_code)]

use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::{Output, bytes_human};
use crate::topics::topic_name;
use clap::Args;
use loglane::{CleanupPolicy, Config, Engine, Error, Partition};
use serde_json::json;

/// Keeps of each key the newest record, as Kafka does with cleanup.policy=compact. No other process may
/// have the directory open. Records without a key are dropped: for topics that are compacted only.
#[derive(Args)]
pub(crate) struct Compact {
    /// The topic
    #[arg(value_parser = topic_name)]
    name: String,
    /// Only this partition
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Start a new segment first, so that the newest records are compacted too
    #[arg(long)]
    roll: bool,
    /// Memory for keys; those that do not fit take another pass
    #[arg(long, value_name = "BYTES", default_value_t = 128 << 20)]
    memory_bytes: u64,
    /// Most bytes read and written in a second; 0 for no limit
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    bytes_per_s: u64,
    /// How long tombstones stay after the first compaction that saw them
    #[arg(long, value_name = "MS", default_value_t = 24 * 3600 * 1000)]
    delete_retention_ms: u64,
    /// Leave out segments with records younger than this
    #[arg(long, value_name = "MS", default_value_t = 0)]
    min_compaction_lag_ms: u64,
    /// Largest segment file that smaller ones are merged to
    #[arg(long, value_name = "BYTES")]
    segment_bytes: Option<u32>,
}

impl Compact {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = global.data_dir()?;
        // An engine would create what is missing.
        if !dir.is_dir() {
            let what = format!("data directory {}", dir.display());
            return Err(Error::NotFound { what }.into());
        }
        let mut config = Config::new(&dir);
        config.compaction_memory_bytes = self.memory_bytes;
        config.compaction_bytes_per_s = self.bytes_per_s;
        config.partition.cleanup_policy = CleanupPolicy::Compact;
        config.partition.delete_retention_ms = self.delete_retention_ms;
        config.partition.min_compaction_lag_ms = self.min_compaction_lag_ms;
        config.partition.segment_bytes =
            self.segment_bytes.unwrap_or(config.partition.segment_bytes);
        let engine = Engine::open(config)?;
        let done = self.compact(&engine, global, out);
        // An error of the compaction is the one to report.
        let closed = engine.close();
        done?;
        closed?;
        Ok(Exit::Done)
    }

    fn compact(&self, engine: &Engine, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let partitions = match self.partition {
            Some(number) => vec![engine.partition(&self.name, number)?],
            None => engine.topic(&self.name)?,
        };
        if partitions.is_empty() {
            return Err(Error::NotFound { what: format!("topic {}", self.name) }.into());
        }
        for partition in partitions {
            if self.roll {
                partition.roll()?;
            }
            self.one(&partition, global, out)?;
        }
        Ok(())
    }

    fn one(&self, partition: &Partition, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let before = partition.stat();
        let run = partition.compact()?;
        let (after, status) = (partition.stat(), partition.compaction_status()?);
        let name = partition.name();
        let cleaned = status.cleaned_offset.map(|offset| offset.0);
        if global.quiet {
            return Ok(());
        }
        let text = || {
            format!(
                "{name}: bytes={} -> {} ({}) segments={} -> {} passes={} compacted-below={}",
                before.bytes,
                after.bytes,
                bytes_human(after.bytes),
                before.segments,
                after.segments,
                run.passes,
                cleaned.map_or("none".into(), |offset| offset.to_string()),
            )
        };
        let object = || {
            json!({
                "topic": name.topic(), "partition": name.partition(), "passes": run.passes,
                "bytes_before": before.bytes, "bytes_after": after.bytes,
                "segments_before": before.segments, "segments_after": after.segments,
                "records_read": run.records_read, "records_kept": run.records_kept,
                "cleaned_offset": cleaned,
            })
        };
        Ok(out.item(text, object)?)
    }
}
