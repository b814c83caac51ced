//! Handles: numbers that stand for objects, checked at every use.
//!
//! ```text
//!   63      56 55          32 31           0
//!   [ kind    ][ generation  ][ index + 1   ]
//! ```
//!
//! A released slot gets the next generation, so an old number does not reach a new object.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};

/// Generations are 24 bits; a slot that has used them all is not used again.
const GENERATION_MAX: u32 = (1 << 24) - 1;

/// Objects of one kind.
pub(crate) struct Table<T> {
    kind: u8,
    slots: Mutex<Slots<T>>,
}

struct Slots<T> {
    entries: Vec<(u32, Option<Arc<T>>)>,
    free: Vec<usize>,
}

impl<T> Table<T> {
    pub(crate) const fn new(kind: u8) -> Table<T> {
        Table { kind, slots: Mutex::new(Slots { entries: Vec::new(), free: Vec::new() }) }
    }

    /// Keeps an object; `None` when 2^32 are kept already.
    pub(crate) fn insert(&self, value: T) -> Option<u64> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match slots.free.pop() {
            Some(index) => index,
            None => {
                slots.entries.push((0, None));
                slots.entries.len() - 1
            }
        };
        let number = u32::try_from(index + 1).ok()?;
        let (generation, place) = slots.entries.get_mut(index)?;
        *place = Some(Arc::new(value));
        Some(u64::from(self.kind) << 56 | u64::from(*generation) << 32 | u64::from(number))
    }

    /// The object, if the handle is one of ours and not released.
    pub(crate) fn get(&self, handle: u64) -> Option<Arc<T>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, generation) = self.parts(handle)?;
        let (current, place) = slots.entries.get(index)?;
        place.clone().filter(|_| *current == generation)
    }

    /// Takes the object out; whoever uses it at this moment keeps it until done.
    pub(crate) fn remove(&self, handle: u64) -> Option<Arc<T>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, generation) = self.parts(handle)?;
        let (current, place) = slots.entries.get_mut(index)?;
        if *current != generation {
            return None;
        }
        let value = place.take()?;
        *current += 1;
        if *current < GENERATION_MAX {
            slots.free.push(index);
        }
        Some(value)
    }

    fn parts(&self, handle: u64) -> Option<(usize, u32)> {
        let number = usize::try_from(handle & u64::from(u32::MAX)).ok()?;
        let generation = u32::try_from(handle >> 32 & 0x00ff_ffff).ok()?;
        let index = number.checked_sub(1)?;
        (handle >> 56 == u64::from(self.kind)).then_some((index, generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_handle_never_reaches_another_object() {
        let (table, other) = (Table::new(1), Table::<u32>::new(2));
        let first = table.insert(7_u32).unwrap();
        assert_eq!(table.get(first).as_deref(), Some(&7));
        assert!(other.get(first).is_none(), "another kind");
        assert_eq!(table.remove(first).as_deref(), Some(&7));
        assert!(table.remove(first).is_none(), "released twice");
        let second = table.insert(8).unwrap();
        assert_ne!(first, second);
        assert!(table.get(first).is_none());
        for garbage in [0, 1, u64::MAX, second ^ 1 << 40, second + 1] {
            assert!(table.get(garbage).is_none(), "{garbage:#x}");
        }
    }

    #[test]
    fn many_threads_get_what_they_put() {
        let table = Table::new(1);
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let table = &table;
                scope.spawn(move || {
                    for i in 0..2_000 {
                        let handle = table.insert(thread * 10_000 + i).unwrap();
                        assert_eq!(table.get(handle).as_deref(), Some(&(thread * 10_000 + i)));
                        assert!(table.remove(handle).is_some());
                        assert!(table.get(handle).is_none());
                    }
                });
            }
        });
    }
}
