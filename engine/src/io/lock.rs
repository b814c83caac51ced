//! The lock that keeps a directory to one writer.
//!
//! Kafka locks `<log.dir>/.lock` with Java's `FileChannel.lock`, a POSIX record lock. We take an
//! open-file-description lock on the same file: it conflicts with POSIX locks of other processes,
//! and, unlike them, also with a second engine in this process; and it is not lost when some other
//! code in the process opens and closes the file. The file itself stays, as Kafka's does.

use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

/// A held lock; dropped, it is free.
#[derive(Debug)]
pub struct DirLock {
    file: File,
}

impl DirLock {
    /// Locks the `.lock` file at `path`, creating it if missing. Never waits.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process or another engine of this one holds it;
    /// [`Error::ReadOnly`] on a read-only file system.
    pub fn acquire(path: &Path) -> Result<DirLock> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| Error::io("open lock file", path, e))?;
        let mut lock = whole_file(libc::F_WRLCK);
        match fcntl_lock(file.as_fd(), libc::F_OFD_SETLK, &mut lock) {
            Ok(()) => Ok(DirLock { file }),
            // POSIX allows either of the two for a conflict.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                Err(Error::Locked { path: path.to_path_buf() })
            }
            Err(e) => Err(Error::io("lock", path, e)),
        }
    }

    /// Whether somebody holds the lock now. Takes nothing and creates nothing: for tools that want
    /// to say whether a writer is live.
    ///
    /// # Errors
    /// If the file is there and cannot be opened or asked; a missing file is `Ok(false)`.
    pub fn is_held(path: &Path) -> io::Result<bool> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        let mut lock = whole_file(libc::F_WRLCK);
        fcntl_lock(file.as_fd(), libc::F_OFD_GETLK, &mut lock)?;
        Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing would do, but not while a child of a fork still has the description open.
        let mut lock = whole_file(libc::F_UNLCK);
        if let Err(e) = fcntl_lock(self.file.as_fd(), libc::F_OFD_SETLK, &mut lock) {
            tracing::warn!("cannot unlock the directory before closing its lock file: {e}");
        }
    }
}

/// A record lock over all bytes a file has or will have.
fn whole_file(kind: libc::c_int) -> libc::flock {
    #[expect(clippy::cast_possible_truncation, reason = "constants from 0 to 2 in a short")]
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0, // must be 0 for open-file-description locks
    }
}

fn fcntl_lock(fd: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the kernel reads and writes one `flock` through the pointer during the call only, and
    // `lock` is an exclusive borrow of one; `fd` is open for as long as it is borrowed.
    let status = unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if status == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn a_second_engine_in_this_process_is_refused_until_the_first_closes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        assert!(!DirLock::is_held(&path).unwrap(), "a missing file is not held");
        assert!(!path.exists(), "asking creates nothing");
        let first = DirLock::acquire(&path).unwrap();
        assert!(DirLock::is_held(&path).unwrap());
        assert!(matches!(DirLock::acquire(&path), Err(Error::Locked { path: p }) if p == path));
        drop(File::open(&path).unwrap()); // would free a POSIX lock
        assert!(DirLock::is_held(&path).unwrap());
        drop(first);
        assert!(!DirLock::is_held(&path).unwrap());
        drop(DirLock::acquire(&path).unwrap());
        assert!(path.exists(), "the file stays, as Kafka's does");
    }

    #[test]
    fn a_posix_lock_of_another_process_excludes_us_and_ours_excludes_it() {
        // Method: python's lockf is fcntl(F_SETLK), the call behind Java's FileChannel.tryLock.
        const HOLD: &str = "import fcntl,sys\nf=open(sys.argv[1],'r+')\nfcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB)\nprint('held',flush=True)\nsys.stdin.readline()";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        File::create(&path).unwrap();
        let spawned = Command::new("python3")
            .args(["-c", HOLD])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            eprintln!("skipped: no python3 to hold a POSIX lock");
            return;
        };
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        assert!(DirLock::is_held(&path).unwrap());
        assert!(matches!(DirLock::acquire(&path), Err(Error::Locked { .. })));
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        assert!(child.wait().unwrap().success());

        let _ours = DirLock::acquire(&path).unwrap();
        let theirs = Command::new("python3")
            .args(["-c", HOLD])
            .arg(&path)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(!theirs.success(), "Kafka would have started beside us");
    }
}
