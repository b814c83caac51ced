//! Compaction by key: of each key the newest record stays (Kafka's `Cleaner`, `LogCleaner` and
//! `LogCleanerManager`, docs/FORMAT.md "Compaction").
//!
//! ```text
//! plan ─▶ history of transactions ─▶ map: key ─▶ newest offset     dirty part, as far as keys fit
//!      ─▶ for each group of segments: filter ─▶ .cleaned ─▶ swap   from the start of the log
//!      ─▶ cleaner-offset-checkpoint                                again, if keys did not fit
//! ```
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | one partition, all passes |
//! | `plan.rs` | which ranges, which groups |
//! | `map.rs` | from keys to offsets, bounded |
//! | `transactions.rs` | aborted, open, last batches of producers |
//! | `filter.rs` | which records stay, and their batches |
//! | `swap.rs` | one group's files |
//! | `schedule.rs` | which partition next, how fast |
//! | `status.rs` `find.rs` | what hosts see; the newest record of a key |
//!
//! Only sealed segments below the recovery point are read, and it is on disk before the first of them
//! is replaced: a restart writes nothing from the journal into a segment that is not the one it was
//! written for. The work is done on the cleaner's thread or on that of who asked; the shard
//! only exchanges names. What a partition's compaction meets is its own: others go on.

#![forbid(unsafe_code)]

mod filter;
mod find;
mod map;
mod plan;
mod scan;
mod schedule;
mod status;
mod swap;
mod transactions;

pub use find::LatestRecord;
pub(crate) use find::last_by_key;
pub(crate) use schedule::Compactor;
pub(crate) use status::Latch;
pub use status::{CompactionRun, CompactionStatus};

use crate::error::Result;
use crate::format::Rewriter;
use crate::io::Disk;
use crate::log::{LogShared, SwapOrder, SwapState};
use crate::segment::Segment;
use filter::Filter;
use map::OffsetMap;
use plan::Plan;
use schedule::Throttle;
use std::sync::Arc;
use transactions::{Cleaned, History, fault_at, last_stable_offset};

/// A partition, as compaction sees it: the readers' side, and its shard behind a call.
pub(crate) trait Owner: Send + Sync {
    fn shared(&self) -> &Arc<LogShared>;
    /// Has the shard take a step of a swap.
    fn order(&self, order: SwapOrder) -> Result<SwapState>;
    /// Waits until all sealed segments are synced.
    fn sync_sealed(&self) -> Result<()>;
    /// What is remembered of its runs.
    fn latch(&self) -> &Latch;
}

/// What a run works with.
pub(crate) struct Tools<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) memory_bytes: u64,
    pub(crate) throttle: &'a Throttle,
    /// Unix ms.
    pub(crate) now_ms: i64,
    /// Writes the checkpoint files of the directory.
    pub(crate) store_points: &'a dyn Fn() -> Result<()>,
}

/// How a run ended that met no error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// All that could be compacted is.
    Done(CompactionRun),
    /// The log was cut or shortened meanwhile; what was done holds.
    Stale,
}

/// Compacts all of a partition that can be now, in as many passes as its keys need.
pub(crate) fn compact(owner: &dyn Owner, tools: &Tools<'_>) -> Result<Outcome> {
    let shared = owner.shared();
    owner.order(SwapOrder::Settle)?;
    let cuts = shared.cleaned.cuts();
    let mut run = CompactionRun::default();
    // Read once; what comes behind is for the next run.
    let synced = shared.offsets.synced();
    let segments = shared.segments.load_full();
    let history = {
        let first_dirty = plan::first_dirty(shared);
        let mut progress = |bytes| tools.throttle.spend(bytes);
        History::read(shared, &segments, first_dirty, &mut progress)
    };
    let history = match history {
        Err(_) if has_changed(shared, &segments, cuts) => return Ok(Outcome::Stale),
        history => history?,
    };
    let bound = synced.min(last_stable_offset(shared));
    let bound = history.open_from().map_or(bound, |open| open.min(bound));
    // From here on no journal entry below is redone, whatever happens to its segment.
    (tools.store_points)()?;
    let mut map = OffsetMap::new(tools.memory_bytes, history.dirty_records);
    loop {
        let segments = shared.segments.load_full();
        let plan = Plan::make(shared, &segments, bound, tools.now_ms)?;
        if plan.is_clean() {
            return Ok(Outcome::Done(run));
        }
        let pass = Pass { owner, tools, segments: &segments, plan, history: &history, cuts };
        let state = match pass.run(&mut map, &mut run) {
            Err(_) if has_changed(shared, &segments, cuts) => SwapState::Stale,
            state => state?,
        };
        if state == SwapState::Stale {
            return Ok(Outcome::Stale);
        }
        run.passes += 1;
        (tools.store_points)()?;
    }
}

/// True if an error may be due to a segment that went away.
fn has_changed(shared: &LogShared, segments: &[Arc<Segment>], cuts: u64) -> bool {
    shared.cleaned.cuts() != cuts
        || shared.segments.load().first().map(|s| s.base_offset())
            != segments.first().map(|s| s.base_offset())
}

/// One pass: as many keys as fit the map.
struct Pass<'a> {
    owner: &'a dyn Owner,
    tools: &'a Tools<'a>,
    segments: &'a [Arc<Segment>],
    plan: Plan,
    history: &'a History,
    cuts: u64,
}

impl Pass<'_> {
    fn run(&self, map: &mut OffsetMap, run: &mut CompactionRun) -> Result<SwapState> {
        let shared = self.owner.shared();
        self.fill(map)?;
        let end = map.latest_offset() + 1;
        let from = self.segments.first().map_or(0, |first| first.base_offset());
        let mut cleaned = Cleaned::new(self.history, from);
        let mut filter = Filter {
            map,
            history: self.history,
            now_ms: self.tools.now_ms,
            delete_retention_ms: shared.config.load().delete_retention_ms,
            upper_bound: self.plan.end,
            rewriter: Rewriter::default(),
            records_read: 0,
            records_kept: 0,
        };
        for group in plan::groups(shared, self.segments, end, self.plan.end)? {
            let last = group.last().map_or(0, |last| last.base_offset());
            let behind = self.segments.partition_point(|segment| segment.base_offset() <= last);
            let Some(next) = self.segments.get(behind) else { break };
            let (tools, cuts, next) = (self.tools, self.cuts, next.base_offset());
            let owner = self.owner;
            let swapped =
                swap::clean_group(owner, tools, &group, next, cuts, &mut filter, &mut cleaned)?;
            if swapped.state == SwapState::Stale {
                return Ok(SwapState::Stale);
            }
            run.bytes_read += group.iter().map(|s| u64::from(s.tail().bytes)).sum::<u64>();
            run.bytes_written += swapped.bytes;
        }
        run.records_read += filter.records_read;
        run.records_kept += filter.records_kept;
        self.owner.order(SwapOrder::Cleaned { offset: end, cuts: self.cuts })
    }

    /// Puts the keys of the dirty part into the map, until they do not fit.
    fn fill(&self, map: &mut OffsetMap) -> Result<()> {
        map.clear();
        let (shared, plan) = (self.owner.shared(), &self.plan);
        let mut cleaned = Cleaned::new(self.history, plan.first_dirty);
        let mut full = false;
        for (at, segment) in self.segments.iter().enumerate() {
            let next = self.segments.get(at + 1).map_or(plan.end, |next| next.base_offset());
            if next <= plan.first_dirty || segment.base_offset() >= plan.end || full {
                continue;
            }
            scan::each_batch(shared, segment, |batch, _| {
                let header = batch.header();
                self.tools.throttle.spend(batch.bytes().len() as u64)?;
                if header.last_offset() < plan.first_dirty {
                    return Ok(true);
                }
                let failed = |fault| fault_at(segment, header, fault);
                let aborted = cleaned.on_batch(batch).map_err(failed)?;
                if !aborted && !header.attributes.is_control() {
                    let decoded = batch.decode().map_err(failed)?;
                    for record in decoded.records() {
                        let record = record.map_err(failed)?;
                        let Some(key) = record.key else { continue };
                        if record.offset >= plan.first_dirty && !map.put(key, record.offset) {
                            full = true;
                            return Ok(false);
                        }
                    }
                }
                map.advance_latest_offset(header.last_offset());
                Ok(true)
            })?;
            if !full {
                // Over a gap at the end of the segment.
                map.advance_latest_offset(next.min(plan.end) - 1);
            }
        }
        Ok(())
    }
}
