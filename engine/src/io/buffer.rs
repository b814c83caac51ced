//! Memory that a disk can read by itself: whole blocks, aligned as O_DIRECT asks.

use super::BLOCK_BYTES;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;

/// Bytes on their way to a file, in memory aligned to [`BLOCK_BYTES`].
///
/// Whoever has it owns its memory. A lane that was given one for a write gives it back in
/// [`Done`](super::Done), when the system no longer looks at it.
pub struct Buffer {
    memory: NonNull<u8>,
    capacity: usize,
    len: usize,
    /// The ring that knows it already, and its number there.
    registered: Option<(u64, u16)>,
}

// SAFETY: the memory belongs to this value alone, like that of a Vec<u8>.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// An empty buffer with room for `capacity` bytes, rounded up to whole blocks, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Buffer {
        let capacity = capacity.max(1).next_multiple_of(BLOCK_BYTES);
        let layout = layout(capacity);
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        Buffer { memory, capacity, len: 0, registered: None }
    }

    /// Bytes it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that fit still.
    #[must_use]
    pub fn room(&self) -> usize {
        self.capacity - self.len
    }

    /// The bytes in it.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` is at most the capacity of the allocation, which is initialised throughout,
        // and `&self` keeps everybody from writing to it.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }

    /// The bytes in it, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` keeps everybody else from reading it.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }

    /// Adds bytes behind those that are in it.
    ///
    /// # Panics
    /// If they do not fit; see [`Buffer::room`].
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let from = self.len;
        self.set_len(from + bytes.len());
        self.as_mut_slice().get_mut(from..).unwrap_or_default().copy_from_slice(bytes);
    }

    /// Forgets the bytes from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Forgets all bytes.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds zeros up to a whole number of blocks.
    pub fn pad_to_block(&mut self) {
        let from = self.len;
        self.set_len(from.next_multiple_of(BLOCK_BYTES));
        self.as_mut_slice().get_mut(from..).unwrap_or_default().fill(0);
    }

    /// Its number among the buffers that this ring has registered. None on any other ring, where the
    /// number would stand for other memory.
    pub(super) fn registered_with(&self, ring: u64) -> Option<u16> {
        self.registered.filter(|(owner, _)| *owner == ring).map(|(_, number)| number)
    }

    /// The number goes with this value, and is forgotten with it.
    pub(super) fn set_registered(&mut self, ring: u64, number: u16) {
        self.registered = Some((ring, number));
    }

    /// All of its memory, for the kernel.
    pub(super) fn memory(&self) -> libc::iovec {
        libc::iovec { iov_base: self.memory.as_ptr().cast(), iov_len: self.capacity }
    }

    fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "{len} bytes into a buffer of {}", self.capacity);
        self.len = len;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed here only.
        unsafe { dealloc(self.memory.as_ptr(), layout(self.capacity)) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.len, self.capacity)
    }
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, BLOCK_BYTES).expect("a block is a power of two")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_in_are_padded_and_are_forgotten() {
        let mut buffer = Buffer::new(5000);
        assert_eq!(buffer.capacity(), 8192);
        assert_eq!(buffer.as_slice().as_ptr().align_offset(BLOCK_BYTES), 0);
        buffer.extend_from_slice(&[7; 5000]);
        buffer.truncate(4097);
        buffer.pad_to_block();
        assert_eq!((buffer.len(), buffer.room()), (8192, 0));
        assert!(buffer.as_slice()[..4097].iter().all(|b| *b == 7));
        assert!(buffer.as_slice()[4097..].iter().all(|b| *b == 0), "stale bytes in the padding");
    }

    #[test]
    #[should_panic(expected = "into a buffer of 4096")]
    fn bytes_that_do_not_fit_are_a_bug_and_are_caught() {
        Buffer::new(1).extend_from_slice(&[0; 4097]);
    }
}
