//! One group of segments becomes one: written beside them, synced, and swapped in by the shard.
//!
//! ```text
//! <base>.log.cleaned, .index.cleaned, … written ─▶ synced ─▶ the steps of log/replace.rs, with a
//! sync of the directory after each
//! ```
//!
//! A crash before the first of those syncs leaves `.cleaned` files, or unfinished `.swap` ones, which
//! the next open removes. After it the next open finishes the swap.

#![forbid(unsafe_code)]

use super::filter::{Fate, Filter};
use super::scan::each_batch;
use super::transactions::{AbortedTxn, Cleaned, fault_at};
use super::{Owner, Tools};
use crate::error::{Error, Result};
use crate::format::BatchHeader;
use crate::io::{FileRef, OpenMode};
use crate::log::{LogShared, Replacement, SwapOrder, SwapState, write_index};
use crate::planted::{Bug, planted};
use crate::segment::{IndexWriter, Segment, SegmentIndex, Tail, names};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes gathered for a write.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes after which what was written is synced: what others wait for on the same disk must not stand
/// behind a gigabyte.
const SYNC_BYTES: u32 = 32 << 20;

/// What cleaning one group brought.
pub(super) struct Swapped {
    pub(super) state: SwapState,
    /// Bytes of the new segment; of the old one if nothing changed.
    pub(super) bytes: u64,
}

/// Cleans neighbours into one segment, which takes their place. `next_base` is the offset where the
/// segment behind them begins.
///
/// # Errors
/// [`Error::NoSpace`] before anything is written if there is no room for a copy; [`Error::Damaged`] if
/// a source is; [`Error::Io`]. Until the swap has begun nothing is left behind.
pub(super) fn clean_group(
    owner: &dyn Owner,
    tools: &Tools<'_>,
    group: &[Arc<Segment>],
    next_base: i64,
    cuts: u64,
    filter: &mut Filter<'_>,
    cleaned: &mut Cleaned<'_>,
) -> Result<Swapped> {
    let shared = owner.shared();
    let bytes: u64 = group.iter().map(|segment| u64::from(segment.tail().bytes)).sum();
    if !shared.space.has_room(bytes) {
        return Err(shared.space.error());
    }
    let Some(base) = group.first().map(|first| first.base_offset()) else {
        return Ok(Swapped { state: SwapState::Done, bytes: 0 });
    };
    let written = Output::create(shared, base).and_then(|mut output| {
        let same = output.fill(tools, group, filter, cleaned)?;
        // One segment of which everything stays is as good as its copy.
        if same && group.len() == 1 {
            return Ok(None);
        }
        output.finish(group, next_base, &cleaned.retained).map(Some)
    });
    cleaned.retained.clear();
    let (segment, suffixes) = match written {
        Ok(Some(written)) => written,
        Ok(None) => {
            remove_cleaned(shared, base);
            return Ok(Swapped { state: SwapState::Done, bytes });
        }
        Err(error) => {
            if matches!(error, Error::NoSpace { .. }) {
                shared.space.ran_out();
            }
            remove_cleaned(shared, base);
            return Err(error);
        }
    };
    let bytes = u64::from(segment.tail().bytes);
    let replacement = Replacement { segment, sources: group.to_vec(), suffixes, cuts };
    let state = take_place(owner, tools, replacement)?;
    Ok(Swapped { state, bytes })
}

/// Has the shard take the steps, and syncs the names after each.
fn take_place(owner: &dyn Owner, tools: &Tools<'_>, replacement: Replacement) -> Result<SwapState> {
    let dir = &owner.shared().dir;
    let mut state = owner.order(SwapOrder::Begin(Box::new(replacement)))?;
    while state == SwapState::SyncNames {
        if !planted(Bug::SourcesBeforeNames)
            && let Err(error) = tools.disk.sync_dir(dir)
        {
            // Past the first step this undoes nothing: the swap is settled later.
            owner.order(SwapOrder::Undo)?;
            return Err(Error::io("sync", dir, error));
        }
        state = owner.order(SwapOrder::Next)?;
    }
    Ok(state)
}

/// A segment that is being written under `.cleaned` names.
struct Output<'a> {
    shared: &'a LogShared,
    base: i64,
    path: PathBuf,
    file: FileRef,
    index: SegmentIndex,
    writer: IndexWriter,
    buffer: Vec<u8>,
    /// Bytes in the file.
    bytes: u32,
    unsynced: u32,
}

impl<'a> Output<'a> {
    fn create(shared: &'a LogShared, base: i64) -> Result<Output<'a>> {
        let path = cleaned_path(shared, base, names::LOG);
        let file = shared
            .open_files
            .disk()
            .open(&path, OpenMode::CreateOrTruncate)
            .map_err(|e| Error::io("create", &path, e))?;
        let (index, writer) = IndexWriter::new(base, shared.config.load().index_interval_bytes);
        let buffer = Vec::with_capacity(WRITE_BYTES);
        Ok(Output { shared, base, path, file, index, writer, buffer, bytes: 0, unsynced: 0 })
    }

    /// Copies what stays of the sources. True if that is all of it, as it was.
    fn fill(
        &mut self,
        tools: &Tools<'_>,
        group: &[Arc<Segment>],
        filter: &mut Filter<'_>,
        cleaned: &mut Cleaned<'_>,
    ) -> Result<bool> {
        let mut same = true;
        for source in group {
            each_batch(self.shared, source, |batch, _| {
                let start = self.buffer.len();
                let fate = filter
                    .apply(batch, cleaned, &mut self.buffer)
                    .map_err(|fault| fault_at(source, batch.header(), fault))?;
                same &= fate == Fate::Same;
                let written = self.buffer.get(start..).unwrap_or_default();
                if fate != Fate::Gone {
                    let header = BatchHeader::read(written)
                        .map_err(|fault| fault_at(source, batch.header(), fault))?;
                    let position = self.position(start)?;
                    self.writer.on_batch(&header, position);
                }
                tools.throttle.spend((batch.bytes().len() + written.len()) as u64)?;
                if self.buffer.len() >= WRITE_BYTES {
                    self.write_out()?;
                }
                Ok(true)
            })?;
        }
        self.write_out()?;
        Ok(same)
    }

    /// Where a byte of the buffer will be in the file.
    fn position(&self, at: usize) -> Result<u32> {
        let end = u64::from(self.bytes) + at as u64;
        u32::try_from(end).ok().filter(|end| *end <= u32::MAX >> 1).ok_or_else(|| {
            // Delete horizons make batches longer by some bytes.
            let reason = "would be over 2147483647 bytes after compaction".to_owned();
            Error::Format { path: self.path.clone(), reason }
        })
    }

    fn write_out(&mut self) -> Result<()> {
        let end = self.position(self.buffer.len())?;
        let failed = |e| Error::io("write", &self.path, e);
        self.file.write_all_at(&self.buffer, self.bytes.into()).map_err(failed)?;
        self.unsynced += end - self.bytes;
        self.bytes = end;
        self.buffer.clear();
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.sync_data().map_err(|e| Error::io("sync", &self.path, e))?;
        }
        Ok(())
    }

    /// Writes the index files and syncs all of it. Gives the segment, and the suffixes of its files.
    fn finish(
        mut self,
        group: &[Arc<Segment>],
        next_base: i64,
        aborted: &[AbortedTxn],
    ) -> Result<(Arc<Segment>, Vec<&'static str>)> {
        self.writer.seal();
        let disk = self.shared.open_files.disk();
        let mut contents = vec![
            (names::INDEX, self.index.offset_file(0)),
            (names::TIME_INDEX, self.index.time_file(0)),
        ];
        if !aborted.is_empty() {
            let mut bytes = Vec::new();
            aborted.iter().for_each(|txn| txn.write(&mut bytes));
            contents.push((names::TXN_INDEX, bytes));
        }
        let mut suffixes = Vec::new();
        for (suffix, content) in contents {
            let path = cleaned_path(self.shared, self.base, suffix);
            let file = write_index(disk.as_ref(), &path, &content, 0)?;
            file.sync_data().map_err(|e| Error::io("sync", &path, e))?;
            suffixes.push(suffix);
        }
        suffixes.push(names::LOG);
        if let Some(last) = group.last() {
            // As old as what it came from: retention goes by it where records have no timestamps.
            let stat = disk.stat(last.path()).map_err(|e| Error::io("stat", last.path(), e))?;
            let set = self.file.set_modified(stat.modified);
            set.map_err(|e| Error::io("set the time of", &self.path, e))?;
        }
        if !planted(Bug::SwapBeforeSync) {
            self.file.sync_data().map_err(|e| Error::io("sync", &self.path, e))?;
        }
        let path = names::path(&self.shared.dir, self.base, names::LOG);
        let segment = Segment::new(path, self.base, Vec::new());
        segment.set_max_timestamp(self.writer.max_timestamp());
        segment.set_index(self.index);
        segment.publish_tail(Tail { end_offset: next_base, bytes: self.bytes });
        // It has another name until the last step.
        segment.pin_file(self.file);
        Ok((Arc::new(segment), suffixes))
    }
}

fn cleaned_path(shared: &LogShared, base: i64, suffix: &str) -> PathBuf {
    names::path(&shared.dir, base, &format!("{suffix}{}", names::CLEANED))
}

/// Frees the space at once; what stays the next open removes.
fn remove_cleaned(shared: &LogShared, base: i64) {
    for suffix in names::SEGMENT_SUFFIXES {
        let path = cleaned_path(shared, base, suffix);
        match shared.open_files.disk().remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(file = %path.display(), %error, "an unfinished file stays for now");
            }
            _ => {}
        }
    }
}
