//! The `loglane` program: one file for each command, no engine logic of its own.
//!
//! Results go to stdout, everything else to stderr; a pipe that closes ends the program quietly.

#![forbid(unsafe_code)]

mod bench;
mod compact;
mod consume;
mod doctor;
mod dump;
mod explain;
mod failure;
mod groups;
mod output;
mod partitioner;
mod produce;
mod progress;
mod recover;
mod retain;
mod settings;
mod stop;
mod topics;
mod verify;

use clap::{Args, Parser, Subcommand};
use failure::{Exit, Failure};
use loglane::Config;
use output::Output;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the command failed; stderr says why and what to do
  2  wrong usage
  3  damage was found (dump, verify, consume)

Environment:
  LOGLANE_DIR      the data directory, when --dir is not given
  LOGLANE_BACKEND  auto, io_uring or plain: how the engine talks to the disk
  RUST_LOG         log lines of the engine on stderr, e.g. debug; default warn";

/// Partitioned append-only logs in Kafka's own file format: write, read, inspect and check them.
#[derive(Parser)]
#[command(name = "loglane", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// The data directory: a Kafka log directory
    #[arg(long, global = true, env = "LOGLANE_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON: one object a line for each item
    #[arg(long, global = true)]
    json: bool,
    /// Print nothing but results: no summary, no progress
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Create, list, describe, alter and delete topics
    #[command(subcommand, after_help = EXIT_CODES)]
    Topics(topics::Topics),
    /// Append a record for each line of stdin
    #[command(after_help = EXIT_CODES)]
    Produce(produce::Produce),
    /// Print records; works while another process writes
    #[command(after_help = EXIT_CODES)]
    Consume(consume::Consume),
    /// List, describe, reset and delete consumer groups
    #[command(subcommand, after_help = EXIT_CODES)]
    Groups(groups::Groups),
    /// Show what is in files of a log, as Kafka's DumpLogSegments does
    #[command(after_help = EXIT_CODES)]
    Dump(dump::Dump),
    /// Check every byte of a data directory; changes nothing
    #[command(after_help = EXIT_CODES)]
    Verify(verify::Verify),
    /// Say why each segment of a partition is still here, and when it goes; works while another process
    /// writes
    #[command(after_help = EXIT_CODES)]
    Explain(explain::Explain),
    /// Delete now what the stored settings of topics say may go
    #[command(after_help = EXIT_CODES)]
    Retain(retain::Retain),
    /// Make a directory that was killed a plain Kafka directory again
    #[command(after_help = EXIT_CODES)]
    Recover(recover::Recover),
    /// Compact a topic by key now: of each key the newest record stays
    #[command(after_help = EXIT_CODES)]
    Compact(compact::Compact),
    /// Look at machine, file system and directory, and say what could be better
    #[command(after_help = EXIT_CODES)]
    Doctor(doctor::Doctor),
    /// Measure the engine beside the bare limit of the machine
    #[command(subcommand, after_help = EXIT_CODES)]
    Bench(bench::Bench),
}

impl Global {
    /// The data directory, which most commands need.
    fn data_dir(&self) -> Result<PathBuf, Failure> {
        self.dir.clone().ok_or_else(|| {
            let what = "no data directory was given";
            Failure::usage(what, "name it with --dir DIR, or set LOGLANE_DIR")
        })
    }
}

/// What commands open a directory with. A command deletes what it was asked to delete, nothing else.
fn config(dir: impl Into<PathBuf>) -> Config {
    let mut config = Config::new(dir);
    config.retention_check_interval_ms = 0;
    config
}

/// For commands that do delete what is too old: topics of which nothing is stored keep all they have.
fn stored_settings_only(mut config: Config) -> Config {
    config.partition.retention_ms = None;
    config
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log();
    let mut out = Output::new(cli.global.json);
    let global = &cli.global;
    let result = match cli.command {
        Command::Topics(command) => command.run(global, &mut out),
        Command::Produce(command) => command.run(global, &mut out),
        Command::Consume(command) => command.run(global, &mut out),
        Command::Groups(command) => command.run(global, &mut out),
        Command::Dump(command) => command.run(global, &mut out),
        Command::Verify(command) => command.run(global, &mut out),
        Command::Explain(command) => command.run(global, &mut out),
        Command::Retain(command) => command.run(global, &mut out),
        Command::Recover(command) => command.run(global, &mut out),
        Command::Compact(command) => command.run(global, &mut out),
        Command::Doctor(command) => command.run(global, &mut out),
        Command::Bench(command) => command.run(global, &mut out),
    };
    // What was found before a failure is still worth printing, and stands before its message.
    let flushed = out.flush().map_err(Failure::from);
    match result.and_then(|exit| flushed.map(|()| exit)) {
        Ok(exit) => exit.code(),
        Err(failure) => failure.report(),
    }
}

/// The engine's log lines go to stderr; what the commands report themselves is not logged twice.
fn start_log() {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Reads the exit status of a command that meets damage.
fn exit_for(damaged: bool) -> Exit {
    if damaged { Exit::Damage } else { Exit::Done }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        super::Cli::command().debug_assert();
    }
}
