//! Every setting of a partition by name: how its value is written, read and put into a
//! [`PartitionConfig`]. One row each; files, the program and hosts use the same names.

#![forbid(unsafe_code)]

use crate::config::{HighWatermark, PartitionConfig, RetentionClock};
use std::str::FromStr;

/// One setting.
pub(crate) struct Key {
    /// Ours, with its unit.
    pub(crate) name: &'static str,
    /// Kafka's name for a topic's setting; empty if it has none.
    pub(crate) kafka: &'static str,
    pub(crate) get: fn(&PartitionConfig) -> String,
    pub(crate) set: fn(&mut PartitionConfig, &str) -> Result<(), String>,
}

/// All of them, by name. A new one needs a row here and nothing else.
pub(crate) const KEYS: &[Key] = &[
    Key {
        name: "batch_bytes_max",
        kafka: "max.message.bytes",
        get: |c| c.batch_bytes_max.to_string(),
        set: |c, v| put(&mut c.batch_bytes_max, number(v)),
    },
    Key {
        name: "cleanup_policy",
        kafka: "cleanup.policy",
        get: |c| c.cleanup_policy.to_string(),
        set: |c, v| put(&mut c.cleanup_policy, v.parse()),
    },
    Key {
        name: "delete_retention_ms",
        kafka: "delete.retention.ms",
        get: |c| c.delete_retention_ms.to_string(),
        set: |c, v| put(&mut c.delete_retention_ms, number(v)),
    },
    Key {
        name: "high_watermark",
        kafka: "",
        get: |c| high_watermark_name(c.high_watermark).into(),
        set: |c, v| put(&mut c.high_watermark, high_watermark(v)),
    },
    Key {
        name: "index_bytes_max",
        kafka: "segment.index.bytes",
        get: |c| c.index_bytes_max.to_string(),
        set: |c, v| put(&mut c.index_bytes_max, number(v)),
    },
    Key {
        name: "index_interval_bytes",
        kafka: "index.interval.bytes",
        get: |c| c.index_interval_bytes.to_string(),
        set: |c, v| put(&mut c.index_interval_bytes, number(v)),
    },
    Key {
        name: "max_compaction_lag_ms",
        kafka: "max.compaction.lag.ms",
        get: |c| c.max_compaction_lag_ms.to_string(),
        set: |c, v| put(&mut c.max_compaction_lag_ms, number(v)),
    },
    Key {
        name: "min_cleanable_dirty_ratio",
        kafka: "min.cleanable.dirty.ratio",
        get: |c| c.min_cleanable_dirty_ratio.to_string(),
        set: |c, v| put(&mut c.min_cleanable_dirty_ratio, number(v)),
    },
    Key {
        name: "min_compaction_lag_ms",
        kafka: "min.compaction.lag.ms",
        get: |c| c.min_compaction_lag_ms.to_string(),
        set: |c, v| put(&mut c.min_compaction_lag_ms, number(v)),
    },
    Key {
        name: "producer_id_expiration_ms",
        kafka: "",
        get: |c| c.producer_id_expiration_ms.to_string(),
        set: |c, v| put(&mut c.producer_id_expiration_ms, number(v)),
    },
    Key {
        name: "retention_bytes",
        kafka: "retention.bytes",
        get: |c| limit_text(c.retention_bytes),
        set: |c, v| put(&mut c.retention_bytes, limit(v)),
    },
    Key {
        name: "retention_clock",
        kafka: "",
        get: |c| c.retention_clock.name().into(),
        set: |c, v| put(&mut c.retention_clock, clock(v)),
    },
    Key {
        name: "retention_ms",
        kafka: "retention.ms",
        get: |c| limit_text(c.retention_ms),
        set: |c, v| put(&mut c.retention_ms, limit(v)),
    },
    Key {
        name: "retention_records",
        kafka: "",
        get: |c| limit_text(c.retention_records),
        set: |c, v| put(&mut c.retention_records, limit(v)),
    },
    Key {
        name: "segment_bytes",
        kafka: "segment.bytes",
        get: |c| c.segment_bytes.to_string(),
        set: |c, v| put(&mut c.segment_bytes, number(v)),
    },
    Key {
        name: "segment_ms",
        kafka: "segment.ms",
        get: |c| c.segment_ms.to_string(),
        set: |c, v| put(&mut c.segment_ms, number(v)),
    },
];

/// Finds a setting by our name or Kafka's.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name || !key.kafka.is_empty() && key.kafka == name)
}

fn put<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    value.map(|value| *place = value)
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number in its range"))
}

/// A limit, or `none`; −1 as in Kafka.
fn limit(text: &str) -> Result<Option<u64>, String> {
    match text {
        "none" | "-1" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("{text:?} is not a number or \"none\"")),
    }
}

fn limit_text(limit: Option<u64>) -> String {
    limit.map_or("none".into(), |limit| limit.to_string())
}

fn high_watermark_name(mode: HighWatermark) -> &'static str {
    match mode {
        HighWatermark::FollowsLogEnd => "follows-log-end",
        HighWatermark::SetByHost => "set-by-host",
    }
}

fn high_watermark(text: &str) -> Result<HighWatermark, String> {
    let both = [HighWatermark::FollowsLogEnd, HighWatermark::SetByHost];
    let found = both.into_iter().find(|mode| high_watermark_name(*mode) == text);
    found.ok_or_else(|| format!("{text:?} is neither \"follows-log-end\" nor \"set-by-host\""))
}

fn clock(text: &str) -> Result<RetentionClock, String> {
    let found = RetentionClock::ALL.into_iter().find(|clock| clock.name() == text);
    found.ok_or_else(|| format!("{text:?} is not one of \"record\", \"earlier\", \"append\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_reads_what_it_writes_and_names_are_sorted_and_single() {
        let other = PartitionConfig {
            segment_bytes: 4096,
            segment_ms: 5,
            index_bytes_max: 240,
            index_interval_bytes: 7,
            batch_bytes_max: 100,
            high_watermark: HighWatermark::SetByHost,
            producer_id_expiration_ms: 11,
            cleanup_policy: crate::config::CleanupPolicy::CompactAndDelete,
            min_cleanable_dirty_ratio: 0.25,
            min_compaction_lag_ms: 12,
            max_compaction_lag_ms: 13,
            delete_retention_ms: 14,
            retention_ms: None,
            retention_bytes: Some(8),
            retention_records: Some(9),
            retention_clock: RetentionClock::Append,
        };
        let mut rebuilt = PartitionConfig::default();
        for key in KEYS {
            let (default, changed) = ((key.get)(&rebuilt), (key.get)(&other));
            assert_ne!(default, changed, "{} is not in this test", key.name);
            (key.set)(&mut rebuilt, &changed).unwrap();
            assert_eq!((key.get)(&rebuilt), changed, "{}", key.name);
            assert!((key.set)(&mut rebuilt, "x y").is_err(), "{}", key.name);
        }
        // A setting without a row would be lost by a restart.
        assert_eq!(rebuilt, other);
        assert!(KEYS.is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(find("retention.ms").unwrap().name, "retention_ms");
        assert!(find("").is_none() && find("no.such").is_none());
        assert_eq!(limit("-1").unwrap(), None);
    }
}
