//! Topics and partitions by name, and the directories they live in.
//!
//! A partition is the directory `<topic>-<partition>`; the rules for names are Kafka's
//! (`org.apache.kafka.common.internals.Topic`).

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Longest topic name, in characters: Kafka's limit, so that `<name>-<partition>.<uuid>-delete`
/// stays under the 255 bytes of a file name.
pub const TOPIC_NAME_MAX: usize = 249;

/// Kafka's KRaft metadata log. It looks like a partition but belongs to the controller: it can be
/// read, never appended to.
pub const CLUSTER_METADATA_TOPIC: &str = "__cluster_metadata";

/// A topic and the number of one of its partitions.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TopicPartition {
    topic: String,
    partition: u32,
}

impl TopicPartition {
    /// The least name of a topic, which need not be one that may be.
    pub(crate) fn first_of(topic: &str) -> TopicPartition {
        TopicPartition { topic: topic.to_owned(), partition: 0 }
    }

    /// Checks the name and the number.
    ///
    /// # Errors
    /// [`Error::TopicName`] for a name that Kafka would refuse: empty, `.` or `..`, over 249
    /// characters, or with any character outside `[a-zA-Z0-9._-]`; for a partition over 2^31−1.
    pub fn new(topic: &str, partition: u32) -> Result<TopicPartition> {
        check_topic_name(topic)?;
        if i32::try_from(partition).is_err() {
            return Err(name_error(topic, "partition numbers end at 2147483647"));
        }
        Ok(TopicPartition { topic: topic.to_owned(), partition })
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The partition's number, from 0.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Reads the name of a directory. `None` if it is not one of a partition: Kafka refuses to
    /// start on such a folder; the engine leaves it alone.
    #[must_use]
    pub fn from_dir_name(name: &str) -> Option<TopicPartition> {
        let (topic, number) = name.rsplit_once('-')?;
        // "t-007" and "t-+7" would parse, but no Kafka ever wrote them.
        let canonical = number == "0" || !number.starts_with(['0', '+']);
        let partition = number.parse().ok().filter(|_| canonical)?;
        TopicPartition::new(topic, partition).ok()
    }

    /// True for Kafka's own metadata log, which is not ours to write.
    #[must_use]
    pub fn is_cluster_metadata(&self) -> bool {
        self.topic == CLUSTER_METADATA_TOPIC
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

impl FromStr for TopicPartition {
    type Err = Error;

    fn from_str(s: &str) -> Result<TopicPartition> {
        TopicPartition::from_dir_name(s)
            .ok_or_else(|| name_error(s, "a partition is written <topic>-<number>"))
    }
}

fn check_topic_name(name: &str) -> Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let broken = if name.is_empty() {
        "must not be empty"
    } else if name == "." || name == ".." {
        "must not be \".\" or \"..\""
    } else if name.chars().count() > TOPIC_NAME_MAX {
        "must not be over 249 characters"
    } else if !name.chars().all(legal) {
        "only ASCII letters, digits, '.', '_' and '-' are allowed"
    } else {
        return Ok(());
    };
    Err(name_error(name, broken))
}

fn name_error(name: &str, reason: &'static str) -> Error {
    Error::TopicName { name: name.chars().take(300).collect(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        let long = "x".repeat(250);
        for name in ["", ".", "..", "a/b", "../a", "a\0b", "a b", "ä", "a\\b", "a\nb", &long] {
            assert!(TopicPartition::new(name, 0).is_err(), "{name:?} was accepted");
        }
        for name in ["a", "A.b_c-9", "...", "-", &"x".repeat(249)] {
            assert!(TopicPartition::new(name, 0).is_ok(), "{name:?} was refused");
        }
    }

    #[test]
    fn directory_names_round_trip_and_foreign_folders_are_passed_over() {
        for name in ["a-0", "a-b-12", "__consumer_offsets-49"] {
            assert_eq!(TopicPartition::from_dir_name(name).unwrap().to_string(), name);
        }
        for name in ["a", "a-", "a-x", "a-01", "a-+1", "-0x", "a-0.5e1-delete", "a-4294967296"] {
            assert_eq!(TopicPartition::from_dir_name(name), None, "{name}");
        }
    }
}
