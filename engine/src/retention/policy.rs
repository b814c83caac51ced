//! Which segments of a partition may go: a pure decision over what is known of them.
//!
//! Kafka's `UnifiedLog.deleteOldSegments`: oldest first, and it stops at the first that stays. A
//! segment goes if one of its limits says so and nothing holds it:
//!
//! ```text
//! says so   it ends at or below the log start · too old · the log without it has retention_bytes,
//!           or retention_records, all the same
//! holds it  the high watermark · a pin · it is active and empty
//! ```
//!
//! No clock, no disk: times and sizes are handed in.

#![forbid(unsafe_code)]

use crate::config::{CleanupPolicy, PartitionConfig, RetentionClock};
use crate::planted::{Bug, planted};

/// What a partition's settings say about how long its records stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    pub(crate) ms: Option<u64>,
    pub(crate) bytes: Option<u64>,
    pub(crate) records: Option<u64>,
    pub(crate) clock: RetentionClock,
}

impl Limits {
    pub(crate) fn of(config: &PartitionConfig) -> Limits {
        if config.cleanup_policy == CleanupPolicy::Compact {
            // Of each key the newest record stays, however old.
            let clock = config.retention_clock;
            return Limits { ms: None, bytes: None, records: None, clock };
        }
        Limits {
            ms: config.retention_ms,
            bytes: config.retention_bytes,
            records: config.retention_records,
            clock: config.retention_clock,
        }
    }

    /// True if records stay for ever.
    pub(crate) fn is_none(&self) -> bool {
        self.ms.is_none() && self.bytes.is_none() && self.records.is_none()
    }
}

/// What is known of one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentFacts {
    pub(crate) base_offset: i64,
    /// The next segment's base offset; the log end of the active one.
    pub(crate) end_offset: i64,
    /// Of its `.log` file.
    pub(crate) bytes: u64,
    /// Unix ms; `None` if no record has a timestamp.
    pub(crate) largest_timestamp: Option<i64>,
    /// When its file was last written, Unix ms; `None` if the file system does not know.
    pub(crate) last_append_ms: Option<i64>,
    pub(crate) is_active: bool,
}

impl SegmentFacts {
    /// The time that its age counts from.
    pub(crate) fn time(&self, clock: RetentionClock) -> Option<i64> {
        match (clock, self.largest_timestamp, self.last_append_ms) {
            (RetentionClock::Record, Some(record), _) => Some(record),
            (RetentionClock::Earlier, Some(record), Some(append)) => Some(record.min(append)),
            (RetentionClock::Append, record, None) => record,
            (RetentionClock::Earlier, Some(record), None) => Some(record),
            (_, _, append) => append,
        }
    }

    /// From this time on (Unix ms) it is too old.
    pub(crate) fn due_ms(&self, limits: &Limits) -> Option<i64> {
        let age = i64::try_from(limits.ms?).unwrap_or(i64::MAX);
        // Kafka: now − time > retention.ms.
        Some(self.time(limits.clock)?.saturating_add(age).saturating_add(1))
    }
}

/// What is known of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogFacts {
    pub(crate) log_start: i64,
    pub(crate) high_watermark: i64,
    pub(crate) log_end: i64,
    /// Of all `.log` files.
    pub(crate) bytes: u64,
    /// The lowest offset that is pinned.
    pub(crate) pinned: Option<i64>,
    pub(crate) now_ms: i64,
}

/// Why a segment was deleted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DeleteReason {
    /// All of it is below the log start offset (DeleteRecords).
    LogStart,
    /// `retention_ms`.
    Time,
    /// `retention_bytes`.
    Bytes,
    /// `retention_records`.
    Records,
    /// `retention_total_bytes`, the limit of the whole directory.
    TotalBytes,
}

impl DeleteReason {
    /// The setting, or the cause, by name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DeleteReason::LogStart => "log start offset",
            DeleteReason::Time => "retention_ms",
            DeleteReason::Bytes => "retention_bytes",
            DeleteReason::Records => "retention_records",
            DeleteReason::TotalBytes => "retention_total_bytes",
        }
    }
}

/// What keeps a segment that a limit wants to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hold {
    HighWatermark,
    Pin,
    ActiveAndEmpty,
}

/// Why a segment is due; `bytes` is what the log has from this segment on.
pub(crate) fn reason(
    limits: &Limits,
    log: &LogFacts,
    segment: &SegmentFacts,
    bytes: u64,
) -> Option<DeleteReason> {
    // The cheapest first; which one is named matters to statistics only.
    if segment.end_offset <= log.log_start && !segment.is_active {
        return Some(DeleteReason::LogStart);
    }
    if limits.bytes.is_some_and(|limit| bytes.saturating_sub(segment.bytes) >= limit) {
        return Some(DeleteReason::Bytes);
    }
    let records = u64::try_from(log.log_end.saturating_sub(segment.end_offset)).unwrap_or(0);
    if limits.records.is_some_and(|limit| records >= limit) {
        return Some(DeleteReason::Records);
    }
    let due = segment.due_ms(limits);
    due.is_some_and(|due| log.now_ms >= due).then_some(DeleteReason::Time)
}

/// What holds a segment that is due.
pub(crate) fn hold(log: &LogFacts, segment: &SegmentFacts, reason: DeleteReason) -> Option<Hold> {
    if segment.is_active && segment.bytes == 0 {
        return Some(Hold::ActiveAndEmpty);
    }
    if reason == DeleteReason::LogStart {
        // Nobody can read it any more, whoever pinned it.
        return None;
    }
    if log.high_watermark < segment.end_offset && !planted(Bug::RetentionPassesHighWatermark) {
        return Some(Hold::HighWatermark);
    }
    let pinned = log.pinned.is_some_and(|pin| pin < segment.end_offset);
    (pinned && !planted(Bug::RetentionIgnoresPins)).then_some(Hold::Pin)
}

/// The segments that go, oldest first. `segments` is asked for no more than it takes to decide.
///
/// # Errors
/// Those of `segments`.
pub(crate) fn decide<E>(
    limits: &Limits,
    log: &LogFacts,
    segments: impl IntoIterator<Item = Result<SegmentFacts, E>>,
) -> Result<Vec<(SegmentFacts, DeleteReason)>, E> {
    let mut gone = Vec::new();
    let mut bytes = log.bytes;
    for segment in segments {
        let segment = segment?;
        let Some(reason) = reason(limits, log, &segment, bytes) else { break };
        if hold(log, &segment, reason).is_some() {
            break;
        }
        bytes = bytes.saturating_sub(segment.bytes);
        gone.push((segment, reason));
    }
    Ok(gone)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::planted::plant;
    use proptest::prelude::*;
    use std::convert::Infallible;

    const NOW: i64 = 1_000_000;

    fn clocks() -> impl Strategy<Value = RetentionClock> {
        prop_oneof![
            Just(RetentionClock::Record),
            Just(RetentionClock::Earlier),
            Just(RetentionClock::Append)
        ]
    }

    fn limits() -> impl Strategy<Value = Limits> {
        let few = |max: u64| proptest::option::of(0..max);
        (few(600), few(500), few(60), clocks()).prop_map(|(ms, bytes, records, clock)| Limits {
            ms,
            bytes,
            records,
            clock,
        })
    }

    type Raw = (u64, i64, Option<i64>, Option<i64>);

    fn segment() -> impl Strategy<Value = Raw> {
        let time = || proptest::option::of(NOW - 1_000..NOW + 300);
        (0..200_u64, 1..20_i64, time(), time())
    }

    fn logs() -> impl Strategy<Value = (LogFacts, Vec<SegmentFacts>)> {
        let marks = (0..=100_u32, 0..=100_u32, proptest::option::of(0..=100_u32));
        (0..50_i64, proptest::collection::vec(segment(), 1..8), marks).prop_map(build)
    }

    fn build(
        (first, raw, (start, high, pin)): (i64, Vec<Raw>, (u32, u32, Option<u32>)),
    ) -> (LogFacts, Vec<SegmentFacts>) {
        let mut base = first;
        let count = raw.len();
        let mut segments = Vec::new();
        for (i, (bytes, records, largest_timestamp, last_append_ms)) in raw.into_iter().enumerate()
        {
            let is_active = i + 1 == count;
            let records = if is_active && bytes == 0 { 0 } else { records };
            segments.push(SegmentFacts {
                base_offset: base,
                end_offset: base + records,
                bytes,
                largest_timestamp,
                last_append_ms,
                is_active,
            });
            base += records;
        }
        let part = |percent: u32| first + (base - first) * i64::from(percent) / 100;
        let log_start = part(start);
        let log = LogFacts {
            log_start,
            high_watermark: part(high).max(log_start),
            log_end: base,
            bytes: segments.iter().map(|s| s.bytes).sum(),
            pinned: pin.map(part),
            now_ms: NOW,
        };
        (log, segments)
    }

    /// How many go, said another way: the longest beginning each of whose segments may go, given
    /// all before it gone.
    fn naive(limits: &Limits, log: &LogFacts, segments: &[SegmentFacts]) -> usize {
        let may_go = |i: usize| {
            let (s, later) = (&segments[i], &segments[i + 1..]);
            let active = later.is_empty();
            if active && s.bytes == 0 {
                return false;
            }
            if !active && s.end_offset <= log.log_start {
                return true;
            }
            let time = match limits.clock {
                RetentionClock::Record => s.largest_timestamp.or(s.last_append_ms),
                RetentionClock::Append => s.last_append_ms.or(s.largest_timestamp),
                RetentionClock::Earlier => {
                    s.largest_timestamp.into_iter().chain(s.last_append_ms).min()
                }
            };
            let old = match (limits.ms, time) {
                (Some(ms), Some(time)) => NOW - time > ms.cast_signed(),
                _ => false,
            };
            let rest: u64 = later.iter().map(|s| s.bytes).sum();
            let large = limits.bytes.is_some_and(|limit| rest >= limit);
            let records = log.log_end - s.end_offset;
            let many = limits.records.is_some_and(|limit| records >= limit.cast_signed());
            (old || large || many)
                && s.end_offset <= log.high_watermark
                && log.pinned.is_none_or(|pin| s.end_offset <= pin)
        };
        (0..segments.len()).take_while(|i| may_go(*i)).count()
    }

    fn decided(
        limits: &Limits,
        log: &LogFacts,
        segments: &[SegmentFacts],
    ) -> Vec<(SegmentFacts, DeleteReason)> {
        let given = segments.iter().map(|s| Ok::<_, Infallible>(*s));
        decide(limits, log, given).unwrap()
    }

    fn agree(cases: u32) -> Result<(), TestCaseError> {
        let config = ProptestConfig { cases, failure_persistence: None, ..Default::default() };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let outcome = runner.run(&(limits(), logs()), |(limits, (log, segments))| {
            let gone = decided(&limits, &log, &segments);
            prop_assert_eq!(gone.len(), naive(&limits, &log, &segments));
            let end = gone.last().map_or(0, |(s, _)| s.end_offset);
            prop_assert!(end <= log.high_watermark.max(log.log_start));
            for (segment, reason) in &gone {
                let below_pin = log.pinned.is_none_or(|pin| segment.end_offset <= pin);
                prop_assert!(below_pin || *reason == DeleteReason::LogStart);
            }
            let left: u64 = segments.iter().skip(gone.len()).map(|s| s.bytes).sum();
            for (_, reason) in gone.iter().rev().take(1) {
                if *reason == DeleteReason::Bytes {
                    prop_assert!(left >= limits.bytes.unwrap());
                }
            }
            Ok(())
        });
        outcome.map_err(|e| TestCaseError::fail(e.to_string()))
    }

    #[test]
    fn the_policy_agrees_with_a_naive_model() {
        agree(4_000).unwrap();
    }

    #[test]
    fn a_policy_that_passes_the_high_watermark_or_ignores_pins_is_caught() {
        for bug in [Bug::RetentionPassesHighWatermark, Bug::RetentionIgnoresPins] {
            plant(Some(bug));
            let caught = agree(4_000).is_err();
            plant(None);
            assert!(caught, "{bug:?} was not caught");
        }
    }

    fn facts(base: i64, bytes: u64, record: Option<i64>, append: Option<i64>) -> SegmentFacts {
        SegmentFacts {
            base_offset: base,
            end_offset: base + 10,
            bytes,
            largest_timestamp: record,
            last_append_ms: append,
            is_active: false,
        }
    }

    fn log(segments: &[SegmentFacts]) -> LogFacts {
        let end = segments.last().unwrap().end_offset;
        LogFacts {
            log_start: segments[0].base_offset,
            high_watermark: end,
            log_end: end,
            bytes: segments.iter().map(|s| s.bytes).sum(),
            pinned: None,
            now_ms: NOW,
        }
    }

    #[test]
    fn records_from_the_future_go_by_the_time_of_their_append_unless_told_otherwise() {
        let segments =
            [facts(0, 10, Some(NOW + 1_000_000), Some(NOW - 500)), facts(10, 10, None, None)];
        let gone = |clock, ms| {
            let limits = Limits { ms: Some(ms), bytes: None, records: None, clock };
            decided(&limits, &log(&segments), &segments).len()
        };
        assert_eq!(gone(RetentionClock::Earlier, 499), 1);
        assert_eq!(gone(RetentionClock::Earlier, 500), 0, "Kafka: older than, not as old as");
        assert_eq!(gone(RetentionClock::Append, 499), 1);
        assert_eq!(gone(RetentionClock::Record, 0), 0, "as Kafka: held until its date");
    }

    #[test]
    fn records_from_the_past_go_at_once_unless_the_time_of_append_counts() {
        let segments = [facts(0, 10, Some(5), Some(NOW)), facts(10, 10, None, None)];
        let gone = |clock| {
            let limits = Limits { ms: Some(100), bytes: None, records: None, clock };
            decided(&limits, &log(&segments), &segments).len()
        };
        assert_eq!(gone(RetentionClock::Record), 1);
        assert_eq!(gone(RetentionClock::Earlier), 1);
        assert_eq!(gone(RetentionClock::Append), 0);
    }

    #[test]
    fn a_segment_without_any_time_is_never_too_old() {
        let segments = [facts(0, 10, None, None), facts(10, 10, None, None)];
        let limits =
            Limits { ms: Some(0), bytes: None, records: None, clock: RetentionClock::Earlier };
        assert!(decided(&limits, &log(&segments), &segments).is_empty());
    }

    #[test]
    fn times_at_the_ends_of_their_range_do_not_wrap() {
        let ends = [i64::MIN, i64::MAX];
        for (record, append) in ends.iter().flat_map(|r| ends.iter().map(move |a| (*r, *a))) {
            let segments = [facts(0, 10, Some(record), Some(append)), facts(10, 10, None, None)];
            for ms in [0, u64::MAX] {
                let limits = Limits {
                    ms: Some(ms),
                    bytes: None,
                    records: None,
                    clock: RetentionClock::Earlier,
                };
                let gone = decided(&limits, &log(&segments), &segments).len();
                let old = record.min(append) == i64::MIN;
                assert_eq!(gone, usize::from(old), "{record} {append} {ms}");
            }
        }
    }
}
