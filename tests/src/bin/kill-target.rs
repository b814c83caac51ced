//! Appends and flushes until it is killed; says on stdout what was acknowledged.
//!
//! `kill-target DIR PARTITIONS SEED`. Lines: `flushed <partition> <offset>` after a flush came back:
//! everything below is on disk, whatever happens next; `put <partition> <offset>` after a value was
//! set to the log end of then.

use loglane::format::{BatchBuilder, Codec};
use loglane::{AppendOptions, Config, Durability, Engine, PartitionConfig};
use std::error::Error;
use std::io::Write;

/// Small, so that a run of half a second rolls many times.
const SEGMENT_BYTES: u32 = 64 << 10;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: kill-target DIR PARTITIONS SEED";
    let dir = arguments.next().ok_or(usage)?;
    let count: u32 = arguments.next().ok_or(usage)?.parse()?;
    let mut random: u64 = arguments.next().ok_or(usage)?.parse::<u64>()? | 1;
    let mut config = Config::new(dir);
    config.checkpoint_interval_ms = 100;
    config.partition = PartitionConfig {
        segment_bytes: SEGMENT_BYTES,
        retention_ms: None,
        ..PartitionConfig::default()
    };
    let engine = Engine::open(config)?;
    let mut partitions = engine.topic("t")?;
    if partitions.is_empty() {
        partitions = engine.create_topic("t", count)?;
    }
    let mut out = std::io::stdout();
    for partition in &partitions {
        writeln!(out, "opened {} {}", partition.name().partition(), partition.log_end_offset())?;
    }
    loop {
        // xorshift: which partition, how many records, how large; a flush now and then.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = usize::try_from(random >> 40)? % partitions.len();
        let Some(partition) = partitions.get(at) else { continue };
        let first = partition.log_end_offset().0;
        let mut batch = BatchBuilder::new(Codec::None);
        for i in 0..1 + i64::try_from(random >> 8 & 15)? {
            let offset = first + i;
            let value = vec![u8::try_from(offset & 0xff)?; usize::try_from(random >> 16 & 1023)?];
            batch.append(1_000_000 + offset, Some(&offset.to_be_bytes()), Some(&value), &[])?;
        }
        partition.append(batch.build()?, AppendOptions::default())?;
        if random & 7 == 0 {
            let flushed = partition.flush()?;
            writeln!(out, "flushed {} {flushed}", partition.name().partition())?;
        }
        if random & 7 == 1 {
            let durable = random & 8 == 0;
            let durability = if durable { Durability::Durable } else { Durability::Written };
            let end = partition.log_end_offset();
            partition.put_value("end", end.0.to_be_bytes().to_vec(), durability)?;
            writeln!(out, "put {} {end}", partition.name().partition())?;
        }
    }
}
