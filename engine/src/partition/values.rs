//! Values of a partition, by key: small, and durable in order with its appends.

#![forbid(unsafe_code)]

use super::Partition;
use crate::error::{Error, Result};
use crate::shard::{ChangeRequest, Durability, Pending, pending};
use crate::state::{Change, KEY_BYTES_MAX, RECORD_BODY_MAX, Scope, VALUE_BYTES_MAX, What};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a change takes in the state file beside its key and value, at most.
const CHANGE_BYTES: usize = 512;

impl Partition {
    /// Sets one value and waits: the vote of a Raft host, a place to go on from. Keys have 1 to
    /// [`crate::KEY_BYTES_MAX`] bytes, values at most [`crate::VALUE_BYTES_MAX`].
    ///
    /// In order with the appends of this partition, and on the same device write: when it is answered
    /// as durable, every append that was submitted to this partition before it is durable too, if it
    /// did not fail; and a durable append that is submitted after it is answered when both are
    /// durable. [`Partition::flush`] covers values as well. What no such answer has reached may
    /// survive a power cut or not, each on its own. A truncation leaves values as they are; they go
    /// with the partition.
    ///
    /// # Errors
    /// [`Error::Config`] for a key, [`Error::TooLarge`] for a value; [`Error::NoSpace`],
    /// [`Error::Io`], [`Error::PartitionFailed`], [`Error::Closed`]; [`Error::Format`] while damage of
    /// the state file is not accepted ([`crate::Engine::accept_state_damage`]).
    pub fn put_value(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        durability: Durability,
    ) -> Result<()> {
        self.change_values([(key.into(), Some(value.into()))], durability)
    }

    /// Takes one value away and waits; one that is not there is no error.
    ///
    /// # Errors
    /// As [`Partition::put_value`].
    pub fn remove_value(&self, key: impl Into<Bytes>, durability: Durability) -> Result<()> {
        self.change_values([(key.into(), None)], durability)
    }

    /// Sets values, or takes away those that are `None`, and waits. After a crash all of them are
    /// there, or none: a term with its vote.
    ///
    /// # Errors
    /// As [`Partition::put_value`]; [`Error::TooLarge`] also for over 16 MiB together.
    pub fn change_values(
        &self,
        changes: impl IntoIterator<Item = (Bytes, Option<Bytes>)>,
        durability: Durability,
    ) -> Result<()> {
        let pending = self.start_change_values(changes, durability)?;
        self.inner.shard.wait(pending)
    }

    /// Starts to set values, or to take away those that are `None`; the answer comes through the
    /// [`Pending`]. Waits while the shard has too much queued.
    ///
    /// # Errors
    /// What is wrong with the call; the rest through the [`Pending`].
    pub fn start_change_values(
        &self,
        changes: impl IntoIterator<Item = (Bytes, Option<Bytes>)>,
        durability: Durability,
    ) -> Result<Pending<()>> {
        self.check_open()?;
        let scope = self.scope();
        let mut bytes = 0;
        let mut checked = Vec::new();
        for (key, value) in changes {
            if !(1..=KEY_BYTES_MAX).contains(&key.len()) {
                let reason = format!("{} bytes are not 1 to {KEY_BYTES_MAX}", key.len());
                return Err(Error::Config { key: "key", reason });
            }
            let length = value.as_ref().map_or(0, Bytes::len);
            if length > VALUE_BYTES_MAX {
                return Err(self.too_large(length, VALUE_BYTES_MAX));
            }
            bytes += CHANGE_BYTES + length;
            let what = match value {
                Some(value) => What::Put { key, value },
                None => What::Remove { key },
            };
            checked.push(Change { scope: scope.clone(), what });
        }
        if bytes > RECORD_BODY_MAX {
            return Err(self.too_large(bytes, RECORD_BODY_MAX));
        }
        let (promise, pending) = pending();
        let bytes = bytes as u64;
        let request = ChangeRequest { changes: checked, durability, bytes, promise };
        self.inner.shard.send_change(Some(self.inner.slot), request);
        Ok(pending)
    }

    /// One value, as the last change that was answered left it.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Format`] while damage of the state file is not accepted.
    pub fn get_value(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.check_open()?;
        self.inner.shard.state().get(&self.scope(), key)
    }

    /// All values, by key.
    ///
    /// # Errors
    /// As [`Partition::get_value`].
    pub fn values(&self) -> Result<BTreeMap<Bytes, Bytes>> {
        self.check_open()?;
        self.inner.shard.state().of(&self.scope())
    }

    fn scope(&self) -> Scope {
        Scope::Partition(self.name().clone(), self.topic_id())
    }
}
