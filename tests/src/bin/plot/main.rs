//! Draws the output of `loglane bench --json`, one object a line on stdin, as an SVG on stdout:
//! `plot bars` for append and fetch beside the bare limit, `plot restart` for how a restart grows,
//! `plot seconds` for a run of a minute, second by second.

mod bars;
mod restart;
mod seconds;

use serde_json::Value;
use std::error::Error;
use std::io::Read;

fn main() -> Result<(), Box<dyn Error>> {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input)?;
    let runs = input.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let svg = match std::env::args().nth(1).as_deref() {
        Some("bars") => bars::draw(&runs)?,
        Some("restart") => restart::draw(&runs)?,
        Some("seconds") => seconds::draw(&runs)?,
        _ => return Err("usage: plot bars|restart|seconds <runs.jsonl >image.svg".into()),
    };
    print!("{svg}");
    Ok(())
}

/// A number of a run; 0 if it has none under that name.
fn number(run: &Value, key: &str) -> f64 {
    run.get(key).and_then(Value::as_f64).unwrap_or(0.0)
}

/// The opening of a picture: white, with a title and a line below it.
fn canvas(width: f64, height: f64, title: &str, below: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"16\" fill=\"#111\">{title}</text>\n\
         <text x=\"16\" y=\"43\" fill=\"#555\">{below}</text>\n"
    )
}
