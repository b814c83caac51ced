//! Where time comes from.
//!
//! Everything that needs the time is given a [`Clock`], so that a simulated run can be replayed
//! from its seed. [`SystemClock`] is the only place of the engine that asks the system.

#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of time.
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since 1970-01-01 UTC, as in a record's timestamp. May jump either way.
    fn now_ms(&self) -> i64;
    /// Time since some fixed moment. Never goes back; for intervals and deadlines.
    fn monotonic(&self) -> Duration;
}

/// The system's clocks.
#[derive(Clone, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose [`Clock::monotonic`] starts at zero now.
    #[must_use]
    pub fn new() -> SystemClock {
        SystemClock { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the clock that the others are given"
        )]
        let now = SystemTime::now();
        // A machine whose clock is before 1970 gets negative milliseconds, not a panic.
        match now.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => {
                i64::try_from(before.duration().as_millis()).map_or(i64::MIN, i64::wrapping_neg)
            }
        }
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_never_goes_back_and_now_is_after_2025() {
        let clock = SystemClock::new();
        let first = clock.monotonic();
        assert!(clock.monotonic() >= first);
        assert!(clock.now_ms() > 1_735_689_600_000);
    }
}
