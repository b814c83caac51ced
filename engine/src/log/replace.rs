//! A compacted segment takes the place of its sources: Kafka's `UnifiedLog.replaceSegments`.
//!
//! The shard that owns the log does it, in steps; between two of them the names in the directory are
//! synced by whoever asked, so that the shard does not wait for the disk:
//!
//! ```text
//! named         .cleaned ─▶ .swap          from here on, once synced, a restart finishes the swap
//! listed        the list that readers load has the new segment; sources are marked as retired
//! indexes gone  sources' index files ─▶ .deleted    synced before the logs: an index without a log
//! logs gone     sources' logs ─▶ .deleted           would be taken for a segment that was lost
//! done          .swap ─▶ the plain names
//! ```
//!
//! What else changes the files of a log settles a swap under way first ([`Log::settle_swap`]), waiting
//! for the disk itself. Past `named` there is no way back, and none is needed: readers have the new
//! segment's file open, and a restart finds the `.swap` files. A source's file that a reader has open
//! stays readable; one that it opens by name is checked after ([`super::LogShared::with_segments`]).

#![forbid(unsafe_code)]

use super::{Log, RetiredSegment};
use crate::error::{Error, Result};
use crate::segment::{Segment, names};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How far a log is compacted, for any thread.
pub(crate) struct CleanedMark {
    /// Compacted below; −1 before the first time.
    offset: AtomicI64,
    /// Truncations so far: what was planned before one does not hold after it.
    cuts: AtomicU64,
    /// Segments replaced so far: files that were opened by name before a change may be another's.
    swaps: AtomicU64,
    /// Held while index files of a segment are replaced, or a segment is retired.
    renaming: Mutex<()>,
}

impl CleanedMark {
    pub(crate) fn new(offset: Option<i64>) -> CleanedMark {
        CleanedMark {
            offset: AtomicI64::new(offset.unwrap_or(-1)),
            cuts: AtomicU64::new(0),
            swaps: AtomicU64::new(0),
            renaming: Mutex::default(),
        }
    }

    /// First offset that compaction has not seen; `None` before the first compaction.
    pub(crate) fn offset(&self) -> Option<i64> {
        Some(self.offset.load(Ordering::Acquire)).filter(|offset| *offset >= 0)
    }

    /// Changes with every truncation.
    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    /// Changes when a segment was replaced, before any file gets another name.
    pub(super) fn swaps(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.swaps.load(Ordering::SeqCst)
    }

    /// The log is cut at `offset`: what comes there now was not compacted.
    pub(super) fn on_cut(&self, offset: i64) {
        self.cuts.fetch_add(1, Ordering::AcqRel);
        self.offset.fetch_min(offset, Ordering::AcqRel);
    }

    pub(super) fn renaming(&self) -> MutexGuard<'_, ()> {
        self.renaming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A compacted segment, whole and synced under its `.cleaned` names.
pub(crate) struct Replacement {
    /// Ready for readers; its file is pinned.
    pub(crate) segment: Arc<Segment>,
    /// What it replaces: neighbours, all sealed and below the recovery point that is on disk.
    pub(crate) sources: Vec<Arc<Segment>>,
    /// The suffixes of its files.
    pub(crate) suffixes: Vec<&'static str>,
    /// [`CleanedMark::cuts`] when it was planned.
    pub(crate) cuts: u64,
}

/// What the cleaner asks of the log's owner.
pub(crate) enum SwapOrder {
    /// Begin with this one.
    Begin(Box<Replacement>),
    /// The names are synced: take the next step.
    Next,
    /// The names could not be synced: take the first step back, if it was the only one.
    Undo,
    /// Finish what an earlier try left half done.
    Settle,
    /// All below the offset was compacted, if there was no truncation since.
    Cleaned {
        /// The first offset that was not.
        offset: i64,
        /// [`CleanedMark::cuts`] when it was planned.
        cuts: u64,
    },
}

/// What the cleaner is to do now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SwapState {
    /// Sync the directory, then ask for the next step.
    SyncNames,
    /// Nothing.
    Done,
    /// Plan anew: the log has changed under the plan, and nothing was done.
    Stale,
}

/// A swap under way.
pub(super) struct Swap {
    replacement: Replacement,
    stage: Stage,
    /// Tells `.deleted` names of one base offset apart.
    number: u64,
    /// The sources' files that have such names.
    deleted: Vec<(i64, PathBuf)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Named,
    Listed,
    IndexesGone,
    LogsGone,
    Renamed,
}

/// Numbers for the names of replaced files: two segments of one base offset may wait for their end.
static SWAPS: AtomicU64 = AtomicU64::new(0);

impl Log {
    /// Does what the cleaner asks.
    pub(crate) fn swap(&mut self, order: SwapOrder) -> Result<SwapState> {
        match order {
            SwapOrder::Begin(replacement) => self.begin_swap(*replacement),
            SwapOrder::Next => self.next_swap_step(),
            SwapOrder::Undo => self.undo_swap(),
            SwapOrder::Settle => self.settle_swap().map(|()| SwapState::Done),
            SwapOrder::Cleaned { offset, cuts } => {
                if cuts != self.shared.cleaned.cuts() {
                    return Ok(SwapState::Stale);
                }
                self.shared.cleaned.offset.store(offset, Ordering::Release);
                Ok(SwapState::Done)
            }
        }
    }

    fn begin_swap(&mut self, replacement: Replacement) -> Result<SwapState> {
        self.check_usable()?;
        self.settle_swap()?;
        if !self.is_current(&replacement) {
            self.remove_files(&replacement, names::CLEANED)?;
            return Ok(SwapState::Stale);
        }
        let number = SWAPS.fetch_add(1, Ordering::Relaxed);
        let swap = Swap { replacement, stage: Stage::Named, number, deleted: Vec::new() };
        let named = self.rename_files(&swap.replacement, names::CLEANED, names::SWAP);
        self.swap = Some(swap);
        if let Err(error) = named {
            self.undo_swap()?;
            return Err(error);
        }
        Ok(SwapState::SyncNames)
    }

    /// True if the sources are in the list, side by side, with a segment behind them.
    fn is_current(&self, replacement: &Replacement) -> bool {
        let list = self.shared.segments.load();
        let Some(first) = replacement.sources.first() else { return false };
        let at = list.partition_point(|segment| segment.base_offset() < first.base_offset());
        let there = list.get(at..at + replacement.sources.len());
        let same = there.is_some_and(|there| {
            there.iter().zip(&replacement.sources).all(|(a, b)| Arc::ptr_eq(a, b))
        });
        let sealed = at + replacement.sources.len() < list.len();
        same && sealed && replacement.cuts == self.shared.cleaned.cuts()
    }

    fn next_swap_step(&mut self) -> Result<SwapState> {
        let Some(mut swap) = self.swap.take() else { return Ok(SwapState::Done) };
        let done = self.step(&mut swap);
        if swap.stage != Stage::Renamed || done.is_err() {
            self.swap = Some(swap);
            done?;
        }
        Ok(SwapState::SyncNames)
    }

    /// One step; one that failed is taken again as it was.
    fn step(&mut self, swap: &mut Swap) -> Result<()> {
        if swap.stage == Stage::Named {
            self.list_swapped(&swap.replacement);
            swap.stage = Stage::Listed;
        }
        match swap.stage {
            Stage::Named | Stage::Listed => {
                self.delete_sources(swap, &[names::INDEX, names::TIME_INDEX, names::TXN_INDEX])?;
                swap.stage = Stage::IndexesGone;
            }
            Stage::IndexesGone => {
                self.delete_sources(swap, &[names::LOG])?;
                swap.stage = Stage::LogsGone;
                for segment in swap.replacement.sources.drain(..) {
                    let base = segment.base_offset();
                    let files = swap.deleted.iter().filter(|(of, _)| *of == base);
                    let files = files.map(|(_, path)| path.clone()).collect();
                    segment.close_file();
                    self.retired.push(RetiredSegment { segment, files });
                }
            }
            Stage::LogsGone => {
                self.rename_files(&swap.replacement, names::SWAP, "")?;
                swap.stage = Stage::Renamed;
                swap.replacement.segment.unpin_file(&self.shared.open_files);
            }
            Stage::Renamed => {}
        }
        Ok(())
    }

    /// Readers find the new segment from here on.
    fn list_swapped(&mut self, replacement: &Replacement) {
        let mut list = self.shared.segments.load().to_vec();
        let base = replacement.segment.base_offset();
        let at = list.partition_point(|segment| segment.base_offset() < base);
        let end = (at + replacement.sources.len()).min(list.len());
        list.splice(at..end, [Arc::clone(&replacement.segment)]);
        self.shared.segments.store(Arc::new(list));
        self.shared.cleaned.swaps.fetch_add(1, Ordering::SeqCst);
        let _renaming = self.shared.cleaned.renaming();
        for source in &replacement.sources {
            self.sync.forget(source);
            source.retire();
        }
    }

    fn delete_sources(&self, swap: &mut Swap, suffixes: &[&str]) -> Result<()> {
        for source in &swap.replacement.sources {
            for suffix in suffixes {
                let base = source.base_offset();
                let from = names::path(&self.shared.dir, base, suffix);
                let suffix = format!("{suffix}.{}{}", swap.number, names::DELETED);
                let to = names::path(&self.shared.dir, base, &suffix);
                if self.rename(&from, &to)? {
                    swap.deleted.push((base, to));
                }
            }
        }
        Ok(())
    }

    /// The log comes last, and is what counts: without it the others are leftovers.
    fn rename_files(&self, replacement: &Replacement, from: &str, to: &str) -> Result<()> {
        let base = replacement.segment.base_offset();
        for suffix in &replacement.suffixes {
            let path =
                |state: &str| names::path(&self.shared.dir, base, &format!("{suffix}{state}"));
            self.rename(&path(from), &path(to))?;
        }
        Ok(())
    }

    /// Renames a file; false if it is not there, perhaps since an earlier try.
    fn rename(&self, from: &Path, to: &Path) -> Result<bool> {
        match self.disk.rename(from, to) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("rename", from, e)),
        }
    }

    fn remove_files(&self, replacement: &Replacement, state: &str) -> Result<()> {
        let base = replacement.segment.base_offset();
        // The log first: without it a restart makes nothing of the others.
        for suffix in replacement.suffixes.iter().rev() {
            let path = names::path(&self.shared.dir, base, &format!("{suffix}{state}"));
            match self.disk.remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes the first step back. Past it nothing is undone: the next one who must settles the swap.
    fn undo_swap(&mut self) -> Result<SwapState> {
        let Some(swap) = self.swap.take_if(|swap| swap.stage == Stage::Named) else {
            return Ok(SwapState::Done);
        };
        let undone = self
            .remove_files(&swap.replacement, names::SWAP)
            .and_then(|()| self.remove_files(&swap.replacement, names::CLEANED))
            .and_then(|()| self.sync_dir());
        if undone.is_err() {
            // A restart may take it for finished: nothing may be cut or deleted here until then.
            self.failed = Some("compaction");
        }
        undone.map(|()| SwapState::Done)
    }

    /// Finishes a swap that is under way, waiting for the disk. For what else changes files.
    pub(crate) fn settle_swap(&mut self) -> Result<()> {
        while self.swap.is_some() {
            // Whether the names of the last step are on disk only the cleaner knows.
            self.sync_dir()?;
            self.next_swap_step()?;
            if self.swap.is_none() {
                self.sync_dir()?;
            }
        }
        Ok(())
    }
}
