//! A lease: byte ranges of segment files that hold whole batches, kept from deletion until dropped.
//!
//! The host sends them by sendfile or splice, or copies them; the bytes are Kafka's wire format as
//! they are. While a lease lives its files are not unlinked, whatever retention does.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::format::Batches;
use crate::io::{self, FileRef};
use crate::offset::{FilePosition, Offset};
use crate::producers::AbortedTransaction;
use crate::segment::SegmentLease;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// One stretch of one segment file.
#[derive(Clone, Debug)]
pub struct LeaseRange {
    pub(crate) segment: SegmentLease,
    pub(crate) file: FileRef,
    pub(crate) position: u32,
    pub(crate) length: u32,
}

impl LeaseRange {
    /// The file's descriptor, valid while the lease lives. `None` on a simulated disk.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.fd()
    }

    /// The segment file, for messages; it may have been renamed since.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.segment.segment().path()
    }

    /// First byte.
    #[must_use]
    pub fn position(&self) -> FilePosition {
        FilePosition(self.position)
    }

    /// Bytes.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }
}

/// What a fetch gives: ranges, and the offsets of the partition when it was made.
#[derive(Clone, Debug)]
pub struct Lease {
    pub(crate) ranges: Vec<LeaseRange>,
    pub(crate) next_offset: i64,
    pub(crate) log_start: i64,
    pub(crate) high_watermark: i64,
    pub(crate) last_stable: i64,
    pub(crate) log_end: i64,
    pub(crate) aborted: Vec<AbortedTransaction>,
}

impl Lease {
    /// The ranges, in offset order. Empty when there is nothing to read yet.
    #[must_use]
    pub fn ranges(&self) -> &[LeaseRange] {
        &self.ranges
    }

    /// Bytes in all ranges.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|r| u64::from(r.length)).sum()
    }

    /// True when there is nothing to read yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The offset to fetch from next.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        Offset(self.next_offset)
    }

    /// First offset of the partition.
    #[must_use]
    pub fn log_start_offset(&self) -> Offset {
        Offset(self.log_start)
    }

    /// High watermark of the partition.
    #[must_use]
    pub fn high_watermark(&self) -> Offset {
        Offset(self.high_watermark)
    }

    /// Last stable offset of the partition.
    #[must_use]
    pub fn last_stable_offset(&self) -> Offset {
        Offset(self.last_stable)
    }

    /// For a fetch that reads committed transactions only: the aborted ones with records under the
    /// lease, in the order of their markers. A consumer leaves out the records of `producer_id` from
    /// `first_offset` to its next marker.
    #[must_use]
    pub fn aborted_transactions(&self) -> &[AbortedTransaction] {
        &self.aborted
    }

    /// Log end offset of the partition.
    #[must_use]
    pub fn log_end_offset(&self) -> Offset {
        Offset(self.log_end)
    }

    /// True when a segment under the lease was deleted meanwhile; its bytes can still be read.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.ranges.iter().any(|r| r.segment.is_retired())
    }

    /// Sends bytes of the lease, from byte `from` on, by sendfile(2). Returns how many went out:
    /// all of them on a blocking socket, perhaps fewer on a non-blocking one; 0 when it would block.
    ///
    /// A peer that has closed raises SIGPIPE in a process that does not ignore it (Rust programs do;
    /// C hosts set `SIG_IGN` themselves).
    ///
    /// # Errors
    /// [`Error::Io`] with what the system said, and nothing known of how much the peer got.
    pub fn send(&self, to: impl AsFd, from: u64) -> Result<u64> {
        self.each_part(from, u64::MAX, |range, position, length| {
            let fd = range.descriptor()?;
            outcome(io::send_file(to.as_fd(), fd, position, length))
        })
    }

    /// As [`Lease::send`], at most `length_max` bytes.
    ///
    /// # Errors
    /// As [`Lease::send`].
    pub fn send_part(&self, to: impl AsFd, from: u64, length_max: u64) -> Result<u64> {
        self.each_part(from, length_max, |range, position, length| {
            let fd = range.descriptor()?;
            outcome(io::send_file(to.as_fd(), fd, position, length))
        })
    }

    /// Copies bytes of the lease, from byte `from` on, into `buf`. Returns how many.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read.
    pub fn copy(&self, from: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        let wanted = buf.len() as u64;
        self.each_part(from, wanted, |range, position, length| {
            let part = buf.get_mut(done..done + length).unwrap_or_default();
            done += part.len();
            range.file.read_exact_at(part, position).map(|()| Some(part.len()))
        })?;
        Ok(done)
    }

    /// All bytes of the lease.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.bytes()).unwrap_or_default()];
        self.copy(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Checks every batch under the lease: sizes and CRCs.
    ///
    /// # Errors
    /// [`Error::Damaged`] with file, position and offset of the first one that does not hold.
    pub fn verify(&self) -> Result<()> {
        let mut offset = None;
        for range in &self.ranges {
            let mut bytes = vec![0; range.length as usize];
            let at = u64::from(range.position);
            range.file.read_exact_at(&mut bytes, at).map_err(|e| range.error("read", e))?;
            for batch in Batches::new(&bytes) {
                match batch {
                    Ok((_, batch)) => offset = Some(batch.header().next_offset()),
                    Err((position, fault)) => {
                        return Err(Error::Damaged {
                            path: range.path().to_owned(),
                            position: at + position as u64,
                            offset: Offset(offset.unwrap_or(range.segment.segment().base_offset())),
                            next_offset: Offset(self.next_offset),
                            fault,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Runs `part` over the ranges from byte `from`, until it says it would block.
    fn each_part(
        &self,
        mut from: u64,
        length_max: u64,
        mut part: impl FnMut(&LeaseRange, u64, usize) -> std::io::Result<Option<usize>>,
    ) -> Result<u64> {
        let mut done = 0;
        for range in &self.ranges {
            let length = u64::from(range.length);
            if from >= length {
                from -= length;
                continue;
            }
            let wanted = (length - from).min(length_max - done);
            if wanted == 0 {
                break;
            }
            let want = usize::try_from(wanted).unwrap_or(usize::MAX);
            let went = part(range, u64::from(range.position) + from, want);
            let Some(sent) = went.map_err(|e| range.error("send", e))? else { break };
            done += sent as u64;
            if (sent as u64) < wanted {
                break;
            }
            from = 0;
        }
        Ok(done)
    }
}

impl LeaseRange {
    fn descriptor(&self) -> std::io::Result<BorrowedFd<'_>> {
        self.file.fd().ok_or_else(|| std::io::ErrorKind::Unsupported.into())
    }

    fn error(&self, op: &'static str, error: std::io::Error) -> Error {
        Error::io(op, self.path(), error)
    }
}

/// A would-block is not an error here: nothing went out.
fn outcome(sent: std::io::Result<usize>) -> std::io::Result<Option<usize>> {
    match sent {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}
