//! A bar of the engine and one of the machine's bare limit, for each run.

use crate::{canvas, number};
use serde_json::Value;
use std::fmt::{Error, Write};

const WIDTH: f64 = 760.0;
const LABELS: f64 = 250.0;
const ROW: f64 = 62.0;
const TOP: f64 = 56.0;

pub(crate) fn draw(runs: &[Value]) -> Result<String, Error> {
    let largest = runs
        .iter()
        .flat_map(|run| [number(run, "bytes_per_s"), number(run, "limit_bytes_per_s")])
        .fold(1.0, f64::max);
    let height = TOP + ROW * runs.len() as f64 + 30.0;
    let mut svg = canvas(
        WIDTH,
        height,
        "Engine and bare limit, same run, GB/s",
        "16 KiB batches of 1 KiB records; medians of alternating rounds",
    );
    for (i, run) in runs.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        writeln!(svg, "<text x=\"16\" y=\"{}\" fill=\"#111\">{}</text>", y + 24.0, label(run))?;
        writeln!(
            svg,
            "<text x=\"16\" y=\"{}\" fill=\"#555\">ratio {:.2}, {:.2} CPU s/GB</text>",
            y + 41.0,
            number(run, "ratio"),
            number(run, "cpu_s_per_gb")
        )?;
        let bars =
            [("bytes_per_s", "engine", "#1f6feb"), ("limit_bytes_per_s", "limit", "#b8c4d0")];
        for (at, (key, name, colour)) in bars.into_iter().enumerate() {
            let value = number(run, key);
            let (top, width) =
                (y + 10.0 + 20.0 * at as f64, (WIDTH - LABELS - 130.0) * value / largest);
            writeln!(
                svg,
                "<rect x=\"{LABELS}\" y=\"{top}\" width=\"{width:.1}\" height=\"17\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" fill=\"#333\">{:.2} {name}</text>",
                LABELS + width + 6.0,
                top + 13.0,
                value / 1e9
            )?;
        }
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn label(run: &Value) -> String {
    let text = |key: &str| run.get(key).and_then(Value::as_str).unwrap_or("");
    match run.get("partitions").and_then(Value::as_u64) {
        Some(1) => format!("append, {}, 1 partition", text("class")),
        Some(count) => format!("append, {}, {count} partitions", text("class")),
        None => format!("fetch by {} to TCP", text("mode")),
    }
}
