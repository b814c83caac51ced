//! The open state file: changes go to its end, syncs cover them, and when it has grown to several
//! times what it holds it is written anew.
//!
//! Shared by the shards of a directory, under one lock. A write is one `pwrite` of the page cache; a
//! rewrite syncs under the lock, and is rare.

#![forbid(unsafe_code)]

use super::format::{ALIGN, HEADER_BYTES, Header, encode};
use super::values::Values;
use super::{Change, Scope};
use crate::error::{Error, Result};
use crate::io::{Disk, FileRef, OpenMode, Waker};
use crate::planted::{Bug, planted};
use crate::topic::TopicPartition;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The file of a directory's values.
pub(super) const STATE_FILE: &str = "loglane-state";
/// What is about to replace it.
pub(super) const FRESH_FILE: &str = "loglane-state.tmp";

/// A smaller file is not worth a rewrite.
const REWRITE_BYTES_MIN: u64 = if cfg!(test) { 512 } else { 256 << 10 };
/// A file that is this many times what it holds is written anew.
const REWRITE_FACTOR: u64 = 4;
/// Bytes of values in one record of a file that is written anew.
const FRESH_RECORD_BYTES: u64 = 64 << 10;

/// Bytes of the state file that were synced and are not what was written: any value may have been
/// among them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateDamage {
    /// The file.
    pub path: PathBuf,
    /// First byte.
    pub position: u64,
    /// Bytes.
    pub length: u64,
}

/// All values of an open directory.
pub(crate) struct Store {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    path: PathBuf,
    /// Changes with a lower number are in the synced file.
    synced: AtomicU64,
    file_bytes: AtomicU64,
    inner: Mutex<Inner>,
}

/// What a store begins with.
#[derive(Default)]
pub(super) struct Opened {
    pub(super) values: Values,
    /// `None` if there is none yet.
    pub(super) file: Option<FileRef>,
    pub(super) bytes: u64,
    pub(super) synced_bytes: u64,
    pub(super) next_sequence: u64,
    pub(super) damage: Vec<StateDamage>,
}

struct Inner {
    values: Values,
    file: Option<FileRef>,
    /// Where the next record goes.
    bytes: u64,
    /// All of the file below is synced.
    synced_bytes: u64,
    /// Of the next change; failed writes have used theirs up.
    next_sequence: u64,
    /// Rises with each file that takes the name.
    generation: u64,
    syncing: bool,
    /// Shards that want to sync when the sync under way is over.
    waiting: Vec<Arc<Waker>>,
    /// To be written anew before anything is added: what is in it, or its name, is not to be trusted.
    is_unsound: bool,
    /// Its last record only says what is synced, and may itself not be.
    ends_with_mark: bool,
    mark_is_synced: bool,
    damage: Vec<StateDamage>,
}

/// A change that was written.
pub(crate) struct Written {
    /// It is durable when all changes below this number are.
    pub(crate) below: u64,
    /// For the journal.
    pub(crate) record: Bytes,
}

/// A sync of the state file that is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    generation: u64,
    below: u64,
    bytes: u64,
}

/// What became of the wish to sync.
pub(crate) enum SyncStart {
    /// Everything is synced.
    Done,
    /// Another shard syncs; the waker is called when it has.
    Busy,
    /// The file to sync, and what to hand back with the result.
    Started(FileRef, Ticket),
}

impl Store {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, opened: Opened) -> Store {
        let next_sequence = opened.next_sequence.max(1);
        let inner = Inner {
            values: opened.values,
            file: opened.file,
            bytes: opened.bytes,
            synced_bytes: opened.synced_bytes,
            next_sequence,
            generation: 0,
            syncing: false,
            waiting: Vec::new(),
            is_unsound: false,
            ends_with_mark: true,
            mark_is_synced: true,
            damage: opened.damage,
        };
        Store {
            disk,
            dir: dir.to_owned(),
            path: dir.join(STATE_FILE),
            synced: AtomicU64::new(next_sequence),
            file_bytes: AtomicU64::new(opened.bytes),
            inner: Mutex::new(inner),
        }
    }

    /// Changes with a lower number are in the synced file.
    pub(crate) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Size of the file.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of what it holds, about.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.lock().values.bytes()
    }

    /// True if a sync would have something to do, and none is under way.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        let inner = self.lock();
        !inner.syncing && inner.is_dirty(self.synced())
    }

    pub(crate) fn damage(&self) -> Vec<StateDamage> {
        self.lock().damage.clone()
    }

    /// One value.
    ///
    /// # Errors
    /// [`Error::Format`] while damage is not accepted: it may have taken the value.
    pub(crate) fn get(&self, scope: &Scope, key: &[u8]) -> Result<Option<Bytes>> {
        let inner = self.lock();
        inner.check_damage()?;
        Ok(inner.values.get(scope, key).cloned())
    }

    /// All values of a scope.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub(crate) fn of(&self, scope: &Scope) -> Result<BTreeMap<Bytes, Bytes>> {
        let inner = self.lock();
        inner.check_damage()?;
        Ok(inner.values.of(scope))
    }

    /// Groups that have a cursor.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub(crate) fn groups(&self) -> Result<Vec<String>> {
        let inner = self.lock();
        inner.check_damage()?;
        Ok(inner.values.groups().map(str::to_owned).collect())
    }

    /// Adds the changes of one call to the file: in the page cache, and seen, when this returns.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`]: then nothing has changed, though a crash may bring the
    /// change back. [`Error::Format`] while damage is not accepted.
    pub(crate) fn write(&self, changes: &[Change]) -> Result<Written> {
        let mut inner = self.lock();
        inner.check_damage()?;
        if inner.file.is_none() || inner.is_unsound {
            self.rewrite(&mut inner)?;
        }
        let sequence = inner.next_sequence;
        // Not used again if the write fails: a power cut may leave two records of one number.
        inner.next_sequence += 1;
        let record = encode(sequence, inner.bytes, inner.synced_bytes, changes);
        self.add(&mut inner, &record)?;
        inner.ends_with_mark = false;
        for change in changes {
            inner.values.apply(change);
        }
        Ok(Written { below: sequence + 1, record: Bytes::from(record) })
    }

    fn add(&self, inner: &mut Inner, record: &[u8]) -> Result<()> {
        let Some(file) = inner.file.clone() else { return Ok(()) };
        if let Err(error) = file.write_all_at(record, inner.bytes) {
            if let Err(cut) = file.set_len(inner.bytes) {
                tracing::error!(file = %self.path.display(), %cut, "cannot cut a failed write away");
                inner.is_unsound = true;
            }
            return Err(Error::io("write", &self.path, error));
        }
        inner.bytes += record.len() as u64;
        self.file_bytes.store(inner.bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The file to sync for everything written so far; to be answered by one [`Store::on_synced`].
    /// One at a time: of two that fail together, one may be told that all is well.
    ///
    /// # Errors
    /// The file was to be written anew first, and could not be.
    pub(crate) fn begin_sync(&self, waker: &Arc<Waker>) -> Result<SyncStart> {
        let mut inner = self.lock();
        if inner.syncing {
            if !inner.waiting.iter().any(|known| Arc::ptr_eq(known, waker)) {
                inner.waiting.push(Arc::clone(waker));
            }
            return Ok(SyncStart::Busy);
        }
        if inner.is_unsound {
            self.rewrite(&mut inner)?;
        }
        let Some(file) = inner.file.clone().filter(|_| inner.is_dirty(self.synced())) else {
            return Ok(SyncStart::Done);
        };
        inner.syncing = true;
        Ok(SyncStart::Started(file, inner.ticket()))
    }

    /// Takes the result of a sync.
    ///
    /// # Errors
    /// It failed, and the values could not be written to a fresh file either.
    pub(crate) fn on_synced(&self, ticket: Ticket, result: io::Result<()>) -> Result<()> {
        let mut inner = self.lock();
        inner.syncing = false;
        for waker in inner.waiting.drain(..) {
            waker.wake();
        }
        // A file that came since was synced before it had the name.
        if ticket.generation != inner.generation {
            return Ok(());
        }
        self.take_result(&mut inner, ticket, result)
    }

    fn take_result(&self, inner: &mut Inner, ticket: Ticket, result: io::Result<()>) -> Result<()> {
        if let Err(error) = result {
            tracing::error!(file = %self.path.display(), %error, "sync failed; written anew");
            inner.is_unsound = true;
            return self.rewrite(inner);
        }
        inner.synced_bytes = inner.synced_bytes.max(ticket.bytes);
        self.synced.fetch_max(ticket.below, Ordering::AcqRel);
        if inner.bytes == ticket.bytes && !inner.ends_with_mark {
            // Without it, damage at the end would pass for a write that was never finished.
            let mark = encode(inner.next_sequence - 1, inner.bytes, inner.synced_bytes, &[]);
            if let Err(error) = self.add(inner, &mark) {
                tracing::debug!(%error, "no mark of what is synced, this time");
            } else {
                inner.ends_with_mark = true;
                inner.mark_is_synced = false;
            }
        }
        Ok(())
    }

    /// Syncs on this thread.
    ///
    /// # Errors
    /// As [`Store::on_synced`].
    pub(crate) fn sync_now(&self) -> Result<()> {
        self.sync_locked(&mut self.lock())
    }

    fn sync_locked(&self, inner: &mut Inner) -> Result<()> {
        if !inner.is_dirty(self.synced()) {
            return Ok(());
        }
        match inner.file.clone() {
            // The result of one beside it would say nothing.
            Some(file) if !inner.syncing && !inner.is_unsound => {
                let ticket = inner.ticket();
                let synced = file.sync_data().and_then(|()| self.check_alive());
                self.take_result(inner, ticket, synced)
            }
            _ => self.rewrite(inner),
        }
    }

    fn check_alive(&self) -> std::io::Result<()> {
        crate::io::check_alive(self.disk.as_ref(), &self.dir)
    }

    /// Takes away what is kept for a partition, on disk when this returns.
    ///
    /// # Errors
    /// As [`Store::write`] and [`Store::sync_now`].
    pub(crate) fn forget_partition(&self, name: &TopicPartition) -> Result<()> {
        let changes = self.lock().values.for_partition(name);
        // What damage hides is not looked for.
        if changes.is_empty() || !self.lock().damage.is_empty() {
            return Ok(());
        }
        self.write(&changes)?;
        self.sync_now()
    }

    /// Writes the file anew if it has grown to several times what it holds.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`]; the old file then stays as it is, or puts wait for another
    /// try.
    pub(crate) fn rewrite_if_grown(&self) -> Result<()> {
        let mut inner = self.lock();
        let grown = inner.bytes > REWRITE_BYTES_MIN
            && inner.bytes > REWRITE_FACTOR * (inner.values.bytes() + HEADER_BYTES as u64);
        match grown && inner.damage.is_empty() {
            true => self.rewrite(&mut inner),
            false => Ok(()),
        }
    }

    /// Writes all values to a fresh file: synced, then renamed, then the name synced.
    ///
    /// # Errors
    /// As [`Store::rewrite_if_grown`].
    pub(crate) fn rewrite_now(&self) -> Result<()> {
        self.rewrite(&mut self.lock())
    }

    fn rewrite(&self, inner: &mut Inner) -> Result<()> {
        let bytes = encode_all(&inner.values, inner.next_sequence - 1);
        let file = self.make_fresh(&bytes)?;
        // From here on this is the file, though a power cut may bring the old one back: until the
        // name is synced nothing more counts as synced.
        inner.is_unsound = true;
        inner.file = Some(file);
        inner.bytes = bytes.len() as u64;
        inner.generation += 1;
        inner.ends_with_mark = true;
        inner.mark_is_synced = true;
        self.file_bytes.store(inner.bytes, Ordering::Relaxed);
        let synced = self.disk.sync_dir(&self.dir).and_then(|()| self.check_alive());
        synced.map_err(|e| Error::io("sync", &self.dir, e))?;
        inner.is_unsound = false;
        inner.synced_bytes = inner.bytes;
        self.synced.fetch_max(inner.next_sequence, Ordering::AcqRel);
        Ok(())
    }

    /// Gives a file with these bytes the name.
    fn make_fresh(&self, bytes: &[u8]) -> Result<FileRef> {
        let fresh = self.dir.join(FRESH_FILE);
        let made = write_synced(self.disk.as_ref(), &fresh, bytes).and_then(|file| {
            let renamed = self.disk.rename(&fresh, &self.path);
            renamed.map(|()| file).map_err(|e| Error::io("rename to", &self.path, e))
        });
        if made.is_err() {
            // It takes space that somebody may need.
            let _ = self.disk.remove_file(&fresh);
        }
        made
    }

    /// Goes on without what was damaged. The file stays, under the name that is returned; `None` if
    /// nothing was.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`]; then nothing has changed.
    pub(crate) fn accept_damage(&self) -> Result<Option<PathBuf>> {
        let mut inner = self.lock();
        if inner.damage.is_empty() {
            return Ok(None);
        }
        let kept = self.dir.join(format!("{STATE_FILE}-damaged-{}", inner.next_sequence));
        let bytes = super::open::read_bytes(self.disk.as_ref(), &self.path)?.unwrap_or_default();
        write_synced(self.disk.as_ref(), &kept, &bytes)?;
        self.disk.sync_dir(&self.dir).map_err(|e| Error::io("sync", &self.dir, e))?;
        self.rewrite(&mut inner)?;
        inner.damage.clear();
        Ok(Some(kept))
    }

    /// Makes the file complete: what is written is synced, and the file says so.
    ///
    /// # Errors
    /// As [`Store::on_synced`].
    pub(crate) fn close(&self) -> Result<()> {
        let mut inner = self.lock();
        if !inner.damage.is_empty() {
            return Ok(());
        }
        self.sync_locked(&mut inner)?;
        if inner.mark_is_synced {
            return Ok(());
        }
        let synced = inner.file.as_ref().map(|file| file.sync_data());
        match synced.map(|synced| synced.and_then(|()| self.check_alive())) {
            None | Some(Ok(())) => inner.mark_is_synced = true,
            Some(Err(_)) => self.rewrite(&mut inner)?,
        }
        Ok(())
    }

    /// Takes the file away if it holds nothing; after the journals, which may hold what was removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn remove_if_empty(&self) -> Result<()> {
        let mut inner = self.lock();
        if inner.file.is_none() || !inner.values.is_empty() || !inner.damage.is_empty() {
            return Ok(());
        }
        self.disk.remove_file(&self.path).map_err(|e| Error::io("remove", &self.path, e))?;
        inner.file = None;
        self.disk.sync_dir(&self.dir).map_err(|e| Error::io("sync", &self.dir, e))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_dirty(&self, synced: u64) -> bool {
        self.is_unsound || (self.file.is_some() && synced < self.next_sequence)
    }

    fn ticket(&self) -> Ticket {
        Ticket { generation: self.generation, below: self.next_sequence, bytes: self.bytes }
    }

    fn check_damage(&self) -> Result<()> {
        let Some(StateDamage { path, position, length }) = self.damage.first() else {
            return Ok(());
        };
        let reason = format!(
            "{length} bytes at {position} are not what was written, and any value may have been \
             among them; restore the file, or accept the loss"
        );
        Err(Error::Format { path: path.clone(), reason })
    }
}

/// A file that holds all values and nothing else.
fn encode_all(values: &Values, base_sequence: u64) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    let mut changes = Vec::new();
    let mut gathered = 0;
    let mut flush = |changes: &mut Vec<Change>| {
        if !changes.is_empty() {
            let record = encode(0, bytes.len() as u64, 0, changes);
            bytes.extend_from_slice(&record);
            changes.clear();
        }
    };
    for change in values.changes() {
        if let super::What::Put { value, key } = &change.what {
            gathered += (value.len() + key.len() + ALIGN) as u64;
        }
        changes.push(change);
        if gathered > FRESH_RECORD_BYTES {
            flush(&mut changes);
            gathered = 0;
        }
    }
    flush(&mut changes);
    let header = Header { base_sequence, base_bytes: bytes.len() as u64 };
    for (place, byte) in bytes.iter_mut().zip(header.encode()) {
        *place = byte;
    }
    bytes
}

pub(super) fn write_synced(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<FileRef> {
    let file =
        disk.open(path, OpenMode::CreateOrTruncate).map_err(|e| Error::io("create", path, e))?;
    file.write_all_at(bytes, 0).map_err(|e| Error::io("write", path, e))?;
    if !planted(Bug::StateRenamedUnsynced) {
        file.sync_data().map_err(|e| Error::io("sync", path, e))?;
    }
    Ok(file)
}
