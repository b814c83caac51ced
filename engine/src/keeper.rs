//! The engine's housekeeper: one thread that writes the checkpoint files and unlinks what was
//! deleted. Nothing an append or a fetch waits for.

#![forbid(unsafe_code)]

use crate::checkpoint::{self, PartitionOffsets};
use crate::error::Result;
use crate::io::{Clock, Disk};
use crate::log::RetiredSegment;
use crate::recovery::Checkpoints;
use crate::registry::Registry;
use crate::topic::TopicPartition;
use crate::unlink::unlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What the housekeeper looks after.
pub(crate) struct Keeper {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    file_delete_delay: Duration,
    state: Mutex<State>,
    changed: Condvar,
    writing: Mutex<()>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    /// Deleted segments, with the time when their files may go.
    retired: Vec<(Duration, RetiredSegment)>,
}

impl Keeper {
    pub(crate) fn new(
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        file_delete_delay: Duration,
    ) -> Keeper {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Keeper { dir, disk, clock, file_delete_delay, state, changed, writing: Mutex::default() }
    }

    /// Takes over deleted segments.
    pub(crate) fn retire(&self, segments: Vec<RetiredSegment>) {
        let due = self.clock.monotonic() + self.file_delete_delay;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.retired.extend(segments.into_iter().map(|segment| (due, segment)));
        self.changed.notify_one();
    }

    /// Runs until told to stop. `recover` opens one partition that nobody has touched; true if it did.
    pub(crate) fn run(
        &self,
        interval: Duration,
        registry: &Registry,
        recover: impl Fn() -> Result<bool>,
    ) {
        let mut recovering = true;
        loop {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.stopping {
                return;
            }
            let wait = match (recovering, state.retired.is_empty()) {
                (true, _) => RECOVER_PAUSE,
                (false, true) => interval,
                (false, false) => interval.min(UNLINK_EVERY),
            };
            let state =
                self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            if state.stopping {
                return;
            }
            drop(state);
            if !recovering {
                self.round(registry);
            }
            recovering = recover().unwrap_or_else(|error| {
                // Whoever asks for that partition is told; the close tries it again.
                tracing::error!(%error, "a partition could not be recovered in the background");
                false
            });
        }
    }

    /// Unlinks what is due and writes the checkpoint files.
    pub(crate) fn round(&self, registry: &Registry) {
        self.unlink_due(self.clock.monotonic());
        if let Err(error) = self.write_checkpoints(registry) {
            tracing::error!(%error, "checkpoint files not written; the next round tries again");
        }
    }

    pub(crate) fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopping = true;
        self.changed.notify_one();
    }

    /// Unlinks what no lease holds before its time comes: space is short.
    pub(crate) fn unlink_early(&self) {
        let early = self.file_delete_delay.saturating_sub(GRACE);
        self.unlink_due(self.clock.monotonic().saturating_add(early));
    }

    /// Unlinks files whose time has come and that no lease holds.
    fn unlink_due(&self, now: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due: Vec<_> = state
            .retired
            .extract_if(.., |(due, retired)| *due <= now && retired.segment.leases() == 0)
            .collect();
        drop(state);
        for (_, retired) in due {
            for file in retired.files {
                let rest = |time| self.rest(time);
                if let Err(error) = unlink(self.disk.as_ref(), self.clock.as_ref(), &file, rest) {
                    // The next open removes every .deleted file.
                    tracing::warn!(file = %file.display(), %error, "a deleted file stays for now");
                }
            }
        }
    }

    /// Waits that long; false if it is time to stop.
    fn rest(&self, time: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stopping = |state: &mut State| !state.stopping;
        let waited = self.changed.wait_timeout_while(state, time, stopping);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stopping
    }

    /// Replaces the checkpoint files of the data directory.
    pub(crate) fn write_checkpoints(&self, registry: &Registry) -> Result<()> {
        // One at a time: an older state must not come last.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let now: Vec<(TopicPartition, Checkpoints)> =
            registry.all().iter().map(|entry| (entry.name.clone(), entry.checkpoints())).collect();
        let collect = |offset: fn(&Checkpoints) -> Option<i64>| -> PartitionOffsets {
            now.iter().filter_map(|(name, c)| Some((name.clone(), offset(c)?))).collect()
        };
        let files: [(&str, PartitionOffsets); 4] = [
            (checkpoint::RECOVERY_POINTS, collect(|c| Some(c.recovery_point))),
            (checkpoint::HIGH_WATERMARKS, collect(|c| Some(c.high_watermark))),
            (checkpoint::LOG_STARTS, collect(|c| c.log_start)),
            (checkpoint::CLEANER_OFFSETS, collect(|c| c.cleaned)),
        ];
        for (name, offsets) in files {
            let path = self.dir.join(name);
            // Most directories compact nothing.
            if name == checkpoint::CLEANER_OFFSETS
                && offsets.is_empty()
                && self.disk.stat(&path).is_err()
            {
                continue;
            }
            self.replace_if_changed(&path, &offsets)?;
        }
        Ok(())
    }

    fn replace_if_changed(&self, path: &Path, offsets: &PartitionOffsets) -> Result<()> {
        let unchanged = checkpoint::read_offsets(self.disk.as_ref(), path)
            .is_ok_and(|before| before == *offsets && self.disk.stat(path).is_ok());
        if unchanged {
            return Ok(());
        }
        checkpoint::write_offsets(self.disk.as_ref(), path, offsets)
    }
}

/// How often deleted files are looked at while there are some.
const UNLINK_EVERY: Duration = Duration::from_millis(500);

/// How long a deleted file stays at least: a reader that found its segment just before may not have
/// its lease yet.
const GRACE: Duration = Duration::from_millis(500);

/// Between two partitions that are recovered in the background: those that somebody waits for go
/// first.
const RECOVER_PAUSE: Duration = Duration::from_micros(200);
