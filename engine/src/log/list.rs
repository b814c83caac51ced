//! Which offset a reader should start at: Kafka's ListOffsets.

#![forbid(unsafe_code)]

use super::{Isolation, LogShared};
use crate::error::Result;
use crate::offset::{LeaderEpoch, Offset};

/// What offset is asked for. Kafka's ListOffsets asks with a timestamp, and sentinels below zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffsetQuery {
    /// The end of what the isolation lets be read (−1).
    Latest,
    /// The log start (−2).
    Earliest,
    /// The first record with the largest timestamp (−3).
    MaxTimestamp,
    /// The first offset on local disk (−4): the log start, there is no other tier.
    EarliestLocal,
    /// The last offset in another tier (−5): there is none.
    LatestTiered,
    /// The first record at or after a timestamp, Unix ms.
    At(i64),
}

impl OffsetQuery {
    /// From the timestamp of a ListOffsets request. `None` for a sentinel that Kafka 4.3.1 does not
    /// know.
    #[must_use]
    pub fn from_kafka(timestamp: i64) -> Option<OffsetQuery> {
        match timestamp {
            -1 => Some(OffsetQuery::Latest),
            -2 => Some(OffsetQuery::Earliest),
            -3 => Some(OffsetQuery::MaxTimestamp),
            -4 => Some(OffsetQuery::EarliestLocal),
            -5 => Some(OffsetQuery::LatestTiered),
            0.. => Some(OffsetQuery::At(timestamp)),
            _ => None,
        }
    }
}

/// An offset that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedOffset {
    /// The offset.
    pub offset: Offset,
    /// Timestamp of its record, Unix ms; `None` where the question was not for a record.
    pub timestamp: Option<i64>,
    /// Epoch of its record, or of the last one before an end.
    pub leader_epoch: Option<LeaderEpoch>,
}

impl LogShared {
    pub(crate) fn list_offset(
        &self,
        query: OffsetQuery,
        isolation: Isolation,
    ) -> Result<Option<ListedOffset>> {
        let offsets = self.offsets.snapshot();
        let limit = self.limit(isolation, &offsets);
        let timestamp = match query {
            OffsetQuery::Latest => return Ok(Some(self.listed(limit, None))),
            OffsetQuery::Earliest | OffsetQuery::EarliestLocal => {
                return Ok(Some(self.listed(offsets.log_start, None)));
            }
            OffsetQuery::LatestTiered => return Ok(None),
            OffsetQuery::At(timestamp) => timestamp,
            OffsetQuery::MaxTimestamp => match self.max_timestamp()? {
                Some(timestamp) => timestamp,
                None => return Ok(None),
            },
        };
        let found = self.record_since(timestamp, limit)?;
        Ok(found.map(|(offset, timestamp)| self.listed(offset, Some(timestamp))))
    }

    /// Bytes that can be read from `offset` on, in whole batches, by index and headers alone.
    pub(crate) fn bytes_from(&self, offset: i64, isolation: Isolation) -> Result<u64> {
        let offsets = self.offsets.snapshot();
        let limit = self.limit(isolation, &offsets);
        self.check_range(offset, &offsets, super::shared::range_end(isolation, limit, &offsets))?;
        if offset >= limit {
            return Ok(0);
        }
        let segments = self.segments.load_full();
        let place_of = |offset: i64| -> Result<(usize, u64)> {
            let at = segments.partition_point(|s| s.base_offset() <= offset).saturating_sub(1);
            let Some(segment) = segments.get(at) else { return Ok((at, 0)) };
            let tail = segment.tail();
            if offset >= tail.end_offset {
                return Ok((at, tail.bytes.into()));
            }
            let file = segment.file(&self.open_files)?;
            let found = self.locate(segment, &file, offset)?;
            Ok((at, found.map_or(tail.bytes.into(), |(position, _)| position)))
        };
        let (first, from) = place_of(offset)?;
        let (last, to) = place_of(limit)?;
        let between = segments.get(first..last).unwrap_or_default().iter();
        let before: u64 = between.map(|segment| u64::from(segment.tail().bytes)).sum();
        Ok((before + to).saturating_sub(from))
    }

    fn listed(&self, offset: i64, timestamp: Option<i64>) -> ListedOffset {
        let epochs = self.epochs.load();
        let epoch = epochs.at(offset).map(LeaderEpoch);
        ListedOffset { offset: Offset(offset), timestamp, leader_epoch: epoch }
    }

    /// The largest timestamp of the log; `None` if no record has one.
    fn max_timestamp(&self) -> Result<Option<i64>> {
        let mut largest = -1;
        for segment in self.segments.load_full().iter() {
            let in_index = self.index(segment)?.last_time_entry().map_or(-1, |e| e.timestamp);
            largest = largest.max(segment.max_timestamp()).max(in_index);
        }
        Ok(Some(largest).filter(|timestamp| *timestamp >= 0))
    }
}
