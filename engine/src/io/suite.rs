//! What every disk must do, written once; each backend runs it at the foot of its file.
//!
//! Functions take a disk and an empty directory of it. They use nothing but the traits, so that a
//! simulated disk can run them too.

#![forbid(unsafe_code)]

use super::{BLOCK_BYTES, Buffer, DirEntry, Disk, Done, EntryKind, FileRef, Lane, Op, OpenMode};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Far longer than anything here takes: a wait that long is a hang.
const LONG: Duration = Duration::from_secs(20);

/// More syncs than a ring has entries.
const MANY: u64 = 1_000;

type Check = (&'static str, fn(&Arc<dyn Disk>, &Path));

/// Runs all of them, each in a directory of its own.
pub(crate) fn all(disk: &Arc<dyn Disk>, root: &Path) {
    without_real_sleep(disk, root);
    run(
        &[
            ("wakes", a_wake_is_heard_before_and_during_a_wait),
            ("timeout", a_wait_ends_when_its_time_is_over),
            ("own_poll", a_host_that_polls_itself_misses_nothing),
            // A simulated file does not know what its descriptor may do.
            ("unwritable", a_durable_write_that_fails_says_so_and_gives_its_buffer_back),
        ],
        disk,
        root,
    );
}

/// Those that do not need a lane to sleep in the kernel. A simulated lane never does: its time passes
/// at once, another thread could not wake it, and it has no descriptor to poll.
pub(crate) fn without_real_sleep(disk: &Arc<dyn Disk>, root: &Path) {
    let checks: &[Check] = &[
        ("open_modes", open_modes_do_what_they_say),
        ("reads_and_writes", reads_are_short_at_the_end_and_writes_grow),
        ("names", names_appear_move_and_go),
        ("many_syncs", more_syncs_than_a_ring_holds_complete_once_each),
        ("reap_keeps_wakes", reap_does_not_consume_a_wake),
        ("unreaped", a_wait_does_not_sleep_over_a_finished_sync),
        ("moved", a_lane_works_on_the_thread_it_was_moved_to),
        ("dropped", a_lane_may_be_dropped_with_syncs_in_flight),
        ("closed", a_file_dropped_after_submit_is_synced_and_then_closed),
        ("no_hang", a_completion_always_ends_a_sleep),
        ("durable", durable_writes_land_and_give_their_buffers_back),
        ("mixed", writes_and_syncs_beyond_the_ring_complete_once_each),
        ("dropped_writes", a_lane_may_be_dropped_with_writes_in_flight),
        ("write_back", a_write_back_completes),
        ("allocate", allocated_bytes_are_there_and_zero),
        ("room", free_bytes_and_mount_id_answer),
    ];
    run(checks, disk, root);
}

fn run(checks: &[Check], disk: &Arc<dyn Disk>, root: &Path) {
    for (name, check) in checks {
        let dir = root.join(name);
        disk.create_dir(&dir).unwrap();
        check(disk, &dir);
        println!("{}: {name}", disk.backend().kind.name());
    }
}

fn create(disk: &Arc<dyn Disk>, path: &Path) -> FileRef {
    let file = disk.open(path, OpenMode::CreateNew).unwrap();
    file.write_all_at(b"0123456789", 0).unwrap();
    file
}

/// Waits and reaps until nothing is pending.
fn drain(lane: &mut dyn Lane) -> Vec<Done> {
    let (mut done, start) = (Vec::new(), Instant::now());
    while lane.pending() > 0 {
        lane.wait(Some(LONG)).unwrap();
        lane.reap(&mut done);
        assert!(start.elapsed() < LONG, "{} pending, {} done", lane.pending(), done.len());
    }
    done
}

fn open_modes_do_what_they_say(disk: &Arc<dyn Disk>, dir: &Path) {
    let path = dir.join("f");
    let kind = |mode| disk.open(&path, mode).unwrap_err().kind();
    assert_eq!(kind(OpenMode::Read), ErrorKind::NotFound);
    assert_eq!(kind(OpenMode::ReadWrite), ErrorKind::NotFound);
    create(disk, &path);
    assert_eq!(kind(OpenMode::CreateNew), ErrorKind::AlreadyExists);
    let reader = disk.open(&path, OpenMode::Read).unwrap();
    assert!(reader.write_at(b"x", 0).is_err());
    let writer = disk.open(&path, OpenMode::ReadWrite).unwrap();
    assert_eq!(writer.len().unwrap(), 10, "kept");
    writer.write_all_at(b"x", 9).unwrap();
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 9).unwrap();
    assert_eq!(&byte, b"x", "one file, two opens");
    let emptied = disk.open(&path, OpenMode::CreateOrTruncate).unwrap();
    assert!(emptied.is_empty().unwrap());
    emptied.write_all_at(b"y", 0).unwrap();
    emptied.read_exact_at(&mut byte, 0).unwrap();
    disk.open(&dir.join("new"), OpenMode::CreateOrTruncate).unwrap();
    assert_eq!(disk.stat(&dir.join("new")).unwrap().len, 0);
}

fn reads_are_short_at_the_end_and_writes_grow(disk: &Arc<dyn Disk>, dir: &Path) {
    let file = create(disk, &dir.join("f"));
    let mut buf = [7; 8];
    assert_eq!(file.read_up_to(&mut buf, 6).unwrap(), 4);
    assert_eq!(&buf, b"6789\x07\x07\x07\x07");
    assert_eq!(file.read_at(&mut buf, 10).unwrap(), 0);
    assert_eq!(file.read_at(&mut buf, 1 << 40).unwrap(), 0);
    assert_eq!(file.read_exact_at(&mut buf, 6).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    file.write_all_at(b"end", 20).unwrap();
    assert_eq!(file.len().unwrap(), 23);
    let mut gap = [9; 10];
    file.read_exact_at(&mut gap, 10).unwrap();
    assert_eq!(gap, [0; 10]);
    file.set_len(3).unwrap();
    file.set_len(5).unwrap();
    let mut all = [9; 16];
    assert_eq!(file.read_up_to(&mut all, 0).unwrap(), 5);
    assert_eq!(&all[..5], b"012\0\0");
    file.sync_data().unwrap();
}

fn names_appear_move_and_go(disk: &Arc<dyn Disk>, dir: &Path) {
    let names = |at: &Path| -> Vec<DirEntry> {
        let mut names = disk.list(at).unwrap();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        names
    };
    let entry = |name: &str, kind| DirEntry { name: name.into(), kind };
    assert_eq!(names(dir), []);
    let a = create(disk, &dir.join("a"));
    create(disk, &dir.join("b")).set_len(4).unwrap();
    disk.create_dir(&dir.join("sub")).unwrap();
    assert_eq!(
        disk.create_dir(&dir.join("sub")).unwrap_err().kind(),
        ErrorKind::AlreadyExists,
        "a directory is made once"
    );
    create(disk, &dir.join("sub").join("c"));
    assert_eq!(
        names(dir),
        [entry("a", EntryKind::File), entry("b", EntryKind::File), entry("sub", EntryKind::Dir)]
    );
    disk.rename(&dir.join("a"), &dir.join("b")).unwrap();
    assert_eq!(disk.stat(&dir.join("b")).unwrap().len, 10, "replaced");
    assert_eq!(disk.stat(&dir.join("a")).unwrap_err().kind(), ErrorKind::NotFound);
    a.write_all_at(b"x", 10).unwrap();
    assert_eq!(disk.stat(&dir.join("b")).unwrap().len, 11, "an open file follows its name");
    disk.rename(&dir.join("sub"), &dir.join("bus")).unwrap();
    assert_eq!(names(&dir.join("bus")), [entry("c", EntryKind::File)]);
    disk.sync_dir(dir).unwrap();
    disk.remove_file(&dir.join("b")).unwrap();
    a.write_all_at(b"y", 11).unwrap();
    assert_eq!(a.len().unwrap(), 12, "a removed file works while it is open");
    disk.remove_dir_all(&dir.join("bus")).unwrap();
    assert_eq!(names(dir), []);
    let missing = dir.join("missing");
    for result in [
        disk.remove_file(&missing),
        disk.remove_dir_all(&missing),
        disk.rename(&missing, &dir.join("x")),
        disk.sync_dir(&missing),
        disk.list(&missing).map(drop),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

fn more_syncs_than_a_ring_holds_complete_once_each(disk: &Arc<dyn Disk>, dir: &Path) {
    let files: Vec<_> = (0..8).map(|i| create(disk, &dir.join(i.to_string()))).collect();
    let mut lane = disk.lane().unwrap();
    for token in 0..MANY {
        let file = &files[usize::try_from(token % 8).unwrap()];
        lane.submit(Op::SyncData(Arc::clone(file)), token);
    }
    assert_eq!(lane.pending(), 1_000);
    let mut done = drain(&mut *lane);
    done.sort_by_key(|d| d.token);
    assert!(done.iter().map(|d| d.token).eq(0..MANY));
    assert!(done.iter().all(|d| d.result.is_ok()));
    for file in &files {
        assert_eq!(Arc::strong_count(file), 1, "a reaped sync holds no file");
    }
}

fn a_wake_is_heard_before_and_during_a_wait(disk: &Arc<dyn Disk>, _: &Path) {
    let mut lane = disk.lane().unwrap();
    let waker = lane.waker();
    let start = Instant::now();
    for _ in 0..3 {
        waker.wake();
        lane.wait(Some(LONG)).unwrap();
    }
    waker.wake();
    waker.wake();
    lane.wait(Some(LONG)).unwrap();
    for _ in 0..50 {
        let waker = Arc::clone(&waker);
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1));
            waker.wake();
        });
        lane.wait(None).unwrap();
        other.join().unwrap();
    }
    assert!(start.elapsed() < LONG, "a wake was not heard");
    drop(lane);
    waker.wake(); // into the void
}

fn reap_does_not_consume_a_wake(disk: &Arc<dyn Disk>, _: &Path) {
    let mut lane = disk.lane().unwrap();
    lane.wait(Some(Duration::ZERO)).unwrap();
    let start = Instant::now();
    for _ in 0..20 {
        lane.waker().wake();
        lane.reap(&mut Vec::new());
        lane.reap(&mut Vec::new());
        lane.wait(Some(LONG)).unwrap();
    }
    assert!(start.elapsed() < LONG);
}

fn a_wait_ends_when_its_time_is_over(disk: &Arc<dyn Disk>, _: &Path) {
    let mut lane = disk.lane().unwrap();
    let time = Duration::from_millis(30);
    for _ in 0..3 {
        let start = Instant::now();
        lane.wait(Some(time)).unwrap();
        let took = start.elapsed();
        assert!(took >= time && took < LONG, "{took:?}");
    }
    let start = Instant::now();
    lane.wait(Some(Duration::ZERO)).unwrap();
    assert!(start.elapsed() < LONG);
}

fn a_wait_does_not_sleep_over_a_finished_sync(disk: &Arc<dyn Disk>, dir: &Path) {
    let mut lane = disk.lane().unwrap();
    let start = Instant::now();
    lane.submit(Op::SyncData(create(disk, &dir.join("f"))), 1);
    for _ in 0..4 {
        lane.wait(Some(LONG)).unwrap();
    }
    assert!(start.elapsed() < LONG);
    assert_eq!(drain(&mut *lane).len(), 1);
}

fn a_lane_works_on_the_thread_it_was_moved_to(disk: &Arc<dyn Disk>, dir: &Path) {
    let mut lane = disk.lane().unwrap();
    let waker = lane.waker();
    let file = create(disk, &dir.join("f"));
    lane.submit(Op::SyncData(file), 5); // queued here, issued there
    waker.wake();
    let shard = std::thread::spawn(move || {
        let done = drain(&mut *lane);
        assert!(done.len() == 1 && done[0].token == 5 && done[0].result.is_ok());
        lane
    });
    // Dropped on a thread that is not its own: allowed, with nothing in flight or something.
    drop(shard.join().unwrap());
}

fn a_lane_may_be_dropped_with_syncs_in_flight(disk: &Arc<dyn Disk>, dir: &Path) {
    let file = create(disk, &dir.join("f"));
    for reaped in [false, true] {
        let mut lane = disk.lane().unwrap();
        for token in 0..MANY {
            lane.submit(Op::SyncData(Arc::clone(&file)), token);
        }
        if reaped {
            lane.reap(&mut Vec::new());
        }
        drop(lane);
        assert_eq!(Arc::strong_count(&file), 1, "a dropped lane holds no file");
    }
}

fn a_file_dropped_after_submit_is_synced_and_then_closed(disk: &Arc<dyn Disk>, dir: &Path) {
    let mut lane = disk.lane().unwrap();
    for token in 0..600 {
        let path: PathBuf = dir.join(token.to_string());
        let file = create(disk, &path);
        let weak = Arc::downgrade(&file);
        lane.submit(Op::SyncData(file), token);
        disk.remove_file(&path).unwrap();
        if token % 100 == 99 {
            assert!(drain(&mut *lane).iter().all(|d| d.result.is_ok()), "never a closed file");
            assert!(weak.upgrade().is_none());
        }
    }
}

fn a_completion_always_ends_a_sleep(disk: &Arc<dyn Disk>, dir: &Path) {
    // Method: batches of all sizes, so that completions come before, during and after going to sleep,
    // with another thread's wakes among them. A wait for all of LONG has missed one. Half of
    // them are durable writes: the kernel completes those elsewhere than syncs.
    use std::sync::atomic::{AtomicBool, Ordering};
    let files: Vec<_> = (0..16).map(|i| create(disk, &dir.join(i.to_string()))).collect();
    let (written, _) = direct(disk, &dir.join("direct"), 16);
    let mut lane = disk.lane().unwrap();
    let mut buffers = lane.buffers(8, BLOCK_BYTES);
    buffers.iter_mut().for_each(|buffer| buffer.extend_from_slice(&block_of(1)));
    let over = Arc::new(AtomicBool::new(false));
    let waking = {
        let (over, waker) = (Arc::clone(&over), lane.waker());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                waker.wake();
                std::thread::sleep(Duration::from_micros(70));
            }
        })
    };
    let end = Instant::now() + stress_time();
    let mut rounds = 0;
    let mut done = Vec::new();
    while Instant::now() < end {
        if rounds % 2 == 0 && rounds > 500 {
            over.store(true, Ordering::Relaxed); // the rest without wakes, which would hide a miss
        }
        let batch = 1 + rounds % 16;
        for (i, file) in files[..batch].iter().enumerate() {
            let op = match buffers.pop() {
                Some(buffer) if rounds / 16 % 2 == i % 2 => {
                    let position = (i * BLOCK_BYTES) as u64;
                    Op::WriteDurable { file: Arc::clone(&written), buffer, position }
                }
                unused => {
                    buffers.extend(unused);
                    Op::SyncData(Arc::clone(file))
                }
            };
            lane.submit(op, 0);
        }
        while lane.pending() > 0 {
            let start = Instant::now();
            lane.wait(Some(LONG)).unwrap();
            assert!(start.elapsed() < LONG, "slept over a completion in round {rounds}");
            lane.reap(&mut done);
        }
        assert_eq!(done.len(), batch);
        buffers.extend(done.drain(..).filter_map(|d| d.buffer));
        assert_eq!(buffers.len(), 8);
        rounds += 1;
    }
    over.store(true, Ordering::Relaxed);
    waking.join().unwrap();
}

/// Short by default; `LOGLANE_STRESS_SECONDS` for a search.
fn stress_time() -> Duration {
    let seconds = std::env::var("LOGLANE_STRESS_SECONDS").ok().and_then(|s| s.parse().ok());
    seconds.map_or(Duration::from_millis(300), Duration::from_secs)
}

fn a_host_that_polls_itself_misses_nothing(disk: &Arc<dyn Disk>, dir: &Path) {
    // Method: a mailbox filled by another thread and syncs, slept on through the descriptor alone.
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::sync::atomic::{AtomicU64, Ordering};
    const LETTERS: u64 = 3_000;
    let mut lane = disk.lane().unwrap();
    let file = create(disk, &dir.join("f"));
    let mailbox = Arc::new(AtomicU64::new(0));
    let sender = {
        let (mailbox, waker) = (Arc::clone(&mailbox), lane.waker());
        std::thread::spawn(move || {
            for i in 0..LETTERS {
                mailbox.fetch_add(1, Ordering::Relaxed);
                waker.wake();
                if i % 16 == 0 {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        })
    };
    let (mut synced, mut seen, mut slept) = (0, 0, 0);
    let mut done = Vec::new();
    while synced < 100 || seen < LETTERS {
        lane.wait(Some(Duration::ZERO)).unwrap();
        lane.reap(&mut done);
        synced += done.drain(..).count();
        seen = mailbox.load(Ordering::Relaxed);
        if lane.pending() == 0 && synced < 100 {
            lane.submit(Op::SyncData(Arc::clone(&file)), 0);
        }
        if (synced < 100 || seen < LETTERS) && lane.would_wait() {
            let fd = lane.fd().unwrap();
            let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
            assert_eq!(ready, 1, "slept over work: {synced} syncs, {seen} letters");
            slept += 1;
        }
    }
    assert!(slept > 0, "the test did not test");
    sender.join().unwrap();
}

/// A file for direct writes that has `blocks` blocks already, and a descriptor to read it by.
fn direct(disk: &Arc<dyn Disk>, path: &Path, blocks: usize) -> (FileRef, FileRef) {
    let file = disk.open(path, OpenMode::CreateNew).unwrap();
    file.allocate((blocks * BLOCK_BYTES) as u64).unwrap();
    (disk.open(path, OpenMode::Direct).unwrap(), file)
}

/// A block's bytes, different in every block.
fn block_of(number: u64) -> Vec<u8> {
    (0..BLOCK_BYTES as u64).map(|i| (number * 31 + i / 7).to_le_bytes()[0]).collect()
}

fn durable_writes_land_and_give_their_buffers_back(disk: &Arc<dyn Disk>, dir: &Path) {
    const BLOCKS: usize = 64;
    let (file, reader) = direct(disk, &dir.join("f"), BLOCKS);
    let mut lane = disk.lane().unwrap();
    // Buffers of the lane, one that is not, and one that is another lane's.
    let mut buffers = lane.buffers(4, 3 * BLOCK_BYTES);
    buffers.push(Buffer::new(3 * BLOCK_BYTES));
    buffers.append(&mut disk.lane().unwrap().buffers(1, 3 * BLOCK_BYTES));
    let wanted = buffers.len();
    let mut next = 0;
    // Twice over the file: into blocks new and old. Lengths differ; the last write grows the file.
    for token in 0..2 * BLOCKS as u64 {
        if next >= BLOCKS as u64 {
            next = 0;
        }
        let mut buffer = buffers.pop().unwrap();
        let memory = buffer.as_slice().as_ptr();
        buffer.clear();
        for number in next..=next + token % 3 {
            buffer.extend_from_slice(&block_of(number));
        }
        let (len, position) = (buffer.len(), next * BLOCK_BYTES as u64);
        next += 1 + token % 3;
        lane.submit(Op::WriteDurable { file: file.clone(), buffer, position }, token);
        let done = drain(&mut *lane).pop().unwrap();
        done.result.unwrap();
        let buffer = done.buffer.unwrap();
        assert_eq!((done.token, buffer.len(), buffer.as_slice().as_ptr()), (token, len, memory));
        let mut read = vec![0; len];
        reader.read_exact_at(&mut read, position).unwrap();
        assert!(read == buffer.as_slice(), "what was written is read, write {token}");
        buffers.insert(0, buffer);
    }
    assert_eq!(buffers.len(), wanted);
    // Nothing to write is done too.
    lane.submit(Op::WriteDurable { file, buffer: Buffer::new(1), position: 0 }, 1);
    let done = drain(&mut *lane).pop().unwrap();
    assert!(done.result.is_ok() && done.buffer.unwrap().is_empty());
}

fn writes_and_syncs_beyond_the_ring_complete_once_each(disk: &Arc<dyn Disk>, dir: &Path) {
    let writes = MANY / 2;
    let (file, reader) = direct(disk, &dir.join("f"), usize::try_from(writes).unwrap());
    let others: Vec<_> = (0..8).map(|i| create(disk, &dir.join(i.to_string()))).collect();
    let mut lane = disk.lane().unwrap();
    let mut buffers = lane.buffers(16, BLOCK_BYTES);
    for token in 0..MANY {
        let other = others[usize::try_from(token % 8).unwrap()].clone();
        let op = match token % 4 {
            0 | 2 => {
                let mut buffer = buffers.pop().unwrap_or_else(|| Buffer::new(BLOCK_BYTES));
                buffer.extend_from_slice(&block_of(token / 2));
                let position = token / 2 * BLOCK_BYTES as u64;
                Op::WriteDurable { file: file.clone(), buffer, position }
            }
            1 => Op::SyncData(other),
            _ => Op::WriteBack { file: other, position: 0, length: 10 },
        };
        lane.submit(op, token);
    }
    let mut done = drain(&mut *lane);
    done.sort_by_key(|d| d.token);
    assert!(done.iter().map(|d| d.token).eq(0..MANY));
    for Done { token, result, buffer } in done {
        result.unwrap();
        assert_eq!(buffer.is_some(), token % 2 == 0);
    }
    let mut read = vec![0; BLOCK_BYTES];
    for number in 0..writes {
        reader.read_exact_at(&mut read, number * BLOCK_BYTES as u64).unwrap();
        assert!(read == block_of(number), "block {number}");
    }
    assert_eq!(Arc::strong_count(&file), 1, "a reaped write holds no file");
}

fn a_durable_write_that_fails_says_so_and_gives_its_buffer_back(disk: &Arc<dyn Disk>, dir: &Path) {
    create(disk, &dir.join("f"));
    let file = disk.open(&dir.join("f"), OpenMode::Read).unwrap();
    let mut lane = disk.lane().unwrap();
    let mut buffer = lane.buffers(1, BLOCK_BYTES).pop().unwrap();
    buffer.extend_from_slice(&block_of(1));
    lane.submit(Op::WriteDurable { file, buffer, position: 0 }, 9);
    let done = drain(&mut *lane).pop().unwrap();
    assert!(done.token == 9 && done.result.is_err(), "a file opened for reads only");
    assert_eq!(done.buffer.unwrap().as_slice(), block_of(1));
}

fn a_lane_may_be_dropped_with_writes_in_flight(disk: &Arc<dyn Disk>, dir: &Path) {
    let (file, _) = direct(disk, &dir.join("f"), 64);
    for (round, reaped) in [false, true, true].into_iter().enumerate() {
        let mut lane = disk.lane().unwrap();
        let mut registered = lane.buffers(32, BLOCK_BYTES);
        for position in (0..64).map(|number| number * BLOCK_BYTES as u64) {
            let mut buffer = registered.pop().unwrap_or_else(|| Buffer::new(BLOCK_BYTES));
            buffer.extend_from_slice(&block_of(1));
            lane.submit(Op::WriteDurable { file: file.clone(), buffer, position }, 0);
        }
        if reaped {
            lane.reap(&mut Vec::new());
        }
        if round == 2 {
            // A thread that is not the lane's own may not be able to wait for it.
            std::thread::spawn(move || drop(lane)).join().unwrap();
        } else {
            drop(lane);
        }
        assert_eq!(Arc::strong_count(&file), 1, "a dropped lane holds no file");
    }
}

fn a_write_back_completes(disk: &Arc<dyn Disk>, dir: &Path) {
    let file = create(disk, &dir.join("f"));
    file.write_all_at(&block_of(1), 0).unwrap();
    let mut lane = disk.lane().unwrap();
    for (token, length) in [10, 0, u64::from(u32::MAX) + 1, 1 << 40].into_iter().enumerate() {
        let op = Op::WriteBack { file: file.clone(), position: 4096, length };
        lane.submit(op, token as u64);
    }
    let mut done = drain(&mut *lane);
    done.sort_by_key(|d| d.token);
    assert!(done.iter().map(|d| d.token).eq(0..4));
    assert!(done.iter().all(|d| d.result.is_ok() && d.buffer.is_none()));
}

fn allocated_bytes_are_there_and_zero(disk: &Arc<dyn Disk>, dir: &Path) {
    let file = create(disk, &dir.join("f"));
    file.allocate(3 * BLOCK_BYTES as u64).unwrap();
    assert_eq!(file.len().unwrap(), 3 * BLOCK_BYTES as u64);
    let mut bytes = vec![9; 3 * BLOCK_BYTES];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes[..10], b"0123456789", "what was there stays");
    assert!(bytes[10..].iter().all(|b| *b == 0));
    file.allocate(1).unwrap();
    assert_eq!(file.len().unwrap(), 3 * BLOCK_BYTES as u64, "it grows and never cuts");
}

fn free_bytes_and_mount_id_answer(disk: &Arc<dyn Disk>, dir: &Path) {
    assert!(disk.free_bytes(dir).unwrap() > 0);
    disk.free_bytes(&dir.join("missing")).unwrap_err();
    let sub = dir.join("sub");
    disk.create_dir(&sub).unwrap();
    assert_eq!(disk.mount_id(dir), disk.mount_id(&sub), "one mount, while it is mounted");
}
