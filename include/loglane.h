/*
 * Loglane: a storage engine for partitioned, append-only logs on Kafka's own files. The C ABI, first cut.
 *
 * Rules, for every function:
 *  - It returns a status: LOGLANE_OK (0) or one of the LOGLANE_ codes below. Outputs are written only on
 *    LOGLANE_OK. Where an `error` may be passed it may be NULL; otherwise set its struct_size first.
 *  - Handles are numbers, not pointers. A handle that is 0, released, closed, or of another kind gives
 *    LOGLANE_INVALID_HANDLE. Every handle may be used from any thread, and by several at once.
 *  - Bytes in are copied before the call returns. Nothing the library allocates is freed by the caller;
 *    what a handle gave out lives until the handle is released.
 *  - Strings in are NUL-terminated UTF-8. Offsets count records, positions and lengths count bytes, times
 *    are Unix milliseconds.
 *  - No call unwinds or aborts the process; a fault of the library's own is LOGLANE_PANIC.
 *  - A send to a closed peer raises SIGPIPE in a process that does not ignore it.
 *
 * Generated from the documented Rust of ffi/: change it there, then run `make header`.
 */

#ifndef LOGLANE_H
#define LOGLANE_H

#include <stddef.h>
#include <stdint.h>

/*
 The version of this ABI. It rises when a call or a struct changes its meaning.
 */
#define LOGLANE_ABI_VERSION 1

/*
 Answered when in the page cache: survives the process, not the machine.
 */
#define LOGLANE_WRITTEN 0

/*
 Answered when on disk, with every record before it in its partition.
 */
#define LOGLANE_DURABLE 1

/*
 Fetch up to the high watermark: what consumers may see.
 */
#define LOGLANE_HIGH_WATERMARK 0

/*
 Fetch up to the log end offset: what followers fetch.
 */
#define LOGLANE_LOG_END 1

/*
 io_uring if it can be used, else plain calls.
 */
#define LOGLANE_BACKEND_AUTO 0

/*
 io_uring, or an error.
 */
#define LOGLANE_BACKEND_IO_URING 1

/*
 Plain calls.
 */
#define LOGLANE_BACKEND_PLAIN 2

/*
 Done.
 */
#define LOGLANE_OK 0

/*
 A setting is out of range. Fix the call.
 */
#define LOGLANE_CONFIG 1

/*
 A topic name that Kafka would refuse. Fix the call.
 */
#define LOGLANE_TOPIC_NAME 2

/*
 No such topic, partition, file or directory. Fix the call.
 */
#define LOGLANE_NOT_FOUND 3

/*
 The partition exists already. Fix the call, or use it.
 */
#define LOGLANE_ALREADY_EXISTS 4

/*
 Another process owns the directory. Stop it.
 */
#define LOGLANE_LOCKED 5

/*
 The file system is read-only. Fix the mount.
 */
#define LOGLANE_READ_ONLY 6

/*
 The batch handed in cannot be stored. Fix the call; nothing was written.
 */
#define LOGLANE_INVALID_BATCH 7

/*
 The batch is over a limit. Fix the call or the setting; nothing was written.
 */
#define LOGLANE_TOO_LARGE 8

/*
 Before the log start or past the readable end. Fix the call.
 */
#define LOGLANE_OFFSET_OUT_OF_RANGE 9

/*
 A follower's batch does not continue the log. Fix the call.
 */
#define LOGLANE_OFFSET_MISMATCH 10

/*
 The leader epoch given is older than the partition's. Stop: another leads.
 */
#define LOGLANE_EPOCH_FENCED 11

/*
 Bytes on disk are not what was written. Restore, or skip past them.
 */
#define LOGLANE_DAMAGED 12

/*
 A file of a format this version does not read. Restore.
 */
#define LOGLANE_FORMAT 13

/*
 The shard's mailbox is full. Retry.
 */
#define LOGLANE_BUSY 14

/*
 The disk is full; nothing of this call was written. Free space and retry.
 */
#define LOGLANE_NO_SPACE 15

/*
 No file descriptor left. Raise the limit and retry.
 */
#define LOGLANE_TOO_MANY_OPEN_FILES 16

/*
 The system refused a call; os_errno says which way.
 */
#define LOGLANE_IO 17

/*
 A flush failed; the partition takes no more appends. Reopen.
 */
#define LOGLANE_PARTITION_FAILED 18

/*
 Engine, partition or lease is closed. Reopen.
 */
#define LOGLANE_CLOSED 19

/*
 Not done within the time given. Retry or wait.
 */
#define LOGLANE_TIMEOUT 20

/*
 A handle that is 0, released, or of another kind. Fix the call.
 */
#define LOGLANE_INVALID_HANDLE 21

/*
 A pointer that is NULL or a value out of range. Fix the call.
 */
#define LOGLANE_INVALID_ARGUMENT 22

/*
 A fault of the library's own; please report it.
 */
#define LOGLANE_PANIC 23

/*
 The offset was cut away by a truncation: compare leader epochs.
 */
#define LOGLANE_TRUNCATED 24

/*
 A pin holds records that the call would delete.
 */
#define LOGLANE_PINNED 25

/*
 A producer's batch does not follow its last one. Answer the client.
 */
#define LOGLANE_OUT_OF_ORDER_SEQUENCE 26

/*
 The producer epoch is older than the partition's. Answer the client.
 */
#define LOGLANE_PRODUCER_FENCED 27

/*
 A producer's batch leaves out its open transaction. Answer the client.
 */
#define LOGLANE_INVALID_TRANSACTION_STATE 28

/*
 The coordinator epoch is older than the partition's. Answer the coordinator.
 */
#define LOGLANE_COORDINATOR_FENCED 29

/*
 Bytes of a message, its NUL included.
 */
#define LOGLANE_MESSAGE_BYTES 512

/*
 A batch in the making.
 */
typedef uint64_t loglane_batch;

/*
 What went wrong, in numbers and in words. The caller owns it and sets struct_size.
 */
typedef struct loglane_error {
  /*
   sizeof(loglane_error), set by the caller. Any other size leaves the struct untouched.
   */
  uint32_t struct_size;
  /*
   The status the call returned.
   */
  int32_t code;
  /*
   errno, or 0.
   */
  int32_t os_errno;
  /*
   0.
   */
  int32_t reserved;
  /*
   The offset it is about, or -1.
   */
  int64_t offset;
  /*
   Where to go on after damage, the end of what can be read, or -1.
   */
  int64_t next_offset;
  /*
   The byte position it is about, or -1.
   */
  int64_t position;
  /*
   A sentence, NUL-terminated, cut to fit.
   */
  char message[LOGLANE_MESSAGE_BYTES];
} loglane_error;

/*
 A walk over the records of some batches.
 */
typedef uint64_t loglane_records;

/*
 A record. Pointers live until the loglane_records they came from is released.
 */
typedef struct loglane_record {
  /*
   Its offset in the partition.
   */
  int64_t offset;
  /*
   Unix milliseconds; -1 none.
   */
  int64_t timestamp;
  /*
   NULL for a null key.
   */
  const uint8_t *key;
  /*
   Bytes of the key.
   */
  size_t key_length;
  /*
   NULL for a null value.
   */
  const uint8_t *value;
  /*
   Bytes of the value.
   */
  size_t value_length;
} loglane_record;

/*
 How a data directory is opened. Zero in a field means its default.
 */
typedef struct loglane_engine_options {
  /*
   sizeof(loglane_engine_options), set by the caller.
   */
  uint32_t struct_size;
  /*
   Threads that own partitions, 1 to 256; default one for each core.
   */
  uint32_t shards;
  /*
   One of LOGLANE_BACKEND_.
   */
  int32_t backend;
  /*
   Largest segment file in bytes, 1024 to 2^31 - 1; default 1 GiB.
   */
  uint32_t segment_bytes;
  /*
   The data directory, NUL-terminated; created if missing. Read during the call only.
   */
  const char *dir;
  /*
   Most bytes submitted to a shard and not completed; default 64 MiB.
   */
  uint64_t inflight_bytes_max;
} loglane_engine_options;

/*
 An open data directory.
 */
typedef uint64_t loglane_engine;

/*
 A partition of an open engine.
 */
typedef uint64_t loglane_partition;

/*
 What became of an append.
 */
typedef struct loglane_receipt {
  /*
   Offset of its first record.
   */
  int64_t base_offset;
  /*
   Offset of its last record.
   */
  int64_t last_offset;
  /*
   Epoch its batches were stamped with.
   */
  int32_t leader_epoch;
  /*
   LOGLANE_WRITTEN or LOGLANE_DURABLE: the class that was met.
   */
  int32_t durability;
} loglane_receipt;

/*
 The offsets of a partition.
 */
typedef struct loglane_offsets {
  /*
   First offset that can be read.
   */
  int64_t log_start_offset;
  /*
   What consumers may read up to.
   */
  int64_t high_watermark;
  /*
   The next record's offset.
   */
  int64_t log_end_offset;
  /*
   Everything below is on disk.
   */
  int64_t durable_offset;
} loglane_offsets;

/*
 Byte ranges of segment files that hold whole batches. The files stay until it is released.
 */
typedef uint64_t loglane_lease;

/*
 What a fetch found.
 */
typedef struct loglane_fetch_info {
  /*
   Bytes in all ranges; 0 when there is nothing to read yet.
   */
  uint64_t bytes;
  /*
   The offset to fetch from next.
   */
  int64_t next_offset;
  /*
   High watermark of the partition.
   */
  int64_t high_watermark;
  /*
   First offset of the partition.
   */
  int64_t log_start_offset;
  /*
   Log end offset of the partition.
   */
  int64_t log_end_offset;
  /*
   How many ranges there are.
   */
  uint32_t ranges;
  /*
   0.
   */
  uint32_t reserved;
} loglane_fetch_info;

/*
 One range of a lease.
 */
typedef struct loglane_range {
  /*
   Descriptor of the file, the library's: valid until the lease is released; do not close it.
   */
  int32_t fd;
  /*
   Bytes.
   */
  uint32_t length;
  /*
   First byte.
   */
  uint64_t position;
} loglane_range;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 The version of the ABI the library was built with: compare with LOGLANE_ABI_VERSION at start-up.
 */
uint32_t loglane_abi_version(void);

/*
 A few words on a status, NUL-terminated, valid for ever. Never NULL.
 */
const char *loglane_status_text(int32_t status);

/*
 Starts a batch. codec is 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd. The handle is the caller's until
 loglane_batch_release.

 LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says.
 */
int32_t loglane_batch_new(uint8_t codec, loglane_batch *batch, struct loglane_error *error);

/*
 Adds a record. key or value is NULL, with length 0, for null. The bytes are copied.

 LOGLANE_INVALID_BATCH if it would be too large, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says, with as many bytes as their lengths say.
 */
int32_t loglane_batch_add(loglane_batch batch,
                          int64_t timestamp,
                          const uint8_t *key,
                          size_t key_length,
                          const uint8_t *value,
                          size_t value_length,
                          struct loglane_error *error);

/*
 Finishes a batch. length gets its size; buffer gets its bytes if capacity is enough for all of them,
 else nothing: call again with more room.

 LOGLANE_INVALID_BATCH without records, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says; buffer has room for capacity bytes.
 */
int32_t loglane_batch_finish(loglane_batch batch,
                             uint8_t *buffer,
                             size_t capacity,
                             size_t *length,
                             struct loglane_error *error);

/*
 Gives a batch back.

 LOGLANE_INVALID_HANDLE.
 */
int32_t loglane_batch_release(loglane_batch batch);

/*
 Reads the records of whole batches, as a fetch gives them, checking every CRC. Control batches are
 passed over. The bytes are copied; the handle is the caller's until loglane_records_release.

 LOGLANE_INVALID_BATCH with the position of the first batch that does not hold,
 LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says; batches points to length bytes.
 */
int32_t loglane_records_open(const uint8_t *batches,
                             size_t length,
                             loglane_records *records,
                             struct loglane_error *error);

/*
 The next record; LOGLANE_NOT_FOUND after the last.

 LOGLANE_NOT_FOUND, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says.
 */
int32_t loglane_records_next(loglane_records records,
                             struct loglane_record *record,
                             struct loglane_error *error);

/*
 Gives a walk over records back; what its records pointed to is gone.

 LOGLANE_INVALID_HANDLE.
 */
int32_t loglane_records_release(loglane_records records);

/*
 Opens a data directory and recovers what a crash left. The handle is the caller's until
 loglane_engine_close.

 LOGLANE_CONFIG, LOGLANE_LOCKED, LOGLANE_READ_ONLY, LOGLANE_FORMAT, LOGLANE_IO,
 LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says.
 */
int32_t loglane_engine_open(const struct loglane_engine_options *options,
                            loglane_engine *engine,
                            struct loglane_error *error);

/*
 Flushes everything, marks the directory as closed, and releases the handle, also when it fails.
 Partition handles give LOGLANE_CLOSED from then on; leases stay valid until released.

 LOGLANE_INVALID_HANDLE, LOGLANE_NO_SPACE, LOGLANE_IO, LOGLANE_PARTITION_FAILED.

 # Safety
 error is NULL or as the header says.
 */
int32_t loglane_engine_close(loglane_engine engine, struct loglane_error *error);

/*
 Makes the partitions 0 to partitions - 1 of a new topic.

 LOGLANE_TOPIC_NAME, LOGLANE_ALREADY_EXISTS, LOGLANE_CONFIG, LOGLANE_NO_SPACE, LOGLANE_IO,
 LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says.
 */
int32_t loglane_topic_create(loglane_engine engine,
                             const char *topic,
                             uint32_t partitions,
                             struct loglane_error *error);

/*
 A handle on a partition that exists, the caller's until loglane_partition_release.

 LOGLANE_NOT_FOUND, LOGLANE_TOPIC_NAME, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says.
 */
int32_t loglane_partition_open(loglane_engine engine,
                               const char *topic,
                               uint32_t number,
                               loglane_partition *partition,
                               struct loglane_error *error);

/*
 Gives a partition's handle back. The partition stays open.

 LOGLANE_INVALID_HANDLE.
 */
int32_t loglane_partition_release(loglane_partition partition);

/*
 Appends one or more record batches, one behind the other, all or none, and waits until they are
 LOGLANE_WRITTEN or LOGLANE_DURABLE. The log assigns offsets. The bytes are copied.

 LOGLANE_INVALID_BATCH, LOGLANE_TOO_LARGE, LOGLANE_EPOCH_FENCED, LOGLANE_NO_SPACE, LOGLANE_IO,
 LOGLANE_PARTITION_FAILED, LOGLANE_CLOSED, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says; batches points to length bytes.
 */
int32_t loglane_append(loglane_partition partition,
                       const uint8_t *batches,
                       size_t length,
                       int32_t durability,
                       struct loglane_receipt *receipt,
                       struct loglane_error *error);

/*
 Makes everything appended so far durable. durable_offset gets the durable offset.

 LOGLANE_PARTITION_FAILED, LOGLANE_CLOSED, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says.
 */
int32_t loglane_flush(loglane_partition partition,
                      int64_t *durable_offset,
                      struct loglane_error *error);

/*
 The offsets of a partition.

 LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says.
 */
int32_t loglane_partition_offsets(loglane_partition partition,
                                  struct loglane_offsets *offsets,
                                  struct loglane_error *error);

/*
 Finds at most max_bytes of whole batches from offset on; the first batch comes whole even if it is
 larger. The lease is the caller's until loglane_lease_release, also when info->bytes is 0.

 LOGLANE_OFFSET_OUT_OF_RANGE, LOGLANE_DAMAGED (error->next_offset says where to go on),
 LOGLANE_TOO_MANY_OPEN_FILES, LOGLANE_IO, LOGLANE_CLOSED, LOGLANE_INVALID_HANDLE,
 LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says.
 */
int32_t loglane_fetch(loglane_partition partition,
                      int64_t offset,
                      uint64_t max_bytes,
                      int32_t isolation,
                      loglane_lease *lease,
                      struct loglane_fetch_info *info,
                      struct loglane_error *error);

/*
 Range number index of a lease, from 0.

 LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says.
 */
int32_t loglane_lease_range(loglane_lease lease,
                            uint32_t index,
                            struct loglane_range *range,
                            struct loglane_error *error);

/*
 Sends bytes of a lease, from byte `from` on, to a socket by sendfile(2). sent gets how many went out:
 all on a blocking socket, perhaps fewer on a non-blocking one, 0 when it would block.

 LOGLANE_IO, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says; socket is open during the call.
 */
int32_t loglane_lease_send(loglane_lease lease,
                           int32_t socket,
                           uint64_t from,
                           uint64_t *sent,
                           struct loglane_error *error);

/*
 Copies bytes of a lease, from byte `from` on, into buffer. copied gets how many.

 LOGLANE_IO, LOGLANE_INVALID_HANDLE, LOGLANE_INVALID_ARGUMENT.

 # Safety
 Pointers are NULL or as the header says; buffer has room for capacity bytes.
 */
int32_t loglane_lease_copy(loglane_lease lease,
                           uint64_t from,
                           uint8_t *buffer,
                           size_t capacity,
                           size_t *copied,
                           struct loglane_error *error);

/*
 Gives a lease back. Its descriptors are not to be used from then on.

 LOGLANE_INVALID_HANDLE.
 */
int32_t loglane_lease_release(loglane_lease lease);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LOGLANE_H */
