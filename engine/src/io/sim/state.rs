//! The state of a simulated machine: its tree of files, and what a crash makes of it.

#![forbid(unsafe_code)]

use super::CrashKind;
use super::content::{Content, Scratch};
use super::faults::{Fate, Knobs, Plan};
use super::lane::Queue;
use super::names::{Ino, Names};
use super::rng::Rng;
use super::trace::{Call, Subject, Trace};
use crate::io::OpenMode;
use libc::{
    EEXIST, EINVAL, EIO, EISDIR, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY, EROFS, EXDEV,
};
use std::sync::{Arc, Mutex, Weak};

/// The result of a call, with an errno.
pub(super) type Sys<T> = Result<T, i32>;

/// Space is given out in these.
pub(super) const BLOCK: u64 = 4096;

/// Space of a new disk: enough not to be met by chance.
const CAPACITY: u64 = 1 << 40;

const ROOT: Ino = 0;

/// Counts of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Stats {
    /// Calls so far; the index of the next one.
    pub(crate) ios: u64,
    /// Syncs of files and directories that worked, and durable writes.
    pub(crate) syncs: u64,
    /// Calls that were made to fail.
    pub(crate) failures: u64,
    /// Crashes.
    pub(crate) crashes: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    File(Content),
    Dir(Names),
    /// No name leads here any more, and none can come back.
    Gone,
}

#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) node: Node,
    /// Its latest name, for the trace.
    pub(super) label: Arc<str>,
    pub(super) modified_ms: i64,
    /// Where the space ends that it has taken. Growth without a write takes none.
    pub(super) space_end: u64,
    /// False once its name is gone: its space is given back then.
    pub(super) linked: bool,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) rng: Rng,
    /// Rises with each crash; handles of an earlier one are dead.
    pub(super) epoch: u32,
    /// Rises with each power cut.
    pub(super) boots: u64,
    /// Set from the fatal call until the crash.
    pub(super) dead: Option<CrashKind>,
    /// The file system has stopped writing; see [`Knobs::aborts`].
    pub(super) aborted: bool,
    /// Never used again for another file, so that old handles and traces mean what they meant.
    pub(super) inodes: Vec<Inode>,
    /// The number of the last change, over all files.
    pub(super) number: u64,
    pub(super) plan: Plan,
    pub(super) knobs: Knobs,
    pub(super) stats: Stats,
    pub(super) trace: Trace,
    pub(super) capacity: u64,
    used: u64,
    pub(super) scratch: Scratch,
    pub(super) lanes: Vec<Weak<Mutex<Queue>>>,
}

impl State {
    pub(super) fn new(seed: u64) -> State {
        let root = Inode {
            node: Node::Dir(Names::default()),
            label: "/".into(),
            modified_ms: 0,
            space_end: 0,
            linked: true,
        };
        State {
            rng: Rng::new(seed),
            epoch: 0,
            boots: 0,
            dead: None,
            aborted: false,
            inodes: vec![root],
            number: 0,
            plan: Plan::new(),
            knobs: Knobs::default(),
            stats: Stats::default(),
            trace: Trace::default(),
            capacity: CAPACITY,
            used: 0,
            scratch: Scratch::default(),
            lanes: Vec::new(),
        }
    }

    /// Counts a call and decides its fate.
    pub(super) fn enter(
        &mut self,
        epoch: u32,
        call: Call,
        subject: Subject,
        position: u64,
        len: u64,
    ) -> Sys<Fate> {
        if self.is_dead(epoch) {
            return Err(EIO);
        }
        let index = self.stats.ios;
        self.stats.ios += 1;
        self.trace.push(index, call, subject, position, len);
        let (mut fate, kind) = self.plan.fate(index, call, &mut self.rng);
        if matches!(call, Call::Sync | Call::SyncDir | Call::LaneSync) {
            self.aborted |= self.knobs.aborts && fate == Fate::Fails(EIO);
        }
        let changes_names = matches!(
            call,
            Call::SetLen
                | Call::Allocate
                | Call::CreateDir
                | Call::Rename
                | Call::RemoveFile
                | Call::RemoveDirAll
        );
        if self.aborted && changes_names && fate == Fate::Works {
            fate = Fate::Fails(libc::EROFS);
        }
        match fate {
            Fate::Works => {}
            Fate::Fails(errno) => {
                self.stats.failures += 1;
                self.trace.failed(errno);
            }
            Fate::Dies => {
                self.dead = Some(kind);
                self.trace.failed(EIO);
            }
        }
        Ok(fate)
    }

    pub(super) fn is_dead(&self, epoch: u32) -> bool {
        self.dead.is_some() || epoch != self.epoch
    }

    /// A call that is done or not done, never by half.
    pub(super) fn whole<T>(
        &mut self,
        epoch: u32,
        call: Call,
        subject: Subject,
        act: impl FnOnce(&mut State) -> Sys<T>,
    ) -> Sys<T> {
        match self.enter(epoch, call, subject, 0, 0)? {
            Fate::Works => act(self).inspect_err(|errno| self.trace.failed(*errno)),
            Fate::Fails(errno) => Err(errno),
            Fate::Dies => {
                if self.rng.coin() {
                    let _ = act(self);
                }
                Err(EIO)
            }
        }
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    pub(super) fn find(&self, path: &str) -> Sys<Ino> {
        let mut at = ROOT;
        for name in components(path) {
            at = self.names(at)?.get(name).ok_or(ENOENT)?;
        }
        Ok(at)
    }

    /// The directory of a path, and its last name.
    fn parent<'p>(&self, path: &'p str) -> Sys<(Ino, &'p str)> {
        let path = path.trim_end_matches('/');
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        if matches!(name, "" | "." | "..") {
            return Err(EINVAL);
        }
        if name.len() > 255 {
            return Err(ENAMETOOLONG);
        }
        let dir = self.find(dir)?;
        self.names(dir)?;
        Ok((dir, name))
    }

    pub(super) fn names(&self, dir: Ino) -> Sys<&Names> {
        match &self.inodes[dir as usize].node {
            Node::Dir(names) => Ok(names),
            Node::File(_) => Err(ENOTDIR),
            Node::Gone => Err(ENOENT),
        }
    }

    fn names_mut(&mut self, dir: Ino) -> Sys<&mut Names> {
        match &mut self.inodes[dir as usize].node {
            Node::Dir(names) => Ok(names),
            Node::File(_) => Err(ENOTDIR),
            Node::Gone => Err(ENOENT),
        }
    }

    pub(super) fn content(&self, file: Ino) -> Sys<&Content> {
        match &self.inodes[file as usize].node {
            Node::File(content) => Ok(content),
            Node::Dir(_) => Err(EISDIR),
            Node::Gone => Err(ENOENT),
        }
    }

    pub(super) fn content_mut(&mut self, file: Ino) -> Sys<&mut Content> {
        match &mut self.inodes[file as usize].node {
            Node::File(content) => Ok(content),
            Node::Dir(_) => Err(EISDIR),
            Node::Gone => Err(ENOENT),
        }
    }

    pub(super) fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.inodes[ino as usize].node, Node::Dir(_))
    }

    pub(super) fn open(&mut self, path: &str, mode: OpenMode, now_ms: i64) -> Sys<Ino> {
        let found = match self.find(path) {
            Err(ENOENT) => None,
            found => Some(found?),
        };
        match (found, mode) {
            (Some(_), OpenMode::CreateNew) => Err(EEXIST),
            (Some(ino), OpenMode::Read) => Ok(ino),
            (Some(ino), _) if self.is_dir(ino) => Err(EISDIR),
            (Some(ino), OpenMode::CreateOrTruncate) => {
                self.set_len(ino, 0, now_ms)?;
                Ok(ino)
            }
            (Some(ino), OpenMode::ReadWrite | OpenMode::Direct) => Ok(ino),
            (None, OpenMode::CreateNew | OpenMode::CreateOrTruncate) => {
                self.create(path, Node::File(Content::default()), now_ms)
            }
            (None, _) => Err(ENOENT),
        }
    }

    pub(super) fn create_dir(&mut self, path: &str, now_ms: i64) -> Sys<Ino> {
        match self.find(path) {
            Ok(_) => Err(EEXIST),
            Err(ENOENT) => self.create(path, Node::Dir(Names::default()), now_ms),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn create(&mut self, path: &str, node: Node, modified_ms: i64) -> Sys<Ino> {
        let (dir, name) = self.parent(path)?;
        let label: Arc<str> = name.into();
        let number = self.next_number();
        let ino = self.inodes.len() as Ino;
        self.names_mut(dir)?.link(Arc::clone(&label), ino, number);
        self.inodes.push(Inode { node, label, modified_ms, space_end: 0, linked: true });
        Ok(ino)
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Sys<()> {
        let (dir, from_name) = self.parent(from)?;
        let ino = self.names(dir)?.get(from_name).ok_or(ENOENT)?;
        let (to_dir, to_name) = self.parent(to)?;
        if to_dir != dir {
            // Nothing here does it; a rename between directories would be two changes as one.
            return Err(EXDEV);
        }
        match self.names(dir)?.get(to_name) {
            Some(same) if same == ino => return Ok(()),
            Some(old) => {
                match (self.is_dir(ino), self.is_dir(old)) {
                    (true, false) => return Err(ENOTDIR),
                    (false, true) => return Err(EISDIR),
                    (true, true) if !self.names(old)?.is_empty() => return Err(ENOTEMPTY),
                    _ => {}
                }
                self.unlinked(old);
            }
            None => {}
        }
        let (number, label) = (self.next_number(), Arc::<str>::from(to_name));
        self.names_mut(dir)?.rename(from_name, Arc::clone(&label), number);
        self.inodes[ino as usize].label = label;
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &str) -> Sys<()> {
        let (dir, name) = self.parent(path)?;
        let ino = self.names(dir)?.get(name).ok_or(ENOENT)?;
        if self.is_dir(ino) {
            return Err(EISDIR);
        }
        self.unlink(dir, name);
        Ok(())
    }

    /// Removes a directory and what is in it, as long as `budget` lasts: a removal of many names
    /// that ends early has removed some of them.
    pub(super) fn remove_dir_all(&mut self, path: &str, budget: &mut u64) -> Sys<()> {
        let (dir, name) = self.parent(path)?;
        let ino = self.names(dir)?.get(name).ok_or(ENOENT)?;
        self.remove_below(ino, budget)?;
        if *budget > 0 {
            self.unlink(dir, name);
        }
        Ok(())
    }

    fn remove_below(&mut self, dir: Ino, budget: &mut u64) -> Sys<()> {
        let inside: Vec<(Arc<str>, Ino)> =
            self.names(dir)?.iter().map(|(name, ino)| (Arc::clone(name), ino)).collect();
        for (name, ino) in inside {
            if self.is_dir(ino) {
                self.remove_below(ino, budget)?;
            }
            if *budget == 0 {
                break;
            }
            *budget -= 1;
            self.unlink(dir, &name);
        }
        Ok(())
    }

    fn unlink(&mut self, dir: Ino, name: &str) {
        let number = self.next_number();
        if let Ok(names) = self.names_mut(dir)
            && let Some(ino) = names.unlink(name, number)
        {
            self.unlinked(ino);
        }
    }

    fn unlinked(&mut self, ino: Ino) {
        let inode = &mut self.inodes[ino as usize];
        inode.linked = false;
        self.used -= inode.space_end.next_multiple_of(BLOCK);
    }

    /// Makes durable what was changed in a file or directory up to a number.
    pub(super) fn settle(&mut self, ino: Ino, up_to: u64) {
        match &mut self.inodes[ino as usize].node {
            Node::File(_) if self.knobs.lying_syncs => {}
            Node::Dir(_) if self.knobs.lying_dir_syncs => {}
            Node::File(content) => content.settle(up_to),
            Node::Dir(names) => names.settle(up_to),
            Node::Gone => {}
        }
    }

    /// A sync fails. Names that are not durable stay so: a later sync may yet make them.
    pub(super) fn fail_sync(&mut self, ino: Ino, errno: i32) {
        let reached_the_disk = errno == EIO || errno == ENOSPC;
        if let (true, Node::File(content)) = (reached_the_disk, &mut self.inodes[ino as usize].node)
        {
            content.fail_sync(&mut self.rng, &mut self.scratch);
        }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }

    /// Takes space up to `end`; how far it got may be less.
    pub(super) fn claim(&mut self, file: Ino, end: u64) -> u64 {
        let inode = &mut self.inodes[file as usize];
        if end <= inode.space_end || !inode.linked {
            return end;
        }
        let taken = inode.space_end.next_multiple_of(BLOCK);
        let free = self.capacity.saturating_sub(self.used) / BLOCK * BLOCK;
        let end = end.min(taken + free).max(inode.space_end);
        self.used += end.next_multiple_of(BLOCK) - taken;
        inode.space_end = end;
        end
    }

    pub(super) fn set_len(&mut self, file: Ino, len: usize, now_ms: i64) -> Sys<()> {
        let number = self.next_number();
        self.content_mut(file)?.set_len(len, number);
        self.inodes[file as usize].modified_ms = now_ms;
        self.release(file, len as u64);
        Ok(())
    }

    /// Gives back the space past `end`.
    pub(super) fn release(&mut self, file: Ino, end: u64) {
        let inode = &mut self.inodes[file as usize];
        let end = inode.space_end.min(end);
        if inode.linked {
            self.used -= inode.space_end.next_multiple_of(BLOCK) - end.next_multiple_of(BLOCK);
        }
        inode.space_end = end;
    }

    /// The crash itself; operations in flight have been seen to.
    pub(super) fn crash(&mut self, kind: CrashKind) {
        let text = Subject::Path(format!("{kind:?}").into());
        self.trace.push(self.stats.ios, Call::Crash, text, 0, 0);
        self.stats.crashes += 1;
        self.epoch += 1;
        self.dead = None;
        self.plan.forget();
        if kind == CrashKind::Power {
            self.aborted = false;
            self.cut_power();
        }
    }

    fn cut_power(&mut self) {
        self.boots += 1;
        for inode in &mut self.inodes {
            if let Node::Dir(names) = &mut inode.node {
                names.cut_power(&mut self.rng);
            }
        }
        self.keep_what_has_a_name();
        self.used = 0;
        for inode in &mut self.inodes {
            if let Node::File(content) = &mut inode.node {
                content.cut_power(&mut self.rng, &mut self.scratch);
                inode.space_end = content.len() as u64;
                self.used += inode.space_end.next_multiple_of(BLOCK);
            }
        }
    }

    /// Forgets the rest. A power cut only: before it, a removal that is not durable may be undone.
    fn keep_what_has_a_name(&mut self) {
        self.inodes.iter_mut().for_each(|inode| inode.linked = false);
        self.inodes[ROOT as usize].linked = true;
        let mut left = vec![ROOT];
        while let Some(dir) = left.pop() {
            // Taken out while its children are marked.
            let Node::Dir(names) =
                std::mem::replace(&mut self.inodes[dir as usize].node, Node::Gone)
            else {
                continue;
            };
            for (name, ino) in names.iter() {
                let inode = &mut self.inodes[ino as usize];
                inode.linked = true;
                inode.label.clone_from(name);
                if matches!(inode.node, Node::Dir(_)) {
                    left.push(ino);
                }
            }
            self.inodes[dir as usize].node = Node::Dir(names);
        }
        for inode in self.inodes.iter_mut().filter(|inode| !inode.linked) {
            inode.node = Node::Gone;
        }
    }

    /// Makes a directory and those above it, durably.
    pub(super) fn make_dir_all(&mut self, path: &str) -> Sys<Ino> {
        let mut at = ROOT;
        for name in components(path) {
            let end = name.as_ptr() as usize - path.as_ptr() as usize + name.len();
            at = match self.names(at)?.get(name) {
                Some(ino) => ino,
                None => {
                    let ino = self.create(&path[..end], Node::Dir(Names::default()), 0)?;
                    self.settle(at, u64::MAX);
                    ino
                }
            };
        }
        self.names(at)?;
        Ok(at)
    }

    /// Puts a durable file into place.
    pub(super) fn put(&mut self, path: &str, bytes: Vec<u8>) -> Sys<()> {
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        let dir = self.make_dir_all(dir)?;
        let len = bytes.len() as u64;
        let node = Node::File(Content::durable(bytes));
        let ino = self.create(path, node, 0)?;
        self.claim(ino, len);
        self.settle(dir, u64::MAX);
        Ok(())
    }
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !matches!(*name, "" | "."))
}

/// True for errors after which a part of a write may be there.
pub(super) fn may_have_written(errno: i32) -> bool {
    errno != EROFS && errno != libc::EINTR && errno != libc::EMFILE
}
