//! The children of the rig: one that appends and reports what was promised, one that recovers a
//! directory and reads it from end to end. Both run until they are done or killed.

use crate::random::{Random, mix};
use crate::report::{Event, HoleKind, now_ns, say};
use loglane::format::{BatchBuilder, Batches, Codec};
use loglane::io::BackendChoice;
use loglane::{
    AppendOptions, Completion, CompletionQueue, Config, Durability, Engine, Error, FetchOptions,
    Isolation, Offset, Partition, PartitionConfig,
};
use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const TOPIC: &str = "t";
const PARTITIONS: u32 = 4;
/// Timestamps are this plus the offset.
const EPOCH_MS: i64 = 1_700_000_000_000;
/// A log over this is cut at its front, so that an image lasts many rounds.
const LOG_BYTES_MAX: u64 = 768 << 10;

/// The key is the offset, the value follows from partition and offset: a record in the wrong place,
/// or with bytes of another, is seen.
fn value(partition: u32, offset: i64, into: &mut Vec<u8>) {
    let mut random = mix(u64::from(partition + 1) << 48 ^ offset.cast_unsigned());
    let bytes = if random.is_multiple_of(32) { random >> 8 & 0xfff } else { random >> 8 & 0x1ff };
    into.clear();
    while (into.len() as u64) < bytes {
        random = mix(random);
        into.extend_from_slice(&random.to_be_bytes());
    }
}

fn open(dir: &Path, random: &mut Random) -> loglane::Result<Engine> {
    let mut config = Config::new(dir);
    config.shards = 2;
    config.backend = if random.one_in(3) { BackendChoice::Plain } else { BackendChoice::Auto };
    config.checkpoint_interval_ms = 100;
    config.file_delete_delay_ms = 20;
    config.partition = settings(random);
    Engine::open(config)
}

fn settings(random: &mut Random) -> PartitionConfig {
    PartitionConfig {
        // Small, so that a round rolls.
        segment_bytes: 32 << 10 << random.below(3),
        index_interval_bytes: 1024,
        // Its records have times of their own; what goes is what the rig deletes.
        retention_ms: None,
        ..PartitionConfig::default()
    }
}

/// The partitions that are there.
fn partitions(engine: &Engine) -> loglane::Result<Vec<Partition>> {
    engine.topic(TOPIC)
}

/// What an open engine says is on disk. After a recovery that is everything it found.
fn promise(partition: &Partition) -> Event {
    Event::Durable {
        at_ns: now_ns(),
        partition: partition.name().partition(),
        end: partition.durable_offset().0,
    }
}

/// Appends until it is killed or the disk is gone. With `ack_before_sync` it lies: what is only in
/// the page cache is reported as durable.
pub(crate) fn write(dir: &Path, seed: u64, ack_before_sync: bool) -> Outcome<()> {
    let mut random = Random::new(seed);
    let engine = open(dir, &mut random)?;
    let found = partitions(&engine)?;
    say(&found.iter().map(promise).collect::<Vec<_>>());
    say(&[Event::Opened { at_ns: now_ns() }]);
    let mut logs = Vec::new();
    for number in 0..PARTITIONS {
        let known = found.iter().find(|p| p.name().partition() == number).cloned();
        let partition = match known {
            Some(partition) => partition,
            None => engine.create_partition(TOPIC, number, settings(&mut random))?,
        };
        logs.push(Target { next: partition.log_end_offset().0, partition });
    }
    let mut writer = Writer {
        logs,
        queue: CompletionQueue::new()?,
        sent: VecDeque::new(),
        first_token: 0,
        in_flight: 0,
        random,
        ack_before_sync,
    };
    loop {
        writer.step()?;
    }
}

/// A partition, and the offset its next append will get: this process is its only writer.
struct Target {
    partition: Partition,
    next: i64,
}

struct Sent {
    partition: u32,
    base: i64,
    next: i64,
    promised: bool,
}

struct Writer {
    logs: Vec<Target>,
    queue: std::sync::Arc<CompletionQueue>,
    /// By token, from `first_token` on; `None` once answered.
    sent: VecDeque<Option<Sent>>,
    first_token: u64,
    in_flight: u64,
    random: Random,
    ack_before_sync: bool,
}

impl Writer {
    fn step(&mut self) -> Outcome<()> {
        let depth = 1 + self.random.below(24);
        while self.in_flight < depth {
            self.submit()?;
        }
        let at = usize::try_from(self.random.below(self.logs.len() as u64))?;
        if let Some(Target { partition, .. }) = self.logs.get(at) {
            if self.random.one_in(40) {
                partition.flush()?;
                say(&[promise(partition)]);
            } else if self.random.one_in(60) {
                partition.roll()?;
            } else if self.random.one_in(60) || partition.stat().bytes > LOG_BYTES_MAX {
                delete_front(partition, &mut self.random)?;
            }
        }
        let mut done = Vec::new();
        self.queue.wait(&mut done, Duration::from_secs(1));
        let at_ns = now_ns();
        let mut events = Vec::new();
        for completion in done {
            events.extend(self.answered(completion, at_ns)?);
        }
        say(&events);
        Ok(())
    }

    fn submit(&mut self) -> Outcome<()> {
        let at = usize::try_from(self.random.below(self.logs.len() as u64))?;
        let Some(Target { partition, next }) = self.logs.get_mut(at) else { return Ok(()) };
        let number = partition.name().partition();
        let records = 1 + self.random.below(8).cast_signed();
        let mut batch = BatchBuilder::new(Codec::None);
        let mut bytes = Vec::new();
        for offset in *next..*next + records {
            value(number, offset, &mut bytes);
            batch.append(EPOCH_MS + offset, Some(&offset.to_be_bytes()), Some(&bytes), &[])?;
        }
        let wants_durable = !self.random.one_in(5);
        let durability = match wants_durable && !self.ack_before_sync {
            true => Durability::Durable,
            false => Durability::Written,
        };
        let options = AppendOptions { durability, leader_epoch: None };
        let token = self.first_token + self.sent.len() as u64;
        partition.submit(batch.build()?, options, &self.queue, token)?;
        let (base, end) = (*next, *next + records);
        *next = end;
        self.sent.push_back(Some(Sent {
            partition: number,
            base,
            next: end,
            promised: wants_durable,
        }));
        self.in_flight += 1;
        Ok(())
    }

    fn answered(&mut self, completion: Completion, at_ns: u64) -> Outcome<Option<Event>> {
        let at = usize::try_from(completion.token - self.first_token)?;
        let sent = self.sent.get_mut(at).and_then(Option::take).ok_or("answered twice")?;
        while let Some(None) = self.sent.front() {
            self.sent.pop_front();
            self.first_token += 1;
        }
        self.in_flight -= 1;
        let info = completion.result?;
        if (info.base_offset.0, info.last_offset.0 + 1) != (sent.base, sent.next) {
            return Err(format!("offsets from {} expected, got {info:?}", sent.base).into());
        }
        let event =
            Event::Durable { at_ns, partition: sent.partition, end: info.last_offset.0 + 1 };
        Ok(sent.promised.then_some(event))
    }
}

/// Deletes up to half of a log, said before it is done: a deletion may be there though it was cut.
fn delete_front(partition: &Partition, random: &mut Random) -> Outcome<()> {
    let stat = partition.stat();
    let (start, end) = (stat.log_start_offset.0, stat.high_watermark.0);
    let before = start + random.below((end - start + 1).cast_unsigned()).cast_signed() / 2;
    say(&[Event::Deleting { partition: partition.name().partition(), before }]);
    partition.delete_records(Offset(before))?;
    Ok(())
}

/// Recovers a directory, reads every partition from end to end and says what is there.
pub(crate) fn check(dir: &Path, seed: u64, close: bool) -> Outcome<()> {
    let engine = open(dir, &mut Random::new(seed))?;
    let found = partitions(&engine)?;
    say(&found.iter().map(promise).collect::<Vec<_>>());
    say(&[Event::Opened { at_ns: now_ns() }]);
    for partition in &found {
        read(partition)?;
    }
    say(&[Event::Checked]);
    if close {
        engine.close()?;
    }
    // Without a close the directory is left as by a crash, only the page cache is whole.
    std::process::exit(0);
}

/// Reads all records of a partition. What cannot be read is said as a hole; a record that is not
/// what was appended at its offset is an error.
fn read(partition: &Partition) -> Outcome<()> {
    let number = partition.name().partition();
    let (start, end) = (partition.log_start_offset().0, partition.log_end_offset().0);
    let options = FetchOptions { isolation: Isolation::LogEnd, ..FetchOptions::default() };
    let mut next = start;
    let mut expected = Vec::new();
    while next < end {
        let lease = match partition.fetch(Offset(next), &options) {
            Ok(lease) => lease,
            Err(Error::Damaged { next_offset, .. }) if next_offset.0 > next => {
                say(&[Event::Hole {
                    partition: number,
                    from: next,
                    to: next_offset.0,
                    how: HoleKind::Damaged,
                }]);
                next = next_offset.0;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let bytes = lease.to_vec()?;
        let before = next;
        for batch in Batches::new(&bytes) {
            let (_, batch) = batch.map_err(|(_, fault)| fault)?;
            for record in batch.decode()?.records() {
                let record = record?;
                if record.offset < next {
                    continue;
                }
                if record.offset > next {
                    say(&[Event::Hole {
                        partition: number,
                        from: next,
                        to: record.offset,
                        how: HoleKind::Skipped,
                    }]);
                    next = record.offset;
                }
                value(number, next, &mut expected);
                if record.key != Some(&next.to_be_bytes()[..])
                    || record.value != Some(&expected[..])
                    || record.timestamp != EPOCH_MS + next
                {
                    return Err(format!("partition {number}: another record at {next}").into());
                }
                next += 1;
            }
        }
        if next == before {
            // Nothing from here on although the log does not end here.
            say(&[Event::Hole { partition: number, from: next, to: end, how: HoleKind::Empty }]);
            next = end;
        }
    }
    say(&[Event::Range { partition: number, start, end }]);
    Ok(())
}
