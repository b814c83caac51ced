//! Writing a batch again with fewer records, as compaction does (Kafka `MemoryRecords.filterTo`).
//!
//! What identifies a batch stays: base offset, last offset, epochs, producer and sequence, codec,
//! timestamp type. Record offsets stay too, so their deltas have gaps from here on.

#![forbid(unsafe_code)]

use super::batch::{BatchHeader, HEADER_BYTES};
use super::codec::{Codec, compress};
use super::crc::crc32c;
use super::fault::BatchFault;
use super::record::Record;
use super::varint::{write_i32, write_i64};

/// No timestamp.
const NONE: i64 = -1;
/// Attribute bits that stay: codec, timestamp type, transactional, control.
const KEPT_BITS: u16 = 0x3f;
/// The base timestamp is the delete horizon.
const HORIZON_BIT: u16 = 0x40;
const CODEC_BITS: u16 = 7;

/// Buffers for writing batches again.
#[derive(Default)]
pub(crate) struct Rewriter {
    records: Vec<u8>,
    body: Vec<u8>,
}

impl Rewriter {
    /// Appends the batch to `out` with these of its records, at least one. With a delete horizon
    /// (Unix ms) that stands in the place of the base timestamp; records keep their timestamps.
    ///
    /// # Errors
    /// [`BatchFault::TooLarge`], what the codec says.
    pub(crate) fn rewrite(
        &mut self,
        header: &BatchHeader,
        kept: &[Record<'_>],
        delete_horizon: Option<i64>,
        out: &mut Vec<u8>,
    ) -> Result<(), BatchFault> {
        let first = kept.first().map_or(NONE, |record| record.timestamp);
        let base_timestamp = delete_horizon.unwrap_or(first);
        let mut max_timestamp = NONE;
        self.records.clear();
        for record in kept {
            max_timestamp = max_timestamp.max(record.timestamp);
            self.push(header, base_timestamp, record).ok_or(BatchFault::TooLarge)?;
        }
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        compress(header.attributes.codec()?, &self.records, out)?;
        let horizon = if delete_horizon.is_some() { HORIZON_BIT } else { 0 };
        let rewritten = BatchHeader {
            base_timestamp,
            max_timestamp,
            record_count: i32::try_from(kept.len()).map_err(|_| BatchFault::TooLarge)?,
            ..*header
        };
        seal(out, start, &rewritten, header.attributes.0 & KEPT_BITS | horizon)
    }

    fn push(&mut self, header: &BatchHeader, base: i64, record: &Record<'_>) -> Option<()> {
        self.body.clear();
        self.body.push(0);
        write_i64(&mut self.body, record.timestamp.wrapping_sub(base));
        write_i32(&mut self.body, i32::try_from(record.offset - header.base_offset).ok()?);
        for bytes in [record.key, record.value] {
            write_i32(&mut self.body, bytes.map_or(Some(-1), |b| i32::try_from(b.len()).ok())?);
            self.body.extend_from_slice(bytes.unwrap_or_default());
        }
        write_i32(&mut self.body, i32::try_from(record.headers.count()).ok()?);
        self.body.extend_from_slice(record.headers.raw());
        write_i32(&mut self.records, i32::try_from(self.body.len()).ok()?);
        self.records.extend_from_slice(&self.body);
        Some(())
    }

    /// Appends the batch to `out` without records: what is left to say is who wrote it, up to which
    /// offset and sequence (Kafka `DefaultRecordBatch.writeEmptyHeader`).
    ///
    /// # Errors
    /// None; the length of a header fits.
    pub(crate) fn empty(header: &BatchHeader, out: &mut Vec<u8>) -> Result<(), BatchFault> {
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        let emptied = BatchHeader { base_timestamp: NONE, record_count: 0, ..*header };
        let codec = u16::from(Codec::None.id());
        seal(out, start, &emptied, header.attributes.0 & KEPT_BITS & !CODEC_BITS | codec)
    }
}

/// Writes the header of the batch that begins at `start` and ends `out`, with its length and CRC.
fn seal(
    out: &mut [u8],
    start: usize,
    header: &BatchHeader,
    attributes: u16,
) -> Result<(), BatchFault> {
    let batch = out.get_mut(start..).unwrap_or_default();
    let length = i32::try_from(batch.len() - 12).map_err(|_| BatchFault::TooLarge)?;
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = batch.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, &header.base_offset.to_be_bytes());
    put(8, &length.to_be_bytes());
    put(12, &header.leader_epoch.to_be_bytes());
    put(16, &[2]);
    put(21, &attributes.to_be_bytes());
    put(23, &header.last_offset_delta.to_be_bytes());
    put(27, &header.base_timestamp.to_be_bytes());
    put(35, &header.max_timestamp.to_be_bytes());
    put(43, &header.producer_id.to_be_bytes());
    put(51, &header.producer_epoch.to_be_bytes());
    put(53, &header.base_sequence.to_be_bytes());
    put(57, &header.record_count.to_be_bytes());
    let crc = crc32c(batch.get(21..).unwrap_or_default());
    if let Some(field) = batch.get_mut(17..21) {
        field.copy_from_slice(&crc.to_be_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, BatchBuilder, stamp};
    use super::*;

    fn batch(codec: Codec) -> Vec<u8> {
        let mut builder = BatchBuilder::new(codec);
        builder.producer(7, 3, 40);
        for i in 0..5 {
            let key = [b'k', i];
            let value = (i != 3).then_some(&b"value"[..]);
            builder.append(5_000 + i64::from(i), Some(&key), value, &[("h", Some(b"x"))]).unwrap();
        }
        let mut bytes = builder.build().unwrap();
        stamp(&mut bytes, 1_000, 9);
        bytes
    }

    #[test]
    fn what_identifies_a_batch_and_its_records_stays() {
        for codec in Codec::ALL {
            let bytes = batch(codec);
            let before = Batch::check(&bytes).unwrap();
            let decoded = before.decode().unwrap();
            let kept: Vec<Record> =
                decoded.records().map(Result::unwrap).filter(|r| r.offset % 2 == 1).collect();
            for horizon in [None, Some(99_000)] {
                let mut out = b"before".to_vec();
                Rewriter::default().rewrite(before.header(), &kept, horizon, &mut out).unwrap();
                let after = Batch::check(&out[6..]).unwrap();
                let (was, is) = (before.header(), after.header());
                assert_eq!((is.base_offset, is.last_offset()), (1_000, 1_004));
                assert_eq!((is.leader_epoch, is.producer_id, is.producer_epoch), (9, 7, 3));
                assert_eq!((is.base_sequence, is.record_count), (40, 2));
                assert_eq!(is.attributes.codec(), was.attributes.codec());
                assert_eq!(is.attributes.has_delete_horizon(), horizon.is_some());
                assert_eq!(is.base_timestamp, horizon.unwrap_or(5_001));
                assert_eq!(is.max_timestamp, 5_003);
                let decoded = after.decode().unwrap();
                for (record, wanted) in decoded.records().map(Result::unwrap).zip(&kept) {
                    assert_eq!(
                        (record.offset, record.timestamp),
                        (wanted.offset, wanted.timestamp)
                    );
                    assert_eq!((record.key, record.value), (wanted.key, wanted.value));
                    assert_eq!(record.headers.map(Result::unwrap).next().unwrap().key, "h");
                }
            }
        }
    }

    #[test]
    fn an_emptied_batch_is_kafkas_sixty_one_bytes() {
        let bytes = batch(Codec::Zstd);
        let before = Batch::check(&bytes).unwrap();
        let mut out = Vec::new();
        Rewriter::empty(before.header(), &mut out).unwrap();
        let after = Batch::check(&out).unwrap();
        assert_eq!(out.len(), HEADER_BYTES);
        assert_eq!(after.header().record_count, 0);
        assert_eq!((after.header().base_timestamp, after.header().max_timestamp), (-1, 5_004));
        assert_eq!(after.header().attributes.codec(), Ok(Codec::None));
        assert_eq!((after.header().last_offset(), after.header().base_sequence), (1_004, 40));
        assert_eq!(after.decode().unwrap().records().count(), 0);
    }
}
