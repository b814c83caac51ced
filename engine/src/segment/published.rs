//! An append-only array that one thread grows while any thread reads it, without a lock.
//!
//! ```text
//!  len ──┐           chunk 0        chunk 1                 chunk 2 …
//!        ▼           ┌──────────┐   ┌────────────────────┐
//!   entries [0, len) │ 32       │   │ 64                 │   128 …
//!                    └──────────┘   └────────────────────┘
//! ```
//!
//! The writer stores an entry's words, then the new length with release ordering; a reader that
//! loads the length with acquire ordering sees every word below it. Chunks never move, so a reader
//! is never behind a reallocation. An entry is `W` words of 64 bits.
//!
//! Invariant: one [`Writer`] for each array; it keeps the length in a plain local, because the
//! atomic is for readers only.

#![forbid(unsafe_code)]

use crate::sync::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Entries in the first chunk; each next one doubles. Small, since most partitions are.
const FIRST_CHUNK: usize = 32;
/// 32 × (2^22 − 1) entries: far over the 1.3 M that a full 10 MiB index has.
const CHUNKS: usize = 22;

/// The readers' side. Cheap to share in an [`Arc`].
pub(crate) struct Published<const W: usize> {
    len: AtomicUsize,
    chunks: [OnceLock<Box<[AtomicU64]>>; CHUNKS],
}

/// The one writer of a [`Published`].
pub(crate) struct Writer<const W: usize> {
    array: Arc<Published<W>>,
    len: usize,
}

impl<const W: usize> Published<W> {
    pub(crate) fn new() -> (Arc<Published<W>>, Writer<W>) {
        let array = Arc::new(Published {
            len: AtomicUsize::new(0),
            chunks: [const { OnceLock::new() }; CHUNKS],
        });
        (Arc::clone(&array), Writer { array, len: 0 })
    }

    /// Entries that can be read now. Never shrinks.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// The entry at `index`; `None` at or past the length.
    pub(crate) fn get(&self, index: usize) -> Option<[u64; W]> {
        if index >= self.len() {
            return None;
        }
        let (chunk, at) = locate(index);
        let words = self.chunks.get(chunk)?.get()?.get(at * W..at * W + W)?;
        let mut entry = [0; W];
        for (out, word) in entry.iter_mut().zip(words) {
            // Relaxed: ordered by the acquire load of the length above.
            *out = word.load(Ordering::Relaxed);
        }
        Some(entry)
    }

    /// How many of the first `len` entries satisfy `before`, which must hold for a prefix.
    pub(crate) fn partition_point(&self, before: impl Fn([u64; W]) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let mid = low + (high - low) / 2;
            match self.get(mid) {
                Some(entry) if before(entry) => low = mid + 1,
                _ => high = mid,
            }
        }
        low
    }

    /// The last entry.
    pub(crate) fn last(&self) -> Option<[u64; W]> {
        self.get(self.len().checked_sub(1)?)
    }

    /// Bytes of memory it holds.
    pub(crate) fn memory_bytes(&self) -> usize {
        let words: usize = self.chunks.iter().filter_map(|c| c.get()).map(|c| c.len()).sum();
        size_of::<Self>() + words * size_of::<AtomicU64>()
    }
}

impl<const W: usize> Writer<W> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends an entry and makes it visible.
    ///
    /// # Panics
    /// Past 134 million entries, which no index reaches: a full one rolls its segment.
    pub(crate) fn push(&mut self, entry: [u64; W]) {
        self.push_with(entry, Ordering::Release);
    }

    /// The publishing order is a parameter so that a loom test can plant the weaker one.
    fn push_with(&mut self, entry: [u64; W], publish: Ordering) {
        let (chunk, at) = locate(self.len);
        let cell = self.array.chunks.get(chunk).expect("an index rolls its segment long before");
        let words = cell
            .get_or_init(|| (0..(FIRST_CHUNK << chunk) * W).map(|_| AtomicU64::new(0)).collect());
        for (word, value) in words.iter().skip(at * W).zip(entry) {
            word.store(value, Ordering::Relaxed);
        }
        self.len += 1;
        self.array.len.store(self.len, publish);
    }
}

/// Chunk of an entry, and its place there.
fn locate(index: usize) -> (usize, usize) {
    let chunk = (index / FIRST_CHUNK + 1).ilog2() as usize;
    (chunk, index - FIRST_CHUNK * ((1 << chunk) - 1))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_where_it_was_put_across_chunks() {
        let (array, mut writer) = Published::<2>::new();
        assert_eq!(array.get(0), None);
        for i in 0..10_000_u64 {
            writer.push([i, i * 7]);
            assert_eq!(array.last(), Some([i, i * 7]));
        }
        assert_eq!(array.len(), 10_000);
        for i in 0..10_000 {
            assert_eq!(array.get(i), Some([i as u64, i as u64 * 7]));
        }
        assert_eq!(array.get(10_000), None);
        for target in [0, 1, 31, 32, 95, 96, 5_000, 9_999, 20_000] {
            let expected = usize::try_from(target).unwrap().min(10_000);
            assert_eq!(array.partition_point(|[v, _]| v < target), expected);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    /// A reader that sees a length also sees every word below it, in every interleaving.
    fn readers_see_whole_entries(publish: Ordering) {
        loom::model(move || {
            let (array, mut writer) = Published::<2>::new();
            // The chunk exists before the reader does; what is explored is the entries.
            writer.push([1, 10]);
            let reader = loom::thread::spawn(move || {
                let len = array.len();
                for i in 0..len {
                    let expected = i as u64 + 1;
                    assert_eq!(array.get(i), Some([expected, expected * 10]), "torn entry {i}");
                }
            });
            writer.push_with([2, 20], publish);
            writer.push_with([3, 30], publish);
            reader.join().unwrap();
        });
    }

    #[test]
    fn loom_index_readers_never_see_an_entry_before_its_words() {
        readers_see_whole_entries(Ordering::Release);
    }

    #[test]
    #[should_panic(expected = "torn entry")]
    fn loom_index_twin_publishing_relaxed_is_caught() {
        readers_see_whole_entries(Ordering::Relaxed);
    }
}
