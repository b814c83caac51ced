//! Looking into the files of a log without opening it: what `loglane dump` and `loglane verify` show.
//!
//! Nothing here writes, takes a lock or believes a file: a [`LogWalk`] checks every byte of a `.log`
//! and tells a torn tail from damage; [`OffsetIndex`] and [`TimeIndex`] are compared with the log
//! they belong to; [`verify_partition`] does it all for one directory.

#![forbid(unsafe_code)]

mod index;
mod snapshot;
mod verify;

pub use index::{IndexFault, OffsetIndex, OffsetIndexEntry, TimeIndex, TimeIndexEntry};
pub use snapshot::{AbortedTransaction, ProducerState, aborted_transactions, producer_snapshot};
pub use verify::{Finding, PartitionFindings, Severity, State, verify_partition, verify_text_file};

use crate::checkpoint;
use crate::error::{Error, Result};
use crate::format::{Batch, BatchFault};
use crate::io::{self, BackendChoice, Disk, EntryKind, FileRef, OpenMode};
use crate::journal;
use crate::offset::{LeaderEpoch, Offset};
use crate::segment::{Scanned, Scanner, names};
use crate::state::{self, StateDamage};
use crate::topic::TopicPartition;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// Largest file that is read whole; Kafka's largest index is far below.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Bytes of a directory's state file that were synced and are not what was written.
///
/// # Errors
/// [`Error::Format`] for a file of another version, [`Error::Io`].
pub fn verify_state(dir: &Path) -> Result<Vec<StateDamage>> {
    let disk = io::open(dir, BackendChoice::Plain).map_err(|e| Error::io("open", dir, e))?;
    Ok(state::read(disk.as_ref(), dir)?.1)
}

/// What one step over a `.log` file met.
#[derive(Debug)]
pub enum Step<'a> {
    /// A batch whose size, offset and CRC hold.
    Batch {
        /// Its first byte in the file.
        position: u64,
        /// The batch.
        batch: Batch<'a>,
    },
    /// Bytes that are no batch, with a whole one after them.
    Damage {
        /// First damaged byte.
        position: u64,
        /// Where the next whole batch starts.
        end: u64,
        /// First offset that is lost.
        offset: Offset,
        /// What is wrong at `position`.
        fault: BatchFault,
    },
    /// The rest of the file is no batch: in the last segment of a log the end of an interrupted
    /// write, in any other damage.
    TornTail {
        /// First byte of the tail.
        position: u64,
        /// The offset that would come next.
        offset: Offset,
        /// What is wrong at `position`.
        fault: BatchFault,
    },
}

/// A walk over the batches of one `.log` file.
pub struct LogWalk {
    path: PathBuf,
    scanner: Scanner,
    base_offset: i64,
    bytes: u64,
}

impl std::fmt::Debug for LogWalk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWalk").field("path", &self.path).finish_non_exhaustive()
    }
}

impl LogWalk {
    /// Walks a file from its start to the length it has now.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>) -> Result<LogWalk> {
        let path = path.into();
        let (file, bytes) = open_file(&path)?;
        let base_offset = match base_offset_of(&path) {
            Some(base) => base,
            // A copy under another name: its first batch has to do.
            None => crate::segment::header_at(file.as_ref(), 0, bytes)
                .map_err(|e| Error::io("read", &path, e))?
                .map_or(0, |header| header.base_offset),
        };
        let scanner = Scanner::new(file, base_offset, 0, base_offset, bytes);
        Ok(LogWalk { path, scanner, base_offset, bytes })
    }

    /// Walks from `position`, where the lowest offset that may come is `offset`.
    ///
    /// # Errors
    /// As [`LogWalk::open`].
    pub fn open_at(path: impl Into<PathBuf>, position: u64, offset: Offset) -> Result<LogWalk> {
        let mut walk = LogWalk::open(path)?;
        let (file, bytes) = open_file(&walk.path)?;
        walk.scanner = Scanner::new(file, walk.base_offset, position, offset.0, bytes);
        Ok(walk)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Base offset of the segment: as its name says, or its first batch.
    #[must_use]
    pub fn base_offset(&self) -> Offset {
        Offset(self.base_offset)
    }

    /// Bytes of the file when the walk began.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes walked.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.scanner.position()
    }

    /// One past the last offset met.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        Offset(self.scanner.next_offset())
    }

    /// The next step; `None` at the end of the file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read.
    pub fn step(&mut self) -> Result<Option<Step<'_>>> {
        let offset = self.next_offset();
        let path = &self.path;
        Ok(match self.scanner.step().map_err(|e| Error::io("read", path, e))? {
            Scanned::Batch { position, batch } => Some(Step::Batch { position, batch }),
            Scanned::Damage { position, end, fault } => {
                Some(Step::Damage { position, end, offset, fault })
            }
            Scanned::TornTail { position, fault } => {
                Some(Step::TornTail { position, offset, fault })
            }
            Scanned::End => None,
        })
    }
}

/// The first whole batch of a `.log` file at or after `position` with an offset of at least
/// `offset`: where a reader goes on after damage. `None` if there is none up to the end.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`].
pub fn next_whole_batch(
    path: &Path,
    position: u64,
    offset: Offset,
) -> Result<Option<(u64, Offset)>> {
    let mut walk = LogWalk::open_at(path, position, offset)?;
    while let Some(step) = walk.step()? {
        if let Step::Batch { position, batch } = step {
            return Ok(Some((position, Offset(batch.header().base_offset))));
        }
    }
    Ok(None)
}

/// Checks the records under a batch's CRC: that they decompress, parse, and lie within its offsets.
/// Unlike [`Batch::check_records`] it lets pass what compaction and transactions leave on disk.
///
/// # Errors
/// The first fault found.
pub fn check_stored_records(batch: &Batch<'_>) -> std::result::Result<usize, BatchFault> {
    let header = batch.header();
    let (count, last_offset_delta) = (header.record_count, header.last_offset_delta);
    if count < 0 || count > last_offset_delta.saturating_add(1) {
        return Err(BatchFault::Count { count, last_offset_delta });
    }
    let decoded = batch.decode()?;
    let (mut expected, mut number) = (header.base_offset, 0);
    for record in decoded.records() {
        let record = record?;
        if record.offset < expected || record.offset > header.last_offset() {
            let found = i32::try_from(record.offset - header.base_offset).unwrap_or(i32::MAX);
            return Err(BatchFault::OffsetDelta { record: number, found });
        }
        expected = record.offset + 1;
        number += 1;
        for parsed in record.headers {
            parsed?;
        }
    }
    Ok(usize::try_from(count).unwrap_or_default())
}

/// The base offset in the name of a segment's file, whatever its suffix.
#[must_use]
pub fn base_offset_of(path: &Path) -> Option<i64> {
    let name = path.file_name()?.to_str()?;
    let digits = name.get(..20)?;
    names::base_offset(&format!("{digits}.log"), names::LOG)
}

/// The offsets of an offset checkpoint, `<topic> <partition> <offset>` in each line.
///
/// # Errors
/// [`Error::Format`] if it does not add up, [`Error::Io`].
pub fn offset_checkpoint(path: &Path) -> Result<Vec<(TopicPartition, Offset)>> {
    if is_empty(path)? {
        // Kafka creates its checkpoints empty and reads such a file as no entries.
        return Ok(Vec::new());
    }
    let offsets = checkpoint::read_offsets(disk_of(path)?.as_ref(), path)?;
    Ok(offsets.into_iter().map(|(partition, offset)| (partition, Offset(offset))).collect())
}

/// The leader epochs of a partition directory.
///
/// # Errors
/// [`Error::Format`] if they do not rise, [`Error::Io`].
pub fn leader_epochs(dir: &Path) -> Result<Vec<(LeaderEpoch, Offset)>> {
    let path = dir.join(checkpoint::LEADER_EPOCHS);
    if path.exists() && is_empty(&path)? {
        return Ok(Vec::new());
    }
    let epochs = checkpoint::read_epochs(disk_of(&path)?.as_ref(), dir)?;
    Ok(epochs.into_iter().map(|(epoch, start)| (LeaderEpoch(epoch), Offset(start))).collect())
}

/// The topic id of a partition directory; `None` without `partition.metadata`.
///
/// # Errors
/// [`Error::Format`], [`Error::Io`].
pub fn topic_id(dir: &Path) -> Result<Option<Uuid>> {
    checkpoint::read_topic_id(disk_of(&dir.join(checkpoint::PARTITION_METADATA))?.as_ref(), dir)
}

fn is_empty(path: &Path) -> Result<bool> {
    open_file(path).map(|(_, bytes)| bytes == 0)
}

fn disk_of(path: &Path) -> Result<Arc<dyn Disk>> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    io::open(dir, BackendChoice::Plain).map_err(|e| Error::io("open", dir, e))
}

fn open_file(path: &Path) -> Result<(FileRef, u64)> {
    let file = disk_of(path)?.open(path, OpenMode::Read).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound { what: path.display().to_string() },
        _ => Error::io("open", path, e),
    })?;
    let bytes = file.len().map_err(|e| Error::io("stat", path, e))?;
    Ok((file, bytes))
}

fn read_whole(path: &Path) -> Result<Vec<u8>> {
    let (file, bytes) = open_file(path)?;
    if bytes > FILE_BYTES_MAX {
        let reason = format!("it is {bytes} bytes; no such file has over {FILE_BYTES_MAX}");
        return Err(Error::Format { path: path.to_owned(), reason });
    }
    let mut content = vec![0; usize::try_from(bytes).unwrap_or_default()];
    let read = file.read_up_to(&mut content, 0).map_err(|e| Error::io("read", path, e))?;
    content.truncate(read);
    Ok(content)
}

/// What a data directory says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directory {
    /// A process has it open for writing.
    pub writer_is_live: bool,
    /// It was closed cleanly and not opened since.
    pub is_clean: bool,
    /// Its partitions, in order.
    pub partitions: Vec<(TopicPartition, PathBuf)>,
    /// Its checkpoint files.
    pub checkpoints: Vec<PathBuf>,
    /// What an open after a power cut would read of journals, at most.
    pub journal_bytes: u64,
    /// What it would read of segments: what is past the recovery points, to whole segments.
    pub unsynced_bytes: u64,
}

impl Directory {
    /// What the next open has to read before everything can be appended to, at most; an open after
    /// the process alone died reads little of it.
    #[must_use]
    pub fn replay_bytes(&self) -> u64 {
        if self.is_clean { 0 } else { self.journal_bytes + self.unsynced_bytes }
    }
}

/// Looks at a data directory without opening its partitions.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`].
pub fn directory(dir: &Path) -> Result<Directory> {
    if !dir.is_dir() {
        return Err(Error::NotFound { what: format!("directory {}", dir.display()) });
    }
    let disk = disk_of(&dir.join("x"))?;
    let writer_is_live = io::DirLock::is_held(&dir.join(crate::engine::LOCK_FILE)).unwrap_or(false);
    let is_clean = checkpoint::read_clean_shutdown(disk.as_ref(), dir)?.is_some();
    let (mut partitions, mut checkpoints, mut journal_bytes) = (Vec::new(), Vec::new(), 0);
    for entry in disk.list(dir).map_err(|e| Error::io("list", dir, e))? {
        let path = dir.join(&entry.name);
        match entry.kind {
            EntryKind::Dir => {
                let name = TopicPartition::from_dir_name(&entry.name);
                partitions.extend(name.map(|name| (name, path)));
            }
            EntryKind::File if entry.name.ends_with("-offset-checkpoint") => checkpoints.push(path),
            EntryKind::File if journal::is_journal_name(&entry.name) => {
                journal_bytes += disk.stat(&path).map_or(0, |stat| stat.len);
            }
            _ => {}
        }
    }
    partitions.sort();
    checkpoints.sort();
    let points = checkpoint::read_offsets(disk.as_ref(), &dir.join(checkpoint::RECOVERY_POINTS));
    let points = points.unwrap_or_default();
    let unsynced_bytes = partitions
        .iter()
        .map(|(name, dir)| bytes_past(disk.as_ref(), dir, points.get(name).copied().unwrap_or(0)))
        .sum();
    Ok(Directory {
        writer_is_live,
        is_clean,
        partitions,
        checkpoints,
        journal_bytes,
        unsynced_bytes,
    })
}

/// Bytes of the segments that end above an offset. What cannot be read now counts as nothing: this
/// is an estimate.
fn bytes_past(disk: &dyn Disk, dir: &Path, offset: i64) -> u64 {
    let entries = disk.list(dir).unwrap_or_default();
    let mut bases: Vec<i64> =
        entries.iter().filter_map(|entry| names::base_offset(&entry.name, names::LOG)).collect();
    bases.sort_unstable();
    let first = bases.partition_point(|base| *base <= offset).saturating_sub(1);
    let past = bases.get(first..).unwrap_or_default();
    past.iter()
        .filter_map(|base| disk.stat(&names::path(dir, *base, names::LOG)).ok())
        .map(|stat| stat.len)
        .sum()
}
