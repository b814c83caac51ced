//! Cuts the power under a running engine, again and again, and compares what a recovery finds with
//! what was acknowledged.
//!
//! - `crash-rig shutdown`: ext4 or xfs on a loop device, shut down by the file system's own ioctl.
//!   The file system loses what its log had not taken. It may acknowledge falsely from then on, so
//!   only what was acknowledged before counts.
//! - `crash-rig volatile`: the same on a disk with a volatile write cache, of which a cut keeps a
//!   random subset; now and then it answers with errors first.
//!
//! `--plant ack-before-sync` makes the writer report what is only in the page cache as durable: a
//! rig that does not see that sees nothing.

mod child;
mod disk;
mod kernel;
mod load;
mod random;
mod report;
mod rounds;
mod volatile;

use crate::disk::{Disk, FileSystem};
use crate::load::Outcome;
use crate::report::{Event, now_ns, say};
use crate::rounds::Rounds;
use rustix::mount::MountFlags;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: crash-rig shutdown|volatile --fs ext4|xfs [--cuts N] [--seed S] \
                     [--plant ack-before-sync] [--dir DIR]";
const PROGRESS: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["write", dir, seed, flags @ ..] => child_role(|| {
            load::write(Path::new(dir), seed.parse()?, flags.contains(&"ack-before-sync"))
        }),
        ["check", dir, seed, flags @ ..] => {
            child_role(|| load::check(Path::new(dir), seed.parse()?, flags.contains(&"close")))
        }
        _ => match Rig::parse(&words).and_then(|rig| rig.run()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("crash-rig: {error}");
                ExitCode::from(2)
            }
        },
    }
}

/// A child says why it fails, and never outlives the rig.
fn child_role(role: impl FnOnce() -> Outcome<()>) -> ExitCode {
    let result = rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(Into::into)
        .and_then(|()| role());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&[Event::Failed { at_ns: now_ns(), why: error.to_string() }]);
            ExitCode::FAILURE
        }
    }
}

struct Rig {
    is_volatile: bool,
    file_system: FileSystem,
    cuts: u64,
    seed: u64,
    ack_before_sync: bool,
    dir: PathBuf,
}

impl Rig {
    fn parse(words: &[&str]) -> Outcome<Rig> {
        let (name, mut rest) = words.split_first().ok_or(USAGE)?;
        let is_volatile = match *name {
            "shutdown" => false,
            "volatile" => true,
            _ => return Err(USAGE.into()),
        };
        let mut rig = Rig {
            is_volatile,
            file_system: FileSystem::Ext4,
            cuts: 100,
            seed: now_ns(),
            ack_before_sync: false,
            dir: "target/crash".into(),
        };
        while let [name, value, others @ ..] = rest {
            match (*name, *value) {
                ("--fs", "ext4") => rig.file_system = FileSystem::Ext4,
                ("--fs", "xfs") => rig.file_system = FileSystem::Xfs,
                ("--cuts", cuts) => rig.cuts = cuts.parse()?,
                ("--seed", seed) => rig.seed = seed.parse()?,
                ("--plant", "ack-before-sync") => rig.ack_before_sync = true,
                ("--dir", dir) => rig.dir = dir.into(),
                _ => return Err(USAGE.into()),
            }
            rest = others;
        }
        if rest.is_empty() { Ok(rig) } else { Err(USAGE.into()) }
    }

    fn name(&self) -> &'static str {
        if self.is_volatile { "volatile" } else { "shutdown" }
    }

    /// True if nothing was lost and offsets are dense.
    fn run(&self) -> Outcome<bool> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounts need root; run it with sudo".into());
        }
        kernel::enter_own_mount_namespace()?;
        std::fs::create_dir_all(&self.dir)?;
        let place = self.dir.join("mounts");
        std::fs::create_dir_all(&place)?;
        let place = place.canonicalize()?;
        rustix::mount::mount("crash-rig", &place, "tmpfs", MountFlags::empty(), None)?;
        let disk = Disk::new(self.file_system, self.is_volatile, &place)?;
        let mut rounds = Rounds::new(disk, self.seed, self.ack_before_sync);
        let started = Instant::now();
        let mut told = started;
        let mut trouble = None;
        while rounds.sums.cuts < self.cuts && trouble.is_none() {
            let gaps_before = rounds.sums.gaps;
            match rounds.round() {
                // The first is worth a look; the rest is counted.
                Ok(Some(gaps)) if gaps_before == 0 => self.tell_trouble(&rounds, &gaps),
                Ok(_) => {}
                Err(error) => trouble = Some(error.to_string()),
            }
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                self.tell(&rounds);
            }
        }
        if let Some(trouble) = &trouble {
            self.tell_trouble(&rounds, trouble);
        }
        let is_good = trouble.is_none() && rounds.sums.gaps == 0;
        println!("{}", self.summary(&rounds, started.elapsed(), is_good));
        Ok(is_good)
    }

    fn tell(&self, rounds: &Rounds) {
        let (sums, file_system) = (&rounds.sums, self.file_system.name());
        eprintln!(
            "{} {file_system}: {} of {} cuts, {} records acknowledged, {} lost, {} gaps",
            self.name(),
            sums.cuts,
            self.cuts,
            sums.acked_records,
            sums.lost,
            sums.gaps
        );
    }

    fn tell_trouble(&self, rounds: &Rounds, trouble: &str) {
        let (name, file_system, seed) = (self.name(), self.file_system.name(), self.seed);
        let cut = rounds.sums.cuts;
        eprintln!("{name} {file_system}: seed {seed}, cut {cut}: {trouble}");
        eprintln!(
            "the same decisions at other instants, so run it more than once: \
             crash-rig {name} --fs {file_system} --seed {seed} --cuts {}",
            self.cuts
        );
        let image = self.dir.join(format!("{name}-{file_system}-{seed}-{cut}.img"));
        match rounds.disk().keep(&image) {
            Ok(()) => eprintln!(
                "the disk as that cut left it: mount -o loop {} /mnt; the logs are in log/",
                image.display()
            ),
            Err(error) => eprintln!("the image could not be kept: {error}"),
        }
    }

    fn summary(&self, rounds: &Rounds, took: Duration, is_good: bool) -> serde_json::Value {
        let sums = &rounds.sums;
        serde_json::json!({
            "rig": self.name(),
            "fs": self.file_system.name(),
            "cuts": sums.cuts,
            "cuts_in_recovery": sums.cuts_in_recovery,
            "kills_without_cut": sums.kills_without_cut,
            "disk_errors": sums.disk_errors,
            "flushes": rounds.disk().cache().map(|cache| cache.flushes()),
            "acked_records": sums.acked_records,
            "lost": sums.lost,
            "gaps": sums.gaps,
            "gaps_before_records": sums.gaps_before_records,
            "ok": is_good,
            "seconds": took.as_secs(),
            "seed": self.seed,
            "date": report::today(),
        })
    }
}
