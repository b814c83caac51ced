//! A consumer group's place in a partition, and its bytes as a value of the group.
//!
//! ```text
//! key    4 partition (big-endian) · topic
//! value  1 version = 1 · 3 zeros · 4 leader epoch, −1 for none · 8 offset · 8 committed at, Unix ms
//!        16 topic id, zeros for none · metadata                       (little-endian)
//! ```

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::offset::{LeaderEpoch, Offset};
use crate::topic::TopicPartition;
use bytes::Bytes;
use uuid::Uuid;

/// Longest name of a consumer group, in bytes.
pub const GROUP_NAME_MAX: usize = 255;
/// Longest metadata of a cursor, in bytes: Kafka's `offset.metadata.max.bytes`.
pub const CURSOR_METADATA_MAX: usize = 4096;
const VERSION: u8 = 1;
const FIXED_BYTES: usize = 40;

/// A consumer group's committed place in a partition (Kafka's `OffsetAndMetadata`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// The next record to read.
    pub offset: Offset,
    /// Epoch of the last record that was read, if the host knows it.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Whatever the host wants to find again; at most [`CURSOR_METADATA_MAX`] bytes.
    pub metadata: String,
    /// When it was committed, Unix ms. Set by the commit.
    pub committed_ms: i64,
}

impl Cursor {
    /// A cursor without metadata.
    #[must_use]
    pub fn at(offset: Offset) -> Cursor {
        Cursor { offset, leader_epoch: None, metadata: String::new(), committed_ms: 0 }
    }

    pub(crate) fn encode(&self, topic_id: Option<Uuid>, now_ms: i64) -> Bytes {
        let mut value = Vec::with_capacity(FIXED_BYTES + self.metadata.len());
        value.extend_from_slice(&[VERSION, 0, 0, 0]);
        let epoch = self.leader_epoch.map_or(-1, |epoch| epoch.0);
        value.extend_from_slice(&epoch.to_le_bytes());
        value.extend_from_slice(&self.offset.0.to_le_bytes());
        value.extend_from_slice(&now_ms.to_le_bytes());
        value.extend_from_slice(topic_id.unwrap_or(Uuid::nil()).as_bytes());
        value.extend_from_slice(self.metadata.as_bytes());
        Bytes::from(value)
    }

    /// Reads a cursor and the id of its topic; `None` if it is of a later version.
    pub(crate) fn decode(value: &[u8]) -> Option<(Cursor, Option<Uuid>)> {
        let (fixed, metadata) = value.split_at_checked(FIXED_BYTES)?;
        let field = |from: usize, to: usize| fixed.get(from..to);
        if fixed.first() != Some(&VERSION) {
            return None;
        }
        let epoch = i32::from_le_bytes(field(4, 8)?.try_into().ok()?);
        let offset = i64::from_le_bytes(field(8, 16)?.try_into().ok()?);
        let committed_ms = i64::from_le_bytes(field(16, 24)?.try_into().ok()?);
        let id = Uuid::from_slice(field(24, 40)?).ok()?;
        let cursor = Cursor {
            offset: Offset(offset),
            leader_epoch: Some(LeaderEpoch(epoch)).filter(|epoch| epoch.0 >= 0),
            metadata: std::str::from_utf8(metadata).ok()?.to_owned(),
            committed_ms,
        };
        Some((cursor, Some(id).filter(|id| !id.is_nil())))
    }

    /// Refuses what cannot be stored.
    pub(crate) fn check(&self) -> Result<()> {
        if self.offset.0 < 0 {
            let reason = format!("{} is below 0", self.offset);
            return Err(Error::Config { key: "offset", reason });
        }
        if self.metadata.len() > CURSOR_METADATA_MAX {
            let reason = format!("{} bytes are over {CURSOR_METADATA_MAX}", self.metadata.len());
            return Err(Error::Config { key: "metadata", reason });
        }
        Ok(())
    }
}

/// Refuses names of consumer groups that are empty or too long.
pub(crate) fn check_group(group: &str) -> Result<()> {
    if (1..=GROUP_NAME_MAX).contains(&group.len()) {
        return Ok(());
    }
    let reason = format!("its name has {} bytes, not 1 to {GROUP_NAME_MAX}", group.len());
    Err(Error::Config { key: "group", reason })
}

/// The key of a partition among a group's values.
pub(crate) fn cursor_key(partition: &TopicPartition) -> Bytes {
    let mut key = partition.partition().to_be_bytes().to_vec();
    key.extend_from_slice(partition.topic().as_bytes());
    Bytes::from(key)
}

/// The partition that a key of a group is of.
pub(crate) fn partition_of(key: &[u8]) -> Option<TopicPartition> {
    let (number, topic) = key.split_at_checked(4)?;
    let number = u32::from_be_bytes(number.try_into().ok()?);
    TopicPartition::new(std::str::from_utf8(topic).ok()?, number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_and_their_keys_come_back_and_no_cut_one_does() {
        let cursor = Cursor {
            offset: Offset(7),
            leader_epoch: Some(LeaderEpoch(3)),
            metadata: "where I was".into(),
            committed_ms: 99,
        };
        let id = Some(Uuid::from_u128(5));
        let bytes = cursor.encode(id, 99);
        assert_eq!(Cursor::decode(&bytes), Some((cursor.clone(), id)));
        for cut in 0..FIXED_BYTES {
            assert_eq!(Cursor::decode(&bytes[..cut]), None);
        }
        let plain = Cursor::at(Offset(0));
        assert_eq!(Cursor::decode(&plain.encode(None, 0)), Some((plain, None)));
        let partition = TopicPartition::new(&"x".repeat(249), 2).unwrap();
        let key = cursor_key(&partition);
        assert!(key.len() <= super::super::KEY_BYTES_MAX);
        assert_eq!(partition_of(&key), Some(partition));
        assert!(Cursor::at(Offset(-1)).check().is_err());
        assert!(Cursor { metadata: "m".repeat(4097), ..cursor }.check().is_err());
        assert!(check_group("").is_err() && check_group(&"g".repeat(256)).is_err());
    }
}
