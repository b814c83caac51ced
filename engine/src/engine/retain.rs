//! Settings of topics and rounds of retention: what the engine offers of them, and the thread that runs
//! the rounds.

#![forbid(unsafe_code)]

use super::{Core, Engine};
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::partition::Partition;
use crate::recovery::Mode;
use crate::registry::Entry;
use crate::retention::{Round, Scope};
use crate::settings::SettingsChange;
use crate::topic::TopicPartition;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

impl Engine {
    /// As [`Engine::create_topic`], with settings of the topic's own, which are stored and hold after a
    /// restart too.
    ///
    /// # Errors
    /// As [`Engine::create_topic`]; [`Error::Config`] for a value out of its range.
    pub fn create_topic_with(
        &self,
        topic: &str,
        count: u32,
        settings: &SettingsChange,
    ) -> Result<Vec<Partition>> {
        if count == 0 {
            return Err(Error::Config {
                key: "partitions",
                reason: "a topic has at least 1".into(),
            });
        }
        if !self.core.registry.of_topic(topic).is_empty() {
            return Err(Error::AlreadyExists { what: format!("topic {topic}") });
        }
        let made: Result<Vec<Partition>> = (0..count)
            .map(|number| {
                let name = new_name(topic, number)?;
                let config = self.core.terms.settings.of_new(&name, settings)?;
                self.core.create_partition(name, config, Some(settings))
            })
            .collect();
        let made = made.and_then(|made| self.core.sync_dir().map(|()| made));
        if made.is_err() {
            // The error that stopped us is the one to report.
            let _ = self.delete_topic(topic);
        }
        made
    }

    /// Changes settings of a topic and of its open partitions, as [`Partition::configure`] does of one;
    /// what a partition has of its own stays. On disk when it returns.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Config`] for a value out of its range, [`Error::NoSpace`],
    /// [`Error::Io`], [`Error::Closed`]; then nothing has changed.
    pub fn configure_topic(&self, topic: &str, change: &SettingsChange) -> Result<()> {
        let core = &self.core;
        if self.open.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(Error::Closed { what: "the engine".into() });
        }
        let entries = core.registry.of_topic(topic);
        let Some(first) = entries.first() else {
            return Err(Error::NotFound { what: format!("topic {topic}") });
        };
        let id = checkpoint::read_topic_id(core.disk.as_ref(), &first.dir)?;
        core.terms.settings.change(topic, id, None, change)?;
        for partition in entries.iter().filter_map(|entry| entry.opened()) {
            partition.take_settings();
        }
        Ok(())
    }

    /// One round of retention now: deletes what may go, in every partition. It runs by itself every
    /// `retention_check_interval_ms` and when space is short; this is for hosts that want it sooner.
    pub fn apply_retention(&self) -> Round {
        self.core.retain()
    }

    pub(super) fn start_sweep(&self) -> Result<()> {
        let core = Arc::clone(&self.core);
        if core.config.retention_check_interval_ms == 0 {
            return Ok(());
        }
        let sweep = Arc::clone(&core.sweep);
        core.space.on_low(move || sweep.hurry());
        if core.space.is_low() {
            core.sweep.hurry();
        }
        let thread = std::thread::Builder::new()
            .name("loglane-retention".into())
            .spawn(move || {
                let interval = Duration::from_millis(core.config.retention_check_interval_ms);
                core.sweep.run(interval, &core.config.clock, || {
                    core.retain();
                    core.space.is_low()
                });
            })
            .map_err(|e| Error::io("start a thread for", &self.core.config.dir, e))?;
        *self.sweep_thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    pub(super) fn stop_sweep(&self) {
        self.core.sweep.stop();
        let thread = self.sweep_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of retention panicked");
        }
    }
}

impl Core {
    /// One round of retention.
    fn retain(&self) -> Round {
        let open = |entry: &Entry| self.open_entry(entry);
        let round = self.sweep.round(&Scope {
            terms: &self.terms,
            disk: self.disk.as_ref(),
            registry: &self.registry,
            total_bytes: self.config.retention_total_bytes,
            // After a crash the housekeeper opens them all.
            open: (self.mode == Mode::Clean).then_some(&open),
        });
        if self.space.is_low() {
            self.keeper.unlink_early();
        }
        round
    }
}

/// The name of a partition that may be made.
pub(super) fn new_name(topic: &str, partition: u32) -> Result<TopicPartition> {
    let name = TopicPartition::new(topic, partition)?;
    if name.is_cluster_metadata() {
        let reason = "this topic is the controller's";
        return Err(Error::TopicName { name: topic.into(), reason });
    }
    Ok(name)
}
