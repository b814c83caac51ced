//! Which segment files are open: at most a set number, the least recently touched closed first.
//!
//! A reader finds an open file with one atomic load. Only opening takes the lock, and pushes the
//! hand of a clock over the open ones: a slot touched since the hand's last pass is passed over
//! once. A file that is *pinned* (it has unsynced bytes) is not counted here and never closed.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::io::{Disk, FileRef, OpenMode};
use arc_swap::ArcSwapOption;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The place of one file; it may be open or not.
pub(super) struct FileSlot {
    inner: Arc<Slot>,
}

struct Slot {
    path: PathBuf,
    /// Doubly wrapped because the swap wants a thin pointer.
    open: ArcSwapOption<FileRef>,
    touched: AtomicBool,
    pinned: AtomicBool,
}

/// The open files of an engine.
pub(crate) struct OpenFiles {
    disk: Arc<dyn Disk>,
    limit: usize,
    clock: Mutex<VecDeque<Weak<Slot>>>,
}

impl OpenFiles {
    /// Keeps at most `limit` unpinned files open.
    pub(crate) fn new(disk: Arc<dyn Disk>, limit: usize) -> OpenFiles {
        OpenFiles { disk, limit: limit.max(1), clock: Mutex::default() }
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Enters a slot that was just opened and closes others while there are too many.
    fn admit(&self, slot: &Arc<Slot>) {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.push_back(Arc::downgrade(slot));
        // Two passes clear every touched mark, so the second finds something to close.
        let mut steps = clock.len() * 2;
        while clock.len() > self.limit && steps > 0 {
            steps -= 1;
            let Some(oldest) = clock.pop_front() else { break };
            let Some(other) = oldest.upgrade() else { continue };
            if other.pinned.load(Ordering::Acquire) || other.open.load().is_none() {
                continue;
            }
            if other.touched.swap(false, Ordering::Relaxed) {
                clock.push_back(oldest);
            } else {
                // Leases that hold the file keep it open until they are released.
                other.open.store(None);
            }
        }
    }
}

impl FileSlot {
    pub(super) fn new(path: PathBuf) -> FileSlot {
        FileSlot {
            inner: Arc::new(Slot {
                path,
                open: ArcSwapOption::empty(),
                touched: AtomicBool::new(false),
                pinned: AtomicBool::new(false),
            }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.inner.path
    }

    pub(super) fn get(&self, open_files: &OpenFiles) -> Result<FileRef> {
        if let Some(file) = self.inner.open.load().as_deref() {
            if !self.inner.touched.load(Ordering::Relaxed) {
                self.inner.touched.store(true, Ordering::Relaxed);
            }
            return Ok(Arc::clone(file));
        }
        let file = open_files
            .disk
            .open(&self.inner.path, OpenMode::Read)
            .map_err(|e| Error::io("open", &self.inner.path, e))?;
        self.inner.open.store(Some(Arc::new(Arc::clone(&file))));
        open_files.admit(&self.inner);
        Ok(file)
    }

    pub(super) fn pin(&self, file: FileRef) {
        self.inner.pinned.store(true, Ordering::Release);
        self.inner.open.store(Some(Arc::new(file)));
    }

    /// Closes the file; leases that hold it keep it open until they are released.
    pub(super) fn close(&self) {
        self.inner.pinned.store(false, Ordering::Release);
        self.inner.open.store(None);
    }

    pub(super) fn unpin(&self, open_files: &OpenFiles) {
        if self.inner.pinned.swap(false, Ordering::AcqRel) {
            open_files.admit(&self.inner);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::io::BackendChoice;

    #[test]
    fn no_more_files_stay_open_than_the_limit_and_pinned_ones_always_do() {
        let dir = tempfile::tempdir().unwrap();
        let disk = crate::io::open(dir.path(), BackendChoice::Plain).unwrap();
        let open_files = OpenFiles::new(Arc::clone(&disk), 4);
        let slots: Vec<FileSlot> = (0..20)
            .map(|i| {
                let path = dir.path().join(format!("{i}.log"));
                disk.open(&path, OpenMode::CreateNew).unwrap();
                FileSlot::new(path)
            })
            .collect();
        let pinned = disk.open(slots[0].path(), OpenMode::ReadWrite).unwrap();
        slots[0].pin(pinned);
        for _ in 0..3 {
            for slot in &slots {
                assert!(slot.get(&open_files).unwrap().is_empty().unwrap());
            }
            let open = slots.iter().filter(|s| s.inner.open.load().is_some()).count();
            assert!(open <= 5, "{open} files are open");
            assert!(slots[0].inner.open.load().is_some(), "the pinned file was closed");
        }
        slots[0].unpin(&open_files);
        for slot in &slots[1..] {
            slot.get(&open_files).unwrap();
        }
        let open = slots.iter().filter(|s| s.inner.open.load().is_some()).count();
        assert!(open <= 4, "{open} files are open after the unpin");
    }
}
