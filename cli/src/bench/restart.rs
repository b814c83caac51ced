//! `loglane bench restart`: how long after a kill -9 until records go in and come out again.

#![forbid(unsafe_code)]

use super::{median, rounded, sample_batch, work_dir};
use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Progress;
use clap::{Args, ValueEnum};
use loglane::{
    AppendOptions, Bytes, CompletionQueue, Durability, Engine, Error, FetchOptions, Offset,
    Partition,
};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Appends that the writer has under way.
const IN_FLIGHT: usize = 256;

#[derive(Args)]
pub(crate) struct Restart {
    /// Bytes that are appended before the kill, e.g. 512M or 4G
    #[arg(long, value_parser = parse_bytes)]
    bytes: u64,
    /// Partitions they are spread over
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    partitions: u32,
    /// Class of the appends
    #[arg(long, value_enum, default_value_t = Class::Written)]
    class: Class,
    /// Bytes of a batch
    #[arg(long, default_value_t = 16384)]
    batch_bytes: usize,
    /// Times that all of it is done
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Args)]
pub(crate) struct RestartWriter {
    dir: std::path::PathBuf,
    bytes: u64,
    partitions: u32,
    class: Class,
    batch_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Class {
    Written,
    Durable,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Class::Written => "written",
            Class::Durable => "durable",
        }
    }
}

/// What one restart took, in milliseconds.
struct Times {
    open: f64,
    first_append: f64,
    first_fetch: f64,
    restart: f64,
    all: f64,
}

impl Restart {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let mut rounds = Vec::new();
        for _ in 0..self.rounds.max(1) {
            let dir = work_dir(global)?;
            let data = dir.path().join("data");
            let ends = self.write_and_kill(&data, global.quiet)?;
            rounds.push(self.restart(&data, ends)?);
        }
        let of = |time: fn(&Times) -> f64| median(rounds.iter().map(time));
        let worst = rounds.iter().map(|t| t.restart).fold(0.0, f64::max);
        let figures = json!({
            "bench": "restart", "bytes": self.bytes, "partitions": self.partitions,
            "class": self.class.name(), "restart_ms": rounded(of(|t| t.restart)),
            "restart_ms_max": rounded(worst), "open_ms": rounded(of(|t| t.open)),
            "first_append_ms": rounded(of(|t| t.first_append)),
            "first_fetch_ms": rounded(of(|t| t.first_fetch)),
            "all_partitions_ms": rounded(of(|t| t.all)), "rounds": rounds.len(),
        });
        let text = || {
            format!(
                "restart after kill -9 with {} bytes in {} partitions ({}): {:.1} ms to the first \
                 append and fetch (at most {worst:.1} in {} rounds); open {:.1} ms, all partitions \
                 {:.1} ms",
                self.bytes,
                self.partitions,
                self.class.name(),
                of(|t| t.restart),
                rounds.len(),
                of(|t| t.open),
                of(|t| t.all)
            )
        };
        out.item(text, || figures.clone())?;
        Ok(Exit::Done)
    }

    /// Runs a writer until it has written all, and kills it in the middle of more. Gives the log end
    /// that it last had answers for, summed over its partitions.
    fn write_and_kill(&self, dir: &Path, quiet: bool) -> Result<i64, Failure> {
        let failed = |e: std::io::Error| {
            Failure::new(format!("cannot run the writer: {e}"), "try another --dir")
        };
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .args(["bench", "restart-writer"])
            .arg(dir)
            .args([self.bytes.to_string(), self.partitions.to_string()])
            .args([self.class.name(), &self.batch_bytes.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut progress = Progress::bytes(Some(self.bytes), "written", quiet);
        let mut records = 0;
        let mut bytes = 0;
        for line in BufReader::new(
            child
                .stdout
                .take()
                .ok_or_else(|| Failure::new("the writer has no output".to_owned(), "try again"))?,
        )
        .lines()
        {
            let line = line.map_err(failed)?;
            let mut words = line.split(' ').filter_map(|word| word.parse::<u64>().ok());
            let (Some(now), Some(ends)) = (words.next(), words.next()) else { continue };
            progress.add(now - bytes);
            (bytes, records) = (now, ends);
            if bytes >= self.bytes {
                break;
            }
        }
        let killed = child.kill().and_then(|()| child.wait());
        killed.map_err(failed)?;
        if bytes < self.bytes {
            let what = "the writer ended before it had written everything".to_owned();
            return Err(Failure::new(what, "see its message above; there may be too little space"));
        }
        Ok(i64::try_from(records).unwrap_or(i64::MAX))
    }

    fn restart(&self, dir: &Path, promised: i64) -> Result<Times, Failure> {
        let (batch, _) = sample_batch(self.batch_bytes, 1024)?;
        let start = Instant::now();
        let ms = || start.elapsed().as_secs_f64() * 1e3;
        let engine = Engine::open(crate::config(dir))?;
        let open = ms();
        let partition = engine.partition("bench", 0)?;
        partition.append(Bytes::from(batch), AppendOptions::default())?;
        let first_append = ms();
        let lease = partition.fetch(Offset(0), &FetchOptions::default())?;
        let first_fetch = ms();
        let nothing = lease.is_empty();
        let ends: i64 = engine.partitions()?.iter().map(|p| p.log_end_offset().0).sum();
        let all = ms();
        engine.close()?;
        if nothing || ends <= promised {
            let what = format!("{promised} records were answered and {ends} are found");
            return Err(Failure::new(what, "please report this: it is a loss of data"));
        }
        Ok(Times { open, first_append, first_fetch, restart: first_fetch, all })
    }
}

impl RestartWriter {
    /// Appends, says now and then how far it is, and goes on until it is killed.
    pub(crate) fn run(self, _: &Global) -> Result<Exit, Failure> {
        let engine = Engine::open(crate::config(&self.dir))?;
        let partitions = engine.create_topic("bench", self.partitions)?;
        let (batch, records) = sample_batch(self.batch_bytes, 1024)?;
        let batch = Bytes::from(batch);
        let durability = match self.class {
            Class::Written => Durability::Written,
            Class::Durable => Durability::Durable,
        };
        let options = AppendOptions { durability, leader_epoch: None };
        let queue = CompletionQueue::new()?;
        let (mut turn, mut done) = (partitions.iter().cycle(), Vec::new());
        let (mut under_way, mut bytes, mut answered, mut said) = (0, 0, 0, 0);
        let mut out = std::io::stdout();
        loop {
            while under_way < IN_FLIGHT
                && let Some(partition) = turn.next()
            {
                match submit(partition, &batch, options, &queue) {
                    Ok(true) => under_way += 1,
                    Ok(false) => break,
                    Err(error) => return Err(error),
                }
            }
            queue.wait(&mut done, Duration::from_secs(1));
            for completion in done.drain(..) {
                completion.result?;
                under_way -= 1;
                bytes += batch.len() as u64;
                answered += records;
            }
            if bytes >= said + (16 << 20) || bytes >= self.bytes && said < self.bytes {
                said = bytes;
                writeln!(out, "{bytes} {answered}")?;
            }
        }
    }
}

fn submit(
    partition: &Partition,
    batch: &Bytes,
    options: AppendOptions,
    queue: &std::sync::Arc<CompletionQueue>,
) -> Result<bool, Failure> {
    match partition.submit(batch.clone(), options, queue, 0) {
        Ok(()) => Ok(true),
        Err(Error::Busy { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// `4G`, `512M`, `64K` or plain bytes.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (text.get(..at), 1 << 10),
        Some((at, 'M' | 'm')) => (text.get(..at), 1 << 20),
        Some((at, 'G' | 'g')) => (text.get(..at), 1u64 << 30),
        _ => (Some(text), 1),
    };
    let number: u64 = digits.unwrap_or_default().parse().map_err(|e| format!("{text}: {e}"))?;
    number.checked_mul(unit).ok_or_else(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_nonsense_has_none() {
        assert_eq!(parse_bytes("4G"), Ok(4 << 30));
        assert_eq!(parse_bytes("512m"), Ok(512 << 20));
        assert_eq!(parse_bytes("7"), Ok(7));
        for text in ["", "G", "4T", "-1", "99999999999999999999G"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
