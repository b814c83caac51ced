//! `loglane topics`: create, list, describe, delete.

#![forbid(unsafe_code)]

use crate::failure::{Exit, Failure};
use crate::output::{Output, bytes_human};
use crate::{Global, exit_for};
use clap::{Args, Subcommand};
use loglane::{Config, Engine, Error, PartitionView, TopicPartition, View, topic_id_text};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Subcommand)]
pub(crate) enum Topics {
    /// Create a topic (and the data directory, if it is missing)
    Create(Create),
    /// List topics; works while another process writes
    List,
    /// Show a topic's partitions; works while another process writes
    Describe(Name),
    /// Delete a topic and its records
    Delete(Name),
}

#[derive(Args)]
pub(crate) struct Create {
    /// Letters, digits, '.', '_' and '-', up to 249 of them
    #[arg(value_parser = topic_name)]
    name: String,
    /// Number of partitions
    #[arg(long, default_value_t = 1, value_name = "N")]
    partitions: u32,
    /// Largest segment file of what is written by this command; each writer chooses its own
    #[arg(long, value_name = "BYTES")]
    segment_bytes: Option<u32>,
}

#[derive(Args)]
pub(crate) struct Name {
    /// The topic
    #[arg(value_parser = topic_name)]
    name: String,
}

/// Checks a topic's name by Kafka's rules, as an argument: a bad one is wrong usage.
pub(crate) fn topic_name(name: &str) -> Result<String, String> {
    match TopicPartition::new(name, 0) {
        Ok(_) => Ok(name.to_owned()),
        Err(Error::TopicName { reason, .. }) => Err(reason.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Topics {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = global.data_dir()?;
        match self {
            Topics::Create(create) => create.run(&dir, global, out),
            Topics::List => list(&dir, out),
            Topics::Describe(Name { name }) => describe(&dir, &name, out),
            Topics::Delete(Name { name }) => delete(&dir, &name, global, out),
        }
    }
}

impl Create {
    fn run(self, dir: &Path, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let mut config = Config::new(dir);
        if let Some(bytes) = self.segment_bytes {
            config.partition.segment_bytes = bytes;
        }
        let engine = Engine::open(config)?;
        let made = engine.create_topic(&self.name, self.partitions);
        let id = made.as_ref().ok().and_then(|made| made.first()).and_then(|p| p.topic_id());
        // An error of the creation is the one to report.
        let closed = engine.close();
        made?;
        closed?;
        let id = id.map(topic_id_text).unwrap_or_default();
        if !global.quiet {
            let (name, partitions) = (&self.name, self.partitions);
            out.item(
                || format!("created {name} partitions={partitions} id={id}"),
                || json!({ "topic": name, "partitions": partitions, "topic_id": id }),
            )?;
        }
        Ok(Exit::Done)
    }
}

fn list(dir: &Path, out: &mut Output) -> Result<Exit, Failure> {
    let view = View::open(dir)?;
    let mut topics: BTreeMap<&str, Vec<&PartitionView>> = BTreeMap::new();
    for (name, partition) in view.partitions() {
        topics.entry(name.topic()).or_default().push(partition);
    }
    for (name, partitions) in topics {
        let records: i64 =
            partitions.iter().map(|p| p.log_end_offset().0 - p.log_start_offset().0).sum();
        let bytes: u64 = partitions.iter().map(|p| p.size().1).sum();
        let count = partitions.len();
        out.item(
            || format!("{name} partitions={count} offsets={records} bytes={bytes}"),
            || json!({ "topic": name, "partitions": count, "offsets": records, "bytes": bytes }),
        )?;
    }
    Ok(Exit::Done)
}

fn describe(dir: &Path, name: &str, out: &mut Output) -> Result<Exit, Failure> {
    use std::io::Write;
    let view = View::open_only(dir, |partition| partition.topic() == name)?;
    let Some(first) = view.partitions().values().next() else {
        return Err(Error::NotFound { what: format!("topic {name}") }.into());
    };
    if !out.json {
        let id = first.topic_id().map_or("none".into(), topic_id_text);
        let count = view.partitions().len();
        writeln!(out, "topic {name}: id={id} partitions={count}")?;
    }
    let mut damaged = false;
    for partition in view.partitions().values() {
        damaged |= !partition.damaged_ranges().is_empty();
        describe_partition(partition, out)?;
    }
    if view.writer_is_live() && !out.json {
        writeln!(out, "  another process is writing here")?;
    }
    Ok(exit_for(damaged))
}

fn describe_partition(partition: &PartitionView, out: &mut Output) -> Result<(), Failure> {
    use std::io::Write;
    let number = partition.name().partition();
    let (start, end) = (partition.log_start_offset().0, partition.log_end_offset().0);
    let (segments, bytes) = partition.size();
    let epochs = partition.leader_epochs();
    let damaged = partition.damaged_ranges();
    if out.json {
        let epochs: Vec<_> =
            epochs.iter().map(|(e, o)| json!({ "epoch": e.0, "start_offset": o.0 })).collect();
        let ranges: Vec<_> = damaged
            .iter()
            .map(|d| {
                json!({ "file": d.path.display().to_string(), "position": d.position,
                    "length": d.length, "offset": d.offset.0, "next_offset": d.next_offset.0,
                    "fault": d.fault.to_string() })
            })
            .collect();
        out.object(&json!({
            "topic": partition.name().topic(), "partition": number,
            "topic_id": partition.topic_id().map(topic_id_text),
            "log_start_offset": start, "log_end_offset": end, "segments": segments,
            "bytes": bytes, "leader_epochs": epochs, "damaged": ranges,
        }))?;
        return Ok(());
    }
    let epochs: Vec<String> = epochs.iter().map(|(e, o)| format!("{}@{}", e.0, o.0)).collect();
    let epochs = if epochs.is_empty() { "none".into() } else { epochs.join(",") };
    writeln!(
        out,
        "  partition {number}: offsets={start}..{end} segments={segments} bytes={bytes} ({}) leader-epochs={epochs}",
        bytes_human(bytes)
    )?;
    for range in damaged {
        writeln!(
            out,
            "    damaged: {} position={} length={} offsets={}..{}: {}",
            range.path.display(),
            range.position,
            range.length,
            range.offset.0,
            range.next_offset.0,
            range.fault
        )?;
    }
    Ok(())
}

fn delete(dir: &Path, name: &str, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
    // An engine would create what is missing.
    if !dir.is_dir() {
        return Err(Error::NotFound { what: format!("data directory {}", dir.display()) }.into());
    }
    let engine = Engine::open(Config::new(dir))?;
    let deleted = engine.delete_topic(name);
    let closed = engine.close();
    deleted?;
    closed?;
    if !global.quiet {
        out.item(|| format!("deleted {name}"), || json!({ "topic": name, "deleted": true }))?;
    }
    Ok(Exit::Done)
}
