//! From keys to the offset of their newest record, in memory of a set size (Kafka `SkimpyOffsetMap`).
//!
//! Keys themselves are not kept, only 128 bits of hash: 24 bytes a slot, whatever a key's length. Two
//! keys with one hash would be taken for one, and the older lost; the hash is keyed at random for
//! each map, so that nobody can choose such keys. Slots are found by linear probing.

#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};

/// Bytes of a slot: hash and offset.
pub(crate) const SLOT_BYTES: u64 = 24;
/// The part of the slots that is filled at most (`log.cleaner.io.buffer.load.factor`), in tenths.
const LOAD_TENTHS: usize = 9;
/// The offset of a slot that is free; no record has it.
const FREE: i64 = -1;

/// A bounded map from keys to offsets.
pub(crate) struct OffsetMap {
    slots: Vec<Slot>,
    keys: usize,
    hashers: [RandomState; 2],
    latest_offset: i64,
}

#[derive(Clone, Copy)]
struct Slot {
    hash: [u64; 2],
    offset: i64,
}

const _: () = assert!(size_of::<Slot>() as u64 == SLOT_BYTES);

impl OffsetMap {
    /// A map that uses at most `memory_bytes`, and no more than `records` records can fill.
    pub(crate) fn new(memory_bytes: u64, records: u64) -> OffsetMap {
        let wanted = records.saturating_mul(10) / LOAD_TENTHS as u64 + 2;
        let slots = (memory_bytes / SLOT_BYTES).min(wanted).max(2);
        let slots = usize::try_from(slots).unwrap_or(usize::MAX);
        OffsetMap {
            slots: vec![Slot { hash: [0; 2], offset: FREE }; slots],
            keys: 0,
            hashers: [RandomState::new(), RandomState::new()],
            latest_offset: -1,
        }
    }

    /// Forgets all keys.
    pub(crate) fn clear(&mut self) {
        self.slots.fill(Slot { hash: [0; 2], offset: FREE });
        self.keys = 0;
        self.latest_offset = -1;
    }

    /// True when no new key is to be put in.
    pub(crate) fn is_full(&self) -> bool {
        self.keys >= (self.slots.len() * LOAD_TENTHS / 10).max(1)
    }

    /// Notes that the record at `offset`, later than all before, has this key. False if the map is
    /// full: then nothing is noted (Kafka asks before it looks whether the key is there already).
    pub(crate) fn put(&mut self, key: &[u8], offset: i64) -> bool {
        if self.is_full() {
            return false;
        }
        let hash = self.hash(key);
        let Some(at) = self.find(hash) else { return false };
        if let Some(slot) = self.slots.get_mut(at) {
            self.keys += usize::from(slot.offset == FREE);
            *slot = Slot { hash, offset };
        }
        self.latest_offset = offset;
        true
    }

    /// Offset of the newest record with this key.
    pub(crate) fn get(&self, key: &[u8]) -> Option<i64> {
        let slot = self.slots.get(self.find(self.hash(key))?)?;
        (slot.offset != FREE).then_some(slot.offset)
    }

    /// Everything up to here is in the map.
    pub(crate) fn latest_offset(&self) -> i64 {
        self.latest_offset
    }

    /// Notes that nothing up to `offset` is missing in the map.
    pub(crate) fn advance_latest_offset(&mut self, offset: i64) {
        self.latest_offset = self.latest_offset.max(offset);
    }

    fn hash(&self, key: &[u8]) -> [u64; 2] {
        let [first, second] = &self.hashers;
        [first.hash_one(key), second.hash_one(key)]
    }

    /// The slot that has this hash, or the free one where it belongs.
    fn find(&self, hash: [u64; 2]) -> Option<usize> {
        let count = self.slots.len();
        let [start, _] = hash;
        let start = usize::try_from(start % count as u64).unwrap_or(0);
        // There is always a free one: the map is never full to the last slot.
        (start..count).chain(0..start).find(|at| {
            self.slots.get(*at).is_some_and(|slot| slot.offset == FREE || slot.hash == hash)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_key_that_fits_is_found_with_its_newest_offset() {
        let mut map = OffsetMap::new(SLOT_BYTES * 100, 1_000);
        let mut model = BTreeMap::new();
        let mut offset = 0;
        while map.put(format!("key {}", offset % 97).as_bytes(), offset) {
            model.insert(offset % 97, offset);
            offset += 1;
        }
        assert_eq!(model.len(), 90, "nine tenths of the slots");
        for (key, offset) in &model {
            assert_eq!(map.get(format!("key {key}").as_bytes()), Some(*offset));
        }
        assert_eq!(map.get(b"key 96"), None);
        assert_eq!(map.latest_offset(), offset - 1);
        map.clear();
        assert_eq!((map.get(b"key 1"), map.is_full()), (None, false));
    }

    #[test]
    fn a_map_takes_no_more_memory_than_the_records_need_and_always_some() {
        assert_eq!(OffsetMap::new(u64::MAX, 9).slots.len(), 12);
        let mut least = OffsetMap::new(0, 0);
        assert!(least.put(b"one", 1) && !least.put(b"two", 2));
    }
}
