//! Pins: somebody still needs the records from an offset on, says who and why, and until when.
//!
//! ```text
//! loglane-pins     next <id of the next pin>
//!                  pin <id> <topic> <partition> <topic id or -> <offset> <made, ms> <expires, ms or -> <owner> <reason>
//! ```
//!
//! Pins outlive restarts: whoever holds one is often away just then. An expired one holds nothing from
//! that moment on; its line goes with the next round of retention. A pin of a topic that was deleted
//! and made again has another topic id and says nothing.

#![forbid(unsafe_code)]

use crate::checkpoint::{parse_topic_id, topic_id_text};
use crate::error::{Error, Result};
use crate::io::Disk;
use crate::offset::Offset;
use crate::settings::text;
use crate::topic::TopicPartition;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// The file, beside Kafka's checkpoints.
const PINS_FILE: &str = "loglane-pins";

/// Longest owner, in bytes.
const OWNER_BYTES_MAX: usize = 256;
/// Longest reason, in bytes.
const REASON_BYTES_MAX: usize = 1024;
/// Most pins of a directory: each round of retention looks at those of a partition, and each change
/// writes them all.
const PINS_MAX: usize = 65_536;

/// The number of a pin; never given twice in a directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PinId(pub u64);

impl fmt::Display for PinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Keeps the records of a partition from an offset on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pin {
    /// What to release it by.
    pub id: PinId,
    /// Who needs the records; for people.
    pub owner: String,
    /// What for; for people.
    pub reason: String,
    /// Records at and above it stay.
    pub offset: Offset,
    /// When it was made, Unix ms.
    pub created_ms: i64,
    /// From this time on (Unix ms) it holds nothing. `None`: until it is released.
    pub expires_ms: Option<i64>,
}

impl Pin {
    /// True while it holds records.
    pub(crate) fn is_live(&self, now_ms: i64) -> bool {
        self.expires_ms.is_none_or(|expires| now_ms < expires)
    }
}

/// The pins of a data directory.
pub(crate) struct Pins {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    board: Mutex<Board>,
    /// Held while the file is replaced; always taken before `board`.
    writing: Mutex<()>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Board {
    next: u64,
    pins: BTreeMap<TopicPartition, Vec<Placed>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Placed {
    topic_id: Option<Uuid>,
    pin: Pin,
}

/// Which partition: a name may be given again, with another id.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) name: &'a TopicPartition,
    pub(crate) topic_id: Option<Uuid>,
}

impl Pins {
    /// Reads what is stored.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Pins> {
        let path = dir.join(PINS_FILE);
        let lines = text::read(disk.as_ref(), &path)?;
        let board = parse(&lines).map_err(|reason| text::bad(&path, reason))?;
        Ok(Pins { disk, path, board: Mutex::new(board), writing: Mutex::default() })
    }

    /// The lowest offset that is pinned.
    pub(crate) fn floor(&self, place: Place<'_>, now_ms: i64) -> Option<i64> {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let live = board.of(place).filter(|pin| pin.is_live(now_ms));
        live.map(|pin| pin.offset.0).min()
    }

    /// The live pins of a partition, oldest first.
    pub(crate) fn list(&self, place: Place<'_>, now_ms: i64) -> Vec<Pin> {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.of(place).filter(|pin| pin.is_live(now_ms)).cloned().collect()
    }

    /// Adds a pin (its id is given here) that holds at once, asks `check` whether its offset can still
    /// be held, and makes it durable. On an error there is no pin.
    pub(crate) fn add(
        &self,
        place: Place<'_>,
        mut pin: Pin,
        check: impl FnOnce() -> Result<()>,
    ) -> Result<Pin> {
        check_text("pin owner", &pin.owner, OWNER_BYTES_MAX)?;
        check_text("pin reason", &pin.reason, REASON_BYTES_MAX)?;
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let after = {
            let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
            if board.pins.values().map(Vec::len).sum::<usize>() >= PINS_MAX {
                let reason = format!("a directory has at most {PINS_MAX}");
                return Err(Error::Config { key: "pins", reason });
            }
            pin.id = PinId(board.next);
            board.next += 1;
            let placed = Placed { topic_id: place.topic_id, pin: pin.clone() };
            board.pins.entry(place.name.clone()).or_default().push(placed);
            board.clone()
        };
        let added =
            check().and_then(|()| text::write(self.disk.as_ref(), &self.path, &compose(&after)));
        if let Err(error) = added {
            let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
            board.remove(place.name, |placed| placed.pin.id == pin.id);
            return Err(error);
        }
        Ok(pin)
    }

    /// Moves a live pin up, and its expiry to any time. It never moves down: what is below may be gone.
    pub(crate) fn advance(
        &self,
        place: Place<'_>,
        id: PinId,
        offset: Offset,
        expires_ms: Option<i64>,
        now_ms: i64,
    ) -> Result<Pin> {
        let mut moved = None;
        self.change(|board| {
            let pins = board.pins.get_mut(place.name).into_iter().flatten();
            let is_it = |p: &&mut Placed| {
                p.pin.id == id && p.topic_id == place.topic_id && p.pin.is_live(now_ms)
            };
            for placed in pins.filter(is_it) {
                placed.pin.offset = placed.pin.offset.max(offset);
                placed.pin.expires_ms = expires_ms;
                moved = Some(placed.pin.clone());
            }
        })?;
        moved.ok_or_else(|| not_found(place, id))
    }

    /// Lets go. Gone from the disk first: a pin that comes back holds too much, never too little.
    pub(crate) fn release(&self, place: Place<'_>, id: PinId) -> Result<()> {
        let mut found = false;
        self.change(|board| {
            found = board.remove(place.name, |placed| {
                placed.pin.id == id && placed.topic_id == place.topic_id
            });
        })?;
        if found { Ok(()) } else { Err(not_found(place, id)) }
    }

    /// Drops what has expired.
    pub(crate) fn drop_expired(&self, now_ms: i64) -> Result<()> {
        self.change(|board| {
            for placed in board.pins.values_mut() {
                placed.retain(|placed| placed.pin.is_live(now_ms));
            }
            board.pins.retain(|_, placed| !placed.is_empty());
        })
    }

    /// Drops the pins of a topic that was deleted.
    pub(crate) fn forget(&self, topic: &str) -> Result<()> {
        self.change(|board| board.pins.retain(|name, _| name.topic() != topic))
    }

    /// Makes a change that holds less: on disk first, then in memory.
    fn change(&self, change: impl FnOnce(&mut Board)) -> Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.board.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut after = before.clone();
        change(&mut after);
        if after == before {
            return Ok(());
        }
        text::write(self.disk.as_ref(), &self.path, &compose(&after))?;
        *self.board.lock().unwrap_or_else(PoisonError::into_inner) = after;
        Ok(())
    }
}

impl Board {
    fn of<'b>(&'b self, place: Place<'b>) -> impl Iterator<Item = &'b Pin> {
        let placed = self.pins.get(place.name).into_iter().flatten();
        placed.filter(move |p| p.topic_id == place.topic_id).map(|placed| &placed.pin)
    }

    /// True if there was one.
    fn remove(&mut self, name: &TopicPartition, is_it: impl Fn(&Placed) -> bool) -> bool {
        let Some(placed) = self.pins.get_mut(name) else { return false };
        let before = placed.len();
        placed.retain(|placed| !is_it(placed));
        let removed = placed.len() < before;
        if placed.is_empty() {
            self.pins.remove(name);
        }
        removed
    }
}

fn check_text(key: &'static str, text: &str, bytes_max: usize) -> Result<()> {
    if text.len() > bytes_max {
        let reason = format!("{} bytes are over the limit of {bytes_max}", text.len());
        return Err(Error::Config { key, reason });
    }
    Ok(())
}

fn not_found(place: Place<'_>, id: PinId) -> Error {
    Error::NotFound { what: format!("pin {id} of {}", place.name) }
}

fn compose(board: &Board) -> Vec<String> {
    // The number stays when the last pin goes: an id in somebody's hands must never mean another.
    let mut lines = vec![format!("next {}", board.next)];
    for (name, placed) in &board.pins {
        for Placed { topic_id, pin } in placed {
            lines.push(format!(
                "pin {} {} {} {} {} {} {} {} {}",
                pin.id,
                name.topic(),
                name.partition(),
                topic_id.map_or("-".into(), topic_id_text),
                pin.offset,
                pin.created_ms,
                pin.expires_ms.map_or("-".into(), |ms| ms.to_string()),
                text::to_word(&pin.owner),
                text::to_word(&pin.reason),
            ));
        }
    }
    lines
}

fn parse(lines: &[String]) -> std::result::Result<Board, String> {
    let mut board = Board { next: 1, pins: BTreeMap::new() };
    for line in lines {
        let next = line.strip_prefix("next ").and_then(|next| next.parse().ok());
        match (next, parse_pin(line)) {
            (Some(next), _) => board.next = next,
            (None, Some((name, placed))) => {
                board.next = board.next.max(placed.pin.id.0.saturating_add(1));
                board.pins.entry(name).or_default().push(placed);
            }
            (None, None) => {
                let shown: String = line.chars().take(80).collect();
                return Err(format!("line {shown:?} is malformed"));
            }
        }
    }
    Ok(board)
}

fn parse_pin(line: &str) -> Option<(TopicPartition, Placed)> {
    let words: Vec<&str> = line.split(' ').collect();
    let ["pin", id, topic, partition, topic_id, offset, created, expires, owner, reason] =
        words.as_slice()
    else {
        return None;
    };
    let name = TopicPartition::new(topic, partition.parse().ok()?).ok()?;
    let topic_id = match *topic_id {
        "-" => None,
        id => Some(parse_topic_id(id)?),
    };
    let expires_ms = match *expires {
        "-" => None,
        ms => Some(ms.parse().ok()?),
    };
    let pin = Pin {
        id: PinId(id.parse().ok()?),
        owner: text::from_word(owner)?,
        reason: text::from_word(reason)?,
        offset: Offset(offset.parse().ok()?),
        created_ms: created.parse().ok()?,
        expires_ms,
    };
    Some((name, Placed { topic_id, pin }))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::io::BackendChoice;
    use proptest::prelude::*;

    fn pins(dir: &Path) -> Pins {
        Pins::open(crate::io::open(dir, BackendChoice::Plain).unwrap(), dir).unwrap()
    }

    fn pin(offset: i64, expires_ms: Option<i64>) -> Pin {
        Pin {
            id: PinId(0),
            owner: "nightly backup".into(),
            reason: String::new(),
            offset: Offset(offset),
            created_ms: 5,
            expires_ms,
        }
    }

    #[test]
    fn pins_come_back_after_a_restart_and_ids_are_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let name = "a-b-3".parse().unwrap();
        let place = Place { name: &name, topic_id: Some(Uuid::from_u128(9)) };
        let first = pins(dir.path()).add(place, pin(7, None), || Ok(())).unwrap();
        let second = pins(dir.path()).add(place, pin(4, Some(100)), || Ok(())).unwrap();
        assert!(second.id > first.id);
        let reopened = pins(dir.path());
        assert_eq!(reopened.list(place, 99), [first.clone(), second.clone()]);
        assert_eq!(reopened.floor(place, 99), Some(4));
        assert_eq!(reopened.floor(place, 100), Some(7), "the lower one has expired");
        let other = Place { name: &name, topic_id: None };
        assert_eq!(reopened.floor(other, 0), None, "a topic of the same name");
        assert!(reopened.release(other, first.id).is_err());
        reopened.release(place, first.id).unwrap();
        reopened.release(place, first.id).unwrap_err();
        reopened.drop_expired(100).unwrap();
        let last = pins(dir.path());
        assert_eq!(last.list(place, 0), []);
        assert!(last.add(place, pin(0, None), || Ok(())).unwrap().id > second.id);
    }

    #[test]
    fn a_pin_moves_up_only() {
        let dir = tempfile::tempdir().unwrap();
        let name = "t-0".parse().unwrap();
        let place = Place { name: &name, topic_id: None };
        let pins = pins(dir.path());
        let id = pins.add(place, pin(7, None), || Ok(())).unwrap().id;
        assert_eq!(pins.advance(place, id, Offset(9), Some(50), 0).unwrap().offset, Offset(9));
        assert_eq!(pins.advance(place, id, Offset(3), None, 49).unwrap().offset, Offset(9));
        assert_eq!(pins.floor(place, 60), Some(9), "renewed for ever");
        pins.advance(place, PinId(99), Offset(3), None, 0).unwrap_err();
        pins.advance(place, id, Offset(9), Some(50), 0).unwrap();
        pins.advance(place, id, Offset(9), None, 50).unwrap_err();
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_lines_are_read_or_refused_and_what_is_read_is_written_again(
            lines in proptest::collection::vec(
                "(next|pin)( (t|0|1|7|-|-3|%|%20|a%|AAAAAAAAAAAAAAAAAAAABw)){0,10}", 0..5)
        ) {
            if let Ok(board) = parse(&lines) {
                prop_assert_eq!(parse(&compose(&board)), Ok(board));
            }
        }
    }

    #[test]
    fn a_pin_that_is_refused_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let name = "t-0".parse().unwrap();
        let place = Place { name: &name, topic_id: None };
        let pins = pins(dir.path());
        let refused = || Err(Error::Closed { what: "t-0".into() });
        pins.add(place, pin(7, None), refused).unwrap_err();
        let long = Pin { owner: "x".repeat(OWNER_BYTES_MAX + 1), ..pin(7, None) };
        pins.add(place, long, || Ok(())).unwrap_err();
        assert_eq!(pins.floor(place, 0), None);
        assert!(!dir.path().join(PINS_FILE).exists());
    }
}
