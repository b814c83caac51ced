//! Names of partition directories that are being removed.

#![forbid(unsafe_code)]

use crate::topic::TopicPartition;
use uuid::Uuid;

/// `<topic>-<partition>.<32 hex digits>-delete`, cut to 255 bytes as Kafka does.
pub(super) fn delete_name(name: &TopicPartition) -> String {
    let suffix = format!("-{}.{}-delete", name.partition(), Uuid::new_v4().simple());
    let room = 255 - suffix.len();
    let topic = name.topic();
    format!("{}{suffix}", topic.get(..topic.len().min(room)).unwrap_or(topic))
}

pub(super) fn is_delete_name(name: &str) -> bool {
    let middle = name.strip_suffix("-delete").and_then(|rest| rest.rsplit_once('.'));
    middle.is_some_and(|(partition, id)| {
        TopicPartition::from_dir_name(partition).is_some()
            && id.len() == 32
            && id.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delete_names_are_recognised_and_fit_a_file_name() {
        let name = TopicPartition::new(&"x".repeat(249), 7).unwrap();
        let deleted = delete_name(&name);
        assert!(deleted.len() <= 255 && is_delete_name(&deleted), "{deleted}");
        for name in
            ["a-0", "a-0-delete", "a-0.xyz-delete", "notes.0123456789abcdef0123456789abcdef-delete"]
        {
            assert!(!is_delete_name(name), "{name}");
        }
    }
}
