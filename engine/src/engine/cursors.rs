//! Committed offsets of consumer groups.

#![forbid(unsafe_code)]

use super::{Core, Engine};
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::format::crc32c;
use crate::offset::Offset;
use crate::registry::Entry;
use crate::shard::{ChangeRequest, Durability, Pending, ShardHandle, pending};
use crate::state::{
    Change, Cursor, RECORD_BODY_MAX, Scope, StateDamage, What, check_group, cursor_key,
    partition_of,
};
use crate::topic::TopicPartition;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

/// What a cursor takes in the state file beside its metadata, at most.
const CURSOR_BYTES: usize = 768;

impl Engine {
    /// Commits where a group is in one partition: the offset of the next record to read. Durable
    /// when it returns. Group names have 1 to [`crate::GROUP_NAME_MAX`] bytes.
    ///
    /// # Errors
    /// As [`Engine::commit_cursors`].
    pub fn commit_cursor(
        &self,
        group: &str,
        partition: &TopicPartition,
        offset: Offset,
        metadata: &str,
    ) -> Result<()> {
        let cursor = Cursor { metadata: metadata.to_owned(), ..Cursor::at(offset) };
        self.commit_cursors(group, [(partition.clone(), cursor)])
    }

    /// Commits where a group is in many partitions, with one device write: after a crash all of it
    /// is there, or none. Durable when it returns.
    ///
    /// Unlike a partition's own values, cursors are not ordered with appends: a consumer that read
    /// records which were not durable may find its cursor past the log end after a power cut.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a partition that is not there; [`Error::Config`] for a group's name, an
    /// offset below 0 or over [`crate::CURSOR_METADATA_MAX`] bytes of metadata; [`Error::NoSpace`],
    /// [`Error::Io`], [`Error::Closed`]; [`Error::Format`] while damage of the state file is not
    /// accepted.
    pub fn commit_cursors(
        &self,
        group: &str,
        cursors: impl IntoIterator<Item = (TopicPartition, Cursor)>,
    ) -> Result<()> {
        let pending = self.start_commit_cursors(group, cursors)?;
        self.core.shard_of(group).wait(pending)
    }

    /// Starts a commit; the answer comes through the [`Pending`].
    ///
    /// # Errors
    /// What is wrong with the call; the rest through the [`Pending`], as
    /// [`Engine::commit_cursors`].
    pub fn start_commit_cursors(
        &self,
        group: &str,
        cursors: impl IntoIterator<Item = (TopicPartition, Cursor)>,
    ) -> Result<Pending<()>> {
        let now_ms = self.core.config.clock.now_ms();
        let mut whats = Vec::new();
        for (partition, cursor) in cursors {
            cursor.check()?;
            let entry = self.core.registry.get(&partition)?;
            let value = cursor.encode(self.core.topic_id(&entry)?, now_ms);
            whats.push(What::Put { key: cursor_key(&partition), value });
        }
        self.change_group(group, whats)
    }

    /// Where a group is in a partition; `None` if it never committed, or the topic was deleted.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a partition that is not there; [`Error::Config`] for a group's name;
    /// [`Error::Format`] for a cursor that a later version wrote, and while damage of the state file
    /// is not accepted.
    pub fn cursor(&self, group: &str, partition: &TopicPartition) -> Result<Option<Cursor>> {
        check_group(group)?;
        let entry = self.core.registry.get(partition)?;
        let key = cursor_key(partition);
        let found = self.core.state.get(&Scope::Group(group.to_owned()), &key)?;
        match found {
            Some(value) => self.core.live_cursor(&entry, &value),
            None => Ok(None),
        }
    }

    /// Where a group is in every partition it committed; empty if there is no such group.
    ///
    /// # Errors
    /// As [`Engine::cursor`].
    pub fn cursors(&self, group: &str) -> Result<BTreeMap<TopicPartition, Cursor>> {
        check_group(group)?;
        let mut cursors = BTreeMap::new();
        for (key, value) in self.core.state.of(&Scope::Group(group.to_owned()))? {
            let Some(partition) = partition_of(&key) else { continue };
            let Ok(entry) = self.core.registry.get(&partition) else { continue };
            if let Some(cursor) = self.core.live_cursor(&entry, &value)? {
                cursors.insert(partition, cursor);
            }
        }
        Ok(cursors)
    }

    /// Groups that have a cursor.
    ///
    /// # Errors
    /// [`Error::Format`] while damage of the state file is not accepted.
    pub fn groups(&self) -> Result<Vec<String>> {
        self.core.state.groups()
    }

    /// Takes a group and its cursors away; durable when it returns.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of [`Engine::commit_cursors`].
    pub fn remove_group(&self, group: &str) -> Result<()> {
        if self.core.state.of(&Scope::Group(group.to_owned()))?.is_empty() {
            return Err(Error::NotFound { what: format!("group {group}") });
        }
        let pending = self.change_group(group, vec![What::RemoveAll])?;
        self.core.shard_of(group).wait(pending)
    }

    /// Takes a group's cursor in one partition away; one that is not there is no error. Durable when
    /// it returns.
    ///
    /// # Errors
    /// Those of [`Engine::commit_cursors`].
    pub fn remove_cursor(&self, group: &str, partition: &TopicPartition) -> Result<()> {
        let pending =
            self.change_group(group, vec![What::Remove { key: cursor_key(partition) }])?;
        self.core.shard_of(group).wait(pending)
    }

    /// Bytes of the state file that were synced and are not what was written. While there are any,
    /// no value and no cursor is given out or changed: any may be among what is lost.
    #[must_use]
    pub fn state_damage(&self) -> Vec<StateDamage> {
        self.core.state.damage()
    }

    /// Goes on with the values that are whole. The damaged file stays, under the name that is
    /// returned; `None` if nothing is damaged.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`]; then nothing has changed.
    pub fn accept_state_damage(&self) -> Result<Option<PathBuf>> {
        self.core.state.accept_damage()
    }

    fn change_group(&self, group: &str, whats: Vec<What>) -> Result<Pending<()>> {
        check_group(group)?;
        let size = |what: &What| match what {
            What::Put { value, .. } => CURSOR_BYTES + value.len(),
            What::Remove { .. } | What::RemoveAll => CURSOR_BYTES,
        };
        let bytes: usize = whats.iter().map(size).sum();
        if bytes > RECORD_BODY_MAX {
            let reason = format!("a commit of {bytes} bytes is over {RECORD_BODY_MAX}");
            return Err(Error::Config { key: "cursors", reason });
        }
        let scope = Scope::Group(group.to_owned());
        let changes = whats.into_iter().map(|what| Change { scope: scope.clone(), what }).collect();
        let (promise, pending) = pending();
        let (durability, bytes) = (Durability::Durable, bytes as u64);
        let request = ChangeRequest { changes, durability, bytes, promise };
        self.core.shard_of(group).send_change(None, request);
        Ok(pending)
    }
}

impl Core {
    /// All changes of a group go through one shard: in order, and each in one frame.
    fn shard_of(&self, group: &str) -> &Arc<ShardHandle> {
        let number = crc32c(group.as_bytes()) as usize % self.shards.len();
        self.shards.get(number).expect("the remainder is below the number of shards")
    }

    fn topic_id(&self, entry: &Entry) -> Result<Option<Uuid>> {
        match entry.opened() {
            Some(partition) => Ok(partition.topic_id()),
            None => checkpoint::read_topic_id(self.disk.as_ref(), &entry.dir),
        }
    }

    /// The cursor in a value, unless it is of a topic of that name that was deleted.
    fn live_cursor(&self, entry: &Entry, value: &[u8]) -> Result<Option<Cursor>> {
        let Some((cursor, id)) = Cursor::decode(value) else {
            let reason = "has a cursor of a version that this engine does not read".into();
            return Err(Error::Format { path: self.config.dir.clone(), reason });
        };
        Ok((id == self.topic_id(entry)?).then_some(cursor))
    }
}
