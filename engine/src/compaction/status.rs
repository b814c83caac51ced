//! What is known of a partition's compaction.

#![forbid(unsafe_code)]

use super::LogShared;
use super::plan::Plan;
use super::transactions::last_stable_offset;
use crate::error::{Error, Result};
use crate::offset::Offset;
use std::sync::{Mutex, PoisonError};

/// What a run of compaction did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CompactionRun {
    /// When it ended, Unix ms.
    pub finished_ms: i64,
    /// Times the log was rewritten: more than one if the keys did not fit the memory; 0 if nothing
    /// was to be done.
    pub passes: u32,
    /// Bytes of the segments that were rewritten, over all passes.
    pub bytes_read: u64,
    /// Bytes of what took their places.
    pub bytes_written: u64,
    /// Records in them.
    pub records_read: u64,
    /// Records that stayed.
    pub records_kept: u64,
}

/// How far a partition is compacted, and how the last run went.
#[derive(Clone, PartialEq, Debug)]
pub struct CompactionStatus {
    /// Everything below was compacted; `None` before the first run.
    pub cleaned_offset: Option<Offset>,
    /// Bytes of sealed segments that were compacted.
    pub clean_bytes: u64,
    /// Bytes of sealed segments that could be.
    pub dirty_bytes: u64,
    /// Their part of both, 0 to 1: compaction starts by itself above `min_cleanable_dirty_ratio`.
    pub dirty_ratio: f64,
    /// The last run that ended well, since the open.
    pub last_run: Option<CompactionRun>,
    /// Why the last run ended before its end. While there is one the partition is not compacted in the
    /// background, unless it was for lack of space; [`crate::Partition::compact`] tries again.
    pub error: Option<String>,
}

/// What is remembered between runs of a partition.
#[derive(Default)]
pub(crate) struct Latch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_run: Option<CompactionRun>,
    error: Option<String>,
    /// Not to be tried again by itself.
    uncleanable: bool,
}

impl Latch {
    /// True if an earlier run failed in a way that another would too.
    pub(crate) fn is_uncleanable(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).uncleanable
    }

    pub(crate) fn succeeded(&self, run: CompactionRun) {
        let last_run = Some(run);
        let state = State { last_run, error: None, uncleanable: false };
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    pub(crate) fn failed(&self, error: &Error) {
        let passes = matches!(
            error,
            Error::NoSpace { .. } | Error::TooManyOpenFiles { .. } | Error::Closed { .. }
        );
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.error = Some(error.to_string());
        state.uncleanable |= !passes;
    }

    /// The status as of now.
    pub(crate) fn status(&self, shared: &LogShared, now_ms: i64) -> Result<CompactionStatus> {
        let segments = shared.segments.load_full();
        let plan = Plan::make(shared, &segments, last_stable_offset(shared), now_ms)?;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(CompactionStatus {
            cleaned_offset: shared.cleaned.offset().map(Offset),
            clean_bytes: plan.clean_bytes,
            dirty_bytes: plan.dirty_bytes,
            dirty_ratio: plan.dirty_ratio(),
            last_run: state.last_run,
            error: state.error.clone(),
        })
    }
}
