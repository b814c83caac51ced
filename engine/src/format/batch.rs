//! The batch header, and a batch whose size and CRC hold.
//!
//! ```text
//!  at size field                          at size field
//!   0    8 base offset                    27    8 base timestamp (or delete horizon)
//!   8    4 length of what follows         35    8 max timestamp
//!  12    4 partition leader epoch         43    8 producer id (−1 none)
//!  16    1 magic = 2                      51    2 producer epoch
//!  17    4 CRC-32C of bytes 21..end       53    4 base sequence
//!  21    2 attributes                     57    4 record count
//!  23    4 last offset delta              61      records
//! ```
//!
//! The CRC leaves out offset, length, epoch and magic, so a leader stamps the first and third
//! without computing it anew. All integers are big-endian.

#![forbid(unsafe_code)]

use super::codec::Codec;
use super::crc::crc32c;
use super::fault::BatchFault;
use super::record::{DecodedBatch, check_records};

/// Bytes before the records.
pub const HEADER_BYTES: usize = 61;
/// Bytes of base offset and length, which the length does not count.
const LOG_OVERHEAD: usize = 12;
/// The least that the length field says: a header without records.
const LENGTH_MIN: i32 = 49;
const _: () = assert!(HEADER_BYTES - LOG_OVERHEAD == 49);
/// First byte under the CRC.
const CRC_START: usize = 21;

/// Codec, timestamp type and kind of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attributes(pub u16);

/// Whose clock the timestamps are from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's; every record has the batch's max timestamp.
    LogAppendTime,
}

impl Attributes {
    /// The compression of the records.
    ///
    /// # Errors
    /// [`BatchFault::Codec`] if it is none of the five.
    pub fn codec(self) -> Result<Codec, BatchFault> {
        Codec::from_id((self.0 & 7) as u8)
    }

    /// Whose clock the timestamps are from.
    #[must_use]
    pub fn timestamp_type(self) -> TimestampType {
        if self.0 & 8 == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
    }

    /// Part of a transaction.
    #[must_use]
    pub fn is_transactional(self) -> bool {
        self.0 & 16 != 0
    }

    /// A marker, not data.
    #[must_use]
    pub fn is_control(self) -> bool {
        self.0 & 32 != 0
    }

    /// The base timestamp field is the time after which tombstones may go.
    #[must_use]
    pub fn has_delete_horizon(self) -> bool {
        self.0 & 64 != 0
    }

    /// False if a bit is set that means nothing, or the codec is unknown: a search for batches in
    /// damaged bytes passes over such headers.
    pub(crate) fn is_plausible(self) -> bool {
        self.0 & 0xff80 == 0 && self.0 & 7 <= 4
    }
}

/// The 61 bytes before the records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// Offset of the first record, also when compaction has removed it.
    pub base_offset: i64,
    /// Bytes after this field: the batch's size less 12.
    pub length: i32,
    /// Epoch of the leader that stored it; −1 as clients send it.
    pub leader_epoch: i32,
    /// CRC-32C as stored.
    pub crc: u32,
    /// Codec and kind.
    pub attributes: Attributes,
    /// Last offset less base offset.
    pub last_offset_delta: i32,
    /// Timestamp of the first record, Unix ms; −1 none.
    pub base_timestamp: i64,
    /// Largest timestamp, Unix ms; −1 none.
    pub max_timestamp: i64,
    /// −1 without idempotence.
    pub producer_id: i64,
    /// −1 without idempotence.
    pub producer_epoch: i16,
    /// Sequence of the first record; −1 without idempotence.
    pub base_sequence: i32,
    /// Records in the batch; compaction may have left fewer than the offsets say.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads a header. Checks the magic and that the length is one a batch can have, not the CRC.
    ///
    /// # Errors
    /// [`BatchFault::Truncated`], [`BatchFault::Magic`], [`BatchFault::Length`].
    #[inline]
    pub fn read(bytes: &[u8]) -> Result<BatchHeader, BatchFault> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(BatchFault::Truncated { needed: HEADER_BYTES, have: bytes.len() });
        };
        let magic = header[16].cast_signed();
        if magic != 2 {
            return Err(BatchFault::Magic(magic));
        }
        let length = i32::from_be_bytes(field(header, 8));
        if length < LENGTH_MIN {
            return Err(BatchFault::Length(length));
        }
        Ok(BatchHeader {
            base_offset: i64::from_be_bytes(field(header, 0)),
            length,
            leader_epoch: i32::from_be_bytes(field(header, 12)),
            crc: u32::from_be_bytes(field(header, 17)),
            attributes: Attributes(u16::from_be_bytes(field(header, 21))),
            last_offset_delta: i32::from_be_bytes(field(header, 23)),
            base_timestamp: i64::from_be_bytes(field(header, 27)),
            max_timestamp: i64::from_be_bytes(field(header, 35)),
            producer_id: i64::from_be_bytes(field(header, 43)),
            producer_epoch: i16::from_be_bytes(field(header, 51)),
            base_sequence: i32::from_be_bytes(field(header, 53)),
            record_count: i32::from_be_bytes(field(header, 57)),
        })
    }

    /// Bytes of the whole batch.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        LOG_OVERHEAD + usize::try_from(self.length).unwrap_or(0)
    }

    /// Offset of the last record.
    #[must_use]
    pub fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(self.last_offset_delta.into())
    }

    /// Offset after the last record.
    #[must_use]
    pub fn next_offset(&self) -> i64 {
        self.last_offset().saturating_add(1)
    }
}

/// `N` bytes from `at` on; both are constants at every call, so the bound is checked by the compiler.
#[expect(clippy::indexing_slicing, reason = "at + N is within the header at every call")]
fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|i| header[at + i])
}

/// A batch whose size and CRC hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch<'a> {
    header: BatchHeader,
    bytes: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Checks the first batch in `bytes`; there may be more behind it.
    ///
    /// # Errors
    /// What [`BatchHeader::read`] finds, [`BatchFault::Truncated`], [`BatchFault::Crc`].
    pub fn check(bytes: &'a [u8]) -> Result<Batch<'a>, BatchFault> {
        let batch = Batch::trusted(bytes)?;
        let found = crc32c(batch.bytes.get(CRC_START..).unwrap_or_default());
        let expected = batch.header.crc;
        if found != expected {
            return Err(BatchFault::Crc { expected, found });
        }
        Ok(batch)
    }

    /// As [`Batch::check`] for bytes whose CRC was computed a moment ago.
    pub(crate) fn trusted(bytes: &'a [u8]) -> Result<Batch<'a>, BatchFault> {
        let header = BatchHeader::read(bytes)?;
        let needed = header.total_bytes();
        match bytes.get(..needed) {
            Some(bytes) => Ok(Batch { header, bytes }),
            None => Err(BatchFault::Truncated { needed, have: bytes.len() }),
        }
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The records, compressed if the codec says so.
    pub(crate) fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// What a leader checks of a client's batch before it stores it (Kafka's `LogValidator` and
    /// `UnifiedLog.analyzeAndValidateRecords`): counts, sequence, codec, and every record.
    ///
    /// # Errors
    /// The first fault found.
    pub fn check_records(&self) -> Result<(), BatchFault> {
        self.check_records_of(false)
    }

    /// As [`Batch::check_records`], for a compacted partition: every record has a key.
    ///
    /// # Errors
    /// The first fault found.
    pub fn check_keyed_records(&self) -> Result<(), BatchFault> {
        self.check_records_of(true)
    }

    fn check_records_of(&self, keyed: bool) -> Result<(), BatchFault> {
        let header = &self.header;
        let (count, last_offset_delta) = (header.record_count, header.last_offset_delta);
        if count <= 0 || last_offset_delta != count - 1 {
            return Err(BatchFault::Count { count, last_offset_delta });
        }
        if header.attributes.is_control() {
            return Err(BatchFault::Control);
        }
        let (producer_id, base_sequence) = (header.producer_id, header.base_sequence);
        if producer_id >= 0 && base_sequence < 0 {
            return Err(BatchFault::Sequence { producer_id, base_sequence });
        }
        check_records(self.decode()?.bytes(), count, keyed)
    }

    /// The records, decompressed.
    ///
    /// # Errors
    /// [`BatchFault::Codec`], [`BatchFault::Decompress`], [`BatchFault::DecompressedSize`].
    pub fn decode(&self) -> Result<DecodedBatch<'a>, BatchFault> {
        DecodedBatch::new(*self)
    }
}

/// Writes a leader's base offset and epoch into a batch, in place. Neither is under the CRC.
///
/// Bytes too short for a header are left as they are.
pub fn stamp(batch: &mut [u8], base_offset: i64, leader_epoch: i32) {
    if let Some(header) = batch.first_chunk_mut::<HEADER_BYTES>() {
        header[..8].copy_from_slice(&base_offset.to_be_bytes());
        header[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
    }
}

/// Walks contiguous batches, checking each. Ends after a fault.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    rest: &'a [u8],
    position: usize,
}

impl<'a> Batches<'a> {
    /// A walk over `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Batches<'a> {
        Batches { rest: bytes, position: 0 }
    }
}

impl<'a> Iterator for Batches<'a> {
    /// Where the batch starts, and the batch or what is wrong with it.
    type Item = Result<(usize, Batch<'a>), (usize, BatchFault)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let position = self.position;
        match Batch::check(self.rest) {
            Ok(batch) => {
                self.position += batch.bytes.len();
                self.rest = self.rest.get(batch.bytes.len()..).unwrap_or_default();
                Some(Ok((position, batch)))
            }
            Err(fault) => {
                self.rest = &[];
                Some(Err((position, fault)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::BatchBuilder;
    use super::*;

    fn batch(codec: Codec) -> Vec<u8> {
        let mut builder = BatchBuilder::new(codec);
        for i in 0..3 {
            let value = vec![b'v'; 20];
            builder.append(1000 + i, Some(b"key"), Some(&value), &[("h", Some(b"x"))]).unwrap();
        }
        builder.build().unwrap()
    }

    #[test]
    fn a_batch_written_by_hand_from_the_specification_is_read_field_by_field() {
        // One record: key "k", value "v", no headers; timestamps 5 and 5.
        let records = [16, 0, 0, 0, 2, b'k', 2, b'v', 0];
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&7_i64.to_be_bytes());
        bytes.extend_from_slice(&(49 + records.len() as i32).to_be_bytes());
        bytes.extend_from_slice(&3_i32.to_be_bytes());
        bytes.push(2);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&0_u16.to_be_bytes());
        bytes.extend_from_slice(&0_i32.to_be_bytes());
        bytes.extend_from_slice(&5_i64.to_be_bytes());
        bytes.extend_from_slice(&5_i64.to_be_bytes());
        bytes.extend_from_slice(&(-1_i64).to_be_bytes());
        bytes.extend_from_slice(&(-1_i16).to_be_bytes());
        bytes.extend_from_slice(&(-1_i32).to_be_bytes());
        bytes.extend_from_slice(&1_i32.to_be_bytes());
        bytes.extend_from_slice(&records);
        let crc = crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        let batch = Batch::check(&bytes).unwrap();
        assert_eq!(batch.header().base_offset, 7);
        assert_eq!(batch.header().leader_epoch, 3);
        assert_eq!(batch.header().next_offset(), 8);
        batch.check_records().unwrap();
        let decoded = batch.decode().unwrap();
        let record = decoded.records().next().unwrap().unwrap();
        assert_eq!((record.offset, record.timestamp), (7, 5));
        assert_eq!((record.key, record.value), (Some(&b"k"[..]), Some(&b"v"[..])));
    }

    #[test]
    fn every_flipped_bit_under_the_crc_or_in_the_frame_is_found() {
        for codec in [Codec::None, Codec::Lz4] {
            let good = batch(codec);
            // Base offset and leader epoch are the leader's to write: outside the CRC.
            for at in (8..12).chain(16..good.len()) {
                for bit in 0..8 {
                    let mut bad = good.clone();
                    bad[at] ^= 1 << bit;
                    assert!(Batch::check(&bad).is_err(), "byte {at} bit {bit}");
                }
            }
            for cut in 0..good.len() {
                assert!(Batch::check(&good[..cut]).is_err(), "cut to {cut}");
            }
        }
    }

    #[test]
    fn a_stamp_leaves_the_crc_whole() {
        let mut bytes = batch(Codec::None);
        stamp(&mut bytes, 1 << 40, 9);
        let batch = Batch::check(&bytes).unwrap();
        assert_eq!((batch.header().base_offset, batch.header().leader_epoch), (1 << 40, 9));
        stamp(&mut [0; 5], 1, 1);
    }

    #[test]
    fn batches_are_walked_up_to_the_first_fault() {
        let one = batch(Codec::None);
        let mut two = [one.clone(), one.clone()].concat();
        assert_eq!(Batches::new(&two).filter(Result::is_ok).count(), 2);
        let last = two.len() - 1;
        two[last] ^= 1;
        let found: Vec<_> = Batches::new(&two).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].as_ref().unwrap_err().0, one.len());
    }

    /// A batch with a field changed and its CRC made right again.
    fn forged(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = batch(Codec::None);
        change(&mut bytes);
        let crc = crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    #[test]
    fn batches_that_lie_under_a_right_crc_are_refused_by_name() {
        type Case = (fn(&mut Vec<u8>), fn(&BatchFault) -> bool);
        let cases: [Case; 9] = [
            (|b| b[60] = 2, |f| matches!(f, BatchFault::Count { .. })),
            (|b| b[57..61].fill(0xff), |f| matches!(f, BatchFault::Count { .. })),
            (|b| b[22] |= 32, |f| matches!(f, BatchFault::Control)),
            (|b| b[22] |= 5, |f| matches!(f, BatchFault::Codec(5))),
            (|b| b[22] |= 1, |f| matches!(f, BatchFault::Decompress { .. })),
            (|b| b[43..51].fill(0), |f| matches!(f, BatchFault::Sequence { .. })),
            // The first record's length, then its offset delta.
            (|b| b[61] = 0x7f, |f| matches!(f, BatchFault::RecordLength { .. })),
            (|b| b[64] = 8, |f| matches!(f, BatchFault::OffsetDelta { record: 0, found: 4 })),
            (|b| b[61..66].fill(0xff), |f| matches!(f, BatchFault::Varint { record: 0 })),
        ];
        for (i, (change, expected)) in cases.into_iter().enumerate() {
            let bytes = forged(change);
            let fault = Batch::check(&bytes).unwrap().check_records().unwrap_err();
            assert!(expected(&fault), "case {i}: {fault:?}");
        }
    }
}
