//! `loglane dump`: what is in the files of a log, in the words of Kafka's DumpLogSegments.

#![forbid(unsafe_code)]

mod batches;
mod indexes;
mod tables;

use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::{Global, exit_for};
use clap::Args;
use loglane::{Error, inspect};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(crate) struct Dump {
    /// Files of a log, partition directories or data directories
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// Print each record of a .log file
    #[arg(long)]
    records: bool,
    /// Decompress and check each record, also without printing them
    #[arg(long)]
    deep: bool,
}

impl Dump {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let mut damaged = false;
        for path in &self.paths {
            for file in files(path)? {
                damaged |= self.file(&file, global.quiet, out)?;
            }
        }
        Ok(exit_for(damaged))
    }

    /// Shows one file; true if it is damaged.
    fn file(&self, path: &Path, quiet: bool, out: &mut Output) -> Result<bool, Failure> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !out.json {
            writeln!(out, "Dumping {}", path.display())?;
        }
        let shown = match kind(name) {
            Kind::Log => batches::dump(path, (self.records, self.deep), quiet, out),
            Kind::Index => indexes::offsets(path, out),
            Kind::TimeIndex => indexes::times(path, out),
            Kind::TxnIndex => tables::transactions(path, out),
            Kind::Snapshot => tables::producers(path, out),
            Kind::Epochs => tables::epochs(path, out),
            Kind::Offsets => tables::offsets(path, out),
            Kind::Metadata => tables::metadata(path, out),
            Kind::Other => {
                let what = format!("{} is no file of a log by its name", path.display());
                let next =
                    "give a .log, .index, .timeindex, .txnindex, .snapshot or checkpoint file";
                Err(Failure::new(what, next))
            }
        };
        match shown {
            Err(Failure::Engine(Error::Format { reason, .. })) => {
                fault(path, None, &reason, out)?;
                Ok(true)
            }
            shown => shown,
        }
    }
}

enum Kind {
    Log,
    Index,
    TimeIndex,
    TxnIndex,
    Snapshot,
    Epochs,
    Offsets,
    Metadata,
    Other,
}

fn kind(name: &str) -> Kind {
    let is_copy = |suffix: &str| {
        name.split_once(suffix)
            .is_some_and(|(_, after)| matches!(after, "" | ".deleted" | ".swap" | ".cleaned"))
    };
    match name {
        "leader-epoch-checkpoint" => Kind::Epochs,
        "partition.metadata" => Kind::Metadata,
        _ if name.ends_with("-offset-checkpoint") => Kind::Offsets,
        _ if is_copy(".log") => Kind::Log,
        _ if is_copy(".index") => Kind::Index,
        _ if is_copy(".timeindex") => Kind::TimeIndex,
        _ if is_copy(".txnindex") => Kind::TxnIndex,
        _ if is_copy(".snapshot") => Kind::Snapshot,
        _ => Kind::Other,
    }
}

/// The files that a path stands for: itself, or those of a log below it.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let found = inspect::directory(path)?;
    let mut files = found.checkpoints;
    let dirs = found.partitions.into_iter().map(|(_, dir)| dir);
    for dir in std::iter::once(path.to_owned()).chain(dirs) {
        let list = std::fs::read_dir(&dir).map_err(|e| {
            Failure::new(format!("cannot list {}: {e}", dir.display()), "check its mode and owner")
        })?;
        let mut here: Vec<PathBuf> = list
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|file| {
                let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                file.is_file() && !matches!(kind(name), Kind::Other | Kind::Offsets)
            })
            .collect();
        here.sort();
        files.extend(here);
    }
    Ok(files)
}

/// Shows something that is wrong.
fn fault(path: &Path, position: Option<u64>, what: &str, out: &mut Output) -> Result<(), Failure> {
    let at = position.map_or(String::new(), |position| format!(" at byte {position}"));
    let path = path.display();
    out.item(
        || format!("DAMAGE: {path}{at}: {what}"),
        || json!({ "damage": what, "file": path.to_string(), "position": position }),
    )?;
    Ok(())
}
