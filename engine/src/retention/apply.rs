//! What retention does to one log, on the shard that owns it: facts, decision, deletion.

#![forbid(unsafe_code)]

use super::facts::{self, Effort};
use super::policy::{self, DeleteReason, Limits, SegmentFacts};
use crate::error::Result;
use crate::log::Log;
use std::sync::Arc;

/// A segment that was deleted, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gone {
    pub(crate) base_offset: i64,
    pub(crate) bytes: u64,
    pub(crate) reason: DeleteReason,
}

impl Gone {
    fn new(segment: &SegmentFacts, reason: DeleteReason) -> Gone {
        Gone { base_offset: segment.base_offset, bytes: segment.bytes, reason }
    }
}

/// Deletes what the partition's own limits want gone.
pub(super) fn retain(log: &mut Log, pinned: Option<i64>, now_ms: i64) -> Result<Vec<Gone>> {
    let shared = Arc::clone(&log.shared);
    let limits = Limits::of(&shared.config.load());
    let segments = shared.segments.load_full();
    let known = facts::of_log(&shared, &segments, pinned, now_ms);
    let below_start = segments.get(1).is_some_and(|next| next.base_offset() <= known.log_start);
    if limits.is_none() && !below_start {
        return Ok(Vec::new());
    }
    let each = facts::of_segments(&shared, &segments, known.log_end, Effort::Rebuild);
    let gone = policy::decide(&limits, &known, each)?;
    if let Some((last, _)) = gone.last() {
        log.delete_below(last.end_offset)?;
    }
    Ok(gone.iter().map(|(segment, reason)| Gone::new(segment, *reason)).collect())
}

/// Deletes the first segment, for the limit of the whole directory, if it is still the one that was
/// chosen and nothing holds it. `over` is by how much the directory is over that limit.
pub(super) fn delete_first(
    log: &mut Log,
    base_offset: i64,
    over: u64,
    pinned: Option<i64>,
    now_ms: i64,
) -> Result<Option<Gone>> {
    let shared = Arc::clone(&log.shared);
    let segments = shared.segments.load_full();
    let known = facts::of_log(&shared, &segments, pinned, now_ms);
    let first =
        facts::of_segments(&shared, &segments, known.log_end, Effort::Look).next().transpose()?;
    let reason = DeleteReason::TotalBytes;
    let Some(first) = first.filter(|first| {
        // An active segment has the newest records: it goes only if the limit is kept without them.
        first.base_offset == base_offset
            && (!first.is_active || first.bytes <= over)
            && policy::hold(&known, first, reason).is_none()
    }) else {
        return Ok(None);
    };
    log.delete_below(first.end_offset)?;
    Ok(Some(Gone::new(&first, reason)))
}

/// Moves the log start for the host, and says which segments went.
pub(super) fn delete_records(log: &mut Log, before: i64) -> Result<(i64, Vec<Gone>)> {
    let segments = log.shared.segments.load_full();
    let start = log.delete_records(before)?;
    let left = log.shared.segments.load().first().map_or(0, |first| first.base_offset());
    let gone = segments.iter().filter(|segment| segment.base_offset() < left);
    let reason = DeleteReason::LogStart;
    let gone = gone.map(|segment| Gone {
        base_offset: segment.base_offset(),
        bytes: segment.tail().bytes.into(),
        reason,
    });
    Ok((start, gone.collect()))
}
