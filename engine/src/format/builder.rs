//! Makes batches as a producer does.

#![forbid(unsafe_code)]

use super::batch::HEADER_BYTES;
use super::codec::{Codec, compress};
use super::crc::crc32c;
use super::fault::BatchFault;
use super::varint::{write_i32, write_i64};

/// Gathers records and builds a batch: base offset 0 and leader epoch −1, as clients send it.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    codec: Codec,
    records: Vec<u8>,
    scratch: Vec<u8>,
    count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer: (i64, i16, i32),
    transactional: bool,
    control: bool,
}

impl BatchBuilder {
    /// An empty builder.
    #[must_use]
    pub fn new(codec: Codec) -> BatchBuilder {
        BatchBuilder {
            codec,
            records: Vec::new(),
            scratch: Vec::new(),
            count: 0,
            base_timestamp: -1,
            max_timestamp: -1,
            producer: (-1, -1, -1),
            transactional: false,
            control: false,
        }
    }

    /// Marks the next batch as an idempotent producer's. It stays so until changed.
    pub fn producer(&mut self, id: i64, epoch: i16, base_sequence: i32) -> &mut BatchBuilder {
        self.producer = (id, epoch, base_sequence);
        self
    }

    /// Marks the next batch as part of a transaction. It stays so until changed.
    pub fn transactional(&mut self, transactional: bool) -> &mut BatchBuilder {
        self.transactional = transactional;
        self
    }

    /// Marks batches as control batches: markers, which no client may send.
    pub(crate) fn control(&mut self) -> &mut BatchBuilder {
        self.control = true;
        self
    }

    /// Adds a record. `timestamp` is Unix ms; `None` for key or value is null.
    ///
    /// # Errors
    /// [`BatchFault::TooLarge`] if the batch would pass 2 GiB; it stays as it was.
    pub fn append(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<(), BatchFault> {
        if self.count == 0 {
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        body.push(0);
        write_i64(&mut body, timestamp.wrapping_sub(self.base_timestamp));
        write_i32(&mut body, self.count);
        let written = write_parts(&mut body, key, value, headers);
        let total = HEADER_BYTES + self.records.len() + body.len() + 5;
        let fits = written.is_some() && i32::try_from(total).is_ok() && self.count < i32::MAX;
        let length = i32::try_from(body.len()).ok().filter(|_| fits);
        if let Some(length) = length {
            write_i32(&mut self.records, length);
            self.records.extend_from_slice(&body);
            self.count += 1;
            self.max_timestamp = self.max_timestamp.max(timestamp);
        }
        self.scratch = body;
        length.map(|_| ()).ok_or(BatchFault::TooLarge)
    }

    /// Bytes the batch would have uncompressed.
    #[must_use]
    pub fn estimated_bytes(&self) -> usize {
        HEADER_BYTES + self.records.len()
    }

    /// Records so far.
    #[must_use]
    pub fn record_count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(0)
    }

    /// True without records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The batch; the builder is empty again.
    ///
    /// # Errors
    /// [`BatchFault::Empty`] without records; what the codec says.
    pub fn build(&mut self) -> Result<Vec<u8>, BatchFault> {
        if self.count == 0 {
            return Err(BatchFault::Empty);
        }
        let mut batch = Vec::with_capacity(HEADER_BYTES + self.records.len());
        batch.resize(HEADER_BYTES, 0);
        compress(self.codec, &self.records, &mut batch)?;
        let length = i32::try_from(batch.len() - 12).map_err(|_| BatchFault::TooLarge)?;
        let (producer_id, producer_epoch, base_sequence) = self.producer;
        let attributes = u16::from(self.codec.id())
            | if self.transactional { 16 } else { 0 }
            | if self.control { 32 } else { 0 };
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = batch.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(8, &length.to_be_bytes());
        put(12, &(-1_i32).to_be_bytes());
        put(16, &[2]);
        put(21, &attributes.to_be_bytes());
        put(23, &(self.count - 1).to_be_bytes());
        put(27, &self.base_timestamp.to_be_bytes());
        put(35, &self.max_timestamp.to_be_bytes());
        put(43, &producer_id.to_be_bytes());
        put(51, &producer_epoch.to_be_bytes());
        put(53, &base_sequence.to_be_bytes());
        put(57, &self.count.to_be_bytes());
        let crc = crc32c(batch.get(21..).unwrap_or_default());
        if let Some(field) = batch.get_mut(17..21) {
            field.copy_from_slice(&crc.to_be_bytes());
        }
        self.records.clear();
        self.count = 0;
        Ok(batch)
    }
}

/// Key, value and headers; `None` if a length does not fit 31 bits.
fn write_parts(
    body: &mut Vec<u8>,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[(&str, Option<&[u8]>)],
) -> Option<()> {
    write_nullable(body, key)?;
    write_nullable(body, value)?;
    write_i32(body, i32::try_from(headers.len()).ok()?);
    for (key, value) in headers {
        write_nullable(body, Some(key.as_bytes()))?;
        write_nullable(body, *value)?;
    }
    Some(())
}

fn write_nullable(body: &mut Vec<u8>, bytes: Option<&[u8]>) -> Option<()> {
    match bytes {
        None => write_i32(body, -1),
        Some(bytes) => {
            write_i32(body, i32::try_from(bytes.len()).ok()?);
            body.extend_from_slice(bytes);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, Header};
    use super::*;
    use proptest::prelude::*;

    type Parts = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

    fn parts() -> impl Strategy<Value = Parts> {
        let bytes = || prop::option::of(prop::collection::vec(any::<u8>(), 0..200));
        let headers = prop::collection::vec((".{0,9}", bytes()), 0..4);
        (0..i64::MAX / 2, bytes(), bytes(), headers)
    }

    proptest! {
        #[test]
        fn what_was_put_in_comes_out(records in prop::collection::vec(parts(), 1..30)) {
            for codec in Codec::ALL {
                let mut builder = BatchBuilder::new(codec);
                for (timestamp, key, value, headers) in &records {
                    let headers: Vec<_> =
                        headers.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
                    builder.append(*timestamp, key.as_deref(), value.as_deref(), &headers).unwrap();
                }
                let bytes = builder.build().unwrap();
                let batch = Batch::check(&bytes).unwrap();
                batch.check_records().unwrap();
                let newest = records.iter().map(|r| r.0).max().unwrap();
                prop_assert_eq!(batch.header().max_timestamp, newest);
                let decoded = batch.decode().unwrap();
                let mut count = 0;
                for (record, expected) in decoded.records().zip(&records) {
                    let record = record.unwrap();
                    prop_assert_eq!(record.offset, count);
                    prop_assert_eq!(record.timestamp, expected.0);
                    prop_assert_eq!(record.key, expected.1.as_deref());
                    prop_assert_eq!(record.value, expected.2.as_deref());
                    let headers: Vec<Header> = record.headers.map(Result::unwrap).collect();
                    let wanted: Vec<Header> = expected.3.iter()
                        .map(|(key, value)| Header { key, value: value.as_deref() }).collect();
                    prop_assert_eq!(headers, wanted);
                    count += 1;
                }
                prop_assert_eq!(count as usize, records.len());
            }
        }
    }

    #[test]
    fn a_builder_starts_afresh_after_a_batch_and_has_no_empty_one() {
        let mut builder = BatchBuilder::new(Codec::None);
        assert_eq!(builder.build(), Err(BatchFault::Empty));
        builder.producer(9, 1, 5).append(10, None, None, &[]).unwrap();
        let first = builder.build().unwrap();
        assert!(builder.is_empty());
        builder.append(10, None, None, &[]).unwrap();
        assert_eq!(builder.build().unwrap(), first);
        assert_eq!(Batch::check(&first).unwrap().header().base_sequence, 5);
    }
}
