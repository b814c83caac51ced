//! A handle on one partition: append through its shard, read from any thread.

#![forbid(unsafe_code)]

mod values;

use crate::compaction::{
    self, CompactionRun, CompactionStatus, Compactor, Latch, LatestRecord, Owner,
};
use crate::error::{Error, Result};
use crate::format::{Batch, BatchFault, BatchHeader};
use crate::log::{
    AppendOrigin, AppendRequest, FetchOptions, Isolation, Lease, ListedOffset, Log, LogShared,
    OffsetQuery, SwapOrder, SwapState,
};
use crate::offset::{LeaderEpoch, Offset};
use crate::producers::{AbortedTransaction, ProducerState, TransactionMarker};
use crate::retention::Terms;
use crate::segment::DamagedRange;
use crate::shard::{
    AppendInfo, AppendReply, CompletionQueue, Durability, Mark, Message, Pending, Promise, Reply,
    ShardHandle, Slot, pending,
};
use crate::topic::TopicPartition;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// How an append is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AppendOptions {
    /// How far it must have got before it is answered.
    pub durability: Durability,
    /// The epoch of the leader that appends. `None` takes the latest the partition knows; an older
    /// one is [`Error::EpochFenced`].
    pub leader_epoch: Option<LeaderEpoch>,
}

impl AppendOptions {
    /// Answered when it is on disk.
    #[must_use]
    pub fn durable() -> AppendOptions {
        AppendOptions { durability: Durability::Durable, leader_epoch: None }
    }
}

/// Sizes and offsets of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionStat {
    /// First offset that can be read.
    pub log_start_offset: Offset,
    /// What consumers may read up to.
    pub high_watermark: Offset,
    /// What consumers of committed transactions may read up to.
    pub last_stable_offset: Offset,
    /// The next record's offset.
    pub log_end_offset: Offset,
    /// Everything below is on disk.
    pub durable_offset: Offset,
    /// Segments, the active one included.
    pub segments: usize,
    /// Bytes in their `.log` files.
    pub bytes: u64,
    /// Bytes of memory that loaded indexes hold.
    pub index_memory_bytes: usize,
    /// Leases that keep its files.
    pub leases: usize,
    /// Indexes of sealed segments that were not sound when they were first used, and were rebuilt.
    pub indexes_rebuilt: u32,
}

/// A partition of an open engine. Clones are handles on the same partition.
#[derive(Clone)]
pub struct Partition {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<LogShared>,
    shard: Arc<ShardHandle>,
    slot: Slot,
    closed: AtomicBool,
    terms: Arc<Terms>,
    compactor: Arc<Compactor>,
    compaction: Latch,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition").field("name", self.name()).field("stat", &self.stat()).finish()
    }
}

impl Partition {
    pub(crate) fn new(
        shared: Arc<LogShared>,
        shard: Arc<ShardHandle>,
        slot: Slot,
        terms: Arc<Terms>,
        compactor: Arc<Compactor>,
    ) -> Partition {
        let (closed, compaction) = (AtomicBool::new(false), Latch::default());
        let inner = Inner { shared, shard, slot, closed, terms, compactor, compaction };
        Partition { inner: Arc::new(inner) }
    }

    /// Topic and number.
    #[must_use]
    pub fn name(&self) -> &TopicPartition {
        &self.inner.shared.name
    }

    /// The topic's id, from `partition.metadata`.
    #[must_use]
    pub fn topic_id(&self) -> Option<Uuid> {
        self.inner.shared.topic_id
    }

    /// Appends batches as the leader and waits for the receipt: the log assigns their offsets and
    /// stamps the epoch. `batches` are one or more record batches, one behind the other, stored as
    /// they are; all or none of them.
    ///
    /// Waits while the shard is full instead of failing with [`Error::Busy`].
    ///
    /// # Errors
    /// [`Error::InvalidBatch`], [`Error::TooLarge`], [`Error::EpochFenced`], [`Error::NoSpace`],
    /// [`Error::Io`], [`Error::PartitionFailed`], [`Error::Closed`].
    pub fn append(&self, batches: impl Into<Bytes>, options: AppendOptions) -> Result<AppendInfo> {
        let (bytes, origin) = self.checked(batches.into(), leader(options))?;
        self.append_waiting(bytes, origin, options.durability)
    }

    /// Appends batches that a leader elsewhere has given offsets and epochs, and waits for the
    /// receipt. The first offset must be the log end offset or above (compaction leaves gaps).
    ///
    /// # Errors
    /// [`Error::OffsetMismatch`], and those of [`Partition::append`].
    pub fn append_as_follower(
        &self,
        batches: impl Into<Bytes>,
        durability: Durability,
    ) -> Result<AppendInfo> {
        let (bytes, origin) = self.checked(batches.into(), AppendOrigin::Follower)?;
        self.append_waiting(bytes, origin, durability)
    }

    /// Starts an append; the receipt comes through the [`Pending`].
    ///
    /// # Errors
    /// [`Error::Busy`] when the shard has too much queued; what is wrong with the batches.
    pub fn start_append(
        &self,
        batches: impl Into<Bytes>,
        options: AppendOptions,
    ) -> Result<Pending<AppendInfo>> {
        let (bytes, origin) = self.checked(batches.into(), leader(options))?;
        let (promise, pending) = pending();
        self.enqueue(bytes, origin, options.durability, Reply::One(promise))
            .map_err(|_| self.busy())?;
        Ok(pending)
    }

    /// Starts an append; the receipt goes to `queue` with `token`. The way to keep many under way.
    ///
    /// # Errors
    /// As [`Partition::start_append`]; then nothing goes to the queue.
    pub fn submit(
        &self,
        batches: impl Into<Bytes>,
        options: AppendOptions,
        queue: &Arc<CompletionQueue>,
        token: u64,
    ) -> Result<()> {
        let (bytes, origin) = self.checked(batches.into(), leader(options))?;
        let reply = Reply::Queue(Arc::clone(queue), token);
        self.enqueue(bytes, origin, options.durability, reply).map_err(|_| self.busy())
    }

    /// Ends a producer's transaction: writes the marker that a transaction coordinator decided on, and
    /// waits for the receipt. Without an open transaction the marker is written all the same.
    ///
    /// # Errors
    /// [`Error::Producer`] if producer or coordinator are fenced, and those of [`Partition::append`].
    pub fn append_marker(
        &self,
        marker: &TransactionMarker,
        options: AppendOptions,
    ) -> Result<AppendInfo> {
        let (bytes, origin) = self.marker(marker, options)?;
        self.append_waiting(bytes, origin, options.durability)
    }

    /// Starts [`Partition::append_marker`]; the receipt comes through the [`Pending`].
    ///
    /// # Errors
    /// [`Error::Busy`] when the shard has too much queued, [`Error::Closed`].
    pub fn start_append_marker(
        &self,
        marker: &TransactionMarker,
        options: AppendOptions,
    ) -> Result<Pending<AppendInfo>> {
        let (bytes, origin) = self.marker(marker, options)?;
        let (promise, pending) = pending();
        self.enqueue(bytes, origin, options.durability, Reply::One(promise))
            .map_err(|_| self.busy())?;
        Ok(pending)
    }

    /// Every producer that is remembered, with its last batch and its open transaction, as Kafka's
    /// `DescribeProducers` tells it; in order of their ids, after all appends handed in before.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn producers(&self) -> Result<Vec<ProducerState>> {
        self.ask(Message::Producers)
    }

    /// The aborted transactions that have records in `[from, to)`, in the order of their markers.
    /// Below the last stable offset there will be no others.
    ///
    /// # Errors
    /// [`Error::Io`] if an index file, or the log it is made from, cannot be read.
    pub fn aborted_transactions(
        &self,
        from: Offset,
        to: Offset,
    ) -> Result<Vec<AbortedTransaction>> {
        self.check_open()?;
        self.inner.shared.aborted(from.0, to.0)
    }

    /// What consumers of committed transactions may read up to: the high watermark, or where the first
    /// transaction begins that is not decided below it.
    #[must_use]
    pub fn last_stable_offset(&self) -> Offset {
        Offset(self.inner.shared.offsets.last_stable())
    }

    /// Makes everything appended so far durable and waits for it. Returns the durable offset.
    ///
    /// # Errors
    /// [`Error::PartitionFailed`] if the disk refused, [`Error::Closed`].
    pub fn flush(&self) -> Result<Offset> {
        self.ask(Message::Flush)
    }

    /// Starts a flush; the durable offset comes through the [`Pending`].
    ///
    /// # Errors
    /// [`Error::Closed`]; through the [`Pending`], as [`Partition::flush`].
    pub fn start_flush(&self) -> Result<Pending<Offset>> {
        self.start(Message::Flush)
    }

    /// Finds the bytes from `offset` on, as a lease. An offset at the end gives an empty lease.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`], [`Error::Damaged`] if the first batch is not whole,
    /// [`Error::TooManyOpenFiles`], [`Error::Io`].
    pub fn fetch(&self, offset: Offset, options: &FetchOptions) -> Result<Lease> {
        self.check_open()?;
        self.inner.shared.fetch(offset.0, options)
    }

    /// Answers Kafka's ListOffsets. `None` if no record that the isolation lets be read fits.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`], [`Error::Closed`].
    pub fn list_offset(
        &self,
        query: OffsetQuery,
        isolation: Isolation,
    ) -> Result<Option<ListedOffset>> {
        self.check_open()?;
        self.inner.shared.list_offset(query, isolation)
    }

    /// First offset that can be read.
    #[must_use]
    pub fn log_start_offset(&self) -> Offset {
        Offset(self.inner.shared.offsets.log_start())
    }

    /// What consumers may read up to.
    #[must_use]
    pub fn high_watermark(&self) -> Offset {
        Offset(self.inner.shared.offsets.high_watermark())
    }

    /// The next record's offset.
    #[must_use]
    pub fn log_end_offset(&self) -> Offset {
        Offset(self.inner.shared.offsets.log_end())
    }

    /// Everything below is on disk.
    #[must_use]
    pub fn durable_offset(&self) -> Offset {
        Offset(self.inner.shared.offsets.durable())
    }

    /// Moves the high watermark up, at most to the log end offset. Returns where it is now. For
    /// partitions whose [`crate::HighWatermark`] is set by the host.
    pub fn set_high_watermark(&self, offset: Offset) -> Offset {
        Offset(self.inner.shared.set_high_watermark(offset.0))
    }

    /// Says that a leader of this epoch exists: appends with an older one are fenced from now on.
    pub fn set_leader_epoch(&self, epoch: LeaderEpoch) {
        self.inner.shared.leader_epoch.raise(epoch.0);
    }

    /// The latest leader epoch that has appended; `None` before the first.
    #[must_use]
    pub fn leader_epoch(&self) -> Option<LeaderEpoch> {
        self.inner.shared.epochs.load().latest().map(LeaderEpoch)
    }

    /// Leader epochs with the offset each began at.
    #[must_use]
    pub fn leader_epochs(&self) -> Vec<(LeaderEpoch, Offset)> {
        let epochs = self.inner.shared.epochs.load();
        epochs.entries().iter().map(|(e, o)| (LeaderEpoch(*e), Offset(*o))).collect()
    }

    /// The epoch of the record at `offset`.
    #[must_use]
    pub fn leader_epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        self.inner.shared.epochs.load().at(offset.0).map(LeaderEpoch)
    }

    /// The largest epoch at or below `epoch`, and the offset where it ends: where a follower that
    /// was at `epoch` has to truncate. `None` if the epoch is later than any seen.
    #[must_use]
    pub fn end_offset_for_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        let shared = &self.inner.shared;
        let found = shared.epochs.load().end_offset_for(epoch.0, shared.offsets.log_end());
        found.map(|(epoch, end)| (LeaderEpoch(epoch), Offset(end)))
    }

    /// Cuts the log at its end: records at and above `to` go, with the whole batch if `to` lies
    /// inside one; the next append gets offset `to`. For followers whose leader has other records.
    /// Returns the log end offset. On disk when it returns; after a crash during the call the log may
    /// end anywhere between, so call it again. Leases taken before end where the file was cut.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] below the log start, [`Error::Io`], [`Error::Closed`],
    /// [`Error::PartitionFailed`] if files could not be cut: reopen.
    pub fn truncate(&self, to: Offset) -> Result<Offset> {
        self.ask(|slot, promise| Message::Truncate(slot, to, promise))
    }

    /// Forgets every record and begins anew at `offset`, which may be anywhere: what a replica does
    /// whose leader gives it a snapshot instead of records. Leader epochs are forgotten too. Returns
    /// the offset. On disk when it returns; after a crash during the call the log may be as it was,
    /// shorter or empty, so call it again. Files go as in [`Partition::delete_records`].
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] for a negative offset, [`Error::NoSpace`], [`Error::Io`],
    /// [`Error::Closed`], [`Error::PartitionFailed`] if files could not be cut: reopen.
    pub fn reset(&self, offset: Offset) -> Result<Offset> {
        let offsets = self.inner.shared.offsets.snapshot();
        if offset.0 < 0 {
            return Err(self.inner.shared.out_of_range(offset.0, offsets.log_start, i64::MAX));
        }
        self.ask(|slot, promise| Message::Reset(slot, offset, promise))
    }

    /// Tells when the log end or the durable offset has reached `offset`, whoever brings that about;
    /// it does not cause a flush. The answer is the offset as it is then.
    ///
    /// # Errors
    /// [`Error::Closed`]; through the [`Pending`], also [`Error::PartitionFailed`].
    pub fn watch(&self, mark: Mark, offset: Offset) -> Result<Pending<Offset>> {
        self.start(|slot, promise| Message::Wait(slot, mark, offset, promise))
    }

    /// Starts a new segment now, unless the active one is empty. Returns the active base offset.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`], [`Error::Closed`].
    pub fn roll(&self) -> Result<Offset> {
        self.ask(Message::Roll)
    }

    /// Compacts all that can be now, and waits for it: sealed segments below the high watermark, younger
    /// records than `min_compaction_lag_ms` left out. Of each key the newest record stays; tombstones
    /// go `delete_retention_ms` after the first compaction that saw them (Kafka's `Cleaner`). Waits for
    /// another partition's run, and keeps to `compaction_bytes_per_s`. The active segment is never
    /// compacted: [`Partition::roll`] first if it should be.
    ///
    /// # Errors
    /// [`Error::Config`] if the partition's policy is not to compact, [`Error::NoSpace`] without room
    /// for a copy of a segment, [`Error::Damaged`], [`Error::Busy`] if the log is truncated again and
    /// again meanwhile, [`Error::Io`], [`Error::Closed`]. The log holds what it held, whatever comes.
    pub fn compact(&self) -> Result<CompactionRun> {
        self.check_open()?;
        self.inner.compactor.compact_now(Box::new(self.clone()))
    }

    /// How far the partition is compacted, and how the last run went. Looks at the indexes of sealed
    /// segments if `min_compaction_lag_ms` is set.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Damaged`], [`Error::Closed`].
    pub fn compaction_status(&self) -> Result<CompactionStatus> {
        self.check_open()?;
        self.inner.compaction.status(&self.inner.shared, self.inner.compactor.now_ms())
    }

    /// The newest record with this key below the high watermark; `None` if there is none, or if it is
    /// a tombstone. Transactions are not looked at: an aborted record counts until it is compacted.
    ///
    /// Reads the log backwards, segment by segment, each from its start: as long as what lies behind
    /// the record's segment takes to read and decompress; a key that is not there costs the whole log.
    ///
    /// # Errors
    /// [`Error::Config`] if the partition is not compacted, [`Error::Damaged`], [`Error::Io`],
    /// [`Error::Closed`].
    pub fn last_by_key(&self, key: &[u8]) -> Result<Option<LatestRecord>> {
        self.check_open()?;
        if !self.inner.shared.config.load().cleanup_policy.compacts() {
            let reason = format!("{} is not compacted", self.name());
            return Err(Error::Config { key: "cleanup_policy", reason });
        }
        compaction::last_by_key(&self.inner.shared, key)
    }

    /// Every damaged range that is known.
    #[must_use]
    pub fn damaged_ranges(&self) -> Vec<DamagedRange> {
        self.inner.shared.damaged_ranges()
    }

    /// Sizes and offsets.
    #[must_use]
    pub fn stat(&self) -> PartitionStat {
        let shared = &self.inner.shared;
        let last_stable_offset = Offset(shared.offsets.last_stable());
        let offsets = shared.offsets.snapshot();
        let segments = shared.segments.load();
        PartitionStat {
            log_start_offset: Offset(offsets.log_start),
            high_watermark: Offset(offsets.high_watermark),
            last_stable_offset,
            log_end_offset: Offset(offsets.log_end),
            durable_offset: Offset(offsets.durable),
            segments: segments.len(),
            bytes: segments.iter().map(|s| u64::from(s.tail().bytes)).sum(),
            index_memory_bytes: segments
                .iter()
                .filter_map(|s| s.loaded_index())
                .map(|index| index.memory_bytes())
                .sum(),
            leases: segments.iter().map(|s| s.leases()).sum(),
            indexes_rebuilt: shared.indexes_rebuilt.load(Ordering::Relaxed),
        }
    }

    /// Closes the partition in its shard: everything is flushed, index files are whole.
    pub(crate) fn close(&self) -> Result<()> {
        let closed = self.ask(Message::Close);
        self.inner.closed.store(true, Ordering::Release);
        closed
    }

    /// Lets go of the partition without a flush: its files are about to be removed.
    pub(crate) fn drop_from_shard(&self) -> Result<()> {
        let dropped = self.ask(Message::Drop);
        self.inner.closed.store(true, Ordering::Release);
        dropped
    }

    pub(crate) fn shared(&self) -> &Arc<LogShared> {
        &self.inner.shared
    }

    pub(crate) fn terms(&self) -> &Arc<Terms> {
        &self.inner.terms
    }

    /// Does something with the log, on its shard.
    pub(crate) fn on_log<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Log) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.ask(|slot, promise: Promise<T>| {
            Message::With(slot, Box::new(move |log| promise.answer(work(log))))
        })
    }

    fn start<T>(&self, message: impl FnOnce(Slot, Promise<T>) -> Message) -> Result<Pending<T>> {
        self.check_open()?;
        let (promise, pending) = pending();
        self.inner.shard.send(message(self.inner.slot, promise));
        Ok(pending)
    }

    fn ask<T>(&self, message: impl FnOnce(Slot, Promise<T>) -> Message) -> Result<T> {
        let pending = self.start(message)?;
        self.inner.shard.wait(pending)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(Error::Closed { what: self.name().to_string() });
        }
        Ok(())
    }

    fn append_waiting(
        &self,
        bytes: Bytes,
        origin: AppendOrigin,
        durability: Durability,
    ) -> Result<AppendInfo> {
        /// As long as one tick takes when the shard is full.
        const RETRY: Duration = Duration::from_micros(100);
        let (promise, pending) = pending();
        let mut reply = Reply::One(promise);
        loop {
            match self.enqueue(bytes.clone(), origin, durability, reply) {
                Ok(()) => return self.inner.shard.wait(pending),
                Err(back) => reply = back,
            }
            self.check_open()?;
            std::thread::sleep(RETRY);
        }
    }

    /// Hands an append to the shard; a reply that comes back says that the shard is full.
    fn enqueue(
        &self,
        bytes: Bytes,
        origin: AppendOrigin,
        durability: Durability,
        reply: Reply,
    ) -> std::result::Result<(), Reply> {
        let reply = AppendReply { reply, durability, bytes: bytes.len() as u64 };
        let request = AppendRequest { bytes, origin, reply };
        self.inner.shard.send_append(self.inner.slot, request).map_err(|back| back.reply.reply)
    }

    fn marker(
        &self,
        marker: &TransactionMarker,
        options: AppendOptions,
    ) -> Result<(Bytes, AppendOrigin)> {
        let batch = marker.batch().map_err(|fault| self.invalid(0, fault))?;
        let origin = AppendOrigin::Marker {
            leader_epoch: options.leader_epoch.map(|epoch| epoch.0),
            transaction_version: marker.transaction_version,
        };
        self.checked(batch.into(), origin)
    }

    /// Checks batches on the caller's thread, so that the shard's time goes into writing.
    fn checked(&self, bytes: Bytes, origin: AppendOrigin) -> Result<(Bytes, AppendOrigin)> {
        self.check_open()?;
        let config = self.inner.shared.config.load();
        if bytes.is_empty() {
            return Err(self.invalid(0, BatchFault::Empty));
        }
        let max = config.segment_bytes as usize;
        if bytes.len() > max {
            return Err(self.too_large(bytes.len(), max));
        }
        let mut position = 0;
        while let Some(rest) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
            // The size first: a batch over the limit is told by its size, not by its CRC.
            let header = BatchHeader::read(rest).map_err(|f| self.invalid(position, f))?;
            let max = config.batch_bytes_max as usize;
            if header.total_bytes() > max {
                return Err(self.too_large(header.total_bytes(), max));
            }
            let batch = Batch::check(rest).map_err(|f| self.invalid(position, f))?;
            let records = match origin {
                AppendOrigin::Leader(_) if config.cleanup_policy.compacts() => {
                    batch.check_keyed_records()
                }
                AppendOrigin::Leader(_) => batch.check_records(),
                AppendOrigin::Marker { .. } | AppendOrigin::Follower => {
                    check_replicated(batch.header())
                }
            };
            records.map_err(|fault| self.invalid(position, fault))?;
            position += batch.bytes().len();
        }
        Ok((bytes, origin))
    }

    fn invalid(&self, position: usize, fault: BatchFault) -> Error {
        Error::InvalidBatch { partition: self.name().to_string(), position, fault }
    }

    fn too_large(&self, bytes: usize, max: usize) -> Error {
        Error::TooLarge { partition: self.name().to_string(), bytes, max }
    }

    fn busy(&self) -> Error {
        Error::Busy { partition: self.name().to_string(), queued: self.inner.shard.capacity() }
    }
}

impl Owner for Partition {
    fn shared(&self) -> &Arc<LogShared> {
        &self.inner.shared
    }

    fn order(&self, order: SwapOrder) -> Result<SwapState> {
        self.ask(|slot, promise| Message::Swap(slot, order, promise))
    }

    fn sync_sealed(&self) -> Result<()> {
        self.ask(Message::SyncSealed).map(drop)
    }

    fn latch(&self) -> &Latch {
        &self.inner.compaction
    }
}

fn leader(options: AppendOptions) -> AppendOrigin {
    AppendOrigin::Leader(options.leader_epoch.map(|epoch| epoch.0))
}

/// What must hold of a batch that a leader stored: its offsets make sense. The leader checked the
/// records; compaction may have left fewer than the offsets say.
fn check_replicated(header: &BatchHeader) -> std::result::Result<(), BatchFault> {
    let (count, last_offset_delta) = (header.record_count, header.last_offset_delta);
    if count < 0 || last_offset_delta < 0 || count > last_offset_delta.saturating_add(1) {
        return Err(BatchFault::Count { count, last_offset_delta });
    }
    if header.base_offset < 0 || header.next_offset() == i64::MAX {
        return Err(BatchFault::BaseOffset { expected: 0, found: header.base_offset });
    }
    Ok(())
}
