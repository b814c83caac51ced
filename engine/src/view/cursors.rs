//! Committed offsets of consumer groups, for those who only look.

#![forbid(unsafe_code)]

use super::View;
use crate::error::Result;
use crate::state::{self, Cursor, Scope, StateDamage, partition_of};
use crate::topic::TopicPartition;
use std::collections::BTreeMap;

impl View {
    /// The cursors of every group, as they are now: also those of a live writer that are not durable
    /// yet. After a crash, until somebody recovers, those that only a journal has are not seen. Of a
    /// damaged file ([`View::state_damage`]) what is whole.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for a state file of another version, [`crate::Error::Io`].
    pub fn cursors(&self) -> Result<BTreeMap<String, BTreeMap<TopicPartition, Cursor>>> {
        let (values, _) = state::read(self.disk.as_ref(), &self.dir)?;
        let mut groups = BTreeMap::new();
        for group in values.groups() {
            let mut cursors = BTreeMap::new();
            for (key, value) in values.of(&Scope::Group(group.to_owned())) {
                let (Some(name), Some((cursor, id))) = (partition_of(&key), Cursor::decode(&value))
                else {
                    continue;
                };
                // One of a deleted topic of the same name is none.
                if self.partitions.get(&name).is_none_or(|view| view.topic_id() == id) {
                    cursors.insert(name, cursor);
                }
            }
            groups.insert(group.to_owned(), cursors);
        }
        Ok(groups)
    }

    /// Bytes of the state file that were synced and are not what was written.
    ///
    /// # Errors
    /// As [`View::cursors`].
    pub fn state_damage(&self) -> Result<Vec<StateDamage>> {
        Ok(state::read(self.disk.as_ref(), &self.dir)?.1)
    }
}
