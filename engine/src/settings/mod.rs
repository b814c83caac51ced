//! Settings of topics and partitions that outlive a restart, and change while a partition is open.
//!
//! ```text
//! the engine's defaults  ◀─ a topic's settings  ◀─ a partition's own     the right one wins
//! ```
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | a change, as hosts write it down |
//! | `keys.rs` | every setting by name |
//! | `store.rs` | what is stored, and what holds for a partition |
//! | `text.rs` | the form of the file, shared with pins |

#![forbid(unsafe_code)]

mod keys;
mod store;
pub(crate) mod text;

pub(crate) use store::Store;

use crate::config::RetentionClock;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Settings as text, by our name.
pub(crate) type Values = BTreeMap<String, String>;

/// Settings to set, and settings to take back, of a topic or a partition. Names and values are those of
/// [`crate::PartitionConfig`]; Kafka's names of topic settings are understood as well.
///
/// ```
/// # use loglane::SettingsChange;
/// let change = SettingsChange::new().retention_ms(Some(60_000)).set("segment.bytes", "1048576")?;
/// # Ok::<(), loglane::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SettingsChange {
    /// `None` takes a setting back.
    changes: BTreeMap<&'static str, Option<String>>,
}

impl SettingsChange {
    /// Changes nothing.
    #[must_use]
    pub fn new() -> SettingsChange {
        SettingsChange::default()
    }

    /// Sets a setting by name: ours (`retention_ms`) or Kafka's (`retention.ms`). Limits take `none`
    /// (or Kafka's −1) for no limit.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that is none, or a value that does not parse.
    pub fn set(mut self, name: &str, value: &str) -> Result<SettingsChange> {
        let key = keys::find(name).ok_or_else(|| unknown(name))?;
        let mut probe = crate::PartitionConfig::default();
        (key.set)(&mut probe, value).map_err(|reason| Error::Config { key: key.name, reason })?;
        self.changes.insert(key.name, Some((key.get)(&probe)));
        Ok(self)
    }

    /// Takes a setting back: what is behind it holds again, the topic's or the engine's default.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that is none.
    pub fn unset(mut self, name: &str) -> Result<SettingsChange> {
        let key = keys::find(name).ok_or_else(|| unknown(name))?;
        self.changes.insert(key.name, None);
        Ok(self)
    }

    /// [`crate::PartitionConfig::retention_ms`].
    #[must_use]
    pub fn retention_ms(self, limit: Option<u64>) -> SettingsChange {
        self.put("retention_ms", limit_text(limit))
    }

    /// [`crate::PartitionConfig::retention_bytes`].
    #[must_use]
    pub fn retention_bytes(self, limit: Option<u64>) -> SettingsChange {
        self.put("retention_bytes", limit_text(limit))
    }

    /// [`crate::PartitionConfig::retention_records`].
    #[must_use]
    pub fn retention_records(self, limit: Option<u64>) -> SettingsChange {
        self.put("retention_records", limit_text(limit))
    }

    /// [`crate::PartitionConfig::retention_clock`].
    #[must_use]
    pub fn retention_clock(self, clock: RetentionClock) -> SettingsChange {
        self.put("retention_clock", clock.name().into())
    }

    /// [`crate::PartitionConfig::segment_bytes`].
    #[must_use]
    pub fn segment_bytes(self, bytes: u32) -> SettingsChange {
        self.put("segment_bytes", bytes.to_string())
    }

    /// [`crate::PartitionConfig::segment_ms`].
    #[must_use]
    pub fn segment_ms(self, ms: u64) -> SettingsChange {
        self.put("segment_ms", ms.to_string())
    }

    /// True if it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn put(mut self, name: &'static str, value: String) -> SettingsChange {
        self.changes.insert(name, Some(value));
        self
    }

    fn apply_to(&self, values: &mut Values) {
        for (name, value) in &self.changes {
            match value {
                Some(value) => values.insert((*name).to_owned(), value.clone()),
                None => values.remove(*name),
            };
        }
    }
}

fn limit_text(limit: Option<u64>) -> String {
    limit.map_or("none".into(), |limit| limit.to_string())
}

fn unknown(name: &str) -> Error {
    let shown: String = name.chars().take(80).collect();
    Error::Config { key: "setting", reason: format!("there is none of the name {shown:?}") }
}

/// Names and values of a partition's settings as they hold, in the order of their names.
pub(crate) fn all_of(config: &crate::PartitionConfig) -> Vec<(&'static str, String)> {
    keys::KEYS.iter().map(|key| (key.name, (key.get)(config))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_takes_both_names_and_refuses_what_does_not_parse() {
        let change = SettingsChange::new().set("retention.ms", "-1").unwrap();
        assert_eq!(change, SettingsChange::new().retention_ms(None));
        let change = change.retention_ms(Some(5)).unset("segment_bytes").unwrap();
        let mut values = Values::from([("segment_bytes".into(), "9".into())]);
        change.apply_to(&mut values);
        assert_eq!(values, Values::from([("retention_ms".into(), "5".into())]));
        for (name, value) in [("retention_ms", "a day"), ("retentoin_ms", "1"), ("", "")] {
            let error = SettingsChange::new().set(name, value).unwrap_err();
            assert!(matches!(error, Error::Config { .. }), "{error}");
        }
    }
}
