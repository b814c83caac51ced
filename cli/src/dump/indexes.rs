//! Entries of `.index` and `.timeindex` files, compared with the `.log` beside them.

#![forbid(unsafe_code)]

use super::fault;
use crate::failure::Failure;
use crate::output::Output;
use loglane::Error;
use loglane::inspect::{IndexFault, LogWalk, OffsetIndex, Step, TimeIndex};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) fn offsets(path: &Path, out: &mut Output) -> Result<bool, Failure> {
    let mut index = OffsetIndex::read(path)?;
    let file = path.display();
    for entry in index.entries() {
        out.item(
            || format!("offset: {} position: {}", entry.offset, entry.position),
            || {
                json!({ "file": file.to_string(), "offset": entry.offset,
                "position": entry.position })
            },
        )?;
    }
    if let Some(mut walk) = log_beside(path)? {
        while let Some(step) = walk.step()? {
            match step {
                Step::Batch { position, batch } => index.on_batch(position, batch.header()),
                Step::Damage { position, end, .. } => index.on_damage(position, end),
                Step::TornTail { position, .. } => index.on_damage(position, u64::MAX),
            }
        }
        index.finish();
    }
    zero_tail(index.zero_bytes(), out)?;
    faults(path, index.faults(), out)
}

pub(super) fn times(path: &Path, out: &mut Output) -> Result<bool, Failure> {
    let mut index = TimeIndex::read(path)?;
    let file = path.display();
    for entry in index.entries() {
        out.item(
            || format!("timestamp: {} offset: {}", entry.timestamp, entry.offset),
            || {
                json!({ "file": file.to_string(), "timestamp": entry.timestamp,
                "offset": entry.offset })
            },
        )?;
    }
    if let Some(mut walk) = log_beside(path)? {
        let mut after_damage = false;
        while let Some(step) = walk.step()? {
            match step {
                Step::Batch { batch, .. } => {
                    if std::mem::take(&mut after_damage) {
                        index.on_damage(batch.header().base_offset);
                    }
                    index.on_batch(batch.header());
                }
                Step::Damage { .. } => after_damage = true,
                Step::TornTail { .. } => index.on_damage(i64::MAX),
            }
        }
        index.finish();
    }
    zero_tail(index.zero_bytes(), out)?;
    faults(path, index.faults(), out)
}

/// The `.log` of the same segment; an index alone is checked for its order only.
fn log_beside(index: &Path) -> Result<Option<LogWalk>, Failure> {
    let name = index.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let log: PathBuf =
        index.with_file_name(name.replace(".timeindex", ".log").replace(".index", ".log"));
    match LogWalk::open(log) {
        Ok(walk) => Ok(Some(walk)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A segment that is being written has these: worth a line, not damage.
fn zero_tail(bytes: u64, out: &mut Output) -> Result<(), Failure> {
    if bytes > 0 && !out.json {
        writeln!(out, "{bytes} zero bytes behind the last entry")?;
    }
    Ok(())
}

fn faults(path: &Path, found: &[IndexFault], out: &mut Output) -> Result<bool, Failure> {
    for f in found {
        let entry = f.entry.map_or(String::new(), |entry| format!("entry {entry} "));
        fault(path, Some(f.position), &format!("{entry}{}", f.reason), out)?;
    }
    Ok(!found.is_empty())
}
