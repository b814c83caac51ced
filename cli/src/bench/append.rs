//! `loglane bench append`.

#![forbid(unsafe_code)]

use super::limit::{Recycled, write_loop};
use super::{Figures, Round, sample_batch, timed, work_dir};
use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use clap::{Args, ValueEnum};
use loglane::{
    AppendOptions, Bytes, Completion, CompletionQueue, Durability, Engine, Error, Partition,
};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Writes that the bare loop has under way, when the engine has several.
const LIMIT_IN_FLIGHT: u16 = 4;
/// From this many seconds on the engine also runs without a pause.
const SUSTAINED_S: f64 = 30.0;
/// What a run without a pause keeps; older records are deleted, as retention would.
const SUSTAINED_BYTES_KEPT: u64 = 4 << 30;
/// How long one round of either side takes.
const ROUND: Duration = Duration::from_millis(250);
/// Most bytes of one round: what stays in the page cache before the kernel starts writing back.
const ROUND_BYTES_MAX: u64 = 512 << 20;

/// Append batches, and hold the figure against a bare loop
#[derive(Args)]
pub(crate) struct Append {
    /// Partitions, appended to in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    partitions: u32,
    /// Bytes of a batch
    #[arg(long, default_value_t = 16384)]
    batch_bytes: usize,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 1024)]
    record_bytes: usize,
    /// written: in the page cache; durable: on disk
    #[arg(long, value_enum, default_value_t = Class::Written)]
    class: Class,
    /// How long the engine is measured; the limit takes as long again. From 30 on the engine first
    /// runs that long without a pause, and the slowest second is told
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Appends under way at once [default: 512 and 4 for each partition, durable 1]
    #[arg(long)]
    in_flight: Option<usize>,
    /// Threads that own partitions [default: one for each core]
    #[arg(long)]
    shards: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Class {
    Written,
    Durable,
}

impl Append {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = work_dir(global)?;
        let (batch, records) = sample_batch(self.batch_bytes, self.record_bytes)?;
        let mut config = crate::config(dir.path().join("data"));
        config.shards = self.shards.unwrap_or(config.shards);
        config.inflight_bytes_max = 512 << 20;
        config.file_delete_delay_ms = 0;
        config.partition.batch_bytes_max = u32::MAX >> 1;
        let engine = Engine::open(config)?;
        let mut figures = Figures::new();
        figures.backend = engine.backend().kind.name();
        let mut recycled = match self.class {
            Class::Durable => Some(Recycled::new(&dir.path().join("recycled"), batch.len())?),
            Class::Written => None,
        };
        let in_flight = self.in_flight_max();
        let mut driver = Driver::new(&batch, records, self.class, in_flight)?;
        let partitions = engine.create_topic("bench", self.partitions)?;
        let mut measured = Duration::ZERO;
        // The first round of each warms files, memory and branch predictors, and is not counted.
        let mut warm = false;
        if self.seconds >= SUSTAINED_S {
            driver.sustain(&partitions, Duration::from_secs_f64(self.seconds))?;
            driver.latencies_ns.clear();
        }
        while figures.engine.is_empty()
            || measured.as_secs_f64() < self.seconds.min(SUSTAINED_S / 2.0)
        {
            let limit = timed(|| match &mut recycled {
                Some(recycled) if in_flight > 1 => {
                    recycled.write_loop_many(LIMIT_IN_FLIGHT, records, ROUND)
                }
                Some(recycled) => recycled.write_loop(records, ROUND),
                None => {
                    let path = dir.path().join("limit");
                    write_loop(&path, &batch, records, ROUND, ROUND_BYTES_MAX)
                }
            })?;
            if recycled.is_none() {
                let _ = std::fs::remove_file(dir.path().join("limit"));
            }
            let round = timed(|| driver.round(&partitions, ROUND, ROUND_BYTES_MAX))?;
            // As retention would: each round has fresh segments, and the disk does not fill.
            for partition in &partitions {
                partition.delete_records(partition.log_end_offset())?;
            }
            wait_for_unlinks(engine.dir());
            if std::mem::replace(&mut warm, true) {
                measured += round.time;
                figures.limit.push(limit);
                figures.engine.push(round);
                driver.take_latencies(&mut figures);
            } else {
                driver.latencies_ns.clear();
            }
        }
        engine.close()?;
        let class = if self.class == Class::Durable { "durable" } else { "written" };
        let mut setup = json!({
            "partitions": self.partitions, "batch_bytes": batch.len(), "class": class,
            "record_bytes": self.record_bytes, "in_flight": self.in_flight_max(),
        });
        if let (Some(setup), false) = (setup.as_object_mut(), driver.per_second.is_empty()) {
            let mean = driver.per_second.iter().sum::<u64>() / driver.per_second.len() as u64;
            let slowest = driver.per_second.iter().min().copied().unwrap_or(0);
            setup.insert("sustained_bytes_per_s".into(), json!(mean));
            setup.insert("slowest_second_bytes".into(), json!(slowest));
            setup.insert("slowest_second_ratio".into(), json!(slowest as f64 / mean as f64));
            setup.insert("per_second_bytes".into(), json!(driver.per_second));
        }
        figures.print(out, "append", setup)
    }

    fn in_flight_max(&self) -> usize {
        self.in_flight.unwrap_or(match self.class {
            Class::Written => 512.max(4 * self.partitions as usize),
            Class::Durable => 1,
        })
    }
}

/// Waits until the deleted files of a round are gone: freeing their pages must not cost the next.
fn wait_for_unlinks(dir: &std::path::Path) {
    /// Longer than the engine's housekeeper ever takes; a bench is not held up by more.
    const WAIT_MAX: Duration = Duration::from_secs(20);
    let start = Instant::now();
    let any_deleted = || {
        let partitions = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut files = partitions.flat_map(|p| std::fs::read_dir(p.path()).into_iter().flatten());
        files.any(|f| f.is_ok_and(|f| f.path().extension().is_some_and(|e| e == "deleted")))
    };
    while any_deleted() && start.elapsed() < WAIT_MAX {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Keeps appends under way.
struct Driver {
    batch: Bytes,
    records: u64,
    options: AppendOptions,
    in_flight_max: usize,
    queue: Arc<CompletionQueue>,
    done: Vec<Completion>,
    /// When the append with this token, modulo the limit, was submitted.
    started: Vec<Instant>,
    latencies_ns: Vec<u64>,
    /// Bytes of each whole second of a run without a pause.
    per_second: Vec<u64>,
}

impl Driver {
    fn new(
        batch: &[u8],
        records: u64,
        class: Class,
        in_flight_max: usize,
    ) -> Result<Driver, Failure> {
        let durability = match class {
            Class::Written => Durability::Written,
            Class::Durable => Durability::Durable,
        };
        Ok(Driver {
            batch: Bytes::copy_from_slice(batch),
            records,
            options: AppendOptions { durability, leader_epoch: None },
            in_flight_max: in_flight_max.max(1),
            queue: CompletionQueue::new()?,
            done: Vec::new(),
            started: vec![Instant::now(); in_flight_max.max(1)],
            latencies_ns: Vec::new(),
            per_second: Vec::new(),
        })
    }

    /// Appends for that long without a pause, second by second.
    fn sustain(&mut self, partitions: &[Partition], time: Duration) -> Result<(), Failure> {
        let (start, mut kept) = (Instant::now(), 0);
        while start.elapsed() < time {
            let second = Instant::now();
            let round = self.round(partitions, Duration::from_secs(1), u64::MAX)?;
            let ms = u64::try_from(second.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.per_second.push(round.bytes * 1000 / ms.max(1));
            kept += round.bytes;
            if kept > SUSTAINED_BYTES_KEPT {
                for partition in partitions {
                    let half = partition.log_end_offset().0 - partition.log_start_offset().0;
                    let before = partition.log_start_offset().0 + half / 2;
                    partition.delete_records(loglane::Offset(before))?;
                }
                kept /= 2;
            }
            self.latencies_ns.clear();
        }
        Ok(())
    }

    /// One append after the other, each answered before the next.
    fn round_of_one(
        &mut self,
        partitions: &[Partition],
        time: Duration,
        bytes_max: u64,
    ) -> Result<Round, Failure> {
        let mut round = Round::default();
        let (mut turn, start) = (partitions.iter().cycle(), Instant::now());
        while start.elapsed() < time && round.bytes < bytes_max {
            let Some(partition) = turn.next() else { break };
            let before = Instant::now();
            partition.append(self.batch.clone(), self.options)?;
            let latency = before.elapsed().as_nanos();
            self.latencies_ns.push(u64::try_from(latency).unwrap_or(u64::MAX));
            round.batches += 1;
            round.records += self.records;
            round.bytes += self.batch.len() as u64;
        }
        Ok(round)
    }

    fn round(
        &mut self,
        partitions: &[Partition],
        time: Duration,
        bytes_max: u64,
    ) -> Result<Round, Failure> {
        if self.in_flight_max == 1 {
            return self.round_of_one(partitions, time, bytes_max);
        }
        let mut round = Round::default();
        let mut free: Vec<usize> = (0..self.in_flight_max).collect();
        let mut turn = partitions.iter().cycle();
        let start = Instant::now();
        let mut ended = false;
        loop {
            ended |= start.elapsed() >= time || round.bytes >= bytes_max;
            while !ended && let Some(token) = free.pop() {
                let Some(partition) = turn.next() else { break };
                if let Some(started) = self.started.get_mut(token) {
                    *started = Instant::now();
                }
                let batch = self.batch.clone();
                match partition.submit(batch, self.options, &self.queue, token as u64) {
                    Ok(()) => {}
                    Err(Error::Busy { .. }) => {
                        free.push(token);
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if ended && free.len() == self.in_flight_max {
                return Ok(round);
            }
            // Looking first saves the sleep when answers are there already.
            if self.queue.drain(&mut self.done) == 0 {
                self.queue.wait(&mut self.done, Duration::from_secs(1));
            }
            let now = Instant::now();
            for completion in self.done.drain(..) {
                completion.result?;
                let token = usize::try_from(completion.token).unwrap_or(usize::MAX);
                let started = self.started.get(token).copied().unwrap_or(now);
                let latency = now.saturating_duration_since(started).as_nanos();
                self.latencies_ns.push(u64::try_from(latency).unwrap_or(u64::MAX));
                free.push(token);
                round.batches += 1;
                round.records += self.records;
                round.bytes += self.batch.len() as u64;
            }
        }
    }

    fn take_latencies(&mut self, figures: &mut Figures) {
        for latency in self.latencies_ns.drain(..) {
            figures.latency_ns.saturating_record(latency);
        }
    }
}
