//! The bytes of a producer snapshot (Kafka `ProducerStateManager.writeSnapshot`):
//!
//! ```text
//! 2 version = 1 · 4 CRC-32C of byte 6 to the end · 4 count · count × 46 bytes:
//!   8 producer id · 2 epoch · 4 last sequence · 8 last offset · 4 offset delta · 8 timestamp
//!   · 4 coordinator epoch · 8 first offset of the open transaction (−1 none)
//! ```
//!
//! Kafka writes the producers in the order of a hash table; here they are in order of their ids, so
//! that the same state gives the same bytes.

#![forbid(unsafe_code)]

use crate::format::crc32c;

const VERSION: i16 = 1;
const PRODUCER_BYTES: usize = 46;

/// One producer, as a snapshot has it and as Kafka's `DescribeProducers` tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerState {
    /// Its id.
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i16,
    /// Sequence of its last record; −1 if it has none in this epoch.
    pub last_sequence: i32,
    /// Offset of its last record; −1 if it has none in this epoch.
    pub last_offset: i64,
    /// Records in its last batch, less one.
    pub offset_delta: i32,
    /// Timestamp of its last batch or marker, Unix ms.
    pub timestamp: i64,
    /// Epoch of the transaction coordinator; −1 none.
    pub coordinator_epoch: i32,
    /// First offset of its open transaction; −1 none.
    pub transaction_first_offset: i64,
}

/// The bytes of a snapshot file.
pub(crate) fn encode_snapshot(producers: &[ProducerState]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(10 + producers.len() * PRODUCER_BYTES);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&i32::try_from(producers.len()).unwrap_or(i32::MAX).to_be_bytes());
    for producer in producers {
        bytes.extend_from_slice(&producer.producer_id.to_be_bytes());
        bytes.extend_from_slice(&producer.producer_epoch.to_be_bytes());
        bytes.extend_from_slice(&producer.last_sequence.to_be_bytes());
        bytes.extend_from_slice(&producer.last_offset.to_be_bytes());
        bytes.extend_from_slice(&producer.offset_delta.to_be_bytes());
        bytes.extend_from_slice(&producer.timestamp.to_be_bytes());
        bytes.extend_from_slice(&producer.coordinator_epoch.to_be_bytes());
        bytes.extend_from_slice(&producer.transaction_first_offset.to_be_bytes());
    }
    let crc = crc32c(bytes.get(6..).unwrap_or_default());
    if let Some(field) = bytes.get_mut(2..6) {
        field.copy_from_slice(&crc.to_be_bytes());
    }
    bytes
}

/// Reads a snapshot file.
///
/// # Errors
/// A sentence that says what does not hold.
pub(crate) fn decode_snapshot(bytes: &[u8]) -> Result<Vec<ProducerState>, String> {
    let short = || format!("a producer snapshot of {} bytes is cut short", bytes.len());
    let (version, rest) = bytes.split_first_chunk::<2>().ok_or_else(short)?;
    let (crc, under_crc) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (count, entries) = under_crc.split_first_chunk::<4>().ok_or_else(short)?;
    let version = i16::from_be_bytes(*version);
    if version != VERSION {
        return Err(format!("producer snapshot version {version}; only 1 is known"));
    }
    let (expected, found) = (u32::from_be_bytes(*crc), crc32c(under_crc));
    if expected != found {
        return Err(format!("CRC-32C is {found:#010x}, the snapshot says {expected:#010x}"));
    }
    let count = i32::from_be_bytes(*count);
    let (chunks, rest) = entries.as_chunks::<PRODUCER_BYTES>();
    if !rest.is_empty() || i32::try_from(chunks.len()) != Ok(count) {
        return Err(format!("{count} producers do not fill {} bytes of entries", entries.len()));
    }
    Ok(chunks.iter().map(decode_producer).collect())
}

fn decode_producer(entry: &[u8; PRODUCER_BYTES]) -> ProducerState {
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
pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
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
    fn a_snapshot_round_trips_and_every_flipped_bit_is_found() {
        let producer = ProducerState {
            producer_id: 77,
            producer_epoch: 2,
            last_sequence: 3,
            last_offset: 8,
            offset_delta: 4,
            timestamp: 99,
            coordinator_epoch: -1,
            transaction_first_offset: 4,
        };
        let bytes = encode_snapshot(&[producer, ProducerState { producer_id: 78, ..producer }]);
        assert_eq!(bytes.len(), 10 + 2 * 46);
        assert_eq!(decode_snapshot(&bytes).unwrap()[0], producer);
        assert_eq!(decode_snapshot(&encode_snapshot(&[])), Ok(Vec::new()));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(decode_snapshot(&bad).is_err(), "byte {at} bit {bit}");
            }
            assert!(decode_snapshot(&bytes[..at]).is_err(), "cut to {at}");
        }
    }
}
