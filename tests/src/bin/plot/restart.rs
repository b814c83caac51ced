//! How long a restart takes, over the data and over the partitions: two charts, both axes
//! logarithmic.

use crate::{canvas, number};
use serde_json::Value;
use std::fmt::{Error, Write};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
const TOP: f64 = 90.0;
const BOTTOM: f64 = 300.0;
const CHART_WIDTH: f64 = 290.0;
/// Milliseconds at the bottom and at the top of a chart.
const LEAST: f64 = 1.0;
const MOST: f64 = 10_000.0;

/// Key, name and colour of the lines.
const LINES: [(&str, &str, &str); 2] = [
    ("restart_ms", "to the first append and fetch", "#1f6feb"),
    ("all_partitions_ms", "all partitions open", "#d29922"),
];

struct Chart<'a> {
    left: f64,
    title: &'a str,
    key: &'a str,
    label: fn(f64) -> String,
}

pub(crate) fn draw(runs: &[Value]) -> Result<String, Error> {
    let below = "medians; killed in the middle of appends of 16 KiB, class written; replay_bytes_max as it comes";
    let mut svg = canvas(WIDTH, HEIGHT, "Restart after kill -9, milliseconds", below);
    let one_partition = |run: &&Value| number(run, "partitions") <= 1.0;
    let by_bytes: Vec<&Value> = runs.iter().filter(one_partition).collect();
    // The runs over partitions all have the amount of data that the widest of them has.
    let widest =
        runs.iter().max_by(|a, b| number(a, "partitions").total_cmp(&number(b, "partitions")));
    let bytes = widest.map_or(0.0, |run| number(run, "bytes"));
    let same_bytes = |run: &&Value| (number(run, "bytes") - bytes).abs() < 1.0;
    let by_partitions: Vec<&Value> = runs.iter().filter(same_bytes).collect();
    let gigabytes = |bytes: f64| format!("{:.0} GiB", bytes / f64::from(1 << 30));
    let count = |partitions: f64| format!("{partitions:.0}");
    let title = format!("over partitions ({} in all)", gigabytes(bytes));
    let charts = [
        (
            Chart { left: 60.0, title: "over data (1 partition)", key: "bytes", label: gigabytes },
            by_bytes,
        ),
        (Chart { left: 430.0, title: &title, key: "partitions", label: count }, by_partitions),
    ];
    for (chart, mut runs) in charts {
        runs.sort_by(|a, b| number(a, chart.key).total_cmp(&number(b, chart.key)));
        chart.draw(&runs, &mut svg)?;
    }
    for (i, (_, name, colour)) in LINES.into_iter().enumerate() {
        let x = 60.0 + 260.0 * i as f64;
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"336\" width=\"14\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"346\" fill=\"#333\">{name}</text>",
            x + 20.0
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

impl Chart<'_> {
    fn draw(&self, runs: &[&Value], svg: &mut String) -> Result<(), Error> {
        let (left, right) = (self.left, self.left + CHART_WIDTH);
        writeln!(svg, "<text x=\"{left}\" y=\"76\" fill=\"#111\">{}</text>", self.title)?;
        for power in 0..=4 {
            let ms = 10_f64.powi(power);
            let y = height_of(ms);
            writeln!(
                svg,
                "<line x1=\"{left}\" y1=\"{y}\" x2=\"{right}\" y2=\"{y}\" stroke=\"#e3e8ee\"/>\
                 <text x=\"{}\" y=\"{}\" fill=\"#777\" text-anchor=\"end\">{ms}</text>",
                left - 6.0,
                y + 4.0
            )?;
        }
        let least = runs.first().map_or(1.0, |run| number(run, self.key)).max(1.0);
        let most = runs.last().map_or(1.0, |run| number(run, self.key)).max(least * 2.0);
        let x_of = |run: &Value| {
            let share = (number(run, self.key).max(1.0) / least).ln() / (most / least).ln();
            left + 25.0 + (CHART_WIDTH - 60.0) * share
        };
        for run in runs {
            let label = (self.label)(number(run, self.key));
            writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" fill=\"#333\" text-anchor=\"middle\">{label}</text>",
                x_of(run),
                BOTTOM + 18.0
            )?;
        }
        for (key, _, colour) in LINES {
            let points: Vec<(f64, f64, f64)> = runs
                .iter()
                .map(|run| (x_of(run), height_of(number(run, key)), number(run, key)))
                .collect();
            let line: Vec<String> =
                points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
            writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                line.join(" ")
            )?;
            for (x, y, ms) in points {
                writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>\
                     <text x=\"{x:.1}\" y=\"{:.1}\" fill=\"{colour}\" text-anchor=\"middle\">{ms:.0}</text>",
                    y - 8.0
                )?;
            }
        }
        Ok(())
    }
}

fn height_of(ms: f64) -> f64 {
    let share = (ms.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln();
    BOTTOM - (BOTTOM - TOP) * share
}
