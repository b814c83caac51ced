//! A million crashes in memory: the production engine on a disk that tears, reorders, loses and
//! fails, against an oracle. `make sim`; `SEED=n make sim` runs one seed again and says what it did.
//!
//! | file | what |
//! |---|---|
//! | `model.rs` | what a partition must hold |
//! | `values.rs` | what its values, and the cursors of a group, must be |
//! | `producers.rs` | clients with sequences and transactions, and what must be known of them |
//! | `run.rs` | one life of a directory: work, crash, recovery |
//! | `retain.rs` | retention, pins and settings in such a life |
//! | `state.rs` | values and cursors over a crash at a chosen moment |
//! | `compaction.rs` | compaction without crashes, record by record |
//! | `mod.rs` | how many lives, every fault at every I/O, planted bugs |

#![forbid(unsafe_code)]

mod compaction;
mod model;
mod producers;
mod retain;
mod run;
mod state;
mod values;

use crate::planted::{Bug, plant};
use run::{Life, Plan, Seen};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Crashes of one run of this test; LOGLANE_SIM_CRASHES sets more.
const CRASHES: u64 = 20_000;

fn live(plan: Plan) -> Result<Seen, String> {
    run(plan, Life::live)
}

fn run(plan: Plan, way: fn(Life) -> Result<Seen, String>) -> Result<Seen, String> {
    let life = Life::new(plan);
    let world = life.world().clone();
    match catch_unwind(AssertUnwindSafe(|| way(life))) {
        Ok(Ok(seen)) => Ok(seen),
        Ok(Err(what)) => Err(format!("{what}\n{plan:?}\n{}", world.trace())),
        Err(panic) => {
            let what = panic.downcast_ref::<String>().cloned();
            let what = what.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("panic: {}\n{plan:?}\n{}", what.unwrap_or_default(), world.trace()))
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn no_crash_loses_invents_or_reorders_a_record() {
    if let Some(seed) = number("SEED") {
        let seen = live(Plan::random(seed)).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        println!("seed {seed}: {seen:?}");
        return;
    }
    let wanted = number("LOGLANE_SIM_CRASHES").unwrap_or(CRASHES);
    let first = number("LOGLANE_SIM_FIRST_SEED").unwrap_or(1);
    let (next, crashes, acknowledged, ios, replayed, deleted) = (
        AtomicU64::new(first),
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
    );
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while crashes.load(Ordering::Relaxed) < wanted {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let seen = live(Plan::random(seed))
                        .unwrap_or_else(|what| panic!("SEED={seed}: {what}"));
                    acknowledged.fetch_add(seen.acknowledged, Ordering::Relaxed);
                    ios.fetch_add(seen.ios, Ordering::Relaxed);
                    deleted.fetch_add(seen.deleted, Ordering::Relaxed);
                    replayed.fetch_add(seen.replayed_bytes, Ordering::Relaxed);
                    let before = crashes.fetch_add(seen.crashes, Ordering::Relaxed);
                    if before / 100_000 != (before + seen.crashes) / 100_000 {
                        println!("{} crashes, {:.0} s", before, start.elapsed().as_secs_f64());
                    }
                }
            });
        }
    });
    println!(
        "{} crashes over {} seeds from {first}: {} durable acknowledgements, 0 lost; {} I/Os, \
         {} bytes replayed, {} segments deleted by retention, {:.0} s",
        crashes.into_inner(),
        next.into_inner() - first,
        acknowledged.into_inner(),
        ios.into_inner(),
        replayed.into_inner(),
        deleted.into_inner(),
        start.elapsed().as_secs_f64()
    );
}

/// A short life that appends, rolls, truncates, deletes, checkpoints and closes.
fn short(seed: u64) -> Plan {
    Plan {
        seed,
        partitions: 2,
        operations: 30,
        crashes: 1,
        power_only: true,
        faults: 0,
        retention: seed == 4,
        compacts: false,
        cut_at: None,
        fail_at: None,
    }
}

#[test]
fn a_cut_and_every_fault_at_every_io_of_a_short_life_lose_nothing() {
    let mut lives = 0;
    for seed in [3, 4, 5] {
        // Compaction needs a longer life to meet with something to do.
        let short = |seed| Plan {
            compacts: seed > 4,
            operations: if seed > 4 { 60 } else { 30 },
            ..short(seed)
        };
        let seen = run(short(seed), Life::live_through).unwrap();
        assert_eq!(seen.compacted > 0, seed > 4, "{seen:?}");
        for at in 0..seen.ios {
            for errno in
                [0, libc::EIO, libc::ENOSPC, libc::EINTR, libc::EROFS, libc::EMFILE, libc::EFBIG]
            {
                let plan = match errno {
                    0 => Plan { cut_at: Some(at), ..short(seed) },
                    errno => Plan { fail_at: Some((at, errno)), ..short(seed) },
                };
                run(plan, Life::live_through)
                    .unwrap_or_else(|what| panic!("I/O {at}, errno {errno}: {what}"));
                lives += 1;
            }
        }
    }
    println!("{lives} lives, each with a cut or a fault at another I/O");
}

/// Runs lives with a bug planted until one is caught; gives how many that took.
fn lives_until_caught(bug: Bug, lives: u64) -> Option<u64> {
    let plan = |seed| {
        let mut plan = Plan { power_only: true, ..Plan::random(seed) };
        let by_faults =
            [Bug::SyncAgain, Bug::SyncBelieved, Bug::KeepStagedProducers, Bug::SnapshotPastSynced];
        if by_faults.contains(&bug) {
            plan.faults = 20_000;
        }
        // Each shows in its own work; other work would only make it rarer.
        plan.retention = bug.is_of_retention();
        plan.compacts = matches!(bug, Bug::SwapBeforeSync | Bug::SourcesBeforeNames);
        plan
    };
    plant(Some(bug));
    let caught = (1..=lives).find(|seed| live(plan(*seed)).is_err());
    plant(None);
    if let Some(seed) = caught {
        live(plan(seed)).unwrap_or_else(|what| panic!("{bug:?} is not to blame: {what}"));
    }
    caught
}

#[test]
fn each_planted_bug_is_caught() {
    for bug in [
        Bug::AckBeforeSync,
        Bug::NoDirectorySync,
        Bug::FramesOutOfOrder,
        Bug::SyncAgain,
        Bug::SyncBelieved,
        Bug::RetentionPassesHighWatermark,
        Bug::RetentionIgnoresPins,
        Bug::StateRenamedUnsynced,
        Bug::ChangeBeforeAppends,
        Bug::AppendBeforeChanges,
        Bug::KeepStagedProducers,
        Bug::SnapshotPastLogEnd,
        Bug::SnapshotPastSynced,
        Bug::ForgetAborted,
        Bug::AbortedUnsynced,
        Bug::SwapBeforeSync,
        Bug::SourcesBeforeNames,
    ] {
        let lives = lives_until_caught(bug, 20_000);
        println!("{bug:?}: caught after {lives:?} lives");
        assert!(lives.is_some(), "{bug:?} was not caught");
    }
}
