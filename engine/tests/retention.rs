//! Retention as hosts see it: its own thread, real files, restarts, views and branches.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected should panic"
)]

mod support;

use loglane::{
    AppendOptions, BranchSync, Config, Engine, Error, FetchOptions, KeptBy, Offset, Partition,
    SettingsChange, View,
};
use std::path::Path;
use std::time::{Duration, Instant};
use support::{batch, read_dense, small_segments};

/// Records of these tests are dated to 1970: by their age all of them are due.
fn append(partition: &Partition, batches: i64) {
    for _ in 0..batches {
        let from = partition.log_end_offset().0;
        partition.append(batch(from, 4, 300), AppendOptions::default()).unwrap();
    }
}

fn config(dir: &Path) -> Config {
    Config { retention_check_interval_ms: 100, ..small_segments(dir) }
}

fn keep_all() -> SettingsChange {
    SettingsChange::new().retention_ms(None)
}

#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn files(dir: &Path, suffix: &str) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.contains(suffix)).collect();
    names.sort();
    names
}

#[test]
fn rounds_run_by_themselves_while_appends_and_leases_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(config(dir.path())).unwrap();
    let partition = engine.create_topic_with("t", 1, &keep_all()).unwrap().remove(0);
    append(&partition, 100);
    let lease = partition.fetch(Offset(0), &FetchOptions::default()).unwrap();
    let bytes = lease.to_vec().unwrap();
    partition.configure(&SettingsChange::new().retention_records(Some(100))).unwrap();
    until("the oldest go", || partition.log_start_offset() > Offset(200));
    append(&partition, 100);
    until("the next go too", || partition.log_start_offset() > Offset(600));
    assert!(lease.is_retired() && lease.to_vec().unwrap() == bytes, "the lease holds its bytes");
    let error = partition.fetch(Offset(0), &FetchOptions::default()).unwrap_err();
    assert!(matches!(error, Error::OffsetOutOfRange { .. }), "{error}");
    let start = partition.log_start_offset();
    assert!(start.0 <= 700, "the last hundred stay");
    assert_eq!(read_dense(&partition, start.0, 1 << 20), 800);
    drop(lease);
    let dir = dir.path().join("t-0");
    until("the files are unlinked", || files(&dir, ".deleted").is_empty());
    let (kept, deleted) = (partition.stat(), engine.stat().deleted);
    assert_eq!(files(&dir, ".log").len(), kept.segments);
    assert_eq!(deleted.total(), deleted.by_records);
    engine.close().unwrap();
}

#[test]
fn settings_and_pins_are_there_after_a_close_and_views_see_them() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(config(dir.path())).unwrap();
    let partition = engine.create_topic_with("t", 1, &keep_all()).unwrap().remove(0);
    append(&partition, 100);
    let pin = partition.pin("backup", "monday", Offset(150), None).unwrap();
    engine.configure_topic("t", &SettingsChange::new().retention_ms(Some(1000))).unwrap();
    until("what is not pinned goes", || partition.log_start_offset() > Offset(100));
    let start = partition.log_start_offset();
    // The log start moves before the files go, and a view sees files.
    until("a view sees the pin", || {
        let view = View::open(dir.path()).unwrap();
        let said = view.partition("t", 0).unwrap().explain().unwrap();
        said.segments[0].kept_by == [KeptBy::Pin(pin.clone())]
    });
    engine.close().unwrap();
    assert_eq!(files(dir.path(), "loglane"), ["loglane-pins", "loglane-settings"]);
    // Nobody touches it: the pin holds all the same.
    let engine = Engine::open(config(dir.path())).unwrap();
    let round = engine.apply_retention();
    assert!(round.failed.is_empty() && round.deleted.total().segments == 0, "{round:?}");
    let partition = engine.partition("t", 0).unwrap();
    assert_eq!((partition.log_start_offset(), partition.pins()), (start, vec![pin.clone()]));
    partition.release_pin(pin.id).unwrap();
    until("all of it goes", || partition.log_start_offset() == Offset(400));
    engine.delete_topic("t").unwrap();
    engine.close().unwrap();
    assert_eq!(files(dir.path(), "loglane"), ["loglane-pins"], "the next pin's number");
}

#[test]
fn a_file_of_settings_that_does_not_add_up_stops_the_open() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(config(dir.path())).unwrap();
    engine.create_topic_with("t", 1, &keep_all()).unwrap();
    engine.close().unwrap();
    let path = dir.path().join("loglane-settings");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("none", "1000")).unwrap();
    let error = Engine::open(config(dir.path())).unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error}");
    assert!(View::open(dir.path()).is_err());
    std::fs::write(&path, text).unwrap();
    Engine::open(config(dir.path())).unwrap().close().unwrap();
}

#[test]
fn a_branch_has_the_settings_and_not_the_pins() {
    for sync in [BranchSync::Durable, BranchSync::Later] {
        let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let engine = Engine::open(config(dir.path())).unwrap();
        let partition = engine.create_topic_with("t", 1, &keep_all()).unwrap().remove(0);
        append(&partition, 100);
        partition.pin("reader", "", Offset(0), None).unwrap();
        engine.branch(to.path(), sync).unwrap();
        let branch = Engine::open(config(to.path())).unwrap();
        let copy = branch.partition("t", 0).unwrap();
        assert_eq!(copy.config(), partition.config());
        assert!(copy.pins().is_empty());
        let round = branch.apply_retention();
        assert_eq!(round.deleted.total().segments, 0, "records of 1970 stay, as it was said");
        copy.configure(&SettingsChange::new().retention_ms(Some(0))).unwrap();
        until("the branch is emptied", || copy.log_start_offset() == Offset(400));
        assert_eq!(read_dense(&partition, 0, 1 << 20), 400);
        branch.close().unwrap();
        engine.close().unwrap();
    }
}
