//! `loglane bench dormant`: what partitions cost that nobody touches, and what others get beside them.

#![forbid(unsafe_code)]

use super::{median, rounded, sample_batch, work_dir};
use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use clap::Args;
use loglane::{AppendOptions, Bytes, CompletionQueue, Config, Engine, Offset, Partition};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Appends under way at once.
const IN_FLIGHT: usize = 4096;
/// How long each side of a round is measured.
const ROUND: Duration = Duration::from_millis(500);
/// Rounds: one partition, then the active ones.
const ROUNDS: usize = 7;

#[derive(Args)]
pub(crate) struct Dormant {
    /// Partitions in the directory
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    partitions: u32,
    /// Of these, how many are appended to
    #[arg(long, default_value_t = 1000)]
    active: u32,
    /// Bytes of a batch
    #[arg(long, default_value_t = 16384)]
    batch_bytes: usize,
}

impl Dormant {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = work_dir(global)?;
        let config = || Config::new(dir.path().join("data"));
        create(&dir.path().join("data"), self.partitions)?;
        let (before, files_before) = (resident_bytes()?, open_files()?);
        let start = Instant::now();
        let engine = Engine::open(config())?;
        let open_ms = start.elapsed().as_secs_f64() * 1e3;
        let (after, files) = (resident_bytes()?, open_files()?.saturating_sub(files_before));
        let each = after.saturating_sub(before) as f64 / f64::from(self.partitions);

        let active = self.active.min(self.partitions);
        let step = self.partitions / active.max(1);
        let partitions: Result<Vec<Partition>, _> =
            (0..active).map(|i| engine.partition("bench", i * step)).collect();
        let partitions = partitions?;
        let (batch, _) = sample_batch(self.batch_bytes, 1024)?;
        let batch = Bytes::from(batch);
        let (mut one, mut many, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let alone = rate(partitions.get(..1).unwrap_or_default(), &batch)?;
            let together = rate(&partitions, &batch)?;
            // The first round opens files and fills caches.
            if round > 0 {
                one.push(alone);
                many.push(together);
                ratios.push(together / alone);
            }
        }
        engine.close()?;
        let (one, many) = (median(one.into_iter()), median(many.into_iter()));
        let ratio = median(ratios.into_iter());
        let figures = json!({
            "bench": "dormant", "partitions": self.partitions, "active": active,
            "open_ms": rounded(open_ms), "bytes_each": rounded(each), "open_files": files,
            "one_bytes_per_s": one.round(), "active_bytes_per_s": many.round(),
            "ratio": rounded(ratio),
        });
        let text = || {
            format!(
                "dormant: {} partitions open in {open_ms:.0} ms, {each:.0} bytes each, {files} files \
                 open; appends to one {:.0} MB/s, to {active} among them {:.0} MB/s ({ratio:.2})",
                self.partitions,
                one / 1e6,
                many / 1e6
            )
        };
        out.item(text, || figures.clone())?;
        Ok(Exit::Done)
    }
}

/// In a process of its own: its memory is not to be counted.
fn create(dir: &Path, partitions: u32) -> Result<(), Failure> {
    let program = std::env::current_exe();
    let status = program.and_then(|program| {
        Command::new(program)
            .args(["topics", "create", "bench", "--quiet", "--partitions", &partitions.to_string()])
            .arg("--dir")
            .arg(dir)
            .status()
    });
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => {
            Err(Failure::new("cannot create the partitions".to_owned(), "see the message above"))
        }
        Err(error) => Err(super::limit::failed("create partitions in", dir, &error)),
    }
}

/// Bytes a second that go into these partitions, in turn. Their records go again afterwards.
fn rate(partitions: &[Partition], batch: &Bytes) -> Result<f64, Failure> {
    let queue = CompletionQueue::new()?;
    let (mut done, mut under_way, mut batches) = (Vec::new(), 0, 0_u64);
    let start = Instant::now();
    let mut next = partitions.iter().cycle();
    while start.elapsed() < ROUND || under_way > 0 {
        while start.elapsed() < ROUND
            && under_way < IN_FLIGHT
            && let Some(partition) = next.next()
        {
            match partition.submit(batch.clone(), AppendOptions::default(), &queue, 0) {
                Ok(()) => under_way += 1,
                Err(loglane::Error::Busy { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        under_way -= queue.wait(&mut done, Duration::from_secs(10));
        for completion in done.drain(..) {
            completion.result?;
            batches += 1;
        }
    }
    let rate = batches as f64 * batch.len() as f64 / start.elapsed().as_secs_f64();
    for partition in partitions {
        partition.delete_records(Offset(partition.log_end_offset().0))?;
    }
    Ok(rate)
}

/// Memory of this process that is not of files.
fn resident_bytes() -> Result<u64, Failure> {
    let path = Path::new("/proc/self/smaps_rollup");
    let text = fs::read_to_string(path).map_err(|e| super::limit::failed("read", path, &e))?;
    let anonymous = text.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let kib = anonymous.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.unwrap_or(0) * 1024)
}

fn open_files() -> Result<usize, Failure> {
    let path = Path::new("/proc/self/fd");
    Ok(fs::read_dir(path).map_err(|e| super::limit::failed("list", path, &e))?.count())
}
