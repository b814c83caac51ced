//! Loglane: a storage engine for partitioned, append-only logs on Kafka's own files.
//!
//! To logs what RocksDB is to keys: brokers, queues, event stores and Raft systems embed it instead
//! of writing a log. A data directory is a Kafka 4.3.1 log directory; record batches are stored as
//! clients send them, and fetched as file ranges that go out by sendfile.
//!
//! ```
//! use loglane::{AppendOptions, Config, Engine, FetchOptions, Offset};
//! use loglane::format::{Batches, BatchBuilder, Codec};
//!
//! # let dir = tempfile::tempdir()?;
//! let engine = Engine::open(Config::new(dir.path()))?;
//! let partition = engine.create_topic("greetings", 1)?.remove(0);
//!
//! let mut batch = BatchBuilder::new(Codec::None);
//! batch.append(1_700_000_000_000, Some(b"key"), Some(b"hello, log"), &[])?;
//! let receipt = partition.append(batch.build()?, AppendOptions::durable())?;
//! assert_eq!(receipt.base_offset, Offset(0));
//!
//! let lease = partition.fetch(Offset(0), &FetchOptions::default())?;
//! let bytes = lease.to_vec()?; // or lease.send(&socket, 0)?: by sendfile, without a copy
//! for batch in Batches::new(&bytes) {
//!     let (_, batch) = batch.map_err(|(_, fault)| fault)?;
//!     for record in batch.decode()?.records() {
//!         assert_eq!(record?.value, Some(&b"hello, log"[..]));
//!     }
//! }
//! engine.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | `engine`, `partition`, `view` | the public front: a directory, a handle on a partition, a read-only look |
//! | `shard` | one thread, its partitions, its mailbox, its lane |
//! | `log` | one partition: segments and offsets; append, roll, sync, fetch |
//! | `segment` | one segment: file, lock-free index, walk |
//! | [`mod@format`] | record batches: bytes in, bytes out |
//! | `state` | values of partitions and cursors of consumer groups: one file, durable through the journal |
//! | `recovery`, `checkpoint`, `keeper` | open after a crash, Kafka's text files, housekeeping |
//! | `settings`, `retention` | what is stored of topics; what may be deleted, pins, why a segment is still here |
//! | `compaction` | of each key the newest record stays |
//! | [`inspect`] | a look into the files of a log: walk, index checks, verify |
//! | [`io`] | the disk behind one trait: io_uring, plain calls |
//!
//! docs/DESIGN.md follows an append and a fetch through them; docs/FORMAT.md has every byte.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        reason = "a test that meets the unexpected should panic"
    )
)]

mod branch;
mod checkpoint;
mod compaction;
mod config;
mod engine;
mod error;
pub mod format;
pub mod inspect;
pub mod io;
mod journal;
mod keeper;
mod log;
mod longpoll;
mod offset;
mod partition;
mod planted;
mod producers;
mod recovery;
mod registry;
mod retention;
mod segment;
mod session;
mod settings;
mod shard;
#[cfg(test)]
mod sim;
mod space;
mod state;
mod sync;
mod topic;
mod unlink;
mod view;

pub use branch::{BranchSync, Branched};
pub use bytes::Bytes;
pub use checkpoint::{parse_topic_id, topic_id_text};
pub use compaction::{CompactionRun, CompactionStatus, LatestRecord};
pub use config::{CleanupPolicy, Config, HighWatermark, PartitionConfig, RetentionClock};
pub use engine::{Engine, EngineStat};
pub use error::{CODES, Error, Result};
pub use log::{FetchOptions, Isolation, Lease, LeaseRange, ListedOffset, OffsetQuery, Verify};
pub use longpoll::Woken;
pub use offset::{FilePosition, LeaderEpoch, Offset};
pub use partition::{AppendOptions, Partition, PartitionStat};
pub use producers::{
    AbortedTransaction, ProducerFault, ProducerState, TransactionMarker, TransactionOutcome,
};
pub use recovery::RecoveryReport;
pub use retention::{
    DeleteReason, Deleted, Explanation, KeptBy, Pin, PinId, RetentionStat, Round as RetentionRound,
    SegmentExplanation,
};
pub use segment::DamagedRange;
pub use settings::SettingsChange;
pub use shard::{AppendInfo, Completion, CompletionQueue, Durability, Mark, Pending};
pub use state::{
    CURSOR_METADATA_MAX, Cursor, GROUP_NAME_MAX, KEY_BYTES_MAX, StateDamage, VALUE_BYTES_MAX,
};
pub use topic::{CLUSTER_METADATA_TOPIC, TOPIC_NAME_MAX, TopicPartition};
pub use uuid::Uuid;
pub use view::{PartitionView, View};
