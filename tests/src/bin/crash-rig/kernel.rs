//! The system calls of the rig that have no safe wrapper: a mount namespace of one's own, loop
//! devices, the shutdown of a file system.

use rustix::fs::{Mode, OFlags};
use rustix::io;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::thread::UnshareFlags;
use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Duration;

/// `LOOP_CTL_GET_FREE`, `LOOP_CONFIGURE`, `LOOP_GET_STATUS64` of linux/loop.h.
const LOOP_FREE: Opcode = 0x4c82;
const LOOP_CONFIGURE: Opcode = 0x4c0a;
const LOOP_STATUS: Opcode = 0x4c05;
/// `LO_FLAGS_AUTOCLEAR`: the device lets go of its file at the last close, whoever dies how.
const AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_DIRECT_IO`: no page cache between the device and its file.
const DIRECT_IO: u32 = 16;
/// `XFS_IOC_GOINGDOWN`, which is also `EXT4_IOC_SHUTDOWN`: `_IOR('X', 125, __u32)`.
const GOING_DOWN: Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);

/// What becomes of the file system's own log at a shutdown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LogFate {
    /// Written first: everything the file system has promised or not.
    Flushed = 1,
    /// Lost, as in a power cut.
    Lost = 2,
}

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [u8; 160],
    init: [u64; 2],
}

impl LoopInfo {
    fn with_flags(flags: u32) -> LoopInfo {
        LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            names: [0; 160],
            init: [0; 2],
        }
    }
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// An ioctl with a pointer to `T`, which answers with its return value.
struct Call<'a, T> {
    opcode: Opcode,
    argument: &'a mut T,
}

// SAFETY: `call` is the one maker of this type; its callers keep that `T` is what the opcode takes.
unsafe impl<T> Ioctl for Call<'_, T> {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.argument).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> io::Result<i32> {
        Ok(output)
    }
}

/// # Safety
/// `T` must have the layout that the kernel reads and writes for `opcode`.
unsafe fn call<T>(fd: impl AsFd, opcode: Opcode, argument: &mut T) -> io::Result<i32> {
    // SAFETY: the caller keeps that `T` fits the opcode; the reference lives through the call.
    unsafe { rustix::ioctl::ioctl(fd, Call { opcode, argument }) }
}

/// From here on mounts are seen by this process and its children only, and go when they are gone.
pub(crate) fn enter_own_mount_namespace() -> io::Result<()> {
    // SAFETY: only the mount table is unshared; `main` calls this before it starts a thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)
}

/// Puts a free loop device over a file. It goes when the returned handle and the mounts are gone.
pub(crate) fn attach_loop(backing: &File, direct_io: bool) -> io::Result<(File, PathBuf)> {
    let access = OFlags::RDWR | OFlags::CLOEXEC;
    let control = rustix::fs::open("/dev/loop-control", access, Mode::empty())?;
    let flags = AUTOCLEAR | if direct_io { DIRECT_IO } else { 0 };
    loop {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument, so it touches none.
        let number = unsafe { call(&control, LOOP_FREE, &mut 0u32) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::from(rustix::fs::open(&path, access, Mode::empty())?);
        let mut config = LoopConfig {
            fd: backing.as_raw_fd().cast_unsigned(),
            block_size: 512,
            info: LoopInfo::with_flags(flags),
            reserved: [0; 8],
        };
        // SAFETY: `LoopConfig` is laid out as `struct loop_config`.
        match unsafe { call(&device, LOOP_CONFIGURE, &mut config) } {
            Ok(_) => {
                let mut info = LoopInfo::with_flags(0);
                // SAFETY: `LoopInfo` is laid out as `struct loop_info64`.
                unsafe { call(&device, LOOP_STATUS, &mut info) }?;
                // A page cache below the device would keep what a cut must lose.
                let is_direct = info.flags & DIRECT_IO != 0;
                return if is_direct || !direct_io {
                    Ok((device, path))
                } else {
                    Err(io::Errno::OPNOTSUPP)
                };
            }
            // Somebody else took it first, or the last owner is still letting go.
            Err(io::Errno::BUSY) => std::thread::sleep(Duration::from_micros(200)),
            Err(error) => return Err(error),
        }
    }
}

/// Shuts a file system down at once: nothing reaches its device from here on.
pub(crate) fn shut_down(root: impl AsFd, fate: LogFate) -> io::Result<()> {
    let mut flags = fate as u32;
    // SAFETY: ext4 and xfs read one u32.
    unsafe { call(root, GOING_DOWN, &mut flags) }.map(|_| ())
}
