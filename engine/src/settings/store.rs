//! What is stored of settings, and what holds for a partition.
//!
//! ```text
//! loglane-settings     topic <name> <topic id, or - without one>
//!                      set <setting> <value>             of the topic
//!                      partition <number>
//!                      set <setting> <value>             of that partition alone
//! ```
//!
//! A topic that was deleted and made again has another id: settings of the old one say nothing. A
//! setting that this version does not know is kept.

#![forbid(unsafe_code)]

use super::{SettingsChange, Values, keys, text};
use crate::checkpoint::{parse_topic_id, topic_id_text};
use crate::config::PartitionConfig;
use crate::error::Result;
use crate::io::Disk;
use crate::topic::TopicPartition;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use uuid::Uuid;

/// The file, beside Kafka's checkpoints.
const SETTINGS_FILE: &str = "loglane-settings";

type Topics = BTreeMap<String, TopicSettings>;

/// What is stored of one topic.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct TopicSettings {
    id: Option<Uuid>,
    values: Values,
    partitions: BTreeMap<u32, Values>,
}

/// The settings of a data directory.
pub(crate) struct Store {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    defaults: PartitionConfig,
    /// Partitions that Kafka's log cleaner has worked on.
    compacted: BTreeSet<TopicPartition>,
    topics: RwLock<Topics>,
    /// Held while the file is replaced. True if that failed: then the file may say something else
    /// than what is in memory.
    writing: Mutex<bool>,
}

impl Store {
    /// Reads what is stored. `defaults` hold where nothing is.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        defaults: PartitionConfig,
        compacted: BTreeSet<TopicPartition>,
    ) -> Result<Store> {
        let path = dir.join(SETTINGS_FILE);
        let lines = text::read(disk.as_ref(), &path)?;
        let topics = parse(&lines).map_err(|reason| text::bad(&path, reason))?;
        let (topics, writing) = (RwLock::new(topics), Mutex::default());
        Ok(Store { disk, path, defaults, compacted, topics, writing })
    }

    /// What holds for a partition.
    pub(crate) fn effective(&self, name: &TopicPartition, id: Option<Uuid>) -> PartitionConfig {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        let mut config = self.behind(name);
        if let Some(stored) = topics.get(name.topic()).filter(|stored| stored.id == id) {
            apply(&stored.values, &mut config);
            if let Some(own) = stored.partitions.get(&name.partition()) {
                apply(own, &mut config);
            }
        }
        config
    }

    /// What a new partition of a new topic is made with.
    pub(crate) fn of_new(
        &self,
        name: &TopicPartition,
        asked: &SettingsChange,
    ) -> Result<PartitionConfig> {
        let (mut config, mut values) = (self.behind(name), Values::new());
        asked.apply_to(&mut values);
        apply(&values, &mut config);
        config.check()?;
        Ok(config)
    }

    /// What is stored for a partition, its topic's settings included.
    pub(crate) fn stored(&self, name: &TopicPartition, id: Option<Uuid>) -> Values {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        let Some(stored) = topics.get(name.topic()).filter(|stored| stored.id == id) else {
            return Values::new();
        };
        let mut values = stored.values.clone();
        values.extend(stored.partitions.get(&name.partition()).cloned().unwrap_or_default());
        values
    }

    /// True for a topic of Kafka's own, and for one that Kafka compacts: their records do not age, and
    /// what is not said otherwise must not delete them.
    pub(crate) fn is_kept_whole(&self, name: &TopicPartition) -> bool {
        name.topic().starts_with("__") || self.compacted.contains(name)
    }

    /// What holds where nothing is stored.
    fn behind(&self, name: &TopicPartition) -> PartitionConfig {
        let mut config = self.defaults.clone();
        if self.is_kept_whole(name) {
            (config.retention_ms, config.retention_bytes) = (None, None);
            config.retention_records = None;
        }
        config
    }

    /// Changes a topic's settings, or those of one partition alone. On disk when it returns.
    ///
    /// # Errors
    /// `Config` if a value is out of its range, `NoSpace`, `Io`; then nothing has changed.
    pub(crate) fn change(
        &self,
        topic: &str,
        id: Option<Uuid>,
        partition: Option<u32>,
        change: &SettingsChange,
    ) -> Result<()> {
        self.replace(|topics| {
            let stored = topics.entry(topic.to_owned()).or_default();
            if stored.id != id {
                *stored = TopicSettings { id, ..TopicSettings::default() };
            }
            match partition {
                None => change.apply_to(&mut stored.values),
                Some(number) => change.apply_to(stored.partitions.entry(number).or_default()),
            }
            let mut config = self.defaults.clone();
            apply(&stored.values, &mut config);
            config.check()?;
            for own in stored.partitions.values() {
                let mut config = config.clone();
                apply(own, &mut config);
                config.check()?;
            }
            stored.partitions.retain(|_, own| !own.is_empty());
            if stored.values.is_empty() && stored.partitions.is_empty() {
                topics.remove(topic);
            }
            Ok(())
        })
    }

    /// Stores what a new partition was made with, as far as it is not so anyway. The first of a topic
    /// brings the topic's settings, `asked` or what differs; a later one keeps a difference for itself.
    pub(crate) fn created(
        &self,
        name: &TopicPartition,
        id: Uuid,
        is_first: bool,
        config: &PartitionConfig,
        asked: Option<&SettingsChange>,
    ) -> Result<()> {
        self.replace(|topics| {
            if is_first {
                topics.remove(name.topic());
                let mut values = difference(&self.behind(name), config);
                if let Some(asked) = asked {
                    values.clear();
                    asked.apply_to(&mut values);
                }
                if !values.is_empty() {
                    let partitions = BTreeMap::new();
                    let stored = TopicSettings { id: Some(id), values, partitions };
                    topics.insert(name.topic().to_owned(), stored);
                }
                return Ok(());
            }
            let mut of_topic = self.behind(name);
            let stored = topics.entry(name.topic().to_owned()).or_default();
            if stored.id != Some(id) {
                *stored = TopicSettings { id: Some(id), ..TopicSettings::default() };
            }
            apply(&stored.values, &mut of_topic);
            let own = difference(&of_topic, config);
            stored.partitions.remove(&name.partition());
            if !own.is_empty() {
                stored.partitions.insert(name.partition(), own);
            }
            if stored.values.is_empty() && stored.partitions.is_empty() {
                topics.remove(name.topic());
            }
            Ok(())
        })
    }

    /// Writes what is stored to another directory.
    pub(crate) fn copy_to(&self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        let lines = compose(&self.topics.read().unwrap_or_else(PoisonError::into_inner));
        text::write(disk, &dir.join(SETTINGS_FILE), &lines)
    }

    /// Forgets a topic that was deleted.
    pub(crate) fn forget(&self, topic: &str) -> Result<()> {
        self.replace(|topics| {
            topics.remove(topic);
            Ok(())
        })
    }

    /// Makes a change on disk, then in memory. One that changes nothing writes nothing.
    fn replace(&self, change: impl FnOnce(&mut Topics) -> Result<()>) -> Result<()> {
        let mut is_unsure = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.topics.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut after = before.clone();
        change(&mut after)?;
        if after == before && !*is_unsure {
            return Ok(());
        }
        *is_unsure = true;
        text::write(self.disk.as_ref(), &self.path, &compose(&after))?;
        *is_unsure = false;
        *self.topics.write().unwrap_or_else(PoisonError::into_inner) = after;
        Ok(())
    }
}

/// Puts stored values into a config; what this version does not know is passed over.
fn apply(values: &Values, config: &mut PartitionConfig) {
    for (name, value) in values {
        if let Some(key) = keys::find(name)
            && let Err(reason) = (key.set)(config, value)
        {
            // Checked when it was stored and when it was read.
            tracing::error!(setting = key.name, reason, "a stored setting is passed over");
        }
    }
}

/// The settings that turn one config into another.
fn difference(from: &PartitionConfig, to: &PartitionConfig) -> Values {
    let both = keys::KEYS.iter().map(|key| (key.name, (key.get)(from), (key.get)(to)));
    both.filter(|(_, from, to)| from != to).map(|(name, _, to)| (name.to_owned(), to)).collect()
}

fn compose(topics: &Topics) -> Vec<String> {
    let mut lines = Vec::new();
    let set = |lines: &mut Vec<String>, values: &Values| {
        lines.extend(values.iter().map(|(name, value)| format!("set {name} {value}")));
    };
    for (topic, stored) in topics {
        let id = stored.id.map_or("-".into(), topic_id_text);
        lines.push(format!("topic {topic} {id}"));
        set(&mut lines, &stored.values);
        for (number, own) in &stored.partitions {
            lines.push(format!("partition {number}"));
            set(&mut lines, own);
        }
    }
    lines
}

fn parse(lines: &[String]) -> std::result::Result<Topics, String> {
    let mut topics = Topics::new();
    let mut at: Option<(String, Option<u32>)> = None;
    for line in lines {
        parse_line(line, &mut topics, &mut at).ok_or_else(|| {
            let shown: String = line.chars().take(80).collect();
            format!("line {shown:?} is malformed or out of order")
        })?;
    }
    Ok(topics)
}

/// Takes one line in; `at` is the topic, or the partition, that `set` lines belong to.
fn parse_line(
    line: &str,
    topics: &mut Topics,
    at: &mut Option<(String, Option<u32>)>,
) -> Option<()> {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["topic", name, id] => {
            TopicPartition::new(name, 0).ok()?;
            let id = match *id {
                "-" => None,
                id => Some(parse_topic_id(id)?),
            };
            let stored = TopicSettings { id, ..TopicSettings::default() };
            *at = Some(((*name).to_owned(), None));
            topics.insert((*name).to_owned(), stored).is_none().then_some(())
        }
        ["partition", number] => {
            let (topic, partition) = at.as_mut()?;
            let number = number.parse().ok()?;
            *partition = Some(number);
            let stored = topics.get_mut(topic)?;
            stored.partitions.insert(number, Values::new()).is_none().then_some(())
        }
        ["set", name, value] => {
            let (topic, partition) = at.as_ref()?;
            let stored = topics.get_mut(topic)?;
            let values = match partition {
                None => &mut stored.values,
                Some(number) => stored.partitions.get_mut(number)?,
            };
            let known = keys::find(name);
            let is_good = |key: &keys::Key| {
                let mut config = PartitionConfig::default();
                (key.set)(&mut config, value).is_ok() && config.check().is_ok()
            };
            let is_good = known.is_none_or(is_good);
            let is_new = values.insert((*name).to_owned(), (*value).to_owned()).is_none();
            (is_good && is_new).then_some(())
        }
        _ => None,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::io::BackendChoice;
    use proptest::prelude::*;

    fn store(dir: &Path) -> Store {
        let disk = crate::io::open(dir, BackendChoice::Plain).unwrap();
        Store::open(disk, dir, PartitionConfig::default(), BTreeSet::new()).unwrap()
    }

    fn partition(name: &str) -> TopicPartition {
        name.parse().unwrap()
    }

    const ID: Option<Uuid> = Some(Uuid::from_u128(7));

    #[test]
    fn the_nearest_setting_wins_and_all_come_back_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let change = SettingsChange::new().retention_ms(Some(5)).segment_bytes(4096);
        store(dir.path()).change("t", ID, None, &change).unwrap();
        let own = SettingsChange::new().retention_ms(None);
        store(dir.path()).change("t", ID, Some(1), &own).unwrap();
        let store = store(dir.path());
        let (first, second) =
            (store.effective(&partition("t-0"), ID), store.effective(&partition("t-1"), ID));
        assert_eq!((first.retention_ms, first.segment_bytes), (Some(5), 4096));
        assert_eq!((second.retention_ms, second.segment_bytes), (None, 4096));
        assert_eq!(store.effective(&partition("u-0"), ID), PartitionConfig::default());
        let other = Some(Uuid::from_u128(8));
        assert_eq!(store.effective(&partition("t-0"), other), PartitionConfig::default());
        let back = SettingsChange::new().unset("retention_ms").unwrap();
        store.change("t", ID, Some(1), &back).unwrap();
        assert_eq!(store.effective(&partition("t-1"), ID).retention_ms, Some(5));
        store.forget("t").unwrap();
        assert!(!dir.path().join(SETTINGS_FILE).exists(), "nothing stored, no file");
    }

    #[test]
    fn a_value_out_of_its_range_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let bad = SettingsChange::new().retention_ms(Some(1)).segment_bytes(1);
        let error = store.change("t", ID, None, &bad).unwrap_err();
        assert!(matches!(error, Error::Config { key: "segment_bytes", .. }), "{error}");
        assert_eq!(store.effective(&partition("t-0"), ID), PartitionConfig::default());
        assert!(!dir.path().join(SETTINGS_FILE).exists());
    }

    #[test]
    fn a_partition_made_like_its_topic_stores_nothing_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let id = Uuid::from_u128(7);
        let config = PartitionConfig { segment_bytes: 2048, ..PartitionConfig::default() };
        store.created(&partition("t-0"), id, true, &config, None).unwrap();
        store.created(&partition("t-1"), id, false, &config, None).unwrap();
        let other = PartitionConfig { segment_bytes: 4096, ..PartitionConfig::default() };
        store.created(&partition("t-2"), id, false, &other, None).unwrap();
        let lines = text::read(store.disk.as_ref(), &store.path).unwrap();
        let id = topic_id_text(id);
        let expected = [
            &format!("topic t {id}"),
            "set segment_bytes 2048",
            "partition 2",
            "set segment_bytes 4096",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn kafkas_own_topics_and_compacted_ones_are_kept_unless_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let disk = crate::io::open(dir.path(), BackendChoice::Plain).unwrap();
        let compacted = BTreeSet::from([partition("c-3")]);
        let store = Store::open(disk, dir.path(), PartitionConfig::default(), compacted).unwrap();
        for (name, kept) in
            [("__consumer_offsets-7", true), ("c-3", true), ("c-4", false), ("t-0", false)]
        {
            assert_eq!(
                store.effective(&partition(name), ID).retention_ms.is_none(),
                kept,
                "{name}"
            );
        }
        let change = SettingsChange::new().retention_ms(Some(1));
        store.change("c", ID, None, &change).unwrap();
        assert_eq!(store.effective(&partition("c-3"), ID).retention_ms, Some(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_lines_are_read_or_refused_and_what_is_read_is_written_again(
            lines in proptest::collection::vec(
                "topic (t|u) (-|AAAAAAAAAAAAAAAAAAAABw)|partition [0-2]|set (retention_ms|segment_bytes|x) (none|5|2048)",
                0..12)
        ) {
            if let Ok(topics) = parse(&lines) {
                prop_assert_eq!(parse(&compose(&topics)), Ok(topics));
            }
        }
    }

    #[test]
    fn lines_out_of_order_or_without_sense_are_refused_and_unknown_settings_kept() {
        let bad = [
            "set segment_bytes 4096",
            "partition 1",
            "topic t",
            "topic ../t -",
            "topic t x",
            "topic t -\ntopic t -",
            "topic t -\nset segment_bytes 1",
            "topic t -\nset retention_ms 1\nset retention_ms 1",
            "topic t -\npartition x",
            "hello",
            "",
        ];
        for text in bad {
            let lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
            assert!(parse(&lines).is_err(), "{text:?}");
        }
        let lines = ["topic t -".to_owned(), "set of_tomorrow 5".to_owned()];
        assert_eq!(compose(&parse(&lines).unwrap()), lines);
    }
}
