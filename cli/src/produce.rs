//! `loglane produce`: a record for each line of stdin, many batches under way at a time.
//!
//! One thread reads, gathers and submits; the engine's shards write. A batch goes out when it is
//! full, when the input pauses, or at the end. Whatever ends the input — end of file, a signal, an
//! error — the engine is closed in order, so that Kafka opens the directory without recovery.

#![forbid(unsafe_code)]

use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::partitioner::Partitioner;
use crate::progress::Progress;
use crate::{Global, stop, topics};
use clap::Args;
use loglane::format::{BatchBuilder, Codec};
use loglane::io::{Clock, SystemClock};
use loglane::{
    AppendOptions, Bytes, Completion, CompletionQueue, Config, Engine, Error, Partition,
};
use memchr::memmem::Finder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes asked of stdin at a time.
const READ_BYTES: usize = 256 << 10;
/// How long a batch that is not full waits for more input.
const LINGER: Duration = Duration::from_millis(5);
/// The same when input keeps coming, but slowly.
const LINGER_MAX: Duration = Duration::from_millis(50);
/// How often a signal is looked for while nothing else happens.
const IDLE: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(crate) struct Produce {
    /// The topic; created on first use, as by: loglane topics create
    #[arg(long, value_parser = topics::topic_name)]
    topic: String,
    /// Partitions of a topic that is created
    #[arg(long, default_value_t = 1, value_name = "N")]
    partitions: u32,
    /// Send everything to this partition; default: by key as Kafka's clients, else in turn
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// What parts key and value in a line; default: lines have no key
    #[arg(long, value_name = "TEXT", value_parser = not_empty)]
    key_separator: Option<String>,
    /// none, gzip, snappy, lz4 or zstd
    #[arg(long, default_value = "none", value_name = "CODEC")]
    compression: Codec,
    /// Wait until each batch is on disk, not only in the page cache
    #[arg(long)]
    durable: bool,
    /// A header for every record; can be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Bytes of records that make a batch full
    #[arg(long, default_value_t = 16384, value_name = "BYTES")]
    batch_bytes: usize,
    /// Timestamp of every record, in Unix ms; default: now
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(i64).range(0..))]
    timestamp: Option<i64>,
    /// Start a new segment file when one would pass this size; stored if the topic is created, and
    /// left aside if the topic has such a setting
    #[arg(long, value_name = "BYTES")]
    segment_bytes: Option<u32>,
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".into()) } else { Ok(text.to_owned()) }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Produce {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        // It may run for months: what topics say about retention holds meanwhile.
        let dir = global.data_dir()?;
        let mut config = crate::stored_settings_only(Config::new(dir));
        if let Some(bytes) = self.segment_bytes {
            config.partition.segment_bytes = bytes;
        }
        let record_bytes_max = config.partition.batch_bytes_max as usize;
        stop::listen()?;
        let engine = Engine::open(config)?;
        let mut sent = Sent::default();
        let result = self.run_open(&engine, global, record_bytes_max, &mut sent);
        let closed = engine.close();
        result?;
        closed?;
        self.print_summary(&sent, global, out)?;
        Ok(Exit::Done)
    }

    fn run_open(
        &self,
        engine: &Engine,
        global: &Global,
        record_bytes_max: usize,
        sent: &mut Sent,
    ) -> Result<(), Failure> {
        let mut producer = Producer::new(self, engine, sent)?;
        let progress = Progress::bytes(None, "produced", global.quiet);
        let read = read_lines(self, &mut producer, record_bytes_max, progress);
        // Lines that were read before an error are records all the same.
        read.and(producer.finish())
    }

    fn print_summary(&self, sent: &Sent, global: &Global, out: &mut Output) -> io::Result<()> {
        let wanted = out.json || io::stdout().is_terminal();
        if global.quiet || !wanted {
            return Ok(());
        }
        if out.json {
            let partitions: Vec<_> = sent
                .offsets
                .iter()
                .map(|(p, first, last)| {
                    json!({ "partition": p, "base_offset": first, "last_offset": last })
                })
                .collect();
            return out.object(&json!({
                "topic": self.topic, "records": sent.records, "bytes": sent.bytes,
                "batches": sent.batches, "partitions": partitions,
            }));
        }
        let (records, bytes, batches) = (sent.records, sent.bytes, sent.batches);
        writeln!(out, "produced {} records={records} bytes={bytes} batches={batches}", self.topic)?;
        for (partition, first, last) in &sent.offsets {
            writeln!(out, "  partition {partition}: offsets {first} to {last}")?;
        }
        Ok(())
    }
}

/// What has been acknowledged.
#[derive(Default)]
struct Sent {
    records: u64,
    /// Of batches, as stored.
    bytes: u64,
    batches: u64,
    /// Partition, first and last offset.
    offsets: Vec<(u32, i64, i64)>,
}

/// A partition and the batch that is being gathered for it.
struct Target {
    partition: Option<Partition>,
    batch: BatchBuilder,
}

struct Producer<'a> {
    topic: &'a str,
    targets: Vec<Target>,
    partitioner: Partitioner,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
    headers_bytes: usize,
    options: AppendOptions,
    batch_bytes: usize,
    queue: Arc<CompletionQueue>,
    done: Vec<Completion>,
    under_way: u64,
    failed: Option<Error>,
    sent: &'a mut Sent,
    /// When the oldest record came that is not submitted yet.
    waiting_since: Option<Instant>,
}

impl<'a> Producer<'a> {
    fn new(
        args: &'a Produce,
        engine: &Engine,
        sent: &'a mut Sent,
    ) -> Result<Producer<'a>, Failure> {
        let mut partitions = engine.topic(&args.topic)?;
        if partitions.is_empty() {
            let change = topics::settings_of_new();
            let settings = args.segment_bytes.map_or(change.clone(), |b| change.segment_bytes(b));
            partitions = engine.create_topic_with(&args.topic, args.partitions, &settings)?;
        }
        // A Kafka directory may have some of a topic's partitions only: keys still go by number.
        let last = partitions.last().map_or(0, |p| p.name().partition());
        if args.partition.is_some_and(|wanted| wanted > last) {
            let wanted = args.partition.unwrap_or_default();
            let what = format!("topic {} has no partition {wanted}", args.topic);
            return Err(Failure::new(what, format!("its partitions are 0 to {last}")));
        }
        let mut targets: Vec<Target> = (0..=last)
            .map(|_| Target { partition: None, batch: BatchBuilder::new(args.compression) })
            .collect();
        for partition in partitions {
            if let Some(target) = targets.get_mut(partition.name().partition() as usize) {
                target.partition = Some(partition);
            }
        }
        let headers: Vec<_> = args
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), Some(value.as_bytes())))
            .collect();
        let headers_bytes = args.headers.iter().map(|(n, v)| n.len() + v.len() + 10).sum();
        let durable = AppendOptions::durable();
        Ok(Producer {
            topic: &args.topic,
            targets,
            partitioner: Partitioner::new(last + 1, args.partition),
            headers,
            headers_bytes,
            options: if args.durable { durable } else { AppendOptions::default() },
            batch_bytes: args.batch_bytes,
            queue: CompletionQueue::new()?,
            done: Vec::new(),
            under_way: 0,
            failed: None,
            sent,
            waiting_since: None,
        })
    }

    /// Adds a record to its partition's batch, which goes out first if it would be too full.
    fn record(&mut self, timestamp: i64, key: Option<&[u8]>, value: &[u8]) -> Result<(), Failure> {
        /// Lengths, deltas and counts of one record at most.
        const RECORD_OVERHEAD: usize = 36;
        let mut number = self.partitioner.partition(key);
        let bytes = RECORD_OVERHEAD + key.map_or(0, <[u8]>::len) + value.len() + self.headers_bytes;
        let full = self.targets.get(number as usize).is_some_and(|target| {
            !target.batch.is_empty() && target.batch.estimated_bytes() + bytes > self.batch_bytes
        });
        if full {
            self.submit(number)?;
            number = self.partitioner.partition(key);
        }
        let Some(target) = self.targets.get_mut(number as usize) else {
            unreachable!("the partitioner stays below the count")
        };
        let added = target.batch.append(timestamp, key, Some(value), &self.headers);
        added.map_err(|fault| Failure::new(fault.to_string(), "split the record"))?;
        if target.batch.estimated_bytes() >= self.batch_bytes {
            self.submit(number)?;
        }
        Ok(())
    }

    /// Sends a partition's batch on its way; waits for room if the engine has too much to do.
    fn submit(&mut self, number: u32) -> Result<(), Failure> {
        let Some(target) = self.targets.get_mut(number as usize) else { return Ok(()) };
        if target.batch.is_empty() {
            return Ok(());
        }
        let built = target.batch.build();
        let bytes = Bytes::from(
            built.map_err(|fault| Failure::new(fault.to_string(), "split the record"))?,
        );
        self.partitioner.batch_done(number);
        let Some(partition) = target.partition.clone() else {
            let what = format!("partition {}-{number}", self.topic);
            return Err(Error::NotFound { what }.into());
        };
        loop {
            match partition.submit(bytes.clone(), self.options, &self.queue, number.into()) {
                Ok(()) => break,
                Err(Error::Busy { .. }) => self.collect(Duration::from_millis(1))?,
                Err(error) => return Err(error.into()),
            }
        }
        self.under_way += 1;
        self.sent.bytes += bytes.len() as u64;
        self.sent.batches += 1;
        // Receipts are taken in passing, so that they do not pile up.
        if self.under_way.is_multiple_of(64) {
            self.collect(Duration::ZERO)?;
        }
        Ok(())
    }

    fn submit_all(&mut self) -> Result<(), Failure> {
        self.waiting_since = None;
        for number in 0..self.targets.len() {
            self.submit(u32::try_from(number).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }

    /// Takes the receipts that are there, waiting up to `timeout` for the first.
    fn collect(&mut self, timeout: Duration) -> Result<(), Failure> {
        if timeout.is_zero() {
            self.queue.drain(&mut self.done);
        } else {
            self.queue.wait(&mut self.done, timeout);
        }
        for Completion { token, result } in std::mem::take(&mut self.done) {
            self.under_way -= 1;
            match result {
                Ok(info) => {
                    let (first, last) = (info.base_offset.0, info.last_offset.0);
                    self.sent.records += (last - first + 1).unsigned_abs();
                    let number = u32::try_from(token).unwrap_or(u32::MAX);
                    match self.sent.offsets.iter_mut().find(|(p, _, _)| *p == number) {
                        Some(range) => range.2 = range.2.max(last),
                        None => self.sent.offsets.push((number, first, last)),
                    }
                }
                Err(error) => self.failed = self.failed.take().or(Some(error)),
            }
        }
        self.failed.take().map_or(Ok(()), |error| Err(error.into()))
    }

    /// Sends what is left and waits for every receipt.
    fn finish(mut self) -> Result<(), Failure> {
        let mut result = self.submit_all();
        while self.under_way > 0 {
            result = result.and(self.collect(IDLE));
        }
        self.sent.offsets.sort_unstable();
        result
    }
}

/// Reads stdin to its end, or until a signal.
fn read_lines(
    args: &Produce,
    producer: &mut Producer<'_>,
    record_bytes_max: usize,
    mut progress: Progress,
) -> Result<(), Failure> {
    let separator = args.key_separator.as_ref().map(|s| Finder::new(s.as_bytes()));
    let clock = SystemClock::default();
    let mut buffer: Vec<u8> = Vec::with_capacity(READ_BYTES * 2);
    let mut line_number = 0_u64;
    let mut lines = Lines { separator, line_number: &mut line_number };
    loop {
        if stop::requested() {
            // A line without its end may be half of one.
            return Ok(());
        }
        let timeout = if producer.waiting_since.is_some() { LINGER } else { IDLE };
        if !input_within(timeout)? {
            if producer.waiting_since.is_some() {
                producer.submit_all()?;
            }
            producer.collect(Duration::ZERO)?;
            continue;
        }
        let held = buffer.len();
        buffer.resize(held + READ_BYTES, 0);
        let read = read_stdin(buffer.get_mut(held..).unwrap_or_default())?;
        buffer.truncate(held + read);
        progress.add(read as u64);
        let timestamp = args.timestamp.unwrap_or_else(|| clock.now_ms());
        if read == 0 {
            if !buffer.is_empty() {
                lines.line(&buffer, timestamp, producer)?;
            }
            return Ok(());
        }
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', buffer.get(held..).unwrap_or_default()) {
            let end = held + end;
            lines.line(buffer.get(from..end).unwrap_or_default(), timestamp, producer)?;
            from = end + 1;
        }
        buffer.drain(..from);
        if buffer.len() > record_bytes_max {
            let what = format!("line {} is over {record_bytes_max} bytes", *lines.line_number + 1);
            return Err(Failure::new(what, "split it: no batch may be larger"));
        }
        let now = Instant::now();
        let since = *producer.waiting_since.get_or_insert(now);
        if now.duration_since(since) > LINGER_MAX {
            producer.submit_all()?;
        }
    }
}

struct Lines<'a> {
    separator: Option<Finder<'a>>,
    line_number: &'a mut u64,
}

impl Lines<'_> {
    fn line(
        &mut self,
        line: &[u8],
        timestamp: i64,
        producer: &mut Producer<'_>,
    ) -> Result<(), Failure> {
        *self.line_number += 1;
        let Some(separator) = &self.separator else {
            return producer.record(timestamp, None, line);
        };
        let parts = separator.find(line).and_then(|at| {
            let (key, rest) = line.split_at_checked(at)?;
            Some((key, rest.get(separator.needle().len()..)?))
        });
        let Some((key, value)) = parts else {
            let what = format!("line {} has no key separator", self.line_number);
            let next =
                "the lines before it are stored; mend the line, or leave out --key-separator";
            return Err(Failure::new(what, next));
        };
        producer.record(timestamp, Some(key), value)
    }
}

/// True if stdin has bytes, or its end, within the time. A signal ends the wait.
fn input_within(timeout: Duration) -> Result<bool, Failure> {
    let stdin = rustix::stdio::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let timeout = Timespec::try_from(timeout).ok();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(stdin_failure(e)),
    }
}

fn read_stdin(buffer: &mut [u8]) -> Result<usize, Failure> {
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut *buffer) {
            Ok(read) => return Ok(read),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(stdin_failure(e)),
        }
    }
}

fn stdin_failure(error: rustix::io::Errno) -> Failure {
    let what = format!("cannot read stdin: {}", io::Error::from(error));
    Failure::new(what, "what was read before is stored")
}
