//! `loglane consume`: prints records through a read-only view, also while another process writes.

#![forbid(unsafe_code)]

mod format;
mod group;

use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Progress;
use crate::{Global, exit_for, stop, topics};
use clap::Args;
use format::{Format, Printer};
pub(crate) use group::commit_config;
use group::{Commit, Group};
use loglane::format::Batch;
use loglane::inspect::{LogWalk, Step};
use loglane::{
    Error, FetchOptions, Isolation, Lease, Offset, OffsetQuery, PartitionView, TopicPartition,
    View, inspect,
};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// Bytes of one fetch.
const FETCH_BYTES: u64 = 4 << 20;
/// How often a view is refreshed when nothing came.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Args)]
pub(crate) struct Consume {
    /// The topic
    #[arg(long, value_parser = topics::topic_name)]
    topic: String,
    /// Only this partition; default: all
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Go on where this consumer group is, and commit how far it gets
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// When the group's offsets are committed. Each commit has the directory to itself for a moment
    #[arg(long, value_enum, default_value_t = Commit::Auto, requires = "group")]
    commit: Commit,
    /// Time between two commits
    #[arg(long, value_name = "MS", default_value_t = 5_000, requires = "group")]
    commit_interval_ms: u64,
    /// Start at the first record; the default unless --follow is given, which starts at the end.
    /// With --group only where it has no offset, or one that is out of range: those start at the
    /// end otherwise
    #[arg(long, group = "start")]
    from_beginning: bool,
    /// Start at this offset (of each partition)
    #[arg(long, value_name = "N", group = "start", value_parser = clap::value_parser!(i64).range(0..))]
    offset: Option<i64>,
    /// Start at the first record at or after this time, in Unix ms
    #[arg(long, value_name = "MS", group = "start")]
    timestamp: Option<i64>,
    /// Stop after this many records
    #[arg(long, value_name = "N")]
    max_records: Option<u64>,
    /// Go on with what is written from now on, until a signal
    #[arg(long)]
    follow: bool,
    /// How a record is printed; --json is --format json
    #[arg(long, value_enum, default_value_t = Format::Value)]
    format: Format,
    /// What parts key and value in --format key-value
    #[arg(long, value_name = "TEXT", default_value = "\t")]
    key_separator: String,
}

impl Consume {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let format = if global.json { Format::Json } else { self.format };
        let wanted = |name: &TopicPartition| {
            name.topic() == self.topic && self.partition.is_none_or(|p| p == name.partition())
        };
        let mut view = View::open_only(global.data_dir()?, wanted)?;
        if view.partitions().is_empty() {
            let what = match self.partition {
                Some(partition) => format!("partition {}-{partition}", self.topic),
                None => format!("topic {}", self.topic),
            };
            return Err(Error::NotFound { what }.into());
        }
        if self.follow {
            stop::listen()?;
        }
        let interval = Duration::from_millis(self.commit_interval_ms);
        let find = |name: &String| Group::find(name, self.commit, interval, &view);
        let mut group = self.group.as_ref().map(find).transpose()?;
        let mut reader = Reader {
            printer: Printer::new(format, self.key_separator.as_bytes(), out),
            left: self.max_records.unwrap_or(u64::MAX),
            stopped_at: None,
            damaged: false,
            buffer: Vec::new(),
        };
        let mut cursors = Vec::new();
        let mut total = 0;
        for (name, partition) in view.partitions() {
            total += partition.size().1;
            let resumed = group.as_ref().filter(|_| !self.has_place());
            let resumed = resumed.and_then(|group| group.start(partition, self.from_beginning));
            let start = match resumed {
                Some(start) => start,
                None => self.start(partition, &mut reader)?,
            };
            cursors.push((name.clone(), start));
        }
        let total = (self.max_records.is_none() && !self.follow).then_some(total);
        // Records on a terminal are progress enough.
        let quiet = global.quiet || io::IsTerminal::is_terminal(&io::stdout());
        let mut progress = Progress::bytes(total, "consumed", quiet);
        loop {
            let mut idle = true;
            for (name, next) in &mut cursors {
                let Some(partition) = view.partitions().get(name) else { continue };
                idle &= !reader.read(partition, next, &mut progress)?;
                *next = reader.stopped_at.take().unwrap_or(*next);
            }
            if let Some(group) = group.as_mut().filter(|group| group.is_due()) {
                // What is committed has been handed over.
                reader.printer.out.flush()?;
                group.commit(&cursors)?;
            }
            if !self.follow || reader.left == 0 || stop::requested() {
                break;
            }
            if idle {
                reader.printer.out.flush()?;
                if reader_is_gone() {
                    return Err(Failure::BrokenPipe);
                }
                std::thread::sleep(FOLLOW_INTERVAL);
            }
            view.refresh()?;
        }
        reader.printer.out.flush()?;
        group::end(group.as_mut(), &cursors, exit_for(reader.damaged))
    }

    /// True if it was said where to start, whatever a group committed.
    fn has_place(&self) -> bool {
        self.offset.is_some() || self.timestamp.is_some()
    }

    fn start(&self, partition: &PartitionView, reader: &mut Reader<'_>) -> Result<i64, Failure> {
        let end = partition.log_end_offset().0;
        if let Some(offset) = self.offset {
            return Ok(offset);
        }
        if let Some(timestamp) = self.timestamp {
            let query = OffsetQuery::At(timestamp);
            return match partition.list_offset(query, Isolation::HighWatermark) {
                Ok(found) => Ok(found.map_or(end, |found| found.offset.0)),
                Err(Error::Damaged { path, position, offset, next_offset, fault }) => {
                    reader.report(&path, position, offset.0, next_offset.0, &fault.to_string());
                    Ok(next_offset.0.min(end))
                }
                Err(error) => Err(error.into()),
            };
        }
        let from_end = self.follow && !self.from_beginning;
        Ok(if from_end { end } else { partition.log_start_offset().0 })
    }
}

struct Reader<'a> {
    printer: Printer<'a>,
    /// Records that may still be printed.
    left: u64,
    /// Where to go on if the last of them stood inside a batch.
    stopped_at: Option<i64>,
    damaged: bool,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// Prints everything from `next` on; true if there was something.
    fn read(
        &mut self,
        partition: &PartitionView,
        next: &mut i64,
        progress: &mut Progress,
    ) -> Result<bool, Failure> {
        let options = FetchOptions { max_bytes: FETCH_BYTES, ..FetchOptions::default() };
        let mut any = false;
        // A start past the end is an error, and fetch says so.
        while self.left > 0 && *next != partition.log_end_offset().0 && !stop::requested() {
            match partition.fetch(Offset(*next), &options) {
                Ok(lease) => {
                    progress.add(lease.bytes());
                    let before = *next;
                    *next = self.lease(partition, &lease, *next)?;
                    if *next <= before {
                        break;
                    }
                }
                Err(Error::Damaged { path, next_offset, .. }) => {
                    self.salvage(partition, &path, next, next_offset.0)?;
                }
                Err(error) => return Err(error.into()),
            }
            any = true;
        }
        Ok(any)
    }

    /// Prints what is whole in a segment that a fetch cannot find its way through.
    fn salvage(
        &mut self,
        partition: &PartitionView,
        path: &Path,
        next: &mut i64,
        segment_end: i64,
    ) -> Result<(), Failure> {
        let (start, end) = (*next, partition.log_end_offset().0);
        let number = partition.name().partition();
        let mut walk = LogWalk::open(path)?;
        let mut damage: Option<(u64, String)> = None;
        while let Some(step) = walk.step()? {
            match step {
                Step::Batch { position, batch } => {
                    let header = batch.header();
                    if header.base_offset >= end {
                        break;
                    }
                    // Damage below the start is not in what was asked for.
                    if let Some((position, fault)) = damage.take()
                        && header.base_offset > *next
                    {
                        self.report(path, position, *next, header.base_offset, &fault);
                    }
                    if header.last_offset() < *next {
                        continue;
                    }
                    let from = *next;
                    *next = header.next_offset();
                    match self.batch(number, &batch, start) {
                        Ok(()) if self.left == 0 => return Ok(()),
                        Ok(()) => {}
                        Err(Met::Failure(failure)) => return Err(failure),
                        Err(Met::Fault(fault)) => self.report(path, position, from, *next, &fault),
                    }
                }
                Step::Damage { position, fault, .. } | Step::TornTail { position, fault, .. } => {
                    damage = Some((position, fault.to_string()));
                }
            }
        }
        let after = segment_end.min(end).max(*next).max(start + 1);
        if let Some((position, fault)) = damage
            && after > *next
        {
            self.report(path, position, *next, after, &fault);
        }
        *next = after;
        Ok(())
    }

    /// Prints the records of a lease; gives the offset to go on from.
    fn lease(
        &mut self,
        partition: &PartitionView,
        lease: &Lease,
        start: i64,
    ) -> Result<i64, Failure> {
        let mut from = 0;
        let mut next = start;
        let mut buffer = std::mem::take(&mut self.buffer);
        for range in lease.ranges() {
            buffer.resize(range.length() as usize, 0);
            lease.copy(from, &mut buffer)?;
            from += u64::from(range.length());
            let place = (range.path(), u64::from(range.position().0));
            let went_on = self.range(partition, place, &buffer, start, &mut next)?;
            if !went_on || self.left == 0 {
                self.buffer = buffer;
                return Ok(next);
            }
        }
        self.buffer = buffer;
        Ok(next.max(lease.next_offset().0))
    }

    /// Prints the batches of one range; false if `next` is now somewhere past the range.
    fn range(
        &mut self,
        partition: &PartitionView,
        (path, position): (&Path, u64),
        bytes: &[u8],
        start: i64,
        next: &mut i64,
    ) -> Result<bool, Failure> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let here = position + at as u64;
            let fault = match Batch::check(rest) {
                Ok(batch) => {
                    at += batch.bytes().len();
                    let from = *next;
                    *next = batch.header().next_offset();
                    match self.batch(partition.name().partition(), &batch, start) {
                        Ok(()) if self.left == 0 => return Ok(true),
                        Ok(()) => continue,
                        Err(Met::Failure(failure)) => return Err(failure),
                        Err(Met::Fault(fault)) => {
                            self.report(path, here, from, *next, &fault);
                            continue;
                        }
                    }
                }
                Err(fault) => fault,
            };
            let survivor = inspect::next_whole_batch(path, here + 1, Offset(*next))?;
            let Some((survivor, offset)) = survivor else {
                self.report(path, here, *next, *next, &fault.to_string());
                return Ok(true);
            };
            self.report(path, here, *next, offset.0, &fault.to_string());
            *next = offset.0;
            let ahead = usize::try_from(survivor - position).unwrap_or(usize::MAX);
            if ahead >= bytes.len() {
                return Ok(false);
            }
            at = ahead;
        }
        Ok(true)
    }

    /// Prints the records of one batch from `start` on.
    fn batch(&mut self, partition: u32, batch: &Batch<'_>, start: i64) -> Result<(), Met> {
        if batch.header().attributes.is_control() {
            return Ok(());
        }
        let decoded = batch.decode().map_err(|fault| Met::Fault(fault.to_string()))?;
        for record in decoded.records() {
            let record = record.map_err(|fault| Met::Fault(fault.to_string()))?;
            if record.offset < start {
                continue;
            }
            self.printer.record(partition, &record).map_err(|e| Met::Failure(e.into()))?;
            self.left -= 1;
            if self.left == 0 {
                self.stopped_at = Some(record.offset + 1);
                break;
            }
        }
        Ok(())
    }

    fn report(&mut self, path: &Path, position: u64, from: i64, to: i64, fault: &str) {
        self.damaged = true;
        // Records before it come first, also where both streams go to one place.
        let _ = self.printer.out.flush();
        let path = path.display();
        let line = format!(
            "damage: {path} at byte {position}: {fault}; offsets {from} to {to} (exclusive) are skipped"
        );
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// What ended a batch early.
enum Met {
    Fault(String),
    Failure(Failure),
}

/// True if whoever read our output has closed it: a quiet topic would otherwise keep us for ever.
fn reader_is_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = rustix::stdio::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok() && fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR))
}
