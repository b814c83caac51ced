//! sync_file_range(2), which rustix does not offer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Starts writing a range of dirty pages to disk. Says nothing about durability.
pub(super) fn start(fd: BorrowedFd<'_>, position: u64, length: u64) -> io::Result<()> {
    let offset = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let (position, length) = (offset(position)?, offset(length)?);
    let flags = libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: takes a descriptor, which the borrow keeps open, and numbers; no address.
    let result = unsafe { libc::sync_file_range(fd.as_raw_fd(), position, length, flags) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(errno) if may_be_ignored(errno) => Ok(()),
        _ => Err(error),
    }
}

/// Nothing to write back to, as on some tmpfs and FUSE mounts: a hint may be ignored.
pub(super) fn may_be_ignored(errno: i32) -> bool {
    [libc::ENOSYS, libc::ESPIPE, libc::EINVAL, libc::EOPNOTSUPP].contains(&errno)
}
