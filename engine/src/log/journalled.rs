//! Which part of a log is in the journal.
//!
//! The journal holds stretches of a log that continue each other. They begin where a sync ended; an
//! append that nobody waits for leaves a gap, which the next one that somebody does wait for closes,
//! by handing the bytes between to the journal as well: durable means the whole prefix.

#![forbid(unsafe_code)]

use super::Log;
use crate::error::Error;
use crate::journal::{EntryKind, Stretch};

/// A longer gap is left to a sync of the segments: that many bytes are not read back.
const GAP_BYTES_MAX: u32 = 256 << 10;

/// Takes what is on its way to a segment, to make it durable sooner than the segment is.
pub(crate) trait Ahead {
    /// Takes a stretch of the log. False if it cannot: then only a sync makes it durable.
    fn take(&mut self, stretch: &Stretch<'_>, bytes: &[u8]) -> bool;
}

/// How far the journal, with the syncs before it, covers the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Journalled {
    /// Everything below has been handed to the journal or synced.
    offset: i64,
    /// Where that is in the active segment; `None` if it is in an earlier one.
    position: Option<u32>,
    /// A stretch whose write failed after the journal had it: appends wait until a cut undoes it.
    undo: Option<Undo>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Undo {
    segment_base: i64,
    position: u32,
    offset: i64,
}

impl Journalled {
    pub(super) fn new(synced: i64) -> Journalled {
        Journalled { offset: synced, position: None, undo: None }
    }

    /// A sync has covered everything below `up_to`, which is at `position` of the active segment.
    pub(super) fn on_synced(&mut self, up_to: i64, position: Option<u32>) {
        if up_to > self.offset || (up_to == self.offset && self.position.is_none()) {
            self.offset = up_to;
            self.position = position;
        }
    }

    /// A new segment is active, which starts at `log_end`.
    pub(super) fn on_rolled(&mut self, log_end: i64) {
        self.position = (self.offset == log_end).then_some(0);
    }

    /// Nothing past `offset` is covered.
    pub(super) fn cut(&mut self, offset: i64, position: Option<u32>) {
        if self.offset >= offset {
            self.offset = offset;
            self.position = position;
        }
    }
}

impl Log {
    /// True if all that is written has been handed to the journal or synced.
    pub(crate) fn is_journalled(&self) -> bool {
        self.journalled.offset >= self.shared.offsets.log_end()
    }

    /// Everything below is on disk when the frames under way have completed.
    pub(crate) fn journalled_offset(&self) -> i64 {
        self.journalled.offset
    }

    /// Hands to the journal what was written without it. False if that is too much, or it is full.
    pub(crate) fn journal_gap(&mut self, ahead: &mut dyn Ahead) -> bool {
        let log_end = self.shared.offsets.log_end();
        if self.journalled.offset >= log_end {
            return true;
        }
        let Some(from) = self.journalled.position else { return false };
        let Some(length) = self.active.bytes.checked_sub(from).filter(|l| *l <= GAP_BYTES_MAX)
        else {
            return false;
        };
        let mut bytes = vec![0; length as usize];
        let Ok(file) = self.active_file() else { return false };
        if let Err(error) = file.read_exact_at(&mut bytes, from.into()) {
            tracing::warn!(partition = %self.shared.name, %error, "cannot read back for the journal");
            return false;
        }
        let offset = self.journalled.offset;
        self.hand_over(ahead, from, offset, log_end, &bytes)
    }

    /// Hands one stretch to the journal, if it continues what the journal has.
    pub(super) fn hand_over(
        &mut self,
        ahead: &mut dyn Ahead,
        position: u32,
        offset: i64,
        next_offset: i64,
        bytes: &[u8],
    ) -> bool {
        let stretch = Stretch {
            kind: EntryKind::Append,
            partition: &self.shared.name,
            topic_id: self.shared.topic_id,
            segment_base: self.active.segment.base_offset(),
            position,
            offset,
            next_offset,
        };
        let taken = ahead.take(&stretch, bytes);
        if taken {
            self.journalled.offset = next_offset;
            self.journalled.position =
                Some(position + u32::try_from(bytes.len()).expect("a segment is under 2 GiB"));
        }
        taken
    }

    /// The write of a stretch that the journal has failed: its entry must not be replayed over what
    /// comes in its place.
    pub(super) fn undo_hand_over(&mut self, position: u32, offset: i64) {
        let segment_base = self.active.segment.base_offset();
        self.journalled.cut(offset, Some(position));
        self.journalled.undo = Some(Undo { segment_base, position, offset });
    }

    /// True while appends wait for a cut in the journal.
    pub(crate) fn wants_cut(&self) -> bool {
        self.journalled.undo.is_some()
    }

    /// Hands the cut to the journal.
    pub(crate) fn journal_cut(&mut self, ahead: &mut dyn Ahead) -> bool {
        let Some(undo) = self.journalled.undo else { return true };
        self.cut_in_journal(ahead, undo.segment_base, undo.position, undo.offset)
    }

    pub(super) fn cut_in_journal(
        &self,
        ahead: &mut dyn Ahead,
        segment_base: i64,
        position: u32,
        offset: i64,
    ) -> bool {
        let stretch = Stretch {
            kind: EntryKind::Cut,
            partition: &self.shared.name,
            topic_id: self.shared.topic_id,
            segment_base,
            position,
            offset,
            next_offset: offset,
        };
        ahead.take(&stretch, &[])
    }

    /// The cut is on disk: appends go on.
    pub(crate) fn on_cut(&mut self) {
        self.journalled.undo = None;
    }

    /// Everything below `offset` is on disk, in the journal.
    pub(crate) fn on_journalled(&mut self, offset: i64) {
        let offset = offset.min(self.shared.offsets.log_end());
        self.shared.offsets.advance_durable(offset);
    }

    /// The journal failed: what it had and did not acknowledge counts for nothing.
    pub(crate) fn on_journal_lost(&mut self) {
        self.journalled.cut(self.shared.offsets.durable(), None);
        if self.journalled.undo.is_some() {
            self.failed = Some("write");
        }
    }

    /// The error of appends that wait for a cut.
    pub(super) fn check_cut(&self) -> Result<(), Error> {
        match self.journalled.undo {
            None => Ok(()),
            Some(_) => Err(Error::Busy { partition: self.shared.name.to_string(), queued: 0 }),
        }
    }
}
