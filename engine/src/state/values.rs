//! All values of a directory, in memory.

#![forbid(unsafe_code)]

use super::format::CHANGE_BYTES;
use super::{Change, Scope, What};
use crate::topic::TopicPartition;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Values by key, keys by whose they are. No scope without a value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Values {
    scopes: BTreeMap<Scope, BTreeMap<Bytes, Bytes>>,
    /// What they take in a file that holds nothing else, about.
    bytes: u64,
}

impl Values {
    pub(crate) fn apply(&mut self, change: &Change) {
        match &change.what {
            What::Put { key, value } => {
                let scope = self.scopes.entry(change.scope.clone()).or_default();
                self.bytes += cost(&change.scope, key, value);
                if let Some(before) = scope.insert(key.clone(), value.clone()) {
                    self.bytes -= cost(&change.scope, key, &before);
                }
            }
            What::Remove { key } => {
                let Some(scope) = self.scopes.get_mut(&change.scope) else { return };
                if let Some(before) = scope.remove(key) {
                    self.bytes -= cost(&change.scope, key, &before);
                }
                if scope.is_empty() {
                    self.scopes.remove(&change.scope);
                }
            }
            What::RemoveAll => {
                for (key, value) in self.scopes.remove(&change.scope).unwrap_or_default() {
                    self.bytes -= cost(&change.scope, &key, &value);
                }
            }
        }
    }

    pub(crate) fn get(&self, scope: &Scope, key: &[u8]) -> Option<&Bytes> {
        self.scopes.get(scope)?.get(key)
    }

    /// The values of one scope, by key; none if it has none.
    pub(crate) fn of(&self, scope: &Scope) -> BTreeMap<Bytes, Bytes> {
        self.scopes.get(scope).cloned().unwrap_or_default()
    }

    /// Consumer groups that have a cursor.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &str> {
        self.scopes.keys().filter_map(|scope| match scope {
            Scope::Group(group) => Some(group.as_str()),
            Scope::Partition(..) => None,
        })
    }

    /// What takes away every value that is for a partition which `lives` does not know.
    pub(crate) fn orphans(&self, lives: &dyn Fn(&TopicPartition) -> bool) -> Vec<Change> {
        let mut orphans = Vec::new();
        for (scope, values) in &self.scopes {
            match scope {
                Scope::Partition(partition, _) if !lives(partition) => {
                    orphans.push(Change { scope: scope.clone(), what: What::RemoveAll });
                }
                Scope::Partition(..) => {}
                Scope::Group(_) => {
                    let gone = values.keys().filter(|key| {
                        super::partition_of(key).is_some_and(|partition| !lives(&partition))
                    });
                    orphans.extend(gone.map(|key| Change {
                        scope: scope.clone(),
                        what: What::Remove { key: key.clone() },
                    }));
                }
            }
        }
        orphans
    }

    /// What takes away every value that is for this partition, whatever its topic's id.
    pub(crate) fn for_partition(&self, name: &TopicPartition) -> Vec<Change> {
        let mut found = Vec::new();
        let first = Scope::Partition(name.clone(), None);
        let own = self.scopes.range(first..).map_while(|(scope, _)| match scope {
            Scope::Partition(partition, _) if partition == name => Some(scope),
            _ => None,
        });
        found.extend(own.map(|scope| Change { scope: scope.clone(), what: What::RemoveAll }));
        let key = super::cursor_key(name);
        for (scope, values) in &self.scopes {
            if matches!(scope, Scope::Group(_)) && values.contains_key(&key) {
                let what = What::Remove { key: key.clone() };
                found.push(Change { scope: scope.clone(), what });
            }
        }
        found
    }

    /// What sets every value.
    pub(crate) fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        self.scopes.iter().flat_map(|(scope, values)| {
            values.iter().map(|(key, value)| Change {
                scope: scope.clone(),
                what: What::Put { key: key.clone(), value: value.clone() },
            })
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.scopes.is_empty()
    }

    /// Bytes they take in a file that holds nothing else, about.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Bytes of a value in a file.
fn cost(scope: &Scope, key: &[u8], value: &[u8]) -> u64 {
    let name = match scope {
        Scope::Partition(partition, _) => partition.topic().len(),
        Scope::Group(group) => group.len(),
    };
    (CHANGE_BYTES + name + key.len() + value.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_follow_what_is_there_and_nothing_is_left_of_what_went() {
        let scope = Scope::Group("group".into());
        let change = |what| Change { scope: scope.clone(), what };
        let put = |key: &'static str, value: &'static str| {
            change(What::Put { key: Bytes::from(key), value: Bytes::from(value) })
        };
        let mut values = Values::default();
        values.apply(&put("a", "1"));
        let one = values.bytes();
        values.apply(&put("a", "22"));
        assert_eq!(values.bytes(), one + 1);
        values.apply(&put("b", "1"));
        assert_eq!(values.of(&scope).len(), 2);
        values.apply(&change(What::Remove { key: Bytes::from("a") }));
        values.apply(&change(What::Remove { key: Bytes::from("a") }));
        assert_eq!((values.bytes(), values.groups().count()), (one, 1));
        values.apply(&change(What::RemoveAll));
        assert_eq!((values.bytes(), values.is_empty()), (0, true));
    }
}
