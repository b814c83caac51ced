//! What goes wrong in a simulated run, and when: at a given call, or by chance.

#![forbid(unsafe_code)]

use super::CrashKind;
use super::rng::Rng;
use super::trace::Call;
use libc::{EFBIG, EINTR, EIO, EMFILE, ENOSPC, EROFS};

/// How often calls fail, in a million, by what they do. The error is one that such a call has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct FaultRates {
    /// Reads, lists and stats.
    pub(crate) read: u32,
    /// Writes of all kinds, lengths and reservations.
    pub(crate) write: u32,
    /// Syncs of files and directories.
    pub(crate) sync: u32,
    /// Opens, and new lanes.
    pub(crate) open: u32,
    /// Creation of directories, renames, removals.
    pub(crate) names: u32,
}

/// How the disk behaves when nothing fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Knobs {
    /// Lanes finish operations late and in any order; else at once, in theirs.
    pub(crate) reorder: bool,
    /// How often a write takes only a part of its bytes, in a million.
    pub(crate) short_writes: u32,
    /// Syncs of files report success and do nothing.
    pub(crate) lying_syncs: bool,
    /// Syncs of directories report success and do nothing.
    pub(crate) lying_dir_syncs: bool,
    /// Durable writes only reach the page cache.
    pub(crate) lying_durable_writes: bool,
    /// The first sync that fails stops the file system, as ext4 is stopped by a failed write of its
    /// journal: metadata changes no more, and syncs fail or say yes and do nothing.
    pub(crate) aborts: bool,
}

impl Default for Knobs {
    /// An honest disk with late lanes and no short writes.
    fn default() -> Knobs {
        Knobs {
            reorder: true,
            short_writes: 0,
            lying_syncs: false,
            lying_dir_syncs: false,
            lying_durable_writes: false,
            aborts: false,
        }
    }
}

/// What is to become of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Works,
    Fails(i32),
    /// The machine or the process dies in it: it may be done, half done or not done.
    Dies,
}

/// Faults that are to come.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    cut: Option<(u64, CrashKind)>,
    fails: Vec<(u64, i32)>,
    /// No planned fault comes before this call.
    quiet_until: u64,
    pub(super) rates: FaultRates,
}

impl Plan {
    pub(super) fn new() -> Plan {
        let rates = FaultRates::default();
        Plan { cut: None, fails: Vec::new(), quiet_until: u64::MAX, rates }
    }

    pub(super) fn cut_at(&mut self, index: u64, kind: CrashKind) {
        self.cut = Some((index, kind));
        self.look_ahead();
    }

    pub(super) fn fail_at(&mut self, index: u64, errno: i32) {
        self.fails.push((index, errno));
        self.look_ahead();
    }

    /// Drops what is planned; chances stay.
    pub(super) fn forget(&mut self) {
        *self = Plan { rates: self.rates, ..Plan::new() };
    }

    fn look_ahead(&mut self) {
        let planned = self.fails.iter().map(|(index, _)| *index);
        let planned = planned.chain(self.cut.map(|(index, _)| index));
        self.quiet_until = planned.min().unwrap_or(u64::MAX);
    }

    /// The fate of the call of that index, and how the run ends if it dies.
    pub(super) fn fate(&mut self, index: u64, call: Call, rng: &mut Rng) -> (Fate, CrashKind) {
        if index >= self.quiet_until {
            if let Some((_, kind)) = self.cut.take_if(|(at, _)| *at <= index) {
                self.look_ahead();
                return (Fate::Dies, kind);
            }
            if let Some(i) = self.fails.iter().position(|(at, _)| *at <= index) {
                let (_, errno) = self.fails.swap_remove(i);
                self.look_ahead();
                return (Fate::Fails(errno), CrashKind::Power);
            }
        }
        let errno = self.by_chance(call, rng);
        (errno.map_or(Fate::Works, Fate::Fails), CrashKind::Power)
    }

    fn by_chance(&self, call: Call, rng: &mut Rng) -> Option<i32> {
        let rates = &self.rates;
        let (rate, errors): (u32, &[i32]) = match call {
            Call::Read => (rates.read, &[EIO, EINTR]),
            Call::List | Call::Stat | Call::FreeBytes => (rates.read, &[EIO]),
            Call::Write | Call::WriteDurable => (rates.write, &[EIO, ENOSPC, EINTR, EFBIG]),
            Call::LaneWrite => (rates.write, &[EIO, ENOSPC]),
            Call::SetLen | Call::Allocate => (rates.write, &[EIO, ENOSPC]),
            Call::Sync | Call::SyncDir | Call::LaneSync => (rates.sync, &[EIO]),
            Call::Open => (rates.open, &[EIO, EMFILE]),
            Call::Lane => (rates.open, &[EMFILE]),
            Call::CreateDir | Call::Rename => (rates.names, &[EIO, ENOSPC, EROFS]),
            Call::RemoveFile | Call::RemoveDirAll => (rates.names, &[EIO, EROFS]),
            Call::WriteBack | Call::Submit | Call::LaneWriteBack | Call::Crash => return None,
        };
        rng.per_million(rate).then(|| errors[rng.index(errors.len())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_planned_fault_comes_once_at_its_call() {
        let (mut plan, mut rng) = (Plan::new(), Rng::new(1));
        plan.fail_at(7, ENOSPC);
        plan.fail_at(3, EIO);
        plan.cut_at(9, CrashKind::Process);
        let fates: Vec<Fate> = (0..12).map(|i| plan.fate(i, Call::Write, &mut rng).0).collect();
        let mut expected = [Fate::Works; 12];
        (expected[3], expected[7]) = (Fate::Fails(EIO), Fate::Fails(ENOSPC));
        expected[9] = Fate::Dies;
        assert_eq!(fates, expected);
        plan.cut_at(20, CrashKind::Power);
        plan.forget();
        assert_eq!(plan.fate(20, Call::Write, &mut rng).0, Fate::Works);
    }

    #[test]
    fn chance_hits_the_class_that_was_asked_for() {
        let (mut plan, mut rng) = (Plan::new(), Rng::new(1));
        plan.rates.sync = 500_000;
        let mut fails =
            |call| (0..100).filter(|i| plan.fate(*i, call, &mut rng).0 == Fate::Fails(EIO)).count();
        assert!((20..80).contains(&fails(Call::LaneSync)));
        assert_eq!(fails(Call::Read), 0);
    }
}
