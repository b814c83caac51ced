//! What is known of a log's segments, as the policy wants it: sizes from memory, times from the
//! segment, the last entry of its time index, or its file.

#![forbid(unsafe_code)]

use super::policy::{LogFacts, SegmentFacts};
use crate::error::{Error, Result};
use crate::io::{Disk, OpenMode};
use crate::log::LogShared;
use crate::segment::{Segment, SegmentIndex, TIME_ENTRY, names};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// 2011-01-01, when there was no Kafka yet. A file that claims to be older got its time from a tool:
/// archives are made with times of 1970 or 1980, so that they compare equal.
const APPENDED_SINCE_MS: i64 = 1_293_840_000_000;

/// The log as it is now. Exact on its shard; elsewhere as of some moment.
pub(super) fn of_log(
    shared: &LogShared,
    segments: &[Arc<Segment>],
    pinned: Option<i64>,
    now_ms: i64,
) -> LogFacts {
    let offsets = shared.offsets.snapshot();
    LogFacts {
        log_start: offsets.log_start,
        high_watermark: offsets.high_watermark,
        log_end: offsets.log_end,
        bytes: segments.iter().map(|s| u64::from(s.tail().bytes)).sum(),
        pinned,
        now_ms,
    }
}

/// What may be done to find out how old a segment is whose time index does not say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effort {
    /// The index is built anew, and written if the log is ours: nobody deletes the segment meanwhile.
    Rebuild,
    /// Nothing: the segment may be gone by then, and must not get files again.
    Look,
}

/// Each segment, oldest first; its times are looked up when it is asked for.
pub(super) fn of_segments<'a>(
    shared: &'a LogShared,
    segments: &'a [Arc<Segment>],
    log_end: i64,
    effort: Effort,
) -> impl Iterator<Item = Result<SegmentFacts>> + 'a {
    segments.iter().enumerate().map(move |(at, segment)| {
        let next = segments.get(at + 1);
        Ok(SegmentFacts {
            base_offset: segment.base_offset(),
            end_offset: next.map_or(log_end, |next| next.base_offset()),
            bytes: segment.tail().bytes.into(),
            largest_timestamp: largest_timestamp(shared, segment, effort)?,
            last_append_ms: last_append_ms(shared, segment)?,
            is_active: next.is_none(),
        })
    })
}

/// The largest timestamp of a segment's records; `None` if none has one.
fn largest_timestamp(
    shared: &LogShared,
    segment: &Arc<Segment>,
    effort: Effort,
) -> Result<Option<i64>> {
    let known = segment.max_timestamp();
    if known >= 0 {
        return Ok(Some(known));
    }
    if segment.tail().bytes == 0 {
        return Ok(None);
    }
    if segment.loaded_index().is_none() {
        // The last entry says it. Reading all of an index that nobody else uses would keep it in
        // memory.
        let path = names::path(&shared.dir, segment.base_offset(), names::TIME_INDEX);
        let last = last_time_entry(shared.open_files.disk().as_ref(), &path)?;
        let in_segment = |relative: i64| {
            segment.base_offset().saturating_add(relative) < segment.tail().end_offset
        };
        if let Some((timestamp, relative)) = last
            && timestamp > 0
            && in_segment(relative)
        {
            segment.set_max_timestamp(timestamp);
            return Ok(Some(timestamp));
        }
    }
    let time = |index: &SegmentIndex| {
        index.last_time_entry().map(|entry| entry.timestamp).filter(|time| *time >= 0)
    };
    match (segment.loaded_index(), effort) {
        (Some(index), _) => Ok(time(index)),
        (None, Effort::Look) => Ok(None),
        // No entry, or one that cannot be: the index is checked, and built anew if it is not sound.
        (None, Effort::Rebuild) => shared.index(segment).map(time),
    }
}

/// Timestamp and relative offset of the last entry of a `.timeindex` file; `None` if it has none, is
/// missing or ends amid an entry.
pub(super) fn last_time_entry(disk: &dyn Disk, path: &Path) -> Result<Option<(i64, i64)>> {
    let file = match disk.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let len = file.len().map_err(|e| Error::io("stat", path, e))?;
    let entry = TIME_ENTRY as u64;
    if len < entry || !len.is_multiple_of(entry) {
        return Ok(None);
    }
    let mut bytes = [0; TIME_ENTRY];
    file.read_exact_at(&mut bytes, len - entry).map_err(|e| Error::io("read", path, e))?;
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    let timestamp = i64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let relative = u32::from_be_bytes([i, j, k, l]);
    Ok(Some((timestamp, relative.into())))
}

/// When a segment was last appended to: the time of its file.
fn last_append_ms(shared: &LogShared, segment: &Segment) -> Result<Option<i64>> {
    modified_ms(shared.open_files.disk().as_ref(), segment.path())
}

/// The time of a file, Unix ms; `None` if it is missing or its time is not one of an append.
pub(super) fn modified_ms(disk: &dyn Disk, path: &Path) -> Result<Option<i64>> {
    match disk.stat(path) {
        Ok(stat) => Ok(unix_ms(stat.modified).filter(|ms| *ms >= APPENDED_SINCE_MS)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("stat", path, e)),
    }
}

fn unix_ms(time: SystemTime) -> Option<i64> {
    i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}
