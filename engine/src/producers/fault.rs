//! Why a producer's batch or a marker is refused.

#![forbid(unsafe_code)]

/// Why an append of an idempotent or transactional producer, or a marker, is refused. Nothing was
/// written. In brackets: the error that a Kafka broker answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProducerFault {
    /// The sequence does not follow the last one, nor is the batch one that is remembered
    /// (`OUT_OF_ORDER_SEQUENCE_NUMBER`). A batch between is missing, or was refused.
    #[error("sequence {given} does not follow {last}")]
    Sequence {
        /// Sequence of the batch's first record.
        given: i32,
        /// Sequence of the last record that was stored; −1 if the epoch is new.
        last: i32,
    },
    /// A newer instance of this producer exists (`INVALID_PRODUCER_EPOCH`).
    #[error("producer epoch {given} is fenced: the partition has seen {current}")]
    Epoch {
        /// Epoch of the batch or marker.
        given: i16,
        /// The latest epoch seen.
        current: i16,
    },
    /// A transaction of this producer is open and the batch is not part of one
    /// (`INVALID_TXN_STATE`).
    #[error("not transactional, though a transaction is open since offset {first_offset}")]
    NotTransactional {
        /// First offset of the open transaction.
        first_offset: i64,
    },
    /// A newer transaction coordinator has written a marker (`TRANSACTION_COORDINATOR_FENCED`).
    #[error("coordinator epoch {given} is fenced: the partition has seen {current}")]
    CoordinatorEpoch {
        /// Epoch of the marker's coordinator.
        given: i32,
        /// The latest seen.
        current: i32,
    },
}
