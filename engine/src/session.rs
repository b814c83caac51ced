//! What one open of a directory leaves for the next, if it is not closed.
//!
//! ```text
//! loglane-session    "version 1\n" "session <number>\n" "mount <id>\n" "doubt\n"
//! ```
//!
//! The mount is there if the system tells it and nothing waits for recovery; the doubt if a sync
//! failed: then what the page cache holds past the recovery points may never reach the disk, however
//! often it is synced, and the next open writes it anew.
//!
//! Equal mount ids say that the kernel has run and the file system has stayed mounted since: the
//! process alone died, and what it wrote is in the page cache. That there is such a file says that
//! this engine wrote last: its segments follow each other without a gap.

#![forbid(unsafe_code)]

use crate::checkpoint;
use crate::error::{Error, Result};
use crate::io::{Disk, MountId, OpenMode};
use std::io;
use std::path::Path;

const SESSION_FILE: &str = "loglane-session";

/// The session before this one, if it did not end with a clean close.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Session {
    pub(crate) number: u64,
    pub(crate) mount: Option<MountId>,
    pub(crate) doubt: bool,
}

pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Session>> {
    let path = dir.join(SESSION_FILE);
    let file = match disk.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let mut bytes = vec![0; 512];
    let read = file.read_up_to(&mut bytes, 0).map_err(|e| Error::io("read", &path, e))?;
    bytes.truncate(read);
    // Torn or of another version: then it says nothing, which costs time, not records.
    Ok(std::str::from_utf8(&bytes).ok().and_then(parse))
}

fn parse(text: &str) -> Option<Session> {
    let mut lines = text.split_inclusive('\n').map_while(|line| line.strip_suffix('\n'));
    (lines.next()? == "version 1").then_some(())?;
    let number = lines.next()?.strip_prefix("session ")?.parse().ok()?;
    let rest: Vec<&str> = lines.collect();
    let mount = rest.iter().find_map(|line| line.strip_prefix("mount "));
    let doubt = rest.contains(&"doubt");
    Some(Session { number, mount: mount.map(|id| MountId(id.to_owned())), doubt })
}

pub(crate) fn write(disk: &dyn Disk, dir: &Path, session: &Session) -> Result<()> {
    let path = dir.join(SESSION_FILE);
    let mut text = format!("version 1\nsession {}\n", session.number);
    if let Some(MountId(id)) = &session.mount {
        text.push_str(&format!("mount {id}\n"));
    }
    if session.doubt {
        text.push_str("doubt\n");
    }
    checkpoint::replace(disk, &path, &text)
}

/// A sync failed: the next open must not trust the page cache.
pub(crate) fn doubt(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let session = read(disk, dir)?.unwrap_or(Session { number: 0, mount: None, doubt: false });
    match session.doubt {
        true => Ok(()),
        false => write(disk, dir, &Session { mount: None, doubt: true, ..session }),
    }
}

pub(crate) fn remove(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let path = dir.join(SESSION_FILE);
    match disk.remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_comes_back_and_a_torn_one_says_nothing() {
        let whole = "version 1\nsession 7\nmount a b\n";
        let mount = Some(MountId("a b".into()));
        assert_eq!(parse(whole), Some(Session { number: 7, mount, doubt: false }));
        assert!(parse("version 1\nsession 7\ndoubt\n").unwrap().doubt);
        for cut in 0..whole.len() {
            let parsed = parse(&whole[..cut]);
            assert!(parsed.is_none_or(|s| s.number == 7 && s.mount.is_none()), "cut at {cut}");
        }
        assert_eq!(parse("version 2\nsession 7\n"), None);
    }
}
