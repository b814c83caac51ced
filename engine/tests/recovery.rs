//! What an open finds after crashes and damage: nothing true is lost, nothing untrue is served.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected should panic"
)]

mod support;

use loglane::format::Batches;
use loglane::{AppendOptions, Config, Engine, Error, FetchOptions, Offset, Verify, View};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use support::{batch, read_dense, small_segments};

/// The last segment is about full, so that its indexes have entries.
const RECORDS: i64 = 432;

/// A closed directory of several segments.
fn filled(dir: &Path) {
    let engine = Engine::open(small_segments(dir)).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    for i in 0..RECORDS / 4 {
        partition.append(batch(i * 4, 4, 300), AppendOptions::default()).unwrap();
    }
    engine.close().unwrap();
}

/// As if the process had been killed: no mark, and recovery points at 0.
fn crash(dir: &Path) {
    fs::remove_file(dir.join(".kafka_cleanshutdown")).unwrap();
    fs::remove_file(dir.join("recovery-point-offset-checkpoint")).unwrap();
}

/// As [`crash`], with everything below `offset` synced.
fn crash_synced_to(dir: &Path, offset: i64) {
    crash(dir);
    fs::write(dir.join("recovery-point-offset-checkpoint"), format!("0\n1\nt 0 {offset}\n"))
        .unwrap();
}

/// What the open of the one partition found.
fn report(engine: &Engine) -> loglane::RecoveryReport {
    let partition = engine.partition("t", 0).unwrap();
    engine.recovery_reports()[partition.name()].clone()
}

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(dir.join("t-0")).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = names.filter(|p| p.to_string_lossy().ends_with(suffix)).collect();
    files.sort();
    files
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn recovery_cuts_a_torn_tail_of_any_length_and_appends_go_on() {
    let whole = tempfile::tempdir().unwrap();
    filled(whole.path());
    let last = files(whole.path(), ".log").pop().unwrap();
    let good = fs::read(&last).unwrap();
    let torn = batch(RECORDS, 4, 300);
    for cut in [1, 11, 60, 61, 100, torn.len() - 1] {
        fs::write(&last, [&good[..], &torn[..cut]].concat()).unwrap();
        crash(whole.path());
        let view = View::open(whole.path()).unwrap();
        let seen = view.partition("t", 0).unwrap();
        assert_eq!(seen.log_end_offset(), Offset(RECORDS), "a view leaves it out");
        assert!(seen.report().torn_tail.is_some());
        let engine = Engine::open(small_segments(whole.path())).unwrap();
        let report = report(&engine);
        let (path, position, _) = report.torn_tail.clone().expect("a torn tail");
        assert_eq!((path, position), (last.clone(), good.len() as u64));
        assert!(report.damaged.is_empty());
        let partition = engine.partition("t", 0).unwrap();
        assert_eq!(read_dense(&partition, 0, 1 << 20), RECORDS);
        engine.close().unwrap();
        assert_eq!(fs::read(&last).unwrap(), good);
    }
    let engine = Engine::open(small_segments(whole.path())).unwrap();
    let partition = engine.partition("t", 0).unwrap();
    partition.append(batch(RECORDS, 4, 300), AppendOptions::default()).unwrap();
    assert_eq!(read_dense(&partition, 0, 1 << 20), RECORDS + 4);
}

#[test]
fn a_tail_of_zeros_is_torn_too() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let last = files(dir.path(), ".log").pop().unwrap();
    let good = fs::read(&last).unwrap();
    fs::write(&last, [&good[..], &vec![0; 3 << 20]].concat()).unwrap();
    crash(dir.path());
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    assert_eq!(read_dense(&engine.partition("t", 0).unwrap(), 0, 1 << 20), RECORDS);
    engine.close().unwrap();
    assert_eq!(fs::read(&last).unwrap().len(), good.len());
}

#[test]
fn damage_below_what_was_synced_is_reported_and_never_cut() {
    for (which, at) in [(0, 200), (0, 8), (2, 1500), (usize::MAX, 100)] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let logs = files(dir.path(), ".log");
        let hurt = &logs[which.min(logs.len() - 1)];
        let sizes: Vec<u64> = logs.iter().map(|l| fs::metadata(l).unwrap().len()).collect();
        let synced_to = next_offset_behind(hurt, at);
        flip(hurt, at);
        crash_synced_to(dir.path(), synced_to);
        let engine = Engine::open(small_segments(dir.path())).unwrap();
        let partition = engine.partition("t", 0).unwrap();
        let damaged = partition.damaged_ranges();
        assert_eq!(damaged.len(), 1, "segment {which} byte {at}: {damaged:?}");
        let range = &damaged[0];
        assert_eq!(&range.path, hurt);
        assert!(range.position <= at && at < range.position + range.length);
        assert_eq!(range.next_offset.0 - range.offset.0, 4, "one batch is lost, no more");
        assert_eq!(partition.log_end_offset(), Offset(RECORDS));
        let sizes_after: Vec<u64> = logs.iter().map(|l| fs::metadata(l).unwrap().len()).collect();
        assert_eq!(sizes, sizes_after, "nothing was cut");

        // Everything before and after it is readable; what lies in it is an error with offsets.
        let (mut offset, mut errors) = (0, 0);
        while offset < RECORDS {
            match partition.fetch(Offset(offset), &FetchOptions::default()) {
                Ok(lease) => offset = support::check_records(&lease.to_vec().unwrap(), offset),
                Err(Error::Damaged { offset: from, next_offset, position, .. }) => {
                    assert_eq!((from, position), (range.offset, range.position));
                    assert_eq!(from.0, offset);
                    offset = next_offset.0;
                    errors += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(errors, 1);
        partition.append(batch(RECORDS, 4, 10), AppendOptions::default()).unwrap();
    }
}

/// One past the last offset of the batch that has byte `at`.
fn next_offset_behind(log: &Path, at: u64) -> i64 {
    let bytes = fs::read(log).unwrap();
    let batches = Batches::new(&bytes).map(|batch| batch.unwrap());
    let found = batches.filter(|(start, _)| *start as u64 <= at).last().unwrap();
    found.1.header().next_offset()
}

#[test]
fn past_what_was_synced_the_log_ends_at_the_first_hole() {
    // A power cut loses pages in any order: what survived behind a hole was never promised.
    for (which, at) in [(0, 200), (2, 1500), (usize::MAX, 100)] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let logs = files(dir.path(), ".log");
        let hurt = &logs[which.min(logs.len() - 1)];
        let end = next_offset_behind(hurt, at) - 4;
        flip(hurt, at);
        crash_synced_to(dir.path(), end);
        let engine = Engine::open(small_segments(dir.path())).unwrap();
        let partition = engine.partition("t", 0).unwrap();
        assert_eq!(partition.log_end_offset(), Offset(end), "segment {which}");
        assert!(partition.damaged_ranges().is_empty());
        assert_eq!(read_dense(&partition, 0, 1 << 20), end);
        partition.append(batch(end, 4, 10), AppendOptions::durable()).unwrap();
        engine.close().unwrap();
        let engine = Engine::open(small_segments(dir.path())).unwrap();
        assert_eq!(read_dense(&engine.partition("t", 0).unwrap(), 0, 1 << 20), end + 4);
    }
}

#[test]
fn the_end_of_what_was_synced_is_never_given_to_other_records() {
    // The file is shorter than what was synced, torn below it, or not there at all.
    let harms: [fn(&Path); 3] = [
        |last| fs::OpenOptions::new().write(true).open(last).unwrap().set_len(0).unwrap(),
        |last| {
            let len = fs::metadata(last).unwrap().len();
            fs::OpenOptions::new().write(true).open(last).unwrap().set_len(len - 7).unwrap();
        },
        |last| fs::remove_file(last).unwrap(),
    ];
    for (number, harm) in harms.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        harm(&files(dir.path(), ".log").pop().unwrap());
        crash_synced_to(dir.path(), RECORDS);
        for round in 0..3 {
            let engine = Engine::open(small_segments(dir.path())).unwrap();
            let partition = engine.partition("t", 0).unwrap();
            assert!(partition.log_end_offset() >= Offset(RECORDS), "harm {number}");
            if round == 0 {
                let lost = partition.damaged_ranges().pop().expect("it is reported");
                assert_eq!(lost.next_offset, Offset(RECORDS), "harm {number}");
                assert_eq!(lost.offset.0, read_dense_until(&partition, 0));
            }
            // Fetches say so for ever, not only right after the crash.
            let end = read_dense_until(&partition, 0);
            match partition.fetch(Offset(end), &FetchOptions::default()) {
                Err(Error::Damaged { offset, next_offset, .. }) => {
                    assert_eq!((offset, next_offset), (Offset(end), Offset(RECORDS)));
                }
                other => panic!("harm {number} round {round}: {other:?}"),
            }
            let end = partition.log_end_offset().0;
            let receipt = partition.append(batch(end, 4, 9), AppendOptions::durable()).unwrap();
            assert_eq!(receipt.base_offset, Offset(end));
            engine.close().unwrap();
        }
    }
}

#[test]
fn a_segment_that_is_missing_in_the_middle_is_reported_with_its_offsets() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let logs = files(dir.path(), ".log");
    fs::remove_file(&logs[1]).unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let partition = engine.partition("t", 0).unwrap();
    let damaged = partition.damaged_ranges();
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert_eq!(damaged[0].path, logs[1]);
    let (from, to) = (damaged[0].offset, damaged[0].next_offset);
    assert_eq!(read_dense_until(&partition, 0), from.0);
    assert_eq!(read_dense(&partition, to.0, 1 << 20), RECORDS, "the rest is readable");
}

/// Reads up to the first error, which must be damage.
fn read_dense_until(partition: &loglane::Partition, mut offset: i64) -> i64 {
    loop {
        match partition.fetch(Offset(offset), &FetchOptions::default()) {
            Ok(lease) => offset = support::check_records(&lease.to_vec().unwrap(), offset),
            Err(Error::Damaged { .. }) => return offset,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn damage_that_no_open_has_seen_is_an_error_with_its_offsets_and_the_rest_is_readable() {
    // After a clean close segments are not walked, so it is fetch that runs into the bad header.
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let log = files(dir.path(), ".log").remove(0);
    let bytes = fs::read(&log).unwrap();
    let starts: Vec<usize> = Batches::new(&bytes).map(|batch| batch.unwrap().0).collect();
    flip(&log, starts[5] as u64 + 16);
    for max_bytes in [1, 3000] {
        let engine = Engine::open(small_segments(dir.path())).unwrap();
        let partition = engine.partition("t", 0).unwrap();
        let options = FetchOptions { max_bytes, ..FetchOptions::default() };
        let (mut offset, mut errors) = (0, 0);
        while offset < RECORDS {
            match partition.fetch(Offset(offset), &options) {
                Ok(lease) => offset = support::check_records(&lease.to_vec().unwrap(), offset),
                Err(Error::Damaged { offset: from, next_offset, position, .. }) => {
                    assert_eq!((from, next_offset), (Offset(20), Offset(24)));
                    assert_eq!(position, starts[5] as u64);
                    offset = next_offset.0;
                    errors += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(errors, 1, "max_bytes {max_bytes}");
    }
    // Whoever wants no check is told by the lease.
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    let options = FetchOptions { verify: Verify::Headers, ..FetchOptions::default() };
    let lease = engine.partition("t", 0).unwrap().fetch(Offset(0), &options);
    match lease.unwrap().verify() {
        Err(Error::Damaged { offset: Offset(20), position, .. }) => {
            assert_eq!(position, starts[5] as u64);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flipped_bit_in_any_batch_never_goes_out_and_everything_else_does() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    for (number, log) in files(dir.path(), ".log").into_iter().enumerate() {
        let bytes = fs::read(&log).unwrap();
        let batches: Vec<(usize, i64, i64)> = Batches::new(&bytes)
            .map(|batch| {
                batch.map(|(at, b)| (at, b.header().base_offset, b.header().next_offset()))
            })
            .collect::<Result<_, _>>()
            .unwrap();
        for (at, first, end) in batches.into_iter().step_by(7) {
            // In the records, where only the CRC tells.
            flip(&log, at as u64 + 200);
            for max_bytes in [1, 3000, 1 << 20] {
                let engine = Engine::open(small_segments(dir.path())).unwrap();
                let partition = engine.partition("t", 0).unwrap();
                let options = FetchOptions { max_bytes, ..FetchOptions::default() };
                let (mut offset, mut errors) = (0, 0);
                while offset < RECORDS {
                    match partition.fetch(Offset(offset), &options) {
                        Ok(lease) => {
                            lease.verify().unwrap();
                            offset = support::check_records(&lease.to_vec().unwrap(), offset);
                        }
                        Err(Error::Damaged { offset: from, next_offset, position, .. }) => {
                            assert_eq!((from.0, next_offset.0), (first, end), "segment {number}");
                            assert_eq!(position, at as u64);
                            (offset, errors) = (next_offset.0, errors + 1);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                assert_eq!(errors, 1, "segment {number} at {at} max_bytes {max_bytes}");
                let damaged = partition.damaged_ranges();
                assert_eq!(damaged.len(), 1, "{damaged:?}");
                assert_eq!((damaged[0].offset.0, damaged[0].next_offset.0), (first, end));
                // What was checked is remembered, what is damaged stays an error.
                assert!(partition.fetch(Offset(first), &options).is_err());
                let unchecked = FetchOptions { verify: Verify::Headers, ..options };
                let lease = partition.fetch(Offset(first), &unchecked).unwrap();
                assert!(lease.verify().is_err(), "the test sees no damage at all");
                drop(lease);
                engine.close().unwrap();
            }
            flip(&log, at as u64 + 200);
        }
    }
}

#[test]
fn an_index_that_is_not_sound_is_rebuilt_and_said_so() {
    type Harm = (&'static str, fn(&Path));
    let harms: [Harm; 5] = [
        ("missing", |p| fs::remove_file(p).unwrap()),
        ("short", |p| {
            let len = fs::metadata(p).unwrap().len();
            fs::OpenOptions::new().write(true).open(p).unwrap().set_len(len / 2 + 1).unwrap();
        }),
        ("flipped", |p| flip(p, 4)),
        ("zeros", |p| {
            let len = fs::metadata(p).unwrap().len();
            fs::write(p, vec![0; usize::try_from(len).unwrap()]).unwrap();
        }),
        ("garbage", |p| fs::write(p, [0x5a; 4096]).unwrap()),
    ];
    for (name, harm) in harms {
        for suffix in [".index", ".timeindex"] {
            let dir = tempfile::tempdir().unwrap();
            filled(dir.path());
            let before: Vec<Vec<u8>> =
                files(dir.path(), suffix).iter().map(|f| fs::read(f).unwrap()).collect();
            // The active segment's, which is looked at when the directory is opened.
            harm(files(dir.path(), suffix).last().unwrap());
            let engine = Engine::open(small_segments(dir.path())).unwrap();
            let report = report(&engine);
            if (name, suffix) != ("flipped", ".timeindex") {
                assert_eq!(report.indexes_rebuilt.len(), 1, "{name} {suffix}");
            }
            let partition = engine.partition("t", 0).unwrap();
            assert_eq!(read_dense(&partition, 0, 1 << 20), RECORDS, "{name} {suffix}");
            engine.close().unwrap();
            let after: Vec<Vec<u8>> =
                files(dir.path(), suffix).iter().map(|f| fs::read(f).unwrap()).collect();
            if (name, suffix) != ("flipped", ".timeindex") {
                assert_eq!(before, after, "{name} {suffix}: rebuilt byte for byte");
            }
        }
    }
}

#[test]
fn a_sealed_index_that_lies_costs_time_and_no_records() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let file = files(dir.path(), ".index").remove(0);
    let good = fs::read(&file).unwrap();
    for at in 0..good.len() as u64 {
        fs::write(&file, &good).unwrap();
        flip(&file, at);
        let engine = Engine::open(small_segments(dir.path())).unwrap();
        let partition = engine.partition("t", 0).unwrap();
        for offset in (0..RECORDS).step_by(37) {
            assert_eq!(read_dense(&partition, offset, 1 << 20), RECORDS, "byte {at}");
        }
    }
    // One that is found out at all is written anew, so that Kafka is not told lies after us.
    fs::write(&file, vec![0; good.len()]).unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    assert_eq!(read_dense(&engine.partition("t", 0).unwrap(), 0, 1 << 20), RECORDS);
    engine.close().unwrap();
    assert_eq!(fs::read(&file).unwrap(), good);
}

#[test]
fn a_checkpoint_file_that_does_not_add_up_stops_the_open_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let path = dir.path().join("recovery-point-offset-checkpoint");
    fs::write(&path, "0\n7\nt 0 1\n").unwrap();
    let error = Engine::open(small_segments(dir.path())).unwrap_err();
    assert!(matches!(&error, Error::Format { path: at, .. } if *at == path), "{error}");
    assert!(dir.path().join(".kafka_cleanshutdown").exists(), "the mark is still there");
}

#[test]
fn deletions_and_clean_ups_that_a_crash_interrupted_are_finished() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let partition = dir.path().join("t-0");
    let logs = files(dir.path(), ".log");
    fs::write(partition.join("00000000000000000000.log.deleted"), b"x").unwrap();
    fs::write(partition.join("00000000000000000000.log.cleaned"), b"x").unwrap();
    fs::write(partition.join("00000000000000009999.index"), b"x").unwrap();
    // A clean-up that was finished but for its last rename.
    let swapped = partition.join("00000000000000000000.log.swap");
    fs::copy(&logs[0], &swapped).unwrap();
    crash(dir.path());
    fs::remove_file(partition.join("00000000000000000000.log.cleaned")).unwrap();
    let engine = Engine::open(small_segments(dir.path())).unwrap();
    assert_eq!(read_dense(&engine.partition("t", 0).unwrap(), 0, 1 << 20), RECORDS);
    for gone in [".deleted", ".swap", ".cleaned", "9999.index"] {
        assert!(files(dir.path(), gone).is_empty(), "{gone} is still there");
    }
}

#[test]
fn foreign_folders_and_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    for name in ["notes", "a-b", "__cluster_metadata-0", "t-0.5e-stray"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("meta.properties"), "version=1\n").unwrap();
    let half = dir.path().join("t-1.0123456789abcdef0123456789abcdef-delete");
    fs::create_dir(&half).unwrap();
    let engine = Engine::open(Config::new(dir.path())).unwrap();
    assert_eq!(engine.partition_names().len(), 1);
    engine.close().unwrap();
    for name in ["notes", "a-b", "__cluster_metadata-0", "t-0.5e-stray", "meta.properties"] {
        assert!(dir.path().join(name).exists(), "{name} is gone");
    }
    assert!(!half.exists(), "a deletion that was under way is finished");
}
