//! Which leader wrote from which offset on: Kafka's leader epoch cache.
//!
//! Invariant: epochs and start offsets both rise strictly from entry to entry.

#![forbid(unsafe_code)]

/// Leader epochs with the offset each began at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Epochs {
    entries: Vec<(i32, i64)>,
}

impl Epochs {
    /// Takes over checked entries, cut to a log `[log_start, log_end)`: Kafka does the same, since
    /// the file may be older or newer than the log.
    pub(crate) fn new(mut entries: Vec<(i32, i64)>, log_start: i64, log_end: i64) -> Epochs {
        entries.retain(|(_, start)| *start < log_end);
        let mut epochs = Epochs { entries };
        epochs.truncate_prefix(log_start);
        epochs
    }

    pub(crate) fn entries(&self) -> &[(i32, i64)] {
        &self.entries
    }

    /// The latest epoch; `None` before the first.
    pub(crate) fn latest(&self) -> Option<i32> {
        self.entries.last().map(|(epoch, _)| *epoch)
    }

    /// Notes that `epoch` begins at `start`. True if that is news.
    ///
    /// An entry that starts at or after `start`, or whose epoch is not lower, is contradicted by
    /// the new one and goes (Kafka `LeaderEpochFileCache.maybeTruncateNonMonotonicEntries`).
    pub(crate) fn assign(&mut self, epoch: i32, start: i64) -> bool {
        if self.latest() == Some(epoch) {
            return false;
        }
        self.entries.retain(|(e, s)| *e < epoch && *s < start);
        self.entries.push((epoch, start));
        true
    }

    /// Drops what lies before `log_start`; the epoch that covers it begins there.
    pub(crate) fn truncate_prefix(&mut self, log_start: i64) -> bool {
        let covering = self.entries.partition_point(|(_, start)| *start <= log_start);
        let Some(first) = covering.checked_sub(1) else { return false };
        let entry = self.entries.get(first).copied();
        let (Some((epoch, start)), true) =
            (entry, first > 0 || entry.is_some_and(|e| e.1 < log_start))
        else {
            return false;
        };
        self.entries.drain(..=first);
        self.entries.insert(0, (epoch, start.max(log_start)));
        true
    }

    /// Drops the epochs that begin at or after `log_end`. True if there was one.
    pub(crate) fn truncate_suffix(&mut self, log_end: i64) -> bool {
        let before = self.entries.len();
        self.entries.retain(|(_, start)| *start < log_end);
        self.entries.len() < before
    }

    /// The epoch of the record at `offset`.
    pub(crate) fn at(&self, offset: i64) -> Option<i32> {
        let after = self.entries.partition_point(|(_, start)| *start <= offset);
        self.entries.get(after.checked_sub(1)?).map(|(epoch, _)| *epoch)
    }

    /// The largest epoch at or below `epoch`, and the offset where it ends: what a follower compares
    /// with its own log to find where the two part (Kafka `endOffsetFor`).
    pub(crate) fn end_offset_for(&self, epoch: i32, log_end: i64) -> Option<(i32, i64)> {
        let latest = self.latest()?;
        if epoch == latest {
            return Some((epoch, log_end));
        }
        let higher = self.entries.partition_point(|(e, _)| *e <= epoch);
        // Past the latest epoch nothing is known; before the first, it ends where that one starts.
        let (_, end) = self.entries.get(higher)?;
        match higher.checked_sub(1).and_then(|i| self.entries.get(i)) {
            Some((floor, _)) => Some((*floor, *end)),
            None => Some((epoch, *end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_epoch_is_where_the_next_begins() {
        let epochs = Epochs::new(vec![(2, 0), (4, 10), (7, 30)], 0, 50);
        assert_eq!(epochs.end_offset_for(7, 50), Some((7, 50)));
        assert_eq!(epochs.end_offset_for(4, 50), Some((4, 30)));
        assert_eq!(epochs.end_offset_for(5, 50), Some((4, 30)), "the floor answers");
        assert_eq!(epochs.end_offset_for(1, 50), Some((1, 0)), "before the first");
        assert_eq!(epochs.end_offset_for(8, 50), None, "not seen yet");
        assert_eq!(epochs.at(9), Some(2));
        assert_eq!(epochs.at(10), Some(4));
    }

    #[test]
    fn entries_are_cut_to_the_log() {
        let epochs = Epochs::new(vec![(2, 0), (4, 10), (7, 30)], 12, 30);
        assert_eq!(epochs.entries(), &[(4, 12)]);
        let untouched = Epochs::new(vec![(2, 5)], 0, 30);
        assert_eq!(untouched.entries(), &[(2, 5)]);
    }

    #[test]
    fn a_new_epoch_drops_what_contradicts_it() {
        let mut epochs = Epochs::new(vec![(2, 0), (4, 10)], 0, 20);
        assert!(!epochs.assign(4, 20));
        assert!(epochs.assign(5, 20));
        assert!(epochs.assign(9, 15));
        assert_eq!(epochs.entries(), &[(2, 0), (4, 10), (9, 15)]);
    }
}
