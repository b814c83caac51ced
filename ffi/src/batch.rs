//! Making and reading record batches, for programs without a Kafka client library.

use crate::handle::Table;
use crate::log::{batch_fault, release};
use crate::status::{Fault, call, loglane_error};
use crate::{bytes, give, not_null, write};
use engine::format::{BatchBuilder, Batches, Codec};
use std::sync::{Mutex, PoisonError};

static BATCHES: Table<Mutex<Builder>> = Table::new(4);
static RECORDS: Table<Mutex<Reader>> = Table::new(5);

/// A batch in the making.
pub type loglane_batch = u64;
/// A walk over the records of some batches.
pub type loglane_records = u64;

/// A record. Pointers live until the loglane_records they came from is released.
#[repr(C)]
pub struct loglane_record {
    /// Its offset in the partition.
    pub offset: i64,
    /// Unix milliseconds; -1 none.
    pub timestamp: i64,
    /// NULL for a null key.
    pub key: *const u8,
    /// Bytes of the key.
    pub key_length: usize,
    /// NULL for a null value.
    pub value: *const u8,
    /// Bytes of the value.
    pub value_length: usize,
}

struct Builder {
    builder: BatchBuilder,
    built: Option<Vec<u8>>,
}

struct Owned {
    offset: i64,
    timestamp: i64,
    key: Option<Box<[u8]>>,
    value: Option<Box<[u8]>>,
}

struct Reader {
    records: Vec<Owned>,
    next: usize,
}

/// Starts a batch. codec is 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd. The handle is the caller's until
/// loglane_batch_release.
///
/// LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_batch_new(
    codec: u8,
    batch: *mut loglane_batch,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let codec = Codec::from_id(codec).map_err(|_| Fault::Argument("codec is not 0 to 4"))?;
        let builder = Builder { builder: BatchBuilder::new(codec), built: None };
        // SAFETY: batch may be written to, as the caller says.
        unsafe { give(&BATCHES, Mutex::new(builder), batch) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Adds a record. key or value is NULL, with length 0, for null. The bytes are copied.
///
/// LOGLANE_INVALID_BATCH if it would be too large, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says, with as many bytes as their lengths say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_batch_add(
    batch: loglane_batch,
    timestamp: i64,
    key: *const u8,
    key_length: usize,
    value: *const u8,
    value_length: usize,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let batch = BATCHES.get(batch).ok_or(Fault::Handle("a batch"))?;
        // SAFETY: key_length bytes, as the caller says.
        let key_bytes = unsafe { bytes(key, key_length) }?;
        // SAFETY: value_length bytes, as the caller says.
        let value_bytes = unsafe { bytes(value, value_length) }?;
        let key = (!key.is_null()).then_some(key_bytes);
        let value = (!value.is_null()).then_some(value_bytes);
        let mut batch = batch.lock().unwrap_or_else(PoisonError::into_inner);
        if batch.built.is_some() {
            return Err(Fault::Argument("the batch is finished; start another"));
        }
        batch.builder.append(timestamp, key, value, &[]).map_err(|f| batch_fault(f, 0))
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Finishes a batch. length gets its size; buffer gets its bytes if capacity is enough for all of them,
/// else nothing: call again with more room.
///
/// LOGLANE_INVALID_BATCH without records, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says; buffer has room for capacity bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_batch_finish(
    batch: loglane_batch,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let batch = BATCHES.get(batch).ok_or(Fault::Handle("a batch"))?;
        not_null(length.cast_const(), "length is NULL")?;
        let mut batch = batch.lock().unwrap_or_else(PoisonError::into_inner);
        if batch.built.is_none() {
            batch.built = Some(batch.builder.build().map_err(|f| batch_fault(f, 0))?);
        }
        let built = batch.built.as_deref().unwrap_or_default();
        if capacity >= built.len() {
            not_null(buffer.cast_const(), "buffer is NULL")?;
            // SAFETY: not NULL, with room for capacity bytes, and not the library's own memory.
            unsafe { buffer.copy_from_nonoverlapping(built.as_ptr(), built.len()) };
        }
        // SAFETY: length may be written to, as the caller says.
        unsafe { write(length, built.len()) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Gives a batch back.
///
/// LOGLANE_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn loglane_batch_release(batch: loglane_batch) -> i32 {
    release(&BATCHES, batch, "a batch")
}

/// Reads the records of whole batches, as a fetch gives them, checking every CRC. Control batches are
/// passed over. The bytes are copied; the handle is the caller's until loglane_records_release.
///
/// LOGLANE_INVALID_BATCH with the position of the first batch that does not hold,
/// LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says; batches points to length bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_records_open(
    batches: *const u8,
    length: usize,
    records: *mut loglane_records,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        // SAFETY: length bytes, as the caller says.
        let batches = unsafe { bytes(batches, length) }?;
        let mut found = Vec::new();
        for batch in Batches::new(batches) {
            let (position, batch) = batch.map_err(|(position, f)| batch_fault(f, position))?;
            if batch.header().attributes.is_control() {
                continue;
            }
            let decoded = batch.decode().map_err(|f| batch_fault(f, position))?;
            for record in decoded.records() {
                let record = record.map_err(|f| batch_fault(f, position))?;
                found.push(Owned {
                    offset: record.offset,
                    timestamp: record.timestamp,
                    key: record.key.map(Box::from),
                    value: record.value.map(Box::from),
                });
            }
        }
        let reader = Mutex::new(Reader { records: found, next: 0 });
        // SAFETY: records may be written to, as the caller says.
        unsafe { give(&RECORDS, reader, records) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// The next record; LOGLANE_NOT_FOUND after the last.
///
/// LOGLANE_NOT_FOUND, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_records_next(
    records: loglane_records,
    record: *mut loglane_record,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let reader = RECORDS.get(records).ok_or(Fault::Handle("a walk over records"))?;
        not_null(record.cast_const(), "record is NULL")?;
        let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = reader.records.get(reader.next) else {
            return Err(engine::Error::NotFound { what: "another record".into() }.into());
        };
        let parts = |bytes: &Option<Box<[u8]>>| match bytes {
            Some(bytes) => (bytes.as_ptr(), bytes.len()),
            None => (std::ptr::null(), 0),
        };
        let ((key, key_length), (value, value_length)) = (parts(&next.key), parts(&next.value));
        let (offset, timestamp) = (next.offset, next.timestamp);
        let found = loglane_record { offset, timestamp, key, key_length, value, value_length };
        reader.next += 1;
        // SAFETY: record may be written to, as the caller says.
        unsafe { write(record, found) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Gives a walk over records back; what its records pointed to is gone.
///
/// LOGLANE_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn loglane_records_release(records: loglane_records) -> i32 {
    release(&RECORDS, records, "a walk over records")
}
