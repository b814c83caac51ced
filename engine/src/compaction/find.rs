//! The newest record of a key.

#![forbid(unsafe_code)]

use super::scan::each_batch;
use super::transactions::fault_at;
use crate::error::Result;
use crate::format::Record;
use crate::log::LogShared;
use crate::offset::Offset;
use bytes::Bytes;

/// A record, copied out of its log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LatestRecord {
    /// Its offset.
    pub offset: Offset,
    /// Unix ms; −1 none.
    pub timestamp: i64,
    /// Its value.
    pub value: Bytes,
    /// Its headers; a value may be null.
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// The newest record with this key below the high watermark; `None` if there is none, or if it is a
/// tombstone.
///
/// Segments are read whole, the newest first, until one has the key: the cost is that of reading and
/// decompressing the part of the log behind the record, up to the end of its segment's beginning.
pub(crate) fn last_by_key(shared: &LogShared, key: &[u8]) -> Result<Option<LatestRecord>> {
    shared.with_segments(|segments| {
        let offsets = shared.offsets.snapshot();
        for segment in segments.iter().rev() {
            if segment.base_offset() >= offsets.high_watermark {
                continue;
            }
            if segment.tail().end_offset <= offsets.log_start {
                break;
            }
            let mut newest: Option<Option<LatestRecord>> = None;
            each_batch(shared, segment, |batch, _| {
                let header = batch.header();
                if header.base_offset >= offsets.high_watermark {
                    return Ok(false);
                }
                if header.attributes.is_control() || header.last_offset() < offsets.log_start {
                    return Ok(true);
                }
                let failed = |fault| fault_at(segment, header, fault);
                let decoded = batch.decode().map_err(failed)?;
                for record in decoded.records() {
                    let record = record.map_err(failed)?;
                    let readable =
                        (offsets.log_start..offsets.high_watermark).contains(&record.offset);
                    if readable && record.key == Some(key) {
                        newest = Some(copied(&record).transpose().map_err(failed)?);
                    }
                }
                Ok(true)
            })?;
            if let Some(found) = newest {
                return Ok(found);
            }
        }
        Ok(None)
    })
}

/// `None` for a tombstone.
fn copied(
    record: &Record<'_>,
) -> Option<std::result::Result<LatestRecord, crate::format::BatchFault>> {
    let value = Bytes::copy_from_slice(record.value?);
    let headers = record.headers.map(|header| {
        let header = header?;
        Ok((header.key.to_owned(), header.value.map(Bytes::copy_from_slice)))
    });
    let headers = headers.collect::<std::result::Result<Vec<_>, _>>();
    let (offset, timestamp) = (Offset(record.offset), record.timestamp);
    Some(headers.map(|headers| LatestRecord { offset, timestamp, value, headers }))
}
