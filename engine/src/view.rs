//! Reading a data directory without owning it, also while another process writes there.
//!
//! A view believes what it can check: the tail of each partition is walked, batch by batch, and ends
//! before the first one that is not whole yet. [`View::refresh`] follows the writer from there.

#![forbid(unsafe_code)]

mod cursors;

use crate::checkpoint::{self, PartitionOffsets};
use crate::config::{HighWatermark, PartitionConfig};
use crate::error::{Error, Result};
use crate::io::{self, BackendChoice, Clock, DirLock, Disk, EntryKind, SystemClock};
use crate::log::{FetchOptions, Isolation, Lease, ListedOffset, LogShared, OffsetQuery};
use crate::offset::{LeaderEpoch, Offset};
use crate::recovery::{Checkpoints, Follow, Mode, Opening, RecoveryReport, open_partition};
use crate::retention::{Explanation, Place, Terms, explain, open_terms};
use crate::segment::{
    DamagedRange, IndexWriter, OpenFiles, Scanned, Scanner, Segment, Tail, names,
};
use crate::space::Space;
use crate::topic::TopicPartition;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// Segment files a view keeps open.
const OPEN_FILES: usize = 64;

/// Looks at a partition whose segments go while it is looked at.
const TRIES: usize = 64;

/// A data directory, read-only.
pub struct View {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    partitions: BTreeMap<TopicPartition, PartitionView>,
    writer_is_live: bool,
    is_clean: bool,
}

/// One partition of a [`View`].
pub struct PartitionView {
    shared: Arc<LogShared>,
    follow: Option<Follow>,
    report: RecoveryReport,
    terms: Arc<Terms>,
    /// As the checkpoint file says.
    high_watermark: i64,
}

impl View {
    /// Looks at a data directory. Changes nothing in it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Format`] for a checkpoint that does not add up, [`Error::Io`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<View> {
        View::open_only(dir, |_| true)
    }

    /// As [`View::open`], only the partitions that `wanted` accepts: the others are not walked.
    ///
    /// # Errors
    /// As [`View::open`].
    pub fn open_only(
        dir: impl Into<PathBuf>,
        wanted: impl Fn(&TopicPartition) -> bool,
    ) -> Result<View> {
        let dir = dir.into();
        if !dir.is_dir() {
            return Err(Error::NotFound { what: format!("data directory {}", dir.display()) });
        }
        let disk = io::open(&dir, BackendChoice::Plain).map_err(|e| Error::io("open", &dir, e))?;
        let lock = dir.join(crate::engine::LOCK_FILE);
        let writer_is_live = DirLock::is_held(&lock).unwrap_or(false);
        let is_clean = checkpoint::read_clean_shutdown(disk.as_ref(), &dir)?.is_some();
        let read = |name: &str| checkpoint::read_offsets(disk.as_ref(), &dir.join(name));
        let recovery_points = read(checkpoint::RECOVERY_POINTS)?;
        let log_starts = read(checkpoint::LOG_STARTS)?;
        let high_watermarks = read(checkpoint::HIGH_WATERMARKS)?;
        let terms = Arc::new(open_terms(&dir, &PartitionConfig::default(), &clock(), &disk)?);
        let open_files = Arc::new(OpenFiles::new(Arc::clone(&disk), OPEN_FILES));
        let mut partitions = BTreeMap::new();
        for entry in disk.list(&dir).map_err(|e| Error::io("list", &dir, e))? {
            let name = TopicPartition::from_dir_name(&entry.name);
            let Some(name) = name.filter(|n| entry.kind == EntryKind::Dir && wanted(n)) else {
                continue;
            };
            let path = dir.join(&entry.name);
            let high_watermark = high_watermarks.get(&name).copied().unwrap_or(0);
            let mut tries = 1..TRIES;
            let (shared, follow, report) = loop {
                let path = path.clone();
                let view = open_view(&name, path, &recovery_points, &log_starts, &open_files);
                match view {
                    // The writer deletes what is too old; what it has left is found by another look.
                    Err(Error::Io { source, .. })
                        if source.kind() == std::io::ErrorKind::NotFound
                            && tries.next().is_some() => {}
                    view => break view?,
                }
            };
            let terms = Arc::clone(&terms);
            let view = PartitionView { shared, follow, report, terms, high_watermark };
            partitions.insert(name, view);
        }
        Ok(View { dir, disk, partitions, writer_is_live, is_clean })
    }

    /// The data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// True if a process had the directory open for writing when the view was made.
    #[must_use]
    pub fn writer_is_live(&self) -> bool {
        self.writer_is_live
    }

    /// True if the directory was closed cleanly.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// Its partitions.
    #[must_use]
    pub fn partitions(&self) -> &BTreeMap<TopicPartition, PartitionView> {
        &self.partitions
    }

    /// A partition.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TopicName`].
    pub fn partition(&self, topic: &str, partition: u32) -> Result<&PartitionView> {
        let name = TopicPartition::new(topic, partition)?;
        let found = self.partitions.get(&name);
        found.ok_or_else(|| Error::NotFound { what: format!("partition {name}") })
    }

    /// Takes in what was written since: new batches and new segments.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::NotFound`] when a partition is gone.
    pub fn refresh(&mut self) -> Result<()> {
        for partition in self.partitions.values_mut() {
            partition.refresh(self.disk.as_ref())?;
        }
        Ok(())
    }
}

fn open_view(
    name: &TopicPartition,
    dir: PathBuf,
    recovery_points: &PartitionOffsets,
    log_starts: &PartitionOffsets,
    open_files: &Arc<OpenFiles>,
) -> Result<(Arc<LogShared>, Option<Follow>, RecoveryReport)> {
    let clock = clock();
    let disk = Arc::clone(open_files.disk());
    let space = Arc::new(Space::unwatched(disk, Arc::clone(&clock), &dir));
    let opened = open_partition(Opening {
        name: name.clone(),
        dir,
        mode: Mode::ReadOnly,
        config: PartitionConfig::default(),
        checkpoints: Checkpoints {
            recovery_point: recovery_points.get(name).copied().unwrap_or(0),
            high_watermark: 0,
            log_start: log_starts.get(name).copied(),
            cleaned: None,
        },
        // The writer's journal is its own: what is not in segments yet is not seen here.
        replayed: None,
        ours: false,
        doubt: false,
        open_files: Arc::clone(open_files),
        space,
        clock: &clock,
    })?;
    Ok((opened.shared, opened.follow, opened.report))
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::default())
}

impl PartitionView {
    /// Topic and number.
    #[must_use]
    pub fn name(&self) -> &TopicPartition {
        &self.shared.name
    }

    /// The topic's id.
    #[must_use]
    pub fn topic_id(&self) -> Option<Uuid> {
        self.shared.topic_id
    }

    /// The partition's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// What looking at it found: torn tail, damage, indexes that are not sound.
    #[must_use]
    pub fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// First offset that can be read.
    #[must_use]
    pub fn log_start_offset(&self) -> Offset {
        Offset(self.shared.offsets.log_start())
    }

    /// End of what can be read.
    #[must_use]
    pub fn log_end_offset(&self) -> Offset {
        Offset(self.shared.offsets.log_end())
    }

    /// Leader epochs with the offset each began at.
    #[must_use]
    pub fn leader_epochs(&self) -> Vec<(LeaderEpoch, Offset)> {
        let epochs = self.shared.epochs.load();
        epochs.entries().iter().map(|(e, o)| (LeaderEpoch(*e), Offset(*o))).collect()
    }

    /// Segments, and bytes in their `.log` files.
    #[must_use]
    pub fn size(&self) -> (usize, u64) {
        let segments = self.shared.segments.load();
        (segments.len(), segments.iter().map(|s| u64::from(s.tail().bytes)).sum())
    }

    /// Every damaged range that is known.
    #[must_use]
    pub fn damaged_ranges(&self) -> Vec<DamagedRange> {
        self.shared.damaged_ranges()
    }

    /// The settings that hold for it: what is stored, and the defaults of [`PartitionConfig`] for the
    /// rest. The process that writes may have other defaults.
    #[must_use]
    pub fn config(&self) -> PartitionConfig {
        self.terms.settings.effective(self.name(), self.topic_id())
    }

    /// As [`crate::Partition::stored_settings`].
    #[must_use]
    pub fn stored_settings(&self) -> BTreeMap<String, String> {
        self.terms.settings.stored(self.name(), self.topic_id())
    }

    /// All settings that hold for it, by name; see [`PartitionView::config`].
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        crate::settings::all_of(&self.config())
    }

    /// As [`crate::Partition::explain`], for the settings of [`PartitionView::config`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn explain(&self) -> Result<Explanation> {
        let config = self.config();
        let now_ms = self.terms.clock.now_ms();
        let place = Place { name: self.name(), topic_id: self.topic_id() };
        let set_by_host = config.high_watermark == HighWatermark::SetByHost;
        let high_watermark = set_by_host.then_some(self.high_watermark);
        let pins = self.terms.pins.list(place, now_ms);
        explain(&self.shared, config, pins, high_watermark, now_ms)
    }

    /// As [`crate::Partition::fetch`], but a view does not follow transactions: what is committed only
    /// the engine that has the directory open can tell.
    ///
    /// # Errors
    /// As [`crate::Partition::fetch`]; [`Error::Config`] for [`Isolation::ReadCommitted`].
    pub fn fetch(&self, offset: Offset, options: &FetchOptions) -> Result<Lease> {
        check_isolation(options.isolation)?;
        self.shared.fetch(offset.0, options)
    }

    /// As [`crate::Partition::list_offset`].
    ///
    /// # Errors
    /// As [`crate::Partition::list_offset`]; [`Error::Config`] for [`Isolation::ReadCommitted`].
    pub fn list_offset(
        &self,
        query: OffsetQuery,
        isolation: Isolation,
    ) -> Result<Option<ListedOffset>> {
        check_isolation(isolation)?;
        self.shared.list_offset(query, isolation)
    }

    fn refresh(&mut self, disk: &dyn Disk) -> Result<()> {
        let Some(mut follow) = self.follow.take() else { return Ok(()) };
        // Segments first, bytes second: what the old active one got before the roll is then there.
        let result = list_bases(disk, &self.shared.dir).and_then(|bases| {
            self.take_in(disk, &mut follow)?;
            let followed = follow.segment.base_offset();
            for base in bases.into_iter().filter(|base| *base > followed) {
                self.next_segment(base, &mut follow);
                self.take_in(disk, &mut follow)?;
            }
            Ok(())
        });
        self.follow = Some(follow);
        result
    }

    fn next_segment(&self, base: i64, follow: &mut Follow) {
        let path = names::path(&self.shared.dir, base, names::LOG);
        let segment = Arc::new(Segment::new(path, base, Vec::new()));
        // Only checked batches are taken in.
        segment.trust_from(0);
        let (index, writer) =
            IndexWriter::new(base, self.shared.config.load().index_interval_bytes);
        segment.set_index(index);
        let old = Tail { end_offset: base, bytes: follow.bytes };
        follow.segment.publish_tail(old);
        *follow =
            Follow { segment: Arc::clone(&segment), index: writer, next_offset: base, bytes: 0 };
        let mut list = self.shared.segments.load().to_vec();
        list.push(segment);
        self.shared.segments.store(Arc::new(list));
    }

    /// Walks what was added to the followed file, up to the first batch that is not whole yet.
    fn take_in(&self, disk: &dyn Disk, follow: &mut Follow) -> Result<()> {
        let path = follow.segment.path();
        let len = match disk.stat(path) {
            Ok(stat) => stat.len,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io("stat", path, e)),
        };
        if len <= u64::from(follow.bytes) {
            return Ok(());
        }
        let base = follow.segment.base_offset();
        let file = follow.segment.file(&self.shared.open_files)?;
        let mut scanner = Scanner::new(file, base, follow.bytes.into(), follow.next_offset, len);
        let segment = Arc::clone(&follow.segment);
        let read = |e| Error::io("read", segment.path(), e);
        while let Scanned::Batch { position, batch } = scanner.step().map_err(read)? {
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            follow.index.on_batch(batch.header(), position);
            follow.next_offset = batch.header().next_offset();
            let total = u32::try_from(batch.header().total_bytes()).unwrap_or(u32::MAX);
            follow.bytes = position.saturating_add(total);
        }
        let tail = Tail { end_offset: follow.next_offset, bytes: follow.bytes };
        follow.segment.set_max_timestamp(follow.index.max_timestamp());
        follow.segment.publish_tail(tail);
        self.shared.offsets.advance_written(follow.next_offset);
        self.shared.offsets.advance_high_watermark(follow.next_offset);
        Ok(())
    }
}

fn check_isolation(isolation: Isolation) -> Result<()> {
    if isolation == Isolation::ReadCommitted {
        let reason = "a view does not know which transactions are committed".into();
        return Err(Error::Config { key: "isolation", reason });
    }
    Ok(())
}

fn list_bases(disk: &dyn Disk, dir: &Path) -> Result<Vec<i64>> {
    let entries = disk.list(dir).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::NotFound { what: format!("partition directory {}", dir.display()) }
        }
        _ => Error::io("list", dir, e),
    })?;
    let mut bases: Vec<i64> =
        entries.iter().filter_map(|e| names::base_offset(&e.name, names::LOG)).collect();
    bases.sort_unstable();
    Ok(bases)
}
