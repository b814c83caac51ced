//! A disk with a volatile write cache: the one file of a FUSE file system, under a loop device.
//!
//! A write goes to the cache. The loop driver passes a flush on as an fsync of the file, and only
//! that makes what was written so far stable. When the power goes, any subset of the sectors that
//! were not flushed is on the platter, in any order, so that writes are lost, torn and reordered.

use crate::load::Outcome;
use crate::random::{Random, mix};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

const SECTOR: usize = 512;
/// Sectors of the first block: ext4 writes its superblock, two sectors under one checksum, outside of
/// its journal, and does not mount with half of it.
const FIRST_BLOCK: u64 = 8;
const FILE: INodeNo = INodeNo(2);
const FILE_NAME: &str = "disk";
/// Nothing about the file changes.
const FOREVER: Duration = Duration::from_secs(1 << 20);

/// How the disk answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Health {
    Good,
    /// Reads and flushes work, writes answer EIO.
    RefusesWrites,
    /// Reads and writes work, flushes answer EIO.
    RefusesFlushes,
    /// The power is off.
    Dead,
}

struct State {
    image: File,
    image_bytes: u64,
    cache: BTreeMap<u64, [u8; SECTOR]>,
    health: Health,
    /// Sectors that are never torn from each other.
    whole_sectors: u64,
    /// Decides which older version of a sector reached the platter by itself.
    random: Random,
    flushes: u64,
}

impl State {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if !matches!(self.health, Health::Good | Health::RefusesFlushes) {
            return Err(Errno::EIO);
        }
        let first = offset / SECTOR as u64;
        let salt = self.random.next();
        for (number, bytes) in (first..).zip(data.chunks(SECTOR)) {
            // The loop device writes whole sectors.
            let sector: [u8; SECTOR] = bytes.try_into().map_err(|_| Errno::EINVAL)?;
            let older = self.cache.insert(number, sector);
            if let Some(older) = older.filter(|_| self.chance(number, salt) < 4) {
                self.store(number, &older)?;
            }
        }
        Ok(())
    }

    fn read(&self, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        if self.health == Health::Dead {
            return Err(Errno::EIO);
        }
        let end = (offset + u64::from(size)).min(self.image_bytes);
        let mut data =
            vec![0; usize::try_from(end.saturating_sub(offset)).map_err(|_| Errno::EINVAL)?];
        self.image.read_exact_at(&mut data, offset).map_err(|_| Errno::EIO)?;
        let first = offset / SECTOR as u64;
        for (number, into) in (first..).zip(data.chunks_mut(SECTOR)) {
            if let Some(newer) = self.cache.get(&number).and_then(|s| s.get(..into.len())) {
                into.copy_from_slice(newer);
            }
        }
        Ok(data)
    }

    fn flush(&mut self) -> Result<(), Errno> {
        if !matches!(self.health, Health::Good | Health::RefusesWrites) {
            return Err(Errno::EIO);
        }
        self.flushes += 1;
        for (number, sector) in std::mem::take(&mut self.cache) {
            self.store(number, &sector)?;
        }
        Ok(())
    }

    fn store(&self, number: u64, sector: &[u8; SECTOR]) -> Result<(), Errno> {
        self.image.write_all_at(sector, number * SECTOR as u64).map_err(|_| Errno::EIO)
    }

    /// A random subset of the cache reaches the platter, the rest is lost.
    fn lose(&mut self, random: &mut Random) -> Result<(), Errno> {
        // All, none, or about so many of eight.
        let survivors = random.below(9);
        let salt = random.next();
        for (number, sector) in std::mem::take(&mut self.cache) {
            if self.chance(number, salt) < survivors {
                self.store(number, &sector)?;
            }
        }
        Ok(())
    }

    /// A number below 8, the same for sectors that are not torn from each other.
    fn chance(&self, number: u64, salt: u64) -> u64 {
        let unit = if number < FIRST_BLOCK { 0 } else { number / self.whole_sectors };
        mix(salt ^ mix(unit + 1)) % 8
    }
}

/// The disk, served by a thread of this process until it is dropped.
pub(crate) struct VolatileCache {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    _session: BackgroundSession,
}

impl VolatileCache {
    /// `whole_bytes` are never torn from each other.
    pub(crate) fn mount(image: File, whole_bytes: u64, place: &Path) -> Outcome<VolatileCache> {
        let at = place.join("volatile");
        std::fs::create_dir(&at)?;
        let image_bytes = image.metadata()?.len();
        let state = Arc::new(Mutex::new(State {
            image,
            image_bytes,
            cache: BTreeMap::new(),
            health: Health::Good,
            whole_sectors: whole_bytes / SECTOR as u64,
            random: Random::new(0),
            flushes: 0,
        }));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("crash-rig".into()), MountOption::RW];
        let session = fuser::spawn_mount(Server(Arc::clone(&state)), &at, &config)
            .map_err(|e| format!("mount a FUSE file system: {e}; needs /dev/fuse"))?;
        Ok(VolatileCache { state, path: at.join(FILE_NAME), _session: session })
    }

    /// The file, for the loop device.
    pub(crate) fn open(&self) -> Outcome<File> {
        let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.path, flags, Mode::empty())?.into())
    }

    /// Forgets what was not flushed: the image is about to be another.
    pub(crate) fn clear(&self) {
        self.lock().cache.clear();
    }

    /// Makes what a mkfs wrote stable: cuts come later.
    pub(crate) fn settle(&self) -> Outcome<()> {
        Ok(self.lock().flush().map_err(|e| std::io::Error::from_raw_os_error(e.code()))?)
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.lock().health = health;
    }

    pub(crate) fn die(&self) {
        self.set_health(Health::Dead);
    }

    /// Loses what was not flushed and answers again.
    pub(crate) fn come_back(&self, random: &mut Random) -> Outcome<()> {
        let mut state = self.lock();
        state.random = Random::new(random.next());
        state.lose(random).map_err(|e| std::io::Error::from_raw_os_error(e.code()))?;
        state.health = Health::Good;
        Ok(())
    }

    /// Flushes that came through so far.
    pub(crate) fn flushes(&self) -> u64 {
        self.lock().flushes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the kernel talks to: a directory with one file.
struct Server(Arc<Mutex<State>>);

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, size) = match ino {
            FILE => (FileType::RegularFile, 0o600, self.state().image_bytes),
            _ => (FileType::Directory, 0o700, 0),
        };
        FileAttr {
            ino,
            size,
            blocks: size / SECTOR as u64,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == FILE_NAME {
            true => reply.entry(&FOREVER, &self.attributes(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.state().read(offset, size) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match (self.state().write(offset, data), u32::try_from(data.len())) {
            (Ok(()), Ok(length)) => reply.written(length),
            (Err(error), _) => reply.error(error),
            (_, Err(_)) => reply.error(Errno::EINVAL),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.state().flush() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }
}
