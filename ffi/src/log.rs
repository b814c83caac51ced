//! Engines, partitions and leases.

use crate::handle::Table;
use crate::status::{Fault, call, loglane_error};
use crate::{bytes, give, not_null, string, write};
use engine::io::BackendChoice;
use engine::{
    AppendOptions, Config, Durability, Engine, Error, FetchOptions, Isolation, Lease, Offset,
    Partition,
};
use std::ffi::c_char;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

static ENGINES: Table<Engine> = Table::new(1);
static PARTITIONS: Table<Partition> = Table::new(2);
static LEASES: Table<Lease> = Table::new(3);

/// An open data directory.
pub type loglane_engine = u64;
/// A partition of an open engine.
pub type loglane_partition = u64;
/// Byte ranges of segment files that hold whole batches. The files stay until it is released.
pub type loglane_lease = u64;

/// Answered when in the page cache: survives the process, not the machine.
pub const LOGLANE_WRITTEN: i32 = 0;
/// Answered when on disk, with every record before it in its partition.
pub const LOGLANE_DURABLE: i32 = 1;
/// Fetch up to the high watermark: what consumers may see.
pub const LOGLANE_HIGH_WATERMARK: i32 = 0;
/// Fetch up to the log end offset: what followers fetch.
pub const LOGLANE_LOG_END: i32 = 1;
/// io_uring if it can be used, else plain calls.
pub const LOGLANE_BACKEND_AUTO: i32 = 0;
/// io_uring, or an error.
pub const LOGLANE_BACKEND_IO_URING: i32 = 1;
/// Plain calls.
pub const LOGLANE_BACKEND_PLAIN: i32 = 2;

/// How a data directory is opened. Zero in a field means its default.
#[repr(C)]
pub struct loglane_engine_options {
    /// sizeof(loglane_engine_options), set by the caller.
    pub struct_size: u32,
    /// Threads that own partitions, 1 to 256; default one for each core.
    pub shards: u32,
    /// One of LOGLANE_BACKEND_.
    pub backend: i32,
    /// Largest segment file in bytes, 1024 to 2^31 - 1; default 1 GiB.
    pub segment_bytes: u32,
    /// The data directory, NUL-terminated; created if missing. Read during the call only.
    pub dir: *const c_char,
    /// Most bytes submitted to a shard and not completed; default 64 MiB.
    pub inflight_bytes_max: u64,
}

/// What became of an append.
#[repr(C)]
pub struct loglane_receipt {
    /// Offset of its first record.
    pub base_offset: i64,
    /// Offset of its last record.
    pub last_offset: i64,
    /// Epoch its batches were stamped with.
    pub leader_epoch: i32,
    /// LOGLANE_WRITTEN or LOGLANE_DURABLE: the class that was met.
    pub durability: i32,
}

/// The offsets of a partition.
#[repr(C)]
pub struct loglane_offsets {
    /// First offset that can be read.
    pub log_start_offset: i64,
    /// What consumers may read up to.
    pub high_watermark: i64,
    /// The next record's offset.
    pub log_end_offset: i64,
    /// Everything below is on disk.
    pub durable_offset: i64,
}

/// What a fetch found.
#[repr(C)]
pub struct loglane_fetch_info {
    /// Bytes in all ranges; 0 when there is nothing to read yet.
    pub bytes: u64,
    /// The offset to fetch from next.
    pub next_offset: i64,
    /// High watermark of the partition.
    pub high_watermark: i64,
    /// First offset of the partition.
    pub log_start_offset: i64,
    /// Log end offset of the partition.
    pub log_end_offset: i64,
    /// How many ranges there are.
    pub ranges: u32,
    /// 0.
    pub reserved: u32,
}

/// One range of a lease.
#[repr(C)]
pub struct loglane_range {
    /// Descriptor of the file, the library's: valid until the lease is released; do not close it.
    pub fd: i32,
    /// Bytes.
    pub length: u32,
    /// First byte.
    pub position: u64,
}

/// Opens a data directory and recovers what a crash left. The handle is the caller's until
/// loglane_engine_close.
///
/// LOGLANE_CONFIG, LOGLANE_LOCKED, LOGLANE_READ_ONLY, LOGLANE_FORMAT, LOGLANE_IO,
/// LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_engine_open(
    options: *const loglane_engine_options,
    engine: *mut loglane_engine,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        not_null(engine.cast_const(), "engine is NULL")?;
        not_null(options, "options is NULL")?;
        // SAFETY: not NULL, and it begins with its size as the caller says.
        let size = unsafe { options.cast::<u32>().read() };
        if size as usize != size_of::<loglane_engine_options>() {
            return Err(Fault::Argument("struct_size is not that of loglane_engine_options"));
        }
        // SAFETY: its size is that of the whole struct.
        let options = unsafe { &*options };
        // SAFETY: NULL or NUL-terminated, as the caller says.
        let mut config = Config::new(unsafe { string(options.dir) }?);
        config.backend = match options.backend {
            LOGLANE_BACKEND_AUTO => BackendChoice::Auto,
            LOGLANE_BACKEND_IO_URING => BackendChoice::IoUring,
            LOGLANE_BACKEND_PLAIN => BackendChoice::Plain,
            _ => return Err(Fault::Argument("backend is none of LOGLANE_BACKEND_")),
        };
        if options.shards > 0 {
            config.shards = options.shards as usize;
        }
        if options.segment_bytes > 0 {
            config.partition.segment_bytes = options.segment_bytes;
        }
        if options.inflight_bytes_max > 0 {
            config.inflight_bytes_max = options.inflight_bytes_max;
        }
        // SAFETY: engine may be written to, as the caller says.
        unsafe { give(&ENGINES, Engine::open(config)?, engine) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Flushes everything, marks the directory as closed, and releases the handle, also when it fails.
/// Partition handles give LOGLANE_CLOSED from then on; leases stay valid until released.
///
/// LOGLANE_INVALID_HANDLE, LOGLANE_NO_SPACE, LOGLANE_IO, LOGLANE_PARTITION_FAILED.
///
/// # Safety
/// error is NULL or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_engine_close(
    engine: loglane_engine,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let engine = ENGINES.remove(engine).ok_or(Fault::Handle("an engine"))?;
        Ok(engine.shut_down()?)
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Makes the partitions 0 to partitions - 1 of a new topic.
///
/// LOGLANE_TOPIC_NAME, LOGLANE_ALREADY_EXISTS, LOGLANE_CONFIG, LOGLANE_NO_SPACE, LOGLANE_IO,
/// LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_topic_create(
    engine: loglane_engine,
    topic: *const c_char,
    partitions: u32,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let engine = ENGINES.get(engine).ok_or(Fault::Handle("an engine"))?;
        // SAFETY: NULL or NUL-terminated, as the caller says.
        engine.create_topic(unsafe { string(topic) }?, partitions)?;
        Ok(())
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// A handle on a partition that exists, the caller's until loglane_partition_release.
///
/// LOGLANE_NOT_FOUND, LOGLANE_TOPIC_NAME, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_partition_open(
    engine: loglane_engine,
    topic: *const c_char,
    number: u32,
    partition: *mut loglane_partition,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let engine = ENGINES.get(engine).ok_or(Fault::Handle("an engine"))?;
        // SAFETY: NULL or NUL-terminated, as the caller says.
        let found = engine.partition(unsafe { string(topic) }?, number)?;
        // SAFETY: partition may be written to, as the caller says.
        unsafe { give(&PARTITIONS, found, partition) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Gives a partition's handle back. The partition stays open.
///
/// LOGLANE_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn loglane_partition_release(partition: loglane_partition) -> i32 {
    release(&PARTITIONS, partition, "a partition")
}

/// Appends one or more record batches, one behind the other, all or none, and waits until they are
/// LOGLANE_WRITTEN or LOGLANE_DURABLE. The log assigns offsets. The bytes are copied.
///
/// LOGLANE_INVALID_BATCH, LOGLANE_TOO_LARGE, LOGLANE_EPOCH_FENCED, LOGLANE_NO_SPACE, LOGLANE_IO,
/// LOGLANE_PARTITION_FAILED, LOGLANE_CLOSED, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says; batches points to length bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_append(
    partition: loglane_partition,
    batches: *const u8,
    length: usize,
    durability: i32,
    receipt: *mut loglane_receipt,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let partition = open_partition(partition)?;
        not_null(receipt.cast_const(), "receipt is NULL")?;
        let durability = match durability {
            LOGLANE_WRITTEN => Durability::Written,
            LOGLANE_DURABLE => Durability::Durable,
            _ => return Err(Fault::Argument("durability is no class")),
        };
        // SAFETY: length bytes, as the caller says; copied in this line.
        let batches = unsafe { bytes(batches, length) }?.to_vec();
        let options = AppendOptions { durability, leader_epoch: None };
        let info = partition.append(batches, options)?;
        let value = loglane_receipt {
            base_offset: info.base_offset.0,
            last_offset: info.last_offset.0,
            leader_epoch: info.leader_epoch.0,
            durability: match info.durability {
                Durability::Written => LOGLANE_WRITTEN,
                Durability::Durable => LOGLANE_DURABLE,
            },
        };
        // SAFETY: receipt may be written to, as the caller says.
        unsafe { write(receipt, value) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Makes everything appended so far durable. durable_offset gets the durable offset.
///
/// LOGLANE_PARTITION_FAILED, LOGLANE_CLOSED, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_flush(
    partition: loglane_partition,
    durable_offset: *mut i64,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let partition = open_partition(partition)?;
        not_null(durable_offset.cast_const(), "durable_offset is NULL")?;
        let durable = partition.flush()?;
        // SAFETY: durable_offset may be written to, as the caller says.
        unsafe { write(durable_offset, durable.0) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// The offsets of a partition.
///
/// LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_partition_offsets(
    partition: loglane_partition,
    offsets: *mut loglane_offsets,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let stat = open_partition(partition)?.stat();
        let value = loglane_offsets {
            log_start_offset: stat.log_start_offset.0,
            high_watermark: stat.high_watermark.0,
            log_end_offset: stat.log_end_offset.0,
            durable_offset: stat.durable_offset.0,
        };
        // SAFETY: offsets may be written to, as the caller says.
        unsafe { write(offsets, value) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Finds at most max_bytes of whole batches from offset on; the first batch comes whole even if it is
/// larger. The lease is the caller's until loglane_lease_release, also when info->bytes is 0.
///
/// LOGLANE_OFFSET_OUT_OF_RANGE, LOGLANE_DAMAGED (error->next_offset says where to go on),
/// LOGLANE_TOO_MANY_OPEN_FILES, LOGLANE_IO, LOGLANE_CLOSED, LOGLANE_INVALID_HANDLE,
/// LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_fetch(
    partition: loglane_partition,
    offset: i64,
    max_bytes: u64,
    isolation: i32,
    lease: *mut loglane_lease,
    info: *mut loglane_fetch_info,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let partition = open_partition(partition)?;
        not_null(lease.cast_const(), "lease is NULL")?;
        not_null(info.cast_const(), "info is NULL")?;
        let isolation = match isolation {
            LOGLANE_HIGH_WATERMARK => Isolation::HighWatermark,
            LOGLANE_LOG_END => Isolation::LogEnd,
            _ => return Err(Fault::Argument("isolation is none of the two")),
        };
        let found = partition
            .fetch(Offset(offset), &FetchOptions { max_bytes, isolation, ..Default::default() })?;
        let value = loglane_fetch_info {
            bytes: found.bytes(),
            next_offset: found.next_offset().0,
            high_watermark: found.high_watermark().0,
            log_start_offset: found.log_start_offset().0,
            log_end_offset: found.log_end_offset().0,
            ranges: u32::try_from(found.ranges().len()).unwrap_or(u32::MAX),
            reserved: 0,
        };
        // SAFETY: lease may be written to, as the caller says.
        unsafe { give(&LEASES, found, lease) }?;
        // SAFETY: info may be written to, as the caller says.
        unsafe { write(info, value) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Range number index of a lease, from 0.
///
/// LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_lease_range(
    lease: loglane_lease,
    index: u32,
    range: *mut loglane_range,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let lease = open_lease(lease)?;
        let found = lease.ranges().get(index as usize);
        let found = found.ok_or(Fault::Argument("the lease has no range of this number"))?;
        let value = loglane_range {
            fd: found.fd().map_or(-1, |fd| fd.as_raw_fd()),
            length: found.length(),
            position: found.position().0.into(),
        };
        // SAFETY: range may be written to, as the caller says.
        unsafe { write(range, value) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Sends bytes of a lease, from byte `from` on, to a socket by sendfile(2). sent gets how many went out:
/// all on a blocking socket, perhaps fewer on a non-blocking one, 0 when it would block.
///
/// LOGLANE_IO, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says; socket is open during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_lease_send(
    lease: loglane_lease,
    socket: i32,
    from: u64,
    sent: *mut u64,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let lease = open_lease(lease)?;
        not_null(sent.cast_const(), "sent is NULL")?;
        if socket < 0 {
            return Err(Fault::Argument("socket is negative"));
        }
        // SAFETY: not negative, and open during the call as the caller says.
        let socket = unsafe { BorrowedFd::borrow_raw(socket) };
        let went = lease.send(socket, from)?;
        // SAFETY: sent may be written to, as the caller says.
        unsafe { write(sent, went) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Copies bytes of a lease, from byte `from` on, into buffer. copied gets how many.
///
/// LOGLANE_IO, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.
///
/// # Safety
/// Pointers are NULL or as the header says; buffer has room for capacity bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loglane_lease_copy(
    lease: loglane_lease,
    from: u64,
    buffer: *mut u8,
    capacity: usize,
    copied: *mut usize,
    error: *mut loglane_error,
) -> i32 {
    let run = || {
        let lease = open_lease(lease)?;
        not_null(copied.cast_const(), "copied is NULL")?;
        let left = usize::try_from(lease.bytes().saturating_sub(from)).unwrap_or(usize::MAX);
        let length = left.min(capacity);
        let mut count = 0;
        if length > 0 {
            not_null(buffer.cast_const(), "buffer is NULL")?;
            // SAFETY: not NULL, with room for capacity bytes; zeroed so that it may be borrowed.
            unsafe { buffer.write_bytes(0, length) };
            // SAFETY: written a line above, and no other thread may use it meanwhile.
            let buffer = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
            count = lease.copy(from, buffer)?;
        }
        // SAFETY: copied may be written to, as the caller says.
        unsafe { write(copied, count) }
    };
    // SAFETY: error is as the caller says.
    unsafe { call(error, run) }
}

/// Gives a lease back. Its descriptors are not to be used from then on.
///
/// LOGLANE_INVALID_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn loglane_lease_release(lease: loglane_lease) -> i32 {
    release(&LEASES, lease, "a lease")
}

fn open_partition(handle: u64) -> Result<Arc<Partition>, Fault> {
    PARTITIONS.get(handle).ok_or(Fault::Handle("a partition"))
}

fn open_lease(handle: u64) -> Result<Arc<Lease>, Fault> {
    LEASES.get(handle).ok_or(Fault::Handle("a lease"))
}

/// Releases a handle, whoever uses the object at this moment keeps it until done.
pub(crate) fn release<T>(table: &Table<T>, handle: u64, what: &'static str) -> i32 {
    let run = || table.remove(handle).map(drop).ok_or(Fault::Handle(what));
    // SAFETY: there is no error to write to.
    unsafe { call(std::ptr::null_mut(), run) }
}

/// An engine's fault about a batch that was never near a partition.
pub(crate) fn batch_fault(fault: engine::format::BatchFault, position: usize) -> Fault {
    Fault::Engine(Error::InvalidBatch { partition: "no partition".into(), position, fault })
}
