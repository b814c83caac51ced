//! Markers: the control batches that end a transaction (Kafka `EndTransactionMarker`,
//! `MemoryRecords.withEndTransactionMarker`).
//!
//! ```text
//! one record   key   2 version = 0 · 2 type (0 abort, 1 commit)
//!              value 2 version = 0 · 4 coordinator epoch
//! ```

#![forbid(unsafe_code)]

use crate::format::{Batch, BatchBuilder, BatchFault, Codec, ControlType};

/// How a transaction ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransactionOutcome {
    /// Read-committed consumers skip its records.
    Abort,
    /// Its records are there to be read.
    Commit,
}

/// A marker that a transaction coordinator has the leader write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransactionMarker {
    /// Whose transaction ends.
    pub producer_id: i64,
    /// The producer's epoch.
    pub producer_epoch: i16,
    /// Epoch of the coordinator; it never goes back.
    pub coordinator_epoch: i32,
    /// Commit or abort.
    pub outcome: TransactionOutcome,
    /// The feature level `transaction.version` of the cluster: with 0 and 1 the epoch is at least
    /// the producer's; with 2 or more it is above it, since the coordinator raises it with each
    /// transaction. A marker that repeats the last one is taken once more.
    pub transaction_version: i16,
    /// When it was decided, Unix ms.
    pub timestamp: i64,
}

impl TransactionMarker {
    /// The control batch.
    ///
    /// # Errors
    /// None that a marker can cause: its size is fixed.
    pub(crate) fn batch(&self) -> Result<Vec<u8>, BatchFault> {
        let kind: i16 = match self.outcome {
            TransactionOutcome::Abort => 0,
            TransactionOutcome::Commit => 1,
        };
        let key = [[0, 0], kind.to_be_bytes()].concat();
        let mut value = vec![0, 0];
        value.extend_from_slice(&self.coordinator_epoch.to_be_bytes());
        let mut builder = BatchBuilder::new(Codec::None);
        builder.producer(self.producer_id, self.producer_epoch, -1).transactional(true).control();
        builder.append(self.timestamp, Some(&key), Some(&value), &[])?;
        builder.build()
    }
}

/// What a control batch of a producer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EndMarker {
    pub(crate) outcome: TransactionOutcome,
    pub(crate) coordinator_epoch: i32,
    pub(crate) timestamp: i64,
}

impl EndMarker {
    /// Reads a control batch, whose CRC holds or held when it was stored. `None` if it has no record
    /// (all of its transaction was compacted away) or is of another kind.
    pub(crate) fn read(batch: &[u8]) -> Option<EndMarker> {
        let batch = Batch::trusted(batch).ok()?;
        if !batch.header().attributes.is_control() {
            return None;
        }
        let decoded = batch.decode().ok()?;
        let record = decoded.records().next()?.ok()?;
        let outcome = match ControlType::from_key(record.key?)? {
            ControlType::Abort => TransactionOutcome::Abort,
            ControlType::Commit => TransactionOutcome::Commit,
            ControlType::Other(_) => return None,
        };
        let epoch = record.value?.get(2..)?.first_chunk()?;
        Some(EndMarker {
            outcome,
            coordinator_epoch: i32::from_be_bytes(*epoch),
            timestamp: record.timestamp,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_the_batch_that_kafka_writes_and_is_read_back() {
        let marker = TransactionMarker {
            producer_id: 9,
            producer_epoch: 3,
            coordinator_epoch: 12,
            outcome: TransactionOutcome::Commit,
            transaction_version: 2,
            timestamp: 1_700,
        };
        let bytes = marker.batch().unwrap();
        let header = *Batch::check(&bytes).unwrap().header();
        assert_eq!(header.attributes.0, 0x30, "transactional and control, nothing else");
        assert_eq!((header.producer_id, header.producer_epoch), (9, 3));
        assert_eq!((header.base_sequence, header.record_count), (-1, 1));
        assert_eq!((header.base_timestamp, header.max_timestamp), (1_700, 1_700));
        // Length, attributes, deltas, key, value, headers: 78 bytes in all, as Kafka's.
        assert_eq!(bytes.len(), 78);
        let expected = EndMarker {
            outcome: TransactionOutcome::Commit,
            coordinator_epoch: 12,
            timestamp: 1_700,
        };
        assert_eq!(EndMarker::read(&bytes), Some(expected));
        for cut in 0..bytes.len() {
            assert_eq!(EndMarker::read(&bytes[..cut]), None, "cut to {cut}");
        }
    }
}
