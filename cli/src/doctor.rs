//! `loglane doctor`: what machine, file system and directory offer, and what could be better.

#![forbid(unsafe_code)]

use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::{Output, bytes_human};
use clap::Args;
use loglane::inspect;
use loglane::io::{BackendChoice, Finding, Verdict, open, probe};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(crate) struct Doctor {
    /// The directory to look at; default: --dir
    #[arg(value_name = "DIR")]
    path: Option<PathBuf>,
}

impl Doctor {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = self.path.map_or_else(|| global.data_dir(), Ok)?;
        let mut findings = probe(&dir).findings;
        findings.push(backend(&dir));
        findings.extend(state(&dir));
        if out.json {
            for f in &findings {
                out.object(
                    &json!({ "name": f.name, "value": f.value, "verdict": f.verdict.name(),
                    "advice": f.advice }),
                )?;
            }
            return Ok(Exit::Done);
        }
        let width = |of: fn(&Finding) -> usize| findings.iter().map(of).max().unwrap_or(0);
        let (names, values) = (width(|f| f.name.len()), width(|f| f.value.len()).min(60));
        for f in &findings {
            let verdict = f.verdict.name();
            writeln!(out, "{verdict:8} {:names$}  {:values$}  {}", f.name, f.value, f.advice)?;
        }
        Ok(Exit::Done)
    }
}

fn backend(dir: &Path) -> Finding {
    let (value, verdict, advice) = match open(dir, BackendChoice::Auto) {
        Ok(disk) => {
            (disk.backend().kind.name().to_owned(), Verdict::Ok, disk.backend().reason.clone())
        }
        Err(error) => {
            let advice = "Allow io_uring, or set LOGLANE_BACKEND to auto.".to_owned();
            (error.to_string(), Verdict::Problem, advice)
        }
    };
    Finding { name: "backend", value, verdict, advice }
}

fn state(dir: &Path) -> Vec<Finding> {
    let Ok(found) = inspect::directory(dir) else { return Vec::new() };
    let finding = |name, value: String, advice: &str| Finding {
        name,
        value,
        verdict: Verdict::Ok,
        advice: advice.into(),
    };
    let writer = match found.writer_is_live {
        true => finding("writer", "live".into(), "Reading works; a second writer is refused."),
        false => finding("writer", "none".into(), "Nothing to do."),
    };
    let clean = match (found.is_clean, found.writer_is_live, found.partitions.is_empty()) {
        (true, _, _) => finding("closed", "cleanly".into(), "The next open needs no recovery."),
        (false, true, _) => finding("closed", "no, in use".into(), "Nothing to do."),
        (false, false, true) => finding("closed", "never used".into(), "Nothing to do."),
        (false, false, false) => Finding {
            verdict: Verdict::Note,
            ..finding("closed", "not cleanly".into(), "The next open recovers; nothing to do.")
        },
    };
    let count = found.partitions.len().to_string();
    let replay = format!(
        "{} at most: {} of journals, {} of segments",
        bytes_human(found.replay_bytes()),
        bytes_human(found.journal_bytes),
        bytes_human(found.unsynced_bytes)
    );
    let advice = "What a restart reads after a power cut; replay_bytes_max bounds it.";
    vec![
        writer,
        clean,
        finding("partitions", count, "Nothing to do."),
        finding("replay", replay, advice),
    ]
}
