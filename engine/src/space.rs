//! A full disk: appends are refused before it is really full, so that what makes room again always
//! has some to work in.
//!
//! While all is well a file of `reserve_bytes` holds that space. When little else is left, appends
//! are refused ([`Error::NoSpace`]) and the file is emptied: deletions, truncations, checkpoints and
//! a clean close have its space. When there is enough again the file is filled and appends go on.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::io::{Clock, Disk, FileRef, OpenMode};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// The file that holds the reserve.
pub(crate) const RESERVE_FILE: &str = "loglane-reserve";

/// Bytes appended between two looks at the free space.
const LOOK_BYTES: u64 = 4 << 20;
/// How often a full disk is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Space is short when so many times what stops appends is left.
const EARLY: u64 = 4;
/// A reserve is at most this part of what is free at the open.
const SHARE: u64 = 8;

/// The free space of a data directory.
pub(crate) struct Space {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    dir: PathBuf,
    reserve_bytes: u64,
    /// Appends are refused when less is free beside the reserve.
    low_bytes: u64,
    full: AtomicBool,
    /// Little is left: whoever can make room should.
    low: AtomicBool,
    /// Called when that begins.
    on_low: OnceLock<Box<dyn Fn() + Send + Sync>>,
    since_look: AtomicU64,
    state: Mutex<State>,
}

struct State {
    reserve: Option<FileRef>,
    next_look: Duration,
}

impl Space {
    /// Takes the reserve, at most a part of what is free. A disk without room for one is full.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        dir: &Path,
        reserve_bytes: u64,
    ) -> Result<Space> {
        // A crash may have left one: its space counts as free.
        remove(disk.as_ref(), dir)?;
        let free =
            disk.free_bytes(dir).map_err(|e| Error::io("ask for the free space of", dir, e))?;
        let reserve_bytes = reserve_bytes.min(free / SHARE);
        let low_bytes = (reserve_bytes / 4).min(2 * LOOK_BYTES);
        let space = Space { reserve_bytes, low_bytes, ..Space::unwatched(disk, clock, dir) };
        if reserve_bytes > 0 && !space.take_reserve() {
            space.full.store(true, Ordering::Relaxed);
            space.low.store(true, Ordering::Relaxed);
        }
        Ok(space)
    }

    /// For readers: holds nothing back.
    pub(crate) fn unwatched(disk: Arc<dyn Disk>, clock: Arc<dyn Clock>, dir: &Path) -> Space {
        Space {
            disk,
            clock,
            dir: dir.to_owned(),
            reserve_bytes: 0,
            low_bytes: 0,
            full: AtomicBool::new(false),
            low: AtomicBool::new(false),
            on_low: OnceLock::new(),
            since_look: AtomicU64::new(0),
            state: Mutex::new(State { reserve: None, next_look: Duration::ZERO }),
        }
    }

    /// True if `bytes` more may be appended.
    pub(crate) fn admits(&self, bytes: u64) -> bool {
        if self.reserve_bytes == 0 {
            return true;
        }
        let full = self.full.load(Ordering::Relaxed);
        let since = self.since_look.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if full || since >= LOOK_BYTES.min(self.low_bytes) {
            self.look(bytes);
        }
        !self.full.load(Ordering::Relaxed)
    }

    /// True if there is room for a copy of `bytes` beside what must stay. Asking changes nothing.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let free = self.disk.free_bytes(&self.dir);
        let fits = free.is_ok_and(|free| free >= self.low_bytes.saturating_add(bytes));
        fits && !self.full.load(Ordering::Relaxed)
    }

    /// A write met the end of the disk.
    pub(crate) fn ran_out(&self) {
        if self.reserve_bytes > 0 {
            self.give_up_reserve();
        }
        self.set_low(true);
    }

    /// Has `hook` called when space becomes short, on the thread that notices.
    pub(crate) fn on_low(&self, hook: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_low.set(Box::new(hook));
    }

    /// True while space is short. Looks, so that it ends when somebody else has made room.
    pub(crate) fn is_low(&self) -> bool {
        if self.reserve_bytes > 0 {
            self.look(0);
        } else if self.disk.free_bytes(&self.dir).is_ok_and(|free| free > LOOK_BYTES) {
            self.set_low(false);
        }
        self.low.load(Ordering::Relaxed)
    }

    fn set_low(&self, low: bool) {
        let before = self.low.swap(low, Ordering::Relaxed);
        if low
            && !before
            && let Some(hook) = self.on_low.get()
        {
            hook();
        }
    }

    /// Compares the free space with what must stay.
    fn look(&self, bytes: u64) {
        let full = self.full.load(Ordering::Relaxed);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.monotonic();
        if full && now < state.next_look {
            return;
        }
        state.next_look = now + LOOK_EVERY;
        drop(state);
        self.since_look.store(0, Ordering::Relaxed);
        let Ok(free) = self.disk.free_bytes(&self.dir) else { return };
        if !full && free < self.low_bytes + bytes {
            self.give_up_reserve();
        } else if full && free > self.reserve_bytes + 2 * self.low_bytes + bytes {
            // The file may still not fit, if somebody else was faster.
            let taken = self.take_reserve();
            self.full.store(!taken, Ordering::Relaxed);
            if taken {
                tracing::info!(dir = %self.dir.display(), free, "space again: appends go on");
            }
        }
        let full = self.full.load(Ordering::Relaxed);
        self.set_low(full || free < EARLY * self.low_bytes + bytes);
    }

    fn give_up_reserve(&self) {
        if !self.full.swap(true, Ordering::Relaxed) {
            tracing::warn!(dir = %self.dir.display(), "the disk is full: appends are refused");
        }
        let reserve = self.state.lock().unwrap_or_else(PoisonError::into_inner).reserve.take();
        if let Some(file) = reserve
            && let Err(error) = file.set_len(0)
        {
            tracing::error!(%error, "the reserve could not be given up");
        }
    }

    fn take_reserve(&self) -> bool {
        let path = self.dir.join(RESERVE_FILE);
        let taken = self
            .disk
            .open(&path, OpenMode::CreateOrTruncate)
            .and_then(|file| file.allocate(self.reserve_bytes).map(|()| file));
        match taken {
            Ok(file) => {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.reserve = Some(file);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "no room for the reserve");
                let _ = self.disk.remove_file(&path);
                false
            }
        }
    }

    /// Lets go of the reserve: the directory is being closed.
    pub(crate) fn close(&self) -> Result<()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).reserve = None;
        remove(self.disk.as_ref(), &self.dir)
    }

    /// The error of a refused append.
    pub(crate) fn error(&self) -> Error {
        Error::NoSpace { path: self.dir.clone() }
    }
}

fn remove(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let path = dir.join(RESERVE_FILE);
    match disk.remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
