//! Names of a segment's files: twenty digits of the base offset, then a suffix (Kafka `LogFileUtils`).

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

pub(crate) const LOG: &str = ".log";
pub(crate) const INDEX: &str = ".index";
pub(crate) const TIME_INDEX: &str = ".timeindex";
pub(crate) const SNAPSHOT: &str = ".snapshot";
pub(crate) const TXN_INDEX: &str = ".txnindex";
/// Ours: records from this offset to the next segment were lost. Kafka passes such files over.
pub(crate) const LOST: &str = ".lost";
/// Renamed, to be unlinked later.
pub(crate) const DELETED: &str = ".deleted";
/// Half-written by a cleaner; thrown away at open.
pub(crate) const CLEANED: &str = ".cleaned";
/// Finished by a cleaner; takes its sources' place at open.
pub(crate) const SWAP: &str = ".swap";

/// The files that make a segment, the log last: a crash between two of several renames or removals
/// then leaves a log without indexes, which is rebuilt, rather than indexes without a log.
pub(crate) const SEGMENT_SUFFIXES: [&str; 4] = [INDEX, TIME_INDEX, TXN_INDEX, LOG];

/// `<dir>/00000000000000000123<suffix>`.
pub(crate) fn path(dir: &Path, base_offset: i64, suffix: &str) -> PathBuf {
    dir.join(format!("{base_offset:020}{suffix}"))
}

/// The base offset of a file with exactly this suffix.
pub(crate) fn base_offset(name: &str, suffix: &str) -> Option<i64> {
    let digits = name.strip_suffix(suffix)?;
    let is_number = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_not_taken_for_segments() {
        assert_eq!(path(Path::new("d"), 42, LOG), Path::new("d/00000000000000000042.log"));
        assert_eq!(base_offset("00000000000000000042.log", LOG), Some(42));
        for name in ["42.log", "0000000000000000004x.log", "00000000000000000042.log.deleted"] {
            assert_eq!(base_offset(name, LOG), None);
        }
        assert_eq!(base_offset("99999999999999999999.log", LOG), None, "over 2^63");
    }
}
