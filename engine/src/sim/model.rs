//! What a partition must hold: the oracle of the simulation.
//!
//! The model knows every batch that was handed in, in order, and what was promised about it. After
//! a crash the log must be a beginning of what was written, no shorter than what was promised, and
//! then perhaps batches whose answers the crash swallowed, in their order. Offsets are dense.

#![forbid(unsafe_code)]

use super::producers::marker_number;
use crate::format::Batches;
use crate::{Error, FetchOptions, Isolation, Offset, Partition};

/// One batch: its number, which stands in every record of it, and its offsets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stored {
    pub(super) number: u64,
    pub(super) base: i64,
    pub(super) count: i64,
}

impl Stored {
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

    pub(super) fn truncating(&mut self, to: i64) {
        self.durable = self.durable.min(to);
        self.may_end_at = Some(self.may_end_at.unwrap_or(to).min(to));
    }

    pub(super) fn truncated(&mut self, to: i64) {
        self.may_end_at = None;
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
        let mut expected = self.written.iter().filter(known);
        let mut unknown = self.unknown.iter();
        let mut next = None;
        let mut past_written = false;
        for batch in found {
            if next.is_some_and(|next| next != batch.base) {
                return Err(format!("a hole before {batch:?}"));
            }
            next = Some(batch.next());
            if guessed(batch.base) && self.failed.contains(&(batch.number, batch.count)) {
                continue;
            }
            if !past_written && let Some(wanted) = expected.next() {
                if wanted == batch {
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
            let mut number = None;
            for record in decoded.records() {
                let record = record.map_err(|fault| fault.to_string())?;
                let value = record.value.unwrap_or_default();
                let of = match header.attributes.is_control() {
                    true => marker_number(record.key, record.value)?,
                    false => {
                        let of = value.get(..8).and_then(|bytes| bytes.try_into().ok());
                        of.map(u64::from_le_bytes).ok_or("a value that nobody wrote")?
                    }
                };
                if *number.get_or_insert(of) != of {
                    return Err("records of two batches in one".into());
                }
            }
            let count = header.next_offset() - header.base_offset;
            let number = number.ok_or("a batch without records")?;
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
