//! Measurements, not tests: what the constants of rings were chosen by.

#![forbid(unsafe_code)]

use super::super::{BLOCK_BYTES, BackendChoice, Disk, File, FileRef, OpenMode, open, plain};
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
        measure_syncs(&*disk, dir.path(), disk.lane().unwrap());
    }
    let disk = open(dir.path(), BackendChoice::IoUring).unwrap();
    for (index, name) in ["defer", "coop", "plainest"].into_iter().enumerate() {
        let lane = || {
            let ring = builders()[index].build(RING_ENTRIES).unwrap();
            Box::new(RingLane::on(ring).unwrap())
        };
        println!("ring, {name}:");
        measure_wakes(lane());
        measure_syncs(&*disk, dir.path(), lane());
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

fn measure_syncs(disk: &dyn Disk, dir: &Path, mut lane: Box<dyn Lane>) {
    let page = [1; 4096];
    let files: Vec<_> = (0..64)
        .map(|i| disk.open(&dir.join(i.to_string()), OpenMode::CreateOrTruncate).unwrap())
        .collect();
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

const RECYCLED_BYTES: u64 = 64 << 20;

/// Bytes and number of the writes that are under way at once.
const LOADS: [(usize, usize); 2] = [(20 << 10, 1), (64 << 10, 4)];

/// Writes of each round. Rounds of all ways alternate, so that a slow minute slows all of them.
const WRITES: usize = 100;
const ROUNDS: usize = 42;

/// A file all of whose blocks have been written once, as a recycled segment's.
fn recycled(disk: &dyn Disk, dir: &Path) -> FileRef {
    let path = dir.join("recycled");
    let file = disk.open(&path, OpenMode::CreateNew).unwrap();
    file.allocate(RECYCLED_BYTES).unwrap();
    let chunk = vec![1; 1 << 20];
    for position in (0..RECYCLED_BYTES).step_by(chunk.len()) {
        file.write_all_at(&chunk, position).unwrap();
    }
    file.sync_data().unwrap();
    disk.open(&path, OpenMode::Direct).unwrap()
}

/// Where the next write goes: round and round the file.
fn advance(position: &mut u64, bytes: usize) -> u64 {
    if *position + bytes as u64 > RECYCLED_BYTES {
        *position = 0;
    }
    let at = *position;
    *position += bytes as u64;
    at
}

/// One way of writing durably, with the times its rounds took.
struct Way {
    name: &'static str,
    lane: Option<(RingLane, Vec<Buffer>)>,
    yields: bool,
    position: u64,
    rounds: Vec<Duration>,
}

impl Way {
    fn on_ring(name: &'static str, builder: usize, registered: bool, load: (usize, usize)) -> Way {
        let mut lane = RingLane::on(builders()[builder].build(RING_ENTRIES).unwrap()).unwrap();
        let mut buffers = if registered {
            lane.buffers(u16::try_from(load.1).unwrap(), load.0)
        } else {
            (0..load.1).map(|_| Buffer::new(load.0)).collect()
        };
        for buffer in &mut buffers {
            assert_eq!(buffer.registered_with(lane.id).is_some(), registered);
            buffer.extend_from_slice(&vec![2; load.0]);
        }
        let yields = !name.contains("no yield");
        Way { name, lane: Some((lane, buffers)), yields, position: 0, rounds: Vec::new() }
    }

    fn round(&mut self, file: &FileRef, bare: &FileRef, bytes: usize) {
        let start = Instant::now();
        if let Some((lane, buffers)) = &mut self.lane {
            let (mut written, mut done, all) = (0, Vec::new(), buffers.len());
            while written < WRITES || buffers.len() < all {
                if written < WRITES
                    && let Some(buffer) = buffers.pop()
                {
                    let position = advance(&mut self.position, bytes);
                    lane.submit(Op::WriteDurable { file: file.clone(), buffer, position }, 0);
                    written += 1;
                    continue;
                }
                lane.reap(&mut done);
                if self.yields && done.is_empty() {
                    std::thread::yield_now();
                }
                for finished in done.drain(..) {
                    finished.result.unwrap();
                    buffers.push(finished.buffer.unwrap());
                }
            }
        } else {
            let mut buffer = Buffer::new(bytes);
            buffer.extend_from_slice(&vec![3; bytes]);
            for _ in 0..WRITES {
                let position = advance(&mut self.position, bytes);
                assert_eq!(bare.write_at(buffer.as_slice(), position).unwrap(), bytes);
            }
        }
        self.rounds.push(start.elapsed());
    }

    fn median(&mut self) -> Duration {
        self.rounds.sort();
        self.rounds[self.rounds.len() / 2]
    }
}

#[test]
#[ignore = "a measurement, not a test: run it alone, in release, with --nocapture"]
fn measure_durable_writes() {
    let dir = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
    let disk = open(dir.path(), BackendChoice::IoUring).unwrap();
    let file = recycled(&*disk, dir.path());
    let bare = plain::open_durable(&dir.path().join("recycled")).unwrap();
    for load in LOADS {
        assert!(load.0.is_multiple_of(BLOCK_BYTES));
        let bare_loop =
            Way { name: "bare loop", lane: None, yields: false, position: 0, rounds: Vec::new() };
        let mut ways = vec![
            bare_loop,
            Way::on_ring("defer, registered", 0, true, load),
            Way::on_ring("defer, plain", 0, false, load),
            Way::on_ring("coop, registered", 1, true, load),
            Way::on_ring("coop, plain", 1, false, load),
            Way::on_ring("plainest, registered", 2, true, load),
            Way::on_ring("defer, registered, no yield", 0, true, load),
        ];
        for round in 0..ROUNDS {
            // Seven is prime: with strides of one to six, nobody always follows the same one.
            for turn in 0..ways.len() {
                let index = turn * (1 + round % (ways.len() - 1)) % ways.len();
                ways[index].round(&file, &bare, load.0);
            }
        }
        println!("{} KiB, {} in flight:", load.0 >> 10, load.1);
        let reference = ways[0].median();
        for way in &mut ways {
            let (name, median) = (way.name, way.median());
            let ratio = reference.as_secs_f64() / median.as_secs_f64();
            println!(
                "  {name}: {:?} a write, {ratio:.3} of the bare loop",
                median / u32::try_from(WRITES).unwrap()
            );
        }
    }
}

#[test]
#[ignore = "a measurement, not a test: run it alone, in release, with --nocapture"]
fn measure_handing_over_writes() {
    // What the shard's own thread spends: registered buffers save finding and pinning the pages.
    let dir = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
    let disk = open(dir.path(), BackendChoice::IoUring).unwrap();
    let file = recycled(&*disk, dir.path());
    for bytes in [20 << 10, 64 << 10, 512 << 10] {
        let mut ways = [
            (Way::on_ring("registered", 0, true, (bytes, 1)), Vec::new()),
            (Way::on_ring("plain", 0, false, (bytes, 1)), Vec::new()),
        ];
        for round in 0..2_000 {
            let (way, times) = &mut ways[round % 2];
            let (lane, buffers) = way.lane.as_mut().unwrap();
            let position = advance(&mut way.position, bytes);
            let buffer = buffers.pop().unwrap();
            lane.submit(Op::WriteDurable { file: file.clone(), buffer, position }, 0);
            let (start, mut done) = (Instant::now(), Vec::new());
            lane.reap(&mut done);
            times.push(start.elapsed());
            while done.is_empty() {
                std::thread::yield_now();
                lane.reap(&mut done);
            }
            buffers.extend(done.pop().unwrap().buffer);
        }
        for (way, times) in &mut ways {
            percentiles(&format!("{} KiB, {}", bytes >> 10, way.name), times);
        }
    }
}
