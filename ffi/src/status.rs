//! Statuses, error details, and the boundary that no panic crosses.

use engine::Error;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Done.
pub const LOGLANE_OK: i32 = 0;
/// A setting is out of range. Fix the call.
pub const LOGLANE_CONFIG: i32 = 1;
/// A topic name that Kafka would refuse. Fix the call.
pub const LOGLANE_TOPIC_NAME: i32 = 2;
/// No such topic, partition, file or directory. Fix the call.
pub const LOGLANE_NOT_FOUND: i32 = 3;
/// The partition exists already. Fix the call, or use it.
pub const LOGLANE_ALREADY_EXISTS: i32 = 4;
/// Another process owns the directory. Stop it.
pub const LOGLANE_LOCKED: i32 = 5;
/// The file system is read-only. Fix the mount.
pub const LOGLANE_READ_ONLY: i32 = 6;
/// The batch handed in cannot be stored. Fix the call; nothing was written.
pub const LOGLANE_INVALID_BATCH: i32 = 7;
/// The batch is over a limit. Fix the call or the setting; nothing was written.
pub const LOGLANE_TOO_LARGE: i32 = 8;
/// Before the log start or past the readable end. Fix the call.
pub const LOGLANE_OFFSET_OUT_OF_RANGE: i32 = 9;
/// A follower's batch does not continue the log. Fix the call.
pub const LOGLANE_OFFSET_MISMATCH: i32 = 10;
/// The leader epoch given is older than the partition's. Stop: another leads.
pub const LOGLANE_EPOCH_FENCED: i32 = 11;
/// Bytes on disk are not what was written. Restore, or skip past them.
pub const LOGLANE_DAMAGED: i32 = 12;
/// A file of a format this version does not read. Restore.
pub const LOGLANE_FORMAT: i32 = 13;
/// The shard's mailbox is full. Retry.
pub const LOGLANE_BUSY: i32 = 14;
/// The disk is full; nothing of this call was written. Free space and retry.
pub const LOGLANE_NO_SPACE: i32 = 15;
/// No file descriptor left. Raise the limit and retry.
pub const LOGLANE_TOO_MANY_OPEN_FILES: i32 = 16;
/// The system refused a call; os_errno says which way.
pub const LOGLANE_IO: i32 = 17;
/// A flush failed; the partition takes no more appends. Reopen.
pub const LOGLANE_PARTITION_FAILED: i32 = 18;
/// Engine, partition or lease is closed. Reopen.
pub const LOGLANE_CLOSED: i32 = 19;
/// Not done within the time given. Retry or wait.
pub const LOGLANE_TIMEOUT: i32 = 20;
/// A handle that is 0, released, or of another kind. Fix the call.
pub const LOGLANE_INVALID_HANDLE: i32 = 21;
/// A pointer that is NULL or a value out of range. Fix the call.
pub const LOGLANE_INVALID_ARGUMENT: i32 = 22;
/// A fault of the library's own; please report it.
pub const LOGLANE_PANIC: i32 = 23;
/// The offset was cut away by a truncation: compare leader epochs.
pub const LOGLANE_TRUNCATED: i32 = 24;
/// A pin holds records that the call would delete.
pub const LOGLANE_PINNED: i32 = 25;
/// A producer's batch does not follow its last one. Answer the client.
pub const LOGLANE_OUT_OF_ORDER_SEQUENCE: i32 = 26;
/// The producer epoch is older than the partition's. Answer the client.
pub const LOGLANE_PRODUCER_FENCED: i32 = 27;
/// A producer's batch leaves out its open transaction. Answer the client.
pub const LOGLANE_INVALID_TRANSACTION_STATE: i32 = 28;
/// The coordinator epoch is older than the partition's. Answer the coordinator.
pub const LOGLANE_COORDINATOR_FENCED: i32 = 29;

/// Bytes of a message, its NUL included.
pub const LOGLANE_MESSAGE_BYTES: usize = 512;

/// What went wrong, in numbers and in words. The caller owns it and sets struct_size.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name C sees")]
pub struct loglane_error {
    /// sizeof(loglane_error), set by the caller. Any other size leaves the struct untouched.
    pub struct_size: u32,
    /// The status the call returned.
    pub code: i32,
    /// errno, or 0.
    pub os_errno: i32,
    /// 0.
    pub reserved: i32,
    /// The offset it is about, or -1.
    pub offset: i64,
    /// Where to go on after damage, the end of what can be read, or -1.
    pub next_offset: i64,
    /// The byte position it is about, or -1.
    pub position: i64,
    /// A sentence, NUL-terminated, cut to fit.
    pub message: [c_char; LOGLANE_MESSAGE_BYTES],
}

/// Why a call did not do what it was asked.
pub(crate) enum Fault {
    Engine(Error),
    Handle(&'static str),
    Argument(&'static str),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Engine(error)
    }
}

impl Fault {
    fn code(&self) -> i32 {
        match self {
            Fault::Engine(error) => error.code(),
            Fault::Handle(_) => LOGLANE_INVALID_HANDLE,
            Fault::Argument(_) => LOGLANE_INVALID_ARGUMENT,
        }
    }

    fn fill(&self, error: &mut loglane_error) {
        error.code = self.code();
        (error.os_errno, error.reserved) = (0, 0);
        (error.offset, error.next_offset, error.position) = (-1, -1, -1);
        match self {
            Fault::Engine(Error::Io { source, .. }) => {
                error.os_errno = source.raw_os_error().unwrap_or(0);
            }
            Fault::Engine(Error::Damaged { position, offset, next_offset, .. }) => {
                error.position = i64::try_from(*position).unwrap_or(-1);
                (error.offset, error.next_offset) = (offset.0, next_offset.0);
            }
            Fault::Engine(Error::InvalidBatch { position, .. }) => {
                error.position = i64::try_from(*position).unwrap_or(-1);
            }
            Fault::Engine(Error::OffsetOutOfRange { offset, end, .. }) => {
                (error.offset, error.next_offset) = (offset.0, end.0);
            }
            Fault::Engine(Error::PartitionFailed { durable, .. }) => error.offset = durable.0,
            _ => {}
        }
        let message = match self {
            Fault::Engine(error) => error.to_string(),
            Fault::Handle(what) => format!("this is no handle of {what}, or it was released"),
            Fault::Argument(what) => (*what).to_owned(),
        };
        put(&mut error.message, &message);
    }
}

fn put(into: &mut [c_char; LOGLANE_MESSAGE_BYTES], message: &str) {
    into.fill(0);
    // The last byte stays NUL.
    let room = into.len() - 1;
    for (to, from) in into.iter_mut().take(room).zip(message.bytes().filter(|b| *b != 0)) {
        *to = from.cast_signed();
    }
}

/// Runs one call: no panic leaves it, and what went wrong is written to `error`.
///
/// # Safety
/// `error` is NULL or points to a struct that begins with its own size, as the header asks.
pub(crate) unsafe fn call(
    error: *mut loglane_error,
    run: impl FnOnce() -> Result<(), Fault>,
) -> i32 {
    let result = catch_unwind(AssertUnwindSafe(run));
    let code = match &result {
        Ok(Ok(())) => return LOGLANE_OK,
        Ok(Err(fault)) => fault.code(),
        Err(_) => LOGLANE_PANIC,
    };
    if error.is_null() {
        return code;
    }
    // SAFETY: the caller of the C function says that a non-NULL error begins with its size.
    let size = unsafe { error.cast::<u32>().read() };
    if size as usize != size_of::<loglane_error>() {
        return code;
    }
    // SAFETY: its size is that of the whole struct, and no other thread may use it meanwhile.
    let error = unsafe { &mut *error };
    match result {
        Ok(Err(fault)) => fault.fill(error),
        _ => {
            error.code = LOGLANE_PANIC;
            put(&mut error.message, "a fault of the library's own; please report it");
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constants_are_the_engines_table() {
        let constants = [
            LOGLANE_OK,
            LOGLANE_CONFIG,
            LOGLANE_TOPIC_NAME,
            LOGLANE_NOT_FOUND,
            LOGLANE_ALREADY_EXISTS,
            LOGLANE_LOCKED,
            LOGLANE_READ_ONLY,
            LOGLANE_INVALID_BATCH,
            LOGLANE_TOO_LARGE,
            LOGLANE_OFFSET_OUT_OF_RANGE,
            LOGLANE_OFFSET_MISMATCH,
            LOGLANE_EPOCH_FENCED,
            LOGLANE_DAMAGED,
            LOGLANE_FORMAT,
            LOGLANE_BUSY,
            LOGLANE_NO_SPACE,
            LOGLANE_TOO_MANY_OPEN_FILES,
            LOGLANE_IO,
            LOGLANE_PARTITION_FAILED,
            LOGLANE_CLOSED,
            LOGLANE_TIMEOUT,
            LOGLANE_INVALID_HANDLE,
            LOGLANE_INVALID_ARGUMENT,
            LOGLANE_PANIC,
            LOGLANE_TRUNCATED,
            LOGLANE_PINNED,
            LOGLANE_OUT_OF_ORDER_SEQUENCE,
            LOGLANE_PRODUCER_FENCED,
            LOGLANE_INVALID_TRANSACTION_STATE,
            LOGLANE_COORDINATOR_FENCED,
        ];
        let codes: Vec<i32> = engine::CODES.iter().map(|(code, _, _)| *code).collect();
        assert_eq!(constants.as_slice(), codes);
        let source = include_str!("status.rs");
        for (code, name, _) in engine::CODES {
            let line = format!("pub const LOGLANE_{name}: i32 = {code};");
            assert!(source.contains(&line), "{line} is missing");
        }
    }

    #[test]
    fn a_panic_becomes_a_status_with_a_message() {
        // SAFETY: an all-zero loglane_error is a value of it.
        let mut error: loglane_error = unsafe { std::mem::zeroed() };
        error.struct_size = u32::try_from(size_of::<loglane_error>()).unwrap();
        // SAFETY: the error lives through the call.
        let code = unsafe { call(&raw mut error, || panic!("planted")) };
        assert_eq!((code, error.code), (LOGLANE_PANIC, LOGLANE_PANIC));
        assert_ne!(error.message[0], 0);
    }
}
