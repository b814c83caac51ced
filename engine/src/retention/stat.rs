//! What was deleted, by the reason for it.

#![forbid(unsafe_code)]

use super::apply::Gone;
use super::policy::DeleteReason;
use std::sync::atomic::{AtomicU64, Ordering};

/// Segments that were deleted, and bytes of their `.log` files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Deleted {
    /// How many.
    pub segments: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What was deleted since the open, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RetentionStat {
    /// Below a log start offset that the host moved.
    pub by_log_start: Deleted,
    /// Too old (`retention_ms`).
    pub by_time: Deleted,
    /// The log had enough bytes without them (`retention_bytes`).
    pub by_bytes: Deleted,
    /// The log had enough records without them (`retention_records`).
    pub by_records: Deleted,
    /// The directory had too many bytes (`retention_total_bytes`).
    pub by_total_bytes: Deleted,
}

impl RetentionStat {
    /// All of them together.
    #[must_use]
    pub fn total(&self) -> Deleted {
        let all =
            [self.by_log_start, self.by_time, self.by_bytes, self.by_records, self.by_total_bytes];
        Deleted {
            segments: all.iter().map(|d| d.segments).sum(),
            bytes: all.iter().map(|d| d.bytes).sum(),
        }
    }

    pub(super) fn count(&mut self, gone: &Gone) {
        let place = match gone.reason {
            DeleteReason::LogStart => &mut self.by_log_start,
            DeleteReason::Time => &mut self.by_time,
            DeleteReason::Bytes => &mut self.by_bytes,
            DeleteReason::Records => &mut self.by_records,
            DeleteReason::TotalBytes => &mut self.by_total_bytes,
        };
        place.segments += 1;
        place.bytes += gone.bytes;
    }
}

/// The counts, from any thread.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    counts: [(AtomicU64, AtomicU64); 5],
}

impl Counters {
    pub(super) fn add(&self, gone: &[Gone]) {
        for gone in gone {
            if let Some((segments, bytes)) = self.counts.get(gone.reason as usize) {
                segments.fetch_add(1, Ordering::Relaxed);
                bytes.fetch_add(gone.bytes, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn stat(&self) -> RetentionStat {
        let of = |reason: DeleteReason| {
            let counts = self.counts.get(reason as usize);
            counts.map_or(Deleted::default(), |(segments, bytes)| Deleted {
                segments: segments.load(Ordering::Relaxed),
                bytes: bytes.load(Ordering::Relaxed),
            })
        };
        RetentionStat {
            by_log_start: of(DeleteReason::LogStart),
            by_time: of(DeleteReason::Time),
            by_bytes: of(DeleteReason::Bytes),
            by_records: of(DeleteReason::Records),
            by_total_bytes: of(DeleteReason::TotalBytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_count_of_its_own() {
        let counters = Counters::default();
        let reasons = [
            DeleteReason::LogStart,
            DeleteReason::Time,
            DeleteReason::Bytes,
            DeleteReason::Records,
            DeleteReason::TotalBytes,
        ];
        let mut counted = RetentionStat::default();
        for (i, reason) in reasons.into_iter().enumerate() {
            let gone = Gone { base_offset: 0, bytes: 1 << i, reason };
            counters.add(&[gone]);
            counted.count(&gone);
        }
        assert_eq!(counters.stat(), counted);
        assert_eq!(counted.total(), Deleted { segments: 5, bytes: 31 });
    }
}
