//! The partitions of a directory, each opened when it is first touched.
//!
//! An open of the directory looks at names only. A partition is recovered on the thread that asks for
//! it first, under a lock of its own: others are served meanwhile.

#![forbid(unsafe_code)]

use crate::compaction::Owner;
use crate::error::{Error, Result};
use crate::partition::Partition;
use crate::recovery::{Checkpoints, RecoveryReport};
use crate::topic::TopicPartition;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

/// A partition's place in its directory.
pub(crate) struct Entry {
    pub(crate) name: TopicPartition,
    pub(crate) dir: PathBuf,
    /// What the checkpoint files said when the directory was opened.
    pub(crate) checkpoints: Checkpoints,
    open: OnceLock<Opened>,
    /// Held while it is opened.
    opening: Mutex<()>,
}

struct Opened {
    partition: Partition,
    report: RecoveryReport,
    /// Where the log ended then; syncs up to here make the journals it came from unneeded.
    log_end: i64,
}

impl Entry {
    pub(crate) fn new(name: TopicPartition, dir: PathBuf, checkpoints: Checkpoints) -> Entry {
        Entry { name, dir, checkpoints, open: OnceLock::new(), opening: Mutex::default() }
    }

    /// The partition; `open` makes it on the first call.
    pub(crate) fn partition(
        &self,
        open: impl FnOnce(&Entry) -> Result<(Partition, RecoveryReport)>,
    ) -> Result<Partition> {
        if let Some(opened) = self.open.get() {
            return Ok(opened.partition.clone());
        }
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = self.open.get() {
            return Ok(opened.partition.clone());
        }
        let (partition, report) = open(self)?;
        let log_end = partition.log_end_offset().0;
        let opened = Opened { partition: partition.clone(), report, log_end };
        // Nobody else sets it while the lock is held.
        let _ = self.open.set(opened);
        Ok(partition)
    }

    /// The partition, if it is open.
    pub(crate) fn opened(&self) -> Option<&Partition> {
        self.open.get().map(|opened| &opened.partition)
    }

    /// What opening it found.
    pub(crate) fn report(&self) -> Option<&RecoveryReport> {
        self.open.get().map(|opened| &opened.report)
    }

    /// True if all it was opened with is in synced segment files.
    pub(crate) fn is_settled(&self) -> bool {
        self.open
            .get()
            .is_some_and(|opened| opened.partition.shared().offsets.synced() >= opened.log_end)
    }

    /// What its lines in the checkpoint files say now.
    pub(crate) fn checkpoints(&self) -> Checkpoints {
        let Some(partition) = self.opened() else { return self.checkpoints };
        let shared = partition.shared();
        let log_start = shared.offsets.log_start();
        let first = shared.segments.load().first().map_or(0, |s| s.base_offset());
        Checkpoints {
            recovery_point: shared.offsets.synced(),
            high_watermark: shared.offsets.high_watermark(),
            // Kafka notes a log start only where the first segment's name does not say it already.
            log_start: Some(log_start).filter(|start| *start > first),
            cleaned: shared.cleaned.offset(),
        }
    }
}

/// All partitions, by name.
#[derive(Default)]
pub(crate) struct Registry {
    entries: RwLock<BTreeMap<TopicPartition, Arc<Entry>>>,
}

impl Registry {
    pub(crate) fn get(&self, name: &TopicPartition) -> Result<Arc<Entry>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let found = entries.get(name).cloned();
        found.ok_or_else(|| Error::NotFound { what: format!("partition {name}") })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Open partitions that are compacted.
    pub(crate) fn owners(&self) -> Vec<Box<dyn Owner>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let open = entries.values().filter_map(|entry| entry.opened());
        open.filter(|partition| partition.shared().config.load().cleanup_policy.compacts())
            .map(|partition| Box::new(partition.clone()) as Box<dyn Owner>)
            .collect()
    }

    pub(crate) fn of_topic(&self, topic: &str) -> Vec<Arc<Entry>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        // Names sort by topic first: only this one's are looked at.
        let first = TopicPartition::first_of(topic);
        let all = entries.range(first..).map(|(_, entry)| entry);
        all.take_while(|entry| entry.name.topic() == topic).cloned().collect()
    }

    /// Some partition of a topic.
    pub(crate) fn any_of_topic(&self, topic: &str) -> Option<Arc<Entry>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let (_, entry) = entries.range(TopicPartition::first_of(topic)..).next()?;
        Some(Arc::clone(entry)).filter(|entry| entry.name.topic() == topic)
    }

    pub(crate) fn insert(&self, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(entry.name.clone(), Arc::clone(&entry));
        entry
    }

    pub(crate) fn remove(&self, name: &TopicPartition) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}
