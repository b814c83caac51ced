//! What can be wrong with a batch, in numbers.

#![forbid(unsafe_code)]

use super::codec::Codec;

/// Why bytes are no batch, or not one that may be stored.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchFault {
    /// The bytes end before the batch does.
    #[error("cut short: {needed} bytes are needed, {have} are there")]
    Truncated {
        /// Bytes the batch has by its own word.
        needed: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// Not format version 2.
    #[error("magic is {0}; only 2 is supported (0 and 1 were written before Kafka 0.11)")]
    Magic(i8),
    /// A length that no batch has.
    #[error("length field is {0}; a batch has at least 49 bytes after it")]
    Length(i32),
    /// The checksum does not match the bytes.
    #[error("CRC-32C is {found:#010x}, the header says {expected:#010x}")]
    Crc {
        /// As the header says.
        expected: u32,
        /// Of the bytes.
        found: u32,
    },
    /// A base offset that does not fit its place.
    #[error("base offset is {found}; at least {expected} belongs here")]
    BaseOffset {
        /// Lowest that fits.
        expected: i64,
        /// As the header says.
        found: i64,
    },
    /// Record count and last offset delta do not go together.
    #[error(
        "record count is {count} and last offset delta {last_offset_delta}; they differ by one"
    )]
    Count {
        /// As the header says.
        count: i32,
        /// As the header says.
        last_offset_delta: i32,
    },
    /// An unknown compression codec.
    #[error("codec {0} is unknown; 0 to 4 are none, gzip, snappy, lz4 and zstd")]
    Codec(u8),
    /// Compressed records do not decompress.
    #[error("{codec} data does not decompress: {reason}")]
    Decompress {
        /// The codec.
        codec: Codec,
        /// What the codec said.
        reason: String,
    },
    /// Decompressed records are over the limit.
    #[error("decompressed records are over {max} bytes")]
    DecompressedSize {
        /// The limit.
        max: usize,
    },
    /// A variable-length integer that does not end, or not within its width.
    #[error("malformed varint in record {record}")]
    Varint {
        /// Number of the record in its batch, from 0.
        record: i32,
    },
    /// A record, key, value or header length that does not fit.
    #[error("length {length} in record {record} does not fit the {have} bytes left")]
    RecordLength {
        /// Number of the record in its batch, from 0.
        record: i32,
        /// The length.
        length: i64,
        /// What is left.
        have: usize,
    },
    /// Offset deltas must count up from 0.
    #[error("record {record} has offset delta {found}")]
    OffsetDelta {
        /// Number of the record in its batch, from 0: what the delta must be.
        record: i32,
        /// What it is.
        found: i32,
    },
    /// Bytes behind the last record.
    #[error("{0} bytes behind the last record")]
    TrailingBytes(usize),
    /// A header key that is null or not UTF-8.
    #[error("header key in record {record} is null or not UTF-8")]
    HeaderKey {
        /// Number of the record in its batch, from 0.
        record: i32,
    },
    /// A record without a key, for a compacted partition.
    #[error("record {record} has no key, which a compacted partition asks for")]
    KeyMissing {
        /// Number of the record in its batch, from 0.
        record: i32,
    },
    /// Clients may not append control batches.
    #[error("a control batch may not be appended by a client")]
    Control,
    /// A producer id needs a sequence.
    #[error("producer id {producer_id} comes with base sequence {base_sequence}")]
    Sequence {
        /// As the header says.
        producer_id: i64,
        /// As the header says.
        base_sequence: i32,
    },
    /// Nothing was handed in.
    #[error("there is no batch in the input")]
    Empty,
    /// A record that would make its batch larger than a batch can be.
    #[error("a batch cannot be larger than 2147483647 bytes or records")]
    TooLarge,
}
