//! Where a consumer group is, and the commits that move it.
//!
//! Reading needs no ownership of the directory; a commit does, for a moment. If another process has
//! it then, the commit is tried again at the next interval, and once more at the end.

#![forbid(unsafe_code)]

use crate::failure::{Exit, Failure};
use loglane::{Config, Cursor, Engine, Error, Offset, PartitionView, TopicPartition, View};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// When a group's offsets are committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Commit {
    /// Every --commit-interval-ms, and at the end
    Auto,
    /// Never
    None,
}

/// How long the last commit waits for another process to let go of the directory.
const LAST_COMMIT_WAIT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(50);

/// The engine of a command that commits: its journal is as small as can be.
pub(crate) fn commit_config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.shards = 1;
    config.replay_bytes_max = 16 << 20;
    config
}

/// A group's committed offsets, and how far it has got since.
pub(crate) struct Group {
    name: String,
    dir: PathBuf,
    commit: Commit,
    interval: Duration,
    last: Instant,
    committed: BTreeMap<TopicPartition, i64>,
    told: bool,
}

impl Group {
    /// Looks up where the group is.
    pub(crate) fn find(
        name: &str,
        commit: Commit,
        interval: Duration,
        view: &View,
    ) -> Result<Group, Failure> {
        if let Some(damage) = view.state_damage()?.first() {
            let what = format!("{} is damaged at byte {}", damage.path.display(), damage.position);
            let next = "restore it, or go on without what is lost: \
                        loglane recover --accept-state-damage";
            return Err(Failure::new(what, next));
        }
        let cursors = view.cursors()?.remove(name).unwrap_or_default();
        let committed = cursors.into_iter().map(|(name, cursor)| (name, cursor.offset.0)).collect();
        let (name, dir, last) = (name.to_owned(), view.dir().to_owned(), Instant::now());
        Ok(Group { name, dir, commit, interval, last, committed, told: false })
    }

    /// The offset to go on from; `None` without a cursor. One that is out of range is reported and
    /// reset, as by Kafka's `auto.offset.reset`: to the first record or past the last one.
    pub(crate) fn start(&self, partition: &PartitionView, to_earliest: bool) -> Option<i64> {
        let cursor = *self.committed.get(partition.name())?;
        let (start, end) = (partition.log_start_offset().0, partition.log_end_offset().0);
        if (start..=end).contains(&cursor) {
            return Some(cursor);
        }
        let (to, word) = if to_earliest { (start, "first") } else { (end, "next") };
        let line = format!(
            "group {}: offset {cursor} of {} is out of range [{start}, {end}); goes on at the {word} \
             record, {to}",
            self.name,
            partition.name()
        );
        let _ = writeln!(io::stderr(), "{line}");
        Some(to)
    }

    /// True if a commit is due.
    pub(crate) fn is_due(&self) -> bool {
        self.commit == Commit::Auto && self.last.elapsed() >= self.interval
    }

    /// Commits what is new, unless another process has the directory: then later.
    pub(crate) fn commit(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), Failure> {
        self.last = Instant::now();
        match self.try_commit(positions) {
            Err(Failure::Engine(Error::Locked { .. })) => {
                if !self.told {
                    let line = "another process has the directory; offsets are committed later";
                    let _ = writeln!(io::stderr(), "group {}: {line}", self.name);
                }
                self.told = true;
                Ok(())
            }
            done => done,
        }
    }

    /// Commits at the end; waits a moment for the directory.
    pub(crate) fn commit_last(
        &mut self,
        positions: &[(TopicPartition, i64)],
    ) -> Result<(), Failure> {
        if self.commit == Commit::None {
            return Ok(());
        }
        let until = Instant::now() + LAST_COMMIT_WAIT;
        loop {
            match self.try_commit(positions) {
                Err(Failure::Engine(Error::Locked { .. })) if Instant::now() < until => {
                    std::thread::sleep(RETRY);
                }
                Err(Failure::Engine(error @ Error::Locked { .. })) => {
                    let what =
                        format!("the offsets of group {} are not committed: {error}", self.name);
                    let next = "stop the other process and read again, or use --commit none";
                    return Err(Failure::new(what, next));
                }
                done => return done,
            }
        }
    }

    fn try_commit(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), Failure> {
        let new: Vec<&(TopicPartition, i64)> = positions
            .iter()
            .filter(|(name, offset)| self.committed.get(name) != Some(offset))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let cursors = new.iter().map(|(name, offset)| (name.clone(), Cursor::at(Offset(*offset))));
        let engine = Engine::open(commit_config(&self.dir))?;
        let committed = engine.commit_cursors(&self.name, cursors);
        let closed = engine.close();
        committed?;
        closed?;
        self.committed.extend(new.into_iter().cloned());
        Ok(())
    }
}

/// The exit of a consumer whose last commit was tried after all it read was printed.
pub(crate) fn end(
    group: Option<&mut Group>,
    positions: &[(TopicPartition, i64)],
    exit: Exit,
) -> Result<Exit, Failure> {
    match group {
        Some(group) => group.commit_last(positions).map(|()| exit),
        None => Ok(exit),
    }
}
