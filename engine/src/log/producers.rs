//! Producers of a log: what an append does to them, and the files that spare a start from reading the
//! log for them.
//!
//! ```text
//! write ok ─▶ first unstable offset lowered ─▶ bytes published ─▶ aborted entries published
//!          ─▶ first unstable offset raised
//! ```
//!
//! So a reader that has seen an offset knows of every transaction that makes it unstable, and one that
//! has seen a last stable offset finds every aborted transaction below it.
//!
//! Files are made from the log and can be made again: `.txnindex` gets its entry when a transaction is
//! aborted, is complete when its segment is sealed, and goes with every sync that covers a marker in it; a snapshot is taken at each
//! roll, at the close, and now and then between, so that who opens the directory after a kill reads
//! little. `log/rebuild.rs` says which of them a start believes.

#![forbid(unsafe_code)]

use super::rebuild::{Rebuild, Rebuilt, Trust};
use super::write::{AppendOrigin, AppendRequest, Written};
use super::{Log, LogShared};
use crate::error::{Error, Result};
use crate::format::BatchHeader;
use crate::io::{Disk, FileRef, OpenMode};
use crate::planted::{Bug, planted};
use crate::producers::{
    ABORTED_BYTES, AbortedEntries, AbortedTransaction, AbortedWriter, EndMarker, Event,
    MarkerCheck, ProducerState, Producers, TransactionOutcome, Transactions, decode_aborted,
    encode_aborted, encode_snapshot,
};
use crate::segment::{Segment, names};
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};

/// How often producers that were silent for too long are looked for: Kafka's
/// `producer.id.expiration.check.interval.ms`.
const SWEEP_MS: i64 = 10 * 60 * 1000;

/// The producers of a log and the state of their files.
#[derive(Default)]
pub(super) struct LogProducers {
    state: Producers,
    /// Writer of the active segment's aborted transactions; `None` before the first.
    aborted: Option<AbortedWriter>,
    /// How many of them its file has.
    aborted_on_disk: usize,
    /// No sync has that file yet: the recovery point must not pass a marker whose entry is not on disk.
    aborted_is_unsynced: bool,
    /// Log end offset of the newest snapshot.
    newest_snapshot: i64,
    /// That snapshot, if no segment begins there: the next one replaces it.
    stray: Option<i64>,
    /// No sync takes the newest snapshot along: a clean start must not miss it.
    newest_is_unsynced: bool,
    next_sweep_ms: i64,
}

impl LogProducers {
    pub(super) fn new(rebuilt: Rebuilt) -> LogProducers {
        LogProducers {
            state: rebuilt.producers,
            aborted: rebuilt.active_aborted,
            aborted_on_disk: rebuilt.active_aborted_on_disk,
            aborted_is_unsynced: rebuilt.active_aborted_on_disk > 0,
            newest_snapshot: rebuilt.newest_snapshot,
            stray: rebuilt.stray,
            newest_is_unsynced: rebuilt.newest_is_unsynced,
            next_sweep_ms: i64::MIN,
        }
    }
}

impl LogShared {
    pub(super) fn transactions(&self) -> MutexGuard<'_, Transactions> {
        self.transactions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the high watermark for a host; transactions that ended below it are stable then.
    pub(crate) fn set_high_watermark(&self, offset: i64) -> i64 {
        let high_watermark = self.offsets.advance_high_watermark(offset);
        // Under the lock, so that it is not missed by a transaction that ends just now.
        let mut transactions = self.transactions();
        transactions.on_high_watermark(high_watermark);
        self.offsets.set_first_unstable(transactions.first_unstable());
        drop(transactions);
        self.watchers.notify();
        high_watermark
    }

    /// The aborted transactions that have records in `[from, to)`, by their markers.
    pub(crate) fn aborted(&self, from: i64, to: i64) -> Result<Vec<AbortedTransaction>> {
        let segments = self.segments.load();
        let first = segments.partition_point(|s| s.base_offset() <= from).saturating_sub(1);
        let mut found = Vec::new();
        for segment in segments.iter().skip(first) {
            if let Some(entries) = self.aborted_of(segment)?
                && entries.collect(from, to, &mut found)
            {
                break;
            }
        }
        Ok(found)
    }

    /// The aborted transactions of a segment, read from its file on first use, or from the log if the
    /// file is not sound. `None` if it has none.
    pub(super) fn aborted_of(&self, segment: &Arc<Segment>) -> Result<Option<AbortedEntries>> {
        if segment.aborted().is_none() && !segment.aborted_is_known() {
            let entries = match read_aborted(self.open_files.disk().as_ref(), &self.dir, segment)? {
                Ok(entries) => entries,
                Err(reason) => {
                    let file = names::path(&self.dir, segment.base_offset(), names::TXN_INDEX);
                    tracing::warn!(file = %file.display(), reason, "made anew from the log");
                    super::rebuild::aborted_from_log(self, segment)?
                }
            };
            if entries.is_empty() {
                segment.set_aborted(None);
            } else {
                AbortedEntries::new(&entries).0.attach(segment);
            }
        }
        Ok(AbortedEntries::of(segment))
    }
}

/// Reads a segment's `.txnindex`; none if there is no such file. The inner error says why it cannot be
/// believed.
pub(super) fn read_aborted(
    disk: &dyn Disk,
    dir: &Path,
    segment: &Segment,
) -> Result<std::result::Result<Vec<AbortedTransaction>, String>> {
    let path = names::path(dir, segment.base_offset(), names::TXN_INDEX);
    let bytes = super::rebuild::read_file(disk, &path)?;
    Ok(match bytes {
        None => Ok(Vec::new()),
        Some(bytes) => decode_aborted(&bytes, segment.base_offset()),
    })
}

impl Log {
    /// The producers that are known, in order of their ids.
    pub(crate) fn producer_states(&self) -> Vec<ProducerState> {
        self.producers.state.states()
    }

    /// Forgets producers that were silent for too long, now and then.
    pub(super) fn sweep_producers(&mut self) {
        if self.producers.state.is_empty() {
            return;
        }
        let now = self.clock.now_ms();
        if now >= self.producers.next_sweep_ms {
            self.producers.next_sweep_ms = now.saturating_add(SWEEP_MS);
            let expiration = self.shared.config.load().producer_id_expiration_ms;
            self.producers.state.remove_expired(now, expiration);
        }
    }

    /// The receipt of a client's request whose batches are all remembered: they are stored already.
    pub(super) fn duplicate_of<R>(&self, request: &AppendRequest<R>) -> Result<Option<Written>> {
        let AppendOrigin::Leader(epoch) = request.origin else { return Ok(None) };
        let mut rest = &request.bytes[..];
        let mut found: Option<Written> = None;
        while !rest.is_empty() {
            let Ok(header) = BatchHeader::read(rest) else { return Ok(None) };
            if header.producer_id < 0 {
                return Ok(None);
            }
            let Some(batch) = self.producers.state.duplicate_of(&header) else { return Ok(None) };
            let written = found.get_or_insert(Written {
                base_offset: batch.first_offset(),
                last_offset: batch.last_offset,
                leader_epoch: self.epochs.at(batch.first_offset()).unwrap_or(0),
                duplicate: true,
            });
            written.last_offset = batch.last_offset;
            rest = rest.get(header.total_bytes()..).unwrap_or_default();
        }
        if found.is_some() {
            self.check_usable()?;
            self.leader_epoch(epoch)?;
        }
        Ok(found)
    }

    /// Checks a batch that has its offset against what its producer sent before.
    pub(super) fn try_producer(
        &mut self,
        header: &BatchHeader,
        batch: &[u8],
        origin: AppendOrigin,
    ) -> Result<()> {
        if header.producer_id < 0 {
            return Ok(());
        }
        let state = &mut self.producers.state;
        let tried = if header.attributes.is_control() {
            let check = match origin {
                AppendOrigin::Marker { transaction_version, .. } => {
                    MarkerCheck::Coordinator { transaction_version }
                }
                AppendOrigin::Leader(_) | AppendOrigin::Follower => MarkerCheck::Replicated,
            };
            match EndMarker::read(batch) {
                Some(marker) => state.try_marker(header, &marker, check),
                None => Ok(()),
            }
        } else {
            state.try_data(header, matches!(origin, AppendOrigin::Leader(_)))
        };
        tried.map_err(|fault| Error::Producer {
            partition: self.shared.name.to_string(),
            producer_id: header.producer_id,
            fault,
        })
    }

    /// What was tried since the last call is going to be written, or was refused.
    pub(super) fn decide_producers(&mut self, placed: bool) {
        match placed {
            true => self.producers.state.accept(),
            false => self.producers.state.refuse(),
        }
    }

    /// Before the staged bytes are published: nobody may read past a transaction that begins in them.
    pub(super) fn before_publish(&mut self) {
        let events = self.producers.state.staged_events();
        if events.is_empty() {
            return;
        }
        let mut transactions = self.shared.transactions();
        for event in events {
            if let Event::Begun { producer_id, first } = event {
                transactions.begin(*first, *producer_id);
            }
        }
        self.shared.offsets.set_first_unstable(transactions.first_unstable());
    }

    /// After it: transactions that end in them are decided, for consumers that know of the aborted.
    pub(super) fn after_publish(&mut self) {
        let events = self.producers.state.on_written();
        if events.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let mut transactions = shared.transactions();
        let mut any_aborted = false;
        for event in events {
            let Event::Ended { producer_id, first, last, outcome } = event else { continue };
            if outcome == TransactionOutcome::Abort {
                let last_stable_offset = transactions.stable_at_end(producer_id, last);
                self.add_aborted(&AbortedTransaction {
                    producer_id,
                    first_offset: first,
                    last_offset: last,
                    last_stable_offset,
                });
                any_aborted = true;
            }
            transactions.end(first, last, shared.offsets.high_watermark());
        }
        shared.offsets.set_first_unstable(transactions.first_unstable());
        drop(transactions);
        shared.watchers.notify();
        if any_aborted && let Err(error) = self.write_aborted() {
            // Complete in memory; the seal writes what the file lacks, or fails.
            tracing::warn!(partition = %shared.name, %error, "transaction index not written");
        }
    }

    pub(super) fn on_producers_failed(&mut self) {
        self.producers.state.on_write_failed();
    }

    fn add_aborted(&mut self, entry: &AbortedTransaction) {
        if planted(Bug::ForgetAborted) {
            return;
        }
        match &mut self.producers.aborted {
            Some(writer) => writer.push(entry),
            None => {
                let (entries, writer) = AbortedEntries::new(&[*entry]);
                entries.attach(&self.active.segment);
                self.producers.aborted = Some(writer);
            }
        }
    }

    /// Appends to the active segment's `.txnindex` what it lacks. Gives the file if a sync has to take
    /// it along.
    fn write_aborted(&mut self) -> Result<Option<FileRef>> {
        let Some(entries) = AbortedEntries::of(&self.active.segment) else { return Ok(None) };
        if entries.len() == self.producers.aborted_on_disk && !self.producers.aborted_is_unsynced {
            return Ok(None);
        }
        let base = self.active.segment.base_offset();
        let path = names::path(&self.shared.dir, base, names::TXN_INDEX);
        let done = self.producers.aborted_on_disk;
        let position = (done * ABORTED_BYTES) as u64;
        let bytes = encode_aborted(entries.from(done));
        let file = super::write_index(self.disk.as_ref(), &path, &bytes, position)?;
        self.producers.aborted_is_unsynced = true;
        if done == 0 {
            self.sync.names_changed();
        }
        self.producers.aborted_on_disk = entries.len();
        Ok(Some(file))
    }

    /// Completes the active segment's `.txnindex`; the next sync takes it along. At a roll, and before
    /// each sync.
    pub(super) fn seal_aborted(&mut self) -> Result<()> {
        if let Some(file) = self.write_aborted()? {
            self.sync.file_written(self.active.segment.base_offset(), file);
            self.producers.aborted_is_unsynced = false;
        }
        Ok(())
    }

    /// Takes a snapshot, unless there is one of this offset: everything appended is in what is known.
    fn take_snapshot(&mut self, offset: i64) -> Result<Option<FileRef>> {
        if offset <= self.producers.newest_snapshot || offset <= self.shared.offsets.log_start() {
            return Ok(None);
        }
        let states = self.producers.state.states();
        let file = write_snapshot(self.disk.as_ref(), &self.shared.dir, offset, &states)?;
        self.producers.newest_snapshot = offset;
        self.producers.newest_is_unsynced = true;
        if let Some(stray) = self.producers.stray.replace(offset) {
            remove_snapshot(self.disk.as_ref(), &self.shared.dir, stray);
        }
        Ok(Some(file))
    }

    /// Takes a snapshot where a segment is about to begin. An error costs the next start some time.
    pub(super) fn snapshot_before_roll(&mut self, base_offset: i64) {
        match self.take_snapshot(base_offset) {
            Ok(Some(file)) => {
                self.sync.file_written(base_offset, file);
                self.producers.newest_is_unsynced = false;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(partition = %self.shared.name, %error, "no producer snapshot");
            }
        }
    }

    /// The new active segment has no aborted transactions.
    pub(super) fn on_producers_rolled(&mut self) {
        let base = self.active.segment.base_offset();
        self.active.segment.set_aborted(None);
        self.producers.aborted = None;
        self.producers.aborted_on_disk = 0;
        self.producers.aborted_is_unsynced = false;
        self.producers.stray = self.producers.stray.filter(|stray| *stray != base);
    }

    /// A snapshot between two rolls, for a start after a kill; nothing depends on it.
    pub(super) fn refresh_snapshot(&mut self) {
        let log_end = self.shared.offsets.log_end();
        let taken = self.write_aborted().and_then(|_| self.take_snapshot(log_end));
        if let Err(error) = taken {
            tracing::warn!(partition = %self.shared.name, %error, "no producer snapshot");
        }
    }

    /// The snapshot that a clean start reads instead of the log.
    pub(super) fn snapshot_at_close(&mut self) -> Result<()> {
        let log_end = self.shared.offsets.log_end();
        let mut taken = self.take_snapshot(log_end)?;
        if taken.is_none()
            && self.producers.newest_snapshot == log_end
            && self.producers.newest_is_unsynced
        {
            let path = names::path(&self.shared.dir, log_end, names::SNAPSHOT);
            let file = self.disk.open(&path, OpenMode::ReadWrite);
            taken = Some(file.map_err(|e| Error::io("open", &path, e))?);
        }
        if let Some(file) = taken {
            self.sync.file_written(log_end, file);
            self.sync.names_changed();
            self.producers.newest_is_unsynced = false;
        }
        Ok(())
    }

    /// Reads what is known of producers from the newest snapshot that `trust` lets pass and from the
    /// log behind it; at the open, and when the log was cut at its end.
    pub(crate) fn load_producers(&mut self, trust: Trust) -> Result<()> {
        let rebuild = Rebuild {
            shared: &self.shared,
            disk: self.disk.as_ref(),
            trust,
            now_ms: self.clock.now_ms(),
        };
        let mut rebuilt = rebuild.run()?;
        for (offset, file) in rebuilt.written.drain(..) {
            self.sync.file_written(offset, file);
        }
        self.producers = LogProducers::new(rebuilt);
        Ok(())
    }

    /// A sync failed: the active segment's file is written whole at its seal.
    pub(super) fn on_aborted_doubtful(&mut self) {
        self.producers.aborted_on_disk = 0;
    }
}

/// Writes a snapshot file. A torn one is told by its CRC.
pub(super) fn write_snapshot(
    disk: &dyn Disk,
    dir: &Path,
    offset: i64,
    states: &[ProducerState],
) -> Result<FileRef> {
    let path = names::path(dir, offset, names::SNAPSHOT);
    let bytes = encode_snapshot(states);
    let file =
        disk.open(&path, OpenMode::CreateOrTruncate).map_err(|e| Error::io("create", &path, e))?;
    file.write_all_at(&bytes, 0).map_err(|e| Error::io("write", &path, e))?;
    Ok(file)
}

/// Removes a snapshot that is not needed; one that stays goes at the next start.
pub(super) fn remove_snapshot(disk: &dyn Disk, dir: &Path, offset: i64) {
    let path = names::path(dir, offset, names::SNAPSHOT);
    if let Err(error) = disk.remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(file = %path.display(), %error, "a producer snapshot stays for now");
    }
}
