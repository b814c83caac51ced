//! Which records of a batch stay, and what is written in the batch's place (Kafka `Cleaner.cleanInto`
//! and `MemoryRecords.filterTo`).
//!
//! A record stays if it is past the end of the map, or the newest of its key and no tombstone whose
//! time is over. A tombstone's time begins when it is first seen here: its batch gets a delete
//! horizon, `delete_retention_ms` from now, in the place of its base timestamp. A transaction's marker
//! gets one when none of its records is left.

#![forbid(unsafe_code)]

use super::map::OffsetMap;
use super::transactions::{Cleaned, History};
use crate::format::{Batch, BatchFault, BatchHeader, Record, Rewriter};
use crate::planted::{Bug, planted};

/// What decides about batches.
pub(super) struct Filter<'a> {
    pub(super) map: &'a OffsetMap,
    pub(super) history: &'a History,
    /// Unix ms.
    pub(super) now_ms: i64,
    pub(super) delete_retention_ms: u64,
    /// Where the cleanable part of the log ends: the batch that ends there stays, if need be without
    /// records, so that the log ends where it ended.
    pub(super) upper_bound: i64,
    pub(super) rewriter: Rewriter,
    pub(super) records_read: u64,
    pub(super) records_kept: u64,
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// Written as it was.
    Same,
    /// Written with fewer records, or with a delete horizon.
    Changed,
    /// Not written.
    Gone,
}

impl Filter<'_> {
    /// Appends to `out` what stays of the batch.
    ///
    /// # Errors
    /// What is wrong with its records; `out` is as it was.
    pub(super) fn apply(
        &mut self,
        batch: &Batch<'_>,
        cleaned: &mut Cleaned<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Fate, BatchFault> {
        let header = batch.header();
        let control = header.attributes.is_control();
        let can_discard = cleaned.on_batch(batch)?;
        let horizon = header.attributes.has_delete_horizon().then_some(header.base_timestamp);
        let is_over = horizon.is_some_and(|horizon| horizon <= self.now_ms);
        let discard = can_discard && (!control || is_over);
        self.records_read += u64::try_from(header.record_count).unwrap_or(0);
        if discard {
            return Ok(self.emptied(header, out));
        }
        let decoded = batch.decode()?;
        let mut kept: Vec<Record<'_>> = Vec::new();
        let mut tombstones = false;
        for record in decoded.records() {
            let record = record?;
            if control || self.stays(&record, horizon) {
                tombstones |= record.value.is_none();
                kept.push(record);
            }
        }
        if kept.is_empty() {
            return Ok(self.emptied(header, out));
        }
        self.records_kept += kept.len() as u64;
        let starts_horizon = (tombstones || (control && can_discard)) && horizon.is_none();
        if !starts_horizon && i32::try_from(kept.len()) == Ok(header.record_count) {
            out.extend_from_slice(batch.bytes());
            return Ok(Fate::Same);
        }
        let horizon = match starts_horizon {
            true => Some(self.now_ms.saturating_add_unsigned(self.delete_retention_ms)),
            false => horizon,
        };
        let start = out.len();
        let rewritten = self.rewriter.rewrite(header, &kept, horizon, out);
        if rewritten.is_err() {
            out.truncate(start);
        }
        rewritten.map(|()| Fate::Changed)
    }

    fn stays(&self, record: &Record<'_>, horizon: Option<i64>) -> bool {
        if record.offset > self.map.latest_offset() {
            return true;
        }
        // Only a partition that was not compacted before can hold records without a key.
        let Some(key) = record.key else { return false };
        let newest = self.map.get(key).is_none_or(|newest| record.offset >= newest);
        let in_time = match planted(Bug::TombstonesAtOnce) {
            true => false,
            false => horizon.is_none_or(|horizon| self.now_ms < horizon),
        };
        newest && (record.value.is_some() || in_time)
    }

    fn emptied(&self, header: &BatchHeader, out: &mut Vec<u8>) -> Fate {
        let stays = header.next_offset() == self.upper_bound
            || (header.producer_id >= 0 && self.history.is_last_of_producer(header, self.now_ms));
        if !stays {
            return Fate::Gone;
        }
        let start = out.len();
        match Rewriter::empty(header, out) {
            Ok(()) => Fate::Changed,
            Err(_) => {
                out.truncate(start);
                Fate::Gone
            }
        }
    }
}
