//! `loglane bench durable-fanout`: one record in each of many partitions, durable at once.

#![forbid(unsafe_code)]

use super::limit::{Recycled, failed};
use super::{median, rounded, sample_batch, work_dir};
use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use clap::Args;
use loglane::{AppendOptions, Bytes, CompletionQueue, Engine, Partition};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Commits of each side in one round.
const COMMITS: usize = 5;

#[derive(Args)]
pub(crate) struct Fanout {
    /// Partitions that each commit appends one record to
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    partitions: u32,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 1024)]
    record_bytes: usize,
    /// How long all of it takes, about
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Threads that own partitions [default: one for each core]
    #[arg(long)]
    shards: Option<usize>,
}

impl Fanout {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let dir = work_dir(global)?;
        let (batch, _) = sample_batch(self.record_bytes, self.record_bytes)?;
        let mut config = crate::config(dir.path().join("data"));
        config.shards = self.shards.unwrap_or(config.shards);
        let engine = Engine::open(config)?;
        let partitions = engine.create_topic("bench", self.partitions)?;
        let mut commits = Commits::new(partitions, &batch)?;
        let bytes = batch.len() * self.partitions as usize;
        let mut journal = Recycled::new(&dir.path().join("recycled"), bytes)?;
        let mut journalled = Files::new(&dir.path().join("journalled"), self.partitions)?;
        let mut synced = Files::new(&dir.path().join("synced"), self.partitions)?;
        let (mut engine_ms, mut limit_ms, mut each_ms) = (Vec::new(), Vec::new(), Vec::new());
        let start = Instant::now();
        // The first commits make journals and files; they are not counted.
        commits.one()?;
        std::thread::sleep(Duration::from_millis(500));
        while engine_ms.is_empty() || start.elapsed().as_secs_f64() < self.seconds {
            for _ in 0..COMMITS {
                engine_ms.push(ms(|| commits.one())?);
            }
            for _ in 0..COMMITS {
                limit_ms.push(ms(|| {
                    journal.write_once()?;
                    journalled.write(&batch)
                })?);
            }
            each_ms.push(ms(|| synced.write_and_sync(&batch))?);
        }
        engine.close()?;
        let engine = median(engine_ms.iter().copied());
        let limit = median(limit_ms.iter().copied());
        let each = median(each_ms.iter().copied());
        let figures = json!({
            "bench": "durable-fanout", "partitions": self.partitions,
            "record_bytes": self.record_bytes, "batch_bytes": batch.len(),
            "engine_ms": rounded(engine), "journal_limit_ms": rounded(limit),
            "fdatasync_each_ms": rounded(each), "ratio_to_limit": rounded(engine / limit),
            "times_faster_than_fdatasync": rounded(each / engine), "commits": engine_ms.len(),
        });
        let text = || {
            format!(
                "durable-fanout: {} partitions of {} bytes: engine {engine:.3} ms a commit, one \
                 journal write and the page cache {limit:.3} ms ({:.2} of it), fdatasync each \
                 {each:.3} ms ({:.1} times)",
                self.partitions,
                self.record_bytes,
                engine / limit,
                each / engine
            )
        };
        out.item(text, || figures.clone())?;
        Ok(Exit::Done)
    }
}

fn ms(work: impl FnOnce() -> Result<(), Failure>) -> Result<f64, Failure> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Appends one batch to every partition and waits for all of them.
struct Commits {
    partitions: Vec<Partition>,
    batch: Bytes,
    queue: Arc<CompletionQueue>,
}

impl Commits {
    fn new(partitions: Vec<Partition>, batch: &[u8]) -> Result<Commits, Failure> {
        let (batch, queue) = (Bytes::copy_from_slice(batch), CompletionQueue::new()?);
        Ok(Commits { partitions, batch, queue })
    }

    fn one(&mut self) -> Result<(), Failure> {
        let options = AppendOptions::durable();
        for partition in &self.partitions {
            partition.submit(self.batch.clone(), options, &self.queue, 0)?;
        }
        let (mut done, mut left) = (Vec::new(), self.partitions.len());
        while left > 0 {
            left -= self.queue.wait(&mut done, Duration::from_secs(10));
            for completion in done.drain(..) {
                completion.result?;
            }
        }
        Ok(())
    }
}

/// One file for each partition.
struct Files {
    files: Vec<File>,
    position: u64,
}

impl Files {
    fn new(dir: &Path, count: u32) -> Result<Files, Failure> {
        std::fs::create_dir(dir).map_err(|e| failed("create", dir, &e))?;
        let create = |number: u32| {
            let path = dir.join(number.to_string());
            File::create(&path).map_err(|e| failed("create", &path, &e))
        };
        let files: Result<Vec<File>, Failure> = (0..count).map(create).collect();
        Ok(Files { files: files?, position: 0 })
    }

    fn write(&mut self, batch: &[u8]) -> Result<(), Failure> {
        for file in &self.files {
            let written = file.write_all_at(batch, self.position);
            written.map_err(|e| failed("write to", Path::new("a file of the limit"), &e))?;
        }
        self.position += batch.len() as u64;
        Ok(())
    }

    fn write_and_sync(&mut self, batch: &[u8]) -> Result<(), Failure> {
        for file in &self.files {
            let written = file.write_all_at(batch, self.position);
            let synced = written.and_then(|()| Ok(rustix::fs::fdatasync(file)?));
            synced.map_err(|e| failed("sync", Path::new("a file of the limit"), &e))?;
        }
        self.position += batch.len() as u64;
        Ok(())
    }
}
