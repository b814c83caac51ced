//! A run without a pause: what each of its seconds did.

use crate::{canvas, number};
use serde_json::Value;
use std::fmt::{Error, Write};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 260.0;

pub(crate) fn draw(runs: &[Value]) -> Result<String, Error> {
    let Some(run) = runs.first() else { return Ok(String::new()) };
    let seconds: Vec<f64> = run
        .get("per_second_bytes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_f64)
        .collect();
    let mean = number(run, "sustained_bytes_per_s");
    let most = seconds.iter().copied().fold(mean, f64::max).max(1.0);
    let below = format!(
        "16 KiB batches, {} in flight, segments written back meanwhile; slowest second {:.2} of the mean",
        number(run, "in_flight"),
        number(run, "slowest_second_ratio")
    );
    let mut svg = canvas(WIDTH, HEIGHT, "Durable appends, MB/s, second by second", &below);
    let y_of = |bytes: f64| BOTTOM - (BOTTOM - TOP) * bytes / most;
    let width = (WIDTH - LEFT - 20.0) / seconds.len().max(1) as f64;
    for (i, bytes) in seconds.iter().enumerate() {
        let (x, y) = (LEFT + width * i as f64, y_of(*bytes));
        writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#1f6feb\"/>",
            width * 0.8,
            BOTTOM - y
        )?;
    }
    for (bytes, name) in [(mean, "mean"), (mean / 2.0, "half")] {
        let y = y_of(bytes);
        writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#d29922\"/>\
             <text x=\"{}\" y=\"{:.1}\" fill=\"#333\" text-anchor=\"end\">{:.0}</text>\
             <text x=\"{LEFT}\" y=\"{:.1}\" fill=\"#333\">{name}</text>",
            WIDTH - 20.0,
            LEFT - 6.0,
            y + 4.0,
            bytes / 1e6,
            y - 4.0
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}
