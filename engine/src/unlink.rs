//! Removing large files a little at a time.
//!
//! On a file system that is mounted with `discard`, freeing a gigabyte keeps the disk busy for a
//! third of a second, and whoever waits for the journal then waits that long. So a large file shrinks
//! step by step, and rests as long as a step took: the disk is never away for long, nor for more
//! than half of the time.

#![forbid(unsafe_code)]

use crate::io::{Clock, Disk, OpenMode};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Bytes freed at a time: some milliseconds of discards.
const STEP_BYTES: u64 = 16 << 20;

/// Removes a file that nobody reads any more. `rest` waits that long, or says false if there is no
/// time: then the rest goes at once.
pub(crate) fn unlink(
    disk: &dyn Disk,
    clock: &dyn Clock,
    path: &Path,
    mut rest: impl FnMut(Duration) -> bool,
) -> io::Result<()> {
    let stat = disk.stat(path)?;
    // Another name of the same bytes, such as a copy by hard links, must keep them.
    if stat.links == 1 && stat.len > STEP_BYTES {
        let file = disk.open(path, OpenMode::ReadWrite)?;
        let mut len = stat.len;
        while len > STEP_BYTES {
            len -= STEP_BYTES;
            let start = clock.monotonic();
            if let Err(error) = file.set_len(len) {
                tracing::debug!(file = %path.display(), %error, "cannot shrink before removal");
                break;
            }
            if !rest(clock.monotonic().saturating_sub(start)) {
                break;
            }
        }
    }
    disk.remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{BackendChoice, SystemClock, open};
    use std::fs;

    /// Removes a file of that many steps; gives the sizes it had at each rest.
    fn sizes(steps: u64, link: bool, patience: usize) -> (Vec<u64>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let disk = open(dir.path(), BackendChoice::Plain).unwrap();
        let path = dir.path().join("a.deleted");
        fs::File::create(&path).unwrap().set_len(steps * STEP_BYTES).unwrap();
        if link {
            fs::hard_link(&path, dir.path().join("copy")).unwrap();
        }
        let mut sizes = Vec::new();
        let rest = |_| {
            sizes.push(fs::metadata(&path).unwrap().len() / STEP_BYTES);
            sizes.len() < patience
        };
        unlink(disk.as_ref(), &SystemClock::new(), &path, rest).unwrap();
        assert!(!path.exists());
        (sizes, dir)
    }

    #[test]
    fn a_large_file_shrinks_step_by_step_before_it_goes() {
        assert_eq!(sizes(4, false, usize::MAX).0, [3, 2, 1]);
        assert_eq!(sizes(1, false, usize::MAX).0, []);
    }

    #[test]
    fn a_file_goes_at_once_when_there_is_no_time() {
        assert_eq!(sizes(4, false, 1).0, [3]);
    }

    #[test]
    fn a_file_with_another_name_keeps_its_bytes() {
        let (sizes, dir) = sizes(4, true, usize::MAX);
        assert_eq!(sizes, []);
        assert_eq!(fs::metadata(dir.path().join("copy")).unwrap().len(), 4 * STEP_BYTES);
    }
}
