//! Making and removing the directories of partitions.

#![forbid(unsafe_code)]

use super::Core;
use super::names::delete_name;
use crate::checkpoint;
use crate::config::PartitionConfig;
use crate::error::{Error, Result};
use crate::partition::Partition;
use crate::recovery::{Checkpoints, Mode};
use crate::registry::Entry;
use crate::settings::SettingsChange;
use crate::topic::TopicPartition;
use std::path::Path;
use uuid::Uuid;

impl Core {
    /// Makes the names of partitions durable.
    pub(super) fn sync_dir(&self) -> Result<()> {
        let dir = &self.config.dir;
        self.disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
    }

    /// Makes a partition, whose name the caller makes durable.
    pub(super) fn create_partition(
        &self,
        name: TopicPartition,
        config: PartitionConfig,
        asked: Option<&SettingsChange>,
    ) -> Result<Partition> {
        let dir = self.config.dir.join(name.to_string());
        if let Err(e) = self.disk.create_dir(&dir) {
            return Err(match e.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    Error::AlreadyExists { what: name.to_string() }
                }
                _ => Error::io("create", dir, e),
            });
        }
        let made = self.make_partition(name, &dir, config, asked);
        if made.is_err() {
            let _ = self.disk.remove_dir_all(&dir);
        }
        made
    }

    fn make_partition(
        &self,
        name: TopicPartition,
        dir: &Path,
        config: PartitionConfig,
        asked: Option<&SettingsChange>,
    ) -> Result<Partition> {
        let sibling = self.registry.any_of_topic(name.topic());
        let id = match &sibling {
            Some(sibling) => checkpoint::read_topic_id(self.disk.as_ref(), &sibling.dir)?,
            None => None,
        };
        let id = id.unwrap_or_else(Uuid::new_v4);
        checkpoint::write_topic_id(self.disk.as_ref(), dir, id)?;
        self.terms.settings.created(&name, id, sibling.is_none(), &config, asked)?;
        let entry = Entry::new(name, dir.to_owned(), Checkpoints::default());
        let made =
            entry.partition(|entry| self.open_dir(entry, Mode::Clean, Some(config), None))?;
        self.registry.insert(entry);
        Ok(made)
    }

    pub(super) fn delete_partition(&self, entry: &Entry) -> Result<()> {
        self.registry.remove(&entry.name);
        if let Some(partition) = entry.opened() {
            partition.drop_from_shard()?;
        }
        let to = self.config.dir.join(delete_name(&entry.name));
        self.disk.rename(&entry.dir, &to).map_err(|e| Error::io("rename", &entry.dir, e))?;
        self.state.forget_partition(&entry.name)?;
        // Leases keep their descriptors: the bytes live until the last of them is released.
        if let Err(error) = self.disk.remove_dir_all(&to) {
            tracing::warn!(dir = %to.display(), %error, "removed at the next open");
        }
        Ok(())
    }
}
