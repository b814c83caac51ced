//! What a partition knows of those who append to it: idempotence and transactions, with Kafka's rules.
//!
//! ```text
//! batch ─▶ duplicate of a remembered one? its old offsets are the answer, nothing is written
//!       ─▶ epoch and sequence in order?   else refused, and the state is as it was
//!       ─▶ staged entry                   what the next batch of the same tick is checked against
//!       ─▶ written: known entry           or, if the write failed, forgotten
//! ```
//!
//! | file | what |
//! |---|---|
//! | `entry.rs` | one producer: epoch, its last five batches, its open transaction |
//! | `state.rs` | all of them: known, staged, and the checks |
//! | `transactions.rs` | which transactions are open, the first unstable offset |
//! | `aborted.rs` | the entries of a `.txnindex` file |
//! | `snapshot.rs` | the bytes of a `.snapshot` file |
//! | `marker.rs` | commit and abort markers |
//!
//! Nothing here knows files or threads. What the log does with it is in `log/producers.rs`, how it is
//! built anew in `log/rebuild.rs`.

#![forbid(unsafe_code)]

mod aborted;
mod entry;
mod fault;
mod marker;
mod snapshot;
mod state;
mod transactions;

pub use aborted::AbortedTransaction;
pub(crate) use aborted::{
    ABORTED_BYTES, AbortedEntries, AbortedWriter, decode_aborted, encode_aborted,
};
pub use fault::ProducerFault;
pub(crate) use marker::EndMarker;
pub use marker::{TransactionMarker, TransactionOutcome};
pub use snapshot::ProducerState;
pub(crate) use snapshot::{decode_snapshot, encode_snapshot};
pub(crate) use state::{Event, MarkerCheck, Producers};
pub(crate) use transactions::Transactions;
