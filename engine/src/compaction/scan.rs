//! A walk over the batches of one segment that tolerates no fault: what is not whole is not cleaned.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::format::Batch;
use crate::log::LogShared;
use crate::offset::Offset;
use crate::segment::{Scanned, Scanner, Segment};
use std::sync::Arc;

/// Calls `visit` with each batch and its position, until it says false. Size, CRC and offsets of each
/// were checked.
///
/// # Errors
/// [`Error::Damaged`] at the first fault, [`Error::Io`], what `visit` returns.
pub(super) fn each_batch(
    shared: &LogShared,
    segment: &Arc<Segment>,
    mut visit: impl FnMut(&Batch<'_>, u64) -> Result<bool>,
) -> Result<()> {
    if let Some(damage) = segment.damaged().first() {
        return Err(damage.error());
    }
    let file = segment.file(&shared.open_files)?;
    let (base, tail) = (segment.base_offset(), segment.tail());
    let mut scanner = Scanner::new(file, base, 0, base, tail.bytes.into());
    loop {
        let next_offset = scanner.next_offset();
        match scanner.step().map_err(|e| Error::io("read", segment.path(), e))? {
            Scanned::Batch { position, batch } => {
                if !visit(&batch, position)? {
                    return Ok(());
                }
            }
            Scanned::End => return Ok(()),
            Scanned::Damage { position, fault, .. } | Scanned::TornTail { position, fault } => {
                return Err(Error::Damaged {
                    path: segment.path().to_owned(),
                    position,
                    offset: Offset(next_offset),
                    next_offset: Offset(tail.end_offset),
                    fault,
                });
            }
        }
    }
}
