//! Guarantees that need more than one process, or a system that we did not write.
//!
//! `tests/kafka.rs` runs the real Kafka on our files and us on its; `tests/kill.rs` kills a writer
//! again and again. The lines below are what both sides print of a record.

use loglane::format::{Batches, crc32c};
use loglane::{FetchOptions, Offset, PartitionView, Result};
use std::fmt::Write;

/// One line for each record of a partition, in the form of tests/kafka/README.md.
///
/// # Errors
/// Whatever a fetch meets.
pub fn canonical_lines(partition: &PartitionView, out: &mut Vec<String>) -> Result<()> {
    let mut offset = partition.log_start_offset();
    loop {
        let lease = partition.fetch(offset, &FetchOptions::default())?;
        if lease.is_empty() {
            return Ok(());
        }
        let bytes = lease.to_vec()?;
        for batch in Batches::new(&bytes) {
            // A fault here would be damage that fetch did not see: let the comparison show it.
            let Ok((_, batch)) = batch else { break };
            let Ok(decoded) = batch.decode() else { break };
            for record in decoded.records().map_while(|record| record.ok()) {
                if Offset(record.offset) >= offset && !batch.header().attributes.is_control() {
                    out.push(line(partition.name().partition(), &record));
                }
            }
        }
        offset = lease.next_offset();
    }
}

fn line(partition: u32, record: &loglane::format::Record<'_>) -> String {
    let mut line = format!("{partition} {} {} ", record.offset, record.timestamp);
    hex_or_null(&mut line, record.key);
    match record.value {
        Some(value) => {
            let _ = write!(line, " {}:{:08x} ", value.len(), crc32c(value));
        }
        None => line.push_str(" null "),
    }
    if record.headers.count() == 0 {
        line.push('-');
    }
    for (i, header) in record.headers.map_while(|header| header.ok()).enumerate() {
        if i > 0 {
            line.push(',');
        }
        hex_or_null(&mut line, Some(header.key.as_bytes()));
        line.push('=');
        hex_or_null(&mut line, header.value);
    }
    line
}

fn hex_or_null(line: &mut String, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else { return line.push_str("null") };
    line.push_str("0x");
    for byte in bytes {
        let _ = write!(line, "{byte:02x}");
    }
}
