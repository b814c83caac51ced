//! `loglane groups`: list, describe, reset and delete consumer groups.

#![forbid(unsafe_code)]

use crate::consume::commit_config;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::{Global, exit_for, topics};
use clap::{Args, Subcommand};
use loglane::{
    Cursor, Engine, Error, Isolation, Offset, OffsetQuery, Partition, TopicPartition, View,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

#[derive(Subcommand)]
pub(crate) enum Groups {
    /// List groups; works while another process writes
    List,
    /// Show where a group is, and how far behind; works while another process writes
    Describe(Name),
    /// Move a group in the partitions of a topic; makes the group if there is none
    Reset(Reset),
    /// Delete a group, or its offsets of one topic
    Delete(Delete),
}

#[derive(Args)]
pub(crate) struct Name {
    /// The group
    group: String,
}

#[derive(Args)]
pub(crate) struct Reset {
    /// The group
    group: String,
    /// The topic
    #[arg(long, value_parser = topics::topic_name)]
    topic: String,
    /// Only this partition; default: all
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    #[command(flatten)]
    to: To,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct To {
    /// To the first record
    #[arg(long)]
    to_earliest: bool,
    /// Past the last record
    #[arg(long)]
    to_latest: bool,
    /// To this offset, or the nearest that is there
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    to_offset: Option<i64>,
    /// To the first record at or after this time, in Unix ms
    #[arg(long, value_name = "MS")]
    to_timestamp: Option<i64>,
}

#[derive(Args)]
pub(crate) struct Delete {
    /// The group
    group: String,
    /// Only its offsets of this topic
    #[arg(long, value_parser = topics::topic_name)]
    topic: Option<String>,
}

impl Groups {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = global.data_dir()?;
        match self {
            Groups::List => list(&dir, out),
            Groups::Describe(Name { group }) => describe(&dir, &group, out),
            Groups::Reset(reset) => with_engine(&dir, |engine| reset.run(engine, global, out)),
            Groups::Delete(delete) => with_engine(&dir, |engine| delete.run(engine, global, out)),
        }
    }
}

/// Says what of the state file is damaged; true if anything is.
pub(crate) fn report_damage(view: &View) -> Result<bool, Failure> {
    let damage = view.state_damage()?;
    for damage in &damage {
        let (path, at, length) = (damage.path.display(), damage.position, damage.length);
        let line = format!("damage: {path} at byte {at}: {length} bytes are not what was written");
        let _ = writeln!(io::stderr(), "{line}; offsets may be missing");
    }
    Ok(!damage.is_empty())
}

fn list(dir: &Path, out: &mut Output) -> Result<Exit, Failure> {
    let view = View::open_only(dir, |_| false)?;
    let damaged = report_damage(&view)?;
    for (group, cursors) in view.cursors()? {
        let count = cursors.len();
        out.item(
            || format!("{group} partitions={count}"),
            || json!({ "group": group, "partitions": count }),
        )?;
    }
    Ok(exit_for(damaged))
}

fn describe(dir: &Path, group: &str, out: &mut Output) -> Result<Exit, Failure> {
    let all = View::open_only(dir, |_| false)?.cursors()?;
    let Some(cursors) = all.get(group) else {
        return Err(not_found(group));
    };
    let view = View::open_only(dir, |partition| cursors.contains_key(partition))?;
    let damaged = report_damage(&view)?;
    // Once more: now that the topics are known, what was committed for deleted ones is left out.
    let cursors = view.cursors()?.remove(group).unwrap_or_default();
    for (name, cursor) in &cursors {
        let Some(partition) = view.partitions().get(name) else { continue };
        let (start, end) = (partition.log_start_offset().0, partition.log_end_offset().0);
        let Cursor { offset, committed_ms, metadata, .. } = cursor;
        let lag = (end - offset.0.max(start)).max(0);
        let in_range = (start..=end).contains(&offset.0);
        out.item(
            || {
                let range = if in_range { "" } else { " out-of-range" };
                let metadata = match metadata.is_empty() {
                    true => String::new(),
                    false => format!(" metadata={metadata:?}"),
                };
                format!(
                    "{name} offset={offset} lag={lag} offsets={start}..{end} \
                     committed={committed_ms}{range}{metadata}"
                )
            },
            || {
                json!({ "group": group, "topic": name.topic(), "partition": name.partition(),
                    "offset": offset.0, "lag": lag, "log_start_offset": start,
                    "log_end_offset": end, "committed_ms": committed_ms, "metadata": metadata })
            },
        )?;
    }
    Ok(exit_for(damaged))
}

fn not_found(group: &str) -> Failure {
    Failure::new(
        format!("group {group} does not exist"),
        "see what is there with: loglane groups list",
    )
}

fn with_engine(
    dir: &Path,
    run: impl FnOnce(&Engine) -> Result<(), Failure>,
) -> Result<Exit, Failure> {
    // An engine would create what is missing.
    if !dir.is_dir() {
        return Err(Error::NotFound { what: format!("data directory {}", dir.display()) }.into());
    }
    let engine = Engine::open(commit_config(dir))?;
    let done = run(&engine);
    let closed = engine.close();
    // An error of the command is the one to report.
    done?;
    closed?;
    Ok(Exit::Done)
}

impl Reset {
    fn run(self, engine: &Engine, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let partitions = match self.partition {
            Some(number) => vec![engine.partition(&self.topic, number)?],
            None => engine.topic(&self.topic)?,
        };
        if partitions.is_empty() {
            return Err(Error::NotFound { what: format!("topic {}", self.topic) }.into());
        }
        let mut offsets: BTreeMap<TopicPartition, Offset> = BTreeMap::new();
        for partition in &partitions {
            offsets.insert(partition.name().clone(), self.to.offset(partition)?);
        }
        let cursors = offsets.iter().map(|(name, offset)| (name.clone(), Cursor::at(*offset)));
        engine.commit_cursors(&self.group, cursors)?;
        for (name, offset) in offsets.iter().filter(|_| !global.quiet) {
            out.item(
                || format!("{name} offset={offset}"),
                || {
                    json!({ "group": self.group, "topic": name.topic(),
                        "partition": name.partition(), "offset": offset.0 })
                },
            )?;
        }
        Ok(())
    }
}

impl To {
    fn offset(&self, partition: &Partition) -> Result<Offset, Failure> {
        let (start, end) = (partition.log_start_offset(), partition.log_end_offset());
        if let Some(offset) = self.to_offset {
            return Ok(Offset(offset.clamp(start.0, end.0)));
        }
        if let Some(timestamp) = self.to_timestamp {
            let query = OffsetQuery::At(timestamp);
            let found = partition.list_offset(query, Isolation::HighWatermark)?;
            return Ok(found.map_or(end, |found| found.offset));
        }
        Ok(if self.to_earliest { start } else { end })
    }
}

impl Delete {
    fn run(self, engine: &Engine, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let group = &self.group;
        if !engine.groups()?.contains(group) {
            return Err(not_found(group));
        }
        match &self.topic {
            None => engine.remove_group(group)?,
            Some(topic) => {
                let cursors = engine.cursors(group)?;
                for name in cursors.keys().filter(|name| name.topic() == topic) {
                    engine.remove_cursor(group, name)?;
                }
            }
        }
        if !global.quiet {
            let topic = self.topic.as_deref();
            out.item(
                || match topic {
                    Some(topic) => format!("deleted the offsets of {topic} of {group}"),
                    None => format!("deleted {group}"),
                },
                || json!({ "group": group, "topic": topic, "deleted": true }),
            )?;
        }
        Ok(())
    }
}
