//! Kafka's small text files: offset checkpoints, leader epochs, partition.metadata, the mark of a
//! clean shutdown. Byte for byte what Kafka 4.3.1 writes (docs/FORMAT.md, "Text files").
//!
//! Each is replaced whole: `<file>.tmp`, synced, renamed over the old one, directory synced.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::io::{Disk, OpenMode};
use crate::topic::TopicPartition;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Everything below is synced to the segment files.
pub(crate) const RECOVERY_POINTS: &str = "recovery-point-offset-checkpoint";
/// High watermarks.
pub(crate) const HIGH_WATERMARKS: &str = "replication-offset-checkpoint";
/// Log start offsets that are above the first segment's base.
pub(crate) const LOG_STARTS: &str = "log-start-offset-checkpoint";
/// First offsets that compaction has not seen yet, of compacted partitions.
pub(crate) const CLEANER_OFFSETS: &str = "cleaner-offset-checkpoint";
/// Present while the directory is closed and whole.
pub(crate) const CLEAN_SHUTDOWN: &str = ".kafka_cleanshutdown";
/// In each partition directory: `<epoch> <start offset>` for each leader epoch.
pub(crate) const LEADER_EPOCHS: &str = "leader-epoch-checkpoint";
/// In each partition directory: the topic's id.
pub(crate) const PARTITION_METADATA: &str = "partition.metadata";

/// No checkpoint of a sane directory is larger; a bigger file is not read into memory.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Offsets by partition, as in the three checkpoints of a data directory.
pub(crate) type PartitionOffsets = BTreeMap<TopicPartition, i64>;

/// Reads an offset checkpoint; empty if there is none. Lines of partitions whose name is not one of
/// ours are an error, as any other line that does not parse: guessing would move a recovery point.
pub(crate) fn read_offsets(disk: &dyn Disk, path: &Path) -> Result<PartitionOffsets> {
    let mut offsets = PartitionOffsets::new();
    for line in read_entries(disk, path)? {
        let mut fields = line.split_ascii_whitespace();
        let parsed = (|| {
            let topic = fields.next()?;
            let partition = fields.next()?.parse().ok()?;
            let offset: i64 = fields.next()?.parse().ok().filter(|o| *o >= 0)?;
            let end = fields.next().is_none();
            end.then_some((TopicPartition::new(topic, partition).ok()?, offset))
        })();
        let (partition, offset) = parsed.ok_or_else(|| bad_line(path, &line))?;
        offsets.insert(partition, offset);
    }
    Ok(offsets)
}

/// Replaces an offset checkpoint.
pub(crate) fn write_offsets(
    disk: &dyn Disk,
    path: &Path,
    offsets: &PartitionOffsets,
) -> Result<()> {
    let lines =
        offsets.iter().map(|(p, offset)| format!("{} {} {offset}", p.topic(), p.partition()));
    write_entries(disk, path, lines)
}

/// Reads `<epoch> <start offset>` lines; both must rise strictly.
pub(crate) fn read_epochs(disk: &dyn Disk, dir: &Path) -> Result<Vec<(i32, i64)>> {
    let path = dir.join(LEADER_EPOCHS);
    let mut epochs: Vec<(i32, i64)> = Vec::new();
    for line in read_entries(disk, &path)? {
        let parsed = line.split_once(' ').and_then(|(epoch, start)| {
            let epoch: i32 = epoch.parse().ok().filter(|e| *e >= 0)?;
            let start: i64 = start.parse().ok().filter(|s| *s >= 0)?;
            Some((epoch, start))
        });
        let entry = parsed.ok_or_else(|| bad_line(&path, &line))?;
        if epochs.last().is_some_and(|last| entry.0 <= last.0 || entry.1 <= last.1) {
            return Err(bad_line(&path, &line));
        }
        epochs.push(entry);
    }
    Ok(epochs)
}

/// Replaces the leader epochs of a partition.
pub(crate) fn write_epochs(disk: &dyn Disk, dir: &Path, epochs: &[(i32, i64)]) -> Result<()> {
    let lines = epochs.iter().map(|(epoch, start)| format!("{epoch} {start}"));
    write_entries(disk, &dir.join(LEADER_EPOCHS), lines)
}

/// The topic id of a partition directory; `None` if it has none yet.
pub(crate) fn read_topic_id(disk: &dyn Disk, dir: &Path) -> Result<Option<Uuid>> {
    let path = dir.join(PARTITION_METADATA);
    let Some(text) = read_text(disk, &path)? else { return Ok(None) };
    let mut lines = text.lines();
    if lines.next() != Some("version: 0") {
        return Err(format_error(&path, "its first line is not \"version: 0\""));
    }
    let id = lines
        .next()
        .and_then(|line| line.strip_prefix("topic_id: "))
        .and_then(|id| URL_SAFE_NO_PAD.decode(id).ok())
        .and_then(|bytes| Uuid::from_slice(&bytes).ok());
    id.map(Some).ok_or_else(|| format_error(&path, "its second line is not \"topic_id: <id>\""))
}

/// Writes a new partition's topic id.
pub(crate) fn write_topic_id(disk: &dyn Disk, dir: &Path, id: Uuid) -> Result<()> {
    replace(
        disk,
        &dir.join(PARTITION_METADATA),
        &format!("version: 0\ntopic_id: {}", topic_id_text(id)),
    )
}

/// A topic id as Kafka prints it: base64url without padding.
#[must_use]
pub fn topic_id_text(id: Uuid) -> String {
    URL_SAFE_NO_PAD.encode(id.as_bytes())
}

/// Reads a topic id as Kafka prints it.
#[must_use]
pub fn parse_topic_id(text: &str) -> Option<Uuid> {
    Uuid::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// The broker epoch in the mark of a clean shutdown; `None` if there is no mark.
///
/// A mark that does not parse is still a mark, as in Kafka: its epoch is then −1.
pub(crate) fn read_clean_shutdown(disk: &dyn Disk, dir: &Path) -> Result<Option<i64>> {
    let text = read_text(disk, &dir.join(CLEAN_SHUTDOWN))?;
    Ok(text.map(|text| {
        let after = text.split_once("\"brokerEpoch\":").map_or("", |(_, after)| after);
        let number = after.trim().trim_end_matches('}').trim();
        number.parse().unwrap_or(-1)
    }))
}

/// Marks the directory as closed and whole. Written last of all.
pub(crate) fn write_clean_shutdown(disk: &dyn Disk, dir: &Path, broker_epoch: i64) -> Result<()> {
    let json = format!("{{\"version\":0,\"brokerEpoch\":{broker_epoch}}}");
    replace(disk, &dir.join(CLEAN_SHUTDOWN), &json)
}

/// Takes the mark away, durably: from here on a crash means recovery.
pub(crate) fn remove_clean_shutdown(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let path = dir.join(CLEAN_SHUTDOWN);
    match disk.remove_file(&path) {
        Ok(()) => disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", path, e)),
    }
}

/// The lines after version and count, which must be right.
fn read_entries(disk: &dyn Disk, path: &Path) -> Result<Vec<String>> {
    // Kafka makes its checkpoint files empty and fills them later.
    let text = read_text(disk, path)?.unwrap_or_default();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut lines = text.lines();
    if lines.next().map(str::trim) != Some("0") {
        return Err(format_error(path, "its first line is not version 0"));
    }
    let count = lines.next().and_then(|line| line.trim().parse::<usize>().ok());
    let entries: Vec<String> = lines.map(str::to_owned).filter(|l| !l.is_empty()).collect();
    if count != Some(entries.len()) {
        return Err(format_error(path, "its second line is not the number of its entries"));
    }
    Ok(entries)
}

fn write_entries(
    disk: &dyn Disk,
    path: &Path,
    lines: impl ExactSizeIterator<Item = String>,
) -> Result<()> {
    let mut text = format!("0\n{}\n", lines.len());
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    replace(disk, path, &text)
}

pub(crate) fn read_text(disk: &dyn Disk, path: &Path) -> Result<Option<String>> {
    let file = match disk.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let len = file.len().map_err(|e| Error::io("stat", path, e))?;
    if len > FILE_BYTES_MAX {
        return Err(format_error(path, "it is over 256 MiB, which no checkpoint is"));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    let read = file.read_up_to(&mut bytes, 0).map_err(|e| Error::io("read", path, e))?;
    bytes.truncate(read);
    String::from_utf8(bytes).map(Some).map_err(|_| format_error(path, "it is not UTF-8"))
}

/// Replaces a text file whole, durably.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, text: &str) -> Result<()> {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".tmp");
    let tmp = PathBuf::from(tmp);
    let file =
        disk.open(&tmp, OpenMode::CreateOrTruncate).map_err(|e| Error::io("create", &tmp, e))?;
    file.write_all_at(text.as_bytes(), 0).map_err(|e| Error::io("write", &tmp, e))?;
    file.sync_data().map_err(|e| Error::io("sync", &tmp, e))?;
    disk.rename(&tmp, path).map_err(|e| Error::io("rename to", path, e))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
}

fn bad_line(path: &Path, line: &str) -> Error {
    let shown: String = line.chars().take(80).collect();
    format_error(path, &format!("line {shown:?} is malformed or out of order"))
}

fn format_error(path: &Path, reason: &str) -> Error {
    Error::Format { path: path.to_owned(), reason: reason.to_owned() }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::io::BackendChoice;
    use std::fs;

    fn disk(dir: &Path) -> std::sync::Arc<dyn Disk> {
        crate::io::open(dir, BackendChoice::Plain).unwrap()
    }

    #[test]
    fn offsets_are_kafkas_bytes_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RECOVERY_POINTS);
        let disk = disk(dir.path());
        assert!(read_offsets(disk.as_ref(), &path).unwrap().is_empty());
        let mut offsets = PartitionOffsets::new();
        offsets.insert("a-b-0".parse().unwrap(), 7);
        offsets.insert("t-11".parse().unwrap(), 0);
        write_offsets(disk.as_ref(), &path, &offsets).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "0\n2\na-b 0 7\nt 11 0\n");
        assert_eq!(read_offsets(disk.as_ref(), &path).unwrap(), offsets);
        assert!(!dir.path().join("recovery-point-offset-checkpoint.tmp").exists());
    }

    #[test]
    fn a_checkpoint_that_does_not_add_up_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RECOVERY_POINTS);
        let disk = disk(dir.path());
        let broken = [
            "\n",
            "1\n0\n",
            "0\n2\nt 0 1\n",
            "0\n1\nt 0\n",
            "0\n1\nt 0 -1\n",
            "0\n1\nt 0 1 2\n",
            "0\n1\n../x 0 1\n",
            "0\nx\n",
        ];
        for text in broken {
            fs::write(&path, text).unwrap();
            let error = read_offsets(disk.as_ref(), &path).unwrap_err();
            assert!(error.to_string().contains(RECOVERY_POINTS), "{text:?}: {error}");
        }
        for text in ["0\n2\n1 5\n1 6\n", "0\n2\n1 5\n2 5\n", "0\n1\n-1 0\n"] {
            fs::write(dir.path().join(LEADER_EPOCHS), text).unwrap();
            assert!(read_epochs(disk.as_ref(), dir.path()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn topic_ids_and_the_clean_mark_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        assert_eq!(read_topic_id(disk.as_ref(), dir.path()).unwrap(), None);
        let id = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        write_topic_id(disk.as_ref(), dir.path(), id).unwrap();
        assert_eq!(read_topic_id(disk.as_ref(), dir.path()).unwrap(), Some(id));
        assert_eq!(parse_topic_id(&topic_id_text(id)), Some(id));

        assert_eq!(read_clean_shutdown(disk.as_ref(), dir.path()).unwrap(), None);
        write_clean_shutdown(disk.as_ref(), dir.path(), 42).unwrap();
        let bytes = fs::read_to_string(dir.path().join(CLEAN_SHUTDOWN)).unwrap();
        assert_eq!(bytes, "{\"version\":0,\"brokerEpoch\":42}");
        assert_eq!(read_clean_shutdown(disk.as_ref(), dir.path()).unwrap(), Some(42));
        remove_clean_shutdown(disk.as_ref(), dir.path()).unwrap();
        remove_clean_shutdown(disk.as_ref(), dir.path()).unwrap();
        assert_eq!(read_clean_shutdown(disk.as_ref(), dir.path()).unwrap(), None);
    }
}
