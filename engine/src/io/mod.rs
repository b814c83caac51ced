//! The disk behind one trait.
//!
//! `log`, `segment` and `recovery` know a [`Disk`], its [`File`]s and, for what may block for long
//! (syncs), a [`Lane`]; they do not know whether calls go through an io_uring, through plain system
//! calls, or to a disk that exists only in memory and fails on request. [`open`] probes and picks;
//! [`Backend`] says which and why.
//!
//! Page-cache writes are inline `pwrite`s in both real backends: on ext4 the ring punts every
//! buffered write to a kernel worker, at twice the CPU (docs/DESIGN.md, "Why inline writes").
//!
//! Time is read from a [`Clock`], so that a simulated run can be replayed.

mod alive;
mod buffer;
mod clock;
mod lock;
mod plain;
mod pool;
mod probe;
mod ring;
pub mod send;
#[cfg(test)]
pub(crate) mod sim;
#[cfg(test)]
mod suite;
mod wake;
mod writeback;

pub(crate) use alive::{Alive, check_alive, remove_alive};
pub use buffer::Buffer;
pub use clock::{Clock, SystemClock};
pub use lock::DirLock;
pub use probe::{Finding, Probe, Verdict, probe};
pub use send::{SplicePipe, copy_to_fd, send_file, splice_file};
pub use wake::Waker;

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A file of a [`Disk`], shared between threads.
pub type FileRef = Arc<dyn File>;

/// How [`Disk::open`] opens a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Must exist; reads only.
    Read,
    /// Must exist; reads and writes.
    ReadWrite,
    /// Must not exist; created empty.
    CreateNew,
    /// Created if missing, emptied if there.
    CreateOrTruncate,
    /// Must exist; for [`Op::WriteDurable`] of whole blocks. They go past the page cache where the
    /// file system can (O_DIRECT); elsewhere (tmpfs) through it. Reads come through the page cache
    /// of another descriptor.
    Direct,
}

/// What positions and lengths of direct writes are multiples of. Disks ask for 512 or 4096.
pub const BLOCK_BYTES: usize = 4096;

/// Tells whether what was written to the page cache can still be there: equal as long as the
/// kernel has not restarted and the file system has stayed mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountId(pub String);

/// What a name in a directory stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else: links, sockets, devices. The engine leaves them alone.
    Other,
}

/// One name in a directory. Names that are not UTF-8 are passed over: no file of a log has one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// The last component of the path.
    pub name: String,
    /// What it stands for.
    pub kind: EntryKind,
}

/// Size, time and names of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileStat {
    /// Bytes.
    pub len: u64,
    /// Last change of its bytes.
    pub modified: SystemTime,
    /// Names it has: more than one after a hard link.
    pub links: u64,
}

/// Names and files: everything of a file system that the engine uses.
///
/// Creation, rename and removal are durable only after [`Disk::sync_dir`] of the directory.
pub trait Disk: Send + Sync + Debug {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileRef>;
    /// Creates a directory whose parent exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames a file or directory, replacing a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name in the same file system. `Unsupported` where that cannot be.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _ = (from, to);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all below it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Size and time of a file, without opening it.
    fn stat(&self, path: &Path) -> io::Result<FileStat>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes this process may still write to the file system of `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// The mount that `dir` is on; `None` if the system cannot tell (before Linux 6.8).
    fn mount_id(&self, dir: &Path) -> Option<MountId>;
    /// A new lane; each shard has one.
    fn lane(&self) -> io::Result<Box<dyn Lane>>;
    /// Which backend this is, and why it was picked.
    fn backend(&self) -> &Backend;
}

/// Bytes that a copy through memory moves at a time.
const COPY_BYTES: u64 = 1 << 20;

/// An open file. Positions and lengths are bytes.
pub trait File: Send + Sync + Debug {
    /// Reads at most `buf.len()` bytes; 0 at the end of the file.
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize>;
    /// Writes at most `buf.len()` bytes, growing the file; may write fewer.
    fn write_at(&self, buf: &[u8], position: u64) -> io::Result<usize>;
    /// Size now.
    fn len(&self) -> io::Result<u64>;
    /// True if it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or grows (with zeros).
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes bytes and size durable (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
    /// Writes as `write_at`, and makes what was written durable (RWF_DSYNC). On a file opened as
    /// [`OpenMode::Direct`] memory, position and length are whole blocks.
    fn write_durable_at(&self, buf: &[u8], position: u64) -> io::Result<usize>;
    /// Starts writing a range of the page cache to disk and does not wait for it. A hint: that bytes
    /// are durable only a sync says.
    fn write_back(&self, position: u64, length: u64) -> io::Result<()>;
    /// Sets the time of its last change: a compacted segment is as old as its youngest source.
    fn set_modified(&self, time: SystemTime) -> io::Result<()>;
    /// Reserves blocks for the first `len` bytes and grows the file to it; or `NO_SPACE`.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// The descriptor, for sendfile and splice; none on a simulated disk.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
    /// The number of a simulated disk's file: its lane must know the file behind the trait.
    #[cfg(test)]
    fn simulated(&self) -> Option<u64> {
        None
    }

    /// Copies the first `length` bytes of another file to the same place in this one.
    fn copy_from(&self, from: &dyn File, length: u64) -> io::Result<()> {
        let mut position = 0;
        let mut buffer = vec![0; usize::try_from(length.min(COPY_BYTES)).unwrap_or_default()];
        while position < length {
            let most = usize::try_from(length - position).unwrap_or(usize::MAX);
            let part = most.min(buffer.len());
            let part = buffer.get_mut(..part).unwrap_or_default();
            from.read_exact_at(part, position)?;
            self.write_all_at(part, position)?;
            position += part.len() as u64;
        }
        Ok(())
    }

    /// Reads exactly `buf.len()` bytes, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, mut buf: &mut [u8], mut position: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read_at(buf, position) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buf = buf.get_mut(n..).unwrap_or_default();
                    position += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads until `buf` is full or the file ends; returns how many bytes.
    fn read_up_to(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_at(rest, position + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes all of `buf`, or fails; then any prefix of it may have been written.
    fn write_all_at(&self, mut buf: &[u8], mut position: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.write_at(buf, position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    buf = buf.get(n..).unwrap_or_default();
                    position += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Work a lane does while its shard goes on.
#[derive(Debug)]
pub enum Op {
    /// fdatasync of a file.
    SyncData(FileRef),
    /// Writes all of a buffer, whole blocks, at a block's position; durable when done. Done with
    /// success only if every byte was written; else any part of it may have been. Goes before syncs
    /// and writebacks that wait for room. Several at once may finish in any order.
    WriteDurable {
        /// Opened as [`OpenMode::Direct`].
        file: FileRef,
        /// Comes back in [`Done::buffer`].
        buffer: Buffer,
        /// Bytes from the start of the file.
        position: u64,
    },
    /// [`File::write_back`].
    WriteBack {
        /// The file.
        file: FileRef,
        /// First byte.
        position: u64,
        /// Bytes.
        length: u64,
    },
}

impl Op {
    /// Does it on this thread.
    fn run(&mut self) -> io::Result<()> {
        match self {
            Op::SyncData(file) => file.sync_data(),
            Op::WriteBack { file, position, length } => file.write_back(*position, *length),
            Op::WriteDurable { file, buffer, position } => {
                let mut rest = buffer.as_slice();
                let mut position = *position;
                while !rest.is_empty() {
                    match file.write_durable_at(rest, position) {
                        // Half a block cannot be continued past the page cache.
                        Ok(n) if n == 0 || n < rest.len() && !n.is_multiple_of(BLOCK_BYTES) => {
                            return Err(io::ErrorKind::WriteZero.into());
                        }
                        Ok(n) => {
                            rest = rest.get(n..).unwrap_or_default();
                            position += n as u64;
                        }
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(e),
                    }
                }
                Ok(())
            }
        }
    }

    /// Lets go of the file.
    fn into_buffer(self) -> Option<Buffer> {
        match self {
            Op::WriteDurable { buffer, .. } => Some(buffer),
            Op::SyncData(_) | Op::WriteBack { .. } => None,
        }
    }
}

/// A finished [`Op`].
#[derive(Debug)]
pub struct Done {
    /// The token it was submitted with.
    pub token: u64,
    /// What the system said.
    pub result: io::Result<()>,
    /// The buffer of a write, unless the lane broke while the system had it.
    pub buffer: Option<Buffer>,
}

/// A shard's queue of operations that may block, and the place where it sleeps.
///
/// One thread owns a lane; only its [`Waker`] is shared.
pub trait Lane: Send {
    /// Makes `count` buffers of `bytes` each for writes through this lane. To be called once: the
    /// ring registers them with the kernel, which then need not look their pages up for each write.
    /// Registered bytes count against RLIMIT_MEMLOCK, and so may rings: make all lanes first, or the
    /// buffers of one take the room that the next one's ring needs.
    fn buffers(&mut self, count: u16, bytes: usize) -> Vec<Buffer> {
        (0..count).map(|_| Buffer::new(bytes)).collect()
    }
    /// Queues an operation. Never blocks on the disk; the lane grows a backlog of its own when the
    /// kernel's queue is full.
    fn submit(&mut self, op: Op, token: u64);
    /// Hands queued operations to the kernel and moves what has finished to `done`. Never blocks, and
    /// costs next to nothing when nothing has: for a while, it may be called over and over instead of
    /// `wait`. Who does so calls `std::thread::yield_now` after each call that brought nothing: what
    /// completes a durable write is a thread too, of the kernel's or of ours, and may sit on the same
    /// CPU. A loop that does not yield was seen to keep it away for a whole tick, 4 ms for a write
    /// of 30 µs.
    fn reap(&mut self, done: &mut Vec<Done>);
    /// Sleeps until an operation finishes, the waker is called, or the time is over; a signal, or an
    /// operation reaped since the last `wait`, may end it earlier. Does not sleep while a finished operation is not reaped, nor when the waker
    /// was called since the last `wait`: only `wait` consumes a wake, so look for work after it.
    ///
    /// # Errors
    /// The lane cannot sleep any more and never will again: nothing is pending, and operations
    /// submitted from now on fail. Open a new lane.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;
    /// Wakes this lane's `wait` from any thread.
    fn waker(&self) -> Arc<Waker>;
    /// Operations submitted and not yet reaped.
    fn pending(&self) -> usize;
    /// For hosts that sleep in a poll of their own: hands over what is queued and says whether `wait`
    /// would sleep. If so, and there is no other work, sleep until [`Lane::fd`] is readable; if not,
    /// or after that sleep, call `wait` with no time to spend, `reap`, and look for work.
    fn would_wait(&mut self) -> bool {
        false
    }
    /// A descriptor that becomes readable when `wait` would return, provided that
    /// [`Lane::would_wait`] was the last call. Only for polling. None on a simulated disk.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Which backend serves a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendKind {
    /// Syncs and waits through io_uring, page-cache writes inline.
    IoUring,
    /// Plain system calls; syncs on a small pool of threads.
    Plain,
}

impl BackendKind {
    /// The name shown by `loglane doctor` and in benchmark output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            BackendKind::IoUring => "io_uring",
            BackendKind::Plain => "plain",
        }
    }
}

/// The backend that was picked, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// Which.
    pub kind: BackendKind,
    /// Why this one, in a sentence for people.
    pub reason: String,
}

/// What the host asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BackendChoice {
    /// io_uring if the probe finds it usable, else plain calls.
    #[default]
    Auto,
    /// io_uring, or an error that says why not.
    IoUring,
    /// Plain calls.
    Plain,
}

/// Picks a backend for the file system of `dir`. The environment variable `LOGLANE_BACKEND` (`auto`,
/// `io_uring`, `plain`) overrides [`BackendChoice::Auto`].
///
/// # Errors
/// Only if io_uring was asked for, by `choice` or by `LOGLANE_BACKEND=io_uring`, and is refused.
pub fn open(dir: &Path, choice: BackendChoice) -> io::Result<Arc<dyn Disk>> {
    plain::open(dir, choice)
}
