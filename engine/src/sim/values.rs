//! What the values of a partition, or the cursors of a group, must be: an oracle for each key.
//!
//! It knows every change that was handed in, in order, and what was promised about it. After a crash
//! a key has the value of the last change that was promised, or of a later one that was handed in.

#![forbid(unsafe_code)]

use super::model::Died;
use std::collections::BTreeMap;

/// What a key may hold: the number of the change that set it; `None` if it is not there.
pub(super) type Held = Option<u64>;

/// One change of one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Step {
    change: u64,
    held: Held,
    answer: Answer,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Answer {
    /// None yet, or an error: it may be found or not.
    Unknown,
    /// It survives the process.
    Written,
    /// It survives the machine.
    Durable,
}

/// The oracle of all keys of one owner.
#[derive(Default)]
pub(super) struct Values {
    /// Changes of each key that may be found, oldest first; the first one was promised.
    keys: BTreeMap<u8, Vec<Step>>,
}

impl Values {
    /// A change of some keys was handed in. All or none of it is going to be found.
    pub(super) fn submitted(&mut self, change: u64, keys: &[(u8, Held)]) {
        for (key, held) in keys {
            let step = Step { change, held: *held, answer: Answer::Unknown };
            self.keys.entry(*key).or_default().push(step);
        }
    }

    pub(super) fn answered(&mut self, change: u64, durable: bool) {
        let answer = if durable { Answer::Durable } else { Answer::Written };
        for steps in self.keys.values_mut() {
            for step in steps.iter_mut().filter(|step| step.change == change) {
                step.answer = step.answer.max(answer);
            }
        }
    }

    /// Every change that was handed in before this one and answered as written is durable now.
    pub(super) fn durable_before(&mut self, change: u64) {
        for step in self.keys.values_mut().flatten() {
            if step.change < change && step.answer == Answer::Written {
                step.answer = Answer::Durable;
            }
        }
    }

    /// Compares with what is there, and takes it over.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub(super) fn check(&mut self, found: &BTreeMap<u8, u64>, died: Died) -> Result<(), String> {
        if let Some(key) = found.keys().find(|key| !self.keys.contains_key(key)) {
            return Err(format!("key {key} that nobody set"));
        }
        // A change of several keys is there as a whole: where one key has it, no other has less.
        let mut newest = 0;
        for (key, steps) in &self.keys {
            let held = found.get(key).copied();
            let promised = steps.iter().rposition(|step| match died {
                Died::Machine => step.answer == Answer::Durable,
                Died::Process | Died::Nobody => step.answer != Answer::Unknown,
            });
            let from = promised.unwrap_or(0);
            let none_yet = promised.is_none() && held.is_none();
            let at = steps.iter().skip(from).find(|step| step.held == held);
            match at {
                Some(step) => newest = newest.max(if none_yet { 0 } else { step.change }),
                None if none_yet => {}
                None => {
                    return Err(format!("key {key} holds {held:?} after {died:?}: {steps:?}"));
                }
            }
        }
        self.check_whole(found, newest)?;
        for (key, steps) in &mut self.keys {
            let held = found.get(key).copied();
            let change = steps.iter().rfind(|step| step.held == held).map_or(0, |step| step.change);
            // What is found after a crash is in a fresh file that is synced.
            let answer = if died == Died::Nobody { Answer::Written } else { Answer::Durable };
            *steps = vec![Step { change, held, answer }];
        }
        Ok(())
    }

    /// Numbers are given once: a key that holds one has all of that change's other keys at least as
    /// new.
    fn check_whole(&self, found: &BTreeMap<u8, u64>, newest: u64) -> Result<(), String> {
        for change in found.values().filter(|change| **change <= newest) {
            for (key, steps) in &self.keys {
                let Some(at) = steps.iter().position(|step| step.change == *change) else {
                    continue;
                };
                let held = found.get(key).copied();
                if !steps.iter().skip(at).any(|step| step.held == held) {
                    return Err(format!(
                        "key {key} lacks change {change}, of which others are there"
                    ));
                }
            }
        }
        Ok(())
    }
}
