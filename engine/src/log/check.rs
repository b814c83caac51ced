//! No bad byte leaves by sendfile: what a fetch found is checked before it goes out, once.

#![forbid(unsafe_code)]

use super::LogShared;
use crate::error::{Error, Result};
use crate::io::FileRef;
use crate::segment::{Scanned, Scanner, Segment};
use std::sync::Arc;

/// A stretch of whole batches that a fetch found in a segment.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub(super) start: u64,
    /// Base offset of its first batch.
    pub(super) base_offset: i64,
    pub(super) end: u64,
    /// The offset after it.
    pub(super) next_offset: i64,
}

impl LogShared {
    /// Checks what of a stretch was not checked since the open. Cuts it short before damage.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its first batch is damaged; [`Error::Io`].
    pub(super) fn check(
        &self,
        segment: &Arc<Segment>,
        file: &FileRef,
        found: Found,
    ) -> Result<Found> {
        let bound = |position: u64| u32::try_from(position).unwrap_or(u32::MAX);
        let Some((from, to)) = segment.unchecked(bound(found.start), bound(found.end)) else {
            return Ok(found);
        };
        let base = segment.base_offset();
        let mut scanner = Scanner::new(Arc::clone(file), base, from.into(), base, to.into());
        let mut checked = (u64::from(from), None);
        let (position, fault) = loop {
            match scanner.step().map_err(|e| Error::io("read", segment.path(), e))? {
                Scanned::Batch { position, batch } => {
                    let end = position + batch.header().total_bytes() as u64;
                    checked = (end, Some(batch.header().next_offset()));
                }
                Scanned::End => {
                    segment.add_checked(from, to);
                    return Ok(found);
                }
                Scanned::Damage { position, fault, .. } | Scanned::TornTail { position, fault } => {
                    break (position, fault);
                }
            }
        };
        if checked.0 > u64::from(from) {
            segment.add_checked(from, bound(checked.0));
        }
        let offset = match checked.1 {
            Some(next_offset) => next_offset,
            None if position == found.start => found.base_offset,
            None => self.last_before(segment, file, found.start, position)?.1,
        };
        let damage = segment.find_damage(file, position, offset, fault)?;
        if segment.note_damage(damage.clone()) {
            tracing::error!(
                partition = %self.name, segment = %segment.path().display(), position,
                offset, next_offset = damage.next_offset.0, fault = %damage.fault,
                "damaged bytes; records below and above can be read"
            );
        }
        if position == found.start {
            return Err(damage.error());
        }
        Ok(Found { end: position, next_offset: offset, ..found })
    }
}
