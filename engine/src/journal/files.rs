//! The files of a journal: their names, and how they are made.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::io::{BLOCK_BYTES, Disk, FileRef, OpenMode, check_alive};
use std::path::{Path, PathBuf};

/// Files of one lane: one that is written, others that wait for their checkpoint. The more, the less
/// of a lane is read when only the process died.
pub(crate) const FILES: u16 = 8;
const PREFIX: &str = "loglane-journal-";
/// What is written at a time when a file is made.
const FILL_BYTES: usize = 1 << 20;

/// The files of one lane, ready to be written.
pub(crate) struct JournalFiles {
    pub(super) files: Vec<FileRef>,
    pub(super) file_bytes: u64,
    pub(super) buffer_bytes: usize,
}

/// Where the files of a lane are.
fn path(dir: &Path, session: u64, lane: u32, number: u16) -> PathBuf {
    dir.join(format!("{PREFIX}{session:08}-{lane:03}-{number}"))
}

/// True for the name of a journal file.
pub(crate) fn is_journal_name(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The session that a journal file is of.
pub(super) fn session_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// No file of a journal is smaller; a directory without room for that has none.
const FILE_BYTES_MIN: u64 = 32 << 10;
/// Frames larger than this gain nothing.
const BUFFER_BYTES_MAX: u64 = 512 << 10;

/// Makes the files of a lane: at most `file_bytes` each and a small part of what is free. Written with zeros from end to end and synced, because a write to a
/// block that was never written changes metadata, and costs a second flush each time.
pub(crate) fn create_files(
    disk: &dyn Disk,
    dir: &Path,
    session: u64,
    lane: u32,
    file_bytes: u64,
) -> Result<JournalFiles> {
    /// Part of the free space that a journal may take.
    const SHARE: u64 = 8;
    let free = disk.free_bytes(dir).map_err(|e| Error::io("ask for the free space of", dir, e))?;
    let file_bytes = file_bytes.min(free / SHARE / u64::from(FILES));
    let file_bytes = file_bytes - file_bytes % BLOCK_BYTES as u64;
    if file_bytes < FILE_BYTES_MIN {
        return Err(Error::NoSpace { path: path(dir, session, lane, 0) });
    }
    let buffer_bytes = usize::try_from((file_bytes / 4).min(BUFFER_BYTES_MAX)).unwrap_or(0);
    let made: Result<Vec<FileRef>> =
        (0..FILES).map(|n| create_file(disk, &path(dir, session, lane, n), file_bytes)).collect();
    let synced = made.and_then(|files| {
        let synced = disk.sync_dir(dir).and_then(|()| check_alive(disk, dir));
        synced.map_err(|e| Error::io("sync", dir, e))?;
        Ok(files)
    });
    if synced.is_err() {
        for number in 0..FILES {
            // What was made takes space that somebody needs.
            let _ = disk.remove_file(&path(dir, session, lane, number));
        }
    }
    Ok(JournalFiles { files: synced?, file_bytes, buffer_bytes })
}

fn create_file(disk: &dyn Disk, path: &Path, bytes: u64) -> Result<FileRef> {
    debug_assert!(bytes.is_multiple_of(BLOCK_BYTES as u64), "frames are whole blocks");
    let file =
        disk.open(path, OpenMode::CreateOrTruncate).map_err(|e| Error::io("create", path, e))?;
    let zeros = vec![0; FILL_BYTES.min(usize::try_from(bytes).unwrap_or(FILL_BYTES))];
    let mut position = 0;
    while position < bytes {
        let length = zeros.len().min(usize::try_from(bytes - position).unwrap_or(usize::MAX));
        let piece = zeros.get(..length).unwrap_or_default();
        file.write_all_at(piece, position).map_err(|e| Error::io("write", path, e))?;
        position += length as u64;
    }
    file.sync_data().map_err(|e| Error::io("sync", path, e))?;
    drop(file);
    disk.open(path, OpenMode::Direct).map_err(|e| Error::io("open", path, e))
}
