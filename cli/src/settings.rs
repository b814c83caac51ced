//! Settings of topics as arguments, and as they are shown.

#![forbid(unsafe_code)]

use crate::failure::Failure;
use clap::Args;
use loglane::{Error, PartitionView, SettingsChange};
use serde_json::{Map, Value, json};

/// Arguments that set a topic's settings.
#[derive(Args)]
pub(crate) struct SettingArgs {
    /// How long records stay, in ms, or none; Kafka's retention.ms
    #[arg(long, value_name = "MS", allow_hyphen_values = true)]
    retention_ms: Option<String>,
    /// Oldest segments go while so many bytes of a partition are left, or none; Kafka's
    /// retention.bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    retention_bytes: Option<String>,
    /// Oldest segments go while so many records of a partition are left, or none
    #[arg(long, value_name = "N")]
    retention_records: Option<String>,
    /// What a segment's age counts from: record (its largest timestamp, as in Kafka), append (its last
    /// append), or earlier (the earlier of both)
    #[arg(long, value_name = "CLOCK")]
    retention_clock: Option<String>,
    /// Largest segment file
    #[arg(long, value_name = "BYTES")]
    segment_bytes: Option<String>,
    /// Oldest a segment gets before the next append starts another, in ms
    #[arg(long, value_name = "MS")]
    segment_ms: Option<String>,
    /// Any setting by name, e.g. index_interval_bytes=4096; Kafka's names of topic settings will do.
    /// Can be given more than once
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl SettingArgs {
    /// Puts them into a change.
    pub(crate) fn into(self, mut change: SettingsChange) -> Result<SettingsChange, Failure> {
        let named = [
            ("retention_ms", self.retention_ms),
            ("retention_bytes", self.retention_bytes),
            ("retention_records", self.retention_records),
            ("retention_clock", self.retention_clock),
            ("segment_bytes", self.segment_bytes),
            ("segment_ms", self.segment_ms),
        ];
        let named = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        for (name, value) in named.chain(self.set) {
            change = change.set(&name, &value).map_err(wrong)?;
        }
        Ok(change)
    }
}

/// Takes settings back.
pub(crate) fn unset(names: &[String], change: SettingsChange) -> Result<SettingsChange, Failure> {
    names.iter().try_fold(change, |change, name| change.unset(name).map_err(wrong))
}

fn wrong(error: Error) -> Failure {
    Failure::usage(error.to_string(), "loglane topics describe NAME shows settings and values")
}

/// All settings of a partition in a line; what is stored has no mark.
pub(crate) fn line(partition: &PartitionView) -> String {
    let stored = partition.stored_settings();
    let shown: Vec<String> = partition
        .settings()
        .into_iter()
        .map(|(name, value)| match stored.contains_key(name) {
            true => format!("{name}={value}"),
            false => format!("{name}={value} (default)"),
        })
        .collect();
    shown.join(", ")
}

/// All settings of a partition, and the names of those that are stored.
pub(crate) fn object(partition: &PartitionView) -> Value {
    let all: Map<String, Value> =
        partition.settings().into_iter().map(|(n, v)| (n.to_owned(), json!(v))).collect();
    let stored: Vec<String> = partition.stored_settings().into_keys().collect();
    json!({ "values": all, "stored": stored })
}
