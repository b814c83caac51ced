//! The bytes of the state file (docs/FORMAT.md, "State"). Integers are little-endian: nobody but
//! this engine reads them.
//!
//! ```text
//! file    64-byte header │ record │ record │ …       records start at multiples of 8
//! record  40-byte header │ changes │ zeros up to 8
//! ```
//!
//! A record holds the changes of one call: all of them are there, or none. It knows its own place,
//! so that what stood in a file before it was cut, or what stands in a value, is not taken for one.

#![forbid(unsafe_code)]

use super::{Change, Scope, What};
use crate::format::crc32c;
use crate::topic::TopicPartition;
use bytes::Bytes;
use uuid::Uuid;

const MAGIC: &[u8; 8] = b"LGLSTAT1";
/// Bytes of the file before its first record.
pub(super) const HEADER_BYTES: usize = 64;
/// Bytes of a record before its changes.
pub(super) const RECORD_HEADER_BYTES: usize = 40;
/// Bytes of a change before its names and value.
pub(super) const CHANGE_BYTES: usize = 32;
/// Records start at multiples of this.
pub(super) const ALIGN: usize = 8;
/// Changes of one call take at most this: a bound for what a reader believes of a length.
pub(crate) const RECORD_BODY_MAX: usize = 16 << 20;

/// What stands before the records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    /// The records below `base_bytes` are all values as they were after the change of this number.
    pub(super) base_sequence: u64,
    /// All below was synced before the file got its name.
    pub(super) base_bytes: u64,
}

/// What a file's first bytes are instead of a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoHeader {
    /// Of another version of this engine.
    Version(u8),
    /// Not what was written.
    Damaged,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&self.base_sequence.to_le_bytes());
        bytes.extend_from_slice(&self.base_bytes.to_le_bytes());
        bytes.resize(HEADER_BYTES - 12, 0);
        let crc = crc32c(&bytes).to_le_bytes();
        let mut header = [0; HEADER_BYTES];
        let whole = MAGIC.iter().chain(&crc).chain(&bytes);
        for (place, byte) in header.iter_mut().zip(whole) {
            *place = *byte;
        }
        header
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Header, NoHeader> {
        let mut at = Get(bytes.get(..HEADER_BYTES).ok_or(NoHeader::Damaged)?);
        let magic = at.take(MAGIC.len()).ok_or(NoHeader::Damaged)?;
        let (crc, rest) = (at.u32(), at.0);
        if magic != MAGIC {
            // Another version is one only if the rest is whole by the rule that no version changes.
            let (version, name) = magic.split_last().ok_or(NoHeader::Damaged)?;
            let ours = MAGIC.starts_with(name) && crc == Some(crc32c(rest));
            return Err(if ours { NoHeader::Version(*version) } else { NoHeader::Damaged });
        }
        if crc != Some(crc32c(rest)) {
            return Err(NoHeader::Damaged);
        }
        let header = (|| Some(Header { base_sequence: at.u64()?, base_bytes: at.u64()? }))();
        header.ok_or(NoHeader::Damaged)
    }
}

/// The changes of one call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    /// Rises with each record of a directory; 0 in the beginning of a file that holds all values.
    pub(super) sequence: u64,
    /// Where in the file it stands.
    pub(super) position: u64,
    /// All of the file below this was synced when it was written.
    pub(super) synced_bytes: u64,
    /// None in a record that only says what is synced.
    pub(super) changes: Vec<Change>,
    /// Bytes it takes in the file.
    pub(super) bytes: usize,
}

/// The bytes of a record.
pub(super) fn encode(
    sequence: u64,
    position: u64,
    synced_bytes: u64,
    changes: &[Change],
) -> Vec<u8> {
    let mut body = Vec::new();
    for change in changes {
        encode_change(change, &mut body);
    }
    body.resize(body.len().next_multiple_of(ALIGN), 0);
    let mut covered = Vec::with_capacity(RECORD_HEADER_BYTES + body.len());
    covered.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    covered.extend_from_slice(&sequence.to_le_bytes());
    covered.extend_from_slice(&position.to_le_bytes());
    covered.extend_from_slice(&synced_bytes.to_le_bytes());
    covered.extend_from_slice(&u32::try_from(changes.len()).unwrap_or(u32::MAX).to_le_bytes());
    covered.extend_from_slice(&[0; 4]);
    covered.extend_from_slice(&body);
    let mut record = Vec::with_capacity(4 + covered.len());
    record.extend_from_slice(&crc32c(&covered).to_le_bytes());
    record.append(&mut covered);
    record
}

impl Record {
    /// The record at the start of `bytes`, if every byte of it holds.
    pub(super) fn decode(bytes: &[u8]) -> Option<Record> {
        let (crc, body_bytes, sequence, position, synced_bytes, count) = {
            let mut at = Get(bytes);
            (at.u32()?, at.u32()?, at.u64()?, at.u64()?, at.u64()?, at.u32()?)
        };
        let body_bytes = usize::try_from(body_bytes).ok()?;
        // Padded, and never larger than a writer makes one.
        if body_bytes > RECORD_BODY_MAX + ALIGN || !body_bytes.is_multiple_of(ALIGN) {
            return None;
        }
        let total = RECORD_HEADER_BYTES + body_bytes;
        if crc != crc32c(bytes.get(4..total)?) {
            return None;
        }
        let mut body = Get(bytes.get(RECORD_HEADER_BYTES..total)?);
        let mut changes = Vec::new();
        for _ in 0..count {
            changes.push(decode_change(&mut body)?);
        }
        let whole = body.0.len() < ALIGN && body.0.iter().all(|byte| *byte == 0);
        whole.then_some(Record { sequence, position, synced_bytes, changes, bytes: total })
    }

    /// Where the record at the start of `bytes` says that it stands; cheap, and believed only of one
    /// that decodes.
    pub(super) fn position(bytes: &[u8]) -> Option<u64> {
        let mut at = Get(bytes);
        at.take(16)?;
        at.u64()
    }
}

fn encode_change(change: &Change, into: &mut Vec<u8>) {
    let (kind, key, value): (u8, &[u8], &[u8]) = match &change.what {
        What::Put { key, value } => (1, key, value),
        What::Remove { key } => (2, key, &[]),
        What::RemoveAll => (3, &[], &[]),
    };
    let (scope, name, number, id): (u8, &str, u32, Uuid) = match &change.scope {
        Scope::Partition(partition, id) => {
            (1, partition.topic(), partition.partition(), id.unwrap_or(Uuid::nil()))
        }
        Scope::Group(group) => (2, group, 0, Uuid::nil()),
    };
    into.extend_from_slice(&[kind, scope]);
    into.extend_from_slice(&u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
    into.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
    into.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
    into.extend_from_slice(&number.to_le_bytes());
    into.extend_from_slice(id.as_bytes());
    into.extend_from_slice(name.as_bytes());
    into.extend_from_slice(key);
    into.extend_from_slice(value);
}

fn decode_change(at: &mut Get<'_>) -> Option<Change> {
    let kinds = at.take(2)?;
    let name_bytes = usize::from(at.u16()?);
    let (key_bytes, value_bytes) = (at.u32()?, at.u32()?);
    let number = at.u32()?;
    let id = Some(Uuid::from_slice(at.take(16)?).ok()?).filter(|id| !id.is_nil());
    let name = std::str::from_utf8(at.take(name_bytes)?).ok()?;
    let key = Bytes::copy_from_slice(at.take(usize::try_from(key_bytes).ok()?)?);
    let value = Bytes::copy_from_slice(at.take(usize::try_from(value_bytes).ok()?)?);
    let (what, scope) = match kinds {
        [1, scope] => (What::Put { key, value }, scope),
        [2, scope] => (What::Remove { key }, scope),
        [3, scope] => (What::RemoveAll, scope),
        _ => return None,
    };
    let scope = match scope {
        1 => Scope::Partition(TopicPartition::new(name, number).ok()?, id),
        2 => Scope::Group(name.to_owned()),
        _ => return None,
    };
    Some(Change { scope, what })
}

/// Bytes that are still to be read.
struct Get<'a>(&'a [u8]);

impl<'a> Get<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn changes() -> Vec<Change> {
        let partition = TopicPartition::new("a-topic", 7).unwrap();
        let scope = Scope::Partition(partition, Some(Uuid::from_u128(9)));
        let (key, value) = (Bytes::from_static(b"term"), Bytes::from_static(b"42"));
        vec![
            Change { scope: scope.clone(), what: What::Put { key: key.clone(), value } },
            Change { scope, what: What::Remove { key } },
            Change { scope: Scope::Group("g".into()), what: What::RemoveAll },
        ]
    }

    #[test]
    fn headers_and_records_come_back() {
        let header = Header { base_sequence: 17, base_bytes: 4096 };
        assert_eq!(Header::decode(&header.encode()), Ok(header));
        for count in 0..=3 {
            let changes = &changes()[..count];
            let bytes = encode(5, 64, 32, changes);
            let record = Record::decode(&bytes).unwrap();
            assert_eq!(record.changes, changes);
            let told = (record.sequence, record.position, record.synced_bytes, record.bytes);
            assert_eq!(told, (5, 64, 32, bytes.len()));
            assert!(bytes.len().is_multiple_of(ALIGN) && Record::position(&bytes) == Some(64));
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_document() {
        let header = Header { base_sequence: 17, base_bytes: 4096 }.encode();
        assert_eq!(
            (&header[..8], header[12], &header[20..22]),
            (&b"LGLSTAT1"[..], 17, &[0, 16][..])
        );
        let crc = |from: &[u8]| crc32c(from).to_le_bytes();
        assert_eq!(&header[8..12], crc(&header[12..]));
        let record = encode(5, 64, 40, &changes()[..1]);
        assert_eq!(&record[..4], crc(&record[4..]));
        let fields = [record[4], record[8], record[16], record[24], record[32]];
        assert_eq!(fields, [48, 5, 64, 40, 1]);
        let change = &record[40..];
        assert_eq!((change[..3].to_vec(), change[4], change[8]), (vec![1, 1, 7], 4, 2));
        assert_eq!((change[12], change[31]), (7, 9));
        assert_eq!(&change[32..], b"a-topicterm42\0\0\0");
    }

    #[test]
    fn any_flipped_bit_is_seen_and_no_cut_record_is_taken() {
        let header = Header { base_sequence: 17, base_bytes: 4096 }.encode();
        for bit in 0..header.len() * 8 {
            let mut bad = header;
            bad[bit / 8] ^= 1 << (bit % 8);
            let version = (56..64).contains(&bit);
            match Header::decode(&bad) {
                Err(NoHeader::Damaged) => assert!(!version, "bit {bit}"),
                Err(NoHeader::Version(_)) => assert!(version, "bit {bit}"),
                Ok(_) => panic!("bit {bit} of the header"),
            }
        }
        let record = encode(5, 64, 32, &changes());
        for bit in 0..record.len() * 8 {
            let mut bad = record.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&bad), None, "bit {bit} of a record");
        }
        for cut in 0..record.len() {
            assert_eq!(Record::decode(&record[..cut]), None, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Header::decode(&bytes);
            let _ = Record::decode(&bytes);
            let _ = decode_change(&mut Get(&bytes));
        }
    }
}
