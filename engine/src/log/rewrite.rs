//! After a failed sync: writing what is in memory to fresh files.
//!
//! The kernel reports a failed writeback once, marks the pages clean, and goes on serving them from
//! memory (ext4; Rebello et al., USENIX ATC 2020). So their bytes can still be read, and each batch
//! has a CRC that says whether they are what was written; but only a write of other pages, to
//! another file, can be synced with a result that means something.

#![forbid(unsafe_code)]

use super::Log;
use crate::error::{Error, Result};
use crate::io::{FileRef, OpenMode};
use crate::producers::{AbortedEntries, encode_aborted};
use crate::segment::{Scanned, Scanner, Segment, names};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Behind a segment's name while it is written anew; an open removes what a crash left of it.
const SUFFIX: &str = ".rewrite.cleaned";

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

impl Log {
    /// Writes the given sealed segments and the active one to fresh files, which take their places.
    /// Positions stay what they are. Leases keep the old files.
    ///
    /// # Errors
    /// The first that was met, or that bytes in memory are not what was written. What was replaced
    /// by then is on disk; the recovery point must not move.
    pub(super) fn rewrite(&mut self, sealed: &[Arc<Segment>]) -> Result<()> {
        for segment in sealed {
            let file = self.rewrite_segment(segment)?;
            segment.pin_file(file);
        }
        if self.active.bytes > 0 {
            let segment = Arc::clone(&self.active.segment);
            let file = self.rewrite_segment(&segment)?;
            segment.pin_file(Arc::clone(&file));
            self.active.file = Some(file);
            self.active.written_back = 0;
        }
        // Index files are built anew from the log if a crash comes; a close writes them again.
        self.active.entries_on_disk = (0, 0);
        self.on_aborted_doubtful();
        self.sync_dir()?;
        self.check_alive()?;
        tracing::warn!(
            partition = %self.shared.name, segments = sealed.len() + 1,
            "a sync failed; what it may have dropped is on disk in fresh files"
        );
        Ok(())
    }

    /// Writes everything past the recovery point to fresh files: a sync failed before this log was
    /// opened.
    pub(crate) fn write_anew(&mut self) -> Result<()> {
        let mut sealed = Vec::new();
        self.sync.take_unsynced(&mut sealed);
        self.rewrite(&sealed)?;
        self.sync.at_most(0);
        let log_end = self.shared.offsets.log_end();
        self.shared.offsets.advance_synced(log_end);
        self.journalled.on_synced(log_end, Some(self.active.bytes));
        Ok(())
    }

    /// Fails if syncs of this log may have said yes and done nothing; see `io/alive.rs`.
    pub(super) fn check_alive(&self) -> Result<()> {
        let dir = self.shared.dir.parent().unwrap_or(&self.shared.dir);
        let alive = crate::io::check_alive(self.disk.as_ref(), dir);
        alive.map_err(|e| Error::io("change a name in", dir, e))
    }

    /// Notes for the next open that a sync failed.
    pub(super) fn doubt(&self) {
        let dir = self.shared.dir.parent().unwrap_or(&self.shared.dir);
        if let Err(error) = crate::session::doubt(self.disk.as_ref(), dir) {
            tracing::error!(%error, "a failed sync could not be noted for the next open");
        }
    }

    fn rewrite_segment(&self, segment: &Segment) -> Result<FileRef> {
        let path = segment.path();
        let fresh_path = fresh_path(path);
        let from = segment.file(&self.shared.open_files)?;
        let fresh = self.copy(segment, &from, &fresh_path);
        let renamed = fresh.and_then(|file| {
            self.disk.rename(&fresh_path, path).map_err(|e| Error::io("rename to", path, e))?;
            Ok(file)
        });
        if renamed.is_err() {
            // Space that somebody needs; the next open removes it otherwise.
            let _ = self.disk.remove_file(&fresh_path);
        }
        if renamed.is_ok() && segment.base_offset() != self.active.segment.base_offset() {
            self.rewrite_index(segment)?;
        }
        renamed
    }

    /// Puts a copy of a segment's first bytes in its place: a branch has the same file, and must not
    /// see it cut.
    pub(super) fn make_own(&self, segment: &Segment, length: u32) -> Result<()> {
        let path = segment.path();
        let fresh_path = fresh_path(path);
        let from = segment.file(&self.shared.open_files)?;
        let fresh = self
            .disk
            .open(&fresh_path, OpenMode::CreateOrTruncate)
            .map_err(|e| Error::io("create", &fresh_path, e))?;
        let copied = fresh.copy_from(from.as_ref(), length.into());
        let renamed = copied
            .and_then(|()| fresh.sync_data())
            .and_then(|()| self.disk.rename(&fresh_path, path));
        if let Err(error) = renamed {
            let _ = self.disk.remove_file(&fresh_path);
            return Err(Error::io("copy", path, error));
        }
        self.sync_dir()
    }

    /// Copies a segment batch by batch and syncs the copy.
    fn copy(&self, segment: &Segment, from: &FileRef, fresh_path: &Path) -> Result<FileRef> {
        let base = segment.base_offset();
        let fresh = self
            .disk
            .open(fresh_path, OpenMode::CreateOrTruncate)
            .map_err(|e| Error::io("create", fresh_path, e))?;
        let end = u64::from(segment.tail().bytes);
        let mut scanner = Scanner::new(FileRef::clone(from), base, 0, base, end);
        let mut bytes = Vec::with_capacity(COPY_BYTES);
        let mut position = 0;
        loop {
            let next_offset = scanner.next_offset();
            let step = scanner.step().map_err(|e| Error::io("read", segment.path(), e))?;
            match step {
                Scanned::Batch { batch, .. } => bytes.extend_from_slice(batch.bytes()),
                Scanned::End => break,
                Scanned::Damage { position, fault, .. } | Scanned::TornTail { position, fault } => {
                    return Err(Error::Damaged {
                        path: segment.path().to_owned(),
                        position,
                        offset: crate::Offset(next_offset),
                        next_offset: crate::Offset(segment.tail().end_offset),
                        fault,
                    });
                }
            }
            if bytes.len() >= COPY_BYTES {
                write_out(&fresh, fresh_path, &mut bytes, &mut position)?;
            }
        }
        write_out(&fresh, fresh_path, &mut bytes, &mut position)?;
        fresh.sync_data().map_err(|e| Error::io("sync", fresh_path, e))?;
        Ok(fresh)
    }

    /// The sync that failed may have been one of the index files of a sealed segment.
    fn rewrite_index(&self, segment: &Segment) -> Result<()> {
        let mut files = Vec::new();
        if let Some(aborted) = AbortedEntries::of(segment) {
            files.push((names::TXN_INDEX, encode_aborted(aborted.from(0))));
        }
        if let Some(index) = segment.loaded_index() {
            files.push((names::INDEX, index.offset_file(0)));
            files.push((names::TIME_INDEX, index.time_file(0)));
        }
        for (suffix, bytes) in files {
            let path = names::path(&self.shared.dir, segment.base_offset(), suffix);
            let fresh = fresh_path(&path);
            let file = super::write_index(self.disk.as_ref(), &fresh, &bytes, 0)?;
            file.sync_data().map_err(|e| Error::io("sync", &fresh, e))?;
            self.disk.rename(&fresh, &path).map_err(|e| Error::io("rename to", &path, e))?;
        }
        Ok(())
    }
}

fn fresh_path(path: &Path) -> PathBuf {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(SUFFIX);
    PathBuf::from(fresh)
}

fn write_out(file: &FileRef, path: &Path, bytes: &mut Vec<u8>, position: &mut u64) -> Result<()> {
    file.write_all_at(bytes, *position).map_err(|e| Error::io("write", path, e))?;
    *position += bytes.len() as u64;
    bytes.clear();
    Ok(())
}
