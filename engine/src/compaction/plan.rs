//! What of a partition is to be compacted, and in which pieces (Kafka `LogCleanerManager`,
//! `Cleaner.groupSegmentsBySize`).
//!
//! ```text
//! log start ──── first dirty ─────────── end ────────── active
//!    cleaned before │ goes into the map  │ not yet: active, not stable, not synced, too young
//! └──────────── is rewritten ────────────┘
//! ```

#![forbid(unsafe_code)]

use super::transactions::last_stable_offset;
use crate::error::Result;
use crate::log::LogShared;
use crate::segment::Segment;
use std::sync::Arc;

/// The ranges of one pass.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Plan {
    /// First offset that was not compacted.
    pub(crate) first_dirty: i64,
    /// First offset that cannot be: the base of a segment.
    pub(crate) end: i64,
    /// Bytes of segments that were compacted.
    pub(crate) clean_bytes: u64,
    /// Bytes of segments that can be.
    pub(crate) dirty_bytes: u64,
    /// A record waits for longer than `max_compaction_lag_ms`.
    pub(crate) overdue: bool,
}

impl Plan {
    /// What could be compacted now of what lies below `bound`.
    pub(crate) fn make(
        shared: &LogShared,
        segments: &[Arc<Segment>],
        bound: i64,
        now_ms: i64,
    ) -> Result<Plan> {
        let first_dirty = first_dirty(shared);
        let active = segments.last().map_or(0, |active| active.base_offset());
        let sealed = segments.split_last().map_or(segments, |(_, sealed)| sealed);
        let mut end = bound.min(last_stable_offset(shared)).min(active);
        let from = sealed.partition_point(|s| end_of(s, segments) <= first_dirty);
        let dirty = sealed.get(from..).unwrap_or_default();
        let lag = i64::try_from(shared.config.load().min_compaction_lag_ms).unwrap_or(i64::MAX);
        if lag > 0 {
            for segment in dirty {
                if newest(shared, segment)? > now_ms.saturating_sub(lag) {
                    end = end.min(segment.base_offset());
                    break;
                }
            }
        }
        // Whole segments only: the one that holds `end` stays out.
        let end = segments
            .iter()
            .map(|segment| segment.base_offset())
            .take_while(|base| *base <= end)
            .last()
            .unwrap_or(first_dirty)
            .max(first_dirty);
        let bytes = |segments: &[Arc<Segment>]| -> u64 {
            segments.iter().map(|segment| u64::from(segment.tail().bytes)).sum()
        };
        let until = sealed.partition_point(|segment| segment.base_offset() < end).max(from);
        Ok(Plan {
            first_dirty,
            end,
            clean_bytes: bytes(sealed.get(..from).unwrap_or_default()),
            dirty_bytes: bytes(sealed.get(from..until).unwrap_or_default()),
            overdue: is_overdue(shared, dirty, now_ms)?,
        })
    }

    /// The part that was not compacted, of what could be.
    #[expect(clippy::cast_precision_loss, reason = "a ratio needs no more than 53 bits")]
    pub(crate) fn dirty_ratio(&self) -> f64 {
        match self.clean_bytes + self.dirty_bytes {
            0 => 0.0,
            total => self.dirty_bytes as f64 / total as f64,
        }
    }

    /// True if there is nothing to do.
    pub(crate) fn is_clean(&self) -> bool {
        self.first_dirty >= self.end
    }

    /// True if it is worth compacting without being asked (Kafka `grabFilthiestCompactedLog`).
    pub(crate) fn is_due(&self, shared: &LogShared) -> bool {
        let worth = self.dirty_ratio() > shared.config.load().min_cleanable_dirty_ratio;
        !self.is_clean() && self.dirty_bytes > 0 && (worth || self.overdue)
    }
}

/// First offset that was not compacted. A checkpoint that is not within the log says nothing: then
/// all of it is dirty.
pub(crate) fn first_dirty(shared: &LogShared) -> i64 {
    let offsets = shared.offsets.snapshot();
    let within = offsets.log_start..=offsets.log_end;
    shared.cleaned.offset().filter(|cleaned| within.contains(cleaned)).unwrap_or(offsets.log_start)
}

/// The segments below `end`, in neighbours that fit one segment.
pub(crate) fn groups(
    shared: &LogShared,
    segments: &[Arc<Segment>],
    end: i64,
    uncleanable: i64,
) -> Result<Vec<Vec<Arc<Segment>>>> {
    let config = shared.config.load();
    let mut groups: Vec<Vec<Arc<Segment>>> = Vec::new();
    let mut sums = [0_u64; 3];
    let count = segments.partition_point(|segment| segment.base_offset() < end);
    for (at, segment) in segments.iter().enumerate().take(count) {
        let index = shared.index(segment)?;
        let bytes = u64::from(segment.tail().bytes);
        let sizes = [
            bytes,
            index.offset_entries() as u64 * crate::segment::OFFSET_ENTRY as u64,
            index.time_entries() as u64 * crate::segment::TIME_ENTRY as u64,
        ];
        let last_offset = match segments.get(at + 1).filter(|_| at + 1 < count) {
            Some(next) => next.base_offset() - 1,
            None => uncleanable - 1,
        };
        let index_max = u64::from(config.index_bytes_max);
        let maxima = [u64::from(config.segment_bytes), index_max, index_max];
        let fits = groups.last().and_then(|group| group.first()).is_some_and(|first| {
            let span = last_offset - first.base_offset();
            sums.iter().zip(sizes).zip(maxima).all(|((sum, size), max)| sum + size <= max)
                && (bytes == 0 || span <= i64::from(i32::MAX))
        });
        match groups.last_mut().filter(|_| fits) {
            Some(group) => {
                group.push(Arc::clone(segment));
                sums.iter_mut().zip(sizes).for_each(|(sum, size)| *sum += size);
            }
            None => {
                groups.push(vec![Arc::clone(segment)]);
                sums = sizes;
            }
        }
    }
    Ok(groups)
}

/// Where a segment ends: at the next one's base.
fn end_of(segment: &Arc<Segment>, segments: &[Arc<Segment>]) -> i64 {
    let after = segments.partition_point(|other| other.base_offset() <= segment.base_offset());
    segments.get(after).map_or(i64::MAX, |next| next.base_offset())
}

/// The largest timestamp in a segment; when none of its records has one, that of its last change.
fn newest(shared: &LogShared, segment: &Arc<Segment>) -> Result<i64> {
    let indexed = shared.index(segment)?.last_time_entry().map_or(-1, |entry| entry.timestamp);
    let newest = indexed.max(segment.max_timestamp());
    if newest >= 0 {
        return Ok(newest);
    }
    let stat = shared.open_files.disk().stat(segment.path());
    let stat = stat.map_err(|e| crate::error::Error::io("stat", segment.path(), e))?;
    let since_1970 = stat.modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX))
}

/// True if the first batch of a segment that was not compacted is too old.
fn is_overdue(shared: &LogShared, dirty: &[Arc<Segment>], now_ms: i64) -> Result<bool> {
    let max = shared.config.load().max_compaction_lag_ms;
    if max >= i64::MAX as u64 {
        return Ok(false);
    }
    let before = now_ms.saturating_sub_unsigned(max);
    for segment in dirty.iter().filter(|segment| segment.tail().bytes > 0) {
        let file = segment.file(&shared.open_files)?;
        let first = segment.header(&file, 0, segment.tail().bytes.into())?.base_timestamp;
        if first > 0 && first < before {
            return Ok(true);
        }
    }
    Ok(false)
}
