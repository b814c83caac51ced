//! What a handle on a partition offers of retention: settings, pins, why segments are still here.

#![forbid(unsafe_code)]

use super::apply::{self, Gone};
use super::explain::{Explanation, explain};
use super::pins::{Pin, PinId, Place};
use crate::config::PartitionConfig;
use crate::error::{Error, Result};
use crate::offset::Offset;
use crate::partition::Partition;
use crate::settings::SettingsChange;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

impl Partition {
    /// The settings that hold now.
    #[must_use]
    pub fn config(&self) -> PartitionConfig {
        PartitionConfig::clone(&self.shared().config.load())
    }

    /// The settings that are stored for this partition, its topic's included, by name.
    #[must_use]
    pub fn stored_settings(&self) -> BTreeMap<String, String> {
        self.terms().settings.stored(self.name(), self.topic_id())
    }

    /// Changes settings of this partition, while it is open: appends and rounds of retention after the
    /// return go by the new ones. They are on disk when it returns, and win over those of the topic
    /// ([`crate::Engine::configure_topic`]).
    ///
    /// # Errors
    /// [`Error::Config`] for a value out of its range, [`Error::NoSpace`], [`Error::Io`],
    /// [`Error::Closed`]; then nothing has changed.
    pub fn configure(&self, change: &SettingsChange) -> Result<()> {
        self.check_open()?;
        let number = Some(self.name().partition());
        self.terms().settings.change(self.name().topic(), self.topic_id(), number, change)?;
        self.take_settings();
        Ok(())
    }

    /// Takes over what is stored now.
    pub(crate) fn take_settings(&self) {
        let config = self.terms().settings.effective(self.name(), self.topic_id());
        self.shared().config.store(Arc::new(config));
    }

    /// Keeps the records from `offset` on from being deleted by any limit, until the pin is released
    /// or expires. `owner` and `reason` are for people: [`Partition::explain`] shows them. On disk when
    /// it returns; a restart keeps it, and its expiry goes by the wall clock.
    ///
    /// [`Partition::delete_records`] past a pin is refused; [`Partition::delete_records_over_pins`],
    /// [`Partition::truncate`], [`Partition::reset`] and the deletion of the topic are not.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] below the log start (it is gone) or past the log end,
    /// [`Error::Config`] for an owner over 256 bytes, a reason over 1024, or over 65,536 pins in the
    /// directory, [`Error::NoSpace`], [`Error::Io`], [`Error::Closed`].
    pub fn pin(
        &self,
        owner: &str,
        reason: &str,
        offset: Offset,
        expires_in: Option<Duration>,
    ) -> Result<Pin> {
        self.check_open()?;
        let created_ms = self.terms().clock.now_ms();
        let pin = Pin {
            id: PinId(0),
            owner: owner.to_owned(),
            reason: reason.to_owned(),
            offset,
            created_ms,
            expires_ms: expires_in.map(|time| after(created_ms, time)),
        };
        // A round that looked before the pin was there has ended when the shard answers; one that
        // looks later sees it. So what the log start is then, the pin holds.
        let check = || {
            let (start, end) = self.on_log(|log| {
                let offsets = log.shared.offsets.snapshot();
                Ok((offsets.log_start, offsets.log_end))
            })?;
            match (start..=end).contains(&offset.0) {
                true => Ok(()),
                false => Err(self.shared().out_of_range(offset.0, start, end)),
            }
        };
        self.terms().pins.add(self.place(), pin, check)
    }

    /// The pins that hold records of this partition now, oldest first.
    #[must_use]
    pub fn pins(&self) -> Vec<Pin> {
        self.terms().pins.list(self.place(), self.terms().clock.now_ms())
    }

    /// Moves a pin up to `offset` (one that is higher already stays there), and lets it expire
    /// `expires_in` from now, or never. On disk when it returns.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it was released or has expired, [`Error::NoSpace`], [`Error::Io`],
    /// [`Error::Closed`].
    pub fn advance_pin(
        &self,
        id: PinId,
        offset: Offset,
        expires_in: Option<Duration>,
    ) -> Result<Pin> {
        self.check_open()?;
        let now_ms = self.terms().clock.now_ms();
        let expires_ms = expires_in.map(|time| after(now_ms, time));
        self.terms().pins.advance(self.place(), id, offset, expires_ms, now_ms)
    }

    /// Lets go of what a pin holds: the next round of retention may delete it. On disk when it returns.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none of that id, [`Error::NoSpace`], [`Error::Io`],
    /// [`Error::Closed`].
    pub fn release_pin(&self, id: PinId) -> Result<()> {
        self.check_open()?;
        self.terms().pins.release(self.place(), id)
    }

    /// Why each segment is still here, and when it goes. A look that changes nothing.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Closed`].
    pub fn explain(&self) -> Result<Explanation> {
        self.check_open()?;
        let now_ms = self.terms().clock.now_ms();
        explain(self.shared(), self.config(), self.pins(), None, now_ms)
    }

    /// Moves the log start offset up to `before`, at most the high watermark; it may lie inside a
    /// batch. Segments that end below it go: their files are renamed now and unlinked after
    /// `file_delete_delay_ms`, when no lease holds them. Returns the log start offset.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] past the high watermark, [`Error::Pinned`] past a pin, [`Error::Io`],
    /// [`Error::Closed`].
    pub fn delete_records(&self, before: Offset) -> Result<Offset> {
        self.delete_before(before, false)
    }

    /// As [`Partition::delete_records`], also past pins; those stay, and hold what is left.
    ///
    /// # Errors
    /// As [`Partition::delete_records`], but for [`Error::Pinned`].
    pub fn delete_records_over_pins(&self, before: Offset) -> Result<Offset> {
        self.delete_before(before, true)
    }

    fn delete_before(&self, before: Offset, over_pins: bool) -> Result<Offset> {
        let (terms, name, topic_id) =
            (Arc::clone(self.terms()), self.name().clone(), self.topic_id());
        let (start, gone) = self.on_log(move |log| {
            let place = Place { name: &name, topic_id };
            let pins = terms.pins.list(place, terms.clock.now_ms());
            let pin = pins.into_iter().min_by_key(|pin| pin.offset).filter(|_| !over_pins);
            match pin.filter(|pin| pin.offset < before && log.shared.offsets.log_start() < before.0)
            {
                Some(pin) => Err(Error::Pinned {
                    partition: name.to_string(),
                    pinned: pin.offset,
                    owner: pin.owner,
                    reason: pin.reason,
                }),
                None => apply::delete_records(log, before.0),
            }
        })?;
        self.terms().counters.add(&gone);
        Ok(Offset(start))
    }

    /// Deletes what the partition's own limits want gone.
    pub(super) fn retain(&self) -> Result<Vec<Gone>> {
        let (terms, name, topic_id) =
            (Arc::clone(self.terms()), self.name().clone(), self.topic_id());
        let gone = self.on_log(move |log| {
            let now_ms = terms.clock.now_ms();
            let pinned = terms.pins.floor(Place { name: &name, topic_id }, now_ms);
            apply::retain(log, pinned, now_ms)
        })?;
        self.terms().counters.add(&gone);
        Ok(gone)
    }

    /// Deletes the first segment, for the limit of the whole directory, if it is still `base_offset`.
    pub(super) fn delete_first(&self, base_offset: i64, over: u64) -> Result<Option<Gone>> {
        let (terms, name, topic_id) =
            (Arc::clone(self.terms()), self.name().clone(), self.topic_id());
        let gone = self.on_log(move |log| {
            let now_ms = terms.clock.now_ms();
            let pinned = terms.pins.floor(Place { name: &name, topic_id }, now_ms);
            apply::delete_first(log, base_offset, over, pinned, now_ms)
        })?;
        self.terms().counters.add(gone.as_slice());
        Ok(gone)
    }

    fn place(&self) -> Place<'_> {
        Place { name: self.name(), topic_id: self.topic_id() }
    }
}

/// So long after `now_ms`; for ever if that is past the end of time.
fn after(now_ms: i64, time: Duration) -> i64 {
    now_ms.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}
