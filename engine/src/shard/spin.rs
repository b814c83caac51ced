//! Waiting for something that comes in microseconds: looking again and again, for a short while.
//!
//! A sleep and a wake cost 13 µs and more, which is half of what a fast disk takes. But a thread that
//! looks around takes a core from those that work, so only as many do as there are cores to spare.

#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A little longer than a durable append takes on a fast disk.
const SPIN: Duration = Duration::from_micros(80);

/// Looks between two looks at the clock.
const LOOKS: u32 = 8;

static SPINNING: AtomicUsize = AtomicUsize::new(0);

/// Looks until `done` or a short time is over, unless other threads do so on every spare core.
pub(super) fn spin_until(done: impl Fn() -> bool) {
    let before = SPINNING.fetch_add(1, Ordering::Relaxed);
    if before < spare_cores() {
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..LOOKS {
                if done() {
                    SPINNING.fetch_sub(1, Ordering::Relaxed);
                    return;
                }
                std::hint::spin_loop();
            }
            // The kernel worker that completes a write may wait for this core.
            std::thread::yield_now();
        }
    }
    SPINNING.fetch_sub(1, Ordering::Relaxed);
}

/// Cores beside the one that a shard works on.
fn spare_cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(0, |n| n.get() - 1))
}
