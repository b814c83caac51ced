//! Loglane's own text files that outlive a clean close: lines with a version before and a checksum
//! behind them.
//!
//! ```text
//! version 1
//! <lines: words with a space between; a word has no byte outside ASCII 33..126>
//! crc <8 hex digits: CRC-32C of all before this line>
//! ```
//!
//! Replaced whole, as Kafka's checkpoints are. Kafka passes plain files over. A file that does not add
//! up is an error: what decides about deletions is not guessed.

#![forbid(unsafe_code)]

use crate::checkpoint;
use crate::error::{Error, Result};
use crate::format::crc32c;
use crate::io::Disk;
use std::path::Path;

const VERSION_LINE: &str = "version 1";

/// The lines of a file; none if it is not there.
pub(crate) fn read(disk: &dyn Disk, path: &Path) -> Result<Vec<String>> {
    let Some(text) = checkpoint::read_text(disk, path)? else { return Ok(Vec::new()) };
    parse(&text).map_err(|reason| bad(path, reason))
}

fn parse(text: &str) -> std::result::Result<Vec<String>, &'static str> {
    let version = text.lines().next().unwrap_or_default();
    if version != VERSION_LINE {
        return Err("its first line is not \"version 1\"");
    }
    let at = text.rfind("crc ").ok_or("its last line is not \"crc <checksum>\"")?;
    let (before, last) = text.split_at(at);
    let expected = format!("crc {:08x}\n", crc32c(before.as_bytes()));
    if last != expected {
        return Err("its checksum is not that of its lines");
    }
    Ok(before.lines().skip(1).map(str::to_owned).collect())
}

/// Replaces a file, durably. Without lines it goes.
pub(crate) fn write(disk: &dyn Disk, path: &Path, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return match disk.remove_file(path) {
            Ok(()) => {
                let dir = path.parent().unwrap_or(Path::new("."));
                disk.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("remove", path, e)),
        };
    }
    checkpoint::replace(disk, path, &compose(lines))
}

fn compose(lines: &[String]) -> String {
    let mut text = format!("{VERSION_LINE}\n");
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    let crc = crc32c(text.as_bytes());
    text.push_str(&format!("crc {crc:08x}\n"));
    text
}

pub(crate) fn bad(path: &Path, reason: impl Into<String>) -> Error {
    Error::Format { path: path.to_owned(), reason: reason.into() }
}

/// Any text as one word: bytes that a word cannot have become `%XX`; an empty text becomes `%`.
pub(crate) fn to_word(text: &str) -> String {
    if text.is_empty() {
        return "%".into();
    }
    let mut word = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => word.push_str("%25"),
            b'!'..=b'~' => word.push(byte.into()),
            _ => word.push_str(&format!("%{byte:02X}")),
        }
    }
    word
}

/// The text of a word.
pub(crate) fn from_word(word: &str) -> Option<String> {
    if word == "%" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = behind;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_text_comes_back_from_its_word(text in ".{0,40}") {
            let word = to_word(&text);
            prop_assert!(!word.is_empty() && word.bytes().all(|b| (b'!'..=b'~').contains(&b)));
            prop_assert_eq!(from_word(&word), Some(text));
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0..60_usize, bit in 0..7_u32) {
            let text = compose(&["topic a -".into(), "set retention_ms 1000".into()]);
            let mut bytes = text.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let changed = String::from_utf8(bytes).unwrap();
            // A line's end may be another that lines() takes for one; the checksum sees it too.
            prop_assert!(parse(&changed).is_err(), "{:?}", changed);
        }
    }

    #[test]
    fn every_beginning_of_a_file_is_an_error() {
        let text = compose(&["a b".into(), "c".into()]);
        assert_eq!(parse(&text).unwrap(), ["a b", "c"]);
        for end in 0..text.len() {
            assert!(parse(&text[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn broken_words_are_none() {
        for word in ["%2", "%zz", "a%", "%FF"] {
            assert_eq!(from_word(word), None, "{word}");
        }
    }
}
