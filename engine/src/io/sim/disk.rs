//! The simulated disk and its files, as the engine sees them.

#![forbid(unsafe_code)]

use super::Shared;
use super::faults::Fate;
use super::lane::SimLane;
use super::names::Ino;
use super::state::{State, Sys};
use super::trace::{Call, Subject};
use super::transfer::Way;
use crate::io::{
    BLOCK_BYTES, Backend, BackendKind, DirEntry, Disk, EntryKind, File, FileRef, FileStat, Lane,
    MountId, OpenMode,
};
use libc::{EBADF, EINTR, EINVAL, EIO, EISDIR};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The disk, as it is found after a crash; dead after the next one.
#[derive(Debug)]
pub(super) struct SimDisk {
    shared: Arc<Shared>,
    epoch: u32,
    backend: Backend,
}

impl SimDisk {
    pub(super) fn new(shared: Arc<Shared>) -> SimDisk {
        let epoch = shared.lock().epoch;
        let reason = "the disk is simulated".to_owned();
        SimDisk { shared, epoch, backend: Backend { kind: BackendKind::Plain, reason } }
    }

    fn whole<T>(
        &self,
        call: Call,
        path: &Path,
        act: impl FnOnce(&mut State, &str) -> Sys<T>,
    ) -> io::Result<T> {
        let path = text(path)?;
        let mut state = self.shared.lock();
        let subject = Subject::Path(path.into());
        error(state.whole(self.epoch, call, subject, |state| act(state, path)))
    }
}

fn text(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::from_raw_os_error(EINVAL))
}

fn error<T>(result: Sys<T>) -> io::Result<T> {
    result.map_err(io::Error::from_raw_os_error)
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileRef> {
        let now_ms = self.shared.now_ms();
        let ino = self.whole(Call::Open, path, |state, path| {
            let creates = matches!(mode, OpenMode::CreateNew | OpenMode::CreateOrTruncate);
            match state.aborted && creates {
                true => Err(libc::EROFS),
                false => state.open(path, mode, now_ms),
            }
        })?;
        let shared = Arc::clone(&self.shared);
        Ok(Arc::new(SimFile { shared, epoch: self.epoch, ino, mode }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let now_ms = self.shared.now_ms();
        self.whole(Call::CreateDir, path, |state, path| state.create_dir(path, now_ms).map(drop))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (text(from)?, text(to)?);
        let subject = Subject::Path(format!("{from} to {to}").into());
        let mut state = self.shared.lock();
        error(state.whole(self.epoch, Call::Rename, subject, |state| state.rename(from, to)))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.whole(Call::RemoveFile, path, State::remove_file)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let path = text(path)?;
        let mut state = self.shared.lock();
        let subject = Subject::Path(path.into());
        let fate = state.enter(self.epoch, Call::RemoveDirAll, subject, 0, 0);
        let (mut budget, errno) = match error(fate)? {
            Fate::Works => (u64::MAX, None),
            Fate::Fails(errno) => (state.rng.below(8), Some(errno)),
            Fate::Dies => (state.rng.below(8), Some(EIO)),
        };
        let removed = state.remove_dir_all(path, &mut budget);
        let result = errno.map_or(removed, Err);
        error(result.inspect_err(|errno| state.trace.failed(*errno)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.whole(Call::List, dir, |state, path| {
            let names = state.names(state.find(path)?)?;
            let mut entries: Vec<DirEntry> = names
                .iter()
                .map(|(name, ino)| {
                    let kind = match state.is_dir(ino) {
                        true => EntryKind::Dir,
                        false => EntryKind::File,
                    };
                    DirEntry { name: (**name).to_owned(), kind }
                })
                .collect();
            // In no order, as promised.
            for i in (1..entries.len()).rev() {
                entries.swap(i, state.rng.index(i + 1));
            }
            Ok(entries)
        })
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        self.whole(Call::Stat, path, |state, path| {
            let ino = state.find(path)?;
            let len = state.content(ino).map_or(0, |content| content.len() as u64);
            let since_1970 = u64::try_from(state.inodes[ino as usize].modified_ms).unwrap_or(0);
            let modified = UNIX_EPOCH + Duration::from_millis(since_1970);
            Ok(FileStat { len, modified, links: 1 })
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let path = text(dir)?;
        let mut state = self.shared.lock();
        if state.is_dead(self.epoch) {
            return error(Err(EIO));
        }
        match state.find(path) {
            Ok(ino) if state.is_dir(ino) => {
                error(state.sync((self.epoch, Call::SyncDir), ino, None))
            }
            found => {
                let subject = Subject::Path(path.into());
                let refused = found.and(Err(libc::ENOTDIR));
                error(state.whole(self.epoch, Call::SyncDir, subject, |_| refused))
            }
        }
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.whole(Call::FreeBytes, dir, |state, path| {
            state.find(path)?;
            Ok(state.free_bytes())
        })
    }

    fn mount_id(&self, _: &Path) -> Option<MountId> {
        let state = self.shared.lock();
        (!state.is_dead(self.epoch)).then(|| MountId(format!("simulated {}", state.boots)))
    }

    fn lane(&self) -> io::Result<Box<dyn Lane>> {
        let allowed =
            self.shared.lock().whole(self.epoch, Call::Lane, Subject::Unknown, |_| Ok(()));
        error(allowed)?;
        Ok(Box::new(SimLane::new(&self.shared, self.epoch)?))
    }

    fn backend(&self) -> &Backend {
        &self.backend
    }
}

/// A handle on a file or directory.
#[derive(Debug)]
struct SimFile {
    shared: Arc<Shared>,
    epoch: u32,
    ino: Ino,
    mode: OpenMode,
}

impl SimFile {
    fn may_write(&self, buf: &[u8], position: u64) -> Sys<()> {
        let blocks = |n: u64| n.is_multiple_of(BLOCK_BYTES as u64);
        match self.mode {
            OpenMode::Read => Err(EBADF),
            OpenMode::Direct
                if !blocks(position)
                    || !blocks(buf.len() as u64)
                    || !(buf.as_ptr() as usize).is_multiple_of(BLOCK_BYTES) =>
            {
                Err(EINVAL)
            }
            _ => Ok(()),
        }
    }

    fn write(&self, call: Call, way: Way, buf: &[u8], position: u64) -> io::Result<usize> {
        error(self.may_write(buf, position))?;
        let now_ms = self.shared.now_ms();
        let mut state = self.shared.lock();
        error(state.write((self.epoch, call), self.ino, buf, position, way, now_ms))
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        if self.mode == OpenMode::Direct {
            return error(Err(EBADF));
        }
        error(self.shared.lock().read(self.epoch, self.ino, buf, position))
    }

    fn write_at(&self, buf: &[u8], position: u64) -> io::Result<usize> {
        self.write(Call::Write, Way::Cached, buf, position)
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.shared.lock();
        if state.is_dead(self.epoch) {
            return error(Err(EIO));
        }
        match state.content(self.ino) {
            Err(EISDIR) => Ok(0),
            content => Ok(error(content)?.len() as u64),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.mode == OpenMode::Read {
            return error(Err(EINVAL));
        }
        let now_ms = self.shared.now_ms();
        error(self.shared.lock().change_len(self.epoch, self.ino, len, now_ms))
    }

    fn sync_data(&self) -> io::Result<()> {
        error(self.shared.lock().sync((self.epoch, Call::Sync), self.ino, None))
    }

    fn write_durable_at(&self, buf: &[u8], position: u64) -> io::Result<usize> {
        let way = match self.mode {
            // A part of a block is nothing that a direct write can go on from.
            OpenMode::Direct => Way::DurableWhole,
            _ => Way::Durable,
        };
        self.write(Call::WriteDurable, way, buf, position)
    }

    fn write_back(&self, _: u64, _: u64) -> io::Result<()> {
        // What it has written may be on the disk, as may be all that was not synced.
        let subject = Subject::File(self.ino);
        error(self.shared.lock().whole(self.epoch, Call::WriteBack, subject, |_| Ok(())))
    }

    fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let (ino, subject) = (self.ino, Subject::File(self.ino));
        let mut state = self.shared.lock();
        error(state.whole(self.epoch, Call::Stat, subject, |state| {
            state.inodes[ino as usize].modified_ms = i64::try_from(since_1970).unwrap_or(i64::MAX);
            Ok(())
        }))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if self.mode == OpenMode::Read {
            return error(Err(EBADF));
        }
        let now_ms = self.shared.now_ms();
        loop {
            // Real files repeat an interrupted reservation themselves.
            match self.shared.lock().allocate(self.epoch, self.ino, len, now_ms) {
                Err(EINTR) => {}
                result => return error(result),
            }
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn simulated(&self) -> Option<u64> {
        Some(u64::from(self.epoch) << 32 | u64::from(self.ino))
    }
}
