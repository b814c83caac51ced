//! Retention, pins and settings in a simulated life, and what must be true of them after any crash.
//!
//! Records are dated to 1970 and the limits are small, so nearly everything is due all the time: what
//! stays does so because a limit, the high watermark or a pin says so.

#![forbid(unsafe_code)]

use super::run::{Life, say};
use crate::config::{HighWatermark, PartitionConfig};
use crate::{Error, Offset, Partition, Pin, SettingsChange};
use std::time::Duration;

/// What was agreed about one partition's records.
#[derive(Default)]
pub(super) struct Terms {
    /// Their calls returned; they hold.
    pins: Vec<Pin>,
    /// Released, or moved, by a call that failed: there or not.
    doubtful: Vec<Pin>,
    /// What `retention_records` may be; empty: it was never changed.
    records: Vec<Option<u64>>,
}

impl Terms {
    /// Compares what a restart brought back.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub(super) fn check(&mut self, partition: &Partition) -> Result<(), String> {
        let found = partition.pins();
        let now_ms = partition.terms().clock.now_ms();
        for pin in self.pins.iter().filter(|pin| pin.is_live(now_ms)) {
            if !found.contains(pin) {
                return Err(format!("{pin:?} is gone; there are {found:?}"));
            }
            let start = partition.log_start_offset();
            // A truncation may have cut the log below it.
            if start > pin.offset && start < partition.log_end_offset() {
                return Err(format!("the log starts at {start}, past {pin:?}"));
            }
        }
        let records = partition.config().retention_records;
        if !self.records.is_empty() && !self.records.contains(&records) {
            return Err(format!("retention_records is {records:?}, not of {:?}", self.records));
        }
        if !self.records.is_empty() {
            self.records = vec![records];
        }
        Ok(())
    }

    fn floor(&self, now_ms: i64) -> i64 {
        let live = self.pins.iter().filter(|pin| pin.is_live(now_ms));
        live.map(|pin| pin.offset.0).min().unwrap_or(i64::MAX)
    }
}

impl Life {
    /// Settings of a life with retention; without it records stay for ever.
    pub(super) fn retention_config(&self) -> PartitionConfig {
        let mut config = PartitionConfig { retention_ms: None, ..PartitionConfig::default() };
        if self.plan.retention {
            match self.plan.seed % 3 {
                0 => config.retention_ms = Some(1_000),
                1 => config.retention_bytes = Some(1_500),
                _ => config.retention_records = Some(4),
            }
            if self.plan.seed.is_multiple_of(2) {
                config.high_watermark = HighWatermark::SetByHost;
            }
        }
        config
    }

    pub(super) fn retention_operation(&mut self, at: usize) {
        match self.rng.below(10) {
            0..=4 => {
                self.advance_high_watermark(at);
                self.retain();
            }
            5 => self.pin(at),
            6..=7 => self.release(at),
            8 => self.advance(at),
            _ => self.configure(at),
        }
    }

    /// Of a host that sets it: somewhere, or to the end.
    fn advance_high_watermark(&mut self, at: usize) {
        let end = self.models[at].log_end();
        let to = if self.rng.coin() {
            self.rng.below(1 + end.cast_unsigned()).cast_signed()
        } else {
            end
        };
        let high_watermark = self.partitions[at].set_high_watermark(Offset(to));
        say!(self, "partition {at} high watermark {to}: {high_watermark}");
    }

    fn retain(&mut self) {
        self.settle();
        let clock = self.world.clock();
        let now_ms = crate::io::Clock::now_ms(clock.as_ref());
        let mut before = Vec::new();
        for (at, partition) in self.partitions.iter().enumerate() {
            // What may go at most; the models hold the log start against it from now on.
            let most = partition.high_watermark().0.min(self.terms[at].floor(now_ms));
            self.models[at].deleting_before(most);
            before.push(partition.stat());
        }
        let round = self.engine.as_ref().unwrap().apply_retention();
        say!(self, "retention: {round:?}");
        self.seen.deleted += round.deleted.total().segments;
        let calm = self.plan.faults == 0 && self.plan.fail_at.is_none();
        if calm && self.world.died().is_none() {
            assert!(round.failed.is_empty(), "retention failed without a fault: {round:?}");
        }
        for (at, partition) in self.partitions.iter().enumerate() {
            let (config, before, after) = (partition.config(), before[at], partition.stat());
            let start = after.log_start_offset.0;
            if start == before.log_start_offset.0 {
                continue;
            }
            assert!(
                start <= before.high_watermark.0,
                "partition {at} starts at {start}, past the high watermark {}",
                before.high_watermark
            );
            let floor = self.terms[at].floor(now_ms);
            assert!(start <= floor, "partition {at} starts at {start}, pinned at {floor}");
            let by_bytes = config.retention_bytes.is_some_and(|limit| after.bytes >= limit);
            let records = (after.log_end_offset.0 - start).cast_unsigned();
            let by_records = config.retention_records.is_some_and(|limit| records >= limit);
            assert!(
                config.retention_ms.is_some() || by_bytes || by_records,
                "partition {at} was cut below its limits: {config:?} {after:?}"
            );
        }
    }

    fn pin(&mut self, at: usize) {
        self.settle();
        let end = self.models[at].log_end();
        let offset = Offset(self.rng.below(1 + end.cast_unsigned()).cast_signed());
        let soon = Some(Duration::from_millis(1 + self.rng.below(500)));
        let expires_in = if self.rng.coin() { soon } else { None };
        let pinned = self.partitions[at].pin("sim", "a test", offset, expires_in);
        say!(self, "partition {at} pin at {offset}: {pinned:?}");
        if let Ok(pin) = pinned {
            self.terms[at].pins.push(pin);
        }
    }

    fn release(&mut self, at: usize) {
        let Some(last) = self.terms[at].pins.len().checked_sub(1) else { return };
        let pin = self.terms[at].pins.remove(self.rng.index(last + 1));
        let released = self.partitions[at].release_pin(pin.id);
        say!(self, "partition {at} released {}: {released:?}", pin.id);
        if released.is_err() {
            self.terms[at].doubtful.push(pin);
        }
    }

    fn advance(&mut self, at: usize) {
        let Some(last) = self.terms[at].pins.len().checked_sub(1) else { return };
        let pin = self.terms[at].pins.remove(self.rng.index(last + 1));
        let to = Offset(pin.offset.0 + self.rng.below(5).cast_signed());
        let advanced = self.partitions[at].advance_pin(pin.id, to, None);
        say!(self, "partition {at} advanced {} to {to}: {advanced:?}", pin.id);
        match advanced {
            Ok(pin) => self.terms[at].pins.push(pin),
            Err(Error::NotFound { .. }) => {}
            Err(_) => self.terms[at].doubtful.push(pin),
        }
    }

    fn configure(&mut self, at: usize) {
        let limit = self.rng.coin().then(|| self.rng.below(12));
        let change = SettingsChange::new().retention_records(limit);
        let changed = self.partitions[at].configure(&change);
        say!(self, "partition {at} retention_records {limit:?}: {changed:?}");
        let now = self.partitions[at].config().retention_records;
        let records = &mut self.terms[at].records;
        match changed {
            Ok(()) => *records = vec![limit],
            Err(_) => {
                records.push(limit);
                // What it was before was never noted if this is the first change.
                records.push(now);
            }
        }
    }
}
