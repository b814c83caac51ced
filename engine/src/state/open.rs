//! From the file and the journals that an earlier life left to the values of a directory.
//!
//! After a clean close the file is complete. Otherwise its whole records, and those that a journal
//! has, each count once, in the order of their numbers; then all values go to a fresh file, which is
//! synced before anything else happens: no journal is needed for them from then on.

#![forbid(unsafe_code)]

use super::Change;
use super::format::{Record, encode};
use super::scan::{Scan, scan};
use super::store::{FRESH_FILE, Opened, STATE_FILE, StateDamage, Store, write_synced};
use super::values::Values;
use crate::error::{Error, Result};
use crate::io::{Disk, OpenMode};
use crate::topic::TopicPartition;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a directory was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// Closed.
    Clean,
    /// Left by a process or a machine that died.
    Crashed,
}

/// Opens the values of a directory. `journalled` are the records that journals have; `lives` knows
/// the partitions that are there: values of others go.
///
/// # Errors
/// [`Error::Format`] for a file of another version, [`Error::Io`]. Damage is no error here.
pub(crate) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    found: Found,
    journalled: &[Vec<u8>],
    lives: &dyn Fn(&TopicPartition) -> bool,
) -> Result<Store> {
    let fresh = dir.join(FRESH_FILE);
    match disk.remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", fresh, e)),
        _ => {}
    }
    let path = dir.join(STATE_FILE);
    let bytes = read_bytes(disk.as_ref(), &path)?;
    let existed = bytes.is_some();
    let bytes = bytes.unwrap_or_default();
    let scan = if existed { scan_file(&path, &bytes)? } else { Scan::default() };
    let missing = missing(&scan, journalled);
    let mut values = replay(&scan, &missing);
    let last = scan.records.iter().map(|record| record.sequence);
    let last = last.chain(missing.keys().copied()).chain([scan.base_sequence]).max().unwrap_or(0);
    let next_sequence = last + 1;
    if !scan.damaged.is_empty() {
        if !missing.is_empty() {
            keep_missing(disk.as_ref(), dir, &bytes, &scan, &missing)?;
        }
        let damage = damage(&path, &scan);
        tracing::error!(?damage, "values may be lost: none is given out until that is accepted");
        let opened = Opened { values, next_sequence, damage, ..Opened::default() };
        return Ok(Store::new(disk, dir, opened));
    }
    let orphans = values.orphans(lives);
    for orphan in &orphans {
        values.apply(orphan);
    }
    let to_rewrite =
        scan.is_torn || !orphans.is_empty() || (found == Found::Crashed && (existed || last > 0));
    let mut opened = Opened { values, next_sequence, ..Opened::default() };
    if existed && !to_rewrite {
        let file =
            disk.open(&path, OpenMode::ReadWrite).map_err(|e| Error::io("open", &path, e))?;
        (opened.file, opened.bytes) = (Some(file), scan.end);
        opened.synced_bytes = scan.end;
    }
    let store = Store::new(disk, dir, opened);
    if to_rewrite {
        store.rewrite_now()?;
    }
    Ok(store)
}

/// The values as the file has them, for those who only look; and what of it is damaged.
///
/// # Errors
/// [`Error::Format`] for a file of another version, [`Error::Io`].
pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<(Values, Vec<StateDamage>)> {
    let path = dir.join(STATE_FILE);
    let Some(bytes) = read_bytes(disk, &path)? else { return Ok(Default::default()) };
    let scan = scan_file(&path, &bytes)?;
    Ok((replay(&scan, &BTreeMap::new()), damage(&path, &scan)))
}

fn damage(path: &Path, scan: &Scan) -> Vec<StateDamage> {
    let of = |hole: &Range<u64>| StateDamage {
        path: path.to_owned(),
        position: hole.start,
        length: hole.end - hole.start,
    };
    scan.damaged.iter().map(of).collect()
}

pub(super) fn read_bytes(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match disk.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let length = file.len().map_err(|e| Error::io("stat", path, e))?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    let read = file.read_up_to(&mut bytes, 0).map_err(|e| Error::io("read", path, e))?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

fn scan_file(path: &Path, bytes: &[u8]) -> Result<Scan> {
    scan(bytes).map_err(|version| Error::Format {
        path: PathBuf::from(path),
        reason: format!("is of version {:?}, which this engine does not read", char::from(version)),
    })
}

/// Changes that only a journal has, by number.
fn missing(scan: &Scan, journalled: &[Vec<u8>]) -> BTreeMap<u64, Vec<Change>> {
    let mut missing = BTreeMap::new();
    for record in journalled.iter().filter_map(|bytes| Record::decode(bytes)) {
        // Those up to the base are in what the file began with, or were undone by then.
        if record.sequence > scan.base_sequence {
            missing.insert(record.sequence, record.changes);
        }
    }
    for record in &scan.records {
        missing.remove(&record.sequence);
    }
    missing
}

/// All values after the changes of the file and of the journals, in the order of their numbers.
fn replay(scan: &Scan, missing: &BTreeMap<u64, Vec<Change>>) -> Values {
    let in_file = scan.records.iter().map(|record| (record.sequence, &record.changes));
    let in_journals = missing.iter().map(|(number, changes)| (*number, changes));
    let mut all: Vec<(u64, &Vec<Change>)> = in_file.chain(in_journals).collect();
    // Stable: those numbered 0 keep their order.
    all.sort_by_key(|(number, _)| *number);
    let mut values = Values::default();
    for change in all.into_iter().flat_map(|(_, changes)| changes) {
        values.apply(change);
    }
    values
}

/// A damaged file stays as it is; what a journal has beside it is added, since journals go.
fn keep_missing(
    disk: &dyn Disk,
    dir: &Path,
    bytes: &[u8],
    scan: &Scan,
    missing: &BTreeMap<u64, Vec<Change>>,
) -> Result<()> {
    let mut whole = bytes.to_vec();
    whole.resize(usize::try_from(scan.end).unwrap_or(usize::MAX), 0);
    for (number, changes) in missing {
        let record = encode(*number, whole.len() as u64, scan.synced_bytes, changes);
        whole.extend_from_slice(&record);
    }
    let (fresh, path) = (dir.join(FRESH_FILE), dir.join(STATE_FILE));
    write_synced(disk, &fresh, &whole)?;
    disk.rename(&fresh, &path).map_err(|e| Error::io("rename to", path, e))?;
    disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
}
