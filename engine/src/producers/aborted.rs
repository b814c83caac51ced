//! Aborted transactions of one segment: what a read-committed consumer must leave out.
//!
//! ```text
//! .txnindex   2 version = 0 · 8 producer id · 8 first offset · 8 offset of the abort marker
//!             · 8 last stable offset as it was written                      (Kafka TransactionIndex)
//! ```
//!
//! In memory it is an append-only array that readers search without a lock.

#![forbid(unsafe_code)]

use super::snapshot::take;
use crate::segment::{Published, PublishedWriter, Segment};
use std::sync::Arc;

/// Bytes of one entry.
pub(crate) const ABORTED_BYTES: usize = 34;
const VERSION: i16 = 0;

/// A transaction that was aborted: one entry of a `.txnindex` file.
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

impl AbortedTransaction {
    fn words(&self) -> [u64; 4] {
        [self.producer_id, self.first_offset, self.last_offset, self.last_stable_offset]
            .map(i64::cast_unsigned)
    }

    fn from_words(words: [u64; 4]) -> AbortedTransaction {
        let [producer_id, first_offset, last_offset, last_stable_offset] =
            words.map(u64::cast_signed);
        AbortedTransaction { producer_id, first_offset, last_offset, last_stable_offset }
    }
}

/// The entries of one segment, for readers on any thread.
pub(crate) struct AbortedEntries(Arc<Published<4>>);

/// The one writer of an [`AbortedEntries`].
pub(crate) struct AbortedWriter(PublishedWriter<4>);

impl AbortedEntries {
    pub(crate) fn new(entries: &[AbortedTransaction]) -> (AbortedEntries, AbortedWriter) {
        let (array, writer) = Published::new();
        let mut writer = AbortedWriter(writer);
        for entry in entries {
            writer.push(entry);
        }
        (AbortedEntries(array), writer)
    }

    /// Those that a segment has.
    pub(crate) fn of(segment: &Segment) -> Option<AbortedEntries> {
        segment.aborted().map(|array| AbortedEntries(Arc::clone(array)))
    }

    /// Gives them to their segment.
    pub(crate) fn attach(self, segment: &Segment) {
        segment.set_aborted(Some(self.0));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Entry number `from` and those behind it.
    pub(crate) fn from(&self, from: usize) -> impl Iterator<Item = AbortedTransaction> {
        (from..self.len()).filter_map(|i| self.0.get(i).map(AbortedTransaction::from_words))
    }

    /// Adds those that overlap the offsets `[from, to)`. True if no later segment has any: then an
    /// entry says that all below `to` was stable (Kafka `TransactionIndex.collectAbortedTxns`).
    pub(crate) fn collect(&self, from: i64, to: i64, found: &mut Vec<AbortedTransaction>) -> bool {
        // Markers rise from entry to entry.
        let start = self
            .0
            .partition_point(|words| AbortedTransaction::from_words(words).last_offset < from);
        for entry in self.from(start) {
            if entry.first_offset < to {
                found.push(entry);
            }
            if entry.last_stable_offset >= to {
                return true;
            }
        }
        false
    }
}

impl AbortedWriter {
    pub(crate) fn push(&mut self, entry: &AbortedTransaction) {
        self.0.push(entry.words());
    }
}

/// The bytes of entries in a file.
pub(crate) fn encode_aborted(entries: impl Iterator<Item = AbortedTransaction>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&entry.producer_id.to_be_bytes());
        bytes.extend_from_slice(&entry.first_offset.to_be_bytes());
        bytes.extend_from_slice(&entry.last_offset.to_be_bytes());
        bytes.extend_from_slice(&entry.last_stable_offset.to_be_bytes());
    }
    bytes
}

/// Reads a `.txnindex` file of a segment that begins at `base_offset`.
///
/// # Errors
/// A sentence that says what does not hold.
pub(crate) fn decode_aborted(
    bytes: &[u8],
    base_offset: i64,
) -> Result<Vec<AbortedTransaction>, String> {
    let (chunks, rest) = bytes.as_chunks::<ABORTED_BYTES>();
    if !rest.is_empty() {
        return Err(format!("{} bytes are no whole number of 34-byte entries", bytes.len()));
    }
    let mut found: Vec<AbortedTransaction> = Vec::with_capacity(chunks.len());
    for (number, chunk) in chunks.iter().enumerate() {
        let mut rest = &chunk[..];
        let version = i16::from_be_bytes(take(&mut rest));
        let entry = AbortedTransaction {
            producer_id: i64::from_be_bytes(take(&mut rest)),
            first_offset: i64::from_be_bytes(take(&mut rest)),
            last_offset: i64::from_be_bytes(take(&mut rest)),
            last_stable_offset: i64::from_be_bytes(take(&mut rest)),
        };
        if version != VERSION {
            return Err(format!("entry {number} has version {version}; only 0 is known"));
        }
        if found.last().is_some_and(|last| last.last_offset >= entry.last_offset) {
            return Err(format!("last offset of entry {number} does not rise"));
        }
        if entry.last_offset < base_offset || entry.first_offset >= entry.last_offset {
            let (first, last) = (entry.first_offset, entry.last_offset);
            return Err(format!("entry {number} is of offsets {first} to {last}"));
        }
        found.push(entry);
    }
    Ok(found)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn aborted(first_offset: i64, last_offset: i64, stable: i64) -> AbortedTransaction {
        AbortedTransaction { producer_id: 7, first_offset, last_offset, last_stable_offset: stable }
    }

    #[test]
    fn the_file_round_trips_and_its_rules_are_checked() {
        let entries = [aborted(3, 9, 10), aborted(10, 12, 13)];
        let bytes = encode_aborted(entries.into_iter());
        assert_eq!(bytes.len(), 2 * ABORTED_BYTES);
        assert_eq!(decode_aborted(&bytes, 5).unwrap(), entries);
        assert!(decode_aborted(&bytes, 10).is_err(), "a marker before its segment");
        assert!(decode_aborted(&bytes[1..], 0).is_err(), "no whole number of entries");
        assert!(decode_aborted(&[0; ABORTED_BYTES], 0).is_err(), "zeros are no entry");
        let falling = encode_aborted([entries[1], entries[0]].into_iter());
        assert!(decode_aborted(&falling, 0).is_err());
    }

    #[test]
    fn those_that_overlap_are_found_and_the_search_ends_where_all_was_stable() {
        let entries = [aborted(3, 9, 4), aborted(4, 12, 13), aborted(20, 25, 26)];
        let (shared, _) = AbortedEntries::new(&entries);
        let collect = |from, to| {
            let mut found = Vec::new();
            let done = shared.collect(from, to, &mut found);
            (found.iter().map(|e| e.first_offset).collect::<Vec<_>>(), done)
        };
        assert_eq!(collect(0, 4), (vec![3], true));
        assert_eq!(collect(10, 12), (vec![4], true));
        assert_eq!(collect(13, 14), (vec![], true));
        assert_eq!(collect(0, 21), (vec![3, 4, 20], true));
        assert_eq!(collect(0, 30), (vec![3, 4, 20], false));
        assert_eq!(collect(26, 30), (vec![], false));
    }
}
