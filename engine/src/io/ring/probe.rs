//! Rings of old and new kernels, and why there may be none.

#![forbid(unsafe_code)]

use super::super::{Done, Lane, Op, plain};
use super::{RING_ENTRIES, RingLane};
use io_uring::IoUring;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Rings from best to plainest; older kernels refuse flags they do not know. For durable writes they
/// are equal: 20 KiB one at a time, 1.07–1.10 of a bare loop of pwrite with the first, 1.05–1.13 with
/// the second, 1.05–1.09 with the third. So are their wakes and syncs.
pub(super) fn builders() -> [io_uring::Builder; 3] {
    let mut best = IoUring::builder();
    // Completions are posted when the owner asks, by itself: no interrupts, no locks (6.1).
    best.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
    let mut good = IoUring::builder();
    // Completions wait for the owner's next system call instead of interrupting it (5.19).
    good.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
    [best, good, IoUring::builder()].map(|mut builder| {
        builder.dontfork().setup_r_disabled();
        builder
    })
}

pub(super) fn build_ring() -> io::Result<IoUring> {
    let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
    for builder in builders() {
        match builder.build(RING_ENTRIES) {
            Ok(ring) => return Ok(ring),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => refusal = e,
            Err(e) => return Err(e),
        }
    }
    Err(refusal)
}

/// How long the probe gives a sync of a directory that nobody writes to.
const PROBE_TIME_MAX: Duration = Duration::from_secs(10);

/// Finds out whether lanes can be rings, by using one: wakes it, and syncs `dir` through it (which
/// leaves no file behind and works on a read-only mount).
///
/// # Errors
/// A sentence that says why not.
pub(in super::super) fn probe(dir: &Path) -> Result<(), String> {
    let mut lane = RingLane::new().map_err(|e| refusal(&e))?;
    lane.waker().wake();
    lane.wait(Some(PROBE_TIME_MAX)).map_err(|e| refusal(&e))?;
    // A directory yet to be created cannot be synced; that lanes work at all has been seen.
    let Ok(file) = plain::open_dir(dir) else { return Ok(()) };
    lane.submit(Op::SyncData(Arc::clone(&file)), 0);
    let mut done = Vec::new();
    for _ in 0..2 {
        lane.wait(Some(PROBE_TIME_MAX)).map_err(|e| refusal(&e))?;
        lane.reap(&mut done);
        if let Some(Done { result, .. }) = done.pop() {
            // Some file systems have no sync for directories; then plain calls fail the same way.
            return match (result, file.sync_data()) {
                (Err(e), Ok(())) => Err(format!("io_uring refused a sync: {}", refusal(&e))),
                _ => Ok(()),
            };
        }
    }
    Err("io_uring took a sync and did not complete it in time".into())
}

/// Who refused, as far as an errno tells, and what can be done about it.
fn refusal(e: &io::Error) -> String {
    let cause = match e.raw_os_error() {
        Some(libc::EPERM) => match disabled_sysctl() {
            Some(2) => "sysctl kernel.io_uring_disabled=2 turns it off for every process".into(),
            Some(1) => {
                "sysctl kernel.io_uring_disabled=1 keeps it for CAP_SYS_ADMIN and the group in \
                 kernel.io_uring_group"
                    .into()
            }
            _ => "most likely a seccomp filter, as container runtimes install by default".into(),
        },
        Some(libc::EACCES) => "most likely a security module such as SELinux".into(),
        Some(libc::ENOSYS) => {
            "this kernel has no io_uring, or a sandbox (gVisor, a seccomp filter) hides it".into()
        }
        Some(libc::ENOMEM) => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
            let limit = limit.map_or("unlimited".into(), |bytes| format!("{bytes} bytes"));
            format!("RLIMIT_MEMLOCK is {limit}; raise ulimit -l")
        }
        Some(libc::EMFILE | libc::ENFILE) => "no descriptor left; raise ulimit -n".into(),
        Some(libc::EINVAL) => "the kernel is too old for what the engine needs (5.10)".into(),
        _ => String::new(),
    };
    match (errno_name(e), cause) {
        (None, cause) if cause.is_empty() => e.to_string(),
        (Some(name), cause) if cause.is_empty() => format!("{name} ({e})"),
        (name, cause) => format!("{} ({cause})", name.unwrap_or("refused")),
    }
}

fn errno_name(e: &io::Error) -> Option<&'static str> {
    Some(match e.raw_os_error()? {
        libc::EPERM => "EPERM",
        libc::EACCES => "EACCES",
        libc::ENOSYS => "ENOSYS",
        libc::ENOMEM => "ENOMEM",
        libc::EMFILE => "EMFILE",
        libc::ENFILE => "ENFILE",
        libc::EINVAL => "EINVAL",
        _ => return None,
    })
}

/// The sysctl that forbids io_uring (since Linux 6.6), if this kernel has it.
pub(in super::super) fn disabled_sysctl() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}
