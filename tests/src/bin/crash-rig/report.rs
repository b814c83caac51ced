//! What a child tells the rig, one line each, through its stdout.

use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::io::Write;

/// Nanoseconds of the monotonic clock, the same in every process.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Today's date (UTC), as `2026-01-31`.
pub(crate) fn today() -> String {
    let days = clock_gettime(ClockId::Realtime).tv_sec.div_euclid(86_400);
    // Howard Hinnant's civil_from_days: years that begin in March, eras of 400 of them.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// How a hole shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HoleKind {
    /// The engine reports damage there.
    Damaged,
    /// A fetch goes on behind it without a word.
    Skipped,
    /// A fetch finds nothing there, as at the end of the log.
    Empty,
}

/// One thing a child has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// Everything below `end` was promised to be on disk, at this time or before.
    Durable { at_ns: u64, partition: u32, end: i64 },
    /// The engine is open.
    Opened { at_ns: u64 },
    /// Records below `before` may go from here on.
    Deleting { partition: u32, before: i64 },
    /// Offsets that cannot be read though the log goes on behind them, and what a fetch said.
    Hole { partition: u32, from: i64, to: i64, how: HoleKind },
    /// A partition was read from `start` to `end`; every record but those in holes was right.
    Range { partition: u32, start: i64, end: i64 },
    /// All partitions were read.
    Checked,
    /// The child gave up.
    Failed { at_ns: u64, why: String },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Durable { at_ns, partition, end } => {
                write!(f, "durable {at_ns} {partition} {end}")
            }
            Event::Opened { at_ns } => write!(f, "opened {at_ns}"),
            Event::Deleting { partition, before } => write!(f, "deleting {partition} {before}"),
            Event::Hole { partition, from, to, how } => {
                write!(f, "hole {partition} {from} {to} {}", *how as u8)
            }
            Event::Range { partition, start, end } => write!(f, "range {partition} {start} {end}"),
            Event::Checked => write!(f, "checked"),
            Event::Failed { at_ns, why } => write!(f, "failed {at_ns} {}", why.replace('\n', " ")),
        }
    }
}

impl Event {
    /// Reads a line. `None` for one that is not whole.
    pub(crate) fn parse(line: &str) -> Option<Event> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "failed" {
            let (at, why) = rest.split_once(' ')?;
            return Some(Event::Failed { at_ns: at.parse().ok()?, why: why.to_owned() });
        }
        let mut numbers = rest.split_ascii_whitespace().map(str::parse::<i64>);
        let mut number = || numbers.next().and_then(Result::ok);
        Some(match word {
            "durable" => Event::Durable {
                at_ns: number()?.cast_unsigned(),
                partition: number()?.try_into().ok()?,
                end: number()?,
            },
            "opened" => Event::Opened { at_ns: number()?.cast_unsigned() },
            "deleting" => {
                Event::Deleting { partition: number()?.try_into().ok()?, before: number()? }
            }
            "hole" => Event::Hole {
                partition: number()?.try_into().ok()?,
                from: number()?,
                to: number()?,
                how: match number()? {
                    0 => HoleKind::Damaged,
                    1 => HoleKind::Skipped,
                    _ => HoleKind::Empty,
                },
            },
            "range" => Event::Range {
                partition: number()?.try_into().ok()?,
                start: number()?,
                end: number()?,
            },
            "checked" => Event::Checked,
            _ => return None,
        })
    }
}

/// Says events in one write. With nobody left to listen the child ends.
pub(crate) fn say(events: &[Event]) {
    let text: String = events.iter().map(|event| format!("{event}\n")).collect();
    if std::io::stdout().lock().write_all(text.as_bytes()).is_err() {
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were_said() {
        let events = [
            Event::Durable { at_ns: 17, partition: 3, end: 40 },
            Event::Opened { at_ns: 1 },
            Event::Deleting { partition: 0, before: 12 },
            Event::Hole { partition: 2, from: 5, to: 9, how: HoleKind::Skipped },
            Event::Range { partition: 1, start: 0, end: 8 },
            Event::Checked,
            Event::Failed { at_ns: 5, why: "no space left".into() },
        ];
        for event in events {
            assert_eq!(Event::parse(&event.to_string()), Some(event));
        }
        assert_eq!(Event::parse("durable 17 3"), None, "cut short");
    }
}
