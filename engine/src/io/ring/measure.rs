//! Measurements, not tests: what the constants of rings were chosen by.

#![forbid(unsafe_code)]

use super::super::{BackendChoice, File, open};
use super::probe::builders;
use super::*;
use std::path::Path;
use std::time::Instant;

#[test]
#[ignore = "a measurement, not a test: run it alone, in release, with --nocapture"]
fn measure_wakes_and_syncs() {
    let dir = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
    for choice in [BackendChoice::IoUring, BackendChoice::Plain] {
        let disk = open(dir.path(), choice).unwrap();
        println!("{}:", disk.backend().kind.name());
        measure_wakes(disk.lane().unwrap());
        measure_syncs(&*disk, dir.path());
    }
    for (name, builder) in ["defer", "coop", "plainest"].into_iter().zip(builders()) {
        println!("ring, {name}:");
        measure_wakes(Box::new(RingLane::on(builder.build(RING_ENTRIES).unwrap()).unwrap()));
    }
}

fn percentiles(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |per_mille| times[(times.len() - 1) * per_mille / 1000];
    println!("  {what}: p50 {:?}  p99 {:?}  max {:?}", at(500), at(990), at(1000));
}

fn measure_wakes(mut lane: Box<dyn Lane>) {
    use std::sync::atomic::{AtomicU64, Ordering};
    const ROUNDS: usize = 5_000;
    let (start, sent) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let (waker, stamp) = (lane.waker(), Arc::clone(&sent));
    let nanos = |t: Duration| u64::try_from(t.as_nanos()).unwrap();
    let other = std::thread::spawn(move || {
        let mut cost = Vec::with_capacity(ROUNDS);
        while cost.len() < ROUNDS {
            std::thread::sleep(Duration::from_micros(100));
            let before = start.elapsed();
            stamp.store(nanos(before), Ordering::Release);
            waker.wake();
            cost.push(start.elapsed() - before);
        }
        cost
    });
    let (mut times, mut last) = (Vec::with_capacity(ROUNDS), 0);
    while times.len() < ROUNDS * 99 / 100 {
        lane.wait(Some(Duration::from_secs(1))).unwrap();
        let now = nanos(start.elapsed());
        let at = sent.load(Ordering::Acquire);
        if at != last {
            times.push(Duration::from_nanos(now - at));
            last = at;
        }
    }
    percentiles("wake to running", &mut times);
    percentiles("call of wake", &mut other.join().unwrap());
}

fn measure_syncs(disk: &dyn super::super::Disk, dir: &Path) {
    use super::super::OpenMode;
    let page = [1; 4096];
    let files: Vec<_> = (0..64)
        .map(|i| disk.open(&dir.join(i.to_string()), OpenMode::CreateOrTruncate).unwrap())
        .collect();
    let mut lane = disk.lane().unwrap();
    let mut position = 0;
    let mut rounds = |what: &str, count: usize, files: &[FileRef], run: &mut dyn FnMut()| {
        let mut times = Vec::new();
        for _ in 0..count {
            files.iter().for_each(|f| f.write_all_at(&page, position).unwrap());
            position += 4096;
            let start = Instant::now();
            run();
            times.push(start.elapsed());
        }
        percentiles(what, &mut times);
    };
    rounds("one file, sync_data", 500, &files[..1], &mut || files[0].sync_data().unwrap());
    let mut done = Vec::new();
    let mut through_lane = |files: &[FileRef]| {
        for file in files {
            lane.submit(Op::SyncData(Arc::clone(file)), 0);
        }
        while lane.pending() > 0 {
            lane.wait(None).unwrap();
            lane.reap(&mut done);
        }
        assert!(done.drain(..).all(|d| d.result.is_ok()));
    };
    rounds("one file, lane", 500, &files[..1], &mut || through_lane(&files[..1]));
    rounds("64 files, sync_data each", 100, &files, &mut || {
        files.iter().for_each(|f: &Arc<dyn File>| f.sync_data().unwrap());
    });
    rounds("64 files, lane", 100, &files, &mut || through_lane(&files));
}
