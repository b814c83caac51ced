//! `loglane topics`: create, list, describe, alter, delete.

#![forbid(unsafe_code)]

use crate::failure::{Exit, Failure};
use crate::output::{Output, bytes_human};
use crate::settings::{self, SettingArgs, unset};
use crate::{Global, exit_for};
use clap::{Args, Subcommand};
use loglane::{
    Engine, Error, PartitionConfig, PartitionView, SettingsChange, TopicPartition, View,
    topic_id_text,
};
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
    /// Change settings of a topic, or of one of its partitions; they stay
    Alter(Alter),
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
    #[command(flatten)]
    settings: SettingArgs,
}

#[derive(Args)]
pub(crate) struct Alter {
    /// The topic
    #[arg(value_parser = topic_name)]
    name: String,
    /// This partition alone; its settings win over the topic's
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    #[command(flatten)]
    settings: SettingArgs,
    /// Take a setting back: the topic's, or the default, holds again. Can be given more than once
    #[arg(long, value_name = "NAME")]
    unset: Vec<String>,
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
            Topics::Alter(alter) => alter.run(&dir, global, out),
            Topics::Delete(Name { name }) => delete(&dir, &name, global, out),
        }
    }
}

/// What is stored of a topic that the program creates, if nothing else is said: a writer may have
/// another default for how long records stay, and commands delete only where it is stored.
pub(crate) fn settings_of_new() -> SettingsChange {
    SettingsChange::new().retention_ms(PartitionConfig::default().retention_ms)
}

impl Create {
    fn run(self, dir: &Path, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let settings = self.settings.into(settings_of_new())?;
        let engine = Engine::open(crate::config(dir))?;
        let made = engine.create_topic_with(&self.name, self.partitions, &settings);
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

impl Alter {
    fn run(self, dir: &Path, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let change = unset(&self.unset, self.settings.into(SettingsChange::new())?)?;
        if change.is_empty() {
            let next = "give a setting, e.g. --retention-ms 604800000, or --unset NAME";
            return Err(Failure::usage("nothing to change", next));
        }
        // An engine would create what is missing.
        if !dir.is_dir() {
            let what = format!("data directory {}", dir.display());
            return Err(Error::NotFound { what }.into());
        }
        let engine = Engine::open(crate::config(dir))?;
        let changed = match self.partition {
            None => engine.configure_topic(&self.name, &change),
            Some(number) => engine.partition(&self.name, number).and_then(|p| p.configure(&change)),
        };
        let closed = engine.close();
        changed?;
        closed?;
        if !global.quiet {
            let name = &self.name;
            out.item(|| format!("altered {name}"), || json!({ "topic": name, "altered": true }))?;
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
        writeln!(out, "  settings: {}", settings::line(first))?;
    }
    let mut damaged = false;
    let of_first = settings::line(first);
    for partition in view.partitions().values() {
        damaged |= !partition.damaged_ranges().is_empty();
        describe_partition(partition, out)?;
        let own = settings::line(partition);
        if own != of_first && !out.json {
            writeln!(out, "    settings: {own}")?;
        }
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
            "settings": settings::object(partition),
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
    let engine = Engine::open(crate::config(dir))?;
    let deleted = engine.delete_topic(name);
    let closed = engine.close();
    deleted?;
    closed?;
    if !global.quiet {
        out.item(|| format!("deleted {name}"), || json!({ "topic": name, "deleted": true }))?;
    }
    Ok(Exit::Done)
}
