//! One producer: what has to be known of it to tell its next batch from its last ones.

#![forbid(unsafe_code)]

use super::fault::ProducerFault;
use super::snapshot::ProducerState;
use crate::format::BatchHeader;

/// Batches remembered of each producer: as many as a client may have under way
/// (Kafka `ProducerStateEntry.NUM_BATCHES_TO_RETAIN`).
const REMEMBERED: usize = 5;
/// The epoch of a producer that is not known yet.
const NO_EPOCH: i16 = -1;

/// A batch that is remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Remembered {
    pub(crate) last_sequence: i32,
    pub(crate) last_offset: i64,
    pub(crate) offset_delta: i32,
    pub(crate) timestamp: i64,
}

impl Remembered {
    fn of(header: &BatchHeader) -> Remembered {
        Remembered {
            last_sequence: last_sequence(header),
            last_offset: header.last_offset(),
            offset_delta: header.last_offset_delta,
            timestamp: header.max_timestamp,
        }
    }

    pub(crate) fn first_offset(&self) -> i64 {
        self.last_offset - i64::from(self.offset_delta)
    }

    fn first_sequence(&self) -> i32 {
        sequence_before(self.last_sequence, self.offset_delta)
    }
}

/// Sequence of a batch's last record.
pub(crate) fn last_sequence(header: &BatchHeader) -> i32 {
    match header.base_sequence < 0 {
        // Offset commits of a group coordinator are transactional without sequences.
        true => -1,
        false => sequence_after(header.base_sequence, header.last_offset_delta),
    }
}

/// Sequences count from 0 to 2^31 − 1 and begin again at 0.
fn sequence_after(sequence: i32, records: i32) -> i32 {
    let sum = i64::from(sequence) + i64::from(records);
    i32::try_from(sum).unwrap_or_else(|_| {
        // Both are at most 2^31 − 1, so one turn brings it back.
        i32::try_from(sum - (i64::from(i32::MAX) + 1)).unwrap_or(i32::MAX)
    })
}

fn sequence_before(sequence: i32, records: i32) -> i32 {
    let difference = i64::from(sequence) - i64::from(records);
    match difference < 0 && sequence >= 0 {
        true => i32::try_from(difference + i64::from(i32::MAX) + 1).unwrap_or(0),
        false => i32::try_from(difference).unwrap_or(i32::MIN),
    }
}

/// What is known of one producer in one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProducerEntry {
    pub(crate) epoch: i16,
    /// Of the coordinator that wrote its last marker; −1 none.
    pub(crate) coordinator_epoch: i32,
    pub(crate) last_timestamp: i64,
    /// First offset of its open transaction.
    pub(crate) transaction: Option<i64>,
    /// Its last batches in this epoch, oldest first, in the first `remembered` places.
    batches: [Remembered; REMEMBERED],
    remembered: usize,
}

impl ProducerEntry {
    /// A producer of which nothing is known.
    pub(crate) fn unknown() -> ProducerEntry {
        ProducerEntry {
            epoch: NO_EPOCH,
            coordinator_epoch: -1,
            last_timestamp: -1,
            transaction: None,
            batches: [Remembered::default(); REMEMBERED],
            remembered: 0,
        }
    }

    pub(crate) fn from_state(state: &ProducerState) -> ProducerEntry {
        let mut entry = ProducerEntry {
            epoch: state.producer_epoch,
            coordinator_epoch: state.coordinator_epoch,
            last_timestamp: state.timestamp,
            transaction: Some(state.transaction_first_offset).filter(|first| *first >= 0),
            ..ProducerEntry::unknown()
        };
        if state.last_offset >= 0 {
            entry.remember(Remembered {
                last_sequence: state.last_sequence,
                last_offset: state.last_offset,
                offset_delta: state.offset_delta,
                timestamp: state.timestamp,
            });
        }
        entry
    }

    pub(crate) fn state(&self, producer_id: i64) -> ProducerState {
        let last = self.last();
        ProducerState {
            producer_id,
            producer_epoch: self.epoch,
            last_sequence: last.map_or(-1, |batch| batch.last_sequence),
            last_offset: last.map_or(-1, |batch| batch.last_offset),
            offset_delta: last.map_or(0, |batch| batch.offset_delta),
            timestamp: self.last_timestamp,
            coordinator_epoch: self.coordinator_epoch,
            transaction_first_offset: self.transaction.unwrap_or(-1),
        }
    }

    fn remembered(&self) -> &[Remembered] {
        self.batches.get(..self.remembered).unwrap_or_default()
    }

    fn last(&self) -> Option<&Remembered> {
        self.remembered().last()
    }

    fn remember(&mut self, batch: Remembered) {
        if self.remembered == REMEMBERED {
            self.batches.rotate_left(1);
            self.remembered -= 1;
        }
        if let Some(place) = self.batches.get_mut(self.remembered) {
            *place = batch;
            self.remembered += 1;
        }
    }

    fn enter(&mut self, epoch: i16) {
        if self.epoch != epoch {
            self.remembered = 0;
            self.epoch = epoch;
        }
    }

    /// The remembered batch with exactly these sequences, in the same epoch.
    pub(crate) fn duplicate_of(&self, header: &BatchHeader) -> Option<Remembered> {
        let (first, last) = (header.base_sequence, last_sequence(header));
        let same =
            |batch: &&Remembered| batch.first_sequence() == first && batch.last_sequence == last;
        self.remembered().iter().find(same).copied().filter(|_| self.epoch == header.producer_epoch)
    }

    /// What a leader asks of a client's batch (Kafka `ProducerAppendInfo.maybeValidateDataBatch` and
    /// the check for an open transaction in `appendDataBatch`).
    pub(crate) fn check_data(&self, header: &BatchHeader) -> Result<(), ProducerFault> {
        let (epoch, first) = (header.producer_epoch, header.base_sequence);
        if epoch < self.epoch {
            return Err(ProducerFault::Epoch { given: epoch, current: self.epoch });
        }
        let last = match self.epoch {
            // Nothing is known: perhaps all its records were deleted. Any sequence will do.
            NO_EPOCH => None,
            _ if epoch != self.epoch => Some(-1),
            _ => Some(self.last().map_or(-1, |batch| batch.last_sequence)),
        };
        let in_order =
            |last: i32| i64::from(first) == i64::from(last) + 1 || (first == 0 && last == i32::MAX);
        if let Some(last) = last
            && !in_order(last)
        {
            return Err(ProducerFault::Sequence { given: first, last });
        }
        if let Some(first_offset) = self.transaction
            && !header.attributes.is_transactional()
        {
            return Err(ProducerFault::NotTransactional { first_offset });
        }
        Ok(())
    }

    /// Takes in a batch of data. Gives the first offset of the transaction that it begins.
    pub(crate) fn add_data(&mut self, header: &BatchHeader) -> Option<i64> {
        self.enter(header.producer_epoch);
        self.remember(Remembered::of(header));
        self.last_timestamp = header.max_timestamp;
        if self.transaction.is_some() || !header.attributes.is_transactional() {
            return None;
        }
        self.transaction = Some(header.base_offset);
        self.transaction
    }

    /// Takes in a marker. Gives the first offset of the transaction that it ends.
    pub(crate) fn add_marker(
        &mut self,
        epoch: i16,
        coordinator_epoch: i32,
        timestamp: i64,
    ) -> Option<i64> {
        self.enter(epoch);
        self.coordinator_epoch = coordinator_epoch;
        self.last_timestamp = timestamp;
        self.transaction.take()
    }

    /// True if it has been silent for that long, with no transaction open.
    pub(crate) fn is_expired(&self, now_ms: i64, expiration_ms: u64) -> bool {
        let age = now_ms.saturating_sub(self.last_timestamp);
        self.transaction.is_none() && u64::try_from(age).is_ok_and(|age| age >= expiration_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_wrap_from_the_greatest_to_zero_both_ways() {
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX - 2, 5), 2);
        assert_eq!(sequence_after(i32::MAX, i32::MAX), i32::MAX - 1);
        assert_eq!(sequence_before(0, 1), i32::MAX);
        for (sequence, records) in [(0, 0), (7, 9), (i32::MAX, 3), (2, i32::MAX)] {
            assert_eq!(sequence_before(sequence_after(sequence, records), records), sequence);
        }
    }

    #[test]
    fn only_the_last_five_batches_are_remembered() {
        let mut entry = ProducerEntry::unknown();
        for i in 0..8 {
            entry.remember(Remembered { last_sequence: i, ..Remembered::default() });
        }
        let sequences: Vec<i32> = entry.remembered().iter().map(|b| b.last_sequence).collect();
        assert_eq!(sequences, [3, 4, 5, 6, 7]);
    }
}
