//! Appends: validate what depends on the log, assign offsets, write a tick's batches at once.

#![forbid(unsafe_code)]

use super::{Ahead, Log};
use crate::error::{Error, Result};
use crate::format::{BatchHeader, stamp};
use crate::offset::{LeaderEpoch, Offset};
use crate::segment::Tail;
use bytes::Bytes;

/// Bytes gathered for one write. Past this a larger write gains nothing (docs/PERFORMANCE.md), and
/// the buffer still fits a core's second-level cache with what the kernel copies it to.
const STAGING_BYTES: usize = 1 << 20;

/// Who assigns the offsets of an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AppendOrigin {
    /// This log: base offsets follow the log end, batches are stamped with the epoch (`None`: the
    /// latest the partition knows).
    Leader(Option<i32>),
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    pub(crate) base_offset: i64,
    pub(crate) last_offset: i64,
    pub(crate) leader_epoch: i32,
}

/// A shard's buffer for one write; used by all its logs in turn.
#[derive(Default)]
pub(crate) struct Staging {
    bytes: Vec<u8>,
    /// Header and position in the segment of each batch in `bytes`.
    batches: Vec<(BatchHeader, u32)>,
}

/// Requests that are in the staging buffer, with the offsets they will have.
struct Staged<R> {
    replies: Vec<(R, Written)>,
    next_offset: i64,
}

impl Log {
    /// Writes all requests in order; each gets an outcome. A request that is refused leaves no
    /// trace, and the next one takes its offsets. With `ahead` all of it goes to the journal too,
    /// as far as that has room ([`Log::is_journalled`] tells).
    pub(crate) fn write<R>(
        &mut self,
        requests: impl IntoIterator<Item = AppendRequest<R>>,
        staging: &mut Staging,
        mut ahead: Option<&mut dyn Ahead>,
        outcomes: &mut Vec<WriteOutcome<R>>,
    ) {
        if let Some(ahead) = ahead.as_deref_mut() {
            self.journal_gap(ahead);
        }
        let next_offset = self.shared.offsets.log_end();
        let mut staged = Staged { replies: Vec::new(), next_offset };
        for request in requests {
            let room = reborrow(&mut ahead);
            if let Err(error) = self.make_room(&request.bytes, staging, &mut staged, room, outcomes)
            {
                outcomes.push(WriteOutcome { reply: request.reply, result: Err(error) });
                continue;
            }
            match self.stage(&request, staging, staged.next_offset) {
                Ok(written) => {
                    staged.next_offset = written.last_offset + 1;
                    staged.replies.push((request.reply, written));
                }
                Err(error) => {
                    outcomes.push(WriteOutcome { reply: request.reply, result: Err(error) });
                }
            }
        }
        self.write_staged(staging, &mut staged, ahead, outcomes);
        self.refresh_index_files();
    }

    /// Empties the staging buffer if the request would overfill it or needs a new segment.
    fn make_room<R>(
        &mut self,
        bytes: &Bytes,
        staging: &mut Staging,
        staged: &mut Staged<R>,
        ahead: Option<&mut dyn Ahead>,
        outcomes: &mut Vec<WriteOutcome<R>>,
    ) -> Result<()> {
        self.check_usable()?;
        self.check_cut()?;
        if !self.shared.space.admits(bytes.len() as u64) {
            return Err(self.shared.space.error());
        }
        let full = !staging.bytes.is_empty() && staging.bytes.len() + bytes.len() > STAGING_BYTES;
        let roll_due = self.roll_due(bytes, staging, staged.next_offset)?;
        if full || roll_due {
            self.write_staged(staging, staged, ahead, outcomes);
            self.check_usable()?;
            self.check_cut()?;
        }
        if roll_due && self.active.bytes > 0 {
            // What was staged may have failed and left its offsets to us, and the segment empty.
            self.roll(self.shared.offsets.log_end())?;
        }
        Ok(())
    }

    fn roll_due(&self, bytes: &Bytes, staging: &Staging, next_offset: i64) -> Result<bool> {
        let header = BatchHeader::read(bytes).map_err(|fault| Error::InvalidBatch {
            partition: self.shared.name.to_string(),
            position: 0,
            fault,
        })?;
        let staged_first = staging.batches.first().map(|(header, _)| header.base_timestamp);
        Ok(self.is_roll_due(
            staging.bytes.len() as u64,
            bytes.len() as u64,
            staged_first,
            &header,
            next_offset,
        ))
    }

    /// Copies a request's batches behind what is staged, with their offsets and epoch.
    fn stage<R>(
        &mut self,
        request: &AppendRequest<R>,
        staging: &mut Staging,
        next_offset: i64,
    ) -> Result<Written> {
        let (bytes_before, batches_before) = (staging.bytes.len(), staging.batches.len());
        let staged = self.stage_batches(request, staging, next_offset);
        if staged.is_err() {
            staging.bytes.truncate(bytes_before);
            staging.batches.truncate(batches_before);
        }
        staged
    }

    fn stage_batches<R>(
        &mut self,
        request: &AppendRequest<R>,
        staging: &mut Staging,
        mut next_offset: i64,
    ) -> Result<Written> {
        let leader_epoch = match request.origin {
            AppendOrigin::Leader(epoch) => Some(self.leader_epoch(epoch)?),
            AppendOrigin::Follower => None,
        };
        let mut first = None;
        let mut epoch = 0;
        let start = staging.bytes.len();
        staging.bytes.extend_from_slice(&request.bytes);
        let mut rest = staging.bytes.get_mut(start..).unwrap_or_default();
        let mut position = self.active.bytes + u32::try_from(start).unwrap_or(u32::MAX);
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
        })
    }

    /// The epoch to stamp, if it is not older than one that was seen.
    fn leader_epoch(&self, given: Option<i32>) -> Result<i32> {
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

    /// One write for everything staged; then index, tail, log end, in this order.
    fn write_staged<R>(
        &mut self,
        staging: &mut Staging,
        staged: &mut Staged<R>,
        ahead: Option<&mut dyn Ahead>,
        outcomes: &mut Vec<WriteOutcome<R>>,
    ) {
        if staged.replies.is_empty() {
            return;
        }
        let (position, log_end) = (self.active.bytes, self.shared.offsets.log_end());
        // The journal first: its write is under way while the page cache takes the bytes.
        let handed_over = self.is_journalled()
            && ahead.is_some_and(|ahead| {
                self.hand_over(ahead, position, log_end, staged.next_offset, &staging.bytes)
            });
        let result = self.write_bytes(&staging.bytes);
        if result.is_err() && handed_over {
            self.undo_hand_over(position, log_end);
        }
        match result {
            Ok(()) => {
                self.publish(&staging.batches, staging.bytes.len(), staged.next_offset);
                outcomes.extend(
                    staged
                        .replies
                        .drain(..)
                        .map(|(reply, written)| WriteOutcome { reply, result: Ok(written) }),
                );
            }
            Err(error) => {
                outcomes.extend(
                    staged
                        .replies
                        .drain(..)
                        .map(|(reply, _)| WriteOutcome { reply, result: Err(error.repeat()) }),
                );
                staged.next_offset = self.shared.offsets.log_end();
            }
        }
        staging.bytes.clear();
        staging.batches.clear();
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
        if self.shared.config.high_watermark == crate::config::HighWatermark::FollowsLogEnd {
            self.shared.offsets.advance_high_watermark(next_offset);
        }
    }
}

/// Lends the journal for one call.
fn reborrow<'a>(ahead: &'a mut Option<&mut dyn Ahead>) -> Option<&'a mut dyn Ahead> {
    match ahead {
        Some(ahead) => Some(&mut **ahead),
        None => None,
    }
}
