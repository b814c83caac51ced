//! All producers of a partition, in three layers: *known* is what the log has; *staged* is what it
//! will have when the bytes gathered for a write are written; *tried* is the request at hand.
//!
//! A request that is refused drops the last layer, a write that fails the last two. So what is known
//! is always what the published log says, and a retry after a failed write is no duplicate.

#![forbid(unsafe_code)]

use super::entry::{ProducerEntry, Remembered};
use super::fault::ProducerFault;
use super::marker::{EndMarker, TransactionOutcome};
use super::snapshot::ProducerState;
use crate::format::BatchHeader;
use crate::planted::{Bug, planted};
use std::collections::HashMap;

/// What a written batch does to the transactions of its partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A transaction begins at this offset.
    Begun { producer_id: i64, first: i64 },
    /// It ends, with a marker at `last`.
    Ended { producer_id: i64, first: i64, last: i64, outcome: TransactionOutcome },
}

/// What a marker is checked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MarkerCheck {
    /// A leader elsewhere, or the log itself, has taken it: it is only counted.
    Replicated,
    /// A coordinator of this `transaction.version` asks for it.
    Coordinator { transaction_version: i16 },
}

/// The producers of one partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Producers {
    known: HashMap<i64, ProducerEntry>,
    staged: HashMap<i64, ProducerEntry>,
    staged_events: Vec<Event>,
    /// A request has few batches: searched from its end.
    tried: Vec<(i64, ProducerEntry)>,
    tried_events: Vec<Event>,
}

impl Producers {
    /// What a snapshot says, less who has been silent for too long.
    pub(crate) fn load(snapshot: &[ProducerState], now_ms: i64, expiration_ms: u64) -> Producers {
        let entries = snapshot.iter().map(|s| (s.producer_id, ProducerEntry::from_state(s)));
        let known = entries.filter(|(_, entry)| !entry.is_expired(now_ms, expiration_ms));
        Producers { known: known.collect(), ..Producers::default() }
    }

    /// What is known, in order of the ids.
    pub(crate) fn states(&self) -> Vec<ProducerState> {
        let states = self.known.iter().map(|(id, entry)| entry.state(*id));
        let mut states: Vec<ProducerState> = states.collect();
        states.sort_unstable_by_key(|state| state.producer_id);
        states
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Forgets who has been silent for too long.
    pub(crate) fn remove_expired(&mut self, now_ms: i64, expiration_ms: u64) {
        self.known.retain(|_, entry| !entry.is_expired(now_ms, expiration_ms));
    }

    fn entry(&self, producer_id: i64) -> Option<&ProducerEntry> {
        let tried = self.tried.iter().rev().find(|(id, _)| *id == producer_id);
        tried
            .map(|(_, entry)| entry)
            .or_else(|| self.staged.get(&producer_id))
            .or_else(|| self.known.get(&producer_id))
    }

    /// The batch that this one repeats, if it is one that is remembered.
    pub(crate) fn duplicate_of(&self, header: &BatchHeader) -> Option<Remembered> {
        self.entry(header.producer_id)?.duplicate_of(header)
    }

    /// Tries a batch of data, with its offsets. A client's is checked, a replicated one counted.
    pub(crate) fn try_data(
        &mut self,
        header: &BatchHeader,
        from_client: bool,
    ) -> Result<(), ProducerFault> {
        let id = header.producer_id;
        let mut entry = self.entry(id).copied().unwrap_or_else(ProducerEntry::unknown);
        if from_client {
            entry.check_data(header)?;
        }
        if let Some(first) = entry.add_data(header) {
            self.tried_events.push(Event::Begun { producer_id: id, first });
        }
        self.tried.push((id, entry));
        Ok(())
    }

    /// Tries a marker, with its offset (Kafka `ProducerAppendInfo.appendEndTxnMarker`).
    pub(crate) fn try_marker(
        &mut self,
        header: &BatchHeader,
        marker: &EndMarker,
        check: MarkerCheck,
    ) -> Result<(), ProducerFault> {
        let id = header.producer_id;
        let mut entry = self.entry(id).copied().unwrap_or_else(ProducerEntry::unknown);
        if let MarkerCheck::Coordinator { transaction_version } = check {
            check_marker(&entry, header.producer_epoch, marker, transaction_version)?;
        }
        let ended =
            entry.add_marker(header.producer_epoch, marker.coordinator_epoch, marker.timestamp);
        if let Some(first) = ended {
            self.tried_events.push(Event::Ended {
                producer_id: id,
                first,
                last: header.base_offset,
                outcome: marker.outcome,
            });
        }
        self.tried.push((id, entry));
        Ok(())
    }

    /// The request is going to be written with what is staged.
    pub(crate) fn accept(&mut self) {
        self.staged.extend(self.tried.drain(..));
        self.staged_events.append(&mut self.tried_events);
    }

    /// The request was refused.
    pub(crate) fn refuse(&mut self) {
        self.tried.clear();
        self.tried_events.clear();
    }

    /// What the staged batches do to transactions, in their order.
    pub(crate) fn staged_events(&self) -> &[Event] {
        &self.staged_events
    }

    /// What was staged is written. Gives what it did to transactions.
    pub(crate) fn on_written(&mut self) -> Vec<Event> {
        self.known.extend(self.staged.drain());
        std::mem::take(&mut self.staged_events)
    }

    /// What was staged could not be written.
    pub(crate) fn on_write_failed(&mut self) {
        if planted(Bug::KeepStagedProducers) {
            self.on_written();
        }
        self.staged.clear();
        self.staged_events.clear();
    }
}

fn check_marker(
    entry: &ProducerEntry,
    epoch: i16,
    marker: &EndMarker,
    transaction_version: i16,
) -> Result<(), ProducerFault> {
    let raises = transaction_version >= 2;
    let stale = if raises { epoch <= entry.epoch } else { epoch < entry.epoch };
    // The coordinator may ask for a marker twice: after its own restart, or when the answer was lost.
    // An epoch cannot rise past the greatest one.
    let repeated =
        raises && epoch == entry.epoch && (entry.transaction.is_none() || epoch == i16::MAX);
    if stale && !repeated {
        return Err(ProducerFault::Epoch { given: epoch, current: entry.epoch });
    }
    let (given, current) = (marker.coordinator_epoch, entry.coordinator_epoch);
    match given < current {
        true => Err(ProducerFault::CoordinatorEpoch { given, current }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TransactionMarker, TransactionOutcome};
    use super::*;
    use crate::format::{BatchBuilder, Codec, stamp};
    use crate::planted::plant;
    use proptest::prelude::*;

    /// Producer 1's batch of `count` records at `offset`.
    fn batch(epoch: i16, sequence: i32, count: i32, offset: i64, in_txn: bool) -> BatchHeader {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.producer(1, epoch, sequence).transactional(in_txn);
        for _ in 0..count {
            builder.append(1_000, None, None, &[]).unwrap();
        }
        let mut bytes = builder.build().unwrap();
        stamp(&mut bytes, offset, 0);
        BatchHeader::read(&bytes).unwrap()
    }

    fn marker(
        epoch: i16,
        coordinator_epoch: i32,
        version: i16,
        offset: i64,
    ) -> (BatchHeader, EndMarker, MarkerCheck) {
        let marker = TransactionMarker {
            producer_id: 1,
            producer_epoch: epoch,
            coordinator_epoch,
            outcome: TransactionOutcome::Abort,
            transaction_version: version,
            timestamp: 2_000,
        };
        let mut bytes = marker.batch().unwrap();
        stamp(&mut bytes, offset, 0);
        let check = MarkerCheck::Coordinator { transaction_version: version };
        (BatchHeader::read(&bytes).unwrap(), EndMarker::read(&bytes).unwrap(), check)
    }

    impl Producers {
        /// Takes in a client's batch as if it were written alone.
        fn take(&mut self, header: &BatchHeader) -> Result<(), ProducerFault> {
            let tried = self.try_data(header, true);
            match tried {
                Ok(()) => self.accept(),
                Err(_) => self.refuse(),
            }
            self.on_written();
            tried
        }

        fn take_marker(
            &mut self,
            (header, marker, check): (BatchHeader, EndMarker, MarkerCheck),
        ) -> Result<(), ProducerFault> {
            let tried = self.try_marker(&header, &marker, check);
            match tried {
                Ok(()) => self.accept(),
                Err(_) => self.refuse(),
            }
            self.on_written();
            tried
        }
    }

    #[test]
    fn an_unknown_producer_may_begin_anywhere_and_then_goes_on_without_gaps() {
        let mut producers = Producers::default();
        producers.take(&batch(0, 40, 3, 0, false)).unwrap();
        let fault = producers.take(&batch(0, 44, 1, 3, false)).unwrap_err();
        assert_eq!(fault, ProducerFault::Sequence { given: 44, last: 42 });
        producers.take(&batch(0, 43, 1, 3, false)).unwrap();
        assert_eq!(producers.states()[0].last_sequence, 43);
    }

    #[test]
    fn sequences_go_on_at_zero_after_the_greatest() {
        let mut producers = Producers::default();
        producers.take(&batch(0, i32::MAX - 1, 2, 0, false)).unwrap();
        producers.take(&batch(0, 0, 1, 2, false)).unwrap();
        let mut producers = Producers::default();
        let across = batch(0, i32::MAX, 3, 0, false);
        producers.take(&across).unwrap();
        assert_eq!(producers.states()[0].last_sequence, 1);
        assert_eq!(producers.duplicate_of(&across).unwrap().first_offset(), 0);
        producers.take(&batch(0, 2, 1, 3, false)).unwrap();
    }

    #[test]
    fn a_new_epoch_begins_at_zero_and_fences_the_old_one() {
        let mut producers = Producers::default();
        producers.take(&batch(3, 5, 1, 0, false)).unwrap();
        let fault = producers.take(&batch(4, 6, 1, 1, false)).unwrap_err();
        assert_eq!(fault, ProducerFault::Sequence { given: 6, last: -1 });
        producers.take(&batch(4, 0, 1, 1, false)).unwrap();
        let fault = producers.take(&batch(3, 6, 1, 2, false)).unwrap_err();
        assert_eq!(fault, ProducerFault::Epoch { given: 3, current: 4 });
        assert_eq!(producers.duplicate_of(&batch(3, 5, 1, 9, false)), None, "of an old epoch");
    }

    #[test]
    fn the_last_five_batches_are_told_from_new_ones_and_older_ones_are_out_of_order() {
        let mut producers = Producers::default();
        for i in 0..7 {
            producers.take(&batch(0, i * 2, 2, i64::from(i) * 2, false)).unwrap();
        }
        for i in 2..7 {
            let found = producers.duplicate_of(&batch(0, i * 2, 2, 100, false)).unwrap();
            assert_eq!(
                (found.first_offset(), found.last_offset),
                (i64::from(i) * 2, i64::from(i) * 2 + 1)
            );
        }
        assert_eq!(producers.duplicate_of(&batch(0, 2, 2, 100, false)), None);
        assert_eq!(producers.duplicate_of(&batch(0, 4, 1, 100, false)), None, "other records");
        assert!(producers.take(&batch(0, 2, 2, 100, false)).is_err());
    }

    #[test]
    fn what_is_staged_counts_for_the_next_request_and_is_forgotten_if_the_write_fails() {
        let mut producers = Producers::default();
        producers.try_data(&batch(0, 0, 2, 0, true), true).unwrap();
        producers.accept();
        assert!(producers.duplicate_of(&batch(0, 0, 2, 9, true)).is_some());
        producers.try_data(&batch(0, 2, 1, 2, true), true).unwrap();
        producers.refuse();
        producers.try_data(&batch(0, 2, 1, 2, true), true).unwrap();
        producers.accept();
        assert_eq!(producers.staged_events().len(), 1, "one transaction begins");
        producers.on_write_failed();
        assert!(producers.duplicate_of(&batch(0, 0, 2, 9, true)).is_none());
        assert!(producers.is_empty() && producers.on_written().is_empty());
        producers.take(&batch(0, 0, 2, 0, true)).unwrap();
    }

    #[test]
    fn a_planted_bug_that_keeps_staged_producers_is_caught() {
        plant(Some(Bug::KeepStagedProducers));
        let mut producers = Producers::default();
        producers.try_data(&batch(0, 0, 2, 0, false), true).unwrap();
        producers.accept();
        producers.on_write_failed();
        plant(None);
        assert!(producers.duplicate_of(&batch(0, 0, 2, 9, false)).is_some(), "as it must not be");
    }

    #[test]
    fn a_transaction_takes_transactional_batches_only_and_ends_with_its_marker() {
        let mut producers = Producers::default();
        producers.take(&batch(0, 0, 2, 10, true)).unwrap();
        let fault = producers.take(&batch(0, 2, 1, 12, false)).unwrap_err();
        assert_eq!(fault, ProducerFault::NotTransactional { first_offset: 10 });
        assert_eq!(producers.states()[0].transaction_first_offset, 10);
        let (header, end, check) = marker(0, 1, 0, 12);
        producers.try_marker(&header, &end, check).unwrap();
        producers.accept();
        let outcome = TransactionOutcome::Abort;
        assert_eq!(
            producers.on_written(),
            [Event::Ended { producer_id: 1, first: 10, last: 12, outcome }]
        );
        let state = producers.states()[0];
        assert_eq!((state.transaction_first_offset, state.coordinator_epoch), (-1, 1));
        assert_eq!((state.last_sequence, state.timestamp), (1, 2_000));
        producers.take(&batch(0, 2, 1, 13, false)).unwrap();
    }

    #[test]
    fn a_marker_without_a_transaction_ends_nothing() {
        let mut producers = Producers::default();
        let (header, end, check) = marker(0, 1, 0, 0);
        producers.try_marker(&header, &end, check).unwrap();
        producers.accept();
        assert!(producers.on_written().is_empty());
    }

    #[test]
    fn markers_of_old_producers_and_coordinators_are_fenced() {
        let mut producers = Producers::default();
        producers.take(&batch(5, 0, 1, 0, true)).unwrap();
        let old = producers.take_marker(marker(4, 0, 0, 1)).unwrap_err();
        assert_eq!(old, ProducerFault::Epoch { given: 4, current: 5 });
        // From version 2 on the coordinator raises the epoch first.
        let same = producers.take_marker(marker(5, 0, 2, 1)).unwrap_err();
        assert_eq!(same, ProducerFault::Epoch { given: 5, current: 5 });
        producers.take_marker(marker(6, 8, 2, 1)).unwrap();
        producers.take_marker(marker(6, 8, 2, 2)).expect("asked for twice");
        let zombie = producers.take_marker(marker(7, 7, 2, 3)).unwrap_err();
        assert_eq!(zombie, ProducerFault::CoordinatorEpoch { given: 7, current: 8 });
        let state = producers.states()[0];
        assert_eq!((state.producer_epoch, state.last_sequence, state.last_offset), (6, -1, -1));
        producers.take(&batch(6, 0, 1, 3, true)).expect("the new epoch begins at 0");
    }

    #[test]
    fn producers_that_were_silent_for_too_long_go_unless_a_transaction_is_open() {
        let mut producers = Producers::default();
        producers.take(&batch(0, 0, 1, 0, true)).unwrap();
        producers.remove_expired(1_000_000, 5_000);
        assert_eq!(producers.states().len(), 1);
        producers.take_marker(marker(0, 0, 0, 1)).unwrap();
        producers.remove_expired(6_999, 5_000);
        assert_eq!(producers.states().len(), 1);
        let snapshot = producers.states();
        assert_eq!(Producers::load(&snapshot, 6_999, 5_000).states(), snapshot);
        assert!(Producers::load(&snapshot, 7_000, 5_000).is_empty());
        producers.remove_expired(7_000, 5_000);
        assert!(producers.is_empty());
    }

    proptest! {
        /// Against the rule in its plainest form: a list of accepted batches.
        #[test]
        fn every_accepted_batch_follows_the_one_before(
            appends in prop::collection::vec((0_i16..3, 0_i32..12, 1_i32..4), 1..60)
        ) {
            let mut producers = Producers::default();
            let mut accepted: Vec<(i16, i32, i32)> = Vec::new();
            let mut offset = 0;
            for (epoch, sequence, count) in appends {
                let header = batch(epoch, sequence, count, offset, false);
                let remembered = accepted.iter().rev().take(5)
                    .take_while(|last| last.0 == accepted[accepted.len() - 1].0);
                let repeated = remembered.clone().any(|b| *b == (epoch, sequence, count));
                prop_assert_eq!(producers.duplicate_of(&header).is_some(), repeated);
                if repeated {
                    continue;
                }
                let fits = match accepted.last() {
                    None => true,
                    Some((last, ..)) if *last != epoch => epoch > *last && sequence == 0,
                    Some((_, first, records)) => sequence == first + records,
                };
                prop_assert_eq!(producers.take(&header).is_ok(), fits);
                if fits {
                    accepted.push((epoch, sequence, count));
                    offset += i64::from(count);
                }
            }
        }
    }
}
