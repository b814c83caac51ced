//! Everything that can be checked of a partition's directory, without changing it.

#![forbid(unsafe_code)]

use super::{
    LogWalk, OffsetIndex, Step, TimeIndex, aborted_transactions, check_stored_records,
    leader_epochs, offset_checkpoint, producer_snapshot, topic_id,
};
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::format::BatchHeader;
use crate::offset::{LeaderEpoch, Offset};
use crate::segment::names;
use std::path::{Path, PathBuf};

/// An index without a single entry is a fault if its log has more than this: with Kafka's default
/// interval an entry is due after 4 KiB; larger intervals are rare and harmless.
const UNINDEXED_BYTES_MAX: u64 = 16 << 20;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// As it may be while a writer is at work or after it was killed; the next open mends it.
    Note,
    /// Bytes on disk are not what was written.
    Damage,
}

/// Something found in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub position: Option<u64>,
    /// The offsets it is about, the second exclusive.
    pub offsets: Option<(Offset, Offset)>,
    /// What was found.
    pub what: String,
    /// What to do.
    pub advice: &'static str,
}

/// In which state the directory is: it decides what is damage and what is work in progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Closed cleanly: everything must be whole.
    Clean,
    /// Not closed cleanly, or open in another process: the last segment may end in the middle of a
    /// write and index files may lag behind.
    InUse,
}

/// What [`verify_partition`] found.
#[derive(Clone, Debug, Default)]
pub struct PartitionFindings {
    /// Segments walked.
    pub segments: usize,
    /// Whole batches.
    pub batches: u64,
    /// Their records.
    pub records: u64,
    /// Bytes of `.log` files.
    pub bytes: u64,
    /// Entries of both indexes.
    pub index_entries: u64,
    /// Everything that was found.
    pub findings: Vec<Finding>,
}

const RESTORE: &str = "restore the range from a replica or a backup; the rest can be read";
const REBUILD: &str = "remove the index file while the log is closed: the next open builds it anew";
const NEXT_OPEN: &str = "nothing: the next open mends it";

/// Checks every byte of a partition's directory. `progress` is told the bytes walked since its last
/// call, and may stop the check by giving false.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`]: what could not be read. Damage is not an error here.
pub fn verify_partition(
    dir: &Path,
    state: State,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<PartitionFindings> {
    let mut files: Vec<String> = Vec::new();
    let disk = super::disk_of(&dir.join("x"))?;
    for entry in disk.list(dir).map_err(|e| Error::io("list", dir, e))? {
        files.push(entry.name);
    }
    files.sort();
    let mut check = Check { dir, state, epochs: Vec::new(), found: PartitionFindings::default() };
    match leader_epochs(dir) {
        Ok(epochs) => check.epochs = epochs,
        Err(error) => {
            check.unreadable(error, "restore it, or remove it: batches have the epochs too")?
        }
    }
    if let Err(error) = topic_id(dir) {
        check.unreadable(
            error,
            "restore the file: Kafka gives a topic without an id away as stray",
        )?;
    }
    for name in &files {
        let path = dir.join(name);
        let outcome = if name.ends_with(names::SNAPSHOT) {
            producer_snapshot(&path).map(drop)
        } else if name.ends_with(names::TXN_INDEX) {
            aborted_transactions(&path).map(drop)
        } else {
            continue;
        };
        if let Err(error) = outcome {
            check.unreadable(
                error,
                "remove the file while the log is closed: it is made from the log",
            )?;
        }
    }
    let bases: Vec<i64> = files.iter().filter_map(|n| names::base_offset(n, names::LOG)).collect();
    let mut expected = None;
    for (number, base) in bases.iter().enumerate() {
        let next = bases.get(number + 1).copied();
        let Some(end) = check.segment(*base, next, progress)? else { break };
        if expected.is_some_and(|expected| expected < *base) {
            let offsets = expected.map(|e| (Offset(e), Offset(*base)));
            let path = names::path(dir, *base, names::LOG);
            let what = "offsets before this segment are in none".to_owned();
            let advice = "nothing if the topic is compacted; else a segment file is missing";
            check.add(Severity::Note, path, None, offsets, what, advice);
        }
        expected = Some(end);
    }
    Ok(check.found)
}

/// Checks one of Kafka's text files by its name; names that are not known pass.
///
/// # Errors
/// [`Error::Format`] with what is wrong, [`Error::Io`].
pub fn verify_text_file(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    match path.file_name().and_then(|name| name.to_str()).unwrap_or_default() {
        checkpoint::LEADER_EPOCHS => leader_epochs(dir).map(drop),
        checkpoint::PARTITION_METADATA => topic_id(dir).map(drop),
        name if name.ends_with("-offset-checkpoint") => offset_checkpoint(path).map(drop),
        _ => Ok(()),
    }
}

struct Check<'a> {
    dir: &'a Path,
    state: State,
    epochs: Vec<(LeaderEpoch, Offset)>,
    found: PartitionFindings,
}

impl Check<'_> {
    fn add(
        &mut self,
        severity: Severity,
        path: PathBuf,
        position: Option<u64>,
        offsets: Option<(Offset, Offset)>,
        what: String,
        advice: &'static str,
    ) {
        self.found.findings.push(Finding { severity, path, position, offsets, what, advice });
    }

    /// A file that does not parse is a finding; one that cannot be read is an error.
    fn unreadable(&mut self, error: Error, advice: &'static str) -> Result<()> {
        match error {
            Error::Format { path, reason } => {
                self.add(Severity::Damage, path, None, None, reason, advice);
                Ok(())
            }
            // Deleted since it was listed: retention, or a writer's housekeeping.
            Error::NotFound { .. } => Ok(()),
            error => Err(error),
        }
    }

    /// Walks one segment; gives the offset after it, or `None` if `progress` said stop.
    fn segment(
        &mut self,
        base: i64,
        next_base: Option<i64>,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Option<i64>> {
        let path = names::path(self.dir, base, names::LOG);
        let may_lag = self.state == State::InUse && next_base.is_none();
        // Indexes before the log: a live writer's entries are then for bytes that are there.
        let mut offsets = self.index(base, names::INDEX, may_lag, OffsetIndex::read)?;
        let mut times = self.index(base, names::TIME_INDEX, may_lag, TimeIndex::read)?;
        let mut walk = match LogWalk::open(&path) {
            Err(Error::NotFound { .. }) => return Ok(Some(base)),
            walk => walk?,
        };
        self.found.segments += 1;
        let (mut told, mut epoch, mut batches) = (0, -1, 0_u64);
        let mut last_damage = None;
        loop {
            match walk.step()? {
                None => break,
                Some(Step::Batch { position, batch }) => {
                    let header = *batch.header();
                    if let Some(number) = std::mem::take(&mut last_damage) {
                        self.close_damage(number, header.base_offset);
                        times.on_damage(header.base_offset);
                    }
                    batches += 1;
                    match check_stored_records(&batch) {
                        Ok(records) => self.found.records += records as u64,
                        Err(fault) => {
                            let range = (Offset(header.base_offset), Offset(header.next_offset()));
                            let what = format!("the records are not sound: {fault}");
                            let at = Some(position);
                            self.add(
                                Severity::Damage,
                                path.clone(),
                                at,
                                Some(range),
                                what,
                                RESTORE,
                            );
                        }
                    }
                    offsets.on_batch(position, &header);
                    times.on_batch(&header);
                    self.batch_in_place(&path, position, &header, next_base, &mut epoch);
                }
                Some(Step::Damage { position, end, offset, fault }) => {
                    offsets.on_damage(position, end);
                    last_damage = Some(self.found.findings.len());
                    let what = format!("{} bytes are no batch: {fault}", end - position);
                    let range = Some((offset, offset));
                    self.add(Severity::Damage, path.clone(), Some(position), range, what, RESTORE);
                }
                Some(Step::TornTail { position, offset, fault }) => {
                    offsets.on_damage(position, u64::MAX);
                    times.on_damage(i64::MAX);
                    let (severity, advice) = match may_lag {
                        true => (Severity::Note, NEXT_OPEN),
                        false => (Severity::Damage, RESTORE),
                    };
                    let range = (offset, Offset(next_base.unwrap_or(offset.0)));
                    let what = format!("the end of the file is no batch: {fault}");
                    self.add(severity, path.clone(), Some(position), Some(range), what, advice);
                }
            }
            let walked = walk.position();
            if !progress(walked - told) {
                return Ok(None);
            }
            told = walked;
        }
        offsets.finish();
        times.finish();
        self.found.batches += batches;
        self.found.bytes += walk.bytes();
        self.found.index_entries += (offsets.entries().len() + times.entries().len()) as u64;
        self.index_faults(base, &offsets, &times, batches, walk.bytes(), may_lag);
        Ok(Some(walk.next_offset().0))
    }

    /// The end of a damaged stretch is known when the next batch is.
    fn close_damage(&mut self, number: usize, next_offset: i64) {
        if let Some(finding) = self.found.findings.get_mut(number)
            && let Some((_, end)) = &mut finding.offsets
        {
            *end = Offset(next_offset);
        }
    }

    /// Offsets below the next segment, and the leader epoch the checkpoint says.
    fn batch_in_place(
        &mut self,
        path: &Path,
        position: u64,
        header: &BatchHeader,
        next_base: Option<i64>,
        epoch: &mut i32,
    ) {
        let range = Some((Offset(header.base_offset), Offset(header.next_offset())));
        let mut wrong = Vec::new();
        if next_base.is_some_and(|next| header.last_offset() >= next) {
            let last = header.last_offset();
            let next = next_base.unwrap_or_default();
            wrong.push(format!(
                "offset {last} belongs into the next segment, which starts at {next}"
            ));
        }
        if header.leader_epoch >= 0 && header.leader_epoch < *epoch {
            let found = header.leader_epoch;
            wrong.push(format!("leader epoch {found} comes after {epoch}"));
        }
        *epoch = header.leader_epoch.max(*epoch);
        let known = self.epochs.iter().rev().find(|(_, start)| start.0 <= header.last_offset());
        if let Some((known, _)) = known
            && self.state == State::Clean
            && header.leader_epoch >= 0
            && known.0 != header.leader_epoch
        {
            let found = header.leader_epoch;
            wrong
                .push(format!("leader epoch is {found}, leader-epoch-checkpoint says {}", known.0));
        }
        for what in wrong {
            self.add(Severity::Damage, path.to_owned(), Some(position), range, what, RESTORE);
        }
    }

    fn index<T: Default>(
        &mut self,
        base: i64,
        suffix: &str,
        may_lag: bool,
        read: impl Fn(&Path) -> Result<T>,
    ) -> Result<T> {
        let path = names::path(self.dir, base, suffix);
        match read(&path) {
            Err(Error::NotFound { .. }) => {
                let severity = if may_lag { Severity::Note } else { Severity::Damage };
                let what = "the index file is missing".to_owned();
                self.add(severity, path, None, None, what, NEXT_OPEN);
                Ok(T::default())
            }
            Err(error @ Error::Format { .. }) => {
                self.unreadable(error, REBUILD)?;
                Ok(T::default())
            }
            read => read,
        }
    }

    fn index_faults(
        &mut self,
        base: i64,
        offsets: &OffsetIndex,
        times: &TimeIndex,
        batches: u64,
        bytes: u64,
        may_lag: bool,
    ) {
        let offset_path = names::path(self.dir, base, names::INDEX);
        let time_path = names::path(self.dir, base, names::TIME_INDEX);
        let severity = if may_lag { Severity::Note } else { Severity::Damage };
        let advice = if may_lag { NEXT_OPEN } else { REBUILD };
        let both = [
            (&offset_path, offsets.faults(), offsets.zero_bytes()),
            (&time_path, times.faults(), times.zero_bytes()),
        ];
        for (path, faults, zero_bytes) in both {
            for fault in faults {
                let entry = fault.entry.map_or(String::new(), |entry| format!("entry {entry} "));
                let what = format!("{entry}{}", fault.reason);
                let position = Some(fault.position);
                self.add(Severity::Damage, path.clone(), position, None, what, REBUILD);
            }
            if zero_bytes > 0 {
                let what = format!("{zero_bytes} zero bytes behind the last entry");
                self.add(severity, path.clone(), None, None, what, advice);
            }
        }
        let is_empty = |path: &PathBuf, entries: usize| path.exists() && entries == 0;
        if is_empty(&offset_path, offsets.entries().len())
            && batches > 1
            && bytes > UNINDEXED_BYTES_MAX
        {
            let what = format!("no entry for {bytes} bytes of log");
            self.add(severity, offset_path, None, None, what, advice);
        }
        if is_empty(&time_path, times.entries().len()) && !offsets.entries().is_empty() {
            let what = "no entry, though the offset index has some".to_owned();
            self.add(severity, time_path, None, None, what, advice);
        }
    }
}
