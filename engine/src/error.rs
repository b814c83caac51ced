//! The one error of the engine, and the one table of its codes.
//!
//! Each variant says what the caller can do: *fix the call*, *retry*, *reopen*, or *restore*. Codes
//! are stable numbers, never reused; C, Go and Java read them from [`CODES`].

#![forbid(unsafe_code)]

use crate::format::BatchFault;
use crate::offset::{LeaderEpoch, Offset};
use crate::producers::ProducerFault;
use std::io;
use std::path::PathBuf;

/// What every fallible call of the engine returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed, with the numbers that tell where.
///
/// Caller's mistakes and disk faults are errors; a broken invariant of the engine's own is a panic
/// and never crosses the C boundary.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range, or two contradict each other. Fix the call.
    #[error("setting {key}: {reason}")]
    Config {
        /// Name of the setting, as documented.
        key: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// A topic name or partition number that Kafka would refuse. Fix the call.
    #[error("topic name {name:?}: {reason}")]
    TopicName {
        /// The name as given, shortened to 300 characters.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// No such topic, partition, file or directory. Fix the call.
    #[error("{what} does not exist")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The partition is there already. Fix the call, or use the one that exists.
    #[error("{what} exists already")]
    AlreadyExists {
        /// What was to be created.
        what: String,
    },
    /// Another process (or another engine in this one) owns the directory. Stop it, or open the
    /// directory read-only.
    #[error("{} is in use by another process; stop it, or open the directory read-only", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The directory or the partition takes no writes. Fix the call or the mount.
    #[error("{what} is read-only: {reason}")]
    ReadOnly {
        /// The directory or partition.
        what: String,
        /// Why: opened so, or the file system is.
        reason: String,
    },
    /// The batch handed in is not one that can be stored; nothing was written. Fix the call.
    #[error("batch refused for {partition}, at byte {position} of the input: {fault}")]
    InvalidBatch {
        /// `<topic>-<partition>`.
        partition: String,
        /// Where in the bytes handed in the batch starts.
        position: usize,
        /// What is wrong with it.
        fault: BatchFault,
    },
    /// A batch over `batch_bytes_max`, or over the segment size. Fix the call or the setting.
    #[error("batch of {bytes} bytes is over the limit of {max} of {partition}")]
    TooLarge {
        /// `<topic>-<partition>`.
        partition: String,
        /// Size of the batch.
        bytes: usize,
        /// The limit it passes.
        max: usize,
    },
    /// The offset is before the log start or past the end that the isolation allows. Fix the call.
    #[error("offset {offset} of {partition} is out of range: [{log_start}, {end})")]
    OffsetOutOfRange {
        /// `<topic>-<partition>`.
        partition: String,
        /// The offset asked for.
        offset: Offset,
        /// First offset that can be read.
        log_start: Offset,
        /// End (exclusive) of what can be read.
        end: Offset,
    },
    /// A pin holds records that the call would delete. Release it, or delete over it.
    #[error(
        "{partition} is pinned from offset {pinned} on by {owner:?} for {reason:?}; release the pin, or delete over it"
    )]
    Pinned {
        /// `<topic>-<partition>`.
        partition: String,
        /// The lowest offset that is pinned.
        pinned: Offset,
        /// Who pinned it.
        owner: String,
        /// What for.
        reason: String,
    },
    /// The log was truncated below the offset since somebody read there. Its records are gone: find
    /// where this log and the reader's part by their leader epochs, and go on from there.
    #[error("{partition} was truncated and ends at {log_end}; offset {offset} is gone")]
    Truncated {
        /// `<topic>-<partition>`.
        partition: String,
        /// The offset asked for.
        offset: Offset,
        /// Where the log ends now.
        log_end: Offset,
    },
    /// A follower's batch does not continue the log. Fix the call: truncate, or fetch from `expected`.
    #[error("batch at offset {found} does not continue {partition}, which ends at {expected}")]
    OffsetMismatch {
        /// `<topic>-<partition>`.
        partition: String,
        /// The log end offset.
        expected: Offset,
        /// Base offset of the batch.
        found: Offset,
    },
    /// The leader epoch of the call is older than the partition's. A newer leader exists: stop.
    #[error("leader epoch {given} of {partition} is fenced: the partition is at {current}")]
    EpochFenced {
        /// `<topic>-<partition>`.
        partition: String,
        /// Epoch of the call.
        given: LeaderEpoch,
        /// Epoch of the partition.
        current: LeaderEpoch,
    },
    /// What an idempotent or transactional producer, or a transaction coordinator, asks for does not
    /// follow what the partition has of that producer. Nothing was written. Answer the client.
    #[error("append of producer {producer_id} to {partition} refused: {fault}")]
    Producer {
        /// `<topic>-<partition>`.
        partition: String,
        /// The producer.
        producer_id: i64,
        /// Why.
        fault: ProducerFault,
    },
    /// Bytes on disk are not what was written. Nothing was cut; the rest stays readable. Restore
    /// the range from a replica, or skip to `next_offset`.
    #[error("{} is damaged at byte {position}: {fault}; offsets from {offset} to {next_offset} (exclusive) cannot be read", path.display())]
    Damaged {
        /// The segment file.
        path: PathBuf,
        /// Where the damage starts.
        position: u64,
        /// First offset that is lost.
        offset: Offset,
        /// First offset after the damage that can be read.
        next_offset: Offset,
        /// What is wrong there.
        fault: BatchFault,
    },
    /// The file is not of a format this version reads. Restore, or use the tool that wrote it.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The shard's mailbox is full. Retry after some completions.
    #[error(
        "the shard of {partition} has {queued} requests queued; retry when some have completed"
    )]
    Busy {
        /// `<topic>-<partition>`.
        partition: String,
        /// Requests in the mailbox.
        queued: usize,
    },
    /// The disk is full; nothing of this call was written. Free space and retry.
    #[error("no space left for {}; free some and retry: the log is unharmed", path.display())]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The process or the machine has no file descriptor left. Raise `ulimit -n` or lower
    /// `open_files_max`, and retry.
    #[error("too many open files while opening {}; raise ulimit -n or lower open_files_max", path.display())]
    TooManyOpenFiles {
        /// The file that could not be opened.
        path: PathBuf,
    },
    /// The system refused a call. Whether a retry helps depends on the cause inside.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A flush of this partition failed, so what is past `durable` may be gone after a restart.
    /// It takes no more appends. Reopen.
    #[error(
        "{partition} stopped taking appends after a failed {op}; offsets below {durable} are on disk; reopen it"
    )]
    PartitionFailed {
        /// `<topic>-<partition>`.
        partition: String,
        /// The call that failed.
        op: &'static str,
        /// Everything below is on disk.
        durable: Offset,
    },
    /// The engine, partition or lease is closed. Reopen.
    #[error("{what} is closed")]
    Closed {
        /// What is closed.
        what: String,
    },
    /// Not done within the time given; it may still complete. Retry or wait longer.
    #[error("{what} did not complete in time")]
    Timeout {
        /// What was waited for.
        what: &'static str,
    },
}

/// Number, name and meaning of every status, in one table: the C header, Go and Java are generated
/// from or compared with it. Numbers are never reused.
pub const CODES: &[(i32, &str, &str)] = &[
    (0, "OK", "done"),
    (1, "CONFIG", "a setting is out of range"),
    (2, "TOPIC_NAME", "a topic name that Kafka would refuse"),
    (3, "NOT_FOUND", "no such topic, partition, file or directory"),
    (4, "ALREADY_EXISTS", "the partition exists already"),
    (5, "LOCKED", "another process owns the directory"),
    (6, "READ_ONLY", "opened read-only, or the file system is"),
    (7, "INVALID_BATCH", "the batch handed in cannot be stored"),
    (8, "TOO_LARGE", "the batch is over a limit"),
    (9, "OFFSET_OUT_OF_RANGE", "before the log start or past the readable end"),
    (10, "OFFSET_MISMATCH", "a follower's batch does not continue the log"),
    (11, "EPOCH_FENCED", "the leader epoch given is older than the partition's"),
    (12, "DAMAGED", "bytes on disk are not what was written"),
    (13, "FORMAT", "a file of a format this version does not read"),
    (14, "BUSY", "the shard's mailbox is full; retry"),
    (15, "NO_SPACE", "the disk is full; nothing of this call was written"),
    (16, "TOO_MANY_OPEN_FILES", "no file descriptor left"),
    (17, "IO", "the system refused a call"),
    (18, "PARTITION_FAILED", "a flush failed; reopen the partition"),
    (19, "CLOSED", "engine, partition or lease is closed"),
    (20, "TIMEOUT", "not done within the time given"),
    (21, "INVALID_HANDLE", "a handle that is 0, released, or of another kind (C ABI)"),
    (22, "INVALID_ARGUMENT", "a pointer that is NULL or a value out of range (C ABI)"),
    (23, "PANIC", "a fault of the library's own; please report it (C ABI)"),
    (24, "TRUNCATED", "the offset was cut away by a truncation: compare leader epochs"),
    (25, "PINNED", "a pin holds records that the call would delete"),
    (26, "OUT_OF_ORDER_SEQUENCE", "a producer's batch does not follow its last one"),
    (27, "PRODUCER_FENCED", "the producer epoch is older than the partition's"),
    (28, "INVALID_TRANSACTION_STATE", "a producer's batch leaves out its open transaction"),
    (29, "COORDINATOR_FENCED", "the coordinator epoch is older than the partition's"),
];

impl Error {
    /// The stable number of this error in [`CODES`].
    #[must_use]
    pub fn code(&self) -> i32 {
        match self {
            Error::Config { .. } => 1,
            Error::TopicName { .. } => 2,
            Error::NotFound { .. } => 3,
            Error::AlreadyExists { .. } => 4,
            Error::Locked { .. } => 5,
            Error::ReadOnly { .. } => 6,
            Error::InvalidBatch { .. } => 7,
            Error::TooLarge { .. } => 8,
            Error::OffsetOutOfRange { .. } => 9,
            Error::OffsetMismatch { .. } => 10,
            Error::EpochFenced { .. } => 11,
            Error::Damaged { .. } => 12,
            Error::Format { .. } => 13,
            Error::Busy { .. } => 14,
            Error::NoSpace { .. } => 15,
            Error::TooManyOpenFiles { .. } => 16,
            Error::Io { .. } => 17,
            Error::PartitionFailed { .. } => 18,
            Error::Closed { .. } => 19,
            Error::Timeout { .. } => 20,
            Error::Truncated { .. } => 24,
            Error::Pinned { .. } => 25,
            Error::Producer { fault, .. } => match fault {
                ProducerFault::Sequence { .. } => 26,
                ProducerFault::Epoch { .. } => 27,
                ProducerFault::NotTransactional { .. } => 28,
                ProducerFault::CoordinatorEpoch { .. } => 29,
            },
        }
    }

    /// Sorts what the system said into the cases a caller treats differently.
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Error {
        use rustix::io::Errno;
        let path = path.into();
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Error::NoSpace { path },
            Some(Errno::MFILE | Errno::NFILE) => Error::TooManyOpenFiles { path },
            Some(Errno::ROFS) => Error::ReadOnly {
                what: path.display().to_string(),
                reason: "the file system is mounted read-only".into(),
            },
            _ => Error::Io { op, path, source },
        }
    }

    /// The same error once more, for each of the requests that one write or sync carried.
    pub(crate) fn repeat(&self) -> Error {
        match self {
            Error::NoSpace { path } => Error::NoSpace { path: path.clone() },
            Error::TooManyOpenFiles { path } => Error::TooManyOpenFiles { path: path.clone() },
            Error::ReadOnly { what, reason } => {
                Error::ReadOnly { what: what.clone(), reason: reason.clone() }
            }
            Error::PartitionFailed { partition, op, durable } => {
                Error::PartitionFailed { partition: partition.clone(), op, durable: *durable }
            }
            Error::Closed { what } => Error::Closed { what: what.clone() },
            Error::Io { op, path, source } => {
                let source = match source.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => io::Error::new(source.kind(), source.to_string()),
                };
                Error::Io { op, path: path.clone(), source }
            }
            other => Error::Io {
                op: "append to",
                path: PathBuf::new(),
                source: io::Error::other(other.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dense_and_named_once() {
        for (i, (code, name, _)) in CODES.iter().enumerate() {
            assert_eq!(*code, i32::try_from(i).unwrap());
            assert_eq!(CODES.iter().filter(|c| c.1 == *name).count(), 1, "{name} twice");
        }
    }

    #[test]
    fn a_full_disk_and_a_lack_of_descriptors_are_told_apart_from_other_faults() {
        let full = Error::io("write", "f", io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(full.code(), 15);
        let fds = Error::io("open", "f", io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!(fds.code(), 16);
        let other = Error::io("read", "f", io::Error::from_raw_os_error(libc::EIO));
        assert_eq!(other.code(), 17);
    }
}
