//! The disk of the operating system, and the choice between its two kinds of lane.
//!
//! [`StdDisk`] opens, renames and lists through the standard library. Reads, page-cache writes and
//! directory syncs are inline calls in both backends; only lanes differ (`ring` or `pool`).
//!
//! ```text
//! choice ─┬─ Plain ────────────────────────────────▶ pool lanes
//!         ├─ Auto ──── LOGLANE_BACKEND? ─ probe ─┬─▶ ring lanes
//!         │                                      └─▶ pool lanes, with the reason
//!         └─ IoUring ────────────────────── probe ─┬─▶ ring lanes
//!                                                  └─▶ error, with the reason
//! ```

#![forbid(unsafe_code)]

use super::pool::{Pool, PoolLane};
use super::ring::{self, RingLane};
use super::{
    Backend, BackendChoice, BackendKind, DirEntry, Disk, EntryKind, File, FileRef, FileStat, Lane,
    MountId, OpenMode,
};
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::{ReadWriteFlags, retry_on_intr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// statx: the number of a mount that is given once (Linux 6.8).
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// Overrides [`BackendChoice::Auto`]: `auto`, `io_uring` or `plain`.
const BACKEND_VARIABLE: &str = "LOGLANE_BACKEND";

/// A file system of the operating system.
#[derive(Debug)]
pub(super) struct StdDisk {
    backend: Backend,
    /// The host insisted on the backend: a lane that cannot have it is an error.
    required: bool,
    /// Has no threads until a plain lane has work.
    pool: Arc<Pool>,
}

/// Picks a backend; see [`super::open`].
pub(super) fn open(dir: &Path, choice: BackendChoice) -> io::Result<Arc<dyn Disk>> {
    let variable = std::env::var_os(BACKEND_VARIABLE);
    let variable = variable.as_ref().map(|value| value.to_string_lossy());
    let (backend, required) = choose(choice, variable.as_deref(), || ring::probe(dir))?;
    tracing::debug!(backend = backend.kind.name(), reason = backend.reason, "picked a backend");
    Ok(Arc::new(StdDisk { backend, required, pool: Arc::new(Pool::new()) }))
}

/// The choice itself, and whether it was the host's own.
fn choose(
    choice: BackendChoice,
    variable: Option<&str>,
    probe: impl FnOnce() -> Result<(), String>,
) -> io::Result<(Backend, bool)> {
    let (choice, because) = match (choice, variable) {
        (BackendChoice::Auto, Some("io_uring")) => {
            (BackendChoice::IoUring, format!("{BACKEND_VARIABLE}=io_uring asks for it"))
        }
        (BackendChoice::Auto, Some("plain")) => {
            (BackendChoice::Plain, format!("{BACKEND_VARIABLE}=plain asks for it"))
        }
        (BackendChoice::Auto, None | Some("auto" | "")) => (choice, String::new()),
        (BackendChoice::Auto, Some(other)) => (
            choice,
            format!(
                "; {BACKEND_VARIABLE}={other:?} was ignored: it is none of auto, io_uring, plain"
            ),
        ),
        (asked, _) => (asked, "the host asks for it".into()),
    };
    let backend = |kind, reason| Backend { kind, reason };
    match choice {
        BackendChoice::Plain => Ok((backend(BackendKind::Plain, because), true)),
        BackendChoice::IoUring => match probe() {
            Ok(()) => Ok((backend(BackendKind::IoUring, because), true)),
            Err(refusal) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{because}, and io_uring is not usable: {refusal}"),
            )),
        },
        BackendChoice::Auto => Ok(match probe() {
            Ok(()) => {
                (backend(BackendKind::IoUring, format!("the kernel offers it{because}")), false)
            }
            Err(refusal) => {
                let reason = format!("io_uring is not usable: {refusal}{because}");
                (backend(BackendKind::Plain, reason), false)
            }
        }),
    }
}

/// A directory as something to sync.
pub(super) fn open_dir(dir: &Path) -> io::Result<FileRef> {
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(dir)?;
    Ok(Arc::new(StdFile(file)))
}

/// A file for direct writes; through the page cache where the file system has no others.
fn open_direct(path: &Path) -> io::Result<FileRef> {
    let mut options = fs::OpenOptions::new();
    options.write(true);
    let file = match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => options.open(path)?,
        opened => opened?,
    };
    Ok(Arc::new(StdFile(file)))
}

/// What lanes are measured against: every write past the page cache, and durable.
#[cfg(test)]
pub(super) fn open_durable(path: &Path) -> io::Result<FileRef> {
    let flags = libc::O_DIRECT | libc::O_DSYNC;
    let file = fs::OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    Ok(Arc::new(StdFile(file)))
}

impl Disk for StdDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileRef> {
        let mut options = fs::OpenOptions::new(); // sets O_CLOEXEC
        options.read(true);
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::ReadWrite => options.write(true),
            OpenMode::CreateNew => options.write(true).create_new(true),
            OpenMode::CreateOrTruncate => options.write(true).create(true).truncate(true),
            OpenMode::Direct => return open_direct(path),
        };
        Ok(Arc::new(StdFile(options.open(path)?)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let kind = match entry.file_type() {
                Ok(kind) if kind.is_file() => EntryKind::File,
                Ok(kind) if kind.is_dir() => EntryKind::Dir,
                Ok(_) => EntryKind::Other,
                // Removed since it was read: not a name of this directory any more.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            names.push(DirEntry { name, kind });
        }
        Ok(names)
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        let metadata = fs::metadata(path)?;
        let (len, links) = (metadata.len(), metadata.nlink());
        Ok(FileStat { len, modified: metadata.modified()?, links })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(dir)?;
        Ok(retry_on_intr(|| rustix::fs::fsync(&dir))?)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn mount_id(&self, dir: &Path) -> Option<MountId> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        // The unique id only (Linux 6.8): the older one is given to another mount after an unmount.
        let flag = StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE);
        let stat = rustix::fs::statx(rustix::fs::CWD, dir, AtFlags::empty(), flag).ok()?;
        let known = stat.stx_mask & STATX_MNT_ID_UNIQUE != 0;
        known.then(|| MountId(format!("{} {}", boot.trim(), stat.stx_mnt_id)))
    }

    fn lane(&self) -> io::Result<Box<dyn Lane>> {
        if self.backend.kind == BackendKind::IoUring {
            match RingLane::new() {
                Ok(lane) => return Ok(Box::new(lane)),
                Err(e) if self.required => return Err(e),
                Err(e) => {
                    tracing::warn!("no ring for this shard, so it syncs through plain calls: {e}");
                }
            }
        }
        Ok(Box::new(PoolLane::new(Arc::clone(&self.pool))?))
    }

    fn backend(&self) -> &Backend {
        &self.backend
    }
}

/// A file with a descriptor.
#[derive(Debug)]
struct StdFile(fs::File);

impl File for StdFile {
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buf, position)
    }

    fn write_at(&self, buf: &[u8], position: u64) -> io::Result<usize> {
        FileExt::write_at(&self.0, buf, position)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // A failed sync is never repeated, since the kernel forgets the error it has reported. An
        // interrupted one has reported nothing yet.
        Ok(retry_on_intr(|| rustix::fs::fdatasync(&self.0))?)
    }

    fn write_durable_at(&self, buf: &[u8], position: u64) -> io::Result<usize> {
        let flags = ReadWriteFlags::DSYNC;
        Ok(rustix::io::pwritev2(&self.0, &[io::IoSlice::new(buf)], position, flags)?)
    }

    fn write_back(&self, position: u64, length: u64) -> io::Result<()> {
        super::writeback::start(self.0.as_fd(), position, length)
    }

    fn set_modified(&self, time: std::time::SystemTime) -> io::Result<()> {
        self.0.set_modified(time)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let flags = rustix::fs::FallocateFlags::empty();
        Ok(retry_on_intr(|| rustix::fs::fallocate(&self.0, flags, 0, len))?)
    }

    fn copy_from(&self, from: &dyn File, length: u64) -> io::Result<()> {
        let Some(from) = from.fd() else { return Err(io::ErrorKind::Unsupported.into()) };
        let (mut at, mut to) = (0, 0);
        while at < length {
            let most = usize::try_from(length - at).unwrap_or(usize::MAX);
            // The kernel copies, or shares the blocks where the file system can.
            match rustix::fs::copy_file_range(from, Some(&mut at), &self.0, Some(&mut to), most) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{open as open_disk, suite};
    use super::*;

    #[test]
    fn the_plain_backend_does_what_every_disk_must() {
        let dir = tempfile::tempdir().unwrap();
        let disk = open_disk(dir.path(), BackendChoice::Plain).unwrap();
        assert_eq!(disk.backend().kind, BackendKind::Plain);
        suite::all(&disk, dir.path());
    }

    #[test]
    fn auto_falls_back_with_a_reason_and_a_demand_fails_with_it() {
        let refuse = || Err("EPERM (a filter)".to_string());
        let (backend, required) = choose(BackendChoice::Auto, None, refuse).unwrap();
        assert_eq!((backend.kind, required), (BackendKind::Plain, false));
        assert!(backend.reason.contains("EPERM"), "{}", backend.reason);
        let e = choose(BackendChoice::IoUring, None, refuse).unwrap_err();
        assert!(e.to_string().contains("EPERM"), "{e}");
        let (backend, _) = choose(BackendChoice::Auto, None, || Ok(())).unwrap();
        assert_eq!(backend.kind, BackendKind::IoUring);
    }

    #[test]
    fn the_variable_overrides_auto_only_and_says_so() {
        let unasked = || unreachable!("plain needs no probe");
        let (backend, _) = choose(BackendChoice::Auto, Some("plain"), unasked).unwrap();
        assert_eq!(backend.kind, BackendKind::Plain);
        assert!(backend.reason.contains("LOGLANE_BACKEND=plain"));
        let e = choose(BackendChoice::Auto, Some("io_uring"), || Err("no".into())).unwrap_err();
        assert!(e.to_string().contains("LOGLANE_BACKEND=io_uring"), "{e}");
        let (backend, _) = choose(BackendChoice::IoUring, Some("plain"), || Ok(())).unwrap();
        assert_eq!(backend.kind, BackendKind::IoUring, "the host's own word counts more");
        let (backend, _) = choose(BackendChoice::Auto, Some("uring"), || Ok(())).unwrap();
        assert_eq!(backend.kind, BackendKind::IoUring);
        assert!(backend.reason.contains("\"uring\" was ignored"), "{}", backend.reason);
    }

    #[test]
    fn a_missing_directory_still_opens() {
        let disk = open_disk(Path::new("/nonexistent/loglane"), BackendChoice::Auto).unwrap();
        disk.lane().unwrap();
    }
}
