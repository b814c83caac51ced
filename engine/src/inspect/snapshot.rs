//! Producer snapshots and transaction indexes: Kafka's fixed-width files, read and checked.
//!
//! ```text
//! .snapshot   int16 version 1 · uint32 CRC-32C of the rest · int32 count · count × 46 bytes
//! .txnindex   34-byte entries: int16 version 0 · int64 producer id · first, last, stable offset
//! ```

#![forbid(unsafe_code)]

use super::read_whole;
use crate::error::{Error, Result};
use crate::format::crc32c;
use std::path::Path;

const PRODUCER_BYTES: usize = 46;
const ABORTED_BYTES: usize = 34;

/// The last batch of one producer, as a snapshot has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerState {
    /// Its id.
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i16,
    /// Sequence of its last record.
    pub last_sequence: i32,
    /// Offset of its last record.
    pub last_offset: i64,
    /// Records in its last batch, less one.
    pub offset_delta: i32,
    /// Timestamp of its last batch.
    pub timestamp: i64,
    /// Epoch of the transaction coordinator; −1 none.
    pub coordinator_epoch: i32,
    /// First offset of its open transaction; −1 none.
    pub transaction_first_offset: i64,
}

/// One entry of a `.txnindex` file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AbortedTransaction {
    /// Whose transaction.
    pub producer_id: i64,
    /// Its first offset.
    pub first_offset: i64,
    /// Offset of its abort marker.
    pub last_offset: i64,
    /// The last stable offset when it was aborted.
    pub last_stable_offset: i64,
}

/// Reads a `.snapshot` file and checks its CRC.
///
/// # Errors
/// [`Error::Format`] with what does not hold, [`Error::NotFound`], [`Error::Io`].
pub fn producer_snapshot(path: &Path) -> Result<Vec<ProducerState>> {
    let bytes = read_whole(path)?;
    let format = |reason: String| Error::Format { path: path.to_owned(), reason };
    let short = || format(format!("a producer snapshot of {} bytes is cut short", bytes.len()));
    let (version, rest) = bytes.split_first_chunk::<2>().ok_or_else(short)?;
    let (crc, under_crc) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (count, entries) = under_crc.split_first_chunk::<4>().ok_or_else(short)?;
    let version = i16::from_be_bytes(*version);
    if version != 1 {
        return Err(format(format!("producer snapshot version {version}; only 1 is known")));
    }
    let (expected, found) = (u32::from_be_bytes(*crc), crc32c(under_crc));
    if expected != found {
        let reason = format!("CRC-32C is {found:#010x}, the snapshot says {expected:#010x}");
        return Err(format(reason));
    }
    let count = i32::from_be_bytes(*count);
    let (chunks, rest) = entries.as_chunks::<PRODUCER_BYTES>();
    if !rest.is_empty() || i32::try_from(chunks.len()) != Ok(count) {
        let bytes = entries.len();
        return Err(format(format!("{count} producers do not fill {bytes} bytes of entries")));
    }
    Ok(chunks.iter().map(parse_producer).collect())
}

/// Reads a `.txnindex` file; last offsets must rise.
///
/// # Errors
/// As [`producer_snapshot`].
pub fn aborted_transactions(path: &Path) -> Result<Vec<AbortedTransaction>> {
    let bytes = read_whole(path)?;
    let format = |reason: String| Error::Format { path: path.to_owned(), reason };
    let (chunks, rest) = bytes.as_chunks::<ABORTED_BYTES>();
    if !rest.is_empty() {
        let reason = format!("{} bytes are no whole number of 34-byte entries", bytes.len());
        return Err(format(reason));
    }
    let mut found: Vec<AbortedTransaction> = Vec::new();
    for (number, chunk) in chunks.iter().enumerate() {
        let mut rest = &chunk[..];
        let version = i16::from_be_bytes(take(&mut rest));
        let entry = AbortedTransaction {
            producer_id: i64::from_be_bytes(take(&mut rest)),
            first_offset: i64::from_be_bytes(take(&mut rest)),
            last_offset: i64::from_be_bytes(take(&mut rest)),
            last_stable_offset: i64::from_be_bytes(take(&mut rest)),
        };
        if version != 0 {
            return Err(format(format!("entry {number} has version {version}; only 0 is known")));
        }
        if found.last().is_some_and(|last| last.last_offset >= entry.last_offset) {
            return Err(format(format!("last offset of entry {number} does not rise")));
        }
        found.push(entry);
    }
    Ok(found)
}

fn parse_producer(entry: &[u8; PRODUCER_BYTES]) -> ProducerState {
    let mut rest = &entry[..];
    ProducerState {
        producer_id: i64::from_be_bytes(take(&mut rest)),
        producer_epoch: i16::from_be_bytes(take(&mut rest)),
        last_sequence: i32::from_be_bytes(take(&mut rest)),
        last_offset: i64::from_be_bytes(take(&mut rest)),
        offset_delta: i32::from_be_bytes(take(&mut rest)),
        timestamp: i64::from_be_bytes(take(&mut rest)),
        coordinator_epoch: i32::from_be_bytes(take(&mut rest)),
        transaction_first_offset: i64::from_be_bytes(take(&mut rest)),
    }
}

/// The next field of an entry, whose fields fill it exactly.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let Some((field, after)) = rest.split_first_chunk::<N>() else {
        unreachable!("the fields of an entry add up to its size")
    };
    *rest = after;
    *field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_read_field_by_field_and_every_flipped_bit_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("00000000000000000009.snapshot");
        let mut body = 1_i32.to_be_bytes().to_vec();
        body.extend_from_slice(&77_i64.to_be_bytes());
        body.extend_from_slice(&2_i16.to_be_bytes());
        body.extend_from_slice(&3_i32.to_be_bytes());
        body.extend_from_slice(&8_i64.to_be_bytes());
        body.extend_from_slice(&4_i32.to_be_bytes());
        body.extend_from_slice(&99_i64.to_be_bytes());
        body.extend_from_slice(&(-1_i32).to_be_bytes());
        body.extend_from_slice(&(-1_i64).to_be_bytes());
        let mut bytes = 1_i16.to_be_bytes().to_vec();
        bytes.extend_from_slice(&crc32c(&body).to_be_bytes());
        bytes.extend_from_slice(&body);
        std::fs::write(&path, &bytes).unwrap();
        let found = producer_snapshot(&path).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].producer_id, found[0].last_offset), (77, 8));
        assert_eq!((found[0].timestamp, found[0].transaction_first_offset), (99, -1));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(producer_snapshot(&path).is_err(), "byte {at}");
        }
    }
}
