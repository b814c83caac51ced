//! Records inside a batch.
//!
//! ```text
//! varint length · int8 attributes (0) · varlong timestamp delta · varint offset delta
//!   · varint key length (−1 null) · key · varint value length (−1 null) · value
//!   · varint header count · for each: varint length, UTF-8 key, varint length (−1 null), value
//! ```

#![forbid(unsafe_code)]

use super::batch::{Batch, BatchHeader, TimestampType};
use super::codec::{Codec, DECOMPRESSED_BYTES_MAX, decompress};
use super::fault::BatchFault;
use super::varint::{read_i32, read_i64};
use std::borrow::Cow;

/// A batch with its records decompressed.
#[derive(Clone, Debug)]
pub struct DecodedBatch<'a> {
    header: BatchHeader,
    bytes: Cow<'a, [u8]>,
}

impl<'a> DecodedBatch<'a> {
    pub(crate) fn new(batch: Batch<'a>) -> Result<DecodedBatch<'a>, BatchFault> {
        let header = *batch.header();
        let bytes = match header.attributes.codec()? {
            Codec::None => Cow::Borrowed(batch.payload()),
            codec => Cow::Owned(decompress(codec, batch.payload(), DECOMPRESSED_BYTES_MAX)?),
        };
        Ok(DecodedBatch { header, bytes })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its records, in order; the walk ends after a fault.
    #[must_use]
    pub fn records(&self) -> Records<'_> {
        Records { header: self.header, rest: &self.bytes, record: 0 }
    }
}

/// One record.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its offset in the partition.
    pub offset: i64,
    /// Unix ms; −1 none.
    pub timestamp: i64,
    /// `None` is null, which is not empty.
    pub key: Option<&'a [u8]>,
    /// `None` is null: a tombstone on a compacted topic.
    pub value: Option<&'a [u8]>,
    /// Its headers, parsed as they are read.
    pub headers: Headers<'a>,
}

/// One header of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header<'a> {
    /// Its name.
    pub key: &'a str,
    /// `None` is null.
    pub value: Option<&'a [u8]>,
}

/// Walks the headers of a record; ends after a fault.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
    left: i32,
    record: i32,
}

impl Headers<'_> {
    /// Their bytes, as they are stored.
    pub(super) fn raw(&self) -> &[u8] {
        self.rest
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::try_from(self.left).unwrap_or(0)
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Result<Header<'a>, BatchFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left <= 0 {
            return None;
        }
        self.left -= 1;
        let header = read_header(&mut self.rest, self.record);
        if header.is_err() {
            self.left = 0;
        }
        Some(header)
    }
}

/// What a control record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlType {
    /// The transaction was aborted.
    Abort,
    /// The transaction was committed.
    Commit,
    /// One of KRaft's, or one that is not known.
    Other(i16),
}

impl ControlType {
    /// Reads the key of a control record: int16 version, int16 type.
    #[must_use]
    pub fn from_key(key: &[u8]) -> Option<ControlType> {
        let (_, kind) = key.split_at_checked(2)?;
        match i16::from_be_bytes(*kind.first_chunk()?) {
            0 => Some(ControlType::Abort),
            1 => Some(ControlType::Commit),
            other => Some(ControlType::Other(other)),
        }
    }
}

/// Walks the records of a batch.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    header: BatchHeader,
    rest: &'a [u8],
    record: i32,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.record >= self.header.record_count {
            return None;
        }
        let parsed = read_record(&mut self.rest, self.record);
        self.record = if parsed.is_ok() { self.record + 1 } else { self.header.record_count };
        Some(parsed.map(|raw| Record {
            offset: self.header.base_offset.saturating_add(raw.offset_delta.into()),
            timestamp: self.timestamp(raw.timestamp_delta),
            key: raw.key,
            value: raw.value,
            headers: raw.headers,
        }))
    }
}

impl Records<'_> {
    /// With a delete horizon the deltas were made anew against it, so the sum still holds.
    fn timestamp(&self, delta: i64) -> i64 {
        match self.header.attributes.timestamp_type() {
            TimestampType::CreateTime => self.header.base_timestamp.saturating_add(delta),
            TimestampType::LogAppendTime => self.header.max_timestamp,
        }
    }
}

struct RawRecord<'a> {
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Headers<'a>,
}

/// Every record parses, deltas count up from 0, nothing is left over.
pub(crate) fn check_records(mut bytes: &[u8], count: i32, keyed: bool) -> Result<(), BatchFault> {
    for record in 0..count {
        let raw = read_record(&mut bytes, record)?;
        if raw.offset_delta != record {
            return Err(BatchFault::OffsetDelta { record, found: raw.offset_delta });
        }
        if keyed && raw.key.is_none() {
            return Err(BatchFault::KeyMissing { record });
        }
        let mut headers = raw.headers;
        while headers.left > 0 {
            headers.left -= 1;
            read_header(&mut headers.rest, record)?;
        }
        if !headers.rest.is_empty() {
            return Err(BatchFault::TrailingBytes(headers.rest.len()));
        }
    }
    if bytes.is_empty() { Ok(()) } else { Err(BatchFault::TrailingBytes(bytes.len())) }
}

/// Takes one record from the front of `bytes`. Its headers are not parsed.
fn read_record<'a>(bytes: &mut &'a [u8], record: i32) -> Result<RawRecord<'a>, BatchFault> {
    let length = read_i32(bytes).ok_or(BatchFault::Varint { record })?;
    let mut body = take(bytes, length.into(), record)?;
    // The attributes byte has no bit in use; Kafka ignores it.
    take(&mut body, 1, record)?;
    let timestamp_delta = read_i64(&mut body).ok_or(BatchFault::Varint { record })?;
    let offset_delta = read_i32(&mut body).ok_or(BatchFault::Varint { record })?;
    let key = take_nullable(&mut body, record)?;
    let value = take_nullable(&mut body, record)?;
    let left = read_i32(&mut body).ok_or(BatchFault::Varint { record })?;
    // A header takes two bytes at least.
    if left < 0 || left as usize > body.len() / 2 {
        return Err(BatchFault::RecordLength { record, length: left.into(), have: body.len() });
    }
    let headers = Headers { rest: body, left, record };
    Ok(RawRecord { timestamp_delta, offset_delta, key, value, headers })
}

fn read_header<'a>(bytes: &mut &'a [u8], record: i32) -> Result<Header<'a>, BatchFault> {
    let key = take_nullable(bytes, record)?.ok_or(BatchFault::HeaderKey { record })?;
    let key = std::str::from_utf8(key).map_err(|_| BatchFault::HeaderKey { record })?;
    let value = take_nullable(bytes, record)?;
    Ok(Header { key, value })
}

fn take_nullable<'a>(bytes: &mut &'a [u8], record: i32) -> Result<Option<&'a [u8]>, BatchFault> {
    match read_i32(bytes).ok_or(BatchFault::Varint { record })? {
        -1 => Ok(None),
        length => take(bytes, length.into(), record).map(Some),
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: i64, record: i32) -> Result<&'a [u8], BatchFault> {
    let have = bytes.len();
    let parts = usize::try_from(length).ok().and_then(|length| bytes.split_at_checked(length));
    let (taken, rest) = parts.ok_or(BatchFault::RecordLength { record, length, have })?;
    *bytes = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_keys_are_told_apart() {
        assert_eq!(ControlType::from_key(&[0, 0, 0, 0]), Some(ControlType::Abort));
        assert_eq!(ControlType::from_key(&[0, 0, 0, 1]), Some(ControlType::Commit));
        assert_eq!(ControlType::from_key(&[0, 0, 0, 2]), Some(ControlType::Other(2)));
        assert_eq!(ControlType::from_key(&[0, 0, 0]), None);
    }
}
