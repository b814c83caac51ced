//! The disk under test: an image in memory, a loop device over it, a file system on top.
//!
//! Nothing outlives the rig, however it ends: the image is a memfd, the loop device goes at its last
//! close, the mounts are in a namespace of their own.

use crate::kernel::{self, LogFate};
use crate::load::Outcome;
use crate::random::Random;
use crate::volatile::VolatileCache;
use rustix::fs::{MemfdFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a file system may stay busy after the last of its users was killed.
const UNMOUNT_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    pub(crate) fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }

    /// xfs takes nothing under 300 MiB.
    fn image_bytes(self) -> u64 {
        match self {
            FileSystem::Ext4 => 128 << 20,
            FileSystem::Xfs => 320 << 20,
        }
    }

    /// What a disk must write whole for the file system itself to survive. xfs recovers a block only
    /// if its first sector is old: with a new one over old ones it does not mount.
    fn whole_bytes(self) -> u64 {
        match self {
            FileSystem::Ext4 => 512,
            FileSystem::Xfs => 4096,
        }
    }

    fn format(self, device: &Path) -> Outcome<()> {
        let (program, options): (&str, &[&str]) = match self {
            // The tables at once: a thread that still writes them would blur what a cut hits.
            FileSystem::Ext4 => {
                ("mkfs.ext4", &["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard"])
            }
            FileSystem::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
        };
        let output = Command::new(program).args(options).arg(device).output();
        let output = output
            .map_err(|e| format!("{program}: {e}; install e2fsprogs for ext4, xfsprogs for xfs"))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)).into()),
        }
    }
}

/// An image with a file system, mounted or not.
pub(crate) struct Disk {
    pub(crate) file_system: FileSystem,
    image: File,
    /// The image as the last cut left it, before its file system was recovered.
    after_cut: File,
    /// Between the loop device and the image, in the rig that has one.
    cache: Option<VolatileCache>,
    target: PathBuf,
    is_mounted: bool,
}

impl Disk {
    /// `place` is an empty directory for the mounts.
    pub(crate) fn new(file_system: FileSystem, is_volatile: bool, place: &Path) -> Outcome<Disk> {
        let memory =
            |name: &str| rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
        let image = memory("image")?;
        image.set_len(file_system.image_bytes())?;
        let target = place.join("fs");
        std::fs::create_dir(&target)?;
        let cache = match is_volatile {
            true => {
                Some(VolatileCache::mount(image.try_clone()?, file_system.whole_bytes(), place)?)
            }
            false => None,
        };
        let after_cut = memory("after-cut")?;
        Ok(Disk { file_system, image, after_cut, cache, target, is_mounted: false })
    }

    /// Where the file system is mounted.
    pub(crate) fn root(&self) -> &Path {
        &self.target
    }

    pub(crate) fn cache(&self) -> Option<&VolatileCache> {
        self.cache.as_ref()
    }

    /// An empty file system.
    pub(crate) fn format(&mut self) -> Outcome<()> {
        self.unmount()?;
        if let Some(cache) = &self.cache {
            cache.clear();
        }
        self.image.set_len(0)?;
        self.image.set_len(self.file_system.image_bytes())?;
        let (_device, path) = self.attach()?;
        self.file_system.format(&path)?;
        match &self.cache {
            Some(cache) => cache.settle(),
            None => Ok(()),
        }
    }

    pub(crate) fn mount(&mut self) -> Outcome<()> {
        // The device stays as long as it is mounted.
        let (_device, path) = self.attach()?;
        let (kind, flags) = (self.file_system.name(), MountFlags::empty());
        rustix::mount::mount(&path, &self.target, kind, flags, None).map_err(|e| {
            format!("mount {kind} on {}: {e}; dmesg says why", self.target.display())
        })?;
        self.is_mounted = true;
        Ok(())
    }

    /// Unmounts, waiting for what the kernel still holds for a killed process.
    pub(crate) fn unmount(&mut self) -> Outcome<()> {
        let deadline = Instant::now() + UNMOUNT_MAX;
        while self.is_mounted {
            match rustix::mount::unmount(&self.target, UnmountFlags::empty()) {
                Ok(()) => self.is_mounted = false,
                Err(Errno::BUSY) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(e) => return Err(format!("unmount {}: {e}", self.target.display()).into()),
            }
        }
        Ok(())
    }

    /// The power goes: nothing more reaches the disk. What was not flushed is lost when it comes
    /// back.
    pub(crate) fn cut(&self, random: &mut Random) -> Outcome<()> {
        let fate = match &self.cache {
            Some(cache) => {
                cache.die();
                LogFate::Lost
            }
            None if random.one_in(6) => LogFate::Flushed,
            None => LogFate::Lost,
        };
        let opened =
            rustix::fs::open(&self.target, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        match opened.and_then(|root| kernel::shut_down(&root, fate)) {
            Ok(()) => Ok(()),
            // A file system that met errors first is down already.
            Err(Errno::IO) if self.cache.is_some() => Ok(()),
            Err(e) => Err(format!("shut down {}: {e}", self.target.display()).into()),
        }
    }

    /// The power is back: mounts what the cut left, which recovers the file system.
    pub(crate) fn come_back(&mut self, random: &mut Random) -> Outcome<()> {
        self.unmount()?;
        if let Some(cache) = &self.cache {
            cache.come_back(random)?;
        }
        copy_sparse(&self.image, &self.after_cut)?;
        self.mount()
    }

    /// Writes the image as the last cut left it to a file.
    pub(crate) fn keep(&self, path: &Path) -> Outcome<()> {
        copy_sparse(&self.after_cut, &File::create(path)?)
    }

    fn attach(&self) -> Outcome<(File, PathBuf)> {
        let attached = match &self.cache {
            Some(cache) => kernel::attach_loop(&cache.open()?, true),
            None => kernel::attach_loop(&self.image, false),
        };
        Ok(attached.map_err(|e| format!("loop device: {e}; needs /dev/loop-control"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("crash-rig: {error}");
        }
    }
}

fn copy_sparse(from: &File, to: &File) -> Outcome<()> {
    let end = from.metadata()?.len();
    to.set_len(0)?;
    to.set_len(end)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let hole = rustix::fs::seek(from, SeekFrom::Hole(data))?;
        at = data;
        while at < hole {
            let length = usize::try_from(hole - at)?.min(buffer.len());
            let Some(chunk) = buffer.get_mut(..length) else { break };
            from.read_exact_at(chunk, at)?;
            to.write_all_at(chunk, at)?;
            at += length as u64;
        }
    }
}
