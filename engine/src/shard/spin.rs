//! Waiting for something that comes in microseconds: looking again and again, for a short while.
//!
//! A sleep and a wake cost 13 µs and more, which is half of what a fast disk takes. But a thread that
//! looks around takes a core from those that work, so only as many do as shards leave cores to spare.

#![forbid(unsafe_code)]

use std::num::NonZero;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A little longer than a durable append takes on a fast disk.
const SPIN: Duration = Duration::from_micros(80);

/// Looks between two looks at the clock.
const LOOKS: u32 = 8;

/// Shards that are awake, and threads that look around for their answers.
static AWAKE: AtomicUsize = AtomicUsize::new(0);

/// Counts a shard as one that needs a core, while it lives.
pub(super) struct Awake(());

impl Awake {
    pub(super) fn new() -> Awake {
        AWAKE.fetch_add(1, Ordering::Relaxed);
        Awake(())
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        AWAKE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Looks until `done` or a short time is over, unless others are awake for every core.
pub(super) fn spin_until(done: impl Fn() -> bool) {
    let start = Instant::now();
    let _awake = Awake::new();
    while AWAKE.load(Ordering::Relaxed) <= cores() && start.elapsed() < SPIN {
        for _ in 0..LOOKS {
            if done() {
                return;
            }
            std::hint::spin_loop();
        }
        // The kernel worker that completes a write may wait for this core.
        std::thread::yield_now();
    }
}

fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}
