//! Partitions that nobody has touched since the open: are they worth opening for retention? Told from
//! names, sizes and times of files; what then goes is decided as for any other, once it is open.

#![forbid(unsafe_code)]

use super::facts;
use super::policy::{self, Limits, LogFacts, SegmentFacts};
use crate::error::{Error, Result};
use crate::io::{Disk, EntryKind};
use crate::segment::names;
use std::path::Path;

/// What the files of a partition tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Look {
    /// Of all `.log` files.
    pub(super) bytes: u64,
    pub(super) first: SegmentFacts,
}

/// Looks at a partition's directory; `None` if it has no segment.
pub(super) fn look(disk: &dyn Disk, dir: &Path) -> Result<Option<Look>> {
    let entries = disk.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let files = entries.iter().filter(|entry| entry.kind == EntryKind::File);
    let mut bases: Vec<i64> =
        files.filter_map(|entry| names::base_offset(&entry.name, names::LOG)).collect();
    bases.sort_unstable();
    let Some(first) = bases.first().copied() else { return Ok(None) };
    let mut sizes = Vec::with_capacity(bases.len());
    for base in &bases {
        let path = names::path(dir, *base, names::LOG);
        sizes.push(disk.stat(&path).map_err(|e| Error::io("stat", path, e))?.len);
    }
    let next = bases.get(1).copied();
    let times = facts::last_time_entry(disk, &names::path(dir, first, names::TIME_INDEX))?;
    let first = SegmentFacts {
        base_offset: first,
        // Where an active one ends only its records tell.
        end_offset: next.unwrap_or(i64::MAX),
        bytes: sizes.first().copied().unwrap_or(0),
        largest_timestamp: times.map(|(timestamp, _)| timestamp).filter(|t| *t > 0),
        last_append_ms: facts::modified_ms(disk, &names::path(dir, first, names::LOG))?,
        is_active: next.is_none(),
    };
    Ok(Some(Look { bytes: sizes.iter().sum(), first }))
}

/// True if the first segment may be due.
pub(super) fn may_be_due(limits: &Limits, look: &Look, pinned: Option<i64>, now_ms: i64) -> bool {
    if limits.is_none() || look.first.bytes == 0 {
        return false;
    }
    // How many records there are only the log tells: it is opened to find out.
    if limits.records.is_some() && !look.first.is_active {
        return true;
    }
    let limits = Limits { records: None, ..*limits };
    let log = LogFacts {
        log_start: look.first.base_offset,
        high_watermark: i64::MAX,
        log_end: i64::MAX,
        bytes: look.bytes,
        pinned,
        now_ms,
    };
    let reason = policy::reason(&limits, &log, &look.first, look.bytes);
    reason.is_some_and(|reason| policy::hold(&log, &look.first, reason).is_none())
}
