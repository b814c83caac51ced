//! Small values by key, durable in order with the appends of their partition: votes and terms of a
//! Raft host, the committed offsets of consumer groups.
//!
//! All of a directory's values are in memory and in one file beside the partition folders, which is
//! to them what segments are to records: a change is written there (page cache) when it is made, a
//! frame of the journal carries it to the disk together with the appends around it, and a checkpoint
//! syncs the file, so that the journal can be written again from the start.
//!
//! ```text
//! change ─▶ loglane-state (page cache) ─▶ memory ─▶ answers "written"
//!    └────▶ frame of the journal ─▶ complete, in order ─▶ answers "durable"
//! ```
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | what a change is |
//! | `format.rs` | the bytes of the file |
//! | `values.rs` | all values, in memory |
//! | `scan.rs` | reading a file that a crash or a bad disk may have left |
//! | `store.rs` | the open file: changes in, syncs, the rewrite when it has grown |
//! | `open.rs` | from the file and the journals to a store |
//! | `cursor.rs` | a consumer group's place in a partition |
//!
//! Invariants:
//! - A value is seen only after its change was written.
//! - What is synced is a beginning of the file. Changes that are not synced are in a journal, or
//!   nobody was told that they are durable.
//! - A failed sync is never tried again on the same file: all values are written to a fresh one.
//! - Bytes below the synced end that are not what was written are reported, and kept.

#![forbid(unsafe_code)]

mod cursor;
mod format;
mod open;
mod scan;
mod store;
#[cfg(test)]
mod tests;
mod values;

pub use cursor::{CURSOR_METADATA_MAX, Cursor, GROUP_NAME_MAX};
pub(crate) use cursor::{check_group, cursor_key, partition_of};
pub(crate) use format::RECORD_BODY_MAX;
pub(crate) use open::{Found, open, read};
pub use store::StateDamage;
pub(crate) use store::{Store, SyncStart, Ticket};

use crate::topic::TopicPartition;
use bytes::Bytes;
use uuid::Uuid;

/// Longest key of a value, in bytes; the shortest is 1.
pub const KEY_BYTES_MAX: usize = 255;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 << 10;

/// Whose value it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Scope {
    /// A partition's; a deleted and newly made one has another topic id.
    Partition(TopicPartition, Option<Uuid>),
    /// A consumer group's.
    Group(String),
}

/// One value set or taken away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    pub(crate) scope: Scope,
    pub(crate) what: What,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum What {
    Put {
        key: Bytes,
        value: Bytes,
    },
    Remove {
        key: Bytes,
    },
    /// Every value of the scope goes.
    RemoveAll,
}
