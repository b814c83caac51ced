//! Loglane: a storage engine for partitioned, append-only logs on Kafka's own files.

pub mod error;
pub mod format;
pub mod io;
pub mod offset;
