//! The small files: producer snapshots, transaction indexes, checkpoints, partition.metadata.

#![forbid(unsafe_code)]

use crate::failure::Failure;
use crate::output::Output;
use loglane::{inspect, topic_id_text};
use serde_json::json;
use std::path::Path;

pub(super) fn producers(path: &Path, out: &mut Output) -> Result<bool, Failure> {
    for p in inspect::producer_snapshot(path)? {
        out.item(
            || {
                format!(
                    "producerId: {} producerEpoch: {} coordinatorEpoch: {} currentTxnFirstOffset: {} \
                     lastTimestamp: {} lastSequence: {} lastOffset: {} offsetDelta: {}",
                    p.producer_id, p.producer_epoch, p.coordinator_epoch,
                    p.transaction_first_offset, p.timestamp, p.last_sequence, p.last_offset,
                    p.offset_delta
                )
            },
            || {
                json!({ "producerId": p.producer_id, "producerEpoch": p.producer_epoch,
                "coordinatorEpoch": p.coordinator_epoch,
                "currentTxnFirstOffset": p.transaction_first_offset,
                "lastTimestamp": p.timestamp, "lastSequence": p.last_sequence,
                "lastOffset": p.last_offset, "offsetDelta": p.offset_delta })
            },
        )?;
    }
    Ok(false)
}

pub(super) fn transactions(path: &Path, out: &mut Output) -> Result<bool, Failure> {
    for t in inspect::aborted_transactions(path)? {
        out.item(
            || {
                format!(
                    "version: 0 producerId: {} firstOffset: {} lastOffset: {} lastStableOffset: {}",
                    t.producer_id, t.first_offset, t.last_offset, t.last_stable_offset
                )
            },
            || {
                json!({ "producerId": t.producer_id, "firstOffset": t.first_offset,
                "lastOffset": t.last_offset, "lastStableOffset": t.last_stable_offset })
            },
        )?;
    }
    Ok(false)
}

pub(super) fn epochs(path: &Path, out: &mut Output) -> Result<bool, Failure> {
    for (epoch, start) in inspect::leader_epochs(path.parent().unwrap_or(Path::new(".")))? {
        out.item(
            || format!("epoch: {} startOffset: {}", epoch.0, start.0),
            || json!({ "epoch": epoch.0, "startOffset": start.0 }),
        )?;
    }
    Ok(false)
}

pub(super) fn offsets(path: &Path, out: &mut Output) -> Result<bool, Failure> {
    for (partition, offset) in inspect::offset_checkpoint(path)? {
        let (topic, number) = (partition.topic(), partition.partition());
        out.item(
            || format!("topic: {topic} partition: {number} offset: {}", offset.0),
            || json!({ "topic": topic, "partition": number, "offset": offset.0 }),
        )?;
    }
    Ok(false)
}

pub(super) fn metadata(path: &Path, out: &mut Output) -> Result<bool, Failure> {
    if let Some(id) = inspect::topic_id(path.parent().unwrap_or(Path::new(".")))? {
        let id = topic_id_text(id);
        out.item(|| format!("topicId: {id}"), || json!({ "topicId": id }))?;
    }
    Ok(false)
}
