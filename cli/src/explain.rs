//! `loglane explain`: why each segment of a partition is still here, and when it goes.

#![forbid(unsafe_code)]

use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::{Output, bytes_human};
use clap::Args;
use loglane::{Error, Explanation, KeptBy, Pin, SegmentExplanation, TopicPartition, View};
use serde_json::{Value, json};
use std::io::Write;

#[derive(Args)]
pub(crate) struct Explain {
    /// A topic, or one partition of it
    #[arg(value_name = "TOPIC[:PARTITION]", value_parser = target)]
    target: (String, Option<u32>),
}

fn target(text: &str) -> Result<(String, Option<u32>), String> {
    let (topic, partition) = match text.split_once(':') {
        None => (text, None),
        Some((topic, number)) => {
            let number = number.parse().map_err(|_| format!("{number:?} is not a partition"))?;
            (topic, Some(number))
        }
    };
    match TopicPartition::new(topic, partition.unwrap_or(0)) {
        Ok(_) => Ok((topic.to_owned(), partition)),
        Err(Error::TopicName { reason, .. }) => Err(reason.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Explain {
    pub(crate) fn run(self, global: &Global, out: &mut Output) -> Result<Exit, Failure> {
        let (topic, number) = &self.target;
        let wanted = |name: &TopicPartition| {
            name.topic() == topic && number.is_none_or(|number| name.partition() == number)
        };
        let view = View::open_only(global.data_dir()?, wanted)?;
        if view.partitions().is_empty() {
            let what = match number {
                Some(number) => format!("partition {topic}-{number}"),
                None => format!("topic {topic}"),
            };
            return Err(Error::NotFound { what }.into());
        }
        for partition in view.partitions().values() {
            let explanation = partition.explain()?;
            match out.json {
                true => out.object(&object(&explanation))?,
                false => table(&explanation, partition.stored_settings().is_empty(), out)?,
            }
        }
        Ok(Exit::Done)
    }
}

fn object(explanation: &Explanation) -> Value {
    let segments: Vec<Value> = explanation.segments.iter().map(segment_object).collect();
    let pins: Vec<Value> = explanation.pins.iter().map(pin_object).collect();
    let config = &explanation.config;
    json!({
        "topic": explanation.partition.topic(), "partition": explanation.partition.partition(),
        "now_ms": explanation.now_ms, "bytes": explanation.bytes,
        "log_start_offset": explanation.log_start_offset.0,
        "high_watermark": explanation.high_watermark.0,
        "log_end_offset": explanation.log_end_offset.0,
        "retention_ms": config.retention_ms, "retention_bytes": config.retention_bytes,
        "retention_records": config.retention_records,
        "retention_clock": config.retention_clock.name(),
        "pins": pins, "segments": segments,
    })
}

fn segment_object(segment: &SegmentExplanation) -> Value {
    let kept_by: Vec<Value> = segment
        .kept_by
        .iter()
        .map(|kept_by| {
            let mut object = json!({ "why": kept_by.name(), "text": text(kept_by) });
            if let (KeptBy::Pin(pin), Some(map)) = (kept_by, object.as_object_mut()) {
                map.insert("pin".into(), pin_object(pin));
            }
            object
        })
        .collect();
    json!({
        "base_offset": segment.base_offset.0, "end_offset": segment.end_offset.0,
        "bytes": segment.bytes, "largest_timestamp": segment.largest_timestamp,
        "last_append_ms": segment.last_append_ms, "goes_at_ms": segment.goes_at_ms,
        "kept_by": kept_by,
    })
}

fn pin_object(pin: &Pin) -> Value {
    json!({
        "id": pin.id.0, "owner": pin.owner, "reason": pin.reason, "offset": pin.offset.0,
        "created_ms": pin.created_ms, "expires_ms": pin.expires_ms,
    })
}

fn table(explanation: &Explanation, defaults: bool, out: &mut Output) -> Result<(), Failure> {
    let config = &explanation.config;
    let limit = |limit: Option<u64>| limit.map_or("none".to_owned(), |limit| limit.to_string());
    writeln!(
        out,
        "partition {}: offsets={}..{} high-watermark={} segments={} bytes={} ({}) retention_ms={} \
         retention_bytes={} retention_records={} retention_clock={}",
        explanation.partition,
        explanation.log_start_offset,
        explanation.log_end_offset,
        explanation.high_watermark,
        explanation.segments.len(),
        explanation.bytes,
        bytes_human(explanation.bytes),
        limit(config.retention_ms),
        limit(config.retention_bytes),
        limit(config.retention_records),
        config.retention_clock.name(),
    )?;
    if defaults {
        writeln!(
            out,
            "  these are defaults: nothing is stored of this topic, its writer may have others"
        )?;
    }
    let heads =
        ["base", "end", "bytes", "newest record", "last append", "goes at", "why it is here"];
    let mut rows = vec![heads.map(str::to_owned)];
    for segment in &explanation.segments {
        let why: Vec<String> = segment.kept_by.iter().map(text).collect();
        let goes = segment.goes_at_ms.map(|at| match at <= explanation.now_ms {
            true => "next round".to_owned(),
            false => time(at),
        });
        rows.push([
            segment.base_offset.to_string(),
            segment.end_offset.to_string(),
            segment.bytes.to_string(),
            segment.largest_timestamp.map_or("-".into(), time),
            segment.last_append_ms.map_or("-".into(), time),
            goes.unwrap_or("-".into()),
            why.join("; "),
        ]);
    }
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!(" {cell:<width$} "));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// What keeps a segment, with times for people.
fn text(kept_by: &KeptBy) -> String {
    let text = kept_by.to_string();
    let at = match kept_by {
        KeptBy::NotYetOld(at) => Some(*at),
        KeptBy::Pin(pin) => pin.expires_ms,
        _ => None,
    };
    match at.map(|at| (text.strip_suffix(&at.to_string()), at)) {
        Some((Some(before), at)) => format!("{before}{}", time(at)),
        _ => text,
    }
}

/// Unix ms as a UTC time.
fn time(ms: i64) -> String {
    let (days, in_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Past this the year has more than four digits, and nobody means it.
    if !(-719_162..=2_932_896).contains(&days) {
        return format!("{ms} ms");
    }
    let (mut year, mut day) = (1970, days);
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    while day < 0 {
        year -= 1;
        day += 365 + i64::from(leap(year));
    }
    while day >= 365 + i64::from(leap(year)) {
        day -= 365 + i64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (hour, minute, second) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1000 % 60);
    format!("{year:04}-{month:02}-{:02} {hour:02}:{minute:02}:{second:02}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (ms, expected) in [
            (0, "1970-01-01 00:00:00Z"),
            (-1, "1969-12-31 23:59:59Z"),
            (951_782_400_000, "2000-02-29 00:00:00Z"),
            (1_767_225_600_000, "2026-01-01 00:00:00Z"),
            (1_709_251_199_999, "2024-02-29 23:59:59Z"),
            (253_402_300_799_000, "9999-12-31 23:59:59Z"),
        ] {
            assert_eq!(time(ms), expected);
        }
        assert_eq!(time(i64::MAX), format!("{} ms", i64::MAX));
        assert_eq!(time(i64::MIN), format!("{} ms", i64::MIN));
    }

    #[test]
    fn a_partition_is_named_behind_a_colon() {
        assert_eq!(target("a.b:3").unwrap(), ("a.b".to_owned(), Some(3)));
        assert_eq!(target("a").unwrap(), ("a".to_owned(), None));
        for bad in ["a:", ":1", "a:x", "a/b", ""] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }
}
