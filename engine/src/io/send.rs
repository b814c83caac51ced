//! Bytes of a file into a socket or pipe.
//!
//! Three ways, from best to most general: [`send_file`] (no copy, one system call; fails with
//! `EINVAL` where `out` or the file does not support it), [`splice_file`] (no copy, through a pipe
//! the caller keeps), [`copy_to_fd`] (a copy through a buffer; works for everything).
//!
//! What they share:
//! - The count returned is of bytes that have reached `out`. A caller that gets less than it asked
//!   for goes on at `position + count` when `out` is writable again.
//! - When `out` is non-blocking and full: `Ok(n)` if some bytes went out, else `WouldBlock`.
//! - A file that ends before `length` bytes is `UnexpectedEof`; what was there may have gone out, and
//!   how much is not said: the stream cannot be used for anything else.
//! - No byte is looked at: whether they are the ones that were written is for the fetch to check.
//!
//! # SIGPIPE
//! A write to a socket or pipe whose other end is closed raises SIGPIPE, and sendfile and splice
//! have no flag against it. Rust programs start with it ignored and get `BrokenPipe`; a host
//! written in C must ignore it itself (`signal(SIGPIPE, SIG_IGN)`) or it is killed. Go and the JVM
//! ignore or handle it.

#![forbid(unsafe_code)]

use rustix::io::{Errno, pread, retry_on_intr};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Most bytes of one sendfile or splice: the kernel's own limit (`MAX_RW_COUNT`) less a page.
const CALL_BYTES_MAX: usize = 0x7fff_e000;

/// What a [`SplicePipe`] asks the kernel for: `fs.pipe-max-size` as installed, and large enough
/// that the two calls per filling weigh nothing.
const PIPE_BYTES: usize = 1 << 20;

/// Capacity of a pipe that was not resized.
const PIPE_BYTES_DEFAULT: usize = 64 << 10;

/// Sends `length` bytes of `file` from `position` by sendfile(2).
///
/// # Errors
/// See the [module](self) for the meaning of `WouldBlock` and `UnexpectedEof`; `InvalidInput` if
/// the two descriptors do not support sendfile.
pub fn send_file(
    out: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    position: u64,
    length: usize,
) -> io::Result<usize> {
    let mut at = position;
    let mut sent = 0;
    while sent < length {
        let want = (length - sent).min(CALL_BYTES_MAX);
        match retry_on_intr(|| rustix::fs::sendfile(out, file, Some(&mut at), want)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => sent += n,
            Err(Errno::AGAIN) if sent > 0 => return Ok(sent),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(sent)
}

/// Copies `length` bytes of `file` from `position` to `out` through `buf`.
///
/// # Errors
/// See the [module](self) for the meaning of `WouldBlock` and `UnexpectedEof`.
///
/// # Panics
/// If `buf` is empty.
pub fn copy_to_fd(
    out: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    position: u64,
    length: usize,
    buf: &mut [u8],
) -> io::Result<usize> {
    assert!(!buf.is_empty(), "a copy needs a buffer");
    let mut sent = 0;
    while sent < length {
        let want = (length - sent).min(buf.len());
        let window = buf.get_mut(..want).unwrap_or_default();
        let read = retry_on_intr(|| pread(file, &mut *window, position + sent as u64))?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = window.get(..read).unwrap_or_default();
        while !rest.is_empty() {
            match retry_on_intr(|| rustix::io::write(out, rest)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    sent += n;
                    rest = rest.get(n..).unwrap_or_default();
                }
                // What was read and not written is read again by the next call.
                Err(Errno::AGAIN) if sent > 0 => return Ok(sent),
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(sent)
}

/// The pipe between a file and a socket; one per connection, kept for its life.
///
/// When the socket is full, bytes of the file stay in the pipe. They are not lost: the next
/// [`splice_file`] with this pipe sends them first, and insists that it goes on where the last one
/// stopped. To give the pipe to another stream, or to skip what is in it, [`SplicePipe::clear`] it.
#[derive(Debug)]
pub struct SplicePipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    /// Bytes in the pipe, and the position in the file of the first of them.
    held: usize,
    held_position: u64,
}

impl SplicePipe {
    /// An empty pipe, of 1 MiB if the user's pipe limit allows it.
    ///
    /// # Errors
    /// If the process or the machine has no descriptor left.
    pub fn new() -> io::Result<SplicePipe> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // EPERM when fs.pipe-user-pages-soft is used up: a small pipe is slower, no more than that.
        let capacity = fcntl_setpipe_size(&write, PIPE_BYTES).unwrap_or(PIPE_BYTES_DEFAULT);
        Ok(SplicePipe { read, write, capacity, held: 0, held_position: 0 })
    }

    /// Bytes that have left the file and not reached the socket.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Throws away what is in the pipe.
    ///
    /// # Errors
    /// If the pipe has to be made anew and no descriptor is left; then it is unchanged.
    pub fn clear(&mut self) -> io::Result<()> {
        if self.held > 0 {
            *self = SplicePipe::new()?;
        }
        Ok(())
    }
}

/// Sends `length` bytes of `file` from `position` by splice(2) through `pipe`.
///
/// Bytes that are in the pipe when this returns are not in the count. They were taken from the file
/// at `position + count`, which is where the next call with this pipe must start; it may ask for
/// any length, and for bytes of the same file only.
///
/// # Errors
/// See the [module](self) for the meaning of `WouldBlock` and `UnexpectedEof`; `InvalidInput` if
/// the pipe holds bytes of another position. After any error but `WouldBlock`, clear the pipe
/// before it serves another stream.
pub fn splice_file(
    out: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    position: u64,
    length: usize,
    pipe: &mut SplicePipe,
) -> io::Result<usize> {
    if pipe.held > 0 && pipe.held_position != position {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the pipe holds bytes from position {}, the call starts at {position}",
                pipe.held_position
            ),
        ));
    }
    let mut sent = 0;
    while sent < length {
        if pipe.held == 0 {
            let mut at = position + sent as u64;
            let want = (length - sent).min(pipe.capacity);
            pipe.held_position = at;
            let write = &pipe.write;
            pipe.held = retry_on_intr(|| {
                splice(file, Some(&mut at), write, None, want, SpliceFlags::NONBLOCK)
            })?;
            if pipe.held == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let want = pipe.held.min(length - sent);
        // MORE lets TCP fill its packets; on the last piece it would hold back the tail.
        let more = if want < length - sent { SpliceFlags::MORE } else { SpliceFlags::empty() };
        let read = &pipe.read;
        match retry_on_intr(|| splice(read, None, out, None, want, more)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                sent += n;
                pipe.held -= n;
                pipe.held_position += n as u64;
            }
            Err(Errno::AGAIN) if sent > 0 => return Ok(sent),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    /// One of the three ways, with the state it keeps.
    trait Way {
        fn send(&mut self, out: &TcpStream, file: &File, at: u64, len: usize) -> io::Result<usize>;
    }
    impl<F: FnMut(BorrowedFd<'_>, BorrowedFd<'_>, u64, usize) -> io::Result<usize>> Way for F {
        fn send(&mut self, out: &TcpStream, file: &File, at: u64, len: usize) -> io::Result<usize> {
            self(out.as_fd(), file.as_fd(), at, len)
        }
    }

    fn ways() -> Vec<(&'static str, Box<dyn Way>)> {
        let mut buf = vec![0; 10_000];
        let mut pipe = SplicePipe::new().unwrap();
        vec![
            (
                "sendfile",
                Box::new(|o: BorrowedFd<'_>, f: BorrowedFd<'_>, at: u64, len: usize| {
                    send_file(o, f, at, len)
                }),
            ),
            (
                "splice",
                Box::new(move |o: BorrowedFd<'_>, f: BorrowedFd<'_>, at: u64, len: usize| {
                    splice_file(o, f, at, len, &mut pipe)
                }),
            ),
            (
                "copy",
                Box::new(move |o: BorrowedFd<'_>, f: BorrowedFd<'_>, at: u64, len: usize| {
                    copy_to_fd(o, f, at, len, &mut buf)
                }),
            ),
        ]
    }

    fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (out, listener.accept().unwrap().0)
    }

    fn file_of(len: usize) -> (File, Vec<u8>) {
        // A period that is no power of two, so that bytes from a wrong position differ.
        let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    #[test]
    fn a_blocking_socket_gets_exactly_the_range_asked_for() {
        let (file, bytes) = file_of(3_000_000);
        for (name, mut way) in ways() {
            let (out, mut peer) = sockets();
            let reader = std::thread::spawn(move || {
                let mut got = Vec::new();
                peer.read_to_end(&mut got).unwrap();
                got
            });
            assert_eq!(way.send(&out, &file, 12_345, 2_900_000).unwrap(), 2_900_000, "{name}");
            assert_eq!(way.send(&out, &file, 5, 0).unwrap(), 0, "{name}");
            drop(out);
            assert!(reader.join().unwrap() == bytes[12_345..2_912_345], "{name}: other bytes");
        }
    }

    #[test]
    fn a_full_socket_loses_and_repeats_nothing() {
        // Method: the peer reads only when the sender says it would block.
        let (file, bytes) = file_of(20_000_000);
        for (name, mut way) in ways() {
            let (out, mut peer) = sockets();
            out.set_nonblocking(true).unwrap();
            let (mut got, mut window) = (Vec::new(), vec![0; 1 << 20]);
            let (mut sent, mut blocked, mut partial) = (0, 0, 0);
            while sent < bytes.len() {
                let ask = 3_000_000.min(bytes.len() - sent);
                match way.send(&out, &file, sent as u64, ask) {
                    Ok(n) => {
                        assert!(n > 0, "{name}: no progress and no error");
                        partial += u32::from(n < ask);
                        sent += n;
                    }
                    Err(e) => {
                        assert_eq!(e.kind(), io::ErrorKind::WouldBlock, "{name}");
                        blocked += 1;
                        let n = peer.read(&mut window).unwrap();
                        got.extend_from_slice(&window[..n]);
                    }
                }
            }
            drop(out);
            peer.read_to_end(&mut got).unwrap();
            assert!(got == bytes, "{name}: other bytes");
            assert!(blocked > 0 && partial > 0, "{name}: {blocked} blocked, {partial} partial");
        }
    }

    #[test]
    fn a_file_that_ends_early_is_an_error_and_not_a_short_answer() {
        let (file, _) = file_of(1_000);
        for (name, mut way) in ways() {
            let (out, _peer) = sockets();
            let e = way.send(&out, &file, 900, 200).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof, "{name}");
        }
    }

    #[test]
    fn a_closed_peer_is_broken_pipe_when_sigpipe_is_ignored() {
        let (file, bytes) = file_of(1_000_000);
        for (name, mut way) in ways() {
            let (out, peer) = sockets();
            drop(peer);
            let e = (0..100)
                .find_map(|_| way.send(&out, &file, 0, bytes.len()).err())
                .expect("a closed peer takes no 100 MB");
            assert!(
                matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset),
                "{name}: {e}"
            );
        }
    }

    #[test]
    fn bytes_left_in_the_pipe_are_kept_for_their_position_until_cleared() {
        let (file, _) = file_of(20_000_000);
        let (out, _peer) = sockets();
        out.set_nonblocking(true).unwrap();
        let mut pipe = SplicePipe::new().unwrap();
        let mut at = 0;
        while let Ok(n) = splice_file(out.as_fd(), file.as_fd(), at, 9_000_000, &mut pipe) {
            at += n as u64;
        }
        assert!(pipe.held() > 0, "the socket is full, so the pipe is not empty");
        let e = splice_file(out.as_fd(), file.as_fd(), at + 1, 10, &mut pipe).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
        pipe.clear().unwrap();
        assert_eq!(pipe.held(), 0);
        let (other, mut peer) = sockets();
        assert_eq!(splice_file(other.as_fd(), file.as_fd(), 251, 3, &mut pipe).unwrap(), 3);
        let mut got = [9; 3];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(got, [0, 1, 2]);
    }
}
