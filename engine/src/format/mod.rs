//! Kafka's record batch, magic 2: bytes in, bytes out. This module knows no files.
//!
//! A batch is checked once ([`Batch::check`]) and trusted after: a [`Batch`] exists only if its size
//! and CRC hold. The layout is in `batch`, with byte positions; docs/FORMAT.md has the rules.

#![forbid(unsafe_code)]

mod batch;
mod builder;
mod codec;
mod crc;
mod fault;
mod record;
mod rewrite;
mod varint;

pub use batch::{Attributes, Batch, BatchHeader, Batches, HEADER_BYTES, TimestampType, stamp};
pub use builder::BatchBuilder;
pub use codec::{Codec, DECOMPRESSED_BYTES_MAX, compress, decompress};
pub use crc::crc32c;
pub use fault::BatchFault;
pub use record::{ControlType, DecodedBatch, Header, Headers, Record, Records};
pub(crate) use rewrite::Rewriter;
