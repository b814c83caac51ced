//! Rings on this machine's kernel, and on kernels that refuse them.

use super::super::{BLOCK_BYTES, BackendChoice, BackendKind, FileRef, OpenMode, open, suite};
use super::probe::builders;
use super::*;
use std::path::Path;

/// Makes one system call fail on this thread, for good, as a container's filter does.
fn forbid(call: libc::c_long, errno: i32) {
    let allow = libc::SECCOMP_RET_ALLOW;
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    let op =
        |code: u32, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf, k };
    let mut filter = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0), // seccomp_data.nr
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, u32::try_from(call).unwrap()),
        op(libc::BPF_RET | libc::BPF_K, 0, refuse),
        op(libc::BPF_RET | libc::BPF_K, 0, allow),
    ];
    let program =
        libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: this option takes numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the kernel copies the program, which points to `filter`; both outlive the call.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, 0, 0) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// On a thread of its own: a filter is a thread's and cannot be taken off.
fn apart<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(run).join().unwrap()
}

/// False, with a message, where the machine running the tests has no io_uring to test.
fn usable(dir: &Path) -> bool {
    probe(dir).inspect_err(|why| eprintln!("skipped: no io_uring here: {why}")).is_ok()
}

#[test]
fn the_ring_backend_does_what_every_disk_must() {
    let dir = tempfile::tempdir().unwrap();
    if usable(dir.path()) {
        let disk = open(dir.path(), BackendChoice::IoUring).unwrap();
        assert_eq!(disk.backend().kind, BackendKind::IoUring);
        suite::all(&disk, dir.path());
    }
}

#[test]
fn a_container_that_forbids_io_uring_gets_plain_calls_and_a_reason() {
    for (call, errno, word) in [
        (libc::SYS_io_uring_setup, libc::EPERM, "EPERM"),
        (libc::SYS_io_uring_setup, libc::ENOSYS, "ENOSYS"),
        (libc::SYS_io_uring_setup, libc::ENOMEM, "MEMLOCK"),
        (libc::SYS_io_uring_enter, libc::EPERM, "EPERM"),
        (libc::SYS_io_uring_register, libc::EPERM, "EPERM"),
    ] {
        apart(move || {
            forbid(call, errno);
            let dir = tempfile::tempdir().unwrap();
            let disk = open(dir.path(), BackendChoice::Auto).unwrap();
            assert_eq!(disk.backend().kind, BackendKind::Plain);
            let reason = &disk.backend().reason;
            assert!(reason.contains(word), "{reason}");
            println!("{reason}");
            suite::all(&disk, dir.path());
            let e = open(dir.path(), BackendChoice::IoUring).unwrap_err();
            assert!(e.to_string().contains(word), "{e}");
        });
    }
}

#[test]
fn a_ring_that_fails_later_reports_its_syncs_as_failed_and_never_hangs() {
    let dir = tempfile::tempdir().unwrap();
    if !usable(dir.path()) {
        return;
    }
    apart(move || {
        let disk = open(dir.path(), BackendChoice::IoUring).unwrap();
        let file = disk.open(&dir.path().join("f"), OpenMode::CreateNew).unwrap();
        let mut lane = disk.lane().unwrap();
        lane.submit(Op::SyncData(Arc::clone(&file)), 1);
        let mut done = Vec::new();
        while lane.pending() > 0 {
            lane.wait(None).unwrap();
            lane.reap(&mut done);
        }
        assert!(done.pop().unwrap().result.is_ok());
        forbid(libc::SYS_io_uring_enter, libc::EPERM);
        for token in 0..1_000 {
            lane.submit(Op::SyncData(Arc::clone(&file)), token);
        }
        lane.wait(None).unwrap();
        lane.reap(&mut done);
        assert_eq!(lane.pending(), 0);
        lane.submit(Op::SyncData(Arc::clone(&file)), 1_000);
        lane.wait(None).unwrap();
        lane.reap(&mut done);
        assert!(done.iter().map(|d| d.token).eq(0..=1_000));
        assert!(done.iter().all(|d| d.result.is_err()));
        assert_eq!(lane.wait(None).unwrap_err().raw_os_error(), Some(libc::EPERM));
        drop(lane);
        assert_eq!(Arc::strong_count(&file), 1);
    });
}

#[test]
fn every_ring_that_an_older_kernel_would_give_works_too() {
    for builder in builders() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(ring) = builder.build(RING_ENTRIES) else { continue };
        let mut lane = RingLane::on(ring).unwrap();
        let file = super::super::plain::open_dir(dir.path()).unwrap();
        for token in 0..600 {
            lane.submit(Op::SyncData(Arc::clone(&file)), token);
        }
        let (direct, mut buffers) = (direct_file(dir.path()), lane.buffers(4, BLOCK_BYTES));
        for token in 600..610 {
            let buffer = buffers.pop().unwrap_or_else(|| Buffer::new(1));
            lane.submit(write_to(&direct, buffer), token);
        }
        let mut done = Vec::new();
        lane.waker().wake();
        while lane.pending() > 0 {
            lane.wait(None).unwrap();
            lane.reap(&mut done);
        }
        assert_eq!(done.len(), 610);
        assert!(done.iter().all(|d| d.result.is_ok() && d.buffer.is_some() == (d.token >= 600)));
    }
}

fn direct_file(dir: &Path) -> FileRef {
    let disk = open(dir, BackendChoice::Plain).unwrap();
    disk.open(&dir.join("direct"), OpenMode::CreateOrTruncate).unwrap().allocate(1 << 20).unwrap();
    disk.open(&dir.join("direct"), OpenMode::Direct).unwrap()
}

fn write_to(file: &FileRef, mut buffer: Buffer) -> Op {
    buffer.clear();
    buffer.extend_from_slice(&[5; BLOCK_BYTES]);
    Op::WriteDurable { file: Arc::clone(file), buffer, position: 0 }
}

#[test]
fn a_ring_that_breaks_keeps_the_buffers_it_was_reading() {
    let dir = tempfile::tempdir().unwrap();
    if !usable(dir.path()) {
        return;
    }
    apart(move || {
        let file = direct_file(dir.path());
        let mut lane = RingLane::new().unwrap();
        let entries = u64::from(RING_ENTRIES);
        let mut buffers = lane.buffers(8, BLOCK_BYTES);
        for token in 0..entries + 50 {
            let buffer = buffers.pop().unwrap_or_else(|| Buffer::new(1));
            lane.submit(write_to(&file, buffer), token);
        }
        forbid(libc::SYS_io_uring_enter, libc::EPERM);
        lane.wait(None).unwrap();
        let mut done = Vec::new();
        lane.reap(&mut done);
        assert!(done.iter().map(|d| d.token).eq(0..entries + 50));
        assert!(done.iter().all(|d| d.result.is_err()));
        assert!(done.iter().all(|d| d.buffer.is_some() == (d.token >= entries)));
        assert_eq!((lane.pending(), Arc::strong_count(&file)), (0, 1));
        lane.submit(write_to(&file, Buffer::new(1)), 7);
        lane.reap(&mut done);
        let refused = done.pop().unwrap();
        assert!(refused.result.is_err() && refused.buffer.is_some());
        lane.wait(None).unwrap_err();
    });
}

#[test]
fn writes_go_to_the_kernel_before_syncs_that_came_first() {
    let dir = tempfile::tempdir().unwrap();
    if !usable(dir.path()) {
        return;
    }
    let (file, mut lane) = (direct_file(dir.path()), RingLane::new().unwrap());
    for token in 0..1_000 {
        lane.submit(Op::SyncData(Arc::clone(&file)), token);
    }
    lane.reap(&mut Vec::new());
    for token in 0..100 {
        lane.submit(write_to(&file, Buffer::new(1)), token);
    }
    let mut done = Vec::new();
    lane.reap(&mut done);
    assert!(lane.writes.is_empty(), "there is room for writes when there is none for syncs");
    assert!(!lane.others.is_empty() && lane.others_in_kernel <= OTHERS_IN_KERNEL_MAX);
    while lane.pending() > 0 {
        lane.wait(None).unwrap();
        lane.reap(&mut done);
    }
    assert_eq!((lane.others_in_kernel, lane.free.len()), (0, lane.slots.len()));
    assert!(done.iter().all(|d| d.result.is_ok()));
}

#[test]
fn buffers_that_cannot_be_registered_are_written_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    if !usable(dir.path()) {
        return;
    }
    let (file, mut lane) = (direct_file(dir.path()), RingLane::new().unwrap());
    let first = lane.buffers(2, BLOCK_BYTES);
    assert!(first.iter().all(|buffer| buffer.registered_with(lane.id).is_some()));
    let second = lane.buffers(2, BLOCK_BYTES); // a ring takes them once only
    assert!(second.iter().all(|buffer| buffer.registered_with(lane.id).is_none()));
    let none = lane.buffers(0, BLOCK_BYTES);
    let mut done = Vec::new();
    for buffer in first.into_iter().chain(second).chain(none) {
        lane.submit(write_to(&file, buffer), 0);
    }
    while lane.pending() > 0 {
        lane.wait(None).unwrap();
        lane.reap(&mut done);
    }
    assert!(done.len() == 4 && done.iter().all(|d| d.result.is_ok()));
    // A write after its neighbours' memory is gone.
    let kept = done.pop().unwrap().buffer.unwrap();
    drop(done);
    lane.submit(write_to(&file, kept), 1);
    while lane.pending() > 0 {
        lane.wait(None).unwrap();
        lane.reap(&mut Vec::new());
    }
}

#[test]
fn a_reap_with_nothing_to_take_makes_no_system_call() {
    let dir = tempfile::tempdir().unwrap();
    if !usable(dir.path()) {
        return;
    }
    apart(move || {
        let (file, mut lane) = (direct_file(dir.path()), RingLane::new().unwrap());
        let mut done = Vec::new();
        lane.submit(write_to(&file, Buffer::new(1)), 0);
        while lane.pending() > 0 {
            lane.reap(&mut done);
            std::thread::yield_now();
        }
        assert!(done.pop().unwrap().result.is_ok());
        forbid(libc::SYS_io_uring_enter, libc::EPERM);
        for _ in 0..1_000 {
            lane.reap(&mut done);
        }
        assert_eq!(lane.state, State::Running);
    });
}
