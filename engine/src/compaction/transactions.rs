//! What compaction must know of transactions and idempotent producers.
//!
//! One walk over the log's headers, up to the last stable offset, finds which transactions were
//! aborted, where one is still open, and the last batch of each producer. `.txnindex` files add what
//! they know. While a segment is cleaned, [`Cleaned`] follows its batches and markers: records of an
//! aborted transaction go at once, a marker when none of its transaction's batches is left (Kafka
//! `CleanedTransactionMetadata`).

#![forbid(unsafe_code)]

use super::scan::each_batch;
use crate::error::{Error, Result};
use crate::format::{Batch, BatchFault, BatchHeader, ControlType};
use crate::io::OpenMode;
use crate::log::LogShared;
use crate::segment::{Segment, names};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// An idempotent producer that has written nothing for this long is forgotten
/// (`producer.id.expiration.ms`), Unix ms.
const PRODUCER_EXPIRATION_MS: i64 = 24 * 3600 * 1000;
/// Bytes of an entry in a `.txnindex` file.
const TXN_ENTRY: usize = 34;

/// Below it every transaction has ended, and replicas have all: compaction goes no further.
pub(crate) fn last_stable_offset(shared: &LogShared) -> i64 {
    shared.offsets.last_stable()
}

/// One aborted transaction: an entry of a `.txnindex` file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct AbortedTxn {
    pub(crate) first_offset: i64,
    /// Offset of the marker.
    pub(crate) last_offset: i64,
    pub(crate) producer_id: i64,
    /// The last stable offset when it was aborted.
    pub(crate) last_stable_offset: i64,
}

impl AbortedTxn {
    /// Its bytes in a `.txnindex` file (Kafka `AbortedTxn`, version 0).
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&0_i16.to_be_bytes());
        for field in
            [self.producer_id, self.first_offset, self.last_offset, self.last_stable_offset]
        {
            out.extend_from_slice(&field.to_be_bytes());
        }
    }

    fn read(entry: &[u8; TXN_ENTRY]) -> Option<AbortedTxn> {
        let (version, rest) = entry.split_first_chunk::<2>()?;
        let (fields, _) = rest.as_chunks::<8>();
        let mut fields = fields.iter().map(|bytes| i64::from_be_bytes(*bytes));
        if i16::from_be_bytes(*version) != 0 {
            return None;
        }
        Some(AbortedTxn {
            producer_id: fields.next()?,
            first_offset: fields.next()?,
            last_offset: fields.next()?,
            last_stable_offset: fields.next()?,
        })
    }
}

/// The last that a producer wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct LastBatch {
    /// `None` if the newest of its epoch is a marker.
    data_offset: Option<i64>,
    epoch: i16,
    timestamp: i64,
}

/// What a walk over the log found.
#[derive(Default)]
pub(crate) struct History {
    aborted: Vec<AbortedTxn>,
    /// Producer and offset of each marker of an abort.
    abort_markers: HashSet<(i64, i64)>,
    /// First offset of each transaction that has not ended.
    open: BTreeMap<i64, i64>,
    producers: HashMap<i64, LastBatch>,
    /// Records in batches that end at or above the offset that was asked for.
    pub(crate) dirty_records: u64,
}

impl History {
    /// Walks the log from its first segment up to the last stable offset. `progress` is told of bytes
    /// that were read.
    pub(crate) fn read(
        shared: &LogShared,
        segments: &[Arc<Segment>],
        first_dirty: i64,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<History> {
        let mut history = History::default();
        let end = last_stable_offset(shared);
        let mut indexed = BTreeSet::new();
        for segment in segments {
            indexed.extend(read_txn_index(shared, segment)?);
            if segment.base_offset() >= end {
                continue;
            }
            each_batch(shared, segment, |batch, _| {
                progress(batch.bytes().len() as u64)?;
                let header = batch.header();
                if header.next_offset() <= end {
                    history.take(batch).map_err(|fault| fault_at(segment, header, fault))?;
                    if header.last_offset() >= first_dirty && !header.attributes.is_control() {
                        history.dirty_records += u64::try_from(header.record_count).unwrap_or(0);
                    }
                }
                Ok(true)
            })?;
        }
        // An entry whose marker is not there would take what its producer wrote later with it.
        indexed.retain(|txn: &AbortedTxn| {
            history.abort_markers.contains(&(txn.producer_id, txn.last_offset))
        });
        let known: HashSet<(i64, i64)> =
            indexed.iter().map(|txn| (txn.producer_id, txn.last_offset)).collect();
        history.aborted.retain(|txn| !known.contains(&(txn.producer_id, txn.last_offset)));
        history.aborted.extend(indexed);
        history.aborted.sort_unstable();
        Ok(history)
    }

    /// First offset of the earliest transaction that has not ended.
    pub(crate) fn open_from(&self) -> Option<i64> {
        self.open.values().min().copied()
    }

    fn take(&mut self, batch: &Batch<'_>) -> std::result::Result<(), BatchFault> {
        let header = batch.header();
        let producer_id = header.producer_id;
        if producer_id < 0 {
            return Ok(());
        }
        let control = header.attributes.is_control();
        if control && header.record_count == 0 {
            // All of its transaction is gone: it says nothing any more.
            return Ok(());
        }
        let before = self.producers.get(&producer_id);
        let same_epoch = before.is_some_and(|last| last.epoch == header.producer_epoch);
        let data_offset = match control {
            false => Some(header.last_offset()),
            true => before.filter(|_| same_epoch).and_then(|last| last.data_offset),
        };
        let timestamp = header.max_timestamp;
        let last = LastBatch { data_offset, epoch: header.producer_epoch, timestamp };
        self.producers.insert(producer_id, last);
        if !control {
            if header.attributes.is_transactional() {
                self.open.entry(producer_id).or_insert(header.base_offset);
            }
            return Ok(());
        }
        let kind = control_type(batch)?;
        if !matches!(kind, Some(ControlType::Abort | ControlType::Commit)) {
            return Ok(());
        }
        let first_offset = self.open.remove(&producer_id);
        if kind == Some(ControlType::Abort) {
            self.abort_markers.insert((producer_id, header.last_offset()));
        }
        if let (Some(ControlType::Abort), Some(first_offset)) = (kind, first_offset) {
            let last_offset = header.last_offset();
            let last_stable_offset = self.open_from().unwrap_or(last_offset + 1);
            self.aborted.push(AbortedTxn {
                first_offset,
                last_offset,
                producer_id,
                last_stable_offset,
            });
        }
        Ok(())
    }

    /// True if this batch must stay, perhaps without records, so that its producer's last sequence
    /// or epoch is not forgotten (Kafka `UnifiedLog.lastRecordsOfActiveProducers`).
    pub(crate) fn is_last_of_producer(&self, header: &BatchHeader, now_ms: i64) -> bool {
        let Some(last) = self.producers.get(&header.producer_id) else { return false };
        let idle = now_ms.saturating_sub(last.timestamp) >= PRODUCER_EXPIRATION_MS;
        if idle && !self.open.contains_key(&header.producer_id) {
            return false;
        }
        match last.data_offset {
            Some(offset) => header.last_offset() == offset,
            None => header.attributes.is_control() && header.producer_epoch == last.epoch,
        }
    }
}

/// Follows the transactions of the batches that are read, in offset order.
pub(crate) struct Cleaned<'a> {
    /// Those that have not begun yet, by first offset.
    aborted: std::iter::Peekable<std::slice::Iter<'a, AbortedTxn>>,
    /// Where the walk begins: what ended before is over.
    from: i64,
    /// Aborted, begun, their markers not read: and whether a batch of them was read.
    ongoing_aborted: HashMap<i64, (AbortedTxn, bool)>,
    /// Producers with batches of a committed transaction whose marker was not read.
    ongoing_committed: HashSet<i64>,
    /// Of those whose markers stay: entries for the new segment's index.
    pub(crate) retained: Vec<AbortedTxn>,
}

impl<'a> Cleaned<'a> {
    pub(crate) fn new(history: &'a History, from: i64) -> Cleaned<'a> {
        Cleaned {
            aborted: history.aborted.iter().peekable(),
            from,
            ongoing_aborted: HashMap::new(),
            ongoing_committed: HashSet::new(),
            retained: Vec::new(),
        }
    }

    /// Takes the next batch. True if its records may go: it was aborted; or it is a marker, and all
    /// the records of its transaction are gone.
    pub(crate) fn on_batch(&mut self, batch: &Batch<'_>) -> std::result::Result<bool, BatchFault> {
        let header = batch.header();
        self.begin_up_to(header.last_offset());
        if header.attributes.is_control() {
            return self.on_marker(batch);
        }
        if !header.attributes.is_transactional() {
            return Ok(false);
        }
        if let Some((_, seen)) = self.ongoing_aborted.get_mut(&header.producer_id) {
            *seen = true;
            return Ok(true);
        }
        self.ongoing_committed.insert(header.producer_id);
        Ok(false)
    }

    fn on_marker(&mut self, batch: &Batch<'_>) -> std::result::Result<bool, BatchFault> {
        let producer_id = batch.header().producer_id;
        if batch.header().record_count == 0 {
            return Ok(true);
        }
        Ok(match control_type(batch)? {
            Some(ControlType::Abort) => match self.ongoing_aborted.remove(&producer_id) {
                Some((txn, true)) => {
                    self.retained.push(txn);
                    false
                }
                Some((_, false)) | None => true,
            },
            Some(ControlType::Commit) => !self.ongoing_committed.remove(&producer_id),
            Some(ControlType::Other(_)) | None => false,
        })
    }

    fn begin_up_to(&mut self, offset: i64) {
        while let Some(txn) = self.aborted.next_if(|txn| txn.first_offset <= offset) {
            if txn.last_offset >= self.from {
                self.ongoing_aborted.entry(txn.producer_id).or_insert((*txn, false));
            }
        }
    }
}

fn control_type(batch: &Batch<'_>) -> std::result::Result<Option<ControlType>, BatchFault> {
    let decoded = batch.decode()?;
    let first = decoded.records().next().transpose()?;
    Ok(first.and_then(|record| record.key).and_then(ControlType::from_key))
}

/// The aborted transactions that a segment's index file lists; none if it has no such file. One that
/// does not add up is passed over: the log itself says the same.
fn read_txn_index(shared: &LogShared, segment: &Segment) -> Result<Vec<AbortedTxn>> {
    let path = names::path(&shared.dir, segment.base_offset(), names::TXN_INDEX);
    let file = match shared.open_files.disk().open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let length = file.len().map_err(|e| Error::io("stat", &path, e))?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let read = file.read_up_to(&mut bytes, 0).map_err(|e| Error::io("read", &path, e))?;
    bytes.truncate(read);
    let (entries, rest) = bytes.as_chunks::<TXN_ENTRY>();
    let found: Option<Vec<AbortedTxn>> = entries.iter().map(AbortedTxn::read).collect();
    match found {
        Some(found) if rest.is_empty() => Ok(found),
        _ => {
            tracing::warn!(file = %path.display(), "not an index of aborted transactions");
            Ok(Vec::new())
        }
    }
}

/// The error of a batch that does not hold what its header says.
pub(crate) fn fault_at(segment: &Segment, header: &BatchHeader, fault: BatchFault) -> Error {
    Error::Damaged {
        path: segment.path().to_owned(),
        position: 0,
        offset: crate::Offset(header.base_offset),
        next_offset: crate::Offset(header.next_offset()),
        fault,
    }
}
