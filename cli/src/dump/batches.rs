//! Batches and records of a `.log` file.

#![forbid(unsafe_code)]

use super::fault;
use crate::failure::Failure;
use crate::output::{Output, bytes_json, bytes_text};
use crate::progress::Progress;
use loglane::format::{Batch, BatchFault, BatchHeader, ControlType, Record, TimestampType};
use loglane::inspect::{LogWalk, Step, check_stored_records};
use serde_json::json;
use std::io::Write;
use std::path::Path;

pub(super) fn dump(
    path: &Path,
    (records, deep): (bool, bool),
    quiet: bool,
    out: &mut Output,
) -> Result<bool, Failure> {
    let mut walk = LogWalk::open(path)?;
    let mut progress = Progress::bytes(Some(walk.bytes()), "dumped", quiet);
    if !out.json {
        writeln!(out, "Log starting offset: {}", walk.base_offset().0)?;
    }
    let mut damaged = false;
    let mut told = 0;
    loop {
        match walk.step()? {
            None => break,
            Some(Step::Batch { position, batch }) => {
                let sound = if deep { check_stored_records(&batch).map(drop) } else { Ok(()) };
                print_batch(path, position, &batch, sound.is_ok(), out)?;
                let printed = if records { print_records(&batch, out)? } else { Ok(()) };
                if let Err(found) = sound.and(printed) {
                    damaged = true;
                    fault(path, Some(position), &format!("records: {found}"), out)?;
                }
            }
            Some(Step::Damage { position, end, offset, fault: found }) => {
                damaged = true;
                let bytes = end - position;
                let what = format!(
                    "{found}; {bytes} bytes from offset {} on are passed over, the next whole batch is at {end}",
                    offset.0
                );
                fault(path, Some(position), &what, out)?;
            }
            Some(Step::TornTail { position, offset, fault: found }) => {
                damaged = true;
                let what = format!(
                    "{found}; no whole batch follows up to the end of the file (next offset {})",
                    offset.0
                );
                fault(path, Some(position), &what, out)?;
            }
        }
        let walked = walk.position();
        progress.add(walked - told);
        told = walked;
    }
    Ok(damaged)
}

fn time_name(header: &BatchHeader) -> &'static str {
    match header.attributes.timestamp_type() {
        TimestampType::CreateTime => "CreateTime",
        TimestampType::LogAppendTime => "LogAppendTime",
    }
}

/// Sequences wrap from 2^31 − 1 to 0.
fn sequence(header: &BatchHeader, delta: i64) -> i64 {
    match i64::from(header.base_sequence) {
        base if base < 0 => -1,
        base => (base + delta) % (i64::from(i32::MAX) + 1),
    }
}

fn print_batch(
    path: &Path,
    position: u64,
    batch: &Batch<'_>,
    is_valid: bool,
    out: &mut Output,
) -> Result<(), Failure> {
    let h = batch.header();
    let codec = h.attributes.codec().map_or("unknown", |codec| codec.name());
    let horizon = h.attributes.has_delete_horizon().then_some(h.base_timestamp);
    let last_sequence = sequence(h, h.last_offset_delta.into());
    out.item(
        || {
            let horizon = horizon.map_or("OptionalLong.empty".into(), |ms| format!("OptionalLong[{ms}]"));
            format!(
                "baseOffset: {} lastOffset: {} count: {} baseSequence: {} lastSequence: {last_sequence} \
                 producerId: {} producerEpoch: {} partitionLeaderEpoch: {} isTransactional: {} \
                 isControl: {} deleteHorizonMs: {horizon} position: {position} {}: {} size: {} \
                 magic: 2 compresscodec: {codec} crc: {} isvalid: {is_valid}",
                h.base_offset, h.last_offset(), h.record_count, h.base_sequence,
                h.producer_id, h.producer_epoch, h.leader_epoch,
                h.attributes.is_transactional(), h.attributes.is_control(),
                time_name(h), h.max_timestamp, h.total_bytes(), h.crc,
            )
        },
        || {
            json!({
                "file": path.display().to_string(), "baseOffset": h.base_offset,
                "lastOffset": h.last_offset(), "count": h.record_count,
                "baseSequence": h.base_sequence, "lastSequence": last_sequence,
                "producerId": h.producer_id, "producerEpoch": h.producer_epoch,
                "partitionLeaderEpoch": h.leader_epoch,
                "isTransactional": h.attributes.is_transactional(),
                "isControl": h.attributes.is_control(), "deleteHorizonMs": horizon,
                "position": position, "timestampType": time_name(h),
                "maxTimestamp": h.max_timestamp, "size": h.total_bytes(), "magic": 2,
                "compresscodec": codec, "crc": h.crc, "isvalid": is_valid,
            })
        },
    )?;
    Ok(())
}

/// The outer result is about printing, the inner about the records.
fn print_records(batch: &Batch<'_>, out: &mut Output) -> Result<Result<(), BatchFault>, Failure> {
    let decoded = match batch.decode() {
        Ok(decoded) => decoded,
        Err(fault) => return Ok(Err(fault)),
    };
    for record in decoded.records() {
        match record {
            Ok(record) => print_record(batch.header(), &record, out)?,
            Err(fault) => return Ok(Err(fault)),
        }
    }
    Ok(Ok(()))
}

fn print_record(header: &BatchHeader, r: &Record<'_>, out: &mut Output) -> Result<(), Failure> {
    let size =
        |bytes: Option<&[u8]>| bytes.map_or(-1, |b| i64::try_from(b.len()).unwrap_or(i64::MAX));
    let sequence = sequence(header, r.offset - header.base_offset);
    let control = r.key.filter(|_| header.attributes.is_control()).and_then(ControlType::from_key);
    let control = control.map(|control| match control {
        ControlType::Abort => "ABORT".to_owned(),
        ControlType::Commit => "COMMIT".to_owned(),
        ControlType::Other(other) => format!("UNKNOWN({other})"),
    });
    // Headers that do not parse are told by the check of the batch.
    let headers: Vec<_> = r.headers.map_while(Result::ok).collect();
    out.item(
        || {
            let names: Vec<_> = headers.iter().map(|h| h.key).collect();
            let mut line = format!(
                "| offset: {} {}: {} keySize: {} valueSize: {} sequence: {sequence} headerKeys: [{}]",
                r.offset, time_name(header), r.timestamp, size(r.key), size(r.value), names.join(","),
            );
            match &control {
                Some(control) => line.push_str(&format!(" endTxnMarker: {control}")),
                None => {
                    line.push_str(&format!(" key: {} payload: {}", bytes_text(r.key), bytes_text(r.value)));
                }
            }
            line
        },
        || {
            let headers: Vec<_> = headers
                .iter()
                .map(|h| json!({ "key": h.key, "value": bytes_json(h.value) }))
                .collect();
            json!({
                "offset": r.offset, "timestamp": r.timestamp, "keySize": size(r.key),
                "valueSize": size(r.value), "sequence": sequence, "headers": headers,
                "key": bytes_json(r.key), "value": bytes_json(r.value), "controlType": control,
            })
        },
    )?;
    Ok(())
}
