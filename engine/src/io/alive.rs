//! Whether a file system still writes.
//!
//! When ext4's journal is aborted by a failed write, an fdatasync that comes after may find its
//! transaction gone and say that all is well: the data is on the disk, the size and the extents that
//! lead to it are not: `jbd2_complete_transaction` waits for a running or committing transaction only.
//! A loss that fits was found by `make crash` on Linux 6.18 (docs/RELIABILITY.md). Whatever changes metadata fails from then
//! on. So after a sync that is to be believed something is changed: if that works, the journal was
//! whole after the sync, and so it was during it.

#![forbid(unsafe_code)]

use super::{Disk, FileRef, OpenMode};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names of the files by which that is found out.
pub(crate) const ALIVE_PREFIX: &str = "loglane-alive-";

/// A file that grows by a byte at each question: the cheapest change of metadata there is, 2 µs.
pub(crate) struct Alive {
    file: FileRef,
    len: u64,
}

impl Alive {
    pub(crate) fn new(disk: &dyn Disk, dir: &Path, number: u32) -> io::Result<Alive> {
        let path = dir.join(format!("{ALIVE_PREFIX}{number:03}"));
        Ok(Alive { file: disk.open(&path, OpenMode::CreateOrTruncate)?, len: 0 })
    }

    /// Fails if syncs that came before may not have been.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        self.len += 1;
        accept(self.file.set_len(self.len))
    }
}

/// The same question without a file at hand: one is made in `dir` and removed.
pub(crate) fn check_alive(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("{ALIVE_PREFIX}once-{number}"));
    accept(disk.open(&path, OpenMode::CreateNew).and_then(|_| disk.remove_file(&path)))
}

/// No room, and no descriptor, say nothing about what was synced.
fn accept(result: io::Result<()>) -> io::Result<()> {
    use rustix::io::Errno;
    let Err(error) = result else { return Ok(()) };
    match Errno::from_io_error(&error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::INTR | Errno::MFILE | Errno::NFILE) => Ok(()),
        _ => Err(error),
    }
}

/// Removes what questions have left in a directory.
pub(crate) fn remove_alive(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for entry in disk.list(dir)?.iter().filter(|entry| entry.name.starts_with(ALIVE_PREFIX)) {
        match disk.remove_file(&dir.join(&entry.name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
