//! `loglane bench compaction`: how fast a partition is compacted, and what that does to appends to
//! another one.

#![forbid(unsafe_code)]

use super::restart::parse_bytes;
use super::{rounded, sample_batch, work_dir};
use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::progress::Progress;
use clap::Args;
use hdrhistogram::Histogram;
use loglane::format::{BatchBuilder, Codec};
use loglane::{
    AppendOptions, Bytes, CleanupPolicy, CompactionRun, CompletionQueue, Config, Engine, Error,
    Partition, PartitionConfig,
};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Appends that the writer has under way.
const IN_FLIGHT: usize = 64;
/// How long appends are timed while nothing is compacted.
const IDLE: Duration = Duration::from_secs(5);
/// Between two appends that are timed: a load, not the most that goes.
const PAUSE: Duration = Duration::from_micros(500);

/// Compact a partition, and time the appends to another one meanwhile
#[derive(Args)]
pub(crate) struct Compaction {
    /// Bytes that are compacted, e.g. 512M or 1G
    #[arg(long, value_parser = parse_bytes, default_value = "1G")]
    bytes: u64,
    /// Of 100 records so many are the newest of their key
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100))]
    live_percent: u64,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 1024)]
    record_bytes: usize,
    /// Bytes of a batch
    #[arg(long, default_value_t = 16384)]
    batch_bytes: usize,
    /// Compression of the batches: none, gzip, snappy, lz4 or zstd
    #[arg(long, default_value = "none")]
    codec: Codec,
    /// Largest segment file
    #[arg(long, default_value_t = 128 << 20)]
    segment_bytes: u32,
    /// Memory for keys
    #[arg(long, value_parser = parse_bytes, default_value = "128M")]
    memory_bytes: u64,
    /// Most bytes that compaction reads and writes in a second; 0 for no limit
    #[arg(long, value_parser = parse_bytes, default_value = "0")]
    bytes_per_s: u64,
    /// Time durable appends instead of written ones
    #[arg(long)]
    durable: bool,
}

impl Compaction {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = work_dir(global)?;
        let mut config = Config::new(dir.path().join("data"));
        config.compaction_memory_bytes = self.memory_bytes;
        config.compaction_bytes_per_s = self.bytes_per_s;
        // Only when this program says so.
        config.compaction_interval_ms = 86_400_000;
        config.file_delete_delay_ms = 0;
        let engine = Engine::open(config)?;
        let compacted = PartitionConfig {
            cleanup_policy: CleanupPolicy::Compact,
            segment_bytes: self.segment_bytes,
            ..PartitionConfig::default()
        };
        let partition = engine.create_partition("compacted", 0, compacted)?;
        // With two shards on another thread than the first.
        let other = engine.create_partition("other", 0, PartitionConfig::default())?;
        self.fill(&partition, global.quiet)?;
        partition.roll()?;
        let bytes = partition.stat().bytes;
        let idle = self.time_appends(&other, || {
            std::thread::sleep(IDLE);
            Ok(())
        })?;
        let mut run = CompactionRun::default();
        let mut time = Duration::ZERO;
        let busy = self.time_appends(&other, || {
            let start = Instant::now();
            run = partition.compact()?;
            time = start.elapsed();
            Ok(())
        })?;
        let after = partition.stat().bytes;
        engine.close()?;
        let us = |latency: &Histogram<u64>, q| latency.value_at_quantile(q) as f64 / 1e3;
        let rate = bytes as f64 / time.as_secs_f64() / 1e6;
        let (p99_idle, p99_busy) = (us(&idle, 0.99), us(&busy, 0.99));
        let ratio = p99_busy / p99_idle.max(0.001);
        let figures = json!({
            "bench": "compaction", "bytes": bytes, "bytes_after": after,
            "live_percent": self.live_percent, "codec": self.codec.name(),
            "records": run.records_read, "passes": run.passes,
            "seconds": rounded(time.as_secs_f64()), "mb_per_s": rounded(rate),
            "append_class": if self.durable { "durable" } else { "written" },
            "append_p99_us_idle": p99_idle, "append_p99_us_busy": p99_busy,
            "append_p99_ratio": rounded(ratio), "append_p50_us_idle": us(&idle, 0.5),
            "append_p50_us_busy": us(&busy, 0.5), "append_p999_us_idle": us(&idle, 0.999),
            "append_p999_us_busy": us(&busy, 0.999), "appends_idle": idle.len(),
            "appends_busy": busy.len(),
        });
        let text = || {
            format!(
                "compaction of {bytes} bytes to {after} in {} passes: {rate:.0} MB/s; appends to another \
                 partition p99 {p99_idle:.0} us idle, {p99_busy:.0} us meanwhile: {ratio:.2} times",
                run.passes
            )
        };
        out.item(text, || figures.clone())?;
        Ok(Exit::Done)
    }

    /// Appends records until there are bytes enough. Keys come back after so many records that as many
    /// as wanted are the newest of theirs at the end.
    fn fill(&self, partition: &Partition, quiet: bool) -> Result<(), Failure> {
        let wrong =
            |e: loglane::format::BatchFault| Failure::usage(e.to_string(), "use other sizes");
        let queue = CompletionQueue::new()?;
        let mut progress = Progress::bytes(Some(self.bytes), "written", quiet);
        let record_bytes = self.record_bytes.max(16);
        let keys = (self.bytes / record_bytes as u64 * self.live_percent / 100).max(1);
        let (mut builder, mut done) = (BatchBuilder::new(self.codec), Vec::new());
        let mut value: Vec<u8> = (0..=250).cycle().take(record_bytes).collect();
        let (mut number, mut bytes, mut under_way) = (0_u64, 0, 0);
        while bytes < self.bytes {
            while builder.estimated_bytes() < self.batch_bytes {
                // Spread over the log, so that every batch has some that stay.
                let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys;
                if let Some(start) = value.first_chunk_mut::<8>() {
                    *start = number.to_le_bytes();
                }
                let key = format!("key-{key:016}");
                builder
                    .append(1_700_000_000_000, Some(key.as_bytes()), Some(&value), &[])
                    .map_err(wrong)?;
                number += 1;
            }
            let batch = Bytes::from(builder.build().map_err(wrong)?);
            loop {
                match partition.submit(batch.clone(), AppendOptions::default(), &queue, 0) {
                    Ok(()) => break,
                    Err(Error::Busy { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                under_way -= queue.wait(&mut done, Duration::from_secs(1));
            }
            under_way += 1;
            bytes += batch.len() as u64;
            progress.add(batch.len() as u64);
            if under_way >= IN_FLIGHT {
                under_way -= queue.wait(&mut done, Duration::from_secs(1));
            }
            for completion in done.drain(..) {
                completion.result?;
            }
        }
        while under_way > 0 {
            under_way -= queue.wait(&mut done, Duration::from_secs(1));
        }
        for completion in done.drain(..) {
            completion.result?;
        }
        progress.finish();
        Ok(())
    }

    /// Times single appends, one after the other, while `work` runs.
    fn time_appends(
        &self,
        partition: &Partition,
        work: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Histogram<u64>, Failure> {
        let (batch, _) = sample_batch(4096, 1024)?;
        let (batch, partition) = (Bytes::from(batch), partition.clone());
        let options =
            if self.durable { AppendOptions::durable() } else { AppendOptions::default() };
        // The first durable append makes the journal.
        partition.append(batch.clone(), options)?;
        partition.flush()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let writer = std::thread::spawn(move || -> Result<Histogram<u64>, Error> {
            let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)
                .expect("the bounds are constants in range");
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                partition.append(batch.clone(), options)?;
                latency.saturating_record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(0));
                std::thread::sleep(PAUSE);
            }
            Ok(latency)
        });
        let worked = work();
        stop.store(true, Ordering::Relaxed);
        let latency =
            writer.join().unwrap_or_else(|_| Err(Error::Closed { what: "the writer".into() }));
        worked?;
        Ok(latency?)
    }
}
