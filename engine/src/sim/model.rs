//! What a partition must hold: the oracle of the simulation.
//!
//! The model knows every batch that was handed in, in order, and what was promised about it. After
//! a crash the log must be a beginning of what was written, no shorter than what was promised, and
//! then perhaps batches whose answers the crash swallowed, in their order. Offsets are dense, but for
//! what compaction may take: a batch has one key, and goes when a later one has the same.

#![forbid(unsafe_code)]

use super::producers::marker_number;
use crate::format::Batches;
use crate::{Error, FetchOptions, Isolation, Offset, Partition};

/// The number of a batch that compaction has left no record of.
pub(super) const EMPTIED: u64 = u64::MAX;

/// The key of all records of a batch.
pub(super) fn key_of(number: u64) -> [u8; 1] {
    [u8::try_from(number % 5).unwrap()]
}

/// True if the records of a batch have no value.
pub(super) fn is_tombstone(number: u64) -> bool {
    number % 7 == 6
}

/// One batch: its number, which stands in every record of it, and its offsets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stored {
    pub(super) number: u64,
    pub(super) base: i64,
    pub(super) count: i64,
}

impl Stored {
    fn has_key_of(&self, other: &Stored) -> bool {
        self.number != EMPTIED && key_of(self.number) == key_of(other.number)
    }

    fn next(&self) -> i64 {
        self.base + self.count
    }
}

/// The oracle of one partition.
#[derive(Default)]
pub(super) struct Model {
    /// Answered as written, in offset order.
    written: Vec<Stored>,
    /// Handed in and not answered, or answered with an error: may be found behind `written`.
    unknown: Vec<(u64, i64)>,
    /// Answered with an error since the last crash, and passed over by what came behind: a power cut
    /// may bring one back in the place of what was written there and not durable.
    failed: Vec<(u64, i64)>,
    /// Offsets taken by batches that were answered with errors.
    guessed: Vec<(i64, i64)>,
    /// Records below were promised to survive a power cut.
    durable: i64,
    /// Highest log start that was asked for.
    log_start_max: i64,
    /// The log may end as early as this: a truncation was cut short.
    may_end_at: Option<i64>,
    log_end: i64,
    /// Compaction may have taken records below.
    clean_end: i64,
    /// Batches that compaction may have taken for the sake of others that were cut since.
    outlived: Vec<Stored>,
}

/// What died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Died {
    /// The machine: what was not durable may be gone.
    Machine,
    /// The process: everything that was answered is there.
    Process,
    /// Nothing: all of it is there, exactly.
    Nobody,
}

impl Model {
    pub(super) fn log_end(&self) -> i64 {
        self.log_end
    }

    pub(super) fn submitted(&mut self, number: u64, count: i64) {
        self.unknown.push((number, count));
    }

    /// It is not written, and never will be.
    pub(super) fn refused(&mut self, number: u64) {
        self.unknown.retain(|(unknown, _)| *unknown != number);
    }

    pub(super) fn on_written(&mut self, stored: Stored, durable: bool) {
        let at = self.unknown.iter().position(|(number, _)| *number == stored.number);
        let at = at.expect("an answer to what was not handed in");
        let before: Vec<(u64, i64)> = self.unknown.drain(..=at).take(at).collect();
        self.fill_to(stored.base, before);
        self.log_end = stored.next();
        self.written.push(stored);
        if durable {
            self.on_durable(stored.next());
        }
    }

    /// Appends that were to be durable and failed may have been written all the same: some of
    /// `before` have the offsets up to `base`.
    fn fill_to(&mut self, base: i64, before: Vec<(u64, i64)>) {
        let gap = base - self.log_end;
        let fill = filling(&before, gap).expect("an offset was left out or given twice");
        if gap > 0 {
            // Which of them it was does not show: any that fits may be found there.
            self.guessed.push((self.log_end, base));
        }
        self.failed.extend(before);
        for (number, count) in fill {
            self.written.push(Stored { number, base: self.log_end, count });
            self.log_end += count;
        }
    }

    pub(super) fn on_durable(&mut self, offset: i64) {
        if offset > self.log_end {
            let before = std::mem::take(&mut self.unknown);
            self.fill_to(offset, before);
        }
        self.durable = self.durable.max(offset);
    }

    pub(super) fn deleting_before(&mut self, offset: i64) {
        self.log_start_max = self.log_start_max.max(offset);
    }

    /// A compaction of segments below `end` was begun; how far it comes does not show.
    pub(super) fn compacting(&mut self, end: i64) {
        self.clean_end = self.clean_end.max(end);
    }

    /// As [`Model::boundary_at_or_below`], of a log that may have gaps.
    pub(super) fn boundary_in(&self, partition: &Partition, offset: i64) -> Option<i64> {
        if self.clean_end == 0 {
            return Some(self.boundary_at_or_below(offset));
        }
        let (start, end) = (partition.log_start_offset().0, partition.log_end_offset().0);
        let found = read_all(partition, start, end).ok()?;
        found.iter().map(Stored::next).filter(|next| *next <= offset).max()
    }

    pub(super) fn truncating(&mut self, to: i64) {
        let cut: Vec<Stored> = self.written.iter().copied().filter(|s| s.base >= to).collect();
        let kept = self.written.iter().filter(|s| s.base < to.min(self.clean_end));
        let outlived = kept.filter(|kept| cut.iter().any(|cut| cut.has_key_of(kept)));
        self.outlived.extend(outlived);
        self.durable = self.durable.min(to);
        self.may_end_at = Some(self.may_end_at.unwrap_or(to).min(to));
    }

    pub(super) fn truncated(&mut self, to: i64) {
        self.may_end_at = None;
        self.clean_end = self.clean_end.min(to);
        self.cut(to);
    }

    fn cut(&mut self, to: i64) {
        self.written.retain(|stored| stored.next() <= to);
        self.log_end = self.log_end.min(to);
        self.durable = self.durable.min(to);
        self.unknown.clear();
        self.guessed.retain(|(_, end)| *end <= to);
    }

    /// Offsets at which a batch ends: where a truncation may cut without taking more.
    pub(super) fn boundary_at_or_below(&self, offset: i64) -> i64 {
        self.written.iter().map(Stored::next).filter(|next| *next <= offset).max().unwrap_or(0)
    }

    /// Reads the whole partition and compares. Takes over what it finds as what is written now.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub(super) fn check(&mut self, partition: &Partition, died: Died) -> Result<(), String> {
        let damaged = partition.damaged_ranges();
        if !damaged.is_empty() {
            return Err(format!("damage without a fault: {damaged:?}"));
        }
        let start = partition.log_start_offset().0;
        let end = partition.log_end_offset().0;
        let found = read_all(partition, start, end)?;
        if start > self.log_start_max {
            return Err(format!("log start {start} though only {} was asked", self.log_start_max));
        }
        let promised = match died {
            Died::Machine => self.durable,
            Died::Process | Died::Nobody => match self.may_end_at {
                Some(cut) => cut,
                None => self.log_end,
            },
        };
        if end < promised {
            return Err(format!("the log ends at {end}, {promised} was promised ({died:?})"));
        }
        self.compare(&found, start, end, died)?;
        let durable = partition.durable_offset().0;
        if durable > end {
            return Err(format!("durable is {durable}, past the end {end}"));
        }
        // From here on what is there is what was written.
        let before: Vec<Stored> =
            self.written.iter().copied().take_while(|s| s.next() <= start).collect();
        self.written = before.into_iter().chain(found).collect();
        self.log_end = end;
        self.durable = self.durable.max(durable);
        self.log_start_max = self.log_start_max.max(start);
        if died != Died::Nobody {
            // What a process left in the page cache and cut away there may come back by power cut.
            let unanswered = std::mem::take(&mut self.unknown);
            match died {
                Died::Machine => self.failed.clear(),
                Died::Process | Died::Nobody => self.failed.extend(unanswered),
            }
            self.guessed.clear();
            self.may_end_at = None;
        }
        Ok(())
    }

    fn compare(&self, found: &[Stored], start: i64, end: i64, died: Died) -> Result<(), String> {
        let guessed =
            |base: i64| self.guessed.iter().any(|(from, to)| (*from..*to).contains(&base));
        let known = |stored: &&Stored| stored.next() > start && !guessed(stored.base);
        let mut expected = self.written.iter().filter(known).peekable();
        self.no_value_outlives_its_tombstone(found)?;
        let mut unknown = self.unknown.iter();
        let mut next = None;
        let mut past_written = false;
        for batch in found {
            while let Some(gone) = expected.next_if(|w| !past_written && w.next() <= batch.base) {
                if !self.may_be_gone(gone, found) {
                    return Err(format!("{gone:?} is gone before {batch:?}"));
                }
            }
            if next.is_some_and(|next| next != batch.base) && batch.base > self.clean_end {
                return Err(format!("a hole before {batch:?}"));
            }
            next = Some(batch.next());
            if guessed(batch.base) && self.failed.contains(&(batch.number, batch.count)) {
                continue;
            }
            if !past_written && let Some(wanted) = expected.next() {
                let emptied = batch.number == EMPTIED
                    && (wanted.base, wanted.count) == (batch.base, batch.count)
                    && self.may_be_gone(wanted, found);
                if wanted == batch || emptied {
                    continue;
                }
                if died != Died::Machine || batch.base < self.durable {
                    return Err(format!("{batch:?} where {wanted:?} was written"));
                }
            }
            past_written = true;
            if self.failed.contains(&(batch.number, batch.count)) && died == Died::Machine {
                continue;
            }
            if !unknown.any(|(number, count)| (*number, *count) == (batch.number, batch.count)) {
                return Err(format!("{batch:?} was never handed in, or is out of order"));
            }
        }
        if next.is_some_and(|next| next != end) {
            return Err(format!("the last batch ends at {next:?}, the log at {end}"));
        }
        Ok(())
    }
}

impl Model {
    /// True if compaction may have taken this batch: one behind it has its key, or may have had it and
    /// was a tombstone.
    fn may_be_gone(&self, gone: &Stored, found: &[Stored]) -> bool {
        let behind = |other: &&Stored| other.base > gone.base && other.has_key_of(gone);
        let failed = |(number, _): &(u64, i64)| {
            is_tombstone(*number) && key_of(*number) == key_of(gone.number)
        };
        let end = found.last().map_or(0, Stored::next);
        gone.base < self.clean_end
            && (gone.number == EMPTIED
                || self.outlived.contains(gone)
                || is_tombstone(gone.number)
                || found.iter().any(|other| behind(&other))
                || self
                    .written
                    .iter()
                    .any(|o| behind(&o) && is_tombstone(o.number) && o.base < end)
                || self.failed.iter().any(failed))
    }

    fn no_value_outlives_its_tombstone(&self, found: &[Stored]) -> Result<(), String> {
        let (Some(first), Some(last)) = (found.first(), found.last()) else { return Ok(()) };
        let gone = |stored: &&Stored| {
            // Past the last one a crash has taken it, not compaction.
            stored.base >= first.base
                && stored.base < last.base.min(self.clean_end)
                && stored.number != EMPTIED
                && is_tombstone(stored.number)
                && !found.contains(stored)
        };
        for tombstone in self.written.iter().filter(gone) {
            let same = |other: &&Stored| other.has_key_of(tombstone);
            let mut others = found.iter().filter(same);
            if others.clone().any(|other| other.base > tombstone.base) {
                continue;
            }
            // Of batches that were answered with errors it may be another one that stood here.
            let guessed = |offset| self.guessed.iter().any(|(a, b)| (*a..*b).contains(&offset));
            if let Some(value) = others.next()
                && !guessed(tombstone.base)
            {
                return Err(format!("{value:?} is back, whose tombstone {tombstone:?} is gone"));
            }
        }
        Ok(())
    }
}

/// Every batch from `start` on, its records checked.
fn read_all(partition: &Partition, start: i64, end: i64) -> Result<Vec<Stored>, String> {
    let mut found: Vec<Stored> = Vec::new();
    let mut offset = start;
    let options = FetchOptions { isolation: Isolation::LogEnd, ..FetchOptions::default() };
    while offset < end {
        let lease = match partition.fetch(Offset(offset), &options) {
            Ok(lease) => lease,
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EIO) => {
                return Err("reading failed".into());
            }
            Err(error) => return Err(format!("fetch at {offset}: {error}")),
        };
        let bytes = lease.to_vec().map_err(|e| format!("lease at {offset}: {e}"))?;
        for batch in Batches::new(&bytes) {
            let (_, batch) =
                batch.map_err(|(at, fault)| format!("byte {at} of a lease: {fault}"))?;
            let header = batch.header();
            let decoded = batch.decode().map_err(|fault| fault.to_string())?;
            let (mut number, mut last) = (None, None);
            for record in decoded.records() {
                let record = record.map_err(|fault| fault.to_string())?;
                let numbered = record.headers.clone().next().and_then(Result::ok);
                let value = numbered.and_then(|header| header.value).or(record.value);
                let of = match header.attributes.is_control() {
                    true => marker_number(record.key, record.value)?,
                    false => {
                        let of = value.and_then(|value| value.get(..8)?.try_into().ok());
                        of.map(u64::from_le_bytes).ok_or("a record that nobody wrote")?
                    }
                };
                if *number.get_or_insert(of) != of {
                    return Err("records of two batches in one".into());
                }
                // Markers have keys of their own.
                let key = record.key.filter(|_| !header.attributes.is_control());
                let whole = key.is_none_or(|key| key == key_of(of));
                if !whole || key.is_some() && record.value.is_none() != is_tombstone(of) {
                    return Err("a key or value that nobody wrote".into());
                }
                last = Some((record.offset, record.key.is_some()));
            }
            let count = header.next_offset() - header.base_offset;
            if last.is_some_and(|(offset, _)| offset != header.last_offset()) {
                return Err(format!(
                    "the newest record of the batch at {} is gone",
                    header.base_offset
                ));
            }
            if number.is_none() && header.record_count > 0 {
                return Err("a batch without its records".into());
            }
            let number = number.unwrap_or(EMPTIED);
            found.push(Stored { number, base: header.base_offset, count });
        }
        if lease.next_offset().0 <= offset {
            return Err(format!("no progress at {offset} of {end}"));
        }
        offset = lease.next_offset().0;
    }
    Ok(found)
}

/// Some of the batches, in their order, that together take `gap` offsets.
fn filling(batches: &[(u64, i64)], gap: i64) -> Option<Vec<(u64, i64)>> {
    if gap == 0 {
        return Some(Vec::new());
    }
    let (first, rest) = batches.split_first()?;
    if first.1 <= gap
        && let Some(mut fill) = filling(rest, gap - first.1)
    {
        fill.insert(0, *first);
        return Some(fill);
    }
    filling(rest, gap)
}
