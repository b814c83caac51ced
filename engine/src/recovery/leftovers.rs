//! What a crash left between two steps: half-done deletions and clean-ups, indexes without a log.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::io::{Disk, EntryKind, OpenMode};
use crate::segment::{Scanned, Scanner, names};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// Base offsets of the segments, after finishing what a crash interrupted; and offsets from which on
/// records are missing up to the next segment: an index with entries stands there without a log, or
/// the trace that an earlier recovery left.
pub(super) fn list_segments(
    disk: &dyn Disk,
    dir: &Path,
    writable: bool,
) -> Result<(BTreeSet<i64>, BTreeSet<i64>)> {
    let entries = disk.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let mut names_here: BTreeSet<String> = entries
        .into_iter()
        .filter(|entry| entry.kind == EntryKind::File)
        .map(|entry| entry.name)
        .collect();
    if writable {
        finish_renames(disk, dir, &mut names_here)?;
    }
    let bases: BTreeSet<i64> =
        names_here.iter().filter_map(|name| names::base_offset(name, names::LOG)).collect();
    let between = |base: &i64| {
        bases.first().is_some_and(|first| first < base)
            && bases.last().is_some_and(|last| base < last)
    };
    let mut missing = BTreeSet::new();
    for name in &names_here {
        let orphan = [names::INDEX, names::TIME_INDEX, names::TXN_INDEX]
            .iter()
            .filter_map(|suffix| names::base_offset(name, suffix))
            .find(|base| !bases.contains(base));
        let Some(base) = orphan.or(names::base_offset(name, names::LOST)) else { continue };
        if name.ends_with(names::LOST) && bases.last().is_some_and(|last| base < *last) {
            missing.insert(base);
        } else if between(&base) && disk.stat(&dir.join(name)).is_ok_and(|stat| stat.len > 0) {
            tracing::error!(dir = %dir.display(), base, "a segment file is missing");
            // Its index stays, as the only trace of it.
            missing.insert(base);
        } else if writable {
            remove(disk, &dir.join(name))?;
        }
    }
    Ok((bases, missing))
}

/// Deletions and clean-ups that were under way: Kafka's `LogLoader.load`, steps 1 and 2.
fn finish_renames(disk: &dyn Disk, dir: &Path, names_here: &mut BTreeSet<String>) -> Result<()> {
    let with = |names_here: &BTreeSet<String>, suffix: &str| -> Vec<String> {
        names_here.iter().filter(|n| n.ends_with(suffix)).cloned().collect()
    };
    for name in with(names_here, names::DELETED) {
        remove(disk, &dir.join(&name))?;
        names_here.remove(&name);
    }
    let swap_base = |name: &str| {
        let log = name.strip_suffix(names::SWAP)?;
        names::base_offset(log, names::LOG)
    };
    let cleaned: Vec<i64> = with(names_here, names::CLEANED)
        .iter()
        .filter_map(|n| names::base_offset(n.strip_suffix(names::CLEANED)?, names::LOG))
        .collect();
    let sync = || disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e));
    let base_of = |name: &str| name.get(..20).and_then(|digits| digits.parse::<i64>().ok());
    let logs: Vec<i64> =
        with(names_here, names::SWAP).iter().filter_map(|n| swap_base(n)).collect();
    let mut undone = false;
    for name in with(names_here, names::SWAP) {
        let base = base_of(&name);
        // An unfinished split or clean-up: its sources are still whole. Or indexes whose log is not
        // beside them: it has its name already, and they are built anew; or it never got this far.
        let unfinished = cleaned.iter().min().is_some_and(|smallest| base >= Some(*smallest));
        if unfinished || !base.is_some_and(|base| logs.contains(&base)) {
            remove(disk, &dir.join(&name))?;
            names_here.remove(&name);
            undone = true;
        }
    }
    if undone {
        // Before what shows that it was not finished.
        sync()?;
    }
    for name in with(names_here, names::CLEANED) {
        remove(disk, &dir.join(&name))?;
        names_here.remove(&name);
    }
    let swaps = with(names_here, names::SWAP);
    if let Some(min) = swaps.iter().filter_map(|n| swap_base(n)).min() {
        let max = swap_end(disk, dir, &swaps)?;
        let replaced: Vec<String> = names_here
            .iter()
            .filter(|name| {
                let base = [names::LOG, names::INDEX, names::TIME_INDEX, names::TXN_INDEX]
                    .iter()
                    .find_map(|suffix| names::base_offset(name, suffix));
                base.is_some_and(|base| (min..max).contains(&base) || logs.contains(&base))
            })
            .cloned()
            .collect();
        for name in replaced {
            remove(disk, &dir.join(&name))?;
            names_here.remove(&name);
        }
        // A power cut must not bring a source back beside what replaces it.
        sync()?;
    }
    let any = !swaps.is_empty();
    for name in swaps {
        let Some(plain) = name.strip_suffix(names::SWAP) else { continue };
        disk.rename(&dir.join(&name), &dir.join(plain))
            .map_err(|e| Error::io("rename", dir.join(&name), e))?;
        names_here.remove(&name);
        names_here.insert(plain.to_owned());
    }
    if any { sync() } else { Ok(()) }
}

/// One past the last offset in any swapped-in log.
fn swap_end(disk: &dyn Disk, dir: &Path, swaps: &[String]) -> Result<i64> {
    let mut end = 0;
    for name in swaps {
        let log = name.strip_suffix(names::SWAP).unwrap_or_default();
        let Some(base) = names::base_offset(log, names::LOG) else { continue };
        let path = dir.join(name);
        let file = disk.open(&path, OpenMode::Read).map_err(|e| Error::io("open", &path, e))?;
        let len = file.len().map_err(|e| Error::io("stat", &path, e))?;
        let mut scanner = Scanner::new(file, base, 0, base, len);
        let read = |e| Error::io("read", &path, e);
        while let Scanned::Batch { .. } | Scanned::Damage { .. } = scanner.step().map_err(read)? {}
        end = end.max(scanner.next_offset());
    }
    Ok(end)
}

pub(super) fn remove_segment(disk: &dyn Disk, dir: &Path, base: i64) -> Result<()> {
    for suffix in names::SEGMENT_SUFFIXES {
        remove(disk, &names::path(dir, base, suffix))?;
    }
    Ok(())
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<()> {
    match disk.remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
