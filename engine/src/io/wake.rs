//! Wakes a sleeping lane from any thread.
//!
//! A [`Waker`] is an eventfd. A wake before the sleep is not lost: the descriptor stays readable
//! until the owner drains it. Wakes that find one still undrained cost no system call.
//!
//! The order that makes this safe: a caller publishes its work (say, to a mailbox), *then* wakes; the
//! owner drains, *then* looks at the mailbox.

#![forbid(unsafe_code)]

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Makes a descriptor readable, so that whoever polls it returns.
#[derive(Debug)]
pub struct Waker {
    fd: OwnedFd,
    /// True from a wake until the drain that consumes it.
    raised: AtomicBool,
}

impl Waker {
    /// A waker that nobody has called yet.
    ///
    /// # Errors
    /// If the process or the machine has no descriptor left.
    pub fn new() -> io::Result<Waker> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker { fd, raised: AtomicBool::new(false) })
    }

    /// Makes the descriptor readable. Never blocks; from any thread.
    pub fn wake(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            let written = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
            // EAGAIN means that the counter is at its end: the descriptor is readable all the same.
            debug_assert!(matches!(written, Ok(8) | Err(Errno::AGAIN)));
        }
    }

    /// True if there is something to drain. Without a system call, but only for a waker that one
    /// thread uses: others may be between the flag and the descriptor.
    #[cfg(test)]
    pub(super) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Consumes the wakes so far; true if there was one. Only the owner calls it, and nobody else
    /// may read the descriptor: a wake after that would find itself raised already and stay silent.
    ///
    /// Read first, lower the flag second: a wake in between is taken as consumed, which is right
    /// because its work was published before it and the owner looks for work after this call.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        let readable = matches!(rustix::io::read(&self.fd, &mut count), Ok(8));
        let raised = self.raised.swap(false, Ordering::AcqRel);
        readable || raised
    }
}

impl AsFd for Waker {
    /// For poll and epoll only; see [`Waker::drain`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sleeps until the waker is raised, a signal comes, or the time is over. Consumes nothing.
pub(super) fn sleep_on(waker: &Waker, timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(|time| Timespec {
        // Times the kernel cannot hold are for ever in all but name.
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    });
    match poll(&mut [PollFd::new(waker, PollFlags::IN)], timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    fn readable(waker: &Waker) -> bool {
        let mut fds = [PollFd::new(waker, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn wakes_are_kept_until_drained_and_count_once() {
        let waker = Waker::new().unwrap();
        assert!(!waker.drain());
        waker.wake();
        waker.wake();
        assert!(readable(&waker));
        assert!(waker.drain());
        assert!(!readable(&waker));
        assert!(!waker.drain());
        waker.wake();
        assert!(readable(&waker), "a wake after a drain is heard again");
    }

    #[test]
    fn no_wake_is_lost_between_threads() {
        // Claim: work published before a wake is always found by an owner that sleeps, drains, looks.
        const ITEMS: u64 = 20_000;
        let waker = Arc::new(Waker::new().unwrap());
        let mailbox = Arc::new(AtomicU64::new(0));
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let (waker, mailbox) = (Arc::clone(&waker), Arc::clone(&mailbox));
                std::thread::spawn(move || {
                    for _ in 0..ITEMS {
                        mailbox.fetch_add(1, Ordering::Relaxed);
                        waker.wake();
                    }
                })
            })
            .collect();
        let mut seen = 0;
        while seen < 2 * ITEMS {
            let mut fds = [PollFd::new(&*waker, PollFlags::IN)];
            let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
            assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "asleep with work left: {seen}");
            waker.drain();
            seen = mailbox.load(Ordering::Relaxed);
        }
        for sender in senders {
            sender.join().unwrap();
        }
    }
}
