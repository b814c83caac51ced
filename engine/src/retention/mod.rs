//! Retention: how long records stay, who may keep them longer, and why a segment is still here.
//!
//! ```text
//! round:  each partition ─▶ its shard: facts ─▶ policy ─▶ delete below an offset
//!         over the limit of the directory? the oldest segment of any partition, again and again
//! ```
//!
//! | file | what |
//! |---|---|
//! | `policy.rs` | which segments may go: a pure decision |
//! | `facts.rs` | what is known of segments |
//! | `apply.rs` | facts, policy and deletion on the shard that owns a log |
//! | `pins.rs` | who needs records, what for, until when; durable |
//! | `explain.rs` | why each segment is still here |
//! | `handle.rs` | what a [`crate::Partition`] offers of it |
//! | `sweep.rs` `dormant.rs` | the engine's round over all partitions, open or not; when it runs |
//! | `stat.rs` | what went, and why |
//!
//! Deletion is Kafka's, in two steps: files get their `.deleted` names at once and are unlinked after
//! `file_delete_delay_ms`, when no lease holds them; at once when space is short.

#![forbid(unsafe_code)]

mod apply;
mod dormant;
mod explain;
mod facts;
mod handle;
mod pins;
mod policy;
mod stat;
mod sweep;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use explain::explain;
pub use explain::{Explanation, KeptBy, SegmentExplanation};
pub use pins::{Pin, PinId};
pub(crate) use pins::{Pins, Place};
pub use policy::DeleteReason;
pub(crate) use stat::Counters;
pub use stat::{Deleted, RetentionStat};
pub use sweep::Round;
pub(crate) use sweep::{Scope, Sweep};

use crate::checkpoint;
use crate::config::PartitionConfig;
use crate::error::Result;
use crate::io::{Clock, Disk};
use crate::settings::Store;
use std::path::Path;
use std::sync::Arc;

/// What is agreed about the records of a directory: settings, pins, and what came of them.
pub(crate) struct Terms {
    pub(crate) settings: Store,
    pub(crate) pins: Pins,
    pub(crate) counters: Counters,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Reads settings and pins of a directory.
pub(crate) fn open_terms(
    dir: &Path,
    defaults: &PartitionConfig,
    clock: &Arc<dyn Clock>,
    disk: &Arc<dyn Disk>,
) -> Result<Terms> {
    let cleaned = checkpoint::read_offsets(disk.as_ref(), &dir.join(checkpoint::CLEANER_OFFSETS))?;
    let compacted = cleaned.into_keys().collect();
    Ok(Terms {
        settings: Store::open(Arc::clone(disk), dir, defaults.clone(), compacted)?,
        pins: Pins::open(Arc::clone(disk), dir)?,
        counters: Counters::default(),
        clock: Arc::clone(clock),
    })
}
