//! A branch: a copy of the directory that others may write to, made while this one is written to.
//!
//! Sealed segments never change, so the branch gets further names of the same files; where the file
//! system has no hard links, or the branch is on another one, it gets copies. What does change is
//! copied: the active segment up to the log end, indexes, epochs. Each partition is cut at an offset
//! that was its log end during the call.
//!
//! Both sides may write afterwards. Whoever cuts a segment that has two names makes it its own
//! first (`log/truncate.rs`), and whoever deletes one removes a name only (`unlink.rs`).

#![forbid(unsafe_code)]

use crate::checkpoint::{self, PartitionOffsets};
use crate::config::Config;
use crate::engine::{Core, Engine};
use crate::error::{Error, Result};
use crate::io::{Disk, EntryKind, OpenMode};
use crate::log::{Epochs, LogShared};
use crate::segment::{Segment, names};
use crate::session::{self, Session};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Tries for a partition whose segments are deleted or cut while it is branched.
const TRIES: usize = 16;

/// What a branch is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Branched {
    /// Partitions in it.
    pub partitions: usize,
    /// Bytes that it shares with the directory it was made from.
    pub linked_bytes: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
}

/// Whether a branch survives a power cut when the call returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BranchSync {
    /// Yes: a plain Kafka log directory, closed cleanly and on disk.
    #[default]
    Durable,
    /// Not yet: opened as after a kill, and from then on as safe as any directory.
    Later,
}

pub(crate) fn make(core: &Core, to: &Path, sync: BranchSync) -> Result<Branched> {
    std::fs::create_dir_all(to).map_err(|e| Error::io("create", to, e))?;
    let disk = core.disk().as_ref();
    let there = disk.list(to).map_err(|e| Error::io("list", to, e))?;
    if !there.is_empty() {
        return Err(Error::AlreadyExists {
            what: format!("{}, with something in it,", to.display()),
        });
    }
    let made = fill(core, disk, to, sync);
    if made.is_err() {
        // Only what this call made is in it.
        let emptied = disk.remove_dir_all(to).and_then(|()| disk.create_dir(to));
        if let Err(error) = emptied {
            tracing::error!(dir = %to.display(), %error, "half a branch stays");
        }
    }
    made
}

fn fill(core: &Core, disk: &dyn Disk, to: &Path, sync: BranchSync) -> Result<Branched> {
    // Until it is whole, an open of the branch must see that it is not.
    session::write(disk, to, &Session { number: 0, mount: None, doubt: false })?;
    // How long records stay is the branch's from the beginning; pins are of those who read here.
    core.terms().settings.copy_to(disk, to)?;
    let mut branched = Branched::default();
    let (mut recovery_points, mut high_watermarks, mut log_starts) =
        (PartitionOffsets::new(), PartitionOffsets::new(), PartitionOffsets::new());
    for partition in core.open_all()? {
        let shared = partition.shared();
        let copy = Copy { disk, shared, to: &to.join(shared.name.to_string()) };
        let offsets = copy.partition(&mut branched)?;
        recovery_points.insert(shared.name.clone(), offsets.synced);
        high_watermarks.insert(shared.name.clone(), offsets.high_watermark);
        if offsets.log_start > offsets.first {
            log_starts.insert(shared.name.clone(), offsets.log_start);
        }
        branched.partitions += 1;
    }
    for (name, offsets) in [
        (checkpoint::RECOVERY_POINTS, &recovery_points),
        (checkpoint::HIGH_WATERMARKS, &high_watermarks),
        (checkpoint::LOG_STARTS, &log_starts),
    ] {
        checkpoint::write_offsets(disk, &to.join(name), offsets)?;
    }
    disk.sync_dir(to).map_err(|e| Error::io("sync", to, e))?;
    let session = Session { number: 0, mount: disk.mount_id(to), doubt: false };
    session::write(disk, to, &session)?;
    if sync == BranchSync::Durable {
        // Opened and closed: indexes are completed, and everything is synced that was not.
        let config =
            Config { dir: to.to_owned(), retention_check_interval_ms: 0, ..core.config().clone() };
        Engine::open(config)?.close()?;
    }
    Ok(branched)
}

/// Where a branched partition begins and ends.
struct Offsets {
    first: i64,
    log_start: i64,
    high_watermark: i64,
    synced: i64,
}

/// One partition on its way into a branch.
struct Copy<'a> {
    disk: &'a dyn Disk,
    shared: &'a LogShared,
    to: &'a Path,
}

impl Copy<'_> {
    /// Tries until nothing was deleted or cut meanwhile.
    fn partition(&self, branched: &mut Branched) -> Result<Offsets> {
        for _ in 0..TRIES {
            let (cuts, mut bytes) = (self.shared.cuts.load(Ordering::Acquire), *branched);
            match self.files(&mut bytes) {
                Ok(Some(offsets)) if cuts == self.shared.cuts.load(Ordering::Acquire) => {
                    *branched = bytes;
                    return Ok(offsets);
                }
                Ok(_) => {}
                // Deleted, or cut shorter than it was said to be.
                Err(Error::Io { source, .. })
                    if matches!(
                        source.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                    ) => {}
                Err(error) => return Err(error),
            }
            let emptied = self.disk.remove_dir_all(self.to);
            emptied.map_err(|e| Error::io("remove", self.to, e))?;
        }
        Err(Error::Busy { partition: self.shared.name.to_string(), queued: 0 })
    }

    /// `None` if a segment was deleted meanwhile.
    fn files(&self, branched: &mut Branched) -> Result<Option<Offsets>> {
        self.disk.create_dir(self.to).map_err(|e| Error::io("create", self.to, e))?;
        // Before the segments: what was synced then is in them.
        let synced = self.shared.offsets.synced();
        let offsets = self.shared.offsets.snapshot();
        let segments = self.shared.segments.load_full();
        let Some((active, sealed)) = segments.split_last() else { return Ok(None) };
        let tail = active.tail();
        for segment in sealed {
            self.link_or_copy(segment, branched)?;
        }
        self.copy_bytes(active, tail.bytes.into(), branched)?;
        // Older snapshots of producers are of no use unless these are lost.
        let newest = segments.iter().rev().nth(1).map_or(0, |segment| segment.base_offset());
        self.small_files(newest, branched)?;
        let log_start = offsets.log_start.min(tail.end_offset);
        let epochs = self.shared.epochs.load();
        let epochs = Epochs::new(epochs.entries().to_vec(), log_start, tail.end_offset);
        checkpoint::write_epochs(self.disk, self.to, epochs.entries())?;
        self.disk.sync_dir(self.to).map_err(|e| Error::io("sync", self.to, e))?;
        let first = segments.first().map_or(0, |segment| segment.base_offset());
        Ok(segments.iter().all(|segment| !segment.is_retired()).then_some(Offsets {
            first,
            log_start,
            high_watermark: offsets.high_watermark.min(tail.end_offset),
            // The copy of the active segment is not synced, whatever its original is.
            synced: synced.min(active.base_offset()),
        }))
    }

    fn link_or_copy(&self, segment: &Arc<Segment>, branched: &mut Branched) -> Result<()> {
        let bytes = u64::from(segment.tail().bytes);
        let to = names::path(self.to, segment.base_offset(), names::LOG);
        match self.disk.link(segment.path(), &to) {
            Ok(()) => {
                branched.linked_bytes += bytes;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::io("link", segment.path(), e))
            }
            // Other file systems, and those without links, or with too many of this file.
            Err(_) => self.copy_bytes(segment, bytes, branched),
        }
    }

    fn copy_bytes(
        &self,
        segment: &Arc<Segment>,
        length: u64,
        branched: &mut Branched,
    ) -> Result<()> {
        let path = names::path(self.to, segment.base_offset(), names::LOG);
        let from = segment.file(&self.shared.open_files)?;
        let to = self.disk.open(&path, OpenMode::CreateNew);
        let to = to.map_err(|e| Error::io("create", &path, e))?;
        to.copy_from(from.as_ref(), length).map_err(|e| Error::io("copy", &path, e))?;
        branched.copied_bytes += length;
        Ok(())
    }

    /// Indexes, snapshots, metadata: whatever of them is newer than the log is cut at the next open.
    fn small_files(&self, snapshots_from: i64, branched: &mut Branched) -> Result<()> {
        let dir = &self.shared.dir;
        let entries = self.disk.list(dir).map_err(|e| Error::io("list", dir, e))?;
        let is_small = |name: &str| {
            name == checkpoint::PARTITION_METADATA
                || [names::INDEX, names::TIME_INDEX, names::TXN_INDEX, names::LOST]
                    .iter()
                    .any(|suffix| names::base_offset(name, suffix).is_some())
                || names::base_offset(name, names::SNAPSHOT).is_some_and(|at| at >= snapshots_from)
        };
        let small = entries.iter().filter(|e| e.kind == EntryKind::File && is_small(&e.name));
        for entry in small {
            let (from, to) = (dir.join(&entry.name), self.to.join(&entry.name));
            let source = match self.disk.open(&from, OpenMode::Read) {
                // A newer one has taken its place, and the log says the same.
                Err(e) if e.kind() == io::ErrorKind::NotFound && is_snapshot(&entry.name) => {
                    continue;
                }
                source => source.map_err(|e| Error::io("open", &from, e))?,
            };
            let target = self.disk.open(&to, OpenMode::CreateNew);
            let target = target.map_err(|e| Error::io("create", &to, e))?;
            let length = source.len().map_err(|e| Error::io("read", &from, e))?;
            target.copy_from(source.as_ref(), length).map_err(|e| Error::io("copy", &to, e))?;
            branched.copied_bytes += length;
        }
        Ok(())
    }
}

fn is_snapshot(name: &str) -> bool {
    names::base_offset(name, names::SNAPSHOT).is_some()
}
