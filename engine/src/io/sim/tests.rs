//! What a simulated disk guarantees and what it may do, over many seeds.

#![forbid(unsafe_code)]

use super::*;
use crate::io::{BLOCK_BYTES, Buffer, Done, FileRef, Lane, Op, OpenMode, suite};
use libc::{EFBIG, EINTR, EIO, ENOSPC};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use CrashKind::{Power, Process};

fn at(name: &str) -> std::path::PathBuf {
    Path::new("/d").join(name)
}

/// A machine with a durable directory /d.
fn world(seed: u64) -> SimWorld {
    let world = SimWorld::new(seed);
    world.make_dir_all("/d");
    world
}

fn create(world: &SimWorld, name: &str, bytes: &[u8]) -> FileRef {
    let file = world.disk().open(&at(name), OpenMode::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

/// What is left of a file after each of many crashes of the same run.
fn outcomes(kind: CrashKind, name: &str, run: impl Fn(&SimWorld)) -> BTreeSet<Option<Vec<u8>>> {
    let crash = |seed| {
        let world = world(seed);
        run(&world);
        world.crash(kind);
        world.peek(at(name))
    };
    (0..400).map(crash).collect()
}

fn some(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(bytes.to_vec())
}

fn finish(lane: &mut dyn Lane) -> Vec<Done> {
    let mut done = Vec::new();
    while lane.pending() > 0 {
        lane.wait(None).unwrap();
        lane.reap(&mut done);
    }
    done
}

fn block(byte: u8) -> Buffer {
    let mut buffer = Buffer::new(BLOCK_BYTES);
    buffer.extend_from_slice(&[byte; BLOCK_BYTES]);
    buffer
}

#[test]
fn a_simulated_disk_does_what_every_disk_must() {
    for reorder in [true, false] {
        let world = world(7);
        world.set_knobs(Knobs { reorder, ..Knobs::default() });
        suite::without_real_sleep(&world.disk(), Path::new("/d"));
    }
}

#[test]
fn a_power_cut_takes_unsynced_files_or_leaves_them() {
    let seen = outcomes(Power, "f", |world| drop(create(world, "f", b"ab")));
    assert_eq!(seen, BTreeSet::from([None, some(b""), some(b"\0\0"), some(b"ab")]));
}

#[test]
fn synced_bytes_behind_a_synced_name_survive_every_crash() {
    let run = |world: &SimWorld| {
        let file = create(world, "f", b"ab");
        file.sync_data().unwrap();
        world.disk().sync_dir(Path::new("/d")).unwrap();
        file.write_all_at(b"c", 2).unwrap();
    };
    let seen = outcomes(Power, "f", run);
    assert_eq!(seen, BTreeSet::from([some(b"ab"), some(b"ab\0"), some(b"abc")]));
    assert_eq!(outcomes(Process, "f", run), BTreeSet::from([some(b"abc")]));
}

#[test]
fn a_sync_of_a_file_does_not_make_its_name_durable_nor_the_other_way_round() {
    let seen = outcomes(Power, "f", |world| create(world, "f", b"ab").sync_data().unwrap());
    assert_eq!(seen, BTreeSet::from([None, some(b"ab")]));
    let seen = outcomes(Power, "f", |world| {
        create(world, "f", b"ab");
        world.disk().sync_dir(Path::new("/d")).unwrap();
    });
    assert_eq!(seen, BTreeSet::from([some(b""), some(b"\0\0"), some(b"ab")]));
}

#[test]
fn an_open_directory_syncs_its_names() {
    let seen = outcomes(Power, "f", |world| {
        create(world, "f", b"ab").sync_data().unwrap();
        let dir = world.disk().open(Path::new("/d"), OpenMode::Read).unwrap();
        let mut lane = world.disk().lane().unwrap();
        lane.submit(Op::SyncData(dir), 1);
        assert!(finish(&mut *lane)[0].result.is_ok());
    });
    assert_eq!(seen, BTreeSet::from([some(b"ab")]));
}

#[test]
fn a_removal_that_was_not_synced_may_be_undone() {
    let seen = outcomes(Power, "f", |world| {
        world.put(at("f"), b"ab");
        world.disk().remove_file(&at("f")).unwrap();
    });
    assert_eq!(seen, BTreeSet::from([None, some(b"ab")]));
    let run = |world: &SimWorld| {
        world.put(at("f"), b"ab");
        world.disk().remove_file(&at("f")).unwrap();
        world.disk().sync_dir(Path::new("/d")).unwrap();
    };
    assert_eq!(outcomes(Power, "f", run), BTreeSet::from([None]));
}

#[test]
fn a_removal_by_a_killed_process_is_not_durable_either() {
    let seen = outcomes(Power, "f", |world| {
        world.put(at("f"), b"ab");
        world.disk().remove_file(&at("f")).unwrap();
        world.crash(Process);
        assert_eq!(world.peek(at("f")), None);
    });
    assert_eq!(seen, BTreeSet::from([None, some(b"ab")]));
}

#[test]
fn a_file_replaced_by_a_rename_is_the_old_one_or_the_new_one() {
    let replace = |world: &SimWorld| {
        world.put(at("f"), b"old");
        create(world, "f.tmp", b"new").sync_data().unwrap();
        world.disk().rename(&at("f.tmp"), &at("f")).unwrap();
    };
    assert_eq!(outcomes(Power, "f", replace), BTreeSet::from([some(b"old"), some(b"new")]));
    let synced = |world: &SimWorld| {
        replace(world);
        world.disk().sync_dir(Path::new("/d")).unwrap();
    };
    assert_eq!(outcomes(Power, "f", synced), BTreeSet::from([some(b"new")]));
    assert_eq!(outcomes(Power, "f.tmp", synced), BTreeSet::from([None]));
}

#[test]
fn a_directory_that_was_not_synced_is_lost_with_all_in_it() {
    let run = |sync_parent: bool| {
        outcomes(Power, "sub/f", |world| {
            world.disk().create_dir(&at("sub")).unwrap();
            create(world, "sub/f", b"ab").sync_data().unwrap();
            world.disk().sync_dir(&at("sub")).unwrap();
            if sync_parent {
                world.disk().sync_dir(Path::new("/d")).unwrap();
            }
        })
    };
    assert_eq!(run(false), BTreeSet::from([None, some(b"ab")]));
    assert_eq!(run(true), BTreeSet::from([some(b"ab")]));
}

#[test]
fn the_removal_of_a_directory_may_come_undone_in_part() {
    let mut left = BTreeSet::new();
    for seed in 0..400 {
        let world = world(seed);
        (0..3).for_each(|i| world.put(at(&format!("sub/{i}")), b"x"));
        world.disk().remove_dir_all(&at("sub")).unwrap();
        world.crash(Power);
        left.insert(world.disk().list(&at("sub")).map_or(9, |entries| entries.len()));
    }
    assert_eq!(left, BTreeSet::from([0, 1, 2, 3, 9]));
}

#[test]
fn a_killed_process_loses_nothing_it_has_written_and_stays_on_its_mount() {
    let world = world(1);
    let file = create(&world, "f", b"ab");
    let mount = world.disk().mount_id(Path::new("/d")).unwrap();
    world.crash(Process);
    assert_eq!(world.peek(at("f")), some(b"ab"));
    assert_eq!(world.disk().mount_id(Path::new("/d")).unwrap(), mount);
    assert_eq!(errno(file.len()), Some(EIO));
    world.crash(Power);
    assert_ne!(world.disk().mount_id(Path::new("/d")).unwrap(), mount);
}

#[test]
fn bytes_of_a_killed_process_are_still_not_durable() {
    let seen = outcomes(Power, "f", |world| {
        create(world, "f", b"ab");
        world.crash(Process);
    });
    assert!(seen.contains(&None) && seen.contains(&some(b"ab")));
}

#[test]
fn handles_of_an_earlier_life_are_dead_and_change_nothing() {
    for kind in [Power, Process] {
        let world = world(3);
        world.put(at("f"), b"ab");
        let disk = world.disk();
        let file = disk.open(&at("f"), OpenMode::ReadWrite).unwrap();
        let mut lane = disk.lane().unwrap();
        world.crash(kind);
        let before = world.ios();
        let mut buf = [0; 2];
        for result in [
            file.read_at(&mut buf, 0).map(drop),
            file.write_at(b"x", 0).map(drop),
            file.write_durable_at(b"x", 0).map(drop),
            file.set_len(0),
            file.sync_data(),
            file.allocate(100),
            file.write_back(0, 1),
            file.len().map(drop),
            disk.open(&at("f"), OpenMode::CreateOrTruncate).map(drop),
            disk.create_dir(&at("x")),
            disk.rename(&at("f"), &at("g")),
            disk.remove_file(&at("f")),
            disk.remove_dir_all(Path::new("/d")),
            disk.list(Path::new("/d")).map(drop),
            disk.stat(&at("f")).map(drop),
            disk.sync_dir(Path::new("/d")),
            disk.free_bytes(Path::new("/d")).map(drop),
            disk.lane().map(drop),
        ] {
            assert_eq!(errno(result), Some(EIO));
        }
        assert_eq!(disk.mount_id(Path::new("/d")), None);
        lane.submit(Op::SyncData(file), 1);
        assert_eq!(errno(finish(&mut *lane).remove(0).result), Some(EIO));
        assert_eq!((world.ios(), world.peek(at("f"))), (before, some(b"ab")));
        assert_eq!(world.disk().list(Path::new("/d")).unwrap().len(), 1);
    }
}

#[test]
fn the_fatal_call_and_all_after_it_fail_and_it_is_done_or_not() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let world = world(seed);
        let (disk, file) = (world.disk(), create(&world, "f", b"0000"));
        world.cut_at(world.ios(), Process);
        assert_eq!(errno(file.write_all_at(b"1111", 0)), Some(EIO));
        assert_eq!(world.died(), Some(Process));
        assert_eq!(errno(file.sync_data()), Some(EIO));
        assert_eq!(errno(disk.list(Path::new("/d"))), Some(EIO));
        world.crash(Process);
        assert_eq!(world.died(), None);
        seen.insert(world.peek(at("f")).unwrap());
    }
    let any_prefix = [b"0000", b"1000", b"1100", b"1110", b"1111"].map(|b| b.to_vec());
    assert_eq!(seen, BTreeSet::from(any_prefix));

    let mut renamed = BTreeSet::new();
    for seed in 0..50 {
        let world = world(seed);
        world.put(at("a"), b"");
        world.cut_at(world.ios(), Process);
        assert_eq!(errno(world.disk().rename(&at("a"), &at("b"))), Some(EIO));
        world.crash(Process);
        renamed.insert((world.peek(at("a")).is_some(), world.peek(at("b")).is_some()));
    }
    assert_eq!(renamed, BTreeSet::from([(true, false), (false, true)]));
}

#[test]
fn a_planned_error_comes_once_and_a_failed_write_leaves_any_prefix() {
    let mut lens = BTreeSet::new();
    for seed in 0..200 {
        let world = world(seed);
        let file = create(&world, "f", b"");
        let index = world.ios();
        world.fail_at(index + 1, ENOSPC);
        world.fail_at(index + 2, EINTR);
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(errno(file.write_at(b"yyy", 1)), Some(ENOSPC));
        let len = file.len().unwrap();
        lens.insert(len);
        assert_eq!(errno(file.write_at(b"zzz", len)), Some(EINTR));
        assert_eq!(file.len().unwrap(), len, "an interrupted call has done nothing");
        file.write_all_at(b"zzz", len).unwrap();
        assert_eq!(world.stats().failures, 2);
    }
    assert_eq!(lens, BTreeSet::from([1, 2, 3, 4]));
}

#[test]
fn a_sync_that_works_after_one_that_failed_brings_nothing_back() {
    for through_lane in [false, true] {
        let mut lost = 0;
        for seed in 0..200 {
            let world = world(seed);
            let file = create(&world, "f", &[b'x'; 1024]);
            world.disk().sync_dir(Path::new("/d")).unwrap();
            let mut lane = world.disk().lane().unwrap();
            let mut sync = || match through_lane {
                true => {
                    lane.submit(Op::SyncData(Arc::clone(&file)), 1);
                    finish(&mut *lane).remove(0).result
                }
                false => file.sync_data(),
            };
            world.fail_at(world.ios(), EIO);
            assert_eq!(errno(sync()), Some(EIO));
            sync().unwrap();
            assert_eq!(world.peek(at("f")), some(&[b'x'; 1024]), "reads see the page cache");
            world.crash(Power);
            let left = world.peek(at("f")).unwrap();
            assert_eq!(left.len(), 1024);
            lost += usize::from(left.contains(&0));
        }
        assert!((100..200).contains(&lost), "{lost}");
    }
}

#[test]
fn no_sync_makes_a_durable_write_that_failed_durable() {
    let mut lens = BTreeSet::new();
    for seed in 0..200 {
        let world = world(seed);
        let file = create(&world, "f", b"");
        world.disk().sync_dir(Path::new("/d")).unwrap();
        world.fail_at(world.ios(), EIO);
        assert_eq!(errno(file.write_durable_at(&[b'x'; 512], 0)), Some(EIO));
        file.sync_data().unwrap();
        world.crash(Power);
        let left = world.peek(at("f")).unwrap();
        lens.insert(left.iter().filter(|b| **b == b'x').count());
    }
    assert!(lens.contains(&0) && lens.len() > 10, "{lens:?}");
}

#[test]
fn an_interrupted_sync_is_repeated_by_the_file_itself() {
    let seen = outcomes(Power, "f", |world| {
        let file = create(world, "f", b"ab");
        world.disk().sync_dir(Path::new("/d")).unwrap();
        world.fail_at(world.ios(), EINTR);
        file.sync_data().unwrap();
    });
    assert_eq!(seen, BTreeSet::from([some(b"ab")]));
}

#[test]
fn a_full_disk_takes_what_fits_and_then_nothing_until_something_goes() {
    let world = world(1);
    world.set_capacity(4 * 4096);
    let disk = world.disk();
    let file = create(&world, "f", &[1; 4096]);
    assert_eq!(disk.free_bytes(Path::new("/d")).unwrap(), 3 * 4096);
    let reserved = create(&world, "g", b"");
    assert_eq!(errno(reserved.allocate(4 * 4096)), Some(ENOSPC));
    assert_eq!(disk.free_bytes(Path::new("/d")).unwrap(), 3 * 4096);
    reserved.allocate(2 * 4096).unwrap();
    assert_eq!(reserved.len().unwrap(), 2 * 4096);
    assert_eq!(file.write_at(&[1; 10_000], 4096).unwrap(), 4096, "what fits");
    assert_eq!(errno(file.write_at(b"x", 8192)), Some(ENOSPC));
    reserved.write_all_at(&[2; 2 * 4096], 0).unwrap();
    disk.remove_file(&at("g")).unwrap();
    file.write_all_at(&[1; 2 * 4096], 2 * 4096).unwrap();
    file.set_len(1).unwrap();
    assert_eq!(disk.free_bytes(Path::new("/d")).unwrap(), 3 * 4096);
    assert_eq!(errno(file.write_at(b"x", u64::MAX)), Some(EFBIG));
    world.crash(Process);
    assert_eq!(world.disk().free_bytes(Path::new("/d")).unwrap(), 3 * 4096);
}

#[test]
fn short_writes_are_seen_and_got_over() {
    let world = world(1);
    world.set_knobs(Knobs { short_writes: 500_000, ..Knobs::default() });
    let file = create(&world, "f", b"");
    let short = (0..100).filter(|_| file.write_at(&[1; 100], 0).unwrap() < 100).count();
    assert!((20..80).contains(&short), "{short}");
    file.write_all_at(&[7; 5000], 0).unwrap();
    assert_eq!(world.peek(at("f")), some(&[7; 5000]));
}

#[test]
fn a_durable_write_that_was_done_survives_with_its_length() {
    let seen = outcomes(Power, "f", |world| {
        let file = create(world, "f", &[b'o'; 512]);
        world.disk().sync_dir(Path::new("/d")).unwrap();
        assert_eq!(file.write_durable_at(&[b'x'; 512], 512).unwrap(), 512);
    });
    let old_or_lost = |old: u8| some(&[[old; 512], [b'x'; 512]].concat());
    assert_eq!(seen, BTreeSet::from([old_or_lost(b'o'), old_or_lost(0)]));
}

/// A file of one durable block of `o`, open for direct writes.
fn direct(world: &SimWorld) -> FileRef {
    world.put(at("f"), &[b'o'; BLOCK_BYTES]);
    world.disk().open(&at("f"), OpenMode::Direct).unwrap()
}

#[test]
fn direct_writes_are_whole_aligned_blocks() {
    let world = world(1);
    let file = direct(&world);
    let buffer = block(b'x');
    assert_eq!(file.write_durable_at(buffer.as_slice(), 4096).unwrap(), 4096);
    for (bytes, position) in
        [(buffer.as_slice(), 512), (&buffer.as_slice()[..512], 0), (&buffer.as_slice()[1..], 0)]
    {
        assert_eq!(errno(file.write_durable_at(bytes, position)), Some(libc::EINVAL));
    }
    assert!(file.read_at(&mut [0], 0).is_err());
}

#[test]
fn a_durable_write_in_flight_at_a_power_cut_is_torn_at_sectors() {
    let seen = outcomes(Power, "f", |world| {
        let mut lane = world.disk().lane().unwrap();
        let op = Op::WriteDurable { file: direct(world), buffer: block(b'x'), position: 0 };
        lane.submit(op, 1);
        world.crash(Power);
    });
    assert!(seen.len() > 50, "{}", seen.len());
    assert!(seen.contains(&some(&[b'o'; BLOCK_BYTES])) && seen.contains(&some(&[b'x'; 4096])));
    for bytes in seen.into_iter().flatten() {
        assert_eq!(bytes.len(), BLOCK_BYTES);
        assert!(bytes.chunks(512).all(|s| s.iter().all(|b| *b == s[0] && b"ox".contains(b))));
    }
}

#[test]
fn a_durable_write_in_flight_at_a_kill_is_done_or_not() {
    for dies_at_submit in [false, true] {
        let seen = outcomes(Process, "f", |world| {
            let mut lane = world.disk().lane().unwrap();
            let op = Op::WriteDurable { file: direct(world), buffer: block(b'x'), position: 0 };
            if dies_at_submit {
                world.cut_at(world.ios(), Process);
            }
            lane.submit(op, 1);
            if dies_at_submit {
                let done = finish(&mut *lane).remove(0);
                assert!(done.result.is_err() && done.buffer.is_some());
            }
        });
        let expected = [some(&[b'o'; BLOCK_BYTES]), some(&[b'x'; BLOCK_BYTES])];
        assert_eq!(seen, BTreeSet::from(expected));
    }
}

#[test]
fn a_lane_gives_the_buffer_back_and_a_done_write_is_durable() {
    for seed in 0..100 {
        let world = world(seed);
        let mut lane = world.disk().lane().unwrap();
        let op = Op::WriteDurable { file: direct(&world), buffer: block(b'x'), position: 4096 };
        lane.submit(op, 9);
        let done = finish(&mut *lane).remove(0);
        assert!(done.token == 9 && done.result.is_ok());
        assert_eq!(done.buffer.unwrap().as_slice(), [b'x'; BLOCK_BYTES]);
        world.crash(Power);
        assert_eq!(world.peek(at("f")).unwrap()[4096..], [b'x'; BLOCK_BYTES]);
    }
}

#[test]
fn a_lane_sync_covers_what_came_before_it_and_perhaps_what_came_after() {
    let mut kept_all = BTreeSet::new();
    for seed in 0..400 {
        let world = world(seed);
        let file = create(&world, "f", b"before");
        world.disk().sync_dir(Path::new("/d")).unwrap();
        let mut lane = world.disk().lane().unwrap();
        lane.submit(Op::SyncData(Arc::clone(&file)), 1);
        file.write_all_at(b"after", 6).unwrap();
        assert!(finish(&mut *lane).remove(0).result.is_ok());
        // Pure loss: what is left now was covered.
        let survivors: BTreeSet<_> = (0..40)
            .map(|seed| world.crashed_copy(Power, seed).peek(at("f")).unwrap().len())
            .collect();
        assert!(survivors.first() >= Some(&6), "{survivors:?}");
        kept_all.insert(survivors.len() == 1);
    }
    assert_eq!(kept_all, BTreeSet::from([false, true]));
}

#[test]
fn lanes_finish_late_and_in_any_order_unless_told_not_to() {
    let order = |seed, reorder| {
        let world = world(seed);
        world.set_knobs(Knobs { reorder, ..Knobs::default() });
        let file = create(&world, "f", b"");
        let mut lane = world.disk().lane().unwrap();
        (0..4).for_each(|token| lane.submit(Op::SyncData(Arc::clone(&file)), token));
        let mut first = Vec::new();
        lane.reap(&mut first);
        let at_once = first.len();
        first.extend(finish(&mut *lane));
        (at_once, first.iter().map(|done| done.token).collect::<Vec<_>>())
    };
    let seen: BTreeSet<_> = (0..400).map(|seed| order(seed, true)).collect();
    assert_eq!(seen.iter().map(|(n, _)| *n).collect::<BTreeSet<_>>(), (0..=4).collect());
    assert_eq!(seen.iter().map(|(_, tokens)| tokens).collect::<BTreeSet<_>>().len(), 24);
    assert_eq!(order(1, false), (4, vec![0, 1, 2, 3]));
}

#[test]
fn a_wait_never_blocks_and_time_passes_only_there() {
    let world = world(1);
    let (clock, mut lane) = (world.clock(), world.disk().lane().unwrap());
    let start = clock.monotonic();
    lane.wait(Some(Duration::from_secs(100))).unwrap();
    assert_eq!(clock.monotonic() - start, Duration::from_secs(100));
    lane.waker().wake();
    lane.wait(Some(Duration::from_secs(100))).unwrap();
    assert_eq!(clock.monotonic() - start, Duration::from_secs(100), "woken before");
    lane.submit(Op::SyncData(create(&world, "f", b"")), 1);
    lane.wait(Some(Duration::from_secs(100))).unwrap();
    let took = clock.monotonic() - start - Duration::from_secs(100);
    assert!(took > Duration::ZERO && took < Duration::from_millis(1), "{took:?}");
    let mut done = Vec::new();
    while done.is_empty() {
        lane.reap(&mut done);
    }
    assert_eq!(done.len(), 1);
}

#[test]
fn a_lying_disk_loses_what_it_said_was_durable() {
    let lies = |knobs: Knobs, name: &str, act: fn(&SimWorld)| {
        outcomes(Power, name, |world| {
            world.set_knobs(knobs);
            act(world);
        })
        .len()
            > 1
    };
    let sync = |world: &SimWorld| {
        let file = create(world, "f", b"ab");
        file.sync_data().unwrap();
        world.disk().sync_dir(Path::new("/d")).unwrap();
    };
    let durable = |world: &SimWorld| {
        world.put(at("f"), b"ab");
        let file = world.disk().open(&at("f"), OpenMode::ReadWrite).unwrap();
        file.write_durable_at(b"x", 0).unwrap();
    };
    let honest = Knobs::default();
    assert!(!lies(honest, "f", sync) && !lies(honest, "f", durable));
    assert!(lies(Knobs { lying_syncs: true, ..honest }, "f", sync));
    assert!(lies(Knobs { lying_dir_syncs: true, ..honest }, "f", sync));
    assert!(lies(Knobs { lying_durable_writes: true, ..honest }, "f", durable));
}

#[test]
fn a_flipped_bit_is_read_and_survives_a_crash() {
    let world = world(1);
    world.put(at("f"), &[0; 4]);
    assert!(world.flip_bit(at("f"), 9));
    assert_eq!(world.peek(at("f")), some(&[0, 2, 0, 0]));
    assert!(!world.flip_bit(at("f"), 32), "past the end");
    let bit = world.flip_random_bit(at("f")).unwrap();
    assert!(bit < 32);
    world.crash(Power);
    assert_ne!(world.peek(at("f")), some(&[0, 2, 0, 0]));
    assert_eq!(world.flip_random_bit(at("missing")), None);
}

#[test]
fn calls_fail_as_often_as_asked_and_only_of_that_class() {
    let world = world(1);
    let file = create(&world, "f", b"abc");
    world.set_fault_rates(FaultRates { read: 300_000, ..FaultRates::default() });
    let fails = (0..1000).filter(|_| file.read_at(&mut [0], 0).is_err()).count();
    assert!((200..400).contains(&fails), "{fails}");
    (0..100).for_each(|_| file.write_all_at(b"x", 0).unwrap());
    world.clear_faults();
    assert!((0..100).all(|_| file.read_at(&mut [0], 0).is_ok()));
}

/// Something of everything; ends when the machine dies.
fn mixed_run(world: &SimWorld, seed: u64) -> io::Result<()> {
    let (disk, mut rng) = (world.disk(), Rng::new(seed));
    let mut lane = disk.lane()?;
    let mut done = Vec::new();
    let mut files = Vec::new();
    for token in 0..200 {
        let name = at(&rng.below(12).to_string());
        match rng.below(10) {
            0 => drop(disk.rename(&name, &at(&rng.below(12).to_string()))),
            1 => drop(disk.remove_file(&name)),
            2 => drop(disk.sync_dir(Path::new("/d"))),
            3 | 4 => files.push(disk.open(&name, OpenMode::CreateOrTruncate)?),
            _ if files.is_empty() => {}
            5 => lane.submit(Op::SyncData(Arc::clone(&files[rng.index(files.len())])), token),
            6 => files[rng.index(files.len())].set_len(rng.below(5000))?,
            _ => {
                let file = &files[rng.index(files.len())];
                file.write_all_at(&[token as u8; 700], rng.below(4000))?;
            }
        }
        lane.reap(&mut done);
    }
    Ok(())
}

fn everything(world: &SimWorld) -> Vec<(String, Option<Vec<u8>>)> {
    (0..12).map(|i| (i.to_string(), world.peek(at(&i.to_string())))).collect()
}

#[test]
fn a_seed_is_a_run() {
    let run = |seed| {
        let world = world(seed);
        world.cut_at(150, Power);
        let _ = mixed_run(&world, 5);
        world.crash(Power);
        (everything(&world), world.stats(), world.trace())
    };
    let all: BTreeSet<_> = (0..50).map(|seed| run(seed).0).collect();
    assert!(all.len() > 25, "{}", all.len());
    for seed in 0..20 {
        assert_eq!(run(seed), run(seed));
    }
}

#[test]
fn a_crashed_copy_has_its_own_fate_and_the_machine_goes_on() {
    let world = world(1);
    let file = create(&world, "f", b"ab");
    let copies: BTreeSet<_> =
        (0..100).map(|seed| world.crashed_copy(Power, seed).peek(at("f"))).collect();
    assert!(copies.len() > 2);
    file.write_all_at(b"c", 2).unwrap();
    assert_eq!(world.peek(at("f")), some(b"abc"));
}

#[test]
fn random_runs_with_random_ends_leave_a_tree_that_can_be_used() {
    for seed in 0..400 {
        let world = world(seed);
        let rates = FaultRates { read: 1000, write: 5000, sync: 20_000, open: 1000, names: 5000 };
        world.set_fault_rates(rates);
        world.set_capacity(100_000);
        for kind in [Power, Process, Power] {
            world.cut_at(world.ios() + seed % 97, kind);
            let _ = mixed_run(&world, seed);
            world.crash(kind);
            let before = everything(&world);
            world.crash(Process);
            assert_eq!(everything(&world), before, "nothing was in flight");
        }
        world.clear_faults();
        let disk = world.disk();
        for entry in disk.list(Path::new("/d")).unwrap() {
            let file = disk.open(&at(&entry.name), OpenMode::ReadWrite).unwrap();
            file.sync_data().unwrap();
            disk.remove_file(&at(&entry.name)).unwrap();
        }
        assert_eq!(disk.free_bytes(Path::new("/d")).unwrap(), 100_000, "space is given back");
    }
}

#[test]
fn the_trace_names_files_and_errors() {
    let world = world(1);
    let file = create(&world, "f", b"ab");
    world.fail_at(world.ios(), EIO);
    assert!(file.sync_data().is_err());
    world.crash(Power);
    let trace = world.trace();
    for wanted in ["Open          /d/f", "Write         f 0+2", "Sync          f -> ", "Crash"] {
        assert!(trace.contains(wanted), "{wanted}: {trace}");
    }
}

#[test]
#[ignore = "prints a speed"]
fn speed() {
    use std::time::Instant;
    const ROUNDS: u64 = 2_000;
    let (mut ios, mut crashes, mut time, mut crash_time) = (0, 0, Duration::ZERO, Duration::ZERO);
    for seed in 0..ROUNDS {
        let world = world(seed);
        let start = Instant::now();
        let disk = world.disk();
        let mut lane = disk.lane().unwrap();
        let mut done = Vec::new();
        for i in 0..30 {
            let file = disk.open(&at(&i.to_string()), OpenMode::CreateNew).unwrap();
            for position in 0..8 {
                file.write_all_at(&[1; 400], position * 400).unwrap();
            }
            file.read_at(&mut [0; 400], 0).unwrap();
            if i % 3 == 0 {
                lane.submit(Op::SyncData(file), i);
                lane.reap(&mut done);
            }
        }
        disk.sync_dir(Path::new("/d")).unwrap();
        ios += world.ios();
        time += start.elapsed();
        let start = Instant::now();
        world.crash(Power);
        crash_time += start.elapsed();
        crashes += 1;
    }
    println!(
        "{} ns per call of {ios}, {:?} per power cut with 30 files of 3 KiB",
        time.as_nanos() / u128::from(ios),
        crash_time / crashes
    );
}
