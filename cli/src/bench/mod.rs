//! `loglane bench`: the engine and the machine's bare limit, measured in the same run.
//!
//! Rounds of both alternate (A B A B) on fresh files, so that neither has the quieter minute, and
//! what is compared is the median of the rounds' ratios: absolute figures of a shared machine say
//! little. The work directory is made under `--dir` (or the system's temporary directory) and
//! removed.

#![forbid(unsafe_code)]

mod append;
mod compaction;
mod dormant;
mod fanout;
mod fetch;
mod limit;
mod restart;

use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use clap::Subcommand;
use hdrhistogram::Histogram;
use loglane::format::{BatchBuilder, Codec};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Measure appends or fetches beside the bare limit of the machine
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Append batches; the limit is a loop of pwrite + CRC, or of O_DIRECT|O_DSYNC writes
    Append(append::Append),
    /// Make one record in each of many partitions durable at once, beside one bare journal write and
    /// beside one fdatasync a file
    DurableFanout(fanout::Fanout),
    /// Kill a writer, and time the restart to the first append and the first fetch
    Restart(restart::Restart),
    /// What `restart` runs and kills
    #[command(hide = true)]
    RestartWriter(restart::RestartWriter),
    /// Open a directory of many partitions, and append to some of them
    Dormant(dormant::Dormant),
    /// Compact a partition, and time the appends to another one meanwhile
    Compaction(compaction::Compaction),
    /// Fetch and send to a TCP socket; the limit is a loop of sendfile
    Fetch(fetch::Fetch),
}

impl Bench {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        match self {
            Bench::Append(command) => command.run(global, out),
            Bench::DurableFanout(command) => command.run(global, out),
            Bench::Restart(command) => command.run(global, out),
            Bench::RestartWriter(command) => command.run(global),
            Bench::Dormant(command) => command.run(global, out),
            Bench::Compaction(command) => command.run(global, out),
            Bench::Fetch(command) => command.run(global, out),
        }
    }
}

/// What one round did.
#[derive(Clone, Copy, Default)]
struct Round {
    time: Duration,
    cpu: Duration,
    records: u64,
    batches: u64,
    bytes: u64,
}

impl Round {
    fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64()
    }
}

/// Rounds of the engine and of the limit, and the latencies of the engine's operations.
struct Figures {
    engine: Vec<Round>,
    limit: Vec<Round>,
    latency_ns: Histogram<u64>,
    backend: &'static str,
}

impl Figures {
    fn new() -> Figures {
        // Up to a minute, to three digits.
        let latency_ns = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Figures {
            engine: Vec::new(),
            limit: Vec::new(),
            latency_ns: latency_ns.expect("the bounds are constants in range"),
            backend: "none",
        }
    }

    /// The figures, with those of the engine as medians over its rounds.
    fn json(&self) -> Value {
        let per_s = |value: fn(&Round) -> u64| {
            median(self.engine.iter().map(|r| value(r) as f64 / r.time.as_secs_f64()))
        };
        let cpu = |round: &Round| round.cpu.as_secs_f64() / (round.bytes as f64 / 1e9);
        let ratios = self
            .engine
            .iter()
            .zip(&self.limit)
            .map(|(engine, limit)| engine.bytes_per_s() / limit.bytes_per_s());
        let us = |quantile| self.latency_ns.value_at_quantile(quantile) as f64 / 1e3;
        json!({
            "records_per_s": per_s(|r| r.records).round(),
            "bytes_per_s": per_s(|r| r.bytes).round(),
            "batches_per_s": per_s(|r| r.batches).round(),
            "cpu_s_per_gb": rounded(median(self.engine.iter().map(cpu))),
            "p50_us": us(0.5),
            "p99_us": us(0.99),
            "p999_us": us(0.999),
            "backend": self.backend,
            "limit_bytes_per_s": median(self.limit.iter().map(Round::bytes_per_s)).round(),
            "limit_cpu_s_per_gb": rounded(median(self.limit.iter().map(cpu))),
            "ratio": rounded(median(ratios.clone())),
            "ratio_min": rounded(ratios.clone().fold(f64::INFINITY, f64::min)),
            "ratio_max": rounded(ratios.fold(0.0, f64::max)),
            "rounds": self.engine.len(),
        })
    }

    /// Prints the figures and what was measured.
    fn print(&self, out: &mut Output, what: &str, setup: Value) -> Result<Exit, Failure> {
        let mut figures = self.json();
        if let (Some(figures), Value::Object(setup)) = (figures.as_object_mut(), setup) {
            figures.insert("bench".into(), json!(what));
            figures.extend(setup);
        }
        let number = |key: &str| figures.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        let text = format!(
            "{what}: {:.0} records/s, {:.0} MB/s, {:.2} CPU s/GB, p50 {:.0} us, p99 {:.0} us, \
             p99.9 {:.0} us; bare limit {:.0} MB/s; ratio {:.2} ({:.2} to {:.2} in {} rounds)",
            number("records_per_s"),
            number("bytes_per_s") / 1e6,
            number("cpu_s_per_gb"),
            number("p50_us"),
            number("p99_us"),
            number("p999_us"),
            number("limit_bytes_per_s") / 1e6,
            number("ratio"),
            number("ratio_min"),
            number("ratio_max"),
            self.engine.len(),
        );
        out.item(|| text, || figures.clone())?;
        Ok(Exit::Done)
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Runs `work` and notes its time and the CPU time of the whole process.
fn timed(work: impl FnOnce() -> Result<Round, Failure>) -> Result<Round, Failure> {
    let (cpu, start) = (cpu_time(), Instant::now());
    let round = work()?;
    Ok(Round { time: start.elapsed(), cpu: cpu_time().saturating_sub(cpu), ..round })
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A batch of `batch_bytes` of values, in records of `record_bytes`; framing comes on top.
fn sample_batch(batch_bytes: usize, record_bytes: usize) -> Result<(Vec<u8>, u64), Failure> {
    let mut builder = BatchBuilder::new(Codec::None);
    let value: Vec<u8> = (0..=250).cycle().take(record_bytes).collect();
    for _ in 0..(batch_bytes / record_bytes.max(1)).max(1) {
        builder
            .append(1_700_000_000_000, None, Some(&value), &[])
            .map_err(|e| Failure::usage(e.to_string(), "use smaller batches"))?;
    }
    let records = builder.record_count() as u64;
    let bytes = builder.build().map_err(|e| Failure::usage(e.to_string(), "use other sizes"))?;
    Ok((bytes, records))
}

/// A directory for one run, removed when dropped.
fn work_dir(global: &Global) -> Result<tempfile::TempDir, Failure> {
    let made = match &global.dir {
        Some(dir) => std::fs::create_dir_all(dir)
            .and_then(|()| tempfile::Builder::new().prefix("bench-").tempdir_in(dir)),
        None => tempfile::Builder::new().prefix("loglane-bench-").tempdir(),
    };
    made.map_err(|e| {
        Failure::new(format!("cannot make a work directory: {e}"), "name one by --dir")
    })
}
