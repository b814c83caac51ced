//! The bytes of a journal file (docs/FORMAT.md, "Journal"). Integers are little-endian: nobody but
//! this engine reads them.
//!
//! ```text
//! file   header block │ frame │ frame │ …          frames start at multiples of BLOCK_BYTES
//! frame  64-byte header │ record batches │ table of entries │ zeros up to a block
//! ```
//!
//! One CRC covers the header and the table. Batches carry a CRC of their own over all but their
//! first 21 bytes; each entry has a CRC of those. So no byte is summed twice.

#![forbid(unsafe_code)]

use crate::format::{Batch, crc32c};
use crate::topic::TopicPartition;
use uuid::Uuid;

/// Of a file's header block.
const FILE_MAGIC: &[u8; 8] = b"LGLNJRN1";
/// Of a frame.
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"LGF1");
/// Bytes of a frame before its batches.
pub(super) const FRAME_HEADER_BYTES: usize = 64;
/// Bytes of an entry in the table, without the name behind it.
pub(super) const ENTRY_BYTES: usize = 68;
/// Bytes of a batch that its own CRC does not cover: offset, length, epoch, magic and the CRC.
const BATCH_PREFIX_BYTES: usize = 21;

/// Which journal file this is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FileHeader {
    /// Rises with each open of the directory.
    pub(super) session: u64,
    /// Shard that wrote it.
    pub(super) lane: u32,
    /// Rises with each file that a lane begins, or begins again.
    pub(super) generation: u64,
}

impl FileHeader {
    pub(super) const BYTES: usize = 36;

    pub(super) fn encode(self) -> [u8; FileHeader::BYTES] {
        let mut bytes = [0; FileHeader::BYTES];
        let mut at = Put { bytes: &mut bytes, at: 0 };
        at.put(FILE_MAGIC);
        at.put(&[0; 4]);
        at.put(&self.session.to_le_bytes());
        at.put(&self.lane.to_le_bytes());
        at.put(&self.generation.to_le_bytes());
        at.put(&[0; 4]);
        seal(&mut bytes, 8, &[]);
        bytes
    }

    /// `None` if these bytes are no header: a file that was never begun.
    pub(super) fn decode(bytes: &[u8]) -> Option<FileHeader> {
        let bytes = bytes.get(..FileHeader::BYTES)?;
        if bytes.get(..8)? != FILE_MAGIC || !is_sealed(bytes, 8, &[]) {
            return None;
        }
        let mut at = Get { bytes, at: 12 };
        Some(FileHeader { session: at.u64()?, lane: at.u32()?, generation: at.u64()? })
    }
}

/// What stands before a frame's batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameHeader {
    pub(super) session: u64,
    pub(super) generation: u64,
    /// Rises by one with each frame of a lane, across its files.
    pub(super) sequence: u64,
    /// Every frame below was on disk when this one was written.
    pub(super) durable_below: u64,
    pub(super) payload_bytes: u32,
    pub(super) table_bytes: u32,
    pub(super) entries: u32,
}

impl FrameHeader {
    /// Bytes of the frame on disk, whole blocks.
    pub(super) fn total_bytes(&self) -> usize {
        (FRAME_HEADER_BYTES + self.payload_bytes as usize + self.table_bytes as usize)
            .next_multiple_of(crate::io::BLOCK_BYTES)
    }

    /// The header of a frame with this table.
    pub(super) fn encode(&self, table: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let mut at = Put { bytes: &mut bytes, at: 0 };
        at.put(&FRAME_MAGIC.to_le_bytes());
        at.put(&[0; 4]);
        at.put(&self.session.to_le_bytes());
        at.put(&self.generation.to_le_bytes());
        at.put(&self.sequence.to_le_bytes());
        at.put(&self.durable_below.to_le_bytes());
        at.put(&self.payload_bytes.to_le_bytes());
        at.put(&self.table_bytes.to_le_bytes());
        at.put(&self.entries.to_le_bytes());
        seal(&mut bytes, 4, table);
        bytes
    }

    /// Reads a header; whether it holds shows with its table, in [`FrameHeader::holds`].
    pub(super) fn decode(bytes: &[u8]) -> Option<FrameHeader> {
        let mut at = Get { bytes: bytes.get(..FRAME_HEADER_BYTES)?, at: 0 };
        if at.u32()? != FRAME_MAGIC {
            return None;
        }
        at.u32()?;
        Some(FrameHeader {
            session: at.u64()?,
            generation: at.u64()?,
            sequence: at.u64()?,
            durable_below: at.u64()?,
            payload_bytes: at.u32()?,
            table_bytes: at.u32()?,
            entries: at.u32()?,
        })
    }

    /// True if the frame's CRC is that of its header and this table.
    pub(super) fn holds(header: &[u8], table: &[u8]) -> bool {
        header.get(..FRAME_HEADER_BYTES).is_some_and(|header| is_sealed(header, 4, table))
    }
}

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EntryKind {
    /// Batches that stand at `position` of a segment.
    Append,
    /// Nothing that earlier entries have at or after `position` of the segment, or in later
    /// segments, counts any more: an append failed after it was journalled, or the log was
    /// truncated.
    Cut,
    /// Changes of values: a record of the state file, which knows nothing of segments.
    State,
}

/// Where an entry's bytes belong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    pub(crate) partition: TopicPartition,
    /// A deleted and newly made topic of the same name has another id.
    pub(crate) topic_id: Option<Uuid>,
    pub(crate) segment_base: i64,
    pub(crate) position: u32,
    pub(crate) payload_bytes: u32,
    /// First offset of the bytes; of a cut, the log end after it.
    pub(crate) offset: i64,
    /// One past their last offset.
    pub(crate) next_offset: i64,
    /// CRC of what the batches' own CRCs do not cover; of a change of values, of all its bytes.
    pub(crate) prefixes_crc: u32,
}

impl Entry {
    /// Bytes that an entry of this partition takes in the table.
    pub(super) fn table_bytes(partition: &TopicPartition) -> usize {
        ENTRY_BYTES + partition.topic().len()
    }

    /// Reads one entry; gives what follows it.
    pub(super) fn decode(table: &[u8]) -> Option<(Entry, &[u8])> {
        let mut at = Get { bytes: table, at: 0 };
        let kind = match at.u16()? {
            1 => EntryKind::Append,
            2 => EntryKind::Cut,
            3 => EntryKind::State,
            _ => return None,
        };
        let topic_bytes = usize::from(at.u16()?);
        let number = at.u32()?;
        let id = Uuid::from_slice(at.take(16)?).ok()?;
        let segment_base = at.i64()?;
        let (position, payload_bytes) = (at.u32()?, at.u32()?);
        let (offset, next_offset) = (at.i64()?, at.i64()?);
        let prefixes_crc = at.u32()?;
        at.take(8)?;
        let topic = std::str::from_utf8(at.take(topic_bytes)?).ok()?;
        let partition = TopicPartition::new(topic, number).ok()?;
        let topic_id = Some(id).filter(|id| !id.is_nil());
        let entry = Entry {
            kind,
            partition,
            topic_id,
            segment_base,
            position,
            payload_bytes,
            offset,
            next_offset,
            prefixes_crc,
        };
        Some((entry, table.get(at.at..).unwrap_or_default()))
    }

    /// True if `payload` is the batches that this entry was written for.
    pub(super) fn covers(&self, payload: &[u8]) -> bool {
        if self.kind == EntryKind::State {
            return payload.len() == self.payload_bytes as usize
                && crc32c(payload) == self.prefixes_crc;
        }
        let mut rest = payload;
        while !rest.is_empty() {
            let Ok(batch) = Batch::check(rest) else { return false };
            rest = rest.get(batch.bytes().len()..).unwrap_or_default();
        }
        payload.len() == self.payload_bytes as usize
            && Prefixes::default().crc_of(payload) == self.prefixes_crc
    }
}

/// What an entry says of a stretch of a log; the writer's form of [`Entry`], without a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch<'a> {
    pub(crate) kind: EntryKind,
    pub(crate) partition: &'a TopicPartition,
    pub(crate) topic_id: Option<Uuid>,
    pub(crate) segment_base: i64,
    /// Where it starts in the segment's file.
    pub(crate) position: u32,
    pub(crate) offset: i64,
    pub(crate) next_offset: i64,
}

impl Stretch<'_> {
    /// Adds its entry to a table; `prefixes` is scratch space.
    pub(super) fn encode(&self, payload: &[u8], table: &mut Vec<u8>, prefixes: &mut Prefixes) {
        let topic = self.partition.topic().as_bytes();
        let kind: u16 = match self.kind {
            EntryKind::Append => 1,
            EntryKind::Cut => 2,
            EntryKind::State => 3,
        };
        let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let crc = match self.kind {
            EntryKind::State => crc32c(payload),
            EntryKind::Append | EntryKind::Cut => prefixes.crc_of(payload),
        };
        table.extend_from_slice(&kind.to_le_bytes());
        table.extend_from_slice(&u16::try_from(topic.len()).unwrap_or(u16::MAX).to_le_bytes());
        table.extend_from_slice(&self.partition.partition().to_le_bytes());
        table.extend_from_slice(self.topic_id.unwrap_or(Uuid::nil()).as_bytes());
        table.extend_from_slice(&self.segment_base.to_le_bytes());
        table.extend_from_slice(&self.position.to_le_bytes());
        table.extend_from_slice(&payload_bytes.to_le_bytes());
        table.extend_from_slice(&self.offset.to_le_bytes());
        table.extend_from_slice(&self.next_offset.to_le_bytes());
        table.extend_from_slice(&crc.to_le_bytes());
        table.extend_from_slice(&[0; 8]);
        table.extend_from_slice(topic);
    }
}

/// Gathers what the CRCs of batches do not cover.
#[derive(Default)]
pub(super) struct Prefixes(Vec<u8>);

impl Prefixes {
    /// The CRC over the prefixes of whole batches.
    pub(super) fn crc_of(&mut self, mut batches: &[u8]) -> u32 {
        self.0.clear();
        while let Some((prefix, rest)) = batches.split_at_checked(BATCH_PREFIX_BYTES) {
            self.0.extend_from_slice(prefix);
            // Kafka's length field counts from the byte behind it.
            let mut at = Get { bytes: prefix, at: 8 };
            let length = at.u32().unwrap_or(0).swap_bytes() as usize;
            batches = rest.get((length + 12).saturating_sub(BATCH_PREFIX_BYTES)..).unwrap_or(&[]);
        }
        crc32c(&self.0)
    }
}

/// Stores at `at` the CRC of all that follows it, and of `more`.
fn seal(bytes: &mut [u8], at: usize, more: &[u8]) {
    let crc = crc_behind(bytes, at, more);
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

fn is_sealed(bytes: &[u8], at: usize, more: &[u8]) -> bool {
    bytes.get(at..at + 4) == Some(&crc_behind(bytes, at, more).to_le_bytes()[..])
}

fn crc_behind(bytes: &[u8], at: usize, more: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(bytes.get(at + 4..).unwrap_or_default());
    digest.update(more);
    u32::try_from(digest.finalize()).unwrap_or(u32::MAX)
}

struct Put<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Put<'_> {
    fn put(&mut self, field: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.at..self.at + field.len()) {
            place.copy_from_slice(field);
        }
        self.at += field.len();
    }
}

struct Get<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Get<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let field = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
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

    fn i64(&mut self) -> Option<i64> {
        self.u64().map(u64::cast_signed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BatchBuilder, Codec};
    use proptest::prelude::*;

    fn batch() -> Vec<u8> {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.append(1, Some(b"k"), Some(b"value"), &[]).unwrap();
        builder.build().unwrap()
    }

    /// A table with one entry for `payload`.
    fn table(payload: &[u8]) -> Vec<u8> {
        let partition = TopicPartition::new("a-topic", 7).unwrap();
        let stretch = Stretch {
            kind: EntryKind::Append,
            partition: &partition,
            topic_id: Some(Uuid::from_u128(9)),
            segment_base: 100,
            position: 4096,
            offset: 123,
            next_offset: 124,
        };
        let mut table = Vec::new();
        stretch.encode(payload, &mut table, &mut Prefixes::default());
        assert_eq!(table.len(), Entry::table_bytes(&partition));
        table
    }

    #[test]
    fn headers_and_entries_come_back() {
        let header = FileHeader { session: 3, lane: 1, generation: 9 };
        assert_eq!(FileHeader::decode(&header.encode()), Some(header));
        let payload = [batch(), batch()].concat();
        let table = table(&payload);
        let frame = FrameHeader {
            session: 3,
            generation: 9,
            sequence: 17,
            durable_below: 15,
            payload_bytes: 70,
            table_bytes: u32::try_from(table.len()).unwrap(),
            entries: 1,
        };
        let bytes = frame.encode(&table);
        assert_eq!(FrameHeader::decode(&bytes), Some(frame));
        assert!(FrameHeader::holds(&bytes, &table));
        let (entry, rest) = Entry::decode(&table).unwrap();
        assert!(rest.is_empty() && entry.covers(&payload));
        assert_eq!((entry.partition.to_string().as_str(), entry.position), ("a-topic-7", 4096));
        assert_eq!((entry.segment_base, entry.offset, entry.next_offset), (100, 123, 124));
        assert_eq!(entry.topic_id, Some(Uuid::from_u128(9)));
    }

    #[test]
    fn any_flipped_bit_of_header_table_or_batch_is_seen() {
        let payload = batch();
        let table = table(&payload);
        let (entry, _) = Entry::decode(&table).unwrap();
        for at in 0..payload.len() * 8 {
            let mut bad = payload.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(!entry.covers(&bad), "bit {at} of the batch");
        }
        let frame = FrameHeader {
            session: 1,
            generation: 1,
            sequence: 1,
            durable_below: 0,
            payload_bytes: 1,
            table_bytes: 1,
            entries: 1,
        };
        let bytes = frame.encode(&table);
        for at in 32..bytes.len() * 8 {
            let mut bad = bytes;
            bad[at / 8] ^= 1 << (at % 8);
            assert!(!FrameHeader::holds(&bad, &table), "bit {at} of the header");
        }
        for at in 0..table.len() * 8 {
            let mut bad = table.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(!FrameHeader::holds(&bytes, &bad), "bit {at} of the table");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = FileHeader::decode(&bytes);
            let _ = FrameHeader::decode(&bytes).map(|h| h.total_bytes());
            if let Some((entry, _)) = Entry::decode(&bytes) {
                prop_assert!(Entry::table_bytes(&entry.partition) <= bytes.len());
            }
        }
    }
}
