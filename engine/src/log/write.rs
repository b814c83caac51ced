//! Appends: validate what depends on the log, assign offsets, write a tick's batches at once.

#![forbid(unsafe_code)]

use super::{Ahead, Log};
use crate::error::{Error, Result};
use crate::format::{BatchHeader, stamp};
use crate::offset::{LeaderEpoch, Offset};
use crate::segment::Tail;
use bytes::Bytes;
use std::ops::Range;

/// Bytes gathered for one write. Past this a larger write gains nothing (docs/PERFORMANCE.md), and
/// the buffer still fits a core's second-level cache with what the kernel copies it to.
const STAGING_BYTES: usize = 1 << 20;

/// Who assigns the offsets of an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AppendOrigin {
    /// This log: base offsets follow the log end, batches are stamped with the epoch (`None`: the
    /// latest the partition knows).
    Leader(Option<i32>),
    /// A transaction coordinator, by this log's leader: the batch is a marker.
    Marker { leader_epoch: Option<i32>, transaction_version: i16 },
    /// A leader elsewhere: offsets and epochs are in the batches, and must continue the log.
    Follower,
}

/// One append on its way through a shard: whole batches, checked by the caller's thread.
pub(crate) struct AppendRequest<R> {
    pub(crate) bytes: Bytes,
    pub(crate) origin: AppendOrigin,
    /// Where the answer goes; the log only carries it.
    pub(crate) reply: R,
}

/// What became of one request.
pub(crate) struct WriteOutcome<R> {
    pub(crate) reply: R,
    pub(crate) result: Result<Written>,
}

/// Offsets and epoch that an append got.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Written {
    pub(crate) base_offset: i64,
    pub(crate) last_offset: i64,
    pub(crate) leader_epoch: i32,
    /// The offsets are those of batches that were there already.
    pub(crate) duplicate: bool,
}

/// A shard's buffer for what its logs are about to write: each has a stretch of it.
pub(crate) struct Staging<R> {
    bytes: Vec<u8>,
    /// Header and position in the segment of each batch in `bytes`.
    batches: Vec<(BatchHeader, u32)>,
    /// Who waits; taken out as soon as it is known what to say.
    replies: Vec<Option<(R, Written)>>,
}

impl<R> Default for Staging<R> {
    fn default() -> Staging<R> {
        Staging { bytes: Vec::new(), batches: Vec::new(), replies: Vec::new() }
    }
}

impl<R> Staging<R> {
    /// True if more should be written before more is staged.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= STAGING_BYTES
    }

    /// Forgets all of it; everything staged has been finished.
    pub(crate) fn clear(&mut self) {
        debug_assert!(self.replies.iter().all(Option::is_none), "somebody was not answered");
        self.cut(&Stretches::default());
    }

    fn end(&self) -> Stretches {
        Stretches {
            bytes: self.bytes.len(),
            batches: self.batches.len(),
            replies: self.replies.len(),
        }
    }

    fn cut(&mut self, to: &Stretches) {
        self.bytes.truncate(to.bytes);
        self.batches.truncate(to.batches);
        self.replies.truncate(to.replies);
    }
}

/// A place in the staging buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Stretches {
    bytes: usize,
    batches: usize,
    replies: usize,
}

/// What one log has in the staging buffer: its part of it, and the offsets it will have.
#[must_use = "it must be finished"]
pub(crate) struct Staged {
    from: Stretches,
    to: Stretches,
    next_offset: i64,
    /// The journal has it.
    handed_over: bool,
}

impl Staged {
    fn bytes(&self) -> Range<usize> {
        self.from.bytes..self.to.bytes
    }
}

impl Log {
    /// Stages all requests in order, and hands them to the journal (`ahead`) as far as that has room
    /// ([`Log::is_journalled`] tells). A request that is refused leaves no trace, and the next one
    /// takes its offsets. What fills the buffer or a segment is written at once.
    ///
    /// The caller must [`Log::finish`] what it gets before anything else touches the log.
    pub(crate) fn stage<R>(
        &mut self,
        requests: impl IntoIterator<Item = AppendRequest<R>>,
        staging: &mut Staging<R>,
        mut ahead: Option<&mut dyn Ahead>,
        outcomes: &mut Vec<WriteOutcome<R>>,
    ) -> Staged {
        if let Some(ahead) = ahead.as_deref_mut() {
            self.journal_gap(ahead);
        }
        self.sweep_producers();
        let (from, next_offset) = (staging.end(), self.shared.offsets.log_end());
        let mut staged = Staged { from, to: from, next_offset, handed_over: false };
        for request in requests {
            match self.duplicate_of(&request) {
                Ok(None) => {}
                // The batch it repeats is still to be written: they share its fate.
                Ok(Some(found)) if found.last_offset >= self.shared.offsets.log_end() => {
                    staging.replies.push(Some((request.reply, found)));
                    staged.to = staging.end();
                    continue;
                }
                found => {
                    let result = found.map(|found| found.unwrap_or_default());
                    outcomes.push(WriteOutcome { reply: request.reply, result });
                    continue;
                }
            }
            let room = reborrow(&mut ahead);
            let placed = self
                .make_room(&request.bytes, staging, &mut staged, room, outcomes)
                .and_then(|()| self.place(&request, staging, &staged));
            match placed {
                Ok(written) => {
                    staged.next_offset = written.last_offset + 1;
                    staging.replies.push(Some((request.reply, written)));
                    staged.to = staging.end();
                }
                Err(error) => {
                    outcomes.push(WriteOutcome { reply: request.reply, result: Err(error) });
                }
            }
        }
        self.hand_over_staged(staging, &mut staged, ahead);
        staged
    }

    /// Writes what was staged: one write; then index, tail, log end, in this order.
    pub(crate) fn finish<R>(
        &mut self,
        mut staged: Staged,
        staging: &mut Staging<R>,
        outcomes: &mut Vec<WriteOutcome<R>>,
    ) {
        self.write_staged(staging, &mut staged, outcomes);
        self.refresh_index_files();
    }

    /// Writes what is staged if the request would overfill the buffer or needs a new segment.
    fn make_room<R>(
        &mut self,
        bytes: &Bytes,
        staging: &mut Staging<R>,
        staged: &mut Staged,
        ahead: Option<&mut dyn Ahead>,
        outcomes: &mut Vec<WriteOutcome<R>>,
    ) -> Result<()> {
        self.check_usable()?;
        self.check_cut()?;
        if !self.shared.space.admits(bytes.len() as u64) {
            return Err(self.shared.space.error());
        }
        let length = staged.bytes().len();
        let full = length > 0 && length + bytes.len() > STAGING_BYTES;
        let roll_due = self.is_roll_due_for(bytes, staging, staged)?;
        if full || roll_due {
            self.hand_over_staged(staging, staged, ahead);
            self.write_staged(staging, staged, outcomes);
            staging.cut(&staged.from);
            staged.to = staged.from;
            staged.handed_over = false;
            self.check_usable()?;
            self.check_cut()?;
        }
        if roll_due && self.active.bytes > 0 {
            // What was staged may have failed and left its offsets to us, and the segment empty.
            self.roll(self.shared.offsets.log_end())?;
        }
        Ok(())
    }

    fn is_roll_due_for<R>(
        &self,
        bytes: &Bytes,
        staging: &Staging<R>,
        staged: &Staged,
    ) -> Result<bool> {
        let header = BatchHeader::read(bytes).map_err(|fault| Error::InvalidBatch {
            partition: self.shared.name.to_string(),
            position: 0,
            fault,
        })?;
        let first = staging.batches.get(staged.from.batches);
        Ok(self.is_roll_due(
            staged.bytes().len() as u64,
            bytes.len() as u64,
            first.map(|(header, _)| header.base_timestamp),
            &header,
            staged.next_offset,
        ))
    }

    /// Copies a request's batches behind what is staged, with their offsets and epoch.
    fn place<R>(
        &mut self,
        request: &AppendRequest<R>,
        staging: &mut Staging<R>,
        staged: &Staged,
    ) -> Result<Written> {
        let placed = self.place_batches(request, staging, staged);
        self.decide_producers(placed.is_ok());
        if placed.is_err() {
            staging.cut(&staged.to);
        }
        placed
    }

    fn place_batches<R>(
        &mut self,
        request: &AppendRequest<R>,
        staging: &mut Staging<R>,
        staged: &Staged,
    ) -> Result<Written> {
        let mut next_offset = staged.next_offset;
        let leader_epoch = match request.origin {
            AppendOrigin::Leader(epoch) | AppendOrigin::Marker { leader_epoch: epoch, .. } => {
                Some(self.leader_epoch(epoch)?)
            }
            AppendOrigin::Follower => None,
        };
        let mut first = None;
        let mut epoch = 0;
        let start = staging.bytes.len();
        staging.bytes.extend_from_slice(&request.bytes);
        let mut rest = staging.bytes.get_mut(start..).unwrap_or_default();
        let before = u32::try_from(staged.bytes().len()).unwrap_or(u32::MAX);
        let mut position = self.active.bytes + before;
        while !rest.is_empty() {
            let mut header = BatchHeader::read(rest).map_err(|fault| Error::InvalidBatch {
                partition: self.shared.name.to_string(),
                position: request.bytes.len() - rest.len(),
                fault,
            })?;
            let (batch, tail) = rest.split_at_mut(header.total_bytes().min(rest.len()));
            match leader_epoch {
                Some(leader_epoch) => {
                    stamp(batch, next_offset, leader_epoch);
                    header.base_offset = next_offset;
                    header.leader_epoch = leader_epoch;
                }
                None if header.base_offset < next_offset => {
                    return Err(Error::OffsetMismatch {
                        partition: self.shared.name.to_string(),
                        expected: Offset(next_offset),
                        found: Offset(header.base_offset),
                    });
                }
                None => {}
            }
            self.try_producer(&header, batch, request.origin)?;
            self.assign_epoch(header.leader_epoch.max(0), header.base_offset)?;
            first.get_or_insert(header.base_offset);
            epoch = header.leader_epoch;
            next_offset = header.next_offset();
            staging.batches.push((header, position));
            position += u32::try_from(header.total_bytes()).unwrap_or(u32::MAX);
            rest = tail;
        }
        Ok(Written {
            base_offset: first.unwrap_or(next_offset),
            last_offset: next_offset - 1,
            leader_epoch: epoch,
            duplicate: false,
        })
    }

    /// The epoch to stamp, if it is not older than one that was seen.
    pub(super) fn leader_epoch(&self, given: Option<i32>) -> Result<i32> {
        let current = self.epochs.latest().unwrap_or(0).max(self.shared.leader_epoch.get());
        match given {
            Some(given) if given < current => Err(Error::EpochFenced {
                partition: self.shared.name.to_string(),
                given: LeaderEpoch(given),
                current: LeaderEpoch(current),
            }),
            Some(given) => Ok(given),
            None => Ok(current),
        }
    }

    /// Notes a new epoch before its first batch is written, as Kafka does: an entry past the log
    /// end is cut at the next open, a missing one could not be made up.
    fn assign_epoch(&mut self, epoch: i32, start: i64) -> Result<()> {
        if self.epochs.latest() == Some(epoch) {
            return Ok(());
        }
        let before = self.epochs.clone();
        if self.epochs.assign(epoch, start)
            && let Err(error) = self.store_epochs()
        {
            self.epochs = before;
            return Err(error);
        }
        self.shared.leader_epoch.raise(epoch);
        Ok(())
    }

    /// Hands what is staged to the journal, whose write is then under way while the page cache
    /// takes the bytes.
    fn hand_over_staged<R>(
        &mut self,
        staging: &Staging<R>,
        staged: &mut Staged,
        ahead: Option<&mut dyn Ahead>,
    ) {
        let bytes = staging.bytes.get(staged.bytes()).unwrap_or_default();
        let (position, log_end) = (self.active.bytes, self.shared.offsets.log_end());
        staged.handed_over = !bytes.is_empty()
            && self.is_journalled()
            && ahead.is_some_and(|ahead| {
                self.hand_over(ahead, position, log_end, staged.next_offset, bytes)
            });
    }

    fn write_staged<R>(
        &mut self,
        staging: &mut Staging<R>,
        staged: &mut Staged,
        outcomes: &mut Vec<WriteOutcome<R>>,
    ) {
        let bytes = staging.bytes.get(staged.bytes()).unwrap_or_default();
        if bytes.is_empty() {
            return;
        }
        let (position, log_end) = (self.active.bytes, self.shared.offsets.log_end());
        let result = self.write_bytes(bytes);
        if result.is_ok() {
            let batches = staging.batches.get(staged.from.batches..staged.to.batches);
            self.before_publish();
            self.publish(batches.unwrap_or_default(), bytes.len(), staged.next_offset);
            self.after_publish();
        } else {
            self.on_producers_failed();
            if staged.handed_over {
                self.undo_hand_over(position, log_end);
            }
            staged.next_offset = log_end;
        }
        let replies = staging.replies.get_mut(staged.from.replies..staged.to.replies);
        for (reply, written) in replies.unwrap_or_default().iter_mut().filter_map(Option::take) {
            let result = match &result {
                Ok(()) => Ok(written),
                Err(error) => Err(error.repeat()),
            };
            outcomes.push(WriteOutcome { reply, result });
        }
    }

    /// Writes at the end of the active segment. On failure the file ends where it did before.
    fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let file = self.active_file()?;
        let position = u64::from(self.active.bytes);
        let Err(error) = file.write_all_at(bytes, position) else { return Ok(()) };
        self.active.cut_back = true;
        // Bytes past the published end would be taken for a torn tail at the next open, or worse,
        // for batches: whole ones that nobody was promised.
        if let Err(cut) = file.set_len(position) {
            tracing::error!(partition = %self.shared.name, %cut, "cannot cut a failed write away");
            self.failed = Some("write");
        }
        let error = Error::io("write", self.active.segment.path(), error);
        if matches!(error, Error::NoSpace { .. }) {
            self.shared.space.ran_out();
        }
        Err(error)
    }

    fn publish(&mut self, batches: &[(BatchHeader, u32)], bytes: usize, next_offset: i64) {
        for (header, position) in batches {
            self.active.index.on_batch(header, *position);
        }
        if let Some((first, _)) = batches.first() {
            self.active.first_timestamp.get_or_insert(first.base_timestamp);
        }
        self.active.bytes += u32::try_from(bytes).expect("a segment is under 2 GiB");
        self.sync.written(bytes as u64);
        let segment = &self.active.segment;
        segment.set_max_timestamp(self.active.index.max_timestamp());
        segment.publish_tail(Tail { end_offset: next_offset, bytes: self.active.bytes });
        self.shared.offsets.advance_written(next_offset);
        if self.shared.config.load().high_watermark == crate::config::HighWatermark::FollowsLogEnd {
            self.shared.offsets.advance_high_watermark(next_offset);
        }
        self.shared.watchers.notify();
    }
}

/// Lends the journal for one call.
fn reborrow<'a>(ahead: &'a mut Option<&mut dyn Ahead>) -> Option<&'a mut dyn Ahead> {
    match ahead {
        Some(ahead) => Some(&mut **ahead),
        None => None,
    }
}
