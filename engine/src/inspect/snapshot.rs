//! Producer snapshots and transaction indexes: Kafka's fixed-width files, read and checked.

#![forbid(unsafe_code)]

use super::{base_offset_of, read_whole};
use crate::error::{Error, Result};
use crate::producers::{AbortedTransaction, ProducerState, decode_aborted, decode_snapshot};
use std::path::Path;

/// Reads a `.snapshot` file and checks its CRC.
///
/// # Errors
/// [`Error::Format`] with what does not hold, [`Error::NotFound`], [`Error::Io`].
pub fn producer_snapshot(path: &Path) -> Result<Vec<ProducerState>> {
    decode_snapshot(&read_whole(path)?)
        .map_err(|reason| Error::Format { path: path.to_owned(), reason })
}

/// Reads a `.txnindex` file; last offsets must rise.
///
/// # Errors
/// As [`producer_snapshot`].
pub fn aborted_transactions(path: &Path) -> Result<Vec<AbortedTransaction>> {
    decode_aborted(&read_whole(path)?, base_offset_of(path).unwrap_or(0))
        .map_err(|reason| Error::Format { path: path.to_owned(), reason })
}
