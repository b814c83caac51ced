//! A child process of the rig and what it says.

use crate::load::Outcome;
use crate::report::Event;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// Killed when dropped.
pub(crate) struct Child {
    process: std::process::Child,
    events: Receiver<Event>,
    reader: Option<JoinHandle<()>>,
}

/// What waiting for an event brought.
pub(crate) enum Next {
    Event(Event),
    Late,
    Ended,
}

impl Child {
    /// Starts this program again, as `role` on a directory.
    pub(crate) fn start(role: &str, dir: &Path, seed: u64, flags: &[&str]) -> Outcome<Child> {
        // The very program that runs, also when a build has put another in its place.
        let mut process = Command::new("/proc/self/exe")
            .arg(role)
            .arg(dir)
            .arg(seed.to_string())
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = process.stdout.take().ok_or("a child without stdout")?;
        let (sender, events) = channel();
        let reader = std::thread::spawn(move || {
            let mut out = BufReader::new(out);
            let mut line = String::new();
            // A line that the kill cut short says nothing.
            while out.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
                if let Some(event) = Event::parse(line.trim_end()) {
                    let _ = sender.send(event);
                }
                line.clear();
            }
        });
        Ok(Child { process, events, reader: Some(reader) })
    }

    /// The next event, if it comes in time.
    pub(crate) fn next(&self, deadline: Instant) -> Next {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.events.recv_timeout(left) {
            Ok(event) => Next::Event(event),
            Err(RecvTimeoutError::Timeout) => Next::Late,
            Err(RecvTimeoutError::Disconnected) => Next::Ended,
        }
    }

    /// Kills it and returns what it had said that nobody took yet.
    pub(crate) fn kill(mut self) -> Outcome<Vec<Event>> {
        self.end();
        Ok(self.events.iter().collect())
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}
