//! How a command ends: its exit code, and for failures the message with a next step.

#![forbid(unsafe_code)]

use loglane::Error;
use std::io::{self, Write};
use std::process::ExitCode;

/// A command that ran to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// All went well.
    Done,
    /// The command did its work and met damage.
    Damage,
}

impl Exit {
    pub(crate) fn code(self) -> ExitCode {
        match self {
            Exit::Done => ExitCode::SUCCESS,
            Exit::Damage => ExitCode::from(3),
        }
    }
}

/// A command that did not.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine said no.
    Engine(Error),
    /// Anything else, with what to do about it.
    Message { what: String, next: String, code: u8 },
    /// Whoever read our output has gone: not worth a word.
    BrokenPipe,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure::Message { what: what.into(), next: next.into(), code: 1 }
    }

    pub(crate) fn usage(what: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure::Message { what: what.into(), next: next.into(), code: 2 }
    }

    /// Prints the message and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let (what, next, code) = match self {
            Failure::BrokenPipe => return ExitCode::SUCCESS,
            Failure::Engine(error) => (error.to_string(), next_step(&error).to_owned(), 1),
            Failure::Message { what, next, code } => (what, next, code),
        };
        // Not eprintln!, which panics when stderr is closed.
        let _ = writeln!(io::stderr(), "error: {what}\n  {next}");
        ExitCode::from(code)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Engine(error)
    }
}

/// For writes to stdout; other calls name what they were about.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::BrokenPipe;
        }
        Failure::new(format!("cannot write to stdout: {error}"), "send the output elsewhere")
    }
}

/// What to do about an error of the engine, in one sentence.
fn next_step(error: &Error) -> &'static str {
    match error {
        Error::Config { .. } => "give a value in the range; --help shows the options",
        Error::TopicName { .. } => "choose a name Kafka accepts, e.g. orders or orders.eu-1",
        Error::NotFound { .. } => "see what is there with: loglane topics list",
        Error::AlreadyExists { .. } => {
            "use it as it is, or delete it with: loglane topics delete NAME"
        }
        Error::Locked { .. } => {
            "consume, dump, verify, topics list and describe work while another process writes"
        }
        Error::ReadOnly { .. } => {
            "mount it writable, or copy the directory; reading works as it is"
        }
        Error::InvalidBatch { .. } => "the records were not stored; check the input",
        Error::TooLarge { .. } => "split the record, or lower --batch-bytes",
        Error::OffsetOutOfRange { .. } => "start within the range, or with --from-beginning",
        Error::Pinned { .. } => {
            "see who holds it, and what for, with: loglane explain TOPIC:PARTITION"
        }
        Error::Damaged { .. } => "see what can still be read with: loglane verify",
        Error::Format { .. } => {
            "restore the file from a backup; loglane verify lists all that is wrong"
        }
        Error::NoSpace { .. } => "free some space and run the command again",
        Error::TooManyOpenFiles { .. } => {
            "raise the limit with ulimit -n and run the command again"
        }
        Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "run it as the owner of the directory, or change its mode"
        }
        Error::Io { .. } => "loglane doctor looks for the usual causes",
        Error::PartitionFailed { .. } => {
            "check the disk, then run the command again: opening recovers"
        }
        _ => "run the command again; with RUST_LOG=debug it says more",
    }
}
