//! Time that moves only when it is told to, or when a simulated lane waits.

#![forbid(unsafe_code)]

use crate::io::Clock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// 2026-01-01: later than zero, so that an age is not taken for a time.
const START_MS: i64 = 1_767_225_600_000;

/// A clock of a simulated run. Survives crashes, as the one on the wall does.
#[derive(Debug)]
pub(crate) struct SimClock {
    nanos: AtomicU64,
    wall_at_zero_ms: AtomicI64,
}

impl SimClock {
    pub(super) fn new() -> SimClock {
        SimClock { nanos: AtomicU64::new(0), wall_at_zero_ms: AtomicI64::new(START_MS) }
    }

    /// Another clock that shows the same now.
    pub(super) fn copy(&self) -> SimClock {
        let wall = self.wall_at_zero_ms.load(Ordering::Relaxed);
        let nanos = self.nanos.load(Ordering::Relaxed);
        SimClock { nanos: AtomicU64::new(nanos), wall_at_zero_ms: AtomicI64::new(wall) }
    }

    /// Lets time pass.
    pub(crate) fn advance(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // A wait for ever must not wrap the clock around.
        let _ = self.nanos.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            Some(now.saturating_add(nanos))
        });
    }

    /// Sets the wall clock forward or back; intervals do not notice.
    pub(crate) fn jump_wall(&self, by_ms: i64) {
        self.wall_at_zero_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> i64 {
        let passed = self.nanos.load(Ordering::Relaxed) / 1_000_000;
        self.wall_at_zero_ms.load(Ordering::Relaxed) + passed as i64
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_until_it_is_moved_and_the_wall_clock_may_jump() {
        let clock = SimClock::new();
        let (wall, passed) = (clock.now_ms(), clock.monotonic());
        assert_eq!((clock.now_ms(), clock.monotonic()), (wall, passed));
        clock.advance(Duration::from_millis(1500));
        assert_eq!(clock.now_ms() - wall, 1500);
        clock.jump_wall(-10_000);
        assert_eq!(clock.now_ms() - wall, -8500);
        assert_eq!(clock.monotonic() - passed, Duration::from_millis(1500));
        clock.advance(Duration::MAX);
        assert!(clock.monotonic() > Duration::from_secs(1 << 33), "no wrap");
    }
}
