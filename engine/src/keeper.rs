//! The engine's housekeeper: one thread that writes the checkpoint files and unlinks what was
//! deleted. Nothing an append or a fetch waits for.

#![forbid(unsafe_code)]

use crate::checkpoint::{self, PartitionOffsets};
use crate::error::Result;
use crate::io::{Clock, Disk};
use crate::log::{LogShared, RetiredSegment};
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
        Keeper { dir, disk, clock, file_delete_delay, state, changed }
    }

    /// Takes over deleted segments.
    pub(crate) fn retire(&self, segments: Vec<RetiredSegment>) {
        let due = self.clock.monotonic() + self.file_delete_delay;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.retired.extend(segments.into_iter().map(|segment| (due, segment)));
        self.changed.notify_one();
    }

    /// Runs until told to stop. `partitions` gives those that are open.
    pub(crate) fn run(&self, interval: Duration, partitions: impl Fn() -> Vec<Arc<LogShared>>) {
        loop {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.stopping {
                return;
            }
            let wait = if state.retired.is_empty() { interval } else { interval.min(UNLINK_EVERY) };
            let state =
                self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            if state.stopping {
                return;
            }
            drop(state);
            self.unlink_due();
            if let Err(error) = self.write_checkpoints(&partitions()) {
                tracing::error!(%error, "checkpoint files not written; the next round tries again");
            }
        }
    }

    pub(crate) fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopping = true;
        self.changed.notify_one();
    }

    /// Unlinks files whose time has come and that no lease holds.
    fn unlink_due(&self) {
        let now = self.clock.monotonic();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due: Vec<_> = state
            .retired
            .extract_if(.., |(due, retired)| *due <= now && retired.segment.leases() == 0)
            .collect();
        drop(state);
        for (_, retired) in due {
            for file in retired.files {
                if let Err(error) = self.disk.remove_file(&file) {
                    // The next open removes every .deleted file.
                    tracing::warn!(file = %file.display(), %error, "a deleted file stays for now");
                }
            }
        }
    }

    /// Replaces the checkpoint files of the data directory.
    pub(crate) fn write_checkpoints(&self, partitions: &[Arc<LogShared>]) -> Result<()> {
        let collect = |offset: fn(&LogShared) -> Option<i64>| -> PartitionOffsets {
            partitions.iter().filter_map(|p| Some((p.name.clone(), offset(p)?))).collect()
        };
        let files: [(&str, PartitionOffsets); 3] = [
            (checkpoint::RECOVERY_POINTS, collect(|p| Some(p.offsets.durable()))),
            (checkpoint::HIGH_WATERMARKS, collect(|p| Some(p.offsets.high_watermark()))),
            (checkpoint::LOG_STARTS, collect(log_start_above_first_base)),
        ];
        for (name, offsets) in files {
            self.replace_if_changed(&self.dir.join(name), &offsets)?;
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

/// Kafka notes a log start only where the first segment's name does not say it already.
fn log_start_above_first_base(partition: &LogShared) -> Option<i64> {
    let start = partition.offsets.log_start();
    let first = partition.segments.load().first().map_or(0, |s| s.base_offset());
    Some(start).filter(|start| *start > first)
}
