//! `loglane retain`: deletes now what the stored settings of topics say may go.

#![forbid(unsafe_code)]

use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::{Output, bytes_human};
use clap::Args;
use loglane::{Engine, Error};
use serde_json::json;

#[derive(Args)]
pub(crate) struct Retain {}

impl Retain {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = global.data_dir()?;
        if !dir.is_dir() {
            let what = format!("data directory {}", dir.display());
            return Err(Error::NotFound { what }.into());
        }
        let engine = Engine::open(crate::stored_settings_only(crate::config(dir)))?;
        if !engine.was_clean() {
            // After a crash all of it is looked at, recovered first.
            engine.partitions()?;
        }
        let round = engine.apply_retention();
        engine.close()?;
        // The engine has named the partitions on stderr.
        if let Some((_, error)) = round.failed.into_iter().next() {
            return Err(error.into());
        }
        let d = round.deleted;
        let (segments, bytes) = (d.total().segments, d.total().bytes);
        if !global.quiet {
            out.item(
                || format!("deleted segments={segments} bytes={bytes} ({})", bytes_human(bytes)),
                || {
                    json!({
                        "segments": segments, "bytes": bytes,
                        "by_log_start": d.by_log_start.segments, "by_time": d.by_time.segments,
                        "by_bytes": d.by_bytes.segments, "by_records": d.by_records.segments,
                    })
                },
            )?;
        }
        Ok(Exit::Done)
    }
}
