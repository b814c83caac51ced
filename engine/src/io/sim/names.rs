//! The names in a simulated directory: as calls see them, as a power cut leaves them.
//!
//! Changes since the last sync of the directory are logged. A power cut keeps or loses each for
//! itself, in order; one that builds on a lost one is lost with it. A rename is one change, so a
//! name that it replaces stands for the old file or the new one, never for none.

#![forbid(unsafe_code)]

use super::rng::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The number of a file or directory; never given twice.
pub(super) type Ino = u32;

type Map = BTreeMap<Arc<str>, Ino>;

/// A directory's names.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    now: Map,
    durable: Map,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Change {
    number: u64,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Link(Arc<str>, Ino),
    Unlink(Arc<str>, Ino),
    Rename { from: Arc<str>, to: Arc<str>, ino: Ino, replaces: Option<Ino> },
}

impl What {
    /// Does it, if what it builds on is there.
    fn apply(&self, map: &mut Map) {
        match self {
            What::Link(name, ino) => {
                // Taken if the change that made it free was lost.
                map.entry(Arc::clone(name)).or_insert(*ino);
            }
            What::Unlink(name, ino) => {
                if map.get(name) == Some(ino) {
                    map.remove(name);
                }
            }
            What::Rename { from, to, ino, replaces } => {
                if map.get(from) == Some(ino) && map.get(to) == replaces.as_ref() {
                    map.remove(from);
                    map.insert(Arc::clone(to), *ino);
                }
            }
        }
    }
}

impl Names {
    pub(super) fn get(&self, name: &str) -> Option<Ino> {
        self.now.get(name).copied()
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, Ino)> {
        self.now.iter().map(|(name, ino)| (name, *ino))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.now.is_empty()
    }

    pub(super) fn link(&mut self, name: Arc<str>, ino: Ino, number: u64) {
        self.change(What::Link(name, ino), number);
    }

    pub(super) fn unlink(&mut self, name: &str, number: u64) -> Option<Ino> {
        let (name, ino) = self.now.remove_entry(name)?;
        self.pending.push(Change { number, what: What::Unlink(name, ino) });
        Some(ino)
    }

    pub(super) fn rename(&mut self, from: &str, to: Arc<str>, number: u64) {
        if let Some((from, ino)) = self.now.remove_entry(from) {
            self.now.insert(Arc::clone(&from), ino);
            let replaces = self.now.get(&to).copied();
            self.change(What::Rename { from, to, ino, replaces }, number);
        }
    }

    fn change(&mut self, what: What, number: u64) {
        what.apply(&mut self.now);
        self.pending.push(Change { number, what });
    }

    /// Makes durable what was changed up to a number.
    pub(super) fn settle(&mut self, up_to: u64) {
        let count = self.pending.partition_point(|change| change.number <= up_to);
        for change in self.pending.drain(..count) {
            change.what.apply(&mut self.durable);
        }
    }

    /// The power goes. Keeps nothing, everything, a prefix, or (mostly) any mixture.
    pub(super) fn cut_power(&mut self, rng: &mut Rng) {
        if self.pending.is_empty() {
            return;
        }
        let count = self.pending.len();
        let (kept, mixed) = match rng.below(8) {
            0 => (0, false),
            1 => (count, false),
            2 => (rng.index(count + 1), false),
            _ => (count, true),
        };
        for change in self.pending.drain(..).take(kept) {
            if !mixed || rng.coin() {
                change.what.apply(&mut self.durable);
            }
        }
        self.now.clone_from(&self.durable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn outcomes(names: &Names) -> BTreeSet<Vec<(String, Ino)>> {
        let cut = |seed| {
            let mut names = names.clone();
            names.cut_power(&mut Rng::new(seed));
            names.iter().map(|(name, ino)| (name.to_string(), ino)).collect()
        };
        (0..1000).map(cut).collect()
    }

    fn set<const N: usize>(of: [&[(&str, Ino)]; N]) -> BTreeSet<Vec<(String, Ino)>> {
        let own = |names: &[(&str, Ino)]| names.iter().map(|(n, i)| ((*n).into(), *i)).collect();
        of.into_iter().map(own).collect()
    }

    #[test]
    fn names_come_and_go_each_for_itself_until_they_are_settled() {
        let mut names = Names::default();
        names.link("a".into(), 1, 1);
        names.link("b".into(), 2, 2);
        assert_eq!(outcomes(&names), set([&[], &[("a", 1)], &[("b", 2)], &[("a", 1), ("b", 2)]]));
        names.settle(1);
        assert_eq!(outcomes(&names), set([&[("a", 1)], &[("a", 1), ("b", 2)]]));
        names.settle(u64::MAX);
        assert_eq!(names.unlink("a", 3), Some(1));
        assert_eq!(outcomes(&names), set([&[("b", 2)], &[("a", 1), ("b", 2)]]));
    }

    #[test]
    fn a_rename_is_done_or_not_and_a_replaced_name_is_never_missing() {
        let mut names = Names::default();
        names.link("old".into(), 1, 1);
        names.settle(1);
        names.link("tmp".into(), 2, 2);
        names.rename("tmp", "old".into(), 3);
        assert_eq!(names.get("old"), Some(2));
        let expected = set([&[("old", 1)], &[("old", 1), ("tmp", 2)], &[("old", 2)]]);
        assert_eq!(outcomes(&names), expected);
    }

    #[test]
    fn what_builds_on_a_lost_change_is_lost_too() {
        let mut names = Names::default();
        names.link("a".into(), 1, 1);
        names.rename("a", "b".into(), 2);
        names.unlink("b", 3);
        names.link("a".into(), 2, 4);
        assert_eq!(
            outcomes(&names),
            set([&[], &[("a", 1)], &[("a", 2)], &[("b", 1)], &[("a", 2), ("b", 1)]])
        );
    }

    #[test]
    fn no_file_gets_two_names_or_loses_its_name_to_another_whose_way_was_not_free() {
        // Method: random links, renames and partial syncs of files that are never removed nor
        // replaced, so each that was durable must be there once after any cut.
        for seed in 0..3000 {
            let (mut rng, mut names) = (Rng::new(seed), Names::default());
            let mut durable = 0;
            for number in 0..30 {
                let (a, b) = (rng.below(6).to_string(), rng.below(6).to_string());
                match (names.get(&a), names.get(&b)) {
                    (Some(_), None) => names.rename(&a, b.as_str().into(), number),
                    (None, _) => names.link(a.as_str().into(), number as Ino, number),
                    _ => {}
                }
                if rng.below(8) == 0 {
                    names.settle(number);
                    durable = names.now.len();
                }
            }
            names.cut_power(&mut rng);
            let inos: BTreeSet<Ino> = names.iter().map(|(_, ino)| ino).collect();
            assert_eq!(inos.len(), names.iter().len(), "a file under two names");
            assert!(inos.len() >= durable, "a durable file is gone");
        }
    }
}
