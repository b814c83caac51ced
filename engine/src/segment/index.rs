//! A segment's two sparse indexes: offset → position and timestamp → offset.
//!
//! In memory they are lock-free arrays that readers search while the writer grows them; on disk
//! they are Kafka's files (docs/FORMAT.md, "Indexes"):
//!
//! ```text
//! .index      int32 last offset of the batch − base · int32 position of that batch      8 bytes
//! .timeindex  int64 largest timestamp so far · int32 last offset of its batch − base   12 bytes
//! ```
//!
//! An entry is due when more than `index_interval_bytes` were appended since the last one; the rule
//! is applied to each batch, before its own size is counted (Kafka 4.3.1, `LogSegment.append`).
//!
//! Invariants: offsets and positions never fall from entry to entry; timestamps rise strictly.

#![forbid(unsafe_code)]

use super::published::{Published, Writer};
use crate::format::BatchHeader;
use std::sync::Arc;

/// Bytes of an entry in a `.index` file.
pub(crate) const OFFSET_ENTRY: usize = 8;
/// Bytes of an entry in a `.timeindex` file.
pub(crate) const TIME_ENTRY: usize = 12;

/// The readers' side of both indexes.
#[derive(Clone)]
pub(crate) struct SegmentIndex {
    offsets: Arc<Published<1>>,
    times: Arc<Published<2>>,
}

/// One entry of the offset index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OffsetEntry {
    /// Last offset of a batch, less the segment's base offset.
    pub(crate) relative_offset: u32,
    /// Where that batch starts in the file.
    pub(crate) position: u32,
}

/// One entry of the time index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TimeEntry {
    /// Largest timestamp of the segment so far, Unix milliseconds.
    pub(crate) timestamp: i64,
    /// Last offset of the batch that has it, less the segment's base offset.
    pub(crate) relative_offset: u32,
}

impl SegmentIndex {
    /// The last entry at or before `relative_offset`: a batch from which a walk forward reaches it.
    pub(crate) fn entry_for_offset(&self, relative_offset: u32) -> Option<OffsetEntry> {
        let after = self.offsets.partition_point(|w| unpack(w).relative_offset <= relative_offset);
        self.offsets.get(after.checked_sub(1)?).map(unpack)
    }

    /// The last entry whose batch starts at or before `position`.
    pub(crate) fn entry_for_position(&self, position: u32) -> Option<OffsetEntry> {
        let after = self.offsets.partition_point(|w| unpack(w).position <= position);
        self.offsets.get(after.checked_sub(1)?).map(unpack)
    }

    /// The last entry with a timestamp below `timestamp`: no record at or before its offset is as late.
    pub(crate) fn entry_before_time(&self, timestamp: i64) -> Option<TimeEntry> {
        let after = self.times.partition_point(|w| unpack_time(w).timestamp < timestamp);
        self.times.get(after.checked_sub(1)?).map(unpack_time)
    }

    /// Entry `i` of the offset index.
    pub(crate) fn offset_entry(&self, i: usize) -> Option<OffsetEntry> {
        self.offsets.get(i).map(unpack)
    }

    pub(crate) fn last_offset_entry(&self) -> Option<OffsetEntry> {
        self.offsets.last().map(unpack)
    }

    pub(crate) fn last_time_entry(&self) -> Option<TimeEntry> {
        self.times.last().map(unpack_time)
    }

    pub(crate) fn offset_entries(&self) -> usize {
        self.offsets.len()
    }

    pub(crate) fn time_entries(&self) -> usize {
        self.times.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.offsets.memory_bytes() + self.times.memory_bytes()
    }

    /// The `.index` file from entry `from` on.
    pub(crate) fn offset_file(&self, from: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((self.offsets.len() - from) * OFFSET_ENTRY);
        for entry in (from..self.offsets.len()).filter_map(|i| self.offset_entry(i)) {
            bytes.extend_from_slice(&entry.relative_offset.to_be_bytes());
            bytes.extend_from_slice(&entry.position.to_be_bytes());
        }
        bytes
    }

    /// The `.timeindex` file from entry `from` on.
    pub(crate) fn time_file(&self, from: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((self.times.len() - from) * TIME_ENTRY);
        for entry in (from..self.times.len()).filter_map(|i| self.times.get(i)).map(unpack_time) {
            bytes.extend_from_slice(&entry.timestamp.to_be_bytes());
            bytes.extend_from_slice(&entry.relative_offset.to_be_bytes());
        }
        bytes
    }
}

/// The writer's side: decides when an entry is due.
pub(crate) struct IndexWriter {
    offsets: Writer<1>,
    times: Writer<2>,
    base_offset: i64,
    interval_bytes: u32,
    bytes_since_entry: u64,
    /// Largest timestamp so far and the last offset of its batch; −1 when there is none.
    max_timestamp: i64,
    max_timestamp_offset: u32,
    last_time: i64,
}

impl IndexWriter {
    pub(crate) fn new(base_offset: i64, interval_bytes: u32) -> (SegmentIndex, IndexWriter) {
        let (offsets, offsets_writer) = Published::new();
        let (times, times_writer) = Published::new();
        let writer = IndexWriter {
            offsets: offsets_writer,
            times: times_writer,
            base_offset,
            interval_bytes,
            bytes_since_entry: 0,
            max_timestamp: -1,
            max_timestamp_offset: 0,
            last_time: -1,
        };
        (SegmentIndex { offsets, times }, writer)
    }

    /// Takes over what a pair of index files holds. The distance to the next entry restarts at 0,
    /// as in Kafka after a reopen.
    ///
    /// # Errors
    /// A sentence that says which entry breaks which rule; then the files must be rebuilt.
    pub(crate) fn from_files(
        base_offset: i64,
        interval_bytes: u32,
        offset_file: &[u8],
        time_file: &[u8],
        log_bytes: u64,
    ) -> Result<(SegmentIndex, IndexWriter), String> {
        let (index, mut writer) = IndexWriter::new(base_offset, interval_bytes);
        writer.load_offsets(offset_file, log_bytes)?;
        writer.load_times(time_file)?;
        Ok((index, writer))
    }

    fn load_offsets(&mut self, file: &[u8], log_bytes: u64) -> Result<(), String> {
        let (entries, rest) = file.as_chunks::<OFFSET_ENTRY>();
        if !rest.is_empty() {
            return Err(format!("offset index is {} bytes, not whole entries", file.len()));
        }
        let mut last: Option<OffsetEntry> = None;
        for (i, [o0, o1, o2, o3, p0, p1, p2, p3]) in entries.iter().copied().enumerate() {
            let entry = OffsetEntry {
                relative_offset: u32::from_be_bytes([o0, o1, o2, o3]),
                position: u32::from_be_bytes([p0, p1, p2, p3]),
            };
            // The first batch never has an entry, so no entry has position 0; after it both rise.
            let falls = last.is_some_and(|last| {
                entry.relative_offset <= last.relative_offset || entry.position <= last.position
            });
            if falls || entry.position == 0 || entry.relative_offset > i32::MAX as u32 {
                return Err(format!("entry {i} of the offset index is out of order"));
            }
            if u64::from(entry.position) >= log_bytes {
                return Err(format!("entry {i} of the offset index points past the log"));
            }
            self.offsets.push([pack(entry)]);
            last = Some(entry);
        }
        Ok(())
    }

    fn load_times(&mut self, file: &[u8]) -> Result<(), String> {
        let (entries, rest) = file.as_chunks::<TIME_ENTRY>();
        if !rest.is_empty() {
            return Err(format!("time index is {} bytes, not whole entries", file.len()));
        }
        let mut last: Option<TimeEntry> = None;
        for (i, [t0, t1, t2, t3, t4, t5, t6, t7, o0, o1, o2, o3]) in
            entries.iter().copied().enumerate()
        {
            let entry = TimeEntry {
                timestamp: i64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
                relative_offset: u32::from_be_bytes([o0, o1, o2, o3]),
            };
            let falls = last.is_some_and(|last| {
                entry.timestamp <= last.timestamp || entry.relative_offset < last.relative_offset
            });
            if falls || entry.timestamp < 0 || entry.relative_offset > i32::MAX as u32 {
                return Err(format!("entry {i} of the time index is out of order"));
            }
            self.times.push(pack_time(entry));
            last = Some(entry);
        }
        if let Some(entry) = last {
            self.max_timestamp = entry.timestamp;
            self.max_timestamp_offset = entry.relative_offset;
            self.last_time = entry.timestamp;
        }
        Ok(())
    }

    /// Notes a batch that was written at `position`, and adds the entries that are due.
    pub(crate) fn on_batch(&mut self, header: &BatchHeader, position: u32) {
        let relative_offset = self.relative(header.last_offset());
        if header.max_timestamp > self.max_timestamp {
            self.max_timestamp = header.max_timestamp;
            self.max_timestamp_offset = relative_offset;
        }
        if self.bytes_since_entry > u64::from(self.interval_bytes) {
            self.offsets.push([pack(OffsetEntry { relative_offset, position })]);
            self.push_time_if_later();
            self.bytes_since_entry = 0;
        }
        self.bytes_since_entry += header.total_bytes() as u64;
    }

    /// The final time entry of a segment that is closed or rolled.
    pub(crate) fn seal(&mut self) {
        self.push_time_if_later();
    }

    fn push_time_if_later(&mut self) {
        if self.max_timestamp > self.last_time {
            self.last_time = self.max_timestamp;
            self.times.push(pack_time(TimeEntry {
                timestamp: self.max_timestamp,
                relative_offset: self.max_timestamp_offset,
            }));
        }
    }

    /// True when the next append must roll: Kafka keeps one slot of the time index for the seal.
    pub(crate) fn is_full(&self, index_bytes_max: u32) -> bool {
        let bytes = index_bytes_max as usize;
        self.offsets.len() >= bytes / OFFSET_ENTRY
            || self.times.len() >= (bytes / TIME_ENTRY).saturating_sub(1)
    }

    /// Largest timestamp of the segment; −1 when no record has one.
    pub(crate) fn max_timestamp(&self) -> i64 {
        self.max_timestamp
    }

    fn relative(&self, offset: i64) -> u32 {
        u32::try_from(offset - self.base_offset)
            .expect("the log rolls before an offset leaves its segment's range")
    }
}

fn pack(entry: OffsetEntry) -> u64 {
    u64::from(entry.relative_offset) << 32 | u64::from(entry.position)
}

#[expect(clippy::cast_possible_truncation, reason = "takes the two halves apart again")]
fn unpack([word]: [u64; 1]) -> OffsetEntry {
    OffsetEntry { relative_offset: (word >> 32) as u32, position: word as u32 }
}

fn pack_time(entry: TimeEntry) -> [u64; 2] {
    [entry.timestamp.cast_unsigned(), u64::from(entry.relative_offset)]
}

#[expect(clippy::cast_possible_truncation, reason = "the word was a u32 when it was stored")]
fn unpack_time([timestamp, relative_offset]: [u64; 2]) -> TimeEntry {
    TimeEntry { timestamp: timestamp.cast_signed(), relative_offset: relative_offset as u32 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::format::BatchBuilder;
    use crate::format::Codec;

    fn header(base_offset: i64, records: usize, value_bytes: usize, timestamp: i64) -> BatchHeader {
        let mut builder = BatchBuilder::new(Codec::None);
        for _ in 0..records {
            builder.append(timestamp, None, Some(&vec![7; value_bytes]), &[]).unwrap();
        }
        let mut batch = builder.build().unwrap();
        crate::format::stamp(&mut batch, base_offset, 0);
        BatchHeader::read(&batch).unwrap()
    }

    #[test]
    fn entries_come_after_more_than_the_interval_and_never_for_the_first_batch() {
        let (index, mut writer) = IndexWriter::new(100, 4096);
        let mut position = 0;
        for i in 0..3 {
            let header = header(100 + i, 1, 3000, 1000 + i);
            writer.on_batch(&header, position);
            position += u32::try_from(header.total_bytes()).unwrap();
        }
        // 3 kB before the second batch: not due. 6 kB before the third: due.
        assert_eq!(index.offset_entries(), 1);
        let entry = index.offset_entry(0).unwrap();
        assert_eq!(entry.relative_offset, 2);
        assert_eq!(index.entry_for_offset(1), None);
        assert_eq!(index.entry_for_offset(2), Some(entry));
        assert_eq!(index.entry_for_position(entry.position), Some(entry));
        assert_eq!(index.last_time_entry().unwrap().timestamp, 1002);
        writer.seal();
        assert_eq!(index.time_entries(), 1, "the seal adds nothing when the maximum is there");
    }

    #[test]
    fn files_round_trip_and_every_broken_rule_is_named() {
        let (index, mut writer) = IndexWriter::new(0, 0);
        let mut position = 0;
        for i in 0..50 {
            let header = header(i * 4, 4, 100, 5000 + i);
            writer.on_batch(&header, position);
            position += u32::try_from(header.total_bytes()).unwrap();
        }
        writer.seal();
        let (offsets, times) = (index.offset_file(0), index.time_file(0));
        let load = |o: &[u8], t: &[u8]| IndexWriter::from_files(0, 0, o, t, position.into());
        let (again, _) = load(&offsets, &times).unwrap();
        assert_eq!(again.offset_file(0), offsets);
        assert_eq!(again.time_file(0), times);

        assert!(load(&offsets[..9], &times).is_err(), "a short file");
        assert!(load(&offsets, &times[..13]).is_err(), "a short time file");
        assert!(load(&[0; 80], &times).is_err(), "zeros are not entries");
        assert!(load(&offsets, &[0; 120]).is_err(), "zeros are not time entries");
        let mut swapped = offsets.clone();
        swapped[..16].rotate_left(8);
        assert!(load(&swapped, &times).is_err(), "entries out of order");
        let mut far = offsets.clone();
        let last = far.len() - 4;
        far[last..].copy_from_slice(&position.to_be_bytes());
        assert!(load(&far, &times).is_err(), "an entry past the log");
    }
}
