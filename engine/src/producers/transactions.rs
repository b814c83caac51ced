//! Which transactions of a partition are undecided, and from which offset on.
//!
//! An offset is unstable if the transaction it belongs to is open, or has ended with a marker that is
//! not below the high watermark: another leader might not have it (Kafka
//! `ProducerStateManager.firstUnstableOffset`).

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

/// The transactions that keep the last stable offset back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Transactions {
    /// Producer of each open transaction, by first offset.
    open: BTreeMap<i64, i64>,
    /// Offset of the marker of each that has ended above the high watermark, by first offset.
    unreplicated: BTreeMap<i64, i64>,
}

impl Transactions {
    /// The lowest offset whose outcome is not known or not safe.
    pub(crate) fn first_unstable(&self) -> Option<i64> {
        let open = self.open.first_key_value().map(|(first, _)| *first);
        let unreplicated = self.unreplicated.first_key_value().map(|(first, _)| *first);
        match (open, unreplicated) {
            (Some(open), Some(unreplicated)) => Some(open.min(unreplicated)),
            (open, unreplicated) => open.or(unreplicated),
        }
    }

    pub(crate) fn begin(&mut self, first: i64, producer_id: i64) {
        self.open.insert(first, producer_id);
    }

    /// The last stable offset as a transaction ends with a marker at `last`, as the transaction index
    /// keeps it: the first offset of another open one, or the one after the marker.
    pub(crate) fn stable_at_end(&self, producer_id: i64, last: i64) -> i64 {
        let other = self.open.range(..last).find(|(_, producer)| **producer != producer_id);
        other.map_or(last + 1, |(first, _)| *first)
    }

    /// A marker at `last` ends the transaction that began at `first`.
    pub(crate) fn end(&mut self, first: i64, last: i64, high_watermark: i64) {
        self.open.remove(&first);
        if last >= high_watermark {
            self.unreplicated.insert(first, last);
        }
    }

    /// What ended below the high watermark is safe.
    pub(crate) fn on_high_watermark(&mut self, high_watermark: i64) {
        self.unreplicated.retain(|_, last| *last >= high_watermark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_transaction_stays_unstable_until_its_marker_is_below_the_high_watermark() {
        let mut transactions = Transactions::default();
        transactions.begin(10, 1);
        transactions.begin(12, 2);
        assert_eq!(transactions.first_unstable(), Some(10));
        assert_eq!(transactions.stable_at_end(1, 14), 12);
        transactions.end(10, 14, 14);
        assert_eq!(transactions.first_unstable(), Some(10), "the marker is at the high watermark");
        transactions.on_high_watermark(14);
        assert_eq!(transactions.first_unstable(), Some(10));
        transactions.on_high_watermark(15);
        assert_eq!(transactions.first_unstable(), Some(12));
        assert_eq!(transactions.stable_at_end(2, 15), 16);
        transactions.end(12, 15, 16);
        assert_eq!(transactions.first_unstable(), None);
    }
}
