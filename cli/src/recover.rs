//! `loglane recover`: makes a directory that was killed a plain Kafka directory again.

#![forbid(unsafe_code)]

use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::{Output, bytes_human};
use crate::progress::Progress;
use crate::{exit_for, verify::log_bytes};
use clap::Args;
use loglane::{Engine, RecoveryReport, StateDamage};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes what is in journals to the segments, syncs all of it, and marks the directory as closed:
/// then stock Kafka can open it. Needs no free space, and can be run again if it is interrupted.
#[derive(Args)]
pub(crate) struct Recover {
    /// The data directory; default: --dir
    #[arg(value_name = "DIR")]
    path: Option<PathBuf>,
    /// Go on without the values and group offsets that a damaged state file has lost; the file stays
    /// under another name
    #[arg(long)]
    accept_state_damage: bool,
}

impl Recover {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = self.path.map_or_else(|| global.data_dir(), Ok)?;
        if !dir.is_dir() {
            let what = format!("{} is not a directory", dir.display());
            return Err(Failure::new(what, "name a data directory by --dir"));
        }
        let engine = Engine::open(crate::config(&dir))?;
        let names = engine.partition_names();
        let was_clean = engine.was_clean();
        let bytes = |name: &loglane::TopicPartition| log_bytes(&dir.join(name.to_string()));
        let total = names.iter().map(bytes).sum();
        let mut progress = Progress::bytes(Some(total), "recovered", global.quiet);
        for name in names.iter().filter(|_| !was_clean) {
            engine.partition(name.topic(), name.partition())?;
            progress.add(bytes(name));
        }
        let reports = engine.recovery_reports();
        let kept = match self.accept_state_damage {
            true => engine.accept_state_damage()?,
            false => None,
        };
        let state_damage = engine.state_damage();
        engine.close()?;
        progress.finish();
        print_state(&state_damage, kept.as_deref(), out)?;
        let mut damaged = !state_damage.is_empty();
        for (name, report) in &reports {
            damaged |= !report.damaged.is_empty();
            print(&name.to_string(), report, out)?;
        }
        if !global.quiet && !out.json {
            let what = if was_clean { "closed cleanly before; nothing to do" } else { "recovered" };
            writeln!(out, "{}: {what}, {} partitions", dir.display(), names.len())?;
        }
        Ok(exit_for(damaged))
    }
}

fn print_state(
    damage: &[StateDamage],
    kept: Option<&Path>,
    out: &mut Output,
) -> Result<(), Failure> {
    for StateDamage { path, position, length } in damage {
        out.item(
            || {
                format!(
                    "{}: {length} bytes at {position} are not what was written; no value or group \
                     offset is given out: restore it, or use --accept-state-damage",
                    path.display()
                )
            },
            || json!({ "state_damage": path, "position": position, "length": length }),
        )?;
    }
    if let Some(kept) = kept {
        out.item(
            || format!("went on without what is lost; the damaged file is {}", kept.display()),
            || json!({ "state_damage_accepted": true, "file": kept }),
        )?;
    }
    Ok(())
}

fn print(name: &str, report: &RecoveryReport, out: &mut Output) -> Result<(), Failure> {
    if out.json {
        let damaged: Vec<_> = report
            .damaged
            .iter()
            .map(
                |d| json!({ "offset": d.offset.0, "next_offset": d.next_offset.0, "file": d.path }),
            )
            .collect();
        out.object(&json!({
            "partition": name,
            "replayed_bytes": report.replayed_bytes,
            "segments_walked": report.segments_walked,
            "torn_tail": report.torn_tail.as_ref().map(|(path, at, _)| json!({ "file": path, "position": at })),
            "damaged": damaged,
        }))?;
        return Ok(());
    }
    if report.replayed_bytes > 0 {
        writeln!(out, "{name}: {} from the journal", bytes_human(report.replayed_bytes))?;
    }
    if let Some((path, at, fault)) = &report.torn_tail {
        writeln!(out, "{name}: torn tail of {} cut at byte {at}: {fault}", path.display())?;
    }
    for damage in &report.damaged {
        writeln!(
            out,
            "{name}: offsets {} to {} are lost in {}; nothing was cut",
            damage.offset,
            damage.next_offset,
            damage.path.display()
        )?;
    }
    Ok(())
}
