//! A full disk and a lack of descriptors: a clear error, nothing lost, and work goes on when there is
//! room again. Method: a small tmpfs (needs root) and a process with few descriptors.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should panic"
)]

use loglane::format::{BatchBuilder, Codec};
use loglane::{AppendOptions, Config, Engine, Error, FetchOptions, Offset, View};
use std::path::Path;
use std::process::Command;

fn batch(offset: i64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.append(offset, Some(&offset.to_be_bytes()), Some(&[7; 20_000]), &[]).unwrap();
    builder.build().unwrap()
}

/// A mount that ends with the test.
struct Tmpfs<'a>(&'a Path);

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_appends_loses_nothing_and_works_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs", dir.path().to_str().unwrap()])
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        eprintln!("SKIPPED: cannot mount a tmpfs; run as root");
        return;
    }
    let _mount = Tmpfs(dir.path());
    let mut config = Config::new(dir.path().join("data"));
    config.partition.segment_bytes = 256 << 10;
    config.file_delete_delay_ms = 0;
    // Its records are dated to 1970, and a lack of space makes retention look at once.
    config.partition.retention_ms = None;
    let engine = Engine::open(config).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    for round in 0..5 {
        let error = loop {
            let next = partition.log_end_offset().0;
            match partition.append(batch(next), AppendOptions::default()) {
                Ok(info) => assert_eq!(info.base_offset, Offset(next)),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::NoSpace { .. }), "round {round}: {error}");
        let end = partition.log_end_offset();
        let mut offset = partition.log_start_offset();
        while offset < end {
            let lease = partition.fetch(offset, &FetchOptions::default()).unwrap();
            lease.verify().unwrap();
            offset = lease.next_offset();
        }
        // Making room works on the full disk, and appends go on by themselves.
        let keep = Offset(end.0 - (end.0 - partition.log_start_offset().0) / 2);
        partition.delete_records(keep).unwrap();
        let before = partition.log_end_offset();
        let resumed = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            partition.append(batch(before.0), AppendOptions::default()).is_ok()
        });
        assert!(resumed, "round {round}: appends do not go on");
    }
}

#[test]
fn a_read_only_file_system_is_refused_by_name_and_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let mount = |options: &str| {
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs", path];
        Command::new("mount").args(arguments).output().is_ok_and(|o| o.status.success())
    };
    if !mount("size=4m") {
        eprintln!("SKIPPED: cannot mount a tmpfs; run as root");
        return;
    }
    let _mount = Tmpfs(dir.path());
    let data = dir.path().join("data");
    let engine = Engine::open(Config::new(&data)).unwrap();
    let partition = engine.create_topic("t", 1).unwrap().remove(0);
    partition.append(batch(0), AppendOptions::default()).unwrap();
    engine.close().unwrap();
    assert!(mount("remount,ro"));
    let error = Engine::open(Config::new(&data)).unwrap_err();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    let view = View::open(&data).unwrap();
    assert_eq!(view.partition("t", 0).unwrap().log_end_offset(), Offset(1));
}

#[test]
fn a_lack_of_descriptors_is_an_error_that_says_so_and_the_directory_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let target = env!("CARGO_BIN_EXE_kill-target");
    let script = format!("ulimit -n 40; exec {target} {} 100 1", dir.path().display());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("TooManyOpenFiles"), "{error}");
    let view = View::open(dir.path()).unwrap();
    for partition in view.partitions().values() {
        assert!(partition.damaged_ranges().is_empty());
    }
    Engine::open(Config::new(dir.path())).unwrap().close().unwrap();
}
