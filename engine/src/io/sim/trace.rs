//! The last calls of a simulated run, so that a failing seed can be understood.

#![forbid(unsafe_code)]

use super::names::Ino;
use std::fmt::Write;
use std::sync::Arc;

/// Calls that are remembered.
const KEPT: usize = 256;

/// What was called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    Open,
    CreateDir,
    Rename,
    RemoveFile,
    RemoveDirAll,
    List,
    Stat,
    SyncDir,
    FreeBytes,
    Lane,
    Read,
    Write,
    WriteDurable,
    SetLen,
    Allocate,
    Sync,
    WriteBack,
    Submit,
    LaneSync,
    LaneWrite,
    LaneWriteBack,
    /// Not a call: the world crashed.
    Crash,
}

/// What it was called on.
#[derive(Clone, Debug)]
pub(super) enum Subject {
    /// Printed under the name it has then.
    File(Ino),
    Path(Arc<str>),
    Unknown,
}

#[derive(Clone, Debug)]
struct Event {
    index: u64,
    call: Call,
    subject: Subject,
    position: u64,
    len: u64,
    errno: i32,
}

/// A ring of the last calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    events: Vec<Event>,
    next: usize,
}

impl Trace {
    pub(super) fn push(
        &mut self,
        index: u64,
        call: Call,
        subject: Subject,
        position: u64,
        len: u64,
    ) {
        let event = Event { index, call, subject, position, len, errno: 0 };
        if self.events.len() < KEPT {
            self.events.push(event);
        } else {
            self.events[self.next] = event;
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// Notes how the last call ended.
    pub(super) fn failed(&mut self, errno: i32) {
        let last = (self.next + KEPT - 1) % KEPT;
        if let Some(event) = self.events.get_mut(last) {
            event.errno = errno;
        }
    }

    /// One line for each call, oldest first.
    pub(super) fn text(&self, name_of: impl Fn(Ino) -> Arc<str>) -> String {
        let mut text = String::new();
        let (newer, older) = self.events.split_at(self.next.min(self.events.len()));
        for event in older.iter().chain(newer) {
            let name = match &event.subject {
                Subject::File(ino) => name_of(*ino),
                Subject::Path(path) => Arc::clone(path),
                Subject::Unknown => "".into(),
            };
            let Event { index, call, position, len, .. } = event;
            let _ = write!(text, "{index:>7} {:<13} {name}", format!("{call:?}"));
            if (*position, *len) != (0, 0) {
                let _ = write!(text, " {position}+{len}");
            }
            if event.errno != 0 {
                let error = std::io::Error::from_raw_os_error(event.errno);
                let _ = write!(text, " -> {error}");
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_calls_are_printed_in_order_with_their_errors() {
        let mut trace = Trace::default();
        for index in 0..KEPT as u64 + 10 {
            trace.push(index, Call::Write, Subject::File(3), index, 8);
        }
        trace.failed(libc::EIO);
        let text = trace.text(|ino| format!("file-{ino}").into());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), KEPT);
        assert_eq!(lines[0], "     10 Write         file-3 10+8");
        assert!(lines[KEPT - 1].contains("265 Write") && lines[KEPT - 1].contains("os error 5"));
    }
}
