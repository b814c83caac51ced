//! Reading a state file: where it ends, and what in it is not what was written.
//!
//! Records follow each other. The first one that does not hold is the end of the file, if nothing
//! says that it was synced: writes are torn anywhere. If the header, or a later record, says so, it
//! is damage: it is reported, and what is whole behind it counts.

#![forbid(unsafe_code)]

use super::format::{ALIGN, HEADER_BYTES, Header, NoHeader, Record};
use std::ops::Range;

/// What is in a file.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The changes up to this one are in the records numbered 0.
    pub(super) base_sequence: u64,
    /// Whole records, in the order of the file.
    pub(super) records: Vec<Record>,
    /// Where the last whole record that counts ends.
    pub(super) end: u64,
    /// What stands behind that was never finished.
    pub(super) is_torn: bool,
    /// All below was synced.
    pub(super) synced_bytes: u64,
    /// Below that, bytes that are not what was written.
    pub(super) damaged: Vec<Range<u64>>,
}

/// Reads a file. The error is the version of one that this engine does not read.
pub(super) fn scan(bytes: &[u8]) -> Result<Scan, u8> {
    let mut found = Scan { end: HEADER_BYTES as u64, ..Scan::default() };
    match Header::decode(bytes) {
        Ok(header) => {
            found.base_sequence = header.base_sequence;
            found.synced_bytes = header.base_bytes;
        }
        Err(NoHeader::Version(version)) => return Err(version),
        // It was synced before the file had its name.
        Err(NoHeader::Damaged) => found.damaged.push(0..HEADER_BYTES as u64),
    }
    let mut holes: Vec<Range<u64>> = Vec::new();
    let mut at = HEADER_BYTES;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let Some(record) = record_at(rest, at) else {
            let next = next_record(bytes, at + ALIGN).unwrap_or(bytes.len());
            holes.push(at as u64..next as u64);
            at = next;
            continue;
        };
        at += record.bytes;
        found.synced_bytes = found.synced_bytes.max(record.synced_bytes);
        found.records.push(record);
    }
    let length = (bytes.len() as u64).max(HEADER_BYTES as u64);
    if length < found.synced_bytes {
        holes.push(length..found.synced_bytes);
    }
    for hole in holes {
        if hole.start >= found.synced_bytes {
            // Nobody was told that what follows is durable; what was is in a journal.
            found.records.retain(|record| record.position < hole.start);
            found.is_torn = true;
            break;
        }
        found.damaged.push(hole);
    }
    if let Some(last) = found.records.last() {
        found.end = last.position + last.bytes as u64;
    }
    found.end = found.end.max(found.damaged.last().map_or(0, |hole| hole.end));
    Ok(found)
}

/// The whole record that stands here and says so.
fn record_at(bytes: &[u8], at: usize) -> Option<Record> {
    // The place first: behind damage this is asked at every step.
    (Record::position(bytes) == Some(at as u64)).then(|| Record::decode(bytes)).flatten()
}

fn next_record(bytes: &[u8], from: usize) -> Option<usize> {
    (from..bytes.len())
        .step_by(ALIGN)
        .find(|at| bytes.get(*at..).is_some_and(|rest| record_at(rest, *at).is_some()))
}

#[cfg(test)]
mod tests {
    use super::super::format::encode;
    use super::super::{Change, Scope, What};
    use super::*;
    use bytes::Bytes;

    /// Three records of one put each; the last says that the first was synced.
    fn file() -> (Vec<u8>, [usize; 4]) {
        let mut bytes = Header { base_sequence: 4, base_bytes: 64 }.encode().to_vec();
        let mut starts = [bytes.len(); 4];
        for i in 0..3_usize {
            let what = What::Put { key: Bytes::from(vec![b'k'; i + 1]), value: Bytes::new() };
            let change = Change { scope: Scope::Group("g".into()), what };
            let synced = if i == 2 { starts[1] } else { 64 };
            let record = encode(5 + i as u64, bytes.len() as u64, synced as u64, &[change]);
            bytes.extend_from_slice(&record);
            starts[i + 1] = bytes.len();
        }
        (bytes, starts)
    }

    fn holes(found: &Scan) -> Vec<(u64, u64)> {
        found.damaged.iter().map(|hole| (hole.start, hole.end)).collect()
    }

    #[test]
    fn a_torn_tail_ends_the_file_at_any_cut() {
        let (bytes, starts) = file();
        let whole = scan(&bytes).unwrap();
        assert_eq!((whole.records.len(), whole.is_torn, whole.base_sequence), (3, false, 4));
        assert_eq!(whole.end, bytes.len() as u64);
        for cut in HEADER_BYTES..bytes.len() {
            let found = scan(&bytes[..cut]).unwrap();
            let records = starts[1..].iter().filter(|end| **end <= cut).count();
            assert_eq!(found.records.len(), records, "cut at {cut}");
            assert_eq!(found.end, starts[records] as u64);
            assert_eq!(found.is_torn, cut > starts[records]);
            assert!(found.damaged.is_empty());
        }
    }

    #[test]
    fn what_was_synced_and_does_not_hold_is_damage_and_the_rest_counts() {
        let (bytes, starts) = file();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let Ok(found) = scan(&bad) else {
                assert!((56..64).contains(&bit), "bit {bit}");
                continue;
            };
            let at = bit / 8;
            if at < 64 {
                assert_eq!((holes(&found), found.records.len()), (vec![(0, 64)], 3));
            } else if at < starts[1] {
                assert_eq!(holes(&found), [(64, starts[1] as u64)], "bit {bit}");
                assert_eq!(found.records.len(), 2);
                assert_eq!(found.end, bytes.len() as u64);
            } else {
                // Behind the synced end a hole ends the file, whatever follows.
                let lost = if at < starts[2] { 1 } else { 2 };
                assert!(found.damaged.is_empty() && found.is_torn, "bit {bit}");
                assert_eq!((found.records.len(), found.end), (lost, starts[lost] as u64));
            }
        }
        // Shorter than what was synced: the header alone tells.
        let mut short = Header { base_sequence: 4, base_bytes: 500 }.encode().to_vec();
        assert_eq!(holes(&scan(&short).unwrap()), [(64, 500)]);
        short.truncate(10);
        assert!(!scan(&short).unwrap().damaged.is_empty());
    }
}
