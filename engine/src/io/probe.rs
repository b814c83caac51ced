//! What the machine and the file system of a directory offer, for `loglane doctor`.
//!
//! [`probe`] asks; it changes nothing: its trial file has no name where the file system can do that
//! (`O_TMPFILE`), and is unlinked before it is used where not. A directory that is missing or
//! read-only gets the findings that need no file.

#![forbid(unsafe_code)]

use super::ring;
use rustix::fs::{Mode, OFlags, StatVfsMountFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use rustix::process::{Resource, getrlimit};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Descriptors below which an engine with many partitions keeps closing and reopening files.
const NOFILE_WANTED: u64 = 65_536;

/// Free bytes below which a doctor speaks up: a handful of segments of Kafka's default size.
const FREE_BYTES_LOW: u64 = 10 << 30;

/// Alignment that satisfies direct I/O on every block device in use.
const DIRECT_ALIGN: usize = 4096;

/// RWF_DONTCACHE (Linux 6.14), which has no name in the libraries yet.
const RWF_DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// How good a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, and could be better.
    Note,
    /// Will hurt.
    Problem,
}

impl Verdict {
    /// The word for people and for JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Problem => "problem",
        }
    }
}

/// One thing found out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What it is about; stable, for machines.
    pub name: &'static str,
    /// What was found.
    pub value: String,
    /// How good that is.
    pub verdict: Verdict,
    /// What it means or what to do, in a sentence.
    pub advice: String,
}

/// All that [`probe`] found out.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Probe {
    /// Everything, in order of display.
    pub findings: Vec<Finding>,
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// `Ok` if lanes can be rings, else why not.
    pub io_uring: Result<(), String>,
    /// Name of the file system, `unknown (0x…)` for one not in our table; `None` if the directory
    /// cannot be asked.
    pub file_system: Option<String>,
    /// The mount takes no writes.
    pub read_only: bool,
    /// Bytes this user may still write.
    pub free_bytes: u64,
    /// Size of the file system.
    pub total_bytes: u64,
    /// An aligned direct write worked; `None` if no trial file could be made.
    pub direct_io: Option<bool>,
    /// Alignment of memory and position for direct I/O, if the kernel tells (Linux 6.1).
    pub direct_align: Option<(u32, u32)>,
    /// Buffered writes that drop their pages when written back; `None` if not tried.
    pub dont_cache: Option<bool>,
    /// Buffered writes complete without a kernel worker (xfs; not ext4); `None` if not tried.
    pub nowait_writes: Option<bool>,
    /// Soft and hard RLIMIT_NOFILE; `None` is no limit.
    pub nofile: (Option<u64>, Option<u64>),
    /// Soft RLIMIT_MEMLOCK in bytes; `None` is no limit.
    pub memlock: Option<u64>,
    /// CPUs this process may run on.
    pub cpus: usize,
    /// Bytes of a memory page.
    pub page_bytes: usize,
}

/// Looks at the machine and at the file system of `dir`.
#[must_use]
pub fn probe(dir: &Path) -> Probe {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let stat = rustix::fs::statvfs(dir);
    let magic = rustix::fs::statfs(dir).map(|stat| magic_of(&stat));
    let read_only = stat.as_ref().is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY));
    let (free_bytes, total_bytes) = stat.as_ref().map_or((0, 0), |stat| {
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        (bytes(stat.f_bavail), bytes(stat.f_blocks))
    });
    let trial = if read_only { Err(Errno::ROFS) } else { Trial::run(dir) };
    let tried = trial.as_ref().ok();
    let nofile = getrlimit(Resource::Nofile);
    let mut found = Probe {
        findings: Vec::new(),
        kernel,
        io_uring: ring::probe(dir),
        file_system: magic.ok().map(file_system_name),
        read_only,
        free_bytes,
        total_bytes,
        direct_io: tried.map(|t| t.direct_io),
        direct_align: tried.and_then(|t| t.direct_align),
        dont_cache: tried.map(|t| t.dont_cache),
        nowait_writes: tried.map(|t| t.nowait_writes),
        nofile: (nofile.current, nofile.maximum),
        memlock: getrlimit(Resource::Memlock).current,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        page_bytes: rustix::param::page_size(),
    };
    found.machine_findings();
    found.directory_findings(dir, stat.err(), trial.err());
    found
}

impl Probe {
    /// The worst of the verdicts.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let any = |verdict| self.findings.iter().any(|f| f.verdict == verdict);
        match () {
            () if any(Verdict::Problem) => Verdict::Problem,
            () if any(Verdict::Note) => Verdict::Note,
            () => Verdict::Ok,
        }
    }

    fn add(&mut self, name: &'static str, value: String, verdict: Verdict, advice: &str) {
        self.findings.push(Finding { name, value, verdict, advice: advice.into() });
    }

    fn machine_findings(&mut self) {
        self.add("kernel", self.kernel.clone(), Verdict::Ok, "Nothing to do.");
        match self.io_uring.clone() {
            Ok(()) => self.add("io_uring", "usable".into(), Verdict::Ok, "Syncs go through it."),
            Err(why) => self.add(
                "io_uring",
                format!("not usable: {why}"),
                Verdict::Note,
                "The engine runs on plain calls; allow io_uring for cheaper syncs.",
            ),
        }
        match ring::disabled_sysctl() {
            None | Some(0) => {}
            Some(level) => self.add(
                "kernel.io_uring_disabled",
                level.to_string(),
                Verdict::Note,
                "Set it to 0, or to 1 with this user in kernel.io_uring_group.",
            ),
        }
        let (soft, hard) = self.nofile;
        let value = format!("{} of {}", limit(soft), limit(hard));
        match soft {
            Some(soft) if soft < NOFILE_WANTED => self.add(
                "open_files",
                value,
                Verdict::Note,
                "Raise ulimit -n to 65536 or more if there are many partitions.",
            ),
            _ => self.add("open_files", value, Verdict::Ok, "Enough for many partitions."),
        }
        let memlock = self.memlock.map_or("unlimited".into(), |bytes| format!("{bytes} bytes"));
        self.add(
            "memlock",
            memlock,
            Verdict::Ok,
            "Counts for rings (before Linux 5.12, and on 6.18) and for buffers.",
        );
        self.add("cpus", self.cpus.to_string(), Verdict::Ok, "One shard for each is the default.");
        self.add("page", format!("{} bytes", self.page_bytes), Verdict::Ok, "Nothing to do.");
    }

    fn directory_findings(&mut self, dir: &Path, stat: Option<Errno>, trial: Option<Errno>) {
        let Some(name) = self.file_system.clone().filter(|_| stat.is_none()) else {
            let why = stat.map_or("cannot be asked".into(), |e| io::Error::from(e).to_string());
            let value = format!("{}: {why}", dir.display());
            self.add("directory", value, Verdict::Problem, "Create it, or name another.");
            return;
        };
        let (verdict, advice) = file_system_advice(&name);
        self.add("file_system", name, verdict, advice);
        if self.read_only {
            self.add(
                "mount",
                "read-only".into(),
                Verdict::Problem,
                "It can be read, not appended.",
            );
        } else {
            self.add("mount", "writable".into(), Verdict::Ok, "Nothing to do.");
        }
        let space = format!("{} of {} bytes", self.free_bytes, self.total_bytes);
        if self.free_bytes < FREE_BYTES_LOW {
            self.add("free_space", space, Verdict::Note, "Room for a few segments only.");
        } else {
            self.add("free_space", space, Verdict::Ok, "Nothing to do.");
        }
        match trial {
            None => self.trial_findings(),
            Some(_) if self.read_only => {}
            Some(e) => self.add(
                "trial_file",
                format!("cannot be made: {}", io::Error::from(e)),
                Verdict::Problem,
                "Give this user the right to create files in the directory.",
            ),
        }
    }

    fn trial_findings(&mut self) {
        let word = |yes: Option<bool>| if yes == Some(true) { "accepted" } else { "refused" };
        let mut direct = word(self.direct_io).to_string();
        if let Some((memory, position)) = self.direct_align {
            direct = format!("{direct}, aligned to {memory} (memory) and {position} (position)");
        }
        if self.direct_io == Some(true) {
            self.add("direct_io", direct, Verdict::Ok, "Journal writes can bypass the page cache.");
        } else {
            let advice = "A journal here goes through the page cache, which is slower.";
            self.add("direct_io", direct, Verdict::Note, advice);
        }
        let advice = "Whether bulk writes can leave the page cache alone (Linux 6.14).";
        self.add("dont_cache", word(self.dont_cache).into(), Verdict::Ok, advice);
        let advice = "Whether buffered writes on a ring complete inline, without a worker.";
        self.add("nowait_writes", word(self.nowait_writes).into(), Verdict::Ok, advice);
    }
}

fn limit(value: Option<u64>) -> String {
    value.map_or("unlimited".into(), |n| n.to_string())
}

/// What a trial file in the directory let us do.
struct Trial {
    direct_io: bool,
    direct_align: Option<(u32, u32)>,
    dont_cache: bool,
    nowait_writes: bool,
}

impl Trial {
    fn run(dir: &Path) -> Result<Trial, Errno> {
        let file = trial_file(dir, OFlags::empty())?;
        let bytes = [0; DIRECT_ALIGN];
        let write = |fd: &OwnedFd, bytes: &[u8], flags| matches!(pwritev2(fd, &[IoSlice::new(bytes)], 0, flags), Ok(n) if n == bytes.len());
        // The first write brings the page in and allocates, which NOWAIT may not.
        if !write(&file, &bytes, ReadWriteFlags::empty()) {
            return Err(Errno::NOSPC);
        }
        let nowait_writes = write(&file, &bytes, ReadWriteFlags::NOWAIT);
        let dont_cache = write(&file, &bytes, RWF_DONTCACHE);

        let direct_align =
            rustix::fs::statx(&file, c"", rustix::fs::AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
                .ok()
                .filter(|stat| stat.stx_dio_offset_align > 0)
                .map(|stat| (stat.stx_dio_mem_align, stat.stx_dio_offset_align));
        // Opening may succeed where writing fails, so write.
        let memory = vec![0; 2 * DIRECT_ALIGN];
        let start = memory.as_ptr().align_offset(DIRECT_ALIGN);
        let aligned = memory.get(start..).and_then(|rest| rest.get(..DIRECT_ALIGN));
        let direct_io = match (trial_file(dir, OFlags::DIRECT), aligned) {
            (Ok(file), Some(aligned)) => write(&file, aligned, ReadWriteFlags::empty()),
            _ => false,
        };
        Ok(Trial { direct_io, direct_align, dont_cache, nowait_writes })
    }
}

/// A file without a name.
fn trial_file(dir: &Path, extra: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | extra;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(dir, flags | OFlags::TMPFILE, mode) {
        // Not every file system has nameless files, and old ones take it for opening a directory.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
        opened => return opened,
    }
    let path = dir.join(format!(".loglane-probe-{}", std::process::id()));
    let file = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode);
    // A direct open that is refused may have created the file all the same.
    match (file, rustix::fs::unlink(&path)) {
        (Ok(file), Ok(())) => Ok(file),
        (Err(e), _) | (_, Err(e)) => Err(e),
    }
}

fn magic_of(stat: &rustix::fs::StatFs) -> u64 {
    let magic = stat.f_type as u64;
    magic & 0xffff_ffff
}

fn file_system_name(magic: u64) -> String {
    let name = match magic {
        0xef53 => "ext4", // ext2 and ext3 have the same
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0xf2f5_2010 => "f2fs",
        0x2fc1_2fc1 => "zfs",
        0xca45_1a4e => "bcachefs",
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlayfs",
        0x6969 => "nfs",
        0xff53_4d42 | 0xfe53_4d42 => "smb",
        0x0102_1997 => "9p",
        0x00c3_6400 => "ceph",
        0x6573_5546 => "fuse", // virtiofs too
        0x7371_7368 => "squashfs",
        other => return format!("unknown ({other:#x})"),
    };
    name.into()
}

fn file_system_advice(name: &str) -> (Verdict, &'static str) {
    match name {
        "ext4" | "xfs" => (Verdict::Ok, "What the engine is built for."),
        "btrfs" | "zfs" | "bcachefs" | "f2fs" => {
            (Verdict::Note, "Works; it copies on write, so syncs are slower than on ext4 or xfs.")
        }
        "tmpfs" | "ramfs" => (Verdict::Note, "In memory: nothing survives a restart."),
        "overlayfs" => {
            (Verdict::Note, "A container's own layer: put the data on a volume, or lose it.")
        }
        "nfs" | "smb" | "9p" | "ceph" => {
            (Verdict::Problem, "A network file system: locks and syncs may not hold; use a disk.")
        }
        "fuse" => (Verdict::Note, "Whether syncs hold depends on what is behind it."),
        "squashfs" => (Verdict::Problem, "It can be read, not appended."),
        _ => (Verdict::Note, "Not tried; ext4 and xfs are."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_says_something_about_everything_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let found = probe(dir.path());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(found.file_system.is_some() && found.total_bytes > 0 && found.cpus > 0);
        assert!(found.direct_io.is_some() && found.dont_cache.is_some());
        for finding in &found.findings {
            assert!(!finding.value.is_empty() && finding.advice.ends_with('.'), "{finding:?}");
            let same = found.findings.iter().filter(|f| f.name == finding.name).count();
            assert_eq!(same, 1, "{} twice", finding.name);
            println!(
                "{:24} {:8} {}  {}",
                finding.name,
                finding.verdict.name(),
                finding.value,
                finding.advice
            );
        }
    }

    #[test]
    fn a_missing_directory_is_a_problem_and_not_a_panic() {
        let found = probe(Path::new("/nonexistent/loglane"));
        assert_eq!(found.verdict(), Verdict::Problem);
        assert_eq!(found.file_system, None);
        assert!(found.findings.iter().any(|f| f.name == "directory"));
    }

    #[test]
    fn a_read_only_mount_is_seen_without_trying_to_write() {
        // /proc/sys and /sys are read-only in most containers; on a plain host, say so and skip.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let read_only = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (path, flags) = (fields.nth(1)?, fields.nth(1)?);
            let dir = flags.split(',').any(|f| f == "ro") && Path::new(path).is_dir();
            dir.then(|| path.to_string())
        });
        let Some(path) = read_only else {
            eprintln!("skipped: no read-only mount here");
            return;
        };
        let found = probe(Path::new(&path));
        assert!(found.read_only, "{path}");
        assert_eq!(found.direct_io, None);
        assert!(found.findings.iter().any(|f| f.name == "mount" && f.value == "read-only"));
    }

    #[test]
    fn file_systems_are_told_by_their_magic() {
        assert_eq!(file_system_name(0xef53), "ext4");
        assert_eq!(file_system_name(0x1234), "unknown (0x1234)");
        assert_eq!(file_system_advice("nfs").0, Verdict::Problem);
    }
}
