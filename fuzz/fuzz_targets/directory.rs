//! Any bytes as the files of a partition: a view and an engine open it, or say why not; no panic, and
//! what is fetched holds its CRCs or is reported as damaged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use loglane::format::{BatchBuilder, Codec, stamp};
use loglane::{
    Config, Engine, Error, FetchOptions, Isolation, Lease, Offset, OffsetQuery, View,
};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

thread_local! {
    static DIR: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// In memory where there is such a directory.
fn work_dir() -> PathBuf {
    DIR.with_borrow_mut(|dir| {
        let base = [Path::new("/dev/shm"), Path::new("/tmp")].into_iter().find(|p| p.is_dir());
        let name = format!("loglane-fuzz-{}", std::process::id());
        dir.get_or_insert_with(|| base.unwrap_or(Path::new(".")).join(name)).clone()
    })
}

fn read_all(start: Offset, fetch: impl Fn(Offset) -> loglane::Result<Lease>) {
    let mut offset = start;
    for _ in 0..10_000 {
        match fetch(offset) {
            Ok(lease) if lease.is_empty() => return,
            Ok(lease) => {
                let _ = lease.verify();
                assert!(lease.next_offset() > offset, "a fetch that goes nowhere");
                offset = lease.next_offset();
            }
            Err(Error::Damaged { next_offset, .. }) if next_offset > offset => offset = next_offset,
            Err(_) => return,
        }
    }
}

fuzz_target!(|input: (Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>, u8, bool)| {
    let (log, index, times, epochs, whole, clean) = input;
    let dir = work_dir();
    let _ = fs::remove_dir_all(&dir);
    let partition = dir.join("t-0");
    fs::create_dir_all(&partition).unwrap();
    // Some whole batches first, so that what follows is a tail, an insertion or an index of them.
    let mut bytes = Vec::new();
    for i in 0..i64::from(whole % 8) {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.append(i, None, Some(&[1; 700]), &[]).unwrap();
        let mut batch = builder.build().unwrap();
        stamp(&mut batch, i, 0);
        let at = log.len().min(usize::from(whole) * 3 % 100);
        bytes.extend_from_slice(if i == 4 { &log[..at] } else { &[] });
        bytes.extend_from_slice(&batch);
    }
    bytes.extend_from_slice(&log);
    fs::write(partition.join("00000000000000000000.log"), bytes).unwrap();
    fs::write(partition.join("00000000000000000000.index"), index).unwrap();
    fs::write(partition.join("00000000000000000000.timeindex"), times).unwrap();
    if !epochs.is_empty() {
        fs::write(partition.join("leader-epoch-checkpoint"), epochs).unwrap();
    }
    if clean {
        fs::write(dir.join(".kafka_cleanshutdown"), "{}").unwrap();
    }
    let options = FetchOptions { max_bytes: 2000, ..FetchOptions::default() };
    if let Ok(view) = View::open(&dir) {
        let seen = view.partition("t", 0).unwrap();
        read_all(seen.log_start_offset(), |offset| seen.fetch(offset, &options));
        let _ = seen.list_offset(OffsetQuery::At(3), Isolation::LogEnd);
    }
    let mut config = Config::new(&dir);
    config.shards = 1;
    config.backend = loglane::io::BackendChoice::Plain;
    if let Ok(engine) = Engine::open(config) {
        // Opened on first touch: what its files say may be refused here.
        if let Ok(taken) = engine.partition("t", 0) {
            read_all(taken.log_start_offset(), |offset| taken.fetch(offset, &options));
            let mut builder = BatchBuilder::new(Codec::None);
            builder.append(9, None, Some(b"after"), &[]).unwrap();
            let _ = taken.append(builder.build().unwrap(), loglane::AppendOptions::default());
        }
        let _ = engine.close();
    }
    let _ = fs::remove_dir_all(&dir);
});
