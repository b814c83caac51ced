//! Which bytes of a segment were checked since the directory was opened.
//!
//! A batch's CRC is checked once: on its way in, by recovery, or by the first fetch that meets it.
//! From then on its bytes go out by sendfile without being looked at. What is known is a boundary
//! above which everything was checked, which readers compare with one load, and below it stretches
//! of whole batches, which grow together as consumers read on.

#![forbid(unsafe_code)]

use super::DamagedRange;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Stretches kept at most: a segment read in more places than that is checked again in some.
const STRETCHES_MAX: usize = 64;

pub(super) struct Verified {
    /// Everything from here on was checked.
    from: AtomicU32,
    below: Mutex<Below>,
}

#[derive(Default)]
struct Below {
    /// Disjoint, in order, never touching.
    stretches: Vec<(u32, u32)>,
    /// What checks found, in file order.
    damaged: Vec<DamagedRange>,
}

impl Verified {
    /// Nothing is checked.
    pub(super) fn new() -> Verified {
        Verified { from: AtomicU32::new(u32::MAX), below: Mutex::default() }
    }

    /// Everything from `position` on was checked, and what will be appended is.
    pub(super) fn trust_from(&self, position: u32) {
        self.from.fetch_min(position, Ordering::AcqRel);
    }

    /// The part of `[start, end)` that was not checked: from the first such byte to the last.
    pub(super) fn unchecked(&self, start: u32, end: u32) -> Option<(u32, u32)> {
        let end = end.min(self.from.load(Ordering::Acquire));
        if start >= end {
            return None;
        }
        let below = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut start, mut end) = (start, end);
        for (from, to) in &below.stretches {
            if *from <= start && start < *to {
                start = *to;
            }
            if *from < end && end <= *to {
                end = (*from).max(start);
            }
        }
        (start < end).then_some((start, end))
    }

    /// `[start, end)`, whole batches, was checked.
    pub(super) fn add(&self, start: u32, end: u32) {
        let mut below = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut from, mut to) = (start, end);
        below.stretches.retain(|(other_from, other_to)| {
            let apart = *other_to < from || *other_from > to;
            if !apart {
                (from, to) = (from.min(*other_from), to.max(*other_to));
            }
            apart
        });
        if to >= self.from.load(Ordering::Acquire) {
            self.from.fetch_min(from, Ordering::AcqRel);
            return;
        }
        let at = below.stretches.partition_point(|(other, _)| *other < from);
        below.stretches.insert(at, (from, to));
        if below.stretches.len() > STRETCHES_MAX {
            let lengths = below.stretches.iter().enumerate().map(|(i, (from, to))| (to - from, i));
            if let Some((_, shortest)) = lengths.min() {
                below.stretches.remove(shortest);
            }
        }
    }

    /// Notes damage; true if it was not known.
    pub(super) fn note(&self, damage: DamagedRange) -> bool {
        let mut below = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        let at = below.damaged.partition_point(|known| known.position < damage.position);
        let is_new = below.damaged.get(at).is_none_or(|known| known.position != damage.position);
        if is_new {
            below.damaged.insert(at, damage);
        }
        is_new
    }

    pub(super) fn damaged(&self) -> Vec<DamagedRange> {
        self.below.lock().unwrap_or_else(PoisonError::into_inner).damaged.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_checked_at_first_and_everything_above_the_boundary_is() {
        let verified = Verified::new();
        assert_eq!(verified.unchecked(0, 100), Some((0, 100)));
        verified.trust_from(60);
        assert_eq!(verified.unchecked(0, 100), Some((0, 60)));
        assert_eq!(verified.unchecked(60, 100), None);
        verified.add(10, 60);
        assert_eq!(verified.unchecked(10, 1000), None);
        assert_eq!(verified.unchecked(0, 1000), Some((0, 10)));
    }

    proptest! {
        #[test]
        fn a_byte_is_passed_over_only_if_it_was_checked(
            adds in prop::collection::vec((0u32..200, 1u32..40), 0..120),
            from in 150u32..260,
            asked in (0u32..240, 1u32..60),
        ) {
            let verified = Verified::new();
            verified.trust_from(from);
            let mut checked = vec![false; 400];
            checked[from as usize..].fill(true);
            for (start, length) in adds {
                verified.add(start, start + length);
                checked[start as usize..(start + length) as usize].fill(true);
            }
            let (start, end) = (asked.0, asked.0 + asked.1);
            let left = verified.unchecked(start, end).unwrap_or((end, end));
            for byte in (start..end).filter(|byte| !(left.0..left.1).contains(byte)) {
                prop_assert!(checked[byte as usize], "{byte} of {start}..{end}");
            }
        }
    }
}
