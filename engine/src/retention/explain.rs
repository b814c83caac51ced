//! Why each segment of a partition is still here, and when it goes.

#![forbid(unsafe_code)]

use super::facts;
use super::pins::Pin;
use super::policy::{self, DeleteReason, Hold, Limits, LogFacts, SegmentFacts};
use crate::config::PartitionConfig;
use crate::error::Result;
use crate::log::LogShared;
use crate::offset::Offset;
use crate::topic::TopicPartition;
use std::fmt;

/// What retention has to say about a partition, as of one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Explanation {
    /// Which partition.
    pub partition: TopicPartition,
    /// The settings that hold for it.
    pub config: PartitionConfig,
    /// First offset that can be read.
    pub log_start_offset: Offset,
    /// What consumers may read up to; nothing at or above it is deleted.
    pub high_watermark: Offset,
    /// The next record's offset.
    pub log_end_offset: Offset,
    /// Bytes in its `.log` files.
    pub bytes: u64,
    /// The moment, Unix ms.
    pub now_ms: i64,
    /// Its live pins.
    pub pins: Vec<Pin>,
    /// Its segments, oldest first.
    pub segments: Vec<SegmentExplanation>,
}

/// Why a segment is still here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentExplanation {
    /// First offset.
    pub base_offset: Offset,
    /// One past the last offset.
    pub end_offset: Offset,
    /// Bytes of its `.log` file.
    pub bytes: u64,
    /// The largest timestamp of its records, Unix ms; `None` if none has one, or its index is not sound.
    pub largest_timestamp: Option<i64>,
    /// When it was last appended to, Unix ms; `None` if its file does not tell.
    pub last_append_ms: Option<i64>,
    /// What keeps it, the strongest first. Never empty.
    pub kept_by: Vec<KeptBy>,
    /// When it goes by its age, Unix ms, those before it included: they go first. `None` if no
    /// `retention_ms` says so, or something else keeps it for an unknown time. The past means: with the
    /// next round.
    pub goes_at_ms: Option<i64>,
}

/// One thing that keeps a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KeptBy {
    /// It takes appends and is empty: there is always one to append to.
    ActiveAndEmpty,
    /// It has records at or above the high watermark.
    HighWatermark(Offset),
    /// A pin on it or on what is before it.
    Pin(Pin),
    /// It is not too old until then, Unix ms (`retention_ms`).
    NotYetOld(i64),
    /// It has no time that its age could count from.
    NoTime,
    /// Without it the log would have fewer bytes than this (`retention_bytes`).
    Bytes(u64),
    /// Without it the log would have fewer records than this (`retention_records`).
    Records(u64),
    /// No limit is set: records stay for ever.
    NoLimit,
    /// The segment at this base offset stays, and the oldest go first.
    OlderStays(Offset),
    /// Nothing: it goes with the next round of retention, for this reason.
    NextRound(DeleteReason),
}

impl KeptBy {
    /// A name for programs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            KeptBy::ActiveAndEmpty => "active-and-empty",
            KeptBy::HighWatermark(_) => "high-watermark",
            KeptBy::Pin(_) => "pin",
            KeptBy::NotYetOld(_) => "not-yet-old",
            KeptBy::NoTime => "no-time",
            KeptBy::Bytes(_) => "retention-bytes",
            KeptBy::Records(_) => "retention-records",
            KeptBy::NoLimit => "no-limit",
            KeptBy::OlderStays(_) => "older-stays",
            KeptBy::NextRound(_) => "next-round",
        }
    }
}

impl fmt::Display for KeptBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeptBy::ActiveAndEmpty => write!(f, "it is active and empty"),
            KeptBy::HighWatermark(at) => write!(f, "the high watermark is {at}"),
            KeptBy::Pin(pin) => {
                write!(f, "pin {} of {:?} from offset {}", pin.id, pin.owner, pin.offset)?;
                if !pin.reason.is_empty() {
                    write!(f, " for {:?}", pin.reason)?;
                }
                match pin.expires_ms {
                    Some(at) => write!(f, " until {at}"),
                    None => write!(f, " until it is released"),
                }
            }
            KeptBy::NotYetOld(at) => write!(f, "retention_ms keeps it until {at}"),
            KeptBy::NoTime => write!(f, "neither its records nor its file say how old it is"),
            KeptBy::Bytes(limit) => write!(f, "retention_bytes keeps {limit} bytes"),
            KeptBy::Records(limit) => write!(f, "retention_records keeps {limit} records"),
            KeptBy::NoLimit => write!(f, "no limit is set"),
            KeptBy::OlderStays(base) => write!(f, "the segment at {base} stays, and goes first"),
            KeptBy::NextRound(reason) => {
                write!(f, "nothing: it goes with the next round ({})", reason.name())
            }
        }
    }
}

/// Looks at every segment of a partition. Reads a few bytes of each that was not touched yet.
/// `high_watermark` is for those who do not have the log's own.
pub(crate) fn explain(
    shared: &LogShared,
    config: PartitionConfig,
    pins: Vec<Pin>,
    high_watermark: Option<i64>,
    now_ms: i64,
) -> Result<Explanation> {
    let segments = shared.segments.load_full();
    let pinned = pins.iter().map(|pin| pin.offset.0).min();
    let mut log = facts::of_log(shared, &segments, pinned, now_ms);
    if let Some(high_watermark) = high_watermark {
        log.high_watermark = high_watermark.clamp(log.log_start, log.log_end);
    }
    let known: Vec<SegmentFacts> =
        facts::of_segments(shared, &segments, log.log_end, facts::Effort::Look)
            .collect::<Result<_>>()?;
    Ok(Explanation {
        partition: shared.name.clone(),
        log_start_offset: Offset(log.log_start),
        high_watermark: Offset(log.high_watermark),
        log_end_offset: Offset(log.log_end),
        bytes: log.bytes,
        now_ms,
        segments: explain_segments(&Limits::of(&config), &log, &pins, &known),
        config,
        pins,
    })
}

fn explain_segments(
    limits: &Limits,
    log: &LogFacts,
    pins: &[Pin],
    segments: &[SegmentFacts],
) -> Vec<SegmentExplanation> {
    let mut bytes = log.bytes;
    let mut first_that_stays = None;
    let mut latest = Some(i64::MIN);
    let mut all = Vec::new();
    for segment in segments {
        let reason = policy::reason(limits, log, segment, bytes);
        let hold = reason.and_then(|reason| policy::hold(log, segment, reason));
        let mut kept_by = Vec::new();
        // What would hold it even when it is due is worth knowing before.
        for hold in [Hold::ActiveAndEmpty, Hold::HighWatermark, Hold::Pin] {
            kept_by.extend(held_by(hold, log, pins, segment, reason));
        }
        let is_held = !kept_by.is_empty();
        match reason {
            None => kept_by.extend(limits_that_keep(limits, log, segment, bytes)),
            Some(_) => kept_by.extend(first_that_stays.map(KeptBy::OlderStays)),
        }
        if let (Some(reason), true) = (reason, kept_by.is_empty()) {
            kept_by.push(KeptBy::NextRound(reason));
        }
        if (reason.is_none() || hold.is_some()) && first_that_stays.is_none() {
            first_that_stays = Some(Offset(segment.base_offset));
        }
        let due = match reason {
            Some(_) => Some(log.now_ms),
            None => segment.due_ms(limits),
        };
        let due = due.filter(|_| !is_held || only_pins(&kept_by));
        let unpinned = unpinned_at(pins, segment);
        latest = latest.zip(due).zip(unpinned).map(|((a, b), c)| a.max(b).max(c));
        all.push(SegmentExplanation {
            base_offset: Offset(segment.base_offset),
            end_offset: Offset(segment.end_offset),
            bytes: segment.bytes,
            largest_timestamp: segment.largest_timestamp,
            last_append_ms: segment.last_append_ms,
            kept_by,
            goes_at_ms: latest,
        });
        bytes = bytes.saturating_sub(segment.bytes);
    }
    all
}

/// What `hold` names in this log, if it holds this segment now.
fn held_by(
    hold: Hold,
    log: &LogFacts,
    pins: &[Pin],
    segment: &SegmentFacts,
    reason: Option<DeleteReason>,
) -> Vec<KeptBy> {
    if reason == Some(DeleteReason::LogStart) {
        return Vec::new();
    }
    match hold {
        Hold::ActiveAndEmpty if segment.is_active && segment.bytes == 0 => {
            vec![KeptBy::ActiveAndEmpty]
        }
        Hold::HighWatermark if log.high_watermark < segment.end_offset => {
            vec![KeptBy::HighWatermark(Offset(log.high_watermark))]
        }
        Hold::Pin => {
            let holds = |pin: &&Pin| pin.offset.0 < segment.end_offset;
            pins.iter().filter(holds).cloned().map(KeptBy::Pin).collect()
        }
        Hold::ActiveAndEmpty | Hold::HighWatermark => Vec::new(),
    }
}

/// Why no limit wants a segment gone.
fn limits_that_keep(
    limits: &Limits,
    log: &LogFacts,
    segment: &SegmentFacts,
    bytes: u64,
) -> Vec<KeptBy> {
    if segment.is_active && segment.bytes == 0 {
        return Vec::new();
    }
    if limits.is_none() {
        return vec![KeptBy::NoLimit];
    }
    let time = limits.ms.map(|_| segment.due_ms(limits).map_or(KeptBy::NoTime, KeptBy::NotYetOld));
    let size = limits.bytes.filter(|limit| bytes.saturating_sub(segment.bytes) < *limit);
    let records = limits
        .records
        .filter(|limit| u64::try_from(log.log_end - segment.end_offset).unwrap_or(0) < *limit);
    let limits = [time, size.map(KeptBy::Bytes), records.map(KeptBy::Records)];
    limits.into_iter().flatten().collect()
}

fn only_pins(kept_by: &[KeptBy]) -> bool {
    !kept_by.iter().any(|k| matches!(k, KeptBy::HighWatermark(_) | KeptBy::ActiveAndEmpty))
}

/// When the last pin on a segment expires; `None` if one never does.
fn unpinned_at(pins: &[Pin], segment: &SegmentFacts) -> Option<i64> {
    let holding = pins.iter().filter(|pin| pin.offset.0 < segment.end_offset);
    holding
        .map(|pin| pin.expires_ms)
        .try_fold(i64::MIN, |latest, expires| Some(latest.max(expires?)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::config::RetentionClock;
    use crate::retention::PinId;

    const NOW: i64 = 1_800_000_000_000;

    fn segments() -> Vec<SegmentFacts> {
        let one = |at: i64, is_active| SegmentFacts {
            base_offset: at * 10,
            end_offset: at * 10 + 10,
            bytes: 100,
            largest_timestamp: Some(NOW - 1000 + at * 100),
            last_append_ms: Some(NOW),
            is_active,
        };
        vec![one(0, false), one(1, false), one(2, false), one(3, true)]
    }

    fn limits(ms: Option<u64>, bytes: Option<u64>) -> Limits {
        Limits { ms, bytes, records: None, clock: RetentionClock::Earlier }
    }

    fn log(high_watermark: i64, pinned: Option<i64>) -> LogFacts {
        LogFacts { log_start: 0, high_watermark, log_end: 40, bytes: 400, pinned, now_ms: NOW }
    }

    fn pin(offset: i64, expires_ms: Option<i64>) -> Pin {
        Pin {
            id: PinId(3),
            owner: "backup".into(),
            reason: "nightly".into(),
            offset: Offset(offset),
            created_ms: NOW,
            expires_ms,
        }
    }

    #[test]
    fn each_segment_says_what_keeps_it_and_when_it_goes() {
        let all = explain_segments(&limits(Some(850), None), &log(40, None), &[], &segments());
        // Ages are 1000, 900, 800 and 700: two are due.
        assert_eq!(all[0].kept_by, [KeptBy::NextRound(DeleteReason::Time)]);
        assert_eq!(all[0].goes_at_ms, Some(NOW));
        assert_eq!(all[1].kept_by, [KeptBy::NextRound(DeleteReason::Time)]);
        assert_eq!(all[2].kept_by, [KeptBy::NotYetOld(NOW + 51)]);
        assert_eq!(all[3].goes_at_ms, Some(NOW + 151));
    }

    #[test]
    fn what_holds_a_segment_is_named_and_what_is_behind_it_waits() {
        let held = log(15, None);
        let all = explain_segments(&limits(Some(0), None), &held, &[], &segments());
        assert_eq!(all[0].kept_by, [KeptBy::NextRound(DeleteReason::Time)]);
        assert_eq!(all[1].kept_by, [KeptBy::HighWatermark(Offset(15))]);
        assert_eq!(all[1].goes_at_ms, None, "nobody knows when the high watermark moves");
        let behind = [KeptBy::HighWatermark(Offset(15)), KeptBy::OlderStays(Offset(10))];
        assert_eq!(all[2].kept_by, behind);

        let expiring = pin(5, Some(NOW + 9));
        let pinned = log(40, Some(5));
        let all = explain_segments(
            &limits(Some(0), None),
            &pinned,
            std::slice::from_ref(&expiring),
            &segments(),
        );
        assert_eq!(all[0].kept_by, [KeptBy::Pin(expiring)]);
        assert_eq!(all[0].goes_at_ms, Some(NOW + 9));
        let text = all[0].kept_by[0].to_string();
        for word in ["pin 3", "backup", "nightly", &(NOW + 9).to_string()] {
            assert!(text.contains(word), "{text}");
        }
        let for_ever = [pin(5, None)];
        let all = explain_segments(&limits(Some(0), None), &pinned, &for_ever, &segments());
        assert_eq!(all[0].goes_at_ms, None);
    }

    #[test]
    fn sizes_and_no_limit_are_told_apart() {
        let all = explain_segments(&limits(None, Some(250)), &log(40, None), &[], &segments());
        assert_eq!(all[0].kept_by, [KeptBy::NextRound(DeleteReason::Bytes)]);
        assert_eq!(all[1].kept_by, [KeptBy::Bytes(250)], "300 bytes, and 200 without it");
        assert_eq!(all[1].goes_at_ms, None);
        let all = explain_segments(&limits(None, None), &log(40, None), &[], &segments());
        assert!(all.iter().all(|segment| segment.kept_by == [KeptBy::NoLimit]));
        let mut empty = segments();
        empty[3].bytes = 0;
        empty[3].end_offset = 30;
        let all = explain_segments(&limits(Some(0), None), &log(30, None), &[], &empty);
        assert_eq!(all[3].kept_by, [KeptBy::ActiveAndEmpty]);
    }

    #[test]
    fn what_is_said_to_go_next_is_what_the_policy_deletes() {
        for (ms, bytes, high_watermark, pin_at) in [
            (Some(850), None, 40, None),
            (Some(0), None, 25, None),
            (None, Some(100), 40, Some(20)),
            (Some(0), Some(0), 40, None),
            (None, None, 40, None),
        ] {
            let (limits, log) = (limits(ms, bytes), log(high_watermark, pin_at));
            let pins: Vec<Pin> = pin_at.map(|at| pin(at, None)).into_iter().collect();
            let said = explain_segments(&limits, &log, &pins, &segments());
            let next = |s: &&SegmentExplanation| matches!(s.kept_by[..], [KeptBy::NextRound(_)]);
            let given = segments().into_iter().map(Ok::<_, std::convert::Infallible>);
            let gone = policy::decide(&limits, &log, given).unwrap();
            assert_eq!(said.iter().take_while(next).count(), gone.len());
            assert_eq!(said.iter().filter(next).count(), gone.len());
        }
    }
}
