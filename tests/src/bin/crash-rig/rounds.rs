//! Rounds of: write, cut, come back, compare.

use crate::child::{Child, Next};
use crate::disk::Disk;
use crate::load::Outcome;
use crate::random::Random;
use crate::report::{Event, HoleKind, now_ns};
use crate::volatile::Health;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Cuts on one image, then a fresh one: creation is hit too, and a round stays short.
const CUTS_PER_IMAGE: u64 = 40;
/// A child that says nothing for so long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What the rig holds the engine to, for one partition.
#[derive(Clone, Copy, Default, Debug)]
struct Promise {
    /// Everything below was acknowledged as durable before a cut.
    acked: i64,
    /// The log ended here when a recovery had made all of it durable.
    recovered: i64,
    /// Records below this may be gone: somebody asked for their deletion.
    deleted: i64,
}

/// What a recovered partition has.
#[derive(Clone, Default, Debug)]
struct Found {
    start: i64,
    end: i64,
    holes: Vec<(i64, i64, HoleKind)>,
}

/// Sums over all rounds.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Sums {
    pub(crate) cuts: u64,
    /// Of these, during a recovery.
    pub(crate) cuts_in_recovery: u64,
    pub(crate) kills_without_cut: u64,
    pub(crate) disk_errors: u64,
    pub(crate) acked_records: u64,
    pub(crate) lost: u64,
    /// Holes between records that were never acknowledged as durable: nothing promised is gone, but
    /// offsets are not dense.
    pub(crate) gaps: u64,
    /// Of these, with records behind them; behind the others the log only says that it goes on.
    pub(crate) gaps_before_records: u64,
}

pub(crate) struct Rounds {
    disk: Disk,
    random: Random,
    writer_flags: Vec<&'static str>,
    promises: BTreeMap<u32, Promise>,
    cuts_on_image: u64,
    /// How the disk has answered with errors in this round.
    sick: Option<Health>,
    pub(crate) sums: Sums,
}

impl Rounds {
    pub(crate) fn new(disk: Disk, seed: u64, ack_before_sync: bool) -> Rounds {
        let writer_flags = if ack_before_sync { vec!["ack-before-sync"] } else { vec![] };
        Rounds {
            disk,
            random: Random::new(seed),
            writer_flags,
            promises: BTreeMap::new(),
            cuts_on_image: 0,
            sick: None,
            sums: Sums::default(),
        }
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// One round, with at least one cut. An error is a loss, a refusal of the engine, or trouble of
    /// the rig itself; the text says which. What is returned tells of gaps, after which rounds go on.
    pub(crate) fn round(&mut self) -> Outcome<Option<String>> {
        if self.sums.cuts == 0 || self.cuts_on_image >= CUTS_PER_IMAGE {
            self.fresh()?;
        }
        self.sick = None;
        if self.random.one_in(8) {
            // What the killed process wrote is in the page cache only; the recovery that takes it
            // for part of the log must make it durable before it says so.
            self.write(false)?;
            self.sums.kills_without_cut += 1;
            self.interrupt_recovery(true)?;
        } else {
            self.write(true)?;
            if self.random.one_in(6) {
                let with_cut = self.random.one_in(2);
                self.interrupt_recovery(with_cut)?;
            }
        }
        let gaps = self.verify()?;
        // A file system that met errors may refuse the next cuts for reasons of its own; a gap would
        // be met again and again.
        if self.sick.is_some() || gaps.is_some() {
            self.cuts_on_image = CUTS_PER_IMAGE;
        }
        Ok(gaps)
    }

    fn fresh(&mut self) -> Outcome<()> {
        self.disk.format()?;
        self.disk.mount()?;
        self.promises.clear();
        self.cuts_on_image = 0;
        Ok(())
    }

    /// Lets a writer run for a while and cuts or only kills it.
    fn write(&mut self, with_cut: bool) -> Outcome<()> {
        let writer = self.start("write", &self.writer_flags.clone())?;
        let mut heard = Vec::new();
        // Now and then while it opens and creates; else some time after the first acknowledgement.
        let mut cut_at = match self.random.one_in(8) {
            true => Some(Instant::now() + self.micros(0, 15_000)),
            false => None,
        };
        let silent_at = Instant::now() + SILENCE_MAX;
        let mut is_open = false;
        let mut sick_at = None;
        let may_sicken = self.disk.cache().is_some() && with_cut && self.random.one_in(8);
        loop {
            match writer.next(sick_at.or(cut_at).unwrap_or(silent_at)) {
                Next::Event(event) => {
                    let first_ack = is_open && matches!(event, Event::Durable { .. });
                    is_open |= matches!(event, Event::Opened { .. });
                    if first_ack && cut_at.is_none() {
                        let at = Instant::now() + self.micros(5_000, 60_000);
                        cut_at = Some(at);
                        sick_at = may_sicken.then(|| at - self.micros(1_000, 30_000));
                    }
                    heard.push(event);
                }
                Next::Late if sick_at.is_some() => {
                    self.sicken();
                    sick_at = None;
                }
                Next::Late if cut_at.is_some() => break,
                Next::Late => return Err("the writer said nothing for a minute".into()),
                Next::Ended => break,
            }
        }
        let ended_early = cut_at.is_none_or(|at| Instant::now() < at);
        let cut_ns = self.end(writer, with_cut, &mut heard)?;
        self.promised(&heard, cut_ns, true)?;
        match ended_early && self.sick.is_none() {
            true => Err("the writer ended before the cut; its stderr says why".into()),
            false => Ok(()),
        }
    }

    /// Kills a recovery on its way, with or without a cut.
    fn interrupt_recovery(&mut self, with_cut: bool) -> Outcome<()> {
        let child = self.start("check", &[])?;
        let at = Instant::now() + self.micros(500, 15_000);
        let mut heard = Vec::new();
        while let Next::Event(event) = child.next(at) {
            heard.push(event);
        }
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        let cut_ns = self.end(child, with_cut, &mut heard)?;
        self.sums.cuts_in_recovery += u64::from(with_cut);
        self.promised(&heard, cut_ns, false)
    }

    /// Cuts if asked to, kills the child, and brings the disk back. Returns when the cut began; what
    /// a child says from then on counts for nothing.
    fn end(&mut self, child: Child, with_cut: bool, heard: &mut Vec<Event>) -> Outcome<u64> {
        let mut cut_ns = u64::MAX;
        if with_cut {
            cut_ns = now_ns();
            self.disk.cut(&mut self.random)?;
            self.sums.cuts += 1;
            self.cuts_on_image += 1;
        }
        heard.extend(child.kill()?);
        if with_cut {
            self.disk.come_back(&mut self.random)?;
        }
        Ok(cut_ns)
    }

    fn sicken(&mut self) {
        let health = match self.random.one_in(2) {
            true => Health::RefusesFlushes,
            false => Health::RefusesWrites,
        };
        if let Some(cache) = self.disk.cache() {
            cache.set_health(health);
            self.sums.disk_errors += 1;
            self.sick = Some(health);
        }
    }

    /// Takes what a child said before the cut for promises.
    fn promised(&mut self, heard: &[Event], cut_ns: u64, is_writer: bool) -> Outcome<()> {
        let mut is_open = false;
        for event in heard {
            match event {
                Event::Durable { at_ns, partition, end } if *at_ns < cut_ns => {
                    let promise = self.promises.entry(*partition).or_default();
                    if is_writer && is_open {
                        let more = (end - promise.acked.max(promise.recovered)).max(0);
                        self.sums.acked_records += more.cast_unsigned();
                        promise.acked = promise.acked.max(*end);
                    } else {
                        promise.recovered = promise.recovered.max(*end);
                    }
                }
                Event::Deleting { partition, before } => {
                    let promise = self.promises.entry(*partition).or_default();
                    promise.deleted = promise.deleted.max(*before);
                }
                Event::Opened { .. } => is_open = true,
                Event::Failed { at_ns, why }
                    if *at_ns < cut_ns && !(is_writer && self.sick.is_some()) =>
                {
                    return Err(format!("the engine failed before the cut: {why}").into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Recovers, reads everything and compares it with what was promised.
    fn verify(&mut self) -> Outcome<Option<String>> {
        let flags: &[&str] = if self.random.one_in(3) { &["close"] } else { &[] };
        let child = self.start("check", flags)?;
        let deadline = Instant::now() + SILENCE_MAX;
        let (mut heard, mut found) = (Vec::new(), BTreeMap::<u32, Found>::new());
        let mut is_checked = false;
        loop {
            let event = match child.next(deadline) {
                Next::Event(event) => event,
                Next::Ended => break,
                Next::Late => return Err("the recovery did not end within a minute".into()),
            };
            match &event {
                Event::Hole { partition, from, to, how } => {
                    found.entry(*partition).or_default().holes.push((*from, *to, *how));
                }
                Event::Range { partition, start, end } => {
                    let partition = found.entry(*partition).or_default();
                    (partition.start, partition.end) = (*start, *end);
                }
                Event::Failed { why, .. } => {
                    return Err(format!("the recovered log cannot be read: {why}").into());
                }
                Event::Checked => is_checked = true,
                _ => {}
            }
            heard.push(event);
        }
        if !is_checked {
            return Err("the recovery ended before it had read everything".into());
        }
        let gaps = self.compare(&found)?;
        self.promised(&heard, u64::MAX, false)?;
        Ok(gaps)
    }

    /// Holds what was found against the promises. Returns what there is to say of gaps.
    fn compare(&mut self, found: &BTreeMap<u32, Found>) -> Outcome<Option<String>> {
        let (mut losses, mut gaps) = (Vec::new(), Vec::new());
        for (number, promise) in &self.promises {
            let nothing = Found::default();
            let here = found.get(number).unwrap_or(&nothing);
            let lost = lost(promise, here);
            if lost > 0 {
                self.sums.lost += lost.cast_unsigned();
                losses.push(format!(
                    "partition {number}: {lost} records lost of {promise:?}, {here:?}"
                ));
            } else if !here.holes.is_empty() {
                self.sums.gaps += here.holes.len() as u64;
                let inside = here.holes.iter().filter(|(_, to, _)| *to < here.end);
                self.sums.gaps_before_records += inside.count() as u64;
                gaps.push(format!("partition {number}: a gap past {promise:?}, {here:?}"));
            }
        }
        if !losses.is_empty() {
            let disk = self.sick.map_or(String::new(), |sick| format!(" on a disk that {sick:?}"));
            return Err(format!("{}{disk}", losses.join("; ")).into());
        }
        Ok(Some(gaps.join("; ")).filter(|gaps| !gaps.is_empty()))
    }

    fn start(&mut self, role: &str, flags: &[&str]) -> Outcome<Child> {
        Child::start(role, &self.disk.root().join("log"), self.random.next(), flags)
    }

    fn micros(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from + self.random.below(to - from))
    }
}

/// Records that were promised and are not there. A hole that a recovery found and promised was one
/// before: it counts as a gap.
fn lost(promise: &Promise, here: &Found) -> i64 {
    let tail = (promise.acked.max(promise.recovered) - here.end).max(0);
    let front = (here.start - promise.deleted).max(0);
    let between = |(from, to, _): &(i64, i64, HoleKind)| {
        ((*to).min(promise.acked) - (*from).max(promise.deleted)).max(0)
    };
    tail + front + here.holes.iter().map(between).sum::<i64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_from_a_deletion_and_from_a_gap_that_was_not_promised() {
        let promise = Promise { acked: 100, recovered: 105, deleted: 10 };
        let found = |start, end, holes: &[(i64, i64)]| Found {
            start,
            end,
            holes: holes.iter().map(|(from, to)| (*from, *to, HoleKind::Damaged)).collect(),
        };
        assert_eq!(lost(&promise, &found(0, 105, &[])), 0);
        assert_eq!(lost(&promise, &found(10, 130, &[(100, 120)])), 0);
        assert_eq!(lost(&promise, &found(0, 105, &[(5, 10)])), 0, "deleted");
        assert_eq!(lost(&promise, &found(0, 104, &[])), 1, "the tail");
        assert_eq!(lost(&promise, &found(13, 105, &[])), 3, "the front");
        assert_eq!(lost(&promise, &found(0, 130, &[(98, 120)])), 2, "between");
        assert_eq!(lost(&promise, &Found::default()), 105, "everything");
    }
}
