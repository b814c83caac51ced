//! A long poll wakes once: when there is enough, when its time is over, or when the log went away.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected should panic"
)]

mod support;

use loglane::{
    AppendOptions, Engine, Error, FetchOptions, HighWatermark, Isolation, Offset, Woken,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{batch, small_segments};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_poll_wakes_when_its_partitions_together_have_enough() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partitions = engine.create_topic("t", 3).unwrap();
    let interests: Vec<_> = partitions.iter().map(|p| (p.clone(), Offset(0))).collect();
    let size = batch(0, 4, 300).len() as u64;
    let poll = engine.long_poll(&interests, 3 * size, LONG, Isolation::LogEnd).unwrap();
    let append = |n: usize| {
        partitions[n].append(batch(0, 4, 300), AppendOptions::default()).unwrap();
    };
    append(0);
    append(0);
    assert!(!poll.is_ready(), "two of three");
    append(2);
    assert_eq!(poll.wait().unwrap(), Woken { bytes: 3 * size, timed_out: false });
    // Enough already: answered at once. Nothing wanted: likewise.
    for bytes_min in [0, 1, 3 * size] {
        let poll = engine.long_poll(&interests, bytes_min, LONG, Isolation::LogEnd).unwrap();
        assert!(poll.is_ready());
    }
    engine.close().unwrap();
}

#[test]
fn a_poll_ends_at_its_deadline_with_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    partition.append(batch(0, 4, 300), AppendOptions::default()).unwrap();
    let interests = [(partition, Offset(0))];
    let time = Duration::from_millis(20);
    let long = engine.long_poll(&interests, u64::MAX, LONG, Isolation::LogEnd).unwrap();
    let short = engine.long_poll(&interests, u64::MAX, time, Isolation::LogEnd).unwrap();
    let woken = short.wait().unwrap();
    assert!(woken.timed_out && woken.bytes > 0, "{woken:?}");
    assert!(!long.is_ready());
    engine.close().unwrap();
    assert!(matches!(long.wait(), Err(Error::Closed { .. })));
}

#[test]
fn a_poll_up_to_the_high_watermark_wakes_when_that_moves() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = small_segments(dir.path());
    config.partition.high_watermark = HighWatermark::SetByHost;
    let engine = Engine::open(config).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let interests = [(partition.clone(), Offset(0))];
    let poll = engine.long_poll(&interests, 1, LONG, Isolation::HighWatermark).unwrap();
    for from in [0, 4, 8] {
        partition.append(batch(from, 4, 300), AppendOptions::default()).unwrap();
    }
    assert!(!poll.is_ready(), "nothing is below the high watermark");
    partition.set_high_watermark(Offset(8));
    let size = batch(0, 4, 300).len() as u64;
    assert_eq!(poll.wait().unwrap(), Woken { bytes: 2 * size, timed_out: false });
    engine.close().unwrap();
}

#[test]
fn a_poll_wakes_when_the_offset_it_waits_at_is_cut_away() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    for from in [0, 4] {
        partition.append(batch(from, 4, 300), AppendOptions::default()).unwrap();
    }
    let interests = [(partition.clone(), Offset(8))];
    let poll = engine.long_poll(&interests, 1, LONG, Isolation::LogEnd).unwrap();
    partition.truncate(Offset(4)).unwrap();
    assert_eq!(poll.wait().unwrap(), Woken { bytes: 0, timed_out: false });
    let fetched = partition.fetch(Offset(8), &FetchOptions::default());
    assert!(matches!(fetched, Err(Error::Truncated { .. })));
    let refused = engine.long_poll(&interests, 1, LONG, Isolation::LogEnd);
    assert!(matches!(refused, Err(Error::Truncated { .. })));
    engine.close().unwrap();
}

#[test]
fn no_wake_is_lost_while_a_writer_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                partition.append(batch(0, 1, 10), AppendOptions::default()).unwrap();
            }
        });
        for _ in 0..2000 {
            let interests = [(partition.clone(), partition.log_end_offset())];
            let poll = engine.long_poll(&interests, 1, LONG, Isolation::LogEnd).unwrap();
            let woken = poll.wait().unwrap();
            assert!(!woken.timed_out && woken.bytes > 0);
        }
        stop.store(true, Ordering::Relaxed);
    });
    engine.close().unwrap();
}
