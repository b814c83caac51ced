//! `loglane verify`: checks every byte of a data directory and changes nothing.

#![forbid(unsafe_code)]

use crate::failure::{Exit, Failure};
use crate::output::{Output, bytes_human};
use crate::progress::Progress;
use crate::{Global, exit_for};
use clap::Args;
use loglane::inspect::{self, Finding, PartitionFindings, Severity, State};
use loglane::{Error, TopicPartition};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(crate) struct Verify {
    /// A data directory, or one partition's; default: --dir
    #[arg(value_name = "DIR")]
    path: Option<PathBuf>,
}

impl Verify {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = self.path.map_or_else(|| global.data_dir(), Ok)?;
        let target = Target::find(&dir)?;
        let total = target.partitions.iter().map(|(_, path)| log_bytes(path)).sum();
        let mut progress = Progress::bytes(Some(total), "verified", global.quiet);
        let mut sum = PartitionFindings::default();
        let mut damaged = false;
        for path in &target.checkpoints {
            if let Some(finding) = check_text(path)? {
                damaged = true;
                print(None, &finding, out)?;
            }
        }
        for damage in inspect::verify_state(&dir)? {
            damaged = true;
            let finding = Finding {
                severity: Severity::Damage,
                path: damage.path,
                position: Some(damage.position),
                offsets: None,
                what: format!("{} bytes are not what was written", damage.length),
                advice: "restore the file, or go on without: loglane recover --accept-state-damage",
            };
            print(None, &finding, out)?;
        }
        for (name, path) in &target.partitions {
            let mut on_bytes = |bytes| {
                progress.add(bytes);
                true
            };
            let found = inspect::verify_partition(path, target.state, &mut on_bytes)?;
            for finding in &found.findings {
                damaged |= finding.severity == Severity::Damage;
                print(Some(name), finding, out)?;
            }
            add(&mut sum, &found);
        }
        progress.finish();
        if !global.quiet {
            print_summary(&target, &sum, damaged, out)?;
        }
        Ok(exit_for(damaged))
    }
}

/// What is to be checked.
struct Target {
    state: State,
    partitions: Vec<(TopicPartition, PathBuf)>,
    checkpoints: Vec<PathBuf>,
}

impl Target {
    fn find(dir: &Path) -> Result<Target, Failure> {
        // `verify topic-0` and `verify .` inside of it name the same partition.
        let full = std::fs::canonicalize(dir)
            .map_err(|_| Error::NotFound { what: format!("directory {}", dir.display()) })?;
        let name = full.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let found = inspect::directory(dir)?;
        let state = |found: &inspect::Directory| match found.is_clean && !found.writer_is_live {
            true => State::Clean,
            false => State::InUse,
        };
        if let (Some(name), true) =
            (TopicPartition::from_dir_name(name), found.partitions.is_empty())
        {
            let around = inspect::directory(full.parent().unwrap_or(&full))?;
            let partitions = vec![(name, dir.to_owned())];
            return Ok(Target { state: state(&around), partitions, checkpoints: Vec::new() });
        }
        let (state, partitions) = (state(&found), found.partitions);
        Ok(Target { state, partitions, checkpoints: found.checkpoints })
    }
}

/// Bytes of the `.log` files of one partition.
pub(crate) fn log_bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let logs = files.filter(|f| f.file_name().to_string_lossy().ends_with(".log"));
    logs.filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum()
}

fn check_text(path: &Path) -> Result<Option<Finding>, Failure> {
    match inspect::verify_text_file(path) {
        Ok(()) => Ok(None),
        Err(Error::Format { path, reason }) => Ok(Some(Finding {
            severity: Severity::Damage,
            path,
            position: None,
            offsets: None,
            what: reason,
            advice: "restore the file; without it the directory is recovered at the next open",
        })),
        Err(error) => Err(error.into()),
    }
}

fn add(sum: &mut PartitionFindings, found: &PartitionFindings) {
    sum.segments += found.segments;
    sum.batches += found.batches;
    sum.records += found.records;
    sum.bytes += found.bytes;
    sum.index_entries += found.index_entries;
    sum.findings.extend_from_slice(&found.findings);
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Damage => "damage",
    }
}

fn print(
    name: Option<&TopicPartition>,
    finding: &Finding,
    out: &mut Output,
) -> Result<(), Failure> {
    let Finding { severity, path, position, offsets, what, advice } = finding;
    if out.json {
        let offsets = offsets.map(|(from, to)| json!([from.0, to.0])).unwrap_or(Value::Null);
        out.object(&json!({
            "finding": word(*severity), "file": path.display().to_string(),
            "topic": name.map(TopicPartition::topic),
            "partition": name.map(TopicPartition::partition),
            "position": position, "offsets": offsets, "what": what, "advice": advice,
        }))?;
        return Ok(());
    }
    write!(out, "{}: {}", word(*severity), path.display())?;
    if let Some(name) = name {
        write!(out, " partition={name}")?;
    }
    if let Some(position) = position {
        write!(out, " position={position}")?;
    }
    if let Some((from, to)) = offsets {
        write!(out, " offsets={}..{}", from.0, to.0)?;
    }
    writeln!(out, ": {what}\n  {advice}")?;
    Ok(())
}

fn print_summary(
    target: &Target,
    sum: &PartitionFindings,
    damaged: bool,
    out: &mut Output,
) -> Result<(), Failure> {
    let verdict = if damaged { "damaged" } else { "ok" };
    let PartitionFindings { segments, batches, records, bytes, index_entries, .. } = sum;
    let partitions = target.partitions.len();
    let clean = target.state == State::Clean;
    out.item(
        || {
            let state = if clean { "closed cleanly" } else { "in use, or not closed cleanly" };
            format!(
                "{verdict}: partitions={partitions} segments={segments} batches={batches} \
                 records={records} bytes={bytes} ({}) index-entries={index_entries}; {state}",
                bytes_human(*bytes)
            )
        },
        || {
            json!({ "summary": verdict, "partitions": partitions, "segments": segments,
            "batches": batches, "records": records, "bytes": bytes,
            "index_entries": index_entries, "closed_cleanly": clean })
        },
    )?;
    Ok(())
}
