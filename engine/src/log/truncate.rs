//! Cutting a log at its end: what a follower does with records that its new leader does not have.
//!
//! The order makes every moment safe to crash in. First the offsets are lowered, so that nobody reads
//! on, and the shard writes the lowered recovery point. Then a cut in the journal undoes what it
//! holds past the end; these two the other way round if the end is in synced segments. Then files go, newest first, each removal on disk before the next, so that what
//! a power cut leaves is always a beginning of the log. A crash in between leaves the log cut, whole,
//! or anywhere between; the host, which has no answer yet, cuts it again.

#![forbid(unsafe_code)]

use super::{Ahead, Log};
use crate::error::{Error, Result};
use crate::io::OpenMode;
use crate::segment::{IndexWriter, Scanned, Scanner, Segment, Tail, names};
use std::sync::Arc;

/// Where a log is going to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CutPoint {
    offset: i64,
    segment_base: i64,
    position: u32,
    /// What stays is in synced segment files.
    is_synced: bool,
}

impl CutPoint {
    /// True if the cut must be in the journal before the recovery point is lowered: compaction may
    /// have replaced segments above it, and with the recovery point below them a restart would write
    /// into them what was journalled for others. The journal is not needed for what stays then.
    pub(crate) fn is_in_journal_first(&self) -> bool {
        self.is_synced
    }
}

impl CutPoint {
    /// The beginning of the segment of this base offset.
    pub(super) fn beginning(base_offset: i64) -> CutPoint {
        CutPoint { offset: base_offset, segment_base: base_offset, position: 0, is_synced: true }
    }
}

impl Log {
    /// Finds where a log that ends at `offset` ends in its files, and lowers the offsets to it.
    /// `None` if it ends there or before already. A batch that reaches past `offset` goes whole, and
    /// the next append is given `offset` all the same, as in Kafka.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] below the log start, [`Error::Damaged`], [`Error::Io`].
    pub(crate) fn begin_truncate(&mut self, offset: i64) -> Result<Option<CutPoint>> {
        self.check_usable()?;
        self.check_cut()?;
        let offsets = self.shared.offsets.snapshot();
        if offset >= offsets.log_end {
            return Ok(None);
        }
        if offset < offsets.log_start {
            return Err(self.shared.out_of_range(offset, offsets.log_start, offsets.log_end));
        }
        self.settle_swap()?;
        let segments = self.shared.segments.load_full();
        let at = segments.partition_point(|s| s.base_offset() <= offset).saturating_sub(1);
        let Some(segment) = segments.get(at) else { return Ok(None) };
        let file = segment.file(&self.shared.open_files)?;
        let found = segment.walk_to_offset(&file, 0, offset)?;
        let position = found.map_or(u64::from(segment.tail().bytes), |(position, _)| position);
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        let is_synced = offset <= self.shared.offsets.synced();
        self.lower(offset);
        Ok(Some(CutPoint { offset, segment_base: segment.base_offset(), position, is_synced }))
    }

    /// Nobody gets past `offset` from now on.
    pub(super) fn lower(&mut self, offset: i64) {
        self.shared.note_cut(self.shared.offsets.log_end());
        self.shared.cleaned.on_cut(offset);
        self.shared.offsets.lower(offset);
        self.sync.truncated(offset);
        self.journalled.cut(offset, None);
    }

    /// Hands the cut to the journal; to be durable before [`Log::finish_truncate`].
    pub(crate) fn journal_truncate(&self, cut: &CutPoint, ahead: &mut dyn Ahead) -> bool {
        // Compaction may have moved what was journalled for this segment: of what is synced anyway the
        // journal keeps nothing, so that no entry is left whose position is not true any more.
        let position = if cut.is_synced { 0 } else { cut.position };
        self.cut_in_journal(ahead, cut.segment_base, position, cut.offset)
    }

    /// Cuts the files. On an error the log takes no more appends: reopen, and truncate again.
    pub(crate) fn finish_truncate(&mut self, cut: &CutPoint) -> Result<()> {
        let done = self.cut_files(cut).and_then(|()| self.check_alive());
        if done.is_err() {
            self.doubt();
            self.failed = Some("truncate");
        }
        self.shared.watchers.notify();
        done
    }

    fn cut_files(&mut self, cut: &CutPoint) -> Result<()> {
        let mut list = self.shared.segments.load().to_vec();
        while list.last().is_some_and(|last| last.base_offset() > cut.segment_base) {
            let Some(newest) = list.pop() else { break };
            self.retire(newest)?;
            self.sync_dir()?;
        }
        let Some(last) = list.pop() else { return Ok(()) };
        self.sync.forget(&last);
        let path = last.path().to_owned();
        let stat = self.disk.stat(&path).map_err(|e| Error::io("look at", &path, e))?;
        if stat.links > 1 {
            self.make_own(&last, cut.position)?;
        }
        let file = self
            .disk
            .open(&path, OpenMode::ReadWrite)
            .map_err(|e| Error::io("open for writing", &path, e))?;
        file.set_len(cut.position.into()).map_err(|e| Error::io("cut", &path, e))?;
        file.sync_data().map_err(|e| Error::io("sync", &path, e))?;

        // Published entries cannot be taken back, so the segment starts anew for its readers.
        let base = cut.segment_base;
        let interval_bytes = self.shared.config.load().index_interval_bytes;
        let (index, mut writer) = IndexWriter::new(base, interval_bytes);
        let mut first_timestamp = None;
        let mut scanner = Scanner::new(Arc::clone(&file), base, 0, base, cut.position.into());
        while let Scanned::Batch { position, batch } =
            scanner.step().map_err(|e| Error::io("read", &path, e))?
        {
            first_timestamp.get_or_insert(batch.header().base_timestamp);
            writer.on_batch(batch.header(), u32::try_from(position).unwrap_or(u32::MAX));
        }
        for suffix in [names::INDEX, names::TIME_INDEX] {
            let path = names::path(&self.shared.dir, base, suffix);
            super::write_index(self.disk.as_ref(), &path, &[], 0)?;
        }
        let segment = Segment::new(path, base, last.damaged().to_vec());
        if scanner.position() == u64::from(cut.position) {
            segment.trust_from(0);
        }
        segment.set_index(index);
        segment.set_max_timestamp(writer.max_timestamp());
        segment.publish_tail(Tail { end_offset: cut.offset, bytes: cut.position });
        segment.pin_file(Arc::clone(&file));
        last.close_file();
        let segment = Arc::new(segment);
        self.active.segment = Arc::clone(&segment);
        self.active.file = Some(file);
        self.active.index = writer;
        self.active.entries_on_disk = (0, 0);
        self.active.bytes = cut.position;
        self.active.first_timestamp = first_timestamp;
        self.active.indexed_bytes = cut.position;
        self.active.written_back = cut.position;
        self.active.cut_back = false;
        list.push(segment);
        self.shared.segments.store(Arc::new(list));
        self.shared.offsets.truncate(cut.offset);
        if self.epochs.truncate_suffix(cut.offset) {
            self.store_epochs()?;
        }
        self.load_producers(super::Trust::UpToLogEnd)
    }
}
